# SPDX-License-Identifier: Apache-2.0
"""The commands that people type, and the composition root: what is concrete is put together here."""

from __future__ import annotations

import shutil
import signal
import sys
import tempfile
from pathlib import Path
from typing import Annotated, ClassVar

import orjson
import typer

from xksfast._version import __version__
from xksfast.config import ProxyHealth, load_config, missing_files
from xksfast.errors import OperatorError
from xksfast.shell.lazy import LazyGroup


class Commands(LazyGroup):
    """Those that stand here, and nouns that are imported when they are needed."""

    later: ClassVar[dict[str, tuple[str, str]]] = {
        "store": ("xksfast.shell.stores:app", "External key stores: create, change, block, delete."),
        "key": ("xksfast.shell.keys:app", "HYOK keys: create, rotate, enable, block, delete."),
        "credential": ("xksfast.shell.credentials:app", "SigV4 credentials: rotate, list, remove."),
        "operator": ("xksfast.shell.operators:app", "Who may administrate: operators and their tokens."),
        "aws": ("xksfast.shell.aws:app", "Connections to AWS KMS for linked key stores, and what builds AWS's side by hand."),
        "node": ("xksfast.shell.nodes:app", "The proxies that share the state."),
        "audit": ("xksfast.shell.audit:app", "What was changed, by whom; and whether the log is whole."),
        "apply": ("xksfast.shell.apply:app", "Make key stores, credentials and keys what a file says."),
        "partition": ("xksfast.partition_commands:partition_app", "HSM partitions: look, add, test, replicate keys, verify."),
        "rehearse": ("xksfast.rehearsal.cli:rehearse_app", "Rehearse failures of HSMs: a PKCS#11 module that injects them."),
        "import": ("xksfast.import_commands:import_app", "Take over from another proxy."),
        "state": ("xksfast.state_commands:state_app", "The state's database: backup, restore, verify, keys."),
        "test": (
            "xksfast.probe.cli:probe_command",
            "Sign requests to a running XKS proxy, ours or not, and check its answers.",
        ),
    }


app = typer.Typer(
    name="xksfast",
    cls=Commands,
    help="A high-throughput AWS KMS External Key Store (XKS) proxy.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
config_app = typer.Typer(help="The configuration file.", no_args_is_help=True)
app.add_typer(config_app, name="config")

DEFAULT_HEALTH_URL = f"http://{ProxyHealth().listen}"
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
def serve(
    config: Annotated[Path, typer.Option("--config", help="The configuration file (TOML).")],
    accept_older_state: Annotated[
        bool,
        typer.Option(
            "--accept-older-state",
            help="Follow a database that went back (a restored backup, a fail-over that lost events) as it is: keys that only this "
            "node knows are not put back, nor keep it from following. Its local copy is kept, and blocks stay. For one start.",
        ),
    ] = False,
) -> None:
    """Serve as the configuration says. SIGHUP reloads certificates and state, SIGTERM drains."""
    from xksfast.proxy import supervisor

    raise typer.Exit(supervisor.run(load_config(config), config, accept_older_state=accept_older_state))


@app.command()
def status(
    partitions: Annotated[
        bool, typer.Option("--partitions", help="Each HSM partition: state, load, latency, errors, why.")
    ] = False,
    url: Annotated[str, typer.Option(help="Where the health listener of the proxy is.")] = DEFAULT_HEALTH_URL,
    config: Annotated[Path | None, typer.Option("--config", help="Take the address from this configuration file.")] = None,
    watch: Annotated[float, typer.Option(min=0.0, help="Look again every so many seconds; 0: once.")] = 0.0,
    json: Json = False,
) -> None:
    """Show what a running proxy does. Exit code 0: all well, 1: nothing answers, 4: degraded (the first lines say what)."""
    from xksfast.admin import status_view  # brings rich, which the other commands do without

    where = status_view.health_url(load_config(config)) if config is not None else url
    raise typer.Exit(status_view.run(where, partitions=partitions, json=json, watch_s=watch))


@config_app.command("check")
def config_check(file: Annotated[Path, typer.Argument(help="The configuration file.")], json: Json = False) -> None:
    """Check a configuration file and the state that it names, without starting anything."""
    from xksfast.proxy.descriptors import lowered
    from xksfast.proxy.start_checks import start_problems
    from xksfast.state.store_file import StoreFile, load_store_file

    problems: list[str] = []
    notes: list[str] = []
    try:
        config = load_config(file)
        notes += lowered(config)
        missing = missing_files(config, str(file)).found
        absent = {problem.key for problem in missing}
        missing += [problem for problem in start_problems(config, str(file)).found if problem.key not in absent]
        problems += [str(problem) for problem in missing]
        if config.admin is not None and config.admin.certificate:
            from xksfast.admin.api.server import tls_context  # brings the whole of administration

            tls_context(config.admin.certificate, config.admin.private_key)
        named = config.state.store_file or config.state.apply
        document = load_store_file(Path(named), config) if named else StoreFile()
    except OperatorError as error:
        problems += str(error).splitlines()
    if json:
        print(orjson.dumps({"ok": not problems, "problems": problems, **({"notes": notes} if notes else {})}).decode())
    elif problems:
        raise OperatorError("\n".join(dict.fromkeys(problems)))
    else:
        keys = sum(len(store.keys) for store in document.key_stores.values())
        print(f"{file}: good; {len(config.partitions)} partitions, {len(document.key_stores)} key stores, {keys} keys")
        for note in notes:
            typer.echo(f"note: {note}", err=True)
    raise typer.Exit(2 if problems else 0)


@app.command()
def dev(
    data: Annotated[
        Path | None, typer.Option(help="Directory for everything; kept and opened again. Default: a temporary one.")
    ] = None,
    http: Annotated[str, typer.Option(help="Plain HTTP address.")] = "127.0.0.1:8080",
    tls: Annotated[str, typer.Option(help="HTTPS address.")] = "127.0.0.1:8443",
    admin: Annotated[
        str | None, typer.Option(help="Administration address (HTTPS). Default: 127.0.0.1:8444, or a free port.")
    ] = None,
    health: Annotated[
        str | None,
        typer.Option(help="Health listener, for xksfast status; empty: none. Default: 127.0.0.1:8081, or a free port."),
    ] = None,
    key_source: Annotated[str, typer.Option(help="auto, local, softhsm or nss.")] = "auto",
    workers: Annotated[int, typer.Option(help="Worker processes; 0: one per core.")] = 1,
    json: Json = False,
) -> None:
    """Serve a development key store on this machine: token, keys, credential and certificates are made. NOT FOR PRODUCTION."""
    from xksfast.admin import dev as development
    from xksfast.proxy import supervisor
    from xksfast.proxy.bound import Bound

    # Kept waiting until the supervisor takes them over: a directory half made must be removed as well.
    signal.pthread_sigmask(signal.SIG_BLOCK, supervisor.SIGNALS)
    directory = data or Path(tempfile.mkdtemp(prefix="xksfast-dev-"))
    health = development.default_health() if health is None else health
    admin = admin or development.default_admin()
    try:
        setup = development.make_setup(
            directory, http=http, tls=tls, admin=admin, health=health, key_source=key_source, workers=workers
        )

        def announce(bound: Bound) -> None:
            by_tls = {listener.tls: listener.address for listener in bound.proxy}
            assert bound.admin is not None
            health_url = bound.health.url if bound.health else None
            where = development.DevAddresses(by_tls[False], by_tls[True], bound.admin.address, health_url)
            if json:
                print(orjson.dumps(development.ready_document(setup, where)).decode(), flush=True)
            else:
                print(development.ready_text(setup, where), flush=True)

        # A terminal that is closed ends what runs in it; without one SIGHUP reloads, as for serve.
        hangup_ends = sys.stdout.isatty()
        raise typer.Exit(supervisor.run(load_config(setup.config_file), setup.config_file, announce, hangup_ends=hangup_ends))
    finally:
        if data is None:
            shutil.rmtree(directory, ignore_errors=True)
