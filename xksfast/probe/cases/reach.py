# SPDX-License-Identifier: Apache-2.0
"""Connections: TCP, TLS versions, suites and certificates, client certificates. Requirements 3 to 10 and 135 to 139."""

from __future__ import annotations

import contextlib
import json
import ssl
import tempfile
import time
import warnings
from pathlib import Path

from xksfast.probe.asking import Asking
from xksfast.probe.case import CLIENT_CERTIFICATE, TLS, Broken, CannotTell, case
from xksfast.probe.client import CallFailed, Closed, Connection, HandshakeFailed, client_context, request_bytes

REACHED = "reach.connects"
RIGHT_1_3 = ("TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256")
RIGHT_1_2 = ("ECDHE-RSA-AES256-GCM-SHA384", "ECDHE-ECDSA-AES256-GCM-SHA384")
SOON_DAYS = 21


@case(
    "reach.connects", 6, 7,
    says="A TCP connection and, with https, a TLS handshake succeed; the certificate is for this name and chains to a trusted CA.",
    why="KMS reports XksProxyUriUnreachable, and every operation on the keys fails.",
    do="Check address, port, firewall, certificate chain and names; with a private CA for rehearsals give --ca.",
    after="",
)  # fmt: skip
def connects(asking: Asking) -> None:
    with asking.connect() as connection:
        asking.figures["connect_ms"] = connection.connect_ms
        if connection.tls_version:
            asking.figures["tls_ms"] = connection.tls_ms
            asking.notes.append(f"{connection.tls_version}, {connection.cipher}")


@case(
    "reach.kms-address", 9, 10,
    says="The endpoint is a DNS name at port 443.",
    why="KMS takes no IP address and no port in XksProxyUriEndpoint.",
    do="Give the proxy a DNS name and let it answer at port 443, or test that name and port when they exist.",
    after=REACHED,
)  # fmt: skip
def kms_address(asking: Asking) -> None:
    address = asking.target.address
    faults = []
    if address.is_local or address.ip is not None or "." not in address.host:
        faults.append(f"{address.host} is no public DNS name")
    if address.port != 443 or not address.tls:
        faults.append(f"this is {'HTTPS' if address.tls else 'plain HTTP'} at port {address.port}")
    if faults:
        raise CannotTell(f"{' and '.join(faults)}: KMS will use HTTPS at port 443 of a DNS name, which was not tried")


@case(
    "tls.certificate", 7, 8,
    says="The certificate stays valid for three weeks at least.",
    why="When it expires KMS cannot connect, and every key is out of use at once.",
    do="Renew the certificate, and let something renew it from now on.",
    needs=(TLS,), after=REACHED,
)  # fmt: skip
def certificate(asking: Asking) -> None:
    with asking.connect() as connection:
        assert isinstance(connection.socket, ssl.SSLSocket)
        found = connection.socket.getpeercert() or {}
    days = int((ssl.cert_time_to_seconds(str(found["notAfter"])) - time.time()) / 86400)
    asking.figures["certificate_days"] = days
    if days < SOON_DAYS:
        asking.wrong(f"the certificate expires in {days} days")
    if asking.target.ca_file is not None:
        asking.notes.append(
            "checked against --ca; KMS itself trusts the public CAs of its TrustedCertificateAuthorities list only"
        )


@case(
    "tls.suites", 5,
    says="TLS_AES_256_GCM_SHA384, TLS_CHACHA20_POLY1305_SHA256 or ECDHE-{RSA,ECDSA}-AES256-GCM-SHA384 is taken.",
    why="KMS offers these; suites with AES-128 do not count.",
    do="Enable TLS 1.3 or one of the two TLS 1.2 suites.",
    needs=(TLS,), after=REACHED,
)  # fmt: skip
def suites(asking: Asking) -> None:
    found = []
    for version, names in ((ssl.TLSVersion.TLSv1_3, RIGHT_1_3), (ssl.TLSVersion.TLSv1_2, RIGHT_1_2)):
        context = _context(asking)
        context.minimum_version = context.maximum_version = version
        context.set_ciphers(":".join(RIGHT_1_2))
        with contextlib.suppress(HandshakeFailed), Connection(asking.target.address, context) as connection:
            found.append(connection.cipher)
            if connection.cipher in names:
                asking.notes.append(f"{connection.tls_version}: {connection.cipher}")
    if not asking.notes:
        asking.wrong(f"it takes none of them{': it chose ' + ', '.join(found) if found else ''}")


@case(
    "tls.old-versions", 4,
    says="TLS 1.0 and 1.1 are refused.",
    why="The API asks for TLS 1.2 or later; older versions have known weaknesses.",
    do="Set the lowest version to TLS 1.2.",
    needs=(TLS,), after=REACHED,
)  # fmt: skip
def old_versions(asking: Asking) -> None:
    ours = 0
    for version in (ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1):
        context = _context(asking)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # it is deprecated: that is why it is tried
            context.minimum_version = context.maximum_version = version
        context.set_ciphers("ALL:@SECLEVEL=0")
        try:
            with Connection(asking.target.address, context) as connection:
                asking.wrong(f"{connection.tls_version} is accepted")
        except HandshakeFailed as failed:
            ours += "NO_PROTOCOLS" in str(failed)
    if ours:
        raise CannotTell("the TLS library here does not speak them")


@case(
    "tls.client-certificate", 135, 136, 137, 139,
    says="Without the client certificate, and with one that anybody can make, the connection is ended before any answer.",
    why="With mTLS only KMS may connect; a proxy that asks for a certificate and takes any is as open as one that does not ask.",
    do="Require a client certificate, and check both its CA and its subject name.",
    needs=(TLS, CLIENT_CERTIFICATE), after="health.answers",
)  # fmt: skip
def client_certificate(asking: Asking) -> None:
    target = asking.target
    ca_file = str(target.ca_file) if target.ca_file else None
    with tempfile.TemporaryDirectory(prefix="xksfast-test-") as directory:
        subject, stranger = _self_signed(Path(directory), str(target.client_certificate))
        contexts = {
            "without a client certificate": client_context(ca_file),
            f"with a self-signed certificate for {subject}": client_context(ca_file, stranger, stranger),
        }
    for how, context in contexts.items():
        try:
            with Connection(target.address, context) as connection:
                answer = asking.on(connection, _health(asking), label="health")
        except (Closed, HandshakeFailed):
            continue
        except CallFailed as failed:
            asking.wrong(f"{how}: {failed}")
        else:
            asking.wrong(f"{how}: answered {answer}, right is the end of the handshake")


@case(
    "tls.http-1-1", 2, 3,
    says="A client that offers HTTP/2 and HTTP/1.1 by ALPN is served, and one that speaks HTTP/1.1 only as well.",
    why="KMS may fall back to HTTP/1.1.",
    do="Let ALPN choose http/1.1 when the client does not want h2.",
    needs=(TLS,), after="health.answers",
)  # fmt: skip
def http_1_1(asking: Asking) -> None:
    for offered in (["h2", "http/1.1"], ["http/1.1"]):
        context = _context(asking)
        context.set_alpn_protocols(offered)
        with Connection(asking.target.address, context) as connection:
            assert isinstance(connection.socket, ssl.SSLSocket)
            chosen = connection.socket.selected_alpn_protocol()
            if chosen == "h2":
                if offered == ["http/1.1"]:
                    asking.wrong("it chose h2, which was not offered")
                continue  # HTTP/2 is allowed; what it carries there is not tried
            answer = asking.on(connection, _health(asking), label="health")
            asking.expect_ok(answer, f"with {' and '.join(offered)} offered")


def _context(asking: Asking) -> ssl.SSLContext:
    target = asking.target
    return client_context(
        str(target.ca_file) if target.ca_file else None,
        str(target.client_certificate) if target.client_certificate else None,
        str(target.client_key) if target.client_key else None,
    )


def _health(asking: Asking) -> bytes:
    path, body = asking.path("health"), json.dumps(asking.document("health")).encode()
    return request_bytes("POST", path, asking.headers(path, body), body)


def _self_signed(directory: Path, certificate: str) -> tuple[str, str]:
    """The common name of the right certificate, and a PEM file with key and certificate of the same name, signed by itself."""
    import datetime

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    right = x509.load_pem_x509_certificate(Path(certificate).read_bytes())
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(right.subject)
        .issuer_name(right.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    file = directory / "stranger.pem"
    file.touch(0o600)
    file.write_bytes(pem + made.public_bytes(serialization.Encoding.PEM))
    names = right.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
    if not names:
        raise Broken("the client certificate given has no common name, which KMS' own has")
    return str(names[0].value), str(file)
