# SPDX-License-Identifier: Apache-2.0
"""Source keys in tokens for the service: made, replicated, proven, each in processes of their own."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import ExitStack

from xksfast.admin.key_creation import make_token_keys, run_with_links
from xksfast.admin.partitions.keytool import KeyRequest
from xksfast.admin.partitions.link import PartitionFailure, PartitionLink, partition_target, take_all
from xksfast.admin.refusals import Refused
from xksfast.config import Config


class TokenSourceKeys:
    """Over the partition groups of the configuration. One use case at a time talks to the tokens: logins are scarce."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._lock = asyncio.Lock()
        self._made: set[tuple[str, str]] = set()

    async def make(self, group: str, wanted: Mapping[str, Sequence[str]]) -> None:
        """Generate, replicate and prove; what is there already is only brought to the partitions that lack it.

        What was made a moment ago, with many others, is there: a token is opened once for all of them, not once for each.
        """
        async with self._lock:
            missing = {label: usage for label, usage in wanted.items() if (group, label) not in self._made}
            self._made.difference_update((group, label) for label in wanted)
            if not missing:
                return
            requests = {
                label: KeyRequest(label=label, encrypt="ENCRYPT" in usage, decrypt="DECRYPT" in usage)
                for label, usage in missing.items()
            }
            async for answer in make_token_keys(self._config, {group: requests}):
                if answer.problem:
                    named = ", ".join(missing)
                    raise Refused("unavailable", "source-key-not-made", f"Source key {named} was not made: {answer.problem}")
            if len(missing) > 1:
                self._made.update((group, label) for label in missing)

    async def prove(self, group: str, label: str, usage: Sequence[str]) -> None:
        """A trial encrypt and decrypt on each partition. label "": the group's health check key; without one a login has to do."""
        label = label or self._config.partition_groups[group].health_check_key
        links = [
            PartitionLink(partition_target(self._config, name)) for name in self._config.partition_groups[group].partitions
        ]
        async with self._lock:
            problems = await run_with_links(links, lambda: _try(links, label, usage))
        if problems:
            raise Refused(
                "unavailable",
                "trial-failed",
                f"The trial on partition group {group!r} failed: {'; '.join(problems)}",
                next="Mend it, then try again; `xksfast partition test` tells more",
            )


def _try(links: list[PartitionLink], label: str, usage: Sequence[str]) -> list[str]:
    problems = []
    with ExitStack() as stack:
        for link in links:
            stack.enter_context(link)
            link.post_open()
        opened = take_all(links, type(None))
        for link in links:
            failure = opened[link.name]
            try:
                if failure is not None:
                    raise failure
                if label:
                    _try_key(link, label, usage)
            except PartitionFailure as problem:
                problems.append(str(problem))
    return problems


def _try_key(link: PartitionLink, label: str, usage: Sequence[str]) -> None:
    found = link.find(label)
    if len(found) != 1:
        raise PartitionFailure(
            link.name, f"{len(found)} secret keys have the label {label!r}" if found else f"there is no key {label!r}"
        )
    (key,) = found
    if "ENCRYPT" in usage and not key.can_encrypt:
        raise PartitionFailure(link.name, f"the key {label!r} has CKA_ENCRYPT = false, but its usage lists ENCRYPT")
    if "DECRYPT" in usage and not key.can_decrypt:
        raise PartitionFailure(link.name, f"the key {label!r} has CKA_DECRYPT = false, but its usage lists DECRYPT")
    if key.can_encrypt and not link.check(key.handle, link.prove(key.handle), can_encrypt=True):
        raise PartitionFailure(link.name, f"what the key {label!r} encrypts it does not decrypt")
