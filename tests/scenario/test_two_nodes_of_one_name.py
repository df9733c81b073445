# SPDX-License-Identifier: Apache-2.0
"""Two nodes of one name: the second is refused; where both run all the same, it is said, and no block is confirmed for the two."""

from __future__ import annotations

import os
import signal
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from bench.postgres import PostgresServer
from tests.scenario.nodes import Node, deployment
from tests.scenario.slow_link import SlowLink
from tests.scenario.trouble import answers, api, made, says
from tests.servers import Process, wait_until


def becomes_a_twin(node: Node) -> None:
    """It stops, and takes the name of the first node."""
    assert node.process is not None
    assert node.process.stop() == 0
    config = node.config.read_text()
    assert '"node" = "n2"' in config
    node.config.write_text(config.replace('"node" = "n2"', '"node" = "n1"'))


@pytest.mark.timeout(600)
def test_a_second_node_of_one_name_is_refused_and_the_first_may_restart_at_any_time(
    tmp_path: Path, postgres: PostgresServer
) -> None:
    with deployment(tmp_path, postgres.database(), ("n1", "n2")) as proxies:
        n1, n2 = proxies.nodes
        becomes_a_twin(n2)
        second = Process(["serve", "--config", str(n2.config)], n2.directory)
        assert second.popen.wait(60) == 2
        said = second.log_file.read_text()
        assert f"another node named 'n1' runs already, at {n1.admin_url}, and this one is {n2.admin_url}" in said
        assert n1.process is not None
        for pid in (n1.process.pid, *n1.process.children("_control")):  # which lives for seconds more, and tells so
            os.kill(pid, signal.SIGKILL)
        n1.process.popen.wait(10)
        n1.start()  # at once, as the same instance
        assert n1.process.stop() == 0
        n2.start()  # the name is free now
        n2.config.write_text(n2.config.read_text().replace('"node" = "n1"', '"node" = "n2"'))
        assert n2.process is not None
        assert n2.process.stop() == 0
        n1.start()
        n2.start()


@pytest.mark.timeout(600)
def test_twins_that_run_are_named_and_pending_of_each_block_also_when_one_is_cut_off(
    tmp_path: Path, postgres: PostgresServer
) -> None:
    url = urlsplit(postgres.database())
    assert url.port is not None
    link = SlowLink(url.port)
    by_link = url.geturl().replace(f":{url.port}/", f":{link.port}/")
    with closing(link), deployment(tmp_path, {"n1": url.geturl(), "n2": by_link}, ("n1", "n2")) as proxies:
        credential = made(proxies)
        n1, n2 = proxies.nodes
        becomes_a_twin(n2)
        with link.slow(60):
            n2.start()  # without the database it hears of nobody
        for node, other in ((n1, n2), (n2, n1)):
            says(node, f"another node named 'n1' runs at {other.admin_url}, and this one at {node.admin_url}")
        wait_until(
            lambda: "another node named 'n1' runs" in " ".join(proxies.shell("node", "list")[0]["problems"]), "listed", 30
        )

        def pending(key: str, node: int) -> list[str]:
            with api(proxies, node) as client:
                answer: dict[str, Any] = client.post(f"/v1/stores/pay/keys/{key}/block").json()
            return list(answer["pending"])

        for node in (0, 1):
            (named,) = pending("k1", node)
            assert "another node named 'n1' runs at" in named
        with link.slow(60):
            (named,) = pending("k2", 0)
            assert "another node named 'n1' runs at" in named
            wait_until(  # told it is all the same
                lambda: answers(proxies, credential, "k2") == {"InvalidStateException"}, "in force at both", 30
            )
