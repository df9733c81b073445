# SPDX-License-Identifier: Apache-2.0
"""What must be true on the way from AWS KMS to the proxy: each rule holds and is broken once."""

from __future__ import annotations

import datetime
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from hypothesis import given
from hypothesis import strategies as st

from tests.fix_aws import certificate_for
from xksfast.admin.aws.certificate import Authorities, examine_certificate, load_authorities, matches
from xksfast.admin.aws.findings import Finding, worst
from xksfast.admin.aws.topology import Topology, examine, service_principal, system_resolve
from xksfast.errors import OperatorError
from xksfast.state.objects import KeyStore

HOST = "myproxy.xks.example.com"
SERVICE = "com.amazonaws.vpce.us-east-1.vpce-svc-0123456789abcdef0"
PUBLIC = Topology(f"https://{HOST}", "/one/kms/xks/v1", "PUBLIC_ENDPOINT", "us-east-1")
VPC = replace(PUBLIC, connectivity="VPC_ENDPOINT_SERVICE", vpc_endpoint_service_name=SERVICE)
OTHER = KeyStore(name="two", uri_path_prefix="/two", region="us-east-1", key_source="local", endpoint=f"https://{HOST}")
NO_AUTHORITIES = Authorities(())


def by_rule(findings: list[Finding]) -> dict[str, Finding]:
    found = {finding.rule: finding for finding in findings}
    assert len(found) == len(findings), "each rule once"
    return found


def problems(topology: Topology, *others: KeyStore) -> dict[str, str]:
    return {finding.rule: finding.text for finding in examine(topology, others) if finding.level == "problem"}


@pytest.mark.parametrize("topology", [PUBLIC, VPC])
def test_what_is_right_has_no_problem_and_says_what_cannot_be_seen_from_here(topology: Topology) -> None:
    findings = by_rule(examine(topology))
    assert problems(topology) == {}
    assert worst(list(findings.values())) == "to do"
    assert {findings[rule].level for rule in ("endpoint", "uri-path", "region", "unique-uri")} == {"ok"}
    assert {findings[rule].level for rule in ("certificate", "port", "round-trip")} == {"to do"}


def test_a_store_brings_its_topology() -> None:
    assert Topology.of(OTHER) == replace(PUBLIC, uri_path="/two/kms/xks/v1")


@pytest.mark.parametrize(
    ("endpoint", "words"),
    [
        ("", "not set"),
        (f"http://{HOST}", "start with https://"),
        (f"https://{HOST}:8443", "no port"),
        (f"https://{HOST}/", "no slash at the end"),
        (f"https://{HOST}/kms", "no path"),
        ("https://192.0.2.7", "not an address"),
        ("https://myproxy", "fully qualified"),
        ("https://-x.example.com", "fully qualified"),
        ("https://x..example.com", "fully qualified"),
        ("https://" + "a." * 60 + "com", "128 characters"),
    ],
)
def test_endpoints_that_aws_cannot_call(endpoint: str, words: str) -> None:
    assert words in problems(replace(PUBLIC, endpoint=endpoint))["endpoint"]


def test_the_endpoint_may_have_128_characters() -> None:
    host = "a." * 58 + "com"
    assert len(f"https://{host}") == 127
    assert "endpoint" not in problems(replace(PUBLIC, endpoint=f"https://{host}"))
    assert "endpoint" not in problems(replace(PUBLIC, endpoint=f"https://{host}m"))
    assert "endpoint" in problems(replace(PUBLIC, endpoint=f"https://{host}mm"))


def test_the_path_may_have_128_characters() -> None:
    longest = "/" + "p" * 116 + "/kms/xks/v1"
    assert len(longest) == 128
    assert "uri-path" not in problems(replace(PUBLIC, uri_path=longest))
    assert "128" in problems(replace(PUBLIC, uri_path="/p" + longest[1:]))["uri-path"]
    assert "uri-path" in problems(replace(PUBLIC, uri_path="/a.b/kms/xks/v1"))
    assert "uri-path" not in problems(replace(PUBLIC, uri_path="/kms/xks/v1"))


def test_regions_without_external_key_stores() -> None:
    assert "region" in problems(replace(PUBLIC, region="cn-north-1"))


@pytest.mark.parametrize(
    ("topology", "changes", "rules"),
    [
        (PUBLIC, {}, set()),
        (PUBLIC, {"uri_path_prefix": "/one"}, {"unique-uri"}),
        (PUBLIC, {"uri_path_prefix": "/one", "region": "eu-central-1"}, set()),
        (PUBLIC, {"connectivity": "VPC_ENDPOINT_SERVICE"}, {"unique-endpoint"}),
        (VPC, {}, {"unique-endpoint"}),
        (VPC, {"connectivity": "VPC_ENDPOINT_SERVICE"}, {"unique-endpoint"}),
        (VPC, {"endpoint": "https://other.example.com"}, set()),
        (VPC, {"endpoint": "https://other.example.com", "vpc_endpoint_service_name": SERVICE}, {"unique-service"}),
    ],
)
def test_what_must_be_unique(topology: Topology, changes: dict[str, str], rules: set[str]) -> None:
    assert set(problems(topology, msgspec.structs.replace(OTHER, **changes))) == rules


def test_a_public_endpoint_with_a_service_name() -> None:
    assert "vpc-service-name" in problems(replace(PUBLIC, vpc_endpoint_service_name=SERVICE))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("", "not named"),
        ("vpce-svc-0123456789abcdef0", "must look like"),
        (SERVICE.replace("us-east-1", "eu-west-3"), "is in eu-west-3"),
    ],
)
def test_service_names_that_aws_cannot_find(name: str, words: str) -> None:
    assert words in problems(replace(VPC, vpc_endpoint_service_name=name))["vpc-service-name"]


def test_everything_that_aws_wants_of_a_vpc_endpoint_service_is_listed() -> None:
    text = " ".join(finding.text for finding in examine(VPC))
    for words in (
        "network load balancer",
        "two Availability Zones",
        "AcceptanceRequired: false",
        HOST,
        "TXT record",
        "GET /ping",
    ):
        assert words in text
    assert service_principal("us-east-1") == "cks.kms.us-east-1.amazonaws.com"
    assert service_principal("us-east-1") in text


@pytest.mark.parametrize(
    ("addresses", "level"),
    [(["93.184.216.34"], "ok"), (["10.0.0.1"], "problem"), (["2606:2800:220:1::1"], "problem"), ([], "problem"),
     (["10.0.0.1", "93.184.216.34"], "ok")],
)  # fmt: skip
def test_public_dns(addresses: list[str], level: str) -> None:
    assert by_rule(examine(PUBLIC, resolve=lambda host: addresses))["public-dns"].level == level


def test_the_machines_resolver() -> None:
    assert "127.0.0.1" in system_resolve("localhost")
    assert system_resolve("absent.invalid") == []


# --- the certificate


@pytest.fixture(scope="session")
def issued(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a certificate for HOST, server.pem, and its authority, dev-ca.pem."""
    directory = tmp_path_factory.mktemp("issued")
    certificate_for(directory, HOST)
    return directory


def fingerprint(path: Path) -> bytes:
    return x509.load_pem_x509_certificate(path.read_bytes()).fingerprint(hashes.SHA256())


def judged(issued: Path, host: str = HOST, **how: datetime.datetime) -> dict[str, Finding]:
    authorities = load_authorities(roots_file=issued / "dev-ca.pem")
    return by_rule(examine_certificate(issued / "server.pem", host, authorities, **how))


def test_a_certificate_as_it_should_be(issued: Path) -> None:
    found = judged(issued)
    assert {finding.level for rule, finding in found.items() if rule != "certificate-authority"} == {"ok"}
    assert found["certificate-authority"].level == "to do"


def test_the_root_is_looked_for_in_the_list_of_aws(issued: Path, tmp_path: Path) -> None:
    root = issued / "dev-ca.pem"
    for content, level in ((fingerprint(root), "ok"), (bytes(32), "problem")):
        listed = tmp_path / "TrustedCertificateAuthorities"
        listed.write_text(f"Alias name: x\n\t SHA1: 00\n\t SHA256: {content.hex(':').upper()}\n*****\n")
        authorities = load_authorities(listed, root)
        assert by_rule(examine_certificate(issued / "server.pem", HOST, authorities))["certificate-authority"].level == level


def test_a_list_without_fingerprints_is_refused(issued: Path) -> None:
    with pytest.raises(OperatorError, match="no SHA256 fingerprint"):
        load_authorities(issued / "dev-ca.pem", issued / "dev-ca.pem")


def test_a_certificate_for_another_host(issued: Path) -> None:
    found = judged(issued, "other.xks.example.com")
    assert found["certificate-common-name"].level == "problem"
    assert "*.xks.example.com" in found["certificate-common-name"].text
    assert found["certificate-alternative-names"].level == "problem"


@pytest.mark.parametrize(("days", "level"), [(-2, "problem"), (10, "ok"), (80, "to do"), (91, "problem")])
def test_the_dates_of_a_certificate(issued: Path, days: int, level: str) -> None:
    now = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=days)
    assert judged(issued, now=now)["certificate-dates"].level == level


def test_a_certificate_of_an_unknown_authority(issued: Path) -> None:
    found = by_rule(examine_certificate(issued / "server.pem", HOST, NO_AUTHORITIES))
    assert found["certificate-chain"].level == "problem"
    assert "xksfast dev-ca" in found["certificate-chain"].text


def test_a_certificate_signed_by_itself(issued: Path) -> None:
    found = by_rule(examine_certificate(issued / "dev-ca.pem", HOST, NO_AUTHORITIES))
    assert "signed by itself" in found["certificate-authority"].text


@pytest.mark.parametrize("content", [None, b"nothing"])
def test_a_certificate_file_that_cannot_be_read(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "server.pem"
    if content is not None:
        path.write_bytes(content)
    (finding,) = examine_certificate(path, HOST, NO_AUTHORITIES)
    assert (finding.rule, finding.level) == ("certificate-file", "problem")


def test_the_certificate_is_judged_with_everything_else(issued: Path) -> None:
    authorities = load_authorities(roots_file=issued / "dev-ca.pem")
    found = by_rule(examine(replace(PUBLIC, certificate=issued / "server.pem"), authorities=authorities))
    assert found["certificate-chain"].level == "ok"
    assert "certificate" not in found


def test_the_machines_own_roots_are_used_when_none_are_given(issued: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(issued / "dev-ca.pem"))
    assert by_rule(examine(replace(PUBLIC, certificate=issued / "server.pem")))["certificate-chain"].level == "ok"
    monkeypatch.setenv("SSL_CERT_FILE", str(issued / "absent.pem"))
    monkeypatch.setattr("xksfast.admin.aws.certificate.SYSTEM_ROOTS", ())
    found = by_rule(examine(replace(PUBLIC, certificate=issued / "server.pem")))["certificate-authority"]
    assert found.level == "to do"
    assert "ca-certificates" in found.text


def test_a_root_that_cannot_be_read_does_not_cost_the_others(issued: Path, tmp_path: Path) -> None:
    bundle, root = tmp_path / "bundle.pem", (issued / "dev-ca.pem").read_bytes()
    bundle.write_bytes(b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\nAlias: x\n" + root)
    assert [root.fingerprint(hashes.SHA256()) for root in load_authorities(roots_file=bundle).roots] == [
        fingerprint(issued / "dev-ca.pem")
    ]
    bundle.write_text("nothing")
    with pytest.raises(OperatorError, match="no certificate in PEM"):
        load_authorities(roots_file=bundle)


@pytest.mark.parametrize(
    ("pattern", "host", "expected"),
    [
        ("*.xks.example.com", "a.xks.example.com", True),
        ("*.XKS.example.com", "A.xks.example.com", True),
        ("*.xks.example.com", "a.b.xks.example.com", False),
        ("*.xks.example.com", "xks.example.com", False),
        ("*.com", "example.com", False),
        ("*", "example", False),
        ("a*.example.com", "ab.example.com", False),
    ],
)
def test_wildcards_stand_for_one_whole_label(pattern: str, host: str, expected: bool) -> None:
    assert matches(pattern, host) is expected


names = st.lists(st.from_regex(r"[a-z]{1,3}", fullmatch=True), min_size=2, max_size=5).map(".".join)


@given(names, names)
def test_names_match_themselves_and_their_wildcard_only(one: str, other: str) -> None:
    assert matches(one, one)
    assert matches(one, other) is (one == other)
    wildcard = f"*.{one}"
    assert matches(wildcard, other) is ("." in one and other.partition(".")[2] == one and other.partition(".")[0] != "")
