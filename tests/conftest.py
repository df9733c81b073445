# SPDX-License-Identifier: Apache-2.0
"""Fixtures of all tests live in the fix_* plugins beside this file; what they have in common with the benchmarks in bench/."""

from collections.abc import Callable
from typing import Any

import pytest

from xksfast import log

pytest_plugins = ["tests.fix_proxy", "tests.fix_database", "tests.fix_aws", "tests.fix_admin", "tests.fix_scenario"]


@pytest.fixture
def capfd(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> pytest.CaptureFixture[str]:
    """What is read is all that was logged so far: a thread writes it."""
    read: Callable[[], Any] = capfd.readouterr

    def read_all() -> Any:
        assert log.flush(10)
        return read()

    monkeypatch.setattr(capfd, "readouterr", read_all)
    return capfd


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest ones first: two processes share the files, and what comes last should be short."""
    items.sort(key=lambda item: not item.nodeid.startswith("tests/scenario/"))
