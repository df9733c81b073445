# SPDX-License-Identifier: Apache-2.0
"""The pictures of docs/performance.md: SVG by matplotlib, text kept as text, coordinates rounded, so that the files are small.

What lives here: drawing what bench/results/*.json holds. What must not: measuring, and words about the figures.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

matplotlib.rcParams["svg.fonttype"] = "none"
matplotlib.rcParams["svg.hashsalt"] = "xksfast"  # the same picture is the same file
matplotlib.rcParams["font.size"] = 8
WIDTH_IN = 7.5
GRID = {"color": "#ddd", "linewidth": 0.5}


def scenario(document: dict[str, Any], path: Path) -> None:
    """Throughput, latency and shares of a scenario over time; the fault's stretch is grey."""
    figure = Figure(figsize=(WIDTH_IN, 4.6), layout="constrained")
    throughput, latency, shares = figure.subplots(3, 1, sharex=True)
    windows = document["windows"]
    times = [window["t"] + 0.05 for window in windows]
    for name, color in (("finished_ok", "#1f6f43"), ("refused", "#c77700"), ("failed", "#b3261e")):
        values = [window[name] * 10 for window in windows]
        label = {"finished_ok": "answered rightly", "refused": "refused"}.get(name, name)
        if name == "finished_ok" or any(values):
            throughput.plot(times, values, color=color, linewidth=1, label=label)
    throughput.set_ylim(bottom=0)
    throughput.set_ylabel("requests/s")
    for name, color in (("p50_ms", "#35618e"), ("p99_ms", "#8e3562")):
        known = [(t, window[name]) for t, window in zip(times, windows, strict=True) if window[name] is not None]
        latency.plot([t for t, _ in known], [value for _, value in known], color=color, linewidth=1, label=name[:3])
    latency.set_yscale("log")
    latency.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    latency.yaxis.set_minor_formatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in "25" else "")
    latency.set_ylabel("ms")
    series = document["shares"]
    for partition in range(document["partitions"]):
        shares.plot(
            [point[0] for point in series], [point[1 + partition] for point in series], linewidth=1, label=f"p{partition}"
        )
    shares.set_ylim(0, 1)
    shares.set_ylabel("share")
    shares.set_xlabel("s")
    for axes in (throughput, latency, shares):
        if document["fault"]:
            axes.axvspan(*document["fault"], color="#eee", zorder=0)
        _finish(axes)
    _save(figure, path)


def curves(
    path: Path,
    groups: Sequence[tuple[str, Sequence[float], Sequence[float]]],
    x_label: str,
    y_label: str,
    *,
    log_y: bool = True,
) -> None:
    """A line with markers for each (label, x values, y values), x logarithmic; a label that ends in "limit" is dashed."""
    figure = Figure(figsize=(WIDTH_IN, 2.8), layout="constrained")
    axes = figure.subplots()
    for label, xs, ys in groups:
        limit = label.endswith("limit")
        axes.plot(xs, ys, "--" if limit else "o-", markersize=3, linewidth=0.8 if limit else 1.2, color="#999" if limit else None,
                  label=label)  # fmt: skip
    axes.set_xscale("log", base=2 if max(groups[0][1]) <= 128 else 10)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    if log_y:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    else:
        axes.set_ylim(bottom=0)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    _finish(axes)
    _save(figure, path)


def _finish(axes: Axes) -> None:
    axes.grid(**GRID)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)


def _save(figure: Figure, path: Path) -> None:
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    rounded = re.sub(r"(-?\d+\.\d)\d+", r"\1", text.getvalue())
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(rounded)
