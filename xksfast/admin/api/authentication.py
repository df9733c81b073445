# SPDX-License-Identifier: Apache-2.0
"""Who asks: a bearer token -> an Actor; and how often an address may be wrong.

A token is 256 random bits, so it is looked up by its plain SHA-256, and a table look-up tells nothing about another token. A newcomer's
trap: the limit is for wrong tokens only. A right one is served however many wrong ones came from its address, or else anybody behind
the same address could keep an operator from the kill switch.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import AbstractContextManager

from xksfast.admin.actors import Actor, operator_actor, token_hash
from xksfast.admin.api.problems import TooMany
from xksfast.admin.refusals import Refused
from xksfast.state.projection import State

FAILURES_AT_ONCE = 10
FAILURE_EVERY_S = 6.0
MAX_ADDRESSES = 10_000
MAX_TOKEN_CHARS = 256


class Failures:
    """A token bucket for each address: FAILURES_AT_ONCE wrong tokens at once, then one every FAILURE_EVERY_S seconds.

    The addresses that failed last are remembered, MAX_ADDRESSES of them.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # address -> failures left, at this time

    def count(self, address: str) -> float:
        """One more. Returns the seconds until the next would be answered normally when this one is too many, else 0."""
        now = self._clock()
        left, at = self._buckets.pop(address, (float(FAILURES_AT_ONCE), now))
        left = min(float(FAILURES_AT_ONCE), left + (now - at) / FAILURE_EVERY_S)
        allowed = left >= 1.0
        self._buckets[address] = (left - 1.0 if allowed else left, now)
        if len(self._buckets) > MAX_ADDRESSES:
            self._buckets.popitem(last=False)
        return 0.0 if allowed else (1.0 - left) * FAILURE_EVERY_S

    def forgive(self) -> None:
        """Forget all of them."""
        self._buckets.clear()


class Authenticator:
    """Of one listener. reading: the state, as for the service."""

    def __init__(self, reading: Callable[[], AbstractContextManager[State]], failures: Failures) -> None:
        self._reading = reading
        self._failures = failures

    def actor(self, authorization: str, address: str) -> Actor:
        """authorization: the header's value, or "". Refused unless it shows the token of an operator that has not expired."""
        scheme, _, token = authorization.partition(" ")
        token = token.strip()
        if scheme.lower() != "bearer" or not token or len(token) > MAX_TOKEN_CHARS:
            raise self._refusal(
                address,
                "token-missing",
                "There is no bearer token in this request",
                "Send Authorization: Bearer xkt_…; `xksfast` commands take it from --token-file or XKSFAST_ADMIN_TOKEN",
            )
        with self._reading() as state:
            operator = state.operators_by_token.get(token_hash(token))
        if operator is None:
            raise self._refusal(
                address,
                "token-unknown",
                "No operator has this token",
                "Check that it is whole and of this installation, or have an admin create an operator",
            )
        if operator.expires_at and operator.expires_at <= time.time():
            raise self._refusal(
                address,
                "token-expired",
                f"The token of {operator.name} has expired",
                "Have an admin create a new operator: `xksfast operator create NAME --role ROLE`",
            )
        return operator_actor(operator, address)

    def _refusal(self, address: str, rule: str, what: str, next: str) -> Refused:
        wait_s = self._failures.count(address)
        if wait_s:
            return TooMany(
                "too-many-failures",
                f"Too many requests without a right token came from {address}",
                retry_after_s=max(1, round(wait_s + 0.5)),
                next="Wait, then send a right one",
            )
        return Refused("unauthenticated", rule, what, next=next)
