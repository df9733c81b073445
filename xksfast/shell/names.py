# SPDX-License-Identifier: Apache-2.0
"""Names for shell completion, asked from the server. Whatever goes wrong, there is nothing to complete, and no word about it."""

from __future__ import annotations

from typing import Annotated, Any

import typer

PATIENCE_S = 1.0
MOST = 200


def _names(where: tuple[str, ...], member: str, begun: str) -> list[str]:
    try:
        from xksfast.shell.client import connect, path

        client = connect(None, None, None, timeout_s=PATIENCE_S)
        try:
            page = client.get(path(*where), name_prefix=begun or None, limit=MOST)
            return [str(item[member]) for item in page["items"] if str(item[member]).startswith(begun)]
        finally:
            client.close()
    except Exception:
        return []


def _stores(ctx: typer.Context, incomplete: str) -> list[str]:
    return _names(("stores",), "name", incomplete)


def _keys(ctx: typer.Context, incomplete: str) -> list[str]:
    store: Any = ctx.params.get("store")
    return _names(("stores", store, "keys"), "external_key_id", incomplete) if store else []


def _credentials(ctx: typer.Context, incomplete: str) -> list[str]:
    store: Any = ctx.params.get("store")
    return _names(("stores", store, "credentials"), "access_key_id", incomplete) if store else []


def _operators(ctx: typer.Context, incomplete: str) -> list[str]:
    return _names(("operators",), "name", incomplete)


def _connections(ctx: typer.Context, incomplete: str) -> list[str]:
    return _names(("aws-connections",), "name", incomplete)


StoreName = Annotated[str, typer.Argument(metavar="STORE", help="Name of the key store.", autocompletion=_stores)]
StoreNames = Annotated[
    list[str] | None,
    typer.Argument(metavar="STORE", help="Names of key stores.", autocompletion=_stores, show_default=False),
]
KeyName = Annotated[str, typer.Argument(metavar="KEY", help="External key id.", autocompletion=_keys)]
KeyNames = Annotated[
    list[str] | None, typer.Argument(metavar="KEY", help="External key ids.", autocompletion=_keys, show_default=False)
]
AccessKeyId = Annotated[str, typer.Argument(metavar="ACCESS_KEY_ID", help="Of the credential.", autocompletion=_credentials)]
OperatorName = Annotated[str, typer.Argument(metavar="OPERATOR", help="Name of the operator.", autocompletion=_operators)]
ConnectionName = Annotated[
    str, typer.Argument(metavar="CONNECTION", help="Name of the connection.", autocompletion=_connections)
]
