# SPDX-License-Identifier: Apache-2.0
"""The first seconds of a node, in which it serves already, but has no REST yet: blocks hold in them, too."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from tests.scenario.nodes import REGION, Node, deployment
from tests.scenario.trouble import api, logged
from tests.servers import Process, wait_until


def started(node: Node) -> Process:
    """It serves when this returns, and no more than that."""
    process = node.process = Process(["serve", "--config", str(node.config)], node.directory)
    wait_until(lambda: process.events("serving"), "serves", 20)
    return process


def killed(node: Node) -> None:
    """Every process of it, at once."""
    assert node.process is not None
    for pid in (node.process.pid, *node.process.children("_control"), *node.process.children("_worker")):
        os.kill(pid, signal.SIGKILL)
    node.process.popen.wait(10)


@pytest.mark.timeout(120)
def test_blocks_hold_in_a_nodes_first_seconds(tmp_path: Path) -> None:
    database, older = tmp_path / "state.db", tmp_path / "older.db"
    with deployment(tmp_path, f"sqlite:///{database}", ("n1", "n2")) as pair:
        first, node = pair.nodes
        assert first.process is not None
        assert node.process is not None
        assert node.process.stop() == 0
        with api(pair) as client:
            store = {"name": "pay", "uri_path_prefix": "/pay", "region": REGION, "key_source": "local"}
            credential = client.post("/v1/stores", json=store).json()["credential"]
            assert client.post("/v1/stores/pay/keys", json={"external_key_id": "k1"}).status_code == 201
            with closing(sqlite3.connect(database)) as now, closing(sqlite3.connect(older)) as backup:
                now.backup(backup)
            _, at_node = pair.clients(credential, "/pay", "k1")

            # No message reaches it without REST: it confirms by the log.
            process = started(node)
            blocked = client.post("/v1/stores/pay/keys/k1/block").json()
            assert (sorted(each["node"] for each in blocked["confirmed"]), blocked["pending"]) == (["n1", "n2"], [])
            assert at_node.call("encrypt").error == "InvalidStateException"
            assert process.stop() == 0

        # On a machine that is new it knows the block from the database alone, dies, and finds the database from before the block.
        shutil.rmtree(node.directory / "state")
        started(node)
        wait_until((node.directory / "state" / "copy.jsonl").exists, "the first local copy", 4)
        killed(node)
        assert first.process.stop() == 0
        for file in tmp_path.glob("state.db*"):
            file.unlink()
        shutil.copy(older, database)
        started(node)
        assert len(logged(node, "block_kept")) == 1
        assert at_node.call("encrypt").error == "InvalidStateException"
