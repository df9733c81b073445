# SPDX-License-Identifier: Apache-2.0
"""Short real runs against `xksfast dev`: verdict and exit code, report, workers, and wrong answers that must not go unnoticed.

What is promised here is loose: the machine of a test run is anybody's. What is shown is that verdicts follow from what happened.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from bench.processes import children
from loadtests.series import WRONG
from loadtests.target import read_target
from tests.fix_proxy import RunningProxy
from tests.loadtests.altering_proxy import altering_proxy

RPS, SECONDS = 100, 2
LOOSE = ("--slo-availability", "0.5", "--slo-p50-ms", "5000", "--slo-p99-ms", "10000", "--slo-p999-ms", "20000")


def run(
    directory: Path,
    ready: dict[str, Any],
    *arguments: str,
    locust: tuple[str, ...] = LOOSE,
    during: Callable[[subprocess.Popen[bytes], Path], None] | None = None,
    pictures: bool = False,
) -> tuple[int, str]:
    """(exit code, output) of a load test of a running proxy; its report is in `directory`. during(process, file of its output)."""
    target, log = directory / "target.json", directory / "log"
    target.write_text(json.dumps(ready))
    with log.open("wb") as output:
        process = subprocess.Popen(
            [
                sys.executable, "-m", "loadtests", "--target", str(target), "--report-dir", str(directory / "report"),
                "--rps", str(RPS), "--duration", str(SECONDS), "--connections", "8", *arguments, "--", *locust,
                *([] if pictures else ["--no-pictures"]),
            ],
            stdout=output,
            stderr=subprocess.STDOUT,
            env={name: value for name, value in os.environ.items() if not name.startswith("XKSFAST_LOAD_")},
        )  # fmt: skip
    try:
        if during is not None:
            during(process, log)
        return process.wait(100), log.read_text()
    finally:
        process.terminate()
        process.wait(10)


def series(directory: Path) -> dict[str, Any]:
    return dict(json.loads((directory / "report" / "series.json").read_text()))


def test_a_good_server_ends_with_0_and_every_scheduled_request_is_in_the_report(tmp_path: Path, proxy: RunningProxy) -> None:
    with altering_proxy(proxy.ready["url"], every=0) as between:
        code, output = run(
            tmp_path, {**proxy.ready, "url": between.url}, locust=(*LOOSE, "--arrivals", "constant"), pictures=True
        )
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


def test_two_workers_share_one_schedule_and_account_for_all_of_it(tmp_path: Path, proxy: RunningProxy) -> None:
    more = ("--processes", "2", "--rps", "200", "--duration", "4")
    code, output = run(tmp_path, proxy.ready, *more, locust=(*LOOSE, "--arrivals", "constant"))
    assert code == 0, output
    document = series(tmp_path)
    assert document["result"] == "objectives met"
    assert document["total"]["requests"] == 800
    assert "NotSentOrNotAnswered" not in document["total"]["failures"]
    assert [second["requests"] for second in document["seconds"]] == [200] * 4, "both began at the same moment"


def test_a_worker_that_is_lost_ends_with_1_and_is_named(tmp_path: Path, proxy: RunningProxy) -> None:
    def lose_one_worker(name: str, moment: str) -> tuple[int, str]:
        def kill(load_test: subprocess.Popen[bytes], log: Path) -> None:
            deadline = time.monotonic() + 30
            while moment not in log.read_text():
                assert load_test.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.02)
            (master,) = children(load_test.pid, "locustfile")
            os.kill(children(master, "locustfile")[0], signal.SIGKILL)

        (tmp_path / name).mkdir()
        return run(tmp_path / name, proxy.ready, "--processes", "2", "--duration", "1", during=kill)

    with ThreadPoolExecutor() as pool:  # both wait most of the time
        early = pool.submit(lose_one_worker, "early", "2 workers connected")
        late = pool.submit(lose_one_worker, "late", "the schedule begins")
    for lost, name, reason in (
        (early, "early", "did not answer the start"),
        (late, "late", "did not tell their last outcomes"),
    ):
        code, output = lost.result()
        assert code == 1, output
        assert reason in series(tmp_path / name)["reason"], output


def test_a_server_that_is_too_slow_is_to_blame_itself(tmp_path: Path, proxy: RunningProxy) -> None:
    with altering_proxy(proxy.ready["url"], every=0) as between:
        between.delay_s = 0.4
        code, output = run(tmp_path, {**proxy.ready, "url": between.url}, "--rps", "40", "--duration", "1", locust=())
    assert code == 1, output
    assert "MISSED  p50" in output
    assert series(tmp_path)["result"] == "objectives missed"
    assert {"availability", "p50", "p99"} <= {verdict["name"] for verdict in series(tmp_path)["verdicts"] if not verdict["met"]}
    assert series(tmp_path)["total"]["failures"]["LaterThan250ms"] > 0


def test_a_generator_that_cannot_keep_up_ends_with_3_and_blames_itself(tmp_path: Path, proxy: RunningProxy) -> None:
    # Long enough that the idle second before the schedule does not count: it wants less than a whole CPU then.
    code, output = run(tmp_path, proxy.ready, "--rps", "20000", "--duration", "3", locust=())
    assert code == 3, output
    assert "GENERATOR LATE" in output
    assert series(tmp_path)["result"] == "generator late: result not valid"
    assert "generator late" in (tmp_path / "report" / "report.html").read_text()


def test_a_server_that_alters_ciphertexts_is_noticed(tmp_path: Path, proxy: RunningProxy) -> None:
    mix = ("--mix", "GenerateDataKey=1,Encrypt=1,Decrypt=3")
    with altering_proxy(proxy.ready["url"], every=5) as between:
        code, output = run(tmp_path, {**proxy.ready, "url": between.url}, locust=(*LOOSE, *mix))
    failures = series(tmp_path)["total"]["failures"]
    assert code == 1, output
    # a data key's CDIV does not fit; a ciphertext without CDIV is found out when it is decrypted
    for noticed in (f"{WRONG}: GenerateDataKey", f"{WRONG}: Decrypt"):
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
