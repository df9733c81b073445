# SPDX-License-Identifier: Apache-2.0
"""Our end of a partition tool's pipe: starts the process, asks it, and says in words how it ended when it did.

What lives here: processes and calls. What must not: what is done with keys (replication.py). Blobs and proofs that pass here are
ciphertexts, and are not logged. A newcomer's trap: post() to several links first and then take() from each lets the tokens work
at the same time; call() is both for one.
"""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterable
from contextlib import suppress
from types import TracebackType
from typing import Any, TypeVar

import msgspec

from xksfast.admin.partitions.tool import Answer, Call
from xksfast.admin.partitions.tool_process import PartitionTarget, tool_start
from xksfast.config import Config
from xksfast.errors import OperatorError
from xksfast.native.partition import KeyTemplate, Proof, TokenKey

T = TypeVar("T")

CALL_TIMEOUT_S = 20.0
OPEN_TIMEOUT_S = 30.0
END_TIMEOUT_S = 6.0
KEY_PAIR_TIMEOUT_S = 60.0


class PartitionFailure(OperatorError):
    """A partition did not do what it was asked. The text begins with its name. Exit code 1 where nothing else says more."""

    exit_code = 1

    def __init__(self, partition: str, problem: str) -> None:
        super().__init__(f"partition {partition}: {problem}")
        self.partition = partition
        self.problem = problem


def partition_target(config: Config, name: str) -> PartitionTarget:
    """What a tool needs to know of a configured partition."""
    partition = config.partitions[name]
    module = config.modules[partition.module]
    return PartitionTarget(
        name=name,
        module_path=module.path,
        profile=partition.profile,
        parameters=module.parameters,
        token_label=partition.token_label,
        serial=partition.serial,
        slot=partition.slot,
        pin_file=partition.pin_file,
        pin_env=partition.pin_env,
        environment=module.environment,
    )


class PartitionLink:
    """One partition and its tool's process, which is started with the first call. inherited: descriptors that it shall have."""

    def __init__(self, target: PartitionTarget, *, inherited: tuple[int, ...] = ()) -> None:
        self.name = target.name
        self._target = target
        self._inherited = inherited
        self._process: subprocess.Popen[bytes] | None = None
        self._asked = ("", 0.0)
        self._failed_open: PartitionFailure | None = None
        self._killed = False

    def __enter__(self) -> PartitionLink:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    # --- calls

    def post(self, call: str, timeout_s: float = CALL_TIMEOUT_S, *, with_target: bool = False, **arguments: Any) -> None:
        """Ask; take() waits for the answer. A token that could not be opened says so again."""
        if self._failed_open is not None:
            raise self._failed_open
        if self._killed:
            raise PartitionFailure(self.name, "given up")
        if self._process is None:
            command, environment = tool_start("_partitiontool", self._target)
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=self._inherited, env=environment
            )
        assert self._process.stdin is not None
        target = self._target if with_target else None
        line = msgspec.json.encode(Call(call=call, timeout_s=timeout_s, arguments=arguments, target=target))
        self._asked = (call, timeout_s)
        with suppress(BrokenPipeError):  # it has ended: take() says how
            self._process.stdin.write(line + b"\n")
            self._process.stdin.flush()

    def take(self, kind: type[T]) -> T:
        """The answer to the last post(); PartitionFailure when it is a problem or the process has ended."""
        assert self._process is not None
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        problem = self._how_it_ended() if not line.endswith(b"\n") else ""
        answer = Answer(problem) if problem else msgspec.json.decode(line, type=Answer)
        if answer.problem:
            failure = PartitionFailure(self.name, answer.problem)
            failure.is_final = answer.final
            if problem or self._asked[0] == "open":
                self._failed_open = failure
            raise failure
        return msgspec.json.decode(answer.result, type=kind)

    def call(self, call: str, kind: type[T], timeout_s: float = CALL_TIMEOUT_S, **arguments: Any) -> T:
        """Ask and wait."""
        self.post(call, timeout_s, **arguments)
        return self.take(kind)

    def post_describe(self) -> None:
        """Ask what the token says of itself; take(TokenInfo)."""
        self.post("describe", with_target=True)

    def post_open(self) -> None:
        """Ask for a login; take(type(None))."""
        self.post("open", OPEN_TIMEOUT_S, with_target=True)

    def post_measure(self, *, sessions: int, run_s: float, health_check_key: str | None) -> None:
        """Ask for a measurement; take(Measured). A slow token may take several times what it should."""
        timeout_s = OPEN_TIMEOUT_S + 8 * run_s + 1.0 * sessions
        self.post("measure", timeout_s, with_target=True, sessions=sessions, run_s=run_s, health_check_key=health_check_key)

    def post_wrap_data_key(self, *, label: str, context: str, pages_fd: int) -> None:
        """Ask for the data key in the pages' slot 0 under the token's key; take(bytes). pages_fd: one of those inherited."""
        self.post("wrap_data_key", OPEN_TIMEOUT_S, with_target=True, label=label, context=context, pages_fd=pages_fd)

    def post_unwrap_data_key(self, *, label: str, context: str, wrapped: bytes, pages_fd: int) -> None:
        """Ask for the data key, which comes into the pages' slot 0; take(type(None))."""
        self.post(
            "unwrap_data_key",
            OPEN_TIMEOUT_S,
            with_target=True,
            label=label,
            context=context,
            wrapped=wrapped,
            pages_fd=pages_fd,
        )

    # --- the calls of an open token: TokenAdmin on the other side

    def find(self, label: str) -> list[TokenKey]:
        return self.call("find", list[TokenKey], label=label)

    def generate(self, template: KeyTemplate) -> int:
        return self.call("generate", int, template=template)

    def wrap(self, wrapping_key: int, key: int, mechanism: int) -> bytes:
        return self.call("wrap", bytes, wrapping_key=wrapping_key, key=key, mechanism=mechanism)

    def unwrap(self, unwrapping_key: int, blob: bytes, mechanism: int, template: KeyTemplate) -> int:
        return self.call("unwrap", int, unwrapping_key=unwrapping_key, blob=blob, mechanism=mechanism, template=template)

    def make_receiver(self) -> tuple[int, bytes]:
        return self.call("make_receiver", tuple[int, bytes], KEY_PAIR_TIMEOUT_S)

    def wrap_for(self, modulus: bytes, key: int) -> bytes:
        return self.call("wrap_for", bytes, modulus=modulus, key=key)

    def unwrap_received(self, private_key: int, blob: bytes, template: KeyTemplate) -> int:
        return self.call("unwrap_received", int, private_key=private_key, blob=blob, template=template)

    def prove(self, key: int) -> Proof:
        return self.call("prove", Proof, key=key)

    def check(self, key: int, proof: Proof, *, can_encrypt: bool) -> bool:
        return self.call("check", bool, key=key, proof=proof, can_encrypt=can_encrypt)

    def rename(self, key: int, label: str) -> None:
        self.call("rename", type(None), key=key, label=label)

    def lock_down(self, key: int) -> None:
        self.call("lock_down", type(None), key=key)

    def destroy(self, key: int) -> None:
        self.call("destroy", type(None), key=key)

    # --- the end

    def close(self) -> None:
        """End the process in good order, or else kill it."""
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None
        assert process.stdout is not None
        with suppress(BrokenPipeError):
            process.stdin.close()
        try:
            process.wait(END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()

    def give_up(self) -> None:
        """Ask nothing more; a call that waits for its answer still gets it. From any thread."""
        self._killed = True

    def kill(self) -> None:
        """End the process now, for good; a call that waits for it ends with PartitionFailure. From any thread."""
        self._killed = True
        process = self._process
        if process is not None:
            process.kill()

    def _how_it_ended(self) -> str:
        assert self._process is not None
        call, timeout_s = self._asked
        try:
            code = self._process.wait(END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            return f"the partition tool closed its pipe and did not end ({call})"
        if code == -signal.SIGALRM:
            return f"the token did not answer within {timeout_s:.0f} s ({call})"
        if code < 0:
            return f"the PKCS#11 module crashed, or its process was killed, by {signal.Signals(-code).name} ({call})"
        return f"the partition tool ended with code {code} and no answer ({call})"


def take_all(links: Iterable[PartitionLink], kind: type[T]) -> dict[str, T | PartitionFailure]:
    """The answers of links that were all asked before, by partition; one that failed does not keep the others from answering."""
    found: dict[str, T | PartitionFailure] = {}
    for link in links:
        try:
            found[link.name] = link.take(kind)
        except PartitionFailure as failure:
            found[link.name] = failure
    return found
