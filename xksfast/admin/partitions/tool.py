# SPDX-License-Identifier: Apache-2.0
"""The partition tool: a process that holds one session on one token and does with it what it is told, a JSON line each.

What lives here: reading calls and answering them. What must not: any decision; those are in replication.py, on the other end of
the pipe. The process ends when its stdin does, when the module crashes, and by SIGALRM when a call takes longer than it may: a
library that hangs takes nothing with it. A newcomer's trap: a vendor's library may print; its stdout is our stderr.

Why a process per partition: a module reads its environment once (two SoftHSM configurations), and may crash or hang.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any, get_type_hints

import msgspec

from xksfast.admin.partitions.tool_process import PartitionTarget
from xksfast.errors import OperatorError, is_final
from xksfast.native.crypto import Secret, SecretPages, harden_process
from xksfast.native.partition import (
    Measured,
    Target,
    TokenAdmin,
    TokenInfo,
    describe_token,
    measure_partition,
    unwrap_data_key,
    wrap_data_key,
)

TOKEN_CALLS = (
    "find", "generate", "wrap", "unwrap", "make_receiver", "wrap_for", "unwrap_received", "prove", "check", "rename", "lock_down",
    "destroy",
)  # fmt: skip


class Call(msgspec.Struct, frozen=True):
    """call: "describe", "measure", "wrap_data_key", "unwrap_data_key", "open", or a method of TokenAdmin with its arguments.

    target: for those before TokenAdmin's.
    """

    call: str
    timeout_s: float
    arguments: dict[str, Any] = {}
    target: PartitionTarget | None = None


class Answer(msgspec.Struct, frozen=True):
    """problem: what is wrong and what to do, "" when nothing is. final: see OperatorError."""

    problem: str = ""
    result: msgspec.Raw = msgspec.Raw(b"null")
    final: bool = False


class Tool:
    """What the process holds."""

    def __init__(self) -> None:
        self._token: TokenAdmin | None = None

    def answer(self, call: Call) -> Any:
        """The result of one call; OperatorError says what is wrong."""
        match call.call, call.target:
            case "describe", PartitionTarget() as target:
                return self.describe(target)
            case "measure", PartitionTarget() as target:
                return self.measure(target, **call.arguments)
            case "wrap_data_key", PartitionTarget() as target:
                return self.wrap_data_key(target, **call.arguments)
            case "unwrap_data_key", PartitionTarget() as target:
                return self.unwrap_data_key(target, **call.arguments)
            case "open", PartitionTarget() as target:
                self._token = TokenAdmin(_target(target, login=True))
                return None
        assert self._token is not None
        assert call.call in TOKEN_CALLS
        method = getattr(self._token, call.call)
        hints = get_type_hints(method)
        return method(**{name: msgspec.convert(value, hints[name]) for name, value in call.arguments.items()})

    @staticmethod
    def describe(target: PartitionTarget) -> TokenInfo:
        """Without a login: looking costs no try of a PIN."""
        return describe_token(_target(target, login=False))

    @staticmethod
    def measure(target: PartitionTarget, *, sessions: int, run_s: float, health_check_key: str | None) -> Measured:
        """See xks_p11_measure.h."""
        return measure_partition(_target(target, login=True), sessions=sessions, run_s=run_s, health_check_key=health_check_key)

    @staticmethod
    def wrap_data_key(target: PartitionTarget, *, label: str, context: str, pages_fd: int) -> bytes:
        """See xks_p11_master.h. The data key is in slot 0 of the pages, whose descriptor we have inherited."""
        return wrap_data_key(_target(target, login=True), label, context, SecretPages.open(pages_fd), 0)

    @staticmethod
    def unwrap_data_key(target: PartitionTarget, *, label: str, context: str, wrapped: str, pages_fd: int) -> None:
        """The data key comes into slot 0. wrapped: Base64, as it stands in JSON."""
        blob = msgspec.convert(wrapped, bytes)
        unwrap_data_key(_target(target, login=True), label, context, blob, SecretPages.share(pages_fd), 0)

    def close(self) -> None:
        """Log out."""
        if self._token is not None:
            self._token.close()


def _target(target: PartitionTarget, *, login: bool) -> Target:
    pin = None
    if login and target.pin_file:
        pin = Secret.from_file(target.pin_file)
    elif login and target.pin_env:
        pin = Secret.from_environment(target.pin_env)
    return Target(
        module_path=target.module_path,
        profile=target.profile,
        parameters=target.parameters,
        token_label=target.token_label,
        serial=target.serial,
        slot=target.slot,
        pin=pin,
    )


def main() -> int:
    """Answer until stdin ends."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # for those who started us, with whom our stdin ends
        signal.signal(number, signal.SIG_IGN)  # ending inside a login would leave half a token
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    harden_process()
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    tool = Tool()
    for line in sys.stdin.buffer:
        call = msgspec.json.decode(line, type=Call)
        signal.setitimer(signal.ITIMER_REAL, call.timeout_s)
        try:
            answer = Answer(result=msgspec.Raw(msgspec.json.encode(tool.answer(call))))
        except OperatorError as error:
            answer = Answer(problem=str(error), final=is_final(error))
        signal.setitimer(signal.ITIMER_REAL, 0)
        answers.write(msgspec.json.encode(answer) + b"\n")
        answers.flush()
    signal.setitimer(signal.ITIMER_REAL, 5)  # C_Finalize may hang as well
    tool.close()
    return 0
