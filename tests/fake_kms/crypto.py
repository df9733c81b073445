# SPDX-License-Identifier: Apache-2.0
"""Encrypt, Decrypt and GenerateDataKey with keys in external key stores: encrypted by KMS first, then by the proxy.

Every failure of the proxy is a KMSInvalidStateException, as AWS documents it.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import os
import secrets
import uuid
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from tests.fake_kms.account import Account, Key
from tests.fake_kms.errors import KmsError
from tests.fake_kms.proxy_client import ProxyFailure, call

Request = dict[str, Any]
Answer = dict[str, Any]

NONCE_BYTES = 12
TAG_BYTES = 16
_FIELDS = ("ciphertext", "initializationVector", "authenticationTag", "ciphertextMetadata")


def encrypt(account: Account, request: Request, principal: str) -> Answer:
    """Encrypt."""
    key = _usable(account, request["KeyId"], request)
    blob = _seal(account, key, request["Plaintext"], request.get("EncryptionContext", {}), principal, "Encrypt")
    return {"CiphertextBlob": _b64(blob), "KeyId": key.arn, "EncryptionAlgorithm": "SYMMETRIC_DEFAULT"}


def generate_data_key(account: Account, request: Request, principal: str) -> Answer:
    """GenerateDataKey."""
    if ("KeySpec" in request) == ("NumberOfBytes" in request):
        raise KmsError("ValidationException", "Please specify either number of bytes or key spec.")
    count = request.get("NumberOfBytes") or {"AES_256": 32, "AES_128": 16}[request["KeySpec"]]
    key = _usable(account, request["KeyId"], request)
    plaintext = secrets.token_bytes(count)
    blob = _seal(account, key, plaintext, request.get("EncryptionContext", {}), principal, "GenerateDataKey")
    return {"CiphertextBlob": _b64(blob), "Plaintext": _b64(plaintext), "KeyId": key.arn}


def decrypt(account: Account, request: Request, principal: str) -> Answer:
    """Decrypt."""
    if "CiphertextBlob" not in request:
        raise KmsError("ValidationException", "CiphertextBlob is required")
    try:
        sealed = json.loads(request["CiphertextBlob"])
        key = account.keys[sealed["key"]]
    except (ValueError, KeyError, TypeError):
        raise KmsError("InvalidCiphertextException", "") from None
    if "KeyId" in request and account.key(request["KeyId"], alias=True) is not key:
        raise KmsError(
            "IncorrectKeyException", "The key ID in the request does not identify a key that can perform this operation."
        )
    key = _usable(account, key.id, request)
    aad = _aad(key, request.get("EncryptionContext", {}))
    document = {
        "requestMetadata": _metadata(key, principal, "Decrypt"),
        "additionalAuthenticatedData": _b64(aad),
        "encryptionAlgorithm": "AES_GCM",
        **{name: sealed[name] for name in _FIELDS if name in sealed},
    }
    inner = _member(_call(account, key, "decrypt", document), "plaintext")
    try:
        plaintext = AESGCM(key.material).decrypt(inner[:NONCE_BYTES], inner[NONCE_BYTES:], aad)
    except (InvalidTag, ValueError):
        raise KmsError(
            "KMSInvalidStateException", "The ciphertext that the proxy submitted for decryption is corrupted."
        ) from None
    return {"Plaintext": _b64(plaintext), "KeyId": key.arn, "EncryptionAlgorithm": "SYMMETRIC_DEFAULT"}


def _usable(account: Account, key_id: str, request: Request) -> Key:
    if request.get("EncryptionAlgorithm", "SYMMETRIC_DEFAULT") != "SYMMETRIC_DEFAULT":
        raise KmsError("InvalidKeyUsageException", "The key is a symmetric encryption key.")
    key = account.key(key_id, alias=True)
    state = account.key_state(key)
    if not key.enabled and state in ("Disabled", "Unavailable"):
        raise KmsError("DisabledException", f"{key.arn} is disabled.")
    if state != "Enabled":
        raise KmsError("KMSInvalidStateException", f"{key.arn} is {state}.")
    return key


def _seal(account: Account, key: Key, plaintext: bytes, context: dict[str, str], principal: str, operation: str) -> bytes:
    aad = _aad(key, context)
    nonce = os.urandom(NONCE_BYTES)
    inner = nonce + AESGCM(key.material).encrypt(nonce, plaintext, aad)
    document = {
        "requestMetadata": _metadata(key, principal, operation),
        "plaintext": _b64(inner),
        "encryptionAlgorithm": "AES_GCM",
        "additionalAuthenticatedData": _b64(aad),
    }
    wants_integrity = operation != "Encrypt"
    if wants_integrity:
        document["ciphertextDataIntegrityValueAlgorithm"] = "SHA_256"
    answer = _call(account, key, "encrypt", document)
    ciphertext, iv, tag = (_member(answer, name) for name in _FIELDS[:3])
    metadata = _member(answer, "ciphertextMetadata") if "ciphertextMetadata" in answer else b""
    if len(ciphertext) != len(inner) or len(iv) not in (12, 16) or len(tag) != TAG_BYTES or len(metadata) > 20:
        raise KmsError("KMSInvalidStateException", "KMS cannot interpret the response of the proxy.")
    if wants_integrity:
        integrity = hashlib.sha256(aad + metadata + iv + ciphertext + tag).digest()
        if _member(answer, "ciphertextDataIntegrityValue") != integrity:
            raise KmsError("KMSInvalidStateException", "The ciphertext data integrity value does not match.")
    return json.dumps({"key": key.id, **{name: answer[name] for name in _FIELDS if name in answer}}).encode()


def _call(account: Account, key: Key, operation: str, document: dict[str, Any]) -> dict[str, Any]:
    try:
        return call(account.way(account.store(key.store)), f"/keys/{key.external_key_id}/{operation}", document)
    except ProxyFailure as failure:
        raise KmsError("KMSInvalidStateException", failure.text) from None


def _aad(key: Key, context: dict[str, str]) -> bytes:
    return json.dumps([key.arn, sorted(context.items())]).encode()


def _metadata(key: Key, principal: str, operation: str) -> dict[str, str]:
    return {
        "awsPrincipalArn": principal,
        "kmsKeyArn": key.arn,
        "kmsOperation": operation,
        "kmsRequestId": str(uuid.uuid4()),
    }


def _member(answer: dict[str, Any], name: str) -> bytes:
    try:
        return base64.b64decode(answer[name], validate=True)
    except (KeyError, TypeError, binascii.Error):
        raise KmsError("KMSInvalidStateException", "KMS cannot interpret the response of the proxy.") from None


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode()
