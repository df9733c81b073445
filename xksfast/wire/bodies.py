# SPDX-License-Identifier: Apache-2.0
"""The request bodies of the four operations as typed structs, and their decoders.

What lives here: shapes and the words in which a malformed body is refused. What must not: Base64 (decoded in C, straight into the
job) and limits. Rules: unknown members are ignored at every level (KMS announces new ones), `null` for an optional member means
absent, duplicate members and trailing data are refused. A newcomer's trap: msgspec keeps the last of two equal members without a
word, so the body passes `xks_json_check_members` as well.

Source: XKS Proxy API spec v1.0.3; requirements 30-40, 49-53, 75-81.
"""

from __future__ import annotations

import re
from typing import Literal

import msgspec

from xksfast.errors import XksError, XksErrorName


class Body(msgspec.Struct, rename="camel", frozen=True, gc=False):
    """Base of all bodies: camelCase on the wire."""


class HealthMetadata(Body):
    """requestMetadata of GetHealthStatus. Both are opaque: any string is a valid value, known or not."""

    kms_request_id: str
    kms_operation: str


class RequestMetadata(HealthMetadata):
    """requestMetadata of GetKeyMetadata. aws_principal_arn may be an ARN, a service principal or "AWS Internal"."""

    aws_principal_arn: str
    aws_source_vpc: str | None = None
    aws_source_vpce: str | None = None
    kms_key_arn: str | None = None
    kms_via_service: str | None = None


class CryptoMetadata(HealthMetadata):
    """requestMetadata of Encrypt and Decrypt, where the KMS key is always known."""

    aws_principal_arn: str
    kms_key_arn: str
    aws_source_vpc: str | None = None
    aws_source_vpce: str | None = None
    kms_via_service: str | None = None


class HealthBody(Body):
    """GetHealthStatus."""

    request_metadata: HealthMetadata


class MetadataBody(Body):
    """GetKeyMetadata."""

    request_metadata: RequestMetadata


class EncryptBody(Body):
    """Encrypt. Binary members are Base64 text here."""

    request_metadata: CryptoMetadata
    plaintext: str
    encryption_algorithm: Literal["AES_GCM"]
    additional_authenticated_data: str | None = None
    ciphertext_data_integrity_value_algorithm: Literal["SHA_256"] | None = None


class DecryptBody(Body):
    """Decrypt. Binary members are Base64 text here."""

    request_metadata: CryptoMetadata
    ciphertext: str
    encryption_algorithm: Literal["AES_GCM"]
    initialization_vector: str
    authentication_tag: str
    additional_authenticated_data: str | None = None
    ciphertext_metadata: str | None = None


decode_health = msgspec.json.Decoder(HealthBody).decode
decode_metadata = msgspec.json.Decoder(MetadataBody).decode
decode_encrypt = msgspec.json.Decoder(EncryptBody).decode
decode_decrypt = msgspec.json.Decoder(DecryptBody).decode

_MISSING = re.compile(r"Object missing required field `(\w+)`")
_AT = re.compile(r" - at `\$([^`]*)`$")


def refusal(error: Exception) -> XksError:
    """What KMS is told about a body that a decoder refused: which member and which rule, never the member's value.

    error: what decode_* raised: msgspec.ValidationError, msgspec.DecodeError, UnicodeDecodeError or RecursionError.
    """
    text = str(error)
    at = _AT.search(text)
    member = at.group(1).lstrip(".") if at else ""
    if not isinstance(error, msgspec.ValidationError):
        return XksError(XksErrorName.VALIDATION, "The body is not one well-formed JSON document in UTF-8")
    missing = _MISSING.match(text)
    if missing:
        name = f"{member}.{missing.group(1)}" if member else missing.group(1)
        return XksError(XksErrorName.VALIDATION, f"{_printable(name)} is required")
    if not member:
        return XksError(XksErrorName.VALIDATION, "The body must be a JSON object")
    return XksError(XksErrorName.VALIDATION, f"{_printable(member)} has a wrong type or a value that is not supported")


def _printable(name: str) -> str:
    """Member names come from our own structs, but a path may show a piece of the request: keep it short and ASCII."""
    return "".join(c for c in name if " " <= c <= "~")[:128]
