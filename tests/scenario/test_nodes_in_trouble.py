# SPDX-License-Identifier: Apache-2.0
"""Nodes that lose their database or die: what was acknowledged stays so, blocks first of all, and the others go on."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from bench.postgres import PostgresServer
from tests.scenario.nodes import Deployment, deployment
from tests.scenario.slow_link import SlowLink
from tests.scenario.trouble import answers, api, made
from tests.servers import wait_until

NAMES = ("n1", "n2")


@pytest.mark.timeout(600)
def test_a_block_without_the_database_holds_everywhere_and_is_recorded_later(tmp_path: Path, postgres: PostgresServer) -> None:
    with deployment(tmp_path, postgres.database(), NAMES) as proxies:
        credential = made(proxies)
        with postgres.away():
            blocked = proxies.shell("key", "block", "pay", "k1")
            assert sorted(each["node"] for each in blocked["confirmed"]) == list(NAMES)
            assert not blocked["recorded"]
            assert answers(proxies, credential, "k1") == {"InvalidStateException"}
            assert answers(proxies, credential, "k2") == {"ok"}
            # It survives the death of a node that starts again from what it knew.
            node = proxies.nodes[1]
            assert node.process is not None
            node.process.popen.kill()
            node.process.popen.wait(10)
            node.start()
            assert answers(proxies, credential, "k1") == {"InvalidStateException"}
            assert answers(proxies, credential, "k2") == {"ok"}
        wait_until(lambda: "key.block" in actions(proxies), "recorded when the database is back", 30)
        assert answers(proxies, credential, "k1") == {"InvalidStateException"}
        proxies.shell("key", "unblock", "pay", "k1")
        wait_until(lambda: answers(proxies, credential, "k1") == {"ok"}, "served again", 20)
        assert proxies.shell("audit", "verify")["ok"]


@pytest.mark.timeout(600)
def test_a_block_asks_whoever_may_serve_heard_of_or_not(tmp_path: Path, postgres: PostgresServer) -> None:
    url = urlsplit(postgres.database())
    assert url.port is not None
    link = SlowLink(url.port)
    by_link = url.geturl().replace(f":{url.port}/", f":{link.port}/")
    with closing(link), deployment(tmp_path, {"n1": url.geturl(), "n2": by_link}, NAMES) as proxies:
        credential = made(proxies)
        n1, n2 = proxies.nodes

        def standing() -> tuple[bool, bool]:
            row = {row["name"]: row for row in proxies.shell("node", "list")}["n2"]
            return row["alive"], row["stopped"]

        def blocked(key: str, by: list[str]) -> list[str]:
            """By these nodes, at once or as soon as this busy machine lets them; what is pending."""

            def look() -> dict[str, Any] | None:
                with api(proxies) as client:
                    answer: dict[str, Any] = client.post(f"/v1/stores/pay/keys/{key}/block").json()
                return answer if sorted(each["node"] for each in answer["confirmed"]) == by else None

            return list(wait_until(look, f"{key} is blocked by {by}", 60)["pending"])

        # Cut off from the database it goes on serving, and nobody but the other node can tell it.
        with link.slow(60):
            wait_until(lambda: standing() == (False, False), "n2 was not heard of for long", 60)
            assert blocked("k1", ["n1", "n2"]) == []
            assert answers(proxies, credential, "k1") == {"InvalidStateException"}
            assert answers(proxies, credential, "k2") == {"ok"}
            assert n2.process is not None
            n2.process.popen.kill()
            n2.process.popen.wait(10)
            (pending,) = proxies.shell("key", "block", "pay", "k1", code=4)["pending"]
            assert "cannot be reached: ConnectError; it was last heard of" in pending
            assert "xksfast state forget-node n2" in pending
        n2.start()
        wait_until(lambda: standing() == (True, False), "n2 is heard of again", 60)
        assert n2.process is not None

        # Stopped in good order it is asked no more.
        assert n2.process.stop() == 0
        assert standing() == (False, True)
        wait_until(lambda: blocked("k1", ["n1"]) == [], "n1 has read of it", 60)

        # Nor does the database know that it was started when that cannot reach it.
        with link.slow(60):
            n2.start()
            assert n2.process.events("local_copy_served")
            assert standing() == (False, True)
            assert blocked("k1", ["n1", "n2"]) == []
        wait_until(lambda: standing() == (True, False), "n2 is there again", 60)

        # Both start without the database: each knows of the other all the same.
        with postgres.away():
            for node in (n1, n2):
                assert node.process is not None
                node.process.popen.kill()
                node.process.popen.wait(10)
                node.start()
                assert node.process.events("local_copy_served")
            assert blocked("k2", ["n1", "n2"]) == []
            assert answers(proxies, credential, "k2") == {"InvalidStateException"}


def actions(proxies: Deployment) -> set[str]:
    """Of the newest events."""
    return {event["action"] for event in proxies.shell("audit", "tail", "--lines", "50")}
