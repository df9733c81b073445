# SPDX-License-Identifier: Apache-2.0
"""The supervisor and children that refuse or hang: tried again for ever, but a refused PIN; and what is said until they work."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.proxy.supervisor_process import DEADLINE_S, Running, answer, ask, supervisors, until, write_config
from xksfast.log import Log
from xksfast.proxy.troubles import Troubles
from xksfast.proxy.watchdog import Watchdog
from xksfast.proxy.worker_slot import WorkerSlot

PIN = "the PIN of partition p0 is wrong"
TLS = '[proxy.tls]\ncertificate = "a"\nprivate_key = "b"'


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Running]]:
    with supervisors(tmp_path) as start:
        yield start


def refuse(running: Running, why: str, file: str = "refuse", count: int = 1) -> None:
    """Have the next worker processes refuse, and `count` of those that serve now end."""
    (running.directory / file).write_text(why)
    for sock in [running.connect() for _ in range(count)]:
        sock.sendall(b"crash\n")
    until(lambda: running.events("refused"), "the refusal is logged")


def refusals(running: Running) -> list[str]:
    """Indexes of the workers whose processes have refused so far."""
    file = running.directory / "refusals"
    return file.read_text().split() if file.exists() else []


def hang_up(running: Running) -> None:
    reloads = len(running.events("reloading"))
    running.process.send_signal(signal.SIGHUP)
    until(lambda: len(running.events("reloading")) > reloads, "SIGHUP is heard")


def is_turned_away(running: Running, kind: str = "plain") -> bool:
    """Whether a connection is ended at once; AssertionError when it gets neither an answer nor an end."""
    try:
        with socket.create_connection(("127.0.0.1", running.ports[kind][0]), timeout=DEADLINE_S) as sock:
            sock.sendall(b"who\n")
            return answer(sock) == ""
    except ConnectionError:
        return True


def test_a_worker_that_refuses_is_tried_again_until_it_serves(start: Callable[..., Running]) -> None:
    running = start(workers=1)
    refuse(running, "server.pem: is not a PEM certificate chain")
    until(lambda: len(refusals(running)) >= 3, "it is tried again and again")
    assert len(running.events("refused")) == 1, "the same words are said once"
    (running.directory / "refuse").unlink()
    until(lambda: running.health("/readyz")[0] == 200, "it serves by itself")
    assert ask(running.connect(), "hello") == "hello"
    until(lambda: running.health("/status")[1]["status"] == "ok", "nothing is wrong any more")


def test_sighup_tries_a_worker_that_refused_at_once(start: Callable[..., Running]) -> None:
    running = start(workers=1)
    refuse(running, "server.pem: is not a PEM certificate chain")
    until(lambda: len(refusals(running)) >= 6, "its pauses have become long")  # the next one: 6.4 s, the one after it 10 s
    (running.directory / "refuse").unlink()
    began = time.monotonic()
    hang_up(running)
    until(lambda: len(running.events("worker_ready")) == 2, "it serves")
    assert time.monotonic() - began < 5.0


def test_what_is_missing_is_said_with_its_reason_until_it_is_there(start: Callable[..., Running]) -> None:
    running = start()
    refuse(running, "server.pem: is not a PEM certificate chain")
    code, readiness = running.health("/readyz")
    assert code == 503
    (problem,) = [worker["problem"] for worker in readiness["workers"] if worker["problem"]]
    assert problem.startswith("server.pem: is not a PEM certificate chain; it is tried again by itself")
    status = running.health("/status")[1]
    assert status["status"] == "degraded"
    assert any("does not serve: server.pem: is not a PEM certificate chain" in problem for problem in status["problems"])
    assert ask(running.connect(), "hello") == "hello", "the other worker serves"


def test_a_refused_pin_waits_for_a_person_and_sighup_is_one_try_more(start: Callable[..., Running]) -> None:
    running = start()
    refuse(running, PIN, "refuse_pin")
    assert ask(running.connect(), "hello") == "hello", "the other worker serves"
    (event,) = running.events("refused")
    assert "send SIGHUP" in event["next"]
    with pytest.raises(AssertionError, match="it must not happen"):
        until(lambda: len(refusals(running)) > 1, "it must not happen", timeout_s=2.0)
    hang_up(running)
    until(lambda: len(refusals(running)) == 2, "SIGHUP is the word for another try")
    with pytest.raises(AssertionError, match="it must not happen"):
        until(lambda: len(refusals(running)) > 2, "it must not happen", timeout_s=2.0)
    assert running.health("/readyz")[0] == 503
    (running.directory / "refuse_pin").unlink()
    hang_up(running)
    until(lambda: running.health("/readyz")[0] == 200, "the PIN is right now")


def test_a_pin_that_is_wrong_for_all_workers_is_tried_by_one_of_them(start: Callable[..., Running]) -> None:
    running = start(workers=3)
    hang_up(running)  # long before: it is no word for what comes later
    refuse(running, PIN, "refuse_pin")
    for sock in [running.connect() for _ in range(2)]:
        sock.sendall(b"crash\n")
    until(lambda: len(running.events("child_ended")) == 3, "all have ended")
    with pytest.raises(AssertionError, match="it must not happen"):
        until(lambda: len(refusals(running)) > 1, "it must not happen", timeout_s=2.0)
    hang_up(running)
    until(lambda: len(refusals(running)) == 2, "one tries")
    with pytest.raises(AssertionError, match="it must not happen"):
        until(lambda: len(refusals(running)) > 2, "it must not happen", timeout_s=1.0)
    (running.directory / "refuse_pin").unlink()
    hang_up(running)
    until(lambda: running.health("/readyz")[0] == 200, "the first that serves has the others tried")


def test_connections_are_turned_away_while_no_worker_will_serve(start: Callable[..., Running]) -> None:
    running = start(workers=1)
    refuse(running, PIN, "refuse_pin")
    until(lambda: is_turned_away(running), "nobody waits for an answer")
    assert running.health("/ping")[0] == 503
    until(lambda: not running.health("/readyz")[1]["workers"][0]["alive"], "nothing is heard of it")
    assert running.health("/livez")[0] == 200, "a restart would try the PIN again"
    (running.directory / "refuse_pin").unlink()
    hang_up(running)
    until(lambda: running.health("/readyz")[0] == 200, "it serves again")
    assert ask(running.connect(), "hello") == "hello"


def test_a_worker_that_crashed_keeps_nobody_out(start: Callable[..., Running]) -> None:
    running = start(workers=1)
    running.connect().sendall(b"crash\n")
    until(lambda: running.events("child_ended"), "it has ended")
    assert ask(running.connect(), "hello") == "hello", "the connection waited for the next process"


def test_a_control_process_that_refuses_is_tried_again_and_missed_in_the_status(start: Callable[..., Running]) -> None:
    running = start(workers=1)
    pid = int((running.directory / "loaded").read_text().split()[0])
    (running.directory / "refuse_state").write_text("master.key: cannot be read")
    os.kill(pid, signal.SIGKILL)
    until(lambda: running.events("refused"), "the refusal is logged")
    status = running.health("/status")[1]
    assert status["status"] == "degraded"
    assert any(
        problem.startswith("the state: no control process: nothing is heard; master.key: cannot be read; it is tried again")
        for problem in status["problems"]
    )
    code, readiness = running.health("/readyz")
    assert (code, readiness["status"]) == (200, "ready"), "what is served is served"
    assert "no control process" in readiness["problems"][0]
    assert ask(running.connect(), "hello") == "hello"
    (running.directory / "refuse_state").unlink()
    until(lambda: running.health("/status")[1]["status"] == "ok", "it is tried again by itself")
    assert len(running.events("refused")) == 1


def test_a_control_process_that_refuses_is_missed_from_the_moment_it_ends(start: Callable[..., Running]) -> None:
    running = start(workers=1)
    pid = int((running.directory / "loaded").read_text().split()[0])
    (running.directory / "refuse_state").write_text("master.key: cannot be read")
    os.kill(pid, signal.SIGKILL)
    until(lambda: running.events("child_ended"), "its end is noticed")
    for _ in range(20):  # while it is tried again and again
        assert running.health("/status")[1]["status"] == "degraded"


def test_reload_of_a_worker_that_does_not_serve_claims_nothing(start: Callable[..., Running], tmp_path: Path) -> None:
    (tmp_path / "waits").write_text("1")
    running = start(ready=False, workers=2, tls=TLS)
    until(lambda: running.events("worker_ready"), "the first one serves")
    until(lambda: running.health("/status")[1]["workers"][1]["answered"], "the second one is there")
    hang_up(running)
    until(lambda: running.events("certificates_reloaded"), "the first one reloads")
    until(
        lambda: running.health("/status")[1]["workers"][1]["answered"], "the second one has answered what came before as well"
    )
    assert [event["worker"] for event in running.events("certificates_reloaded")] == [0]


def test_a_worker_that_refused_is_tried_with_the_certificate_that_sighup_names(start: Callable[..., Running]) -> None:
    running = start(workers=1, tls=TLS)
    (running.directory / "refuse").write_text("a: is not a PEM certificate chain")
    running.connect("tls").sendall(b"crash\n")
    until(lambda: running.events("refused"), "the refusal is logged")
    write_config(running.directory, workers=1, tls=TLS.replace('"a"', '"other"'), health=int(running.health_port))
    (running.directory / "refuse").unlink()
    hang_up(running)
    until(lambda: len(running.events("worker_ready")) == 2, "it serves")
    assert ask(running.connect("tls"), "certificate") == str(running.directory / "other")
    running.connect("tls").sendall(b"crash\n")
    until(lambda: len(running.events("worker_ready")) == 3, "it serves")
    assert ask(running.connect("tls"), "certificate") == str(running.directory / "other"), "which is in use from then on"


def test_the_answer_to_one_reload_is_not_taken_for_that_to_the_next(start: Callable[..., Running]) -> None:
    running = start(workers=1, tls=TLS)
    for certificate in ("late", "bad"):  # the first is answered after the second has been asked for
        write_config(running.directory, workers=1, tls=TLS.replace('"a"', f'"{certificate}"'), health=int(running.health_port))
        hang_up(running)
    until(lambda: running.events("certificates_kept") and running.events("certificates_reloaded"), "both are answered")
    running.connect("tls").sendall(b"crash\n")
    until(lambda: len(running.events("worker_ready")) == 2, "it serves again")
    assert ask(running.connect("tls"), "certificate") == str(running.directory / "late")


def test_a_worker_that_hangs_is_killed_named_and_replaced(start: Callable[..., Running], tmp_path: Path) -> None:
    (tmp_path / "hung_after_s").write_text("3")
    running = start(workers=1)
    sock = running.connect()
    hung = int(ask(sock, "who").split()[1])
    os.kill(hung, signal.SIGSTOP)
    (event,) = until(lambda: running.events("worker_hangs"), "it is noticed")
    assert (event["worker"], event["sent"]) == (0, "SIGKILL")
    until(lambda: len(running.events("worker_ready")) == 2, "another one serves")
    assert int(ask(running.connect(), "who").split()[1]) != hung
    assert sock.recv(1) == b""


def test_ping_tells_that_the_only_worker_hangs(start: Callable[..., Running]) -> None:
    running = start(workers=1)
    hung = int(ask(running.connect(), "who").split()[1])
    os.kill(hung, signal.SIGSTOP)
    try:
        until(lambda: running.health("/ping")[0] == 503, "the balancer is told")
    finally:
        os.kill(hung, signal.SIGCONT)
    until(lambda: running.health("/ping")[0] == 200, "it goes on")


def test_a_stopped_process_tree_loses_no_worker_when_it_goes_on(start: Callable[..., Running], tmp_path: Path) -> None:
    (tmp_path / "hung_after_s").write_text("2")
    running = start()
    pids = [running.process.pid, *running.children()]
    workers = {ask(running.connect(), "who").split()[1] for _ in range(2)}
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    time.sleep(4.0)  # nothing to wait for: all stand still for longer than a worker may be silent
    for pid in pids:
        os.kill(pid, signal.SIGCONT)
    assert {ask(running.connect(), "who").split()[1] for _ in range(4)} == workers
    assert not running.events("worker_hangs")
    assert running.health("/ping")[0] == 200


class SilentChild:
    def __init__(self) -> None:
        self.sent: list[int] = []

    def terminate(self, number: int) -> None:
        self.sent.append(number)


@pytest.mark.parametrize(("ready", "silent_s", "late", "ends"), [
    (True, 10.1, False, True), (True, 9.9, False, False), (False, 100.0, False, False), (True, 100.0, True, False),
])  # fmt: skip
def test_the_watchdog_ends_what_served_and_is_silent_while_it_watched(
    ready: bool, silent_s: float, late: bool, ends: bool
) -> None:
    worker = WorkerSlot(0)
    child = SilentChild()
    worker.child = child  # type: ignore[assignment]
    worker.ready, worker.heard_at = ready, 1000.0
    watchdog = Watchdog([worker], Log("test"))
    watchdog.look(1000.0 + silent_s, late)
    assert child.sent == ([signal.SIGKILL] if ends else [])
    watchdog.look(1000.0 + silent_s + 9.0, False)
    assert len(child.sent) == (1 if ends or (ready and not late) else 0)


def test_words_are_remembered_over_the_end_of_the_process_that_said_them() -> None:
    troubles = Troubles(Log("test"))
    troubles.refused("worker 0", ("no certificate",), final=False)
    troubles.ended("worker 0", "exit code 3")
    assert troubles.why("worker 0").startswith("no certificate; ")
    troubles.started("worker 0")
    assert troubles.why("worker 0").startswith("no certificate; "), "until it works"
    troubles.ended("worker 0", "killed by SIGSEGV")
    assert troubles.why("worker 0").startswith("its process ended (killed by SIGSEGV); ")
    troubles.works("worker 0")
    assert troubles.why("worker 0") == ""


def test_a_child_is_stuck_when_it_refused_or_ended_three_times() -> None:
    troubles = Troubles(Log("test"))
    for _ in range(3):
        assert not troubles.is_stuck("control")
        troubles.started("control")
        troubles.ended("control", "exit code 1")
    assert troubles.is_stuck("control")
    troubles.works("control")
    assert not troubles.is_stuck("control")
    troubles.refused("control", ("no master key",), final=False)
    assert troubles.is_stuck("control")


def test_the_watchdog_ends_a_worker_that_hangs_while_it_is_to_end_by_itself() -> None:
    worker = WorkerSlot(0)
    child = SilentChild()
    worker.child = child  # type: ignore[assignment]
    worker.ending, worker.heard_at = True, 1000.0
    Watchdog([worker], Log("test")).look(1010.1, False)
    assert child.sent == [signal.SIGKILL]
