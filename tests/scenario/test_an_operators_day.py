# SPDX-License-Identifier: Apache-2.0
"""From nothing to a linked store with a rotated key and a rotated credential, then block, unblock and teardown: by the shell, on three
nodes over PostgreSQL and SoftHSM, with AWS played by a fake KMS that calls the proxy over HTTPS. Requests flow all the while.
"""

from __future__ import annotations

from typing import Any

import pytest

from tests.fake_kms import FakeKms
from tests.fix_aws import ENDPOINT
from tests.scenario.nodes import Deployment, Traffic, served_everywhere
from tests.servers import wait_until
from xksfast.admin.aws.kms import KmsConnection


@pytest.mark.timeout(600)
def test_from_nothing_to_a_linked_store_and_back(three_nodes: Deployment, fake_kms: FakeKms, kms: KmsConnection) -> None:
    proxies = three_nodes
    xksfast = proxies.shell

    # A store, a key, and AWS's side of both.
    store = xksfast(
        "store", "create", "payments", "--uri-path-prefix", "/payments", "--region", "us-east-1", "--partition-group", "main",
        "--endpoint", ENDPOINT,
    )  # fmt: skip
    first = store["credential"]
    assert xksfast("key", "create", "payments", "orders", "--alias", "orders")["version"] == 1
    xksfast("aws", "create", "main", "--account", "111122223333", "--region", fake_kms.region, "--endpoint-url", fake_kms.url)
    xksfast("store", "link", "payments", "--connection", "main")
    assert xksfast("store", "connect", "payments")["link"]["connection_state"] == "CONNECTED"
    linked = xksfast("key", "link", "payments", "orders")
    arn = linked["link"]["key_arn"]
    assert linked["link"]["key_state"] == "Enabled"
    kms.prove_key(arn)

    clients = proxies.clients(first, "/payments", "orders")
    served_everywhere(clients)
    with Traffic(clients, old=clients[0].call("encrypt").document) as traffic:
        # New key material behind the same id: all nodes encrypt with it, and decrypt what is older.
        assert xksfast("key", "rotate", "payments", "orders")["version"] == 2
        wait_until(
            lambda: all("ciphertextMetadata" in c.call("encrypt").document for c in fresh(proxies, first)), "rotated", 10
        )
        kms.prove_key(arn)

        # A second credential; AWS gets it, then the first one goes.
        second = xksfast("credential", "rotate", "payments")
        served_everywhere(proxies.clients(second, "/payments", "orders"))
        traffic.use(proxies.clients(second, "/payments", "orders"))
        assert kms.describe_store(linked_id(proxies)).access_key_id == second["access_key_id"]
        xksfast("credential", "remove", "payments", first["access_key_id"], "--yes")
        wait_until(lambda: {c.call("encrypt").status for c in fresh(proxies, first)} == {401}, "the first one is refused", 10)
        kms.prove_key(arn)

        # The kill switch: whoever is named as confirmed serves nothing more.
        traffic.begin("blocking")
        blocked = xksfast("store", "block", "payments", "--reason", "drill")
        traffic.begin("blocked")
        assert sorted(each["node"] for each in blocked["confirmed"]) == ["n1", "n2", "n3"]
        assert blocked["pending"] == []
        for client in fresh(proxies, second):
            assert client.call("encrypt").error == "InvalidStateException"
        wait_until(lambda: sum(traffic.answers.get("blocked", {}).values()) >= 6, "requests while it is blocked", 20)
        traffic.begin("unblocking")
        xksfast("store", "unblock", "payments")
        served_everywhere(fresh(proxies, second))
        traffic.begin("served again")
        kms.prove_key(arn)
        wait_until(lambda: traffic.answers.get("served again"), "requests after it", 20)
    assert set(traffic.answers["served"]) == {"ok"}, traffic.answers
    assert set(traffic.answers["blocked"]) == {"InvalidStateException"}, traffic.answers
    assert set(traffic.answers["served again"]) == {"ok"}, traffic.answers

    # Teardown tells what stands in the way; follow it.
    steps = xksfast("store", "teardown", "payments")
    assert any("schedule-deletion" in step["command"] for step in steps)
    xksfast("store", "delete", "payments", "--yes", code=3)
    xksfast("key", "schedule-deletion", "payments", "orders", "--days", "7", "--yes")
    fake_kms.account.pass_days(8)
    xksfast("store", "sync", "payments")
    xksfast("key", "disable", "payments", "orders")
    xksfast("key", "delete", "payments", "orders", "--yes")
    xksfast("store", "disconnect", "payments")
    xksfast("store", "delete", "payments", "--aws", "--yes")
    xksfast("store", "delete", "payments", "--yes")
    xksfast("aws", "delete", "main", "--yes")
    assert xksfast("store", "list") == []
    assert kms.stores() == []

    verdict = xksfast("audit", "verify")
    assert verdict["ok"]
    actions = [event["action"] for event in xksfast("audit", "tail", "--lines", "200")]
    assert {"store.create", "key.rotate", "credential.rotate", "store.block", "store.unblock", "store.delete"} <= set(actions)
    text = proxies.log()
    for secret in (first["secret_access_key"], second["secret_access_key"], proxies.token()):
        assert secret not in text


def fresh(proxies: Deployment, credential: dict[str, Any]) -> list[Any]:
    """Clients with connections of their own."""
    return proxies.clients(credential, "/payments", "orders")


def linked_id(proxies: Deployment) -> str:
    """Of the custom key store in AWS."""
    return str(proxies.shell("store", "show", "payments")["link"]["custom_key_store_id"])
