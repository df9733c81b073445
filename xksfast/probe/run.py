# SPDX-License-Identifier: Apache-2.0
"""Runs the cases, each after what it presupposes, and judges: ok, wrong, too slow, cannot tell, not tried.

A case that was right but slow is tried once more: one hiccup of the network between is no fault of the proxy; two are news.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from xksfast.errors import OperatorError
from xksfast.probe import cases as _all_cases  # noqa: F401  registers them
from xksfast.probe.asking import Asking, Call
from xksfast.probe.case import CASES, Broken, CannotTell, Case, Verdict
from xksfast.probe.client import CallFailed
from xksfast.probe.target import KMS_BUDGET_MS, Target
from xksfast.toml_reader import nearest

RIGHT, WRONG, TOO_SLOW = 0, 1, 4


@dataclass(frozen=True)
class Result:
    """What came out of one case. seen: in words, why it is not ok. calls: all that it made, with their times."""

    case: Case
    verdict: Verdict
    seen: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    figures: tuple[tuple[str, float], ...] = ()
    calls: tuple[Call, ...] = ()
    seconds: float = 0.0

    @property
    def slowest_ms(self) -> float:
        """Of its calls, the exchange alone; 0 without calls."""
        return max((call.ms for call in self.calls), default=0.0)


@dataclass(frozen=True)
class Report:
    """All results, in the order of the cases."""

    url: str
    results: tuple[Result, ...]
    seconds: float

    def count(self, verdict: Verdict) -> int:
        """How many cases came out so."""
        return sum(result.verdict is verdict for result in self.results)

    @property
    def exit_code(self) -> int:
        """0 all right, 1 something is wrong, 4 right but too slow."""
        return WRONG if self.count(Verdict.WRONG) else TOO_SLOW if self.count(Verdict.TOO_SLOW) else RIGHT


def chosen(only: Sequence[str]) -> list[str]:
    """Names of the cases that `only` names: a case, an area such as "decrypt", or a pattern such as "*.altered-*"; none: all."""
    if not only:
        return list(CASES)
    areas = {case.area for case in CASES.values()}
    found: set[str] = set()
    for pattern in only:
        names = {name for name, case in CASES.items() if pattern == case.area or fnmatchcase(name, pattern)}
        if not names:
            raise OperatorError(f"--only {pattern}: there is no such case{nearest(pattern, {*CASES, *areas})}")
        found |= names
    return [name for name in CASES if name in found]


def run(target: Target, only: Sequence[str] = (), step: Callable[[str], None] = lambda name: None) -> Report:
    """Run all cases, or those that `only` names with what they presuppose. step: called with each case's name before it runs."""
    begin = time.monotonic()
    names = chosen(only)
    asking = Asking(target)
    results: dict[str, Result] = {}
    try:
        for name in names:
            _run(asking, CASES[name], results, step)
    finally:
        asking.close()
    ordered = tuple(results[name] for name in CASES if name in results)
    return Report(target.address.url, ordered, time.monotonic() - begin)


def _run(asking: Asking, case: Case, results: dict[str, Result], step: Callable[[str], None]) -> Result:
    """The case's result, from before when it has run."""
    if case.name in results:
        return results[case.name]
    lacking = [need.option for need in case.needs if not _has(asking.target, need.name)]
    if lacking:
        result = Result(case, Verdict.NOT_TRIED, (f"needs {' and '.join(lacking)}",))
    elif case.after and _run(asking, CASES[case.after], results, step).verdict in (Verdict.WRONG, Verdict.NOT_TRIED):
        result = Result(case, Verdict.NOT_TRIED, (f"presupposes {case.after}, which did not come out right",))
    else:
        step(case.name)
        result = _judge(asking, case)
        if result.verdict is Verdict.TOO_SLOW:
            result = _judge(asking, case)
    results[case.name] = result
    return result


def _judge(asking: Asking, case: Case) -> Result:
    asking.begin(case)
    first = len(asking.history)
    begin = time.monotonic()
    verdict = Verdict.OK
    seen: list[str] = []
    try:
        case.check(asking)
    except CannotTell as unknown:
        verdict, seen = Verdict.CANNOT_TELL, [str(unknown)]
    except (Broken, CallFailed) as broken:
        asking.wrong(str(broken))
    calls = tuple(asking.history[first:])
    if asking.problems:
        verdict, seen = Verdict.WRONG, asking.problems
    elif verdict is Verdict.OK:
        seen = [*asking.slow, *(_slow_calls(calls) if case.timed else ())]
        verdict = Verdict.TOO_SLOW if seen else Verdict.OK
    return Result(
        case,
        verdict,
        tuple(dict.fromkeys(seen)),
        tuple(asking.notes),
        tuple(asking.figures.items()),
        calls,
        time.monotonic() - begin,
    )


def _slow_calls(calls: Sequence[Call]) -> list[str]:
    slow = [call for call in calls if call.ms > KMS_BUDGET_MS]
    if not slow:
        return []
    worst = max(slow, key=lambda call: call.ms)
    return [f"{len(slow)} of {len(calls)} calls took over {KMS_BUDGET_MS:.0f} ms: {worst.label} up to {worst.ms:.0f} ms"]


def _has(target: Target, need: str) -> bool:
    match need:
        case "tls":
            return target.address.tls
        case "key":
            return bool(target.keys.default)
        case "client_certificate" | "second" | "foreign" | "quota":
            return bool(getattr(target, need))
        case _:
            return bool(getattr(target.keys, need))
