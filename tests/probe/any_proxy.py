# SPDX-License-Identifier: Apache-2.0
"""A small XKS proxy of its own, right by default and wrong by a switch: what `xksfast test` must find is made here on purpose.

It shares no code with ours. `wrong` holds the names of the switches that are on; FOUND_BY says which case each is meant for.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import hashlib
import hmac
import json
import os
import re
import ssl
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, ClassVar

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

REGION = "us-east-1"
CREDENTIALS = {"A" * 20: "first-" + "a" * 40, "B" * 20: "second-" + "b" * 40}
FOREIGN = {"C" * 20: "foreign-" + "c" * 40}
KEYS = {
    "k-default": ("ENCRYPT", "DECRYPT"), "k-encrypt": ("ENCRYPT",), "k-decrypt": ("DECRYPT",), "k-none": (),
    "k-disabled": ("ENCRYPT", "DECRYPT"), "k-denied": ("ENCRYPT", "DECRYPT"),
}  # fmt: skip
PREFIX = "/any"
API = PREFIX + "/kms/xks/v1"

# switch -> the case that must find it
FOUND_BY = {
    "health fails": "health.answers",
    "no fleet size": "health.members",
    "eleven key managers": "health.members",
    "all unavailable": "health.key-managers",
    "health knows its operations": "health.unknown-operation",
    "any secret": "authentication.wrong-secret",
    "unknown id is invalid": "authentication.unknown-access-key-id",
    "unsigned is served": "authentication.unsigned",
    "no date is served": "authentication.missing-date",
    "host need not be signed": "authentication.unsigned-headers",
    "two headers signed": "authentication.more-signed-headers",
    "any region": "authentication.wrong-region",
    "any service": "authentication.wrong-service",
    "any day": "authentication.wrong-day",
    "body trimmed": "authentication.changed-request",
    "no clock": "authentication.clock-skew",
    "strict clock": "authentication.small-skew",
    "key before signature": "authentication.before-key",
    "body before signature": "authentication.before-body",
    "one credential": "authentication.second-credential",
    "credentials of all stores": "authentication.foreign-credential",
    "AES_128": "metadata.members",
    "unknown key is invalid": "metadata.unknown-key",
    "long key id fails": "metadata.overlong-key-id",
    "no old members": "metadata.old-members",
    "another plaintext": "encrypt.round-trip",
    "tag on ciphertext": "encrypt.members",
    "long metadata": "encrypt.members",
    "plaintext in metadata": "encrypt.hidden",
    "fixed IV": "encrypt.unique-iv",
    "integrity value with lengths": "encrypt.integrity-value",
    "no integrity value": "encrypt.integrity-value",
    "4096 bytes": "encrypt.plaintext-sizes",
    "short AAD": "encrypt.aad-sizes",
    "AAD cut": "encrypt.over-the-limits",
    "AAD of any length": "encrypt.aad-beyond-16-bits",
    "empty plaintext fails": "encrypt.empty-plaintext",
    "ciphertext unchecked": "decrypt.altered-ciphertext",
    "tag unchecked": "decrypt.altered-tag",
    "iv unchecked": "decrypt.altered-iv",
    "aad unchecked": "decrypt.altered-aad",
    "metadata unchecked": "decrypt.altered-metadata",
    "not authentic is internal": "decrypt.altered-tag",
    "AAD and metadata joined": "decrypt.aad-and-metadata",
    "short tags": "decrypt.lengths",
    "decrypts once": "decrypt.again",
    "one key for all": "decrypt.another-key",
    "lenient Base64": "decrypt.unlike-base64",
    "empty body": "bodies.empty",
    "no JSON fails": "bodies.no-json",
    "trailing data": "bodies.trailing-data",
    "repeated members": "bodies.repeated-members",
    "missing members fail": "bodies.missing-members",
    "any algorithm": "bodies.algorithms",
    "no unknown members": "bodies.unknown-members",
    "known operations": "bodies.unknown-operations",
    "ARNs only": "bodies.principals",
    "UUIDs only": "bodies.request-id",
    "no VPC": "bodies.optional-metadata",
    "GET is not found": "http.get",
    "PUT is served": "http.other-methods",
    "unknown path is invalid": "http.unknown-paths",
    "one request a connection": "http.keep-alive",
    "never closes": "http.close",
    "no continue": "http.expect-continue",
    "one read": "http.request-in-pieces",
    "lenient HTTP": "http.malformed",
    "reads all": "http.large-body",
    "health once": "http.still-there",
    "encrypt-only decrypts": "rights.encrypt-only",
    "decrypt-only encrypts": "rights.decrypt-only",
    "no usage encrypts": "rights.no-usage",
    "disabled works": "rights.disabled",
    "policy ignored": "rights.denied",
    "twenty at once": "load.fifty-at-once",
    "over quota is internal": "load.quota",
    "HTML errors": "answers.content-type",
    "empty errors": "answers.json",
    "pretty JSON": "answers.one-line",
    "other error names": "answers.error-names",
    "other statuses": "answers.error-names",
    "long messages": "answers.error-messages",
    "plaintext in messages": "answers.error-messages",
}


# ways of being different that are no wrongness
EXTRA = (
    "no metadata",
    "16-byte IV",
    "takes more",
    "refuses an empty plaintext",
    "tells an empty AAD apart",
    "no Expect",
    "policy on operations",
)


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


class AnyProxy:
    """wrong: switches that are on. quota: requests that are served before all are throttled; 0: any number."""

    def __init__(self, *wrong: str, quota: int = 0) -> None:
        assert set(wrong) <= set(FOUND_BY) | set(EXTRA), wrong
        self.wrong = set(wrong)
        self.quota = quota
        self.secrets = {name: AESGCM.generate_key(256) for name in KEYS}
        self.issued: list[dict[str, Any]] = []
        self.in_flight = 0
        self.encrypted = 0
        self.health_calls = 0
        self.opened: set[bytes] = set()
        self.delay_s: dict[str, float] = {}  # by operation
        self.delayed_calls = -1  # how many; -1: all

    def is_(self, switch: str) -> bool:
        assert switch in FOUND_BY or switch in EXTRA, switch
        return switch in self.wrong

    # --- HTTP

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await self._one(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError, ssl.SSLError):
            pass  # the end, of the connection or of the test
        finally:
            writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Serve one request; whether the connection goes on."""
        if self.is_("one read"):
            data = await reader.read(65536)
            if not data:
                return False
            head, end, rest = data.partition(b"\r\n\r\n")
            if not end:
                await self._write(writer, 400, {"errorName": "ValidationException"})
                return False
            head += end
        else:
            head, rest = await reader.readuntil(b"\r\n\r\n"), b""
        try:
            method, path, headers = self._parse(head)
            length = int(headers.get("content-length", "0").lstrip("+"))
            roomy = any(self.is_(switch) for switch in ("reads all", "AAD of any length", "takes more"))
            if length > (1 << 24 if self.is_("reads all") else 1 << 20 if roomy else 65536):
                raise Refused("ValidationException", 413)
        except Refused as refused:
            await self._write(writer, refused.status, {"errorName": refused.name})
            return False
        if headers.get("expect") == "100-continue" and self.is_("no Expect"):
            await self._write(writer, 417, {"errorName": "ValidationException"})
            return False
        if headers.get("expect") == "100-continue" and not self.is_("no continue"):
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = rest if len(rest) >= length else rest + await reader.readexactly(length - len(rest))
        status, document = await self._answer(method, path, headers, body)
        if status == 405 and self.is_("GET is not found"):
            status, document = 404, {"errorName": "InvalidUriPathException"}
        await self._write(writer, status, document, head_only=method == "HEAD")
        closes = headers.get("connection") == "close" and not self.is_("never closes")
        return not closes and method != "HEAD" and not self.is_("one request a connection")

    def _parse(self, head: bytes) -> tuple[str, str, dict[str, str]]:
        lines = head.decode("latin-1").split("\r\n")[:-2]
        lenient = self.is_("lenient HTTP")
        line = re.fullmatch(r"([A-Z]+) ([!-~]+) HTTP/1\.1", lines[0])
        if line is None:
            raise Refused("ValidationException")
        headers: dict[str, str] = {}
        names = []
        for text in lines[1:]:
            space = " *" if lenient else ""
            found = re.fullmatch(rf"([!#$%&'*+.^_`|~0-9A-Za-z-]+){space}:[ \t]*([^\x00-\x08\x0a-\x1f\x7f]*)", text)
            if found is None:
                if lenient:
                    continue
                raise Refused("ValidationException")
            names.append(found[1].lower())
            headers.setdefault(found[1].lower(), found[2].strip())
        bad_length = not re.fullmatch(r"[0-9]{1,15}", headers.get("content-length", "0"))
        if not lenient and (names.count("host") != 1 or names.count("content-length") > 1 or bad_length):
            raise Refused("ValidationException")
        return line[1], line[2], headers

    async def _write(self, writer: asyncio.StreamWriter, status: int, document: Any, *, head_only: bool = False) -> None:
        content_type = "application/json"
        body = json.dumps(document, indent=2 if self.is_("pretty JSON") else None).encode()
        if status >= 400 and self.is_("HTML errors"):
            content_type = "text/html"
        if status >= 400 and self.is_("empty errors"):
            body = b""
        head = f"HTTP/1.1 {status} X\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + (b"" if head_only else body))
        await writer.drain()

    async def _answer(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, dict[str, Any]]:
        self.in_flight += 1
        try:
            if self.is_("twenty at once"):
                await asyncio.sleep(0.05)
                if self.in_flight > 20:
                    raise Refused("InternalException")
            operation = path.rpartition("/")[2]
            if operation in self.delay_s and self.delayed_calls:
                self.delayed_calls -= 1
                await asyncio.sleep(self.delay_s[operation])
            return 200, self._operation(method, path, headers, body)
        except Refused as refused:
            return self._refusal(refused, body)
        except Exception:
            return 500, {"errorName": "InternalException"}
        finally:
            self.in_flight -= 1

    def _refusal(self, refused: Refused, body: bytes) -> tuple[int, dict[str, Any]]:
        document = {"errorName": refused.name, "errorMessage": "A rule was broken"}
        status = refused.status
        if self.is_("other error names") and refused.name == "ValidationException":
            document["errorName"] = "BadRequestException"
        if self.is_("other statuses") and refused.name == "ValidationException":
            status = 422
        if self.is_("long messages"):
            document["errorMessage"] = "x" * 512
        if self.is_("plaintext in messages"):
            with contextlib.suppress(ValueError, TypeError, KeyError):
                document["errorMessage"] = "cannot use " + json.loads(body)["plaintext"]
        return status, document

    # --- the API

    def _operation(self, method: str, path: str, headers: dict[str, str], body: bytes) -> dict[str, Any]:
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


@contextlib.contextmanager
def serving(proxy: AnyProxy, context: ssl.SSLContext | None = None) -> Iterator[int]:
    """Serve on a free port of 127.0.0.1, in a thread of its own; the port."""
    ready: list[int] = []
    started = threading.Event()
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()

    async def main() -> None:
        server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0, ssl=context, limit=1 << 20)
        ready.append(server.sockets[0].getsockname()[1])
        started.set()
        await stop.wait()
        server.close()
        pending = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)

    thread = threading.Thread(target=lambda: loop.run_until_complete(main()), daemon=True)
    thread.start()
    try:
        assert started.wait(10)
        yield ready[0]
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)
        loop.close()
