# SPDX-License-Identifier: Apache-2.0
"""`xksfast rehearse` as people and scripts use it."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest

from tests.setups import SOFTHSM
from xksfast import commands
from xksfast.errors import OperatorError
from xksfast.rehearsal.control import FaultControl, shim_path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    FaultControl.create(tmp_path / "control", slots=3).close()
    return tmp_path / "control"


def rehearse(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> dict[str, Any]:
    assert commands.run(["rehearse", *map(str, arguments), "--json"]) == 0
    answer: dict[str, Any] = json.loads(capsys.readouterr().out)
    return answer


def test_init_prints_a_configuration_that_works_when_pasted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    control = tmp_path / "control"
    assert commands.run(["rehearse", "init", str(control), "--module", SOFTHSM, "--slots", "2", "--label", "a b"]) == 0
    printed = tomllib.loads(capsys.readouterr().out)
    assert printed["modules"]["rehearsal"] == {
        "path": str(shim_path()),
        "environment": {"XKSFAULT_MODULE": SOFTHSM, "XKSFAULT_CONTROL": str(control)},
    }
    assert printed["partitions"]["a b"] == {"module": "rehearsal", "token_label": "a b", "profile": "generic"}
    assert list(printed["partitions"]) == ["a b", "p1"]


def test_init_does_not_replace_a_file_in_use(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(OperatorError, match="--force"):
        commands.run(["rehearse", "init", str(file), "--module", SOFTHSM])
    answer = rehearse(capsys, "init", file, "--module", SOFTHSM, "--slots", "1", "--flag", "strict", "--force")
    assert answer["flags"] == ["strict"]
    assert len(answer["slots"]) == 1


def test_init_wants_a_module_that_exists(tmp_path: Path) -> None:
    with pytest.raises(OperatorError, match="no such module"):
        commands.run(["rehearse", "init", str(tmp_path / "control"), "--module", str(tmp_path / "libhsm.so")])
    assert not (tmp_path / "control").exists()


def test_each_command_sets_its_fault_on_the_chosen_slots_only(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cases: list[tuple[list[str], dict[str, Any]]] = [
        (["hang", "--max-ms", "5", "--ckr", "0x30"], {"hang": 1, "hang_max_ms": 5, "hang_rv": "CKR_DEVICE_ERROR"}),
        (["release"], {"hang_max_ms": 5, "hang_rv": "CKR_DEVICE_ERROR"}),
        (["reset"], {}),
        (["dead"], {"dead_rv": "CKR_DEVICE_ERROR"}),
        (["dead", "0"], {}),
        (
            ["error", "device_removed", "--ppm", "50", "--only", "login"],
            {"error_rv": "CKR_DEVICE_REMOVED", "error_ppm": 50, "error_classes": ["login"]},
        ),
        (["reset"], {}),
        (["slow", "10"], {"multiplier_permille": 10000}),
        (["set", "iv_mode", "appended_16"], {"multiplier_permille": 10000, "iv_mode": "appended_16"}),
        (["set", "max_sessions", "8"], {"multiplier_permille": 10000, "iv_mode": "appended_16", "max_sessions": 8}),
        (["reset"], {}),
    ]
    for (command, *rest), faults in cases:
        answer = rehearse(capsys, command, file, *rest, "--slot", "p1")
        assert [slot["faults"] for slot in answer["slots"]] == [{}, faults, {}]


def test_restarts_and_latencies_are_shown(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert [slot["restarts"] for slot in rehearse(capsys, "restart", file, "--slot", "2")["slots"]] == [0, 0, 1]
    assert [slot["restarts"] for slot in rehearse(capsys, "restart", file)["slots"]] == [1, 1, 2]
    answer = rehearse(capsys, "latency", file, "fixed:50", "--only", "login", "--slot", "0", "--servers", "2")
    assert answer["slots"][0]["latency"] == {"login": "fixed:50"}
    assert answer["slots"][0]["faults"] == {"servers": 2}
    assert answer["slots"][1]["latency"] == {}


def test_text_names_slots_faults_and_misuse(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with FaultControl.open(file) as control:
        control.slot(1).dead("CKR_TOKEN_NOT_PRESENT")
        control.words.iv_repeats = 3
    assert commands.run(["rehearse", "status", str(file)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["p0", "p1", "p2", "misuse:"]
    assert "no fault" in lines[0]
    assert "dead_rv=CKR_TOKEN_NOT_PRESENT" in lines[1]
    assert "iv_repeats 3" in lines[3]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["hang", "--slot", "p3"], "p0, p1, p2"),
        (["hang", "--slot", "3"], "slots 0 to 2"),
        (["error", "CKR_BOGUS"], "CKR_DEVICE_ERROR"),
        (["latency", "fast"], "lognormal:1"),
        (["set", "epoch", "1"], "known: multiplier_permille"),
        (["set", "servers", "x"], "whole number"),
    ],
)
def test_wrong_arguments_are_refused_and_change_nothing(file: Path, arguments: list[str], says: str) -> None:
    before = file.read_bytes()
    with pytest.raises(OperatorError, match=says):
        commands.run(["rehearse", arguments[0], str(file), *arguments[1:]])
    assert file.read_bytes() == before
