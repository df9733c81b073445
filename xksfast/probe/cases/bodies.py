# SPDX-License-Identifier: Apache-2.0
"""Request bodies: what must be refused, and what must be let through although it is not known. Requirements 28 to 40, 51, 53, 104."""

from __future__ import annotations

import json
from typing import Any

from xksfast.errors import XksErrorName
from xksfast.probe.asking import Asking
from xksfast.probe.case import KEY, case
from xksfast.probe.cases.decrypt import spoilt_base64
from xksfast.probe.cases.encrypt import ROUND_TRIP

INVALID = XksErrorName.VALIDATION
REQUIRED = {
    "encrypt": ("requestMetadata", "plaintext", "encryptionAlgorithm"),
    "decrypt": ("requestMetadata", "ciphertext", "encryptionAlgorithm", "initializationVector", "authenticationTag"),
}
MAX_ARN_CHARS = 2048
NOT_MET = "A caller's mistake that is answered as a failure of the proxy is tried again and again, and hides real failures."


def _refused(asking: Asking, operation: str, document: Any, what: str, *more: XksErrorName) -> None:
    asking.expect_error(asking.call(operation, document), f"{operation} with {what}", INVALID, *more)


@case(
    "bodies.empty", 104, 157,
    says='{} and {"requestMetadata": {}} are refused with 400 ValidationException by every operation.',
    why=NOT_MET, do="Require requestMetadata and its members, on health as well.",
)  # fmt: skip
def empty(asking: Asking) -> None:
    for operation in asking.operations():
        _refused(asking, operation, {}, "an empty object")
        _refused(asking, operation, {"requestMetadata": {}}, "an empty requestMetadata")


@case(
    "bodies.no-json", 104,
    says="A body that is no JSON object is refused with 400 ValidationException.",
    why=NOT_MET, do="Answer parser errors as ValidationException, in JSON.",
)  # fmt: skip
def no_json(asking: Asking) -> None:
    valid = json.dumps(asking.document("health")).encode()
    bodies = {
        "no body": b"", "half a document": valid[:-1], "a list": b"[]", "a text": b'"health"', "null": b"null", "no JSON": b"health",
        "bytes that are no UTF-8": valid.replace(b"KmsHealthCheck", b"\xff\xfe"),
    }  # fmt: skip
    for what, body in bodies.items():
        _refused(asking, "health", body, what)


@case(
    "bodies.trailing-data", 104,
    says="Data after the JSON document is refused with 400 ValidationException.",
    why="The API is silent; two readers of such a body may see two different requests.",
    do="Require that the document ends where the body does.",
)  # fmt: skip
def trailing_data(asking: Asking) -> None:
    valid = json.dumps(asking.document("health")).encode()
    _refused(asking, "health", valid + b"{}", "a second document after the first")


@case(
    "bodies.repeated-members", 104,
    says="A member that stands twice in one object is refused with 400 ValidationException.",
    why="The API is silent; where one reader takes the first and another the last, a policy can be passed by.",
    do="Use a JSON reader that refuses repeated members.",
)  # fmt: skip
def repeated_members(asking: Asking) -> None:
    valid = json.dumps(asking.document("health"))
    bodies = {
        "requestMetadata twice": valid[:-1] + ', "requestMetadata": {}}',
        "requestMetadata twice, both right": valid[:-1] + ", " + valid[1:],
        "kmsOperation twice": valid.replace('"kmsOperation"', '"kmsOperation": "Other", "kmsOperation"', 1),
    }
    for what, body in bodies.items():
        _refused(asking, "health", body.encode(), what)


@case(
    "bodies.missing-members", 31, 33, 34, 36, 49, 75, 78, 104,
    says="A required member that is missing, null or of a wrong type is refused with 400 ValidationException.",
    why=NOT_MET, do="Check each required member of each operation.",
    needs=(KEY,), after=ROUND_TRIP,
)  # fmt: skip
def missing_members(asking: Asking) -> None:
    for operation, names in REQUIRED.items():
        for name in names:
            document = asking.document(operation)
            del document[name]
            _refused(asking, operation, document, f"{name} missing")
            _refused(asking, operation, {**document, name: 7}, f"{name} a number")
            _refused(asking, operation, {**document, name: ["x"]}, f"{name} a list")
            _refused(asking, operation, {**document, name: None}, f"{name} null")


@case(
    "bodies.unlike-base64", 13, 49, 52, 104,
    says="plaintext and additionalAuthenticatedData that are no standard, padded Base64 are refused with 400 ValidationException.",
    why="What a lenient decoder drops is encrypted differently from what KMS believes.",
    do="Decode strictly by RFC 4648 section 4.",
    needs=(KEY,), after=ROUND_TRIP,
)  # fmt: skip
def unlike_base64(asking: Asking) -> None:
    right = asking.document("encrypt")
    for name in ("plaintext", "additionalAuthenticatedData"):
        for what, value in spoilt_base64(b"any bytes that are long enough").items():
            _refused(asking, "encrypt", {**right, name: value}, f"{name} {what}")


@case(
    "bodies.algorithms", 51, 53, 78,
    says="Another encryptionAlgorithm than AES_GCM, or integrity value algorithm than SHA_256, is refused with 400 or 501.",
    why="What is encrypted with something else than was asked for cannot be decrypted by what KMS knows.",
    do="Compare the names exactly.",
    needs=(KEY,), after=ROUND_TRIP,
)  # fmt: skip
def algorithms(asking: Asking) -> None:
    unsupported = XksErrorName.UNSUPPORTED_OPERATION
    for operation in ("encrypt", "decrypt"):
        for name in ("AES_CBC", "aes_gcm", "AES-GCM", ""):
            document = {**asking.document(operation), "encryptionAlgorithm": name}
            _refused(asking, operation, document, f"encryptionAlgorithm {name!r}", unsupported)
    for name in ("SHA_1", "sha_256", "SHA-256", ""):
        document = {**asking.document("encrypt"), "ciphertextDataIntegrityValueAlgorithm": name}
        _refused(asking, "encrypt", document, f"ciphertextDataIntegrityValueAlgorithm {name!r}", unsupported)


def _taken(asking: Asking, operation: str, document: dict[str, Any], what: str) -> None:
    """Served, or denied by a policy, which is a right of every proxy; never invalid."""
    answer = asking.call(operation, document)
    if answer.status == 403:
        asking.notes.append(f"{operation} with {what}: denied by a policy")
    elif answer.status != 200:
        asking.wrong(f"{operation} with {what}: answered {answer}, right is 200")


@case(
    "bodies.unknown-members", 40,
    says="Members that are not known yet are ignored, in the body and in requestMetadata.",
    why="KMS announces new ones; a proxy that refuses them fails on the day they come.",
    do="Ignore what you do not know.",
)  # fmt: skip
def unknown_members(asking: Asking) -> None:
    for operation in asking.operations():
        document = asking.document(operation)
        document["somethingNew"] = {"deep": [1, 2.5, None, True, "text"]}
        document["requestMetadata"]["sourceIdentity"] = "Alice"
        _taken(asking, operation, document, "members that are not known yet")


@case(
    "bodies.unknown-operations", 34, 35,
    says="A kmsOperation that is not known yet is not refused as invalid.",
    why="KMS adds operations; the keys would fail for those that use them.",
    do="Let policies decide on kmsOperation, not the reader of the body.",
    needs=(KEY,), after=ROUND_TRIP,
)  # fmt: skip
def unknown_operations(asking: Asking) -> None:
    known = {"encrypt": ("ReEncrypt", "GenerateDataKeyWithoutPlaintext"), "decrypt": ("ReEncrypt",), "metadata": ()}
    for operation, names in known.items():
        for name in (*names, "SomethingNew"):
            document = asking.document(operation)
            document["requestMetadata"]["kmsOperation"] = name
            _taken(asking, operation, document, f"kmsOperation {name}")


@case(
    "bodies.principals", 28, 31,
    says="awsPrincipalArn may be an ARN of 2048 characters, a service principal, or AWS Internal.",
    why="Services of AWS use KMS keys for their customers, and are no ARN.",
    do="Do not parse awsPrincipalArn unless a policy needs it.",
    needs=(KEY,), after=ROUND_TRIP,
)  # fmt: skip
def principals(asking: Asking) -> None:
    arn = "arn:aws:iam::123456789012:role/"
    for principal in (arn + "x" * (MAX_ARN_CHARS - len(arn)), "ec2.amazonaws.com", "AWS Internal"):
        for operation in ("metadata", "encrypt"):
            document = asking.document(operation)
            document["requestMetadata"]["awsPrincipalArn"] = principal
            what = f"awsPrincipalArn {principal}" if len(principal) < 64 else f"an ARN of {len(principal)} characters"
            _taken(asking, operation, document, what)
    document = asking.document("encrypt")
    key = "arn:aws:kms:us-east-1:123456789012:key/"
    document["requestMetadata"]["kmsKeyArn"] = key + "k" * (MAX_ARN_CHARS - len(key))
    _taken(asking, "encrypt", document, f"a kmsKeyArn of {MAX_ARN_CHARS} characters")


@case(
    "bodies.request-id", 36,
    says="kmsRequestId may be any text.",
    why="It is opaque; a proxy that checks for a UUID fails when KMS changes it.",
    do="Log it, escaped, and do nothing else with it.",
)  # fmt: skip
def request_id(asking: Asking) -> None:
    for text in ("1", "not a UUID", "x" * 200, 'line\nfeed and "quotes"', "\u00fc\u4e2d"):
        document = asking.document("health")
        document["requestMetadata"]["kmsRequestId"] = text
        _taken(asking, "health", document, f"a kmsRequestId of {len(text)} characters")


@case(
    "bodies.optional-metadata", 32, 38,
    says="awsSourceVpc, awsSourceVpce and kmsViaService are accepted when they are there.",
    why="They come with requests from VPC endpoints and through other services.",
    do="Take them as optional texts.",
    needs=(KEY,), after=ROUND_TRIP,
)  # fmt: skip
def optional_metadata(asking: Asking) -> None:
    for operation in ("encrypt", "decrypt", "metadata"):
        document = asking.document(operation)
        document["requestMetadata"] |= {
            "awsSourceVpc": "vpc-0a1b2c3d",
            "awsSourceVpce": "vpce-0a1b2c3d",
            "kmsViaService": "ebs",
        }
        _taken(asking, operation, document, "all optional members of requestMetadata")
