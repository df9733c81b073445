# SPDX-License-Identifier: Apache-2.0
"""Slices of threads, asked of the kernel that runs the tests."""

from __future__ import annotations

import os
import re
import threading
from pathlib import Path

import pytest

from xksfast.errors import NativeError
from xksfast.native.schedule import set_slice


@pytest.fixture(autouse=True)
def permitted() -> None:
    try:
        set_slice(0)
    except NativeError as error:
        pytest.skip(f"a sandbox forbids it: {error}")


def test_a_thread_s_slice_is_changed_and_given_back() -> None:
    thread = threading.get_native_id()
    kernels_own = set_slice(0)
    try:
        assert set_slice(100) == (100 if kernels_own else 0)
        assert set_slice(3000, thread) == (3000 if kernels_own else 0)
        assert set_slice(0) == kernels_own
    finally:
        set_slice(0)


def test_what_a_thread_starts_has_its_slice() -> None:
    if not set_slice(0) or "se.slice" not in Path("/proc/self/sched").read_text():
        pytest.skip("this kernel knows of no slices, or does not show them")
    seen: list[str] = []

    def look() -> None:
        seen.append(Path(f"/proc/self/task/{threading.get_native_id()}/sched").read_text())

    try:
        set_slice(200)
        thread = threading.Thread(target=look)
        thread.start()
        thread.join()
    finally:
        set_slice(0)
    assert re.search(r"^se\.slice +: +200000$", seen[0], re.MULTILINE)


def test_a_thread_that_is_not_there_is_told() -> None:
    with pytest.raises(NativeError, match="sched_setattr: not found"):
        set_slice(100, 0x7FFFFFF0)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_a_thread_of_somebody_else_is_not_permitted() -> None:
    pid = os.fork()
    if pid == 0:  # pragma: no cover
        os.setresuid(65534, 65534, 65534)
        try:
            set_slice(100, os.getppid())
        except NativeError as error:
            os._exit(0 if "not permitted" in str(error) else 2)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
