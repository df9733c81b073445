# SPDX-License-Identifier: Apache-2.0
"""Fixtures of all tests live in the fix_* plugins beside this file; what they have in common with the benchmarks in bench/."""

import pytest

pytest_plugins = ["tests.fix_proxy", "tests.fix_database", "tests.fix_aws", "tests.fix_admin", "tests.fix_scenario"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest ones first: two processes share the files, and what comes last should be short."""
    items.sort(key=lambda item: not item.nodeid.startswith("tests/scenario/"))
