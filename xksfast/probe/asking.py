# SPDX-License-Identifier: Apache-2.0
"""What a case asks with: valid requests by default, each part replaceable, every call recorded, and expectations in words.

A newcomer's trap: nothing of a request or an answer may reach a problem's text but statuses, error names, member names and
numbers: the texts end in reports that people pass around.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
import ssl
import time
import uuid
from dataclasses import dataclass, field
from typing import Any

from xksfast.errors import XksErrorName
from xksfast.probe.case import Broken, Case
from xksfast.probe.client import Answer, Closed, Connection, client_context, request_bytes
from xksfast.probe.signing import Signing, signed_headers
from xksfast.probe.target import API_PATH, Target

OPERATIONS = ("health", "metadata", "encrypt", "decrypt")
KMS_OPERATIONS = {"health": "KmsHealthCheck", "metadata": "CreateKey", "encrypt": "Encrypt", "decrypt": "Decrypt"}
AAD = b"project=nile,department=marketing"
THROTTLED_TRIES = 4
THROTTLED_WAIT_S = 0.25
PLAIN = Signing()
_REQUEST_ID = re.compile(rb'"kmsRequestId": ?"([0-9a-f-]{36})"')


@dataclass(frozen=True)
class Call:
    """One call as it is reported. answer: None when none came; problem then says what happened instead.

    kms_request_id: by which the proxy's log knows it; "" when none was sent.
    """

    case: str
    label: str
    answer: Answer | None
    problem: str = ""
    kms_request_id: str = ""

    @property
    def ms(self) -> float:
        """Of the exchange alone, 0 without an answer."""
        return self.answer.ms if self.answer is not None else 0.0


@dataclass(frozen=True)
class Sealed:
    """An Encrypt's input and output, decoded. metadata, aad: None when absent."""

    plaintext: bytes
    aad: bytes | None
    ciphertext: bytes
    iv: bytes
    tag: bytes
    metadata: bytes | None
    cdiv: str | None = None

    def expected_cdiv(self) -> str:
        """SHA-256 over AAD, metadata, IV, ciphertext and tag, in Base64. Source: spec v1.0.3, Appendix C."""
        parts = (self.aad or b"", self.metadata or b"", self.iv, self.ciphertext, self.tag)
        return b64(hashlib.sha256(b"".join(parts)).digest())


@dataclass
class Asking:
    """The requests of one run. problems, slow (what took too long), notes, figures: of the case that runs now."""

    target: Target
    history: list[Call] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    slow: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    figures: dict[str, float] = field(default_factory=dict)
    case: Case | None = None
    sent_plaintexts: set[str] = field(default_factory=set)
    _kept: Connection | None = None
    _context: ssl.SSLContext | None = None
    _sealed: Sealed | None = None

    def begin(self, case: Case) -> None:
        """The next case: nothing is wrong with it yet."""
        self.case = case
        self.problems, self.slow, self.notes, self.figures = [], [], [], {}

    # --- connections

    def context(self) -> ssl.SSLContext | None:
        """TLS as KMS does it; None for plain HTTP."""
        target = self.target
        if target.address.tls and self._context is None:
            self._context = client_context(
                str(target.ca_file) if target.ca_file else None,
                str(target.client_certificate) if target.client_certificate else None,
                str(target.client_key) if target.client_key else None,
            )
        return self._context

    def connect(self) -> Connection:
        """A connection of its own."""
        return Connection(self.target.address, self.context())

    def close(self) -> None:
        """Let the kept connection go."""
        if self._kept is not None:
            self._kept.close()
            self._kept = None

    # --- requests

    def path(self, operation: str, key: str | None = None) -> str:
        """The URI path of an operation, of the default key unless another one is given."""
        base = self.target.address.prefix + API_PATH
        return f"{base}/health" if operation == "health" else f"{base}/keys/{key or self.target.keys.default}/{operation}"

    def metadata(self, operation: str) -> dict[str, Any]:
        """A valid requestMetadata with a request id of its own."""
        found = {"kmsRequestId": str(uuid.uuid4()), "kmsOperation": KMS_OPERATIONS[operation]}
        if operation != "health":
            found["awsPrincipalArn"] = self.target.principal
        if operation in ("encrypt", "decrypt"):
            account = "123456789012"
            found["kmsKeyArn"] = f"arn:aws:kms:{self.target.region}:{account}:key/1234abcd-12ab-34cd-56ef-1234567890ab"
        return found

    def encrypt_document(self, plaintext: bytes, aad: bytes | None = AAD, *, cdiv: bool = False) -> dict[str, Any]:
        """An Encrypt body. cdiv: as for GenerateDataKey."""
        document: dict[str, Any] = {
            "requestMetadata": self.metadata("encrypt"),
            "plaintext": b64(plaintext),
            "encryptionAlgorithm": "AES_GCM",
        }
        if len(plaintext) >= 12:
            self.sent_plaintexts.add(document["plaintext"])
        if aad is not None:
            document["additionalAuthenticatedData"] = b64(aad)
        if cdiv:
            document["requestMetadata"]["kmsOperation"] = "GenerateDataKey"
            document["ciphertextDataIntegrityValueAlgorithm"] = "SHA_256"
        return document

    def decrypt_document(self, sealed: Sealed) -> dict[str, Any]:
        """The Decrypt body for what an Encrypt gave."""
        document: dict[str, Any] = {
            "requestMetadata": self.metadata("decrypt"),
            "ciphertext": b64(sealed.ciphertext),
            "encryptionAlgorithm": "AES_GCM",
            "initializationVector": b64(sealed.iv),
            "authenticationTag": b64(sealed.tag),
        }
        if sealed.aad is not None:
            document["additionalAuthenticatedData"] = b64(sealed.aad)
        if sealed.metadata is not None:
            document["ciphertextMetadata"] = b64(sealed.metadata)
        return document

    def document(self, operation: str) -> dict[str, Any]:
        """A valid body."""
        if operation == "encrypt":
            return self.encrypt_document(b"xksfast test: a plaintext")
        if operation == "decrypt":
            try:
                return self.decrypt_document(self.sealed())
            except Broken:  # what is refused for another reason can be asked all the same
                return self.decrypt_document(Sealed(b"", AAD, bytes(16), bytes(12), bytes(16), None))
        return {"requestMetadata": self.metadata(operation)}

    def operations(self) -> tuple[str, ...]:
        """Those that can be asked: without a key, health alone."""
        return OPERATIONS if self.target.keys.default else OPERATIONS[:1]

    def sealed(self) -> Sealed:
        """One Encrypt's result for all cases that only change it."""
        if self._sealed is None:
            self._sealed = self.encrypt(b"xksfast test: sealed once for many cases")
        return self._sealed

    # --- calls

    def headers(self, path: str, body: bytes, signing: Signing = PLAIN) -> dict[str, str]:
        """The headers of a signed POST."""
        target = self.target
        return signed_headers(path, body, target.address.authority, target.credential, target.region, signing)

    def post(self, path: str, document: Any, *, signing: Signing = PLAIN, label: str = "") -> Answer:
        """One signed call on the kept connection. document: bytes as they are, anything else as JSON.

        A throttled call is made again, a few times: what a quota refuses says nothing about the rule that is tried.
        """
        body = document if isinstance(document, bytes) else json.dumps(document, separators=(",", ":")).encode()
        for attempt in range(THROTTLED_TRIES):
            answer = self.send("POST", path, self.headers(path, body, signing), body, label=label or path.rpartition("/")[2])
            if answer.status != 429:
                break
            time.sleep(THROTTLED_WAIT_S * (attempt + 1))
        return answer

    def call(self, operation: str, document: Any = None, *, key: str | None = None, signing: Signing = PLAIN) -> Answer:
        """One signed call of an operation, valid unless a document says otherwise."""
        body = self.document(operation) if document is None else document
        return self.post(self.path(operation, key), body, signing=signing, label=operation)

    def send(self, method: str, path: str, headers: dict[str, str], body: bytes, *, label: str) -> Answer:
        """One request with these headers on the kept connection, which is made anew when the proxy has let it go."""
        data = request_bytes(method, path, headers, body)
        return self.raw(data, label=label, head_only=method == "HEAD")

    def raw(self, data: bytes, *, label: str, head_only: bool = False) -> Answer:
        """Bytes as they are on the kept connection."""
        try:
            while True:
                if self._kept is None:
                    self._kept = self.connect()
                used = self._kept.calls > 0
                try:
                    answer = self._kept.call(data, head_only=head_only)
                    break
                except Closed as closed:
                    self.close()
                    if not used or closed.began:
                        raise
        except Exception as error:
            self.close()
            self.record(label, data, None, str(error))
            raise
        if answer.closes or head_only:
            self.close()
        self.record(label, data, answer)
        return answer

    def on(self, connection: Connection, data: bytes, *, label: str) -> Answer:
        """Bytes as they are on a connection of the case's own."""
        try:
            answer = connection.call(data)
        except Exception as error:
            self.record(label, data, None, str(error))
            raise
        self.record(label, data, answer)
        return answer

    def record(self, label: str, data: bytes, answer: Answer | None, problem: str = "") -> None:
        """Note a call for the report, and for the cases that look at all answers."""
        found = _REQUEST_ID.search(data)
        request_id = found[1].decode() if found else ""
        self.history.append(Call(self.case.name if self.case else "", label, answer, problem, request_id))

    # --- expectations

    def wrong(self, text: str) -> None:
        """Note what is wrong; the case goes on."""
        self.problems.append(text)

    def expect_ok(self, answer: Answer, what: str) -> dict[str, Any]:
        """The document of a 200; Broken otherwise."""
        document = answer.document
        if answer.status != 200:
            raise Broken(f"{what}: answered {answer}, right is 200")
        if document is None:
            raise Broken(f"{what}: answered 200 with a body that is no JSON object")
        return document

    def expect_error(self, answer: Answer, what: str, *names: XksErrorName) -> None:
        """Note a problem unless the answer is one of these errors, with its own HTTP status."""
        if not any((answer.status, answer.error_name) == (name.http_status, name.error_name) for name in names):
            right = " or ".join(f"{name.http_status} {name.error_name}" for name in names)
            self.wrong(f"{what}: answered {answer}, right is {right}")

    def encrypt(self, plaintext: bytes, aad: bytes | None = AAD, *, cdiv: bool = False, key: str | None = None) -> Sealed:
        """Encrypt, decoded and its shape checked; Broken when it is not served."""
        document = self.expect_ok(self.call("encrypt", self.encrypt_document(plaintext, aad, cdiv=cdiv), key=key), "encrypt")
        parts = {name: member(document, name) for name in ("ciphertext", "initializationVector", "authenticationTag")}
        metadata = member(document, "ciphertextMetadata") if document.get("ciphertextMetadata") is not None else None
        value = document.get("ciphertextDataIntegrityValue")
        return Sealed(
            plaintext,
            aad,
            parts["ciphertext"],
            parts["initializationVector"],
            parts["authenticationTag"],
            metadata,
            value if isinstance(value, str) else None,
        )

    def decrypts_to(self, sealed: Sealed, what: str, *, key: str | None = None) -> None:
        """Note a problem unless the Decrypt gives the plaintext back."""
        document = self.expect_ok(self.call("decrypt", self.decrypt_document(sealed), key=key), what)
        if member(document, "plaintext") != sealed.plaintext:
            self.wrong(f"{what}: another plaintext came back than was encrypted")


def b64(data: bytes) -> str:
    """Base64 as the API has it: standard alphabet, padded."""
    return base64.b64encode(data).decode()


def member(document: dict[str, Any], name: str) -> bytes:
    """A Base64 member of an answer, decoded; Broken unless it is there and strictly Base64."""
    value = document.get(name)
    if not isinstance(value, str):
        raise Broken(f"the answer has no {name}")
    try:
        data = base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        data = None
    if data is None or b64(data) != value:
        raise Broken(f"{name} of the answer is not standard, padded Base64")
    return data
