# SPDX-License-Identifier: Apache-2.0
"""The API of AnyProxy, without HTTP: who may ask, what an answer holds, its cryptography; right but for the switches that are on.

It shares no code with ours. A newcomer's trap: a rule stands beside the switch that breaks it, so what is right is what is left
with every switch off.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import os
import re
from datetime import UTC, datetime
from typing import Any, ClassVar

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from tests.probe.wrongness import EXTRA, FOUND_BY

REGION = "us-east-1"
CREDENTIALS = {"A" * 20: "first-" + "a" * 40, "B" * 20: "second-" + "b" * 40}
FOREIGN = {"C" * 20: "foreign-" + "c" * 40}
KEYS = {
    "k-default": ("ENCRYPT", "DECRYPT"), "k-encrypt": ("ENCRYPT",), "k-decrypt": ("DECRYPT",), "k-none": (),
    "k-disabled": ("ENCRYPT", "DECRYPT"), "k-denied": ("ENCRYPT", "DECRYPT"),
}  # fmt: skip
PREFIX = "/any"
API = PREFIX + "/kms/xks/v1"


class Refused(Exception):
    """An error of the API: its name, or another one with another status."""

    STATUSES: ClassVar = {
        "ValidationException": 400, "InvalidStateException": 400, "InvalidCiphertextException": 400, "InvalidKeyUsageException": 400,
        "AuthenticationFailedException": 401, "AccessDeniedException": 403, "KeyNotFoundException": 404,
        "InvalidUriPathException": 404, "ThrottlingException": 429, "InternalException": 500, "UnsupportedOperationException": 501,
    }  # fmt: skip

    def __init__(self, name: str, status: int = 0) -> None:
        super().__init__(name)
        self.name = name
        self.status = status or self.STATUSES[name]


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


class AnyApi:
    """wrong: switches that are on. quota: requests that are served before all are throttled; 0: any number."""

    def __init__(self, *wrong: str, quota: int = 0) -> None:
        assert set(wrong) <= set(FOUND_BY) | set(EXTRA), wrong
        self.wrong = set(wrong)
        self.quota = quota
        self.secrets = {name: AESGCM.generate_key(256) for name in KEYS}
        self.issued: list[dict[str, Any]] = []
        self.encrypted = 0
        self.health_calls = 0
        self.opened: set[bytes] = set()

    def is_(self, switch: str) -> bool:
        assert switch in FOUND_BY or switch in EXTRA, switch
        return switch in self.wrong

    def operation(self, method: str, path: str, headers: dict[str, str], body: bytes) -> dict[str, Any]:
        """The members of a 200 answer; Refused says which error it is, any other exception is one of the proxy's own.

        headers: names in lower case.
        """
        found = re.fullmatch(rf"{API}/(?:health|keys/([A-Za-z0-9._-]{{1,128}})/(metadata|encrypt|decrypt))", path)
        if found is None:
            if self.is_("long key id fails") and len(path) > 128:
                raise RuntimeError("buffer")
            if self.is_("unknown path is invalid"):
                raise Refused("ValidationException")
            raise Refused("InvalidUriPathException")
        key, operation = found[1], found[2] or "health"
        if method != "POST" and not (self.is_("PUT is served") and method == "PUT"):
            raise Refused("ValidationException", 405)
        if self.is_("key before signature") and key is not None and key not in KEYS:
            raise Refused("KeyNotFoundException")
        if self.is_("body before signature"):
            self._document(operation, body)
        if method == "POST":
            self._authenticate(path, headers, body)
        document = self._document(operation, body)
        if operation == "health":
            return self._health(document)
        if key not in KEYS:
            raise Refused("ValidationException" if self.is_("unknown key is invalid") else "KeyNotFoundException")
        if key == "k-denied" and not self.is_("policy ignored"):
            raise Refused("AccessDeniedException")
        if operation == "metadata":
            status = "DISABLED" if key == "k-disabled" else "ENABLED"
            return {
                "keySpec": "AES_128" if self.is_("AES_128") else "AES_256",
                "keyUsage": list(KEYS[key]),
                "keyStatus": status,
            }
        if key == "k-disabled" and not self.is_("disabled works"):
            raise Refused("InvalidStateException")
        return self._encrypt(key, document) if operation == "encrypt" else self._decrypt(key, document)

    def _authenticate(self, path: str, headers: dict[str, str], body: bytes) -> None:
        failed = Refused("AuthenticationFailedException")
        if self.is_("no date is served") and "x-amz-date" not in headers:
            return
        if self.is_("unsigned is served") and "authorization" not in headers:
            return
        found = re.fullmatch(
            r"AWS4-HMAC-SHA256 Credential=([^/]+)/(\d{8})/([^/]+)/([^/]+)/aws4_request, "
            r"SignedHeaders=([a-z0-9;-]+), Signature=([0-9a-f]{64})",
            headers.get("authorization", ""),
        )
        stamp = headers.get("x-amz-date", "")
        if found is None or not re.fullmatch(r"\d{8}T\d{6}Z", stamp):
            raise failed
        access_key_id, day, region, service, names, signature = found.groups()
        credentials = dict(list(CREDENTIALS.items())[:1]) if self.is_("one credential") else dict(CREDENTIALS)
        if self.is_("credentials of all stores"):
            credentials |= FOREIGN
        if access_key_id not in credentials:
            raise Refused("ValidationException") if self.is_("unknown id is invalid") else failed
        signed = ["host", "x-amz-date"] if self.is_("two headers signed") else names.split(";")
        lacking = {"host", "x-amz-date"} - set(signed)
        if lacking and not self.is_("host need not be signed"):
            raise failed
        if (region != REGION and not self.is_("any region")) or (service != "kms-xks-proxy" and not self.is_("any service")):
            raise failed
        if day != stamp[:8] and not self.is_("any day"):
            raise failed
        age = abs((datetime.now(UTC) - datetime.strptime(stamp, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)).total_seconds())
        if age > (60 if self.is_("strict clock") else 300) and not self.is_("no clock"):
            raise failed
        hashed = body.rstrip() if self.is_("body trimmed") else body
        lines = ["POST", path, "", *(f"{name}:{headers.get(name, '')}" for name in signed), "", ";".join(signed)]
        request = "\n".join([*lines, hashlib.sha256(hashed).hexdigest()])
        digest = hashlib.sha256(request.encode()).hexdigest()
        to_sign = f"AWS4-HMAC-SHA256\n{stamp}\n{day}/{region}/{service}/aws4_request\n{digest}"
        key = ("AWS4" + credentials[access_key_id]).encode()
        for part in (day, region, service, "aws4_request", to_sign):
            key = hmac.new(key, part.encode(), hashlib.sha256).digest()
        if not hmac.compare_digest(key.hex(), signature) and not self.is_("any secret"):
            raise failed

    def _document(self, operation: str, body: bytes) -> dict[str, Any]:
        invalid = Refused("ValidationException")

        def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
            if len(dict(pairs)) != len(pairs) and not self.is_("repeated members"):
                raise invalid
            return dict(pairs)

        decoder = json.JSONDecoder(object_pairs_hook=once)
        try:
            text = body.decode()
            document = decoder.raw_decode(text)[0] if self.is_("trailing data") else decoder.decode(text)
        except ValueError:
            if self.is_("no JSON fails"):
                raise RuntimeError("parser") from None
            raise invalid from None
        if not isinstance(document, dict):
            raise invalid
        if self.is_("empty body"):
            return document
        self._check(operation, document)
        return document

    def _check(self, operation: str, document: dict[str, Any]) -> None:
        invalid = RuntimeError("missing") if self.is_("missing members fail") else Refused("ValidationException")
        metadata = document.get("requestMetadata")
        if not isinstance(metadata, dict):
            raise invalid
        texts = {"health": (), "metadata": (), "encrypt": ("plaintext", "encryptionAlgorithm")}.get(
            operation, ("ciphertext", "encryptionAlgorithm", "initializationVector", "authenticationTag")
        )
        names = ["kmsRequestId", "kmsOperation"] + (["awsPrincipalArn"] if operation != "health" else [])
        for holder, members in ((metadata, names), (document, texts)):
            for name in members:
                if not isinstance(holder.get(name), str):
                    raise invalid
        refused = Refused("ValidationException")
        optional = {"additionalAuthenticatedData", "ciphertextMetadata", "ciphertextDataIntegrityValueAlgorithm"}
        if self.is_("no unknown members") and set(document) - {"requestMetadata", *texts} - optional:
            raise refused
        if self.is_("no old members") and operation == "metadata" and "kmsKeyArn" in metadata:
            raise refused
        operations = ("KmsHealthCheck", "CreateKey", "Encrypt", "Decrypt", "GenerateDataKey")
        if self.is_("policy on operations") and metadata["kmsOperation"] == "SomethingNew" and operation != "health":
            raise Refused("AccessDeniedException")
        if self.is_("known operations") and metadata["kmsOperation"] not in operations:
            raise refused
        if self.is_("ARNs only") and not metadata.get("awsPrincipalArn", "arn:").startswith("arn:"):
            raise refused
        if self.is_("UUIDs only") and not re.fullmatch(r"[0-9a-f-]{36}", metadata["kmsRequestId"]):
            raise refused
        if self.is_("no VPC") and "awsSourceVpc" in metadata:
            raise refused
        if not self.is_("any algorithm"):
            if document.get("encryptionAlgorithm", "AES_GCM") != "AES_GCM":
                raise refused
            if document.get("ciphertextDataIntegrityValueAlgorithm", "SHA_256") != "SHA_256":
                raise refused

    def _health(self, document: dict[str, Any]) -> dict[str, Any]:
        self.health_calls += 1
        operation = document.get("requestMetadata", {}).get("kmsOperation")
        if self.is_("health fails") or (self.is_("health once") and self.health_calls > 1):
            raise Refused("InternalException")
        if self.is_("health knows its operations") and operation not in ("KmsHealthCheck", "ConnectCustomKeyStore"):
            raise Refused("ValidationException")
        state = "UNAVAILABLE" if self.is_("all unavailable") else "ACTIVE"
        size = 11 if self.is_("eleven key managers") else 2
        answer = {
            "xksProxyFleetSize": 1, "xksProxyVendor": "any", "xksProxyModel": "any 1", "ekmVendor": "any",
            "ekmFleetDetails": [{"id": f"hsm-{i}", "model": "any 1", "healthStatus": state} for i in range(size)],
        }  # fmt: skip
        if self.is_("no fleet size"):
            del answer["xksProxyFleetSize"]
        return answer

    # --- cryptography

    def _bytes(self, document: dict[str, Any], name: str) -> bytes | None:
        text = document.get(name)
        if text is None:
            return None
        try:
            if self.is_("lenient Base64"):
                return base64.b64decode(text.replace("-", "+").replace("_", "/") + "==")
            data = base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError, AttributeError):
            raise Refused("ValidationException") from None
        if b64(data) != text:
            raise Refused("ValidationException")
        return data

    def _aad(self, document: dict[str, Any]) -> bytes:
        aad = self._bytes(document, "additionalAuthenticatedData")
        if aad == b"" and self.is_("tells an empty AAD apart"):
            return b"empty"
        return aad or b""

    def _compose(self, aad: bytes, metadata: bytes) -> bytes:
        if self.is_("AAD and metadata joined"):
            return aad + metadata
        return (len(aad) % 65536).to_bytes(2, "big") + aad + len(metadata).to_bytes(1, "big") + metadata

    def _encrypt(self, key: str, document: dict[str, Any]) -> dict[str, Any]:
        self.encrypted += 1
        if self.quota and self.encrypted > self.quota:
            raise Refused("InternalException" if self.is_("over quota is internal") else "ThrottlingException")
        may, cdiv = KEYS[key], "ciphertextDataIntegrityValueAlgorithm" in document
        forbidden = "ENCRYPT" not in may or (cdiv and "DECRYPT" not in may)
        switches = {"k-decrypt": "decrypt-only encrypts", "k-none": "no usage encrypts"}
        if forbidden and not self.is_(switches.get(key, "encrypt-only decrypts")):
            raise Refused("InvalidKeyUsageException")
        plaintext, aad = self._bytes(document, "plaintext"), self._aad(document)
        assert plaintext is not None
        if not plaintext and self.is_("empty plaintext fails"):
            raise RuntimeError("empty")
        if not plaintext and self.is_("refuses an empty plaintext"):
            raise Refused("ValidationException")
        if len(plaintext) > (4096 if self.is_("4096 bytes") else 16384 if self.is_("takes more") else 4300):
            raise Refused("UnsupportedOperationException")
        if self.is_("AAD cut"):
            aad = aad[:8192]
        most = 4096 if self.is_("short AAD") else 65535 if self.is_("takes more") else 8192
        if len(aad) > most and not self.is_("AAD of any length"):
            raise Refused("UnsupportedOperationException")
        metadata = b"" if self.is_("no metadata") else b"v=1"
        if self.is_("long metadata"):
            metadata = bytes(21)
        if self.is_("plaintext in metadata"):
            metadata = plaintext
        iv = bytes(12) if self.is_("fixed IV") else os.urandom(16 if self.is_("16-byte IV") else 12)
        secret = self.secrets["k-default" if self.is_("one key for all") else key]
        sealed = AESGCM(secret).encrypt(iv, plaintext, self._compose(aad, metadata) if len(metadata) < 256 else b"")
        ciphertext, tag = sealed[:-16], sealed[-16:]
        self.issued.append(
            {"ciphertext": ciphertext, "iv": iv, "tag": tag, "aad": aad, "metadata": metadata, "plaintext": plaintext}
        )
        answer = {
            "ciphertext": b64(sealed if self.is_("tag on ciphertext") else ciphertext),
            "initializationVector": b64(iv),
            "authenticationTag": b64(tag),
        }
        if metadata:
            answer["ciphertextMetadata"] = b64(metadata)
        if cdiv and not self.is_("no integrity value"):
            parts = [aad, metadata, iv, ciphertext, tag]
            if self.is_("integrity value with lengths"):
                parts = [self._compose(aad, metadata), iv, ciphertext, tag]
            answer["ciphertextDataIntegrityValue"] = b64(hashlib.sha256(b"".join(parts)).digest())
        return answer

    def _decrypt(self, key: str, document: dict[str, Any]) -> dict[str, Any]:
        if "DECRYPT" not in KEYS[key] and not self.is_("encrypt-only decrypts"):
            raise Refused("InvalidKeyUsageException")
        names = {"ciphertext": "ciphertext", "iv": "initializationVector", "tag": "authenticationTag"}
        given = {name: self._bytes(document, member) for name, member in names.items()}
        given["aad"] = self._aad(document)
        given["metadata"] = self._bytes(document, "ciphertextMetadata") or b""
        for name in ("ciphertext", "iv", "tag", "aad", "metadata"):
            if self.is_(f"{name} unchecked"):
                for one in self.issued:
                    if all(one[other] == given[other] for other in given if other != name):
                        return {"plaintext": b64(one["plaintext"])}
        ciphertext, iv, tag = given["ciphertext"], given["iv"], given["tag"]
        assert ciphertext is not None
        assert iv is not None
        assert tag is not None
        if self.is_("tag on ciphertext"):
            ciphertext = ciphertext[:-16]
        if self.is_("short tags") and tag:
            tag = next((one["tag"] for one in self.issued if one["tag"].startswith(tag)), tag)
        if (
            len(iv) not in (12, 16)
            or len(tag) != 16
            or (len(given["metadata"] or b"") > 20 and not self._metadata_of_any_length)
        ):
            raise Refused("ValidationException")
        if self.is_("decrypts once") and ciphertext in self.opened:
            raise Refused("InvalidCiphertextException")
        self.opened.add(ciphertext)
        secret = self.secrets["k-default" if self.is_("one key for all") else key]
        aad = self._compose(given["aad"] or b"", given["metadata"] or b"") if len(given["metadata"] or b"") < 256 else b""
        try:
            plaintext = AESGCM(secret).decrypt(iv, ciphertext + tag, aad)
        except InvalidTag:
            raise Refused(
                "InternalException" if self.is_("not authentic is internal") else "InvalidCiphertextException"
            ) from None
        return {"plaintext": b64(b"another" if self.is_("another plaintext") else plaintext)}

    @property
    def _metadata_of_any_length(self) -> bool:
        return self.is_("long metadata") or self.is_("plaintext in metadata")
