# SPDX-License-Identifier: Apache-2.0
"""News of a block come as a message and by the log, and cross each other: what was unblocked stays so, what is blocked survives."""

from __future__ import annotations

import httpx
from msgspec.structs import replace

from tests.admin.api.rig import Rig
from tests.admin.api.test_stores import new_store
from xksfast.admin.actors import system_actor
from xksfast.admin.block_journal import BlockJournal, PendingBlock
from xksfast.admin.plans import stores
from xksfast.state.store import Plan

NEWS = PendingBlock("b" * 32, "key_store", "", "drill", "operator:root", "local", "n2", 1)


def test_news_of_a_block_that_come_after_its_end_do_not_block_again(rig: Rig, admin: httpx.Client) -> None:
    new_store(admin, "late")
    news = replace(NEWS, target="late")
    assert rig.call(recorded_elsewhere(rig, news))
    assert admin.post("/v1/stores/late/unblock").json()["recorded"]
    rig.call(rig.blocks.enforce(news))
    assert_served_after_a_tick(rig, admin, "late")


def test_news_of_a_block_that_come_between_its_record_and_its_end_do_not_block_again(rig: Rig, admin: httpx.Client) -> None:
    new_store(admin, "crossed")
    news = replace(NEWS, target="crossed", block_id="c" * 32)
    assert rig.call(recorded_elsewhere(rig, news))
    rig.call(rig.blocks.enforce(news))
    assert admin.get("/v1/stores/crossed").json()["blocked"]
    rig.call(ended_elsewhere(rig, "crossed"))
    assert_served_after_a_tick(rig, admin, "crossed")


def test_a_block_that_a_crash_left_in_the_journal_is_not_recorded_again_after_its_end(rig: Rig, admin: httpx.Client) -> None:
    new_store(admin, "left")
    news = replace(NEWS, target="left", block_id="d" * 32)
    assert rig.call(recorded_elsewhere(rig, news))
    rig.call(ended_elsewhere(rig, "left"))
    rig.blocks._logged.clear()  # as in a new process
    rig.call(rig.blocks.enforce(news))
    assert_served_after_a_tick(rig, admin, "left")


def test_an_unblock_of_what_no_log_has_yet_records_both_so_that_every_node_ends_it(rig: Rig, admin: httpx.Client) -> None:
    new_store(admin, "early")
    news = replace(NEWS, target="early", block_id="e" * 32)
    rig.call(rig.blocks.enforce(news))
    answer = admin.post("/v1/stores/early/unblock").json()
    assert (answer["recorded"], answer["pending"]) == (True, [])
    events = rig.database.events(kind="key_store", id="early", limit=2)
    assert [event.action for event in events] == ["store.unblock", "store.block"]
    assert events[1].transaction == news.block_id  # by which each node that has it in a journal ends it
    assert_served_after_a_tick(rig, admin, "early")


def test_a_block_stays_in_the_journal_until_the_local_copy_has_it(rig: Rig, admin: httpx.Client) -> None:
    new_store(admin, "kept")
    assert admin.post("/v1/stores/kept/block").json()["recorded"]
    seq = rig.read(lambda state: state.seq)
    assert rig.call(journal_after_a_tick(rig, copied=seq - 1)) == {("key_store", "kept")}
    assert rig.call(journal_after_a_tick(rig, copied=seq)) == set()
    assert admin.get("/v1/stores/kept").json()["blocked"]


async def recorded_elsewhere(rig: Rig, block: PendingBlock) -> bool:
    """By the node that was asked for it."""
    return await rig.blocks._record(block, lambda state: stores.set_blocked(state, block.target, True, block.reason))


async def ended_elsewhere(rig: Rig, store: str) -> None:
    """By another node: this one has it from the log."""
    origin = system_actor("test").origin
    await rig.blocks._run(
        lambda: rig.store.transact(origin, lambda state: Plan(changes=stores.set_blocked(state, store, False, "")))
    )


async def journal_after_a_tick(rig: Rig, *, copied: int) -> set[tuple[str, str]]:
    """What is in it when the node has recorded what is pending, and written its copy up to this event."""
    await rig.blocks.record_pending(lambda block: lambda state: stores.set_blocked(state, block.target, True, block.reason))
    rig.blocks.copied(copied)
    return BlockJournal(rig.directory / "node").targets()


def assert_served_after_a_tick(rig: Rig, admin: httpx.Client, store: str) -> None:
    """Not blocked, and not withheld."""
    assert rig.call(journal_after_a_tick(rig, copied=0)) == set()
    assert not admin.get(f"/v1/stores/{store}").json()["blocked"]
