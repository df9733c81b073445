# SPDX-License-Identifier: Apache-2.0
"""The report: one HTML file with its pictures (pictures.py) inside, and all series as JSON."""

from __future__ import annotations

import html
import json
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from loadtests.series import QUANTILES, UNANSWERED, Bucket, Series
from loadtests.slo import Result, Slo, Verdict, table

NO_PICTURES_HELP = "report.html without its pictures, which take seconds to draw"
STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1a1a1a}
table{border-collapse:collapse;margin:1rem 0}td,th{padding:.2rem .9rem;border-bottom:1px solid #ddd;text-align:right}
td:first-child,th:first-child{text-align:left}.met{color:#18722f}.missed{color:#b3261e;font-weight:600}svg{width:100%;height:auto}
h1 span{font-size:1rem}figcaption{color:#555}figure{margin:1.5rem 0}"""


@dataclass(frozen=True)
class Conditions:
    """How the run was made. seconds: how long it really lasted; segments: (seconds, from rps, to rps)."""

    profile: str
    rps: float
    seconds: float
    arrivals: str
    connections: int
    mix: str
    target: str
    generator: str
    segments: list[tuple[float, float, float]]


def conclude(
    directory: Path, series: Series, slo: Slo, conditions: Conditions, *, lost: str = "", pictures: bool = True
) -> int:
    """Judge, print, write the report; the exit code. lost: which generators told nothing, "" for none: then the run has failed."""
    verdicts = slo.judge(series.total)
    result, reason = (Result.MISSED, lost) if lost else slo.result(verdicts, series)
    files = write(directory, series, verdicts, conditions, result, reason, pictures)
    answered = series.total.requests - series.total.failures[UNANSWERED]
    print(table(verdicts, series.total))
    print(f"{'sent again':26} {resent(series)}")
    print(f"{'CPU of the generator':26} {series.generator_cpu_s / max(1, answered) * 1e6:.0f} us a request")
    print(f"{'own lag of the generator':26} p99 {series.lag.quantile_ms(0.99):.2f} ms, wanted {series.busiest():.0%} of a CPU")
    said = result.text if result is Result.MET else result.text.upper()
    print(f"{said}{': ' if reason else ''}{reason}; report: {files[0]}, all series: {files[1]}", flush=True)
    return int(result)


def write(
    directory: Path,
    series: Series,
    verdicts: list[Verdict],
    conditions: Conditions,
    result: Result,
    reason: str,
    pictures: bool,
) -> tuple[Path, Path]:
    """Write report.html and series.json; their paths."""
    directory.mkdir(parents=True, exist_ok=True)
    page, data = directory / "report.html", directory / "series.json"
    facts = {**document(series, verdicts, conditions), "result": result.text, "reason": reason}
    data.write_text(json.dumps(facts, indent=1) + "\n")
    drawn = _drawn(series, conditions) if pictures else []
    page.write_text(_page(series, verdicts, conditions, result, reason, drawn))
    return page, data


def document(series: Series, verdicts: list[Verdict], conditions: Conditions) -> dict[str, Any]:
    """Everything, for other programs."""
    return {
        "conditions": asdict(conditions),
        "met": all(verdict.met for verdict in verdicts),
        "verdicts": [asdict(verdict) for verdict in verdicts],
        "total": summary(series.total),
        "operations": {name: summary(bucket) for name, bucket in sorted(series.operations.items())},
        "seconds": [{"second": second, **summary(bucket)} for second, bucket in sorted(series.seconds.items())],
        "resent": series.resent,
        "generator_cpu_s": series.generator_cpu_s,
        "generator_lag": {name: series.lag.quantile_ms(share) for name, share in QUANTILES.items()},
        "generator_busy": series.busiest(),
        "marks": [asdict(mark) for mark in series.marks],
        "shares": series.shares(),
        "samples": series.samples,
    }


def resent(series: Series) -> str:
    """How many requests had to be sent twice, in words."""
    return f"{series.resent} requests, whose connection the server had closed without an answer"


def summary(bucket: Bucket) -> dict[str, Any]:
    """Counts and quantiles of a bucket."""
    return {"requests": bucket.requests, "failures": dict(bucket.failures), **bucket.quantiles()}


def _drawn(series: Series, conditions: Conditions) -> list[str]:
    from loadtests.pictures import draw  # matplotlib takes seconds to import: not in a generator's way

    return [_figure(svg, caption) for svg, caption in draw(series, conditions.segments)]


def _page(
    series: Series, verdicts: list[Verdict], conditions: Conditions, result: Result, reason: str, drawn: list[str]
) -> str:
    title = html.escape(conditions.profile)
    facts = (
        f"{conditions.rps:g} requests/s at most, {conditions.seconds:.0f} s, {conditions.arrivals} arrivals, "
        f"{conditions.connections} connections, {conditions.generator}, {conditions.target}, {conditions.mix}"
    )
    parts = [
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>xksfast load test: {title}</title><style>{STYLE}</style>',
        f'<h1>{title} <span class="{_class(result is Result.MET)}">{result.text}</span></h1>',
        *([f"<p>{html.escape(reason)}</p>"] if reason else []),
        f"<p>{html.escape(facts)}. {datetime.now(UTC):%Y-%m-%d %H:%M} UTC.</p>",
        _verdict_table(verdicts),
        _bucket_table(series),
        "<p>Scheduled latency runs from the moment a request was due; service time from the moment it was sent. The difference is the "
        "generator's lateness: no connection was free, or the generator itself was busy.</p>",
        *drawn,
        _failure_table(series.total),
        f"<p>Sent again: {resent(series)}.</p>",
        "</html>",
    ]
    return "\n".join(parts) + "\n"


def _class(met: bool) -> str:
    return "met" if met else "missed"


def _verdict_table(verdicts: list[Verdict]) -> str:
    rows = [
        f'<tr class="{_class(verdict.met)}"><td>{verdict.name}<td>{html.escape(verdict.promised)}<td>{verdict.measured}'
        f"<td>{'met' if verdict.met else 'missed'}"
        for verdict in verdicts
    ]
    return f"<table><tr><th>objective<th>promised<th>measured<th>{''.join(rows)}</table>"


def _bucket_table(series: Series) -> str:
    rows = []
    for name, bucket in [*sorted(series.operations.items()), ("all", series.total)]:
        facts = summary(bucket)
        cells = [f"{facts[kind][quantile]:.2f}" for kind in ("scheduled", "service", "lateness") for quantile in QUANTILES]
        rows.append(f"<tr><td>{name}<td>{bucket.requests}<td>{bucket.failures.total()}<td>{'<td>'.join(cells)}")
    head = "".join(f'<th colspan="3">{kind}, ms' for kind in ("scheduled latency", "service time", "lateness"))
    quantiles = "<th>p50<th>p99<th>p99.9" * 3
    return f"<table><tr><th><th><th>{head}<tr><th>operation<th>requests<th>failed{quantiles}{''.join(rows)}</table>"


def _failure_table(total: Bucket) -> str:
    if not total.failures:
        return "<p>No request failed.</p>"
    rows = "".join(f"<tr><td>{html.escape(name)}<td>{count}" for name, count in total.failures.most_common())
    return f"<table><tr><th>failure<th>requests{rows}</table>"


def _figure(svg: str, caption: str) -> str:
    return f"<figure>{svg}<figcaption>{html.escape(caption)}</figcaption></figure>"
