# SPDX-License-Identifier: Apache-2.0
"""Opening a Database: its schema, URLs that are taken and refused, and how each backend is set up; on SQLite and on PostgreSQL."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import text

from bench.postgres import PostgresServer
from tests.state.making import a_key, a_store, created, write
from xksfast.state import schema
from xksfast.state.database import Database
from xksfast.state.errors import StateError, StateTooNew, StateUnavailable

Open = Callable[[], Database]


def test_the_migrations_make_exactly_the_schema(empty_url: str) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    database = Database.open(empty_url)
    with database.reading() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        assert compare_metadata(context, schema.metadata) == []
    database.close()


def test_the_programs_revision_is_the_newest_migration() -> None:
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", str(Path(schema.__file__).with_name("migrations")))
    assert ScriptDirectory.from_config(config).get_heads() == [schema.REVISION]


def test_opening_again_keeps_everything(open_database: Open) -> None:
    events = write(open_database(), created(a_store()))
    assert open_database().load().objects == [(a_store(), 1)]
    assert open_database().events_since(0) == events


def test_several_nodes_may_create_the_schema_at_once(empty_url: str) -> None:
    barrier = threading.Barrier(3)
    problems: list[Exception] = []

    def start() -> None:
        barrier.wait()
        try:
            Database.open(empty_url).close()
        except Exception as error:
            problems.append(error)

    threads = [threading.Thread(target=start) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []


def test_a_schema_that_is_newer_than_the_program_is_refused(database: Database, database_url: str) -> None:
    with database.restoring() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(StateTooNew, match=r"revision 9999.*update this node"):
        Database.open(database_url)


def test_a_database_with_no_state_is_refused_when_none_is_to_be_created(empty_url: str) -> None:
    with pytest.raises(StateError, match=r"holds no state|no such file"):
        Database.open(empty_url, create=False)


def test_a_database_that_belongs_to_somebody_else_is_left_alone(empty_url: str, postgres: PostgresServer) -> None:
    if empty_url.startswith("sqlite"):
        with sqlite3.connect(empty_url.removeprefix("sqlite:///")) as connection:
            connection.execute("CREATE TABLE events (what TEXT)")
        connection.close()
    else:
        postgres.execute("CREATE TABLE events (what TEXT)", empty_url.rpartition("/")[2])
    with pytest.raises(StateError, match="used by something else"):
        Database.open(empty_url)


@pytest.mark.parametrize("url", ["", "mysql://host/db", "sqlite://", "sqlite:///", "xksfast.db", "sqlite:relative"])
def test_urls_of_other_kinds_are_refused_with_the_right_form(url: str) -> None:
    with pytest.raises(StateError, match=r"sqlite:///xksfast\.db"):
        Database.open(url)


def test_a_sqlite_state_is_for_its_owner_only_and_synced_at_each_commit(tmp_path: Path) -> None:
    (tmp_path / "old.db").touch(mode=0o644)
    for name in ("new.db", "old.db"):
        database = Database.open(f"sqlite:///{tmp_path / name}")
        write(database, created(a_store()))
        with database.reading() as connection:
            settings = [
                connection.execute(text(f"PRAGMA {name}")).scalar() for name in ("journal_mode", "synchronous", "foreign_keys")
            ]
        assert settings == ["wal", 2, 1]
        assert {path.stat().st_mode & 0o777 for path in tmp_path.glob(f"{name}*")} == {0o600}
        database.close()


def test_another_process_that_closes_the_file_does_not_take_what_was_committed_with_it(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    database = Database.open(f"sqlite:///{path}")
    write(database, created(a_store()))
    Database.open(f"sqlite:///{path}").close()  # as who verifies the log does, within a node
    read_and_close = (
        f"import sqlite3; c = sqlite3.connect({str(path)!r}); c.execute('SELECT count(*) FROM events').fetchone(); c.close()"
    )
    subprocess.run([sys.executable, "-c", read_and_close], check=True, timeout=30)
    assert path.with_name("state.db-wal").exists()
    write(database, created(a_key()))
    again = Database.open(f"sqlite:///{path}")
    assert again.load().seq == 2
    again.close()
    database.close()


def test_a_sqlite_path_that_is_a_directory_is_told(tmp_path: Path) -> None:
    with pytest.raises(StateUnavailable, match="is no file: correct"):
        Database.open(f"sqlite:///{tmp_path}")


def test_a_sqlite_url_may_be_relative(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Database.open("sqlite:///here.db").close()
    assert (tmp_path / "here.db").is_file()


@pytest.mark.parametrize(("configured", "used"), [("off", "on"), ("local", "on"), ("remote_apply", "remote_apply")])
def test_what_is_committed_is_on_the_servers_disk_first(postgres: PostgresServer, configured: str, used: str) -> None:
    url = postgres.migrated_database()
    postgres.execute(f"ALTER DATABASE {url.rpartition('/')[2]} SET synchronous_commit = {configured}")
    database = Database.open(url)
    with database.reading() as connection:
        assert connection.execute(text("SHOW synchronous_commit")).scalar() == used
    database.close()


def test_opening_what_is_up_to_date_imports_neither_alembic_nor_another_driver(migrated_file: Path) -> None:
    code = (
        "import sys; from xksfast.state.database import Database; Database.open(sys.argv[1]).close(); "
        "print(sorted({'alembic', 'psycopg'} & set(sys.modules)))"
    )
    url = f"sqlite:///{migrated_file}"
    done = subprocess.run([sys.executable, "-c", code, url], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
