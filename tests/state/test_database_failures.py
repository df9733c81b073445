# SPDX-License-Identifier: Apache-2.0
"""A database that is away, hangs, is full, read-only or locked: an error in time and in words, nothing changed, no password shown."""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import event, text

from bench.postgres import PASSWORD, PostgresServer
from tests.servers import wait_until
from tests.state.making import ALICE, NOW_MS, a_key, a_store, created, opened, put, write
from xksfast.state.chain import verify
from xksfast.state.database import Database
from xksfast.state.errors import (
    OutcomeUnknown,
    StateCorrupt,
    StateError,
    StateFull,
    StateReadOnly,
    StateUnavailable,
)
from xksfast.state.postgres import PatientConnection

ANSWER_S = 3.5  # "about two seconds", on a slow machine
Open = Callable[[], Database]


@pytest.fixture
def on_postgres(postgres: PostgresServer) -> Iterator[Database]:
    database = Database.open(postgres.migrated_database())
    yield database
    database.close()


@pytest.fixture
def on_sqlite(tmp_path: Path) -> Iterator[Database]:
    database = Database.open(f"sqlite:///{tmp_path / 'state.db'}")
    yield database
    database.close()


@contextmanager
def in_time() -> Iterator[None]:
    began = time.monotonic()
    yield
    assert time.monotonic() - began < ANSWER_S


# --- PostgreSQL


def test_a_server_that_hangs_is_an_error_and_then_serves_again(on_postgres: Database, postgres: PostgresServer) -> None:
    write(on_postgres, created(a_store()))
    with postgres.hanging():
        with in_time(), pytest.raises(StateUnavailable, match="no answer within 2 s"):
            on_postgres.load()
        with in_time(), pytest.raises(StateUnavailable, match="see that it runs"):
            write(on_postgres, created(a_key()))
    assert on_postgres.load().seq == 1
    write(on_postgres, created(a_key()))
    assert verify(on_postgres).is_good


def test_a_server_that_hangs_in_the_middle_of_a_transaction_changes_nothing(
    on_postgres: Database, postgres: PostgresServer
) -> None:
    def hang_half_way() -> None:
        with on_postgres.write("n1") as writer:
            writer.append([created(a_store())], ALICE, NOW_MS)
            with postgres.hanging():
                writer.append([created(a_key())], ALICE, NOW_MS)

    with in_time(), pytest.raises(StateUnavailable):
        hang_half_way()
    assert on_postgres.load().seq == 0


def test_a_server_that_is_away_is_an_error_at_once_and_then_serves_again(
    on_postgres: Database, postgres: PostgresServer
) -> None:
    write(on_postgres, created(a_store()))
    with postgres.away():
        for action in (on_postgres.load, lambda: write(on_postgres, created(a_key()))):
            with in_time(), pytest.raises(StateUnavailable, match="see that it runs"):
                action()
    assert on_postgres.load().seq == 1
    write(on_postgres, created(a_key()))


def test_a_server_that_was_started_anew_costs_no_error(on_postgres: Database, postgres: PostgresServer) -> None:
    write(on_postgres, created(a_store()))
    with postgres.away():
        pass
    assert on_postgres.load().seq == 1


def test_a_commit_whose_answer_is_lost_is_told_apart_from_one_that_failed(
    on_postgres: Database, postgres: PostgresServer
) -> None:
    hanging = postgres.hanging()
    event.listen(on_postgres._backend.engine, "commit", lambda _connection: hanging.__enter__(), once=True)
    with in_time(), pytest.raises(OutcomeUnknown) as caught:
        write(on_postgres, created(a_store()))
    hanging.__exit__(None, None, None)
    with on_postgres.write("n1") as after:  # under the lock the answer is final
        assert after.has_transaction(caught.value.transaction) == (after.seq == 1)


def test_a_store_finds_out_what_became_of_a_commit(on_postgres: Database, postgres: PostgresServer) -> None:
    store = opened(on_postgres)
    store.transact(ALICE, put(a_store()))
    hanging = postgres.hanging()

    def hang(_connection: object) -> None:
        hanging.__enter__()
        threading.Timer(2.2, hanging.__exit__, (None, None, None)).start()

    event.listen(on_postgres._backend.engine, "commit", hang, once=True)
    try:
        committed = store.transact(ALICE, put(a_key()))
    except StateUnavailable:  # it was not there; then it never comes
        assert opened(on_postgres).seq == store.seq == 1
    else:
        assert [event.seq for event in committed.events] == [2]
        assert opened(on_postgres).seq == store.seq == 2
    store.transact(ALICE, put(a_key("payments", "next")))
    assert verify(on_postgres).is_good


def test_a_store_that_cannot_find_out_says_so_and_is_right_later(on_postgres: Database, postgres: PostgresServer) -> None:
    store = opened(on_postgres)
    hanging = postgres.hanging()
    event.listen(on_postgres._backend.engine, "commit", lambda _connection: hanging.__enter__(), once=True)
    with pytest.raises(OutcomeUnknown, match="look before trying again"):
        store.transact(ALICE, put(a_store()))
    assert store.seq == 0
    hanging.__exit__(None, None, None)
    store.transact(ALICE, put(a_key()))
    with store.reading() as state:
        assert state.seq == len(on_postgres.events_since(0))
    assert verify(on_postgres).is_good


def test_a_node_that_keeps_the_lock_does_not_make_others_wait_for_ever(on_postgres: Database, postgres: PostgresServer) -> None:
    with (
        psycopg.connect(postgres.admin_conninfo.replace("dbname=postgres", f"dbname={database_of(on_postgres)}")) as other,
        other.cursor() as cursor,
    ):
        cursor.execute("SELECT pg_advisory_xact_lock(%s)", (0x786B736661737401,))
        with in_time(), pytest.raises(StateUnavailable, match="another node holds the write lock"):
            write(on_postgres, created(a_store()))
        other.rollback()
        write(on_postgres, created(a_store()))


def test_a_statement_that_is_too_slow_is_told_except_in_a_migration(on_postgres: Database) -> None:
    backend = on_postgres._backend
    with on_postgres.explained(), backend.begin_write() as connection:
        backend.take_your_time(connection)
        connection.execute(text("SELECT pg_sleep(2.2)"))
        connection.commit()
    with in_time(), pytest.raises(StateUnavailable, match=r"too slow|no answer"), on_postgres.reading() as connection:
        connection.execute(text("SELECT pg_sleep(2.2)"))


def test_a_standby_is_read_only(on_postgres: Database, postgres: PostgresServer) -> None:
    name = database_of(on_postgres)
    write(on_postgres, created(a_store()))
    postgres.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    on_postgres.close()
    with pytest.raises(StateReadOnly, match="Name the primary"):
        write(on_postgres, created(a_key()))
    reading = Database.open(postgres.url(name) + "?target_session_attrs=any")
    assert reading.load().seq == 1
    with pytest.raises(StateReadOnly, match="takes no changes"):
        write(reading, created(a_key()))
    reading.close()


def test_a_role_without_rights_is_told(on_postgres: Database, postgres: PostgresServer) -> None:
    postgres.execute("DROP ROLE IF EXISTS reader")
    postgres.execute("CREATE ROLE reader LOGIN PASSWORD 'r'")
    postgres.execute("GRANT SELECT ON ALL TABLES IN SCHEMA public TO reader", database_of(on_postgres))
    url = postgres.url(database_of(on_postgres)).replace(f"xksfast:{PASSWORD}@", "reader:r@")
    database = Database.open(url)
    with pytest.raises(StateReadOnly, match="owner of the database"):
        write(database, created(a_store()))
    database.close()
    postgres.execute("DROP OWNED BY reader; DROP ROLE reader", database_of(on_postgres))


def test_a_disk_that_is_full_at_the_server_is_told(on_postgres: Database) -> None:
    with pytest.raises(StateFull, match="Make room"), on_postgres.restoring() as connection:
        connection.execute(text("DO $$ BEGIN RAISE EXCEPTION 'could not extend file' USING ERRCODE = '53100'; END $$"))


def test_no_message_shows_the_password(postgres: PostgresServer) -> None:
    url = postgres.migrated_database()
    name = url.rpartition("/")[2]
    closed = url.replace(f":{postgres._port}/", ":1/")
    wrong = [
        closed,
        url.replace(name, "no_such_database"),
        url.replace("xksfast:", "nobody:"),
        url.replace(PASSWORD, PASSWORD + "x"),
        url + "?no_such_option=1",
        url.replace("@127", "@[127"),
        url.replace(":" + PASSWORD, ":" + PASSWORD + "%zz"),
        url + "?connect_timeout=abc",
    ]
    for each in wrong:
        with pytest.raises(StateError) as caught:
            Database.open(each)
        told = f"{caught.value} {caught.value.__cause__}"
        assert "geheim" not in told, each
    database = Database.open(url)
    assert "geheim" not in database.description
    database.close()


def test_a_database_of_another_encoding_is_refused(postgres: PostgresServer) -> None:
    postgres.execute("CREATE DATABASE latin ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0")
    with pytest.raises(StateUnavailable, match="ENCODING 'UTF8'"):
        Database.open(postgres.url("latin"))


def database_of(database: Database) -> str:
    return database.description.split()[2]


def test_a_listener_ends_though_the_server_hangs_and_comes_back_when_it_does(
    on_postgres: Database, postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    given_up: list[float] = []
    give_up = PatientConnection._give_up
    monkeypatch.setattr(
        PatientConnection, "_give_up", lambda connection: (give_up(connection), given_up.append(time.monotonic()))
    )
    hints: list[int] = []
    stop = threading.Event()
    listener = threading.Thread(target=on_postgres.listen, args=(hints.append, stop))
    listener.start()
    wait_until(lambda: hints == [0], "the listener is there")
    write(on_postgres, created(a_store()))
    wait_until(lambda: hints == [0, 1], "the announcement")
    with postgres.hanging():
        wait_until(lambda: given_up, "the listener has given up")
    wait_until(lambda: hints == [0, 1, 0], "the listener is back")
    with postgres.hanging():
        wait_until(lambda: len(given_up) == 2, "the listener has given up again")
        stop.set()
        listener.join(6)
        assert not listener.is_alive()


# --- SQLite


def test_a_file_that_cannot_grow_is_told_and_nothing_is_changed(on_sqlite: Database) -> None:
    write(on_sqlite, created(a_store()))
    with on_sqlite.reading() as connection:
        pages = connection.execute(text("PRAGMA page_count")).scalar()
        connection.execute(text(f"PRAGMA max_page_count = {pages}"))
    with pytest.raises(StateFull, match="Make room"):
        write(on_sqlite, *(created(a_key("payments", f"k{i}", description="x" * 1000)) for i in range(200)))
    assert on_sqlite.load().seq == 1
    with on_sqlite.reading() as connection:
        connection.execute(text("PRAGMA max_page_count = 1000000"))
    write(on_sqlite, created(a_key()))
    assert verify(on_sqlite).is_good


@pytest.fixture
def readable_by_all() -> Iterator[Path]:
    """A directory whose parents everybody may enter, unlike pytest's."""
    directory = Path(tempfile.mkdtemp(prefix="xksfast-ro-"))
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory)


@contextmanager
def without_rights() -> Iterator[None]:
    """Root may write everywhere, so be nobody for a while."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_file_that_may_not_be_written_is_told(readable_by_all: Path) -> None:
    path = readable_by_all / "state.db"
    Database.open(f"sqlite:///{path}").close()
    path.chmod(0o444)
    readable_by_all.chmod(0o555)
    with without_rights(), pytest.raises(StateReadOnly, match="give the file and its directory to the user"):
        Database.open(f"sqlite:///{path}")
    readable_by_all.chmod(0o755)


def test_a_file_that_becomes_read_only_is_told(on_sqlite: Database) -> None:
    with on_sqlite.reading() as connection:
        connection.execute(text("PRAGMA query_only = ON"))
    with pytest.raises(StateReadOnly, match="nothing was changed"):
        write(on_sqlite, created(a_store()))


def test_a_file_that_another_process_writes_is_waited_for_in_vain_for_two_seconds(on_sqlite: Database, tmp_path: Path) -> None:
    other = sqlite3.connect(tmp_path / "state.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with in_time(), pytest.raises(StateUnavailable, match="is locked"):
        write(on_sqlite, created(a_store()))
    assert on_sqlite.load().seq == 0  # reading goes on
    other.execute("ROLLBACK")
    other.close()
    write(on_sqlite, created(a_store()))


def test_a_file_that_is_no_database_is_told(tmp_path: Path) -> None:
    (tmp_path / "state.db").write_bytes(b"not a database, " * 100)
    with pytest.raises(StateCorrupt, match="restore a backup"):
        Database.open(f"sqlite:///{tmp_path / 'state.db'}")


def test_a_directory_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(StateUnavailable, match="its directory is not there"):
        Database.open(f"sqlite:///{tmp_path / 'nowhere' / 'state.db'}")
