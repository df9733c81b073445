# SPDX-License-Identifier: Apache-2.0
"""`xksfast partition list|add|test|replicate|verify`: arguments, what is printed, exit codes. The work is done in admin/.

Exit codes: 0 done, 1 failed, 2 wrong usage or configuration, 3 refused by a rule (the message names it), 4 done in part.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from threading import Timer
from typing import Annotated, Any

import msgspec
import typer

from xksfast.admin.partitions import adding, testing
from xksfast.admin.partitions.link import PartitionLink, partition_target, take_all
from xksfast.admin.partitions.listing import PartitionReport, list_partitions
from xksfast.admin.partitions.replica import Replica, VerifyReport, verify
from xksfast.admin.partitions.replication import KeyReport, Replicator
from xksfast.admin.partitions.transport import RefusedByRule, make_transport_key
from xksfast.config import Config, load_config
from xksfast.errors import OperatorError
from xksfast.state.store_file import load_store_file
from xksfast.toml_reader import nearest

DONE, FAILED, USAGE, REFUSED, IN_PART = 0, 1, 2, 3, 4
PROGRESS_AFTER_S = 1.0

partition_app = typer.Typer(help="HSM partitions: look, add, test, replicate keys, verify.", no_args_is_help=True)

ConfigFile = Annotated[
    Path, typer.Option("--config", envvar="XKSFAST_CONFIG", help="The configuration file (TOML).", show_envvar=True)
]
Json = Annotated[bool, typer.Option("--json", help="One JSON list or object on stdout; messages on stderr.")]
Keys = Annotated[
    list[str] | None, typer.Option("--key", help="CKA_LABEL of a key; may be repeated. Default: those of the state.")
]
CONFIG = Path("xksfast.toml")


@partition_app.command("list")
def list_command(config: ConfigFile = CONFIG, json: Json = False) -> None:
    """The partitions of the configuration, and what each token says of itself. Nobody logs in."""
    reports = list_partitions(load_config(config))
    _print(reports, json, "\n".join(_listed(report) for report in reports) or "no partitions are configured")
    raise typer.Exit(_code([not report.problem for report in reports]))


@partition_app.command("add")
def add_command(
    name: Annotated[str, typer.Argument(help="Name of the new partition.")],
    module: Annotated[str, typer.Option(help="Name of a configured module, or path of a PKCS#11 library.")],
    token_label: Annotated[str | None, typer.Option(help="Label of the token.")] = None,
    serial: Annotated[str | None, typer.Option(help="Serial number of the token.")] = None,
    slot: Annotated[int | None, typer.Option(help="Slot id.", min=0)] = None,
    pin_file: Annotated[Path | None, typer.Option(help="File with the PIN, mode 0600. Absent: no login.")] = None,
    profile: Annotated[str, typer.Option(help="Vendor profile.")] = "generic",
    sessions: Annotated[int, typer.Option(help="Sessions per worker process.", min=1, max=256)] = 16,
    group: Annotated[str | None, typer.Option(help="Partition group to join; made when there is none like it.")] = None,
    environment: Annotated[
        list[str] | None, typer.Option("--environment", help="NAME=VALUE that a new module reads; may be repeated.")
    ] = None,
    parameters: Annotated[str, typer.Option(help="LibraryParameters of a new module (NSS softoken).")] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Try the token and show the change; write nothing.")] = False,
    config: ConfigFile = CONFIG,
    json: Json = False,
) -> None:
    """Try a token, and add it to the configuration when it passes. Comments and order of the file stay."""
    wanted = adding.Wanted(
        name=name,
        module=module,
        token_label=token_label,
        serial=serial,
        slot=slot,
        pin_file=str(pin_file) if pin_file is not None else None,
        profile=profile,
        sessions=sessions,
        group=group,
        environment=dict(_assignment(text) for text in environment or []),
        parameters=parameters,
    )
    with _progress("try the token", 1):
        added = adding.prepare(config, wanted)
    if not dry_run:
        added.file.write()
    answer = {"name": name, "written": not dry_run, "token": added.token, "verdicts": added.verdicts, "diff": added.file.diff()}
    text = "".join(f"{verdict.level:6} {verdict.text}\n" for verdict in added.verdicts) + added.file.diff()
    _print(answer, json, text + (f"{config}: nothing was written" if dry_run else f"{config}: partition {name} was added"))
    if group is not None and len(added.file.config.partition_groups[group].partitions) > 1:
        _say(
            f"group {group} has several partitions now: run xksfast partition replicate {group}, then partition verify {group}"
        )


@partition_app.command("test")
def try_command(
    names: Annotated[list[str] | None, typer.Argument(metavar="[NAME]...", help="Partitions; default: all.")] = None,
    seconds: Annotated[float, typer.Option(help="Length of each throughput run.", min=0.05, max=60)] = 1.0,
    config: ConfigFile = CONFIG,
    json: Json = False,
) -> None:
    """Self-test, round-trip time, sessions, operations per second, and what the vendor advises. Loads the HSM for seconds."""
    configuration = load_config(config)
    chosen = [_known(name, configuration.partitions, "partition") for name in names or configuration.partitions]
    reports = []
    with _progress("test", len(chosen)) as step:
        for name in chosen:
            reports.append(testing.try_partition(configuration, name, run_s=seconds))
            step(name)
    _print(reports, json, "\n".join(testing.as_text(report) for report in reports) or "no partitions are configured")
    if any(report.level == "refuse" for report in reports):
        raise typer.Exit(REFUSED)
    raise typer.Exit(_code([report.level != "failed" for report in reports]))


@partition_app.command("replicate")
def replicate_command(
    group: Annotated[str | None, typer.Argument(help="Partition group.")] = None,
    source: Annotated[str | None, typer.Option("--from", help="Partition that has the keys; with --to.")] = None,
    target: Annotated[str | None, typer.Option("--to", help="Partition that shall have them.")] = None,
    key: Keys = None,
    make_transport: Annotated[
        bool,
        typer.Option(
            "--make-transport-key", help="Soft tokens only: make the transport key on the first, bring it to the others."
        ),
    ] = False,
    keep_extractable: Annotated[
        bool, typer.Option("--keep-extractable", help="Leave the source extractable, for partitions that join later.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done; change nothing.")] = False,
    config: ConfigFile = CONFIG,
    json: Json = False,
) -> None:
    """Bring keys to the partitions of a group that lack them, prove them, and make them non-extractable."""
    configuration = load_config(config)
    name, partitions = _scope(configuration, group, source, target)
    settings = configuration.partition_groups[name]
    transport: dict[str, str] = {}
    labels = [] if make_transport and not key else _labels(configuration, name, key)
    with _replicas(configuration, partitions) as replicas, _progress("replicate", len(labels)) as step:
        if make_transport and not dry_run:
            transport = make_transport_key(replicas, settings.transport_key)
        replicator = Replicator(
            replicas,
            transport_key=settings.transport_key,
            driver=settings.replication,
            keep_extractable=keep_extractable,
            dry_run=dry_run,
        )
        reports = []
        for label in labels:
            reports.append(replicator.replicate(label))
            step(label)
    answer = {"group": name, "dry_run": dry_run, "transport_key": transport, "keys": reports}
    lines = [f"transport key {settings.transport_key}: {_pairs(transport)}"] if transport else []
    _print(answer, json, "\n".join([*lines, *(_replicated(report) for report in reports)]))
    for report in reports:
        for text in [*report.problems, *report.notes]:
            _say(text)
    raise typer.Exit(_code([report.ok for report in reports]))


@partition_app.command("verify")
def verify_command(
    group: Annotated[str, typer.Argument(help="Partition group.")],
    key: Keys = None,
    config: ConfigFile = CONFIG,
    json: Json = False,
) -> None:
    """Each key on each partition: present once, AES-256, not extractable; and for every ordered pair encrypt here, decrypt there."""
    configuration = load_config(config)
    _known(group, configuration.partition_groups, "partition group")
    labels = _labels(configuration, group, key)
    reports = []
    partitions = configuration.partition_groups[group].partitions
    with _replicas(configuration, partitions, patient=True) as replicas, _progress("verify", len(labels)) as step:
        for label in labels:
            reports.append(verify(replicas, label))
            step(label)
    _print({"group": group, "keys": reports}, json, "\n".join(_verified(report) for report in reports))
    for report in reports:
        for text in [*report.problems, *report.notes]:
            _say(f"{report.key}: {text}")
    raise typer.Exit(_code([report.ok for report in reports]))


# --- arguments


def _known(name: str, known: dict[str, Any], what: str) -> str:
    if name not in known:
        raise OperatorError(f"there is no {what} {name!r}{nearest(name, known)}")
    return name


def _assignment(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise OperatorError(f"--environment {text!r}: write NAME=VALUE")
    return name, value


def _scope(config: Config, group: str | None, source: str | None, target: str | None) -> tuple[str, Sequence[str]]:
    """The group and its partitions, the source first; of a pair the group that both are in."""
    if (group is None) == (source is None and target is None) or (source is None) != (target is None):
        raise OperatorError("name a partition group, or a pair by --from and --to")
    if group is not None:
        return group, config.partition_groups[_known(group, config.partition_groups, "partition group")].partitions
    assert source is not None
    assert target is not None
    pair = (_known(source, config.partitions, "partition"), _known(target, config.partitions, "partition"))
    if source == target:
        raise OperatorError(f"--from and --to both name {source!r}")
    for name, settings in config.partition_groups.items():
        if set(pair) <= set(settings.partitions):
            return name, pair
    raise RefusedByRule(
        f"partitions {source!r} and {target!r} are in no common group: a key belongs to a group's partitions only"
    )


def _labels(config: Config, group: str, given: list[str] | None) -> list[str]:
    """What was asked for, or else every key that the state and the configuration name for the group."""
    if given:
        return list(dict.fromkeys(given))
    labels, where = _labels_in_file(config, group) if config.state.is_file else _labels_in_database(config, group)
    health = config.partition_groups[group].health_check_key
    found = list(dict.fromkeys([*labels, *([health] if health else [])]))
    if not found:
        raise OperatorError(f"no key of group {group!r} stands in {where}: name keys with --key")
    return found


def _labels_in_file(config: Config, group: str) -> tuple[list[str], str]:
    """(labels of the group's keys, where they stand)."""
    document = load_store_file(Path(config.state.store_file), config)
    stores = [store for store in document.key_stores.values() if store.partition_group == group]
    return [key.label for store in stores for key in store.keys.values()], config.state.store_file


def _labels_in_database(config: Config, group: str) -> tuple[list[str], str]:
    """The same, of every version: what former ones encrypted must be readable everywhere as well. Nodes may serve at the same time."""
    from xksfast.state.database import Database  # it brings SQLAlchemy
    from xksfast.state.objects import Key, KeyStore

    database = Database.open(config.state.url, create=False)
    try:
        objects = [value for value, _ in database.load().objects]
        where = database.description
    finally:
        database.close()
    stores = {value.name for value in objects if isinstance(value, KeyStore) and value.partition_group == group}
    keys = [value for value in objects if isinstance(value, Key) and value.store in stores]
    return [version.label for key in keys for version in key.versions], where


@contextmanager
def _replicas(config: Config, names: Sequence[str], *, patient: bool = False) -> Iterator[list[Replica]]:
    """Open links, all at once. patient: one that cannot be opened says so with each use, instead of ending the command."""
    with ExitStack() as stack:
        links = [stack.enter_context(PartitionLink(partition_target(config, name))) for name in names]
        for link in links:
            link.post_open()
        failures = [answer for answer in take_all(links, type(None)).values() if answer is not None]
        if failures and not patient:
            for failure in failures[:-1]:
                _say(str(failure))
            raise failures[-1]
        yield [
            Replica(link, config.partitions[link.name].wrap_mechanism_number, config.partitions[link.name].profile)
            for link in links
        ]


# --- printing


def _print(document: Any, json: bool, text: str) -> None:
    print(msgspec.json.encode(document).decode() if json else text)


def _say(text: str) -> None:
    print(f"xksfast: {text}", file=sys.stderr)


def _code(good: list[bool]) -> int:
    if all(good):
        return DONE
    return IN_PART if any(good) else FAILED


def _pairs(values: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())


def _listed(report: PartitionReport) -> str:
    head = f"{report.name}: {report.profile}"
    head += f", site {report.site}" if report.site else ""
    head += f", in {', '.join(report.groups)}" if report.groups else ", in no group"
    if report.token is None:
        return f"{head}\n  NOT REACHED: {report.problem}"
    token = report.token
    free = "no limit told" if token.free_sessions is None else str(token.free_sessions)
    return (
        f"{head}\n  token {token.label!r}, {token.manufacturer} {token.model}, firmware {token.firmware}, serial {token.serial}\n"
        f"  free sessions: {free}; flags: {', '.join(token.flags)}\n  module {report.module_path}"
    )


def _replicated(report: KeyReport) -> str:
    state = "would be" if report.planned else "ok" if report.ok else "NOT DONE"
    return f"{report.key}: {state}: {_pairs(dict(report.partitions))}"


def _verified(report: VerifyReport) -> str:
    lines = [f"{report.key}: {'ok' if report.ok else 'DIFFERS'}"]
    for name, held in report.partitions.items():
        rights = " ".join(right for right in ("encrypt", "decrypt") if getattr(held, right))
        lines.append(f"  {name}: {held.problem or 'AES-256, ' + (rights or 'no rights')}")
    lines += [f"  {pair.encrypted_on} -> {pair.decrypted_on}: {pair.result}" for pair in report.pairs]
    return "\n".join(lines)


@contextmanager
def _progress(text: str, total: int) -> Iterator[Callable[[str], None]]:
    """A bar on a terminal's stderr, for work that takes longer than a second."""
    if not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        yield lambda what: None
        return
    from rich.console import Console
    from rich.progress import Progress

    bar = Progress(console=Console(stderr=True, no_color="NO_COLOR" in os.environ), transient=True)
    task = bar.add_task(text, total=total)
    timer = Timer(PROGRESS_AFTER_S, bar.start)
    timer.daemon = True
    timer.start()
    try:
        yield lambda what: bar.update(task, advance=1, description=f"{text} {what}")
    finally:
        timer.cancel()
        timer.join()
        bar.stop()
