# SPDX-License-Identifier: Apache-2.0
"""The verdict: was the service as good as promised? Latencies are those from the scheduled start.

A promise that was missed while the generator itself came too late says nothing about the server: that is a result of its own.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum

from loadtests.series import KMS_LIMIT_MS, TOO_LATE, UNANSWERED, WRONG, Bucket, Series

SATURATED = 0.9  # of a CPU: a generator that wants more has no time of its own left, and requests queue in it
OWN_SHARE = 0.5  # of a limit: a generator whose own lag uses up more of it cannot judge it


class Result(IntEnum):
    """What a run says; the value is the exit code."""

    MET = 0
    MISSED = 1
    GENERATOR_LATE = 3

    @property
    def text(self) -> str:
        return {0: "objectives met", 1: "objectives missed", 3: "generator late: result not valid"}[self.value]


@dataclass(frozen=True)
class Slo:
    """What is promised. availability: least share of requests with a right answer within KMS's 250 ms; the rest at most, in ms."""

    availability: float = 0.999
    p50_ms: float = 25
    p99_ms: float = 100
    p999_ms: float = KMS_LIMIT_MS

    def judge(self, total: Bucket) -> list[Verdict]:
        """One verdict per promise. A wrong answer is never within the promise; a run without requests meets none."""
        failed = total.failures.total()
        wrong = sum(count for name, count in total.failures.items() if name.startswith(WRONG))
        available = (total.requests - failed) / total.requests if total.requests else 0.0
        latency = total.histograms["scheduled"]
        verdicts = [
            Verdict("availability", f">= {self.availability:.4%}", f"{available:.4%}", available >= self.availability),
            Verdict("wrong answers", "0", str(wrong), wrong == 0),
        ]
        for name, share, limit in (("p50", 0.5, self.p50_ms), ("p99", 0.99, self.p99_ms), ("p99.9", 0.999, self.p999_ms)):
            value = latency.quantile_ms(share)
            verdicts.append(Verdict(name, f"<= {limit:g} ms", f"{value:.2f} ms", latency.total > 0 and value <= limit))
        return verdicts

    def result(self, verdicts: list[Verdict], series: Series) -> tuple[Result, str]:
        """What the verdicts say of the server, and why they say nothing if they do not ("" else).

        Met promises are met, however late the generator: its lateness is in every latency. A wrong answer is never its fault.
        """
        missed = {verdict.name for verdict in verdicts if not verdict.met}
        if not missed:
            return Result.MET, ""
        if missed & {"wrong answers"} or ("availability" in missed and self._unavailable(series.total)):
            return Result.MISSED, ""
        busy = series.busiest()
        if busy >= SATURATED:
            return (
                Result.GENERATOR_LATE,
                f"it wanted {busy:.0%} of a CPU: use more --processes, --generator open-loop, or a lower --rps",
            )
        limits = {
            "availability": (self.availability, KMS_LIMIT_MS),
            "p50": (0.5, self.p50_ms),
            "p99": (0.99, self.p99_ms),
            "p99.9": (0.999, self.p999_ms),
        }
        for name in missed:
            share, limit_ms = limits[name]
            if series.lag.quantile_ms(share) <= OWN_SHARE * limit_ms:
                return Result.MISSED, ""
        lag_ms = series.lag.quantile_ms(0.99)
        return Result.GENERATOR_LATE, f"p99 of its own lag was {lag_ms:.1f} ms: the machine it runs on is too busy"

    def _unavailable(self, total: Bucket) -> bool:
        """Whether refusals and errors alone miss it: those do not come from lateness."""
        late = total.failures[TOO_LATE] + total.failures[UNANSWERED]
        return not total.requests or 1 - (total.failures.total() - late) / total.requests < self.availability


@dataclass(frozen=True)
class Verdict:
    """One promise beside what was measured."""

    name: str
    promised: str
    measured: str
    met: bool


def add_slo_options(add: Callable[..., object]) -> None:
    """--slo-…; add: callable(name without dashes, help, type=, default=)."""
    slo = Slo()
    add("slo-availability", f"least share of right answers within {KMS_LIMIT_MS} ms", type=float, default=slo.availability)
    for name, limit in (("p50", slo.p50_ms), ("p99", slo.p99_ms), ("p999", slo.p999_ms)):
        add(f"slo-{name}-ms", "at most, from the scheduled start", type=float, default=limit)


def slo_of(options: Namespace) -> Slo:
    """What add_slo_options() read."""
    return Slo(options.slo_availability, options.slo_p50_ms, options.slo_p99_ms, options.slo_p999_ms)


def table(verdicts: list[Verdict], total: Bucket) -> str:
    """The verdicts and the failures by name, for a terminal."""
    lines = [f"{'':6}{'objective':16}{'promised':>14}{'measured':>14}"]
    for verdict in verdicts:
        lines.append(f"{'ok' if verdict.met else 'MISSED':7} {verdict.name:14} {verdict.promised:>14}{verdict.measured:>14}")
    lines.append(f"{total.requests} requests, {total.failures.total()} failed")
    lines += [f"  {count:>8}  {name}" for name, count in total.failures.most_common()]
    for kind, text in (("service", "service time alone"), ("lateness", "lateness of the generator")):
        histogram = total.histograms[kind]
        quantiles = "  ".join(f"p{share * 100:g} {histogram.quantile_ms(share):.2f} ms" for share in (0.5, 0.99, 0.999))
        lines.append(f"{text:26} {quantiles}")
    return "\n".join(lines)
