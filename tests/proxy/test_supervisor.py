# SPDX-License-Identifier: Apache-2.0
"""The supervisor: whom it gives connections to, children that die or hang, its end, and what it says of itself."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.proxy.supervisor_process import DEADLINE_S, Running, answer, ask, process_exists, supervisors, until
from xksfast.proxy.child import exit_cause


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Running]]:
    with supervisors(tmp_path) as start:
        yield start


def test_eight_connections_over_two_workers_end_four_to_four(start: Callable[..., Running]) -> None:
    running = start()
    sockets = [running.connect() for _ in range(8)]
    assert Counter(ask(sock, "who").split()[0] for sock in sockets) == {"0": 4, "1": 4}


def test_new_connections_go_where_old_ones_have_ended(start: Callable[..., Running]) -> None:
    running = start()
    sockets = [running.connect() for _ in range(8)]
    owners = {sock: ask(sock, "who").split()[0] for sock in sockets}
    for sock in [sock for sock in sockets if owners[sock] == "1"]:
        sock.close()
    until(lambda: running.health("/readyz")[1]["workers"][1]["connections"] == 0, "the worker reports its closed connections")
    assert {ask(running.connect(), "who").split()[0] for _ in range(4)} == {"1"}
    assert [worker["connections"] for worker in running.health("/readyz")[1]["workers"]] == [4, 4]


def test_a_connection_says_which_kind_of_listener_it_came_by(start: Callable[..., Running]) -> None:
    running = start(
        workers=1,
        proxy='plaintext_listen = ["127.0.0.1:0"]',
        tls='[proxy.tls]\ncertificate = "a"\nprivate_key = "b"',
    )
    assert ask(running.connect("plain"), "who").split()[2] == "plain"
    assert ask(running.connect("tls"), "who").split()[2] == "tls"


def test_accepted_sockets_have_no_nagle_delay(start: Callable[..., Running]) -> None:
    running = start(workers=1)
    sock = running.connect()
    began = time.monotonic()
    for number in range(50):  # with Nagle and delayed acknowledgement each would take 40 ms
        assert ask(sock, f"echo {number}") == f"echo {number}"
    assert time.monotonic() - began < 1.0


def test_connections_over_the_cap_wait_until_one_ends(start: Callable[..., Running]) -> None:
    running = start(proxy="max_connections = 3")
    first = [running.connect() for _ in range(3)]
    for sock in first:
        ask(sock, "who")
    waiting = running.connect()
    waiting.sendall(b"who\n")
    waiting.settimeout(0.5)
    with pytest.raises(TimeoutError):
        waiting.recv(1)
    first[0].close()
    waiting.settimeout(DEADLINE_S)
    assert answer(waiting).split()[2] == "plain"
    assert running.events("connection_cap")


def test_a_dead_worker_is_named_with_its_signal_and_started_again_while_the_other_serves(start: Callable[..., Running]) -> None:
    running = start()
    sockets = [running.connect() for _ in range(2)]
    owners = {ask(sock, "who").split()[0]: sock for sock in sockets}
    owners["0"].sendall(b"crash\n")
    assert owners["0"].recv(10) == b""
    assert ask(owners["1"], "still here") == "still here"
    (event,) = until(lambda: running.events("child_ended"), "child_ended is logged")
    assert (event["child"], event["cause"], event["restart_in_s"]) == ("worker 0", "killed by SIGSEGV", 0.1)
    until(lambda: len(running.events("worker_ready")) == 3, "the worker is ready again")
    until(lambda: running.health("/readyz")[0] == 200, "ready again")
    assert {ask(running.connect(), "who").split()[0] for _ in range(3)} == {"0", "1"}


def test_a_dead_control_process_is_started_again_and_workers_serve_meanwhile(start: Callable[..., Running]) -> None:
    running = start()
    sock = running.connect()
    first = int((running.directory / "loaded").read_text().split()[0])
    os.kill(first, signal.SIGKILL)
    assert ask(sock, "hello") == "hello"
    until(lambda: (running.directory / "loaded").read_text().split()[:1] not in ([], [str(first)]), "a new one loads the state")
    (event,) = running.events("child_ended")
    assert (event["child"], event["cause"]) == ("control", "killed by SIGKILL")
    # The new one has lines to the workers: a worker that starts again gets its snapshot from it.
    sock.sendall(b"crash\n")
    until(lambda: len(running.events("worker_ready")) >= 3, "a worker is served by the new control process")


def test_sigterm_finishes_the_request_at_hand_refuses_new_ones_and_exits_0(start: Callable[..., Running]) -> None:
    running = start()
    sock = running.connect()
    sock.sendall(b"slow\n")
    idle = running.connect()
    ask(idle, "who")
    children = running.children()
    assert len(children) == 3
    running.process.send_signal(signal.SIGTERM)
    until(lambda: running.health("/ping")[0] == 503, "/ping tells load balancers")

    def refused() -> bool:
        try:
            running.connect().close()
        except ConnectionRefusedError:
            return True
        return False

    until(refused, "new connections are refused")
    (running.directory / "go").touch()
    assert answer(sock) == "done"
    assert running.process.wait(DEADLINE_S) == 0
    until(lambda: not any(process_exists(pid) for pid in children), "no process is left")


def test_a_worker_that_does_not_drain_is_killed_after_the_time_out(start: Callable[..., Running]) -> None:
    running = start(workers=1, proxy="drain_timeout_s = 1")
    (running.directory / "deaf").touch()
    children = running.children()
    began = time.monotonic()
    assert running.stop() == 0
    assert time.monotonic() - began < 5.0
    assert running.events("child_does_not_end")[0]["sent"] == "SIGTERM"
    until(lambda: not any(process_exists(pid) for pid in children), "no process is left")


def test_a_worker_that_still_waits_for_its_token_is_not_waited_for(start: Callable[..., Running], tmp_path: Path) -> None:
    (tmp_path / "waits").touch()
    (tmp_path / "deaf").touch()
    running = start(ready=False, workers=1)
    until(lambda: len(running.children()) == 2 and running.health("/livez")[0] == 200, "the worker is alive")
    assert running.health("/ping")[0] == 503
    with socket.create_connection(("127.0.0.1", running.listening_port()), timeout=1) as sock, pytest.raises(TimeoutError):
        ask(sock, "who")  # nobody accepts yet
    began = time.monotonic()
    assert running.stop() == 0
    assert time.monotonic() - began < 5.0


TOKEN = '[modules.m]\npath = "/m.so"\n[partitions.p]\nmodule = "m"\ntoken_label = "p"\npin_env = "PIN"'


@pytest.mark.parametrize(("tables", "workers"), [("", 4), (TOKEN, 2)])
def test_workers_wait_for_the_one_before_only_where_there_are_tokens(
    start: Callable[..., Running], tmp_path: Path, tables: str, workers: int
) -> None:
    (tmp_path / "waits").write_text("1")
    running = start(ready=False, workers=4, tls=tables)
    until(lambda: len(running.children()) == 1 + workers, "the control process and the workers that do not wait")
    time.sleep(0.5)
    assert len(running.children()) == 1 + workers
    assert [event["worker"] for event in running.events("worker_ready")][:1] == [0]


def test_children_end_when_the_supervisor_is_killed(start: Callable[..., Running]) -> None:
    running = start()
    children = running.children()
    running.process.kill()
    running.process.wait(DEADLINE_S)
    until(lambda: not any(process_exists(pid) for pid in children), "no process is left")


@pytest.mark.parametrize(("file", "code"), [("refuse", 2), ("refuse_state", 2), ("die", 1)])
def test_what_cannot_start_says_why_and_leaves_no_process(
    start: Callable[..., Running], tmp_path: Path, file: str, code: int
) -> None:
    (tmp_path / file).write_text("the PIN of partition p0 is wrong")
    running = start(ready=False)
    assert running.process.wait(DEADLINE_S) == code
    text = running.errors.read_text()
    if file == "die":
        assert "before they served, last by exit code 7" in text
    else:
        assert "the PIN of partition p0 is wrong" in text.splitlines()
    assert "Traceback" not in text


def test_a_port_in_use_is_named_and_nothing_is_started(start: Callable[..., Running], tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        running = start(ready=False, proxy=f'plaintext_listen = ["127.0.0.1:{port}"]')
        assert running.process.wait(DEADLINE_S) == 2
    assert f"cannot listen on 127.0.0.1:{port}: another program listens there" in running.errors.read_text()
    assert not (tmp_path / "loaded").exists()


def test_the_health_listener_answers_three_paths_and_refuses_the_rest(start: Callable[..., Running]) -> None:
    running = start()
    until(lambda: running.health("/readyz")[0] == 200, "ready")
    assert running.health("/ping") == (200, {"status": "pong"})
    assert running.health("/livez") == (200, {"status": "alive"})
    assert [worker["worker"] for worker in running.health("/readyz")[1]["workers"]] == [0, 1]
    assert running.health("/ping?x=1")[0] == 200
    assert running.health("/")[0] == 404
    assert running.health("/ping", method="POST")[0] == 405


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [(b"nonsense\r\n\r\n", b"400"), (b"GET /ping HTTP/1.1\r\nX: " + b"x" * 9000, b"400")],
)
def test_the_health_listener_bounds_what_it_reads(start: Callable[..., Running], request_bytes: bytes, status: bytes) -> None:
    running = start(workers=1)
    with socket.create_connection(("127.0.0.1", running.ports["health"]), timeout=DEADLINE_S) as sock:
        sock.sendall(request_bytes)
        data = b""
        while part := sock.recv(4096):
            data += part
    assert data.split()[1] == status
    json.loads(data.partition(b"\r\n\r\n")[2])


def test_ctrl_c_in_the_terminal_drains_like_sigterm(start: Callable[..., Running]) -> None:
    running = start(workers=1)
    sock = running.connect()
    sock.sendall(b"slow\n")
    ask(running.connect(), "who")
    os.killpg(running.process.pid, signal.SIGINT)  # as the terminal does: to the whole foreground process group
    until(lambda: running.events("draining"), "it drains")
    (running.directory / "go").touch()
    assert answer(sock) == "done"
    assert running.process.wait(DEADLINE_S) == 0


def test_a_second_signal_ends_the_wait_for_requests(start: Callable[..., Running]) -> None:
    running = start(workers=1, proxy="drain_timeout_s = 600")
    sock = running.connect()
    sock.sendall(b"slow\n")
    ask(running.connect(), "who")
    running.process.send_signal(signal.SIGTERM)
    until(lambda: running.events("draining"), "it drains")
    running.process.send_signal(signal.SIGTERM)
    assert running.process.wait(DEADLINE_S) == 0


def test_children_write_nothing_to_the_supervisors_stdout(start: Callable[..., Running]) -> None:
    running = start(workers=1)
    assert ask(running.connect(), "print") == "print"
    assert running.stop() == 0
    assert running.process.stdout is not None
    assert running.process.stdout.read() == ""


def test_a_worker_that_hangs_gets_no_new_connections(start: Callable[..., Running]) -> None:
    running = start()
    hung = int(ask(running.connect(), "who").split()[1])
    os.kill(hung, signal.SIGSTOP)
    try:
        until(lambda: not all(worker["alive"] for worker in running.health("/readyz")[1]["workers"]), "it is missed")
        owners = {int(ask(running.connect(), "who").split()[1]) for _ in range(4)}
    finally:
        os.kill(hung, signal.SIGCONT)
    assert hung not in owners


def test_connections_of_a_worker_that_hangs_do_not_fill_the_cap(start: Callable[..., Running], tmp_path: Path) -> None:
    (tmp_path / "hung_after_s").write_text("600")
    running = start(proxy="max_connections = 4")
    first = [running.connect() for _ in range(4)]
    hung, other = {int(ask(sock, "who").split()[1]) for sock in first}
    os.kill(hung, signal.SIGSTOP)
    try:
        again = running.connect()
        assert int(ask(again, "who").split()[1]) == other
    finally:
        os.kill(hung, signal.SIGCONT)


def test_the_status_names_workers_that_give_no_report_and_is_given_in_time(start: Callable[..., Running]) -> None:
    running = start()
    (running.directory / "mute").touch()
    began = time.monotonic()
    code, status = running.health("/status")
    assert time.monotonic() - began < 2.0
    assert code == 200
    assert [worker["answered"] for worker in status["workers"]] == [False, False]
    assert [problem.split(":")[0] for problem in status["problems"]] == ["worker 0 does not answer", "worker 1 does not answer"]
    (running.directory / "mute").unlink()
    # What was asked while they were mute stays unanswered: they are not asked again until they answer or are started anew.
    for sock in (running.connect(), running.connect()):
        sock.sendall(b"crash\n")
    until(lambda: running.health("/status")[1]["status"] == "ok", "new workers answer")
    assert [worker["restarts"] for worker in running.health("/status")[1]["workers"]] == [1, 1]


def test_many_who_ask_at_once_have_the_workers_asked_once(start: Callable[..., Running]) -> None:
    running = start(workers=1)
    until(lambda: running.health("/status")[1]["status"] == "ok", "it answers")
    (running.directory / "mute").touch()
    before = len((running.directory / "asked").read_text().split())
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: running.health("/status")[1], range(8)))
    assert all(not answer["workers"][0]["answered"] for answer in answers)
    assert len((running.directory / "asked").read_text().split()) == before + 1


def test_exit_causes_are_named() -> None:
    assert exit_cause(-9) == "killed by SIGKILL"
    assert exit_cause(3) == "exit code 3"
