# SPDX-License-Identifier: Apache-2.0
"""The local copy: what was written comes back, where it ends is read alone, and what is damaged or forged is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.state.making import DATA_KEY, a_credential, a_key, a_source, a_store
from tests.state.test_sealing import MASTER
from xksfast.errors import OperatorError
from xksfast.state.local_copy import is_genuine, read_copy, read_position, write_copy
from xksfast.state.objects import Stored
from xksfast.state.records import Loaded
from xksfast.state.sealing import Sealer

SEALER, _ = Sealer.new(MASTER, now=0)
OBJECTS: list[tuple[Stored, int]] = [(a_store(), 4), (a_credential(), 2), (a_source(), 3), (a_key(description="naïve ☂"), 7)]
HEAD = bytes(range(32))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "copy.jsonl"
    write_copy(path, Loaded(OBJECTS, 7, HEAD), [DATA_KEY], [SEALER.new_local_key("k1"), SEALER.new_local_key("k2")], SEALER)
    return path


def test_what_was_written_comes_back(file: Path) -> None:
    found = read_copy(file)
    assert found is not None
    copy, mac, over = found
    assert (copy.seq, copy.head, copy.data_keys, copy.objects) == (7, HEAD, [DATA_KEY], OBJECTS)
    assert [row.id for row in copy.secrets] == ["k1", "k2"]
    assert is_genuine(mac, over, SEALER)
    assert file.stat().st_mode & 0o777 == 0o600
    assert not is_genuine(mac, over, Sealer.new(MASTER, now=0)[0])


def test_where_it_ends_is_read_without_the_rest(file: Path) -> None:
    assert read_position(file) == (7, HEAD)
    file.write_bytes(file.read_bytes().splitlines(keepends=True)[0] + b"not JSON\n")
    assert read_position(file) == (7, HEAD)
    with pytest.raises(
        OperatorError, match=r"is damaged .* move it away, and keep it, .*; the node then needs the database to start"
    ):
        read_copy(file)


def test_there_may_be_none(tmp_path: Path) -> None:
    assert read_position(tmp_path / "none") is None
    assert read_copy(tmp_path / "none") is None


@pytest.mark.parametrize("content", [b"", b"\n", b"{}\n", b"\xff\xfe\n", b'{"format":1}\n{"mac":""}\n', b"x" * 100])
def test_a_damaged_beginning_is_told(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    for read in (read_position, read_copy):
        with pytest.raises(OperatorError, match=r"copy\.jsonl is damaged"):
            read(file)


def test_another_format_is_told(file: Path) -> None:
    file.write_bytes(file.read_bytes().replace(b'{"format":1', b'{"format":2', 1))
    for read in (read_position, read_copy):
        with pytest.raises(OperatorError, match="format 2 is none that this version reads"):
            read(file)


def test_any_changed_line_makes_it_not_genuine(file: Path) -> None:
    lines = file.read_bytes().splitlines(keepends=True)
    for changed in range(len(lines) - 1):
        others = [line for number, line in enumerate(lines) if number != changed]
        file.write_bytes(b"".join(others))
        if changed == 0:
            with pytest.raises(OperatorError, match="damaged"):
                read_copy(file)
            continue
        found = read_copy(file)
        assert found is not None
        assert not is_genuine(found[1], found[2], SEALER)


def test_it_cannot_be_read(file: Path, tmp_path: Path) -> None:
    for read in (read_position, read_copy):
        with pytest.raises(OperatorError, match="cannot be read"):
            read(tmp_path)
