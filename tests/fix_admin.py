# SPDX-License-Identifier: Apache-2.0
"""Fixtures: the administration of a node, with its REST listener."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:  # other tests do without them
    import httpx

    from tests.admin.api.rig import Rig


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """One for a module: tests take names of their own."""
    from tests.admin.api.rig import running

    with running(tmp_path_factory.mktemp("admin")) as found:
        yield found


@pytest.fixture
def admin(rig: Rig) -> Iterator[httpx.Client]:
    """A client who may do everything."""
    with rig.client() as client:
        yield client
