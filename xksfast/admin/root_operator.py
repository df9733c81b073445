# SPDX-License-Identifier: Apache-2.0
"""The first operator of a new state. Its token stands in a file before the operator exists, or else nobody could ever use it."""

from __future__ import annotations

import time
from pathlib import Path

from xksfast.admin.actors import new_token, system_actor
from xksfast.admin.state_thread import StateThread
from xksfast.errors import OperatorError
from xksfast.log import Log
from xksfast.secret_file import write_secret_file
from xksfast.state.events import Change
from xksfast.state.objects import Operator
from xksfast.state.projection import State
from xksfast.state.store import Plan, StateStore

ROOT = "root"


async def make_root(store: StateStore, run: StateThread, token_file: Path, log: Log) -> None:
    """Nothing when there is an operator. OperatorError when the file cannot be written, StateError when the operator cannot."""
    with store.reading() as state:
        if state.operators:
            return
    token, hashed = new_token()
    await run(lambda: _write(token_file, token))

    def plan(state: State) -> Plan:
        if state.operators:  # another node was faster
            return Plan()
        root = Operator(name=ROOT, role="admin", token_sha256=hashed, created_at=int(time.time()))
        return Plan(changes=[Change("operator.create", root.kind, root.id, None, root)])

    committed = await run(lambda: store.transact(system_actor("start").origin, plan))
    if committed.events:
        log.info("operator_created", name=ROOT, token_file=str(token_file))
    else:
        token_file.unlink(missing_ok=True)


def _write(path: Path, token: str) -> None:
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_secret_file(path, token.encode() + b"\n", over=True)
    except (OSError, OperatorError) as error:
        raise OperatorError(f"admin.token_file: {error}") from None
