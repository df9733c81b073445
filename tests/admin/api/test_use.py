# SPDX-License-Identifier: Apache-2.0
"""What was used, as keys and credentials show it: counts over all nodes, hints long before the end, and what is known while the
database is away."""

from __future__ import annotations

import json
import re

import httpx
import pytest

from tests.admin.api.rig import Rig
from tests.admin.api.test_keys import new_key
from tests.admin.api.test_stores import new_store
from xksfast.admin import usage
from xksfast.admin.schedule import MAX_INVOCATIONS, URGENT_INVOCATIONS, WARN_INVOCATIONS, rotation_hint
from xksfast.messages import CredentialUse, KeyUse, UsageReport
from xksfast.state.errors import StateUnavailable

AT = 1_790_000_000


def encrypted(store: str, times: int, *, key: str = "orders", version: int = 1) -> KeyUse:
    return KeyUse(store=store, external_key_id=key, version=version, encryptions=times)


def report(rig: Rig, *keys: KeyUse, credentials: tuple[CredentialUse, ...] = ()) -> None:
    """As a worker of this node does."""

    async def add() -> None:
        rig.usage.add(UsageReport(worker=0, keys=keys, credentials=credentials))

    rig.call(add())


def write(rig: Rig, *keys: KeyUse, credentials: tuple[CredentialUse, ...] = ()) -> None:
    """As another node does."""
    rig.call(rig._run(lambda: rig.database.add_use(keys, credentials)))


def test_each_version_shows_its_own_count_over_all_nodes(rig: Rig, admin: httpx.Client) -> None:
    new_store(admin, "counted")
    new_key(admin, "counted", "other")
    write(rig, encrypted("counted", 100), encrypted("counted", 5, key="other"))
    new_key(admin, "counted", "orders")
    where = "/v1/stores/counted/keys/orders"
    rig.usage._read_at.clear()  # as some seconds later
    seen = admin.get(where)
    assert (seen.json()["encryptions"], seen.json()["hint"]) == (100, "")
    report(rig, encrypted("counted", 20))
    admin.post(f"{where}/rotate")
    report(rig, encrypted("counted", 3, version=2))
    versions = admin.get(f"{where}/versions").json()["items"]
    assert [(each["number"], each["encryptions"]) for each in versions] == [(1, 120), (2, 3)]
    listed = {each["external_key_id"]: each["encryptions"] for each in admin.get("/v1/stores/counted/keys").json()["items"]}
    assert listed == {"orders": 3, "other": 5}
    rig.call(rig.usage.write(rig.database))
    write(rig, encrypted("counted", 1000, version=2))
    rig.usage._read_at.clear()
    assert admin.get(where).json()["encryptions"] == 1003


def test_a_count_is_not_a_change_of_the_key(rig: Rig, admin: httpx.Client) -> None:
    new_store(admin, "steady")
    new_key(admin, "steady", "orders")
    where = "/v1/stores/steady/keys/orders"
    etag = admin.get(where).headers["etag"]
    report(rig, encrypted("steady", 9))
    assert admin.get(where).json()["encryptions"] == 9
    assert admin.patch(where, json={"alias": "a"}, headers={"If-Match": etag}).status_code == 200


@pytest.mark.parametrize(
    ("encryptions", "says"),
    [
        (WARN_INVOCATIONS - 1, ""),
        (WARN_INVOCATIONS, "rotate the key: version 2 has encrypted 1,073,741,824 times, 25% of the 2^32"),
        (URGENT_INVOCATIONS - 1, "rotate the key: "),
        (URGENT_INVOCATIONS, "rotate the key soon: version 2 has encrypted 2,147,483,648 times, 50%"),
        (MAX_INVOCATIONS - 1, "rotate the key soon: "),
        (MAX_INVOCATIONS, "rotate the key now: version 2 has encrypted 4,294,967,296 times, 100%"),
    ],
)
def test_the_hint_says_what_to_do_long_before_the_end(encryptions: int, says: str) -> None:
    hint = rotation_hint("payments", "orders", 2, encryptions)
    assert hint.startswith(says)
    assert hint.endswith("xksfast key rotate payments orders") == bool(says)


def test_only_the_version_that_encrypts_is_to_be_rotated(
    rig: Rig, admin: httpx.Client, capfd: pytest.CaptureFixture[str]
) -> None:
    new_store(admin, "worn")
    new_key(admin, "worn", "orders")
    where = "/v1/stores/worn/keys/orders"
    capfd.readouterr()
    for _ in range(3):
        report(rig, encrypted("worn", WARN_INVOCATIONS // 2))
    lines = [json.loads(line) for line in capfd.readouterr().err.splitlines() if '"key_is_worn"' in line]
    assert [(line["encryptions"], line["level"]) for line in lines] == [(WARN_INVOCATIONS, "warning")]  # once
    assert "xksfast key rotate worn orders" in lines[0]["next"]
    assert "rotate the key: version 1" in admin.get(where).json()["hint"]
    (version,) = admin.get(f"{where}/versions").json()["items"]
    assert version["hint"] == admin.get(where).json()["hint"]
    rotated = admin.post(f"{where}/rotate").json()
    assert (rotated["encryptions"], rotated["hint"]) == (0, "")
    old, _ = admin.get(f"{where}/versions").json()["items"]
    assert (old["encryptions"], old["hint"]) == (WARN_INVOCATIONS * 3 // 2, "")


def test_what_all_nodes_together_have_worn_is_warned_about(
    rig: Rig, admin: httpx.Client, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    new_store(admin, "shared")
    report(rig, encrypted("shared", WARN_INVOCATIONS - 10))
    write(rig, encrypted("shared", 10))
    monkeypatch.setattr(usage, "WORN_INTERVAL_S", 0.0)
    capfd.readouterr()
    rig.call(rig.usage.write(rig.database))
    warned = [json.loads(line) for line in capfd.readouterr().err.splitlines() if '"key_is_worn"' in line]
    assert [line["encryptions"] for line in warned if line["key_store"] == "shared"] == [WARN_INVOCATIONS]
    rig.call(rig.usage.write(rig.database))
    assert "key_is_worn" not in capfd.readouterr().err


def test_a_credential_shows_when_it_last_signed(rig: Rig, admin: httpx.Client) -> None:
    first = new_store(admin, "signing")["credential"]
    assert first["last_used_at"] == 0  # type: ignore[index]
    access_key_id = str(first["access_key_id"])  # type: ignore[index]
    where = "/v1/stores/signing/credentials"
    assert [each["last_used_at"] for each in admin.get(where).json()["items"]] == [0]
    report(rig, credentials=(CredentialUse(store="signing", access_key_id=access_key_id, last_used=AT),))
    report(rig, credentials=(CredentialUse(store="signing", access_key_id=access_key_id, last_used=AT - 60),))
    second = admin.post(where).json()
    assert second["last_used_at"] == 0
    listed = {each["access_key_id"]: each["last_used_at"] for each in admin.get(where).json()["items"]}
    assert listed == {access_key_id: AT, second["access_key_id"]: 0}


def test_a_database_that_is_away_keeps_nobody_from_looking(
    rig: Rig, admin: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    new_store(admin, "away")
    new_key(admin, "away", "orders")
    report(rig, encrypted("away", 4))

    def gone() -> None:
        raise StateUnavailable("the database is away")

    rig.usage._read_at.clear()
    with monkeypatch.context() as patch:
        patch.setattr(rig.database, "reading", gone)
        assert admin.get("/v1/stores/away/keys/orders").json()["encryptions"] == 4
        patch.setattr(rig.database, "add_use", lambda *_: gone())
        rig.call(rig.usage.write(rig.database))
    rig.call(rig.usage.write(rig.database))  # what could not be written then
    (row,) = (one for one in rig.call(rig._run(rig.database.use)).keys if one.store == "away")
    assert row.encryptions == 4


def test_the_description_says_that_numbers_lag_and_iv_do_not_rest_on_them(rig: Rig) -> None:
    schemas = rig.app.openapi()["components"]["schemas"]
    for name in ("KeyView", "VersionView"):
        assert re.search("lags by some; no IV depends on it", schemas[name]["properties"]["encryptions"]["description"])
    assert "lags by some" in schemas["CredentialView"]["properties"]["last_used_at"]["description"]
