# SPDX-License-Identifier: Apache-2.0
"""The use cases of administration: each is one method, whatever face it is called by (REST, CLI, apply).

A use case checks the right, makes what must exist outside the state (a key in a token), then commits one transaction whose plan is
pure (plans/) and waits until the workers of this node serve it. A newcomer's trap: what is checked before the transaction is checked
again inside it, on the newest state; the first check only spares the work.
"""

from __future__ import annotations

import secrets as random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from xksfast.admin.actors import Actor, check_token, new_token, operator_origin, while_known
from xksfast.admin.blocks import Blocks, Confirmation
from xksfast.admin.label_rights import LabelRights, new_label
from xksfast.admin.plans import credentials, keys, operators, stores, teardown
from xksfast.admin.plans.common import at_revision, check_revision, find_key, find_store
from xksfast.admin.plans.sight import connections_of
from xksfast.admin.publisher import Publisher
from xksfast.admin.refusals import Refused, Repeated, no_such
from xksfast.config import Config
from xksfast.native.crypto import Secret
from xksfast.state.events import Change
from xksfast.state.objects import AwsConnection, Credential, Key, KeyStore, Operator, Stored, key_id
from xksfast.state.projection import State
from xksfast.state.records import SealedSecret
from xksfast.state.sealing import Sealer
from xksfast.state.secret_rows import SecretRows
from xksfast.state.store import Once, Plan, StateStore
from xksfast.toml_reader import nearest

if TYPE_CHECKING:  # they bring pydantic, which a start can do without until the workers serve
    from xksfast.admin.requests import (
        ConnectionCreate,
        CredentialGiven,
        KeyCreate,
        KeyRotate,
        KeyUpdate,
        OperatorCreate,
        StoreCreate,
        StoreUpdate,
    )

ACCESS_KEY_ID_ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"
ACCESS_KEY_ID_CHARS = 20
SERVED_PATIENCE_S = 5.0  # how long an answer waits for this node's workers; what takes longer is served later, and said so

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class IssuedCredential:
    """A credential and its secret, which is shown this once."""

    credential: Credential
    secret_access_key: str


class SourceKeys(Protocol):
    """Makes and proves keys in tokens, in processes of their own."""

    async def make(self, group: str, wanted: Mapping[str, Sequence[str]]) -> None:
        """Generate, replicate and prove; wanted: label -> usage. Nothing for those that are there. OperatorError says why not."""

    async def prove(self, group: str, label: str, usage: Sequence[str]) -> None:
        """A trial encrypt and decrypt on each partition. OperatorError says why not."""


class Service:
    """The use cases. Belongs to the control process's loop; the database is used in the one thread of `run`.

    run: runs a function in that thread, and returns when its events are with the publisher. labels: which source keys an actor may use.
    """

    def __init__(
        self,
        *,
        config: Config,
        store: StateStore,
        sealer: Sealer,
        secrets: SecretRows,
        publisher: Publisher,
        source_keys: SourceKeys,
        blocks: Blocks,
        run: RunsInThread,
    ) -> None:
        self._config = config
        self.labels = LabelRights(config)
        self._store = store
        self._sealer = sealer
        self._secrets = secrets
        self._publisher = publisher
        self._source_keys = source_keys
        self._blocks = blocks
        self._run = run

    # --- key stores

    async def create_store(
        self, actor: Actor, request: StoreCreate, once: Once | None = None
    ) -> tuple[KeyStore, list[IssuedCredential]]:
        """Create a store with its first credential, after a trial operation on its key source."""
        actor.require("manage")
        now = _now()
        groups = self._config.partition_groups
        with self._store.reading() as state:
            planned = stores.new_store(state, request, groups=groups, now=now)
        if planned.partition_group is not None:
            await self._source_keys.prove(planned.partition_group, planned.health_check_label, ("ENCRYPT", "DECRYPT"))
        issued, sealed = self._new_credentials(planned.name, request.credentials)
        given = {credential.access_key_id for credential in request.credentials}

        def plan(state: State) -> Plan:
            store = stores.new_store(state, request, groups=groups, now=now)
            made = [credentials.new_credential(state, store.name, access_key_id, now=now) for access_key_id in issued]
            shown = [IssuedCredential(one, issued[one.access_key_id]) for one in made if one.access_key_id not in given]
            return Plan(changes=stores.create(store, made), new_secrets=sealed, answer=(store, shown))

        done: tuple[KeyStore, list[IssuedCredential]] = await self.commit(actor, plan, once=once)
        return done

    async def update_store(self, actor: Actor, name: str, request: StoreUpdate, revision: int | None = None) -> KeyStore:
        """Change what the request names."""
        actor.require("operate", name)
        await self._change(actor, lambda state: stores.update(state, name, request, revision))
        return self.store(actor, name)

    async def delete_store(self, actor: Actor, name: str, revision: int | None = None, *, dry_run: bool = False) -> None:
        """Delete a store that has no keys and no custom key store in AWS."""
        actor.require("manage", name)

        def plan(state: State) -> Plan:
            changes = stores.delete(state, name, revision)
            return Plan(changes=changes, removed_secrets=_secrets_of(changes))

        await self.commit(actor, plan, dry_run=dry_run)

    async def block_store(self, actor: Actor, name: str, reason: str) -> Confirmation:
        """The kill switch for a whole store."""
        self._check_block(actor, name)
        return await self._blocks.block(
            actor, "key_store", name, lambda state: stores.set_blocked(state, name, True, reason), reason
        )

    async def unblock_store(self, actor: Actor, name: str) -> Confirmation:
        """Serve it again."""
        actor.require("operate", name)
        plan = while_known(actor, lambda state: stores.set_blocked(state, name, False, ""))
        return await self._blocks.unblock(actor, "key_store", name, plan)

    def teardown(self, actor: Actor, name: str) -> list[teardown.Obstacle]:
        """What stands in the way of deleting the store, and in which order."""
        actor.require("read", name)
        with self._store.reading() as state:
            return teardown.obstacles(state, name)

    def store(self, actor: Actor, name: str) -> KeyStore:
        """One store."""
        actor.require("read", name)
        with self._store.reading() as state:
            return find_store(state, name)

    def list_stores(self, actor: Actor) -> dict[str, KeyStore]:
        """All that the actor is granted, by name."""
        actor.require("read")
        with self._store.reading() as state:
            all_ = state.key_stores
            return {name: all_[name] for name in actor.stores if name in all_} if actor.stores else dict(all_)

    # --- credentials

    async def rotate_credential(
        self, actor: Actor, store: str, given: CredentialGiven | None = None, once: Once | None = None
    ) -> IssuedCredential:
        """A new credential; those that there are stay until they are removed. given: made elsewhere, its secret is not shown."""
        actor.require("operate", store)
        with self._store.reading() as state:
            find_store(state, store)  # before anything is sealed for it
        now = _now()
        issued, sealed = self._new_credentials(store, (given,) if given else ())
        (access_key_id,) = issued

        def plan(state: State) -> Plan:
            changes = credentials.rotate(state, store, access_key_id, now=now)
            made = changes[0].after
            assert isinstance(made, Credential)
            shown = IssuedCredential(made, "" if given else issued[access_key_id])
            return Plan(changes=changes, new_secrets=sealed, answer=shown)

        done: IssuedCredential = await self.commit(actor, plan, once=once)
        return done

    async def remove_credential(
        self, actor: Actor, store: str, access_key_id: str, revision: int | None = None, *, dry_run: bool = False
    ) -> None:
        """Requests signed with it are refused from now on."""
        actor.require("operate", store)

        def plan(state: State) -> Plan:
            changes = at_revision(state, credentials.remove(state, store, access_key_id), revision)
            return Plan(changes=changes, removed_secrets=_secrets_of(changes))

        await self.commit(actor, plan, dry_run=dry_run)

    def list_credentials(self, actor: Actor, store: str) -> dict[str, Credential]:
        """Of one store, by access key id, oldest first."""
        actor.require("read", store)
        with self._store.reading() as state:
            find_store(state, store)
            return dict(state.credentials_of(store))

    # --- keys

    async def create_key(self, actor: Actor, store: str, request: KeyCreate, once: Once | None = None) -> Key:
        """A HYOK key, with a source key of its own unless the request names one."""
        actor.require("operate", store)
        now = _now()
        with self._store.reading() as state:
            keys.check_new(state, store, request)
            place = state.place_of(store)
            self.labels.check(state, actor, store, place, request.label, create=request.create)
        label = request.label or new_label(request.external_key_id, 1)
        owned = await self._provide_source(actor, place, label, request.usage, make=not request.label or request.create)

        def plan(state: State) -> Plan:
            self.labels.check_users(state, actor, store, place, label)
            return Plan(changes=keys.create(state, store, request, label, owned=owned, now=now))

        await self.commit(actor, plan, once=once)
        return self.key(actor, store, request.external_key_id)

    async def rotate_key(
        self,
        actor: Actor,
        store: str,
        external_key_id: str,
        request: KeyRotate,
        revision: int | None = None,
        once: Once | None = None,
    ) -> Key:
        """A new version that encrypts from now on; all former ones go on decrypting."""
        actor.require("operate", store)
        now = _now()
        with self._store.reading() as state:
            key = keys.check_rotation(state, store, external_key_id, request.label)
            check_revision(state, key, revision)
            place = state.place_of(store)
            self.labels.check(state, actor, store, place, request.label, create=request.create)
        label = request.label or new_label(external_key_id, key.versions[-1].number + 1)
        owned = await self._provide_source(actor, place, label, key.usage, make=not request.label or request.create)

        def changes(state: State) -> list[Change]:
            self.labels.check_users(state, actor, store, place, label)
            return keys.rotate(state, store, external_key_id, label, owned=owned, now=now)

        await self._change(actor, changes, revision, once=once)
        return self.key(actor, store, external_key_id)

    async def update_key(
        self, actor: Actor, store: str, external_key_id: str, request: KeyUpdate, revision: int | None = None
    ) -> Key:
        """Change what the request names."""
        actor.require("operate", store)
        await self._change(actor, lambda state: keys.update(state, store, external_key_id, request, revision))
        return self.key(actor, store, external_key_id)

    async def enable_key(
        self, actor: Actor, store: str, external_key_id: str, enabled: bool, revision: int | None = None
    ) -> Key:
        """Enable or disable."""
        actor.require("operate", store)
        await self._change(actor, lambda state: keys.set_enabled(state, store, external_key_id, enabled), revision)
        return self.key(actor, store, external_key_id)

    async def delete_key(
        self, actor: Actor, store: str, external_key_id: str, revision: int | None = None, *, dry_run: bool = False
    ) -> None:
        """Forget a key that is disabled. Key material in an HSM stays where it is."""
        actor.require("operate", store)
        await self._change(actor, lambda state: keys.delete(state, store, external_key_id, revision), dry_run=dry_run)

    async def block_key(self, actor: Actor, store: str, external_key_id: str, reason: str) -> Confirmation:
        """The kill switch for one key."""
        self._check_block(actor, store)
        return await self._blocks.block(
            actor,
            "key",
            key_id(store, external_key_id),
            lambda state: keys.set_blocked(state, store, external_key_id, True, reason),
            reason,
        )

    async def unblock_key(self, actor: Actor, store: str, external_key_id: str) -> Confirmation:
        """Serve it again."""
        actor.require("operate", store)
        plan = while_known(actor, lambda state: keys.set_blocked(state, store, external_key_id, False, ""))
        return await self._blocks.unblock(actor, "key", key_id(store, external_key_id), plan)

    def key(self, actor: Actor, store: str, external_key_id: str) -> Key:
        """One key."""
        actor.require("read", store)
        with self._store.reading() as state:
            return find_key(state, store, external_key_id)

    def list_keys(self, actor: Actor, store: str) -> dict[str, Key]:
        """Of one store, by external key id."""
        actor.require("read", store)
        with self._store.reading() as state:
            find_store(state, store)
            return dict(state.keys_of(store))

    # --- operators and AWS connections

    async def create_operator(self, actor: Actor, request: OperatorCreate, once: Once | None = None) -> tuple[Operator, str]:
        """(the operator, the token, which is shown this once)."""
        actor.require("manage")
        token, hashed = new_token()
        now = _now()

        def plan(state: State) -> Plan:
            changes = operators.create(state, request, hashed, now=now)
            return Plan(changes=changes, answer=(changes[0].after, token))

        done: tuple[Operator, str] = await self.commit(actor, plan, once=once)
        return done

    async def delete_operator(self, actor: Actor, name: str, revision: int | None = None, *, dry_run: bool = False) -> None:
        """The token is refused from now on."""
        actor.require("manage")

        def plan(state: State) -> Plan:
            changes = at_revision(state, operators.delete(state, name, now=_now()), revision)
            return Plan(changes=changes, forgotten_actor=operator_origin(name))

        await self.commit(actor, plan, dry_run=dry_run)

    def list_operators(self, actor: Actor) -> dict[str, Operator]:
        """All of them, by name."""
        actor.require_all_stores("read", "operators")
        with self._store.reading() as state:
            return dict(state.operators)

    async def create_connection(self, actor: Actor, request: ConnectionCreate, once: Once | None = None) -> AwsConnection:
        """How to reach AWS KMS."""
        actor.require("manage")
        await self._change(actor, lambda state: operators.create_connection(state, request, now=_now()), once=once)
        with self._store.reading() as state:
            return state.aws_connections[request.name]

    async def delete_connection(self, actor: Actor, name: str, revision: int | None = None, *, dry_run: bool = False) -> None:
        """One that no linked store uses."""
        actor.require("manage")
        await self._change(actor, lambda state: operators.delete_connection(state, name), revision, dry_run=dry_run)

    def list_connections(self, actor: Actor) -> dict[str, AwsConnection]:
        """Those by which a store of the actor's grants is linked, or all, by name."""
        actor.require("read")
        with self._store.reading() as state:
            return connections_of(state, actor)

    def connection(self, actor: Actor, name: str) -> AwsConnection:
        """One of those that the actor may use, for linking."""
        with self._store.reading() as state:
            found = connections_of(state, actor)
            if name not in found:
                raise no_such("AWS connection", name, nearest(name, found))
            return found[name]

    # --- shared

    def _check_block(self, actor: Actor, store: str) -> None:
        """Once, before it is in force: what is in force is recorded whatever becomes of the operator."""
        actor.require("block", store)
        with self._store.reading() as state:
            check_token(state, actor)

    def credentials_of(self, store: str) -> list[Credential]:
        """Of a store, for linking: who asks was checked."""
        with self._store.reading() as state:
            return list(state.credentials_of(store).values())

    def reveal(self, credential: Credential) -> str:
        """The secret access key, to be handed to AWS and to nobody else."""
        return self._sealer.reveal_credential(self._secrets.row(credential.secret_id))

    def revision(self, value: Stored) -> int:
        """For its ETag."""
        with self._store.reading() as state:
            return state.revision_of(value)

    async def commit(
        self, actor: Actor, plan: Callable[[State], Plan], *, dry_run: bool = False, once: Once | None = None
    ) -> Any:
        """Commit, and wait until this node's workers serve it. dry_run: only whether it would be refused.

        once: see StateStore.transact. Repeated when it was carried out before.
        """
        if dry_run:
            with self._store.reading() as state:
                return plan(state).answer
        committed = await self._run(lambda: self._store.transact(actor.origin, while_known(actor, plan), once=once))
        if committed.repeated is not None:
            raise Repeated(committed.repeated)
        if committed.events:
            await self._publisher.applied(committed.events[-1].seq, SERVED_PATIENCE_S)
        return committed.answer

    async def make_source_keys(self, actor: Actor, group: str, wanted: Mapping[str, Sequence[str]]) -> None:
        """Many in one go, ahead of the keys that will use them. wanted: label -> usage."""
        actor.require("operate")
        for label in wanted:
            self.labels.check_reserved(actor, group, label)

        def plan(state: State) -> Plan:
            changes = [change for label in wanted for change in keys.begin_source(state, group, label, "", now=_now())]
            return Plan(changes=changes)

        await self._run(lambda: self._store.transact(actor.origin, while_known(actor, plan)))
        await self._source_keys.make(group, wanted)

    async def _change(
        self,
        actor: Actor,
        changes: Callable[[State], list[Change]],
        revision: int | None = None,
        *,
        dry_run: bool = False,
        once: Once | None = None,
    ) -> None:
        """Commit changes to one object, which the client has seen at this revision."""
        plan: Callable[[State], Plan] = lambda state: Plan(changes=at_revision(state, changes(state), revision))  # noqa: E731
        await self.commit(actor, plan, dry_run=dry_run, once=once)

    async def _provide_source(self, actor: Actor, place: str, label: str, usage: Sequence[str], *, make: bool) -> bool:
        """The source key is there and proven when this returns; whether it is ours."""
        if place != "local":
            if make:
                begin = while_known(actor, lambda state: Plan(changes=keys.begin_source(state, place, label, "", now=_now())))
                await self._run(lambda: self._store.transact(actor.origin, begin))
                await self._source_keys.make(place, {label: usage})
            else:
                await self._source_keys.prove(place, label, usage)
            return make
        with self._store.reading() as state:
            exists = f"local/{label}" in state.source_keys
        if exists:
            return True
        if not make:
            raise Refused(
                "not_found",
                "no-such-source-key",
                f"There is no local key {label!r}",
                next="Leave the label out, or set create, to have one made",
                field="label",
            )
        secret_id = f"local_key/{label}"
        sealed = self._sealer.new_local_key(secret_id)

        def plan(state: State) -> Plan:
            changes = keys.begin_source(state, "local", label, secret_id, now=_now())
            return Plan(changes=changes, new_secrets=[sealed] if changes else [])

        await self._run(lambda: self._store.transact(actor.origin, while_known(actor, plan)))
        return True

    def _new_credentials(self, store: str, given: Sequence[CredentialGiven]) -> tuple[dict[str, str], list[SealedSecret]]:
        """Access key id -> secret, and the secrets sealed; one new credential when none is given."""
        issued: dict[str, str] = {}
        sealed = []
        for one in given:
            text = one.secret_access_key.get_secret_value()
            issued[one.access_key_id] = text
            secret_id = credentials.secret_id(store, one.access_key_id)
            sealed.append(self._sealer.seal(Secret.from_bytes(text.encode()), secret_id, "credential"))
        if not given:
            access_key_id = "".join(random.choice(ACCESS_KEY_ID_ALPHABET) for _ in range(ACCESS_KEY_ID_CHARS))
            row, issued[access_key_id] = self._sealer.new_credential_secret(credentials.secret_id(store, access_key_id))
            sealed.append(row)
        return issued, sealed


class RunsInThread(Protocol):
    """See Service."""

    async def __call__(self, work: Callable[[], Answer]) -> Answer:
        """The result of work()."""


def _now() -> int:
    return int(time.time())


def _secrets_of(changes: Sequence[Change]) -> list[str]:
    """Ids of the secrets that go with removed credentials."""
    return [change.before.secret_id for change in changes if isinstance(change.before, Credential) and change.after is None]
