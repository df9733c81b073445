# SPDX-License-Identifier: Apache-2.0
"""The commands as scripts use them: arguments, one JSON value on stdout, exit codes, and words when something is not there."""

from __future__ import annotations

import io
import json
import re
import sqlite3
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import pytest

from tests.admin.api.rig import Rig
from tests.admin.api.test_use import encrypted, report
from tests.servers import free_port
from tests.shell.ran import Run, runner
from xksfast.admin.schedule import WARN_INVOCATIONS
from xksfast.shell.session import table
from xksfast.state.projection import State
from xksfast.state.store import Committed

DONE, FAILED, USAGE, REFUSED, IN_PART = range(5)
LOCAL = ("--region", "us-east-1", "--key-source", "local")


@pytest.fixture
def xksfast(rig: Rig, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Runs a command in this process, as an admin."""
    return runner(monkeypatch, capfd, rig.url, rig.tokens["admin"], str(rig.ca_file))


@pytest.fixture
def store(xksfast: Run, request: pytest.FixtureRequest) -> str:
    """A key store of the test's own."""
    name = request.node.name.replace("_", "-").replace("[", "-").replace("]", "")[:60]
    assert xksfast("store", "create", name, "--uri-path-prefix", f"/{name}", *LOCAL).code == DONE
    return str(name)


# --- the contract's own lines


def test_store_create_as_in_the_contract(xksfast: Run) -> None:
    ran = xksfast("store", "create", "payments", "--uri-path-prefix", "/payments", *LOCAL, "--max-credentials", "4", "--json")
    assert ran.code == DONE
    assert (ran.json["name"], ran.json["uri_path_prefix"], ran.json["max_credentials"]) == ("payments", "/payments", 4)
    assert ran.json["credential"].keys() >= {"access_key_id", "secret_access_key"}
    hsm = xksfast(
        "store", "create", "in-hsm", "--uri-path-prefix", "/h", "--region", "us-east-1", "--partition-group", "main", "--json"
    )
    assert hsm.json["key_source"] == "pkcs11"


def test_key_create_and_rotate_as_in_the_contract(xksfast: Run, store: str) -> None:
    made = xksfast("key", "create", store, "orders", "--usage", "ENCRYPT,DECRYPT", "--json").json
    assert (made["external_key_id"], made["version"], made["state"]) == ("orders", 1, "ENABLED")
    assert xksfast("key", "rotate", store, "orders", "--json").json["version"] == 2
    versions = xksfast("key", "versions", store, "orders", "--json").json
    assert [version["number"] for version in versions] == [1, 2]


def test_credential_rotate_as_in_the_contract(xksfast: Run, store: str) -> None:
    issued = xksfast("credential", "rotate", store, "--json").json
    assert issued.keys() >= {"access_key_id", "secret_access_key"}
    listed = xksfast("credential", "list", store, "--json").json
    assert [each["access_key_id"] for each in listed][-1] in {each["access_key_id"] for each in listed}
    assert len(listed) == 2
    oldest = next(each for each in listed if each["superseded_at"])
    assert xksfast("credential", "remove", store, oldest["access_key_id"], "--json").json["removed"] is True


def test_store_block_as_in_the_contract(xksfast: Run, store: str) -> None:
    ran = xksfast("store", "block", store, "--json")
    assert ran.code == DONE
    assert ran.json["confirmed"][0]["node"] == "n1"
    assert ran.json["confirmed"][0]["ms"] > 0
    assert ran.json["pending"] == []
    assert xksfast("store", "unblock", store, "--json").code == DONE
    assert xksfast("key", "create", store, "orders").code == DONE
    assert xksfast("key", "block", store, "orders", "--json").json["pending"] == []
    assert xksfast("key", "show", store, "orders", "--json").json["blocked"] is True


# --- exit codes


def test_a_block_that_a_node_does_not_confirm_is_done_in_part(rig: Rig, xksfast: Run, store: str) -> None:
    rig.other_nodes.says = {"n2": "it is on fire"}
    try:
        ran = xksfast("store", "block", store, "--json")
        many = xksfast("store", "block", store, store + "-absent")
    finally:
        rig.other_nodes.says = {}
    assert ran.code == IN_PART
    assert ran.json["pending"] == ["n2: it is on fire"]
    assert "not confirmed by n2: it is on fire" in ran.err
    assert many.code == REFUSED  # neither of the two is done


def test_a_rule_is_named_with_exit_code_3(xksfast: Run, store: str) -> None:
    xksfast("key", "create", store, "orders")
    ran = xksfast("store", "delete", store, "--json")
    assert (ran.code, ran.out) == (REFUSED, "")
    assert "[store-has-keys]" in ran.err
    assert f"xksfast store teardown {store}" in ran.err
    steps = xksfast("store", "teardown", store, "--json").json
    for step in steps:
        assert xksfast(*step["command"].split()[1:]).code == DONE, step
    assert xksfast("store", "show", store).code == REFUSED


def test_a_name_that_is_a_way_up_reaches_nothing_else(xksfast: Run, store: str) -> None:
    for action in ("block", "delete"):
        ran = xksfast("key", action, store, "..", "--yes") if action == "delete" else xksfast("key", action, store, "..")
        assert ran.code == USAGE
        assert "'..' is no name" in ran.err
    assert xksfast("store", "show", store, "--json").json["blocked"] is False
    assert "neither . nor .." in xksfast("key", "create", store, "..").err


def test_what_others_wrote_does_not_steer_the_terminal(xksfast: Run, store: str) -> None:
    xksfast("key", "create", store, "k", "--description", "a\x1b[2Jb\u202e", "--alias", "c\x9bd\x07")
    shown = xksfast("key", "show", store, "k").out + xksfast("key", "list", store).out
    assert not {"\x1b", "\x9b", "\x07", "\u202e"} & set(shown)
    assert "a\\u001b[2Jb\\u202e" in shown
    assert "c\\u009bd\\u0007" in shown


def test_a_table_in_a_narrow_terminal_cuts_nothing_off() -> None:
    from rich.console import Console

    names = ["a-name-of-a-key-that-is-long-" + "7" * 60, "a-source-key-" + "8" * 60]
    drawn = table("key", "state", "source key", rows=[[names[0], "disabled", names[1]]], none="")()
    console = Console(width=80, file=io.StringIO(), highlight=False)
    console.print(drawn)
    lines = cast(io.StringIO, console.file).getvalue().splitlines()
    assert "…" not in "".join(lines)
    assert any("disabled" in line.split() for line in lines)
    assert [sum(line.count(digit) for line in lines) for digit in "78"] == [60, 60]
    assert max(map(len, lines)) <= 80


def test_every_wrong_value_is_named(xksfast: Run) -> None:
    ran = xksfast("store", "create", "wrong", "--region", "us-east-1", "--max-credentials", "99", "--on-stale", "maybe")
    assert ran.code == REFUSED
    assert "max_credentials" in ran.err
    assert "on_stale" in ran.err


@pytest.mark.parametrize(
    "arguments",
    [
        ["store", "bogus"],
        ["store", "create", "no-region"],
        ["store", "block"],
        ["store", "block", "a", "--all"],
        ["store", "create", "x", "--region", "us-east-1", "--tag", "novalue"],
        ["key", "block", "payments"],
        ["audit", "tail", "--since", "yesterday"],
        ["apply", "/nonexistent.toml"],
        ["stor", "list"],
        ["key", "block", "payments", ".."],
        ["key", "delete", "payments", "."],
        ["store", "show", ""],
        ["store", "show", "a/b"],
    ],
)
def test_wrong_usage_is_exit_code_2(xksfast: Run, arguments: list[str]) -> None:
    ran = xksfast(*arguments)
    assert (ran.code, ran.out) == (USAGE, "")
    assert "Traceback" not in ran.err
    assert ran.err


# --- the server that is not there


def test_words_when_the_server_is_not_there(xksfast: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rig: Rig) -> None:
    url = f"https://localhost:{free_port()}"
    ran = xksfast("store", "list", "--admin", url)
    assert (ran.code, ran.out) == (FAILED, "")
    assert f"nothing answers at {url}" in ran.err
    assert "--admin" in ran.err
    (tmp_path / "token").write_text("xkt_wrong\n")
    wrong = xksfast("store", "list", "--token-file", str(tmp_path / "token"))
    assert wrong.code == FAILED
    assert "refuses the token" in wrong.err
    assert "--token-file" in wrong.err
    rig.forgive()
    absent = xksfast("store", "list", "--token-file", str(tmp_path / "absent"))
    assert (absent.code, "cannot be read" in absent.err) == (USAGE, True)
    monkeypatch.delenv("XKSFAST_ADMIN_CA")
    untrusted = xksfast("store", "list")
    assert untrusted.code == FAILED
    assert "certificate is not accepted" in untrusted.err
    assert "XKSFAST_ADMIN_CA" in untrusted.err
    plain = xksfast("store", "list", "--admin", "http://192.0.2.1:8444")
    assert (plain.code, "in clear" in plain.err) == (USAGE, True)
    monkeypatch.delenv("XKSFAST_ADMIN_TOKEN")
    none = xksfast("store", "list")
    assert (none.code, "no token" in none.err) == (USAGE, True)


def test_words_when_the_certificate_is_of_another_host(xksfast: Run, rig: Rig) -> None:
    ran = xksfast("store", "list", "--admin", f"https://127.0.0.2:{rig.server.address[1]}")
    assert ran.code == FAILED  # not listening there, or another name: both are told
    assert "--admin" in ran.err or "certificate" in ran.err


# --- many at once


def test_many_keys_are_blocked_and_the_absent_one_is_named(xksfast: Run, store: str) -> None:
    for key in ("a", "b", "c"):
        xksfast("key", "create", store, key)
    ran = xksfast("key", "block", store, "a", "b", "absent", "--json")
    assert ran.code == IN_PART
    assert {each["name"]: bool(each["problem"]) for each in ran.json} == {
        f"{store}/a": False,
        f"{store}/b": False,
        f"{store}/absent": True,
    }
    assert xksfast("key", "disable", store, "--all", "--json").code == DONE
    assert {key["state"] for key in xksfast("key", "list", store, "--json").json} == {"DISABLED"}
    tried = xksfast("key", "delete", store, "--all", "--dry-run", "--json")
    assert {each["would"].split(";")[0] for each in tried.json} == {f"delete key {key} of key store {store}" for key in "abc"}
    assert len(xksfast("key", "list", store, "--json").json) == 3
    assert xksfast("key", "delete", store, "--all", "--json").code == DONE
    assert xksfast("key", "list", store, "--json").json == []


def test_deleting_many_goes_on_after_a_refusal_and_names_it(xksfast: Run, store: str) -> None:
    for key in ("used", "idle", "spare"):
        xksfast("key", "create", store, key)
    xksfast("key", "disable", store, "idle", "spare")
    ran = xksfast("key", "delete", store, "used", "idle", "spare")
    assert (ran.code, ran.out) == (IN_PART, "delete: 2 of 3 done\n")
    assert re.search(r"^xksfast: used: .*\[key-in-use\]$", ran.err, flags=re.M)
    assert [key["external_key_id"] for key in xksfast("key", "list", store, "--json").json] == ["used"]
    none = xksfast("key", "delete", store, "used", "absent")
    assert (none.code, none.out) == (REFUSED, "delete: 0 of 2 done\n")


@contextmanager
def database_held(rig: Rig, when: Callable[[State], bool]) -> Iterator[None]:
    """Another process writes to the database, and does not end: before the first change that finds the state so."""
    other = sqlite3.connect(rig.directory / "xksfast.db", isolation_level=None, check_same_thread=False)
    really = rig.store.transact

    def transact(*arguments: Any, **options: Any) -> Committed:
        if not other.in_transaction and rig.read(when):
            other.execute("BEGIN IMMEDIATE")
        return really(*arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rig.store, "transact", transact)
        try:
            yield
        finally:
            other.close()


def test_a_bulk_that_cannot_go_on_says_how_far_it_came(rig: Rig, xksfast: Run, store: str) -> None:
    keys = [f"k{number}" for number in range(40)]
    with rig.client() as admin:
        for key in keys:
            admin.post(f"/v1/stores/{store}/keys", json={"external_key_id": key})

    def disabled(state: State) -> int:
        return sum(not key.enabled for key in state.keys_of(store).values())

    with database_held(rig, lambda state: disabled(state) >= 2):
        ran = xksfast("key", "disable", store, "--all", "--json")
    done = rig.read(disabled)
    assert done == 2
    assert (ran.code, ran.out) == (IN_PART, "")
    assert f"disable: stopped after {done} of {len(keys)}: " in ran.err
    assert "is locked" in ran.err
    assert "Repeat it" in ran.err
    again = xksfast("key", "disable", store, "--all", "--json")
    assert (again.code, rig.read(disabled)) == (DONE, len(keys))
    assert {each["problem"] for each in again.json} == {""}


def test_deletions_that_cannot_go_on_say_how_far_they_came(rig: Rig, xksfast: Run) -> None:
    stores = [f"going-{number}" for number in range(8)]
    for name in stores:
        assert xksfast("store", "create", name, "--uri-path-prefix", f"/{name}", *LOCAL).code == DONE

    def left(state: State) -> int:
        return sum(name in state.key_stores for name in stores)

    with database_held(rig, lambda state: left(state) < len(stores)):
        ran = xksfast("store", "delete", *stores)
    done = len(stores) - rig.read(left)
    assert done == 1
    assert (ran.code, ran.out) == (IN_PART, "")
    assert f"delete: stopped after {done} of {len(stores)}: " in ran.err


DESTRUCTIVE = [
    ["store", "delete", "bare"],
    ["store", "delete", "{store}"],  # it has keys: refused, and so says the dry run
    ["key", "delete", "{store}", "idle"],
    ["key", "delete", "{store}", "idle", "used"],
    ["key", "delete", "{store}", "--all"],
    ["credential", "remove", "{store}", "{credential}"],
    ["operator", "delete", "auditor"],
    ["aws", "delete", "unused"],
]


def test_a_dry_run_says_what_would_be_done_and_changes_nothing(rig: Rig, xksfast: Run, store: str) -> None:
    first = xksfast("credential", "list", store, "--json").json[0]["access_key_id"]
    xksfast("credential", "rotate", store, "--json")
    for key in ("used", "idle"):
        xksfast("key", "create", store, key)
    xksfast("key", "disable", store, "idle")
    xksfast("store", "create", "bare", "--uri-path-prefix", "/bare", *LOCAL)
    xksfast("aws", "create", "unused", "--account", "1" * 12, "--region", "us-east-1")
    before = rig.read(lambda state: (state.seq, state.head))
    codes = []
    for command in DESTRUCTIVE:
        ran = xksfast(*(word.format(store=store, credential=first) for word in command), "--dry-run")
        codes.append(ran.code)
        assert ("would " in ran.out) == (ran.code in (DONE, IN_PART)), (command, ran)
        assert ("key-in-use" in ran.err or "store-has-keys" in ran.err) == (ran.code != DONE), (command, ran)
        assert rig.read(lambda state: (state.seq, state.head)) == before, command
    assert codes == [DONE, REFUSED, DONE, IN_PART, IN_PART, DONE, DONE, DONE]


# --- secrets in files


def test_secrets_can_go_to_files_that_only_their_owner_reads(xksfast: Run, store: str, tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("made.json", "console.json", "rotated.json", "token")]
    ran = xksfast(
        "store",
        "create",
        f"{store}-b"[:60],
        "--uri-path-prefix",
        "/filed",
        *LOCAL,
        "--credentials-file",
        str(files[0]),
        "--json",
    )
    assert "secret_access_key" not in ran.out
    xksfast("store", "credentials-file", store, "--out", str(files[1]))
    xksfast("credential", "rotate", store, "--out", str(files[2]))
    xksfast("operator", "create", "filed", "--role", "auditor", "--token-out", str(files[3]))
    for file in files:
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file
    for file in files[:2]:
        assert json.loads(file.read_text()).keys() == {"XksProxyUriPath", "XksProxyAuthenticationCredential"}
    assert xksfast("operator", "whoami", "--token-file", str(files[3]), "--json").json["name"] == "filed"
    before = len(xksfast("credential", "list", store, "--json").json)
    again = xksfast("credential", "rotate", store, "--out", str(files[2]))
    assert (again.code, "is there already" in again.err) == (USAGE, True)
    assert len(xksfast("credential", "list", store, "--json").json) == before


# --- for people


def test_tables_for_people_and_no_colour_without_a_terminal(xksfast: Run, store: str) -> None:
    xksfast("key", "create", store, "orders", "--alias", "ledger")
    for arguments in (["store", "list"], ["store", "show", store], ["key", "list", store], ["key", "show", store, "orders"],
                      ["credential", "list", store], ["operator", "list"], ["aws", "list"], ["node", "list"],
                      ["store", "teardown", store], ["audit", "tail"], ["audit", "verify"]):  # fmt: skip
        ran = xksfast(*arguments)
        assert ran.code == DONE, (arguments, ran)
        assert ran.out, arguments
        assert "\x1b[" not in ran.out, arguments
    assert "orders" in xksfast("key", "list", store).out
    assert store in xksfast("store", "list", "--name-prefix", store).out


def test_people_are_told_where_they_look_when_a_rotation_is_due(rig: Rig, xksfast: Run, store: str) -> None:
    for key in ("worn", "fresh"):
        xksfast("key", "create", store, key)
    report(rig, encrypted(store, WARN_INVOCATIONS + 1, key="worn"))
    hint = f"rotate the key: version 1 has encrypted 1,073,741,825 times, 25% of the 2\\^32 that .*: xksfast key rotate {store} worn"
    for arguments in (["key", "list", store], ["key", "show", store, "worn"], ["key", "versions", store, "worn"]):
        ran = xksfast(*arguments)
        assert re.fullmatch(f"xksfast: {store}/worn: {hint}\n", ran.err), (arguments, ran.err)
        in_json = xksfast(*arguments, "--json")
        assert in_json.err == ""
        found = in_json.json if isinstance(in_json.json, list) else [in_json.json]
        assert [bool(re.fullmatch(hint, each["hint"])) for each in found] == [bool(each["encryptions"]) for each in found]
    assert "1,073,741,825" in xksfast("key", "versions", store, "worn").out
    assert "never" in xksfast("credential", "list", store).out
    xksfast("key", "rotate", store, "worn")
    assert xksfast("key", "show", store, "worn").err == ""


def test_audit_tail_shows_the_newest_last_and_only_what_was_asked_for(xksfast: Run, store: str) -> None:
    xksfast("store", "block", store, "--reason", "drill")
    events = xksfast("audit", "tail", "--id", store, "--json").json
    assert [event["action"] for event in events] == ["store.create", "store.block"]
    assert [event["action"] for event in xksfast("audit", "tail", "--id", store, "-n", "1", "--json").json] == ["store.block"]
    assert xksfast("audit", "tail", "--id", store, "--since", "2099-01-01T00:00", "--json").json == []
    line = xksfast("audit", "tail", "--id", store, "--action", "store.block").out
    assert "by operator:admin from 127.0.0.1" in line
    assert "blocked" in line
    verdict = xksfast("audit", "verify", "--json").json
    assert verdict["ok"] is True


def test_names_complete_from_the_server(xksfast: Run, store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from types import SimpleNamespace

    from xksfast.shell import names

    xksfast("key", "create", store, "orders")
    assert names._stores(SimpleNamespace(params={}), store[:12]) == [store]  # type: ignore[arg-type]
    assert names._keys(SimpleNamespace(params={"store": store}), "ord") == ["orders"]  # type: ignore[arg-type]
    assert names._keys(SimpleNamespace(params={}), "") == []  # type: ignore[arg-type]
    monkeypatch.setenv("XKSFAST_ADMIN_URL", f"https://localhost:{free_port()}")
    assert names._stores(SimpleNamespace(params={}), "") == []  # type: ignore[arg-type]


# --- apply


@pytest.fixture
def stores_toml(tmp_path: Path) -> Path:
    secret = tmp_path / "git.secret"
    secret.write_text("s" * 43 + "\n")
    secret.chmod(0o600)
    file = tmp_path / "stores.toml"
    file.write_text(
        """
[key_stores.from-git]
uri_path_prefix = "/from-git"
region = "us-east-1"
key_source = "local"
[[key_stores.from-git.credentials]]
access_key_id = "AAAAAAAAAAAAAAAAAAAA"
secret_access_key_file = "git.secret"
[key_stores.from-git.keys.orders]
label = "from-git-orders-v1"
create = true
"""
    )
    return file


def test_apply_shows_the_plan_does_it_and_has_nothing_to_do_then(xksfast: Run, stores_toml: Path) -> None:
    planned = xksfast("apply", str(stores_toml), "--dry-run")
    assert planned.code == DONE
    assert "+ from-git: key store in us-east-1, prefix /from-git, local keys, 1 credential" in planned.out
    assert "+ from-git/orders: key with source key 'from-git-orders-v1', made when absent" in planned.out
    assert xksfast("store", "show", "from-git").code == REFUSED
    ran = xksfast("apply", str(stores_toml), "--json")
    assert (ran.code, ran.json["done"], ran.json["failure"]) == (DONE, 2, "")
    assert xksfast("key", "show", "from-git", "orders", "--json").json["label"] == "from-git-orders-v1"
    again = xksfast("apply", str(stores_toml))
    assert (again.code, "so already" in again.out) == (DONE, True)
    assert "s" * 43 not in planned.out + planned.err + ran.out + ran.err


def test_apply_says_what_is_wrong_with_the_file_and_changes_nothing(xksfast: Run, stores_toml: Path) -> None:
    stores_toml.with_name("git.secret").chmod(0o644)
    ran = xksfast("apply", str(stores_toml))
    assert (ran.code, "chmod 600" in ran.err) == (USAGE, True)
    stores_toml.with_name("git.secret").chmod(0o600)
    stores_toml.write_text(
        stores_toml.read_text().replace('region = "us-east-1"', 'region = "nowhere"').replace("from-git", "bad-git")
    )
    ran = xksfast("apply", str(stores_toml))
    assert ran.code == REFUSED
    assert "key_stores.bad-git.region" in ran.err
    stores_toml.write_text(stores_toml.read_text().replace("region", "regoin"))
    ran = xksfast("apply", str(stores_toml))
    assert (ran.code, "did you mean 'region'?" in ran.err) == (USAGE, True)


def test_apply_that_stops_half_way_says_where(xksfast: Run, stores_toml: Path) -> None:
    text = stores_toml.read_text().replace("from-git", "half-git").replace("create = true", "create = false")
    stores_toml.write_text(text)
    ran = xksfast("apply", str(stores_toml))
    assert ran.code == IN_PART
    assert "half-git/orders: key with source key 'half-git-orders-v1'" in ran.err
    assert "[no-such-source-key]" in ran.err
    assert "1 of 2 steps were done" in ran.err


@pytest.mark.parametrize("action", ["block", "unblock", "enable", "disable", "delete"])
@pytest.mark.parametrize("names", [("",), ("orders", ""), ("", ""), ("orders", "a/b"), ("..", "orders")])
def test_an_empty_key_is_not_its_store(xksfast: Run, rig: Rig, store: str, action: str, names: tuple[str, ...]) -> None:
    xksfast("key", "create", store, "orders")
    before = rig.read(lambda state: state.seq)
    ran = xksfast("key", action, store, *names)
    assert (ran.code, "is no name" in ran.err) == (USAGE, True), ran.err
    assert rig.read(lambda state: state.seq) == before


@pytest.mark.parametrize(
    "arguments", [("store", "block", "", ""), ("store", "unblock", "x", ""), ("key", "block", "", "a", "b")]
)
def test_an_empty_name_of_a_store_is_refused(xksfast: Run, rig: Rig, arguments: tuple[str, ...]) -> None:
    before = rig.read(lambda state: state.seq)
    ran = xksfast(*arguments)
    assert (ran.code, "is no name" in ran.err) == (USAGE, True), ran.err
    assert rig.read(lambda state: state.seq) == before


@pytest.mark.parametrize("option", ["--id", "--kind", "--actor", "--action", "--since"])
def test_an_empty_filter_of_events_is_refused(xksfast: Run, option: str) -> None:
    ran = xksfast("audit", "tail", option, "")
    assert (ran.code, f"{option} is empty" in ran.err) == (USAGE, True), ran.err
