# SPDX-License-Identifier: Apache-2.0
"""`xksfast partition list|test|add` on two SoftHSM2 tokens with their own configuration as two HSMs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.admin.hsms import Hsms, make_hsms
from xksfast.admin.partitions.advice import Verdict, advise, free_sessions, worst
from xksfast.config import Partition
from xksfast.native.partition import NOT_TOLD, Latency, Measured, Throughput, TokenInfo

LIST_FIELDS = ["name", "module", "module_path", "profile", "site", "groups", "sessions", "token", "problem"]
TOKEN_FIELDS = ["label", "manufacturer", "model", "serial", "firmware", "hardware", "library", "free_sessions", "flags"]


@pytest.fixture
def hsms(tmp_path: Path) -> Hsms:
    return make_hsms(tmp_path)


# --- list


def test_list_shows_each_partition_with_its_own_token(hsms: Hsms) -> None:
    hsms.config["partitions"]["p1"]["site"] = "cellar"
    hsms.write()
    reports = hsms.json("list")
    assert [list(report) for report in reports] == [LIST_FIELDS, LIST_FIELDS]
    assert [list(report["token"]) for report in reports] == [TOKEN_FIELDS, TOKEN_FIELDS]
    assert [report["token"]["label"] for report in reports] == ["t0", "t1"]
    assert reports[0]["token"]["serial"] != reports[1]["token"]["serial"]
    assert [(report["site"], report["groups"], report["problem"]) for report in reports] == [
        ("", ["main"], ""),
        ("cellar", ["main"], ""),
    ]
    assert {"login_required", "user_pin_initialized", "token_initialized"} <= set(reports[0]["token"]["flags"])
    text = hsms.run("list").stdout
    assert "p1: softhsm, site cellar, in main\n  token 't1', SoftHSM project SoftHSM v2, firmware 2.6" in text


def test_list_needs_no_pin(hsms: Hsms) -> None:
    (hsms.directory / "pin").write_text("999999\n")
    assert [report["problem"] for report in hsms.json("list")] == ["", ""]


def test_list_does_not_stop_at_one_that_fails(hsms: Hsms) -> None:
    hsms.config["partitions"]["p0"]["token_label"] = "gone"
    hsms.write()
    first, second = hsms.json("list", code=4)
    assert first["token"] is None
    assert "there is no token with the label 'gone'" in first["problem"]
    assert second["token"]["label"] == "t1"
    hsms.config["modules"]["hsm1"]["path"] = "/nonexistent.so"
    hsms.write()
    done = hsms.run("list", code=1)
    assert "NOT REACHED: the PKCS#11 module cannot be loaded: /nonexistent.so" in done.stdout


def test_a_configuration_that_is_not_there_is_exit_code_2(hsms: Hsms) -> None:
    assert "cannot be read" in hsms.run("list", "--config", "absent.toml", code=2).stderr


# --- test


def test_test_measures_and_judges(hsms: Hsms) -> None:
    (report,) = hsms.json("test", "p0", "--seconds", "0.1")
    assert list(report) == ["name", "level", "token", "measured", "operations_per_second", "verdicts", "problem"]
    measured = report["measured"]
    assert 0 < measured["encrypt"]["median_ns"] <= measured["encrypt"]["p99_ns"]
    assert measured["session_info"]["samples"] >= 20
    assert (measured["sessions_opened"], measured["sessions_refusal"]) == (2, "")
    assert (measured["tag_failure"], measured["iv_mode"], measured["message_api"]) == ("CKR_GENERAL_ERROR", "caller", False)
    assert set(report["operations_per_second"]) == {"1", "2"}
    assert min(report["operations_per_second"].values()) > 0
    rules = [verdict["rule"] for verdict in report["verdicts"]]
    assert rules == ["self_test", "round_trip", "sessions_opened", "throughput", "message_api"]
    text = hsms.run("test", "--seconds", "0.05").stdout
    assert re.search(r"p0: (ok|warn)\n  token 't0'.*\n  ok     self-test: IVs differ", text)
    assert "p1: " in text


def test_test_uses_the_health_check_key(hsms: Hsms) -> None:
    hsms.config["partition_groups"]["main"]["health_check_key"] = "health"
    hsms.write()
    (report,) = hsms.json("test", "p0", code=1)
    assert "the health check key 'health' is not one AES-256 key" in report["problem"]
    hsms.token(0, "health", "generate", "locked")
    assert hsms.json("test", "p0", "--seconds", "0.05")[0]["problem"] == ""


def test_a_refused_pin_is_tried_once_and_said(hsms: Hsms) -> None:
    (hsms.directory / "other").write_text("999999\n")
    (hsms.directory / "other").chmod(0o600)
    hsms.config["partitions"]["p1"]["pin_file"] = "other"
    hsms.write()
    good, refused = hsms.json("test", "--seconds", "0.05", code=4)
    assert good["level"] in ("ok", "warn")
    assert refused["level"] == "failed"
    assert "C_Login: CKR_PIN_INCORRECT" in refused["problem"]
    assert "will not be tried again" in refused["problem"]


def test_a_token_that_would_reuse_ivs_is_refused(hsms: Hsms) -> None:
    hsms.config["partitions"]["p0"]["profile"] = "cloudhsm"  # which writes its IV over our zeros; SoftHSM does not
    hsms.write()
    (report,) = hsms.json("test", "p0", code=3)
    assert report["level"] == "refuse"
    assert "everything would be encrypted with the same IV" in report["verdicts"][0]["text"]


def test_declared_functionality_modules_and_old_firmware_are_refused(hsms: Hsms) -> None:
    hsms.config["partitions"]["p0"] |= {"profile": "luna", "functionality_modules": True}
    hsms.write()
    stdout = hsms.run("test", "p0", "--seconds", "0.05", code=3).stdout
    assert "refuse firmware 2.6: a Luna needs 7.4 or newer" in stdout
    assert "refuse the HSM is configured for Functionality Modules" in stdout


def test_an_unknown_partition_is_said_with_the_nearest_name(hsms: Hsms) -> None:
    assert "there is no partition 'p00': did you mean 'p0'?" in hsms.run("test", "p00", code=2).stderr


# --- advice


def measured(
    *, median_ms: float = 1.0, p99_ms: float = 2.0, opened: int = 30, single: int = 1000, full: int = 9000, failures: int = 0
) -> Measured:
    def run(threads: int, operations: int, failed: int) -> Throughput:
        return Throughput(threads, operations, failed, 10**9, 10**6, 10**6, "CKR_DEVICE_ERROR" if failed else "")

    return Measured(
        encrypt=Latency(100, int(median_ms * 1e6), int(p99_ms * 1e6)),
        session_info=Latency(100, 1, 1),
        sessions_opened=opened,
        sessions_refusal="" if opened == 30 else "CKR_SESSION_COUNT",
        single=run(1, single, 0),
        full=run(opened, full, failures),
        tag_failure="CKR_ENCRYPTED_DATA_INVALID",
        iv_mode="caller",
        message_api=True,
    )


def token(major: int = 7, minor: int = 8, sessions: int = 0, max_sessions: int = 0) -> TokenInfo:
    return TokenInfo("t", "m", "o", "s", "l", major, minor, 0, 0, 0, 0, sessions, max_sessions, 0, 0, 0)


def luna(sessions: int = 30, functionality_modules: bool | None = False) -> Partition:
    return Partition(
        module="m", token_label="t", profile="luna", sessions=sessions, functionality_modules=functionality_modules
    )


def verdict(rule: str, partition: Partition, about: TokenInfo, numbers: Measured) -> Verdict | None:
    return next((found for found in advise(partition, about, numbers) if found.rule == rule), None)


@pytest.mark.parametrize(
    ("version", "level"), [((7, 3), "refuse"), ((7, 4), "ok"), ((7, 5), "ok"), ((6, 24), "refuse"), ((8, 0), "ok")]
)
def test_a_luna_needs_firmware_7_4(version: tuple[int, int], level: str) -> None:
    found = verdict("firmware", luna(), token(*version), measured())
    assert found is not None
    assert found.level == level
    assert verdict("firmware", Partition(module="m", profile="generic"), token(*version), measured()) is None


@pytest.mark.parametrize(("declared", "level"), [(True, "refuse"), (False, "ok"), (None, "warn")])
def test_functionality_modules_are_known_by_declaration_only(declared: bool | None, level: str) -> None:
    found = verdict("functionality_modules", luna(functionality_modules=declared), token(), measured())
    assert found is not None
    assert found.level == level
    assert verdict("functionality_modules", Partition(module="m", profile="nshield"), token(), measured()) is None


@pytest.mark.parametrize(
    ("median_ms", "p99_ms", "level"),
    [(25, 200, "ok"), (25.1, 30, "warn"), (20, 201, "warn"), (200, 200, "warn"), (201, 300, "refuse")],
)
def test_the_round_trip_is_judged_against_25_ms_and_the_time_that_kms_gives(
    median_ms: float, p99_ms: float, level: str
) -> None:
    found = verdict("round_trip", luna(), token(), measured(median_ms=median_ms, p99_ms=p99_ms))
    assert found is not None
    assert found.level == level


@pytest.mark.parametrize(("sessions", "level"), [(23, "warn"), (24, "ok"), (50, "ok"), (51, "warn")])
def test_the_session_count_is_judged_by_vendor(sessions: int, level: str) -> None:
    found = verdict("session_count", luna(sessions), token(), measured())
    assert found is not None
    assert found.level == level
    assert verdict("session_count", Partition(module="m", sessions=sessions), token(), measured()) is None


def test_missing_sessions_failures_and_no_gain_are_said() -> None:
    found = verdict("sessions_opened", luna(), token(), measured(opened=8))
    assert found is not None
    assert (found.level, "8 of 30 sessions could be opened (CKR_SESSION_COUNT)" in found.text) == ("warn", True)
    failing, flat, good = measured(failures=2), measured(full=1100), measured()
    levels = [verdict("throughput", luna(), token(), numbers) for numbers in (failing, flat, good)]
    assert [found.level for found in levels if found is not None] == ["refuse", "warn", "ok"]
    assert worst(advise(luna(), token(), failing)) == "refuse"
    assert worst(advise(luna(), token(), flat)) == "warn"
    assert worst(advise(luna(), token(), good)) == "ok"


@pytest.mark.parametrize(
    ("sessions", "maximum", "free"), [(3, 10, 7), (12, 10, 0), (3, 0, None), (3, NOT_TOLD, None), (NOT_TOLD, 10, None)]
)
def test_free_sessions_are_told_where_the_token_tells(sessions: int, maximum: int, free: int | None) -> None:
    assert free_sessions(token(sessions=sessions, max_sessions=maximum)) == free


# --- add


LABELLED = ["--token-label", "t9"]
ADD = ["add", "p9", "--pin-file", "pin", "--profile", "softhsm", "--sessions", "3"]


def test_add_tries_the_token_and_keeps_the_rest_of_the_file(hsms: Hsms) -> None:
    hsms.init_token(0, "t9")
    before = "# ours\n" + hsms.file.read_text().replace('["p0", "p1"]', '["p0", "p1"] # in this order')
    hsms.file.write_text(before)
    hsms.file.chmod(0o640)
    arguments = [*ADD, "--module", "hsm0", "--token-label", "t9", "--group", "main"]
    shown = hsms.json(*arguments, "--dry-run")
    assert hsms.file.read_text() == before
    assert (shown["name"], shown["written"], shown["token"]["label"]) == ("p9", False, "t9")
    assert '+[partitions.p9]\n+module = "hsm0"\n+token_label = "t9"\n+pin_file = "pin"\n+profile = "softhsm"\n' in shown["diff"]
    added = hsms.run(*arguments)
    assert "partition p9 was added" in added.stdout
    assert "group main has several partitions now: run xksfast partition replicate main" in added.stderr
    after = hsms.file.read_text()
    assert after.startswith("# ours\n")
    assert '["p0", "p1", "p9"] # in this order' in after
    gone = [line for line in before.splitlines() if line not in after.splitlines()]
    assert gone == ['partitions = ["p0", "p1"] # in this order']
    assert [report["name"] for report in hsms.json("list")] == ["p0", "p1", "p9"]
    assert hsms.file.stat().st_mode & 0o777 == 0o640
    assert [path.name for path in hsms.directory.glob(".xksfast*")] == []


def test_add_makes_a_module_and_a_group(hsms: Hsms) -> None:
    hsms.init_token(1, "t9")
    path, environment = hsms.config["modules"]["hsm1"]["path"], hsms.config["modules"]["hsm1"]["environment"]["SOFTHSM2_CONF"]
    del hsms.config["modules"]["hsm1"], hsms.config["partitions"]["p1"], hsms.config["partition_groups"]
    hsms.write()
    hsms.run(*ADD, "--module", path, "--environment", f"SOFTHSM2_CONF={environment}", "--token-label", "t9", "--group", "new")
    text = hsms.file.read_text()
    assert f'[modules.softhsm2]\npath = "{path}"\nenvironment = {{SOFTHSM2_CONF = "{environment}"}}' in text
    assert '[partition_groups.new]\npartitions = ["p9"]' in text
    assert hsms.json("list")[1]["token"]["label"] == "t9"


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["add", "p0", "--module", "hsm0", "--token-label", "t9"], 2, "there is a partition 'p0' already"),
        ([*ADD, "--module", "hsm0", "--token-label", "t0"], 2, "partition 'p0' names the same token"),
        ([*ADD, "--module", "hms0", "--token-label", "t9"], 2, "there is no module 'hms0': did you mean 'hsm0'?"),
        ([*ADD, "--module", "/absent.so", "--token-label", "t9"], 2, "there is no file /absent.so"),
        ([*ADD, "--module", "hsm0"], 2, "exactly one of --token-label, --serial and --slot says which token"),
        ([*ADD, "--module", "hsm0", "--token-label", "t", "--slot", "1"], 2, "got --token-label and --slot"),
        ([*ADD[:4], "--profile", "softhms", "--module", "hsm0", "--slot", "1"], 2, "profile 'softhms': did you mean 'softhsm'?"),
        ([*ADD, "--module", "hsm0", *LABELLED, "--group", "mian"], 2, "no partition group 'mian': did you mean 'main'?"),
        ([*ADD, "--module", "hsm0", "--token-label", "t9", "--environment", "X"], 2, "--environment 'X': write NAME=VALUE"),
        ([*ADD, "--module", "hsm0", "--token-label", "absent"], 1, "p9 is not added: there is no token with the label"),
        ([*ADD[:2], "--pin-file", "gone", "--module", "hsm1", "--token-label", "t1"], 2, "names the same token"),
    ],
)  # fmt: skip
def test_what_cannot_be_added_is_said_and_nothing_is_written(hsms: Hsms, arguments: list[str], code: int, words: str) -> None:
    before = hsms.file.read_text()
    assert words in hsms.run(*arguments, code=code).stderr
    assert hsms.file.read_text() == before


def test_the_same_token_by_another_name_is_refused_by_its_serial_number(hsms: Hsms) -> None:
    before = hsms.file.read_text()
    serial = hsms.json("list")[0]["token"]["serial"]
    stderr = hsms.run(*ADD, "--module", "hsm0", "--serial", serial, code=3).stderr
    assert f"partition p9 is not added: partition 'p0' is the same token (serial number {serial})" in stderr
    assert hsms.file.read_text() == before


def test_a_token_that_does_not_pass_is_not_added(hsms: Hsms) -> None:
    hsms.init_token(0, "t9")
    before = hsms.file.read_text()
    arguments = ["add", "p9", "--module", "hsm0", "--token-label", "t9", "--pin-file", "pin", "--profile", "cloudhsm"]
    assert "is not added: self-test: " in hsms.run(*arguments, code=3).stderr
    (hsms.directory / "pin").chmod(0o644)
    assert f"chmod 600 {hsms.directory / 'pin'}" in hsms.run(*arguments, code=1).stderr
    assert hsms.file.read_text() == before
