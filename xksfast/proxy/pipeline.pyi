from asyncio import AbstractEventLoop
from collections.abc import Sequence

from xksfast.line_limit import LineLimit
from xksfast.log import RequestLog
from xksfast.native.crypto import JobPool, RandomPool
from xksfast.native.engine import Engine
from xksfast.proxy.metrics import Metrics
from xksfast.proxy.serving import ServingTable
from xksfast.proxy.usage import Usage

class Pipeline:
    table: ServingTable
    usage: Usage
    unanswered: int
    @property
    def metrics(self) -> Metrics: ...
    @property
    def in_flight(self) -> int: ...
    def __init__(
        self,
        loop: AbstractEventLoop,
        *,
        engine: Engine | None,
        jobs: JobPool,
        random: RandomPool,
        deadline_ms: int,
        request_log: RequestLog | None,
        logs_success: bool = False,
        partition_names: Sequence[str] = (),
        strangers: LineLimit | None = None,
    ) -> None: ...
    def replace_table(self, table: ServingTable) -> None: ...
    def on_completions(self) -> None: ...
