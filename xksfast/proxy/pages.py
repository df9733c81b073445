# SPDX-License-Identifier: Apache-2.0
"""What the health listener says of the proxy: its workers, what the node lacks, the status document, the metrics.

What must not live here: judging; whether all is well is said by status.py.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from time import time

import msgspec
import orjson

from xksfast import status as service_status
from xksfast._version import __version__
from xksfast.config import Config
from xksfast.proxy import exposition
from xksfast.proxy.child import Child
from xksfast.proxy.health_listener import WorkerHealth
from xksfast.proxy.reports import ReportCollector
from xksfast.proxy.troubles import Troubles
from xksfast.proxy.worker_slot import WorkerSlot


class Pages:
    """state_problems: how the control process stands with the state, in its own words."""

    def __init__(
        self, config: Config, workers: Sequence[WorkerSlot], reports: ReportCollector, refusals: Troubles, control: Child
    ) -> None:
        self.state_problems: tuple[str, ...] = ()
        self._partition_names = tuple(config.partitions)
        self._workers = workers
        self._reports = reports
        self._troubles = refusals
        self._control = control
        self._started_unix_s = time()

    def workers(self, *, stopping: bool) -> list[WorkerHealth]:
        """Every worker now. stopping: none of them is ready any more."""
        return [
            WorkerHealth(
                worker=worker.index,
                ready=worker.ready and not stopping,
                healthy=worker.healthy,
                alive=worker.alive,
                connections=worker.connections,
                authenticated=min(worker.connections, worker.known),
                seq=worker.seq,
                refused=self._troubles.has_refused(worker.child.name),
                problem=self._troubles.why(worker.child.name),
            )
            for worker in self._workers
        ]

    def node_problems(self) -> tuple[str, ...]:
        """How it stands with the state: what the control process says of it, and of the control process itself."""
        why = self._troubles.why(self._control.name)
        return (*((f"no control process: nothing is heard; {why}",) if why else ()), *self.state_problems)

    async def status(self) -> tuple[str, bytes]:
        """The status document."""
        return "application/json", orjson.dumps(msgspec.to_builtins(await self._status()))

    async def metrics(self) -> tuple[str, bytes]:
        """The same for Prometheus."""
        return exposition.CONTENT_TYPE, exposition.render(await self._status())

    async def _status(self) -> service_status.ServiceStatus:
        return service_status.merge(
            await self._reports.collect(self._troubles.why),
            self._reports.ended,
            partition_names=self._partition_names,
            version=__version__,
            pid=os.getpid(),
            started_unix_s=self._started_unix_s,
            now_unix_s=time(),
            state_problems=self.node_problems(),
        )
