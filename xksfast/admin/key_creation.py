# SPDX-License-Identifier: Apache-2.0
"""Creates the keys that stores.toml wants created: `local` ones as sealed files, token keys through the key tool's process.

A vendor's library may crash or hang, and python-pkcs11 initialises modules without locking: so the key tool is a process of its
own, one request each, and nothing of a module is ever loaded into the control process.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator

import msgspec

from xksfast.admin.keytool import KeyRequest, KeyToolAnswer, KeyToolRequest
from xksfast.config import Config
from xksfast.state.local_keys import LocalKeyFiles
from xksfast.state.store_file import StoreFile

KEY_TOOL_TIMEOUT_S = 20


def create_local_keys(document: StoreFile, local_keys: LocalKeyFiles) -> list[str]:
    """Create what has create = true and is not there; labels of what was made. OperatorError when one cannot be made."""
    wanted = {
        key.label for store in document.key_stores.values() if store.is_local for key in store.keys.values() if key.create
    }
    return [label for label in sorted(wanted) if local_keys.ensure(label)]


async def create_token_keys(config: Config, document: StoreFile) -> AsyncIterator[KeyToolAnswer]:
    """One answer per partition on which keys shall exist; `problem` says why they could not be made."""
    wanted: dict[str, dict[str, KeyRequest]] = {}
    for store in document.key_stores.values():
        for key in store.keys.values():
            if key.create and store.partition_group is not None:
                request = KeyRequest(label=key.label, encrypt="ENCRYPT" in key.usage, decrypt="DECRYPT" in key.usage)
                wanted.setdefault(store.partition_group, {})[key.label] = request
    for group, requests in wanted.items():
        (partition,) = config.partition_groups[group].partitions  # store_file refuses create = true for larger groups
        answer = await _run_key_tool(_request(config, partition, list(requests.values())))
        problem = f"partition {partition}: {answer.problem}" if answer.problem else ""
        yield KeyToolAnswer(created=[f"{label} on partition {partition}" for label in answer.created], problem=problem)


def _request(config: Config, name: str, keys: list[KeyRequest]) -> KeyToolRequest:
    partition = config.partitions[name]
    module = config.modules[partition.module]
    return KeyToolRequest(
        partition=name,
        module_path=module.path,
        parameters=module.parameters,
        token_label=partition.token_label,
        serial=partition.serial,
        slot=partition.slot,
        pin_file=partition.pin_file,
        pin_env=partition.pin_env,
        profile=partition.profile,
        environment=module.environment,
        keys=keys,
    )


async def _run_key_tool(request: KeyToolRequest) -> KeyToolAnswer:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "xksfast",
        "_keytool",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, **request.environment},
    )
    try:
        output, _ = await asyncio.wait_for(process.communicate(msgspec.json.encode(request)), KEY_TOOL_TIMEOUT_S)
    except TimeoutError:
        return KeyToolAnswer(problem=f"the token did not answer the key tool within {KEY_TOOL_TIMEOUT_S} s")
    finally:
        if process.returncode is None:  # also when we are told to end meanwhile: a hung token must not leave a process behind
            process.kill()
    try:
        return msgspec.json.decode(output, type=KeyToolAnswer)
    except msgspec.MsgspecError:
        return KeyToolAnswer(
            problem=f"the key tool ended with code {process.returncode} and no answer: the PKCS#11 module may have crashed"
        )
