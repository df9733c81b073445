# SPDX-License-Identifier: Apache-2.0
"""What a node does with the file of [state] apply when it starts, and with a fault of its own."""

from __future__ import annotations

import asyncio
import json
import secrets
import socket
from pathlib import Path
from typing import Any, cast

import pytest

from xksfast import messages
from xksfast.admin.applying import apply_declared
from xksfast.admin.control import Control
from xksfast.channel import Channel
from xksfast.config import Config
from xksfast.log import Log

NOTHING = cast(Any, None)


def lines(capfd: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capfd.readouterr().err.splitlines()]


def test_values_that_no_request_may_have_are_named_and_never_shown(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    secret = secrets.token_hex(8)  # too short
    (tmp_path / "secret").write_text(secret)
    (tmp_path / "secret").chmod(0o600)
    file = tmp_path / "declared.toml"
    file.write_text(
        f"""[key_stores.a]
        region = "{"x" * 33}"
        key_source = "local"
        [[key_stores.a.credentials]]
        access_key_id = "AAAAAAAAAAAAAAAAAAAA"
        secret_access_key_file = "secret"
        """
    )
    asyncio.run(apply_declared(NOTHING, NOTHING, file, (), Log("test")))
    said = lines(capfd)
    assert {line["event"] for line in said} == {"not_applied"}
    named = [line["problem"].removeprefix(f"{file}: ").partition(": ")[0] for line in said]
    assert named == ["key_stores.a.region", "key_stores.a.credentials.0.secret_access_key"]
    assert secret not in str(said)


def test_a_fault_while_the_state_is_loaded_is_told_and_does_not_hang(capfd: pytest.CaptureFixture[str]) -> None:
    class Faulty:
        async def load(self, config: Config) -> messages.StateLoaded:
            raise ValueError("Hunter2")

    async def refused() -> messages.StateRefused:
        ours, theirs = socket.socketpair()
        got: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        channel = Channel(ours, messages.FromControl, on_message=lambda message, _: got.set_result(message))
        control = Control(theirs)
        control._node = cast(Any, Faulty())
        await control._load(NOTHING)
        message = await asyncio.wait_for(got, 5)
        channel.close()
        assert isinstance(message, messages.StateRefused)
        return message

    (problem,) = asyncio.run(refused()).problems
    assert "by a fault of the proxy (ValueError): see load_failed in its log" in problem
    (line,) = lines(capfd)
    assert (line["event"], line["problem"], "Hunter2" in str(line)) == ("load_failed", "ValueError", False)
    assert line["where"][-1].endswith(" load")
