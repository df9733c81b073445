# SPDX-License-Identifier: Apache-2.0
"""What is tested: the address, the credentials, the keys, and how long to go on. Plain values without I/O."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from xksfast.errors import OperatorError

API_PATH = "/kms/xks/v1"
SERVICE = "kms-xks-proxy"
KMS_BUDGET_MS = 250.0  # KMS gives a call up after it (requirement 12)

_HOST = re.compile(r"[A-Za-z0-9._-]+|[0-9A-Fa-f:.]+")
_PREFIX = re.compile(r"(/[A-Za-z0-9_-]+)*")


@dataclass(frozen=True)
class Credential:
    """A SigV4 credential of a key store. The secret is kept out of every representation."""

    access_key_id: str
    secret_access_key: str = field(repr=False)


@dataclass(frozen=True)
class Address:
    """Where the proxy is. host: name or IP address, without brackets. prefix: what stands before /kms/xks/v1, may be empty."""

    tls: bool
    host: str
    port: int
    prefix: str = ""

    @property
    def authority(self) -> str:
        """The Host header: the port only when it is not the scheme's own."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.tls else 80) else f"{host}:{self.port}"

    @property
    def url(self) -> str:
        """As given on the command line, normalised."""
        return f"{'https' if self.tls else 'http'}://{self.authority}{self.prefix}"

    @property
    def ip(self) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
        """The host when it is an IP address and no name."""
        try:
            return ipaddress.ip_address(self.host)
        except ValueError:
            return None

    @property
    def is_local(self) -> bool:
        """Whether it is this machine."""
        return self.host == "localhost" or (self.ip is not None and self.ip.is_loopback)


@dataclass(frozen=True)
class Keys:
    """External key ids. default: a key that may do everything; the others may not, each in its own way. "" is not given."""

    default: str = ""
    encrypt_only: str = ""
    decrypt_only: str = ""
    no_usage: str = ""
    disabled: str = ""
    denied: str = ""


@dataclass(frozen=True)
class Target:
    """All that a run needs.

    second: another valid credential of the same store. foreign: a valid credential of another store. ca_file: PEM that replaces
    the system's CAs. client_certificate, client_key: PEM files for mTLS. principal: awsPrincipalArn of all requests.
    rounds: calls of each operation that latency is taken from. quota: requests a second that the store is limited to; 0: unknown.
    """

    address: Address
    region: str
    credential: Credential
    keys: Keys = Keys()
    second: Credential | None = None
    foreign: Credential | None = None
    ca_file: Path | None = None
    client_certificate: Path | None = None
    client_key: Path | None = None
    principal: str = "arn:aws:iam::123456789012:user/Alice"
    rounds: int = 50
    quota: int = 0


def parse_url(text: str, *, plaintext_http: bool = False) -> Address:
    """https://host[:port][/prefix] -> Address; /kms/xks/v1 at its end may be there. OperatorError says what is wrong with it."""
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError as error:
        raise OperatorError(f"{text!r}: {error}") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise OperatorError(f"{text!r} is no URL such as https://xks.example.com/payments")
    if not _HOST.fullmatch(parts.hostname):
        raise OperatorError(f"{parts.hostname!r} is no host name or IP address in ASCII")
    if parts.username is not None or parts.query or parts.fragment:
        raise OperatorError(
            "the URL has a user, a query or a fragment: give https://host[:port][/prefix], and credentials by options"
        )
    if parts.scheme == "http" and not plaintext_http:
        raise OperatorError(f"{text}: KMS speaks HTTPS only; add --plaintext-http to test the part behind a TLS terminator")
    prefix = parts.path.rstrip("/").removesuffix(API_PATH)
    if not _PREFIX.fullmatch(prefix):
        raise OperatorError(f"the path prefix {prefix!r} must be like /payments: parts of A-Z a-z 0-9 _ -")
    tls = parts.scheme == "https"
    return Address(tls, parts.hostname, port or (443 if tls else 80), prefix)
