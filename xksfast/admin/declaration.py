# SPDX-License-Identifier: Apache-2.0
"""`xksfast apply`: State + declaration -> the steps that make the state what the declaration says. Pure.

What a declaration does not name is left alone: a key store that was blocked by hand stays blocked unless the file says
`blocked = false`. Only with `prune` is anything taken away that the file does not name. A newcomer's trap: secrets cannot be compared,
since the state holds them sealed; a credential counts as there when its access key id is.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from typing import Literal

from pydantic import Field

from xksfast.admin.refusals import Refused
from xksfast.admin.requests import (
    CredentialGiven,
    KeyCreate,
    KeyRotate,
    KeyUpdate,
    Request,
    StoreCreate,
    StoreUpdate,
    Usage,
)
from xksfast.state import rules
from xksfast.state.objects import Key, KeyStore, key_id
from xksfast.state.projection import State
from xksfast.toml_reader import nearest

DEFAULT_MAX_CREDENTIALS = 4
MAX_STORES, MAX_KEYS = 20_000, 200_000

Sign = Literal["+", "~", "-"]


# --- what is declared


class DeclaredKey(Request):
    """A key. label: of its source key. create: make the source key when there is none."""

    label: str = Field(min_length=1, max_length=rules.MAX_LABEL_BYTES)
    usage: tuple[Usage, ...] | None = None
    create: bool = False
    enabled: bool | None = None
    blocked: bool | None = None


class DeclaredStore(Request):
    """A key store. Absent members are left as they are, or at their defaults in a new store."""

    region: str = Field(max_length=rules.MAX_REGION_CHARS)
    uri_path_prefix: str | None = Field(None, max_length=117)
    partition_group: str | None = None
    key_source: Literal["local", "pkcs11"] | None = None
    blocked: bool | None = None
    allowed_principals: tuple[str, ...] | None = None
    aad_scheme: Literal["xksfast", "aws-sample"] | None = None
    credentials: tuple[CredentialGiven, ...] = Field((), max_length=rules.MAX_CREDENTIALS)
    keys: dict[str, DeclaredKey] = Field({}, max_length=MAX_KEYS)


class ApplyRequest(Request):
    """The declaration. prune: take away what it does not name."""

    key_stores: dict[str, DeclaredStore] = Field(max_length=MAX_STORES)
    prune: bool = False


# --- what it takes


@dataclass(frozen=True)
class Step:
    """One use case. target: "payments" or "payments/orders". what: for people. why: what in the file asks for it."""

    sign: Sign
    target: str
    what: str
    why: str
    action: Action
    right: Literal["operate", "manage", "block"] = "operate"

    @property
    def store(self) -> str:
        """The key store that it is about."""
        return self.target.partition("/")[0]

    @property
    def blocks(self) -> bool:
        """Whether it is the kill switch."""
        return isinstance(self.action, BlockStore | BlockKey) and self.action.blocked


@dataclass(frozen=True)
class CreateStore:
    request: StoreCreate


@dataclass(frozen=True)
class UpdateStore:
    request: StoreUpdate


@dataclass(frozen=True)
class DeleteStore:
    pass


@dataclass(frozen=True)
class BlockStore:
    blocked: bool


@dataclass(frozen=True)
class AddCredential:
    credential: CredentialGiven


@dataclass(frozen=True)
class RemoveCredential:
    access_key_id: str


@dataclass(frozen=True)
class CreateKey:
    request: KeyCreate


@dataclass(frozen=True)
class UpdateKey:
    request: KeyUpdate


@dataclass(frozen=True)
class RotateKey:
    request: KeyRotate


@dataclass(frozen=True)
class EnableKey:
    enabled: bool


@dataclass(frozen=True)
class BlockKey:
    blocked: bool


@dataclass(frozen=True)
class DeleteKey:
    pass


Action = (
    CreateStore
    | UpdateStore
    | DeleteStore
    | BlockStore
    | AddCredential
    | RemoveCredential
    | CreateKey
    | UpdateKey
    | RotateKey
    | EnableKey
    | BlockKey
    | DeleteKey
)


@dataclass
class Plan:
    """steps: in order. problems: why it cannot be done as it is. notes: what the declaration leaves to people."""

    steps: list[Step] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def raise_problems(self) -> None:
        """Refused when there are any: nothing is done then."""
        if self.problems:
            raise Refused(
                "conflict",
                "declaration-impossible",
                "; ".join(self.problems[:20]) + ("; …" if len(self.problems) > 20 else ""),
                why="Nothing was changed",
                next="Change the file",
                field="key_stores",
            )


def plan_of(
    state: State, declared: ApplyRequest, *, groups: Collection[str], sees: Callable[[str], bool] = lambda store: True
) -> Plan:
    """groups: partition groups of the configuration. sees: whether the plan may name a key store that the declaration does not name.

    Applied, and asked for again, it gives an empty plan.

    Blocks of what is there come before all else, of all key stores: what follows may be slow, or fail, or be cut off by a crash.
    """
    plan = Plan()
    for name, wanted in declared.key_stores.items():
        have = state.key_stores.get(name)
        _check_store(plan, name, wanted, have, groups)
        if have is None:
            plan.steps += _new_store(plan, name, wanted)
        else:
            plan.steps += _changed_store(plan, state, have, wanted, prune=declared.prune)
    if declared.prune:
        surplus = [store for name, store in state.key_stores.items() if name not in declared.key_stores]
        prefixes = {wanted.uri_path_prefix for wanted in declared.key_stores.values()}
        for store in surplus:
            steps = list(_without_store(plan, state, store))
            # whoever takes over its prefix can come only when it is gone
            plan.steps = steps + plan.steps if store.uri_path_prefix in prefixes else plan.steps + steps
    elif surplus_names := sorted(filter(sees, state.key_stores.keys() - declared.key_stores.keys())):
        shown = ", ".join(surplus_names[:5]) + (", …" if len(surplus_names) > 5 else "")
        plan.notes.append(f"{len(surplus_names)} key stores are not in the file and stay: {shown}")
    made = {step.target for step in plan.steps if isinstance(step.action, CreateStore | CreateKey)}
    plan.steps.sort(key=lambda step: not step.blocks or step.target in made)  # stable
    return plan


# --- key stores


def _check_store(plan: Plan, name: str, wanted: DeclaredStore, have: KeyStore | None, groups: Collection[str]) -> None:
    def problem(member: str, text: str) -> None:
        plan.problems.append(f"key_stores.{name}.{member}: {text}")

    if text := rules.name_problem(name):
        plan.problems.append(f"key_stores.{name}: {text}")
    if text := rules.region_problem(wanted.region):
        problem("region", text)
    if wanted.uri_path_prefix is not None and (text := rules.prefix_problem(wanted.uri_path_prefix)):
        problem("uri_path_prefix", text)
    kept = have.allowed_principals if have is not None else ()  # they may be from before there was a bound on them
    if wanted.allowed_principals not in (None, kept) and (text := rules.principals_problem(wanted.allowed_principals or ())):
        problem("allowed_principals", text)
    if (wanted.partition_group is None) == (wanted.key_source != "local"):
        problem("partition_group", 'a key store says where its keys live by partition_group = "…" or key_source = "local"')
    elif wanted.partition_group is not None and wanted.partition_group not in groups:
        problem(
            "partition_group",
            f"there is no partition group {wanted.partition_group!r}{nearest(wanted.partition_group, groups)}",
        )
    ids = [credential.access_key_id for credential in wanted.credentials]
    for number, access_key_id in enumerate(ids):
        if text := rules.access_key_id_problem(access_key_id):  # not quoted: it may be a secret in the wrong place
            problem(f"credentials[{number}].access_key_id", text)
        elif ids.count(access_key_id) > 1:
            problem("credentials", f"{access_key_id} stands twice")
    if have is None and not ids:
        problem("credentials", "give at least one: a file is no place where a new secret could be shown")
    prefix = wanted.uri_path_prefix if wanted.uri_path_prefix is not None else have.uri_path_prefix if have else ""
    for external_key_id, key in wanted.keys.items():
        if text := rules.external_key_id_problem(external_key_id, prefix):
            problem(f"keys.{external_key_id}", text)
        if text := rules.label_problem(key.label, local=wanted.partition_group is None):
            problem(f"keys.{external_key_id}.label", text)
        if key.usage is not None and (text := rules.usage_problem(key.usage)):
            problem(f"keys.{external_key_id}.usage", text)
    if have is not None:
        _check_fixed(plan, name, wanted, have)


def _check_fixed(plan: Plan, name: str, wanted: DeclaredStore, have: KeyStore) -> None:
    for member, is_, shall in (
        ("region", have.region, wanted.region),
        ("partition_group", have.partition_group, wanted.partition_group),
        ("aad_scheme", have.aad_scheme, wanted.aad_scheme or have.aad_scheme),
    ):
        if is_ != shall:
            plan.problems.append(
                f"key_stores.{name}.{member}: it is {is_ or 'local'!r} and can never become {shall or 'local'!r}: "
                "make another key store"
            )


def _new_store(plan: Plan, name: str, wanted: DeclaredStore) -> Iterator[Step]:
    if plan.problems:
        return
    where = "local keys" if wanted.partition_group is None else f"keys in partition group {wanted.partition_group}"
    request = StoreCreate(
        name=name,
        uri_path_prefix=wanted.uri_path_prefix or "",
        region=wanted.region,
        partition_group=wanted.partition_group,
        key_source=wanted.key_source,
        allowed_principals=wanted.allowed_principals or (),
        aad_scheme=wanted.aad_scheme or "xksfast",
        max_credentials=max(DEFAULT_MAX_CREDENTIALS, len(wanted.credentials)),
        credentials=wanted.credentials,
    )
    prefix = f"prefix {request.uri_path_prefix}" if request.uri_path_prefix else "no prefix"
    yield Step(
        "+",
        name,
        f"key store in {wanted.region}, {prefix}, {where}, {_count(len(wanted.credentials), 'credential')}",
        "it is not there yet",
        CreateStore(request),
        "manage",
    )
    if wanted.blocked:
        yield Step("~", name, "block", "the file says blocked = true", BlockStore(True), "block")
    for external_key_id, key in wanted.keys.items():
        yield from _new_key(name, external_key_id, key)


def _changed_store(plan: Plan, state: State, have: KeyStore, wanted: DeclaredStore, *, prune: bool) -> Iterator[Step]:
    name = have.name
    credentials = state.credentials_of(name)
    given = {credential.access_key_id: credential for credential in wanted.credentials}
    new = [credential for access_key_id, credential in given.items() if access_key_id not in credentials]
    surplus = [access_key_id for access_key_id in credentials if access_key_id not in given] if prune else []
    if surplus and not given:
        plan.notes.append(f"{name}: its credentials stay, since the file names none and a key store needs one")
        surplus = []
    yield from _update_store(have, wanted, needed_credentials=len(credentials) + len(new))
    if wanted.blocked and not have.blocked:
        yield Step("~", name, "block", "the file says blocked = true", BlockStore(True), "block")
    for credential in new:
        yield Step("+", name, f"credential {credential.access_key_id}", "the file names it", AddCredential(credential))
    if plan.problems:  # perhaps with the name of a key, which no request takes then
        return
    for external_key_id, key in wanted.keys.items():
        known = state.keys.get(key_id(name, external_key_id))
        yield from _new_key(name, external_key_id, key) if known is None else _changed_key(plan, known, key)
    if prune:
        for known in state.keys_of(name).values():
            if known.external_key_id not in wanted.keys:
                yield from _without_key(plan, known)
        for access_key_id in surplus:
            yield Step("-", name, f"credential {access_key_id}", "the file does not name it", RemoveCredential(access_key_id))
    if wanted.blocked is False and have.blocked:  # what the file takes away is in force by then
        yield Step("~", name, "unblock", "the file says blocked = false", BlockStore(False))


def _update_store(have: KeyStore, wanted: DeclaredStore, *, needed_credentials: int) -> Iterator[Step]:
    fields: dict[str, object] = {}
    told = []
    for member in ("uri_path_prefix", "allowed_principals"):
        shall = getattr(wanted, member)
        if shall is not None and shall != getattr(have, member):
            fields[member] = shall
            told.append(f"{member}: {_shown(getattr(have, member))} -> {_shown(shall)}")
    if needed_credentials > have.max_credentials and needed_credentials <= rules.MAX_CREDENTIALS:
        fields["max_credentials"] = needed_credentials
        told.append(f"max_credentials: {have.max_credentials} -> {needed_credentials}")
    if fields:
        yield Step("~", have.name, "; ".join(told), "the file says so", UpdateStore(StoreUpdate.model_validate(fields)))


def _without_store(plan: Plan, state: State, store: KeyStore) -> Iterator[Step]:
    if store.link is not None:
        plan.notes.append(f"{store.name} stays: it is custom key store {store.link.custom_key_store_id} in AWS")
        return
    keys = list(state.keys_of(store.name).values())
    if any(key.link is not None for key in keys):
        plan.notes.append(f"{store.name} stays: KMS keys in AWS use its keys")
        return
    for key in keys:
        yield from _without_key(plan, key)
    yield Step("-", store.name, "key store with its credentials", "the file does not name it", DeleteStore(), "manage")


# --- keys


def _new_key(store: str, external_key_id: str, wanted: DeclaredKey) -> Iterator[Step]:
    usage = ("ENCRYPT", "DECRYPT") if wanted.usage is None else wanted.usage
    request = KeyCreate(
        external_key_id=external_key_id,
        label=wanted.label,
        create=wanted.create,
        usage=usage,
        enabled=wanted.enabled is not False,
    )
    target = key_id(store, external_key_id)
    made = ", made when absent" if wanted.create else ""
    off = "" if request.enabled else ", disabled"
    yield Step(
        "+",
        target,
        f"key with source key {wanted.label!r}{made}, {', '.join(usage) or 'no usage'}{off}",
        "it is not there yet",
        CreateKey(request),
    )
    if wanted.blocked:
        yield Step("~", target, "block", "the file says blocked = true", BlockKey(True), "block")


def _changed_key(plan: Plan, have: Key, wanted: DeclaredKey) -> Iterator[Step]:
    newest = have.versions[-1]
    older = {version.label: version.number for version in have.versions[:-1]}
    if wanted.label in older:
        plan.problems.append(
            f"key_stores.{have.store}.keys.{have.external_key_id}.label: {wanted.label!r} is version {older[wanted.label]} of this "
            f"key, and {newest.label!r} is the newest: versions only go forward"
        )
    elif wanted.label != newest.label:
        request = KeyRotate(label=wanted.label, create=wanted.create)
        what = f"version {newest.number + 1} with source key {wanted.label!r}; {newest.label!r} goes on decrypting"
        yield Step("~", have.id, what, "the file names another label", RotateKey(request))
    if wanted.usage is not None and set(wanted.usage) != set(have.usage):
        what = f"usage: {', '.join(have.usage) or 'none'} -> {', '.join(wanted.usage) or 'none'}"
        yield Step("~", have.id, what, "the file says so", UpdateKey(KeyUpdate(usage=wanted.usage)))
    if wanted.enabled is not None and wanted.enabled != have.enabled:
        word = "true" if wanted.enabled else "false"
        what = "enable" if wanted.enabled else "disable"
        yield Step("~", have.id, what, f"the file says enabled = {word}", EnableKey(wanted.enabled))
    if wanted.blocked is not None and wanted.blocked != have.blocked:
        word = "true" if wanted.blocked else "false"
        right: Literal["block", "operate"] = "block" if wanted.blocked else "operate"
        what = "block" if wanted.blocked else "unblock"
        yield Step("~", have.id, what, f"the file says blocked = {word}", BlockKey(wanted.blocked), right)


def _without_key(plan: Plan, key: Key) -> Iterator[Step]:
    if key.link is not None:
        plan.notes.append(f"{key.id} stays: it is KMS key {key.link.key_arn} in AWS")
        return
    why = "the file does not name it"
    if key.enabled:
        yield Step("~", key.id, "disable", why, EnableKey(False))
    yield Step("-", key.id, "key; key material in an HSM stays", why, DeleteKey())


def _shown(value: object) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(str, value)) or "all"
    return str(value) or '""'


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
