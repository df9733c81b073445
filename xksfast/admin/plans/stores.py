# SPDX-License-Identifier: Apache-2.0
"""Key stores: create, change, block, delete."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from xksfast.admin.plans.common import changed, check_revision, created, find_store, removed
from xksfast.admin.refusals import Refused, invalid
from xksfast.state import rules
from xksfast.state.events import Change
from xksfast.state.objects import AwsConnection, Credential, KeyStore, StoreLink
from xksfast.state.projection import State
from xksfast.toml_reader import nearest

if TYPE_CHECKING:  # they bring pydantic, which a start can do without until the workers serve
    from xksfast.admin.requests import StoreCreate, StoreUpdate

# What AWS lets one change only while the custom key store is disconnected.
_WHILE_DISCONNECTED = ("endpoint", "connectivity", "vpc_endpoint_service_name", "uri_path_prefix")


def new_store(state: State, request: StoreCreate, *, groups: Collection[str], now: int) -> KeyStore:
    """The store as it will be, or Refused. groups: the partition groups of the configuration."""
    if request.name in state.key_stores:
        raise Refused("conflict", "store-exists", f"There is a key store {request.name!r} already", field="name")
    _check_grants(state, request.name, now)
    if (request.partition_group is None) == (request.key_source != "local"):
        raise Refused(
            "invalid",
            "store-needs-one-key-source",
            "A key store says where its keys live, once",
            next="Give either partition_group or key_source = local",
            field="partition_group",
        )
    if request.partition_group is not None and request.partition_group not in groups:
        invalid("partition_group", f"there is no such partition group{nearest(request.partition_group, groups)}",
                request.partition_group)  # fmt: skip
    fields = request.model_dump(exclude={"credentials", "key_source"})
    store = KeyStore(**fields, key_source="local" if request.partition_group is None else "pkcs11", created_at=now)
    _check(state, store)
    return store


def _check_grants(state: State, name: str, now: int) -> None:
    """An operator is granted what is there: a grant for a name without a store is for one that was deleted."""
    holders = sorted(one.name for one in state.operators.values() if name in one.stores and not 0 < one.expires_at <= now)
    if holders:
        raise Refused(
            "conflict",
            "store-granted-before",
            f"Operators have grants for a former key store {name!r}: {', '.join(holders[:5])}{', …' if len(holders) > 5 else ''}",
            why="They could use this one without anybody having granted it",
            next="Delete them first (`xksfast operator delete NAME`) and create them again afterwards, or choose another name",
            field="name",
        )


def create(store: KeyStore, credentials: list[Credential]) -> list[Change]:
    """The store with its first credentials."""
    return [created("store.create", store), *(created("credential.create", credential) for credential in credentials)]


def update(state: State, name: str, request: StoreUpdate, revision: int | None) -> list[Change]:
    """Whatever the request names."""
    store = find_store(state, name)
    check_revision(state, store, revision)
    fields: dict[str, Any] = {field: value for field, value in request.model_dump().items() if value is not None}
    after = replace(store, **fields)
    moved = [field for field in _WHILE_DISCONNECTED if getattr(store, field) != getattr(after, field)]
    if store.link is not None and moved and store.link.connection_state not in ("DISCONNECTED", ""):
        raise Refused(
            "conflict",
            "store-connected",
            f"{', '.join(moved)} of key store {name!r} cannot be changed while AWS has it {store.link.connection_state}",
            why="AWS takes such a change only while the custom key store is disconnected",
            next=f"Run `xksfast store disconnect {name}`, change it, then connect again",
            field=moved[0],
        )
    if len(state.credentials_of(name)) > after.max_credentials:
        raise Refused(
            "conflict",
            "too-many-credentials",
            f"Key store {name!r} has {len(state.credentials_of(name))} credentials, more than {after.max_credentials}",
            next="Remove some first: `xksfast credential list`",
            field="max_credentials",
        )
    _check(state, after, before=store)
    if after.uri_path_prefix != store.uri_path_prefix:
        for external_key_id in state.keys_of(name):
            invalid("uri_path_prefix", rules.external_key_id_problem(external_key_id, after.uri_path_prefix))
    return changed("store.update", store, after)


def set_blocked(state: State, name: str, blocked: bool, reason: str) -> list[Change]:
    """Block or unblock; nothing when it is so already."""
    store = find_store(state, name)
    after = replace(store, blocked=blocked, blocked_reason=reason if blocked else "")
    if store.blocked and blocked:
        after = store  # the first reason stays
    return changed("store.block" if blocked else "store.unblock", store, after)


def delete(state: State, name: str, revision: int | None) -> list[Change]:
    """With its credentials. Refused while it has keys or a custom key store in AWS."""
    store = find_store(state, name)
    check_revision(state, store, revision)
    if keys := state.keys_of(name):
        some = ", ".join(list(keys)[:3]) + (", …" if len(keys) > 3 else "")
        raise Refused(
            "conflict",
            "store-has-keys",
            f"Key store {name!r} has {len(keys)} keys: {some}",
            why="Without them no ciphertext that was made with them can be decrypted ever again",
            next=f"See `xksfast store teardown {name}` for what stands in the way, and in which order",
        )
    if store.link is not None:
        raise Refused(
            "conflict",
            "store-linked",
            f"Key store {name!r} is custom key store {store.link.custom_key_store_id} in AWS",
            next=f"See `xksfast store teardown {name}`: disconnect it and delete it in AWS first",
        )
    return removed("credential.remove", state.credentials_of(name).values()) + removed("store.delete", [store])


def _check(state: State, store: KeyStore, *, before: KeyStore | None = None) -> None:
    """before: the store as it is; patterns that it had before there was a bound on them may stay."""
    invalid("name", rules.name_problem(store.name), store.name)
    invalid("uri_path_prefix", rules.prefix_problem(store.uri_path_prefix), store.uri_path_prefix)
    invalid("region", rules.region_problem(store.region))
    invalid("endpoint", rules.endpoint_problem(store.endpoint), store.endpoint)
    invalid(
        "vpc_endpoint_service_name",
        rules.service_name_problem(store.vpc_endpoint_service_name, store.connectivity),
        store.vpc_endpoint_service_name,
    )
    invalid("tags", rules.tags_problem(store.tags))
    if before is None or before.allowed_principals != store.allowed_principals:
        invalid("allowed_principals", rules.principals_problem(store.allowed_principals))
    other = state.store_with_prefix(store.uri_path_prefix)
    if other is not None and other.name != store.name:
        raise Refused(
            "conflict",
            "prefix-taken",
            f"Another key store has the uri_path_prefix {store.uri_path_prefix!r} already",  # which one is not everybody's to know
            why="The prefix of a request's path tells the key store",
            next="Choose another one; `xksfast store list` shows those of the key stores that you may see",
            field="uri_path_prefix",
        )


def set_link(state: State, name: str, link: StoreLink | None) -> list[Change]:
    """What is known of the custom key store in AWS. Once linked a store stays so, until AWS has deleted it."""
    store = find_store(state, name)
    if link is not None and store.link is not None and link.custom_key_store_id != store.link.custom_key_store_id:
        check_linkable(store)  # which says that it is linked: somebody was faster
    if link is not None and store.link is None and link.custom_key_store_id in _linked_ids(state):
        raise Refused(
            "conflict",
            "custom-key-store-taken",
            f"Custom key store {link.custom_key_store_id} in AWS is linked to another key store",
            why="The key store that is linked to it decides where AWS sends its requests, and by which credential",
            next="Name the custom key store that was made for this key store, or leave the id out to have one made",
            field="custom_key_store_id",
        )
    action = (
        "store.sync" if store.link is not None and link is not None else "store.link" if link is not None else "store.unlink"
    )
    return changed(action, store, replace(store, link=link))


def follow_link(state: State, name: str, link: StoreLink) -> list[Change]:
    """What AWS shows of a link. Nothing when the store has another one by now, or none: the answer of AWS is late then."""
    have = find_store(state, name).link
    return [] if have is None or have.custom_key_store_id != link.custom_key_store_id else set_link(state, name, link)


def check_connection(store: KeyStore, connection: AwsConnection) -> None:
    """Whether the connection leads to where the store belongs."""
    if connection.region != store.region:
        raise Refused(
            "conflict",
            "connection-of-other-region",
            f"AWS connection {connection.name!r} is for {connection.region}, key store {store.name!r} for {store.region}",
            why="A custom key store is of one Region, and what AWS signs for another one is refused here",
            next="Take a connection of the key store's Region: `xksfast aws list`",
            field="connection",
        )
    if store.account and connection.account != store.account:
        raise Refused(
            "conflict",
            "connection-of-other-account",
            f"AWS connection {connection.name!r} is for account {connection.account}, key store {store.name!r} for {store.account}",
            next="Take a connection of the key store's account (`xksfast aws list`), or correct `account` of the key store",
            field="connection",
        )


def _linked_ids(state: State) -> set[str]:
    return {store.link.custom_key_store_id for store in state.key_stores.values() if store.link is not None}


def check_linkable(store: KeyStore) -> None:
    """Whether a custom key store in AWS may be made for it or taken over."""
    if store.link is not None:
        raise Refused(
            "conflict",
            "store-linked",
            f"Key store {store.name!r} is custom key store {store.link.custom_key_store_id} in AWS already",
        )
    if not store.endpoint:
        raise Refused(
            "conflict",
            "store-has-no-endpoint",
            f"Key store {store.name!r} has no endpoint, so AWS would not know where to call",
            next=f"Set it first: `xksfast store update {store.name} --endpoint https://HOST`",
            field="endpoint",
        )
