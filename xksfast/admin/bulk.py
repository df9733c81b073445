# SPDX-License-Identifier: Apache-2.0
"""The same use case for many stores and keys, one after the other."""

from __future__ import annotations

from collections.abc import Callable

from xksfast.admin.actors import Actor
from xksfast.admin.refusals import Refused
from xksfast.admin.requests import BulkRequest
from xksfast.admin.service import Service
from xksfast.state.objects import key_id


async def bulk(
    service: Service, actor: Actor, request: BulkRequest, progress: Callable[[int, int], None]
) -> list[tuple[str, str]]:
    """(name, what went wrong or "") of each store and key that is named, in that order. Goes on after a refusal."""
    targets = [(name, "") for name in request.stores]
    targets += [(store, key) for store, _, key in (each.partition("/") for each in request.keys)]
    results = []
    for number, (store, key) in enumerate(targets, 1):
        problem = ""
        try:
            problem = await _step(service, actor, request, store, key)
        except Refused as refusal:
            problem = str(refusal)
        results.append((key_id(store, key) if key else store, problem))
        progress(number, len(targets))
    return results


async def _step(service: Service, actor: Actor, request: BulkRequest, store: str, key: str) -> str:
    """What was done in part only, or ""."""
    match request.action, bool(key):
        case "block", True:
            return (await service.block_key(actor, store, key, request.reason)).fault
        case "block", False:
            return (await service.block_store(actor, store, request.reason)).fault
        case "unblock", True:
            return (await service.unblock_key(actor, store, key)).fault
        case "unblock", False:
            return (await service.unblock_store(actor, store)).fault
        case (("enable" | "disable"), True):
            await service.enable_key(actor, store, key, request.action == "enable")
            return ""
        case _:
            raise Refused(
                "invalid",
                "stores-have-no-such-state",
                f"A key store cannot be {request.action}d",
                next="Block or unblock it",
                field="stores",
            )
