# SPDX-License-Identifier: Apache-2.0
"""`xksfast operator create|list|show|delete|whoami`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from xksfast.shell import session
from xksfast.shell.names import OperatorName
from xksfast.shell.session import DryRun, Shell, Yes, command, new_app

app = new_app("Who may administrate: operators and their tokens.")


@command(app, "create")
def create(
    shell: Shell,
    name: Annotated[str, typer.Argument(help="Name of the new operator.")],
    role: Annotated[str, typer.Option("--role", help="admin, operator, auditor or blocker.")],
    store: Annotated[
        list[str] | None, typer.Option("--store", help="A key store that it may see; may be repeated. Default: all.")
    ] = None,
    expires_in_days: Annotated[int | None, typer.Option("--expires-in-days", help="0: never.")] = None,
    token_out: Annotated[
        Path | None, typer.Option("--token-out", help="Write the token to this new file, 0600, and do not show it.")
    ] = None,
) -> None:
    """Create an operator and its token, which is shown this once."""
    session.check_new_file(token_out)
    body = session.given(name=name, role=role, stores=store, expires_in_days=expires_in_days)
    made = shell.api.post("/v1/operators", body)
    if token_out is not None:
        session.write_secret_file(token_out, made.pop("token").encode() + b"\n")
        shell.show(made, f"{name}: created; its token is in {token_out}")
        return
    shell.show(made, session.facts(made, leave_out=("revision",)))
    shell.say("the token is shown this once: keep it in a safe place")


@command(app, "list")
def list_operators(shell: Shell) -> None:
    """List operators."""
    found = shell.api.items("/v1/operators")
    rows = [
        (each["name"], each["role"], ", ".join(each["stores"]) or "all", session.moment(each["expires_at"])) for each in found
    ]
    shell.show(found, session.table("operator", "role", "key stores", "expires", rows=rows, none="no operators"))


@command(app, "show")
def show(shell: Shell, operator: OperatorName) -> None:
    """Show an operator."""
    found = shell.api.get(_path(operator))
    shell.show(found, session.facts(found))


@command(app, "delete")
def delete(shell: Shell, operator: OperatorName, yes: Yes = False, dry_run: DryRun = False) -> None:
    """Delete an operator: its token is refused from then on."""
    if not dry_run:
        shell.confirm(f"Delete operator {operator}?", yes)
    would = shell.api.delete(_path(operator), dry_run=dry_run)
    shell.show(would or {"name": operator, "deleted": True}, f"would {would['would']}" if would else f"{operator}: deleted")


@command(app, "whoami")
def whoami(shell: Shell) -> None:
    """Whose token this is."""
    found = shell.api.get("/v1/whoami")
    shell.show(found, f"{found['name']}, {found['role']}, key stores: {', '.join(found['stores']) or 'all'}")


def _path(name: str) -> str:
    from xksfast.shell.client import path

    return path("operators", name)
