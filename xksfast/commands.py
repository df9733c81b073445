# SPDX-License-Identifier: Apache-2.0
"""The commands that people type, and the composition root: what is concrete is put together here."""

from __future__ import annotations

import shutil
import signal
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import orjson
import typer

from xksfast._version import __version__
from xksfast.admin import dev as development
from xksfast.config import load_config, missing_files
from xksfast.errors import OperatorError
from xksfast.partition_commands import partition_app
from xksfast.proxy import supervisor
from xksfast.proxy.listener import Listener
from xksfast.state.store_file import load_store_file

app = typer.Typer(
    name="xksfast",
    help="A high-throughput AWS KMS External Key Store (XKS) proxy.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
config_app = typer.Typer(help="The configuration file.", no_args_is_help=True)
app.add_typer(config_app, name="config")
app.add_typer(partition_app, name="partition")

Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]


def run(arguments: list[str]) -> int:
    """Run a command; its exit code."""
    try:
        return int(app(arguments, prog_name="xksfast", standalone_mode=True) or 0)
    except SystemExit as ended:
        return int(ended.code or 0)


@app.command()
def version(json: Json = False) -> None:
    """Print the version."""
    print(orjson.dumps({"version": __version__}).decode() if json else f"xksfast {__version__}")


@app.command()
def serve(config: Annotated[Path, typer.Option("--config", help="The configuration file (TOML).")]) -> None:
    """Serve as the configuration says. SIGHUP reloads certificates and state, SIGTERM drains."""
    raise typer.Exit(supervisor.run(load_config(config), config))


@config_app.command("check")
def config_check(file: Annotated[Path, typer.Argument(help="The configuration file.")], json: Json = False) -> None:
    """Check a configuration file and the state that it names, without starting anything."""
    problems: list[str] = []
    try:
        config = load_config(file)
        missing = missing_files(config, str(file))
        problems += [str(problem) for problem in missing.found]
        document = load_store_file(Path(config.state.store_file), config)
    except OperatorError as error:
        problems += str(error).splitlines()
    if json:
        print(orjson.dumps({"ok": not problems, "problems": problems}).decode())
    elif problems:
        raise OperatorError("\n".join(dict.fromkeys(problems)))
    else:
        keys = sum(len(store.keys) for store in document.key_stores.values())
        print(f"{file}: good; {len(config.partitions)} partitions, {len(document.key_stores)} key stores, {keys} keys")
    raise typer.Exit(2 if problems else 0)


@app.command()
def dev(
    data: Annotated[
        Path | None, typer.Option(help="Directory for everything; kept and opened again. Default: a temporary one.")
    ] = None,
    http: Annotated[str, typer.Option(help="Plain HTTP address.")] = "127.0.0.1:8080",
    tls: Annotated[str, typer.Option(help="HTTPS address.")] = "127.0.0.1:8443",
    admin: Annotated[str, typer.Option(help="Administration address; not served by this version.")] = "127.0.0.1:8444",
    health: Annotated[str, typer.Option(help="Address of the health listener; empty: none.")] = "",
    key_source: Annotated[str, typer.Option(help="auto, local, softhsm or nss.")] = "auto",
    workers: Annotated[int, typer.Option(help="Worker processes; 0: one per core.")] = 1,
    json: Json = False,
) -> None:
    """Serve a development key store on this machine: token, keys, credential and certificates are made. NOT FOR PRODUCTION."""
    # Kept waiting until the supervisor takes them over: a directory half made must be removed as well.
    signal.pthread_sigmask(signal.SIG_BLOCK, supervisor.SIGNALS)
    directory = data or Path(tempfile.mkdtemp(prefix="xksfast-dev-"))
    try:
        setup = development.make_setup(directory, http=http, tls=tls, health=health, key_source=key_source, workers=workers)

        def announce(listeners: list[Listener]) -> None:
            by_tls = {listener.tls: listener.address for listener in listeners}
            if json:
                print(orjson.dumps(development.ready_document(setup, by_tls[False], by_tls[True])).decode(), flush=True)
            else:
                print(development.ready_text(setup, by_tls[False], by_tls[True]), flush=True)

        # A terminal that is closed ends what runs in it; without one SIGHUP reloads, as for serve.
        hangup_ends = sys.stdout.isatty()
        raise typer.Exit(supervisor.run(load_config(setup.config_file), setup.config_file, announce, hangup_ends=hangup_ends))
    finally:
        if data is None:
            shutil.rmtree(directory, ignore_errors=True)
