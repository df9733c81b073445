# SPDX-License-Identifier: Apache-2.0
"""Blocks that this node enforces although its state does not say so yet: a file, so that they survive any crash.

File: one JSON object a line, appended and synced before a block counts as heard; rewritten without what is settled. A torn last line
was never acknowledged, and is left out.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

import msgspec

from xksfast.errors import OperatorError
from xksfast.secret_file import write_secret_file


class PendingBlock(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """kind, target: "key_store" or "key" and its id. node, at_ms: where and when it was asked for. block_id: names it everywhere."""

    block_id: str
    kind: str
    target: str
    reason: str
    actor: str
    address: str
    node: str
    at_ms: int


class BlockJournal:
    """The blocks of one file. Small: whoever writes also keeps it in memory."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / "blocks.jsonl"
        self._pending: dict[str, PendingBlock] = {}
        self.is_behind = False  # the file says something else
        self._read()

    def pending(self) -> list[PendingBlock]:
        """Oldest first."""
        return list(self._pending.values())

    def targets(self) -> set[tuple[str, str]]:
        """(kind, id) of what is to be withheld."""
        return {(block.kind, block.target) for block in self._pending.values()}

    def add(self, block: PendingBlock) -> None:
        """On disk when this returns. OperatorError: it is enforced, but would not survive a restart."""
        if block.block_id in self._pending:
            return
        self._pending[block.block_id] = block
        try:
            self._append(msgspec.json.encode(block) + b"\n")
        except OSError as error:
            self.is_behind = True
            raise OperatorError(
                f"{self._path} cannot be written: {error.strerror}. The block is in force, but a restart would forget it"
            ) from error

    def _append(self, line: bytes) -> None:
        """All of it or nothing: on a full disk half a line would spoil the next one."""
        fd = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            size = os.fstat(fd).st_size
            try:
                if os.write(fd, line) < len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                os.fsync(fd)
            except OSError:
                os.ftruncate(fd, size)
                raise
        finally:
            os.close(fd)

    def settle(self, block_ids: set[str]) -> None:
        """The state says so itself now, or somebody has unblocked it.

        OperatorError: it is so, but the file does not say it, so that a restart would enforce it again; the next call tries again.
        """
        if not block_ids & self._pending.keys() and not self.is_behind:
            return
        self._pending = {name: block for name, block in self._pending.items() if name not in block_ids}
        self.is_behind = True
        content = b"".join(msgspec.json.encode(block) + b"\n" for block in self._pending.values())
        write_secret_file(self._path, content, over=True)
        self.is_behind = False

    def _read(self) -> None:
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            lines = self._path.read_bytes().split(b"\n")
        except FileNotFoundError:
            return
        except OSError as error:
            raise OperatorError(
                f"{self._path} cannot be read: {error.strerror}; blocks may stand in it, so nothing is served"
            ) from error
        whole, torn = lines[:-1], lines[-1]
        for line in whole:
            try:
                block = msgspec.json.decode(line, type=PendingBlock)
            except msgspec.MsgspecError as error:
                raise OperatorError(
                    f"{self._path}: a line cannot be read: {error}; blocks may stand in it, so nothing is served: mend or remove it"
                ) from error
            self._pending[block.block_id] = block
        if torn:  # it would spoil the next line
            try:
                os.truncate(self._path, sum(len(line) + 1 for line in whole))
            except OSError as error:
                raise OperatorError(
                    f"{self._path} ends in half a line and cannot be written: {error.strerror}: make it writable, or cut that line off"
                ) from error
