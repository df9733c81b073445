# SPDX-License-Identifier: Apache-2.0
"""Requests as KMS sends them: bodies, and SigV4 by botocore, which shares no code with the server."""

from __future__ import annotations

import base64
import datetime
import hashlib
import http.client
import json
import os
import ssl
import time
from dataclasses import dataclass

from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

SERVICE = "kms-xks-proxy"

METADATA = {
    "awsPrincipalArn": "arn:aws:iam::123456789012:user/Alice",
    "kmsKeyArn": "arn:aws:kms:us-east-1:123456789012:key/1234abcd-12ab-34cd-56ef-1234567890ab",
    "kmsRequestId": "4112f4d6-db54-4af4-ae30-c55a22a8dfae",
}


class DatedAuth(SigV4Auth):
    """botocore's signer with the date given, so that requests can be signed before they are due."""

    def __init__(self, credentials: Credentials, region: str, at: datetime.datetime) -> None:
        super().__init__(credentials, SERVICE, region)
        self._stamp = at.astimezone(datetime.UTC).strftime("%Y%m%dT%H%M%SZ")

    def add_auth(self, request: AWSRequest) -> None:
        request.context["timestamp"] = self._stamp
        self._modify_request_before_signing(request)
        to_sign = self.string_to_sign(request, self.canonical_request(request))
        self._inject_signature_to_request(request, self.signature(to_sign, request))


@dataclass(frozen=True)
class Target:
    """A key store to send requests to. url: scheme://host:port; prefix: uri_path_prefix."""

    url: str
    prefix: str
    region: str
    access_key_id: str
    secret_access_key: str
    ca_file: str | None = None

    @classmethod
    def from_dev(cls, ready: dict[str, str], *, tls: bool = False) -> Target:
        """From the object that `xksfast dev --json` prints."""
        return cls(
            ready["tls_url"].replace("localhost", "127.0.0.1") if tls else ready["url"],
            ready["uri_path_prefix"],
            ready["region"],
            ready["access_key_id"],
            ready["secret_access_key"],
            ready["ca_file"],
        )

    def path(self, key: str, operation: str) -> str:
        """The URI path of an operation on a key."""
        return f"{self.prefix}/kms/xks/v1/keys/{key}/{operation}"

    def sign(self, path: str, body: bytes, at: datetime.datetime | None = None) -> dict[str, str]:
        """All headers of the signed request. at: its date, now if not given; the server accepts five minutes either way."""
        request = AWSRequest(method="POST", url=self.url + path, data=body, headers={"Content-Type": "application/json"})
        credentials = Credentials(self.access_key_id, self.secret_access_key)
        DatedAuth(credentials, self.region, at or datetime.datetime.now(datetime.UTC)).add_auth(request)
        host = self.url.split("://")[1]
        return {"Host": host, **dict(request.headers.items())}

    def raw(self, path: str, body: bytes, at: datetime.datetime | None = None) -> bytes:
        """The signed request as it goes over the wire."""
        headers = {**self.sign(path, body, at), "Content-Length": str(len(body))}
        lines = [f"POST {path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
        return "\r\n".join([*lines, "", ""]).encode() + body

    def post(self, path: str, document: dict[str, object]) -> tuple[int, dict[str, str]]:
        """(HTTP status, JSON answer) of one signed request."""
        body = json.dumps(document, separators=(",", ":")).encode()
        host = self.url.split("://")[1]
        if self.url.startswith("https"):
            context = ssl.create_default_context(cafile=self.ca_file)
            connection: http.client.HTTPConnection = http.client.HTTPSConnection(host, context=context, timeout=10)
        else:
            connection = http.client.HTTPConnection(host, timeout=10)
        try:
            connection.request("POST", path, body, self.sign(path, body))
            response = connection.getresponse()
            return response.status, json.loads(response.read())
        finally:
            connection.close()


def encrypt_document(plaintext_bytes: int = 48, aad_bytes: int = 64, *, cdiv: bool = False) -> dict[str, object]:
    """An Encrypt body with random plaintext and AAD. cdiv: as for GenerateDataKey, with the integrity value asked for."""
    return {
        "requestMetadata": {**METADATA, "kmsOperation": "GenerateDataKey" if cdiv else "Encrypt"},
        "additionalAuthenticatedData": base64.b64encode(os.urandom(aad_bytes)).decode(),
        "plaintext": base64.b64encode(os.urandom(plaintext_bytes)).decode(),
        "encryptionAlgorithm": "AES_GCM",
        **({"ciphertextDataIntegrityValueAlgorithm": "SHA_256"} if cdiv else {}),
    }


def decrypt_document(document: dict[str, object], answer: dict[str, str]) -> dict[str, object]:
    """The Decrypt body for what `document` was answered with."""
    return {
        "requestMetadata": {**METADATA, "kmsOperation": "Decrypt"},
        "additionalAuthenticatedData": document["additionalAuthenticatedData"],
        "ciphertext": answer["ciphertext"],
        "initializationVector": answer["initializationVector"],
        "authenticationTag": answer["authenticationTag"],
        "encryptionAlgorithm": "AES_GCM",
        **({"ciphertextMetadata": answer["ciphertextMetadata"]} if "ciphertextMetadata" in answer else {}),
    }


def prove_answer(
    target: Target, key: str, document: dict[str, object], answer: dict[str, str], *, patience_s: float = 0
) -> None:
    """Decrypt what an Encrypt was answered with and compare; the CDIV too. AssertionError when the server was wrong.

    patience_s: how long a refusal is tried again, where partitions have only just come back.
    """
    deadline = time.monotonic() + patience_s
    while (sent := target.post(target.path(key, "decrypt"), decrypt_document(document, answer)))[0] in (429, 503):
        if time.monotonic() >= deadline:
            break
        time.sleep(0.05)
    status, opened = sent
    assert status == 200, (status, opened.get("errorName"))
    assert opened["plaintext"] == document["plaintext"], "another plaintext came back"
    if "ciphertextDataIntegrityValueAlgorithm" in document:
        assert answer["ciphertextDataIntegrityValue"] == integrity_value(document, answer)


def integrity_value(document: dict[str, object], answer: dict[str, str]) -> str:
    """The CDIV: SHA-256 over AAD, metadata, IV, ciphertext and tag. Source: XKS Proxy API spec v1.0.3, Appendix C."""
    parts = [str(document["additionalAuthenticatedData"]), answer.get("ciphertextMetadata", "")]
    parts += [answer[name] for name in ("initializationVector", "ciphertext", "authenticationTag")]
    return base64.b64encode(hashlib.sha256(b"".join(base64.b64decode(part) for part in parts)).digest()).decode()


def prove_encrypt(target: Target, key: str, document: dict[str, object]) -> dict[str, str]:
    """Encrypt, decrypt, compare; the Encrypt answer. AssertionError when the server is wrong: nothing is timed then."""
    status, answer = target.post(target.path(key, "encrypt"), document)
    assert status == 200, (status, answer)
    prove_answer(target, key, document, answer)
    return answer
