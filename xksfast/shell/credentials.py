# SPDX-License-Identifier: Apache-2.0
"""`xksfast credential rotate|list|remove`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import orjson
import typer

from xksfast.errors import OperatorError
from xksfast.shell import session
from xksfast.shell.names import AccessKeyId, StoreName
from xksfast.shell.session import DryRun, Shell, Yes, command, new_app

app = new_app("SigV4 credentials: rotate, list, remove.")


@command(app, "rotate")
def rotate(
    shell: Shell,
    store: StoreName,
    out: Annotated[
        Path | None, typer.Option("--out", help="Write it to this new file, 0600, as JSON, and do not show the secret.")
    ] = None,
) -> None:
    """Issue a new credential, whose secret is shown this once. Those that there are stay until they are removed.

    A linked key store's goes to AWS as well. Exit code 4: AWS did not take it; `xksfast store push` tries again.
    """
    session.check_new_file(out)
    linked = shell.api.get(_store_path(store))["link"] is not None
    issued = shell.api.post(_path(store))
    problem = _push(shell, store) if linked else ""
    _show_issued(shell, store, issued, out)
    if problem:
        shell.say(f"AWS still signs with the former credential: {problem}. Next: xksfast store push {store}")
        raise typer.Exit(session.IN_PART)


def _push(shell: Shell, store: str) -> str:
    """Why AWS did not take the newest credential; "" when it did."""
    try:
        shell.api.post(_store_path(store, "push"))
    except OperatorError as error:
        return str(error)
    return ""


def _show_issued(shell: Shell, store: str, issued: dict[str, Any], out: Path | None) -> None:
    if out is not None:
        session.write_secret_file(out, orjson.dumps(issued, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))
        issued.pop("secret_access_key")
        shell.show(issued, f"{out}: new credential {issued['access_key_id']} of {store}")
        return
    shell.show(issued, session.facts(issued, leave_out=("superseded_at", "revision")))
    shell.say("the secret is shown this once: keep it in a safe place")


@command(app, "list")
def list_credentials(shell: Shell, store: StoreName) -> None:
    """List the credentials of a key store, without their secrets.

    Workers report every 5 seconds when a credential signed a request that was accepted, so the last use lags by some.
    """
    found = sorted(shell.api.items(_path(store)), key=lambda each: each["created_at"])
    rows = [
        (
            each["access_key_id"],
            session.moment(each["created_at"]),
            session.moment(each["last_used_at"]) if each["last_used_at"] else "never",
            "current" if not each["superseded_at"] else f"superseded {session.moment(each['superseded_at'])}",
        )
        for each in found
    ]
    shell.show(found, session.table("access key id", "created", "last used", "", rows=rows, none="no credentials"))


@command(app, "remove")
def remove(shell: Shell, store: StoreName, access_key_id: AccessKeyId, yes: Yes = False, dry_run: DryRun = False) -> None:
    """Remove a credential: requests signed with it are refused from then on."""
    if not dry_run:
        shell.confirm(f"Remove credential {access_key_id} of {store}? Requests signed with it are refused then.", yes)
    would = shell.api.delete(_path(store, access_key_id), dry_run=dry_run)
    answer = would or {"access_key_id": access_key_id, "removed": True}
    shell.show(answer, f"would {would['would']}" if would else f"{access_key_id}: removed")


def _path(store: str, *more: str) -> str:
    return _store_path(store, "credentials", *more)


def _store_path(store: str, *more: str) -> str:
    from xksfast.shell.client import path

    return path("stores", store, *more)
