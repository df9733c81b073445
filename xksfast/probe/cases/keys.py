# SPDX-License-Identifier: Apache-2.0
"""GetKeyMetadata, and keys that are not there. Requirements 24, 42 to 48, 110."""

from __future__ import annotations

from xksfast.errors import XksErrorName
from xksfast.probe.asking import Asking
from xksfast.probe.case import KEY, Broken, case

MAX_USAGES = 10
MAX_KEY_ID_CHARS = 128


@case(
    "metadata.members", 42, 43, 44, 45, 46, 48,
    says="GetKeyMetadata answers keySpec AES_256, keyUsage with ENCRYPT and DECRYPT, at most ten usages, and keyStatus ENABLED.",
    why="KMS creates no key otherwise.",
    do="Report the key as it is, in these words; the key given by --key must be a 256-bit AES key that may do both.",
    needs=(KEY,),
)  # fmt: skip
def members(asking: Asking) -> None:
    document = asking.expect_ok(asking.call("metadata"), "metadata")
    if document.get("keySpec") != "AES_256":
        asking.wrong("keySpec is not AES_256")
    usage = document.get("keyUsage")
    if not isinstance(usage, list) or not all(isinstance(one, str) for one in usage):
        raise Broken("keyUsage is no list of texts")
    for right in ("ENCRYPT", "DECRYPT"):
        if right not in usage:
            asking.wrong(f"keyUsage lacks {right}")
    if len(usage) > MAX_USAGES:
        asking.wrong(f"keyUsage has {len(usage)} entries, at most {MAX_USAGES} are allowed")
    if document.get("keyStatus") != "ENABLED":
        asking.wrong("keyStatus is not ENABLED")


@case(
    "metadata.unknown-key", 110, 158,
    says="A key that does not exist is answered 404 KeyNotFoundException by metadata, encrypt and decrypt.",
    why="KMS tells the operator XksKeyNotFound; anything else sends them to look elsewhere.",
    do="Look keys up in the key store of the path prefix, and name the error.",
    needs=(KEY,),
)  # fmt: skip
def unknown_key(asking: Asking) -> None:
    for key in ("xksfast-test-no-such-key", "k" * MAX_KEY_ID_CHARS, "-._"):
        for operation in ("metadata", "encrypt", "decrypt"):
            answer = asking.call(operation, key=key)
            what = f"{operation} with a key id of {len(key)} characters that does not exist"
            asking.expect_error(answer, what, XksErrorName.KEY_NOT_FOUND)


@case(
    "metadata.overlong-key-id", 24, 20,
    says="A key id of 129 characters is refused with 404 or 400, not with a failure.",
    why="KMS never sends one; whoever does may be looking for a buffer to overrun.",
    do="Check the length of the key id before using it.",
)  # fmt: skip
def overlong_key_id(asking: Asking) -> None:
    document = {"requestMetadata": asking.metadata("metadata")}
    answer = asking.call("metadata", document, key="k" * (MAX_KEY_ID_CHARS + 1))
    names = (XksErrorName.INVALID_URI_PATH, XksErrorName.KEY_NOT_FOUND, XksErrorName.VALIDATION)
    asking.expect_error(answer, "metadata with a key id of 129 characters", *names)


@case(
    "metadata.old-members", 33, 34, 40,
    says="GetKeyMetadata with kmsKeyArn, kmsViaService and kmsOperation DescribeKey is served.",
    why="Earlier versions of the API sent them, and AWS's test client still does.",
    do="Ignore members that are not needed.",
    needs=(KEY,),
)  # fmt: skip
def old_members(asking: Asking) -> None:
    document = asking.document("metadata")
    document["requestMetadata"] |= {
        "kmsOperation": "DescribeKey", "kmsViaService": "ebs", "kmsKeyArn": asking.metadata("encrypt")["kmsKeyArn"],
    }  # fmt: skip
    asking.expect_ok(asking.call("metadata", document), "metadata with kmsKeyArn and DescribeKey")
