# SPDX-License-Identifier: Apache-2.0
"""`xksfast aws create|list|show|delete|unlinked`: connections to AWS KMS."""

from __future__ import annotations

from typing import Annotated

import typer

from xksfast.shell import session
from xksfast.shell.names import ConnectionName
from xksfast.shell.session import DryRun, Shell, Yes, command, new_app

app = new_app("Connections to AWS KMS for linked key stores.")


@command(app, "create")
def create(
    shell: Shell,
    name: Annotated[str, typer.Argument(help="Name of the new connection.")],
    account: Annotated[str, typer.Option("--account", help="AWS account id.")],
    region: Annotated[str, typer.Option("--region", help="AWS region.")],
    profile: Annotated[str | None, typer.Option("--profile", help="Of the AWS configuration where the proxy runs.")] = None,
    role_arn: Annotated[str | None, typer.Option("--role-arn", help="Role to assume.")] = None,
    endpoint_url: Annotated[str | None, typer.Option("--endpoint-url", help="Instead of the region's own.")] = None,
) -> None:
    """Create a connection. The credential is found by boto3 where the proxy runs; none is kept here."""
    body = session.given(
        name=name, account=account, region=region, profile=profile, role_arn=role_arn, endpoint_url=endpoint_url
    )
    made = shell.api.post("/v1/aws-connections", body)
    shell.show(made, session.facts(made))


@command(app, "list")
def list_connections(shell: Shell) -> None:
    """List connections."""
    found = shell.api.items("/v1/aws-connections")
    rows = [(each["name"], each["account"], each["region"], each["profile"] or each["role_arn"] or "-") for each in found]
    shell.show(found, session.table("connection", "account", "region", "by", rows=rows, none="no AWS connections"))


@command(app, "show")
def show(shell: Shell, connection: ConnectionName) -> None:
    """Show a connection."""
    found = shell.api.get(_path(connection))
    shell.show(found, session.facts(found))


@command(app, "delete")
def delete(shell: Shell, connection: ConnectionName, yes: Yes = False, dry_run: DryRun = False) -> None:
    """Delete a connection that no key store uses. Nothing changes in AWS."""
    if not dry_run:
        shell.confirm(f"Delete AWS connection {connection}?", yes)
    would = shell.api.delete(_path(connection), dry_run=dry_run)
    shell.show(would or {"name": connection, "deleted": True}, f"would {would['would']}" if would else f"{connection}: deleted")


@command(app, "unlinked")
def unlinked(shell: Shell, connection: ConnectionName) -> None:
    """Custom key stores in AWS that were made by hand for key stores here; link them with `store link --custom-key-store-id`."""
    found = shell.api.get(_path(connection, "unlinked"))["items"]
    rows = [(each["store"], each["custom_key_store_id"], each["connection_state"], each["problem"]) for each in found]
    shell.show(found, session.table("key store", "custom key store", "state", "problem", rows=rows, none="none"))


def _path(name: str, *more: str) -> str:
    from xksfast.shell.client import path

    return path("aws-connections", name, *more)
