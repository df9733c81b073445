# SPDX-License-Identifier: Apache-2.0
"""The operator's day again, by REST, as a careful client would: what makes something is sent with an Idempotency-Key, what changes
something with the ETag that was seen, and every answer is one that the OpenAPI document describes.
"""

from __future__ import annotations

import uuid

import pytest

from tests.fake_kms import FakeKms
from tests.fix_aws import ENDPOINT
from tests.scenario.nodes import Deployment, Traffic, served_everywhere
from tests.scenario.rest import Rest
from tests.servers import wait_until
from xksfast.admin.aws.kms import KmsConnection

LEDGER, ENTRIES = "/stores/ledger", "/stores/ledger/keys/entries"


@pytest.mark.timeout(600)
def test_from_nothing_to_a_linked_store_and_back_by_rest(
    three_nodes: Deployment, fake_kms: FakeKms, kms: KmsConnection
) -> None:
    with Rest(three_nodes) as rest, Rest(three_nodes, node=2) as other:
        # A store. Its answer got lost, so it is asked for once more, of another node: the same store, the same secret.
        wanted = {
            "name": "ledger", "uri_path_prefix": "/ledger", "region": "us-east-1", "partition_group": "main", "endpoint": ENDPOINT,
        }  # fmt: skip
        once = once_only()
        store = rest.post("/stores", wanted, once=once)
        again = other.post("/stores", wanted, once=once)
        assert again.replayed
        assert again.document == store.document
        first = store.document["credential"]
        assert rest.get(LEDGER).etag == store.etag
        assert rest.post("/stores", {**wanted, "name": "other"}, once=once, status=409).document["field"] == "Idempotency-Key"

        # Two people describe it. Who has not seen the change of the other is told so.
        described = rest.patch(LEDGER, {"description": "bookings"}, seen=store.etag)
        assert described.etag != store.etag
        refused = rest.patch(LEDGER, {"description": "entries"}, seen=store.etag, status=412)
        assert refused.document["next"]
        assert rest.get(LEDGER).document["description"] == "bookings"

        # A key, and AWS's side of both.
        key = rest.post(f"{LEDGER}/keys", {"external_key_id": "entries", "alias": "entries"}, once=once_only())
        assert (key.document["version"], key.document["state"]) == (1, "ENABLED")
        connection = {"account": "111122223333", "region": fake_kms.region, "endpoint_url": fake_kms.url}
        rest.post("/aws-connections", {"name": "books", **connection}, once=once_only())
        rest.post(f"{LEDGER}/link", {"connection": "books"})
        connected = rest.post(f"{LEDGER}/connect").document["store"]["link"]
        assert connected["connection_state"] == "CONNECTED"
        linked = rest.post(f"{ENTRIES}/link").document["link"]
        assert linked["key_state"] == "Enabled"
        kms.prove_key(linked["key_arn"])

        clients = three_nodes.clients(first, "/ledger", "entries")
        served_everywhere(clients)
        with Traffic(clients, old=clients[0].call("encrypt").document) as traffic:
            # New key material behind the same id: once, though it is asked for twice.
            once, seen = once_only(), rest.get(ENTRIES).etag
            assert rest.post(f"{ENTRIES}/rotate", once=once, seen=seen).document["version"] == 2
            assert rest.post(f"{ENTRIES}/rotate", once=once, seen=seen).replayed
            assert rest.post(f"{ENTRIES}/rotate", once=once_only(), seen=seen, status=412).document["rule"]
            assert [each["number"] for each in rest.get(f"{ENTRIES}/versions").document["items"]] == [1, 2]
            renewed = three_nodes.clients(first, "/ledger", "entries")
            wait_until(lambda: all("ciphertextMetadata" in each.call("encrypt").document for each in renewed), "rotated", 10)
            kms.prove_key(linked["key_arn"])

            # A second credential; AWS gets it, then the first one goes.
            second = rest.post(f"{LEDGER}/credentials", once=once_only()).document
            with_second = three_nodes.clients(second, "/ledger", "entries")
            served_everywhere(with_second)
            rest.post(f"{LEDGER}/push")
            traffic.use(three_nodes.clients(second, "/ledger", "entries"))
            assert kms.describe_store(connected["custom_key_store_id"]).access_key_id == second["access_key_id"]
            superseded = {each["access_key_id"]: each for each in rest.get(f"{LEDGER}/credentials").document["items"]}
            revision = superseded[first["access_key_id"]]["revision"]
            rest.delete(f"{LEDGER}/credentials/{first['access_key_id']}", seen=f'"{revision}"')
            wait_until(lambda: {each.call("encrypt").status for each in renewed} == {401}, "the first one is refused", 10)
            kms.prove_key(linked["key_arn"])

            # The kill switch: whoever is named as confirmed serves nothing more.
            traffic.begin("blocking")
            blocked = rest.post(f"{LEDGER}/block", {"reason": "drill"}).document
            traffic.begin("blocked")
            assert sorted(each["node"] for each in blocked["confirmed"]) == ["n1", "n2", "n3"]
            assert (blocked["pending"], blocked["recorded"]) == ([], True)
            assert {each.call("encrypt").error for each in with_second} == {"InvalidStateException"}
            wait_until(lambda: sum(traffic.answers.get("blocked", {}).values()) >= 6, "requests while it is blocked", 20)
            traffic.begin("unblocking")
            assert rest.post(f"{LEDGER}/unblock").document["pending"] == []
            served_everywhere(with_second)
            traffic.begin("served again")
            kms.prove_key(linked["key_arn"])
            wait_until(lambda: traffic.answers.get("served again"), "requests after it", 20)
        assert set(traffic.answers["served"]) == {"ok"}, traffic.answers
        assert set(traffic.answers["blocked"]) == {"InvalidStateException"}, traffic.answers
        assert set(traffic.answers["served again"]) == {"ok"}, traffic.answers

        # Teardown tells what stands in the way; follow it.
        steps = rest.get(f"{LEDGER}/teardown").document["items"]
        assert any("schedule-deletion" in step["command"] for step in steps)
        assert rest.delete(LEDGER, status=409).document["next"]
        rest.post(f"{ENTRIES}/schedule-deletion", {"days": 7})
        fake_kms.account.pass_days(8)
        rest.post(f"{LEDGER}/sync")
        disabled = rest.post(f"{ENTRIES}/disable", seen=rest.get(ENTRIES).etag)
        rest.delete(ENTRIES, seen=disabled.etag)
        rest.post(f"{LEDGER}/disconnect")
        unlinked = rest.post(f"{LEDGER}/delete-in-aws")
        rest.delete(LEDGER, seen=unlinked.etag)
        rest.delete("/aws-connections/books")
        assert rest.get("/stores").document["items"] == []
        assert kms.stores() == []

        assert rest.get("/events/verification").document["ok"]
        events = rest.get("/events?limit=200").document["items"]
        done = {event["action"] for event in events if event["id"].startswith("ledger")}
        assert {"store.create", "key.rotate", "credential.rotate", "store.block", "store.unblock", "store.delete"} <= done
        assert sum(event["action"] == "key.rotate" for event in events if event["id"] == "ledger/entries") == 1
        log = three_nodes.log()
        for secret in (first["secret_access_key"], second["secret_access_key"], three_nodes.token()):
            assert secret not in log


def once_only() -> str:
    """An Idempotency-Key."""
    return str(uuid.uuid4())
