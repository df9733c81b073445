# SPDX-License-Identifier: Apache-2.0
"""The change of day: signing keys are with the workers before they are needed. A preloaded clock is moved in every process."""

from __future__ import annotations

import datetime
import json
import mmap
import struct
import subprocess
import time
from pathlib import Path

import pytest

from tests.client import Client
from tests.servers import wait_until
from tests.setups import Setup

requirement = pytest.mark.requirement

OFFSET = struct.Struct("=q")  # nanoseconds


class MovedClock:
    """The wall clock of the server's processes: real time plus an offset, changed while they run."""

    def __init__(self, directory: Path) -> None:
        library, offset = directory / "moved_clock.so", directory / "offset"
        source = Path(__file__).with_name("moved_clock.c")
        subprocess.run(["gcc", "-O1", "-Wall", "-Werror", "-shared", "-fPIC", "-o", library, source], check=True)
        offset.write_bytes(bytes(OFFSET.size))
        with offset.open("r+b") as file:
            self._offset = mmap.mmap(file.fileno(), OFFSET.size)
        self.environment = {"LD_PRELOAD": str(library), "MOVED_CLOCK": str(offset)}

    def now(self) -> datetime.datetime:
        (offset_ns,) = OFFSET.unpack(self._offset)
        return datetime.datetime.fromtimestamp(time.time() + offset_ns / 1e9, datetime.UTC)

    def set(self, moment: datetime.datetime) -> None:
        """An aligned word: whoever reads it sees the former or the new one."""
        self._offset[:] = OFFSET.pack(int((moment.timestamp() - time.time()) * 1e9))


def call(client: Client, clock: MovedClock) -> int:
    """The status of an Encrypt signed with the moved clock."""
    path, body = client.path("encrypt"), json.dumps(client.valid("encrypt")).encode()
    return client.send("POST", path, body, client.target.sign(path, body, clock.now())).status


@requirement(122, 124, 132)
def test_requests_flow_over_two_changes_of_day_without_a_reload(tmp_path: Path) -> None:
    setup, clock = Setup(tmp_path), MovedClock(tmp_path)
    midnight = datetime.datetime(2027, 3, 1, tzinfo=datetime.UTC)
    clock.set(midnight - datetime.timedelta(seconds=3))
    with setup.running(clock.environment) as process:
        client = setup.client()
        for day in range(2):
            change = midnight + datetime.timedelta(days=day)
            if day:
                clock.set(change - datetime.timedelta(seconds=3))
                # The day before this change is "today" of the workers' keys: nothing had to be handed over for it.
                assert call(client, clock) == 200
            while clock.now() < change + datetime.timedelta(seconds=2):
                assert call(client, clock) == 200
            renewed = wait_until(lambda n=day: process.events("signing_keys_renewed")[n:], "keys of the next day", 5)
            following = change + datetime.timedelta(days=1)
            assert f"{following:%Y%m%d}" in renewed[-1]["days"]
            assert call(client, clock) == 200
        assert process.events("reloading") == []
        client.close()


def test_a_clock_that_jumps_a_month_gets_its_keys_by_itself(tmp_path: Path) -> None:
    setup, clock = Setup(tmp_path), MovedClock(tmp_path)
    with setup.running(clock.environment) as process:
        client = setup.client()
        clock.set(clock.now() + datetime.timedelta(days=31))
        wait_until(lambda: process.events("signing_keys_renewed"), "noticed", 5)
        wait_until(lambda: len(process.events("delta_applied")) == 2, "served", 5)
        assert call(client, clock) == 200
        client.close()
