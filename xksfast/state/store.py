# SPDX-License-Identifier: Apache-2.0
"""The state of a node: what is in the database, in memory, and the only way to change both.

A use case is a pure function from the State to a Plan. It is run under the database's write lock, on a State that has caught up with
every other node, so it decides on what is true; its events are committed, and only then applied here.
A newcomer's trap: a State grows under your hands. Other threads read it inside `reading()`, and take along values, not views.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from xksfast.state.database import Database
from xksfast.state.errors import OutcomeUnknown, StateCorrupt, StateError, StateTooNew, StateUnavailable, StateWentBack
from xksfast.state.events import Change, Event, Origin, event_hash
from xksfast.state.projection import State
from xksfast.state.records import Idempotency, Loaded, SealedSecret
from xksfast.state.writer import Writer


@dataclass(frozen=True, slots=True)
class Plan:
    """What a use case wants done, all of it or nothing. answer: what its caller is told when it is done.

    forgotten_actor: whose kept answers nobody may get again.

    transaction: the id that its events are to carry. When there are events of that id, another node did it, and nothing is done.
    """

    changes: Sequence[Change] = ()
    transaction: str = ""
    new_secrets: Sequence[SealedSecret] = ()
    removed_secrets: Sequence[str] = ()
    forgotten_actor: str = ""
    answer: Any = None


@dataclass(frozen=True, slots=True)
class Once:
    """A request that is carried out once. key: by which it is known. forget_before_ms: answers from before are none any more.

    answer(state as the change leaves it, the plan's answer): what a repetition is told. It is kept in the transaction of the change,
    so there is never the one without the other. Called under the write lock, so it is quick and only looks.
    """

    key: str
    answer: Callable[[State, Any], Idempotency]
    forget_before_ms: int = 0


@dataclass(frozen=True, slots=True)
class Committed:
    """What was done. repeated: the request was carried out before, and this is what was answered then; there are no events."""

    events: list[Event]
    answer: Any = None
    repeated: Idempotency | None = None


class FollowsSecrets(Protocol):
    """See SecretRows."""

    def fetch(self, events: list[Event], known: Sequence[SealedSecret]) -> None:
        """StateError: it cannot now."""

    def follow(self, events: list[Event]) -> None:
        """They are applied."""


class StateStore:
    """node: the name of this node, for the log. on_events: told of all that is newly applied, in order, by whichever thread applied it.

    secrets: follow the log, too. What they lack is fetched before events are applied: when that fails the events are not applied, and
    come again, so that on_events never misses any. now_ms: the clock.
    """

    def __init__(
        self,
        database: Database,
        node: str,
        *,
        on_events: Callable[[list[Event]], None] | None = None,
        secrets: FollowsSecrets | None = None,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        self._database = database
        self._node = node
        self._on_events = on_events
        self._secrets = secrets
        self._now_ms = now_ms
        self._state = State()
        self._polled: object | None = None  # the database's version when it was last polled
        self._in_turn = threading.RLock()  # who uses the database
        self._state_lock = threading.Lock()  # who looks at or changes the State

    def open(self) -> None:
        """Load everything, in the place of what was known before."""
        with self._in_turn:
            self._polled = None
            loaded = self._database.load()
            state = State()
            state.load(loaded.objects, loaded.seq, loaded.head)
            with self._state_lock:
                self._state = state

    def adopt(self, loaded: Loaded) -> None:
        """Serve what a local copy says, while the database is away; what the database says then must go on from it."""
        state = State()
        state.load(loaded.objects, loaded.seq, loaded.head)
        with self._state_lock:
            self._state = state

    def connect(self, database: Database) -> None:
        """The database is there now."""
        with self._in_turn:
            self._database, self._polled = database, None

    @contextmanager
    def reading(self) -> Iterator[State]:
        """The State, which does not change inside the block. Be short: changes wait."""
        with self._state_lock:
            yield self._state

    @property
    def seq(self) -> int:
        """The newest event that is applied."""
        return self._state.seq

    # --- changing

    def transact(self, origin: Origin, plan: Callable[[State], Plan], *, once: Once | None = None) -> Committed:
        """Run `plan` on the newest State and do what it says. What it raises to refuse is passed on, and nothing is changed.

        once: when a request with its key was carried out before, it is not carried out again; see Committed.repeated.
        StateWentBack; StateUnavailable and its like: nothing was changed; OutcomeUnknown: it could not be found out.
        """
        with self._in_turn:
            planned, events, transaction = Plan(), list[Event](), ""
            try:
                with self._database.write(self._node) as writer:
                    self._catch_up_by(writer)
                    if once is not None:
                        writer.forget_idempotency(once.forget_before_ms)
                        found = writer.idempotency(once.key)
                        if found is not None:
                            return Committed([], repeated=found)
                    planned = plan(self._state)
                    self._check(planned.changes)
                    events, transaction = self._write(writer, origin, planned), writer.transaction
                    if once is not None:
                        writer.put_idempotency(once.answer(self._state.after(events), planned.answer))
            except OutcomeUnknown as unknown:
                self._find_out(unknown, transaction if events else "")
            self._apply(events, planned.new_secrets)
            return Committed(events, planned.answer)

    def _write(self, writer: Writer, origin: Origin, plan: Plan) -> list[Event]:
        if plan.transaction:
            if writer.has_transaction(plan.transaction):
                return []
            writer.transaction = plan.transaction
        events = writer.append(plan.changes, origin, self._now_ms())
        writer.put_secrets(plan.new_secrets)
        for secret_id in plan.removed_secrets:
            writer.remove_secret(secret_id)
        if plan.forgotten_actor:
            writer.forget_idempotency_of(plan.forgotten_actor)
        return events

    def _check(self, changes: Sequence[Change]) -> None:
        """Each change starts from what there is: a use case that does not is wrong, and must not write the log. ValueError."""
        now: dict[tuple[str, str], object] = {}
        for change in changes:
            named = (change.kind, change.id)
            before = now.get(named, self._state.find(*named))
            before = None if before is _GONE else before
            if change.before != before:
                raise ValueError(f"{change.action} on {change.kind} {change.id!r} starts from something else than there is")
            if change.before is None and change.after is None:
                raise ValueError(f"{change.action} on {change.kind} {change.id!r}: nothing becomes nothing")
            if change.after is not None and (change.after.kind, change.after.id) != named:
                raise ValueError(
                    f"{change.action} on {change.kind} {change.id!r} makes it a {change.after.kind} {change.after.id!r}"
                )
            now[named] = _GONE if change.after is None else change.after

    def _find_out(self, unknown: OutcomeUnknown, transaction: str) -> None:
        """Returns when the transaction is there; StateUnavailable when it is not; the OutcomeUnknown when that cannot be seen.

        Under the write lock the answer is final: the lost connection's transaction held that lock until it ended.
        """
        if not transaction:  # nothing in it can be found again
            raise unknown
        try:
            with self._database.write(self._node) as writer:
                done = writer.has_transaction(transaction)
        except StateError:
            raise unknown from None
        if not done:
            raise StateUnavailable(
                f"{self._database.description}: the connection was lost while the change was committed, and it was not made. Try again"
            ) from None

    # --- following

    def catch_up(self) -> list[Event]:
        """Apply what other nodes have committed since; what was applied. StateWentBack when the database is not the one we knew."""
        with self._in_turn:
            applied: list[Event] = []
            while True:
                own, head, events = self._database.news(self._state.seq)
                self._check_not_back(own, head)
                self._apply(events)
                applied += events
                if not events or events[-1].seq >= head[0]:
                    return applied

    def poll(self) -> list[Event]:
        """catch_up, at little cost where nobody has committed anything since the last time."""
        with self._in_turn:
            version = self._database.version()
            if version is not None and version == self._polled:
                return []
            applied = self.catch_up()
            self._polled = version
            return applied

    def _catch_up_by(self, writer: Writer) -> None:
        """The same under the write lock; what is applied is committed, whatever becomes of this transaction."""
        self._check_not_back(writer.hash_at(self._state.seq), (writer.seq, writer.head))
        while self._state.seq < writer.seq:
            self._apply(writer.events_since(self._state.seq))

    def _check_not_back(self, own: bytes | None, head: tuple[int, bytes]) -> None:
        if own != self._state.head:
            raise StateWentBack(self._database.description, (self._state.seq, self._state.head), head)

    def _apply(self, events: list[Event], secrets: Sequence[SealedSecret] = ()) -> None:
        if not events:
            return
        head = self._state.head
        for event in events:
            head = event_hash(event, head)
            if head != event.hash:
                raise StateCorrupt(
                    f"{self._database.description}: event {event.seq} was changed, or does not follow on the one before: it is not "
                    "applied. Run `xksfast audit verify`"
                )
        if self._secrets is not None:
            self._secrets.fetch(events, secrets)
        try:
            with self._state_lock:
                self._state.apply(events)
        except ValueError as error:
            raise StateTooNew(
                f"{self._database.description}: events {events[0].seq} to {events[-1].seq} cannot be read ({error}): a newer xksfast "
                "wrote them. Update this node; until then it serves what it knows"
            ) from None
        if self._secrets is not None:
            self._secrets.follow(events)
        if self._on_events is not None:
            self._on_events(events)


_GONE = object()
