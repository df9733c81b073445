# SPDX-License-Identifier: Apache-2.0
"""Linking from the shell: a real proxy, whose node calls a fake AWS KMS, which calls the proxy back over HTTPS."""

from __future__ import annotations

import json
import ssl
import sys
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from tests.admin.api.test_stores import LOCAL
from tests.fake_kms import FakeKms, Host
from tests.fix_aws import ENDPOINT, HOST
from tests.servers import running_dev
from xksfast import cli
from xksfast.admin.dev_certificates import Authority, CertificateFiles

Run = Callable[..., Any]


@pytest.fixture(scope="module")
def ready(_aws_session: object, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """A proxy that answers under HOST. Its node finds the credential for AWS in its environment."""
    directory = tmp_path_factory.mktemp("linking")
    data = directory / "data"
    data.mkdir()
    Authority(data).issue_server(CertificateFiles(data / "server.pem", data / "server.key"), (HOST, "localhost", "127.0.0.1"))
    with running_dev(directory, "local") as (said, _):
        yield said


@pytest.fixture
def run(ready: dict[str, Any], fake_kms: FakeKms, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """(exit code, JSON or None, messages). The fake KMS finds the proxy in DNS and trusts its authority."""
    fake_kms.account.hosts[HOST] = Host("127.0.0.1", int(ready["tls_url"].rpartition(":")[2]))
    fake_kms.account.ca_file = ready["ca_file"]
    monkeypatch.setenv("XKSFAST_ADMIN_URL", ready["admin_url"])
    monkeypatch.setenv("XKSFAST_ADMIN_TOKEN", ready["admin_token"])
    monkeypatch.setenv("XKSFAST_ADMIN_CA", ready["ca_file"])

    def run(*arguments: str) -> tuple[int, Any, str]:
        monkeypatch.setattr(sys, "argv", ["xksfast", *arguments, "--json"])
        capfd.readouterr()
        code = cli.main()
        said = capfd.readouterr()
        return code, json.loads(said.out) if said.out else None, said.err

    return run


@pytest.mark.parametrize("action", ["connect", "disconnect"])
def test_what_cannot_be_connected_is_refused_before_an_answer_begins(ready: dict[str, Any], action: str) -> None:
    headers = {"authorization": f"Bearer {ready['admin_token']}"}
    trust = ssl.create_default_context(cafile=ready["ca_file"])
    with httpx.Client(base_url=ready["admin_url"], headers=headers, verify=trust, trust_env=False, timeout=20) as client:
        assert client.post(f"/v1/stores/absent/{action}").status_code == 404
        assert client.post("/v1/stores", json={"name": "bare", "uri_path_prefix": "/bare", **LOCAL}).status_code in (201, 409)
        refused = client.post(f"/v1/stores/bare/{action}")
    assert (refused.status_code, refused.json()["rule"]) == (409, "store-not-linked")


def test_a_store_and_a_key_are_linked_connected_and_let_go(run: Run, fake_kms: FakeKms, ready: dict[str, Any]) -> None:
    key = ready["keys"]["default"]
    run("store", "update", "dev", "--endpoint", ENDPOINT)
    code, _, said = run("store", "link", "dev", "--connection", "prod")
    assert (code, "There is no AWS connection 'prod'" in said) == (3, True), said
    run("aws", "create", "prod", "--account", "111122223333", "--region", fake_kms.region, "--endpoint-url", fake_kms.url)
    code, _, said = run("store", "connect", "dev")
    assert (code, "[store-not-linked]" in said) == (3, True), said
    code, linked, said = run("store", "link", "dev", "--connection", "prod")
    assert code == 0, said
    assert linked["link"]["connection_state"] == "DISCONNECTED"
    code, connected, said = run("store", "connect", "dev")
    assert (code, connected["link"]["connection_state"]) == (0, "CONNECTED"), said
    code, found, said = run("key", "link", "dev", key)
    assert code == 0, said
    assert found["link"]["key_state"] == "Enabled"
    assert found["link"]["key_arn"].startswith("arn:aws:kms:")
    code, _, said = run("store", "delete", "dev", "--aws")
    assert code == 3  # AWS refuses while it is connected
    assert "[aws-" in said
    code, synced, _ = run("store", "sync", "dev")
    assert (code, synced["link"]["drift"]) == (0, [])
    assert run("key", "schedule-deletion", "dev", key, "--days", "7")[1]["link"]["key_state"] == "PendingDeletion"
    assert run("key", "cancel-deletion", "dev", key)[1]["link"]["key_state"] == "Disabled"
    code, let_go, _ = run("store", "disconnect", "dev")
    assert (code, let_go["link"]["connection_state"]) == (0, "DISCONNECTED")


def test_teardown_is_followed_by_typing_what_it_says(run: Run, fake_kms: FakeKms) -> None:
    run(
        "store", "create", "guided", "--uri-path-prefix", "/guided", "--region", "us-east-1", "--key-source", "local",
        "--endpoint", ENDPOINT,
    )  # fmt: skip
    run("aws", "create", "guide", "--account", "111122223333", "--region", fake_kms.region, "--endpoint-url", fake_kms.url)
    run("store", "link", "guided", "--connection", "guide")
    assert run("store", "connect", "guided")[1]["link"]["connection_state"] == "CONNECTED"
    for key in ("orders", "mail"):
        run("key", "create", "guided", key)
        assert run("key", "link", "guided", key)[1]["link"]["key_state"] == "Enabled"
    typed = []
    while not typed or typed[-1] != "xksfast store delete guided":
        (code, steps, said) = run("store", "teardown", "guided")
        assert code == 0, said
        planned = [step["command"] for step in steps]
        assert planned[-1] == "xksfast store delete guided"
        for later in planned[1:]:  # what is further down cannot be done before
            if later.startswith(("xksfast store delete", "xksfast key delete")):
                assert run(*later.split()[1:])[0] in (3, 4), (later, planned)
                break
        if steps[0]["waits"]:
            fake_kms.account.pass_days(31)
        typed.append(planned[0])
        code, _, said = run(*planned[0].split()[1:])
        assert code == 0, (planned, said)
        assert len(typed) < 12, typed
    assert typed == [
        "xksfast key schedule-deletion guided orders",
        "xksfast key schedule-deletion guided mail",
        "xksfast store sync guided",
        "xksfast key disable guided --all",
        "xksfast key delete guided --all",
        "xksfast store disconnect guided",
        "xksfast store delete guided --aws",
        "xksfast store delete guided",
    ]
    assert fake_kms.account.stores == {}
    assert run("store", "show", "guided")[0] == 3
