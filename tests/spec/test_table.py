# SPDX-License-Identifier: Apache-2.0
"""Every requirement of the XKS API has a test or a reason."""

from __future__ import annotations

from tests.spec import table


def test_every_requirement_has_a_test_or_a_reason() -> None:
    accounted = {*table.cited(), *table.reasons()}
    assert set(table.numbered()) - accounted == set()


def test_no_test_cites_a_requirement_that_does_not_exist() -> None:
    assert {*table.cited(), *table.reasons()} - set(table.numbered()) == set()


def test_requirements_are_numbered_without_gaps() -> None:
    numbers = table.numbered()
    assert numbers == list(range(1, len(numbers) + 1))
    assert len(numbers) > 100
