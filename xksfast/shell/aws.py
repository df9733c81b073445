# SPDX-License-Identifier: Apache-2.0
"""`xksfast aws`: connections to AWS KMS (create, list, show, delete, unlinked), and for those who build AWS's side of a key store
themselves snippet and topology."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from xksfast.errors import OperatorError
from xksfast.shell import session
from xksfast.shell.names import ConnectionName, StoreName
from xksfast.shell.session import FAILED, DryRun, Shell, Yes, command, new_app

app = new_app("Connections to AWS KMS for linked key stores, and what builds AWS's side by hand.")


class SnippetFormat(StrEnum):
    """What a snippet is written for."""

    AWS_CLI = "aws-cli"
    TERRAFORM = "terraform"
    CLOUDFORMATION = "cloudformation"


Connectivity = Annotated[
    str | None,
    typer.Option("--connectivity", help="PUBLIC_ENDPOINT or VPC_ENDPOINT_SERVICE, instead of what the store has."),
]


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


@command(app, "snippet")
def snippet(
    shell: Shell,
    store: StoreName,
    format: Annotated[SnippetFormat, typer.Option("--format", help="What it is written for.")] = SnippetFormat.AWS_CLI,
    key: Annotated[
        list[str] | None, typer.Option("--key", help="External key id; may be repeated. Default: all that are not linked.")
    ] = None,
    custom_key_store_name: Annotated[
        str | None, typer.Option("--custom-key-store-name", help="Default: the store's own name.")
    ] = None,
    connectivity: Connectivity = None,
    issue_credential: Annotated[
        bool, typer.Option("--issue-credential", help="With a new credential in its file, instead of a placeholder.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option("--out", help="Directory for the text and its files, 0600. Default: stdout.")
    ] = None,
) -> None:
    """What builds AWS's side of a key store and its keys: AWS CLI lines, Terraform, or what CloudFormation can.

    The secrets of credentials that there are cannot be shown: a placeholder stands in their place, which AWS refuses. With
    --issue-credential there is a new one; those that there are stay until they are removed.
    """
    if issue_credential and out is None and not shell.json:
        raise OperatorError(
            "--issue-credential: name a directory with --out, since the secret goes to a file and not to the terminal"
        )
    where = _store_path(store, "snippet")
    chosen = {"format": format.value, "custom_key_store_name": custom_key_store_name, "connectivity": connectivity}
    found = None
    if not issue_credential or out is not None:
        found = shell.api.get(where, **chosen, key=key)
    if out is not None:
        assert found is not None
        paths = [out / name for name in (found["file_name"], *(each["name"] for each in found["files"]))]
        out.mkdir(mode=0o700, exist_ok=True)
        for path in paths:
            session.check_new_file(path)
    if issue_credential:
        found = shell.api.post(where, session.given(**chosen, keys=key))
    assert found is not None
    if out is None:
        shell.show(found, found["text"].rstrip("\n"))
        for each in found["files"]:
            shell.say(f"it reads {each['name']}, which is: {each['content'].strip()}")
        return
    contents = [found["text"], *(each["content"] for each in found["files"])]
    for path, content in zip(paths, contents, strict=True):
        session.write_secret_file(path, content.encode())
    told = {"files": [str(path) for path in paths], "access_key_id": found["access_key_id"], "issued": found["issued"]}
    credential = f"; new credential {found['access_key_id']}" if found["issued"] else ""
    shell.show(told, f"written: {', '.join(told['files'])}{credential}")
    if found["files"] and not found["issued"]:
        shell.say(f"{paths[-1]} holds a placeholder for the secret: --issue-credential writes a new credential")


@command(app, "topology")
def topology(shell: Shell, store: StoreName, connectivity: Connectivity = None) -> None:
    """What must be true between AWS KMS and a key store: names, certificate, VPC endpoint service. Nothing calls AWS.

    Exit code 1: something of it is wrong. What cannot be seen from the proxy is "to do".
    """
    found = shell.api.get(_store_path(store, "topology"), connectivity=connectivity)

    def rows() -> Any:
        from rich.console import Group

        named = {name: value for name, value in found.items() if name not in ("findings", "level")}
        findings = [(each["level"], each["rule"], each["text"]) for each in found["findings"]]
        return Group(session.facts(named)(), "", session.table("", "rule", "", rows=findings, fold=True, none="nothing")())

    shell.show(found, rows)
    if found["level"] == "problem":
        raise typer.Exit(FAILED)


def _store_path(name: str, *more: str) -> str:
    from xksfast.shell.client import path

    return path("stores", name, "aws", *more)


def _path(name: str, *more: str) -> str:
    from xksfast.shell.client import path

    return path("aws-connections", name, *more)
