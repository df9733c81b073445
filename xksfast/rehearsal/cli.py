# SPDX-License-Identifier: Apache-2.0
"""`xksfast rehearse`: put faults into running servers, by hand or from a script. The names and words are those of control.py."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import orjson
import typer

from xksfast.errors import OperatorError
from xksfast.rehearsal import report
from xksfast.rehearsal.control import FaultControl
from xksfast.rehearsal.latency import OPERATIONS, PPM, parse_latency
from xksfast.rehearsal.slot import FAULT_FIELDS, SlotControl

rehearse_app = typer.Typer(help="Rehearse failures of HSMs: a PKCS#11 module that injects them.", no_args_is_help=True)

File = Annotated[Path, typer.Argument(help="The control file.")]
Slots = Annotated[list[str] | None, typer.Option("--slot", help="Number or label; may be repeated. Default: every slot.")]
Only = Annotated[
    list[str] | None, typer.Option("--only", help="Class of functions (encrypt, decrypt, login, find, ...); may be repeated.")
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]


@contextmanager
def opened(file: Path, json: bool) -> Iterator[FaultControl]:
    """The control file, and its state on stdout when the change is made."""
    with FaultControl.open(file) as control:
        yield control
        status = report.document(control)
        print(orjson.dumps(status).decode() if json else report.text(status))


def chosen(control: FaultControl, names: list[str] | None) -> list[SlotControl]:
    """The slots with these numbers or labels; all for none."""
    if not names:
        return control.slots()
    by_label = {report.label_of(slot): slot for slot in control.slots()}
    found = []
    for name in names:
        if name in by_label:
            found.append(by_label[name])
        elif name.isdecimal():
            found.append(control.slot(int(name)))
        else:
            raise OperatorError(f"{name}: no slot has this number or label; there are {', '.join(list(by_label)[:8])}")
    return found


def change(file: Path, slots: list[str] | None, json: bool, what: Callable[[SlotControl], object]) -> None:
    """Do something to the chosen slots and print the state."""
    with opened(file, json) as control:
        for slot in chosen(control, slots):
            what(slot)


@rehearse_app.command()
def init(
    file: File,
    module: Annotated[Path, typer.Option("--module", help="The real PKCS#11 module.")],
    slots: Annotated[
        int, typer.Option(help="Virtual slots p0, p1, ... over its first token; 0: one for each token it has, as it is.")
    ] = 0,
    label: Annotated[list[str] | None, typer.Option("--label", help="Labels of the virtual slots, in order.")] = None,
    real_label: Annotated[str, typer.Option(help="Label of the real token behind all virtual slots; default: the first.")] = "",
    flag: Annotated[
        list[str] | None,
        typer.Option(
            "--flag", help="strict, check_ivs, global_lock, hide_3_0, stable_handles or reuse_handles; may be repeated."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Makes random choices repeatable; 0: they are not.")] = 0,
    parameters: Annotated[str, typer.Option(help="LibraryParameters of the real module (NSS softoken).")] = "",
    profile: Annotated[str, typer.Option(help="Profile of the real tokens, for the printed configuration.")] = "generic",
    force: Annotated[bool, typer.Option("--force", help="Replace a control file that is there.")] = False,
    json: Json = False,
) -> None:
    """Make a control file and print the configuration that puts the shim before the real module."""
    if file.exists() and not force:
        raise OperatorError(f"{file} exists: servers may be running on it; give another name, or --force and restart them")
    if not module.exists():
        raise OperatorError(f"{module}: there is no such module; give the path of the HSM's PKCS#11 library with --module")
    with FaultControl.create(file, slots=slots, labels=label or (), flags=flag or (), seed=seed) as control:
        for slot in control.slots():
            slot.named("", real_label=real_label)
        snippet = report.configuration(control, module.absolute(), parameters, profile)
        if json:
            document = {
                **report.document(control),
                "configuration": snippet,
                "environment": control.environment(module.absolute()),
            }
            print(orjson.dumps(document).decode())
        else:
            print(snippet)


@rehearse_app.command()
def status(file: File, json: Json = False) -> None:
    """Faults that are set, and what was counted."""
    with opened(file, json):
        pass


@rehearse_app.command()
def hang(
    file: File,
    slot: Slots = None,
    max_ms: Annotated[int, typer.Option(min=0, help="Calls return after this time; 0: only after release.")] = 0,
    ckr: Annotated[str, typer.Option(help="What they return then (CKR_DEVICE_ERROR, 0x30); default: they go on.")] = "0",
    only: Only = None,
    json: Json = False,
) -> None:
    """Calls do not return until `release`."""
    change(file, slot, json, lambda each: each.hang(max_ms=max_ms, ckr=ckr, classes=only or ()))


@rehearse_app.command()
def release(file: File, slot: Slots = None, json: Json = False) -> None:
    """End a hang."""
    change(file, slot, json, lambda each: each.release())


@rehearse_app.command()
def restart(file: File, slot: Slots = None, json: Json = False) -> None:
    """As if the HSM had restarted: sessions invalid, logins lost, object handles changed."""
    change(file, slot, json, lambda each: each.restart())


@rehearse_app.command("lose-login")
def lose_login(file: File, slot: Slots = None, json: Json = False) -> None:
    """Logins are lost; sessions and handles stay."""
    change(file, slot, json, lambda each: each.lose_login())


@rehearse_app.command("device-error")
def device_error(file: File, slot: Slots = None, json: Json = False) -> None:
    """CKR_DEVICE_ERROR until the server initialises the library again."""
    change(file, slot, json, lambda each: each.device_error())


@rehearse_app.command()
def dead(
    file: File,
    ckr: Annotated[str, typer.Argument(help="What every call returns at once; 0 ends it.")] = "CKR_DEVICE_ERROR",
    slot: Slots = None,
    json: Json = False,
) -> None:
    """Every call fails at once."""
    change(file, slot, json, lambda each: each.dead(ckr))


@rehearse_app.command()
def error(
    file: File,
    ckr: Annotated[str, typer.Argument(help="CK_RV by name or number; 0 ends it.")],
    ppm: Annotated[int, typer.Option(min=0, max=PPM, help="How many of 1,000,000 calls fail.")] = PPM,
    times: Annotated[int, typer.Option(min=0, help="End after so many failures; 0: never.")] = 0,
    at_once: Annotated[bool, typer.Option("--at-once", help="A failing call takes no time.")] = False,
    only: Only = None,
    slot: Slots = None,
    json: Json = False,
) -> None:
    """Calls fail with a CK_RV, all or some."""
    change(file, slot, json, lambda each: each.error(ckr, ppm, classes=only or (), times=times, at_once=at_once))


@rehearse_app.command()
def slow(
    file: File,
    times: Annotated[float, typer.Argument(min=0.001, help="Every latency so many times as long; 1: as usual.")],
    slot: Slots = None,
    json: Json = False,
) -> None:
    """Lengthen the latency that is set."""
    change(file, slot, json, lambda each: each.multiplier(times))


@rehearse_app.command()
def latency(
    file: File,
    distribution: Annotated[str, typer.Argument(help="none, fixed:MS, exp:MS, lognormal:MS[:SIGMA], bimodal:MS:SLOW_MS:PPM.")],
    only: Only = None,
    slot: Slots = None,
    servers: Annotated[
        int | None, typer.Option(min=0, help="Calls worked on at a time, the others queue; 0: no limit.")
    ] = None,
    network_ms: Annotated[float | None, typer.Option(min=0, help="Added to every call that has a latency.")] = None,
    json: Json = False,
) -> None:
    """How long calls take; without --only one round trip for an encryption or decryption."""
    parsed = parse_latency(distribution)

    def apply(each: SlotControl) -> None:
        each.latency(parsed, only or OPERATIONS)
        if servers is not None:
            each.servers(servers)
        if network_ms is not None:
            each.network_ms(network_ms)

    change(file, slot, json, apply)


@rehearse_app.command("set")
def set_word(
    file: File,
    setting: Annotated[str, typer.Argument(help="A setting's name, such as max_sessions.")],
    value: Annotated[str, typer.Argument(help="A number, or a name of a CK_RV or IV mode where the setting is one.")],
    slot: Slots = None,
    json: Json = False,
) -> None:
    """Set one word of the slots; the names are those that `status --json` shows."""
    if setting not in FAULT_FIELDS:
        raise OperatorError(f"{setting}: no setting; known: {', '.join(FAULT_FIELDS)}")
    change(file, slot, json, lambda each: each.set_word(setting, value))


@rehearse_app.command()
def reset(
    file: File,
    slot: Slots = None,
    counters: Annotated[bool, typer.Option("--counters", help="The counters as well.")] = False,
    json: Json = False,
) -> None:
    """No faults and no latency."""
    with opened(file, json) as control:
        for each in chosen(control, slot):
            each.reset()
        if counters:
            control.reset_counters()
