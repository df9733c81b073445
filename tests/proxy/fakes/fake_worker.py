# SPDX-License-Identifier: Apache-2.0
"""A worker that speaks the supervisor's messages and, in place of XKS, a line protocol: each line is answered with one line.

argv[1]: the descriptor of its line to the supervisor.

who -> "<worker> <pid> tls|plain"; certificate -> that of Start; print -> writes to stdout; crash -> dies by SIGSEGV; slow -> "done"
after the file <FAKE_DIR>/go appeared; else -> an echo.
<FAKE_DIR>/refuse: WorkerRefused with its text, then it ends; <FAKE_DIR>/refuse_pin: the same, finally. Each process that refuses is
noted as a line of <FAKE_DIR>/refusals. <FAKE_DIR>/die: exits at once. <FAKE_DIR>/bad_certificate: refuses reloads.
<FAKE_DIR>/waits: is never ready; when it holds a number, only this worker. <FAKE_DIR>/deaf: ignores Drain and the end of its line.
Each number of AskReport is appended to <FAKE_DIR>/asked; <FAKE_DIR>/mute: it gets no answer.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from pathlib import Path

from xksfast import messages
from xksfast.channel import Channel

DIRECTORY = Path(os.environ["FAKE_DIR"])


class FakeWorker:
    def __init__(self, fd: int) -> None:
        self.done = asyncio.Event()
        self.draining = False
        self.busy = 0
        self.transports: set[asyncio.StreamWriter] = set()
        self.closed = 0
        self.refused = False
        self.index = -1
        self.tasks: set[asyncio.Task[None]] = set()
        self.supervisor = Channel(
            socket.socket(fileno=fd), messages.ToWorker, on_message=self.on_supervisor, on_close=self.on_alone
        )

    def on_alone(self) -> None:
        if not (DIRECTORY / "deaf").exists():
            self.done.set()

    def on_supervisor(self, message: messages.ToWorker, fd: int | None) -> None:
        match message:
            case messages.Start(worker=index, config=config):
                self.index = index
                self.certificate = config.proxy.tls.certificate if config.proxy.tls else ""
                for name in ("refuse", "refuse_pin"):
                    if (DIRECTORY / name).exists():
                        self.refuse((DIRECTORY / name).read_text(), final=name == "refuse_pin")
            case messages.ControlLink():
                assert fd is not None
                self.control = Channel(socket.socket(fileno=fd), messages.ControlToWorker, on_message=self.on_control)
            case messages.Accept(tls=tls):
                assert fd is not None
                task = asyncio.ensure_future(self.serve(socket.socket(fileno=fd), tls))
                self.tasks.add(task)
            case messages.ReloadCertificates(config=config, number=number):
                assert config.proxy.tls is not None
                refused = (DIRECTORY / "bad_certificate").exists() or "bad" in config.proxy.tls.certificate
                answer = messages.CertificatesReloaded(problem="a bad certificate" if refused else "", number=number)
                delay_s = 0.5 if "late" in config.proxy.tls.certificate else 0.0
                asyncio.get_running_loop().call_later(delay_s, self.supervisor.send, answer)
            case messages.AskReport(number=number):
                with (DIRECTORY / "asked").open("a") as asked:
                    asked.write(f"{number}\n")
                if not (DIRECTORY / "mute").exists():
                    self.supervisor.send(messages.WorkerReport(number=number, pid=os.getpid()))
            case messages.Drain():
                self.draining = not (DIRECTORY / "deaf").exists()
                self.end_if_drained()

    def refuse(self, problem: str, *, final: bool) -> None:
        self.refused = True
        with (DIRECTORY / "refusals").open("a") as refusals:
            refusals.write(f"{self.index}\n")
        self.supervisor.send(messages.WorkerRefused(problems=(problem,), final=final))
        self.done.set()

    def on_control(self, message: messages.ApplyDelta, fd: int | None) -> None:
        assert fd is not None
        assert os.pread(fd, 5, 0) == b"pages"
        os.close(fd)
        if self.refused or self.waits():
            return
        seq = message.delta.seq
        self.control.send(messages.DeltaApplied(seq=seq, worker=self.index))
        self.supervisor.send(messages.WorkerReady(seq=seq))

    def waits(self) -> bool:
        waits = DIRECTORY / "waits"
        return waits.exists() and waits.read_text() in ("", str(self.index))

    def heartbeat(self) -> None:
        self.supervisor.send(messages.Heartbeat(closed=self.closed, healthy=True, known=1_000_000))

    def end_if_drained(self) -> None:
        if self.draining and not self.busy:
            self.done.set()

    async def serve(self, sock: socket.socket, tls: bool) -> None:
        reader, writer = await asyncio.open_connection(sock=sock)
        self.transports.add(writer)
        while line := await reader.readline():
            self.busy += 1
            match line.strip():
                case b"who":
                    answer = f"{self.index} {os.getpid()} {'tls' if tls else 'plain'}"
                case b"crash":
                    os.kill(os.getpid(), signal.SIGSEGV)
                case b"certificate":
                    answer = self.certificate
                case b"print":
                    print("a vendor library that talks", flush=True)
                    answer = "print"
                case b"slow":
                    while not (DIRECTORY / "go").exists():
                        await asyncio.sleep(0.01)
                    answer = "done"
                case _:
                    answer = line.decode().strip()
            writer.write(answer.encode() + b"\n")
            await writer.drain()
            self.busy -= 1
            self.end_if_drained()
        self.transports.discard(writer)
        self.closed += 1
        writer.close()
        self.heartbeat()

    async def run(self) -> None:
        while not self.done.is_set():
            self.heartbeat()
            await asyncio.wait([asyncio.ensure_future(self.done.wait())], timeout=0.2)
        for writer in self.transports:
            writer.close()
        await asyncio.sleep(0)


async def main(fd: int) -> None:
    await FakeWorker(fd).run()


if (DIRECTORY / "die").exists():
    sys.exit(7)
asyncio.run(main(int(sys.argv[1])))
