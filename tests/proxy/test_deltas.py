# SPDX-License-Identifier: Apache-2.0
"""What a worker serves follows the deltas it is told: a real worker process, real requests.

Keys are `local` ones; see test_in_flight.py for tokens and answers under way.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.client import Answer, Client
from tests.proxy.worker_process import State, Worker, running_worker
from tests.servers import wait_until
from xksfast import messages
from xksfast.model import Credential, Key, KeyStore, KeyVersion

requirement = pytest.mark.requirement


@pytest.fixture
def worker() -> Iterator[Worker]:
    with running_worker() as worker:
        yield worker


@pytest.fixture
def state(worker: Worker) -> State:
    return worker.state


def ask(worker: Worker, operation: str = "encrypt", *, prefix: str = "/one", credential: int = 0, **call: Any) -> Answer:
    """One request over a connection of its own."""
    client = worker.client(prefix, credential)
    try:
        return client.call(operation, **call)
    finally:
        client.close()


# --- what is new


def test_a_worker_is_ready_with_its_first_whole_state_and_not_before(worker: Worker, state: State) -> None:
    seq = worker.tell(reset=True, complete=False, key_stores=(state.store(),))
    assert ask(worker).error == "InvalidUriPathException"
    assert not [message for message in worker.told if isinstance(message, messages.WorkerReady)]
    worker.tell(reset=True, base_seq=0, seq=seq, credentials=(state.credential(),), keys=(state.key(),))
    worker.applied(seq)
    wait_until(lambda: messages.WorkerReady(seq=seq) in worker.told, "ready")
    assert ask(worker).status == 200


def test_a_delta_adds_to_what_is_served(worker: Worker, state: State) -> None:
    worker.begin()
    assert ask(worker, key="k2").error == "KeyNotFoundException"
    worker.change(keys=(state.key("k2"),))
    assert ask(worker, key="k2").status == ask(worker).status == 200
    worker.change(key_stores=(state.store("two"),), credentials=(state.credential("two"),), keys=(state.key("k1", "two"),))
    assert ask(worker, prefix="/two").status == ask(worker).status == 200


def test_a_whole_state_replaces_what_was_served(worker: Worker, state: State) -> None:
    worker.begin()
    worker.change(key_stores=(state.store("two"),), credentials=(state.credential("two"),), keys=(state.key("k1", "two"),))
    worker.tell(reset=True, seq=50, complete=False, key_stores=(state.store(),), credentials=(state.credential(),))
    assert ask(worker, prefix="/two").status == ask(worker).status == 200, "it takes effect as a whole"
    worker.tell(reset=True, seq=50, keys=(state.key("k9"),))
    worker.applied(50)
    assert ask(worker, prefix="/two").error == "InvalidUriPathException"
    assert ask(worker).error == "KeyNotFoundException"
    assert ask(worker, key="k9").status == 200


def test_a_delta_in_parts_takes_effect_as_a_whole_with_the_last_one(worker: Worker, state: State) -> None:
    worker.begin()
    worker.change(keys=(state.key("k2", blocked=True),))
    seq = worker.tell(complete=False, keys=(state.key("k2"), state.key("k3")))
    worker.tell(complete=False, seq=seq, keys=(state.key("k4"),))
    assert ask(worker, key="k2").error == "InvalidStateException"
    assert ask(worker, key="k3").error == "KeyNotFoundException"
    assert not [said for said in worker.all_of(messages.DeltaRestricted) if said.seq == seq]
    worker.change(seq=seq)
    assert [ask(worker, key=key).status for key in ("k1", "k2", "k3", "k4")] == [200] * 4


# --- what does not follow


def test_a_delta_that_follows_on_another_state_is_refused_and_everything_mends_it(worker: Worker, state: State) -> None:
    worker.begin()
    worker.tell(base_seq=7, seq=8, keys=(state.key("k2"),))
    (refused,) = wait_until(lambda: worker.all_of(messages.DeltaRefused), "refused")
    assert (refused.seq, refused.has_seq, refused.worker) == (8, 1, 3)
    assert "event 7" in refused.problem
    worker.tell(base_seq=8, seq=9, keys=(state.key("k3"),))  # on its way before the refusal came back: told once is enough
    worker.change(
        base_seq=0, seq=9, reset=True, key_stores=(state.store(),), credentials=(state.credential(),), keys=(state.key("k4"),)
    )
    assert len(worker.all_of(messages.DeltaRefused)) == 1
    assert ask(worker, key="k4").status == 200
    assert ask(worker, key="k3").error == "KeyNotFoundException"
    worker.change(keys=(state.key("k5"),))
    assert ask(worker, key="k5").status == 200


@pytest.mark.parametrize("what", ["region", "key_source"])
def test_what_never_changes_of_a_store_is_refused(worker: Worker, state: State, what: str) -> None:
    worker.begin()
    changes: dict[str, Any] = (
        {"region": "us-east-1"} if what == "region" else {"key_source": "pkcs11", "partition_group": "main"}
    )
    store = state.store()
    fields = {field: getattr(store, field) for field in store.__struct_fields__}
    worker.tell(key_stores=(KeyStore(**{**fields, **changes}),))
    (refused,) = wait_until(lambda: worker.all_of(messages.DeltaRefused), "refused")
    assert "never change" in refused.problem
    assert ask(worker).status == 200


def test_parts_that_a_control_process_left_behind_are_forgotten(worker: Worker, state: State) -> None:
    worker.begin()
    worker.tell(reset=True, seq=30, complete=False, key_stores=(state.store("two"),))
    worker.link_anew()
    worker.change(
        base_seq=0, seq=40, reset=True, key_stores=(state.store(),), credentials=(state.credential(),), keys=(state.key(),)
    )
    assert ask(worker).status == 200
    assert ask(worker, prefix="/two").error == "InvalidUriPathException"


# --- what is forbidden


@requirement(46, 105)
def test_a_blocked_store_or_key_is_an_invalid_state_until_it_is_unblocked(worker: Worker, state: State) -> None:
    worker.begin()
    worker.change(keys=(state.key("k2"),))
    worker.restricted(worker.tell(keys=(state.key(blocked=True),)))
    assert ask(worker).error == ask(worker, "metadata").error == "InvalidStateException"
    assert ask(worker, key="k2").status == ask(worker, "health").status == 200
    worker.change(keys=(state.key(),))
    assert ask(worker).status == 200
    worker.restricted(worker.tell(key_stores=(state.store(blocked=True),)))
    assert ask(worker).error == ask(worker, key="k2").error == ask(worker, "health").error == "InvalidStateException"
    worker.change(key_stores=(state.store(),))
    assert ask(worker).status == ask(worker, "health").status == 200


def test_metadata_follows_usage_and_state(worker: Worker, state: State) -> None:
    worker.begin()
    seen = []
    for changes in ({}, {"enabled": False}, {"usage": ("DECRYPT",)}, {"usage": ("ENCRYPT",)}, {"usage": ()}):
        worker.restricted(worker.tell(keys=(state.key(**changes),)))  # type: ignore[arg-type]
        worker.change()
        document = ask(worker, "metadata").document
        seen.append((document["keyUsage"], document["keyStatus"], ask(worker).error))
    assert seen == [
        (["ENCRYPT", "DECRYPT"], "ENABLED", ""),
        (["ENCRYPT", "DECRYPT"], "DISABLED", "InvalidStateException"),
        (["DECRYPT"], "ENABLED", "InvalidKeyUsageException"),
        (["ENCRYPT"], "ENABLED", ""),
        ([], "ENABLED", "InvalidKeyUsageException"),
    ]


def test_what_is_removed_is_gone(worker: Worker, state: State) -> None:
    worker.begin()
    worker.change(
        key_stores=(state.store("two"),),
        credentials=(state.credential("two"), state.credential(number=1)),
        keys=(state.key("k1", "two"), state.key("k2")),
    )
    worker.restricted(worker.tell(removed_keys=(("one", "k2"),)))
    assert ask(worker, key="k2").error == "KeyNotFoundException"
    worker.restricted(worker.tell(removed_credentials=(("one", state.credential().access_key_id),)))
    assert ask(worker).error == "AuthenticationFailedException"
    assert ask(worker, credential=1).status == ask(worker, prefix="/two").status == 200
    worker.restricted(worker.tell(removed_stores=("two",)))
    assert ask(worker, prefix="/two").error == "InvalidUriPathException"
    worker.change(removed_keys=(("one", "nothing"), ("two", "k1")), removed_stores=("nothing",))
    assert ask(worker, credential=1).status == 200


def test_what_is_removed_and_made_in_one_delta_is_made_anew(worker: Worker, state: State) -> None:
    worker.begin()
    worker.change(keys=(state.key("k2"),))
    sealed = ask(worker).document
    state.local_keys.clear()  # the new k1 is another key under the same names
    worker.change(removed_stores=("one",), key_stores=(state.store(),), credentials=(state.credential(),), keys=(state.key(),))
    client = worker.client()
    assert client.call("decrypt", client.decrypt_document(sealed)).error == "InvalidCiphertextException"
    assert client.call("encrypt").status == 200
    assert client.call("encrypt", key="k2").error == "KeyNotFoundException"
    client.close()


@requirement(131, 132, 133)
def test_credentials_come_go_and_renew_their_days(worker: Worker, state: State) -> None:
    worker.begin()
    worker.change(credentials=(state.credential(number=1, days=(-3, -2)),))
    assert ask(worker, credential=1).error == "AuthenticationFailedException", "it has no key for today"
    worker.change(credentials=(state.credential(number=1),))
    assert ask(worker, credential=1).status == ask(worker).status == 200
    worker.change(credentials=(state.credential(number=1, days=(1, 2, 3)),))
    assert ask(worker, credential=1).error == "AuthenticationFailedException", "days that are not named are gone"
    state.secrets[state.credential(number=1).access_key_id] = "another secret"
    worker.change(credentials=(state.credential(number=1),))
    assert ask(worker, credential=1).status == 200
    for number in (2, 1, 0):
        worker.change(credentials=(state.credential(number=2),))
        worker.change(removed_credentials=(("one", state.credential(number=number).access_key_id),))
        expected = ["" if other < number or other == 2 != number else "AuthenticationFailedException" for other in range(3)]
        assert [ask(worker, credential=other).error for other in range(3)] == expected


def test_a_credential_opens_its_own_store_only_even_under_one_id(worker: Worker, state: State) -> None:
    worker.begin()
    worker.change(key_stores=(state.store("two"),), credentials=(state.credential("two"),), keys=(state.key("k1", "two"),))
    worker.change(removed_credentials=(("one", state.credential().access_key_id),))
    assert ask(worker).error == "AuthenticationFailedException"
    assert ask(worker, prefix="/two").status == 200


def test_stores_may_change_their_prefixes_even_with_each_other(worker: Worker, state: State) -> None:
    worker.begin()
    worker.change(key_stores=(state.store("two"),), credentials=(state.credential("two", 1),), keys=(state.key("k1", "two"),))
    worker.change(key_stores=(state.store("one", prefix="/two"), state.store("two", prefix="/one")))
    assert ask(worker, prefix="/two", credential=0).status == ask(worker, prefix="/one", credential=1).status == 200
    assert ask(worker, prefix="/two", credential=1).error == "AuthenticationFailedException"
    worker.change(key_stores=(state.store("one", prefix=""),))
    assert ask(worker, prefix="").status == 200
    assert ask(worker, prefix="/two").error == "InvalidUriPathException"


@requirement(109)
def test_principals_are_narrowed_at_once_and_widened_with_the_rest(worker: Worker, state: State) -> None:
    worker.begin()
    alice = "arn:aws:iam::123456789012:user/Alice"
    worker.restricted(worker.tell(key_stores=(state.store(allowed_principals=("arn:aws:iam::9*",)),)))
    assert ask(worker).error == "AccessDeniedException"
    worker.change(key_stores=(state.store(allowed_principals=("arn:aws:iam::9*", alice)),))
    assert ask(worker).status == 200
    worker.change(key_stores=(state.store(),))
    assert ask(worker).status == 200


# --- what cannot be served


def test_what_cannot_be_served_is_told_and_the_rest_is_served(worker: Worker, state: State) -> None:
    worker.begin()
    key, credential = state.key("k2"), state.credential(number=1)
    lost = Key("one", "k3", (KeyVersion(number=1, label="k3"),), ("ENCRYPT",))
    outside = Credential("one", "DDDDDDDDDDDDDDDDDDDD", dict.fromkeys(credential.signing_keys, 999))
    group = KeyStore("four", "/four", "eu-central-1", "pkcs11", "nowhere")
    applied = worker.applied(
        worker.tell(key_stores=(group,), keys=(lost, key, state.key("k1", "four")), credentials=(outside, credential))
    )
    assert len(applied.problems) == 3
    assert any("key k3" in problem and "was not unsealed" in problem for problem in applied.problems)
    assert any("'DDDDDDDDDDDDDDDDDDDD'" in problem for problem in applied.problems)
    assert any("no partition group 'nowhere'" in problem for problem in applied.problems)
    assert ask(worker, key="k2", credential=1).status == ask(worker).status == 200
    assert ask(worker, key="k3").error == "InternalException", "the state has the key: what is missing is ours to put right"


# --- time


def test_requests_are_answered_while_a_large_state_is_put_in_place(worker: Worker, state: State) -> None:
    worker.begin()
    names = [f"s{number}" for number in range(500)]
    client: Client = worker.client()
    for at in range(0, 500, 100):
        worker.tell(complete=False, seq=2, key_stores=tuple(state.store(name) for name in names[at : at + 100]))
    for at in range(0, 10_000, 2000):
        keys = tuple(state.key(f"k{number % 20}", names[number // 20]) for number in range(at, at + 2000))
        worker.tell(complete=at == 8000, seq=2, keys=keys)
    while not [said for said in worker.all_of(messages.DeltaApplied) if said.seq == 2]:
        assert client.call("encrypt").status == 200
    worker.send_supervisor(messages.AskReport(number=1))
    (report,) = wait_until(lambda: [m for m in worker.told if isinstance(m, messages.WorkerReport)], "a report")
    assert report.seq == 2
    assert report.loop_lag_s < 0.2
    client.close()
