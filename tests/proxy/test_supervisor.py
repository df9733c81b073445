# SPDX-License-Identifier: Apache-2.0
"""The supervisor as a process, with children that speak its messages and need no native code."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from xksfast.config import load_config
from xksfast.proxy.child import exit_cause
from xksfast.proxy.supervisor import different_keys

RUNNER = Path(__file__).parent / "fakes" / "run_supervisor.py"
ROOT = Path(__file__).resolve().parents[2]
DEADLINE_S = 20.0


def until(condition: Callable[[], Any], what: str, timeout_s: float = DEADLINE_S) -> Any:
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not in time: {what}"
        time.sleep(0.01)
    return found


def process_exists(pid: int) -> bool:
    """Whether it runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


class Running:
    """One supervisor process."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.config = directory / "xksfast.toml"
        self.health_port = load_config(self.config).proxy.health.listen.rpartition(":")[2]
        self.errors = directory / "stderr"
        environment = {**os.environ, "FAKE_DIR": str(directory), "PYTHONPATH": str(ROOT)}
        with self.errors.open("w") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, str(RUNNER), str(self.config)],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                process_group=0,
            )
        self.sockets: list[socket.socket] = []
        self.ports: dict[str, Any] = {"health": self.health_port}

    def wait_ready(self) -> None:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.errors.read_text()
        self.ports = {**json.loads(line), "health": self.health_port}

    def connect(self, kind: str = "plain") -> socket.socket:
        sock = socket.create_connection(("127.0.0.1", self.ports[kind][0]), timeout=DEADLINE_S)
        self.sockets.append(sock)
        return sock

    def events(self, name: str) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in self.errors.read_text().splitlines() if line.startswith("{")]
        return [line for line in lines if line["event"] == name]

    def health(self, path: str, method: str = "GET") -> tuple[int, dict[str, Any]]:
        request = urllib.request.Request(f"http://127.0.0.1:{self.ports['health']}{path}", method=method)
        try:
            with urllib.request.urlopen(request, timeout=DEADLINE_S) as response:
                return response.status, json.load(response)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    def listening_port(self) -> int:
        """Of the proxy, before it has said so."""
        rows = [line.split() for line in Path(f"/proc/{self.process.pid}/net/tcp").read_text().splitlines()[1:]]
        inodes = {os.readlink(path) for path in Path(f"/proc/{self.process.pid}/fd").iterdir()}
        ports = {int(row[1].split(":")[1], 16) for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in inodes}
        (port,) = ports - {int(self.health_port)}
        return port

    def children(self) -> list[int]:
        found = []
        for path in Path("/proc").glob("[0-9]*/stat"):
            try:
                state, parent = path.read_text().rpartition(")")[2].split()[:2]
            except OSError:
                continue
            if int(parent) == self.process.pid and state != "Z":
                found.append(int(path.parent.name))
        return found

    def stop(self) -> int:
        for sock in self.sockets:
            sock.close()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(DEADLINE_S)


def ask(sock: socket.socket, line: str) -> str:
    sock.sendall(line.encode() + b"\n")
    return answer(sock)


def answer(sock: socket.socket) -> str:
    data = b""
    while not data.endswith(b"\n"):
        part = sock.recv(4096)
        if not part:
            return data.decode()
        data += part
    return data.decode().strip()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


def write_config(directory: Path, *, workers: int = 2, proxy: str = "", tls: str = "", health: int = 0) -> None:
    (directory / "xksfast.toml").write_text(
        f'[proxy]\nlisten = ["127.0.0.1:0"]\nworkers = {workers}\n{proxy}\n{tls}\n'
        f'[proxy.health]\nlisten = "127.0.0.1:{health or free_port()}"\n[state]\nurl = "file:stores.toml"\n'
    )


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Running]]:
    made: list[Running] = []

    def start_one(*, ready: bool = True, **config: Any) -> Running:
        write_config(tmp_path, **config)
        running = Running(tmp_path)
        made.append(running)
        if ready:
            running.wait_ready()
        return running

    yield start_one
    for running in made:
        (tmp_path / "go").touch()
        children = running.children()
        running.stop()
        assert running.process.stdout is not None
        running.process.stdout.close()
        until(lambda pids=children: not any(process_exists(pid) for pid in pids), "no child outlives the supervisor")


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


def test_children_end_when_the_supervisor_is_killed(start: Callable[..., Running]) -> None:
    running = start()
    children = running.children()
    running.process.kill()
    running.process.wait(DEADLINE_S)
    until(lambda: not any(process_exists(pid) for pid in children), "no process is left")


def test_sighup_reloads_certificates_and_state_and_loses_no_request(start: Callable[..., Running]) -> None:
    tls = '[proxy.tls]\ncertificate = "a"\nprivate_key = "b"'
    running = start(tls=tls)
    sock = running.connect("tls")
    owner = ask(sock, "who")
    sock.sendall(b"slow\n")
    write_config(
        running.directory, tls=tls.replace('"a"', '"other"'), proxy="deadline_ms = 150", health=int(running.health_port)
    )
    running.process.send_signal(signal.SIGHUP)
    until(lambda: len(running.events("certificates_reloaded")) == 2, "both workers reload")
    until(lambda: (running.directory / "loaded").read_text().split()[1] == "2", "the state is read again")
    assert running.events("takes_effect_at_next_start")[0]["keys"] == ["proxy.deadline_ms"]
    (running.directory / "go").touch()
    assert answer(sock) == "done"
    assert ask(sock, "who") == owner


@pytest.mark.parametrize("good", [True, False])
def test_a_worker_started_again_begins_with_the_certificate_in_use(start: Callable[..., Running], good: bool) -> None:
    tls = '[proxy.tls]\ncertificate = "a"\nprivate_key = "b"'
    running = start(workers=1, tls=tls)
    if not good:
        (running.directory / "bad_certificate").touch()
    write_config(running.directory, workers=1, tls=tls.replace('"a"', '"other"'), health=int(running.health_port))
    running.process.send_signal(signal.SIGHUP)
    until(lambda: running.events("certificates_reloaded" if good else "certificates_kept"), "the worker answered")
    running.connect("tls").sendall(b"crash\n")
    until(lambda: len(running.events("worker_ready")) == 2, "it is ready again")
    assert ask(running.connect("tls"), "certificate") == str(running.directory / ("other" if good else "a"))


def test_a_broken_configuration_at_sighup_changes_nothing(start: Callable[..., Running]) -> None:
    running = start(workers=1)
    running.config.write_text("[proxy]\nworkerz = 1\n")
    running.process.send_signal(signal.SIGHUP)
    (event,) = until(lambda: running.events("reload_refused"), "reload_refused is logged")
    assert "did you mean 'workers'" in "".join(event["problems"])
    assert ask(running.connect(), "hello") == "hello"


def test_a_certificate_that_is_refused_at_sighup_is_reported(start: Callable[..., Running]) -> None:
    running = start(workers=1, tls='[proxy.tls]\ncertificate = "a"\nprivate_key = "b"')
    (running.directory / "bad_certificate").touch()
    running.process.send_signal(signal.SIGHUP)
    (event,) = until(lambda: running.events("certificates_kept"), "certificates_kept is logged")
    assert event["problem"] == "a bad certificate"


def test_a_state_refused_at_sighup_leaves_the_former_in_service(start: Callable[..., Running]) -> None:
    running = start(workers=1)
    (running.directory / "refuse_state").write_text("stores.toml: something is wrong")
    running.process.send_signal(signal.SIGHUP)
    (event,) = until(lambda: running.events("refused") or running.events("state_kept"), "the refusal is logged")
    assert event["problems"] == ["stores.toml: something is wrong"]
    assert ask(running.connect(), "hello") == "hello"


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


def test_a_worker_that_refuses_its_tokens_later_is_not_started_again(start: Callable[..., Running]) -> None:
    running = start()
    (running.directory / "refuse").write_text("the PIN of partition p0 is wrong")
    sock = running.connect()
    sock.sendall(b"crash\n")
    until(lambda: running.events("refused"), "the refusal is logged")
    assert ask(running.connect(), "hello") == "hello", "the other worker serves"
    assert running.health("/readyz")[0] == 503
    # A token locks after a few wrong PINs: one end, one start, no further try.
    with pytest.raises(AssertionError, match="not in time"):
        until(lambda: len(running.events("child_ended")) > 1, "it must not happen", timeout_s=2.0)


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


def test_different_keys_are_dotted_paths() -> None:
    assert different_keys({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3, "d": 4}}) == ["a.c", "a.d"]
