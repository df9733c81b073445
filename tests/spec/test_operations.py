# SPDX-License-Identifier: Apache-2.0
"""The four operations over real HTTP, for every key source. Numbers: XKS proxy requirements (see table.py)."""

from __future__ import annotations

import base64
import hashlib
import os

import pytest

from tests.client import AAD, Client, b64

requirement = pytest.mark.requirement


@requirement(14, 42, 43, 44, 45, 46, 47)
def test_metadata_describes_an_aes_256_key(client: Client) -> None:
    answer = client.call("metadata")
    assert answer.status == 200
    assert answer.document == {"keySpec": "AES_256", "keyUsage": ["ENCRYPT", "DECRYPT"], "keyStatus": "ENABLED"}


@requirement(14, 85, 90, 91, 92, 93, 94, 95, 96)
def test_health_names_the_fleet(client: Client) -> None:
    answer = client.call("health")
    assert answer.status == 200
    document = answer.document
    assert set(document) == {"xksProxyFleetSize", "xksProxyVendor", "xksProxyModel", "ekmVendor", "ekmFleetDetails"}
    assert document["xksProxyFleetSize"] >= 1
    assert document["xksProxyVendor"]
    assert document["ekmVendor"]
    assert 1 <= len(document["ekmFleetDetails"]) <= 10
    for member in document["ekmFleetDetails"]:
        assert set(member) == {"id", "model", "healthStatus"}
        assert member["healthStatus"] == "ACTIVE"


@requirement(54, 55, 56, 57, 58, 60, 82)
@pytest.mark.parametrize("length", [0, 1, 15, 16, 17, 32, 4096, 4299, 4300])
def test_encrypt_then_decrypt_gives_the_plaintext(client: Client, length: int) -> None:
    plaintext = os.urandom(length)
    encrypted = client.call("encrypt", plaintext=b64(plaintext))
    assert encrypted.status == 200
    assert len(base64.b64decode(encrypted.document["ciphertext"])) == length
    assert len(base64.b64decode(encrypted.document["initializationVector"])) in (12, 16)
    assert len(base64.b64decode(encrypted.document["authenticationTag"])) == 16
    opened = client.call("decrypt", client.decrypt_document(encrypted.document))
    assert opened.status == 200
    assert opened.document == {"plaintext": b64(plaintext)}


@requirement(52, 79, 163)
@pytest.mark.parametrize("length", [0, 1, 8191, 8192])
def test_aad_of_every_allowed_length_round_trips(client: Client, length: int) -> None:
    aad = b64(os.urandom(length))
    encrypted = client.call("encrypt", plaintext=b64(os.urandom(4096)), additionalAuthenticatedData=aad)
    assert encrypted.status == 200
    assert client.call("decrypt", client.decrypt_document(encrypted.document, aad)).status == 200


@requirement(49, 113)
def test_plaintext_over_the_limit_is_an_unsupported_operation(client: Client) -> None:
    answer = client.call("encrypt", plaintext=b64(bytes(4301)))
    assert (answer.status, answer.error) == (501, "UnsupportedOperationException")


@requirement(52, 67, 113)
def test_aad_over_the_limit_is_an_unsupported_operation(client: Client) -> None:
    answer = client.call("encrypt", additionalAuthenticatedData=b64(bytes(8193)))
    assert (answer.status, answer.error) == (501, "UnsupportedOperationException")


@requirement(75, 113)
def test_ciphertext_over_the_limit_is_an_unsupported_operation(client: Client) -> None:
    answer = client.call("decrypt", ciphertext=b64(bytes(4301)))
    assert (answer.status, answer.error) == (501, "UnsupportedOperationException")


@requirement(64)
def test_absent_aad_and_empty_aad_are_the_same(client: Client) -> None:
    encrypted = client.call("encrypt", additionalAuthenticatedData=None)
    assert client.call("decrypt", client.decrypt_document(encrypted.document, aad="")).status == 200
    encrypted = client.call("encrypt", additionalAuthenticatedData="")
    assert client.call("decrypt", client.decrypt_document(encrypted.document, aad=None)).status == 200


@requirement(53, 61, 68, 69, 70, 71, 162)
@pytest.mark.parametrize("aad", [AAD, "", None])
def test_cdiv_is_the_hash_of_all_parts(client: Client, aad: str | None) -> None:
    answer = client.call("encrypt", additionalAuthenticatedData=aad, ciphertextDataIntegrityValueAlgorithm="SHA_256")
    assert answer.status == 200
    parts = [aad or "", answer.document.get("ciphertextMetadata", "")]
    parts += [answer.document[name] for name in ("initializationVector", "ciphertext", "authenticationTag")]
    expected = hashlib.sha256(b"".join(base64.b64decode(part) for part in parts)).digest()
    assert base64.b64decode(answer.document["ciphertextDataIntegrityValue"]) == expected
    assert client.call("decrypt", client.decrypt_document(answer.document, aad)).status == 200


@requirement(53)
def test_no_cdiv_unless_asked_for(client: Client) -> None:
    assert "ciphertextDataIntegrityValue" not in client.call("encrypt").document


@requirement(55, 56)
def test_the_same_plaintext_never_gives_the_same_iv(client: Client) -> None:
    seen = {client.call("encrypt").document["initializationVector"] for _ in range(64)}
    assert len(seen) == 64


def _flip(text: str) -> str:
    data = bytearray(base64.b64decode(text))
    data[-1] ^= 1
    return b64(bytes(data))


@requirement(84, 106, 161)
@pytest.mark.parametrize("member", ["ciphertext", "initializationVector", "authenticationTag", "additionalAuthenticatedData"])
def test_a_changed_part_is_an_invalid_ciphertext(client: Client, member: str) -> None:
    document = client.valid("decrypt")
    answer = client.call("decrypt", document, **{member: _flip(document[member])})
    assert (answer.status, answer.error) == (400, "InvalidCiphertextException")
    assert client.call("decrypt", document).status == 200


@requirement(84, 161)
def test_decrypt_without_the_aad_is_an_invalid_ciphertext(client: Client) -> None:
    answer = client.call("decrypt", additionalAuthenticatedData=None)
    assert (answer.status, answer.error) == (400, "InvalidCiphertextException")


@requirement(62, 77, 84)
def test_added_metadata_is_an_invalid_ciphertext(client: Client) -> None:
    answer = client.call("decrypt", ciphertextMetadata=b64(b"key_version=1"))
    assert (answer.status, answer.error) == (400, "InvalidCiphertextException")


@requirement(65)
def test_bytes_cannot_move_between_aad_and_metadata(client: Client) -> None:
    encrypted = client.call("encrypt", additionalAuthenticatedData=b64(b"abcdef"))
    moved = client.decrypt_document(encrypted.document, aad=b64(b"abc")) | {"ciphertextMetadata": b64(b"def")}
    answer = client.call("decrypt", moved)
    assert (answer.status, answer.error) == (400, "InvalidCiphertextException")


@requirement(76)
@pytest.mark.parametrize(("length", "error"), [(20, "InvalidCiphertextException"), (21, "ValidationException")])
def test_metadata_has_at_most_20_bytes(client: Client, length: int, error: str) -> None:
    assert client.call("decrypt", ciphertextMetadata=b64(bytes(length))).error == error


@requirement(80)
@pytest.mark.parametrize("length", [0, 1, 11, 13, 15, 17, 32])
def test_an_iv_of_another_length_is_refused(client: Client, length: int) -> None:
    answer = client.call("decrypt", initializationVector=b64(bytes(length)))
    assert (answer.status, answer.error) == (400, "ValidationException")


@requirement(80)
def test_an_iv_of_16_bytes_is_tried(client: Client) -> None:
    answer = client.call("decrypt", initializationVector=b64(os.urandom(16)))
    assert (answer.status, answer.error) == (400, "InvalidCiphertextException")


@requirement(81)
@pytest.mark.parametrize("length", [0, 1, 4, 8, 12, 15, 17])
def test_a_tag_of_another_length_is_refused(client: Client, length: int) -> None:
    document = client.valid("decrypt")
    tag = base64.b64decode(document["authenticationTag"])
    answer = client.call("decrypt", document, authenticationTag=b64((tag + b"\0")[:length]))
    assert (answer.status, answer.error) == (400, "ValidationException")


@requirement(107, 164)
@pytest.mark.parametrize(
    ("key", "operation", "cdiv", "error"),
    [
        ("encrypt_only", "encrypt", False, ""),
        ("encrypt_only", "encrypt", True, "InvalidKeyUsageException"),
        ("encrypt_only", "decrypt", False, "InvalidKeyUsageException"),
        ("decrypt_only", "encrypt", False, "InvalidKeyUsageException"),
        ("decrypt_only", "encrypt", True, "InvalidKeyUsageException"),
        ("no_usage", "encrypt", False, "InvalidKeyUsageException"),
        ("no_usage", "encrypt", True, "InvalidKeyUsageException"),
        ("no_usage", "decrypt", False, "InvalidKeyUsageException"),
    ],
)
def test_key_usage_is_enforced(client: Client, key: str, operation: str, cdiv: bool, error: str) -> None:
    changes = {"ciphertextDataIntegrityValueAlgorithm": "SHA_256"} if cdiv else {}
    answer = client.call(operation, key=client.ready["keys"][key], **changes)
    assert answer.error == error
    assert answer.status == (400 if error else 200)


@requirement(44, 74)
@pytest.mark.parametrize(("key", "usage"), [("encrypt_only", ["ENCRYPT"]), ("decrypt_only", ["DECRYPT"]), ("no_usage", [])])
def test_metadata_lists_the_usage(client: Client, key: str, usage: list[str]) -> None:
    assert client.call("metadata", key=client.ready["keys"][key]).document["keyUsage"] == usage


@requirement(110, 158)
@pytest.mark.parametrize("operation", ["metadata", "encrypt", "decrypt"])
def test_an_unknown_key_is_not_found(client: Client, operation: str) -> None:
    answer = client.call(operation, client.valid(operation), key="non_existing_key")
    assert (answer.status, answer.error) == (404, "KeyNotFoundException")
