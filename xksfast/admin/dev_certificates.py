# SPDX-License-Identifier: Apache-2.0
"""A development CA and certificates from it: for `xksfast dev` and the tests, never for KMS, which trusts public CAs only."""

from __future__ import annotations

import datetime
import ipaddress
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from xksfast.secret_file import write_secret_file

VALID_DAYS = 90
RENEW_BEFORE = datetime.timedelta(days=1)


@dataclass(frozen=True)
class CertificateFiles:
    """A certificate and its private key, both PEM; the key file is 0600."""

    certificate: Path
    private_key: Path


class Authority:
    """A CA whose files are `<name>.pem` and `<name>.key` in `directory`; made when absent or about to expire."""

    def __init__(self, directory: Path, name: str = "dev-ca") -> None:
        self.files = CertificateFiles(directory / f"{name}.pem", directory / f"{name}.key")
        if not _still_good(self.files.certificate):
            key = ec.generate_private_key(ec.SECP256R1())
            subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"xksfast {name}")])
            certificate = (
                _builder(subject, subject, key)
                .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
                .add_extension(_key_usage(ca=True), critical=True)
                .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
                .sign(key, hashes.SHA256())
            )
            _write(self.files, certificate, key)
        self._certificate = x509.load_pem_x509_certificate(self.files.certificate.read_bytes())
        self._key = serialization.load_pem_private_key(self.files.private_key.read_bytes(), password=None)

    def issue_server(self, files: CertificateFiles, names: tuple[str, ...] = ("localhost", "127.0.0.1", "::1")) -> None:
        """A server certificate for DNS names and addresses; kept when it is still good."""
        if not _still_good(files.certificate):
            alternative = [_alternative_name(name) for name in names]
            self._issue(files, names[0], ExtendedKeyUsageOID.SERVER_AUTH, alternative)

    def issue_client(self, files: CertificateFiles, common_name: str, *, days: int = VALID_DAYS) -> None:
        """A client certificate with this CN. days: negative for one that has expired."""
        self._issue(files, common_name, ExtendedKeyUsageOID.CLIENT_AUTH, [x509.DNSName(common_name)], days)

    def _issue(
        self,
        files: CertificateFiles,
        common_name: str,
        purpose: x509.ObjectIdentifier,
        alternative: list[x509.GeneralName],
        days: int = VALID_DAYS,
    ) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
        certificate = (
            _builder(subject, self._certificate.subject, key, days)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(ca=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
            .add_extension(x509.SubjectAlternativeName(alternative), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)  # type: ignore[arg-type]
            .sign(self._key, hashes.SHA256())  # type: ignore[arg-type]
        )
        _write(files, certificate, key)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, days: int = VALID_DAYS
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    ends = now + datetime.timedelta(days=days)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(min(now, ends) - datetime.timedelta(hours=1))
        .not_valid_after(ends)
    )


def _key_usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not ca,
        key_cert_sign=ca,
        crl_sign=ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _alternative_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _still_good(path: Path) -> bool:
    if not path.exists():
        return False
    certificate = x509.load_pem_x509_certificate(path.read_bytes())
    return certificate.not_valid_after_utc - RENEW_BEFORE > datetime.datetime.now(datetime.UTC)


def _write(files: CertificateFiles, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    write_secret_file(files.private_key, pem, over=True)
    files.certificate.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
