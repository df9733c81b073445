# SPDX-License-Identifier: Apache-2.0
"""A report for people (tables), for scripts (one JSON object) and for CI (JUnit XML). None of them holds a secret or a body."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xksfast.errors import OperatorError
from xksfast.probe.asking import Call
from xksfast.probe.case import Verdict
from xksfast.probe.run import Report, Result
from xksfast.probe.target import KMS_BUDGET_MS

if TYPE_CHECKING:
    from rich.console import RenderableType

STYLES = {
    Verdict.OK: "green",
    Verdict.WRONG: "bold red",
    Verdict.TOO_SLOW: "bold yellow",
    Verdict.CANNOT_TELL: "cyan",
    Verdict.NOT_TRIED: "dim",
}
SHOWN_PROBLEMS = 6
SHOWN_NAMES = 8
HEADLINES = {0: "all right", 1: "WRONG", 4: "right, but TOO SLOW"}


def as_document(report: Report) -> dict[str, Any]:
    """The object of --json."""
    return {
        "url": report.url,
        "exit_code": report.exit_code,
        "verdict": HEADLINES[report.exit_code],
        "seconds": round(report.seconds, 3),
        "counts": {verdict.value: report.count(verdict) for verdict in Verdict},
        "budget_ms": KMS_BUDGET_MS,
        "cases": [_case_document(result) for result in report.results],
    }


def _case_document(result: Result) -> dict[str, Any]:
    case = result.case
    return {
        "name": case.name,
        "verdict": result.verdict.value,
        "says": case.says,
        "requirements": list(case.requirements),
        "seen": list(result.seen),
        "why": case.why,
        "do": case.do,
        "notes": list(result.notes),
        "figures": {name: round(value, 3) for name, value in result.figures},
        "seconds": round(result.seconds, 3),
        "calls": [_call_document(call) for call in result.calls],
    }


def _call_document(call: Call) -> dict[str, Any]:
    answer = call.answer
    document: dict[str, Any] = {"what": call.label, "kms_request_id": call.kms_request_id}
    if answer is None:
        return {**document, "status": None, "problem": call.problem}
    document |= {"status": answer.status, "ms": round(answer.ms, 3)}
    if answer.error_name:
        document["error"] = answer.error_name
    if answer.connect_ms is not None and answer.tls_ms is not None:
        document |= {"connect_ms": round(answer.connect_ms, 3), "tls_ms": round(answer.tls_ms, 3)}
    return document


def write_junit(report: Report, path: Path) -> None:
    """One test case each: wrong and too slow are failures, what could not be decided or tried is skipped."""
    suite = ElementTree.Element(
        "testsuite",
        name=f"xksfast test {report.url}",
        tests=str(len(report.results)),
        failures=str(report.count(Verdict.WRONG) + report.count(Verdict.TOO_SLOW)),
        skipped=str(report.count(Verdict.CANNOT_TELL) + report.count(Verdict.NOT_TRIED)),
        errors="0",
        time=f"{report.seconds:.3f}",
    )
    for result in report.results:
        case = result.case
        element = ElementTree.SubElement(
            suite, "testcase", classname=f"xks.{case.area}", name=f"{case.name}: {case.says}", time=f"{result.seconds:.3f}"
        )
        text = "; ".join(result.seen)
        if result.verdict in (Verdict.WRONG, Verdict.TOO_SLOW):
            failure = ElementTree.SubElement(element, "failure", type=result.verdict.value, message=_xml(text))
            failure.text = _xml("\n".join([*result.seen, f"Why it matters: {case.why}", f"What to do: {case.do}"]))
        elif result.verdict is not Verdict.OK:
            ElementTree.SubElement(element, "skipped", message=_xml(f"{result.verdict.value}: {text}"))
    try:
        ElementTree.ElementTree(suite).write(path, encoding="utf-8", xml_declaration=True)
    except OSError as error:
        raise OperatorError(f"--junit {path}: {error.strerror or error}") from None


def _xml(text: str) -> str:
    """Without the characters that XML does not have."""
    return "".join(char if char in "\t\n" or " " <= char <= "\ud7ff" else "?" for char in text)


# --- what people see


def view(report: Report, *, calls: bool = False) -> RenderableType:
    """The tables: every case tried, what is not ok in full, and what was not tried in a line. calls: every call as well."""
    from rich.console import Group
    from rich.text import Text

    parts: list[RenderableType] = [_headline(report), Text(""), _table(report)]
    for result in report.results:
        if result.verdict in (Verdict.WRONG, Verdict.TOO_SLOW, Verdict.CANNOT_TELL):
            parts += [Text(""), _details(result)]
    idle: dict[str, list[str]] = {}
    for result in report.results:
        if result.verdict is Verdict.NOT_TRIED:
            idle.setdefault(result.seen[0], []).append(result.case.name)
    if idle:
        parts.append(Text(""))
    for reason, names in idle.items():
        shown = ", ".join(names) if len(names) <= SHOWN_NAMES else f"{len(names)} cases"
        parts.append(Text(f"not tried, {reason}: {shown}", style="dim"))
    if calls:
        parts += [Text(""), _calls(report)]
    return Group(*parts)


def _headline(report: Report) -> RenderableType:
    from rich.text import Text

    counts = ", ".join(f"{report.count(verdict)} {verdict.value}" for verdict in Verdict if report.count(verdict))
    style = {0: "bold green", 1: "bold red", 4: "bold yellow"}[report.exit_code]
    return Text.assemble((HEADLINES[report.exit_code], style), f"  {report.url}: {counts}; {report.seconds:.1f} s")


def _table(report: Report) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 1), header_style="dim")
    table.add_column("verdict", no_wrap=True)
    table.add_column("case", no_wrap=True)
    table.add_column("calls", justify="right", no_wrap=True)
    table.add_column("slowest", justify="right", no_wrap=True)
    table.add_column("what is right")
    for result in report.results:
        if result.verdict is Verdict.NOT_TRIED:
            continue
        slowest = Text(f"{result.slowest_ms:.1f} ms", style="yellow" if result.slowest_ms > KMS_BUDGET_MS else "")
        verdict = Text(result.verdict.value, style=STYLES[result.verdict])
        shown = Text(result.case.says)
        extra = [*result.notes, *(f"{name} {value:.4g}" for name, value in result.figures)]
        if extra:
            shown.append(f"\n{'; '.join(extra)}", style="dim")
        table.add_row(verdict, Text(result.case.name), str(len(result.calls)), slowest if result.calls else Text(""), shown)
    return table


def _details(result: Result) -> RenderableType:
    from rich.text import Text

    case = result.case
    text = Text.assemble((f"{case.name}: {result.verdict.value}", STYLES[result.verdict]))
    for problem in result.seen[:SHOWN_PROBLEMS]:
        text.append(f"\n  {problem}")
    if len(result.seen) > SHOWN_PROBLEMS:
        text.append(f"\n  and {len(result.seen) - SHOWN_PROBLEMS} more, see --json", style="dim")
    if result.verdict is not Verdict.CANNOT_TELL:
        numbers = ", ".join(str(number) for number in case.requirements)
        text.append(f"\n  What is right: {case.says} (requirements {numbers})")
        text.append(f"\n  Why it matters: {case.why}\n  What to do: {case.do}")
    return text


def _calls(report: Report) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 1), header_style="dim", title="calls", title_justify="left", title_style="bold")
    for column in ("case", "what", "answer"):
        table.add_column(column, no_wrap=True)
    for column in ("ms", "connect ms", "tls ms"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("kmsRequestId", no_wrap=True)
    for result in report.results:
        for call in result.calls:
            answer = call.answer
            slow = "yellow" if call.ms > KMS_BUDGET_MS else ""
            table.add_row(
                result.case.name,
                Text(call.label),
                Text(str(answer) if answer is not None else call.problem),
                Text(f"{call.ms:.2f}" if answer is not None else "", style=slow),
                "" if answer is None or answer.connect_ms is None else f"{answer.connect_ms:.2f}",
                "" if answer is None or answer.tls_ms is None else f"{answer.tls_ms:.2f}",
                call.kms_request_id,
            )
    return table
