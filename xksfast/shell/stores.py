# SPDX-License-Identifier: Apache-2.0
"""`xksfast store`: create, list, show, update, block, delete, and their like in AWS."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import orjson
import typer

from xksfast.errors import OperatorError
from xksfast.shell import session
from xksfast.shell.names import StoreName, StoreNames
from xksfast.shell.session import DryRun, Shell, Yes, command, new_app

app = new_app("External key stores: create, change, block, delete.")

All = Annotated[bool, typer.Option("--all", help="Every key store.")]
Reason = Annotated[str, typer.Option("--reason", help="For the event log.")]
Prefix = Annotated[str | None, typer.Option("--uri-path-prefix", help="What stands before /kms/xks/v1, such as /payments.")]
Account = Annotated[str | None, typer.Option("--account", help="AWS account id.")]
Description = Annotated[str | None, typer.Option("--description")]
Endpoint = Annotated[str | None, typer.Option("--endpoint", help="https://host by which KMS reaches this proxy.")]
Connectivity = Annotated[str | None, typer.Option("--connectivity", help="PUBLIC_ENDPOINT or VPC_ENDPOINT_SERVICE.")]
ServiceName = Annotated[str | None, typer.Option("--vpc-endpoint-service-name")]
MaxCredentials = Annotated[int | None, typer.Option("--max-credentials", help="2 to 20; 4 in a new store.")]
RotateDays = Annotated[
    int | None, typer.Option("--rotate-credential-days", help="Issue a new credential every so many days; 0: never.")
]
Principals = Annotated[
    list[str] | None,
    typer.Option(
        "--allowed-principal", help="ARN of who may use the keys, with * for any characters; may be repeated. None: everybody."
    ),
]
OnStale = Annotated[str | None, typer.Option("--on-stale", help="serve or refuse, when the state has not been heard of.")]
StaleAfter = Annotated[int | None, typer.Option("--stale-after-s", help="After how many seconds that is.")]
Tags = Annotated[list[str] | None, typer.Option("--tag", help="NAME=VALUE; may be repeated.")]
Wait = Annotated[bool, typer.Option("--wait/--no-wait", help="Until AWS has done it.")]
CredentialsFile = Annotated[
    Path | None,
    typer.Option(
        "--credentials-file",
        help="Write the new credential to this file (0600), as the AWS console takes it, and do not show it.",
    ),
]


@command(app, "create")
def create(
    shell: Shell,
    name: Annotated[str, typer.Argument(help="Name of the new key store.")],
    region: Annotated[str, typer.Option("--region", help="AWS region; it cannot be changed later.")],
    uri_path_prefix: Prefix = None,
    partition_group: Annotated[str | None, typer.Option("--partition-group", help="Where its keys live.")] = None,
    key_source: Annotated[
        str | None, typer.Option("--key-source", help="local: keys sealed in the state, instead of a group.")
    ] = None,
    account: Account = None,
    description: Description = None,
    endpoint: Endpoint = None,
    connectivity: Connectivity = None,
    vpc_endpoint_service_name: ServiceName = None,
    max_credentials: MaxCredentials = None,
    rotate_credential_days: RotateDays = None,
    allowed_principal: Principals = None,
    health_check_label: Annotated[
        str | None, typer.Option("--health-check-label", help="CKA_LABEL of its health check key.")
    ] = None,
    aad_scheme: Annotated[str | None, typer.Option("--aad-scheme", help="xksfast or aws-sample.")] = None,
    on_stale: OnStale = None,
    stale_after_s: StaleAfter = None,
    tag: Tags = None,
    credentials_file: CredentialsFile = None,
) -> None:
    """Create a key store with its first credential, whose secret is shown this once."""
    session.check_new_file(credentials_file)
    body = session.given(
        name=name,
        region=region,
        uri_path_prefix=uri_path_prefix,
        partition_group=partition_group,
        key_source=key_source,
        account=account,
        description=description,
        endpoint=endpoint,
        connectivity=connectivity,
        vpc_endpoint_service_name=vpc_endpoint_service_name,
        max_credentials=max_credentials,
        rotate_credential_days=rotate_credential_days,
        allowed_principals=allowed_principal,
        health_check_label=health_check_label,
        aad_scheme=aad_scheme,
        on_stale=on_stale,
        stale_after_s=stale_after_s,
        tags=session.pairs(tag, "--tag"),
    )
    store = shell.api.post("/v1/stores", body)
    if credentials_file is not None:
        credential = store["credential"]
        secret = credential.pop("secret_access_key")
        _write_credentials(credentials_file, store["uri_path"], credential["access_key_id"], secret)
        shell.show(store, f"{name}: created; its credential is in {credentials_file}")
        return
    shell.show(
        store, session.facts({**store, **_prefixed(store["credential"])}, leave_out=("credential", "keys", "credentials"))
    )
    shell.say("the secret is shown this once: keep it in a safe place")


@command(app, "list")
def list_stores(
    shell: Shell,
    name_prefix: Annotated[str | None, typer.Option("--name-prefix")] = None,
    region: Annotated[str | None, typer.Option("--region")] = None,
    partition_group: Annotated[str | None, typer.Option("--partition-group")] = None,
    blocked: Annotated[bool | None, typer.Option("--blocked/--not-blocked")] = None,
    linked: Annotated[bool | None, typer.Option("--linked/--not-linked")] = None,
) -> None:
    """List key stores."""
    found = shell.api.items(
        "/v1/stores", name_prefix=name_prefix, region=region, partition_group=partition_group, blocked=blocked, linked=linked
    )

    def rows() -> Any:
        return session.table(
            "name", "state", "region", "prefix", "keys in", "keys", "credentials",
            right=("keys", "credentials"),
            rows=[
                (
                    each["name"],
                    session.state_cell(each["blocked"]),
                    each["region"],
                    each["uri_path_prefix"] or "-",
                    each["partition_group"] or "local",
                    f"{each['keys']:,}",
                    f"{each['credentials']}/{each['max_credentials']}",
                )
                for each in found
            ],
            none="no key stores",
        )()  # fmt: skip

    shell.show(found, rows)


@command(app, "show")
def show(shell: Shell, store: StoreName) -> None:
    """Show a key store."""
    found = shell.api.get(_path(store))
    shell.show(found, session.facts(found))


@command(app, "update")
def update(
    shell: Shell,
    store: StoreName,
    uri_path_prefix: Prefix = None,
    account: Account = None,
    description: Description = None,
    endpoint: Endpoint = None,
    connectivity: Connectivity = None,
    vpc_endpoint_service_name: ServiceName = None,
    max_credentials: MaxCredentials = None,
    rotate_credential_days: RotateDays = None,
    allowed_principal: Principals = None,
    allow_all_principals: Annotated[bool, typer.Option("--allow-all-principals", help="Everybody may use the keys.")] = False,
    on_stale: OnStale = None,
    stale_after_s: StaleAfter = None,
    tag: Tags = None,
    revision: Annotated[
        int | None, typer.Option("--revision", help="Refused when the store has changed since this one.")
    ] = None,
) -> None:
    """Change a key store; what is not named stays. Region and key source never change."""
    body = session.given(
        uri_path_prefix=uri_path_prefix,
        account=account,
        description=description,
        endpoint=endpoint,
        connectivity=connectivity,
        vpc_endpoint_service_name=vpc_endpoint_service_name,
        max_credentials=max_credentials,
        rotate_credential_days=rotate_credential_days,
        allowed_principals=[] if allow_all_principals else allowed_principal,
        on_stale=on_stale,
        stale_after_s=stale_after_s,
        tags=session.pairs(tag, "--tag"),
    )
    changed = shell.api.patch(_path(store), body, revision=revision)
    shell.show(changed, session.facts(changed))


@command(app, "delete")
def delete(
    shell: Shell,
    store: StoreNames = None,
    aws: Annotated[
        bool, typer.Option("--aws", help="Delete the custom key store in AWS; the one here stays, unlinked.")
    ] = False,
    yes: Yes = False,
    dry_run: DryRun = False,
) -> None:
    """Delete key stores that have no keys. `store teardown` tells what stands in the way."""
    from xksfast.shell import many

    names = many.chosen(shell, store, False, (), "")
    if aws:
        if dry_run:
            raise OperatorError("--aws and --dry-run: AWS cannot be asked whether it would; see `xksfast store teardown`")
        shell.confirm(f"Delete the custom key store of {', '.join(names)} in AWS?", yes)

        def delete_in_aws(name: str) -> None:
            shell.api.post(_path(name, "delete-in-aws"))

        many.each(shell, "delete in AWS", names, delete_in_aws)
        return
    if not dry_run:
        shell.confirm(f"Delete key store {', '.join(names)} with its credentials?", yes)
    many.each(shell, "delete", names, lambda name: shell.api.delete(_path(name), dry_run=dry_run))


@command(app, "block")
def block(shell: Shell, store: StoreNames = None, everything: All = False, reason: Reason = "") -> None:
    """The kill switch: nothing of these key stores is served any more. Asks no question."""
    _switch(shell, "block", store, everything, reason)


@command(app, "unblock")
def unblock(shell: Shell, store: StoreNames = None, everything: All = False) -> None:
    """Serve key stores again."""
    _switch(shell, "unblock", store, everything, "")


@command(app, "teardown")
def teardown(shell: Shell, store: StoreName) -> None:
    """What stands in the way of deleting a key store, in the order in which it is to be cleared."""
    found = shell.api.get(_path(store, "teardown"))["items"]
    rows = [
        (number, each["what"], each["command"], "AWS takes days" if each["waits"] else "")
        for number, each in enumerate(found, 1)
    ]
    shell.show(found, session.table("", "what", "clear it by", "", rows=rows, none="nothing"))


@command(app, "link")
def link(
    shell: Shell,
    store: StoreName,
    connection: Annotated[str, typer.Option("--connection", help="Name of an AWS connection.")],
    custom_key_store_name: Annotated[
        str | None, typer.Option("--custom-key-store-name", help="Default: the store's own name.")
    ] = None,
    custom_key_store_id: Annotated[str | None, typer.Option("--custom-key-store-id", help="One that was made by hand.")] = None,
) -> None:
    """Make the custom key store in AWS, or take one that was made by hand. It follows AWS from then on."""
    body = session.given(
        connection=connection, custom_key_store_name=custom_key_store_name, custom_key_store_id=custom_key_store_id
    )
    linked = shell.api.post(_path(store, "link"), body)
    shell.show(linked, f"{store}: linked to {linked['link']['custom_key_store_id']}, {linked['link']['connection_state']}")


@command(app, "connect")
def connect(shell: Shell, store: StoreName, wait: Wait = True) -> None:
    """Have AWS connect a linked key store, and wait for it: minutes, as a rule."""
    _follow(shell, store, "connect", wait)


@command(app, "disconnect")
def disconnect(shell: Shell, store: StoreName, wait: Wait = True) -> None:
    """Have AWS disconnect a linked key store: from then on AWS refuses to use its keys."""
    _follow(shell, store, "disconnect", wait)


@command(app, "sync")
def sync(shell: Shell, store: StoreName) -> None:
    """Look at AWS's side of a linked key store and of its keys; what differs is told."""
    _tell_link(shell, store, shell.api.post(_path(store, "sync")))


@command(app, "push")
def push(shell: Shell, store: StoreName) -> None:
    """Tell AWS what differs: path, endpoint, connectivity, and the newest credential."""
    _tell_link(shell, store, shell.api.post(_path(store, "push")))


@command(app, "link-keys")
def link_keys(shell: Shell, store: StoreName) -> None:
    """Take over every KMS key that was made by hand for a key of this store."""
    found = shell.api.post(_path(store, "link-keys"))["items"]
    rows = [(each["external_key_id"], each["link"]["key_arn"], each["link"]["key_state"]) for each in found]
    shell.show(found, session.table("key", "KMS key", "state", rows=rows, none="none that is not linked yet"))


@command(app, "credentials-file")
def credentials_file(
    shell: Shell,
    store: StoreName,
    out: Annotated[Path | None, typer.Option("--out", help="Write it to this new file, 0600. Default: stdout.")] = None,
) -> None:
    """Issue a new credential as the file that the AWS console takes. Those that there are stay until they are removed."""
    session.check_new_file(out)
    document = shell.api.post(_path(store, "credentials-file"))
    if out is None:
        print(orjson.dumps(document, option=orjson.OPT_INDENT_2).decode())
        return
    session.write_secret_file(out, orjson.dumps(document, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))
    access_key_id = document["XksProxyAuthenticationCredential"]["AccessKeyId"]
    shell.show({"file": str(out), "access_key_id": access_key_id}, f"{out}: new credential {access_key_id}")


def _switch(shell: Shell, action: str, names: list[str] | None, everything: bool, reason: str) -> None:
    from xksfast.shell import many

    found = many.chosen(shell, names, everything, ("stores",), "name")
    if len(found) == 1 and not everything:
        body = {"reason": reason} if action == "block" else None
        many.confirmed(shell, f"{action} {found[0]}", shell.api.post(_path(found[0], action), body))
    many.bulk(shell, action, "stores", found, reason)


def _follow(shell: Shell, store: str, action: str, wait: bool) -> None:
    from xksfast.shell.client import RequestFailed, failure

    ended = None
    with shell.progress(f"{action} {store}", None) as step:
        for line in shell.api.lines(f"{_path(store, action)}?wait={str(wait).lower()}", None):
            match line["event"]:
                case "progress":
                    step(0, None)
                    shell.say(f"{store}: {line['state']} after {line['seconds']:.0f} s")
                case "failed":
                    raise failure(line)
                case "end":
                    ended = line["store"]
    if ended is None:
        raise RequestFailed(f"the answer broke off: see `xksfast store sync {store}` for what became of it")
    _tell_link(shell, store, ended)


def _tell_link(shell: Shell, store: str, found: dict[str, Any]) -> None:
    link = found["link"]
    if link is None:
        shell.show(found, f"{store}: not linked")
        return
    shell.show(found, f"{store}: custom key store {link['custom_key_store_id']} is {link['connection_state']}")
    for text in [link["connection_error"], *link["drift"]]:
        if text:
            shell.say(text)


def _prefixed(credential: dict[str, Any] | None) -> dict[str, Any]:
    return {name: value for name, value in (credential or {}).items() if name in ("access_key_id", "secret_access_key")}


def _write_credentials(file: Path, uri_path: str, access_key_id: str, secret: str) -> None:
    document = {
        "XksProxyUriPath": uri_path,
        "XksProxyAuthenticationCredential": {"AccessKeyId": access_key_id, "RawSecretAccessKey": secret},
    }
    session.write_secret_file(file, orjson.dumps(document, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))


def _path(store: str, *more: str) -> str:
    from xksfast.shell.client import path

    return path("stores", store, *more)
