# SPDX-License-Identifier: Apache-2.0
"""Keys that may not do everything. Requirements 74, 105, 107, 109, 164."""

from __future__ import annotations

from typing import Any

from xksfast.errors import XksErrorName
from xksfast.probe.asking import AAD, Asking
from xksfast.probe.case import DECRYPT_ONLY, DENIED, DISABLED, ENCRYPT_ONLY, KEY, NO_USAGE, case
from xksfast.probe.cases.encrypt import ROUND_TRIP

NOT_ALLOWED = XksErrorName.INVALID_KEY_USAGE
RIGHTS = "The owner of the key has forbidden this use; who can use it all the same has no owner above."


def _encrypts(asking: Asking) -> dict[str, dict[str, Any]]:
    text = b"xksfast test: not for this key"
    return {
        "encrypt": asking.encrypt_document(text, AAD),
        "encrypt without AAD": asking.encrypt_document(text, None),
        "encrypt with an integrity value": asking.encrypt_document(text, AAD, cdiv=True),
        "encrypt with an integrity value, without AAD": asking.encrypt_document(text, None, cdiv=True),
    }


def _usage(asking: Asking, key: str) -> list[str]:
    usage = asking.expect_ok(asking.call("metadata", key=key), "metadata").get("keyUsage")
    return usage if isinstance(usage, list) else []


@case(
    "rights.encrypt-only", 44, 74, 107, 164,
    says="A key that may only encrypt does; decrypt, and encrypt with an integrity value, are 400 InvalidKeyUsageException.",
    why=RIGHTS, do="Check the key's usage; an integrity value takes a check decrypt.",
    needs=(ENCRYPT_ONLY,),
)  # fmt: skip
def encrypt_only(asking: Asking) -> None:
    key = asking.target.keys.encrypt_only
    if "DECRYPT" in _usage(asking, key):
        asking.wrong("its keyUsage lists DECRYPT")
    for what, document in _encrypts(asking).items():
        answer = asking.call("encrypt", document, key=key)
        if "integrity" in what:
            asking.expect_error(answer, what, NOT_ALLOWED)
        else:
            asking.expect_ok(answer, what)
    sealed = asking.encrypt(b"xksfast test: one way", key=key)
    asking.expect_error(asking.call("decrypt", asking.decrypt_document(sealed), key=key), "decrypt", NOT_ALLOWED)


@case(
    "rights.decrypt-only", 44, 107, 164,
    says="A key that may only decrypt refuses encrypt with 400 InvalidKeyUsageException, with and without AAD and integrity value.",
    why=RIGHTS, do="Check the key's usage before the key manager is asked.",
    needs=(DECRYPT_ONLY,),
)  # fmt: skip
def decrypt_only(asking: Asking) -> None:
    key = asking.target.keys.decrypt_only
    if "ENCRYPT" in _usage(asking, key):
        asking.wrong("its keyUsage lists ENCRYPT")
    for what, document in _encrypts(asking).items():
        asking.expect_error(asking.call("encrypt", document, key=key), what, NOT_ALLOWED)


@case(
    "rights.no-usage", 44, 107, 164,
    says="A key that may do neither refuses encrypt and decrypt with 400 InvalidKeyUsageException.",
    why=RIGHTS, do="Check the key's usage before the key manager is asked.",
    needs=(NO_USAGE,),
)  # fmt: skip
def no_usage(asking: Asking) -> None:
    key = asking.target.keys.no_usage
    for what, document in _encrypts(asking).items():
        asking.expect_error(asking.call("encrypt", document, key=key), what, NOT_ALLOWED)
    asking.expect_error(asking.call("decrypt", key=key), "decrypt", NOT_ALLOWED)


@case(
    "rights.disabled", 46, 105,
    says="A disabled key is DISABLED in its metadata, and refuses encrypt and decrypt with 400 InvalidStateException.",
    why="Disabling is how an owner stops the use of a key.",
    do="Check the key's state on each call.",
    needs=(DISABLED,),
)  # fmt: skip
def disabled(asking: Asking) -> None:
    key = asking.target.keys.disabled
    answer = asking.call("metadata", key=key)
    if answer.status == 200:
        if (answer.document or {}).get("keyStatus") != "DISABLED":
            asking.wrong("its keyStatus is not DISABLED")
    else:
        asking.expect_error(answer, "metadata", XksErrorName.INVALID_STATE)
    for operation in ("encrypt", "decrypt"):
        asking.expect_error(asking.call(operation, key=key), operation, XksErrorName.INVALID_STATE)


@case(
    "rights.denied", 109, 141, 142, 87, 144,
    says="A key that a policy denies to this principal answers 403 AccessDeniedException; health is not subject to policies.",
    why="A policy that is not enforced protects nobody, and one that stops health checks stops the key store.",
    do="Decide on requestMetadata after the key is found; leave health out.",
    needs=(DENIED, KEY), after=ROUND_TRIP,
)  # fmt: skip
def denied(asking: Asking) -> None:
    key = asking.target.keys.denied
    for operation in ("encrypt", "decrypt"):
        asking.expect_error(asking.call(operation, key=key), operation, XksErrorName.ACCESS_DENIED)
    asking.expect_ok(asking.call("health"), "health")
