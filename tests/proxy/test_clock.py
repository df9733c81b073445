# SPDX-License-Identifier: Apache-2.0
"""The change of day: signing keys are with the workers before they are needed. libfaketime moves the clock of every process."""

from __future__ import annotations

import datetime
import glob
import json
import os
import time
from pathlib import Path

import pytest

from tests.client import Client
from tests.servers import wait_until
from tests.setups import Setup

requirement = pytest.mark.requirement


class MovedClock:
    """The wall clock of the server's processes: real time plus an offset, changed while they run."""

    def __init__(self, directory: Path) -> None:
        libraries = glob.glob("/usr/lib/*/faketime/libfaketime.so.1")
        assert libraries, "libfaketime is missing: apt-get install faketime"
        self._file = directory / "faketime"
        self.environment = {
            "LD_PRELOAD": libraries[0],
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }
        self._offset_s = 0.0
        self._write()

    def _write(self) -> None:
        unfinished = self._file.with_suffix(".new")
        unfinished.write_text(f"{self._offset_s:+.3f}")
        os.replace(unfinished, self._file)

    def now(self) -> datetime.datetime:
        return datetime.datetime.fromtimestamp(time.time() + self._offset_s, datetime.UTC)

    def set(self, moment: datetime.datetime) -> None:
        self._offset_s = moment.timestamp() - time.time()
        self._write()


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
