# SPDX-License-Identifier: Apache-2.0
"""`xksfast state …`: the database itself, without a proxy: backup, restore, verify, and the keys that its secrets are sealed under.

What lives here: arguments, what is printed, exit codes. The work is done in state/.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer

from xksfast.admin.roster import ALIVE_WITHIN_MS
from xksfast.admin.token_master import TokenMasterKey
from xksfast.config import Config, load_config
from xksfast.errors import OperatorError
from xksfast.state.backup import BackupInfo, restore, verify_backup, write_backup
from xksfast.state.chain import CHECKPOINT_LABEL, renewed, verify
from xksfast.state.database import Database
from xksfast.state.master_key import MasterKey, configured_master_key
from xksfast.state.records import Checkpoint, SealedSecret
from xksfast.state.sealing import Sealer

LOOK_AGAIN_S = 3.0  # a heartbeat is sent every second

state_app = typer.Typer(help="The state's database: backup, restore, verify, keys.", no_args_is_help=True)

ConfigFile = Annotated[Path, typer.Option("--config", help="The configuration whose [state] is meant.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]


class StillRunning(OperatorError):
    """Refused by a rule: exit code 3."""

    exit_code = 3


@state_app.command("backup")
def backup(file: Annotated[Path, typer.Argument(help="A new file.")], config: ConfigFile, json: Json = False) -> None:
    """Write all of it to one file, secrets sealed as they are, while the proxies go on; then read the file again and verify it."""
    with _database(load_config(config)) as database:
        write_backup(database, file, _now_ms())
    _show_backup(file, verify_backup(file), json, "written and verified")


@state_app.command("verify-backup")
def verify_backup_command(file: Path, json: Json = False) -> None:
    """Whether a backup is whole: every line, the hash chain, the objects that it adds up to."""
    _show_backup(file, verify_backup(file), json, "good")


@state_app.command("restore")
def restore_command(file: Path, config: ConfigFile, json: Json = False) -> None:
    """Fill an empty database from a backup, all of it or nothing, and verify it. SQLite and PostgreSQL take each other's backups.

    Nodes that know more than the backup keep blocks in force, and put back keys and blocks when they are started again, unless they are
    started with `serve --accept-older-state`. Start those first that know the newest events.
    """
    with _database(load_config(config)) as database:
        info = restore(database, file)
    _show_backup(file, info, json, "restored and verified")


@state_app.command("verify")
def verify_command(config: ConfigFile, json: Json = False) -> None:
    """The hash chain over all events, the checkpoints' MACs, and whether the objects are what the events add up to. Exit code 1: no."""
    settings = load_config(config)
    with _database(settings) as database:
        sealer = Sealer.open_with(_master(settings), database.data_keys())
        report = verify(database, lambda data, mac: sealer.verify_mac(CHECKPOINT_LABEL, data, mac))
    problems = [problem.text for problem in report.problems]
    text = f"{report.events} events, head {report.head.hex()}: " + ("good" if report.is_good else "NOT good")
    _show(
        {"ok": report.is_good, "events": report.events, "head": report.head.hex(), "problems": problems},
        [text, *problems],
        json,
    )
    raise typer.Exit(0 if report.is_good else 1)


@state_app.command("rotate-master-key")
def rotate_master_key(
    config: ConfigFile,
    former: Annotated[Path, typer.Option("--former", help="A configuration with the master key that it is sealed under now.")],
    json: Json = False,
) -> None:
    """Wrap the data key anew, under the master key of --config. No secret is sealed anew; running nodes go on as they are."""
    new = load_config(config)
    with _database(new) as database:
        sealer = Sealer.open_with(_master(load_config(former)), database.data_keys())
        rows = sealer.rewrap(_master(new))
        with database.write("shell") as writer:
            for row in rows:
                writer.put_data_key(row)
        Sealer.open_with(_master(new), database.data_keys())
    text = f"{len(rows)} data keys are wrapped under the new master key; keep the former one until every node runs with the new"
    _show({"data_keys": len(rows)}, [text], json)


@state_app.command("rotate-data-key")
def rotate_data_key(config: ConfigFile, json: Json = False) -> None:
    """Seal every secret anew under a new data key. Only while no node runs: each holds the data key that it was started with."""
    settings = load_config(config)
    with _database(settings) as database:
        alive = _alive(database)
        if alive:
            raise StillRunning(
                f"node {', '.join(alive)} runs. Each node holds the data key that it was started with: after a rotation it could not "
                "open what others seal, and they would take its messages and checkpoints for forged. Nothing was changed. "
                f"Stop every node and try again, {ALIVE_WITHIN_MS // 1000} s later if one was killed; one that will not come back: "
                "`xksfast state forget-node NAME`"
            )
        master = _master(settings)
        sealer = Sealer.open_with(master, database.data_keys())

        def reseal(rows: list[SealedSecret], checkpoints: list[Checkpoint]) -> Any:
            rotation = sealer.rotate_data_key(master, rows, now=int(time.time()))
            return rotation.data_key, rotation.rows, renewed(checkpoints, partial(rotation.sealer.mac, CHECKPOINT_LABEL))

        count = database.replace_sealed("shell", reseal)
    _show({"secrets": count}, [f"{count} secrets are sealed under a new data key; the former one is gone"], json)


@state_app.command("forget-node")
def forget_node(name: str, config: ConfigFile, json: Json = False) -> None:
    """A node that will not come back: it is not listed any more, and nobody waits for it."""
    with _database(load_config(config)) as database:
        database.forget_node(name)
    _show({"forgotten": name}, [f"node {name} is forgotten"], json)


def _alive(database: Database) -> list[str]:
    """Nodes that were heard of just now by our clock, or are heard of again while we wait: their clocks may differ from ours.

    Not those that said that they have ended.
    """
    seen = {node.name: node.heartbeat_ms for node in database.nodes()}
    if not seen:
        return []
    time.sleep(LOOK_AGAIN_S)
    recently = _now_ms() - ALIVE_WITHIN_MS
    return [
        node.name
        for node in database.nodes()
        if not node.is_stopped and (node.heartbeat_ms > recently or node.heartbeat_ms != seen.get(node.name))
    ]


@contextmanager
def _database(config: Config) -> Iterator[Database]:
    if config.state.is_file:
        raise OperatorError("[state] url names a file, which git keeps: these commands are for a database")
    database = Database.open(config.state.url)
    try:
        yield database
    finally:
        database.close()


def _master(config: Config) -> MasterKey:
    return configured_master_key(config.state, partial(TokenMasterKey.of, config))


def _show_backup(file: Path, info: BackupInfo, json: bool, what: str) -> None:
    document = {
        "file": str(file),
        "seq": info.seq,
        "head": info.head.hex(),
        "at_ms": info.at_ms,
        "counts": {str(table): count for table, count in info.counts.items()},
    }
    _show(document, [f"{file}: {what}: event {info.seq}, {info.counts.get('objects', 0)} objects"], json)


def _show(document: dict[str, Any], lines: list[str], json: bool) -> None:
    if json:
        print(orjson.dumps(document).decode())
    else:
        print("\n".join(lines))


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
