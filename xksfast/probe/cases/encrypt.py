# SPDX-License-Identifier: Apache-2.0
"""Encrypt: shape, limits, integrity value, uniqueness. Requirements 49 to 74."""

from __future__ import annotations

import os

from xksfast.errors import XksErrorName
from xksfast.probe.asking import AAD, Asking, b64
from xksfast.probe.case import KEY, Broken, CannotTell, case
from xksfast.probe.client import Closed

ROUND_TRIP = "encrypt.round-trip"
MIN_PLAINTEXT_BYTES = 4300  # what every proxy must take
MIN_AAD_BYTES = 8192
MAX_METADATA_BYTES = 20
PLAINTEXT_SIZES = (1, 15, 16, 17, 32, 255, 256, 1024, 4095, 4096, 4299, MIN_PLAINTEXT_BYTES)
AAD_SIZES = (0, 1, 255, 256, 257, 4096, 8191, MIN_AAD_BYTES)
UNIQUE_CALLS = 100


@case(
    "encrypt.round-trip", 14, 54, 82, 61,
    says="What Encrypt gives, Decrypt turns back into the same plaintext, with and without additional authenticated data.",
    why="This is what KMS keys are for: data that does not come back is lost.",
    do="With 404, check --key; otherwise find the call's kmsRequestId (--calls, --json) in the proxy's log.",
    needs=(KEY,),
)  # fmt: skip
def round_trip(asking: Asking) -> None:
    for aad in (AAD, None):
        sealed = asking.encrypt(os.urandom(48), aad)
        asking.decrypts_to(sealed, f"decrypt {'with' if aad else 'without'} AAD")


@case(
    "encrypt.members", 55, 56, 57, 58, 59,
    says="The ciphertext is as long as the plaintext, the IV has 12 or 16 bytes, the tag 16, the metadata at most 20.",
    why="KMS refuses any other answer, or stores it and cannot decrypt later.",
    do="Split the tag from the ciphertext when the key manager appends it; keep metadata short.",
    needs=(KEY,), after=ROUND_TRIP,
)  # fmt: skip
def members(asking: Asking) -> None:
    for size in (1, 48, 4096):
        sealed = asking.encrypt(os.urandom(size))
        if len(sealed.ciphertext) != size:
            asking.wrong(f"a plaintext of {size} bytes became a ciphertext of {len(sealed.ciphertext)}")
        if len(sealed.iv) not in (12, 16):
            asking.wrong(f"the initializationVector has {len(sealed.iv)} bytes")
        if len(sealed.tag) != 16:
            asking.wrong(f"the authenticationTag has {len(sealed.tag)} bytes")
        if sealed.metadata is not None and len(sealed.metadata) > MAX_METADATA_BYTES:
            asking.wrong(f"ciphertextMetadata has {len(sealed.metadata)} bytes")


@case(
    "encrypt.hidden", 50, 55,
    says="The plaintext does not stand in the answer, and the same plaintext never gives the same ciphertext.",
    why="A proxy that answers with what it was sent, or with a fixed key stream, does not encrypt.",
    do="Have the key manager encrypt with a fresh IV on each call.",
    needs=(KEY,), after=ROUND_TRIP,
)  # fmt: skip
def hidden(asking: Asking) -> None:
    plaintext = os.urandom(48)
    seen = set()
    for _ in range(5):
        sealed = asking.encrypt(plaintext)
        if sealed.ciphertext == plaintext or plaintext in sealed.ciphertext + (sealed.metadata or b""):
            asking.wrong("the plaintext stands in the answer")
        seen.add(sealed.ciphertext)
    if len(seen) < 5:
        asking.wrong(f"5 encryptions of one plaintext gave {len(seen)} different ciphertexts")


@case(
    "encrypt.unique-iv", 56,
    says=f"{UNIQUE_CALLS} encryptions have {UNIQUE_CALLS} different initialization vectors.",
    why="One IV used twice under one key lets whoever has both ciphertexts read them, and forge more.",
    do="Let the key manager make the IV, or draw 12 random bytes for each call; look at snapshots and forked processes.",
    needs=(KEY,), after=ROUND_TRIP,
)  # fmt: skip
def unique_iv(asking: Asking) -> None:
    seen = {asking.encrypt(b"xksfast test: again and again").iv for _ in range(UNIQUE_CALLS)}
    asking.figures["different_ivs"] = len(seen)
    if len(seen) < UNIQUE_CALLS:
        asking.wrong(f"{UNIQUE_CALLS} encryptions had {len(seen)} different initialization vectors")


@case(
    "encrypt.integrity-value", 53, 68, 69, 70, 162,
    says="The ciphertextDataIntegrityValue is SHA-256 over AAD, metadata, IV, ciphertext and tag, without lengths between.",
    why="KMS computes it as well and fails GenerateDataKey when they differ.",
    do="Hash the decoded bytes in this order: the request's own AAD, not the one made for the key manager.",
    needs=(KEY,), after=ROUND_TRIP,
)  # fmt: skip
def integrity_value(asking: Asking) -> None:
    for aad in (AAD, None, os.urandom(300)):
        how = f"with {len(aad)} bytes of AAD" if aad else "without AAD"
        sealed = asking.encrypt(os.urandom(32), aad, cdiv=True)
        if sealed.cdiv is None:
            asking.wrong(f"{how}: no ciphertextDataIntegrityValue, which was asked for")
        elif sealed.cdiv != sealed.expected_cdiv():
            asking.wrong(f"{how}: the ciphertextDataIntegrityValue is not that of the answer")
        asking.decrypts_to(sealed, f"decrypt {how}")


@case(
    "encrypt.plaintext-sizes", 49, 75, 163,
    says=f"Plaintexts of 1 to {MIN_PLAINTEXT_BYTES} bytes come back as they were.",
    why="KMS sends up to 4096 bytes of its callers' and a little more of its own.",
    do=f"Take {MIN_PLAINTEXT_BYTES} bytes, which are 5736 characters of Base64, in either direction.",
    needs=(KEY,), after=ROUND_TRIP,
)  # fmt: skip
def plaintext_sizes(asking: Asking) -> None:
    for size in PLAINTEXT_SIZES:
        asking.decrypts_to(asking.encrypt(os.urandom(size)), f"a plaintext of {size} bytes")


@case(
    "encrypt.aad-sizes", 52, 79, 163,
    says=f"Additional authenticated data of 0 to {MIN_AAD_BYTES} bytes is accepted and must be given again, as it was.",
    why="KMS sends the encryption context here; callers choose its length.",
    do=f"Take {MIN_AAD_BYTES} bytes, which are 10924 characters of Base64.",
    needs=(KEY,), after=ROUND_TRIP,
)  # fmt: skip
def aad_sizes(asking: Asking) -> None:
    for size in AAD_SIZES:
        asking.decrypts_to(asking.encrypt(os.urandom(32), os.urandom(size)), f"AAD of {size} bytes")
    largest = asking.encrypt(os.urandom(MIN_PLAINTEXT_BYTES), os.urandom(MIN_AAD_BYTES), cdiv=True)
    asking.decrypts_to(largest, "the longest plaintext with the longest AAD")
    if largest.cdiv != largest.expected_cdiv():
        asking.wrong("the longest plaintext with the longest AAD has a wrong ciphertextDataIntegrityValue")


@case(
    "encrypt.over-the-limits", 67, 113,
    says="More than the API's minimum is either served rightly or refused with 501 UnsupportedOperationException.",
    why="A length that is cut or wraps around makes ciphertexts that nobody can decrypt, or that others can.",
    do="Refuse what is longer than you can handle, by its decoded length.",
    needs=(KEY,), after=ROUND_TRIP,
)  # fmt: skip
def over_the_limits(asking: Asking) -> None:
    for what, plaintext_bytes, aad_bytes in (("plaintext", MIN_PLAINTEXT_BYTES + 1, 32), ("AAD", 32, MIN_AAD_BYTES + 1)):
        size = max(plaintext_bytes, aad_bytes)
        document = asking.encrypt_document(os.urandom(plaintext_bytes), os.urandom(aad_bytes))
        answer = asking.call("encrypt", document)
        if answer.status == 200:
            asking.decrypts_to(
                asking.encrypt(os.urandom(plaintext_bytes), os.urandom(aad_bytes)), f"{what} of {size} bytes, which was taken,"
            )
        else:
            asking.expect_error(answer, f"{what} of {size} bytes", XksErrorName.UNSUPPORTED_OPERATION)


@case(
    "encrypt.aad-beyond-16-bits", 63, 67,
    says="AAD of 65536 bytes, whose length does not fit in two bytes, is refused with a 4xx or 501.",
    why="A length that wraps to 0 lets other AAD stand for it.",
    do="Refuse AAD over 65535 bytes before its length is written in two bytes.",
    needs=(KEY,), after=ROUND_TRIP,
)  # fmt: skip
def aad_beyond_16_bits(asking: Asking) -> None:
    try:
        answer = asking.call("encrypt", asking.encrypt_document(b"xksfast test", os.urandom(65536)))
    except Closed:
        return  # refused while it was still being sent
    if not (400 <= answer.status < 500 or answer.status == XksErrorName.UNSUPPORTED_OPERATION.http_status):
        asking.wrong(f"AAD of 65536 bytes: answered {answer}")


@case(
    "encrypt.empty-plaintext", 55, 104,
    says="An empty plaintext either comes back empty or is refused with 400 ValidationException.",
    why="The API does not say which; a failure or silence is neither.",
    do="Decide for one of the two.",
    needs=(KEY,), after=ROUND_TRIP,
)  # fmt: skip
def empty_plaintext(asking: Asking) -> None:
    answer = asking.call("encrypt", asking.encrypt_document(b""))
    if answer.status == 200:
        asking.decrypts_to(asking.encrypt(b""), "an empty plaintext, which was taken,")
    else:
        asking.expect_error(answer, "an empty plaintext", XksErrorName.VALIDATION)


@case(
    "encrypt.empty-aad", 64, 69,
    says="Empty additional authenticated data decrypts when it is left out as well, or at least as it was sent.",
    why="Both have length 0 in the AAD that the API describes; AWS's own sample tells them apart.",
    do="Treat an empty member like an absent one.",
    needs=(KEY,), after=ROUND_TRIP,
)  # fmt: skip
def empty_aad(asking: Asking) -> None:
    sealed = asking.encrypt(os.urandom(32), b"")
    asking.decrypts_to(sealed, "decrypt with the same empty AAD")
    document = asking.decrypt_document(sealed)
    del document["additionalAuthenticatedData"]
    answer = asking.call("decrypt", document)
    if answer.status != 200:
        raise CannotTell(
            f"decrypt without the empty AAD: answered {answer}; the API lets both be the same, and does not ask for it"
        )
    if answer.document is None or answer.document.get("plaintext") != b64(sealed.plaintext):
        raise Broken("decrypt without the empty AAD: another plaintext came back")
