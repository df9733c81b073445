# SPDX-License-Identifier: Apache-2.0
"""Waiting for AWS: looking at a custom key store again and again until it is what was hoped for, or patience ends.

What must not live here: boto3. A newcomer's trap: KMS is eventually consistent, so for a while after a call the state from before it
may still be shown; such a state is a reason to give up only once things have settled.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from xksfast.admin.aws.errors import AwsRefused, Explanation, connecting_failed
from xksfast.admin.aws.results import CONNECTED, CONNECTING, DISCONNECTED, DISCONNECTING, FAILED, CustomKeyStore

PATIENCE_S = 900.0  # AWS says that connecting takes about five minutes
POLL_S = 5.0
SETTLING_S = 30.0

Look = Callable[[], CustomKeyStore]
Progress = Callable[[CustomKeyStore, float], None]  # what was seen, seconds waited so far


@dataclass(frozen=True)
class Patience:
    """How long to wait. stop: set it from elsewhere to give up at once (AwsRefused with code "Stopped")."""

    patience_s: float = PATIENCE_S
    poll_s: float = POLL_S
    stop: threading.Event | None = None


def until_connected(look: Look, progress: Progress | None, patience: Patience) -> CustomKeyStore:
    """The custom key store once CONNECTED. AwsRefused: it FAILED, nobody is connecting it, or patience ended."""
    wait = _Wait("connect", look, progress, patience)
    for seen in wait.looks():
        if seen.connection_state == CONNECTED:
            return seen
        if seen.connection_state == FAILED:
            raise connecting_failed(f"{seen.name} ({seen.id})", seen.connection_error)
        if seen.connection_state in (DISCONNECTED, DISCONNECTING) and wait.settled:
            raise wait.refusal("NotConnecting", f"It is {seen.connection_state}: nobody is connecting it", "Connect it first")
    raise AssertionError("looks() ends by an exception only")


def until_disconnected(look: Look, progress: Progress | None, patience: Patience) -> CustomKeyStore:
    """The custom key store once DISCONNECTED. AwsRefused: nobody is disconnecting it, or patience ended."""
    wait = _Wait("disconnect", look, progress, patience)
    for seen in wait.looks():
        if seen.connection_state == DISCONNECTED:
            return seen
        if seen.connection_state in (CONNECTED, CONNECTING, FAILED) and wait.settled:
            raise wait.refusal(
                "NotDisconnecting", f"It is {seen.connection_state}: nobody disconnects it", "Disconnect it first"
            )
    raise AssertionError("looks() ends by an exception only")


class _Wait:
    def __init__(self, verb: str, look: Look, progress: Progress | None, patience: Patience) -> None:
        self._verb = verb
        self._look = look
        self._progress = progress
        self._patience = patience
        self._stop = patience.stop or threading.Event()
        self._settling_s = min(SETTLING_S, patience.patience_s / 4)
        self._waited_s = 0.0

    @property
    def settled(self) -> bool:
        """What AWS shows now is no longer from before the call."""
        return self._waited_s >= self._settling_s

    def looks(self) -> Iterator[CustomKeyStore]:
        """What AWS shows, until patience ends by AwsRefused. A look that fails for a passing reason is left out."""
        started, patience_s = time.monotonic(), self._patience.patience_s
        while True:
            try:
                seen = self._look()
            except AwsRefused as refusal:
                if not refusal.transient:
                    raise
                last = f"the last look failed ({refusal.code})"
            else:
                last = f"it is {seen.connection_state}"
                self._waited_s = time.monotonic() - started
                if self._progress is not None:
                    self._progress(seen, self._waited_s)
                yield seen
            self._waited_s = time.monotonic() - started
            if self._waited_s >= patience_s:
                why = f"After {self._waited_s:.0f} s {last}"
                raise self.refusal("TimedOut", why, "AWS goes on by itself: look again later (xksfast store show)")
            if self._stop.wait(min(self._patience.poll_s, patience_s - self._waited_s)):
                why = f"Waiting was given up while {last}"
                raise self.refusal("Stopped", why, "AWS goes on by itself: look again later (xksfast store show)")

    def refusal(self, code: str, why: str, next_: str) -> AwsRefused:
        """The wait ended without what it was for."""
        operation = f"{self._verb.capitalize()}CustomKeyStore"
        return AwsRefused(operation, code, f"{self._verb} the custom key store", Explanation(why, next_))
