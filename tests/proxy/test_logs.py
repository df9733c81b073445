# SPDX-License-Identifier: Apache-2.0
"""What is logged, and what never is."""

from __future__ import annotations

import base64
import json
import socket
import threading
import time
from pathlib import Path

import pytest

from tests.client import b64
from tests.servers import wait_until
from tests.setups import Setup

requirement = pytest.mark.requirement

MARKER = b"PLANTED-MARKER-0123456789"


@requirement(50, 83, 146)
@pytest.mark.parametrize("key_source", ["local", "softhsm"])
def test_nothing_secret_is_ever_printed(tmp_path: Path, key_source: str) -> None:
    setup = Setup(tmp_path)
    if key_source == "softhsm":
        setup.use_softhsm()
    setup.config["proxy"]["log_requests"] = True
    planted = {b64(MARKER).encode(), MARKER, MARKER.hex().encode(), *(s.encode() for s in setup.secrets.values())}
    signatures = []
    with setup.running() as process:
        client = setup.client()
        sign = client.target.sign

        def signing(path: str, body: bytes) -> dict[str, str]:
            headers = sign(path, body)
            signatures.append(headers["Authorization"].rpartition("=")[2].encode())
            return headers

        object.__setattr__(client, "target", type("T", (), {"sign": staticmethod(signing), "path": client.target.path})())
        document = client.valid("encrypt") | {"plaintext": b64(MARKER), "additionalAuthenticatedData": b64(MARKER)}
        encrypted = client.call("encrypt", document).document
        back = client.decrypt_document(encrypted, b64(MARKER))
        assert base64.b64decode(client.call("decrypt", back).document["plaintext"]) == MARKER
        # and everything again in ways that fail, where logs say most
        client.call("decrypt", back, authenticationTag=b64(bytes(16)))
        client.call("encrypt", document, encryptionAlgorithm=MARKER.decode())
        client.call("encrypt", document, key="unknown")
        client.post(client.path("encrypt"), b'{"plaintext": "' + b64(MARKER).encode())
        client.post(client.path("encrypt"), MARKER)
        headers = signing(client.path("encrypt"), b"other")
        assert client.send("POST", client.path("encrypt"), b64(MARKER).encode(), headers).status == 401
        planted |= {encrypted[name].encode() for name in ("ciphertext", "authenticationTag")}
        wait_until(lambda: len(process.events("request")) >= 8, "all are logged")
        client.close()
    printed = process.log_file.read_bytes() + process.stdout_file.read_bytes()
    assert len(signatures) >= 8
    for secret in planted | set(signatures):
        assert secret not in printed
    for name in ("pin", "master.key"):
        path = setup.directory / name
        if path.exists() and len(path.read_bytes().strip()) > 8:
            assert path.read_bytes().strip() not in printed


@requirement(37, 72, 89, 145, 148, 149)
def test_a_refused_request_is_one_line_with_everything_to_find_it_by(tmp_path: Path) -> None:
    setup = Setup(tmp_path)
    setup.use_softhsm()
    with setup.running() as process:
        client = setup.client()
        assert client.call("encrypt").status == 200
        document = client.valid("decrypt")
        document["requestMetadata"]["kmsRequestId"] = "find-me"
        assert client.call("decrypt", document, authenticationTag=b64(bytes(16))).status == 400
        (line,) = wait_until(lambda: process.events("request"), "logged")
        client.close()
    assert line["kms_request_id"] == "find-me"
    assert line["operation"] == "Decrypt"
    assert line["key_store"] == "one"
    assert line["external_key_id"] == "k1"
    assert line["partition"] == "p0"
    assert line["result"] == "InvalidCiphertextException"
    assert line["http_status"] == 400
    assert "CKR_" in line["cause"]
    assert 0 < line["us"] < 1_000_000
    assert line["level"] == "warning"


@requirement(108, 145)
def test_the_log_says_why_authentication_failed_and_the_answer_does_not(tmp_path: Path) -> None:
    setup = Setup(tmp_path)
    with setup.running() as process:
        unknown, known = setup.client(credential=1), setup.client(credential=0)
        object.__setattr__(known.target, "secret_access_key", "wrong")
        answers = [unknown.call("health"), known.call("health")]
        lines = wait_until(lambda: len(process.events("request")) == 2 and process.events("request"), "logged")
        unknown.close()
        known.close()
    assert answers[0].document == answers[1].document
    assert [line["cause"] for line in lines] == ["unknown_access_key_id", "wrong_signature"]


@requirement(148)
def test_every_request_is_logged_when_asked_for(tmp_path: Path) -> None:
    setup = Setup(tmp_path)
    setup.config["proxy"]["log_requests"] = True
    with setup.running() as process:
        client = setup.client()
        for operation in ("encrypt", "metadata", "health"):
            client.call(operation)
        lines = wait_until(lambda: len(process.events("request")) == 3 and process.events("request"), "logged")
        client.close()
    assert [(line["operation"], line["result"]) for line in lines] == [
        ("Encrypt", "ok"), ("GetKeyMetadata", "ok"), ("GetHealthStatus", "ok"),
    ]  # fmt: skip


def raw_request(setup: Setup, *, signed: bool) -> bytes:
    """A GetKeyMetadata as bytes, with a signature that is right or wrong."""
    client = setup.client()
    path, body = client.path("metadata"), json.dumps(client.valid("metadata")).encode()
    headers = client.target.sign(path, body if signed else b"other") | {"Content-Length": str(len(body))}
    return (f"POST {path} HTTP/1.1\r\n" + "".join(f"{n}: {v}\r\n" for n, v in headers.items()) + "\r\n").encode() + body


@pytest.mark.parametrize("kind", ["wrong signature", "unknown path", "no HTTP", "no TLS"])
def test_strangers_write_a_few_lines_a_second_and_a_count_of_the_others(tmp_path: Path, kind: str) -> None:
    setup = Setup(tmp_path)
    setup.use_tls()
    event, result, port, connections, each = {
        "wrong signature": ("request", "AuthenticationFailedException", setup.port, 70, 15),  # the 16th would be the last
        "unknown path": ("request", "InvalidUriPathException", setup.port, 70, 15),
        "no HTTP": ("request", "ValidationException", setup.port, 200, 1),
        "no TLS": ("tls_handshake_refused", None, setup.tls_port, 200, 1),
    }[kind]
    with setup.running() as process:
        raw = {
            "wrong signature": raw_request(setup, signed=False),
            "unknown path": b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n",
        }.get(kind, b"no such thing\r\n\r\n")
        began = time.monotonic()
        for _ in range(connections):
            with socket.create_connection(("127.0.0.1", port), timeout=10) as stranger:
                send = threading.Thread(target=stranger.sendall, args=(raw * each,))
                send.start()
                if each > 1:
                    answered = b""
                    while answered.count(b"HTTP/1.1 ") < each:
                        received = stranger.recv(65536)
                        assert received, "every request is answered before the connection ends"
                        answered += received
                else:
                    while stranger.recv(65536):
                        pass
                send.join()
        client = setup.client()  # those who have signed are not limited
        for _ in range(30):
            assert client.call("encrypt", key="unknown").status == 404
        client.close()

        def written() -> list[dict[str, object]]:
            return [line for line in process.events(event) if line.get("result") == result]

        def left_out() -> int:
            return sum(line["suppressed"] for line in process.events("lines_left_out") if line.get("result") == result)

        wait_until(lambda: len(written()) + left_out() == connections * each, "each is a line or counted", 20)
        seconds = time.monotonic() - began
        assert len(written()) <= 5 * (seconds + 1)
        assert left_out() > 0
        assert {line["of"] for line in process.events("lines_left_out")} == {event}
        signed = wait_until(lambda: len(process.events("request")) >= 30 and process.events("request"), "logged")
        assert len([line for line in signed if line["result"] == "KeyNotFoundException"]) == 30


@requirement(143, 145)
def test_who_was_refused_by_its_principal_is_in_the_log_whole(tmp_path: Path) -> None:
    setup = Setup(tmp_path)
    setup.stores["key_stores"]["one"]["allowed_principals"] = ["arn:aws:iam::111122223333:*"]
    principal = "arn:aws:iam::444455556666:role/" + "path/" * 100 + "last"
    with setup.running() as process:
        client = setup.client()
        document = client.valid("encrypt")
        document["requestMetadata"] |= {"awsPrincipalArn": principal, "kmsRequestId": "find-me"}
        assert client.call("encrypt", document).status == 403
        document["requestMetadata"]["awsPrincipalArn"] = "arn:aws:iam::111122223333:role/" + "x" * 2000
        assert client.call("encrypt", document, key="unknown").status == 404
        refused, other = wait_until(lambda: len(process.events("request")) == 2 and process.events("request"), "logged")
        client.close()
    assert refused["aws_principal_arn"] == principal
    assert (refused["operation"], refused["key_store"], refused["external_key_id"]) == ("Encrypt", "one", "k1")
    assert (refused["kms_request_id"], refused["http_status"]) == ("find-me", 403)
    assert "aws_principal_arn" not in other
