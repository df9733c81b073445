# SPDX-License-Identifier: Apache-2.0
"""Fixtures: a fake AWS KMS, a connection to it, and a real proxy that it calls over HTTPS.

The server and the connection live for the whole session, since making a boto3 client is slow; the account is empty for each test.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.fake_kms import FakeKms, Host
from tests.servers import running_dev
from xksfast.admin.aws.results import ProxyCredential
from xksfast.admin.dev_certificates import Authority, CertificateFiles
from xksfast.state.objects import AwsConnection, Credential, KeyStore

if TYPE_CHECKING:
    from xksfast.admin.aws.kms import KmsConnection

HOST = "proxy.xks.example.com"
ENDPOINT = f"https://{HOST}"
UNSET = (
    "AWS_PROFILE",
    "AWS_DEFAULT_PROFILE",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "AWS_SESSION_TOKEN",
    "AWS_CA_BUNDLE",
    "HTTP_PROXY",
    "http_proxy",
)


@dataclass(frozen=True)
class LinkedProxy:
    """A running `xksfast dev` whose certificate names HOST. port: of its TLS listener."""

    ready: dict[str, Any]
    ca_file: str
    port: int

    @property
    def credential(self) -> ProxyCredential:
        return ProxyCredential(self.ready["access_key_id"], self.ready["secret_access_key"])

    @property
    def store(self) -> KeyStore:
        """Its key store as the state would hold it."""
        prefix, region = self.ready["uri_path_prefix"], self.ready["region"]
        return KeyStore(name="dev", uri_path_prefix=prefix, region=region, key_source="local", endpoint=ENDPOINT)

    @property
    def credentials(self) -> list[Credential]:
        return [Credential(access_key_id=self.ready["access_key_id"], store="dev", secret_id="s")]

    @property
    def uri_path(self) -> str:
        return f"{self.ready['uri_path_prefix']}/kms/xks/v1"


@pytest.fixture(scope="session")
def _aws_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[FakeKms, KmsConnection]]:
    from xksfast.admin.aws.kms import KmsConnection  # brings boto3, which most tests need not wait for

    with pytest.MonkeyPatch.context() as patch, FakeKms(limit_s=10) as fake:
        nothing = str(tmp_path_factory.mktemp("aws") / "absent")
        values = {
            "AWS_ACCESS_KEY_ID": fake.access_key_id,
            "AWS_SECRET_ACCESS_KEY": fake.secret_access_key,
            "AWS_CONFIG_FILE": nothing,
            "AWS_SHARED_CREDENTIALS_FILE": nothing,
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_ENDPOINT_URL_STS": fake.url,
        }
        for name in UNSET:
            patch.delenv(name, raising=False)
        for name, value in values.items():
            patch.setenv(name, value)
        yield fake, KmsConnection(aws_connection(fake), attempts=2)


def aws_connection(fake: FakeKms, **changes: Any) -> AwsConnection:
    """How to reach the fake."""
    values = {"name": "main", "account": "111122223333", "region": fake.region, "endpoint_url": fake.url}
    return AwsConnection(**{**values, **changes})


@pytest.fixture
def fake_kms(_aws_session: tuple[FakeKms, KmsConnection]) -> Iterator[FakeKms]:
    """A fake KMS with an empty account; no proxy can be reached from it."""
    fake = _aws_session[0]
    fake.reset()
    yield fake
    assert fake.problems == []


@pytest.fixture
def kms(fake_kms: FakeKms, _aws_session: tuple[FakeKms, KmsConnection]) -> KmsConnection:
    """What is tested, connected to `fake_kms`; it tries each call twice."""
    return _aws_session[1]


@pytest.fixture(scope="session")
def linked_proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LinkedProxy]:
    """A proxy with `local` keys that answers under HOST."""
    directory = tmp_path_factory.mktemp("linked-proxy")
    data = directory / "data"
    data.mkdir()
    Authority(data).issue_server(CertificateFiles(data / "server.pem", data / "server.key"), (HOST, "localhost", "127.0.0.1"))
    with running_dev(directory, "local") as (ready, _):
        yield LinkedProxy(ready, ready["ca_file"], int(ready["tls_url"].rpartition(":")[2]))


@pytest.fixture
def linked_kms(fake_kms: FakeKms, linked_proxy: LinkedProxy) -> FakeKms:
    """A fake KMS that finds the proxy in DNS and trusts its authority."""
    fake_kms.account.hosts[HOST] = Host("127.0.0.1", linked_proxy.port)
    fake_kms.account.ca_file = linked_proxy.ca_file
    return fake_kms


def certificate_for(directory: Path, *names: str) -> CertificateFiles:
    """A certificate of an authority of its own in `directory`."""
    directory.mkdir(parents=True, exist_ok=True)
    files = CertificateFiles(directory / "server.pem", directory / "server.key")
    Authority(directory).issue_server(files, names)
    return files
