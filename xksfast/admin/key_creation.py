# SPDX-License-Identifier: Apache-2.0
"""Creates the keys that stores.toml wants created: `local` ones as sealed files, token keys through the key tool's process.

A key of a group with several partitions is generated on the first, replicated, proven and locked down (replication.py); of a group
with one it is generated there by the key tool. A vendor's library may crash or hang, and python-pkcs11 initialises modules without
locking: so both tools are processes of their own, and nothing of a module is ever loaded into the control process.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from typing import TypeVar

import msgspec

from xksfast.admin.partitions.keytool import KeyRequest, KeyToolAnswer, KeyToolRequest
from xksfast.admin.partitions.link import PartitionLink, partition_target, take_all
from xksfast.admin.partitions.replica import Replica
from xksfast.admin.partitions.replication import Replicator, Rights
from xksfast.admin.partitions.tool_process import tool_start
from xksfast.config import Config
from xksfast.log import Log
from xksfast.state.local_keys import LocalKeyFiles
from xksfast.state.store_file import StoreFile

KEY_TOOL_TIMEOUT_S = 20
CALLS_PATIENCE_S = 5.0  # for a call inside a token, before its tool is killed

T = TypeVar("T")
Wanted = dict[str, dict[str, KeyRequest]]  # partition group -> label -> what to make


def create_local_keys(document: StoreFile, local_keys: LocalKeyFiles) -> list[str]:
    """Create what has create = true and is not there; labels of what was made. OperatorError when one cannot be made."""
    wanted = {
        key.label for store in document.key_stores.values() if store.is_local for key in store.keys.values() if key.create
    }
    made = [label for label in sorted(wanted) if local_keys.ensure(label)]
    if len(made) < len(wanted):
        local_keys.sync()
    return made


async def create_token_keys(config: Config, document: StoreFile) -> AsyncIterator[KeyToolAnswer]:
    """One answer per partition group in which keys shall exist; `problem` says why they could not be made."""
    wanted: Wanted = {}
    for store in document.key_stores.values():
        for key in store.keys.values():
            if key.create and store.partition_group is not None:
                request = KeyRequest(label=key.label, encrypt="ENCRYPT" in key.usage, decrypt="DECRYPT" in key.usage)
                wanted.setdefault(store.partition_group, {})[key.label] = request
    async for answer in make_token_keys(config, wanted):
        yield answer


async def make_token_keys(config: Config, wanted: Wanted) -> AsyncIterator[KeyToolAnswer]:
    """The same for keys by partition group and label; what is there already stays as it is."""
    for group, requests in wanted.items():
        partition, *others = config.partition_groups[group].partitions
        if others:
            yield await _create_in_group(config, group, list(requests.values()))
            continue
        target = msgspec.structs.asdict(partition_target(config, partition))
        answer = await _run_key_tool(KeyToolRequest(**target, keys=list(requests.values())))
        problem = f"partition {partition}: {answer.problem}" if answer.problem else ""
        yield KeyToolAnswer(created=[f"{label} on partition {partition}" for label in answer.created], problem=problem)


async def _create_in_group(config: Config, group: str, requests: list[KeyRequest]) -> KeyToolAnswer:
    """In a thread, since tokens take their time; given up after the calls at hand when we are told to end."""
    links = [PartitionLink(partition_target(config, name)) for name in config.partition_groups[group].partitions]
    return await run_with_links(links, partial(_replicate_all, config, group, links, requests))


async def run_with_links(links: Sequence[PartitionLink], work: Callable[[], T]) -> T:
    """work() in a thread. When cancelled it may end the calls that are inside tokens, which a killed tool could leave half written."""
    task = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        for link in links:
            link.give_up()
        _, at_work = await asyncio.wait((task,), timeout=CALLS_PATIENCE_S)
        if at_work:
            _say_killed("partition tool", CALLS_PATIENCE_S)
        for link in links:
            link.kill()
        with suppress(Exception):
            await task
        raise


def _say_killed(tool: str, after_s: float) -> None:
    Log("control").error("tool_killed_inside_token", tool=tool, after_s=after_s, next="check the token's state")


def _replicate_all(config: Config, group: str, links: list[PartitionLink], requests: list[KeyRequest]) -> KeyToolAnswer:
    settings = config.partition_groups[group]
    created: list[str] = []
    problems: list[str] = []
    with ExitStack() as stack:
        for link in links:
            stack.enter_context(link)
            link.post_open()
        failures = [str(answer) for answer in take_all(links, type(None)).values() if answer is not None]
        if failures:
            return KeyToolAnswer(problem=f"partition group {group}: {'; '.join(failures)}")
        replicas = [
            Replica(link, config.partitions[link.name].wrap_mechanism_number, config.partitions[link.name].profile)
            for link in links
        ]
        replicator = Replicator(replicas, transport_key=settings.transport_key, driver=settings.replication)
        for request in requests:
            report = replicator.replicate(request.label, Rights(request.encrypt, request.decrypt))
            new = [name for name, step in report.partitions.items() if step in ("made", "replicated", "finished")]
            created += [f"{request.label} on partition {name}" for name in new]
            problems += report.problems
    problem = f"partition group {group}: {'; '.join(dict.fromkeys(problems))}" if problems else ""
    return KeyToolAnswer(created=created, problem=problem)


async def _run_key_tool(request: KeyToolRequest) -> KeyToolAnswer:
    command, environment = tool_start("_keytool", request)
    process = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, env=environment
    )
    patience_s: float = KEY_TOOL_TIMEOUT_S
    try:
        output, _ = await asyncio.wait_for(process.communicate(msgspec.json.encode(request)), KEY_TOOL_TIMEOUT_S)
    except TimeoutError:
        return KeyToolAnswer(problem=f"the token did not answer the key tool within {KEY_TOOL_TIMEOUT_S} s")
    except asyncio.CancelledError:  # it has one request only, and a killed tool could leave its token half written
        patience_s = CALLS_PATIENCE_S
        if process.stdin is not None:
            process.stdin.close()
        with suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), patience_s)
        raise
    finally:
        if process.returncode is None:  # a hung token must not leave a process behind
            _say_killed("key tool", patience_s)
            process.kill()
    try:
        return msgspec.json.decode(output, type=KeyToolAnswer)
    except msgspec.MsgspecError:
        return KeyToolAnswer(
            problem=f"the key tool ended with code {process.returncode} and no answer: the PKCS#11 module may have crashed"
        )
