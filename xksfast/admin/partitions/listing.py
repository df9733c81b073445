# SPDX-License-Identifier: Apache-2.0
"""What is configured and what each token says of itself: `partition list`. Nobody logs in, and one that fails hides no other."""

from __future__ import annotations

from contextlib import ExitStack

import msgspec

from xksfast.admin.partitions.advice import free_sessions
from xksfast.admin.partitions.link import PartitionFailure, PartitionLink, partition_target, take_all
from xksfast.config import Config
from xksfast.native.partition import TokenInfo


class TokenReport(msgspec.Struct, frozen=True):
    """free_sessions: None when the token sets no limit or does not tell."""

    label: str
    manufacturer: str
    model: str
    serial: str
    firmware: str
    hardware: str
    library: str
    free_sessions: int | None
    flags: list[str]


class PartitionReport(msgspec.Struct, frozen=True):
    """token: None when it was not reached; problem says why."""

    name: str
    module: str
    module_path: str
    profile: str
    site: str
    groups: list[str]
    sessions: int
    token: TokenReport | None
    problem: str


def list_partitions(config: Config) -> list[PartitionReport]:
    """All partitions, in the order of the file; the tokens are asked at the same time."""
    with ExitStack() as stack:
        links = [stack.enter_context(PartitionLink(partition_target(config, name))) for name in config.partitions]
        for link in links:
            link.post_describe()
        return [_report(config, name, answer) for name, answer in take_all(links, TokenInfo).items()]


def describe(token: TokenInfo) -> TokenReport:
    """A token's own words, fit to be read."""
    return TokenReport(
        label=token.label,
        manufacturer=token.manufacturer,
        model=token.model,
        serial=token.serial,
        firmware=f"{token.firmware_major}.{token.firmware_minor}",
        hardware=f"{token.hardware_major}.{token.hardware_minor}",
        library=f"{token.library} {token.library_major}.{token.library_minor}",
        free_sessions=free_sessions(token),
        flags=token.flag_names,
    )


def _report(config: Config, name: str, answer: TokenInfo | PartitionFailure) -> PartitionReport:
    partition = config.partitions[name]
    return PartitionReport(
        name=name,
        module=partition.module,
        module_path=config.modules[partition.module].path,
        profile=partition.profile,
        site=partition.site,
        groups=[group for group, settings in config.partition_groups.items() if name in settings.partitions],
        sessions=partition.sessions,
        token=describe(answer) if isinstance(answer, TokenInfo) else None,
        problem=answer.problem if isinstance(answer, PartitionFailure) else "",
    )
