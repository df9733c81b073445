# SPDX-License-Identifier: Apache-2.0
"""The schema's revisions, run by `xksfast.state.migrate` when a database is opened. A revision that was released is never changed."""
