# SPDX-License-Identifier: Apache-2.0
"""A client that speaks to a proxy as KMS does, and, where a test wants it, as nobody should."""

from __future__ import annotations

import base64
import copy
import http.client
import json
from dataclasses import dataclass
from typing import Any

from bench.requests import METADATA, Target

AAD = base64.b64encode(b"project=nile,department=marketing").decode()


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


@dataclass(frozen=True)
class Answer:
    """status, headers (lower-case names), and the body as JSON."""

    status: int
    headers: dict[str, str]
    document: dict[str, Any]

    @property
    def error(self) -> str:
        """errorName, "" for a success."""
        return str(self.document.get("errorName", ""))


class Client:
    """Signed calls to one key store over one kept connection. ready: what `xksfast dev --json` said."""

    def __init__(self, ready: dict[str, Any], target: Target | None = None) -> None:
        self.ready = ready
        self.target = target or Target.from_dev(ready)
        self.address = (self.target.url.split("://")[1].rpartition(":")[0], int(self.target.url.rpartition(":")[2]))
        self.prefix = self.target.prefix
        self.key = ready["keys"]["default"]
        self._connection: http.client.HTTPConnection | None = None

    def path(self, operation: str, key: str | None = None) -> str:
        """operation: encrypt, decrypt, metadata or health."""
        if operation == "health":
            return f"{self.prefix}/kms/xks/v1/health"
        return self.target.path(key or self.key, operation)

    def send(self, method: str, path: str, body: bytes, headers: dict[str, str]) -> Answer:
        """One request as given; the answer must be one line of JSON with the right length."""
        for attempt in (1, 2):
            if self._connection is None:
                self._connection = http.client.HTTPConnection(*self.address, timeout=10)
            try:
                self._connection.request(method, path, body, headers)
                response = self._connection.getresponse()
                break
            except (http.client.RemoteDisconnected, ConnectionError):
                self.close()
                if attempt == 2:
                    raise
        raw = response.read()
        if response.will_close:
            self.close()
        answer_headers = {name.lower(): value for name, value in response.getheaders()}
        assert answer_headers["content-type"] == "application/json"
        assert int(answer_headers["content-length"]) == len(raw)
        assert b"\n" not in raw
        return Answer(response.status, answer_headers, json.loads(raw))

    def post(self, path: str, body: bytes) -> Answer:
        """One signed request."""
        return self.send("POST", path, body, self.target.sign(path, body))

    def call(self, operation: str, document: Any = None, key: str | None = None, **changes: Any) -> Answer:
        """One signed call. document: the body (default: a valid one); changes: members to set, or to leave out when None."""
        body = copy.deepcopy(document if document is not None else self.valid(operation))
        for name, value in changes.items():
            if value is None:
                body.pop(name, None)
            else:
                body[name] = value
        return self.post(self.path(operation, key), json.dumps(body).encode())

    def valid(self, operation: str) -> dict[str, Any]:
        """A valid body, all optional members but CDIV included where they make sense."""
        if operation == "health":
            return {"requestMetadata": {"kmsRequestId": "r-1", "kmsOperation": "KmsHealthCheck"}}
        kms_operation = {"metadata": "CreateKey", "encrypt": "Encrypt", "decrypt": "Decrypt"}[operation]
        document: dict[str, Any] = {"requestMetadata": {**METADATA, "kmsOperation": kms_operation}}
        if operation == "encrypt":
            document |= {
                "plaintext": b64(b"Hello World!"),
                "encryptionAlgorithm": "AES_GCM",
                "additionalAuthenticatedData": AAD,
            }
        elif operation == "decrypt":
            document |= self.decrypt_document(self.call("encrypt").document)
        return document

    def decrypt_document(self, encrypted: dict[str, Any], aad: str | None = AAD) -> dict[str, Any]:
        """A Decrypt body for an Encrypt answer."""
        document: dict[str, Any] = {
            "requestMetadata": {**METADATA, "kmsOperation": "Decrypt"},
            "ciphertext": encrypted["ciphertext"],
            "initializationVector": encrypted["initializationVector"],
            "authenticationTag": encrypted["authenticationTag"],
            "encryptionAlgorithm": "AES_GCM",
        }
        if "ciphertextMetadata" in encrypted:
            document["ciphertextMetadata"] = encrypted["ciphertextMetadata"]
        if aad is not None:
            document["additionalAuthenticatedData"] = aad
        return document

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
