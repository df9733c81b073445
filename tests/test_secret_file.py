# SPDX-License-Identifier: Apache-2.0
"""Files that only their owner may read: their mode, whole or not at all, and what is there already."""

from __future__ import annotations

import errno
import os
import stat
import threading
from contextlib import nullcontext
from pathlib import Path

import pytest

from xksfast.errors import OperatorError
from xksfast.secret_file import write_secret_file


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o277])
def test_only_its_owner_may_read_it_whatever_the_umask(tmp_path: Path, umask: int) -> None:
    former = os.umask(umask)
    try:
        write_secret_file(tmp_path / "token", b"secret\n")
    finally:
        os.umask(former)
    assert (tmp_path / "token").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "token").read_bytes() == b"secret\n"
    assert os.listdir(tmp_path) == ["token"]


def test_a_file_that_is_there_is_kept_unless_it_may_be_replaced(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("first")
    path.chmod(0o644)
    with pytest.raises(OperatorError, match="is there already"):
        write_secret_file(path, b"second")
    assert path.read_text() == "first"
    write_secret_file(path, b"second", over=True)
    assert (path.read_text(), path.stat().st_mode & 0o777) == ("second", 0o600)
    assert os.listdir(tmp_path) == ["token"]


def test_a_link_is_neither_followed_nor_overwritten(tmp_path: Path) -> None:
    target, path = tmp_path / "target", tmp_path / "token"
    path.symlink_to(target)
    with pytest.raises(OperatorError, match="is there already"):
        write_secret_file(path, b"secret")
    assert not target.exists()


def test_whoever_reads_meanwhile_sees_the_former_text_or_the_new_one(tmp_path: Path) -> None:
    path = tmp_path / "token"
    texts = {letter * 100_000 for letter in "abc"}
    write_secret_file(path, b"a" * 100_000)
    seen: set[str] = set()
    stop = threading.Event()

    def read() -> None:
        while not stop.is_set():
            seen.add(path.read_text())

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(30):
        write_secret_file(path, "abc"[number % 3].encode() * 100_000, over=True)
    stop.set()
    reader.join()
    assert seen
    assert seen <= texts


def test_a_file_that_cannot_be_written_is_named_and_nothing_is_left(tmp_path: Path) -> None:
    with pytest.raises(OperatorError, match=r"nowhere/token cannot be written: No such file or directory: see that"):
        write_secret_file(tmp_path / "nowhere" / "token", b"secret")
    (tmp_path / "token").mkdir()
    with pytest.raises(OperatorError, match="cannot be written"):
        write_secret_file(tmp_path / "token", b"secret", over=True)
    assert os.listdir(tmp_path) == ["token"]


@pytest.mark.parametrize(("number", "fails"), [(errno.EIO, True), (errno.EINVAL, False)])
def test_a_name_that_the_disk_does_not_take_is_an_error_unless_names_are_never_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, fails: bool
) -> None:
    really = os.fsync

    def fsync(fd: int) -> None:
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            raise OSError(number, os.strerror(number))
        really(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OperatorError, match="Input/output error") if fails else nullcontext():
        write_secret_file(tmp_path / "token", b"t")
    assert (tmp_path / "token").read_bytes() == b"t"
