# SPDX-License-Identifier: Apache-2.0
"""Requests as KMS sends them: bodies, and SigV4 by botocore, which shares no code with the server."""

from __future__ import annotations

import base64
import http.client
import json
import os
import ssl
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

    def sign(self, path: str, body: bytes) -> dict[str, str]:
        """All headers of the signed request."""
        request = AWSRequest(method="POST", url=self.url + path, data=body, headers={"Content-Type": "application/json"})
        SigV4Auth(Credentials(self.access_key_id, self.secret_access_key), SERVICE, self.region).add_auth(request)
        host = self.url.split("://")[1]
        return {"Host": host, **dict(request.headers.items())}

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


def encrypt_document(plaintext_bytes: int = 48, aad_bytes: int = 64) -> dict[str, object]:
    """An Encrypt body with random plaintext and AAD."""
    return {
        "requestMetadata": {**METADATA, "kmsOperation": "Encrypt"},
        "additionalAuthenticatedData": base64.b64encode(os.urandom(aad_bytes)).decode(),
        "plaintext": base64.b64encode(os.urandom(plaintext_bytes)).decode(),
        "encryptionAlgorithm": "AES_GCM",
    }


def prove_encrypt(target: Target, key: str, document: dict[str, object]) -> dict[str, str]:
    """Encrypt, decrypt, compare; the Encrypt answer. AssertionError when the server is wrong: nothing is timed then."""
    status, answer = target.post(target.path(key, "encrypt"), document)
    assert status == 200, (status, answer)
    back = {
        "requestMetadata": {**METADATA, "kmsOperation": "Decrypt"},
        "additionalAuthenticatedData": document["additionalAuthenticatedData"],
        "ciphertext": answer["ciphertext"],
        "initializationVector": answer["initializationVector"],
        "authenticationTag": answer["authenticationTag"],
        "encryptionAlgorithm": "AES_GCM",
    }
    status, opened = target.post(target.path(key, "decrypt"), back)
    assert status == 200, (status, opened)
    assert opened["plaintext"] == document["plaintext"]
    return answer
