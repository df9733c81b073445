# SPDX-License-Identifier: Apache-2.0
"""Every requirement of the XKS API has a test or a reason."""

from __future__ import annotations

from tests.spec import table


def test_every_requirement_has_a_test_or_a_reason() -> None:
    accounted = {*table.cited(), *table.reasons()}
    assert set(range(1, table.LAST + 1)) - accounted == set()
