# SPDX-License-Identifier: Apache-2.0
"""The fault of the partition-failure profile: one partition of the server goes wrong and comes back, through `xksfast rehearse`."""

from __future__ import annotations

import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import gevent

from loadtests.series import Mark, Series

FAULTS = ("dead", "hang", "slow", "errors")
SLOW_TIMES = 10.0
ERROR_PPM = 300_000
NEEDS_CONTROL = "partition-failure needs --fault-control FILE, or the server that python -m loadtests starts"


@dataclass(frozen=True)
class Step:
    """What is done to the server at a moment of the run."""

    at_s: float
    text: str
    act: Callable[[], object]


def add_options(add: Callable[..., None]) -> None:
    """--fault…: only the partition-failure profile uses them."""
    add("fault-control", "control file of the fault shim", default="", include_in_web_ui=False)
    add("fault-slot", "the shim's slot that fails", type=int, default=0)
    add("fault", "how it fails", choices=FAULTS, default="dead")


def plan(options: Namespace, window: tuple[float, float], seconds: float) -> list[Step]:
    """The fault's beginning and end. window: shares of the duration."""
    from xksfast.rehearsal.control import FaultControl  # needs the native module, which other profiles do not

    control = FaultControl.open(options.fault_control)
    name = f"p{options.fault_slot}"
    return [
        Step(window[0] * seconds, f"{name}: {options.fault}", lambda: _begin(control, options.fault_slot, options.fault)),
        Step(window[1] * seconds, f"{name}: well again", lambda: _heal(control, options.fault_slot)),
    ]


def carry_out(steps: Sequence[Step], series: Series, start_epoch_s: float) -> None:
    """Each step at its time; every one is marked in the series at the moment it really happened."""
    for step in steps:
        gevent.sleep(max(0.0, start_epoch_s + step.at_s - time.time()))
        step.act()
        series.marks.append(Mark(round(time.time() - start_epoch_s, 3), step.text))


def _begin(control: Any, slot: int, fault: str) -> None:
    partition = control.slot(slot)
    if fault == "dead":
        partition.dead()
    elif fault == "hang":
        partition.hang()
    elif fault == "slow":
        partition.multiplier(SLOW_TIMES)
    else:
        partition.error("CKR_DEVICE_ERROR", ERROR_PPM)


def _heal(control: Any, slot: int) -> None:
    partition = control.slot(slot)
    partition.dead(0).error(0).multiplier(1).release()
