# SPDX-License-Identifier: Apache-2.0
"""`xksfast audit tail|verify`: the event log."""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime
from typing import Annotated, Any

import orjson
import typer

from xksfast.errors import OperatorError
from xksfast.shell import session
from xksfast.shell.session import DONE, FAILED, Shell, command, new_app

app = new_app("What was changed, by whom; and whether the log is whole.")

MOST = 1000
LOOK_EVERY_S = 1.0
_AGO = re.compile(r"([0-9]{1,6})(s|m|h|d)")
_UNIT_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}


@command(app, "tail")
def tail(
    shell: Shell,
    lines: Annotated[int, typer.Option("--lines", "-n", min=1, max=100_000, help="How many of the newest.")] = 20,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with new ones until Ctrl-C.")] = False,
    kind: Annotated[
        str | None, typer.Option("--kind", help="key_store, credential, key, source_key, operator, aws_connection.")
    ] = None,
    id: Annotated[str | None, typer.Option("--id", help="Of the object, such as payments or payments/orders.")] = None,
    actor: Annotated[str | None, typer.Option("--actor", help="Such as operator:root.")] = None,
    action: Annotated[str | None, typer.Option("--action", help="Such as store.block.")] = None,
    since: Annotated[str | None, typer.Option("--since", help="2h, 3d, or 2026-01-31T12:00 (UTC).")] = None,
) -> None:
    """The newest events, oldest of them first. With --json and --follow: one object a line."""
    for option, value in (("kind", kind), ("id", id), ("actor", actor), ("action", action), ("since", since)):
        if value == "":
            raise OperatorError(f"--{option} is empty, which would show every event: give a value, or leave it out")
    filters = session.given(kind=kind, id=id, actor=actor, action=action, from_ms=_moment_ms(since) if since else None)
    events = _newest(shell, filters, lines, 0)
    if shell.json and not follow:
        print(orjson.dumps(events).decode())
        return
    if not events and not follow:
        shell.say("no events")
    seen = 0
    try:
        while True:
            for event in events:
                seen = event["seq"]
                print(orjson.dumps(event).decode() if shell.json else session.visible(_line(event)), flush=True)
            if not follow:
                return
            time.sleep(LOOK_EVERY_S)
            events = _newest(shell, filters, MOST, seen)
    except KeyboardInterrupt:
        raise typer.Exit(DONE) from None


@command(app, "verify")
def verify(shell: Shell) -> None:
    """Recompute the hash chain over the whole log. Exit code 1: something was changed, removed or cut off, and the text says where."""
    with shell.progress("verify", None):
        verdict = shell.api.get("/v1/events/verification")
    text = f"{verdict['events']:,} events, the last one {verdict['seq']} with hash {verdict['head']}"
    shell.show(verdict, f"the log is whole: {text}" if verdict["ok"] else f"THE LOG IS NOT WHOLE: {text}")
    for problem in verdict["problems"]:
        shell.say(problem)
    raise typer.Exit(DONE if verdict["ok"] else FAILED)


def _newest(shell: Shell, filters: dict[str, Any], most: int, after_seq: int) -> list[dict[str, Any]]:
    """Oldest first: events after `after_seq`, `most` of them unless that is 0."""
    found: list[dict[str, Any]] = []
    cursor = None
    while True:
        page = shell.api.get("/v1/events", **filters, limit=min(MOST, most), cursor=cursor)
        found += [event for event in page["items"] if event["seq"] > after_seq]
        cursor = page["next"]
        if (
            cursor is None
            or (page["items"] and page["items"][-1]["seq"] <= after_seq)
            or (not after_seq and len(found) >= most)
        ):
            return list(reversed(found if after_seq else found[:most]))


def _line(event: dict[str, Any]) -> str:
    when = session.moment(event["at_ms"] / 1000)
    by = f"by {event['actor']} from {event['origin']}"
    return f"{when}  {event['seq']:>6}  {event['action']:<22} {event['id']}  {by}{_changes(event)}"


def _changes(event: dict[str, Any]) -> str:
    before, after = event["before"], event["after"]
    if before is None or after is None:
        return ""
    names = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    return f"  ({', '.join(names)})" if names else ""


def _moment_ms(text: str) -> int:
    ago = _AGO.fullmatch(text)
    if ago:
        return int((time.time() - int(ago[1]) * _UNIT_S[ago[2]]) * 1000)
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        raise OperatorError(f"--since {text!r}: write 2h, 3d, or a time such as 2026-01-31T12:00") from None
    return max(0, int((when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp() * 1000))
