# SPDX-License-Identifier: Apache-2.0
"""The messages between supervisor, control process and proxy workers, each a tagged msgspec struct.

Three conversations, each over a socketpair (`channel.py`): supervisor <-> worker, supervisor <-> control, control <-> worker.
"fd" in a docstring says which file descriptor travels beside the message. No message holds a secret.
"""

from __future__ import annotations

import msgspec

from xksfast.config import Config
from xksfast.model import Snapshot


class Message(msgspec.Struct, frozen=True, tag=True, omit_defaults=True):
    """Base of all messages; the tag is the class name."""


# --- supervisor -> worker


class Start(Message):
    """First message of a worker's life: who it is and the validated configuration."""

    worker: int
    config: Config


class ControlLink(Message):
    """The worker's line to the control process. Sent again when a new control process took over. fd: a socket."""


class Accept(Message):
    """Serve this connection. fd: the connected socket. tls: it came in on a TLS listener."""

    tls: bool


class ReloadCertificates(Message):
    """Read the TLS files again; connections in progress keep the old certificate."""

    config: Config


class Drain(Message):
    """Finish the requests at hand, close idle connections, then exit."""


# --- worker -> supervisor


class WorkerReady(Message):
    """A snapshot is applied, the tokens are settled, requests are served."""

    seq: int


class WorkerRefused(Message):
    """The worker cannot start for a reason that starting again does not mend. problems: a sentence each."""

    problems: tuple[str, ...]


class Heartbeat(Message):
    """Once a second and whenever a connection closes: `closed` since the start, `healthy`: this worker can serve its keys."""

    closed: int
    healthy: bool
    seq: int = 0


class CertificatesReloaded(Message):
    """Answer to ReloadCertificates; problem is "" when the new files are in use, else why the old ones stay."""

    problem: str = ""


# --- supervisor -> control


class StartControl(Message):
    """First message of the control process."""

    config: Config


class WorkerLink(Message):
    """A worker was started. fd: a socket to it."""

    worker: int


class ReloadState(Message):
    """Read the state again (SIGHUP)."""


# --- control -> supervisor


class StateLoaded(Message):
    """The state was read; snapshot `seq` goes out to every worker."""

    seq: int
    key_stores: int
    keys: int


class StateRefused(Message):
    """The state cannot be used. At start this ends the program; at a reload the former snapshot stays in service."""

    problems: tuple[str, ...]


# --- control -> worker


class ApplySnapshot(Message):
    """Serve this snapshot from now on. fd: the secret pages that its slots point into."""

    snapshot: Snapshot


# --- worker -> control


class SnapshotApplied(Message):
    """The snapshot is served. problems: keys that cannot be served and what to do, a sentence each.

    notes: keys that only some partitions of their group serve.
    """

    seq: int
    worker: int
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


ToWorker = Start | ControlLink | Accept | ReloadCertificates | Drain
FromWorker = WorkerReady | WorkerRefused | Heartbeat | CertificatesReloaded
ToControl = StartControl | WorkerLink | ReloadState | Drain
FromControl = StateLoaded | StateRefused
ControlToWorker = ApplySnapshot
WorkerToControl = SnapshotApplied
