# SPDX-License-Identifier: Apache-2.0
"""The verdict: was the service as good as promised? Latencies are those from the scheduled start."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass

from loadtests.series import KMS_LIMIT_MS, WRONG, Bucket


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
