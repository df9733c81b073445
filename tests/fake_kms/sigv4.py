# SPDX-License-Identifier: Apache-2.0
"""Verifying the SigV4 signature of a request to AWS, written from the rules rather than with botocore's signer."""

from __future__ import annotations

import datetime
import hashlib
import hmac
import re
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import parse_qsl, quote, urlsplit

from tests.fake_kms.errors import KmsError

MAX_SKEW = datetime.timedelta(minutes=5)
_AUTHORIZATION = re.compile(
    r"AWS4-HMAC-SHA256 Credential=([^/,]+)/(\d{8})/([^/,]+)/([^/,]+)/aws4_request, ?SignedHeaders=([^,]+), ?Signature=([0-9a-f]{64})"
)


@dataclass(frozen=True)
class AwsCredential:
    """An IAM credential of the fake account. token: of temporary ones, which must then be sent along."""

    secret_access_key: str
    arn: str
    token: str = ""


def verify(
    method: str,
    target: str,
    headers: Mapping[str, str],
    body: bytes,
    *,
    region: str,
    service: str,
    known: Mapping[str, AwsCredential],
) -> AwsCredential:
    """Whose request it is. headers: lower-case names. KmsError as AWS refuses it."""
    match = _AUTHORIZATION.fullmatch(headers.get("authorization", ""))
    if match is None:
        raise KmsError("MissingAuthenticationTokenException", "Missing Authentication Token")
    access_key_id, day, scope_region, scope_service, signed, signature = match.groups()
    credential = known.get(access_key_id)
    if credential is None or credential.token != headers.get("x-amz-security-token", ""):
        raise KmsError("UnrecognizedClientException", "The security token included in the request is invalid.")
    if (scope_region, scope_service) != (region, service):
        raise KmsError(
            "InvalidSignatureException", f"Credential should be scoped to a valid region and service, not {scope_region}"
        )
    stamp = headers.get("x-amz-date", "")
    _check_time(stamp, day)
    names = signed.split(";")
    if names != sorted(names) or not {"host", "x-amz-date"} <= set(names) or not all(name in headers for name in names):
        raise KmsError("InvalidSignatureException", "The signed headers are not those of the request.")
    url = urlsplit(target)
    query = "&".join(
        f"{quote(name, safe='-_.~')}={quote(value, safe='-_.~')}"
        for name, value in sorted(parse_qsl(url.query, keep_blank_values=True))
    )
    canonical_headers = "".join(f"{name}:{' '.join(headers[name].split())}\n" for name in names)
    canonical = "\n".join([method, url.path or "/", query, canonical_headers, signed, hashlib.sha256(body).hexdigest()])
    scope = f"{day}/{region}/{service}/aws4_request"
    to_sign = "\n".join(["AWS4-HMAC-SHA256", stamp, scope, hashlib.sha256(canonical.encode()).hexdigest()])
    key = f"AWS4{credential.secret_access_key}".encode()
    for part in (day, region, service, "aws4_request"):
        key = hmac.digest(key, part.encode(), "sha256")
    if not hmac.compare_digest(hmac.digest(key, to_sign.encode(), "sha256").hex(), signature):
        raise KmsError(
            "InvalidSignatureException", "The request signature we calculated does not match the signature you provided."
        )
    return credential


def _check_time(stamp: str, day: str) -> None:
    try:
        at = datetime.datetime.strptime(stamp, "%Y%m%dT%H%M%SZ").replace(tzinfo=datetime.UTC)
    except ValueError:
        raise KmsError("IncompleteSignatureException", "Date must be in ISO-8601 'basic format'.") from None
    if not stamp.startswith(day) or abs(datetime.datetime.now(datetime.UTC) - at) > MAX_SKEW:
        raise KmsError("InvalidSignatureException", "Signature expired")
