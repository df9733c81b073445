# SPDX-License-Identifier: Apache-2.0
"""/v1/stores/{store}/aws: for those who build the AWS side of a key store themselves."""

from __future__ import annotations

import asyncio
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Response
from pydantic import Field

from xksfast.admin import by_hand
from xksfast.admin.api.parts import ActorIn, PartsIn
from xksfast.admin.api.problems import documented
from xksfast.admin.api.route import BEARER, AdminRoute, AskedIn, answer, needs, once_for
from xksfast.admin.api.views import View
from xksfast.admin.aws.findings import worst
from xksfast.admin.aws.topology import service_principal
from xksfast.admin.requests import ExternalKeyIds, SnippetFormat, SnippetRequest
from xksfast.state.objects import Connectivity

router = APIRouter(prefix="/v1/stores/{store}/aws", tags=["aws"], route_class=AdminRoute, dependencies=[BEARER])

_CONNECTIVITY = "As if the store had this connectivity; absent: its own."


class SnippetFile(View):
    """A file that the text reads, to be written with mode 0600."""

    name: str = Field(examples=["payments-credential.json"])
    content: str = Field(
        examples=['{\n  "AccessKeyId": "ABCDEFGHIJKLMNOPQRST",\n  "RawSecretAccessKey": "<the secret: …>"\n}\n']
    )


class SnippetView(View):
    """text: to be saved as file_name, beside its files. access_key_id: null when the text needs no credential."""

    store: str = Field(examples=["payments"])
    format: SnippetFormat
    file_name: str = Field(examples=["payments.sh"])
    text: str = Field(examples=["set -eu\nexport AWS_REGION=us-east-1\n…"])
    files: list[SnippetFile]
    access_key_id: str | None = Field(examples=["ABCDEFGHIJKLMNOPQRST"])
    issued: bool = Field(description="The files hold the secret of a new credential; else a placeholder that AWS refuses.")


class FindingView(View):
    """rule: stable, for scripts. "to do": it cannot be seen from here; text says what to look at."""

    rule: str = Field(examples=["vpc-principal"])
    level: Literal["ok", "problem", "to do"] = Field(examples=["to do"])
    text: str = Field(examples=["allow the principal cks.kms.us-east-1.amazonaws.com on the VPC endpoint service"])


class TopologyView(View):
    """The way from AWS KMS to a key store, in AWS's words. Findings in the order in which it is built."""

    store: str = Field(examples=["payments"])
    level: Literal["ok", "problem", "to do"] = Field(description="The worst of the findings.")
    region: str = Field(examples=["us-east-1"])
    connectivity: Connectivity
    endpoint: str = Field(description="XksProxyUriEndpoint; AWS KMS calls port 443.", examples=["https://xks.example.com"])
    uri_path: str = Field(description="XksProxyUriPath.", examples=["/payments/kms/xks/v1"])
    certificate_common_names: list[str] = Field(
        description="One of them must be the subject common name of the certificate.",
        examples=[["xks.example.com", "*.example.com"]],
    )
    client_common_name: str = Field(
        description="Whom the client certificate of mutual TLS names.", examples=["cks.kms.us-east-1.amazonaws.com"]
    )
    vpc_endpoint_service_name: str | None = Field(examples=["com.amazonaws.vpce.us-east-1.vpce-svc-0123456789abcdef0"])
    vpc_allowed_principal: str | None = Field(examples=["cks.kms.us-east-1.amazonaws.com"])
    private_dns_name: str | None = Field(description="Of the VPC endpoint service.", examples=["xks.example.com"])
    findings: list[FindingView]


@router.get(
    "/snippet",
    response_model=SnippetView,
    summary="What builds the AWS side of a key store, with a placeholder for the secret",
    responses=documented(404, 409),
)
async def show_snippet(
    store: str,
    parts: PartsIn,
    actor: ActorIn,
    format: Annotated[SnippetFormat, Query()] = "aws-cli",
    key: Annotated[ExternalKeyIds, Query(description="May be repeated; absent: all that are not linked.")] = (),
    custom_key_store_name: Annotated[str, Query(max_length=256, pattern=r"^[^\x00-\x1f\x7f]*$")] = "",
    connectivity: Annotated[Connectivity | None, Query(description=_CONNECTIVITY)] = None,
) -> Response:
    """AWS CLI lines, Terraform, or what CloudFormation can. The secrets of credentials that there are cannot be read any more."""
    request = SnippetRequest(
        format=format, keys=tuple(key), custom_key_store_name=custom_key_store_name, connectivity=connectivity
    )
    return answer(_view(by_hand.snippet(parts.service, actor, store, request)))


@router.post(
    "/snippet",
    status_code=201,
    response_model=SnippetView,
    summary="The same with a new credential, whose secret is in this answer and never again",
    responses=documented(404, 409, 413),
)
@needs("operate")
async def issue_snippet(store: str, request: SnippetRequest, parts: PartsIn, actor: ActorIn, asked: AskedIn) -> Response:
    """By the right that the credentials file needs. Credentials that there are stay valid until they are removed."""
    made = by_hand.snippet_with_credential(parts.service, actor, store, request)
    once = once_for(asked, 201, lambda _, issued: _view(made(issued)))
    return answer(_view(made(await parts.service.rotate_credential(actor, store, once=once))), 201, secret=True)


@router.get(
    "/topology",
    response_model=TopologyView,
    summary="What must be true between AWS KMS and a key store",
    responses=documented(404),
)
async def show_topology(
    store: str,
    parts: PartsIn,
    actor: ActorIn,
    connectivity: Annotated[Connectivity | None, Query(description=_CONNECTIVITY)] = None,
) -> Response:
    """Names, certificate and VPC endpoint service, checked as far as the node that answers can see. Nothing calls AWS."""
    way, findings = await asyncio.to_thread(by_hand.topology, parts.service, actor, store, connectivity, parts.certificate)
    vpc = way.connectivity == "VPC_ENDPOINT_SERVICE"
    principal = service_principal(way.region)
    return answer(
        TopologyView(
            store=store,
            level=worst(findings),
            region=way.region,
            connectivity=way.connectivity,
            endpoint=way.endpoint,
            uri_path=way.uri_path,
            certificate_common_names=way.common_names,
            client_common_name=principal,
            vpc_endpoint_service_name=way.vpc_endpoint_service_name if vpc else None,
            vpc_allowed_principal=principal if vpc else None,
            private_dns_name=way.host if vpc else None,
            findings=[FindingView.model_validate(finding) for finding in findings],
        )
    )


def _view(made: by_hand.Snippet) -> SnippetView:
    return SnippetView(
        store=made.store,
        format=made.format,
        file_name=made.file_name,
        text=made.text,
        files=[SnippetFile(name=name, content=content) for name, content in made.files.items()],
        access_key_id=made.access_key_id or None,
        issued=made.issued,
    )
