# SPDX-License-Identifier: Apache-2.0
"""Whether AWS KMS will accept the proxy's TLS certificate: names, dates, chain, authority.

What lives here: reading a PEM file and judging it. What must not: connecting anywhere. AWS keeps the list of authorities that it trusts
in a public file, TrustedCertificateAuthorities in github.com/aws/aws-kms-xksproxy-api-spec; it changes, so it is not part of this
program but may be given. A newcomer's trap: AWS wants the common name to match, which browsers have not looked at for years.
"""

from __future__ import annotations

import contextlib
import datetime
import re
import ssl
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.x509.oid import NameOID
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from xksfast.admin.aws.findings import OK, PROBLEM, TO_DO, Finding
from xksfast.errors import OperatorError

RENEW_DAYS = 14
TRUSTED_LIST = "TrustedCertificateAuthorities in github.com/aws/aws-kms-xksproxy-api-spec"
SYSTEM_ROOTS = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
)
_PEM = re.compile(rb"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", re.DOTALL)
_FINGERPRINT = re.compile(r"SHA256:\s*((?:[0-9A-Fa-f]{2}:){31}[0-9A-Fa-f]{2})")


@dataclass(frozen=True)
class Authorities:
    """Root certificates that the machine trusts, and SHA-256 fingerprints of those that AWS trusts, None: its list was not given."""

    roots: tuple[x509.Certificate, ...]
    aws_fingerprints: frozenset[bytes] | None = None


def load_authorities(trusted_list: Path | None = None, roots_file: Path | None = None) -> Authorities:
    """trusted_list: AWS's file. roots_file: PEM, else the machine's own. OperatorError when one cannot be read."""
    fingerprints = None
    if trusted_list is not None:
        found = _FINGERPRINT.findall(_read(trusted_list).decode(errors="replace"))
        fingerprints = frozenset(bytes.fromhex(text.replace(":", "")) for text in found)
        if not fingerprints:
            raise OperatorError(f"{trusted_list}: no SHA256 fingerprint in it: it should be AWS's {TRUSTED_LIST}")
    return Authorities(tuple(_roots(roots_file or _system_roots())), fingerprints)


def _system_roots() -> Path:
    """The machine's root certificates in one file: OpenSSL's own, which is a directory on some distributions, or a usual one."""
    for name in (ssl.get_default_verify_paths().cafile, *SYSTEM_ROOTS):
        if name and Path(name).exists():
            return Path(name)
    raise OperatorError("there are no root certificates on this machine to check against: run apt-get install ca-certificates")


def examine_certificate(
    certificate_file: Path, host: str, authorities: Authorities, *, now: datetime.datetime | None = None
) -> list[Finding]:
    """Judge the file that the proxy serves (`proxy.tls.certificate`: the certificate, then its intermediates) for one host name."""
    now = now or datetime.datetime.now(datetime.UTC)
    try:
        chain = _certificates(certificate_file)
    except OperatorError as error:
        return [Finding("certificate-file", PROBLEM, str(error))]
    leaf, intermediates = chain[0], chain[1:]
    return [
        _common_name(leaf, host),
        _alternative_names(leaf, host),
        _dates(chain, now),
        *_chain(leaf, intermediates, host, authorities, now),
    ]


def matches(pattern: str, host: str) -> bool:
    """Whether a name of a certificate is for this host: equal, or "*." before everything after the host's first dot."""
    pattern, host = pattern.lower().rstrip("."), host.lower().rstrip(".")
    if pattern.startswith("*."):
        label, dot, rest = host.partition(".")
        return bool(label and dot) and pattern[2:] == rest and "." in rest
    return pattern == host


def _common_name(leaf: x509.Certificate, host: str) -> Finding:
    names = [str(attribute.value) for attribute in leaf.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    if any(matches(name, host) for name in names):
        return Finding("certificate-common-name", OK, f"the common name {names[0]} is for {host}")
    wildcard = f"*.{host.partition('.')[2]}"
    shown = f"is {', '.join(names)}" if names else "is missing"
    text = f"the common name {shown}: AWS KMS wants {host} or {wildcard} there, whatever the alternative names say"
    return Finding("certificate-common-name", PROBLEM, text)


def _alternative_names(leaf: x509.Certificate, host: str) -> Finding:
    try:
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value.get_values_for_type(x509.DNSName)
    except x509.ExtensionNotFound:
        names = []
    if any(matches(name, host) for name in names):
        return Finding("certificate-alternative-names", OK, f"{host} is among the alternative names")
    text = (
        f"{host} is not among the alternative names ({', '.join(names) or 'there are none'}): get a certificate for that name"
    )
    return Finding("certificate-alternative-names", PROBLEM, text)


def _dates(chain: list[x509.Certificate], now: datetime.datetime) -> Finding:
    starts = max(certificate.not_valid_before_utc for certificate in chain)
    ends = min(certificate.not_valid_after_utc for certificate in chain)
    if now < starts:
        text = f"it is valid from {starts:%Y-%m-%d %H:%M} UTC only: wait, or set the clock"
        return Finding("certificate-dates", PROBLEM, text)
    if now >= ends:
        text = f"it expired on {ends:%Y-%m-%d %H:%M} UTC: AWS KMS refuses it; renew it and send SIGHUP to the proxy"
        return Finding("certificate-dates", PROBLEM, text)
    days = (ends - now).days
    if days < RENEW_DAYS:
        return Finding(
            "certificate-dates", TO_DO, f"it ends on {ends:%Y-%m-%d}, in {days} days: renew it, then send SIGHUP to the proxy"
        )
    return Finding("certificate-dates", OK, f"it is valid until {ends:%Y-%m-%d}")


def _chain(
    leaf: x509.Certificate, intermediates: list[x509.Certificate], host: str, authorities: Authorities, now: datetime.datetime
) -> Iterable[Finding]:
    if leaf.issuer == leaf.subject:
        yield Finding("certificate-authority", PROBLEM, "it is signed by itself: AWS KMS trusts public authorities only")
        return
    try:  # ValueError: there are no roots, or the host is no DNS name
        builder = PolicyBuilder().store(Store(list(authorities.roots))).time(now.replace(tzinfo=None))
        chain = builder.build_server_verifier(x509.DNSName(host)).verify(leaf, intermediates)
    except (VerificationError, ValueError) as error:
        yield _broken_chain(leaf, intermediates, authorities, str(error))
        return
    yield Finding("certificate-chain", OK, f"the file holds a whole chain of {len(chain) - 1} up to its root")
    root = chain[-1]
    name = _name(root.subject)
    if authorities.aws_fingerprints is None:
        yield Finding(
            "certificate-authority", TO_DO, f"this machine trusts its root, {name}: see that it stands in AWS's {TRUSTED_LIST}"
        )
    elif root.fingerprint(hashes.SHA256()) in authorities.aws_fingerprints:
        yield Finding("certificate-authority", OK, f"its root, {name}, stands in the given list of AWS")
    else:
        text = f"its root, {name}, does not stand in the given list of AWS: get a certificate from an authority that does"
        yield Finding("certificate-authority", PROBLEM, text)


def _broken_chain(
    leaf: x509.Certificate, intermediates: list[x509.Certificate], authorities: Authorities, error: str
) -> Finding:
    """Why no chain was found: the commonest reasons by name, else what the verifier says."""
    last, known = leaf, {certificate.subject for certificate in authorities.roots}
    for _ in intermediates:
        last = next((certificate for certificate in intermediates if certificate.subject == last.issuer), last)
    if last.issuer not in known:
        issuer = _name(last.issuer)
        text = (
            f"{issuer}, which issued {'it' if last is leaf else 'the last of its chain'}, is neither in the file nor a root that this "
            "machine trusts: put the intermediate certificates behind the certificate; "
            "if they are there, the authority is no public one"
        )
        return Finding("certificate-chain", PROBLEM, text)
    return Finding("certificate-chain", PROBLEM, f"its chain does not hold: {error[:200]}")


def _roots(path: Path) -> list[x509.Certificate]:
    """Each by itself: bundles of distributions hold old roots that break a rule of today, and one of them must not cost the others."""
    found = _PEM.findall(_read(path))
    if not found:
        raise OperatorError(f"{path}: there is no certificate in PEM in it")
    roots = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of old roots that are still good: that a later version will not read them
        for pem in found:
            with contextlib.suppress(ValueError):
                roots.append(x509.load_pem_x509_certificate(pem))
    return roots


def _certificates(path: Path) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(_read(path))
    except ValueError as error:
        raise OperatorError(f"{path}: this is no PEM file of certificates ({error})") from None


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise OperatorError(f"{path}: cannot be read: {error.strerror}") from None


def _name(name: x509.Name) -> str:
    found = name.get_attributes_for_oid(NameOID.COMMON_NAME) or name.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)
    return str(found[0].value) if found else name.rfc4514_string()
