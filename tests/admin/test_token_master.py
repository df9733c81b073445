# SPDX-License-Identifier: Apache-2.0
"""The master key in a token: real SoftHSM2 tokens, the data key back over secret pages, never over the pipe."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
from msgspec.structs import replace

from tests.admin.hsms import PIN, Hsms, make_hsms
from tests.native.test_seal import bytes_of
from xksfast.admin.partitions.link import PartitionFailure
from xksfast.admin.token_master import TokenMasterKey
from xksfast.config import load_config
from xksfast.errors import OperatorError
from xksfast.native.crypto import Secret
from xksfast.state.master_key import MasterKey, MasterKeyError, configured_master_key, new_data_key
from xksfast.state.sealing import Sealer

LABEL = "xksfast-master"


@pytest.fixture
def hsms(tmp_path: Path) -> Hsms:
    return make_hsms(tmp_path)


def token(hsms: Hsms, partition: str = "p0", label: str = LABEL) -> TokenMasterKey:
    return TokenMasterKey.of(load_config(hsms.file), partition, label)


def configured(hsms: Hsms) -> MasterKey:
    config = load_config(hsms.file)
    return configured_master_key(config.state, partial(TokenMasterKey.of, config))


def test_a_data_key_goes_into_the_token_and_comes_back(hsms: Hsms) -> None:
    hsms.config["state"]["master_key_partition"] = "p0"
    hsms.write()
    assert token(hsms).make() is True
    assert token(hsms).make() is False
    assert hsms.labels(0) == {LABEL: {"sensitive", "private", "encrypt", "decrypt"}}
    sealer, row = Sealer.new(configured(hsms), now=1)
    assert row.provider == "partition"
    assert row.parameters == {"master_key_partition": "p0", "master_key_label": LABEL}
    assert len(row.wrapped) == 60
    secret = sealer.seal(Secret.from_bytes(b"1234"), "p", "pin")
    assert bytes_of(Sealer.open_with(configured(hsms), [row]).open(secret)) == b"1234"


def test_wrapping_is_bound_to_its_context_and_tag(hsms: Hsms) -> None:
    token(hsms).make()
    data_key = Secret.random()
    wrapped = token(hsms).wrap(data_key, "a")
    assert bytes_of(data_key) not in wrapped
    assert wrapped != token(hsms).wrap(data_key, "a")
    assert bytes_of(token(hsms).unwrap(wrapped, "a")) == bytes_of(data_key)
    for bad, context in ((wrapped, "b"), (wrapped[:-1] + bytes([wrapped[-1] ^ 1]), "a")):
        with pytest.raises(PartitionFailure, match=r"does not open the data key .*another key of this label wrapped it"):
            token(hsms).unwrap(bad, context)
    with pytest.raises(PartitionFailure, match="has 60 or 64 bytes"):
        token(hsms).unwrap(wrapped[:-1], "a")


def test_another_token_with_a_key_of_that_label_is_told(hsms: Hsms) -> None:
    hsms.config["state"]["master_key_partition"] = "p0"
    hsms.write()
    token(hsms).make()
    token(hsms, "p1").make()
    row, _ = new_data_key(configured(hsms), now=0)
    hsms.config["state"]["master_key_partition"] = "p1"
    hsms.write()
    with pytest.raises(MasterKeyError) as caught:
        configured(hsms).open(row)
    text = str(caught.value)
    assert "wrapped under master_key_partition = 'p0', master_key_label = 'xksfast-master'" in text
    assert "partition p1: the key 'xksfast-master' on token 't1' does not open the data key" in text
    assert PIN not in text


def test_a_key_that_is_absent_or_no_master_key_is_said(hsms: Hsms) -> None:
    data_key = Secret.random()
    with pytest.raises(
        OperatorError, match="partition p0: the master key 'xksfast-master' on token 't0' is not there: make it"
    ):
        token(hsms).wrap(data_key, "a")
    for _ in range(2):
        hsms.token(0, "twice", "generate", "locked")
    with pytest.raises(OperatorError, match="is there several times"):
        token(hsms, label="twice").wrap(data_key, "a")
    with pytest.raises(OperatorError, match="2 secret keys have the label 'twice'"):
        token(hsms, label="twice").make()


def test_a_wrong_pin_is_tried_once_and_said(hsms: Hsms) -> None:
    token(hsms).make()
    (hsms.directory / "pin").write_text("999999\n")
    with pytest.raises(OperatorError, match="CKR_PIN_INCORRECT"):
        token(hsms).unwrap(bytes(60), "a")


def test_the_master_key_moves_from_a_file_into_a_token(hsms: Hsms) -> None:
    key = hsms.directory / "master.key"
    key.write_bytes(bytes(32))
    key.chmod(0o600)
    hsms.config["state"]["master_key_file"] = "master.key"
    hsms.write()
    sealer, row = Sealer.new(configured(hsms), now=1)
    secret = sealer.seal(Secret.from_bytes(b"1234"), "p", "pin")
    del hsms.config["state"]["master_key_file"]
    hsms.config["state"]["master_key_partition"] = "p1"
    hsms.write()
    token(hsms, "p1").make()
    (moved,) = Sealer.open_with(_file_master(key), [row]).rewrap(configured(hsms))
    assert (moved.id, moved.created_at, moved.provider) == (row.id, 1, "partition")
    assert bytes_of(Sealer.open_with(configured(hsms), [moved]).open(secret)) == b"1234"
    with pytest.raises(MasterKeyError, match="sealed under the master key of master_key_file"):
        configured(hsms).open(row)
    with pytest.raises(MasterKeyError):
        configured(hsms).open(replace(moved, id="another"))


def _file_master(path: Path) -> MasterKey:
    from xksfast.config import State

    return configured_master_key(State(master_key_file=str(path)), lambda partition, label: pytest.fail("no token"))
