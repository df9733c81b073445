# SPDX-License-Identifier: Apache-2.0
"""Carries out the steps of a declaration, each by its use case, and says beforehand whether somebody may."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Collection
from pathlib import Path

from pydantic import ValidationError

from xksfast.admin import declaration as declared
from xksfast.admin.actors import Actor, system_actor
from xksfast.admin.declaration import ApplyRequest, Plan, Step, plan_of
from xksfast.admin.label_rights import LabelRights
from xksfast.admin.refusals import Refused
from xksfast.admin.service import Service
from xksfast.errors import OperatorError
from xksfast.log import Log
from xksfast.state.declared import read_declared
from xksfast.state.objects import key_id
from xksfast.state.projection import State
from xksfast.state.store import StateStore

BLOCK_REASON = "declared"


def check_sight(actor: Actor, request: ApplyRequest) -> None:
    """Refused unless the actor may see all that a plan would tell."""
    actor.require("read")
    for store in request.key_stores:
        actor.require("read", store)
    if request.prune and actor.stores:
        raise Refused(
            "forbidden",
            "prune-needs-all-stores",
            f"{actor.name} has grants for some key stores only",
            why="Prune takes away every key store that the file does not name",
            next="Ask an admin, or apply without prune",
            field="prune",
        )


def check_labels(labels: LabelRights, state: State, actor: Actor, plan: Plan) -> None:
    """Refused unless the actor may use every source key that the plan's keys name."""
    made = {step.target: step.action.request for step in plan.steps if isinstance(step.action, declared.CreateStore)}
    for step in plan.steps:
        if isinstance(step.action, declared.CreateKey | declared.RotateKey):
            new = made.get(step.store)
            place = state.place_of(step.store) if new is None else new.partition_group or "local"
            request = step.action.request
            labels.check(state, actor, step.store, place, request.label, create=request.create)


def check_rights(actor: Actor, plan: Plan) -> None:
    """Refused unless the actor may do every step: better none than half."""
    for step in plan.steps:
        actor.require(step.right, step.store)


async def steps_of(service: Service, actor: Actor, plan: Plan) -> AsyncIterator[Step]:
    """The steps in order, each to be carried out before the next is asked for. No block waits for a token to make source keys."""
    blocks = list(itertools.takewhile(lambda step: step.blocks, plan.steps))
    for step in blocks:
        yield step
    await _make_source_keys(service, actor, plan)
    for step in plan.steps[len(blocks) :]:
        yield step


async def _make_source_keys(service: Service, actor: Actor, plan: Plan) -> None:
    """What the plan's new keys want made, all of a partition group at once: a token is slow to open. What fails is told by its step."""
    groups = {
        step.target: step.action.request.partition_group for step in plan.steps if isinstance(step.action, declared.CreateStore)
    }
    wanted: dict[str, dict[str, tuple[str, ...]]] = {}
    for step in plan.steps:
        if isinstance(step.action, declared.CreateKey) and step.action.request.create:
            store = step.target.partition("/")[0]
            group = groups[store] if store in groups else service.store(actor, store).partition_group
            if group is not None:
                wanted.setdefault(group, {})[step.action.request.label] = step.action.request.usage
    for group, labels in wanted.items():
        with contextlib.suppress(Refused):
            await service.make_source_keys(actor, group, labels)


async def carry_out(service: Service, actor: Actor, step: Step) -> None:
    """One step. Refused: it was not done. A block that a node has not confirmed in time is refused as well, and stays asked for."""
    store, _, key = step.target.partition("/")
    match step.action:
        case declared.CreateStore(request):
            await service.create_store(actor, request)
        case declared.UpdateStore(request):
            await service.update_store(actor, store, request)
        case declared.DeleteStore():
            await service.delete_store(actor, store)
        case declared.BlockStore(blocked):
            await _switch(service, actor, store, None, blocked)
        case declared.AddCredential(credential):
            await service.rotate_credential(actor, store, credential)
        case declared.RemoveCredential(access_key_id):
            await service.remove_credential(actor, store, access_key_id)
        case declared.CreateKey(request):
            await service.create_key(actor, store, request)
        case declared.UpdateKey(request):
            await service.update_key(actor, store, key, request)
        case declared.RotateKey(request):
            await service.rotate_key(actor, store, key, request)
        case declared.EnableKey(enabled):
            await service.enable_key(actor, store, key, enabled)
        case declared.BlockKey(blocked):
            await _switch(service, actor, store, key, blocked)
        case declared.DeleteKey():
            await service.delete_key(actor, store, key)


async def _switch(service: Service, actor: Actor, store: str, key: str | None, blocked: bool) -> None:
    """key: None, the whole store."""
    if key is not None:
        confirmation = await (
            service.block_key(actor, store, key, BLOCK_REASON) if blocked else service.unblock_key(actor, store, key)
        )
    else:
        confirmation = await (
            service.block_store(actor, store, BLOCK_REASON) if blocked else service.unblock_store(actor, store)
        )
    if confirmation.pending:
        what = "Block" if blocked else "Unblock"
        raise Refused(
            "unavailable",
            "not-confirmed",
            f"{what} of {store if key is None else key_id(store, key)} was not confirmed by {'; '.join(confirmation.pending)}",
            next="See to those nodes (`xksfast node list`), then apply again",
        )


async def apply_declared(service: Service, store: StateStore, file: Path, groups: Collection[str], log: Log) -> None:
    """What the file of [state] apply names and is not there yet. What cannot be done is logged, and does not keep the rest."""
    declared = await asyncio.to_thread(read_declared, file)
    try:
        request = ApplyRequest.model_validate({"key_stores": declared})
    except ValidationError as error:
        for fault in error.errors(include_url=False, include_input=False):  # the value may be a secret
            log.error("not_applied", problem=f"{file}: {'.'.join(map(str, fault['loc']))}: {fault['msg']}")
        return
    actor = system_actor("apply")
    with store.reading() as state:
        planned = plan_of(state, request, groups=groups)
    for problem in planned.problems:
        log.error("not_applied", problem=problem)
    if planned.problems:
        return
    async for step in steps_of(service, actor, planned):
        try:
            await carry_out(service, actor, step)
        except OperatorError as error:
            log.error("not_applied", target=step.target, what=step.what, problem=str(error))
        else:
            log.info("applied", target=step.target, what=step.what)
