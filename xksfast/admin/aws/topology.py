# SPDX-License-Identifier: Apache-2.0
"""What must be true between AWS KMS and the proxy before a key store can be connected, checked as far as it can be from here.

What lives here: rules over the key store's settings, its certificate file, its neighbours and, when a resolver is given, DNS. What must
not: calls to AWS. Source: AWS KMS Developer Guide, Assemble the prerequisites (external key stores), Choose a connectivity option,
Configure VPC endpoint service connectivity. A newcomer's trap: for VPC_ENDPOINT_SERVICE AWS tests nothing before the key store is
connected, so what is wrong here shows minutes later as a connection error code.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from xksfast.admin.aws.certificate import Authorities, examine_certificate, load_authorities
from xksfast.admin.aws.findings import OK, PROBLEM, TO_DO, Finding
from xksfast.admin.aws.sync import uri_path
from xksfast.errors import OperatorError
from xksfast.state.objects import Connectivity, KeyStore
from xksfast.wire import limits

MAX_ENDPOINT_CHARS = 128
ADVISED_ROUND_TRIP_MS = 35

Resolve = Callable[[str], list[str]]  # host name -> IP addresses; [] when it has none

_ENDPOINT = re.compile(r"https://[a-zA-Z0-9.-]+")
_LABEL = re.compile(r"[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?")
_PATH = re.compile(r"(?:/[a-zA-Z0-9/_-]+)?/kms/xks/v\d{1,2}")
_SERVICE_NAME = re.compile(r"(?:com|eu)\.amazonaws\.vpce\.((?:[a-z]+-){2,3}\d+)\.vpce-svc-[0-9a-z]+")
_NO_XKS_REGIONS = ("cn-north-1", "cn-northwest-1")


@dataclass(frozen=True)
class Topology:
    """What of a key store matters for the way to it. uri_path: with /kms/xks/v1. certificate: what the proxy serves, or None."""

    endpoint: str
    uri_path: str
    connectivity: Connectivity
    region: str
    vpc_endpoint_service_name: str = ""
    certificate: Path | None = None

    @classmethod
    def of(cls, store: KeyStore, certificate: Path | None = None) -> Topology:
        """From a key store."""
        return cls(
            store.endpoint, uri_path(store), store.connectivity, store.region, store.vpc_endpoint_service_name, certificate
        )

    @property
    def host(self) -> str:
        """The host name of the endpoint."""
        return self.endpoint.removeprefix("https://")

    @property
    def common_names(self) -> list[str]:
        """What the certificate's subject common name may be: the host name, or a wildcard in place of its first label."""
        first, dot, parent = self.host.partition(".")
        return [self.host, f"*.{parent}"] if first and dot and "." in parent else [self.host] if first else []


def examine(
    topology: Topology,
    others: Iterable[KeyStore] = (),
    *,
    authorities: Authorities | None = None,
    resolve: Resolve | None = None,
) -> list[Finding]:
    """Everything that must be true, in the order in which it is built. others: our other key stores.

    authorities: None, the machine's. resolve: `system_resolve`, or None: DNS is not looked at.
    """
    endpoint = _endpoint(topology)
    findings = [endpoint, _path(topology), _region(topology)]
    if endpoint.level == PROBLEM:
        return findings
    findings += _uniqueness(topology, list(others))
    if topology.connectivity == "PUBLIC_ENDPOINT":
        findings += _public(topology, resolve)
    else:
        findings += _vpc(topology)
    return [*findings, *_certificate(topology, authorities), _port(topology), _round_trip(topology)]


def system_resolve(host: str) -> list[str]:
    """The addresses that this machine's resolver finds."""
    try:
        found = socket.getaddrinfo(host, 443, type=socket.SOCK_STREAM)
    except socket.gaierror:
        return []
    return sorted({str(address[4][0]) for address in found})


def service_principal(region: str) -> str:
    """Whom a VPC endpoint service must allow, and whom the client certificate of mutual TLS names."""
    return f"cks.kms.{region}.amazonaws.com"


def _endpoint(topology: Topology) -> Finding:
    endpoint, host = topology.endpoint, topology.host
    problem = ""
    if not endpoint.startswith("https://"):
        problem = "it must start with https://"
    elif not _ENDPOINT.fullmatch(endpoint):
        problem = "after https:// only a host name may follow: no port (AWS KMS uses 443), no path, no slash at the end"
    elif len(endpoint) > MAX_ENDPOINT_CHARS:
        problem = f"it must not exceed {MAX_ENDPOINT_CHARS} characters"
    elif _is_address(host):
        problem = "it must be a host name, not an address, since the certificate is checked against it"
    elif "." not in host or not all(_LABEL.fullmatch(label) for label in host.split(".")):
        problem = "it must be a fully qualified domain name, like xks.example.com"
    if problem:
        return Finding("endpoint", PROBLEM, f"{endpoint or 'the endpoint is not set'}: {problem}")
    return Finding("endpoint", OK, f"{endpoint} is a name that AWS KMS can call")


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _path(topology: Topology) -> Finding:
    path = topology.uri_path
    if not _PATH.fullmatch(path):
        return Finding("uri-path", PROBLEM, f"{path}: only letters, digits, /, _ and - may stand before /kms/xks/v1")
    if len(path) > limits.MAX_URI_PATH_CHARS:
        return Finding(
            "uri-path", PROBLEM, f"{path}: with /kms/xks/v1 it must not exceed {limits.MAX_URI_PATH_CHARS} characters"
        )
    return Finding("uri-path", OK, f"XksProxyUriPath is {path}")


def _region(topology: Topology) -> Finding:
    region = topology.region
    if region in _NO_XKS_REGIONS:
        return Finding("region", PROBLEM, f"AWS has no external key stores in {region}: choose another Region")
    return Finding("region", OK, f"{region}: custom key store, VPC endpoint service and KMS keys must all be in it")


def _uniqueness(topology: Topology, others: list[KeyStore]) -> Iterator[Finding]:
    """AWS knows of more stores than we do; so "ok" means: among ours."""
    near = [store for store in others if store.region == topology.region]
    same_host = [store for store in near if store.endpoint.lower() == topology.endpoint.lower()]
    same = [store.name for store in same_host if uri_path(store) == topology.uri_path]
    if same:
        yield Finding(
            "unique-uri", PROBLEM, f"key store {same[0]} has the same endpoint and path: AWS wants each once in a Region"
        )
    else:
        yield Finding("unique-uri", OK, "no other key store here has this endpoint with this path")
    mixed = [store.name for store in same_host if store.connectivity != topology.connectivity]
    if mixed:
        text = f"key store {mixed[0]} uses the endpoint with the other connectivity: AWS allows one kind for a host name in a Region"
        yield Finding("unique-endpoint", PROBLEM, text)
    if topology.connectivity != "VPC_ENDPOINT_SERVICE":
        return
    shared = [store.name for store in same_host if store.name not in mixed]
    if shared:
        text = f"key store {shared[0]} has the same private DNS name: each store behind a VPC endpoint service needs its own"
        yield Finding("unique-endpoint", PROBLEM, text)
    service = topology.vpc_endpoint_service_name
    served = [store.name for store in near if service and store.vpc_endpoint_service_name == service]
    if served:
        text = f"key store {served[0]} uses {service} already: each key store needs a VPC endpoint service of its own"
        yield Finding("unique-service", PROBLEM, text)


def _public(topology: Topology, resolve: Resolve | None) -> Iterator[Finding]:
    if topology.vpc_endpoint_service_name:
        text = (
            "a VPC endpoint service is named, but PUBLIC_ENDPOINT does not use one: remove it, or choose VPC_ENDPOINT_SERVICE"
        )
        yield Finding("vpc-service-name", PROBLEM, text)
    yield _public_dns(topology.host, resolve)
    text = (
        "AWS KMS calls the proxy while the custom key store is created, updated and connected: have it serve this key store first; "
        "xksfast test shows whether it does"
    )
    yield Finding("reachable-first", TO_DO, text)


def _public_dns(host: str, resolve: Resolve | None) -> Finding:
    if resolve is None:
        return Finding(
            "public-dns", TO_DO, f"see that {host} has a public IPv4 address in public DNS: AWS KMS does not use IPv6"
        )
    addresses = resolve(host)
    if not addresses:
        return Finding("public-dns", PROBLEM, f"{host} is not in DNS, as seen from here: AWS KMS needs a public IPv4 address")
    public = [address for address in addresses if "." in address and ipaddress.ip_address(address).is_global]
    if not public:
        text = (
            f"{host} is {', '.join(addresses)} as seen from here, none of it a public IPv4 address: AWS KMS cannot reach that"
        )
        return Finding("public-dns", PROBLEM, text)
    return Finding("public-dns", OK, f"{host} is {public[0]}")


def _vpc(topology: Topology) -> Iterator[Finding]:
    name, region, host = topology.vpc_endpoint_service_name, topology.region, topology.host
    match = _SERVICE_NAME.fullmatch(name)
    if match is None:
        wanted = f"com.amazonaws.vpce.{region}.vpce-svc-…"
        yield Finding(
            "vpc-service-name", PROBLEM, f"{name or 'the VPC endpoint service is not named'}: it must look like {wanted}"
        )
    elif match[1] != region:
        text = f"{name} is in {match[1]}, the key store in {region}: AWS KMS looks for it in its own Region only"
        yield Finding("vpc-service-name", PROBLEM, text)
    else:
        yield Finding("vpc-service-name", OK, f"{name} is in {region}")
    parent = host.partition(".")[2]
    to_dos = {
        "vpc-subnets": "the VPC needs two private subnets or more, each in another Availability Zone, with IPv4 addresses that do not "
        "overlap those of the HSM's network",
        "vpc-load-balancer": "a network load balancer (not a gateway one) in at least two Availability Zones, listening on TCP 443, "
        "its target group TCP with the proxies' IPv4 addresses; the proxy ends TLS, or a TLS listener with a certificate for the "
        "same name does",
        "vpc-health-check": "health check of the target group: HTTP GET /ping on the proxy's health listener, or TCP",
        "vpc-acceptance": "the VPC endpoint service must not require acceptance of connections (AcceptanceRequired: false)",
        "vpc-principal": f"allow the principal {service_principal(region)} on the VPC endpoint service",
        "vpc-private-dns": f"its private DNS name must be {host}, in no other use in {region}",
        "vpc-domain": f"the domain of {host} ({parent}, or a domain above it) must be a public one and its verification status "
        "verified: AWS names the TXT record to set in public DNS",
        "vpc-account": "the VPC endpoint service is looked for in the account of the custom key store; for one of another account AWS "
        "takes XksProxyVpcEndpointServiceOwner",
    }
    for rule, text in to_dos.items():
        yield Finding(rule, TO_DO, text)


def _certificate(topology: Topology, authorities: Authorities | None) -> list[Finding]:
    if topology.certificate is None:
        text = (
            f"the certificate that AWS KMS is shown must have {topology.host} (or a wildcard in place of its first label) as common "
            "name, be valid, bring its intermediates, and come from an authority in AWS's list"
        )
        return [Finding("certificate", TO_DO, text)]
    try:
        known = authorities or load_authorities()
    except OperatorError as error:
        return [Finding("certificate-authority", TO_DO, str(error))]
    return examine_certificate(topology.certificate, topology.host, known)


def _port(topology: Topology) -> Finding:
    where = "the endpoint" if topology.connectivity == "PUBLIC_ENDPOINT" else "the network load balancer"
    return Finding(
        "port", TO_DO, f"{where} must answer HTTPS (TLS 1.2 or 1.3) on port 443 over IPv4; AWS KMS uses no other port"
    )


def _round_trip(topology: Topology) -> Finding:
    text = (
        f"the round trip from {topology.region} to the proxy should take {ADVISED_ROUND_TRIP_MS} ms at most: "
        "AWS KMS gives up after 250 ms, and may set up TCP and TLS within them"
    )
    return Finding("round-trip", TO_DO, text)
