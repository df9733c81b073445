# SPDX-License-Identifier: Apache-2.0
"""stores.toml: every rule about names, and messages that name the key."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from xksfast.config import Config, PartitionGroup, State
from xksfast.state.store_file import StoreFile, load_store_file
from xksfast.toml_reader import RefusedFile

ID = "ABCDEFGHIJKLMNOPQRST"
STORES = f"""
[key_stores.payments]
uri_path_prefix = "/payments"
region = "us-east-1"
partition_group = "main"
[[key_stores.payments.credentials]]
access_key_id = "{ID}"
secret_access_key_file = "secret"
[key_stores.payments.keys.orders]
label = "orders-v1"
usage = ["ENCRYPT", "DECRYPT"]
"""

requirement = pytest.mark.requirement
Load = Callable[[str], StoreFile]
Refused = Callable[[str], dict[str, str]]


def config(*, master_key_file: str = "master.key", partitions: tuple[str, ...] = ("p0",)) -> Config:
    return Config(
        state=State(url="file:stores.toml", master_key_file=master_key_file),
        partition_groups={"main": PartitionGroup(partitions=partitions)},
    )


@pytest.fixture
def load(tmp_path: Path) -> Load:
    (tmp_path / "secret").touch()

    def load_text(text: str, settings: Config | None = None) -> StoreFile:
        (tmp_path / "stores.toml").write_text(text)
        return load_store_file(tmp_path / "stores.toml", settings or config())

    return load_text


@pytest.fixture
def refused(load: Load) -> Refused:
    def problems_of(text: str, settings: Config | None = None) -> dict[str, str]:
        with pytest.raises(RefusedFile) as caught:
            load(text, settings)  # type: ignore[call-arg]
        return {problem.key: problem.problem for problem in caught.value.problems}

    return problems_of


def change(old: str, new: str, text: str = STORES) -> str:
    assert old in text, old
    return text.replace(old, new, 1)


def credentials(count: int) -> str:
    made = "".join(
        f'[[key_stores.payments.credentials]]\naccess_key_id = "{ID}{chr(65 + i)}"\nsecret_access_key_file = "secret"\n'
        for i in range(count)
    )
    start, end = STORES.index("[[key_stores"), STORES.index("[key_stores.payments.keys")
    return STORES[:start] + made + STORES[end:]


def test_a_good_file_is_read_with_defaults_and_absolute_paths(load: Load, tmp_path: Path) -> None:
    store = load(change('usage = ["ENCRYPT", "DECRYPT"]\n', "")).key_stores["payments"]
    assert store.credentials[0].secret_access_key_file == str(tmp_path / "secret")
    key = store.keys["orders"]
    assert (key.usage, key.create, key.enabled, key.blocked) == (("ENCRYPT", "DECRYPT"), False, True, False)
    assert (store.blocked, store.is_local) == (False, False)


def test_an_empty_file_has_no_stores(load: Load) -> None:
    assert load("").key_stores == {}


@requirement(19)
@pytest.mark.parametrize("prefix", ["", "/a", "/payments", "/a/b-c/d_e", "/kms/xks/v1", "/" + "a" * 116])
def test_good_prefixes(load: Load, prefix: str) -> None:
    assert load(change('"/payments"', f'"{prefix}"')).key_stores["payments"].uri_path_prefix == prefix


@requirement(19)
@pytest.mark.parametrize("prefix", ["/", "a", "/a/", "//a", "/a b", "/ä", "/a.b", "/a?b", "/%41", "/" + "a" * 117])
def test_bad_prefixes(refused: Refused, prefix: str) -> None:
    assert set(refused(change('"/payments"', f'"{prefix}"'))) == {"key_stores.payments.uri_path_prefix"}


def test_a_prefix_belongs_to_one_store(refused: Refused) -> None:
    text = STORES + STORES.replace("key_stores.payments", "key_stores.other")
    assert refused(text) == {"key_stores.other.uri_path_prefix": "key_stores.payments has the same"}


@pytest.mark.parametrize(
    "region", ["us-east-1", "eu-central-1", "us-gov-west-1", "cn-north-1", "us-isob-east-1", "eusc-de-east-1"]
)
def test_good_regions(load: Load, region: str) -> None:
    assert load(change("us-east-1", region)).key_stores["payments"].region == region


@pytest.mark.parametrize("region", ["", "useast1", "US-EAST-1", "us east 1", "us-east-1\\n", "u", "us-" + "a" * 40])
def test_bad_regions(refused: Refused, region: str) -> None:
    assert set(refused(change("us-east-1", region))) == {"key_stores.payments.region"}


@requirement(24)
@pytest.mark.parametrize("key_id", ["a", "A-Z.0_9", "x" * 128])
def test_good_external_key_ids(load: Load, key_id: str) -> None:
    assert set(load(change("keys.orders", f'keys."{key_id}"')).key_stores["payments"].keys) == {key_id}


@requirement(24)
@pytest.mark.parametrize("key_id", ["", "a b", "a/b", "ä", "a\\u0000", "x" * 129])
def test_bad_external_key_ids(refused: Refused, key_id: str) -> None:
    (key,) = refused(change("keys.orders", f'keys."{key_id}"'))
    assert key.startswith("key_stores.payments.keys.")


@requirement(20)
def test_a_uri_over_256_characters_is_refused(load: Load, refused: Refused) -> None:
    # prefix + "/kms/xks/v1/keys/" + id + "/metadata" <= 256
    prefix = "/" + "a" * 101
    good = change('"/payments"', f'"{prefix}"', change("keys.orders", f"keys.{'x' * 128}"))
    load(good)
    bad = change('"/payments"', f'"{prefix}a"', change("keys.orders", f"keys.{'x' * 128}"))
    assert refused(bad) == {f"key_stores.payments.keys.{'x' * 128}": "the URI path would exceed 256 characters"}


@requirement(126)
@pytest.mark.parametrize("access_key_id", ["A" * 20, "Z234567" + "A" * 23])
def test_good_access_key_ids(load: Load, access_key_id: str) -> None:
    load(change(ID, access_key_id))


@requirement(126)
@pytest.mark.parametrize("access_key_id", ["A" * 19, "A" * 31, "a" * 20, "A" * 19 + "1", "A" * 19 + "8", "A" * 19 + "-", ""])
def test_bad_access_key_ids(refused: Refused, access_key_id: str) -> None:
    assert set(refused(change(ID, access_key_id))) == {"key_stores.payments.credentials[0].access_key_id"}


@requirement(125)
def test_an_access_key_id_stands_once_in_a_store(refused: Refused) -> None:
    text = change(f'{ID}B"', f'{ID}A"', credentials(2))
    assert refused(text) == {"key_stores.payments.credentials[1].access_key_id": "stands twice in this key store"}


@requirement(131)
@pytest.mark.parametrize("count", [1, 2, 20])
def test_a_store_may_have_up_to_twenty_credentials(load: Load, count: int) -> None:
    assert len(load(credentials(count)).key_stores["payments"].credentials) == count


@requirement(131)
@pytest.mark.parametrize("count", [0, 21])
def test_a_store_without_credentials_or_with_too_many_is_refused(refused: Refused, count: int) -> None:
    assert "key_stores.payments.credentials" in refused(credentials(count))


def test_a_secret_file_that_is_not_there_is_named(refused: Refused, tmp_path: Path) -> None:
    problems = refused(change('"secret"', '"gone"'))
    assert problems == {"key_stores.payments.credentials[0].secret_access_key_file": f"there is no file {tmp_path / 'gone'}"}


@pytest.mark.parametrize(
    ("old", "new", "key", "words"),
    [
        ("region", "regoin", "key_stores.payments.regoin", "did you mean 'region'?"),
        ("region", "regoin", "key_stores.payments.region", "is missing"),
        ('"DECRYPT"]', '"DECRPYT"]', "key_stores.payments.keys.orders.usage[1]", "did you mean 'DECRYPT'?"),
        ('"DECRYPT"]', '"ENCRYPT"]', "key_stores.payments.keys.orders.usage", "names a usage twice"),
        ('label = "orders-v1"', "label = 1", "key_stores.payments.keys.orders.label", "expected text"),
        ('label = "orders-v1"', 'label = ""', "key_stores.payments.keys.orders.label", "1 to 255 bytes"),
        ('label = "orders-v1"', f'label = "{"ä" * 128}"', "key_stores.payments.keys.orders.label", "1 to 255 bytes"),
        ('label = "orders-v1"', 'label = "x"\nblocked = "yes"', "key_stores.payments.keys.orders.blocked", "true or false"),
        ('partition_group = "main"', 'partition_group = "mian"', "key_stores.payments.partition_group", "did you mean 'main'?"),
        ('partition_group = "main"\n', "", "key_stores.payments", "says where its keys live"),
        ('partition_group = "main"', 'partition_group = "main"\nkey_source = "local"', "key_stores.payments", "exclude"),
        ('partition_group = "main"', 'key_source = "lokal"', "key_stores.payments.key_source", "did you mean 'local'?"),
    ],
)
def test_a_wrong_value_is_named_by_its_dotted_key(refused: Refused, old: str, new: str, key: str, words: str) -> None:
    problems = refused(change(old, new))
    assert words in problems[key], problems


def test_all_problems_are_found_at_once(refused: Refused) -> None:
    text = change(ID, "short", change("us-east-1", "x", change('label = "orders-v1"', "label = 1")))
    assert set(refused(text)) == {
        "key_stores.payments.region",
        "key_stores.payments.credentials[0].access_key_id",
        "key_stores.payments.keys.orders.label",
    }


def test_local_stores_need_a_master_key_and_plain_labels(load: Load, refused: Refused) -> None:
    local = change('partition_group = "main"', 'key_source = "local"')
    assert load(local).key_stores["payments"].is_local
    assert "master_key_file" in refused(local, config(master_key_file=""))["key_stores.payments.key_source"]  # type: ignore[call-arg]
    for label in ("../x", ".x", "a/b", "ä", ""):
        assert "key_stores.payments.keys.orders.label" in refused(change('"orders-v1"', f'"{label}"', local))


def test_create_is_for_groups_of_any_size(load: Load) -> None:
    create = change('label = "orders-v1"', 'label = "orders-v1"\ncreate = true')
    for partitions in (("p0",), ("p0", "p1")):
        document = load(create, config(partitions=partitions))  # type: ignore[call-arg]
        assert document.key_stores["payments"].keys["orders"].create
