# SPDX-License-Identifier: Apache-2.0
"""Our key stores and keys compared with what AWS shows: new link values, with a sentence for each difference.

What lives here: pure functions; what AWS shows comes from `KmsConnection`, and the caller stores what they return. What must not: I/O.
A newcomer's trap: alias, description and tags of a linked key follow AWS (`followed_key`), as does the custom key store's name in a
link; everything else that differs is drift, for an operator to decide.
"""

from __future__ import annotations

import datetime
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import msgspec

from xksfast.admin.aws.errors import explain_connection_error
from xksfast.admin.aws.results import CONNECTED, EXTERNAL_KEY_STORE, FAILED, CustomKeyStore, KmsKey, full_alias
from xksfast.state.objects import Credential, Key, KeyLink, KeyStore, StoreLink

URI_BASE = "/kms/xks/v1"
GONE = "GONE"  # our word in connection_state and key_state for what AWS no longer has

_STATES_OF_USE = ("Enabled", "Disabled")


@dataclass(frozen=True)
class Unlinked:
    """A custom key store in AWS that was made by hand for one of our key stores. problem: "" or why it cannot be linked as it is."""

    store: str
    custom_key_store: CustomKeyStore
    problem: str = ""


def uri_path(store: KeyStore) -> str:
    """What AWS calls XksProxyUriPath."""
    return store.uri_path_prefix + URI_BASE


def link_store(
    store: KeyStore, connection: str, seen: CustomKeyStore, credentials: Collection[Credential], *, now: int
) -> StoreLink:
    """The link of a store to a custom key store just made or found. credentials: all of the store. now: unix seconds."""
    link = StoreLink(connection=connection, custom_key_store_id=seen.id, custom_key_store_name=seen.name)
    return sync_store(msgspec.structs.replace(store, link=link), seen, credentials, now=now)


def sync_store(store: KeyStore, seen: CustomKeyStore | None, credentials: Collection[Credential], *, now: int) -> StoreLink:
    """The link of a linked store as of now. seen: None when AWS has no such custom key store any more.

    ValueError when the store is not linked.
    """
    if store.link is None:
        raise ValueError(f"key store {store.name} is not linked")
    link = store.link
    if seen is None:
        gone = f"AWS has no custom key store {link.custom_key_store_id} any more: it was deleted there, so nothing reaches this store"
        return msgspec.structs.replace(link, connection_state=GONE, connection_error="", synced_at=now, drift=(gone,))
    return msgspec.structs.replace(
        link,
        custom_key_store_name=seen.name,
        connection_state=seen.connection_state,
        connection_error=seen.connection_error,
        synced_at=now,
        drift=tuple(_store_drift(store, seen, credentials)),
    )


def _store_drift(store: KeyStore, seen: CustomKeyStore, credentials: Collection[Credential]) -> Iterable[str]:
    if seen.type != EXTERNAL_KEY_STORE:
        yield f"custom key store {seen.id} is of type {seen.type}, not {EXTERNAL_KEY_STORE}: it is not this one's"
        return
    if _host(seen.endpoint) != _host(store.endpoint):
        yield f"AWS calls {seen.endpoint or 'no endpoint'}, here the endpoint is {store.endpoint or 'not set'}"
    if seen.uri_path != uri_path(store):
        wanted = uri_path(store)
        yield f"AWS calls the path {seen.uri_path}, which is not this store's {wanted}: its requests are refused or reach another store"
    if seen.connectivity != store.connectivity:
        yield f"AWS connects by {seen.connectivity}, here it is {store.connectivity}"
    if seen.vpc_endpoint_service_name != store.vpc_endpoint_service_name:
        yield (
            f"AWS uses the VPC endpoint service {seen.vpc_endpoint_service_name or 'none'}, "
            f"here it is {store.vpc_endpoint_service_name or 'none'}"
        )
    yield from _credential_drift(seen, credentials)
    if seen.connection_state == FAILED:
        explanation = explain_connection_error(seen.connection_error)
        yield f"AWS could not connect ({seen.connection_error or 'no reason given'}): {explanation.why}. {explanation.next}"


def _credential_drift(seen: CustomKeyStore, credentials: Collection[Credential]) -> Iterable[str]:
    if not seen.access_key_id:
        return
    ours = {credential.access_key_id: credential for credential in credentials}
    used = ours.get(seen.access_key_id)
    if used is None:
        yield (
            f"AWS signs with access key id {seen.access_key_id}, which this store does not have: every request is refused; "
            "give AWS a credential of this store"
        )
    elif used.superseded_at:
        yield f"AWS still signs with access key id {seen.access_key_id}, which was rotated: give AWS the new one before that is removed"


def link_key(store: KeyStore, key: Key, seen: KmsKey, *, now: int) -> KeyLink:
    """The link of a key to a KMS key just made or found."""
    return sync_key(store, msgspec.structs.replace(key, link=KeyLink(key_arn=seen.arn)), seen, now=now)


def sync_key(store: KeyStore, key: Key, seen: KmsKey | None, *, now: int) -> KeyLink:
    """The link of a linked key as of now. seen: None when AWS has no such KMS key any more. ValueError when it is not linked."""
    if key.link is None:
        raise ValueError(f"key {key.id} is not linked")
    if seen is None:
        gone = f"AWS has no KMS key {key.link.key_arn} any more: what only it encrypted cannot be decrypted through AWS"
        return msgspec.structs.replace(key.link, key_state=GONE, synced_at=now, drift=(gone,))
    aliases = seen.aliases if seen.details else key.link.aliases
    drift = tuple(_key_drift(store, key, seen))
    return msgspec.structs.replace(
        key.link, key_arn=seen.arn, key_state=seen.state, aliases=aliases, synced_at=now, drift=drift
    )


def _key_drift(store: KeyStore, key: Key, seen: KmsKey) -> Iterable[str]:
    if seen.external_key_id != key.external_key_id:
        yield f"the KMS key stands for external key {seen.external_key_id or 'none'}, not for {key.external_key_id}"
    linked = store.link.custom_key_store_id if store.link else ""
    if seen.custom_key_store_id != linked:
        yield (
            f"the KMS key is in custom key store {seen.custom_key_store_id or 'none'}, "
            f"this store is linked to {linked or 'none'}"
        )
    if seen.state == "PendingDeletion":
        yield f"AWS deletes the KMS key {_day(seen.deletion_at)}: cancel that, if anything is still encrypted with it"
    elif seen.state == "Disabled" and key.enabled:
        yield "the KMS key is disabled in AWS, the key is enabled here: AWS does not use it"
    elif seen.state == "Enabled" and not key.enabled:
        yield "the key is disabled here, the KMS key is enabled in AWS: AWS is refused when it uses it"
    elif seen.state == "Unavailable" and store.link is not None and store.link.connection_state == CONNECTED:
        yield "AWS calls the KMS key unavailable although its key store is connected: sync the key store, and look again in a minute"
    elif seen.state not in (*_STATES_OF_USE, "Unavailable"):
        yield f"the KMS key is in the state {seen.state}"
    if seen.details:
        yield from _label_drift(key, seen)


def _label_drift(key: Key, seen: KmsKey) -> Iterable[str]:
    if seen.description != key.description:
        yield f"its description in AWS is {seen.description!r}, here {key.description!r}"
    if key.alias and full_alias(key.alias) not in seen.aliases:
        yield f"AWS does not know it by {full_alias(key.alias)}, but by {', '.join(seen.aliases) or 'no alias'}"
    if dict(seen.tags) != key.tags:
        names = sorted(name for name in {*seen.tags, *key.tags} if seen.tags.get(name) != key.tags.get(name))
        yield f"its tags in AWS differ from those here: {', '.join(names)}"


def followed_key(key: Key, seen: KmsKey, link: KeyLink) -> Key:
    """The key with alias, description and tags as AWS has them, and its new link. seen: with details, else only the link changes.

    The alias stays when AWS has it among others. Drift in what now follows AWS is gone.
    """
    if not seen.details:
        return msgspec.structs.replace(key, link=link)
    kept = (
        key.alias if full_alias(key.alias) in seen.aliases else (seen.aliases[0].removeprefix("alias/") if seen.aliases else "")
    )
    followed = msgspec.structs.replace(key, alias=kept, description=seen.description, tags=dict(seen.tags))
    labels = set(_label_drift(key, seen))
    drift = tuple(sentence for sentence in link.drift if sentence not in labels)
    return msgspec.structs.replace(followed, link=msgspec.structs.replace(link, drift=drift))


def find_unlinked(
    stores: Iterable[KeyStore], seen: Sequence[CustomKeyStore], credentials: Collection[Credential], *, region: str
) -> list[Unlinked]:
    """Custom key stores of one Region that were made by hand for one of our unlinked stores.

    One belongs to a store when AWS calls that store's path at its endpoint, or signs with one of its credentials: a credential opens
    its own store only. credentials: of all stores.
    """
    stores = list(stores)
    taken = {store.link.custom_key_store_id for store in stores if store.link is not None}
    free = [store for store in stores if store.link is None and store.region == region]
    owner = {credential.access_key_id: credential.store for credential in credentials}
    found = []
    for entry in seen:
        if entry.type != EXTERNAL_KEY_STORE or entry.id in taken:
            continue
        for store in free:
            signs = owner.get(entry.access_key_id) == store.name
            calls = entry.uri_path == uri_path(store) and (not store.endpoint or _host(entry.endpoint) == _host(store.endpoint))
            if signs or calls:
                found.append(Unlinked(store.name, entry, _unlinked_problem(store, entry, signs=signs)))
    return found


def foreign_problem(store: KeyStore, seen: CustomKeyStore, credentials: Collection[Credential]) -> str:
    """Why a custom key store is not this key store's: "" when AWS calls its path at its endpoint and signs with a credential of it.

    Nothing of what AWS shows of it is quoted: it may be another key store's. credentials: all of the store.
    """
    if seen.type != EXTERNAL_KEY_STORE:
        return "it is no external key store"
    if seen.uri_path != uri_path(store):
        return f"AWS calls another path by it than this key store's, {uri_path(store)}"
    if _host(seen.endpoint) != _host(store.endpoint):
        return f"AWS calls another endpoint by it than this key store's, {store.endpoint or 'which is not set'}"
    if seen.access_key_id not in {credential.access_key_id for credential in credentials}:
        return "AWS signs with a credential by it that this key store does not have"
    return ""


def is_foreign(store: KeyStore, seen: CustomKeyStore, credentials: Collection[Credential]) -> bool:
    """Whether nothing that AWS shows of a custom key store is of this key store. Of one that is linked a part may have changed."""
    signs = seen.access_key_id in {credential.access_key_id for credential in credentials}
    return seen.type != EXTERNAL_KEY_STORE or (seen.uri_path != uri_path(store) and not signs)


def unlinked_keys(keys: Iterable[Key], seen: Iterable[KmsKey]) -> list[tuple[Key, KmsKey]]:
    """Our unlinked keys of one store for which its custom key store holds a KMS key. seen: `keys_of_store` of it."""
    free = {key.external_key_id: key for key in keys if key.link is None}
    return [(free[entry.external_key_id], entry) for entry in seen if entry.external_key_id in free]


def _unlinked_problem(store: KeyStore, entry: CustomKeyStore, *, signs: bool) -> str:
    if entry.uri_path != uri_path(store):
        return f"it signs with a credential of {store.name} but calls the path {entry.uri_path}, not {uri_path(store)}"
    if not signs:
        return f"it signs with access key id {entry.access_key_id or 'none'}, which {store.name} does not have: give AWS one of its own"
    return ""


def _host(endpoint: str) -> str:
    """Host names are the same in upper and lower case."""
    return endpoint.lower().removeprefix("https://").rstrip("/")


def _day(unix_s: int) -> str:
    return f"on {datetime.datetime.fromtimestamp(unix_s, datetime.UTC):%Y-%m-%d}" if unix_s else "soon"
