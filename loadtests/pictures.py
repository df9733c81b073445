# SPDX-License-Identifier: Apache-2.0
"""The pictures of a report: SVG by matplotlib, text kept as text, to stand inside an HTML page."""

from __future__ import annotations

import io
from collections.abc import Sequence

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from loadtests.series import KMS_LIMIT_MS, Bucket, Series

matplotlib.rcParams["svg.fonttype"] = "none"
WIDTH_IN, HEIGHT_IN = 9.0, 2.6
LEAST_MS = 0.01  # nothing below on a logarithmic axis
Segments = Sequence[tuple[float, float, float]]  # (seconds, from rps, to rps)


def draw(series: Series, segments: Segments) -> list[tuple[str, str]]:
    """(SVG, caption) of each picture that there is data for."""
    times = sorted(series.seconds)
    buckets = [series.seconds[second] for second in times]
    pictures = [
        (_throughput(series, times, buckets, segments), "Requests per second, by the second in which they were due."),
        (_latency(series, times, buckets), f"Scheduled latency, per second. Dotted: KMS gives up after {KMS_LIMIT_MS} ms."),
        (_failures(series, times, buckets), "Failed requests per second, by name."),
    ]
    shares = series.shares()
    if shares:
        pictures.append((_shares(series, shares), "Share of the work done by each partition."))
    memory = [(sample["at_s"], sample["memory_mib"]) for sample in series.samples if "memory_mib" in sample]
    if memory:
        pictures.append((_memory(series, memory), "Resident memory of the proxy's first worker."))
    return pictures


def _throughput(series: Series, times: list[int], buckets: list[Bucket], segments: Segments) -> str:
    figure, axes = _canvas("requests/s")
    moments, rates, at = [], [], 0.0
    for seconds, first, last in segments:
        moments += [at, at + seconds]
        rates += [first, last]
        at += seconds
    axes.plot(moments, rates, color="#999", linestyle="--", linewidth=1, label="scheduled")
    # a second's requests stand in its middle; the last second may be a part of one only
    good = [bucket.requests - bucket.failures.total() for bucket in buckets]
    axes.plot([second + 0.5 for second in times], good, label="answered rightly, in time")
    axes.set_ylim(bottom=0)
    return _svg(figure, axes, series)


def _latency(series: Series, times: list[int], buckets: list[Bucket]) -> str:
    figure, axes = _canvas("ms")
    quantiles = [bucket.quantiles() for bucket in buckets]
    for label, name in (("p50", "p50_ms"), ("p99", "p99_ms"), ("p99.9", "p999_ms")):
        values = [max(LEAST_MS, of["scheduled"][name]) for of in quantiles]
        axes.plot([second + 0.5 for second in times], values, label=label)
    service = [max(LEAST_MS, of["service"]["p99_ms"]) for of in quantiles]
    axes.plot([second + 0.5 for second in times], service, label="p99 of service time", color="#aaa", linewidth=1)
    axes.axhline(KMS_LIMIT_MS, color="#b3261e", linestyle=":", linewidth=1)
    axes.set_yscale("log")
    return _svg(figure, axes, series)


def _failures(series: Series, times: list[int], buckets: list[Bucket]) -> str:
    figure, axes = _canvas("failed/s")
    names = sorted({name for bucket in buckets for name in bucket.failures})
    for name in names:
        axes.plot([second + 0.5 for second in times], [bucket.failures[name] for bucket in buckets], label=name)
    if not names:
        axes.plot([second + 0.5 for second in times], [0] * len(times), label="none")
    axes.set_ylim(bottom=0)
    return _svg(figure, axes, series)


def _shares(series: Series, shares: dict[str, list[tuple[float, float]]]) -> str:
    figure, axes = _canvas("share")
    for name, points in sorted(shares.items()):
        axes.plot([at for at, _ in points], [share for _, share in points], label=name)
    axes.set_ylim(0, 1)
    return _svg(figure, axes, series)


def _memory(series: Series, memory: list[tuple[float, float]]) -> str:
    figure, axes = _canvas("MiB")
    axes.plot([at for at, _ in memory], [mib for _, mib in memory], label="resident")
    axes.set_ylim(bottom=0)
    return _svg(figure, axes, series)


def _canvas(unit: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH_IN, HEIGHT_IN), layout="constrained")
    axes = figure.add_subplot()
    axes.set_ylabel(unit)
    axes.set_xlabel("s")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _svg(figure: Figure, axes: Axes, series: Series) -> str:
    for mark in series.marks:
        axes.axvline(mark.at_s, color="#b3261e", linewidth=1)
        axes.annotate(
            mark.text,
            (mark.at_s, 1),
            xycoords=("data", "axes fraction"),
            fontsize=8,
            color="#b3261e",
            rotation=90,
            ha="right",
            va="top",
        )
    axes.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    drawn = text.getvalue()
    return drawn[drawn.index("<svg") :]
