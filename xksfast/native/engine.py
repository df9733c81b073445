# SPDX-License-Identifier: Apache-2.0
"""Wrapper for the PKCS#11 engine: building it, and reading what its keepers know. Jobs go through the function table."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import Lock
from time import monotonic
from typing import Any

from xksfast.native.crypto import Secret
from xksfast.native.loader import check, error_buffer, ffi, lib

WAIT_SLICE_NS = 50_000_000
NO_SLOT = 2**64 - 1  # XKS_NO_SLOT
LATENCY_BOUNDS_NS = tuple(int(lib.xks_engine_latency_bound_ns(i)) for i in range(lib.XKS_LATENCY_BUCKETS - 1))
OTHER_CKR = 0xFFFFFFFF  # all codes for which the engine had no counter left
VENDOR_DEFINED_CKR = 0x80000000

_PARTITION_STATES = {
    lib.XKS_PARTITION_STARTING: "starting",
    lib.XKS_PARTITION_READY: "ready",
    lib.XKS_PARTITION_RECOVERING: "recovering",
    lib.XKS_PARTITION_REFUSED: "refused",
}
_KEY_STATES = {
    lib.XKS_KEY_PENDING: "pending",
    lib.XKS_KEY_USABLE: "usable",
    lib.XKS_KEY_ABSENT: "absent",
    lib.XKS_KEY_AMBIGUOUS: "ambiguous",
    lib.XKS_KEY_WRONG_TYPE: "wrong type",
    lib.XKS_KEY_FAILED: "failed",
    lib.XKS_KEY_DIFFERENT: "different",
}


@dataclass(frozen=True)
class PartitionStatus:
    """xks_partition_status of csrc/xks_engine.h.

    errors: CK_RV name -> how often. latency_counts: calls served, by duration; the buckets' upper bounds are LATENCY_BOUNDS_NS.
    """

    state: str
    reason: str
    token_label: str
    manufacturer: str
    model: str
    serial: str
    firmware_major: int
    firmware_minor: int
    sessions_open: int
    sessions_wanted: int
    in_flight: int
    login_epoch: int
    operations: int
    failures: int
    last_probe_ns: int
    last_good_probe_ns: int
    probe_duration_ns: int
    tag_failure_ckr: int
    iv_mode: str
    in_service: bool
    lost_threads: int
    limit: int
    concurrency: float
    median_ns: int
    p95_ns: int
    oldest_call_ns: int
    slow_start: float
    route_reason: str
    firsts: int
    retries: int
    hedges: int
    checks: int
    faults: int
    opens: int
    last_open_reason: str
    last_open_unix_s: int
    errors: dict[str, int]
    latency_counts: tuple[int, ...]


@dataclass(frozen=True)
class KeyStatus:
    """xks_key_status of csrc/xks_engine.h."""

    state: str
    can_encrypt: bool
    can_decrypt: bool
    extractable: bool
    session_copy: bool
    proven: bool
    reason: str


class Texts:
    """Keeps C copies of strings alive while a struct points to them."""

    def __init__(self) -> None:
        self._kept: list[Any] = []

    def __call__(self, text: str | None) -> Any:
        if text is None or text == "":
            return ffi.NULL
        self._kept.append(ffi.new("char[]", text.encode()))
        return self._kept[-1]


def ckr_name(ckr: int) -> str:
    """The name of a CK_RV, distinct for vendors' own codes: "CKR_DEVICE_ERROR", "CKR_VENDOR_DEFINED_0x80000042"."""
    if ckr == OTHER_CKR:
        return "other"
    name = str(ffi.string(lib.xks_ckr_name(ckr)).decode("ascii"))
    return f"{name}_0x{ckr:x}" if ckr >= VENDOR_DEFINED_CKR or name == "CKR_UNKNOWN" else name


def _errors(counts: Any) -> dict[str, int]:
    """An array of xks_ckr_count; a count of 0 ends it."""
    found: dict[str, int] = {}
    for entry in counts:
        if entry.count == 0:
            break
        name = ckr_name(int(entry.ckr))
        found[name] = found.get(name, 0) + int(entry.count)
    return found


def _fields(struct: Any, cls: type, states: dict[int, str]) -> dict[str, Any]:
    """The fields of `cls` from a C struct: char arrays as str, the state and errors by name."""
    values: dict[str, Any] = {}
    for name in cls.__dataclass_fields__:  # type: ignore[attr-defined]
        value = getattr(struct, name)
        if name == "state":
            value = states[value]
        elif name == "errors":
            value = _errors(value)
        elif name == "latency_counts":
            value = tuple(value)
        elif isinstance(value, ffi.CData):
            value = ffi.string(value).decode("utf-8", "replace")
        values[name] = value
    return values


class Engine:
    """The engine of one process. Add modules, partitions and groups, then start. `address` is for the request path."""

    def __init__(
        self,
        *,
        max_queued: int,
        probe_interval_s: float,
        retry_budget: float = 0.2,
        hedge_budget: float = 0.05,
        seed: int | None = None,
    ) -> None:
        """max_queued: jobs that may wait. Budgets: retries and hedges per job, on average. seed: of the router's ties, None: random."""
        config = ffi.new("xks_engine_config *")
        config.max_queued, config.probe_interval_ns = max_queued, int(probe_interval_s * 1e9)
        config.retry_budget, config.hedge_budget = retry_budget, hedge_budget
        config.seed = secrets.randbits(64) if seed is None else seed
        out, error = ffi.new("xks_engine **"), error_buffer()
        check(lib.xks_engine_new(config, out, error), error)
        self.pointer = out[0]
        self.address = int(ffi.cast("uintptr_t", self.pointer))
        self._pins: list[Secret] = []
        self._key_status = ffi.new("xks_key_status *")
        self._waiting = Lock()
        self._closing = False

    def add_module(self, path: str, parameters: str | None = None) -> int:
        """Load and initialise a module; its index. parameters: LibraryParameters (NSS softoken).

        What it reads from the environment must be set now, and may be changed for the next module.
        """
        index, error, texts = ffi.new("uint32_t *"), error_buffer(), Texts()
        check(lib.xks_engine_add_module(self.pointer, texts(path), texts(parameters), index, error), error)
        return int(index[0])

    def add_partition(
        self,
        *,
        name: str,
        module: int,
        token_label: str | None = None,
        token_serial: str | None = None,
        slot: int | None = None,
        pin: Secret | None = None,
        profile: str = "generic",
        sessions: int = 16,
        health_check_label: str | None = None,
        remote: bool = False,
    ) -> int:
        """The partition's index. Exactly one of token_label, token_serial and slot names the token."""
        texts = Texts()
        config = ffi.new("xks_partition_config *")
        config.name, config.module = texts(name), module
        config.token_label, config.token_serial = texts(token_label), texts(token_serial)
        config.slot = NO_SLOT if slot is None else slot
        config.profile, config.sessions = texts(profile), sessions
        config.health_check_label, config.remote = texts(health_check_label), remote
        if pin is not None:
            self._pins.append(pin)
            config.pin = pin.pointer
        index, error = ffi.new("uint32_t *"), error_buffer()
        check(lib.xks_engine_add_partition(self.pointer, config, index, error), error)
        return int(index[0])

    def add_group(self, partitions: Sequence[int], *, verify_other: bool = False) -> int:
        """The group's index. verify_other: a CDIV's check decrypt runs on another partition than the one that encrypted."""
        policy = lib.XKS_VERIFY_OTHER if verify_other else lib.XKS_VERIFY_SAME
        index, error = ffi.new("uint32_t *"), error_buffer()
        check(lib.xks_engine_add_group(self.pointer, list(partitions), len(partitions), policy, index, error), error)
        return int(index[0])

    def start(self) -> None:
        """Start the threads; returns before the tokens have answered."""
        error = error_buffer()
        check(lib.xks_engine_start(self.pointer, error), error)

    def key_add(self, group: int, label: str) -> int:
        """The key's index; the keepers look for it in the background."""
        index, error, text = ffi.new("uint32_t *"), error_buffer(), label.encode()
        check(lib.xks_engine_key_add(self.pointer, group, text, len(text), index, error), error)
        return int(index[0])

    def key_remove(self, key: int) -> None:
        """The opposite of key_add."""
        lib.xks_engine_key_remove(self.pointer, key)

    def wait_settled(self, patience_s: float) -> bool:
        """Block until every partition and key has been looked at; False when nothing has moved for patience_s, or after close()."""

        def look(timeout_ns: int) -> int:
            if lib.xks_engine_wait_settled(self.pointer, timeout_ns) == lib.XKS_OK:
                return 0
            return int(lib.xks_engine_unsettled(self.pointer))

        return self._wait(look, patience_s)

    def wait_keys(self, keys: Sequence[int], patience_s: float) -> bool:
        """The same for these keys alone: until the ready partitions have looked at each. patience_s 0: say how it stands now."""
        array, settled = ffi.new("uint32_t[]", list(keys)), ffi.new("size_t *")

        def look(timeout_ns: int) -> int:
            lib.xks_engine_wait_keys(self.pointer, array, len(keys), timeout_ns, settled)
            return len(keys) - int(settled[0])

        return self._wait(look, patience_s)

    def _wait(self, look: Callable[[int], int], patience_s: float) -> bool:
        """Until look(timeout_ns) says that nothing is left.

        It waits in slices, so that close() in another thread never frees what this one still looks at.
        """
        least, deadline = None, monotonic() + patience_s
        while True:
            with self._waiting:
                if self._closing:
                    return False
                left = look(WAIT_SLICE_NS if patience_s > 0 else 0)
            if left == 0:
                return True
            if least is None or left < least:
                least, deadline = left, monotonic() + patience_s
            if monotonic() >= deadline:
                return False

    def partition_status(self, partition: int) -> PartitionStatus:
        """What the keeper knows; no token is called."""
        out = ffi.new("xks_partition_status *")
        check(lib.xks_engine_partition_status(self.pointer, partition, out), what=f"partition {partition}")
        return PartitionStatus(**_fields(out, PartitionStatus, _PARTITION_STATES))

    def totals(self) -> dict[str, int]:
        """Counters of the whole engine by name: xks_engine_totals of csrc/xks_engine.h; no token is called."""
        out = ffi.new("xks_engine_totals *")
        lib.xks_engine_totals_read(self.pointer, out)
        return {name: int(getattr(out, name)) for name, _ in ffi.typeof(out).item.fields}

    def key_status(self, key: int, partition: int) -> KeyStatus:
        """What the keeper knows; no token is called."""
        out = ffi.new("xks_key_status *")
        check(lib.xks_engine_key_status(self.pointer, key, partition, out), what=f"key {key}")
        return KeyStatus(**_fields(out, KeyStatus, _KEY_STATES))

    def key_rights(self, key: int, partition: int) -> tuple[bool, bool] | None:
        """Whether a key may encrypt and decrypt there; None: it is not usable, and key_status says why.

        For many keys: no objects are made for those that are well.
        """
        out = self._key_status
        if lib.xks_engine_key_status(self.pointer, key, partition, out) != lib.XKS_OK or out.state != lib.XKS_KEY_USABLE:
            return None
        return bool(out.can_encrypt), bool(out.can_decrypt)

    def fileno(self) -> int:
        """Readable when completions wait."""
        return int(lib.xks_engine_eventfd(self.pointer))

    def close(self, patience_s: float = 2.0) -> int:
        """Stop, and return how many threads are still inside a call of a module after patience_s; with 0 all memory is given back.

        Otherwise it may be called again, to wait for longer: a process that ends while a thread is inside C_Login may leave a software
        token half written. The engine must not be used for anything else after the first call.
        """
        self._closing = True
        with self._waiting:
            if self.pointer == ffi.NULL:
                return 0
            left = int(lib.xks_engine_stop(self.pointer, int(patience_s * 1e9)))
            if left == 0:
                lib.xks_engine_free(self.pointer)
                self.pointer = ffi.NULL
            return left


def ensure_token_key(
    *,
    module_path: str,
    label: str,
    can_encrypt: bool,
    can_decrypt: bool,
    parameters: str | None = None,
    token_label: str | None = None,
    token_serial: str | None = None,
    slot: int | None = None,
    pin: Secret | None = None,
    profile: str = "generic",
) -> bool:
    """Create an AES-256 key in a token unless there is one of that label; True when it was made now.

    For the key tool's own process: the module must not be in use by an engine of the same process.
    """
    texts = Texts()
    target = ffi.new("xks_provision_target *")
    target.module_path, target.parameters = texts(module_path), texts(parameters)
    target.token_label, target.token_serial = texts(token_label), texts(token_serial)
    target.slot = NO_SLOT if slot is None else slot
    target.pin = pin.pointer if pin is not None else ffi.NULL
    target.profile = texts(profile)
    created, error, text = ffi.new("bool *"), error_buffer(), label.encode()
    status = lib.xks_provision_ensure_key(target, text, len(text), can_encrypt, can_decrypt, created, error)
    check(status, error)
    return bool(created[0])
