# SPDX-License-Identifier: Apache-2.0
"""The supervisor at SIGHUP: certificates, configuration and state are read anew, or the former ones stay."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.proxy.supervisor_process import Running, answer, ask, supervisors, until, write_config
from xksfast.config import Admin, Config, Proxy, ProxyTls
from xksfast.proxy.reloads import KEPT, Reloads, different_keys


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Running]]:
    with supervisors(tmp_path) as start:
        yield start


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


def test_different_keys_are_dotted_paths() -> None:
    assert different_keys({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3, "d": 4}}) == ["a.c", "a.d"]


def config_with(certificate: str, admin: str = "admin") -> Config:
    return Config(
        proxy=Proxy(tls=ProxyTls(certificate=certificate, private_key="key")),
        admin=Admin(certificate=admin, private_key="key"),
    )


def certificates(config: Config) -> tuple[str, str]:
    assert config.proxy.tls is not None
    assert config.admin is not None
    return config.proxy.tls.certificate, config.admin.certificate


def test_a_reload_is_in_use_by_who_took_it_and_an_older_answer_changes_nothing() -> None:
    reloads, used = Reloads(), config_with("a")
    first, _, _ = reloads.ask(used, config_with("b", "admin-b"))
    second, _, _ = reloads.ask(used, config_with("c", "admin-c"))
    used = reloads.taken_by_worker(second, used)
    assert certificates(used) == ("c", "admin")
    assert certificates(reloads.taken_by_worker(first, used)) == ("c", "admin")
    assert certificates(reloads.taken_by_control(first, used)) == ("c", "admin-b")
    assert reloads.taken_by_worker(0, used) is reloads.taken_by_worker(99, used) is used


def test_what_a_worker_found_bad_is_not_tried_on_workers_and_does_not_concern_administration() -> None:
    reloads, used = Reloads(), config_with("a")
    assert reloads.newest_for_worker(used) == (0, used)
    first, asked, _ = reloads.ask(used, config_with("b"))
    second, _, _ = reloads.ask(used, config_with("bad", "admin-c"))
    reloads.refused_by_worker(second)
    assert reloads.newest_for_worker(used) == (first, asked)
    assert certificates(reloads.newest_for_control(used)) == ("bad", "admin-c")
    assert certificates(reloads.taken_by_control(second, used)) == ("a", "admin-c")


def test_reloads_are_forgotten_in_the_end() -> None:
    reloads, used = Reloads(), config_with("a")
    first, _, _ = reloads.ask(used, config_with("b"))
    for _ in range(KEPT):
        reloads.ask(used, config_with("c"))
    assert reloads.taken_by_worker(first, used) is used
