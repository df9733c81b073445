# SPDX-License-Identifier: Apache-2.0
"""What `xksfast rehearse` prints: the state of a control file as a document and as text, and the configuration for `init`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from xksfast.native.loader import ffi
from xksfast.rehearsal.ckr import ckr_name
from xksfast.rehearsal.control import FaultControl, shim_path
from xksfast.rehearsal.latency import FUNCTION_CLASSES, describe_latency
from xksfast.rehearsal.slot import IV_MODES, SlotControl, describe_slot

CKR_FIELDS = ("hang_rv", "dead_rv", "error_rv", "login_rv", "tag_rv")
MASK_FIELDS = ("hang_classes", "error_classes")


def label_of(slot: SlotControl) -> str:
    """The label that the slot shows: its own, or p<number>."""
    label: str = ffi.string(slot.words.label).decode("utf-8", "replace")
    return label or f"p{slot.number}"


def slot_document(slot: SlotControl) -> dict[str, Any]:
    """One slot: what is set and what was counted."""
    counted = slot.counters()
    faults: dict[str, Any] = dict(describe_slot(slot))
    for field in CKR_FIELDS:
        if field in faults:
            faults[field] = ckr_name(faults[field])
    for field in MASK_FIELDS:
        if field in faults:
            faults[field] = [name for name, index in FUNCTION_CLASSES.items() if faults[field] & 1 << index]
    if "iv_mode" in faults:
        faults["iv_mode"] = next((name for name, mode in IV_MODES.items() if mode == faults["iv_mode"]), faults["iv_mode"])
    latency = {name: describe_latency(slot.words.latency[index]) for name, index in FUNCTION_CLASSES.items()}
    return {
        "slot": slot.number,
        "label": label_of(slot),
        "faults": faults,
        "latency": {name: text for name, text in latency.items() if text},
        "restarts": int(slot.words.epoch),
        "operations": counted.operations,
        "calls": counted.calls,
        "errors": counted.errors,
        "sessions_open": counted.sessions_open,
        "in_flight": counted.in_flight,
        "max_in_flight": counted.max_in_flight,
        "hung": counted.hung,
        "logins": counted.logins,
        "p50_ms": round(counted.quantile_ns(0.5) / 1e6, 3),
        "p99_ms": round(counted.quantile_ns(0.99) / 1e6, 3),
    }


def document(control: FaultControl) -> dict[str, Any]:
    """The whole file. Of a file without virtual slots only what was used or set."""
    slots = [slot_document(slot) for slot in control.slots()]
    if control.slot_count == 0:
        slots = [slot for slot in slots if slot["faults"] or slot["latency"] or any(slot["calls"].values())]
    return {
        "file": str(control.path),
        "flags": control.flags(),
        "processes_initialized": int(control.words.initialized),
        "slots": slots,
        "misuse": asdict(control.misuse()),
    }


def slot_line(slot: Mapping[str, Any]) -> str:
    """One slot for people."""
    state = [f"{name}={','.join(value) if isinstance(value, list) else value}" for name, value in slot["faults"].items()]
    state += [f"{name} {text}" for name, text in slot["latency"].items()]
    return (
        f"{slot['label']:<12} {slot['operations']} operations, {sum(slot['errors'].values())} errors, "
        f"{slot['sessions_open']} sessions, {slot['in_flight']} in flight ({slot['hung']} hung), "
        f"p50 {slot['p50_ms']} ms, p99 {slot['p99_ms']} ms; {'; '.join(state) or 'no fault'}"
    )


def text(status: Mapping[str, Any]) -> str:
    """document() for people."""
    lines = [slot_line(slot) for slot in status["slots"]] or ["no call has arrived yet"]
    misused = {name: count for name, count in status["misuse"].items() if count}
    if misused:
        lines.append("misuse: " + ", ".join(f"{name} {count}" for name, count in misused.items()))
    return "\n".join(lines)


def configuration(control: FaultControl, module: Path, parameters: str, profile: str) -> str:
    """The tables for xksfast.toml that put the shim before `module`."""
    environment = ", ".join(f"{name} = {json.dumps(value)}" for name, value in control.environment(module).items())
    lines = ["[modules.rehearsal]", f"path = {json.dumps(str(shim_path()))}", f"environment = {{ {environment} }}"]
    if parameters:
        lines.append(f"parameters = {json.dumps(parameters)}")
    for slot in control.slots() if control.slot_count else []:
        name = label_of(slot)
        lines += ["", f"[partitions.{json.dumps(name)}]", 'module = "rehearsal"', f"token_label = {json.dumps(name)}"]
        lines.append(f"profile = {json.dumps(profile)}")
    return "\n".join(lines)
