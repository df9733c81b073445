# SPDX-License-Identifier: Apache-2.0
"""Keys on every partition of a group: two SoftHSM2 tokens with their own configuration as two HSMs, and NSS softoken."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.admin.hsms import Hsms, make_hsms
from tests.setups import Faults, toml
from xksfast.admin.key_creation import create_token_keys
from xksfast.admin.partitions.keytool import KeyToolAnswer
from xksfast.admin.partitions.link import PartitionFailure, PartitionLink, partition_target, take_all
from xksfast.admin.partitions.replica import PENDING, Replica, verify
from xksfast.admin.partitions.replication import KeyReport, Replicator, Rights
from xksfast.admin.partitions.transport import make_transport_key
from xksfast.config import load_config
from xksfast.native.partition import KeyTemplate
from xksfast.state.store_file import load_store_file

TRANSPORT = "xksfast-transport"
pytestmark = pytest.mark.timeout(300)  # each test is tens of processes, on a machine that does something else as well
CHANGES = ("generate", "unwrap", "unwrap_received", "rename", "lock_down", "destroy")
LOCKED = {"sensitive", "private", "encrypt", "decrypt"}
BLOCK = bytes(range(32)).hex()


@pytest.fixture(scope="module")
def new_hsms(tmp_path_factory: pytest.TempPathFactory) -> Hsms:
    return make_hsms(tmp_path_factory.mktemp("new"))


@pytest.fixture(scope="module")
def ready_hsms(tmp_path_factory: pytest.TempPathFactory, new_hsms: Hsms) -> Hsms:
    hsms = make_hsms(tmp_path_factory.mktemp("ready"), new_hsms)
    hsms.run("replicate", "main", "--make-transport-key")
    return hsms


@pytest.fixture
def hsms(tmp_path: Path, new_hsms: Hsms) -> Hsms:
    return make_hsms(tmp_path, new_hsms)


@pytest.fixture
def ready(tmp_path: Path, ready_hsms: Hsms) -> Hsms:
    """With a transport key on both."""
    return make_hsms(tmp_path, ready_hsms)


@contextmanager
def opened(hsms: Hsms, *names: str, kind: type[PartitionLink] = PartitionLink) -> Iterator[list[Replica]]:
    config = load_config(hsms.file)
    with ExitStack() as stack:
        links = [stack.enter_context(kind(partition_target(config, name))) for name in names or ("p0", "p1")]
        for link in links:
            link.post_open()
        assert set(take_all(links, type(None)).values()) == {None}
        partitions = config.partitions
        yield [Replica(link, partitions[link.name].wrap_mechanism_number, partitions[link.name].profile) for link in links]


# --- the transport key


def test_the_transport_key_is_made_once_and_may_only_wrap_and_unwrap(hsms: Hsms) -> None:
    assert hsms.json("replicate", "main", "--make-transport-key")["transport_key"] == {"p0": "made", "p1": "brought"}
    for number in (0, 1):
        assert hsms.labels(number) == {TRANSPORT: {"sensitive", "private", "wrap", "unwrap"}}
    assert hsms.json("replicate", "main", "--make-transport-key")["transport_key"] == {"p0": "present", "p1": "present"}


def test_two_different_transport_keys_are_found(hsms: Hsms) -> None:
    with opened(hsms) as replicas:
        for replica in replicas:
            replica.link.generate(KeyTemplate(TRANSPORT, wrap=True, unwrap=True))
    done = hsms.run("replicate", "main", "--make-transport-key", code=1)
    assert f"the transport key {TRANSPORT!r} on p1 is another key than on p0" in done.stderr
    hsms.token(0, "orders", "generate", "extractable")
    done = hsms.run("replicate", "main", "--key", "orders", code=1)
    assert "partition p1: C_UnwrapKey: CKR_" in done.stderr
    assert set(hsms.labels(1)) == {TRANSPORT}
    assert "extractable" in hsms.labels(0)["orders"]


def test_a_transport_key_for_hardware_is_refused_with_what_to_do(hsms: Hsms) -> None:
    hsms.config["partitions"]["p1"]["profile"] = "luna"
    hsms.write()
    done = hsms.run("replicate", "main", "--make-transport-key", code=3)
    assert "--make-transport-key is for soft tokens" in done.stderr
    assert "p1" in done.stderr
    assert "key ceremony" in done.stderr
    assert hsms.labels(0) == {}


# --- replicating


def test_what_was_encrypted_on_the_first_is_decrypted_on_the_second_after_replication(ready: Hsms) -> None:
    ready.token(0, "orders", "generate", "extractable")
    ciphertext = ready.token(0, "orders", "encrypt", BLOCK)
    assert ciphertext != BLOCK
    answer = ready.json("replicate", "main", "--key", "orders")
    (report,) = answer["keys"]
    assert (report["ok"], report["locked_down"]) == (True, ["p0"])
    assert report["partitions"] == {"p0": "present", "p1": "replicated"}
    assert ready.token(1, "orders", "decrypt", ciphertext) == BLOCK
    assert ready.labels(1)["orders"] == LOCKED
    assert "extractable" not in ready.labels(0)["orders"]
    (again,) = ready.json("replicate", "main", "--key", "orders")["keys"]
    assert again["partitions"] == {"p0": "present", "p1": "present"}


def test_a_pair_is_replicated_in_the_direction_asked_for_and_stays_extractable_when_asked(ready: Hsms) -> None:
    ready.token(1, "orders", "generate", "extractable")
    answer = ready.json("replicate", "--from", "p1", "--to", "p0", "--key", "orders", "--keep-extractable")
    assert answer["keys"][0]["partitions"] == {"p1": "present", "p0": "replicated"}
    assert "extractable" in ready.labels(1)["orders"]
    assert ready.labels(0)["orders"] == LOCKED
    assert "the key 'orders' is extractable" in ready.run("verify", "main", "--key", "orders", code=1).stderr
    assert ready.json("replicate", "main", "--key", "orders")["keys"][0]["locked_down"] == ["p1"]
    ready.run("verify", "main", "--key", "orders")


def test_a_dry_run_says_what_would_be_done_and_changes_nothing(ready: Hsms) -> None:
    ready.token(0, "orders", "generate", "extractable")
    before = ready.labels(0), ready.labels(1)
    (report,) = ready.json("replicate", "main", "--key", "orders", "--dry-run")["keys"]
    assert (report["planned"], report["partitions"]) == (True, {"p0": "present", "p1": "replicated"})
    assert (ready.labels(0), ready.labels(1)) == before


def test_a_key_that_cannot_leave_is_said_with_what_to_do(ready: Hsms) -> None:
    ready.token(0, "orders", "generate", "locked")
    stderr = ready.run("replicate", "main", "--key", "orders", code=1).stderr
    assert "the key 'orders' on p0 is not extractable, so it cannot be wrapped" in stderr
    assert "clone it with the HSM's own tool" in stderr


def test_without_a_transport_key_nothing_is_made(hsms: Hsms) -> None:
    hsms.token(0, "orders", "generate", "extractable")
    stderr = hsms.run("replicate", "main", "--key", "orders", code=1).stderr
    assert f"partition p0: there is no transport key {TRANSPORT!r}" in stderr
    assert "--make-transport-key" in stderr
    assert hsms.labels(1) == {}


def test_one_key_of_two_is_done_in_part(ready: Hsms) -> None:
    ready.token(0, "orders", "generate", "extractable")
    answer = ready.json("replicate", "main", "--key", "orders", "--key", "absent", code=4)
    assert [report["ok"] for report in answer["keys"]] == [True, False]
    assert answer["keys"][1]["problems"] == ["the key 'absent' is on none of the partitions: create it first"]


def test_a_group_that_clones_is_only_looked_at(ready: Hsms) -> None:
    ready.config["partition_groups"]["main"]["replication"] = "clone"
    ready.write()
    ready.token(0, "orders", "generate", "extractable")
    stderr = ready.run("replicate", "main", "--key", "orders", code=1).stderr
    assert "the key 'orders' is not on p1" in stderr
    assert "clone it with the HSM's own tool" in stderr
    assert set(ready.labels(1)) == {TRANSPORT}


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["mian"], 2, "there is no partition group 'mian': did you mean 'main'?"),
        ([], 2, "name a partition group, or a pair by --from and --to"),
        (["main", "--from", "p0", "--to", "p1"], 2, "name a partition group, or a pair by --from and --to"),
        (["--from", "p0"], 2, "name a partition group, or a pair by --from and --to"),
        (["--from", "p0", "--to", "p0"], 2, "--from and --to both name 'p0'"),
        (["--from", "p0", "--to", "px"], 2, "there is no partition 'px'"),
        (["--from", "p0", "--to", "p3"], 3, "partitions 'p0' and 'p3' are in no common group"),
        (["main"], 2, "no key of group 'main' stands in"),
    ],
)
def test_wrong_arguments_are_said(hsms: Hsms, arguments: list[str], code: int, words: str) -> None:
    hsms.config["partitions"]["p3"] = {"module": "hsm0", "token_label": "t3"}
    hsms.write()
    assert words in hsms.run("replicate", *arguments, code=code).stderr


def test_a_partition_that_is_not_reached_keeps_everything_as_it_is(ready: Hsms) -> None:
    ready.token(0, "orders", "generate", "extractable")
    ready.config["partitions"]["p1"]["token_label"] = "gone"
    ready.write()
    assert (
        "partition p1: there is no token with the label 'gone'"
        in ready.run("replicate", "main", "--key", "orders", code=1).stderr
    )
    assert "extractable" in ready.labels(0)["orders"]
    (report,) = ready.json("verify", "main", "--key", "orders", code=1)["keys"]
    assert report["partitions"]["p0"]["present"] == 1
    assert "there is no token with the label 'gone'" in report["partitions"]["p1"]["problem"]


# --- verifying


def test_a_wrong_key_of_the_same_label_is_found_and_nothing_is_changed(ready: Hsms) -> None:
    for number in (0, 1):
        ready.token(number, "orders", "generate", "locked")
    (report,) = ready.json("verify", "main", "--key", "orders", code=1)["keys"]
    assert [pair["result"] for pair in report["pairs"]] == ["differs", "differs"]
    assert "what partition p0 encrypts, partition p1 does not decrypt: another key" in report["problems"]
    stderr = ready.run("replicate", "main", "--key", "orders", code=1).stderr
    assert "the key 'orders' on partition p1 is another key than on partition p0: nothing was changed" in stderr
    assert set(ready.labels(1)) == {TRANSPORT, "orders"}


def test_verify_tries_every_ordered_pair_and_shows_each_partition(ready: Hsms) -> None:
    ready.token(0, "orders", "generate", "extractable")
    ready.run("replicate", "main", "--key", "orders")
    answer = ready.json("verify", "main", "--key", "orders", "--key", "absent", code=4)
    good, absent = answer["keys"]
    assert answer["group"] == "main"
    assert good["ok"]
    assert good["pairs"] == [
        {"encrypted_on": "p0", "decrypted_on": "p1", "result": "same"},
        {"encrypted_on": "p1", "decrypted_on": "p0", "result": "same"},
    ]
    held = {"present": 1, "aes_256": True, "encrypt": True, "decrypt": True, "extractable": False, "problem": ""}
    assert good["partitions"] == {"p0": {**held, "value_bytes": 32}, "p1": {**held, "value_bytes": 0}}
    assert (absent["ok"], absent["pairs"]) == (False, [])
    text = ready.run("verify", "main", "--key", "orders").stdout
    assert "p0 -> p1: same" in text


def test_two_keys_of_one_label_on_a_partition_are_found(ready: Hsms) -> None:
    for _ in range(2):
        ready.token(0, "orders", "generate", "extractable")
    assert (
        "partition p0: 2 secret keys have the label 'orders'" in ready.run("verify", "main", "--key", "orders", code=1).stderr
    )
    assert "2 secret keys have the label 'orders'" in ready.run("replicate", "main", "--key", "orders", code=1).stderr


# --- creating


@pytest.mark.parametrize("encrypt", [True, False])
@pytest.mark.parametrize("decrypt", [True, False])
def test_a_new_key_is_on_every_partition_with_its_rights_and_cannot_leave(ready: Hsms, encrypt: bool, decrypt: bool) -> None:
    with opened(ready) as replicas:
        report = Replicator(replicas, transport_key=TRANSPORT).replicate("orders", Rights(encrypt, decrypt))
        assert report.ok, report
        checked = verify(replicas, "orders")
        assert checked.ok, checked
        assert bool(checked.notes) == (not (encrypt and decrypt)), "what cannot be compared is said"
    rights = {name for name, given in (("encrypt", encrypt), ("decrypt", decrypt)) if given}
    for number in (0, 1):
        assert ready.labels(number)["orders"] == {"sensitive", "private"} | rights


def test_create_in_the_state_makes_the_key_on_every_partition_of_the_group(ready: Hsms) -> None:
    (ready.directory / "secret").write_text("s" * 43)
    store = {
        "uri_path_prefix": "",
        "region": "us-east-1",
        "partition_group": "main",
        "credentials": [{"access_key_id": "A" * 20, "secret_access_key_file": "secret"}],
        "keys": {"o": {"label": "orders", "create": True}, "p": {"label": "papers", "create": True}},
    }
    (ready.directory / "stores.toml").write_text(toml({"key_stores": {"a": store}}))

    def create() -> list[KeyToolAnswer]:
        async def collect() -> list[KeyToolAnswer]:
            config = load_config(ready.file)
            document = load_store_file(Path(config.state.store_file), config)
            return [answer async for answer in create_token_keys(config, document)]

        return asyncio.run(collect())

    expected = [f"{label} on partition {name}" for label in ("orders", "papers") for name in ("p0", "p1")]
    assert create() == [KeyToolAnswer(created=expected)]
    assert create() == [KeyToolAnswer()]
    ready.run("verify", "main")  # the keys of the state
    ready.config["partition_groups"]["main"]["transport_key"] = "another"
    ready.write()
    (ready.directory / "stores.toml").write_text(toml({"key_stores": {"a": store}}).replace("papers", "parcels"))
    (answer,) = create()
    assert "partition group main: partition p0: there is no transport key 'another'" in answer.problem
    assert answer.created == []


# --- interrupted


class Mortal(PartitionLink):
    """Its process and its peers' are killed right after the n-th change of a token."""

    left = 0
    links: list[PartitionLink] = []  # noqa: RUF012 - set anew by each test

    def call(self, call: str, kind: Any, timeout_s: float = 20.0, **arguments: Any) -> Any:
        result = super().call(call, kind, timeout_s, **arguments)
        if call in CHANGES:
            self._die()
        return result

    @staticmethod
    def _die() -> None:
        Mortal.left -= 1
        if Mortal.left == 0:
            for link in Mortal.links:
                assert link._process is not None
                os.kill(link._process.pid, signal.SIGKILL)
                link._process.wait()
            raise PartitionFailure("all", "killed")


def interrupted(hsms: Hsms, change: int, work: Any) -> bool:
    """Do `work` on replicas that are killed at that change; False when there were fewer."""
    with opened(hsms, kind=Mortal) as replicas:
        Mortal.left, Mortal.links = change, [replica.link for replica in replicas]
        with suppress(PartitionFailure):
            work(replicas)
        return Mortal.left <= 0


def leftovers(hsms: Hsms) -> set[str]:
    return {label for number in (0, 1) for label in hsms.labels(number) if label.startswith(PENDING)}


@pytest.mark.parametrize("encrypt_only", [False, True])
def test_a_creation_that_is_killed_at_any_change_is_finished_or_undone_by_the_next_run(ready: Hsms, encrypt_only: bool) -> None:
    def create(label: str) -> Any:
        def work(replicas: list[Replica]) -> KeyReport:
            return Replicator(replicas, transport_key=TRANSPORT).replicate(label, Rights(True, not encrypt_only))

        return work

    killed = 0
    while interrupted(ready, killed + 1, create(f"k{killed}")):
        with opened(ready) as replicas:
            report = create(f"k{killed}")(replicas)
            assert report.ok, (killed, report)
            assert verify(replicas, f"k{killed}").ok
        killed += 1
    assert killed >= 5, "generate, unwrap, two names, lock down"
    assert leftovers(ready) == set()


def test_a_replication_that_is_killed_at_any_change_is_finished_by_the_next_run(ready: Hsms) -> None:
    def work(replicas: list[Replica]) -> KeyReport:
        return Replicator(replicas, transport_key=TRANSPORT).replicate("orders")

    for change in (1, 2, 3):
        ready.token(0, "orders", "generate", "extractable")
        ciphertext = ready.token(0, "orders", "encrypt", BLOCK)
        assert interrupted(ready, change, work)
        assert ready.token(0, "orders", "decrypt", ciphertext) == BLOCK, "the key that is in use stays"
        with opened(ready) as replicas:
            assert work(replicas).ok
            assert verify(replicas, "orders").ok
        assert ready.token(1, "orders", "decrypt", ciphertext) == BLOCK
        assert leftovers(ready) == set()
        with opened(ready) as replicas:
            for replica in replicas:
                for key in replica.link.find("orders"):
                    replica.link.destroy(key.handle)


@pytest.mark.parametrize("change", [1, 2, 7, 8, 9, 10])
def test_a_transport_key_whose_making_is_killed_is_made_or_said_by_the_next_run(hsms: Hsms, change: int) -> None:
    def work(replicas: list[Replica]) -> dict[str, str]:
        return make_transport_key(replicas, TRANSPORT)

    interrupted(hsms, change, work)
    with opened(hsms) as replicas:
        work(replicas)
        assert work(replicas) == {"p0": "present", "p1": "present"}
        assert Replicator(replicas, transport_key=TRANSPORT).replicate("orders", Rights(True, True)).ok
    assert leftovers(hsms) == set()


# --- other tokens, other mechanisms


def test_keys_go_between_softhsm_and_nss_in_both_directions(hsms: Hsms) -> None:
    hsms.with_nss()
    assert hsms.json("replicate", "main", "--make-transport-key")["transport_key"] == {
        "p0": "made",
        "p1": "brought",
        "p2": "brought",
    }
    with opened(hsms, "p0", "p1", "p2") as replicas:
        forth = Replicator(replicas, transport_key=TRANSPORT).replicate("forth", Rights(True, True))
        back = Replicator(replicas[::-1], transport_key=TRANSPORT).replicate("back", Rights(True, True))
        assert (forth.problems, back.problems) == ([], [])
    answer = hsms.json("verify", "main", "--key", "forth", "--key", "back")
    for report in answer["keys"]:
        assert [pair["result"] for pair in report["pairs"]] == ["same"] * 6


def test_a_blob_that_unwraps_into_a_wrong_key_leaves_nothing(hsms: Hsms) -> None:
    """NSS's 0x210A makes 48 bytes; SoftHSM's 0x2109 takes them, says CKR_OK and holds a key of 40 bytes."""
    hsms.with_nss()
    hsms.run("replicate", "main", "--make-transport-key")
    hsms.config["partitions"]["p2"]["wrap_mechanism"] = "0x210A"
    hsms.write()
    with opened(hsms, "p2", "p0") as replicas:
        report = Replicator(replicas, transport_key=TRANSPORT).replicate("orders", Rights(True, True))
        (problem,) = report.problems
        assert "partition p0: C_UnwrapKey said CKR_OK and made something else than an AES-256 key: it was destroyed" in problem
        assert "wrap_mechanism" in problem
    assert set(hsms.labels(0)) == {TRANSPORT}
    hsms.config["partitions"]["p2"]["wrap_mechanism"] = "0x210B"  # RFC 5649 there,
    hsms.config["partitions"]["p0"]["wrap_mechanism"] = "0x210A"  # and here
    hsms.write()
    with opened(hsms, "p2", "p0") as replicas:
        report = Replicator(replicas, transport_key=TRANSPORT).replicate("orders", Rights(True, True))
        assert report.ok, report
        assert replicas[0].pending("orders") == replicas[1].pending("orders") == []


def test_an_unknown_mechanism_is_said_with_the_setting(ready: Hsms) -> None:
    ready.config["partitions"]["p0"]["wrap_mechanism"] = "0x80000999"
    ready.write()
    ready.token(0, "orders", "generate", "extractable")
    stderr = ready.run("replicate", "main", "--key", "orders", code=1).stderr
    assert "partition p0: C_WrapKey: CKR_MECHANISM_INVALID: the token has no mechanism 0x80000999: set wrap_mechanism" in stderr


# --- the link


def test_a_token_that_hangs_ends_its_own_process_and_is_said(hsms: Hsms) -> None:
    faults = Faults(hsms.directory)
    hsms.config["modules"]["hsm0"] = {
        "path": str(faults.module),
        "environment": {**hsms.config["modules"]["hsm0"]["environment"], **faults.environment},
    }
    hsms.write()
    with opened(hsms, "p0") as replicas:
        link = replicas[0].link
        key = link.generate(KeyTemplate("k", encrypt=True, decrypt=True, on_token=False))
        faults.set(delay_ms=30_000, times=1000)
        began = time.monotonic()
        with pytest.raises(PartitionFailure, match=r"partition p0: the token did not answer within 1 s \(prove\)"):
            link.call("prove", Any, 1.0, key=key)
        assert time.monotonic() - began < 10


def test_a_module_that_crashes_is_said(hsms: Hsms) -> None:
    with opened(hsms, "p0") as replicas:
        link = replicas[0].link
        assert link._process is not None
        os.kill(link._process.pid, signal.SIGSEGV)
        with pytest.raises(PartitionFailure, match=r"partition p0: the PKCS#11 module crashed, .* by SIGSEGV \(find\)"):
            link.find("orders")
        with pytest.raises(PartitionFailure, match="by SIGSEGV"):
            link.find("orders")
