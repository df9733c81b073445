# SPDX-License-Identifier: Apache-2.0
"""KmsConnection against the fake KMS, where no proxy is needed: lists, keys, waiting, retries, credentials, secrets."""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.fake_kms import FakeKms, VpcService
from tests.fake_kms.account import ACCOUNT, Store
from tests.fix_aws import ENDPOINT, HOST, aws_connection
from xksfast.admin.aws.errors import CONNECTION_ERRORS, AwsRefused
from xksfast.admin.aws.kms import KmsConnection
from xksfast.admin.aws.results import CustomKeyStore, Identity, ProxyCredential
from xksfast.admin.aws.waiting import Patience
from xksfast.errors import OperatorError

SERVICE = "com.amazonaws.vpce.us-east-1.vpce-svc-0123456789abcdef0"
SECRET = "topsecret/topsecret+topsecret/topsecret+topse="
CREDENTIAL = ProxyCredential("A" * 20, SECRET)
QUICK = Patience(patience_s=10, poll_s=0.01)


def add_store(fake: FakeKms, name: str = "one", **values: Any) -> Store:
    """A custom key store that is there already, CONNECTED."""
    given = {
        "endpoint": ENDPOINT,
        "uri_path": f"/{name}/kms/xks/v1",
        "connectivity": "PUBLIC_ENDPOINT",
        "access_key_id": "A" * 20,
        "secret_access_key": SECRET,
        "state": "CONNECTED",
    }
    return fake.account.add_store(name, **{**given, **values})


def add_service(fake: FakeKms, **changes: Any) -> VpcService:
    """A VPC endpoint service that meets every requirement, but for `changes`; nobody answers behind it."""
    values = {
        "private_dns_name": HOST,
        "address": "127.0.0.1",
        "port": 1,
        "allowed_principals": ("cks.kms.us-east-1.amazonaws.com",),
    }
    service = fake.account.vpc_services[SERVICE] = VpcService(**{**values, **changes})
    return service


def create_behind_vpc(kms: KmsConnection, name: str = "vpc") -> str:
    return kms.create_store(
        name,
        endpoint=ENDPOINT,
        uri_path="/vpc/kms/xks/v1",
        connectivity="VPC_ENDPOINT_SERVICE",
        credential=CREDENTIAL,
        vpc_endpoint_service_name=SERVICE,
    )


# --- stores


def test_stores_are_listed_over_pages(fake_kms: FakeKms, kms: KmsConnection) -> None:
    wanted = [add_store(fake_kms, f"s{number}").id for number in range(120)]
    assert [store.id for store in kms.stores()] == wanted
    assert fake_kms.calls == ["DescribeCustomKeyStores"] * 3


def test_a_store_is_described_as_aws_has_it(fake_kms: FakeKms, kms: KmsConnection) -> None:
    add_service(fake_kms)
    store_id = create_behind_vpc(kms)
    seen = kms.describe_store(store_id)
    assert seen == CustomKeyStore(
        id=store_id,
        name="vpc",
        type="EXTERNAL_KEY_STORE",
        connection_state="DISCONNECTED",
        endpoint=ENDPOINT,
        uri_path="/vpc/kms/xks/v1",
        connectivity="VPC_ENDPOINT_SERVICE",
        access_key_id="A" * 20,
        vpc_endpoint_service_name=SERVICE,
        vpc_endpoint_service_owner=ACCOUNT,
        created_at=seen.created_at,
    )
    assert seen.created_at > 1_700_000_000


def test_a_store_is_found_by_name_or_not(fake_kms: FakeKms, kms: KmsConnection) -> None:
    store = add_store(fake_kms)
    found = kms.find_store("one")
    assert found is not None
    assert found.id == store.id
    assert kms.find_store("another") is None


def test_a_store_that_does_not_exist_is_refused_in_words(kms: KmsConnection) -> None:
    with pytest.raises(AwsRefused, match=r"look at custom key store cks-0: AWS has no such custom key store") as refusal:
        kms.describe_store("cks-0")
    assert refusal.value.code == "CustomKeyStoreNotFoundException"


def test_name_credential_and_path_change_while_connected_but_the_endpoint_only_while_disconnected(
    fake_kms: FakeKms, kms: KmsConnection
) -> None:
    store = add_store(fake_kms)
    kms.update_store(store.id, new_name="renamed")
    assert kms.describe_store(store.id).name == "renamed"
    with pytest.raises(AwsRefused, match="only while DISCONNECTED") as refusal:
        kms.update_store(store.id, endpoint="https://other.example.com")
    assert refusal.value.code == "CustomKeyStoreInvalidStateException"


def test_a_name_in_use_is_refused(fake_kms: FakeKms, kms: KmsConnection) -> None:
    add_store(fake_kms, "vpc", endpoint="https://elsewhere.example.com")
    add_service(fake_kms)
    with pytest.raises(AwsRefused, match="has that name"):
        create_behind_vpc(kms)


@pytest.mark.parametrize(
    ("values", "error"),
    [
        ({"uri_path": "/vpc/kms/xks/v1"}, "XksProxyUriInUseException"),
        ({}, "XksProxyUriEndpointInUseException"),
        ({"endpoint": "https://x.example.com", "vpc_service": SERVICE, "connectivity": "VPC_ENDPOINT_SERVICE"},
         "XksProxyVpcEndpointServiceInUseException"),
    ],
)  # fmt: skip
def test_what_must_be_unique_in_a_region(fake_kms: FakeKms, kms: KmsConnection, values: dict[str, str], error: str) -> None:
    add_store(fake_kms, **values)
    add_service(fake_kms)
    with pytest.raises(AwsRefused) as refusal:
        create_behind_vpc(kms)
    assert refusal.value.code == error


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"allowed_principals": ()}, "NotFound"),
        ({"owner": "999999999999"}, "NotFound"),
        ({"acceptance_required": True}, "InvalidConfiguration"),
        ({"domain_verified": False}, "InvalidConfiguration"),
        ({"private_dns_name": "other.example.com"}, "InvalidConfiguration"),
        ({"zones": 1}, "InvalidConfiguration"),
        ({"load_balancer": "gateway"}, "InvalidConfiguration"),
    ],
)
def test_a_vpc_endpoint_service_that_will_not_do_is_refused(
    fake_kms: FakeKms, kms: KmsConnection, changes: dict[str, Any], kind: str
) -> None:
    add_service(fake_kms, **changes)
    with pytest.raises(AwsRefused) as refusal:
        create_behind_vpc(kms)
    assert refusal.value.code == f"XksProxyVpcEndpointService{kind}Exception"


def test_a_vpc_endpoint_service_that_was_changed_later_fails_the_connection(fake_kms: FakeKms, kms: KmsConnection) -> None:
    service = add_service(fake_kms)
    store_id = create_behind_vpc(kms)
    service.acceptance_required = True
    kms.connect_store(store_id)
    with pytest.raises(AwsRefused) as refusal:
        kms.wait_connected(store_id, patience=QUICK)
    assert refusal.value.code == "XKS_VPC_ENDPOINT_SERVICE_INVALID_CONFIGURATION"


def test_deleting_needs_it_disconnected_and_empty(fake_kms: FakeKms, kms: KmsConnection) -> None:
    store = add_store(fake_kms)
    key = fake_kms.account.add_key(store.id, "k")
    with pytest.raises(AwsRefused, match="still holds KMS keys"):
        kms.delete_store(store.id)
    kms.schedule_key_deletion(key.arn, 7)
    fake_kms.account.pass_days(8)
    with pytest.raises(AwsRefused, match="connection state that does not allow it"):
        kms.delete_store(store.id)
    kms.disconnect_store(store.id)
    kms.wait_disconnected(store.id, patience=QUICK)
    kms.delete_store(store.id)
    assert kms.stores() == []


# --- waiting


@pytest.mark.parametrize("code", sorted(CONNECTION_ERRORS))
def test_every_connection_error_ends_the_wait_with_its_explanation(fake_kms: FakeKms, kms: KmsConnection, code: str) -> None:
    store = add_store(fake_kms, state="DISCONNECTED")
    fake_kms.fail_connect(code)
    kms.connect_store(store.id)
    with pytest.raises(AwsRefused) as refusal:
        kms.wait_connected(store.id, patience=QUICK)
    assert refusal.value.code == code
    assert f"one ({store.id})" in str(refusal.value)
    for part in CONNECTION_ERRORS[code]:
        assert part in str(refusal.value)
    with pytest.raises(AwsRefused, match="A FAILED one must be disconnected"):
        kms.connect_store(store.id)
    kms.disconnect_store(store.id)
    assert kms.wait_disconnected(store.id, patience=QUICK).connection_state == "DISCONNECTED"


def test_waiting_tells_what_it_sees(fake_kms: FakeKms, kms: KmsConnection) -> None:
    store = add_store(fake_kms)
    seen: list[tuple[str, float]] = []
    kms.disconnect_store(store.id)
    kms.wait_disconnected(store.id, lambda entry, waited: seen.append((entry.connection_state, waited)), QUICK)
    assert [state for state, _ in seen][-1] == "DISCONNECTED"
    assert {state for state, _ in seen} <= {"DISCONNECTING", "DISCONNECTED"}
    waits = [waited for _, waited in seen]
    assert waits == sorted(waits)


def test_patience_ends(fake_kms: FakeKms, kms: KmsConnection) -> None:
    store = add_store(fake_kms)
    store.change("CONNECTING", "CONNECTED", "", after_s=3600)
    with pytest.raises(AwsRefused, match=r"it is CONNECTING. AWS goes on by itself") as refusal:
        kms.wait_connected(store.id, patience=Patience(patience_s=0.05, poll_s=0.01))
    assert refusal.value.code == "TimedOut"


def test_waiting_can_be_stopped(fake_kms: FakeKms, kms: KmsConnection) -> None:
    store = add_store(fake_kms)
    store.change("CONNECTING", "CONNECTED", "", after_s=3600)
    stop = threading.Event()

    def progress(entry: CustomKeyStore, waited_s: float) -> None:
        stop.set()

    with pytest.raises(AwsRefused) as refusal:
        kms.wait_connected(store.id, progress, Patience(patience_s=3600, poll_s=3600, stop=stop))
    assert refusal.value.code == "Stopped"


def test_nobody_connects_it_so_waiting_gives_up(fake_kms: FakeKms, kms: KmsConnection) -> None:
    store = add_store(fake_kms, state="DISCONNECTED")
    with pytest.raises(AwsRefused, match="Connect it first"):
        kms.wait_connected(store.id, patience=Patience(patience_s=0.2, poll_s=0.01))
    store.state = "CONNECTED"
    with pytest.raises(AwsRefused, match="Disconnect it first"):
        kms.wait_disconnected(store.id, patience=Patience(patience_s=0.2, poll_s=0.01))


def test_the_state_from_before_the_call_is_not_held_against_it(fake_kms: FakeKms, kms: KmsConnection) -> None:
    store = add_store(fake_kms, state="DISCONNECTED")
    store.change("DISCONNECTED", "CONNECTED", "", after_s=0.1)  # eventual consistency: the change is shown late
    seen: list[str] = []
    kms.wait_connected(store.id, lambda entry, _: seen.append(entry.connection_state), QUICK)
    assert seen[0] == "DISCONNECTED"
    assert seen[-1] == "CONNECTED"


def test_waiting_survives_throttling(fake_kms: FakeKms, kms: KmsConnection) -> None:
    store = add_store(fake_kms)
    fake_kms.throttle("DescribeCustomKeyStores", times=2)  # both attempts of the first look
    assert kms.wait_connected(store.id, patience=QUICK).id == store.id


def test_a_store_deleted_meanwhile_ends_the_wait(kms: KmsConnection) -> None:
    with pytest.raises(AwsRefused) as refusal:
        kms.wait_connected("cks-0", patience=QUICK)
    assert refusal.value.code == "CustomKeyStoreNotFoundException"


# --- keys


def test_keys_of_a_store_are_found_among_all_keys(fake_kms: FakeKms, kms: KmsConnection) -> None:
    one, other = add_store(fake_kms), add_store(fake_kms, "two")
    wanted = [fake_kms.account.add_key(one.id, f"k{number}").id for number in range(3)]
    fake_kms.account.add_key(other.id, "k0")
    assert [key.id for key in kms.keys_of_store(one.id)] == wanted
    fake_kms.refuse("DescribeKey", "AccessDeniedException")
    assert [key.id for key in kms.keys_of_store(one.id)] == wanted[1:]


def test_keys_are_listed_over_pages(fake_kms: FakeKms, kms: KmsConnection) -> None:
    store = add_store(fake_kms)
    wanted = [fake_kms.account.add_key(store.id, f"k{number}").arn for number in range(60)]
    assert kms.key_arns() == wanted
    assert fake_kms.calls == ["ListKeys"] * 2


def test_aliases_tags_and_description(fake_kms: FakeKms, kms: KmsConnection) -> None:
    store = add_store(fake_kms)
    key, other = (fake_kms.account.add_key(store.id, external) for external in ("k1", "k2"))
    kms.create_alias("orders", key.arn)
    kms.create_alias("alias/old", key.arn)
    kms.set_description(key.arn, "for orders")
    kms.set_tags(key.arn, {"team": "nile", "stage": "test"})
    kms.set_tags(key.arn, {"team": "niger"})
    seen = kms.look_at_key(key.arn)
    assert (seen.description, seen.aliases, dict(seen.tags)) == ("for orders", ("alias/old", "alias/orders"), {"team": "niger"})
    assert kms.describe_key("alias/orders").id == key.id
    kms.move_alias("orders", other.arn)
    kms.delete_alias("old")
    assert (kms.aliases(key.id), kms.aliases(other.id)) == ([], ["alias/orders"])
    before = fake_kms.calls.count("TagResource")
    kms.set_tags(key.arn, {"team": "niger"})
    assert fake_kms.calls.count("TagResource") == before


def test_many_aliases_and_tags_are_read_over_pages(fake_kms: FakeKms, kms: KmsConnection) -> None:
    key = fake_kms.account.add_key(add_store(fake_kms).id, "k")
    names = sorted(f"alias/a{number:03}" for number in range(101))
    fake_kms.account.aliases = dict.fromkeys(names, key.id)
    key.tags = {f"t{number}": "x" for number in range(51)}
    seen = kms.look_at_key(key.id)
    assert list(seen.aliases) == names
    assert dict(seen.tags) == key.tags


def test_deletion_is_scheduled_and_cancelled(fake_kms: FakeKms, kms: KmsConnection) -> None:
    key = fake_kms.account.add_key(add_store(fake_kms).id, "k")
    at = kms.schedule_key_deletion(key.arn, 7)
    seen = kms.describe_key(key.arn)
    assert (seen.state, seen.deletion_at) == ("PendingDeletion", at)
    with pytest.raises(AwsRefused, match="cancel a scheduled deletion"):
        kms.enable_key(key.arn)
    kms.cancel_key_deletion(key.arn)
    assert kms.describe_key(key.arn).state == "Disabled"
    kms.enable_key(key.arn)
    assert kms.describe_key(key.arn).state == "Enabled"
    with pytest.raises(AwsRefused, match="a value wrong"):
        kms.schedule_key_deletion(key.arn, 31)


def test_a_key_of_a_disconnected_store_is_unavailable(fake_kms: FakeKms, kms: KmsConnection) -> None:
    key = fake_kms.account.add_key(add_store(fake_kms, state="DISCONNECTED").id, "k")
    assert kms.describe_key(key.arn).state == "Unavailable"
    with pytest.raises(AwsRefused) as refusal:
        kms.prove_key(key.arn)
    assert refusal.value.code == "KMSInvalidStateException"


@pytest.mark.parametrize(
    ("call", "code"),
    [
        (lambda kms, key: kms.create_alias("aws/orders", key), "InvalidAliasNameException"),
        (lambda kms, key: kms.delete_alias("absent"), "NotFoundException"),
        (lambda kms, key: kms.describe_key("arn:aws:kms:us-east-1:111122223333:key/absent"), "NotFoundException"),
        (lambda kms, key: kms.set_tags(key, {"aws:x": "y"}), "TagException"),
        (lambda kms, key: kms.create_alias("so wrong", key), "ValidationException"),
        (lambda kms, key: kms.create_alias("", key), "InvalidAliasNameException"),
    ],
)
def test_refusals_about_keys_carry_awss_name(fake_kms: FakeKms, kms: KmsConnection, call: Any, code: str) -> None:
    key = fake_kms.account.add_key(add_store(fake_kms).id, "k")
    with pytest.raises(AwsRefused) as refusal:
        call(kms, key.arn)
    assert refusal.value.code == code


# --- the way to AWS


def test_throttled_calls_are_tried_again(fake_kms: FakeKms, kms: KmsConnection) -> None:
    fake_kms.throttle("ListKeys")
    assert kms.key_arns() == []
    assert fake_kms.calls == ["ListKeys"] * 2


def test_retries_are_bounded(fake_kms: FakeKms, kms: KmsConnection) -> None:
    fake_kms.throttle("ListKeys", times=9)
    with pytest.raises(AwsRefused, match="asks for fewer requests") as refusal:
        kms.key_arns()
    assert refusal.value.transient
    assert fake_kms.calls == ["ListKeys"] * 2


def test_a_store_whose_first_answer_was_lost_is_not_taken_for_somebody_elses(fake_kms: FakeKms, kms: KmsConnection) -> None:
    add_service(fake_kms)
    fake_kms.lose_answer("CreateCustomKeyStore")
    store_id = create_behind_vpc(kms)
    assert fake_kms.calls.count("CreateCustomKeyStore") == 2
    assert list(fake_kms.account.stores) == [store_id]


def test_a_store_that_was_there_before_a_lost_answer_is_somebody_elses(fake_kms: FakeKms, kms: KmsConnection) -> None:
    add_service(fake_kms)
    add_store(fake_kms, "vpc", endpoint="https://elsewhere.example.com")
    fake_kms.lose_answer("CreateCustomKeyStore")
    with pytest.raises(AwsRefused) as refusal:
        create_behind_vpc(kms)
    assert refusal.value.code == "CustomKeyStoreNameInUseException"


def test_aws_that_does_not_answer_is_given_up(fake_kms: FakeKms) -> None:
    impatient = KmsConnection(aws_connection(fake_kms), read_timeout_s=0.2, attempts=1)
    fake_kms.delay("ListKeys", 1.0)
    with pytest.raises(AwsRefused, match="did not answer in time") as refusal:
        impatient.key_arns()
    assert refusal.value.code == "ReadTimeoutError"


def test_aws_that_cannot_be_reached(fake_kms: FakeKms) -> None:
    lost = KmsConnection(aws_connection(fake_kms, endpoint_url="http://127.0.0.1:1"), attempts=1)
    with pytest.raises(AwsRefused, match="Check the way out to AWS") as refusal:
        lost.key_arns()
    assert refusal.value.code == "EndpointConnectionError"


def test_wrong_aws_credentials(fake_kms: FakeKms, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(AwsRefused, match="does not accept the AWS credentials") as refusal:
        KmsConnection(aws_connection(fake_kms)).key_arns()
    assert refusal.value.code == "InvalidSignatureException"


def test_no_aws_credentials(fake_kms: FakeKms, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    with pytest.raises(AwsRefused, match="No AWS credentials were found"):
        KmsConnection(aws_connection(fake_kms)).key_arns()


def test_a_profile_that_is_not_there(fake_kms: FakeKms) -> None:
    with pytest.raises(AwsRefused, match="profile is not in the AWS configuration"):
        KmsConnection(aws_connection(fake_kms, profile="absent")).key_arns()


def test_a_profile_brings_its_credentials(fake_kms: FakeKms, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "credentials"
    file.write_text(
        f"[keys]\naws_access_key_id = {fake_kms.access_key_id}\naws_secret_access_key = {fake_kms.secret_access_key}\n"
    )
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    assert KmsConnection(aws_connection(fake_kms, profile="keys")).key_arns() == []


def test_a_role_is_assumed_once_and_again_before_it_ends(fake_kms: FakeKms, monkeypatch: pytest.MonkeyPatch) -> None:
    role = f"arn:aws:iam::{ACCOUNT}:role/keys"
    fake_kms.role_arns.append(role)
    connection = KmsConnection(aws_connection(fake_kms, role_arn=role))
    assert connection.identity() == Identity(ACCOUNT, f"arn:aws:sts::{ACCOUNT}:assumed-role/keys/xksfast")
    connection.key_arns()
    assert fake_kms.calls.count("AssumeRole") == 1
    monkeypatch.setattr(connection, "_renew_at", 0.0)
    connection.key_arns()
    assert fake_kms.calls.count("AssumeRole") == 2


def test_a_role_that_may_not_be_assumed(fake_kms: FakeKms) -> None:
    with pytest.raises(AwsRefused, match="may not do that") as refusal:
        KmsConnection(aws_connection(fake_kms, role_arn=f"arn:aws:iam::{ACCOUNT}:role/other")).key_arns()
    assert (refusal.value.operation, refusal.value.code) == ("AssumeRole", "AccessDenied")


def test_the_account_is_that_of_the_connection(fake_kms: FakeKms, kms: KmsConnection) -> None:
    assert kms.identity().account == ACCOUNT
    with pytest.raises(AwsRefused, match=f"belong to account {ACCOUNT}") as refusal:
        KmsConnection(aws_connection(fake_kms, account="999999999999")).identity()
    assert refusal.value.code == "WrongAccount"


@pytest.mark.parametrize("url", ["http://kms.example.com", "ftp://127.0.0.1", "kms.example.com", "https://"])
def test_requests_with_secrets_are_not_sent_in_the_clear(fake_kms: FakeKms, url: str) -> None:
    with pytest.raises(OperatorError, match="must start with https://"):
        KmsConnection(aws_connection(fake_kms, endpoint_url=url))


# --- secrets


def test_the_proxys_secret_is_in_no_log_and_no_error(fake_kms: FakeKms, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        connection = KmsConnection(aws_connection(fake_kms), attempts=1)
        with pytest.raises(AwsRefused) as refusal:
            create_behind_vpc(connection)
    assert "topsecret" not in caplog.text
    assert "topsecret" not in str(refusal.value) + repr(refusal.value)
    assert "topsecret" not in repr(CREDENTIAL)
    assert refusal.value.__context__ is None


def test_a_secret_that_aws_repeats_is_hidden(fake_kms: FakeKms, kms: KmsConnection, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.fake_kms import server
    from tests.fake_kms.errors import KmsError

    def repeat(account: object, request: dict[str, Any]) -> dict[str, Any]:
        raise KmsError("ValidationException", f"wrong: {request['XksProxyAuthenticationCredential']['RawSecretAccessKey']}")

    monkeypatch.setitem(server.OPERATIONS, "CreateCustomKeyStore", repeat)
    with pytest.raises(AwsRefused, match=r"wrong: \*\*\*"):
        create_behind_vpc(kms)


def test_a_value_that_cannot_be_right_is_not_sent(fake_kms: FakeKms, kms: KmsConnection) -> None:
    with pytest.raises(AwsRefused, match="AWS was not asked") as refusal:
        kms.create_store("", endpoint="", uri_path="", connectivity="PUBLIC_ENDPOINT", credential=ProxyCredential("A", "short"))
    assert refusal.value.code == "ParamValidationError"
    assert fake_kms.calls == []
