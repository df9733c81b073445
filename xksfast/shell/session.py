# SPDX-License-Identifier: Apache-2.0
"""What every command has in common: where the server is, how answers are shown, questions, progress.

A command is a function whose first parameter is a Shell; `command` gives it the options --admin, --token-file, --ca and --json. Data
goes to stdout, everything else to stderr.
"""

from __future__ import annotations

import functools
import inspect
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Timer
from typing import TYPE_CHECKING, Annotated, Any, Literal

import orjson
import typer

from xksfast.errors import OperatorError
from xksfast.secret_file import write_secret_file as write_secret_file

if TYPE_CHECKING:
    from xksfast.shell.client import Client

DONE, FAILED, USAGE, REFUSED, IN_PART = 0, 1, 2, 3, 4
PROGRESS_AFTER_S = 1.0
WIDTH_WITHOUT_TERMINAL = 200
LONG_CHARS = 18  # of a cell that is a name as a rule
_STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")

AdminUrl = Annotated[
    str | None,
    typer.Option(
        "--admin",
        help="URL of the admin listener. Default: XKSFAST_ADMIN_URL, else https://localhost:8444.",
        rich_help_panel="Server",
    ),
]
TokenFile = Annotated[
    Path | None,
    typer.Option("--token-file", help="File with an operator's token. Default: XKSFAST_ADMIN_TOKEN.", rich_help_panel="Server"),
]
CaFile = Annotated[
    Path | None,
    typer.Option(
        "--ca", help="PEM file of the CA of the listener's certificate. Default: XKSFAST_ADMIN_CA.", rich_help_panel="Server"
    ),
]
Json = Annotated[
    bool, typer.Option("--json", help="One JSON object or list on stdout; messages on stderr.", rich_help_panel="Server")
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only say what would be done, or why not.")]

_COMMON = (
    inspect.Parameter("admin", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=AdminUrl),
    inspect.Parameter("token_file", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=TokenFile),
    inspect.Parameter("ca", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=CaFile),
    inspect.Parameter("json", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Json),
)


def new_app(help: str) -> typer.Typer:
    """A noun's group of commands."""
    return typer.Typer(
        help=help,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )


def command(app: typer.Typer, name: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register a function(shell, ...) as a command."""

    def register(function: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(function, eval_str=True)
        own = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in list(signature.parameters.values())[1:]]

        @functools.wraps(function)
        def run(*, admin: str | None, token_file: Path | None, ca: Path | None, json: bool, **arguments: Any) -> None:
            shell = Shell(admin, token_file, ca, json=json)
            try:
                function(shell, **arguments)
            finally:
                shell.close()

        run.__signature__ = inspect.Signature([*own, *_COMMON])  # type: ignore[attr-defined]
        app.command(name)(run)
        return function

    return register


class Shell:
    """One run of a command."""

    def __init__(self, admin: str | None, token_file: Path | None, ca: Path | None, *, json: bool) -> None:
        self._where = (admin, token_file, ca)
        self.json = json
        self._client: Client | None = None

    @property
    def api(self) -> Client:
        """The server."""
        if self._client is None:
            from xksfast.shell.client import connect

            self._client = connect(*self._where)
        return self._client

    def close(self) -> None:
        """Leave nothing open."""
        if self._client is not None:
            self._client.close()

    # --- showing

    def show(self, document: Any, text: str | Callable[[], Any]) -> None:
        """document: with --json. text: else; what rich prints when it is a function."""
        if self.json:
            print(orjson.dumps(document).decode())
        elif isinstance(text, str):
            print(visible(text))
        else:
            from rich.console import Console

            Console(width=None if sys.stdout.isatty() else WIDTH_WITHOUT_TERMINAL, highlight=False).print(text())

    def say(self, text: str) -> None:
        """To people, beside the data."""
        print(f"xksfast: {visible(text)}", file=sys.stderr)

    # --- asking

    def confirm(self, question: str, yes: bool) -> None:
        """Ask a person at a terminal; ends the command when the answer is no. Scripts are not asked."""
        if yes or not sys.stdin.isatty() or not sys.stderr.isatty():
            return
        print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            self.say("nothing was changed")
            raise typer.Exit(FAILED)

    @contextmanager
    def progress(self, text: str, total: int | None) -> Iterator[Callable[[int, int | None], None]]:
        """A bar on a terminal's stderr, for work that takes longer than a second. It is told how much is done, of how much."""
        if not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
            yield lambda done, of: None
            return
        from rich.console import Console
        from rich.progress import Progress

        bar = Progress(console=Console(stderr=True), transient=True)
        task = bar.add_task(text, total=total)
        timer = Timer(PROGRESS_AFTER_S, bar.start)
        timer.daemon = True
        timer.start()
        try:
            yield lambda done, of: bar.update(task, completed=done, total=of if of is not None else total)
        finally:
            timer.cancel()
            timer.join()
            bar.stop()


# --- arguments and tables


def pairs(given: Sequence[str] | None, option: str) -> dict[str, str] | None:
    """ "NAME=VALUE" options; None: none was given."""
    if given is None:
        return None
    found = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise OperatorError(f"{option} {text!r}: write NAME=VALUE")
        found[name] = value
    return found


def given(**members: Any) -> dict[str, Any]:
    """The members that were given."""
    return {name: value for name, value in members.items() if value is not None}


def table(
    *columns: str, right: Sequence[str] = (), rows: Sequence[Sequence[Any]], none: str, fold: bool = False
) -> Callable[[], Any]:
    """For Shell.show. none: what to say instead of an empty table. fold: the last column is prose, over several lines."""

    def made() -> Any:
        from rich.table import Table
        from rich.text import Text

        if not rows:
            return Text(none, style="dim")
        drawn = Table(box=None, padding=(0, 1), header_style="dim")
        shown = [[cell if isinstance(cell, Text) else Text(visible(str(cell))) for cell in row] for row in rows]
        for number, column in enumerate(columns, 1):
            prose = fold and number == len(columns)
            long = max(row[number - 1].cell_len for row in shown) > LONG_CHARS
            justify: Literal["left", "right"] = "right" if column in right else "left"
            # in a narrow terminal long names take several lines; nothing is cut off
            drawn.add_column(column, justify=justify, no_wrap=not (prose or long), overflow="fold")
        for row in shown:
            drawn.add_row(*row)
        return drawn

    return made


def facts(document: dict[str, Any], *, leave_out: Sequence[str] = ()) -> Callable[[], Any]:
    """One object, a line for each member that says something."""

    def made() -> Any:
        from rich.table import Table
        from rich.text import Text

        drawn = Table(box=None, padding=(0, 1), show_header=False)
        drawn.add_column(style="dim", no_wrap=True)
        drawn.add_column(overflow="fold")
        for name, value in document.items():
            if name in leave_out or value in ("", None, [], {}):
                continue
            style = "red" if name == "blocked" and value else ""
            drawn.add_row(name, Text(visible(_plain(name, value)), style=style))
        return drawn

    return made


def _plain(name: str, value: Any) -> str:
    match value:
        case bool():
            return "yes" if value else "no"
        case int() if name.endswith("_at"):
            return moment(value)
        case dict():
            return ", ".join(f"{key}={member}" for key, member in value.items())
        case list():
            return ", ".join(map(str, value))
        case _:
            return str(value)


def visible(text: str) -> str:
    """What others wrote must not steer the terminal of who reads it: control characters, and those that turn the direction of text."""
    return _STEERING.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def moment(unix_s: float) -> str:
    """ "2026-01-31 12:00:00 UTC"; 0: "never"."""
    from datetime import UTC, datetime

    return datetime.fromtimestamp(unix_s, UTC).strftime("%Y-%m-%d %H:%M:%S UTC") if unix_s else "never"


def state_cell(blocked: bool, state: str = "") -> Any:
    """ "blocked" in red, or the state."""
    from rich.text import Text

    if blocked:
        return Text("blocked", style="red")
    return Text(state.lower() or "served", style="yellow" if state == "DISABLED" else "green")


def check_new_file(path: Path | None) -> None:
    """Before a secret is made that could be shown nowhere: OperatorError unless the file can be made."""
    if path is None:
        return
    if path.exists():
        raise OperatorError(f"{path} is there already: choose another name, or move it away first")
    if not os.access(path.resolve().parent, os.W_OK):
        raise OperatorError(f"{path} cannot be written: its directory is not there, or not yours to write in")
