# SPDX-License-Identifier: Apache-2.0
"""The judge of answers: right ones pass, every kind of wrong one is noticed."""

from __future__ import annotations

import base64
import hashlib
import json
from typing import Any

import pytest

from loadtests.messages import DEFAULT_MIX, Conversation, Question, Refused, WrongAnswer, parse_mix

METADATA = b"key_version=1"


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def sealed_answer(question: Question, **changes: Any) -> dict[str, Any]:
    """What a right proxy says to an Encrypt or GenerateDataKey; the ciphertext is the plaintext reversed."""
    ciphertext, iv, tag = base64.b64decode(question.plaintext)[::-1], b"i" * 12, b"t" * 16
    answer: dict[str, Any] = {
        "ciphertext": b64(ciphertext),
        "initializationVector": b64(iv),
        "authenticationTag": b64(tag),
        "ciphertextMetadata": b64(METADATA),
    }
    if question.operation == "GenerateDataKey":
        parts = base64.b64decode(question.aad) + METADATA + iv + ciphertext + tag
        answer["ciphertextDataIntegrityValue"] = b64(hashlib.sha256(parts).digest())
    return answer | changes


def judge(conversation: Conversation, question: Question, answer: Any, status: int = 200) -> None:
    conversation.judge(question, status, json.dumps(answer).encode())


def test_bodies_are_json_with_what_kms_sends() -> None:
    conversation = Conversation("k1")
    for operation, algorithm in (("Encrypt", None), ("GenerateDataKey", "SHA_256")):
        question = conversation.ask(operation)
        body = json.loads(question.body)
        assert body["requestMetadata"]["kmsOperation"] == operation
        assert body["encryptionAlgorithm"] == "AES_GCM"
        assert body.get("ciphertextDataIntegrityValueAlgorithm") == algorithm
        assert question.path == "/kms/xks/v1/keys/k1/encrypt"
        judge(conversation, question, sealed_answer(question))
    decrypt = json.loads(conversation.ask("Decrypt").body)
    assert decrypt["ciphertextMetadata"] == b64(METADATA)
    assert "plaintext" not in decrypt
    assert json.loads(conversation.ask("Health").body)["requestMetadata"]["kmsOperation"] == "KmsHealthCheck"


def test_a_decrypt_that_gives_what_was_sealed_is_right() -> None:
    conversation = Conversation("k1")
    encrypt = conversation.ask("Encrypt")
    judge(conversation, encrypt, sealed_answer(encrypt))
    decrypt = conversation.ask("Decrypt")
    assert decrypt.operation == "Decrypt"
    judge(conversation, decrypt, {"plaintext": encrypt.plaintext})
    with pytest.raises(WrongAnswer, match="another plaintext"):
        judge(conversation, decrypt, {"plaintext": b64(b"x" * 48)})


def test_there_is_nothing_to_decrypt_before_something_was_encrypted() -> None:
    conversation = Conversation("k1", {"Decrypt": 1})
    assert conversation.ask().operation == "Encrypt"


@pytest.mark.parametrize(
    ("member", "value"),
    [
        ("ciphertext", b64(b"c" * 47)),
        ("ciphertext", b64(b"c" * 48)),
        ("initializationVector", b64(b"i" * 13)),
        ("authenticationTag", b64(b"t" * 15)),
        ("ciphertextMetadata", b64(b"key_version=2")),
        ("ciphertextDataIntegrityValue", b64(b"h" * 32)),
        ("ciphertext", "not Base64!"),
        ("ciphertext", None),
    ],
)
def test_an_altered_data_key_is_noticed_at_once(member: str, value: Any) -> None:
    conversation = Conversation("k1")
    question = conversation.ask("GenerateDataKey")
    judge(conversation, question, sealed_answer(question))
    with pytest.raises(WrongAnswer):
        judge(conversation, question, sealed_answer(question, **{member: value}))


@pytest.mark.parametrize("member", ["ciphertext", "initializationVector", "authenticationTag", "ciphertextDataIntegrityValue"])
def test_a_missing_member_is_noticed(member: str) -> None:
    conversation = Conversation("k1")
    question = conversation.ask("GenerateDataKey")
    answer = sealed_answer(question)
    del answer[member]
    with pytest.raises(WrongAnswer, match="missing or malformed"):
        judge(conversation, question, answer)


@pytest.mark.parametrize("body", [b"", b"[]", b"null", b"{", b"\xff"])
def test_a_body_that_is_no_json_object_is_wrong(body: bytes) -> None:
    conversation = Conversation("k1")
    with pytest.raises(WrongAnswer, match="not a JSON object"):
        conversation.judge(conversation.ask("Encrypt"), 200, body)


def test_a_refusal_is_told_by_its_error_name() -> None:
    conversation = Conversation("k1")
    with pytest.raises(Refused, match=r"^ThrottlingException$"):
        judge(conversation, conversation.ask("Encrypt"), {"errorName": "ThrottlingException"}, 429)
    with pytest.raises(Refused, match="503"):
        judge(conversation, conversation.ask("Encrypt"), {}, 503)


def test_a_sealed_ciphertext_that_is_refused_as_invalid_is_a_wrong_answer() -> None:
    conversation = Conversation("k1")
    encrypt = conversation.ask("Encrypt")
    judge(conversation, encrypt, sealed_answer(encrypt))
    with pytest.raises(WrongAnswer, match="refused as invalid"):
        judge(conversation, conversation.ask("Decrypt"), {"errorName": "InvalidCiphertextException"}, 400)
    with pytest.raises(Refused, match="DependencyTimeoutException"):
        judge(conversation, conversation.ask("Decrypt"), {"errorName": "DependencyTimeoutException"}, 503)


def test_metadata_and_health_are_judged() -> None:
    conversation = Conversation("k1")
    metadata, health = conversation.ask("CreateKey"), conversation.ask("Health")
    good = {"keySpec": "AES_256", "keyUsage": ["ENCRYPT"], "keyStatus": "ENABLED"}
    judge(conversation, metadata, good)
    judge(conversation, health, {"ekmFleetDetails": [{"healthStatus": "UNAVAILABLE"}, {"healthStatus": "DEGRADED"}]})
    with pytest.raises(WrongAnswer):
        judge(conversation, metadata, {**good, "keyStatus": "DISABLED"})
    with pytest.raises(WrongAnswer):
        judge(conversation, health, {"ekmFleetDetails": [{"healthStatus": "UNAVAILABLE"}]})


def test_the_mix_is_asked_as_weighted() -> None:
    conversation = Conversation("k1", parse_mix("Encrypt=1, Health=3"), seed=5)
    asked = [conversation.ask().operation for _ in range(4000)]
    assert set(asked) == {"Encrypt", "Health"}
    assert asked.count("Health") == pytest.approx(3000, abs=150)
    assert set(DEFAULT_MIX) == {"Encrypt", "Decrypt", "GenerateDataKey", "CreateKey", "Health"}


@pytest.mark.parametrize("text", ["", "Encrypt", "Encrypt=x", "Sign=1", "Encrypt=0", "Encrypt=-1"])
def test_an_impossible_mix_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"expected OPERATION=WEIGHT|above 0"):
        parse_mix(text)
