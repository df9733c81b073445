# SPDX-License-Identifier: Apache-2.0
"""Wrappers for secrets, sealing and SigV4. Thin: they own memory and turn a status into an exception.

A newcomer's trap: no function here returns the bytes of a secret. They live in C buffers; Python passes handles and slot numbers.
The one exception is Secret.reveal, for a secret access key that an operator is shown once, or AWS is given.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Mapping, Sequence
from typing import Any

from xksfast.errors import NativeError
from xksfast.native.loader import check, error_buffer, ffi, lib

SIGV4_REASONS = {
    getattr(lib, f"XKS_SIGV4_{name}"): name.lower()
    for name in (
        "ACCEPTED",
        "NO_AUTHORIZATION",
        "MALFORMED_AUTHORIZATION",
        "WRONG_ALGORITHM",
        "NO_DATE",
        "MALFORMED_DATE",
        "CLOCK_SKEW",
        "SCOPE_DATE",
        "SCOPE_REGION",
        "SCOPE_SERVICE",
        "SCOPE_TERMINATOR",
        "HEADER_NOT_SIGNED",
        "SIGNED_HEADER_ABSENT",
        "UNKNOWN_ACCESS_KEY_ID",
        "NO_KEY_FOR_DAY",
        "WRONG_SIGNATURE",
        "DUPLICATE_HEADER",
    )
}


def _address(pointer: Any) -> int:
    return int(ffi.cast("uintptr_t", pointer))


class Secret:
    """One secret in locked memory: a SigV4 secret access key, a PIN, a master key. `pointer` is for other wrappers."""

    def __init__(self, pointer: Any) -> None:
        self.pointer = ffi.gc(pointer, lib.xks_secret_free)

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> Secret:
        """From a file that only its owner can read; else NativeError says what to do."""
        out, error = ffi.new("xks_secret **"), error_buffer()
        check(lib.xks_secret_from_file(os.fsencode(path), out, error), error)
        return cls(out[0])

    @classmethod
    def from_environment(cls, name: str) -> Secret:
        """From an environment variable."""
        out, error = ffi.new("xks_secret **"), error_buffer()
        check(lib.xks_secret_from_environment(name.encode(), out, error), error)
        return cls(out[0])

    @classmethod
    def from_bytes(cls, data: bytes) -> Secret:
        """From bytes that Python holds already: for tests and the development mode."""
        out = ffi.new("xks_secret **")
        check(lib.xks_secret_from_bytes(data, len(data), out), what="secret")
        return cls(out[0])

    @classmethod
    def key_from_file(cls, path: str | os.PathLike[str], *, group_may_read: bool = False) -> Secret:
        """A key of 32 bytes, from a file of 32 bytes or 64 hexadecimal digits. group_may_read: for systemd's credentials."""
        out, error = ffi.new("xks_secret **"), error_buffer()
        check(lib.xks_secret_key_from_file(os.fsencode(path), group_may_read, out, error), error)
        return cls(out[0])

    @classmethod
    def random(cls, length: int = 32) -> Secret:
        """`length` random bytes."""
        out = ffi.new("xks_secret **")
        check(lib.xks_secret_random(length, out), what="random secret")
        return cls(out[0])

    @classmethod
    def random_text(cls, characters: int = 43) -> Secret:
        """A new secret access key of 43 (258 bits) to 64 characters of A-Z a-z 0-9 + /. It may be revealed once."""
        out = ffi.new("xks_secret **")
        check(lib.xks_secret_random_text(characters, out), what="secret access key")
        return cls(out[0])

    @classmethod
    def blank(cls, length: int) -> tuple[Secret, int]:
        """`length` zero bytes and their address, for a library that writes a secret itself."""
        out, room = ffi.new("xks_secret **"), ffi.new("uint8_t **")
        check(lib.xks_secret_blank(length, out, room), what="secret")
        return cls(out[0]), _address(room[0])

    def reveal(self) -> str:
        """The text that random_text or seal_open_text made, once; NativeError ever after and for other secrets."""
        text, length = ffi.new("char **"), ffi.new("size_t *")
        check(lib.xks_secret_reveal(self.pointer, text, length), what="only a secret access key is revealed, and once")
        return str(ffi.string(text[0], length[0]).decode("ascii"))

    def view(self) -> tuple[int, int]:
        """(address, length) of the bytes, for a library that reads them; valid as long as this object lives."""
        length = ffi.new("size_t *")
        return _address(lib.xks_secret_view(self.pointer, length)), int(length[0])


class SecretPages:
    """32-byte slots in a memfd, the way keys travel between processes. `address` is for Cython."""

    def __init__(self, pointer: Any, *, wipe: bool) -> None:
        self.pointer = ffi.gc(pointer, lambda p: lib.xks_secret_pages_free(p, int(wipe)))
        self.address = _address(pointer)

    @classmethod
    def new(cls, slots: int) -> SecretPages:
        """Writable pages of this process; wiped when freed."""
        out, error = ffi.new("xks_secret_pages **"), error_buffer()
        check(lib.xks_secret_pages_new(slots, out, error), error)
        return cls(out[0], wipe=True)

    @classmethod
    def open(cls, fd: int) -> SecretPages:
        """Another process's pages, read only. The descriptor stays the caller's."""
        out, error = ffi.new("xks_secret_pages **"), error_buffer()
        check(lib.xks_secret_pages_open(fd, out, error), error)
        return cls(out[0], wipe=False)

    @classmethod
    def share(cls, fd: int) -> SecretPages:
        """Another process's pages, to read and write; not wiped when freed. The descriptor stays the caller's."""
        out, error = ffi.new("xks_secret_pages **"), error_buffer()
        check(lib.xks_secret_pages_share(fd, out, error), error)
        return cls(out[0], wipe=False)

    @property
    def fd(self) -> int:
        """The descriptor to send; closed with this object."""
        return int(lib.xks_secret_pages_fd(self.pointer))

    def __len__(self) -> int:
        return int(lib.xks_secret_pages_slots(self.pointer))

    def write(self, slot: int, data: bytes) -> None:
        """Fill a slot from bytes that Python holds already: for tests."""
        if len(data) != lib.XKS_SECRET_SLOT_BYTES:
            raise ValueError("a slot holds 32 bytes")
        check(lib.xks_secret_pages_write(self.pointer, slot, data), what="secret slot")

    def put(self, slot: int, secret: Secret) -> None:
        """Fill a slot with a secret of 32 bytes."""
        check(lib.xks_secret_pages_put(self.pointer, slot, secret.pointer), what="secret slot")

    def take(self, slot: int) -> Secret:
        """What a slot holds; the slot is wiped."""
        out = ffi.new("xks_secret **")
        check(lib.xks_secret_pages_take(self.pointer, slot, out), what="secret slot")
        return Secret(out[0])


def derive_signing_key(secret: Secret, day: str, region: str, pages: SecretPages, slot: int) -> None:
    """Write the SigV4 signing key of `day` ("YYYYMMDD") and `region` to a slot."""
    span = ffi.new("xks_span *")
    length = ffi.new("size_t *")
    span.data = lib.xks_secret_view(secret.pointer, length)
    span.len = length[0]
    status = lib.xks_sigv4_derive(span[0], day.encode("ascii"), region.encode("ascii"), len(region), pages.pointer, slot)
    check(status, what="signing key")


def seal_new_key(master: Secret, context: str) -> bytes:
    """A new random AES-256 key, sealed under the master key for `context`."""
    sealed, text = ffi.new("uint8_t[]", lib.XKS_SEALED_KEY_BYTES), context.encode()
    status = lib.xks_seal_new_key(master.pointer, text, len(text), sealed)
    check(status, what="sealing a key (a master key is 32 bytes or 64 hexadecimal digits)")
    return bytes(ffi.buffer(sealed))


def seal_open(master: Secret, context: str, sealed: bytes, pages: SecretPages, slot: int) -> None:
    """Unseal into a slot; NativeError when master key or context differ from those it was sealed with."""
    text = context.encode()
    status = lib.xks_seal_open(master.pointer, text, len(text), sealed, len(sealed), pages.pointer, slot)
    check(status, what=f"unsealing {context}")


def seal_open_all(
    master: Secret, contexts: Sequence[str], sealed: Sequence[bytes], pages: SecretPages, slots: Sequence[int]
) -> Sequence[int]:
    """Unseal many at once, each into its slot; the slots of those that do not open, see seal_open."""
    texts = [context.encode() for context in contexts]
    results = bytearray(len(texts))
    status = lib.xks_seal_open_all(
        master.pointer,
        len(texts),
        b"".join(texts),
        ffi.from_buffer("uint32_t[]", array("I", map(len, texts))),
        b"".join(sealed),
        ffi.from_buffer("uint32_t[]", array("I", map(len, sealed))),
        pages.pointer,
        ffi.from_buffer("uint32_t[]", array("I", slots)),
        ffi.from_buffer("uint8_t[]", results),
    )
    return () if status == lib.XKS_OK else [slot for slot, result in zip(slots, results, strict=True) if result != lib.XKS_OK]


def seal_secret(key: Secret, context: str, secret: Secret) -> bytes:
    """A secret of 1 to 1024 bytes, sealed under a key of 32 bytes for `context`."""
    sealed, length, text = _sealed_buffer(), ffi.new("size_t *"), context.encode()
    status = lib.xks_seal_secret(key.pointer, text, len(text), secret.pointer, sealed, length)
    check(status, what=f"sealing {context}")
    return bytes(ffi.buffer(sealed, length[0]))


def seal_open_secret(key: Secret, context: str, sealed: bytes) -> Secret:
    """Unseal what seal_secret or seal_new_key gave; NativeError when key or context differ."""
    out, text = ffi.new("xks_secret **"), context.encode()
    status = lib.xks_seal_open_secret(key.pointer, text, len(text), sealed, len(sealed), out)
    check(status, what=f"unsealing {context}")
    return Secret(out[0])


def seal_open_text(key: Secret, context: str, sealed: bytes) -> Secret:
    """The same for a secret access key that is to be handed out: it may be revealed once."""
    out, text = ffi.new("xks_secret **"), context.encode()
    status = lib.xks_seal_open_text(key.pointer, text, len(text), sealed, len(sealed), out)
    check(status, what=f"unsealing {context}")
    return Secret(out[0])


def seal_move(old_key: Secret, old_context: str, sealed: bytes, new_key: Secret, new_context: str) -> bytes:
    """Unseal and seal again, in C."""
    moved, length, old_text, new_text = _sealed_buffer(), ffi.new("size_t *"), old_context.encode(), new_context.encode()
    status = lib.xks_seal_move(
        old_key.pointer, old_text, len(old_text), sealed, len(sealed), new_key.pointer, new_text, len(new_text), moved, length
    )
    check(status, what=f"unsealing {old_context}")
    return bytes(ffi.buffer(moved, length[0]))


def seal_derive_signing_keys(
    key: Secret, context: str, sealed: bytes, days: str, region: str, pages: SecretPages, first_slot: int
) -> None:
    """Signing keys of a sealed secret access key. days: "YYYYMMDD" each, joined; the slots follow each other from first_slot."""
    text, places = context.encode(), days.encode("ascii")
    day_count, rest = divmod(len(places), 8)
    if rest:
        raise ValueError("days are YYYYMMDD each")
    status = lib.xks_seal_derive_signing_keys(
        key.pointer, text, len(text), sealed, len(sealed), places, day_count, region.encode("ascii"), len(region), pages.pointer,
        first_slot,
    )  # fmt: skip
    check(status, what=f"unsealing {context}")


def _sealed_buffer() -> Any:
    return ffi.new("uint8_t[]", lib.XKS_SEAL_MAX_BYTES)


def mac(key: Secret, label: str, data: bytes) -> bytes:
    """HMAC-SHA-256 of data under the subkey of `label` (up to 128 bytes): 32 bytes."""
    out, text = ffi.new("uint8_t[32]"), label.encode()
    with _Spans(data) as (span,):
        check(lib.xks_subkey_mac(key.pointer, text, len(text), span, out), what=f"MAC {label!r}")
    return bytes(ffi.buffer(out))


def mac_is_right(key: Secret, label: str, data: bytes, given: bytes) -> bool:
    """Whether `given` is the MAC of data; in constant time."""
    text = label.encode()
    with _Spans(data, given) as (data_span, given_span):
        status = lib.xks_subkey_check_mac(key.pointer, text, len(text), data_span, given_span)
    if status == lib.XKS_NOT_AUTHENTIC:
        return False
    check(status, what=f"MAC {label!r}")
    return True


class Keyring:
    """The valid credentials of one key store, as derived signing keys. `address` is for the request path."""

    __slots__ = ("address", "pointer")

    def __init__(self, region: str) -> None:
        out = ffi.new("xks_sigv4_keyring **")
        check(lib.xks_sigv4_keyring_new(region.encode("ascii"), len(region), out), what=f"region {region!r}")
        self.pointer = ffi.gc(out[0], lib.xks_sigv4_keyring_free)
        self.address = _address(self.pointer)

    def put(self, access_key_id: str, day: str, pages: SecretPages, slot: int) -> None:
        """Accept `access_key_id` on `day` ("YYYYMMDD"), by this signing key from now on."""
        text = access_key_id.encode("ascii")
        status = lib.xks_sigv4_keyring_put(self.pointer, text, len(text), day.encode("ascii"), pages.pointer, slot)
        check(status, what=f"credential {access_key_id!r}")

    def replace(self, access_key_id: str, signing_keys: Mapping[str, int], pages: SecretPages | None) -> None:
        """Accept `access_key_id` on these days and on no other. signing_keys: day -> slot.

        NativeError: a credential that was not known is not known now, of one that was some days may be missing.
        """
        text, days = access_key_id.encode("ascii"), "".join(signing_keys).encode("ascii")
        known = lib.xks_sigv4_keyring_keep_days(self.pointer, text, len(text), days, len(days) // 8) == lib.XKS_OK
        if signing_keys and pages is None:
            raise NativeError(f"credential {access_key_id!r}: its signing keys did not come with it")
        try:
            for day, slot in signing_keys.items():
                assert pages is not None
                self.put(access_key_id, day, pages, slot)
        except NativeError:
            if not known:
                lib.xks_sigv4_keyring_remove(self.pointer, text, len(text), ffi.new("uint32_t *"))
            raise

    def remove(self, access_key_id: str) -> int:
        """Accept it no more; the index that it had. NativeError: it is not known."""
        text, index = access_key_id.encode("ascii"), ffi.new("uint32_t *")
        check(lib.xks_sigv4_keyring_remove(self.pointer, text, len(text), index), what=f"credential {access_key_id!r}")
        return int(index[0])

    def verify(
        self, method: bytes, path: bytes, headers: Sequence[tuple[bytes, bytes]], body: bytes, now: int
    ) -> tuple[int | None, str]:
        """(index of the credential, "accepted"), or (None, reason). For tests and tools; the request path calls the C itself."""
        kept = [ffi.from_buffer(part) for part in (method, path, body)]
        array = ffi.new("xks_header[]", max(len(headers), 1))
        for i, (name, value) in enumerate(headers):
            kept += [ffi.from_buffer(name), ffi.from_buffer(value)]
            array[i].name.data, array[i].name.len = ffi.cast("uint8_t *", kept[-2]), len(name)
            array[i].value.data, array[i].value.len = ffi.cast("uint8_t *", kept[-1]), len(value)
        request = ffi.new("xks_sigv4_request *")
        for field, part, text in zip((request.method, request.path, request.body), kept, (method, path, body), strict=False):
            field.data, field.len = ffi.cast("uint8_t *", part), len(text)
        request.headers, request.header_count = array, len(headers)
        credential, reason = ffi.new("uint32_t *"), ffi.new("xks_sigv4_reason *")
        status = lib.xks_sigv4_verify(self.pointer, request, now, credential, reason)
        if status == lib.XKS_OK:
            return int(credential[0]), "accepted"
        return None, "too_many_headers" if status == lib.XKS_TOO_LONG else SIGV4_REASONS[reason[0]]


class _Spans:
    """bytes -> xks_span, for the length of a with block."""

    def __init__(self, *parts: bytes) -> None:
        self._buffers = [ffi.from_buffer(part) for part in parts]
        self._lengths = [len(part) for part in parts]

    def __enter__(self) -> list[Any]:
        return [
            ffi.new("xks_span *", {"data": ffi.cast("uint8_t *", buffer), "len": length})[0]
            for buffer, length in zip(self._buffers, self._lengths, strict=True)
        ]

    def __exit__(self, *_: object) -> None:
        self._buffers.clear()


class JobPool:
    """Memory of jobs, for one event loop."""

    def __init__(self) -> None:
        out = ffi.new("xks_job_pool **")
        check(lib.xks_job_pool_new(out), what="job pool")
        self.pointer = ffi.gc(out[0], lib.xks_job_pool_free)
        self.address = _address(self.pointer)


class RandomPool:
    """Random bytes drawn in blocks, for one thread."""

    def __init__(self) -> None:
        pool = ffi.new("xks_random_pool *")
        lib.xks_random_pool_init(pool)
        self.pointer = ffi.gc(pool, lib.xks_random_pool_wipe)
        self.address = _address(self.pointer)


def base64_encode(data: bytes) -> bytes:
    """Strict Base64 with padding."""
    out = ffi.new("char[]", lib.xks_base64_encoded_len(len(data)) or 1)
    lib.xks_base64_encode(data, len(data), out)
    return bytes(ffi.buffer(out, lib.xks_base64_encoded_len(len(data))))


def base64_decode(text: bytes) -> bytes:
    """Strict Base64 to bytes; NativeError for anything else."""
    out, length = ffi.new("uint8_t[]", lib.xks_base64_decoded_max(len(text)) or 1), ffi.new("size_t *")
    check(lib.xks_base64_decode(text, len(text), out, lib.xks_base64_decoded_max(len(text)), length), what="Base64")
    return bytes(ffi.buffer(out, length[0]))


def cdiv(aad: bytes, metadata: bytes, iv: bytes, ciphertext: bytes, tag: bytes) -> bytes:
    """The ciphertext data integrity value: 32 bytes."""
    digest = ffi.new("uint8_t[32]")
    with _Spans(aad, metadata, iv, ciphertext, tag) as spans:
        lib.xks_cdiv(*spans, digest)
    return bytes(ffi.buffer(digest))


def compose_aad(aad: bytes, ciphertext_metadata: bytes) -> bytes:
    """u16be len(aad) | aad | u8 len(metadata) | metadata; NativeError when a part is over its limit."""
    capacity = len(aad) + len(ciphertext_metadata) + lib.XKS_AAD_OVERHEAD_BYTES
    out, length = ffi.new("uint8_t[]", capacity), ffi.new("size_t *")
    with _Spans(aad, ciphertext_metadata) as (aad_span, metadata_span):
        check(lib.xks_aad_compose(aad_span, metadata_span, out, capacity, length), what="AAD")
    return bytes(ffi.buffer(out, length[0]))


def compose_sample_aad(aad: bytes | None, ciphertext_metadata: bytes) -> bytes:
    """u16be len(aad) | SHA-256(aad) | u8 len(metadata) | metadata, as AWS's sample proxy has it.

    aad: None when the request has none; then the digest is left out.
    """
    capacity = lib.XKS_SAMPLE_DIGEST_BYTES + len(ciphertext_metadata) + lib.XKS_AAD_OVERHEAD_BYTES
    out, length = ffi.new("uint8_t[]", capacity), ffi.new("size_t *")
    with _Spans(aad or b"", ciphertext_metadata) as (aad_span, metadata_span):
        if aad is None:
            aad_span.data = ffi.NULL
        check(lib.xks_aad_compose_sample(aad_span, metadata_span, out, capacity, length), what="AAD")
    return bytes(ffi.buffer(out, length[0]))


def write_metadata(version: int) -> bytes:
    """The ciphertextMetadata of a key version: 5 bytes, see csrc/xks_metadata.h."""
    out = ffi.new("uint8_t[]", lib.XKS_METADATA_BYTES)
    lib.xks_metadata_write(version, out)
    return bytes(ffi.buffer(out))


def read_metadata(metadata: bytes) -> int | None:
    """The key version that ciphertextMetadata names; None: it is not ours."""
    version = ffi.new("uint32_t *")
    return int(version[0]) if lib.xks_metadata_read(metadata, len(metadata), version) == lib.XKS_OK else None


def json_members_are_unique(document: bytes) -> bool:
    """Whether xks_json_check_members lets the document pass."""
    return bool(lib.xks_json_check_members(document, len(document)) == lib.XKS_OK)


def utc_day(unix_seconds: int) -> str:
    """The UTC day as "YYYYMMDD"."""
    day = ffi.new("char[8]")
    lib.xks_format_utc_day(unix_seconds, day)
    return bytes(ffi.buffer(day)).decode("ascii")


def harden_process() -> None:
    """No core dump, no ptrace: for processes that hold secrets."""
    lib.xks_process_harden()
