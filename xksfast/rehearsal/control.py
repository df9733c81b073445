# SPDX-License-Identifier: Apache-2.0
"""The control file of libxksfault.so: created, opened, steered and read while servers run on it.

    with FaultControl.create(path, slots=3) as control:
        control.slot(0).latency(lognormal_ms(1.0))
        control.slot(1).hang()
        ...
        control.slot(1).release()

What lives here: names for the words of the file. What must not: their layout, which is `csrc/shim/xksfault_control.h` and reaches us
through the native module. A newcomer's trap: a setting holds from the next call on, and every process with the same file sees it; a
setting of several words is not seen at once.
"""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from xksfast.errors import OperatorError
from xksfast.native.loader import ffi, lib
from xksfast.rehearsal.ckr import ckr_value
from xksfast.rehearsal.counters import MisuseCounters, SlotCounters, read_misuse, read_slot
from xksfast.rehearsal.latency import FUNCTION_CLASSES, OPERATIONS, PPM, Latency

MAX_SLOTS: int = lib.XKS_FAULT_SLOTS
MAX_EVENTS: int = lib.XKS_FAULT_EVENTS
FILE_BYTES: int = ffi.sizeof("xksfault_control")
ALL_SLOTS = -1

FLAGS: dict[str, int] = {
    name: getattr(lib, f"XKS_FAULT_{name.upper()}")
    for name in ("strict", "check_ivs", "global_lock", "hide_3_0", "stable_handles")
}
IV_MODES: dict[str, int] = {
    "caller": lib.XKS_FAULT_IV_CALLER,
    "returned_in_param": lib.XKS_FAULT_IV_RETURNED_IN_PARAM,
    "appended_16": lib.XKS_FAULT_IV_APPENDED_16,
    "appended_12": lib.XKS_FAULT_IV_APPENDED_12,
    "zero_silently": lib.XKS_FAULT_IV_ZERO_SILENTLY,
}
# What a rehearsal may set; the rest of xksfault_slot says which real token is behind a slot and stays.
FAULT_FIELDS = (
    "multiplier_permille", "servers", "network_ns", "hang", "hang_classes", "hang_max_ms", "hang_rv", "dead_rv", "error_rv",
    "error_ppm", "error_classes", "error_times", "error_at_once", "max_sessions", "login_rv", "tag_rv", "iv_mode",
    "flip_encrypt_ppm", "flip_decrypt_ppm", "wrong_length_ppm",
)  # fmt: skip


def shim_path() -> Path:
    """The built libxksfault.so of this package."""
    path = Path(lib_directory()) / "libxksfault.so"
    if not path.exists():
        raise OperatorError(f"{path} does not exist: run make build")
    return path


def lib_directory() -> str:
    """Where the native parts are."""
    import xksfast.native

    return os.path.dirname(os.path.abspath(str(xksfast.native.__file__)))


def mask_of(classes: Iterable[str]) -> int:
    """The mask of function classes; 0, which means all, for none."""
    mask = 0
    for name in classes:
        if name not in FUNCTION_CLASSES:
            raise OperatorError(f"{name}: no class of functions; known: {', '.join(FUNCTION_CLASSES)}")
        mask |= 1 << FUNCTION_CLASSES[name]
    return mask


class SlotControl:
    """The settings and counters of one virtual slot. Every setter returns the slot, so that they can be chained."""

    def __init__(self, control: FaultControl, number: int) -> None:
        self._control = control
        self.number = number

    @property
    def words(self) -> Any:
        """The slot's xksfault_slot, for what has no setter."""
        return self._control.words.slots[self.number]

    def named(self, label: str, *, real_label: str = "") -> Self:
        """Its token label, and the label of the real token behind it ("": as before). Holds from the next C_GetSlotList on."""
        for field, text in (("label", label), ("real_label", real_label)):
            encoded = text.encode()
            if len(encoded) >= lib.XKS_FAULT_LABEL_BYTES:
                raise OperatorError(f"{text}: a token label has at most {lib.XKS_FAULT_LABEL_BYTES - 1} bytes here")
            if encoded:
                setattr(self.words, field, encoded)
        return self

    def latency(self, latency: Latency, classes: Iterable[str] = OPERATIONS) -> Self:
        """How long calls of these classes take. By default an operation costs one round trip, in C_Encrypt or C_Decrypt."""
        mask = mask_of(classes)
        for index in FUNCTION_CLASSES.values():
            if mask & 1 << index:
                word = self.words.latency[index]
                word.a_ns, word.b, word.c_ns, word.kind = latency.a_ns, latency.b, latency.c_ns, latency.kind
        return self

    def multiplier(self, times: float) -> Self:
        """Every latency `times` as long; 1 is usual."""
        self.words.multiplier_permille = max(1, round(times * 1000))
        return self

    def servers(self, count: int) -> Self:
        """Calls that the HSM works on at a time, the others wait in its queue. 0: no limit."""
        if not 0 <= count <= lib.XKS_FAULT_SERVERS:
            raise OperatorError(f"{count} servers: 0 to {lib.XKS_FAULT_SERVERS} are possible")
        self.words.servers = count
        return self

    def network_ms(self, ms: float) -> Self:
        """A time on the wire, added to every call that has a latency; it occupies no server."""
        self.words.network_ns = round(ms * 1_000_000)
        return self

    def hang(self, *, max_ms: int = 0, ckr: int | str = 0, classes: Iterable[str] = ()) -> Self:
        """Calls do not return until release(), or until max_ms are over (0: never); then with `ckr`, or as if nothing had been."""
        words = self.words
        words.hang_max_ms, words.hang_rv, words.hang_classes = max_ms, ckr_value(ckr), mask_of(classes)
        words.hang = 1
        return self

    def release(self) -> Self:
        """The hang is over."""
        self.words.hang = 0
        return self

    def dead(self, ckr: int | str = "CKR_DEVICE_ERROR") -> Self:
        """Everything fails at once; 0 ends it."""
        self.words.dead_rv = ckr_value(ckr)
        return self

    def error(
        self, ckr: int | str, ppm: int = PPM, *, classes: Iterable[str] = (), times: int = 0, at_once: bool = False
    ) -> Self:
        """`ppm` of 1,000,000 calls fail with `ckr`, the first `times` of them only (0: all). ckr 0 ends it."""
        words = self.words
        words.error_ppm, words.error_classes, words.error_times, words.error_at_once = ppm, mask_of(classes), times, at_once
        words.error_rv = ckr_value(ckr)
        return self

    def restart(self) -> Self:
        """As if the HSM had restarted: sessions invalid, logins lost, object handles changed."""
        self.words.epoch += 1
        return self

    def lose_login(self) -> Self:
        """Logins lost; sessions and handles stay."""
        self.words.login_epoch += 1
        return self

    def device_error(self) -> Self:
        """CKR_DEVICE_ERROR until a process calls C_Finalize and C_Initialize."""
        self.words.device_error_epoch += 1
        return self

    def max_sessions(self, count: int) -> Self:
        """A process may have so many sessions, then CKR_SESSION_COUNT. 0: no limit."""
        self.words.max_sessions = count
        return self

    def login_error(self, ckr: int | str = "CKR_PIN_INCORRECT") -> Self:
        """What C_Login returns without asking the real token; 0 ends it."""
        self.words.login_rv = ckr_value(ckr)
        return self

    def login_with_any_pin(self, needed: bool = True) -> Self:
        """C_Login is needed and takes any PIN, whatever the real token wants (NSS softoken without a password wants none)."""
        self.words.login_mode = lib.XKS_FAULT_LOGIN_ANY_PIN if needed else lib.XKS_FAULT_LOGIN_AS_REAL
        return self

    def tag_error(self, ckr: int | str) -> Self:
        """What a decryption that is not authentic returns instead; 0: what the real token returns."""
        self.words.tag_rv = ckr_value(ckr)
        return self

    def iv_mode(self, mode: str) -> Self:
        """Who makes the IV of an encryption: see IV_MODES."""
        if mode not in IV_MODES:
            raise OperatorError(f"{mode}: no IV mode; known: {', '.join(IV_MODES)}")
        self.words.iv_mode = IV_MODES[mode]
        return self

    def flip_bits(self, *, encrypt_ppm: int = 0, decrypt_ppm: int = 0) -> Self:
        """So many of 1,000,000 outputs have one bit changed."""
        self.words.flip_encrypt_ppm, self.words.flip_decrypt_ppm = encrypt_ppm, decrypt_ppm
        return self

    def wrong_lengths(self, ppm: int) -> Self:
        """So many of 1,000,000 outputs have a wrong length."""
        self.words.wrong_length_ppm = ppm
        return self

    def reset(self) -> Self:
        """No faults and no latency. Epochs, names and counters stay."""
        for field in FAULT_FIELDS:
            setattr(self.words, field, 0)
        for index in FUNCTION_CLASSES.values():
            self.words.latency[index].kind = lib.XKS_FAULT_NONE
        return self

    def counters(self) -> SlotCounters:
        """What happened here since the file was made, or since reset_counters()."""
        return read_slot(self._control.words.counters[self.number])


class FaultControl:
    """An open control file. Close it, or use it as a context manager; servers go on without it."""

    def __init__(self, path: Path, mapped: mmap.mmap) -> None:
        self.path = path
        self._mapped = mapped
        self._buffer = ffi.from_buffer(mapped, require_writable=True)
        self._words = ffi.cast("xksfault_control *", self._buffer)

    @classmethod
    def create(
        cls,
        path: Path | str,
        *,
        slots: int = 0,
        labels: Iterable[str] = (),
        flags: Iterable[str] = (),
        seed: int = 0,
    ) -> Self:
        """Make a control file anew. `slots` virtual slots over the first real token, labelled p0, p1, ... unless `labels` says
        otherwise; 0: one for each real token, with its own label. flags: see FLAGS. seed: of every random choice, 0: none.
        """
        path = Path(path)
        if not 0 <= slots <= MAX_SLOTS:
            raise OperatorError(f"{slots} virtual slots: 0 to {MAX_SLOTS} are possible")
        new = path.with_name(f"{path.name}.new")
        try:
            descriptor = os.open(new, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(descriptor, "r+b") as file:
                file.truncate(FILE_BYTES)
                head = ffi.new("xksfault_control *")
                head.magic, head.version, head.size = lib.XKS_FAULT_MAGIC, lib.XKS_FAULT_VERSION, FILE_BYTES
                head.slot_count, head.seed = slots, seed
                file.write(ffi.buffer(head, ffi.offsetof("xksfault_control", "events"))[:])
            new.replace(path)
        except OSError as error:
            raise OperatorError(f"{path}: the control file cannot be made: {error.strerror}") from error
        control = cls.open(path)
        for number, label in enumerate(labels):
            control.slot(number).named(label)
        control.set_flags(flags)
        return control

    @classmethod
    def open(cls, path: Path | str) -> Self:
        """Open a control file that create() or `xksfast rehearse init` made."""
        path = Path(path)
        try:
            with path.open("r+b") as file:
                mapped = mmap.mmap(file.fileno(), FILE_BYTES) if os.fstat(file.fileno()).st_size == FILE_BYTES else None
        except OSError as error:
            raise OperatorError(f"{path}: {error.strerror}: make it with: xksfast rehearse init {path}") from error
        if mapped is not None:
            control = cls(path, mapped)
            words = control.words
            if (words.magic, words.version, words.size) == (lib.XKS_FAULT_MAGIC, lib.XKS_FAULT_VERSION, FILE_BYTES):
                return control
            control.close()
        raise OperatorError(f"{path} is no control file of this version: make it anew with: xksfast rehearse init {path}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Unmap. Faults that are set stay set."""
        self._words = None
        ffi.release(self._buffer)
        self._mapped.close()

    @property
    def words(self) -> Any:
        """The file's xksfault_control, for what has no setter."""
        if self._words is None:
            raise OperatorError(f"{self.path}: the control file has been closed")
        return self._words

    @property
    def slot_count(self) -> int:
        """Virtual slots; 0: as many as the real module has tokens."""
        return int(self.words.slot_count)

    def slot(self, number: int) -> SlotControl:
        """One virtual slot."""
        last = (self.slot_count or MAX_SLOTS) - 1
        if not 0 <= number <= last:
            raise OperatorError(f"slot {number}: there are slots 0 to {last}")
        return SlotControl(self, number)

    def slots(self) -> list[SlotControl]:
        """Every virtual slot."""
        return [SlotControl(self, number) for number in range(self.slot_count or MAX_SLOTS)]

    def set_flags(self, names: Iterable[str]) -> None:
        """Exactly these flags of FLAGS."""
        value = 0
        for name in names:
            if name not in FLAGS:
                raise OperatorError(f"{name}: no flag; known: {', '.join(FLAGS)}")
            value |= FLAGS[name]
        self.words.flags = value

    def flags(self) -> list[str]:
        """The flags that are set."""
        return [name for name, bit in FLAGS.items() if self.words.flags & bit]

    def device_error(self) -> None:
        """The whole library is broken: CKR_DEVICE_ERROR everywhere until C_Finalize and C_Initialize."""
        for number in range(MAX_SLOTS):
            SlotControl(self, number).device_error()

    def schedule(self, events: Iterable[tuple[float, int, str, int]], *, start: bool = True) -> None:
        """A timeline of (seconds, slot or ALL_SLOTS, setting, value). A setting is a name of xksfault_slot: "hang", "dead_rv",
        "latency.encrypt.a_ns". It starts now, or with start=False at the next C_Initialize.
        """
        words, steps = self.words, sorted(events, key=lambda event: event[0])
        if len(steps) > MAX_EVENTS:
            raise OperatorError(f"a timeline has at most {MAX_EVENTS} events")
        words.event_count = words.timeline_start_ns = words.event_next = 0
        for index, (seconds, slot, setting, value) in enumerate(steps):
            event = words.events[index]
            event.at_ns, event.value, event.word = round(seconds * 1e9), value, setting_offset(setting) // 8
            event.slot = MAX_SLOTS if slot == ALL_SLOTS else self.slot(slot).number
        words.timeline_start_ns = time.monotonic_ns() if start else 0
        words.event_count = len(steps)

    def misuse(self) -> MisuseCounters:
        """What callers did wrong, all slots together."""
        return read_misuse(self.words)

    def reset_counters(self) -> None:
        """Counters, histograms and queues to zero; gauges of what is open and in flight stay."""
        for number in range(MAX_SLOTS):
            counters = self.words.counters[number]
            gauges = {name: getattr(counters, name) for name in ("sessions_open", "in_flight", "hung")}
            ffi.memmove(ffi.addressof(counters), bytes(ffi.sizeof("xksfault_counters")), ffi.sizeof("xksfault_counters"))
            for name, value in gauges.items():
                setattr(counters, name, value)
        for name in MisuseCounters.__annotations__:
            setattr(self.words, name, 0)

    def reset(self) -> None:
        """No faults, no latency, no timeline, and zero counters."""
        self.words.event_count = 0
        for slot in [SlotControl(self, number) for number in range(MAX_SLOTS)]:
            slot.reset()
        self.reset_counters()

    def environment(self, real_module: Path | str) -> dict[str, str]:
        """What a server needs in its environment so that shim_path() stands before real_module."""
        return {"XKSFAULT_MODULE": str(real_module), "XKSFAULT_CONTROL": str(self.path.absolute())}


def setting_offset(setting: str) -> int:
    """Offset in bytes of a setting in xksfault_slot."""
    parts: list[str | int] = [*setting.split(".")]
    if len(parts) == 3 and parts[0] == "latency":
        parts[1] = FUNCTION_CLASSES.get(str(parts[1]), -1)
    try:
        return int(ffi.offsetof("xksfault_slot", *parts))
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise OperatorError(f"{setting}: no setting of a slot; see csrc/shim/xksfault_control.h") from error


def describe_slot(slot: SlotControl) -> Mapping[str, int]:
    """The faults of a slot that are set: name -> value, nothing for what is as usual."""
    return {field: int(getattr(slot.words, field)) for field in FAULT_FIELDS if getattr(slot.words, field) != 0}
