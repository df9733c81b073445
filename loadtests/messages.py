# SPDX-License-Identifier: Apache-2.0
"""What KMS asks an XKS proxy, and whether the answer is right: a load test that cannot notice a wrong answer proves nothing.

Every answer's shape is checked; every CDIV is recomputed; every Decrypt must give the plaintext that an earlier Encrypt or
GenerateDataKey sealed, so that the decrypted share of the mix is the sample of sealed answers that is proved.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import random
from collections import deque
from dataclasses import dataclass

from bench.requests import METADATA

# KMS publishes no figures: readers of encrypted data outnumber writers, most writers take a data key, the rest is housekeeping.
DEFAULT_MIX = {"Decrypt": 55, "GenerateDataKey": 30, "Encrypt": 13, "CreateKey": 1, "Health": 1}
PATHS = {"Decrypt": "decrypt", "GenerateDataKey": "encrypt", "Encrypt": "encrypt", "CreateKey": "metadata"}
HEALTH_PATH = "/kms/xks/v1/health"
PLAINTEXT_BYTES, AAD_BYTES = 48, 64
IV_BYTES, TAG_BYTES = (12, 16), 16
MAX_KEPT = 10_000


class WrongAnswer(Exception):
    """A 200 whose body is not the right one: the worst thing a proxy can do. The text never holds key material."""


class Refused(Exception):
    """Another status than 200; the text is errorName."""


@dataclass(frozen=True)
class Sealed:
    """An Encrypt and what came back, all in Base64."""

    plaintext: str
    aad: str
    answer: dict[str, str]


@dataclass(frozen=True)
class Question:
    """One request. operation: a key of DEFAULT_MIX; path: below the key store's prefix; sealed: what a Decrypt must open."""

    operation: str
    path: str
    body: bytes
    plaintext: str = ""
    aad: str = ""
    sealed: Sealed | None = None


class Conversation:
    """Makes questions about one key and judges the answers. Ciphertexts are kept for later Decrypts."""

    def __init__(self, key: str, mix: dict[str, int] | None = None, seed: int | None = None) -> None:
        mix = mix or DEFAULT_MIX
        self._operations, self._weights = list(mix), list(mix.values())
        self._random = random.Random(seed)
        self._paths = {operation: f"/kms/xks/v1/keys/{key}/{last}" for operation, last in PATHS.items()}
        self._kept: deque[Sealed] = deque(maxlen=MAX_KEPT)

    def ask(self, operation: str | None = None) -> Question:
        """A question of the mix; an Encrypt in place of a Decrypt while there is nothing to decrypt."""
        operation = operation or self._random.choices(self._operations, self._weights)[0]
        if operation == "Health":
            return Question(operation, HEALTH_PATH, _body("KmsHealthCheck"))
        if operation == "CreateKey":
            return Question(operation, self._paths[operation], _body(operation))
        if operation == "Decrypt" and self._kept:
            sealed = self._kept[self._random.randrange(len(self._kept))]
            rest = ",".join(f'"{name}":"{value}"' for name, value in sealed.answer.items())
            body = _body(operation, f',"additionalAuthenticatedData":"{sealed.aad}","encryptionAlgorithm":"AES_GCM",{rest}')
            return Question(operation, self._paths[operation], body, sealed=sealed)
        operation = "Encrypt" if operation == "Decrypt" else operation
        plaintext, aad = _random_base64(PLAINTEXT_BYTES), _random_base64(AAD_BYTES)
        more = f',"additionalAuthenticatedData":"{aad}","plaintext":"{plaintext}","encryptionAlgorithm":"AES_GCM"'
        if operation == "GenerateDataKey":
            more += ',"ciphertextDataIntegrityValueAlgorithm":"SHA_256"'
        return Question(operation, self._paths[operation], _body(operation, more), plaintext, aad)

    def judge(self, question: Question, status: int, body: bytes) -> None:
        """Return when the answer is right. Refused or WrongAnswer when not."""
        try:
            answer = json.loads(body)
            if not isinstance(answer, dict):
                raise ValueError
        except ValueError:
            raise WrongAnswer(f"{question.operation}: {status} with a body that is not a JSON object") from None
        if status != 200:
            name = str(answer.get("errorName", f"status {status} without errorName"))
            if question.sealed is not None and name == "InvalidCiphertextException":
                raise WrongAnswer("Decrypt: what the server had sealed is refused as invalid")
            raise Refused(name)
        try:
            if question.operation in ("Encrypt", "GenerateDataKey"):
                self._kept.append(judge_sealed(question, answer))
            elif question.sealed is not None:
                if answer["plaintext"] != question.sealed.plaintext:
                    raise WrongAnswer("Decrypt: another plaintext than was encrypted")
            elif question.operation == "CreateKey":
                _judge_metadata(answer)
            else:
                _judge_health(answer)
        except (KeyError, TypeError, ValueError):
            raise WrongAnswer(f"{question.operation}: a member is missing or malformed") from None


def judge_sealed(question: Question, answer: dict[str, str]) -> Sealed:
    """Lengths and CDIV of an Encrypt answer; what is to be sent to decrypt it."""
    parts = {
        name: base64.b64decode(answer[name], validate=True)
        for name in ("initializationVector", "ciphertext", "authenticationTag")
    }
    metadata = base64.b64decode(answer.get("ciphertextMetadata", ""), validate=True)
    if (
        len(parts["ciphertext"]) != PLAINTEXT_BYTES
        or len(parts["initializationVector"]) not in IV_BYTES
        or len(parts["authenticationTag"]) != TAG_BYTES
    ):
        raise WrongAnswer(f"{question.operation}: ciphertext, IV or tag of a wrong length")
    if question.operation == "GenerateDataKey":
        hashed = hashlib.sha256(base64.b64decode(question.aad) + metadata)
        for part in parts.values():
            hashed.update(part)
        if base64.b64decode(answer["ciphertextDataIntegrityValue"], validate=True) != hashed.digest():
            raise WrongAnswer("GenerateDataKey: ciphertextDataIntegrityValue is not the SHA-256 of the answer")
    kept = ("ciphertext", "initializationVector", "authenticationTag", "ciphertextMetadata")
    return Sealed(question.plaintext, question.aad, {name: answer[name] for name in kept if name in answer})


def _judge_metadata(answer: dict[str, object]) -> None:
    if (answer["keySpec"], answer["keyStatus"]) != ("AES_256", "ENABLED") or not answer["keyUsage"]:
        raise WrongAnswer("CreateKey: not the metadata of an enabled AES-256 key")


def _judge_health(answer: dict[str, object]) -> None:
    fleet = answer["ekmFleetDetails"]
    if not isinstance(fleet, list) or all(member["healthStatus"] == "UNAVAILABLE" for member in fleet):
        raise WrongAnswer("Health: no key manager is available")


_METADATA = json.dumps(METADATA, separators=(",", ":"))[:-1]


def _body(kms_operation: str, more: str = "") -> bytes:
    return f'{{"requestMetadata":{_METADATA},"kmsOperation":"{kms_operation}"}}{more}}}'.encode("ascii")


def _random_base64(size: int) -> str:
    return base64.b64encode(os.urandom(size)).decode("ascii")


def parse_mix(text: str) -> dict[str, int]:
    """ "Decrypt=3,Encrypt=1" -> weights; ValueError names what is wrong."""
    mix = {}
    for part in text.split(","):
        operation, _, weight = part.strip().partition("=")
        if operation not in DEFAULT_MIX or not weight.isdigit():
            raise ValueError(f"expected OPERATION=WEIGHT with one of {', '.join(DEFAULT_MIX)}, got {part!r}")
        mix[operation] = int(weight)
    if not any(mix.values()):
        raise ValueError("at least one weight must be above 0")
    return mix
