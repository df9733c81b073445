# SPDX-License-Identifier: Apache-2.0
"""`xksfast key`: create, list, show, update, rotate, enable, block, delete, and their like in AWS."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from xksfast.shell import session
from xksfast.shell.names import KeyName, KeyNames, StoreName
from xksfast.shell.session import DryRun, Shell, Yes, command, new_app

app = new_app("HYOK keys: create, rotate, enable, block, delete.")

All = Annotated[bool, typer.Option("--all", help="Every key of the store.")]
Reason = Annotated[str, typer.Option("--reason", help="For the event log.")]
Usage = Annotated[str | None, typer.Option("--usage", help='ENCRYPT,DECRYPT, one of them, or "" for none.')]
Alias = Annotated[str | None, typer.Option("--alias")]
Description = Annotated[str | None, typer.Option("--description")]
Tags = Annotated[list[str] | None, typer.Option("--tag", help="NAME=VALUE; may be repeated.")]
RotateDays = Annotated[int | None, typer.Option("--rotate-days", help="A new version every so many days; 0: never.")]
Label = Annotated[str | None, typer.Option("--label", help="CKA_LABEL of a source key that is there. Default: one is made.")]
Create = Annotated[bool, typer.Option("--create", help="Make the source key --label when there is none.")]


@command(app, "create")
def create(
    shell: Shell,
    store: StoreName,
    key: KeyName,
    usage: Usage = None,
    label: Label = None,
    create: Create = False,
    alias: Alias = None,
    description: Description = None,
    tag: Tags = None,
    rotate_days: RotateDays = None,
    disabled: Annotated[bool, typer.Option("--disabled", help="Not to be used yet.")] = False,
) -> None:
    """Create a key."""
    body = session.given(
        external_key_id=key,
        usage=_usage(usage),
        label=label,
        create=create or None,
        alias=alias,
        description=description,
        tags=session.pairs(tag, "--tag"),
        rotate_days=rotate_days,
        enabled=False if disabled else None,
    )
    made = shell.api.post(_path(store), body)
    shell.show(made, session.facts(made))


@command(app, "list")
def list_keys(
    shell: Shell,
    store: StoreName,
    name_prefix: Annotated[str | None, typer.Option("--name-prefix")] = None,
    enabled: Annotated[bool | None, typer.Option("--enabled/--disabled")] = None,
    blocked: Annotated[bool | None, typer.Option("--blocked/--not-blocked")] = None,
    linked: Annotated[bool | None, typer.Option("--linked/--not-linked")] = None,
) -> None:
    """List the keys of a key store."""
    found = shell.api.items(_path(store), name_prefix=name_prefix, enabled=enabled, blocked=blocked, linked=linked)

    def rows() -> Any:
        return session.table(
            "key", "state", "version", "source key", "usage", "alias",
            right=("version",),
            rows=[
                (
                    each["external_key_id"],
                    session.state_cell(each["blocked"], each["state"]),
                    each["version"],
                    each["label"],
                    ", ".join(each["usage"]) or "-",
                    each["alias"],
                )
                for each in found
            ],
            none=f"no keys in {store}",
        )()  # fmt: skip

    shell.show(found, rows)
    for each in found:
        _say_hint(shell, f"{store}/{each['external_key_id']}", each["hint"])


@command(app, "show")
def show(shell: Shell, store: StoreName, key: KeyName) -> None:
    """Show a key, and how often its current version has encrypted.

    Workers report every 5 seconds, so the number lags by some. No IV depends on it: it says when a rotation is due, long before
    the end.
    """
    found = shell.api.get(_path(store, key))
    shell.show(found, session.facts(found, leave_out=("hint",)))
    _say_hint(shell, f"{store}/{key}", found["hint"])


@command(app, "versions")
def versions(shell: Shell, store: StoreName, key: KeyName) -> None:
    """List the versions of a key: the current one encrypts, all decrypt.

    Encryptions are counted on all nodes, and lag by the 5 seconds in which workers report. No IV depends on them: they say when
    a rotation is due, long before the end.
    """
    found = shell.api.get(_path(store, key, "versions"))["items"]
    rows = [
        (
            each["number"],
            each["label"],
            session.moment(each["created_at"]),
            f"{each['encryptions']:,}",
            "current" if each["current"] else "",
        )
        for each in found
    ]
    columns = ("version", "source key", "created", "encryptions", "")
    shell.show(found, session.table(*columns, right=("version", "encryptions"), rows=rows, none="none"))
    for each in found:
        _say_hint(shell, f"{store}/{key}", each["hint"])


@command(app, "update")
def update(
    shell: Shell,
    store: StoreName,
    key: KeyName,
    usage: Usage = None,
    alias: Alias = None,
    description: Description = None,
    tag: Tags = None,
    rotate_days: RotateDays = None,
    revision: Annotated[int | None, typer.Option("--revision", help="Refused when the key has changed since this one.")] = None,
) -> None:
    """Change a key; what is not named stays."""
    body = session.given(
        usage=_usage(usage), alias=alias, description=description, tags=session.pairs(tag, "--tag"), rotate_days=rotate_days
    )
    changed = shell.api.patch(_path(store, key), body, revision=revision)
    shell.show(changed, session.facts(changed))


@command(app, "rotate")
def rotate(shell: Shell, store: StoreName, key: KeyName, label: Label = None, create: Create = False) -> None:
    """Give a key a new version, which encrypts from now on. All former ones go on decrypting."""
    rotated = shell.api.post(_path(store, key, "rotate"), session.given(label=label, create=create or None))
    shell.show(rotated, f"{store}/{key}: version {rotated['version']} encrypts from now on (source key {rotated['label']})")


@command(app, "enable")
def enable(shell: Shell, store: StoreName, key: KeyNames = None, everything: All = False) -> None:
    """Enable keys."""
    _switch(shell, "enable", store, key, everything)


@command(app, "disable")
def disable(shell: Shell, store: StoreName, key: KeyNames = None, everything: All = False) -> None:
    """Disable keys: KMS is told so."""
    _switch(shell, "disable", store, key, everything)


@command(app, "block")
def block(shell: Shell, store: StoreName, key: KeyNames = None, everything: All = False, reason: Reason = "") -> None:
    """The kill switch for keys. Asks no question."""
    _switch(shell, "block", store, key, everything, reason)


@command(app, "unblock")
def unblock(shell: Shell, store: StoreName, key: KeyNames = None, everything: All = False) -> None:
    """Serve keys again."""
    _switch(shell, "unblock", store, key, everything)


@command(app, "delete")
def delete(
    shell: Shell, store: StoreName, key: KeyNames = None, everything: All = False, yes: Yes = False, dry_run: DryRun = False
) -> None:
    """Delete keys that are disabled. What was encrypted with them cannot be read then; key material in an HSM stays."""
    from xksfast.shell import many

    names = many.chosen(shell, key, everything, ("stores", store, "keys"), "external_key_id")
    if not dry_run:
        shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        shell.confirm(f"Delete {len(names)} keys of {store} ({shown})? What they encrypted cannot be read then.", yes)
    many.each(shell, "delete", names, lambda name: shell.api.delete(_path(store, name), dry_run=dry_run))


@command(app, "link")
def link(
    shell: Shell,
    store: StoreName,
    key: KeyName,
    key_arn: Annotated[str | None, typer.Option("--key-arn", help="A KMS key that was made by hand.")] = None,
) -> None:
    """Make the KMS key in AWS, or take one that was made by hand. Its store must be linked."""
    _tell_link(shell, shell.api.post(_path(store, key, "link"), session.given(key_arn=key_arn)))


@command(app, "sync")
def sync(shell: Shell, store: StoreName, key: KeyName) -> None:
    """Look at AWS's side of a linked key; what differs is told."""
    _tell_link(shell, shell.api.post(_path(store, key, "sync")))


@command(app, "schedule-deletion")
def schedule_deletion(
    shell: Shell,
    store: StoreName,
    key: KeyName,
    days: Annotated[int, typer.Option("--days", min=7, max=30, help="Until then it can be cancelled.")] = 30,
    yes: Yes = False,
) -> None:
    """Schedule the deletion of the KMS key in AWS; the key here stays."""
    shell.confirm(f"Have AWS delete the KMS key of {store}/{key} in {days} days?", yes)
    _tell_link(shell, shell.api.post(_path(store, key, "schedule-deletion"), {"days": days}))


@command(app, "cancel-deletion")
def cancel_deletion(shell: Shell, store: StoreName, key: KeyName) -> None:
    """Cancel the scheduled deletion of the KMS key, which is disabled afterwards."""
    _tell_link(shell, shell.api.post(_path(store, key, "cancel-deletion")))


def _say_hint(shell: Shell, key: str, hint: str) -> None:
    """Not with --json, where it stands in the document."""
    if hint and not shell.json:
        shell.say(f"{key}: {hint}")


def _tell_link(shell: Shell, found: dict[str, Any]) -> None:
    link = found["link"] or {"key_arn": "not linked", "key_state": "", "drift": []}
    shell.show(found, f"{found['store']}/{found['external_key_id']}: {link['key_arn']} {link['key_state']}".rstrip())
    for text in link["drift"]:
        shell.say(text)


def _switch(shell: Shell, action: str, store: str, keys: list[str] | None, everything: bool, reason: str = "") -> None:
    from xksfast.shell import many

    names = many.chosen(shell, keys, everything, ("stores", store, "keys"), "external_key_id")
    if len(names) != 1 or everything:
        many.bulk(shell, action, "keys", [f"{store}/{name}" for name in names], reason)
    body = {"reason": reason} if action == "block" else None
    answer = shell.api.post(_path(store, names[0], action), body)
    if "confirmed" in answer:
        many.confirmed(shell, f"{action} {store}/{names[0]}", answer)
    shell.show(answer, f"{store}/{names[0]}: {answer['state']}")


def _usage(given: str | None) -> list[str] | None:
    if given is None:
        return None
    return [word.strip().upper() for word in given.split(",") if word.strip()]


def _path(store: str, *more: str) -> str:
    from xksfast.shell.client import path

    return path("stores", store, "keys", *more)
