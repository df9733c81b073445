# SPDX-License-Identifier: Apache-2.0
"""Use over several nodes, which know of each other's counts by the database only."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from xksfast.admin.schedule import WARN_INVOCATIONS
from xksfast.admin.state_thread import StateThread
from xksfast.admin.usage import Usage
from xksfast.log import Log
from xksfast.messages import CredentialUse, KeyUse, UsageReport
from xksfast.state.database import Database
from xksfast.state.use_reads import often_used, use_of_store


def use(encryptions: int, *, store: str = "payments", key: str = "orders", version: int = 1) -> KeyUse:
    return KeyUse(store=store, external_key_id=key, version=version, encryptions=encryptions)


def test_use_is_read_of_one_store_or_of_what_is_worn(database: Database) -> None:
    worn = use(WARN_INVOCATIONS, store="refunds", version=3)
    database.add_use(
        [use(5), use(7, version=2), worn, use(WARN_INVOCATIONS - 1, store="refunds")],
        [CredentialUse("payments", "A", 100), CredentialUse("refunds", "A", 90)],
    )
    found = use_of_store(database, "payments")
    assert {(one.external_key_id, one.version): one.encryptions for one in found.keys} == {("orders", 1): 5, ("orders", 2): 7}
    assert found.credentials == [CredentialUse("payments", "A", 100)]
    assert use_of_store(database, "absent").keys == []
    assert often_used(database, WARN_INVOCATIONS) == [worn]


def test_every_node_shows_what_all_of_them_have_counted(open_database: Callable[[], Database]) -> None:
    async def play() -> None:
        run = StateThread(lambda events: None)
        databases = [open_database() for _ in range(3)]
        nodes = [Usage(run, Log("test")) for _ in databases]
        for number, node in enumerate(nodes, 1):
            node.add(UsageReport(worker=0, keys=(use(number * 10),), credentials=(CredentialUse("payments", "A", number),)))
        for node, database in zip(nodes, databases, strict=True):
            await node.write(database)
        for node, database in zip(nodes, databases, strict=True):
            found = await node.of_store(database, "payments")
            assert found.encryptions == {("orders", 1): 60}
            assert found.last_used == {"A": 3}
        nodes[0].add(UsageReport(worker=0, keys=(use(1),)))  # shown at once here, elsewhere when it was written
        shown = [(await node.of_store(databases[0], "payments")).encryptions["orders", 1] for node in nodes]
        assert shown == [61, 60, 60]
        restarted = Usage(run, Log("test"))
        await restarted.read(databases[0])
        assert (await restarted.of_store(databases[0], "payments")).encryptions == {("orders", 1): 60}
        run.close()

    asyncio.run(play())
