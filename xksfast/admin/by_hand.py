# SPDX-License-Identifier: Apache-2.0
"""The use cases for those who build the AWS side themselves: texts to paste, and what must be true on the way. Nothing calls AWS here.

A newcomer's trap: the secrets of credentials that there are can be read by nobody, so a text either has a placeholder, which AWS
refuses, or comes with a new credential, by the same right as the credentials file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from msgspec.structs import replace

from xksfast.admin.actors import Actor
from xksfast.admin.aws.findings import Finding
from xksfast.admin.aws.outputs import PLACEHOLDER, Output, aws_cli, cloudformation, terraform
from xksfast.admin.aws.results import ProxyCredential
from xksfast.admin.aws.topology import Topology, examine
from xksfast.admin.plans.credentials import newest as newest_credential
from xksfast.admin.refusals import Refused
from xksfast.admin.requests import SnippetFormat, SnippetRequest
from xksfast.admin.service import IssuedCredential, Service
from xksfast.state.objects import Connectivity, Key, KeyStore

MAX_KEYS = 500  # in one text

_ENDINGS: dict[SnippetFormat, str] = {"aws-cli": ".sh", "terraform": ".tf", "cloudformation": ".cloudformation.yaml"}


@dataclass(frozen=True)
class Snippet:
    """file_name: for the text. files: that it reads, name -> content. access_key_id: "": it needs none. issued: with its secret."""

    store: str
    format: SnippetFormat
    file_name: str
    text: str
    files: dict[str, str] = field(repr=False)
    access_key_id: str = ""
    issued: bool = False


def snippet(service: Service, actor: Actor, name: str, request: SnippetRequest) -> Snippet:
    """With a placeholder where the secret belongs."""
    actor.require("read", name)
    store, keys = _chosen(service, actor, name, request)
    newest = newest_credential(service.list_credentials(actor, name).values())
    return _made(store, keys, request, ProxyCredential(newest.access_key_id, PLACEHOLDER), issued=False)


def snippet_with_credential(
    service: Service, actor: Actor, name: str, request: SnippetRequest
) -> Callable[[IssuedCredential], Snippet]:
    """What makes it of a credential that is issued for it: what would be refused is refused now, before one is issued for nothing."""
    actor.require("operate", name)
    if request.format == "cloudformation":
        raise Refused(
            "invalid",
            "format-needs-no-credential",
            "format: nothing that CloudFormation can build for a key store holds its credential",
            next="Ask without a new credential, or for aws-cli or terraform",
            field="format",
        )
    store, keys = _chosen(service, actor, name, request)
    _made(store, keys, request, ProxyCredential("", ""), issued=False)

    def made(issued: IssuedCredential) -> Snippet:
        credential = ProxyCredential(issued.credential.access_key_id, issued.secret_access_key)
        return _made(store, keys, request, credential, issued=True)

    return made


def topology(
    service: Service, actor: Actor, name: str, connectivity: Connectivity | None, certificate: Path | None
) -> tuple[Topology, list[Finding]]:
    """The way from AWS KMS to a key store. Reads files. connectivity: None, the store's own. certificate: that of this node.

    Compared with those of our stores that the actor is granted.
    """
    actor.require("read", name)
    store = _with_connectivity(service.store(actor, name), connectivity)
    way = Topology.of(store, certificate)
    ours = service.list_stores(actor)
    return way, examine(way, [ours[other] for other in sorted(ours) if other != name])


def _chosen(service: Service, actor: Actor, name: str, request: SnippetRequest) -> tuple[KeyStore, list[Key]]:
    """The store, and its keys that are named, or all that are not linked yet."""
    store = _with_connectivity(service.store(actor, name), request.connectivity)
    if request.keys:
        return store, [service.key(actor, name, key) for key in dict.fromkeys(request.keys)]
    keys = [key for key in service.list_keys(actor, name).values() if key.link is None]
    if len(keys) > MAX_KEYS:
        raise Refused(
            "conflict",
            "too-many-keys",
            f"Key store {name!r} has {len(keys)} keys that are not linked, and a text takes {MAX_KEYS}",
            next="Name the keys",
            field="keys",
        )
    return store, keys


def _with_connectivity(store: KeyStore, connectivity: Connectivity | None) -> KeyStore:
    if connectivity is None or connectivity == store.connectivity:
        return store
    service = store.vpc_endpoint_service_name if connectivity == "VPC_ENDPOINT_SERVICE" else ""
    return replace(store, connectivity=connectivity, vpc_endpoint_service_name=service)


def _made(
    store: KeyStore, keys: Iterable[Key], request: SnippetRequest, credential: ProxyCredential, *, issued: bool
) -> Snippet:
    output, needs_credential = _output(store, keys, request, credential)
    return Snippet(
        store=store.name,
        format=request.format,
        file_name=store.name + _ENDINGS[request.format],
        text=output.text,
        files=output.files,
        access_key_id=credential.access_key_id if needs_credential else "",
        issued=issued,
    )


def _output(store: KeyStore, keys: Iterable[Key], request: SnippetRequest, credential: ProxyCredential) -> tuple[Output, bool]:
    """The text, and whether it needs the credential."""
    match request.format:
        case "aws-cli":
            return aws_cli(store, credential, keys, name=request.custom_key_store_name), True
        case "terraform":
            return terraform(store, credential, keys, name=request.custom_key_store_name), True
        case "cloudformation":
            return cloudformation(store), False
