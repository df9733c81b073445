# SPDX-License-Identifier: Apache-2.0
"""What is the same for all routes: problems, bounds, Idempotency-Key, the log, the description, the listener's end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import ssl
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.admin.api.rig import Rig, running
from tests.admin.api.test_stores import LOCAL, new_store
from xksfast import line_limit
from xksfast.admin.api import guard, server
from xksfast.admin.api.guard import MAX_APPLY_BYTES, MAX_BODY_BYTES
from xksfast.admin.api.replays import REPLAYED_HEADER, Replays
from xksfast.admin.api.server import serve_api
from xksfast.admin.block_journal import PendingBlock
from xksfast.admin.peers import MAC_HEADER, MAC_LABEL, PEER_PATH, TIME_HEADER, signed_part
from xksfast.errors import OperatorError
from xksfast.log import Log

PROBLEM_MEMBERS = {"type", "title", "status", "detail", "rule", "field", "why", "next", "errors"}


def is_problem(answer: httpx.Response, status: int, rule: str) -> dict[str, object]:
    assert answer.headers["content-type"] == "application/problem+json"
    document = answer.json()
    assert (answer.status_code, document["status"], document["rule"]) == (status, status, rule), document
    assert document.keys() == PROBLEM_MEMBERS
    assert document["type"] == f"urn:xksfast:problem:{rule}"
    assert document["detail"]
    assert document["title"]
    return dict(document)


def test_what_is_not_there_is_a_problem_too(admin: httpx.Client) -> None:
    document = is_problem(admin.get("/v1/store"), 404, "no-such-route")
    assert document["next"] == "Did you mean '/v1/stores'?"
    is_problem(admin.get("/"), 404, "no-such-route")
    refused = admin.put("/v1/stores", json={})
    is_problem(refused, 405, "method-not-allowed")
    assert refused.headers["allow"] == "GET, POST"


@pytest.mark.parametrize(
    ("body", "rule"),
    [
        (b"", "body-missing"),
        (b"{", "body-no-json"),
        (b"\xff\xfe", "body-no-json"),
        (b"[]", "field-invalid"),
        (b'"text"', "field-invalid"),
        (b"[" * 100_000, "body-unreadable"),
        (b'{"name": "\\ud800", "region": "us-east-1", "key_source": "local"}', "field-invalid"),
    ],
)
def test_a_body_that_cannot_be_read_is_refused(admin: httpx.Client, body: bytes, rule: str) -> None:
    is_problem(admin.post("/v1/stores", content=body, headers={"Content-Type": "application/json"}), 422, rule)


def test_a_query_parameter_with_a_slip_is_refused_and_nothing_is_done(admin: httpx.Client) -> None:
    admin.post("/v1/stores", json={"name": "kept", **LOCAL})
    document = is_problem(admin.delete("/v1/stores/kept?dryrun=true"), 422, "parameter-unknown")
    assert (document["field"], document["next"]) == ("dryrun", "Those that there are: dry_run")
    assert "did you mean 'dry_run'?" in str(document["detail"])
    assert admin.get("/v1/stores/kept").status_code == 200
    is_problem(admin.get("/v1/stores?blockd=true"), 422, "parameter-unknown")
    is_problem(admin.post("/v1/stores/kept/block?reason=drill"), 422, "parameter-unknown")


@pytest.mark.parametrize("member", ["max_credentials", "rotate_credential_days", "stale_after_s"])
@pytest.mark.parametrize("value", [True, "12", 12.0])
def test_what_is_no_whole_number_is_refused(admin: httpx.Client, member: str, value: object) -> None:
    document = is_problem(admin.post("/v1/stores", json={"name": "s", **LOCAL, member: value}), 422, "field-invalid")
    assert document["field"] == member


def test_what_is_wrong_with_a_list_or_an_object_is_said_in_the_words_of_json(admin: httpx.Client) -> None:
    wrong = {"name": "s", **LOCAL, "tags": 1, "allowed_principals": 1, "credentials": ["x"]}
    errors = is_problem(admin.post("/v1/stores", json=wrong), 422, "field-invalid")["errors"]
    assert isinstance(errors, list)
    assert {error["field"]: error["problem"] for error in errors} == {
        "tags": "must be a JSON object",
        "allowed_principals": "must be a list",
        "credentials.0": "it must be a JSON object",
    }
    many = admin.post("/v1/stores", json={"name": "s", **LOCAL, "tags": {str(number): "" for number in range(60)}}).json()
    assert many["detail"] == "tags: it must have at most 50 items, not more"


@pytest.mark.parametrize("path", ["/v1/stores/{}/credentials", "/v1/stores/{}/block", "/v1/stores/{}/keys/k/rotate"])
@pytest.mark.parametrize("name", ["absent", "a" * 5000, "%00"])
def test_what_does_not_exist_is_not_found_whatever_its_name(admin: httpx.Client, path: str, name: str) -> None:
    document = is_problem(admin.post(path.format(name)), 404, "no-such-object")
    assert document["next"] == "`xksfast store list` shows those that there are"
    assert len(str(document["detail"])) < 300


def test_all_wrong_members_are_named_at_once(admin: httpx.Client) -> None:
    document = is_problem(admin.post("/v1/stores", json={"name": "", "region": 7, "colour": "blue"}), 422, "field-invalid")
    errors = document["errors"]
    assert isinstance(errors, list)
    assert {error["field"]: error["rule"] for error in errors} == {
        "name": "field-invalid",
        "region": "field-invalid",
        "colour": "field-unknown",
    }


def test_the_value_is_not_echoed_since_it_may_be_a_secret(admin: httpx.Client) -> None:
    secret = "Hunter2-Hunter2-Hunter2"
    for credential in (
        {"access_key_id": "A" * 20, "secret_access_key": secret},
        {"access_key_id": "A" * 20, "secret": secret},
        secret,
    ):
        answer = admin.post("/v1/stores", json={"name": "s", "credentials": [credential], **LOCAL})
        assert answer.status_code == 422
        assert secret not in answer.text


PLACES = (
    lambda secret: ("POST", "/v1/stores", {"name": f"!{secret}", **LOCAL}),
    lambda secret: ("POST", "/v1/stores", {"name": "s", "region": "us-east-1", "key_source": secret}),
    lambda secret: (
        "POST",
        "/v1/stores",
        {"name": "s", "credentials": [{"access_key_id": secret, "secret_access_key": secret}], **LOCAL},
    ),
    lambda secret: ("POST", "/v1/stores", {"name": "s", "credentials": secret, **LOCAL}),
    lambda secret: ("POST", "/v1/stores/absent/credentials", {"access_key_id": "A" * 20, "secret_access_key": [secret]}),
    lambda secret: ("POST", "/v1/stores/absent/credentials", secret),
    lambda secret: (
        "POST",
        "/v1/apply",
        {"key_stores": {"s": {**LOCAL, "credentials": [{"access_key_id": secret, "secret_access_key": secret}]}}},
    ),
    lambda secret: ("PATCH", "/v1/stores/absent", {"max_credentials": secret}),
    lambda secret: ("POST", "/v1/bulk", {"action": secret}),
    lambda secret: (
        "POST",
        "/v1/apply",
        {"key_stores": {"s": {"region": "us-east-1", "credentials": [{"secret_access_key": secret}]}}},
    ),
)


@given(st.sampled_from(PLACES), st.text("ABCDEFGHIJKLMNOPQRSTUVWXYZ234567+/", min_size=43, max_size=64))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_problem_of_a_value_quotes_it(
    admin: httpx.Client, place: Callable[[str], tuple[str, str, object]], secret: str
) -> None:
    method, path, body = place(secret)
    answer = admin.request(method, path, json=body)
    assert 400 <= answer.status_code < 500
    assert secret not in answer.text


@pytest.mark.parametrize(("path", "limit"), [("/v1/stores", MAX_BODY_BYTES), ("/v1/apply", MAX_APPLY_BYTES)])
def test_a_body_over_the_limit_is_refused_with_and_without_a_length(rig: Rig, path: str, limit: int) -> None:
    with rig.client() as client:
        headers = {"Content-Type": "application/json"}
        is_problem(client.post(path, content=b" " * (limit + 1), headers=headers), 413, "body-too-large")
    chunk = b" " * 65536

    def chunks() -> object:
        for _ in range(limit // len(chunk) + 1):
            yield chunk

    with rig.client() as client:
        is_problem(client.post(path, content=chunks(), headers=headers), 413, "body-too-large")  # type: ignore[arg-type]
    with rig.client() as client:
        just = client.post(path, content=b" " * limit, headers=headers)
        assert just.status_code == 422


def test_no_body_is_read_of_who_has_no_token(rig: Rig) -> None:
    """The answer comes before the body was sent."""
    with (
        socket.create_connection(rig.server.address, timeout=10) as plain,
        rig.trust.wrap_socket(plain, server_hostname="localhost") as sock,
    ):
        sock.sendall(
            b"POST /v1/apply HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 9000000\r\n\r\n{"
        )
        assert sock.recv(4096).split(b" ", 2)[1] in (b"401", b"429")


def connected(rig: Rig) -> ssl.SSLSocket:
    plain = socket.create_connection(rig.server.address, timeout=10)
    return rig.trust.wrap_socket(plain, server_hostname="localhost")


@pytest.mark.parametrize(
    "sent", [b"", b"GET /v1/whoami HTTP/1.1\r\nHost: loc", b"GET /openapi.json HTTP/1.1\r\nHost: l\r\n\r\nGET /"]
)
def test_whoever_does_not_finish_a_request_is_let_go(rig: Rig, monkeypatch: pytest.MonkeyPatch, sent: bytes) -> None:
    monkeypatch.setattr(server, "HEADER_PATIENCE_S", 0.3)
    with connected(rig) as sock:
        sock.sendall(sent)
        with contextlib.suppress(ConnectionResetError, ssl.SSLError):
            while sock.recv(65536):
                pass


def test_a_body_that_does_not_come_is_not_waited_for(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "BODY_PATIENCE_S", 0.3)
    head = f"POST /v1/stores HTTP/1.1\r\nHost: l\r\nAuthorization: Bearer {rig.tokens['admin']}\r\nContent-Type: application/json\r\n"
    with connected(rig) as sock:
        sock.sendall(head.encode() + b"Content-Length: 100\r\n\r\n{")
        answer = b"".join(iter(lambda: sock.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 408")
    assert b"body-too-slow" in answer


# --- Idempotency-Key


def test_a_repeated_request_is_answered_with_the_first_answer_and_its_secret(rig: Rig, admin: httpx.Client) -> None:
    body = {"name": "once", "uri_path_prefix": "/once", **LOCAL}
    headers = {"Idempotency-Key": "7f2c"}
    first = admin.post("/v1/stores", json=body, headers=headers)
    again = admin.post("/v1/stores", json=body, headers=headers)
    assert first.status_code == again.status_code == 201
    assert REPLAYED_HEADER not in first.headers
    assert again.headers[REPLAYED_HEADER] == "true"
    assert again.json() == first.json()
    secret = first.json()["credential"]["secret_access_key"]
    assert secret in again.text
    kept = b"".join(file.read_bytes() for file in rig.directory.glob("xksfast.db*"))
    assert secret.encode() not in kept
    is_problem(admin.post("/v1/stores", json={**body, "description": "x"}, headers=headers), 409, "idempotency-key-reused")
    is_problem(admin.post("/v1/stores/once/credentials", headers=headers), 409, "idempotency-key-reused")
    with rig.client("operator") as other:  # whose key it is counts too
        assert other.post("/v1/stores/once/credentials", headers=headers).status_code == 201
    is_problem(admin.post("/v1/stores", json=body, headers={"Idempotency-Key": "x" * 129}), 422, "idempotency-key-invalid")


def test_a_block_is_carried_out_again_whatever_its_key(admin: httpx.Client) -> None:
    new_store(admin, "reblocked")
    for _ in range(2):
        answer = admin.post("/v1/stores/reblocked/block", headers={"Idempotency-Key": "block"})
        assert REPLAYED_HEADER not in answer.headers
        assert admin.get("/v1/stores/reblocked").json()["blocked"] is True
        assert admin.post("/v1/stores/reblocked/unblock", headers={"Idempotency-Key": "unblock"}).status_code == 200
        assert admin.get("/v1/stores/reblocked").json()["blocked"] is False


def test_a_refused_request_may_be_tried_again_with_its_key(rig: Rig, admin: httpx.Client) -> None:
    body = {"name": "second-try", "uri_path_prefix": "/second-try", "region": "us-east-1", "partition_group": "main"}
    headers = {"Idempotency-Key": "second"}
    rig.source_keys.problem = "partition p0 cannot be reached"
    assert admin.post("/v1/stores", json=body, headers=headers).status_code == 503
    rig.source_keys.problem = ""
    assert admin.post("/v1/stores", json=body, headers=headers).status_code == 201


def test_the_same_request_at_the_same_time_is_carried_out_once(rig: Rig, admin: httpx.Client) -> None:
    new_store(admin, "hurried", max_credentials=20)

    def rotate(_: int) -> httpx.Response:
        with rig.client() as client:
            return client.post("/v1/stores/hurried/credentials", headers={"Idempotency-Key": "hurry"})

    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(rotate, range(6)))
    assert len({answer.text for answer in answers}) == 1
    assert sum(REPLAYED_HEADER not in answer.headers for answer in answers) == 1
    assert len(admin.get("/v1/stores/hurried/credentials").json()["items"]) == 2
    assert rig.parts.replays._locks == {}


def test_a_node_that_comes_second_with_the_same_request_tells_what_the_first_one_answered(
    rig: Rig, admin: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it looks up at first is from before the other node's commit; under the write lock, or by a refusal, it learns better."""
    new_store(admin, "raced", max_credentials=3)

    async def nothing_yet(*_: object) -> None:
        return None

    for path, body in (("/v1/stores/raced/credentials", None), ("/v1/stores/raced/keys", {"external_key_id": "k1"})):
        headers = {"Idempotency-Key": f"race {path}"}
        first = admin.post(path, json=body, headers=headers)
        found = iter([nothing_yet, rig.parts.replays.find])
        monkeypatch.setattr(Replays, "find", lambda _, key, sha256, found=found: next(found)(key, sha256))
        second = admin.post(path, json=body, headers=headers)
        monkeypatch.undo()
        assert (first.status_code, second.status_code) == (201, 201), second.text
        assert second.headers[REPLAYED_HEADER] == "true"
        assert second.json() == first.json()
    assert len(admin.get("/v1/stores/raced/credentials").json()["items"]) == 2


# --- log


def read_log(
    capfd: pytest.CaptureFixture[str], answers: list[httpx.Response]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """All lines, and those of the requests that were answered so. A line is written when its answer is on its way already."""
    lines: list[dict[str, Any]] = []
    for _ in range(500):
        lines += [json.loads(line) for line in capfd.readouterr().err.splitlines()]
        by_id = {line["request_id"]: line for line in lines if line["event"] == "admin_request"}
        found = [by_id[id_] for answer in answers if (id_ := answer.headers["x-request-id"]) in by_id]
        if len(found) == len(answers):
            return lines, found
        time.sleep(0.01)
    pytest.fail(f"{len(answers)} requests were answered, {len(found)} were logged")


def test_the_access_log_says_who_did_what_and_holds_no_secret(
    rig: Rig, admin: httpx.Client, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(line_limit, "LINES_PER_WINDOW", 1000)  # other tests are strangers too
    answer = admin.post(
        "/v1/stores", json={"name": "logged", "uri_path_prefix": "/logged", **LOCAL}, headers={"Idempotency-Key": "logged"}
    )
    given = "G" * 43
    answers = [
        answer,
        admin.post("/v1/stores/logged/credentials", json={"access_key_id": "B" * 20, "secret_access_key": given}),
        admin.get("/v1/stores/absent", params={"token": "in-the-query"}),
    ]
    with rig.client(token="xkt_wrong-token") as stranger:
        answers.append(stranger.get("/v1/whoami"))
    lines, requests = read_log(capfd, answers)
    first = requests[0]
    assert (first["method"], first["path"], first["status"], first["actor"]) == ("POST", "/v1/stores", 201, "operator:admin")
    assert first["address"] == "127.0.0.1"
    assert first["request_id"] == answer.headers["x-request-id"]
    assert requests[2]["level"] == "warning"
    assert requests[3]["actor"] == ""
    text = str(lines)
    for secret in (
        answer.json()["credential"]["secret_access_key"],
        given,
        rig.tokens["admin"],
        "xkt_wrong-token",
        "in-the-query",
    ):
        assert secret not in text


def test_those_who_show_no_token_write_a_few_lines_a_second_and_a_count_of_the_others(
    rig: Rig, admin: httpx.Client, capfd: pytest.CaptureFixture[str]
) -> None:
    began = time.monotonic()
    with rig.client(token="") as stranger:
        for number in range(100):
            assert stranger.get(f"/v1/stranger-{number}").status_code in (401, 404)
    answers = [admin.get("/v1/whoami") for _ in range(20)]
    written = left_out = 0

    def count(lines: list[dict[str, Any]]) -> None:
        nonlocal written, left_out
        written += len([line for line in lines if "stranger" in line.get("path", "")])
        left_out += sum(line["suppressed"] for line in lines if line.get("of") == "admin_request")

    count(read_log(capfd, answers)[0])  # those of who has a token are all there
    while written + left_out < 100:
        assert time.monotonic() - began < 30
        time.sleep(0.01)
        count([json.loads(line) for line in capfd.readouterr().err.splitlines()])
    assert written <= 5 * (time.monotonic() - began + 1)
    assert left_out > 0


def test_a_fault_of_ours_is_answered_and_logged_without_what_was_sent(
    rig: Rig, admin: httpx.Client, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("with a secret in its text")

    monkeypatch.setattr(rig.service, "list_stores", broken)
    answer = admin.get("/v1/stores")
    document = is_problem(answer, 500, "internal-error")
    assert "X-Request-Id" in str(document["next"])
    log = capfd.readouterr().err
    (line,) = (json.loads(line) for line in log.splitlines() if '"request_failed"' in line)
    assert (line["problem"], line["request_id"]) == ("RuntimeError", answer.headers["x-request-id"])
    assert "secret" not in log


# --- description


def test_the_description_is_public_and_complete(rig: Rig) -> None:
    with httpx.Client(base_url=rig.url, verify=rig.trust, trust_env=False) as client:
        document = client.get("/openapi.json").json()
    assert document["info"]["title"] == "xksfast administration"
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            where = f"{method} {path}"
            assert operation["summary"], where
            assert operation["security"] == [{"token": []}], where
            responses = operation["responses"]
            assert {"401", "403", "422", "429", "500", "503"} <= responses.keys(), where
            for status, response in responses.items():
                if int(status) >= 400:
                    assert list(response["content"]) == ["application/problem+json"], (where, status)
                elif status != "204":
                    assert response["content"], (where, status)
            if "requestBody" in operation:
                assert "413" in responses, where


# --- nodes among themselves


def block(block_id: str, target: str) -> bytes:
    import msgspec

    return msgspec.json.encode(
        PendingBlock(block_id, "key_store", target, "drill", "operator:admin", "10.0.0.2", "n2", int(time.time() * 1000))
    )


def test_a_block_that_another_node_tells_is_enforced_and_heard_once(rig: Rig, admin: httpx.Client) -> None:
    new_store(admin, "told")
    body = block("b1", "told")
    stamp = str(int(time.time()))
    mac = rig.sealer.mac(MAC_LABEL, signed_part(stamp, body)).hex()
    with httpx.Client(base_url=rig.url, verify=rig.trust, trust_env=False) as node:
        heard = node.post(PEER_PATH, content=body, headers={TIME_HEADER: stamp, MAC_HEADER: mac})
        assert heard.json() == {"confirmed": True}
        assert ("key_store", "told") in rig.blocks._journal.targets()
        again = node.post(PEER_PATH, content=body, headers={TIME_HEADER: stamp, MAC_HEADER: mac})
        is_problem(again, 409, "peer-replayed")
        for headers in ({TIME_HEADER: stamp, MAC_HEADER: "00" * 32}, {TIME_HEADER: stamp, MAC_HEADER: "no hex"}, {}):
            is_problem(node.post(PEER_PATH, content=body, headers=headers), 401, "peer-unknown")
        is_problem(
            node.post(PEER_PATH, content=block("b1", "other"), headers={TIME_HEADER: stamp, MAC_HEADER: mac}),
            401,
            "peer-unknown",
        )


def test_a_block_is_not_heard_again_by_the_same_mac_in_other_writing(rig: Rig, admin: httpx.Client) -> None:
    new_store(admin, "spelled")
    body = block("b-spelled", "spelled")
    stamp = str(int(time.time()))
    mac = rig.sealer.mac(MAC_LABEL, signed_part(stamp, body)).hex()
    with httpx.Client(base_url=rig.url, verify=rig.trust, trust_env=False) as node:
        assert node.post(PEER_PATH, content=body, headers={TIME_HEADER: stamp, MAC_HEADER: mac}).status_code == 200
        for written in (mac.upper(), f"{mac[:2]} {mac[2:]}", f"{mac[:2]}\t{mac[2:]}"):
            again = node.post(PEER_PATH, content=body, headers={TIME_HEADER: stamp, MAC_HEADER: written})
            assert again.status_code in (401, 409), written


# --- the listener


def test_requests_under_way_are_answered_when_the_listener_closes(tmp_path: Path) -> None:
    with running(tmp_path) as rig:

        async def slow() -> list[object]:
            await asyncio.sleep(0.3)
            return []

        rig.parts.nodes = slow  # type: ignore[assignment]

        def ask() -> int:
            with rig.client() as client:
                return client.get("/v1/nodes").status_code

        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(ask)
            time.sleep(0.15)
            rig.call(rig.server.close())
            assert asked.result(10) == 200
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(rig.server.address, timeout=2)


def test_a_new_certificate_is_used_for_new_connections(tmp_path: Path) -> None:
    from xksfast.admin.dev_certificates import Authority, CertificateFiles

    with running(tmp_path / "rig") as rig:
        other = Authority(tmp_path, "other-ca")
        files = CertificateFiles(tmp_path / "new.pem", tmp_path / "new.key")
        other.issue_server(files)
        with pytest.raises(OperatorError, match="there is no file"):
            rig.server.reload_certificate(str(files.certificate), str(tmp_path / "absent.key"))
        with rig.client() as client:
            assert client.get("/v1/whoami").status_code == 200
            rig.server.reload_certificate(str(files.certificate), str(files.private_key))
            assert client.get("/v1/whoami").status_code == 200
        trust = ssl.create_default_context(cafile=str(other.files.certificate))
        with httpx.Client(base_url=rig.url, verify=trust, trust_env=False) as client:
            assert client.get("/openapi.json").status_code == 200


def test_a_certificate_that_cannot_be_used_says_why(tmp_path: Path) -> None:
    async def serve(certificate: Path) -> None:
        with socket.socket() as sock:
            await serve_api(None, sock, Log("test"), certificate=str(certificate), private_key=str(certificate))  # type: ignore[arg-type]

    with pytest.raises(OperatorError, match=r"admin\.certificate: there is no file"):
        asyncio.run(serve(tmp_path / "absent.pem"))
    (tmp_path / "junk.pem").write_text("junk")
    with pytest.raises(OperatorError, match="no PEM files"):
        asyncio.run(serve(tmp_path / "junk.pem"))
