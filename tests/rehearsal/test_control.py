# SPDX-License-Identifier: Apache-2.0
"""The control file from Python, and the shim on the other end of it: before SoftHSM, driven through python-pkcs11."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.setups import SOFTHSM
from xksfast.errors import OperatorError
from xksfast.native.loader import ffi, lib
from xksfast.rehearsal.ckr import ckr_name, ckr_value
from xksfast.rehearsal.control import ALL_SLOTS, FILE_BYTES, FaultControl, shim_path
from xksfast.rehearsal.counters import BUCKETS, SlotCounters, bucket_end_ns
from xksfast.rehearsal.latency import (
    FUNCTION_CLASSES,
    Latency,
    bimodal_ms,
    describe_latency,
    exponential_ms,
    fixed_ms,
    lognormal_ms,
    no_latency,
    parse_latency,
)
from xksfast.rehearsal.slot import setting_offset

# Reads the labels through the shim, then opens 20 sessions one after the other at slot 63 and prints what came of each.
PROGRAM = """
import json, sys
import pkcs11
module = pkcs11.lib(sys.argv[1])
slots = module.get_slots(token_present=True)
labels = [slot.get_token().label for slot in slots]
outcomes = []
for _ in range(20):
    try:
        slots[-1].get_token().open().close()
        outcomes.append("ok")
    except pkcs11.PKCS11Error as error:
        outcomes.append(type(error).__name__)
print(json.dumps({"labels": labels, "outcomes": outcomes}))
"""


@pytest.fixture
def control(tmp_path: Path) -> Iterator[FaultControl]:
    with FaultControl.create(tmp_path / "control", slots=64) as made:
        yield made


def run_program(control: FaultControl, tmp_path: Path) -> dict[str, list[str]]:
    (tmp_path / "tokens").mkdir(exist_ok=True)
    (tmp_path / "softhsm.conf").write_text(f"directories.tokendir = {tmp_path / 'tokens'}\n")
    environment = {**os.environ, "SOFTHSM2_CONF": str(tmp_path / "softhsm.conf"), **control.environment(SOFTHSM)}
    token = ["--init-token", "--free", "--label", "real", "--pin", "1234", "--so-pin", "12345678"]
    subprocess.run(["softhsm2-util", *token], env=environment, check=True, capture_output=True)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(shim_path())],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    answer: dict[str, list[str]] = json.loads(done.stdout)
    return answer


def test_the_shim_and_python_mean_the_same_words(control: FaultControl, tmp_path: Path) -> None:
    """From the first slot to the last, settings and counters: a layout that differed anywhere between would show."""
    control.slot(63).named("the last one")
    answer = run_program(control, tmp_path)
    assert answer["labels"] == [*(f"p{number}" for number in range(63)), "the last one"]
    assert answer["outcomes"] == ["ok"] * 20
    assert control.words.initialized == 1
    assert control.misuse().unlocked_initializations == 1  # python-pkcs11 calls C_Initialize(NULL)
    assert control.slot(63).counters().calls["open_session"] == control.slot(63).counters().sessions_opened == 20
    assert control.slot(62).counters().calls["open_session"] == 0
    assert control.slot(63).counters().sessions_open == 0
    assert sum(control.slot(63).counters().errors.values()) == 0


def test_a_fault_that_python_sets_is_what_the_shim_does(control: FaultControl, tmp_path: Path) -> None:
    control.slot(63).error("CKR_DEVICE_REMOVED", classes=["open_session"], times=7)
    answer = run_program(control, tmp_path)
    assert answer["outcomes"] == ["DeviceRemoved"] * 7 + ["ok"] * 13
    assert control.slot(63).counters().errors["open_session"] == 7
    assert control.slot(63).words.error_rv == 0


def test_the_shim_refuses_a_file_of_another_layout(control: FaultControl, tmp_path: Path) -> None:
    control.words.version += 1
    with pytest.raises(subprocess.CalledProcessError) as failed:
        run_program(control, tmp_path)
    assert "xksfast rehearse init" in failed.value.stderr


def test_settings_and_counters_do_not_share_cache_lines() -> None:
    assert ffi.sizeof("xksfault_counters") % 64 == 0
    assert ffi.offsetof("xksfault_control", "counters") % 64 == 0
    assert ffi.sizeof("xksfault_control") == FILE_BYTES


def test_create_makes_a_file_for_its_owner_only(tmp_path: Path) -> None:
    FaultControl.create(tmp_path / "control").close()
    assert (tmp_path / "control").stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["control"]


def test_a_new_file_has_no_fault(control: FaultControl) -> None:
    words = bytes(ffi.buffer(ffi.addressof(control.words, "slots")))
    assert not any(words)
    assert control.flags() == []


def test_what_one_opens_is_what_another_sets(control: FaultControl) -> None:
    with FaultControl.open(control.path) as other:
        other.slot(5).hang(max_ms=20, ckr="device_error", classes=["encrypt", "decrypt"])
        assert control.slot(5).words.hang == 1
        assert control.slot(5).words.hang_max_ms == 20
        assert control.slot(5).words.hang_rv == 0x30
        assert control.slot(5).words.hang_classes == 1 << lib.XKS_FAULT_ENCRYPT | 1 << lib.XKS_FAULT_DECRYPT
        assert control.slot(4).words.hang == 0
        other.slot(5).release()
    assert control.slot(5).words.hang == 0


def test_opening_what_is_no_control_file_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(OperatorError, match="xksfast rehearse init"):
        FaultControl.open(tmp_path / "nothing")
    (tmp_path / "short").write_bytes(b"xksfault")
    with pytest.raises(OperatorError, match="make it anew"):
        FaultControl.open(tmp_path / "short")
    (tmp_path / "zeros").write_bytes(bytes(FILE_BYTES))
    with pytest.raises(OperatorError, match="make it anew"):
        FaultControl.open(tmp_path / "zeros")


def test_a_closed_file_is_not_used() -> None:
    control = FaultControl.create(Path(f"/tmp/xksfast-control-{os.getpid()}"))
    control.path.unlink()
    control.close()
    with pytest.raises(OperatorError, match="closed"):
        control.slot(0)


@pytest.mark.parametrize("slots", [-1, 65])
def test_create_refuses_impossible_numbers_of_slots(tmp_path: Path, slots: int) -> None:
    with pytest.raises(OperatorError, match="0 to 64"):
        FaultControl.create(tmp_path / "control", slots=slots)


def test_slots_outside_the_file_are_refused(tmp_path: Path) -> None:
    with FaultControl.create(tmp_path / "control", slots=2) as control:
        assert control.slot(1).number == 1
        for number in (-1, 2):
            with pytest.raises(OperatorError, match="slots 0 to 1"):
                control.slot(number)


def test_every_setter_changes_its_words_and_reset_takes_them_back(control: FaultControl) -> None:
    slot = control.slot(3)
    slot.latency(lognormal_ms(2.0, sigma=0.5)).multiplier(10).servers(4).network_ms(0.5).dead().error(
        5, 10, times=3, at_once=True
    )
    slot.max_sessions(8).login_error().tag_error("general_error").iv_mode("appended_16").wrong_lengths(7)
    slot.flip_bits(encrypt_ppm=5, decrypt_ppm=6)
    words = slot.words
    encrypt = words.latency[lib.XKS_FAULT_ENCRYPT]
    assert (encrypt.kind, encrypt.a_ns, encrypt.b) == (lib.XKS_FAULT_LOGNORMAL, 2_000_000, 500_000)
    assert words.latency[lib.XKS_FAULT_ENCRYPT_INIT].kind == lib.XKS_FAULT_NONE
    assert (words.multiplier_permille, words.servers, words.network_ns, words.dead_rv) == (10_000, 4, 500_000, 0x30)
    assert (words.error_rv, words.error_ppm, words.error_times, words.error_at_once) == (5, 10, 3, 1)
    assert (words.max_sessions, words.login_rv, words.tag_rv, words.iv_mode) == (8, 0xA0, 5, lib.XKS_FAULT_IV_APPENDED_16)
    assert (words.wrong_length_ppm, words.flip_encrypt_ppm, words.flip_decrypt_ppm) == (7, 5, 6)
    slot.restart().lose_login().device_error().reset()
    kept = {"epoch", "login_epoch", "device_error_epoch"}
    scalars = [name for name, _ in ffi.typeof("xksfault_slot").fields if isinstance(getattr(words, name), int)]
    assert {name for name in scalars if getattr(words, name)} == kept
    assert all(words.latency[index].kind == 0 for index in FUNCTION_CLASSES.values())


def test_unknown_names_are_refused_with_the_known_ones(control: FaultControl) -> None:
    with pytest.raises(OperatorError, match=r"known: .*encrypt_init"):
        control.slot(0).latency(fixed_ms(1), ["encrypts"])
    with pytest.raises(OperatorError, match=r"known: .*appended_16"):
        control.slot(0).iv_mode("luna")
    with pytest.raises(OperatorError, match="known: strict"):
        control.set_flags(["strikt"])
    with pytest.raises(OperatorError, match="at most 31 bytes"):
        control.slot(0).named("x" * 32)
    control.slot(0).named("x" * 31)


def test_a_schedule_is_sorted_and_starts_now(control: FaultControl) -> None:
    control.schedule([(2.0, 1, "hang", 0), (0.5, ALL_SLOTS, "latency.encrypt.a_ns", 7)])
    events = control.words.events
    assert (events[0].at_ns, events[0].slot, events[0].value) == (500_000_000, 64, 7)
    assert (events[1].at_ns, events[1].slot, events[1].value) == (2_000_000_000, 1, 0)
    assert events[1].word * 8 == setting_offset("hang")
    assert abs(control.words.timeline_start_ns - time.monotonic_ns()) < 10**10
    assert control.words.event_count == 2
    with pytest.raises(OperatorError, match="no setting"):
        control.schedule([(0, 0, "hanging", 1)])
    with pytest.raises(OperatorError, match="at most 256"):
        control.schedule([(0, 0, "hang", 1)] * 257)


def test_counters_are_reset_but_for_what_is_open(control: FaultControl) -> None:
    counters = control.words.counters[2]
    counters.calls[lib.XKS_FAULT_ENCRYPT] = 9
    counters.histogram[3] = 9
    counters.sessions_open = 4
    control.words.iv_repeats = 2
    control.reset_counters()
    assert control.slot(2).counters().operations == 0
    assert not any(control.slot(2).counters().histogram)
    assert control.slot(2).counters().sessions_open == 4
    assert control.misuse().iv_repeats == 0


def test_quantiles_are_of_the_histogram() -> None:
    histogram = [0] * BUCKETS
    histogram[160] = 98  # 2^20 ns
    histogram[176] = 2  # 2^21 ns
    counted = SlotCounters({}, {}, 0, 0, 0, 0, 0, 0, tuple(histogram))
    assert counted.quantile_ns(0.5) == counted.quantile_ns(0.98) == bucket_end_ns(160) == (1 << 20) * 17 // 16
    assert counted.quantile_ns(0.99) == (1 << 21) * 17 // 16
    assert SlotCounters({}, {}, 0, 0, 0, 0, 0, 0, (0,) * BUCKETS).quantile_ns(0.5) == 0


@pytest.mark.parametrize(
    ("given", "value"), [("CKR_DEVICE_ERROR", 0x30), ("device_error", 0x30), ("0x30", 48), ("48", 48), (48, 48), ("ok", 0)]
)
def test_codes_are_given_by_name_or_number(given: str | int, value: int) -> None:
    assert ckr_value(given) == value


@pytest.mark.parametrize("given", ["CKR_NOTHING", "-1", -1, 1 << 32, "CKR_UNKNOWN", ""])
def test_wrong_codes_are_refused(given: str | int) -> None:
    with pytest.raises(OperatorError, match="CK_RV"):
        ckr_value(given)


def test_a_code_without_a_name_is_shown_as_its_number() -> None:
    assert ckr_name(0x30) == "CKR_DEVICE_ERROR"
    assert ckr_name(0x2FE) == "0x2fe"


@pytest.mark.parametrize(
    ("text", "latency"),
    [
        ("none", no_latency()),
        ("fixed:1.5", fixed_ms(1.5)),
        ("exp:2", exponential_ms(2)),
        ("lognormal:1", lognormal_ms(1)),
        ("lognormal:1:0.5", lognormal_ms(1, sigma=0.5)),
        ("bimodal:1:50:1000", bimodal_ms(1, 50, slow_ppm=1000)),
    ],
)
def test_latencies_are_read_as_they_are_shown(control: FaultControl, text: str, latency: Latency) -> None:
    assert parse_latency(text) == latency
    control.slot(0).latency(latency, ["find"])
    shown = describe_latency(control.slot(0).words.latency[lib.XKS_FAULT_FIND])
    assert shown == "" if text == "none" else parse_latency(shown) == latency


@pytest.mark.parametrize(
    "text", ["", "fixed", "fixed:x", "fixed:-1", "fixed:1:2", "lognormal:1:-1", "bimodal:1:2", "bimodal:1:2:1000001", "gamma:1"]
)
def test_wrong_latencies_are_refused_with_an_example(text: str) -> None:
    with pytest.raises(OperatorError, match=r"lognormal:1:0\.35"):
        parse_latency(text)
