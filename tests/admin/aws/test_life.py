# SPDX-License-Identifier: Apache-2.0
"""boto3 -> fake KMS -> a real proxy over HTTPS: the whole life of a key store and a key, and everything that can be in the way."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import boto3
import msgspec
import pytest

from tests.fake_kms import FakeKms, Host, VpcService
from tests.fix_aws import ENDPOINT, HOST, LinkedProxy, aws_connection, certificate_for
from xksfast.admin.aws.errors import AwsRefused
from xksfast.admin.aws.kms import KmsConnection
from xksfast.admin.aws.results import ProxyCredential
from xksfast.admin.aws.sync import GONE, find_unlinked, followed_key, link_key, link_store, sync_key, sync_store
from xksfast.admin.aws.waiting import Patience
from xksfast.state.objects import Key, KeyVersion

QUICK = Patience(patience_s=30, poll_s=0.01)
SERVICE = "com.amazonaws.vpce.us-east-1.vpce-svc-0123456789abcdef0"


def create(kms: KmsConnection, proxy: LinkedProxy, **changes: Any) -> str:
    """CreateCustomKeyStore for the proxy, as it should be but for `changes`."""
    values = {
        "endpoint": ENDPOINT,
        "uri_path": proxy.uri_path,
        "connectivity": "PUBLIC_ENDPOINT",
        "credential": proxy.credential,
    }
    return kms.create_store("payments", **{**values, **changes})


def connected(kms: KmsConnection, proxy: LinkedProxy) -> str:
    """A connected custom key store."""
    store_id = create(kms, proxy)
    kms.connect_store(store_id)
    kms.wait_connected(store_id, patience=QUICK)
    return store_id


def the_key(proxy: LinkedProxy) -> Key:
    """The proxy's key as the state would hold it."""
    return Key(
        store="dev", external_key_id=proxy.ready["keys"]["default"], versions=(KeyVersion(number=1, label="x"),), alias="orders"
    )


def test_the_whole_life_of_a_store_and_a_key(linked_kms: FakeKms, kms: KmsConnection, linked_proxy: LinkedProxy) -> None:
    # The store: created, found by hand, linked, connected.
    store = linked_proxy.store
    store_id = create(kms, linked_proxy)
    found = find_unlinked([store], kms.stores(), linked_proxy.credentials, region=store.region)
    assert [(entry.store, entry.custom_key_store.id, entry.problem) for entry in found] == [("dev", store_id, "")]
    link = link_store(store, "main", kms.describe_store(store_id), linked_proxy.credentials, now=1)
    assert (link.connection_state, link.drift) == ("DISCONNECTED", ())
    kms.connect_store(store_id)
    states: list[str] = []
    kms.wait_connected(store_id, lambda seen, _: states.append(seen.connection_state), QUICK)
    assert states[-1] == "CONNECTED"
    store = msgspec.structs.replace(
        store,
        link=sync_store(
            msgspec.structs.replace(store, link=link), kms.describe_store(store_id), linked_proxy.credentials, now=2
        ),
    )
    assert store.link is not None
    assert (store.link.connection_state, store.link.drift, store.link.synced_at) == ("CONNECTED", (), 2)

    # The key: created, named, used through KMS, proxy and key.
    key = the_key(linked_proxy)
    made = kms.create_key(store_id, key.external_key_id, description="for orders", tags={"team": "nile"})
    assert (made.state, made.external_key_id, made.custom_key_store_id) == ("Enabled", key.external_key_id, store_id)
    kms.create_alias(key.alias, made.arn)
    seen = kms.look_at_key(made.arn)
    key_link = link_key(store, key, seen, now=3)
    key = followed_key(key, seen, key_link)
    assert (key.description, key.tags, key.link and key.link.drift) == ("for orders", {"team": "nile"}, ())
    encrypt_ms, decrypt_ms = kms.prove_key(made.arn)
    assert encrypt_ms > 0
    assert decrypt_ms > 0
    client = boto3.client("kms", region_name=linked_kms.region, endpoint_url=linked_kms.url)
    data_key = client.generate_data_key(KeyId=f"alias/{key.alias}", KeySpec="AES_256", EncryptionContext={"a": "b"})
    opened = client.decrypt(CiphertextBlob=data_key["CiphertextBlob"], EncryptionContext={"a": "b"})
    assert opened["Plaintext"] == data_key["Plaintext"]
    with pytest.raises(client.exceptions.KMSInvalidStateException):
        client.decrypt(CiphertextBlob=data_key["CiphertextBlob"], EncryptionContext={"a": "c"})

    # Disabled in AWS by hand: shown as drift, refused in use.
    client.disable_key(KeyId=made.arn)
    drifted = sync_key(store, key, kms.look_at_key(made.arn), now=4)
    assert (drifted.key_state, len(drifted.drift)) == ("Disabled", 1)
    with pytest.raises(AwsRefused, match="KMS key is disabled"):
        kms.prove_key(made.arn)
    kms.enable_key(made.arn)

    # The credential is told to KMS again while connected; the store is disconnected; everything is taken down in order.
    kms.update_store(store_id, credential=linked_proxy.credential)
    kms.prove_key(made.arn)
    kms.schedule_key_deletion(made.arn, 7)
    kms.disconnect_store(store_id)
    kms.wait_disconnected(store_id, patience=QUICK)
    with pytest.raises(AwsRefused, match="those that wait for their deletion count too"):
        kms.delete_store(store_id)
    linked_kms.account.pass_days(7)
    kms.delete_store(store_id)
    gone = sync_store(store, None, linked_proxy.credentials, now=5)
    assert gone.connection_state == GONE
    assert len(gone.drift) == 1


def test_behind_a_vpc_endpoint_service(linked_kms: FakeKms, kms: KmsConnection, linked_proxy: LinkedProxy) -> None:
    linked_kms.account.hosts.clear()  # it is not in public DNS
    allowed = (f"cks.kms.{linked_kms.region}.amazonaws.com",)
    linked_kms.account.vpc_services[SERVICE] = VpcService(HOST, "127.0.0.1", linked_proxy.port, allowed)
    store_id = create(kms, linked_proxy, connectivity="VPC_ENDPOINT_SERVICE", vpc_endpoint_service_name=SERVICE)
    kms.connect_store(store_id)
    kms.wait_connected(store_id, patience=QUICK)
    kms.prove_key(kms.create_key(store_id, linked_proxy.ready["keys"]["default"]).arn)


def test_moving_from_a_public_endpoint_to_a_vpc_endpoint_service(
    linked_kms: FakeKms, kms: KmsConnection, linked_proxy: LinkedProxy
) -> None:
    store_id = connected(kms, linked_proxy)
    allowed = (f"cks.kms.{linked_kms.region}.amazonaws.com",)
    linked_kms.account.vpc_services[SERVICE] = VpcService(HOST, "127.0.0.1", linked_proxy.port, allowed)
    kms.disconnect_store(store_id)
    kms.wait_disconnected(store_id, patience=QUICK)
    kms.update_store(store_id, endpoint=ENDPOINT, connectivity="VPC_ENDPOINT_SERVICE", vpc_endpoint_service_name=SERVICE)
    kms.connect_store(store_id)
    seen = kms.wait_connected(store_id, patience=QUICK)
    assert (seen.connectivity, seen.vpc_endpoint_service_name) == ("VPC_ENDPOINT_SERVICE", SERVICE)


# --- what AWS finds when it calls the proxy


@contextmanager
def _listening() -> Iterator[int]:
    """A port where connections are accepted and nothing is ever said."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen(8)
        yield int(sock.getsockname()[1])


class _Page(BaseHTTPRequestHandler):
    """A reverse proxy with pages of its own."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        body = b"<html>Welcome</html>"
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


@contextmanager
def _something_else(directory: Path) -> Iterator[tuple[int, str]]:
    """An HTTPS server that is no proxy: (port, file of its authority)."""
    files = certificate_for(directory, HOST)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.certificate, files.private_key)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Page)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server.server_address[1], str(directory / "dev-ca.pem")
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


WRONG_SECRET = "A" * 43


@contextmanager
def _obstacle(name: str, fake: FakeKms, proxy: LinkedProxy, directory: Path) -> Iterator[dict[str, Any]]:
    """Put something in the way; what CreateCustomKeyStore is to be given other than the right values."""
    account = fake.account
    right = account.hosts[HOST]
    match name:
        case "wrong secret":
            yield {"credential": ProxyCredential(proxy.credential.access_key_id, WRONG_SECRET)}
        case "unknown access key id":
            yield {"credential": ProxyCredential("Z" * 20, proxy.credential.secret_access_key)}
        case "wrong path":
            yield {"uri_path": "/nobody/kms/xks/v1"}
        case "not in DNS":
            yield {"endpoint": "https://absent.example.com"}
        case "nobody listens":
            account.hosts[HOST] = Host("127.0.0.1", 1)
            yield {}
        case "silence":
            account.limit_s = 0.25
            with _listening() as port:
                account.hosts[HOST] = Host("127.0.0.1", port)
                yield {}
        case "another name":
            account.hosts["other.example.com"] = right
            yield {"endpoint": "https://other.example.com"}
        case "common name of another":
            # localhost is among the certificate's alternative names, and so good enough for TLS itself.
            account.hosts["localhost"] = right
            yield {"endpoint": "https://localhost"}
        case "private authority":
            account.ca_file = None
            yield {}
        case "something else":
            with _something_else(directory) as (port, ca_file):
                account.hosts[HOST] = Host("127.0.0.1", port)
                account.ca_file = ca_file
                yield {}
        case _:
            raise AssertionError(name)


OBSTACLES = [
    ("wrong secret", "XksProxyIncorrectAuthenticationCredentialException", "INVALID_CREDENTIALS"),
    ("unknown access key id", "XksProxyIncorrectAuthenticationCredentialException", "INVALID_CREDENTIALS"),
    ("wrong path", "XksProxyInvalidConfigurationException", "XKS_PROXY_INVALID_CONFIGURATION"),
    ("not in DNS", "XksProxyUriUnreachableException", "XKS_PROXY_NOT_REACHABLE"),
    ("nobody listens", "XksProxyUriUnreachableException", "XKS_PROXY_NOT_REACHABLE"),
    ("silence", "XksProxyUriUnreachableException", "XKS_PROXY_TIMED_OUT"),
    ("another name", "XksProxyInvalidConfigurationException", "XKS_PROXY_INVALID_TLS_CONFIGURATION"),
    ("common name of another", "XksProxyInvalidConfigurationException", "XKS_PROXY_INVALID_TLS_CONFIGURATION"),
    ("private authority", "XksProxyInvalidConfigurationException", "XKS_PROXY_INVALID_TLS_CONFIGURATION"),
    ("something else", "XksProxyInvalidResponseException", "XKS_PROXY_INVALID_RESPONSE"),
]


@pytest.mark.parametrize(("name", "exception", "code"), OBSTACLES, ids=[name for name, _, _ in OBSTACLES])
def test_what_is_in_the_way_is_named_when_creating_and_when_connecting(
    linked_kms: FakeKms, kms: KmsConnection, linked_proxy: LinkedProxy, tmp_path: Path, name: str, exception: str, code: str
) -> None:
    with _obstacle(name, linked_kms, linked_proxy, tmp_path) as changes:
        with pytest.raises(AwsRefused) as refusal:
            create(kms, linked_proxy, **changes)
        assert refusal.value.code == exception
        assert linked_kms.account.stores == {}
        # Once it worked; now the obstacle is there.
        credential = changes.get("credential", linked_proxy.credential)
        store = linked_kms.account.add_store(
            "payments",
            endpoint=changes.get("endpoint", ENDPOINT),
            uri_path=changes.get("uri_path", linked_proxy.uri_path),
            connectivity="PUBLIC_ENDPOINT",
            access_key_id=credential.access_key_id,
            secret_access_key=credential.secret_access_key,
        )
        kms.connect_store(store.id)
        with pytest.raises(AwsRefused) as refusal:
            kms.wait_connected(store.id, patience=QUICK)
        assert refusal.value.code == code
        drift = link_store(linked_proxy.store, "main", kms.describe_store(store.id), linked_proxy.credentials, now=1).drift
        assert any(refusal.value.explanation.why in sentence for sentence in drift)


def test_a_wrong_update_is_refused_and_changes_nothing(
    linked_kms: FakeKms, kms: KmsConnection, linked_proxy: LinkedProxy
) -> None:
    store_id = connected(kms, linked_proxy)
    with pytest.raises(AwsRefused, match="has another access key id or secret"):
        kms.update_store(store_id, credential=ProxyCredential(linked_proxy.credential.access_key_id, WRONG_SECRET))
    kms.prove_key(kms.create_key(store_id, linked_proxy.ready["keys"]["default"]).arn)


@pytest.mark.parametrize(
    ("key", "code"),
    [
        ("absent", "XksKeyNotFoundException"),
        ("encrypt_only", "XksKeyInvalidConfigurationException"),
        ("decrypt_only", "XksKeyInvalidConfigurationException"),
        ("no_usage", "XksKeyInvalidConfigurationException"),
    ],
)
def test_external_keys_that_will_not_do(
    linked_kms: FakeKms, kms: KmsConnection, linked_proxy: LinkedProxy, key: str, code: str
) -> None:
    store_id = connected(kms, linked_proxy)
    with pytest.raises(AwsRefused) as refusal:
        kms.create_key(store_id, linked_proxy.ready["keys"].get(key, "no-such-key"))
    assert refusal.value.code == code


def test_one_kms_key_for_an_external_key(linked_kms: FakeKms, kms: KmsConnection, linked_proxy: LinkedProxy) -> None:
    store_id = connected(kms, linked_proxy)
    kms.create_key(store_id, linked_proxy.ready["keys"]["default"])
    with pytest.raises(AwsRefused, match="AWS allows one KMS key for each"):
        kms.create_key(store_id, linked_proxy.ready["keys"]["default"])


def test_a_key_whose_first_answer_was_lost_is_found(linked_kms: FakeKms, kms: KmsConnection, linked_proxy: LinkedProxy) -> None:
    store_id = connected(kms, linked_proxy)
    linked_kms.lose_answer("CreateKey")
    made = kms.create_key(store_id, linked_proxy.ready["keys"]["default"], description="mine")
    assert list(linked_kms.account.keys) == [made.id]


def test_keys_need_a_connected_store(linked_kms: FakeKms, kms: KmsConnection, linked_proxy: LinkedProxy) -> None:
    store_id = create(kms, linked_proxy)
    with pytest.raises(AwsRefused, match="keys are created only while CONNECTED"):
        kms.create_key(store_id, linked_proxy.ready["keys"]["default"])


def test_a_proxy_that_went_away_is_named_in_use(linked_kms: FakeKms, kms: KmsConnection, linked_proxy: LinkedProxy) -> None:
    store_id = connected(kms, linked_proxy)
    key = kms.create_key(store_id, linked_proxy.ready["keys"]["default"])
    linked_kms.account.hosts[HOST] = Host("127.0.0.1", 1)
    with pytest.raises(AwsRefused, match="cannot communicate with the proxy") as refusal:
        kms.prove_key(key.arn)
    assert refusal.value.code == "KMSInvalidStateException"


def test_a_role_calls_through_to_the_proxy(linked_kms: FakeKms, linked_proxy: LinkedProxy) -> None:
    role = "arn:aws:iam::111122223333:role/keys"
    linked_kms.role_arns.append(role)
    connection = KmsConnection(aws_connection(linked_kms, role_arn=role))
    store_id = connected(connection, linked_proxy)
    connection.prove_key(connection.create_key(store_id, linked_proxy.ready["keys"]["default"]).arn)
