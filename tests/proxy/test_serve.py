# SPDX-License-Identifier: Apache-2.0
"""`xksfast serve` as a whole: start, reload, drain, restart, distribution, refusals at start."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.servers import Process, wait_until
from tests.setups import ACCESS_KEY_IDS, Setup

requirement = pytest.mark.requirement


@pytest.fixture
def setup(tmp_path: Path) -> Setup:
    return Setup(tmp_path)


def health(setup: Setup, path: str, method: str = "GET") -> tuple[int, dict[str, object]]:
    connection = http.client.HTTPConnection("127.0.0.1", setup.health_port, timeout=5)
    connection.request(method, path)
    response = connection.getresponse()
    body = json.loads(response.read())
    connection.close()
    return response.status, body


SEALED = ("ciphertext", "initializationVector", "authenticationTag")


class Flow:
    """Requests one after the other in a thread, until stopped; every answer that is not 200 is kept."""

    def __init__(self, setup: Setup) -> None:
        self._client = setup.client()
        self._stop = threading.Event()
        self.answered = 0
        self.failures: list[object] = []
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Flow:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(10)
        self._client.close()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                answer = self._client.call("encrypt")
            except Exception as error:
                self.failures.append(error)
                return
            self.answered += 1
            if answer.status != 200:
                self.failures.append(answer)


def test_two_processes_hold_what_they_should_and_all_end_together(setup: Setup) -> None:
    setup.config["proxy"]["workers"] = 2
    process = setup.start()
    children = process.children("_worker") + process.children("_control")
    assert len(children) == 3
    assert process.stop() == 0
    assert not any(Path(f"/proc/{pid}").exists() for pid in children)


def test_no_child_outlives_a_killed_supervisor(setup: Setup) -> None:
    process = setup.start()
    children = process.children("_worker") + process.children("_control")
    process.stop(signal.SIGKILL)
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in children), "children gone")


@requirement(151)
def test_the_health_listener_answers_load_balancers(setup: Setup) -> None:
    with setup.running():
        assert health(setup, "/ping") == (200, {"status": "pong"})
        assert health(setup, "/livez")[0] == 200
        wait_until(lambda: health(setup, "/readyz")[0] == 200, "ready")
        assert health(setup, "/nothing")[0] == 404
        assert health(setup, "/ping", "POST")[0] == 405


@pytest.mark.parametrize("round_number", range(3))
def test_eight_connections_over_two_workers_end_four_to_four(setup: Setup, round_number: int) -> None:
    setup.config["proxy"]["workers"] = 2
    with setup.running():
        clients = [setup.client() for _ in range(8)]
        for client in clients:
            assert client.call("health").status == 200

        def shares() -> list[int]:
            workers = health(setup, "/readyz")[1]["workers"]
            return sorted(worker["connections"] for worker in workers)  # type: ignore[attr-defined]

        assert shares() == [4, 4]
        for client in clients[:4]:
            client.close()
        wait_until(lambda: sum(shares()) == 4, "closed connections are counted")
        for client in clients[:4]:
            assert client.call("health").status == 200
        assert shares() == [4, 4]
        for client in clients:
            client.close()


def test_a_dead_worker_is_started_again_with_a_clear_line(setup: Setup) -> None:
    with setup.running() as process:
        (worker,) = process.children("_worker")
        os.kill(worker, signal.SIGSEGV)
        (line,) = wait_until(lambda: process.events("child_ended"), "the end is logged")
        assert line["child"] == "worker 0"
        assert line["cause"] == "killed by SIGSEGV"
        wait_until(lambda: len(process.events("worker_ready")) == 2, "ready again")
        client = setup.client()
        assert client.call("encrypt").status == 200
        client.close()


def test_requests_go_on_while_the_control_process_is_started_again(setup: Setup) -> None:
    with setup.running() as process, Flow(setup) as flow:
        (control,) = process.children("_control")
        os.kill(control, signal.SIGKILL)
        wait_until(lambda: len(process.events("state_loaded")) == 2, "control is back")
        wait_until(lambda: len(process.events("delta_applied")) == 2, "its state is served")
        answered = flow.answered
        wait_until(lambda: flow.answered > answered + 20, "requests flow")
        assert flow.failures == []


@requirement(131, 132, 133, 134)
def test_credentials_rotate_by_reload_without_losing_a_request(setup: Setup) -> None:
    with setup.running() as process, Flow(setup) as flow:
        first, second = setup.client(credential=0), setup.client(credential=1)
        assert second.call("health").error == "AuthenticationFailedException"
        setup.stores["key_stores"]["one"] = setup.local_store("/one", *ACCESS_KEY_IDS[:2])
        reload(setup, process, 2)
        assert first.call("health").status == second.call("health").status == 200
        assert flow.failures == []
        flow._stop.set()
        setup.stores["key_stores"]["one"] = setup.local_store("/one", ACCESS_KEY_IDS[1])
        reload(setup, process, 3)
        assert first.call("health").error == "AuthenticationFailedException"
        assert second.call("health").status == 200
        first.close()
        second.close()


def reload(setup: Setup, process: Process, count: int) -> None:
    """Write, SIGHUP, and wait until the count-th state is served."""
    setup.write()
    process.popen.send_signal(signal.SIGHUP)
    wait_until(lambda: len(process.events("delta_applied")) == count, "the new state is served")


@requirement(134)
def test_a_credential_opens_only_its_own_store(setup: Setup) -> None:
    setup.stores["key_stores"]["two"] = setup.local_store("/two", ACCESS_KEY_IDS[1])
    with setup.running():
        for store, credential, status in (("one", 0, 200), ("two", 1, 200), ("one", 1, 401), ("two", 0, 401)):
            client = setup.client(store, credential)
            assert client.call("health").status == status
            client.close()


@requirement(23)
def test_the_same_external_key_id_in_two_stores_names_two_keys(setup: Setup) -> None:
    setup.stores["key_stores"]["two"] = setup.local_store("/two")
    setup.stores["key_stores"]["two"]["keys"]["k1"]["label"] = "k2"
    with setup.running():
        one, two = setup.client("one"), setup.client("two")
        encrypted = one.call("encrypt").document
        assert one.call("decrypt", one.decrypt_document(encrypted)).status == 200
        assert two.call("decrypt", two.decrypt_document(encrypted)).error == "InvalidCiphertextException"
        one.close()
        two.close()


@requirement(46, 105)
def test_disabled_and_blocked_are_invalid_states(setup: Setup) -> None:
    store = setup.stores["key_stores"]["one"]
    with setup.running() as process:
        client = setup.client()
        document = client.valid("decrypt")
        store["keys"]["k1"]["enabled"] = False
        reload(setup, process, 2)
        assert client.call("metadata").document["keyStatus"] == "DISABLED"
        for operation in ("encrypt", "decrypt"):
            answer = client.call(operation, document if operation == "decrypt" else None)
            assert (answer.status, answer.error) == (400, "InvalidStateException")
        store["keys"]["k1"] |= {"enabled": True, "blocked": True}
        reload(setup, process, 3)
        for operation in ("metadata", "encrypt"):
            assert client.call(operation).error == "InvalidStateException"
        assert client.call("health").status == 200
        store["keys"]["k1"]["blocked"] = False
        store["blocked"] = True
        reload(setup, process, 4)
        for operation in ("metadata", "encrypt", "health"):
            answer = client.call(operation)
            assert (answer.status, answer.error) == (400, "InvalidStateException")
        store["blocked"] = False
        reload(setup, process, 5)
        assert client.call("decrypt", document).status == 200
        client.close()


@requirement(41, 87, 109, 142, 143, 144)
def test_only_allowed_principals_use_the_keys_and_health_is_exempt(setup: Setup) -> None:
    setup.stores["key_stores"]["one"]["allowed_principals"] = ["arn:aws:iam::111111111111:*", "AWS Internal"]
    with setup.running() as process:
        client = setup.client()
        for principal, allowed in (
            ("arn:aws:iam::111111111111:role/a", True),
            ("AWS Internal", True),
            ("arn:aws:iam::222222222222:role/a", False),
            ("xarn:aws:iam::111111111111:role/a", False),
            ("AWS Internals", False),
        ):
            for operation in ("metadata", "encrypt", "decrypt"):
                document = client.valid(operation) if operation != "decrypt" else client.valid("encrypt")
                document["requestMetadata"]["awsPrincipalArn"] = principal
                if operation == "decrypt":
                    document = {**client.decrypt_document(dict.fromkeys(SEALED, "AAAAAAAAAAAAAAAA")), **document}
                    document["authenticationTag"] = "A" * 22 + "=="
                answer = client.call(operation, document)
                if allowed:
                    assert answer.error in ("", "InvalidCiphertextException")
                else:
                    assert (answer.status, answer.error) == (403, "AccessDeniedException")
        assert client.call("health").status == 200
        client.close()
        lines = wait_until(lambda: [line for line in process.events("request") if line["http_status"] == 403], "logged")
    assert lines[0]["cause"] == "awsPrincipalArn matches none of allowed_principals"


def test_a_state_file_with_faults_is_refused_whole_and_the_former_stays(setup: Setup) -> None:
    with setup.running() as process, Flow(setup) as flow:
        setup.stores["key_stores"]["one"]["regoin"] = "x"
        setup.stores["key_stores"]["one"]["keys"]["bad id!"] = {"label": "x"}
        setup.write()
        process.popen.send_signal(signal.SIGHUP)
        (line,) = wait_until(lambda: process.events("state_kept"), "refused")
        assert any("did you mean 'region'" in problem for problem in line["problems"])
        answered = flow.answered
        wait_until(lambda: flow.answered > answered + 20, "requests flow")
        assert flow.failures == []


def test_sigterm_lets_running_requests_end(setup: Setup) -> None:
    with setup.running() as process:
        client = setup.client()
        path, body = client.path("encrypt"), json.dumps(client.valid("encrypt")).encode()
        headers = client.target.sign(path, body)
        head = f"POST {path} HTTP/1.1\r\n" + "".join(f"{n}: {v}\r\n" for n, v in headers.items())
        head += f"Content-Length: {len(body)}\r\n\r\n"
        with socket.create_connection(client.address, timeout=5) as half, socket.create_connection(client.address) as idle:
            half.sendall(head.encode() + body[:10])
            wait_until(lambda: health(setup, "/readyz")[1]["workers"][0]["connections"] == 2, "both are served")  # type: ignore[index]
            process.popen.send_signal(signal.SIGTERM)
            assert idle.recv(1) == b""
            half.sendall(body[10:])
            answer = half.makefile("rb").read()
        # The deadline counts from the first byte, so a slow body may be answered with 503; never with silence.
        assert answer.startswith((b"HTTP/1.1 200", b"HTTP/1.1 503"))
        assert b"Connection: close" in answer or answer.startswith(b"HTTP/1.1 200")
        assert process.popen.wait(15) == 0


@pytest.fixture
def refused(setup: Setup) -> Iterator[object]:
    def start() -> str:
        process = setup.start(ready=False)
        assert process.popen.wait(20) == 2
        return process.log_file.read_text()

    return start  # type: ignore[return-value]


def test_an_address_in_use_is_said(setup: Setup, refused) -> None:  # type: ignore[no-untyped-def]
    with socket.socket() as other:
        other.bind(("127.0.0.1", setup.port))
        other.listen()
        assert f"127.0.0.1:{setup.port}" in refused()


@requirement(130)
@pytest.mark.parametrize("name", [ACCESS_KEY_IDS[0], "master.key"])
def test_a_secret_that_others_can_read_is_refused_with_the_remedy(setup: Setup, refused, name: str) -> None:  # type: ignore[no-untyped-def]
    (setup.directory / name).chmod(0o640)
    assert f"chmod 600 {setup.directory / name}" in refused()


@pytest.mark.parametrize("problem", ["pin", "pin mode", "module", "profile"])
def test_a_token_that_cannot_be_used_is_named_with_what_to_do(setup: Setup, refused, problem: str) -> None:  # type: ignore[no-untyped-def]
    setup.use_softhsm()
    partition = setup.config["partitions"]["p0"]
    match problem:
        case "pin":
            setup.write_secret("pin", "9999")
            expected = "tried once and will not be tried again"
        case "pin mode":
            (setup.directory / "pin").chmod(0o644)
            expected = "chmod 600"
        case "module":
            setup.config["modules"]["hsm"]["path"] = "/nonexistent.so"
            expected = "cannot be loaded"
        case _:
            partition["profile"] = "softhms"
            expected = "did you mean 'softhsm'"
    assert expected in refused()
