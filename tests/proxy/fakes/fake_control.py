# SPDX-License-Identifier: Apache-2.0
"""A control process that hands every worker an empty state. <FAKE_DIR>/refuse_state: StateRefused with its text, and the end of a
process that has no state yet.

Each state it loads is written to <FAKE_DIR>/loaded as "<pid> <seq>".
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from pathlib import Path

from xksfast import messages
from xksfast.channel import Channel
from xksfast.model import Delta

DIRECTORY = Path(os.environ["FAKE_DIR"])


class FakeControl:
    def __init__(self, fd: int) -> None:
        self.done = asyncio.Event()
        self.seq = 0
        self.links: list[Channel] = []
        self.supervisor = Channel(
            socket.socket(fileno=fd), messages.ToControl, on_message=self.on_message, on_close=self.done.set
        )

    def on_message(self, message: messages.ToControl, fd: int | None) -> None:
        match message:
            case messages.StartControl() | messages.ReloadState():
                self.load()
            case messages.WorkerLink():
                assert fd is not None
                self.links.append(
                    Channel(socket.socket(fileno=fd), messages.WorkerToControl, on_message=lambda message, fd: None)
                )
                self.push(self.links[-1])
            case messages.Drain():
                self.done.set()

    def load(self) -> None:
        if (DIRECTORY / "refuse_state").exists():
            self.supervisor.send(messages.StateRefused(problems=((DIRECTORY / "refuse_state").read_text(),)))
            if not self.seq:
                self.done.set()
            return
        self.seq += 1
        (DIRECTORY / "loaded").write_text(f"{os.getpid()} {self.seq}")
        self.supervisor.send(messages.StateLoaded(seq=self.seq, key_stores=0, keys=0))

    def push(self, link: Channel) -> None:
        pages = os.memfd_create("pages")
        os.write(pages, b"pages")
        link.send(messages.ApplyDelta(delta=Delta(base_seq=0, seq=self.seq, reset=True)), pages)
        os.close(pages)


async def main(fd: int) -> None:
    control = FakeControl(fd)
    await control.done.wait()
    await control.supervisor.drained()


asyncio.run(main(int(sys.argv[1])))
