# SPDX-License-Identifier: Apache-2.0
"""`partition test`: one partition measured in its tool's process, and judged."""

from __future__ import annotations

from typing import Literal

import msgspec

from xksfast.admin.partitions.advice import Verdict, advise, worst
from xksfast.admin.partitions.link import PartitionFailure, PartitionLink, partition_target
from xksfast.admin.partitions.listing import TokenReport, describe
from xksfast.admin.partitions.tool_process import PartitionTarget
from xksfast.config import Config, Partition
from xksfast.native.partition import Measured, TokenInfo

Outcome = Literal["ok", "warn", "refuse", "failed"]


class PartitionTest(msgspec.Struct, frozen=True):
    """level "failed": it could not be tested, problem says why; "refuse": it must not serve."""

    name: str
    level: Outcome
    token: TokenReport | None = None
    measured: Measured | None = None
    operations_per_second: dict[str, float] = {}
    verdicts: list[Verdict] = []
    problem: str = ""


def try_partition(config: Config, name: str, *, run_s: float) -> PartitionTest:
    """Measure and judge a configured partition."""
    health_check_key = next(
        (
            group.health_check_key
            for group in config.partition_groups.values()
            if name in group.partitions and group.health_check_key
        ),
        None,
    )
    return try_token(partition_target(config, name), config.partitions[name], run_s=run_s, health_check_key=health_check_key)


def try_token(
    target: PartitionTarget, partition: Partition, *, run_s: float, health_check_key: str | None = None
) -> PartitionTest:
    """Measure and judge. A self-test that a token does not pass is a refusal; all else that goes wrong is a failure."""
    token: TokenReport | None = None
    try:
        with PartitionLink(target) as link:
            link.post_describe()
            info = link.take(TokenInfo)
            token = describe(info)
            link.post_measure(sessions=partition.sessions, run_s=run_s, health_check_key=health_check_key)
            measured = link.take(Measured)
    except PartitionFailure as failure:
        refused = failure.problem.startswith("self-test: ")
        verdicts = [Verdict("self_test", "refuse", failure.problem)] if refused else []
        return PartitionTest(target.name, "refuse" if refused else "failed", token, None, {}, verdicts, failure.problem)
    verdicts = advise(partition, info, measured)
    speeds = {str(run.threads): round(run.per_second, 1) for run in (measured.single, measured.full)}
    return PartitionTest(target.name, worst(verdicts), token, measured, speeds, verdicts)


def as_text(report: PartitionTest) -> str:
    """For people."""
    lines = [f"{report.name}: {report.level}"]
    if report.token is not None:
        token = report.token
        lines.append(
            f"  token {token.label!r}, {token.manufacturer} {token.model}, firmware {token.firmware}, serial {token.serial}"
        )
    lines += [f"  {verdict.level:6} {verdict.text}" for verdict in report.verdicts]
    if report.level == "failed":
        lines.append(f"  {report.problem}")
    return "\n".join(lines)
