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
    targets: list[tuple[str, str | None]] = [(name, None) for name in request.stores]  # (store, key; None: the store itself)
    targets += [(store, key) for store, _, key in (each.partition("/") for each in request.keys)]
    results = []
    for number, (store, key) in enumerate(targets, 1):
        problem = ""
        try:
            problem = await _step(service, actor, request, store, key)
        except Refused as refusal:
            problem = str(refusal)
        results.append((store if key is None else key_id(store, key), problem))
        progress(number, len(targets))
    return results


async def _step(service: Service, actor: Actor, request: BulkRequest, store: str, key: str | None) -> str:
    """What was done in part only, or ""."""
    match request.action, key:
        case "block", None:
            return (await service.block_store(actor, store, request.reason)).fault
        case "block", str():
            return (await service.block_key(actor, store, key, request.reason)).fault
        case "unblock", None:
            return (await service.unblock_store(actor, store)).fault
        case "unblock", str():
            return (await service.unblock_key(actor, store, key)).fault
        case (("enable" | "disable"), str()):
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
