# SPDX-License-Identifier: Apache-2.0
"""Decrypt: everything that was changed must be noticed. Requirements 65, 75 to 84, 161."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from xksfast.errors import XksErrorName
from xksfast.probe.asking import Asking, Sealed, b64
from xksfast.probe.case import DECRYPT_ONLY, KEY, CannotTell, case
from xksfast.probe.cases.encrypt import ROUND_TRIP

NOT_AUTHENTIC = XksErrorName.INVALID_CIPHERTEXT
INVALID = XksErrorName.VALIDATION
FORGED = "Whoever can change what is stored could make KMS return something else than was encrypted."


def _flipped(data: bytes) -> dict[str, bytes]:
    """The bytes with one bit changed: the first, one in the middle, the last."""
    places = {"first": 0, "middle": len(data) // 2, "last": len(data) - 1}
    bits = {"first": 0x80, "middle": 0x10, "last": 0x01}
    return {
        where: data[:at] + bytes([data[at] ^ bits[where]]) + data[at + 1 :]
        for where, at in places.items()
        if 0 <= at < len(data)
    }


def _refused(asking: Asking, sealed: Sealed, what: str, *names: XksErrorName) -> None:
    answer = asking.call("decrypt", asking.decrypt_document(sealed))
    asking.expect_error(answer, f"decrypt with {what}", *(names or (NOT_AUTHENTIC,)))


@case(
    "decrypt.altered-ciphertext", 84, 106,
    says="A ciphertext with one bit changed, cut or lengthened is refused with 400 InvalidCiphertextException.",
    why=FORGED, do="Have the key manager check the tag, and give no plaintext before it has.",
    needs=(KEY,), after=ROUND_TRIP,
)  # fmt: skip
def altered_ciphertext(asking: Asking) -> None:
    sealed = asking.sealed()
    for where, data in _flipped(sealed.ciphertext).items():
        _refused(asking, replace(sealed, ciphertext=data), f"a changed {where} byte of the ciphertext")
    _refused(asking, replace(sealed, ciphertext=sealed.ciphertext[:-1]), "the last byte of the ciphertext missing")
    _refused(asking, replace(sealed, ciphertext=sealed.ciphertext + b"\0"), "a byte added to the ciphertext")


@case(
    "decrypt.altered-tag", 81, 84, 106,
    says="A changed authentication tag is refused with 400 InvalidCiphertextException.",
    why=FORGED, do="Compare all 16 bytes of the tag.",
    needs=(KEY,), after=ROUND_TRIP,
)  # fmt: skip
def altered_tag(asking: Asking) -> None:
    sealed = asking.sealed()
    for where, data in _flipped(sealed.tag).items():
        _refused(asking, replace(sealed, tag=data), f"a changed {where} byte of the tag")
    _refused(asking, replace(sealed, tag=bytes(16)), "a tag of zeros")


@case(
    "decrypt.altered-iv", 84, 106,
    says="A changed initialization vector is refused with 400 InvalidCiphertextException.",
    why=FORGED, do="Decrypt with the IV of the request.",
    needs=(KEY,), after=ROUND_TRIP,
)  # fmt: skip
def altered_iv(asking: Asking) -> None:
    sealed = asking.sealed()
    for where, data in _flipped(sealed.iv).items():
        _refused(asking, replace(sealed, iv=data), f"a changed {where} byte of the IV")


@case(
    "decrypt.altered-aad", 52, 84, 106, 161,
    says="Additional authenticated data that was changed, cut, left out or added is refused with 400 InvalidCiphertextException.",
    why="The encryption context says what a ciphertext is for; without this check one record's ciphertext opens as another's.",
    do="Give the key manager the request's AAD, in full.",
    needs=(KEY,), after=ROUND_TRIP,
)  # fmt: skip
def altered_aad(asking: Asking) -> None:
    sealed = asking.sealed()
    assert sealed.aad is not None
    for where, data in _flipped(sealed.aad).items():
        _refused(asking, replace(sealed, aad=data), f"a changed {where} byte of the AAD")
    _refused(asking, replace(sealed, aad=sealed.aad[:-1]), "the last byte of the AAD missing")
    _refused(asking, replace(sealed, aad=None), "the AAD left out")
    _refused(asking, replace(asking.encrypt(b"xksfast test: no AAD", None), aad=b"added"), "AAD that was not there")


@case(
    "decrypt.altered-metadata", 61, 62, 77,
    says="ciphertextMetadata that was changed, left out or added is refused with 400 InvalidCiphertextException.",
    why="It may name the key version or the scheme: who can change it chooses the key that decrypts.",
    do="Bind the metadata into the AAD for the key manager.",
    needs=(KEY,), after=ROUND_TRIP,
)  # fmt: skip
def altered_metadata(asking: Asking) -> None:
    sealed = asking.sealed()
    if sealed.metadata:
        for where, data in _flipped(sealed.metadata).items():
            _refused(asking, replace(sealed, metadata=data), f"a changed {where} byte of the metadata", NOT_AUTHENTIC, INVALID)
        _refused(asking, replace(sealed, metadata=None), "the metadata left out", NOT_AUTHENTIC, INVALID)
    else:
        _refused(asking, replace(sealed, metadata=b"v=1"), "metadata that was not there", NOT_AUTHENTIC, INVALID)


@case(
    "decrypt.aad-and-metadata", 63, 65,
    says="Bytes moved from the AAD to the metadata, or back, are noticed: 400 InvalidCiphertextException.",
    why="Joined without their lengths, the two could be cut at another place, and a stranger's metadata pass for ours.",
    do="Authenticate length of AAD, AAD, length of metadata, metadata, as the API describes.",
    needs=(KEY,), after=ROUND_TRIP,
)  # fmt: skip
def aad_and_metadata(asking: Asking) -> None:
    sealed = asking.sealed()
    aad, metadata = sealed.aad or b"", sealed.metadata or b""
    moved = replace(sealed, aad=aad[:-3], metadata=aad[-3:] + metadata[:17])
    _refused(asking, moved, "AAD moved to the metadata", NOT_AUTHENTIC, INVALID)
    if metadata:
        moved = replace(sealed, aad=aad + metadata[:1], metadata=metadata[1:] or None)
        _refused(asking, moved, "metadata moved to the AAD", NOT_AUTHENTIC, INVALID)


@case(
    "decrypt.lengths", 76, 80, 81,
    says="Tags other than 16 bytes, IVs other than 12 or 16 and metadata over 20 are refused with 400.",
    why="A short tag can be guessed: four bytes take a day.",
    do="Check the decoded lengths before the key manager is asked.",
    needs=(KEY,), after=ROUND_TRIP,
)  # fmt: skip
def lengths(asking: Asking) -> None:
    sealed = asking.sealed()
    for size in (0, 4, 8, 12, 15, 17):
        _refused(asking, replace(sealed, tag=(sealed.tag + b"\0")[:size]), f"a tag of {size} bytes", INVALID, NOT_AUTHENTIC)
    for size in (0, 1, 8, 11, 13, 15, 17):
        _refused(asking, replace(sealed, iv=(sealed.iv + bytes(8))[:size]), f"an IV of {size} bytes", INVALID, NOT_AUTHENTIC)
    _refused(asking, replace(sealed, metadata=bytes(21)), "metadata of 21 bytes", INVALID, NOT_AUTHENTIC)


@case(
    "decrypt.again", 60, 71, 82,
    says="The same ciphertext decrypts again and again, on other connections too.",
    why="KMS stores ciphertexts for years; nothing about a connection or a moment may be part of them.",
    do="Keep all that is needed in the members of the answer.",
    needs=(KEY,), after=ROUND_TRIP,
)  # fmt: skip
def again(asking: Asking) -> None:
    sealed = asking.sealed()
    for _ in range(3):
        asking.decrypts_to(sealed, "the same decrypt once more")
        asking.close()


@case(
    "decrypt.another-key", 23, 84,
    says="A ciphertext does not decrypt under another key: 400 InvalidCiphertextException.",
    why="Keys of different owners would be one.",
    do="Let the external key id choose the key in the key manager.",
    needs=(KEY, DECRYPT_ONLY), after=ROUND_TRIP,
)  # fmt: skip
def another_key(asking: Asking) -> None:
    keys = asking.target.keys
    if keys.decrypt_only == keys.default:
        raise CannotTell("--decrypt-only-key and --key are the same")
    answer = asking.call("decrypt", asking.decrypt_document(asking.sealed()), key=keys.decrypt_only)
    asking.expect_error(answer, "decrypt of one key's ciphertext under another", NOT_AUTHENTIC)


@case(
    "decrypt.unlike-base64", 13, 104,
    says="Members of Decrypt that are no standard, padded Base64 are refused with 400 ValidationException.",
    why="What a lenient decoder drops can be added without being noticed.",
    do="Decode strictly by RFC 4648 section 4.",
    needs=(KEY,), after=ROUND_TRIP,
)  # fmt: skip
def unlike_base64(asking: Asking) -> None:
    right = asking.decrypt_document(asking.sealed())
    for name in ("ciphertext", "initializationVector", "authenticationTag", "additionalAuthenticatedData"):
        for what, value in spoilt_base64(b"any bytes that are long enough").items():
            document: dict[str, Any] = {**right, name: value}
            asking.expect_error(asking.call("decrypt", document), f"decrypt with {name} {what}", INVALID)


def spoilt_base64(data: bytes) -> dict[str, str]:
    """Texts that a lenient decoder takes and a strict one does not."""
    url_safe = b64(b"\xfb\xff\xbf" * 4).replace("+", "-").replace("/", "_")
    text = b64(data + b"x" * (2 - len(data) % 3) if len(data) % 3 != 1 else data)
    return {
        "in the URL-safe alphabet": url_safe,
        "without padding": b64(b"0123456789").rstrip("="),
        "with a line feed in it": text[:8] + "\n" + text[8:],
        "with a character that is none": text[:-4] + "*" + text[-3:],
        "with padding in the middle": b64(b"0123456789") + b64(b"0123456789"),
        "of a single character": "A",
    }
