# SPDX-License-Identifier: Apache-2.0
"""How objects look in answers. What a client must not see (ids of sealed secrets, hashes of tokens) is left out here.

Times are unix seconds, 0: never. `revision` is the object's ETag, and changes with the object only: what was used or counted meanwhile
leaves it as it is.
"""

from __future__ import annotations

from typing import Any, Generic, Literal, TypeVar

import msgspec
from pydantic import BaseModel, ConfigDict, Field

from xksfast.admin.blocks import Confirmation
from xksfast.admin.schedule import rotation_hint
from xksfast.admin.service import IssuedCredential
from xksfast.admin.usage import StoreUse
from xksfast.state import rules
from xksfast.state.events import Event
from xksfast.state.objects import AwsConnection, Credential, Key, KeyStore, KeyVersion, Operator, Stored
from xksfast.state.projection import State

Item = TypeVar("Item")


def _hint() -> Any:
    """The field that says when a rotation is due."""
    return Field(
        description="What to do when the version that encrypts has done so 2^30 times or more; empty: nothing.",
        examples=[rotation_hint("payments", "orders", 3, 1_288_490_188)],
    )


_HIDDEN = ("token_sha256", "secret_id")
_LAG = "Workers report every 5 seconds, so it lags by some; no IV depends on it."


class View(BaseModel):
    """Base of all views."""

    model_config = ConfigDict(from_attributes=True)


class Page(BaseModel, Generic[Item]):
    """Some of many. next: the `cursor` of the next page; null: this is the last one. The Link header has it as a URL."""

    items: list[Item]
    next: str | None = None


class StoreLinkView(View):
    """The custom key store in AWS."""

    connection: str
    custom_key_store_id: str
    custom_key_store_name: str
    connection_state: str
    connection_error: str
    synced_at: int
    drift: list[str]


class StoreView(View):
    """An external key store."""

    name: str
    uri_path_prefix: str
    uri_path: str = Field(description="XksProxyUriPath, as AWS KMS wants it.")
    region: str
    key_source: Literal["pkcs11", "local"]
    partition_group: str | None
    account: str
    description: str
    endpoint: str
    connectivity: str
    vpc_endpoint_service_name: str
    max_credentials: int
    rotate_credential_days: int
    allowed_principals: list[str]
    health_check_label: str
    aad_scheme: str
    on_stale: str
    stale_after_s: int
    tags: dict[str, str]
    blocked: bool
    blocked_reason: str
    link: StoreLinkView | None
    created_at: int
    keys: int = Field(description="How many it has.")
    credentials: int = Field(description="How many it has.")
    revision: int


class CredentialView(View):
    """A SigV4 credential, without its secret."""

    access_key_id: str
    store: str
    created_at: int
    superseded_at: int = Field(description="When a rotation issued its successor. It is served until it is removed.")
    last_used_at: int = Field(description=f"When a request signed with it was last accepted. {_LAG}")
    revision: int


class IssuedView(CredentialView):
    """A new credential with its secret, which is shown this once."""

    secret_access_key: str


class StoreCreated(StoreView):
    """The store, and its first credential unless the request brought some."""

    credential: IssuedView | None


class XksProxyAuthenticationCredential(BaseModel):
    """In AWS's words."""

    AccessKeyId: str
    RawSecretAccessKey: str


class CredentialsFile(BaseModel):
    """What the AWS console takes as proxy configuration file when a custom key store is created."""

    XksProxyUriPath: str
    XksProxyAuthenticationCredential: XksProxyAuthenticationCredential


class KeyLinkView(View):
    """The KMS key in AWS."""

    key_arn: str
    key_state: str
    aliases: list[str]
    synced_at: int
    drift: list[str]


class VersionView(View):
    """number: it travels with each ciphertext. label: of the source key. current: it encrypts; all decrypt."""

    number: int
    label: str
    created_at: int
    current: bool
    encryptions: int = Field(description=f"How often it has encrypted, on all nodes. {_LAG}", examples=[1_288_490_188])
    hint: str = _hint()


class KeyView(View):
    """A HYOK key. version: the one that encrypts."""

    external_key_id: str
    store: str
    version: int
    label: str = Field(description="CKA_LABEL of the source key of that version, or the name of the local key.")
    encryptions: int = Field(
        description=f"How often that version has encrypted, on all nodes. {_LAG}", examples=[1_288_490_188]
    )
    hint: str = _hint()
    state: Literal["ENABLED", "DISABLED"]
    usage: list[str]
    alias: str
    description: str
    tags: dict[str, str]
    blocked: bool
    blocked_reason: str
    rotate_days: int
    link: KeyLinkView | None
    created_at: int
    revision: int


class VersionsView(View):
    """All versions of a key, oldest first."""

    items: list[VersionView]


class OperatorView(View):
    """Who may administrate. stores: grants; empty: all."""

    name: str
    role: str
    stores: list[str]
    expires_at: int
    created_at: int
    revision: int


class OperatorCreated(OperatorView):
    """With the token, which is shown this once."""

    token: str


class ConnectionView(View):
    """How to reach AWS KMS."""

    name: str
    account: str
    region: str
    profile: str
    role_arn: str
    endpoint_url: str
    created_at: int
    revision: int


class ConfirmedView(View):
    """A node that serves nothing more of it, and after how many milliseconds."""

    node: str
    ms: float


class ConfirmationView(View):
    """What became of a block or its end. pending: nodes that did not confirm in time, and why. recorded: it stands in the log."""

    confirmed: list[ConfirmedView]
    pending: list[str]
    recorded: bool


class ObstacleView(View):
    """A step on the way to deleting a store. waits: AWS takes days, whatever one does."""

    what: str
    command: str
    count: int
    waits: bool


class TeardownView(View):
    """In the order in which they are to be cleared; the last one is the deletion itself."""

    items: list[ObstacleView]


class EventView(View):
    """One change. before, after: the object; null: it was not there."""

    seq: int
    at_ms: int
    transaction: str
    node: str
    actor: str
    origin: str = Field(description="Address of the client.")
    action: str
    kind: str
    id: str
    before: dict[str, Any] | None
    after: dict[str, Any] | None
    hash: str


class WhoAmI(View):
    """Whose token it is."""

    name: str
    role: str
    stores: list[str]


# --- making them


def _revision(state: State, value: Stored) -> int:
    """0: it is gone since."""
    return state.revision_of(value)


def store_view(state: State, store: KeyStore) -> StoreView:
    """As the state has it."""
    return StoreView(
        **msgspec.structs.asdict(store),
        uri_path=uri_path(store),
        keys=len(state.keys_of(store.name)),
        credentials=len(state.credentials_of(store.name)),
        revision=_revision(state, store),
    )


def uri_path(store: KeyStore) -> str:
    """XksProxyUriPath."""
    return f"{store.uri_path_prefix}{rules.API_PATH}"


def store_created(state: State, store: KeyStore, issued: list[IssuedCredential]) -> StoreCreated:
    """With the secret of its new credential."""
    return StoreCreated(**store_view(state, store).model_dump(), credential=issued_view(state, issued[0]) if issued else None)


def credential_view(state: State, credential: Credential, used: StoreUse) -> CredentialView:
    """Without its secret. used: of its store."""
    return CredentialView(
        access_key_id=credential.access_key_id,
        store=credential.store,
        created_at=credential.created_at,
        superseded_at=credential.superseded_at,
        last_used_at=used.last_used.get(credential.access_key_id, 0),
        revision=_revision(state, credential),
    )


def issued_view(state: State, issued: IssuedCredential) -> IssuedView:
    """With its secret."""
    view = credential_view(state, issued.credential, StoreUse())
    return IssuedView(**view.model_dump(), secret_access_key=issued.secret_access_key)


def credentials_file(store: KeyStore, issued: IssuedCredential) -> CredentialsFile:
    """With its secret."""
    return CredentialsFile(
        XksProxyUriPath=uri_path(store),
        XksProxyAuthenticationCredential=XksProxyAuthenticationCredential(
            AccessKeyId=issued.credential.access_key_id, RawSecretAccessKey=issued.secret_access_key
        ),
    )


def key_view(state: State, key: Key, used: StoreUse) -> KeyView:
    """As the state has it. used: of its store."""
    newest = key.versions[-1]
    encryptions = used.encryptions.get((key.external_key_id, newest.number), 0)
    return KeyView(
        external_key_id=key.external_key_id,
        store=key.store,
        version=newest.number,
        label=newest.label,
        encryptions=encryptions,
        hint=rotation_hint(key.store, key.external_key_id, newest.number, encryptions),
        state="ENABLED" if key.enabled else "DISABLED",
        usage=list(key.usage),
        alias=key.alias,
        description=key.description,
        tags=key.tags,
        blocked=key.blocked,
        blocked_reason=key.blocked_reason,
        rotate_days=key.rotate_days,
        link=None if key.link is None else KeyLinkView.model_validate(key.link),
        created_at=key.created_at,
        revision=_revision(state, key),
    )


def versions_view(key: Key, used: StoreUse) -> VersionsView:
    """Oldest first. used: of its store."""
    newest = key.versions[-1]
    return VersionsView(items=[_version_view(key, version, version is newest, used) for version in key.versions])


def _version_view(key: Key, version: KeyVersion, current: bool, used: StoreUse) -> VersionView:
    encryptions = used.encryptions.get((key.external_key_id, version.number), 0)
    return VersionView(
        number=version.number,
        label=version.label,
        created_at=version.created_at,
        current=current,
        encryptions=encryptions,
        hint=rotation_hint(key.store, key.external_key_id, version.number, encryptions) if current else "",
    )


def operator_view(state: State, operator: Operator) -> OperatorView:
    """Without its token's hash."""
    return OperatorView(
        name=operator.name,
        role=operator.role,
        stores=list(operator.stores),
        expires_at=operator.expires_at,
        created_at=operator.created_at,
        revision=_revision(state, operator),
    )


def connection_view(state: State, connection: AwsConnection) -> ConnectionView:
    """As the state has it."""
    return ConnectionView(**msgspec.structs.asdict(connection), revision=_revision(state, connection))


def confirmation_view(confirmation: Confirmation) -> ConfirmationView:
    """As the nodes said."""
    return ConfirmationView(
        confirmed=[ConfirmedView(node=each.node, ms=each.ms) for each in confirmation.confirmed],
        pending=list(confirmation.pending),
        recorded=confirmation.recorded,
    )


def event_view(event: Event) -> EventView:
    """Without what would let somebody find a secret."""
    return EventView(
        seq=event.seq,
        at_ms=event.at_ms,
        transaction=event.transaction,
        node=event.node,
        actor=event.actor,
        origin=event.origin,
        action=event.action,
        kind=event.kind,
        id=event.id,
        before=_shown(event.before),
        after=_shown(event.after),
        hash=event.hash.hex(),
    )


def _shown(body: bytes | None) -> dict[str, Any] | None:
    if body is None:
        return None
    value: dict[str, Any] = msgspec.json.decode(body)
    return {name: member for name, member in value.items() if name not in _HIDDEN}
