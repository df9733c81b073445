# SPDX-License-Identifier: Apache-2.0
"""Patterns of AWS principals: what they match, and that no pattern and no principal keeps the event loop."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.setups import Setup
from xksfast.proxy.principals import PrincipalPatterns
from xksfast.state import rules
from xksfast.wire import limits

MAX_CHARS = limits.MAX_PRINCIPAL_CHARS


def matches(pattern: str, principal: str) -> bool:
    """By definition: which beginnings of the principal the pattern's beginnings match, one character after the other."""
    ends = {0}
    for character in pattern:
        if character == "*":
            ends = set(range(min(ends), len(principal) + 1)) if ends else set()
        else:
            ends = {end + 1 for end in ends if principal[end : end + 1] == character}
    return len(principal) in ends


@given(st.text("ab*", max_size=9), st.text("ab", max_size=12))
@example("*a", "ba")
@example("a*a", "a")
@example("*", "")
@example("", "")
def test_a_star_stands_for_any_run_of_characters_and_the_ends_are_fixed(pattern: str, principal: str) -> None:
    assert PrincipalPatterns((pattern,)).permits(principal) is matches(pattern, principal)


@given(st.lists(st.text("aé𝄞.\n*", max_size=6), min_size=1, max_size=4), st.text("aé𝄞.\n*", max_size=8))
def test_one_of_several_patterns_is_enough_and_no_other_character_is_special(patterns: list[str], principal: str) -> None:
    assert PrincipalPatterns(tuple(patterns)).permits(principal) is any(matches(pattern, principal) for pattern in patterns)


@pytest.mark.parametrize(
    ("pattern", "principal"),
    [
        ("*a*a*a*a*a*a*a*a*a*a*a*a*a*a*!", "arn:aws:iam::111122223333:role/" + "a" * 60),
        ("arn:aws:sts::*:assumed-role/*-app/*-svc", "arn:aws:sts::" + ":assumed-role/-app/" * 800),
        ("*a" * 127 + "*b", "a" * MAX_CHARS),
        ("*" + "a" * 127 + "b" + "a" * 127, "a" * MAX_CHARS),
        ("*" * 255 + "b", "a" * MAX_CHARS),
    ],
)
def test_no_pattern_takes_long_for_any_principal(pattern: str, principal: str) -> None:
    patterns = PrincipalPatterns((pattern,) * rules.MAX_ALLOWED_PRINCIPALS)
    began = time.monotonic()
    assert not patterns.permits(principal)
    assert time.monotonic() - began < 1.0


@pytest.mark.parametrize(("length", "status"), [(MAX_CHARS - 1, 200), (MAX_CHARS, 200), (MAX_CHARS + 1, 400)])
def test_a_principal_longer_than_any_arn_is_not_valid(serving: Setup, length: int, status: int) -> None:
    client = serving.client()
    for operation in ("encrypt", "metadata"):
        document = client.valid(operation)
        document["requestMetadata"]["awsPrincipalArn"] = "arn:aws:iam::111122223333:role/".ljust(length, "x")
        answer = client.call(operation, document)
        assert (answer.status, answer.error) == (status, "ValidationException" if status == 400 else "")
        if status == 400:
            assert "awsPrincipalArn is longer than 2048 characters" in answer.document["errorMessage"]
    client.close()


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setup]:
    """A server with a local key that any principal may use."""
    setup = Setup(tmp_path_factory.mktemp("principals"))
    with setup.running():
        yield setup


MANY = tuple(f"arn:aws:iam::111122223333:role/{number}" for number in range(101))


@pytest.mark.parametrize(
    ("patterns", "problem"),
    [
        (MANY[:100], None),
        (MANY, "at most 100 patterns, not 101"),
        (("*", "x" * 256), None),
        (("*", "x" * 257), "1 to 256 characters, and number 2 has 257"),
        (("",), "1 to 256 characters"),
    ],
)
def test_patterns_are_bounded_in_number_and_length(patterns: tuple[str, ...], problem: str | None) -> None:
    said = rules.principals_problem(patterns)
    assert said is None if problem is None else problem in str(said)


def test_a_state_file_with_too_many_patterns_is_refused_by_its_key(tmp_path: Path) -> None:
    setup = Setup(tmp_path)
    setup.stores["key_stores"]["one"]["allowed_principals"] = list(MANY)
    process = setup.start(ready=False)
    assert process.popen.wait(30) == 2
    said = process.log_file.read_text()
    assert "key_stores.one.allowed_principals" in said
    assert "at most 100 patterns, not 101" in said
