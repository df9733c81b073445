# SPDX-License-Identifier: Apache-2.0
"""Who may administrate: operators and their tokens, roles and grants, and the connections to AWS that they set up."""

from __future__ import annotations

from typing import TYPE_CHECKING

from xksfast.admin.plans.common import created, find_store, removed
from xksfast.admin.refusals import Refused, invalid, no_such
from xksfast.state import rules
from xksfast.state.events import Change
from xksfast.state.objects import AwsConnection, Operator
from xksfast.state.projection import State
from xksfast.toml_reader import nearest

if TYPE_CHECKING:  # they bring pydantic, which a start can do without until the workers serve
    from xksfast.admin.requests import ConnectionCreate, OperatorCreate

DAY_S = 86400


def create(state: State, request: OperatorCreate, token_sha256: str, *, now: int) -> list[Change]:
    """A new operator; its token was shown to whoever asked."""
    if request.name in state.operators:
        raise Refused("conflict", "operator-exists", f"There is an operator {request.name!r} already", field="name")
    if request.role == "admin" and request.stores:
        raise Refused(
            "invalid",
            "admin-has-no-grants",
            "An admin may do everything, so grants for single stores make no sense",
            next="Leave `stores` out, or take role operator",
            field="stores",
        )
    for store in request.stores:
        find_store(state, store)
    expires_at = now + request.expires_in_days * DAY_S if request.expires_in_days else 0
    operator = Operator(
        name=request.name,
        role=request.role,
        token_sha256=token_sha256,
        stores=request.stores,
        expires_at=expires_at,
        created_at=now,
    )
    return [created("operator.create", operator)]


def delete(state: State, name: str, *, now: int) -> list[Change]:
    """The token is refused from then on. The last admin stays."""
    operator = state.operators.get(name)
    if operator is None:
        raise no_such("operator", name, nearest(name, state.operators))
    admins = [other for other in state.operators.values() if other.role == "admin" and not _expired(other, now)]
    if admins == [operator]:
        raise Refused(
            "conflict",
            "last-admin",
            f"{name!r} is the only admin",
            why="Nobody could administrate any more",
            next="Create another admin first: `xksfast operator create NAME --role admin`",
        )
    return removed("operator.delete", [operator])


def _expired(operator: Operator, now: int) -> bool:
    return bool(operator.expires_at) and operator.expires_at <= now


def create_connection(state: State, request: ConnectionCreate, *, now: int) -> list[Change]:
    """How to reach AWS KMS in one account and region."""
    if request.name in state.aws_connections:
        raise Refused("conflict", "connection-exists", f"There is an AWS connection {request.name!r} already", field="name")
    invalid("region", rules.region_problem(request.region))
    return [created("aws_connection.create", AwsConnection(**request.model_dump(), created_at=now))]


def delete_connection(state: State, name: str) -> list[Change]:
    """Refused while a linked store uses it."""
    connection = state.aws_connections.get(name)
    if connection is None:
        raise no_such("AWS connection", name, nearest(name, state.aws_connections))
    users = [store.name for store in state.key_stores.values() if store.link is not None and store.link.connection == name]
    if users:
        raise Refused(
            "conflict",
            "connection-in-use",
            f"AWS connection {name!r} is what key store {users[0]!r} is linked by",
            next="Delete the store first",
        )
    return removed("aws_connection.delete", [connection])
