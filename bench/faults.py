# SPDX-License-Identifier: Apache-2.0
"""The acceptance scenarios against a real server: python -m bench.faults [--short | --long] [--only T4] [--service-ms 2] [--json]

Each starts `xksfast serve` over the fault shim on the server core, loads it from the client core by schedule, lets partitions fail
while it runs, and holds what came of it against the goals of bench/scenarios.py. Exit code 1 when a goal was missed. Time series and
verdicts go to bench/results/faults.json; a line per scenario to standard error as it ends, a Markdown table to standard output.

The scenarios are about routing, so the HSM must be the bottleneck and not the server's core: on a machine on which the full load would
take more than MOST_OF_THE_CORE of it, calls take twice, four or eight times as long, and come that much more rarely. The limits of the
load are then the same, seen in slow motion. Scenarios with a rate of their own keep it.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from bench.fleet import Fleet, Plan, serving
from bench.open_loop import Generator, Load, Run, make_calls, quantile
from bench.outcome import Outcome, Sample
from bench.scenarios import ALL, LONG, NORMAL, SCENARIOS, SHORT, SIGMA, Event, Scenario, Size
from bench.tokens import Token, compile_with_product, make_token
from xksfast.rehearsal.control import SlotControl
from xksfast.rehearsal.latency import FUNCTION_CLASSES, fixed_ms, lognormal_ms

RESULTS = Path(__file__).parent / "results"
SAMPLE_EVERY_S = 0.1
MOST_OF_THE_CORE = 0.4
KEYS = 4
PROBE_OPERATIONS = 2  # a health probe encrypts and decrypts


def _healthy(slot: SlotControl, _: float) -> None:
    slot.release().dead(0).error(0, 0).multiplier(1).network_ms(0)


ACTIONS: dict[str, Callable[[SlotControl, float], Any]] = {
    "healthy": _healthy,
    "slow": lambda slot, times: slot.multiplier(times),
    "error": lambda slot, _: slot.error("CKR_DEVICE_ERROR", at_once=True),
    "hang": lambda slot, _: slot.hang(),
    "dead": lambda slot, _: slot.dead("CKR_DEVICE_ERROR"),
    "removed": lambda slot, _: slot.dead("CKR_DEVICE_REMOVED"),
    "restart": lambda slot, _: slot.dead(0).restart(),
    "network_ms": lambda slot, ms: slot.network_ms(ms),
}
_STOPS = {"error", "hang", "dead", "removed"}  # the partition serves nothing


@dataclass
class Report:
    """A scenario's run. checks: (goal, value, bound, held; None: not looked at in this size)."""

    scenario: Scenario
    size: Size
    outcome: Outcome
    checks: list[tuple[str, float, float | None, bool | None]]

    @property
    def passed(self) -> bool:
        return all(held is not False for *_, held in self.checks)

    @property
    def disturbed(self) -> bool:
        """Whether the load generator itself came too late: then the machine was busy with something else."""
        late = quantile(self.outcome.run.lateness_ms(), 0.99)
        return late is None or late > (20 if self.size.is_short else 1)

    def as_json(self) -> dict[str, Any]:
        o = self.outcome
        return {
            "name": self.scenario.name,
            "title": self.scenario.title,
            "size": self.size.name,
            "partitions": self.scenario.partitions,
            "servers": self.scenario.servers,
            "service_ms": self.size.service_ms,
            "rate": round(o.rate, 1),
            "fault": None if o.steady else [o.before_s, o.until_s],
            "passed": self.passed,
            "disturbed": self.disturbed,
            "checks": [
                {"goal": goal, "value": _finite(value), "bound": bound, "held": held}
                for goal, value, bound, held in self.checks
            ],
            "summary": o.run.summary(),
            "windows": [window.as_json() for window in o.run.windows()],
            "opens": o.opens,
            "shares": _share_series(o),
        }


def _finite(value: float) -> float | None:
    return round(value, 5) if math.isfinite(value) else None


def _share_series(o: Outcome) -> list[list[float]]:
    """[seconds, share of each partition] between samples."""
    series = []
    for before, after in zip(o.samples, o.samples[1:], strict=False):
        counts = [b - a for a, b in zip(before.operations, after.operations, strict=True)]
        if sum(counts):
            series.append([round(after.at_s, 3), *(round(count / sum(counts), 4) for count in counts)])
    return series


def run_scenario(scenario: Scenario, size: Size, token: Token, generator: Generator, directory: Path) -> Report:
    """Start a server, load it, break it, judge."""
    size = scenario.sized(size)
    plan = Plan(
        partitions=scenario.partitions,
        sessions=scenario.sessions,
        keys=KEYS,
        login=scenario.login,
        session_limit=scenario.session_limit,
    )
    events = scenario.timeline(size)
    rate = scenario.requests_per_s(size)
    with serving(plan, token, directory) as fleet:
        assert fleet.control is not None
        latency = fixed_ms(size.service_ms) if scenario.fixed else lognormal_ms(size.service_ms, sigma=SIGMA)
        for slot in fleet.control.slots():
            slot.latency(latency).servers(scenario.servers)
        calls = make_calls(fleet.target(), fleet.key_ids(), scenario.mix)
        warm = Load(rate * min(1, 0.7 / scenario.load), 0.7, connections=32)
        generator.run(calls, warm)  # the router has its medians, the connections are open
        samples: list[Sample] = []
        load = Load(rate, size.seconds, connections=64)
        opens = fleet.opens()
        run = generator.run(calls, load, lambda start_ns: _conduct(fleet, size, events, start_ns, samples))
        opened = tuple(after - before for before, after in zip(opens, fleet.opens(), strict=True))
    outcome = _outcome(scenario, size, events, rate, run, tuple(samples), plan.probe_interval_s, opened)
    checks = []
    for goal in scenario.goals:
        value = float(goal.measure(outcome))
        checks.append((goal.text, value, goal.bound(size), goal.holds(value, size)))
    return Report(scenario, size, outcome, checks)


def _conduct(fleet: Fleet, size: Size, events: list[Event], start_ns: int, samples: list[Sample]) -> None:
    """Let the events happen and take samples, until the load is over; then nobody is ill any more."""
    assert fleet.control is not None
    slots = fleet.control.slots()
    steps: list[tuple[float, Event | None]] = [(event.at_s, event) for event in events]
    steps += [(i * SAMPLE_EVERY_S, None) for i in range(round(size.seconds / SAMPLE_EVERY_S) + 1)]
    for at_s, event in sorted(steps, key=lambda step: step[0]):
        pause_s = at_s - (time.monotonic_ns() - start_ns) / 1e9
        if pause_s > 0:
            time.sleep(pause_s)
        if event is None:
            samples.append(_sample(fleet, (time.monotonic_ns() - start_ns) / 1e9))
        else:
            for slot in slots if event.partition == ALL else [slots[event.partition]]:
                ACTIONS[event.what](slot, event.value)
    for slot in slots:
        _healthy(slot, 0)


def _sample(fleet: Fleet, at_s: float) -> Sample:
    assert fleet.control is not None
    counters = [fleet.control.words.counters[i] for i in range(fleet.plan.partitions)]
    return Sample(
        at_s,
        tuple(fleet.operations()),
        tuple(fleet.errors()),
        tuple(int(words.hung) for words in counters),
        tuple(int(words.sessions_open) for words in counters),
        tuple(int(words.logins) for words in counters),
        tuple(int(words.errors[FUNCTION_CLASSES["open_session"]]) for words in counters),
    )


def _outcome(
    scenario: Scenario,
    size: Size,
    events: list[Event],
    rate: float,
    run: Run,
    samples: tuple[Sample, ...],
    probe_interval_s: int,
    opens: tuple[int, ...],
) -> Outcome:
    everyone = range(scenario.partitions)
    ill = frozenset(
        i for event in events if event.what != "healthy" for i in (everyone if event.partition == ALL else (event.partition,))
    )
    if (
        scenario.timeline(size)
        and len({(event.partition) for event in events}) >= scenario.partitions
        and scenario.partitions > 2
    ):
        ill = frozenset()  # all take turns
    multipliers = [1.0] * scenario.partitions
    for event in events:
        if event.partition != ALL and event.what in _STOPS:
            multipliers[event.partition] = math.inf
        elif event.partition != ALL and event.what == "slow":
            multipliers[event.partition] = event.value
    return Outcome(
        run=run,
        samples=samples,
        before_s=size.before_s,
        until_s=size.until_s,
        steady=not events,
        ill=ill,
        partitions=scenario.partitions,
        servers=scenario.servers,
        service_ms=size.service_ms,
        sigma=0 if scenario.fixed else SIGMA,
        rate=rate,
        capacity=scenario.capacity(size.service_ms) / scenario.calls_per_request(),
        calls_per_request=scenario.calls_per_request(),
        probes_per_s=scenario.partitions * PROBE_OPERATIONS / probe_interval_s,
        multipliers=tuple(multipliers),
        opens=opens,
    )


def prepare(directory: Path) -> tuple[Token, Generator]:
    """The token with its keys, and the load generator, in `directory`."""
    return make_token("nss", directory / "nss-token", KEYS, compile_with_product("token.c")), Generator(directory)


def print_table(reports: list[Report]) -> None:
    """Markdown: a line for each goal."""
    print("| scenario | requests/s | goal | at most / least | measured | held |\n|---|---|---|---|---|---|")
    for report in reports:
        for goal, value, bound, held in report.checks:
            shown = "not looked at" if held is None else "yes" if held else "**NO**"
            print(
                f"| {report.scenario.name}: {report.scenario.title} | {report.outcome.rate:,.0f} | {goal} | "
                f"{'-' if bound is None else bound} | {value:.5g} | {shown} |"
            )


def pace_ms(token: Token, generator: Generator, directory: Path) -> float:
    """The service time at which the heaviest scenario leaves the server's core room: 1 ms, or 2, 4, 8 where CPU is dear."""
    with serving(Plan(partitions=4, keys=KEYS), token, directory) as fleet:
        assert fleet.control is not None
        for slot in fleet.control.slots():
            slot.latency(fixed_ms(1)).servers(4)
        calls = make_calls(fleet.target(), fleet.key_ids(), {"encrypt": 6, "cdiv": 1, "decrypt": 3})
        load = Load(0, 2.0, "closed", 16, 16)
        cpu_before = fleet.cpu_seconds()
        run = generator.run(calls, load)
        cpu_s = (fleet.cpu_seconds() - cpu_before) / len(run.due)
    heaviest = max(scenario.requests_per_s(NORMAL) for scenario in SCENARIOS if scenario.load <= 1)
    wanted = heaviest * cpu_s / MOST_OF_THE_CORE
    return float(min(8, 2 ** max(0, math.ceil(math.log2(wanted)))))


def main() -> int:
    """Run the scenarios; 1 when a goal was missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--short", action="store_true", help="some 4 s each, as in CI")
    size.add_argument("--long", action="store_true", help="60 s each, as the acceptance table says")
    parser.add_argument("--only", default="", help="scenarios by name, separated by commas")
    parser.add_argument("--json", action="store_true", help="everything as JSON on standard output instead of the table")
    parser.add_argument("--service-ms", type=float, default=0, help="median time of a call; 0: as this machine's speed allows")
    options = parser.parse_args()
    chosen = SHORT if options.short else LONG if options.long else NORMAL
    names = {name.strip() for name in options.only.split(",") if name.strip()}
    unknown = names - {scenario.name for scenario in SCENARIOS}
    if unknown:
        parser.error(f"no scenario {', '.join(sorted(unknown))}; there are {', '.join(s.name for s in SCENARIOS)}")
    scenarios = [scenario for scenario in SCENARIOS if not names or scenario.name in names]
    reports, broken = [], {}
    with TemporaryDirectory(prefix="xksfast-bench-") as name:
        token, generator = prepare(Path(name))
        paced = chosen
        if not options.short:
            paced = replace(chosen, service_ms=options.service_ms or pace_ms(token, generator, Path(name) / "pace"))
            print(f"calls take {paced.service_ms:g} ms", file=sys.stderr, flush=True)
        for i, scenario in enumerate(scenarios):
            try:
                size_of_it = chosen if scenario.rate else paced
                report = run_scenario(scenario, size_of_it, token, generator, Path(name) / f"serve-{i}")
            except (OSError, AssertionError, RuntimeError) as error:  # the server stands still, answers wrongly, or has ended
                broken[scenario.name] = f"{type(error).__name__}: {error}"[:300]
                print(
                    f"{i + 1}/{len(scenarios)}  {scenario.name:12} BROKEN {broken[scenario.name]}", file=sys.stderr, flush=True
                )
                continue
            reports.append(report)
            word = (
                "ok" if report.passed else "MISSED " + "; ".join(f"{c[0]} {c[1]:.4g}" for c in report.checks if c[3] is False)
            )
            busy = " (machine busy: the generator came too late)" if report.disturbed else ""
            print(f"{i + 1}/{len(scenarios)}  {scenario.name:12} {word}{busy}", file=sys.stderr, flush=True)
    document = {"size": vars(paced), "scenarios": [report.as_json() for report in reports], "broken": broken}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "faults.json").write_text(json.dumps(document))
    if options.json:
        print(json.dumps(document))
    else:
        print_table(reports)
        for scenario_name, problem in broken.items():
            print(f"\n**{scenario_name} could not be judged**: {problem}")
    return 0 if not broken and all(report.passed for report in reports) else 1


if __name__ == "__main__":
    sys.exit(main())
