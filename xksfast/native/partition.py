# SPDX-License-Identifier: Apache-2.0
"""Wrapper for csrc/xks_p11_admin, xks_p11_measure and xks_p11_master: one token's keys, its speed, and data keys under a master
key in it. For a tool's own process only.

No key is ever in Python: what passes here are handles, blobs wrapped inside a token, and proofs of a public constant.
"""

from __future__ import annotations

from typing import Any

import msgspec

from xksfast.native.crypto import Secret, SecretPages
from xksfast.native.engine import NO_SLOT, Texts
from xksfast.native.loader import check, error_buffer, ffi, lib

NOT_TOLD = 2**64 - 1
TOKEN_FLAGS = {  # CKF_ of CK_TOKEN_INFO
    0x0001: "rng", 0x0002: "write_protected", 0x0004: "login_required", 0x0008: "user_pin_initialized", 0x0200: "dual_crypto",
    0x0400: "token_initialized", 0x10000: "user_pin_count_low", 0x20000: "user_pin_final_try", 0x40000: "user_pin_locked",
    0x80000: "user_pin_to_be_changed",
}  # fmt: skip
MAX_FOUND = 8


class TokenInfo(msgspec.Struct, frozen=True):
    """xks_admin_token: what C_GetInfo and C_GetTokenInfo say; a count of NOT_TOLD is not told, a maximum of 0 is no limit."""

    label: str
    manufacturer: str
    model: str
    serial: str
    library: str
    firmware_major: int
    firmware_minor: int
    hardware_major: int
    hardware_minor: int
    library_major: int
    library_minor: int
    sessions: int
    max_sessions: int
    rw_sessions: int
    max_rw_sessions: int
    flags: int

    @property
    def flag_names(self) -> list[str]:
        """The flags that are set and that we know."""
        return [name for bit, name in TOKEN_FLAGS.items() if self.flags & bit]


class TokenKey(msgspec.Struct, frozen=True):
    """xks_admin_key. value_len: bytes; 0 when the token does not tell."""

    handle: int
    value_len: int
    is_aes: bool
    can_encrypt: bool
    can_decrypt: bool
    can_wrap: bool
    can_unwrap: bool
    sensitive: bool
    extractable: bool


class KeyTemplate(msgspec.Struct, frozen=True):
    """xks_admin_template: an AES-256 key to be. on_token False: a session object, gone with the process."""

    label: str
    encrypt: bool = False
    decrypt: bool = False
    wrap: bool = False
    unwrap: bool = False
    extractable: bool = False
    on_token: bool = True


class Proof(msgspec.Struct, frozen=True):
    """xks_admin_proof: a public text under a key."""

    iv: bytes
    tag: bytes
    ciphertext: bytes


class Latency(msgspec.Struct, frozen=True):
    """xks_measure_latency."""

    samples: int
    median_ns: int
    p99_ns: int


class Throughput(msgspec.Struct, frozen=True):
    """xks_measure_throughput. failure: name of a CKR, "" when nothing failed."""

    threads: int
    operations: int
    failures: int
    elapsed_ns: int
    median_ns: int
    p99_ns: int
    failure: str

    @property
    def per_second(self) -> float:
        """Operations a second."""
        return self.operations * 1e9 / self.elapsed_ns if self.elapsed_ns else 0.0


class Measured(msgspec.Struct, frozen=True):
    """xks_measure_result, with the CKRs by name. sessions_refusal: why no more were opened, "" when all were."""

    encrypt: Latency
    session_info: Latency
    sessions_opened: int
    sessions_refusal: str
    single: Throughput
    full: Throughput
    tag_failure: str
    iv_mode: str
    message_api: bool


class Target:
    """xks_provision_target with the strings it points to. pin: kept alive as long as this is."""

    def __init__(
        self,
        *,
        module_path: str,
        profile: str,
        parameters: str | None = None,
        token_label: str | None = None,
        serial: str | None = None,
        slot: int | None = None,
        pin: Secret | None = None,
    ) -> None:
        self._texts, self._pin = Texts(), pin
        self.pointer = ffi.new("xks_provision_target *")
        self.pointer.module_path = self._texts(module_path)
        self.pointer.parameters = self._texts(parameters)
        self.pointer.token_label = self._texts(token_label)
        self.pointer.token_serial = self._texts(serial)
        self.pointer.slot = NO_SLOT if slot is None else slot
        self.pointer.pin = pin.pointer if pin is not None else ffi.NULL
        self.pointer.profile = self._texts(profile)


def describe_token(target: Target) -> TokenInfo:
    """What the token says of itself, without a login."""
    out, error = ffi.new("xks_admin_token *"), error_buffer()
    check(lib.xks_admin_describe(target.pointer, out, error), error)
    values: dict[str, Any] = {}
    for name in TokenInfo.__struct_fields__:
        value = getattr(out, name)
        values[name] = _text(value) if isinstance(value, ffi.CData) else value
    return TokenInfo(**values)


def measure_partition(target: Target, *, sessions: int, run_s: float, health_check_key: str | None) -> Measured:
    """Self-test and measure; takes some three times run_s, more on a slow token, and for ever on one that hangs."""
    texts = Texts()
    options = ffi.new("xks_measure_options *")
    options.sessions, options.run_ns = sessions, int(run_s * 1e9)
    options.health_check_key = texts(health_check_key)
    out, error = ffi.new("xks_measure_result *"), error_buffer()
    check(lib.xks_measure_partition(target.pointer, options, out, error), error)
    return Measured(
        encrypt=_latency(out.encrypt),
        session_info=_latency(out.session_info),
        sessions_opened=out.sessions_opened,
        sessions_refusal=_ckr(out.sessions_ckr),
        single=_throughput(out.single),
        full=_throughput(out.full),
        tag_failure=_ckr(out.tag_failure_ckr),
        iv_mode=_text(out.iv_mode),
        message_api=out.message_api,
    )


def wrap_data_key(target: Target, label: str, context: str, pages: SecretPages, slot: int) -> bytes:
    """The 32 bytes of a slot under the token's key of this label."""
    name, text, error = label.encode(), context.encode(), error_buffer()
    wrapped, length = ffi.new("uint8_t[]", lib.XKS_WRAPPED_DATA_KEY_MAX_BYTES), ffi.new("size_t *")
    status = lib.xks_master_wrap(target.pointer, name, len(name), text, len(text), pages.pointer, slot, wrapped, length, error)
    check(status, error)
    return bytes(ffi.buffer(wrapped, length[0]))


def unwrap_data_key(target: Target, label: str, context: str, wrapped: bytes, pages: SecretPages, slot: int) -> None:
    """The opposite, into a slot."""
    name, text, error = label.encode(), context.encode(), error_buffer()
    status = lib.xks_master_unwrap(
        target.pointer, name, len(name), text, len(text), wrapped, len(wrapped), pages.pointer, slot, error
    )
    check(status, error)


class TokenAdmin:
    """A logged-in read-write session on one token. Handles are good as long as this is open."""

    def __init__(self, target: Target) -> None:
        out, error = ffi.new("xks_admin **"), error_buffer()
        check(lib.xks_admin_open(target.pointer, out, error), error)
        self._pointer = out[0]

    def close(self) -> None:
        """Log out with the module's end; session objects go."""
        lib.xks_admin_close(self._pointer)
        self._pointer = ffi.NULL

    def find(self, label: str) -> list[TokenKey]:
        """Every secret key on the token with this label, up to MAX_FOUND."""
        text, out, count, error = label.encode(), ffi.new("xks_admin_key[]", MAX_FOUND), ffi.new("size_t *"), error_buffer()
        check(lib.xks_admin_find(self._pointer, text, len(text), out, MAX_FOUND, count, error), error)
        fields = TokenKey.__struct_fields__
        return [TokenKey(**{name: getattr(out[i], name) for name in fields}) for i in range(min(count[0], MAX_FOUND))]

    def generate(self, template: KeyTemplate) -> int:
        """The new key's handle."""
        key, error = ffi.new("uint64_t *"), error_buffer()
        wanted, _kept = _template(template)
        check(lib.xks_admin_generate(self._pointer, wanted, key, error), error)
        return int(key[0])

    def wrap(self, wrapping_key: int, key: int, mechanism: int) -> bytes:
        """The key's blob."""
        blob, length, error = _blob(), ffi.new("size_t *"), error_buffer()
        check(lib.xks_admin_wrap(self._pointer, wrapping_key, key, mechanism, blob, length, error), error)
        return bytes(ffi.buffer(blob, length[0]))

    def unwrap(self, unwrapping_key: int, blob: bytes, mechanism: int, template: KeyTemplate) -> int:
        """The handle of the key that came out; a wrong one was destroyed."""
        key, error = ffi.new("uint64_t *"), error_buffer()
        wanted, _kept = _template(template)
        status = lib.xks_admin_unwrap(self._pointer, unwrapping_key, mechanism, blob, len(blob), wanted, key, error)
        check(status, error)
        return int(key[0])

    def make_receiver(self) -> tuple[int, bytes]:
        """A session's RSA pair: handle of the private half, modulus."""
        key, modulus, length, error = ffi.new("uint64_t *"), _blob(), ffi.new("size_t *"), error_buffer()
        check(lib.xks_admin_receiver(self._pointer, key, modulus, length, error), error)
        return int(key[0]), bytes(ffi.buffer(modulus, length[0]))

    def wrap_for(self, modulus: bytes, key: int) -> bytes:
        """The key's blob under a receiver's public half."""
        blob, length, error = _blob(), ffi.new("size_t *"), error_buffer()
        check(lib.xks_admin_wrap_for(self._pointer, modulus, len(modulus), key, blob, length, error), error)
        return bytes(ffi.buffer(blob, length[0]))

    def unwrap_received(self, private_key: int, blob: bytes, template: KeyTemplate) -> int:
        """The handle of the key that arrived."""
        key, error = ffi.new("uint64_t *"), error_buffer()
        wanted, _kept = _template(template)
        check(lib.xks_admin_unwrap_received(self._pointer, private_key, blob, len(blob), wanted, key, error), error)
        return int(key[0])

    def prove(self, key: int) -> Proof:
        """A proof by this key."""
        out, error = ffi.new("xks_admin_proof *"), error_buffer()
        check(lib.xks_admin_prove(self._pointer, key, out, error), error)
        iv, tag, ciphertext = (bytes(ffi.buffer(field)) for field in (out.iv, out.tag, out.ciphertext))
        return Proof(iv=iv[: out.iv_len], tag=tag, ciphertext=ciphertext)

    def check(self, key: int, proof: Proof, *, can_encrypt: bool) -> bool:
        """Whether this key made the proof. NativeError when the token fails."""
        given, error = ffi.new("xks_admin_proof *"), error_buffer()
        if len(proof.iv) > 16 or len(proof.tag) != 16 or len(proof.ciphertext) != lib.XKS_ADMIN_PROOF_BYTES:
            return False
        ffi.memmove(given.iv, proof.iv, len(proof.iv))
        ffi.memmove(given.tag, proof.tag, 16)
        ffi.memmove(given.ciphertext, proof.ciphertext, len(proof.ciphertext))
        given.iv_len = len(proof.iv)
        status = lib.xks_admin_check(self._pointer, key, can_encrypt, given, error)
        if status == lib.XKS_NOT_AUTHENTIC:
            return False
        check(status, error)
        return True

    def rename(self, key: int, label: str) -> None:
        """Give the key this label."""
        text, error = label.encode(), error_buffer()
        check(lib.xks_admin_rename(self._pointer, key, text, len(text), error), error)

    def lock_down(self, key: int) -> None:
        """CKA_EXTRACTABLE = false, for ever."""
        error = error_buffer()
        check(lib.xks_admin_lock_down(self._pointer, key, error), error)

    def destroy(self, key: int) -> None:
        """The key is gone for ever."""
        error = error_buffer()
        check(lib.xks_admin_destroy(self._pointer, key, error), error)


def _blob() -> Any:
    return ffi.new("uint8_t[]", lib.XKS_ADMIN_BLOB_BYTES)


def _template(template: KeyTemplate) -> tuple[Any, Any]:
    """The C struct, and what must live as long as it is used."""
    text = template.label.encode()
    label = ffi.new("char[]", text)
    wanted = ffi.new("xks_admin_template *")
    wanted.label, wanted.label_len, wanted.on_token = label, len(text), template.on_token
    wanted.can_encrypt, wanted.can_decrypt = template.encrypt, template.decrypt
    wanted.can_wrap, wanted.can_unwrap, wanted.extractable = template.wrap, template.unwrap, template.extractable
    return wanted, label


def _text(value: Any) -> str:
    return str(ffi.string(value).decode("utf-8", "replace"))


def _ckr(value: int) -> str:
    return _text(lib.xks_ckr_name(value)) if value else ""


def _latency(value: Any) -> Latency:
    return Latency(samples=value.samples, median_ns=value.median_ns, p99_ns=value.p99_ns)


def _throughput(value: Any) -> Throughput:
    fields = ("threads", "operations", "failures", "elapsed_ns", "median_ns", "p99_ns")
    return Throughput(**{name: getattr(value, name) for name in fields}, failure=_ckr(value.failure_ckr))
