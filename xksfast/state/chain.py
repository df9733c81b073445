# SPDX-License-Identifier: Apache-2.0
"""Whether the log is what was written: `xksfast audit verify`.

Three things are held against each other: every event and its hash, the checkpoints and what nodes have served (both know of events
that a shortened log no longer has), and what the events add up to against the table of objects.
A newcomer's trap: whoever may write the database can compute hashes too. What he cannot make is a checkpoint's MAC, so a log that
was rewritten as a whole shows only up to the newest checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from xksfast.state import rows, schema
from xksfast.state.database import Database
from xksfast.state.events import GENESIS, Event, decode_object, event_hash
from xksfast.state.objects import Credential, SourceKey
from xksfast.state.records import Checkpoint, NodeRow

CHECKPOINT_LABEL = "checkpoint"  # of the key that MACs are made with, for whoever derives keys by label
MAX_PROBLEMS = 100

Record = TypeVar("Record")
Progress = Callable[[int, int], None]  # (rows done, rows in all)


@dataclass(frozen=True, slots=True)
class Problem:
    """text names the event. seq: the first event that it makes doubtful."""

    seq: int
    text: str


@dataclass(frozen=True, slots=True)
class Report:
    """What verify found. seq, head: of the newest event. checkpoints: how many agree with the log.

    problems: those of the log by event, then those of the tables, which may only follow from them.
    """

    events: int
    objects: int
    checkpoints: int
    seq: int
    head: bytes
    problems: tuple[Problem, ...]

    @property
    def is_good(self) -> bool:
        """Nothing was found."""
        return not self.problems


class ChainCheck(Generic[Record]):
    """Follows a log of numbered records, each with a hash over itself and the hash of the one before. Any log, not only ours.

    hash_of(record, hash of the one before): what the record's hash must be. noun: what a record is called. seq, head: where to start.
    """

    def __init__(self, hash_of: Callable[[Record, bytes], bytes], *, noun: str, seq: int = 0, head: bytes = GENESIS) -> None:
        self._hash_of = hash_of
        self._noun = noun
        self._computed = head
        self.seq = seq
        self.head = head

    def follow(self, record: Record, seq: int, hash: bytes) -> Iterator[Problem]:
        """The next record, with the number and hash that stand beside it."""
        gap = seq - self.seq - 1
        if gap > 0:
            which = f"{self._noun} {seq - 1} is" if gap == 1 else f"{self._noun}s {self.seq + 1} to {seq - 1} are"
            yield Problem(self.seq + 1, f"{which} missing")
        elif gap < 0:
            yield Problem(seq, f"{self._noun} {seq} stands where {self._noun} {self.seq + 1} should")
        # After a record whose hash alone was changed, the next one still follows on the right hash: it is not to blame.
        fitting = [self._hash_of(record, head) for head in dict.fromkeys((self.head, self._computed))]
        if hash not in fitting and gap <= 0:
            yield Problem(
                seq, f"{self._noun} {seq} was changed, or put here: what it says and what stands before it do not make its hash"
            )
        self._computed = fitting[0]
        self.seq, self.head = seq, hash


class LogCheck:
    """Follows events, and what they add up to."""

    def __init__(self) -> None:
        self._chain = ChainCheck(event_hash, noun="event")
        self._bodies: dict[tuple[str, str], tuple[bytes, int, int]] = {}  # body, seq, made_seq
        self._in_log: list[Problem] = []
        self._in_tables: list[Problem] = []
        self.events = 0

    @property
    def problems(self) -> list[Problem]:
        """So far, at most MAX_PROBLEMS of them: those of the log by event, then those of the tables."""

        def by_event(problem: Problem) -> int:
            return problem.seq

        return [*sorted(self._in_log, key=by_event), *sorted(self._in_tables, key=by_event)][:MAX_PROBLEMS]

    @property
    def seq(self) -> int:
        """Of the newest event."""
        return self._chain.seq

    @property
    def head(self) -> bytes:
        """The hash of the newest event."""
        return self._chain.head

    def follow(self, event: Event) -> None:
        """The next event."""
        self.events += 1
        for problem in self._chain.follow(event, event.seq, event.hash):
            self.note(problem.seq, problem.text)
        named = (event.kind, event.id)
        former = self._bodies.get(named)
        if not self._same(event.kind, event.before, None if former is None else former[0]):
            self.note(
                event.seq,
                f"event {event.seq} changes {event.kind} {event.id!r} from something else than the events before it made of it",
            )
        if event.after is None:
            self._bodies.pop(named, None)
            return
        try:
            value = decode_object(event.kind, event.after)
            if value.id != event.id:
                self.note(event.seq, f"event {event.seq} says {event.id!r}, but what it makes is {value.id!r}")
        except (ValueError, KeyError) as error:
            self.note(event.seq, f"event {event.seq} cannot be read ({error}): it was changed, or a newer xksfast wrote it")
        self._bodies[named] = (event.after, event.seq, event.seq if former is None else former[2])

    def _same(self, kind: str, one: bytes | None, other: bytes | None) -> bool:
        """The same object, though another version of the program may have written it in other bytes."""
        if one == other:
            return True
        if one is None or other is None:
            return False
        try:
            return decode_object(kind, one) == decode_object(kind, other)
        except (ValueError, KeyError):
            return False

    def compare(self, objects: Iterable[tuple[str, str, str, int, int]], secrets: set[str]) -> int:
        """After the last event: the table of objects (kind, id, body, seq, made_seq) and the ids of the secrets; how many objects."""
        left = dict(self._bodies)
        count = 0
        for kind, id_, body, seq, made_seq in objects:
            count += 1
            wanted = left.pop((kind, id_), None)
            if wanted is None:
                self._note_table(seq, f"{kind} {id_!r} is in the table of objects, but the events do not make it")
            elif wanted != (body.encode(), seq, made_seq):
                self._note_table(wanted[1], f"{kind} {id_!r} is not in the table of objects as event {wanted[1]} made it")
        for (kind, id_), (_, seq, _) in left.items():
            self._note_table(seq, f"{kind} {id_!r}, made by event {seq}, is missing from the table of objects")
        for (kind, id_), (body_bytes, seq, _) in self._bodies.items():
            if kind not in (Credential.kind, SourceKey.kind):
                continue
            try:
                value = decode_object(kind, body_bytes)
            except ValueError:
                continue  # told above
            if isinstance(value, Credential | SourceKey) and value.secret_id and value.secret_id not in secrets:
                self._note_table(seq, f"the sealed secret of {kind} {id_!r} is missing")
        return count

    def note(self, seq: int, text: str) -> None:
        """A problem of the log; those over the limit are left out."""
        if len(self._in_log) < MAX_PROBLEMS:
            self._in_log.append(Problem(seq, text))

    def _note_table(self, seq: int, text: str) -> None:
        if len(self._in_tables) < MAX_PROBLEMS:
            self._in_tables.append(Problem(seq, text))


def verify(
    database: Database,
    verify_mac: Callable[[bytes, bytes], bool] | None = None,
    *,
    nodes: bool = True,
    progress: Progress | None = None,
) -> Report:
    """Everything, as it is at one moment.

    verify_mac(data, mac): whether the MAC was made by write_checkpoint's `mac`; None: MACs are not looked at.
    nodes: whether what nodes say that they have served is held against the log.
    """
    check = LogCheck()
    with database.reading() as connection:
        checkpoints = rows.all_of(connection, schema.checkpoints, Checkpoint)
        left = {checkpoint.seq: checkpoint for checkpoint in checkpoints}
        total = rows.head(connection)[0]
        good = 0
        for event in rows.stream_events(connection):
            check.follow(event)
            checkpoint = left.pop(event.seq, None)
            if checkpoint is not None:
                good += _agrees(check, checkpoint, event.hash, verify_mac)
            if progress is not None and check.events % 5_000 == 0:
                progress(check.events, total)
        last = check.seq
        for checkpoint in left.values():
            _agrees(check, checkpoint, checkpoint.hash, verify_mac)
            where = "is missing" if checkpoint.seq <= last else f"was removed, with all after event {last}"
            check.note(min(checkpoint.seq, last + 1), f"a checkpoint saw event {checkpoint.seq}, which {where}")
        for node in rows.all_of(connection, schema.nodes, NodeRow) if nodes else ():
            served = max(node.acked_seq, node.restricted_seq)
            if served > last:
                check.note(last + 1, f"node {node.name!r} has served event {served}, but the log ends at event {last}")
        objects = (
            (row.kind, row.id, row.body, row.seq, row.made_seq) for row in rows.stream(connection, schema.objects, "kind", "id")
        )
        secrets = {row.id for row in rows.stream(connection, schema.secrets, "id")}
        count = check.compare(objects, secrets)
    return Report(check.events, count, good, check.seq, check.head, tuple(check.problems))


def _agrees(check: LogCheck, checkpoint: Checkpoint, hash: bytes, verify_mac: Callable[[bytes, bytes], bool] | None) -> bool:
    if verify_mac is not None and not verify_mac(
        checkpoint_bytes(checkpoint.seq, checkpoint.hash, checkpoint.at_ms), checkpoint.mac
    ):
        check.note(checkpoint.seq, f"the checkpoint at event {checkpoint.seq} is not genuine: its MAC is wrong")
        return False
    if checkpoint.hash != hash:
        check.note(
            checkpoint.seq, f"event {checkpoint.seq} is not the one its checkpoint saw: it, or one before it, was rewritten"
        )
        return False
    return True


def checkpoint_bytes(seq: int, hash: bytes, at_ms: int) -> bytes:
    """What a checkpoint's MAC is made over: "xksfast checkpoint 1" | 0x00 | u64be seq | u64be at_ms | hash."""
    return b"xksfast checkpoint 1\x00" + seq.to_bytes(8, "big") + at_ms.to_bytes(8, "big") + hash


def write_checkpoint(database: Database, mac: Callable[[bytes], bytes], now_ms: int) -> Checkpoint | None:
    """Note where the log ends now. None when it is empty."""
    seq, head = database.head()
    if seq == 0:
        return None
    checkpoint = Checkpoint(seq, head, mac(checkpoint_bytes(seq, head, now_ms)), now_ms)
    database.checkpoint(checkpoint)
    return checkpoint


def renewed(checkpoints: Iterable[Checkpoint], mac: Callable[[bytes], bytes]) -> list[Checkpoint]:
    """The same checkpoints under another key: for a rotation of the data key."""
    return [Checkpoint(c.seq, c.hash, mac(checkpoint_bytes(c.seq, c.hash, c.at_ms)), c.at_ms) for c in checkpoints]
