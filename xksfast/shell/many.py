# SPDX-License-Identifier: Apache-2.0
"""The same for many key stores or keys: block, unblock, enable, disable, in pieces that the server takes, with progress.

Exit codes: 0 all done, 3 none, 4 some.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import typer

from xksfast.errors import OperatorError
from xksfast.shell.client import RequestFailed, failure, path
from xksfast.shell.session import DONE, IN_PART, REFUSED, Shell

PIECE = 2000  # names in one request


def chosen(shell: Shell, names: list[str] | None, everything: bool, where: tuple[str, ...], member: str) -> list[str]:
    """The names that were given, or all names. OperatorError for one that is no name: an empty variable must not mean all."""
    if bool(names) == everything:
        raise OperatorError("name some, or say --all")
    if names:
        for name in names:
            path(*where, name)
        return list(dict.fromkeys(names))
    return [str(item[member]) for item in shell.api.items(path(*where))]


def bulk(shell: Shell, action: str, field: str, names: Sequence[str], reason: str) -> None:
    """field: "stores" or "keys", whose names are "store/key" here. Ends the command."""
    results: list[dict[str, Any]] = []
    reached = 0
    with shell.progress(action, len(names)) as step:
        for start in range(0, len(names), PIECE):
            piece = list(names[start : start + PIECE])
            body = {"action": action, field: piece, "reason": reason}
            ended = False
            for line in shell.api.lines("/v1/bulk", body):
                match line["event"]:
                    case "progress":
                        reached = start + line["done"]
                        step(reached, len(names))
                    case "result":
                        results.append({"name": line["name"], "problem": line["problem"]})
                    case "failed":
                        raise _stopped(shell, action, failure(line), results, reached, len(names))
                    case "end":
                        ended = True
            if not ended:
                raise RequestFailed(f"{action}: the answer broke off: repeat it, what is so already stays so")
    _finish(shell, action, results)


def _stopped(
    shell: Shell, action: str, found: RequestFailed, results: list[dict[str, Any]], reached: int, total: int
) -> RequestFailed:
    """What cannot be gone on after, such as a database that is away. Exit code 4 when some were reached before it."""
    for result in results:
        if result["problem"]:
            shell.say(f"{result['name']}: {result['problem']}")
    found.args = (f"{action}: stopped after {reached} of {total}: {found}. Repeat it: what is so already stays so",)
    if reached:
        found.exit_code = IN_PART
    return found


def each(shell: Shell, action: str, names: Sequence[str], do: Callable[[str], Any]) -> None:
    """One request for each; goes on after a refusal. Ends the command."""
    results: list[dict[str, Any]] = []
    with shell.progress(action, len(names)) as step:
        for number, name in enumerate(names, 1):
            problem, would = "", None
            try:
                would = do(name)
            except RequestFailed as refusal:
                if len(names) == 1:
                    raise
                if refusal.exit_code != REFUSED:
                    raise _stopped(shell, action, refusal, results, number - 1, len(names)) from None
                problem = str(refusal)
            results.append({"name": name, "problem": problem, **({"would": would["would"]} if would else {})})
            step(number, None)
    _finish(shell, action, results)


def _finish(shell: Shell, action: str, results: list[dict[str, Any]]) -> None:
    failed = [result for result in results if result["problem"]]
    for result in failed:
        shell.say(f"{result['name']}: {result['problem']}")
    would = [f"would {result['would']}" for result in results if result.get("would")]
    done = len(results) - len(failed)
    shell.show(results, "\n".join(would) or f"{action}: {done} of {len(results)} done")
    raise typer.Exit(DONE if not failed else IN_PART if done else REFUSED)


def confirmed(shell: Shell, what: str, confirmation: dict[str, Any]) -> None:
    """One block or unblock: which nodes said so. Ends the command."""
    nodes = ", ".join(f"{each['node']} in {each['ms']:g} ms" for each in confirmation["confirmed"])
    shell.show(confirmation, f"{what}: confirmed by {nodes or 'no node'}")
    for pending in confirmation["pending"]:
        shell.say(f"not confirmed by {pending}")
    if not confirmation["recorded"]:
        shell.say("it is in force, but not in the database yet: the nodes keep it and record it when the database is back")
    raise typer.Exit(IN_PART if confirmation["pending"] else DONE)
