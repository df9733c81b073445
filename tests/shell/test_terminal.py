# SPDX-License-Identifier: Apache-2.0
"""Commands at a terminal: questions before a deletion, none before a block, colours unless they are not wanted."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from tests.admin.api.rig import Rig
from tests.admin.api.test_keys import new_key
from tests.admin.api.test_stores import new_store


def reaching(rig: Rig) -> dict[str, str]:
    """The environment of a command."""
    return {
        "XKSFAST_ADMIN_URL": rig.url,
        "XKSFAST_ADMIN_TOKEN": rig.tokens["admin"],
        "XKSFAST_ADMIN_CA": str(rig.ca_file),
    }


def at_a_terminal(rig: Rig, *arguments: str, typed: str = "", **environment: str) -> tuple[int, str]:
    """(exit code, what a person sees)."""
    ours, theirs = os.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "xksfast", *arguments],
        env={
            **os.environ,
            "TERM": "xterm-256color",
            **reaching(rig),
            **environment,
        },
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    os.write(ours, typed.encode())
    text = b""
    try:
        while part := os.read(ours, 65536):
            text += part
    except OSError:  # how a terminal says that nobody holds its other end any more
        pass
    os.close(ours)
    return process.wait(30), text.decode()


def test_a_deletion_is_asked_about_and_a_block_is_not(rig: Rig) -> None:
    with rig.client() as admin:
        new_store(admin, "asked")
        code, text = at_a_terminal(rig, "store", "delete", "asked", typed="n\n")
        assert (code, "Delete key store asked with its credentials? [y/N]" in text) == (1, True)
        assert admin.get("/v1/stores/asked").status_code == 200
        code, text = at_a_terminal(rig, "store", "block", "asked")
        assert (code, "[y/N]" in text) == (0, False)
        assert admin.get("/v1/stores/asked").json()["blocked"] is True
        code, text = at_a_terminal(rig, "store", "delete", "asked", typed="y\n")
        assert code == 0
        assert admin.get("/v1/stores/asked").status_code == 404


BAR = "━"


def test_work_of_more_than_a_second_shows_how_far_it_is(rig: Rig) -> None:
    with rig.client() as admin:
        new_store(admin, "slow")
        for number in range(4):
            new_key(admin, "slow", f"k{number}")
    rig.other_nodes.says, rig.other_nodes.takes_s = {"n2": ""}, 0.4
    try:
        code, text = at_a_terminal(rig, "key", "block", "slow", "--all")
        piped = subprocess.run(
            [sys.executable, "-m", "xksfast", "key", "block", "slow", "--all"],
            env={**os.environ, **reaching(rig)}, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
    finally:
        rig.other_nodes.says, rig.other_nodes.takes_s = {}, 0.0
    assert code == 0
    shown = {int(found) for found in re.findall(r"(\d+)%", text)}
    assert BAR in text
    assert any(0 < percent < 100 for percent in shown), text
    assert "block: 4 of 4 done" in text
    assert (piped.stdout, piped.stderr) == ("block: 4 of 4 done\n", "")
    # Quick work shows none; a machine may stand still for a second, but not twice.
    assert any(BAR not in at_a_terminal(rig, "key", "unblock", "slow", "k0", "k1")[1] for _ in range(2))


@pytest.mark.parametrize("wanted", [True, False])
def test_colours_unless_they_are_not_wanted(rig: Rig, wanted: bool) -> None:
    with rig.client() as admin:
        new_store(admin, f"coloured-{wanted}".lower())
    code, text = at_a_terminal(rig, "store", "list", **({} if wanted else {"NO_COLOR": "1"}))
    assert code == 0
    assert (
        re.search(r"\x1b\[[\d;]*\b3\d[\d;]*m", text) is not None
        if wanted
        else re.search(r"\x1b\[[\d;]*\b3\d[\d;]*m", text) is None
    )


LOOK = """
import sys
sys.argv = ["xksfast", "--help"]
from xksfast import cli
try:
    cli.main()
except SystemExit:
    pass
print(sorted({"httpx", "fastapi", "uvicorn", "sqlalchemy", "boto3", "xksfast.shell.stores"} & set(sys.modules)), file=sys.stderr)
"""


def test_help_does_not_bring_what_commands_need() -> None:
    done = subprocess.run([sys.executable, "-c", LOOK], capture_output=True, text=True, timeout=60, check=False)
    assert done.stderr.splitlines()[-1] == "[]"
    assert "store" in done.stdout
