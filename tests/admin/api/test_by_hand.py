# SPDX-License-Identifier: Apache-2.0
"""/v1/stores/{store}/aws: texts that build the AWS side, whose secret is there only when it was just issued, and the way from AWS."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from tests.admin.api.rig import Rig
from tests.admin.api.test_keys import new_key
from tests.admin.api.test_stores import new_store
from tests.fake_kms.errors import KmsError
from tests.fake_kms.shapes import check_request
from xksfast.admin.aws.outputs import PLACEHOLDER

ENDPOINT = "https://xks.example.com"
SERVICE = "com.amazonaws.vpce.us-east-1.vpce-svc-0123456789abcdef0"
VPC: dict[str, object] = {"connectivity": "VPC_ENDPOINT_SERVICE", "vpc_endpoint_service_name": SERVICE}


def show(client: httpx.Client, store: str, **query: Any) -> dict[str, Any]:
    answer = client.get(f"/v1/stores/{store}/aws/snippet", params=query)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


@pytest.mark.parametrize("format", ["aws-cli", "terraform"])
def test_a_text_has_a_placeholder_that_aws_refuses(rig: Rig, format: str) -> None:
    name = f"shown-{format}"
    made = new_store(rig.as_role("admin"), name, endpoint=ENDPOINT)
    before = rig.read(lambda state: state.seq)
    shown = show(rig.as_role("auditor"), name, format=format)
    assert rig.read(lambda state: state.seq) == before
    (file,) = shown["files"]
    assert shown["access_key_id"] == made["credential"]["access_key_id"]  # type: ignore[index]
    assert shown["access_key_id"] in file["content"]
    assert PLACEHOLDER in json.loads(file["content"]).values()
    assert f"xksfast aws snippet {name} --format {format} --issue-credential --out DIR" in shown["text"]
    assert shown["issued"] is False
    credential = {"AccessKeyId": shown["access_key_id"], "RawSecretAccessKey": PLACEHOLDER}
    with pytest.raises(KmsError, match="rawSecretAccessKey"):
        check_request("CreateCustomKeyStore", {"CustomKeyStoreName": "x", "XksProxyAuthenticationCredential": credential})


@pytest.mark.parametrize("format", ["aws-cli", "terraform"])
def test_the_secret_is_there_when_it_was_just_issued_and_never_again(rig: Rig, admin: httpx.Client, format: str) -> None:
    name = f"issued-{format}"
    first = new_store(admin, name, endpoint=ENDPOINT)["credential"]["access_key_id"]  # type: ignore[index]
    answer = rig.as_role("operator").post(f"/v1/stores/{name}/aws/snippet", json={"format": format})
    assert answer.status_code == 201
    assert answer.headers["cache-control"] == "no-store"
    made = answer.json()
    assert made["issued"] is True
    (file,) = made["files"]
    access_key_id, secret = json.loads(file["content"]).values()
    assert access_key_id == made["access_key_id"] != first
    assert len(secret) >= 43
    assert secret not in made["text"]
    assert "placeholder" not in made["text"]
    ids = {each["access_key_id"] for each in admin.get(f"/v1/stores/{name}/credentials").json()["items"]}
    assert ids == {first, access_key_id}
    assert secret not in str(show(admin, name, format=format))
    credential = {"AccessKeyId": access_key_id, "RawSecretAccessKey": secret}
    request = {"CustomKeyStoreName": "x", "XksProxyAuthenticationCredential": credential}
    assert check_request("CreateCustomKeyStore", request) == request


def test_a_text_asked_for_again_by_its_idempotency_key_issues_no_second_credential(rig: Rig, admin: httpx.Client) -> None:
    new_store(admin, "asked-again", endpoint=ENDPOINT)
    where, headers = "/v1/stores/asked-again/aws/snippet", {"Idempotency-Key": "by hand"}
    first, again = (admin.post(where, json={"format": "terraform"}, headers=headers) for _ in range(2))
    assert (first.status_code, again.status_code) == (201, 201)
    assert again.json() == first.json()
    assert "idempotent-replayed" not in first.headers
    assert again.headers["idempotent-replayed"] == "true"
    assert len(admin.get("/v1/stores/asked-again/credentials").json()["items"]) == 2  # the store's own, and this one
    assert first.json()["access_key_id"] in rig.read(lambda state: list(state.credentials_of("asked-again")))


def test_a_text_that_cannot_be_made_issues_no_credential(admin: httpx.Client) -> None:
    new_store(admin, "nowhere")
    where = "/v1/stores/nowhere/aws/snippet"
    for answer in (admin.get(where), admin.post(where, json={"format": "terraform"})):
        problem = answer.json()
        assert (answer.status_code, problem["rule"], problem["field"]) == (409, "store-has-no-endpoint", "endpoint")
        assert "xksfast store update nowhere --endpoint https://HOST" in problem["next"]
    admin.patch("/v1/stores/nowhere", json={"endpoint": ENDPOINT})
    refused = admin.post(where, json={"format": "cloudformation"})
    assert (refused.status_code, refused.json()["rule"]) == (422, "format-needs-no-credential")
    assert admin.post(where, json={"keys": ["absent"]}).status_code == 404
    vpc = admin.get(where, params={"connectivity": "VPC_ENDPOINT_SERVICE"})
    assert (vpc.status_code, vpc.json()["field"]) == (409, "vpc_endpoint_service_name")
    assert "--format cloudformation --connectivity VPC_ENDPOINT_SERVICE" in vpc.json()["next"]
    assert admin.get(where, params={"custom_key_store_name": "two\nlines"}).status_code == 422
    assert len(admin.get("/v1/stores/nowhere/credentials").json()["items"]) == 1


def test_keys_are_those_that_are_named_or_all_and_what_aws_would_refuse_is_said(admin: httpx.Client) -> None:
    new_store(admin, "keyed", endpoint=ENDPOINT)
    new_key(admin, "keyed", "one", alias="first")
    new_key(admin, "keyed", "two", usage=["DECRYPT"])
    new_key(admin, "keyed", "three", enabled=False)
    everything = show(admin, "keyed")["text"]
    assert [f"--xks-key-id {name}" in everything for name in ("one", "two", "three")] == [True] * 3
    assert "alias/first" in everything
    warned = [line.split()[2] for line in everything.splitlines() if line.startswith("# key ")]
    assert warned == ["two", "three"]
    some = show(admin, "keyed", format="terraform", key=["two", "one", "two"])["text"]
    assert [line.split('"')[1] for line in some.splitlines() if line.startswith("  xks_key_id")] == ["two", "one"]
    admin.post("/v1/stores/keyed/block")
    assert "# keyed is blocked" in show(admin, "keyed", format="terraform")["text"]


def test_cloudformation_says_what_it_cannot_and_shows_the_way(admin: httpx.Client) -> None:
    new_store(admin, "formed", endpoint=ENDPOINT)
    public = show(admin, "formed", format="cloudformation")
    assert (public["files"], public["access_key_id"]) == ([], None)
    assert all(line.startswith("#") for line in public["text"].splitlines())
    assert "xksfast aws snippet formed --format aws-cli" in public["text"]
    private = show(admin, "formed", format="cloudformation", connectivity="VPC_ENDPOINT_SERVICE")
    assert "AWS::EC2::VPCEndpointService" in private["text"]
    assert "--private-dns-name xks.example.com" in private["text"]
    assert private["file_name"] == "formed.cloudformation.yaml"


def test_the_way_to_a_public_endpoint_names_the_certificate_it_needs(admin: httpx.Client) -> None:
    new_store(admin, "public", endpoint="https://only.example.org")
    way = admin.get("/v1/stores/public/aws/topology").json()
    assert way["certificate_common_names"] == ["only.example.org", "*.example.org"]
    assert way["uri_path"] == "/public/kms/xks/v1"
    assert way["client_common_name"] == "cks.kms.us-east-1.amazonaws.com"
    assert (way["private_dns_name"], way["vpc_allowed_principal"], way["vpc_endpoint_service_name"]) == (None, None, None)
    assert way["level"] == "to do"
    rules = [finding["rule"] for finding in way["findings"]]
    assert rules[0] == "endpoint"
    assert {"public-dns", "certificate", "port"} <= set(rules)


def test_the_way_through_a_vpc_endpoint_service_names_what_to_build(admin: httpx.Client) -> None:
    new_store(admin, "private", endpoint="https://vpc.example.org", **VPC)
    way = admin.get("/v1/stores/private/aws/topology").json()
    assert (way["private_dns_name"], way["vpc_endpoint_service_name"]) == ("vpc.example.org", SERVICE)
    assert way["vpc_allowed_principal"] == "cks.kms.us-east-1.amazonaws.com"
    told = {finding["rule"]: finding for finding in way["findings"]}
    assert told["vpc-service-name"]["level"] == "ok"
    assert "private DNS name must be vpc.example.org" in told["vpc-private-dns"]["text"]
    public = admin.get("/v1/stores/private/aws/topology", params={"connectivity": "PUBLIC_ENDPOINT"}).json()
    assert "vpc-private-dns" not in {finding["rule"] for finding in public["findings"]}


def test_what_is_wrong_on_the_way_is_a_problem_and_stores_that_were_not_granted_are_not_told(
    rig: Rig, admin: httpx.Client
) -> None:
    new_store(admin, "bare")
    assert admin.get("/v1/stores/bare/aws/topology").json()["level"] == "problem"
    new_store(admin, "neighbour", endpoint="https://both.example.org", **VPC)
    new_store(admin, "second", endpoint="https://both.example.org")
    seen = admin.get("/v1/stores/second/aws/topology")
    assert "key store neighbour uses the endpoint with the other connectivity" in seen.text
    with rig.client(token=rig.add_operator("second-only", "operator", stores=("second",))) as granted:
        assert "key store neighbour" not in granted.get("/v1/stores/second/aws/topology").text
        assert granted.get("/v1/stores/neighbour/aws/topology").status_code == 403
        assert granted.get("/v1/stores/neighbour/aws/snippet").status_code == 403
        assert granted.post("/v1/stores/neighbour/aws/snippet", json={}).status_code == 403
