# SPDX-License-Identifier: Apache-2.0
"""What bodies are taken and what is refused, over real HTTP. Numbers: XKS proxy requirements."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.client import Client

requirement = pytest.mark.requirement
OPERATIONS = ["health", "metadata", "encrypt", "decrypt"]


def refused(client: Client, operation: str, body: bytes) -> None:
    answer = client.post(client.path(operation), body)
    assert (answer.status, answer.error) == (400, "ValidationException"), body[:80]
    message = answer.document["errorMessage"]
    assert 0 < len(message) < 512
    assert all(" " <= c <= "~" for c in message)


@requirement(100, 101, 104, 157)
@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize(
    "body",
    [
        b"", b" ", b"null", b"[]", b"1", b'"x"', b"{", b"{}", b'{"requestMetadata":{}}', b'{"requestMetadata":null}', b"{}{}",
        b'{"requestMetadata":{"kmsRequestId":"r","kmsOperation":"o"}', b"\xff\xfe", b'{"requestMetadata":"\xff"}', b"[" * 5000,
        b'{"a":' * 5000, b"nan", b'{"requestMetadata":{"kmsRequestId":NaN}}',
    ],
)  # fmt: skip
def test_a_body_that_is_no_such_document_is_refused(local_client: Client, operation: str, body: bytes) -> None:
    refused(local_client, operation, body)


def _required(operation: str) -> list[tuple[str, ...]]:
    members = [("requestMetadata",), ("requestMetadata", "kmsRequestId"), ("requestMetadata", "kmsOperation")]
    if operation != "health":
        members.append(("requestMetadata", "awsPrincipalArn"))
    if operation in ("encrypt", "decrypt"):
        members += [("requestMetadata", "kmsKeyArn"), ("encryptionAlgorithm",)]
    if operation == "encrypt":
        members.append(("plaintext",))
    if operation == "decrypt":
        members += [("ciphertext",), ("initializationVector",), ("authenticationTag",)]
    return members


@requirement(31, 33, 34, 36, 39, 49, 51, 75, 78, 80, 81)
@pytest.mark.parametrize(("operation", "member"), [(o, m) for o in OPERATIONS for m in _required(o)])
@pytest.mark.parametrize("value", ["absent", None, 1, [], {}, True])
def test_a_required_member_that_is_absent_or_of_another_type_is_refused(
    local_client: Client, operation: str, member: tuple[str, ...], value: Any
) -> None:
    document = local_client.valid(operation)
    parent = document
    for name in member[:-1]:
        parent = parent[name]
    if value == "absent":
        del parent[member[-1]]
    else:
        parent[member[-1]] = value
    refused(local_client, operation, json.dumps(document).encode())


@requirement(32, 38, 40)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_unknown_members_are_ignored_at_every_level(local_client: Client, operation: str) -> None:
    document = local_client.valid(operation)
    document["tomorrow"] = {"x": [1, 2, {"y": None}]}
    document["requestMetadata"]["awsSourceIdentity"] = "someone"
    document["requestMetadata"]["kmsViaService"] = "ebs"
    assert local_client.call(operation, document).status == 200


@requirement(32, 38)
@pytest.mark.parametrize("name", ["awsSourceVpc", "awsSourceVpce", "kmsViaService"])
def test_null_for_an_optional_member_means_absent(local_client: Client, name: str) -> None:
    document = local_client.valid("encrypt")
    document["requestMetadata"][name] = None
    document["ciphertextDataIntegrityValueAlgorithm"] = None
    assert local_client.call("encrypt", document).status == 200


@requirement(28, 31, 35, 36, 88)
@pytest.mark.parametrize("principal", ["AWS Internal", "ec2.amazonaws.com", "arn:aws:iam::1:user/" + "a" * 2028])
def test_metadata_values_are_opaque(local_client: Client, principal: str) -> None:
    document = local_client.valid("encrypt")
    document["requestMetadata"] |= {"awsPrincipalArn": principal, "kmsOperation": "Tomorrow", "kmsRequestId": "not a uuid"}
    assert local_client.call("encrypt", document).status == 200


@requirement(88)
def test_health_takes_an_unknown_kms_operation(local_client: Client) -> None:
    assert local_client.call("health", requestMetadata={"kmsRequestId": "x", "kmsOperation": "Tomorrow"}).status == 200


@requirement(33)
def test_metadata_takes_the_fields_of_older_versions(local_client: Client) -> None:
    document = local_client.valid("metadata")
    document["requestMetadata"] |= {"kmsOperation": "DescribeKey", "kmsKeyArn": "arn", "kmsViaService": "ebs"}
    assert local_client.call("metadata", document).status == 200


@requirement(51, 78)
@pytest.mark.parametrize("operation", ["encrypt", "decrypt"])
@pytest.mark.parametrize("algorithm", ["", "aes_gcm", "AES_GCM ", "AES_CBC", "AES_GCM_SIV"])
def test_only_aes_gcm_is_known(local_client: Client, operation: str, algorithm: str) -> None:
    answer = local_client.call(operation, encryptionAlgorithm=algorithm)
    assert (answer.status, answer.error) == (400, "ValidationException")


@requirement(53)
@pytest.mark.parametrize("algorithm", ["", "SHA256", "SHA_1", "sha_256", 1])
def test_only_sha_256_makes_a_cdiv(local_client: Client, algorithm: Any) -> None:
    answer = local_client.call("encrypt", ciphertextDataIntegrityValueAlgorithm=algorithm)
    assert (answer.status, answer.error) == (400, "ValidationException")


@requirement(13, 49, 52, 76, 80, 81)
@pytest.mark.parametrize(
    "text", ["a", "ab", "abc", "abc=d", "ab==cd==", "YW Jj", "YWJj\n", "Y_-j", "YWJj=", "====", "YQ", "YR==", "YWK=", "é==="]
)
@pytest.mark.parametrize(
    ("operation", "member"),
    [
        ("encrypt", "plaintext"), ("encrypt", "additionalAuthenticatedData"), ("decrypt", "ciphertext"),
        ("decrypt", "additionalAuthenticatedData"), ("decrypt", "ciphertextMetadata"), ("decrypt", "initializationVector"),
        ("decrypt", "authenticationTag"),
    ],
)  # fmt: skip
def test_only_strict_base64_is_taken(local_client: Client, operation: str, member: str, text: str) -> None:
    answer = local_client.call(operation, **{member: text})
    assert (answer.status, answer.error) == (400, "ValidationException")
    assert member in answer.document["errorMessage"]
    assert text not in answer.document["errorMessage"] or len(text) < 3


@requirement(104)
@pytest.mark.parametrize(
    "twice",
    [
        '"plaintext":"AAAA"', '"encryptionAlgorithm":"AES_GCM"', '"unknown":1,"unknown":2', '"\\u0070laintext":"AAAA"',
        '"x":{"y":1,"y":1}', '"x":[{"y":1,"y":1}]', '"requestMetadata":{}',
    ],
)  # fmt: skip
def test_a_member_that_stands_twice_is_refused(local_client: Client, twice: str) -> None:
    body = json.dumps(local_client.valid("encrypt"))
    refused(local_client, "encrypt", (body[:-1] + "," + twice + "}").encode())


@requirement(104)
@pytest.mark.parametrize("tail", ["x", "{}", ",", "\0", "//"])
def test_trailing_data_is_refused(local_client: Client, tail: str) -> None:
    refused(local_client, "encrypt", (json.dumps(local_client.valid("encrypt")) + tail).encode())


@requirement(102)
def test_an_error_message_never_repeats_a_value(local_client: Client) -> None:
    marker = "ZZMARKERZZ"
    for member in ("plaintext", "encryptionAlgorithm", "additionalAuthenticatedData"):
        for value in (f"{marker}!", {"x": marker}):
            answer = local_client.call("encrypt", **{member: value})
            assert answer.status == 400
            assert marker not in json.dumps(answer.document)
