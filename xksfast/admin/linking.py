# SPDX-License-Identifier: Apache-2.0
"""The use cases that reach into AWS: link, connect, disconnect, sync, delete there. Calls to AWS block, so each runs in a thread.

What AWS did is recorded after it did it: a crash between the two leaves a store in AWS that `sync` and `link` find again by its path.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, TypeVar

from msgspec.structs import replace

from xksfast.admin.actors import Actor
from xksfast.admin.aws.errors import AwsRefused
from xksfast.admin.aws.kms import KmsConnection
from xksfast.admin.aws.results import CustomKeyStore, KmsKey, ProxyCredential
from xksfast.admin.aws.sync import (
    Unlinked,
    find_unlinked,
    followed_key,
    foreign_problem,
    is_foreign,
    link_key,
    link_store,
    sync_key,
    sync_store,
    unlinked_keys,
    uri_path,
)
from xksfast.admin.plans import keys, stores
from xksfast.admin.plans.credentials import newest as newest_credential
from xksfast.admin.refusals import Refused
from xksfast.admin.requests import KeyLinkRequest, StoreLinkRequest
from xksfast.admin.service import Service
from xksfast.state.objects import AwsConnection, Key, KeyStore
from xksfast.state.store import Plan

Answer = TypeVar("Answer")
Progress = Callable[[CustomKeyStore, float], None]
NOT_FOUND = ("CustomKeyStoreNotFoundException", "NotFoundException")


class Linking:
    """connect: makes a KmsConnection; one is kept for each connection as it is stored."""

    def __init__(self, service: Service, connect: Callable[[AwsConnection], KmsConnection] = KmsConnection) -> None:
        self._service = service
        self._connect = connect
        self._connections: dict[AwsConnection, KmsConnection] = {}
        self._identified: set[AwsConnection] = set()

    # --- key stores

    async def link_store(self, actor: Actor, name: str, request: StoreLinkRequest) -> KeyStore:
        """Make the custom key store in AWS, or take the one that the request names."""
        actor.require("operate", name)
        store = self._service.store(actor, name)
        stores.check_linkable(store)
        kms = self._kms(actor, request.connection)
        stores.check_connection(store, kms.connection)
        await self._identify(kms)
        credentials = self._service.credentials_of(name)
        made = request.custom_key_store_id
        if not made:
            newest = newest_credential(credentials)
            secret = self._service.reveal(newest)
            made = await _in_thread(
                lambda: kms.create_store(
                    request.custom_key_store_name or name,
                    endpoint=store.endpoint,
                    uri_path=uri_path(store),
                    connectivity=store.connectivity,
                    credential=ProxyCredential(newest.access_key_id, secret),
                    vpc_endpoint_service_name=store.vpc_endpoint_service_name,
                )
            )
        seen = await _in_thread(lambda: kms.describe_store(made))
        if problem := foreign_problem(store, seen, credentials):
            raise _foreign(name, made, problem)
        link = link_store(store, request.connection, seen, credentials, now=_now())
        await self._service.commit(actor, lambda state: Plan(changes=stores.set_link(state, name, link)))
        return self._service.store(actor, name)

    def check_linked(self, actor: Actor, name: str) -> None:
        """Refused unless the actor may have AWS connect and disconnect the store, and there is something to connect."""
        self._linked(actor, name, "operate")

    async def connect_store(self, actor: Actor, name: str, progress: Progress, *, wait: bool = True) -> KeyStore:
        """Have AWS connect; minutes, as a rule. One that FAILED is disconnected first, as AWS wants it."""
        kms, store, store_id = await self._own(actor, name)

        def connect() -> None:
            if kms.describe_store(store_id).connection_state == "FAILED":
                kms.disconnect_store(store_id)
                kms.wait_disconnected(store_id, progress)
            kms.connect_store(store_id)
            if wait:
                kms.wait_connected(store_id, progress)

        return await self._then_sync(actor, store, connect)

    async def disconnect_store(self, actor: Actor, name: str, progress: Progress, *, wait: bool = True) -> KeyStore:
        """From then on AWS refuses to use the store's keys."""
        kms, store, store_id = await self._own(actor, name)

        def disconnect() -> None:
            kms.disconnect_store(store_id)
            if wait:
                kms.wait_disconnected(store_id, progress)

        return await self._then_sync(actor, store, disconnect)

    async def sync_store(self, actor: Actor, name: str) -> KeyStore:
        """Look at the custom key store and at each linked key; what AWS leads in follows, the rest is drift."""
        kms, store, store_id = self._linked(actor, name, "operate")
        seen = await _in_thread(lambda: _or_none(lambda: kms.describe_store(store_id)))
        link = sync_store(store, seen, self._service.credentials_of(name), now=_now())
        await self._service.commit(actor, lambda state: Plan(changes=stores.follow_link(state, name, link)))
        for key in self._service.list_keys(actor, name).values():
            if key.link is not None:
                await self._follow(actor, kms, key, key.link.key_arn)
        return self._service.store(actor, name)

    async def update_store(self, actor: Actor, name: str) -> KeyStore:
        """Tell AWS what differs: path, endpoint, connectivity, and the newest credential. Former ones stay until they are removed."""
        kms, store, store_id = await self._own(actor, name)
        seen = await _in_thread(lambda: kms.describe_store(store_id))
        wanted = {
            "uri_path": uri_path(store),
            "endpoint": store.endpoint,
            "connectivity": store.connectivity,
            "vpc_endpoint_service_name": store.vpc_endpoint_service_name or None,
        }
        changes: dict[str, Any] = {field: value for field, value in wanted.items() if value and getattr(seen, field) != value}
        newest = newest_credential(self._service.credentials_of(name))
        if seen.access_key_id != newest.access_key_id:
            changes["credential"] = ProxyCredential(newest.access_key_id, self._service.reveal(newest))
        if changes:
            await _in_thread(lambda: kms.update_store(store_id, **changes))
        return await self.sync_store(actor, name)

    async def delete_store(self, actor: Actor, name: str) -> KeyStore:
        """Delete the custom key store in AWS; ours stays, unlinked."""
        actor.require("manage", name)
        kms, _, store_id = self._linked(actor, name, "operate")
        await _in_thread(lambda: _or_none(lambda: kms.delete_store(store_id)))
        await self._service.commit(actor, lambda state: Plan(changes=stores.set_link(state, name, None)))
        return self._service.store(actor, name)

    async def find_unlinked(self, actor: Actor, connection: str) -> list[Unlinked]:
        """Custom key stores in AWS that were made by hand for one of our stores."""
        kms = self._kms(actor, connection)
        granted = self._service.list_stores(actor)
        ours = [granted[name] for name in sorted(granted)]
        credentials = [credential for store in ours for credential in self._service.credentials_of(store.name)]
        seen = await _in_thread(kms.stores)
        return find_unlinked(ours, seen, credentials, region=kms.connection.region)

    # --- keys

    async def link_key(self, actor: Actor, store: str, external_key_id: str, request: KeyLinkRequest) -> Key:
        """Make the KMS key in AWS, or take the one that the request names."""
        kms, linked, store_id = self._linked(actor, store, "operate")
        key = self._service.key(actor, store, external_key_id)
        if key.link is not None:
            raise Refused("conflict", "key-linked", f"Key {key.id!r} is KMS key {key.link.key_arn} in AWS already")

        def make() -> KmsKey:
            if request.key_arn:
                return kms.look_at_key(request.key_arn)
            made = kms.create_key(store_id, external_key_id, description=key.description, tags=key.tags)
            if key.alias:
                kms.create_alias(key.alias, made.id)
            return kms.look_at_key(made.arn)

        seen = await _in_thread(make)
        if seen.external_key_id != external_key_id or seen.custom_key_store_id != store_id:
            raise Refused(
                "conflict",
                "other-key",
                f"KMS key {seen.arn} is not of this key: it stands for another external key, or for none",
                field="key_arn",
            )
        link = link_key(linked, key, seen, now=_now())
        await self._record(actor, key, followed_key(key, seen, link))
        return self._service.key(actor, store, external_key_id)

    async def link_found_keys(self, actor: Actor, store: str) -> list[Key]:
        """Take over every KMS key that was made by hand for one of our keys."""
        kms, linked, store_id = self._linked(actor, store, "operate")
        ours = list(self._service.list_keys(actor, store).values())
        seen = await _in_thread(lambda: list(kms.keys_of_store(store_id)))
        found = unlinked_keys(ours, seen)
        for key, kms_key in found:
            link = link_key(linked, key, kms_key, now=_now())
            await self._record(actor, key, followed_key(key, kms_key, link))
        return [self._service.key(actor, store, key.external_key_id) for key, _ in found]

    async def sync_key(self, actor: Actor, store: str, external_key_id: str) -> Key:
        """Alias, description, tags and state follow AWS."""
        kms, key, arn = self._linked_key(actor, store, external_key_id)
        await self._follow(actor, kms, key, arn)
        return self._service.key(actor, store, external_key_id)

    async def enable_key(self, actor: Actor, store: str, external_key_id: str, enabled: bool) -> Key:
        """In AWS as well as here."""
        kms, _, arn = self._linked_key(actor, store, external_key_id)
        await _in_thread(lambda: kms.enable_key(arn) if enabled else kms.disable_key(arn))
        await self._service.enable_key(actor, store, external_key_id, enabled)
        return await self.sync_key(actor, store, external_key_id)

    async def schedule_deletion(self, actor: Actor, store: str, external_key_id: str, days: int) -> Key:
        """Of the KMS key, in 7 to 30 days; ours stays."""
        kms, _, arn = self._linked_key(actor, store, external_key_id)
        await _in_thread(lambda: kms.schedule_key_deletion(arn, days))
        return await self.sync_key(actor, store, external_key_id)

    async def cancel_deletion(self, actor: Actor, store: str, external_key_id: str) -> Key:
        """The KMS key is disabled afterwards."""
        kms, _, arn = self._linked_key(actor, store, external_key_id)
        await _in_thread(lambda: kms.cancel_key_deletion(arn))
        return await self.sync_key(actor, store, external_key_id)

    # --- shared

    def _kms(self, actor: Actor, name: str) -> KmsConnection:
        connection = self._service.connection(actor, name)
        found = self._connections.get(connection)
        if found is None:
            found = self._connections[connection] = self._connect(connection)
        return found

    def _linked(self, actor: Actor, name: str, right: str) -> tuple[KmsConnection, KeyStore, str]:
        actor.require(right, name)
        store = self._service.store(actor, name)
        if store.link is None:
            raise Refused(
                "conflict",
                "store-not-linked",
                f"Key store {name!r} is not linked, so AWS is not ours to tell",
                next=f"Link it first: `xksfast store link {name} --connection NAME`",
            )
        return self._kms(actor, store.link.connection), store, store.link.custom_key_store_id

    async def _own(self, actor: Actor, name: str) -> tuple[KmsConnection, KeyStore, str]:
        """_linked, for what changes the custom key store. A link by hand of old may hold that of a store outside the actor's grants."""
        kms, store, store_id = self._linked(actor, name, "operate")
        if actor.stores:
            credentials = self._service.credentials_of(name)
            seen = await _in_thread(lambda: _or_none(lambda: kms.describe_store(store_id)))
            if seen is not None and is_foreign(store, seen, credentials):
                raise _foreign(
                    name, store_id, "AWS neither calls this key store's path by it nor signs with a credential of it"
                )
        return kms, store, store_id

    async def _identify(self, kms: KmsConnection) -> None:
        """Once for each connection: refused when its credentials belong to another account than it says."""
        if kms.connection not in self._identified:
            await _in_thread(kms.identity)
            self._identified.add(kms.connection)

    def _linked_key(self, actor: Actor, store: str, external_key_id: str) -> tuple[KmsConnection, Key, str]:
        kms, _, _ = self._linked(actor, store, "operate")
        key = self._service.key(actor, store, external_key_id)
        if key.link is None:
            raise Refused(
                "conflict",
                "key-not-linked",
                f"Key {key.id!r} is not linked to a KMS key",
                next=f"Link it first: `xksfast key link {store} {external_key_id}`",
            )
        return kms, key, key.link.key_arn

    async def _then_sync(self, actor: Actor, store: KeyStore, work: Callable[[], None]) -> KeyStore:
        """Also when AWS refused: what state it is in then is what the operator wants to see."""
        try:
            await _in_thread(work)
        finally:
            await self.sync_store(actor, store.name)
        return self._service.store(actor, store.name)

    async def _follow(self, actor: Actor, kms: KmsConnection, key: Key, arn: str) -> None:
        seen = await _in_thread(lambda: _or_none(lambda: kms.look_at_key(arn)))
        link = sync_key(self._service.store(actor, key.store), key, seen, now=_now())
        await self._record(actor, key, replace(key, link=link) if seen is None else followed_key(key, seen, link))

    async def _record(self, actor: Actor, key: Key, followed: Key) -> None:
        await self._service.commit(
            actor, lambda state: Plan(changes=keys.follow(state, key.store, key.external_key_id, followed))
        )


def _foreign(store: str, custom_key_store_id: str, problem: str) -> Refused:
    return Refused(
        "conflict",
        "custom-key-store-foreign",
        f"Custom key store {custom_key_store_id} in AWS is not that of key store {store!r}: {problem}",
        why="The key store that is linked to it decides where AWS sends its requests, and by which credential",
        next="Leave the id out to have one made, or have path, endpoint and credential changed in AWS first",
        field="custom_key_store_id",
    )


def _or_none(call: Callable[[], Answer]) -> Answer | None:
    """None where AWS has no such thing."""
    try:
        return call()
    except AwsRefused as refusal:
        if refusal.code in NOT_FOUND:
            return None
        raise


async def _in_thread(call: Callable[[], Answer]) -> Answer:
    return await asyncio.to_thread(call)


def _now() -> int:
    return int(time.time())
