# SPDX-License-Identifier: Apache-2.0
"""What an actor with grants for some key stores may see of what belongs to no store by its id: source keys, connections, events."""

from __future__ import annotations

from xksfast.admin.actors import Actor
from xksfast.state.events import Event
from xksfast.state.objects import AwsConnection, Credential, Key, KeyStore, SourceKey
from xksfast.state.projection import State

_OF_A_STORE = (KeyStore.kind, Credential.kind, Key.kind)  # their ids begin with the store's name


def connections_of(state: State, actor: Actor) -> dict[str, AwsConnection]:
    """By name: all, or those by which an admin has linked one of the granted stores. No other is the actor's to use or to see."""
    if not actor.stores:
        return dict(state.aws_connections)
    granted = [state.key_stores[name] for name in actor.stores if name in state.key_stores]
    names = {store.link.connection for store in granted if store.link is not None}
    return {name: state.aws_connections[name] for name in sorted(names & state.aws_connections.keys())}


def may_see_event(state: State, actor: Actor, event: Event) -> bool:
    """Of a granted store, of a source key that such a store uses, or of a connection that it may use. Of operators: nothing."""
    if not actor.stores:
        return True
    if event.kind in _OF_A_STORE:
        return actor.may_see(event.id.partition("/")[0])
    if event.kind == SourceKey.kind:
        return any(actor.may_see(user.partition("/")[0]) for user in state.users_of(event.id))
    return event.kind == AwsConnection.kind and event.id in connections_of(state, actor)
