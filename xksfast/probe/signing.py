# SPDX-License-Identifier: Apache-2.0
"""AWS Signature Version 4 for the XKS API, with every part of it open to being wrong on purpose.

Source: AWS Signature Version 4 signing process; XKS Proxy API spec v1.0.3, Appendix A (requirements 118 to 124).
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from xksfast.probe.target import SERVICE, Credential

ALGORITHM = "AWS4-HMAC-SHA256"


@dataclass(frozen=True)
class Signing:
    """How a request is signed. What is None is the target's own.

    skew_s: added to the clock. scope_days: added to the day of the credential scope only. signed: names of further headers that
    are signed. without: names of headers that are left out of the signature although they are sent.
    """

    credential: Credential | None = None
    region: str | None = None
    service: str = SERVICE
    skew_s: int = 0
    scope_days: int = 0
    signed: tuple[str, ...] = ()
    without: tuple[str, ...] = ()


def signed_headers(
    path: str, body: bytes, authority: str, credential: Credential, region: str, signing: Signing, now: datetime | None = None
) -> dict[str, str]:
    """All headers of a signed POST but Content-Length, by name. now: for tests against known signatures."""
    at = (now or datetime.now(UTC)) + timedelta(seconds=signing.skew_s)
    stamp = at.strftime("%Y%m%dT%H%M%SZ")
    day = (at + timedelta(days=signing.scope_days)).strftime("%Y%m%d")
    headers = {"Host": authority, "Content-Type": "application/json", "X-Amz-Date": stamp}
    names = {"host", "x-amz-date", *signing.signed} - set(signing.without)
    canonical = {name.lower(): " ".join(value.split()) for name, value in headers.items() if name.lower() in names}
    listed = ";".join(sorted(canonical))
    request = "\n".join(
        [
            "POST",
            path,
            "",
            *(f"{name}:{canonical[name]}" for name in sorted(canonical)),
            "",
            listed,
            hashlib.sha256(body).hexdigest(),
        ]
    )
    scope = f"{day}/{signing.region or region}/{signing.service}/aws4_request"
    to_sign = "\n".join([ALGORITHM, stamp, scope, hashlib.sha256(request.encode()).hexdigest()])
    signer = signing.credential or credential
    key = signing_key(signer.secret_access_key, day, signing.region or region, signing.service)
    signature = hmac.new(key, to_sign.encode(), hashlib.sha256).hexdigest()
    headers["Authorization"] = (
        f"{ALGORITHM} Credential={signer.access_key_id}/{scope}, SignedHeaders={listed}, Signature={signature}"
    )
    return headers


def signing_key(secret: str, day: str, region: str, service: str) -> bytes:
    """The derived key of one day, region and service; 32 bytes."""
    key = ("AWS4" + secret).encode()
    for part in (day, region, service, "aws4_request"):
        key = hmac.new(key, part.encode(), hashlib.sha256).digest()
    return key
