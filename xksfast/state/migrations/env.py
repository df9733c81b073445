# SPDX-License-Identifier: Apache-2.0
"""Alembic's entry: runs the revisions on the connection, and in the transaction, that xksfast.state.migrate holds the lock in."""

from __future__ import annotations

from alembic import context

context.configure(connection=context.config.attributes["connection"], transactional_ddl=True)
with context.begin_transaction():
    context.run_migrations()
