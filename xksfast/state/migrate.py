# SPDX-License-Identifier: Apache-2.0
"""Making and changing the schema as a database is opened: under the write lock, so that many nodes may start at once.

Alembic is imported only when there is something to do.
"""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import Connection, inspect, text

from xksfast.state.backend import Backend
from xksfast.state.errors import StateAbsent, StateError, StateTooNew
from xksfast.state.schema import REVISION

_MIGRATIONS = Path(__file__).with_name("migrations")


def bring_up_to_date(backend: Backend, *, create: bool) -> None:
    """Until the schema is this program's. create: an empty database may be filled. StateError when it may not, or is newer."""
    with backend.engine.connect() as connection:
        found = revision_of(connection)
    if found == REVISION:
        return
    if found is None and not create:
        raise StateAbsent(f"{backend.description} holds no state: correct [state] url, or start xksfast once to create it")
    with backend.begin_write() as connection:
        found = revision_of(connection)  # another node may have done it while we waited
        if found == REVISION:
            return
        backend.take_your_time(connection)
        _upgrade(connection, backend.description, found)
        connection.commit()


def revision_of(connection: Connection) -> str | None:
    """The schema's revision; None: there is no schema."""
    if not inspect(connection).has_table("alembic_version"):
        return None
    found = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
    return None if found is None else str(found)


def _upgrade(connection: Connection, where: str, found: str | None) -> None:
    from alembic import command
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    if found is not None and found not in known:
        raise StateTooNew(
            f"{where} was made by a newer xksfast (its schema is revision {found}, this program knows up to {REVISION}): "
            "update this node, or restore a backup from before the update"
        )
    if found is None and inspect(connection).has_table("events"):
        raise StateError(
            f"{where} is used by something else: it has a table named events that is not ours. Give xksfast its own database"
        )
    command.upgrade(config, "head")
