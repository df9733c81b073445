# SPDX-License-Identifier: Apache-2.0
"""`xksfast apply STORES.toml`: shows what it takes to make the state what the file says, then does it.

The file and the secrets that it names are read here and sent; the rules are the server's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from xksfast.shell.session import DONE, FAILED, IN_PART, REFUSED, DryRun, Shell, Yes, command

app = typer.Typer(pretty_exceptions_enable=False, context_settings={"help_option_names": ["-h", "--help"]})

_STYLES = {"+": "green", "~": "yellow", "-": "red"}


@command(app, "apply")
def apply(
    shell: Shell,
    file: Annotated[Path, typer.Argument(help="Key stores, credentials and keys (TOML).")],
    dry_run: DryRun = False,
    prune: Annotated[
        bool, typer.Option("--prune", help="Take away key stores, credentials and keys that the file does not name.")
    ] = False,
    yes: Yes = False,
) -> None:
    """Make key stores, credentials and keys what a file says. What the file does not name stays, unless --prune is given."""
    from xksfast.state.declared import read_declared

    body = {"key_stores": read_declared(file), "prune": prune}
    plan = shell.api.post("/v1/apply/plan", body)
    if not shell.json or plan["problems"]:
        _tell(shell, file, plan)
    if plan["problems"]:
        if shell.json:
            shell.show(plan, "")
        raise typer.Exit(REFUSED)
    if dry_run or not plan["steps"]:
        if shell.json:
            shell.show({**plan, "done": 0}, "")
        raise typer.Exit(DONE)
    removals = sum(step["sign"] == "-" for step in plan["steps"])
    if removals:
        shell.confirm(f"{removals} of {len(plan['steps'])} steps take something away. Go on?", yes)
    _carry_out(shell, file, body, plan)


def _carry_out(shell: Shell, file: Path, body: dict[str, Any], plan: dict[str, Any]) -> None:
    from xksfast.shell import client

    done, failure, ended, code = 0, "", False, FAILED
    now: dict[str, Any] = {}

    with shell.progress(f"apply {file}", len(plan["steps"])) as step:
        for line in shell.api.lines("/v1/apply", body):
            match line["event"]:
                case "begin":
                    now = line
                case "done":
                    done, now = done + 1, {}
                    step(done, None)
                case "failed":
                    failed = client.failure(line)
                    failure, code = str(failed), failed.exit_code
                case "end":
                    ended = True
    if not ended and not failure:
        failure = "the answer broke off: look at `xksfast audit tail`, then apply again"
    if failure:
        at = f"{now['target']}: {now['what']}: " if now else ""
        shell.say(f"{at}{failure}")
        shell.say(f"{done} of {len(plan['steps'])} steps were done; when the cause is mended, apply again")
    shell.show({**plan, "done": done, "failure": failure}, f"{file}: {done} of {len(plan['steps'])} steps done")
    raise typer.Exit(DONE if not failure else IN_PART if done else code)


def _tell(shell: Shell, file: Path, plan: dict[str, Any]) -> None:
    for note in plan["notes"]:
        shell.say(note)
    for problem in plan["problems"]:
        shell.say(f"{file}: {problem}")
    if plan["problems"]:
        return
    if not plan["steps"]:
        print(f"{file}: the state is so already")
        return

    def drawn() -> Any:
        from rich.text import Text

        text = Text()
        for number, step in enumerate(plan["steps"]):
            text.append(f"{'' if not number else chr(10)}{step['sign']} {step['target']}: ", style=_STYLES[step["sign"]])
            text.append(step["what"])
            text.append(f"  ({step['why']})", style="dim")
        return text

    shell.show(plan, drawn)
