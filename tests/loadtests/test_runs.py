# SPDX-License-Identifier: Apache-2.0
"""Short real runs against `xksfast dev`: verdict and exit code, report, workers, and wrong answers that must not go unnoticed.

What is promised here is loose: the machine of a test run is anybody's. What is shown is that verdicts follow from what happened.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from loadtests.series import WRONG
from loadtests.target import read_target
from tests.fix_proxy import RunningProxy
from tests.loadtests.altering_proxy import altering_proxy

RPS, SECONDS = 100, 2
LOOSE = ("--slo-availability", "0.5", "--slo-p50-ms", "5000", "--slo-p99-ms", "10000", "--slo-p999-ms", "20000")


def run(directory: Path, ready: dict[str, Any], *arguments: str, locust: tuple[str, ...] = LOOSE) -> tuple[int, str]:
    """(exit code, output) of a load test of a running proxy; its report is in `directory`."""
    target = directory / "target.json"
    target.write_text(json.dumps(ready))
    done = subprocess.run(
        [
            sys.executable, "-m", "loadtests", "--target", str(target), "--report-dir", str(directory / "report"),
            "--rps", str(RPS), "--duration", str(SECONDS), "--connections", "8", *arguments, "--", *locust,
        ],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        env={name: value for name, value in os.environ.items() if not name.startswith("XKSFAST_LOAD_")},
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


def series(directory: Path) -> dict[str, Any]:
    return dict(json.loads((directory / "report" / "series.json").read_text()))


def test_a_good_server_ends_with_0_and_every_scheduled_request_is_in_the_report(tmp_path: Path, proxy: RunningProxy) -> None:
    with altering_proxy(proxy.ready["url"], every=0) as between:
        code, output = run(tmp_path, {**proxy.ready, "url": between.url}, locust=(*LOOSE, "--arrivals", "constant"))
        assert code == 0, output
        assert between.connections <= 8, "connections are kept"
    document = series(tmp_path)
    assert document["met"]
    assert document["total"]["requests"] == RPS * SECONDS
    assert not any(name.startswith(WRONG) for name in document["total"]["failures"])
    assert [second["requests"] for second in document["seconds"]] == [RPS] * SECONDS
    assert {"Encrypt", "Decrypt", "GenerateDataKey"} <= set(document["operations"])
    page = (tmp_path / "report" / "report.html").read_text()
    assert page.count("<svg") == 3
    assert "objectives met" in page
    assert proxy.ready["secret_access_key"] not in page + json.dumps(document) + output


def test_an_impossible_objective_ends_with_1(tmp_path: Path, proxy: RunningProxy) -> None:
    code, output = run(tmp_path, proxy.ready, "--duration", "1", locust=(*LOOSE, "--slo-p50-ms", "0.001"))
    assert code == 1, output
    assert "MISSED  p50" in output
    assert [verdict["name"] for verdict in series(tmp_path)["verdicts"] if not verdict["met"]] == ["p50"]


def test_workers_share_one_schedule(tmp_path: Path, proxy: RunningProxy) -> None:
    code, output = run(tmp_path, proxy.ready, "--processes", "2", locust=(*LOOSE, "--arrivals", "constant"))
    assert code == 0, output
    assert series(tmp_path)["total"]["requests"] == RPS * SECONDS


@pytest.mark.parametrize("mix", ["GenerateDataKey=1", "Encrypt=1,Decrypt=3"])
def test_a_server_that_alters_a_ciphertext_is_noticed(tmp_path: Path, proxy: RunningProxy, mix: str) -> None:
    with altering_proxy(proxy.ready["url"], every=5) as between:
        code, output = run(tmp_path, {**proxy.ready, "url": between.url}, locust=(*LOOSE, "--mix", mix))
    failures = series(tmp_path)["total"]["failures"]
    assert code == 1, output
    # a data key's CDIV does not fit; a ciphertext without CDIV is found out when it is decrypted
    noticed = f"{WRONG}: GenerateDataKey" if mix.startswith("Gen") else f"{WRONG}: Decrypt"
    assert any(name.startswith(noticed) and count > 0 for name, count in failures.items()), failures


def test_a_server_that_is_not_there_is_a_failure_of_every_request(tmp_path: Path, proxy: RunningProxy) -> None:
    code, output = run(tmp_path, {**proxy.ready, "url": "http://127.0.0.1:9"}, "--duration", "1")
    assert code == 1, output
    assert series(tmp_path)["verdicts"][0]["measured"] == "0.0000%"


def test_a_target_that_is_not_known_ends_with_2_and_says_what_is_missing(tmp_path: Path) -> None:
    code, output = run(tmp_path, {"url": "http://127.0.0.1:9"})
    assert code == 2
    assert "XKSFAST_LOAD_SECRET_ACCESS_KEY" in output


def test_a_partition_failure_without_a_fault_shim_ends_with_2(tmp_path: Path, proxy: RunningProxy) -> None:
    code, output = run(tmp_path, proxy.ready, "--profile", "partition-failure")
    assert code == 2
    assert "--fault-control" in output


def test_the_open_loop_generator_sends_the_whole_schedule_and_judges(tmp_path: Path, proxy: RunningProxy) -> None:
    code, output = run(tmp_path, proxy.ready, "--generator", "open-loop", "--rps", "500")
    assert code == 0, output
    document = series(tmp_path)
    assert document["conditions"]["generator"] == "open loop"
    assert document["total"]["requests"] == pytest.approx(500 * SECONDS, rel=0.1)
    assert not document["total"]["failures"].keys() & {"ConnectionClosed", "MalformedAnswer", "NotSentOrNotAnswered"}
    assert proxy.ready["secret_access_key"] not in json.dumps(document) + output


def test_the_open_loop_generator_notices_an_altered_ciphertext(tmp_path: Path, proxy: RunningProxy) -> None:
    with altering_proxy(proxy.ready["url"], every=3) as between:
        code, output = run(tmp_path, {**proxy.ready, "url": between.url}, "--generator", "open-loop", "--connections", "4")
    assert code == 1, output
    assert any(name.startswith(WRONG) for name in series(tmp_path)["total"]["failures"])


def test_the_open_loop_generator_names_what_a_server_that_goes_away_left_unanswered(
    tmp_path: Path, proxy: RunningProxy
) -> None:
    with altering_proxy(proxy.ready["url"], every=0) as between:
        between.dies_after = 250  # 100 to have something to decrypt, the rest under load
        code, output = run(tmp_path, {**proxy.ready, "url": between.url}, "--generator", "open-loop", "--connections", "4")
    assert code == 0, f"most were answered, and little is promised here: {output}"
    failures = series(tmp_path)["total"]["failures"]
    assert failures.get("ConnectionClosed", 0) + failures.get("NotSentOrNotAnswered", 0) > 0


def test_the_environment_completes_or_replaces_the_target_file(tmp_path: Path) -> None:
    file = tmp_path / "target.json"
    facts = {"url": "http://a:1/", "uri_path_prefix": "/p", "region": "r", "access_key_id": "A", "keys": {"default": "k"}}
    file.write_text(json.dumps(facts))
    with pytest.raises(ValueError, match="secret_access_key"):
        read_target(str(file), {})
    target, key = read_target(str(file), {"XKSFAST_LOAD_SECRET_ACCESS_KEY": "s", "XKSFAST_LOAD_KEY": "other"})
    assert (target.url, target.secret_access_key, key) == ("http://a:1", "s", "other")
