# SPDX-License-Identifier: Apache-2.0
"""The messages between supervisor, control process and proxy workers, each a tagged msgspec struct.

Three conversations, each over a socketpair (`channel.py`): supervisor <-> worker, supervisor <-> control, control <-> worker.
"fd" in a docstring says which file descriptor travels beside the message. No message holds a secret.
"""

from __future__ import annotations

import msgspec

from xksfast.config import Config
from xksfast.model import Delta


class Message(msgspec.Struct, frozen=True, tag=True, omit_defaults=True):
    """Base of all messages; the tag is the class name."""


class Part(msgspec.Struct, frozen=True):
    """Base of what messages hold."""


# --- supervisor -> worker


class Start(Message):
    """First message of a worker's life: who it is and the validated configuration."""

    worker: int
    config: Config


class ControlLink(Message):
    """The worker's line to the control process. Sent again when a new control process took over. fd: a socket."""


class Accept(Message):
    """Serve this connection. fd: the connected socket. tls: it came in on a TLS listener.

    make_room: end the oldest connection without an accepted signature for it.
    """

    tls: bool
    make_room: bool = False


class ReloadCertificates(Message):
    """Read the TLS files again; connections in progress keep the old certificate. number: returned in CertificatesReloaded."""

    config: Config
    number: int = 0


class AskReport(Message):
    """Say what you have counted and what state you are in. number: returned in the WorkerReport."""

    number: int


class Drain(Message):
    """Finish the requests at hand, close idle connections, then exit."""


class EndNow(Message):
    """Exit without waiting for requests; only calls that are inside a PKCS#11 module are still waited for. A SIGTERM follows."""


# --- worker or control -> supervisor


class AskToEnd(Message):
    """This process was sent SIGTERM. It goes on until it is told to end, which comes behind all that is on its way to it."""


# --- worker -> supervisor


class WorkerReady(Message):
    """A whole state is applied, the tokens are settled, requests are served."""

    seq: int


class WorkerRefused(Message):
    """Why the worker cannot serve; it ends, and is started again after a pause. problems: a sentence each.

    final: a token has refused the PIN and may lock at the next try, so a person has to ask for it.
    """

    problems: tuple[str, ...]
    final: bool = False


class Heartbeat(Message):
    """Once a second and whenever a connection closes: `closed` since the start, `healthy`: this worker can serve its keys.

    known: open connections on which a signature was accepted.
    """

    closed: int
    healthy: bool
    seq: int = 0
    known: int = 0


class RequestCount(Part):
    """How many requests of one operation had one result: "ok" or an error name of the XKS API; operation "none": no XKS path."""

    operation: str
    result: str
    count: int


class RequestDurations(Part):
    """Requests of one operation by duration, first byte to answer. counts: by bucket, see WorkerReport.request_bounds_ns."""

    operation: str
    counts: list[int]
    sum_ns: int


class PartitionReport(Part):
    """One partition as one worker's engine sees it. Counters are since the worker's start; ages in seconds, -1: never.

    errors: CK_RV name -> how often. latency_counts: calls served by duration, see WorkerReport.call_bounds_ns.
    keys_refused: keys that it has and does not use; key_problem: which the last of them is, and what to do.
    """

    state: str
    reason: str
    in_service: bool
    route_reason: str
    token_label: str
    manufacturer: str
    model: str
    serial: str
    firmware_major: int
    firmware_minor: int
    iv_mode: str
    sessions_open: int
    sessions_wanted: int
    lost_threads: int
    in_flight: int
    limit: int
    concurrency: float
    median_ns: int
    p95_ns: int
    oldest_call_ns: int
    slow_start: float
    login_epoch: int
    firsts: int
    retries: int
    hedges: int
    checks: int
    faults: int
    opens: int
    last_open_reason: str
    last_open_unix_s: int
    errors: dict[str, int]
    latency_counts: list[int]
    probe_duration_ns: int
    last_good_probe_age_s: float = -1.0
    keys_refused: int = 0
    key_problem: str = ""


class EngineReport(Part):
    """Counters of one worker's whole engine; waiting: jobs that wait for a partition with room."""

    jobs: int = 0
    answered: int = 0
    refused_busy: int = 0
    refused_unavailable: int = 0
    timeouts: int = 0
    retries: int = 0
    hedges: int = 0
    hedge_wins: int = 0
    late_results_wiped: int = 0
    checks_elsewhere: int = 0
    failed_checks: int = 0
    waiting: int = 0
    in_flight: int = 0


class WorkerReport(Message):
    """Answer to AskReport. loop_lag_s: the longest of the last seconds. The bounds are those of every histogram in it."""

    number: int
    pid: int
    seq: int = 0
    connections: int = 0
    loop_lag_s: float = 0.0
    requests: tuple[RequestCount, ...] = ()
    request_durations: tuple[RequestDurations, ...] = ()
    request_bounds_ns: tuple[int, ...] = ()
    engine: EngineReport | None = None
    partitions: dict[str, PartitionReport] = {}
    call_bounds_ns: tuple[int, ...] = ()


class CertificatesReloaded(Message):
    """Answer to ReloadCertificates `number`; problem is "" when the new files are in use, else why the old ones stay."""

    problem: str = ""
    number: int = 0


# --- supervisor -> control


class StartControl(Message):
    """First message of the control process. fd: the listening socket of administration, when there is one.

    accept_older_state: a database that went back is followed as it is. again: a control process has been at work before this one.
    """

    config: Config
    accept_older_state: bool = False
    again: bool = False


class WorkerLink(Message):
    """A worker was started. fd: a socket to it."""

    worker: int


class ReloadState(Message):
    """Read the state and the administration's certificate again (SIGHUP). config: with the files that are named now.

    number: returned in StateLoaded.
    """

    config: Config
    number: int = 0


# --- control -> supervisor


class StateLoaded(Message):
    """The state was read; it goes out to every worker, as of event `seq`.

    admin_certificate: "reloaded", "" when there is none to reload, or why the former one stays. number: of the ReloadState that
    this answers, 0: it is the first state of this process.
    """

    seq: int
    key_stores: int
    keys: int
    admin_certificate: str = ""
    number: int = 0


class StateRefused(Message):
    """The state cannot be used. At a reload the former state stays in service; a process that has none yet ends.

    final: as in WorkerRefused.
    """

    problems: tuple[str, ...]
    final: bool = False


class StateProblems(Message):
    """How the control process stands with the state from now on, a sentence each; none: all is well."""

    problems: tuple[str, ...]


# --- control -> worker


class ApplyDelta(Message):
    """Serve this from now on. fd: the secret pages that this part's slots point into, unless it needs none.

    number: counts the messages to this worker; its acknowledgements say up to which one they hold.
    """

    delta: Delta
    number: int = 0


class AskUsage(Message):
    """Say what was used since the last time."""


# --- worker -> control


class DeltaRestricted(Message):
    """All that the deltas up to message `number` block, disable or remove is so from now on, for answers in flight as well."""

    seq: int
    worker: int
    number: int = 0


class DeltaApplied(Message):
    """All of the deltas up to message `number`, which was complete, is served.

    problems: keys that cannot be served and what to do, a sentence each. notes: keys that only some partitions of their group serve.
    """

    seq: int
    worker: int
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    number: int = 0


class DeltaRefused(Message):
    """The delta does not follow on what the worker has: it must be given everything anew."""

    seq: int
    worker: int
    has_seq: int
    problem: str
    number: int = 0


class KeyUse(Part):
    """AES-GCM encryptions with one key version."""

    store: str
    external_key_id: str
    version: int
    encryptions: int


class CredentialUse(Part):
    """When a credential last signed a request that was accepted, in unix seconds."""

    store: str
    access_key_id: str
    last_used: int


class UsageReport(Message):
    """Answer to AskUsage, and a worker's last words: what was used since the report before. A long answer comes in several."""

    worker: int
    keys: tuple[KeyUse, ...] = ()
    credentials: tuple[CredentialUse, ...] = ()


ToWorker = Start | ControlLink | Accept | ReloadCertificates | AskReport | Drain | EndNow
FromWorker = WorkerReady | WorkerRefused | Heartbeat | CertificatesReloaded | WorkerReport | AskToEnd
ToControl = StartControl | WorkerLink | ReloadState | Drain | EndNow
FromControl = StateLoaded | StateRefused | StateProblems | AskToEnd
ControlToWorker = ApplyDelta | AskUsage
WorkerToControl = DeltaRestricted | DeltaApplied | DeltaRefused | UsageReport
