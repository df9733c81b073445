# SPDX-License-Identifier: Apache-2.0
"""Who asks, and what each role may do. The one table of permissions."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from xksfast.admin.refusals import Refused
from xksfast.state.events import Origin
from xksfast.state.objects import Operator, Role
from xksfast.state.projection import State

Answer = TypeVar("Answer")

TOKEN_PREFIX = "xkt_"

# What a role may do: "read"; "block"; "operate" (create and change keys, rotate, unblock, link) on the stores it is granted;
# "manage" (create and delete stores, operators, AWS connections). Every role but auditor may block.
_RIGHTS: dict[Role, frozenset[str]] = {
    "admin": frozenset({"read", "block", "operate", "manage"}),
    "operator": frozenset({"read", "block", "operate"}),
    "auditor": frozenset({"read"}),
    "blocker": frozenset({"block"}),
}


@dataclass(frozen=True)
class Actor:
    """An authenticated operator, or a part of the program itself. stores: grants; empty: all. address: of the client, or "local".

    token: the hash of the token that was shown. A name may be used again by another operator, a token never is.
    """

    name: str
    role: Role
    stores: tuple[str, ...] = ()
    address: str = "local"
    token: str = field(default="", repr=False)

    @property
    def origin(self) -> Origin:
        """For the event log."""
        return Origin(actor=self.name, address=self.address)

    def may_see(self, store: str) -> bool:
        """Whether the store is among the grants."""
        return not self.stores or store in self.stores

    def has_right(self, right: str) -> bool:
        """Whether the role has it, for whichever stores."""
        return right in _RIGHTS[self.role]

    def require_all_stores(self, right: str, what: str) -> None:
        """Refused unless the role has the right, and for every key store. what: that it is about, in the plural."""
        self.require(right)
        if self.stores:
            raise Refused(
                "forbidden",
                "all-stores-needed",
                f"{self.name} has grants for some key stores only, and {what} tell of others",
                next="Ask an admin, or someone without grants",
            )

    def require(self, right: str, store: str | None = None) -> None:
        """Refused unless the role has the right, for this store. A store outside the grants is refused like any other right."""
        if right not in _RIGHTS[self.role]:
            roles = [role for role, rights in _RIGHTS.items() if right in rights]
            raise Refused(
                "forbidden",
                "role-lacks-right",
                f"{self.name} has the role {self.role}, which may not {right}",
                next=f"Ask someone with the role {' or '.join(roles)}",
            )
        if store is not None and not self.may_see(store):
            raise Refused(
                "forbidden",
                "store-not-granted",
                f"{self.name} has no grant for key store {store!r}",
                next="Ask an admin for an operator that has it",
            )


def check_token(state: State, actor: Actor) -> None:
    """Refused when the operator was deleted since it showed its token: a body or a token of an HSM may take a minute."""
    if actor.token and actor.token not in state.operators_by_token:
        raise Refused(
            "unauthenticated",
            "token-unknown",
            "No operator has this token any more",
            next="Have an admin create an operator",
        )


def while_known(actor: Actor, plan: Callable[[State], Answer]) -> Callable[[State], Answer]:
    """The plan, refused when the operator is deleted by the time it is carried out."""

    def checked(state: State) -> Answer:
        check_token(state, actor)
        return plan(state)

    return checked


def system_actor(what: str) -> Actor:
    """The program itself: "rotation", "sync", "apply"."""
    return Actor(name=f"system:{what}", role="admin")


def operator_actor(operator: Operator, address: str) -> Actor:
    """An operator who showed a token."""
    return Actor(operator_origin(operator.name), operator.role, operator.stores, address, operator.token_sha256)


def operator_origin(name: str) -> str:
    """What an operator is called in the event log."""
    return f"operator:{name}"


def new_token() -> tuple[str, str]:
    """(the token, its SHA-256). 256 random bits, so that a plain hash is enough to keep."""
    token = TOKEN_PREFIX + secrets.token_urlsafe(32)
    return token, token_hash(token)


def token_hash(token: str) -> str:
    """Hexadecimal SHA-256."""
    return hashlib.sha256(token.encode()).hexdigest()
