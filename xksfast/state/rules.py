# SPDX-License-Identifier: Apache-2.0
"""Every rule about names, one function each: what is wrong with a value, in words, or None.

Source: XKS Proxy API specification v1.0.3 (URI paths, external key ids, credentials) and AWS KMS CreateCustomKeyStore. The
declarative file, the REST API and the import all ask here, so that a name that one of them takes is good for the others.
"""

from __future__ import annotations

import re

from xksfast.wire import limits

MIN_CREDENTIALS, MAX_CREDENTIALS = 2, 20
PREFIX_PATTERN = r"(/[A-Za-z0-9_-]+)*"
REGION_PATTERN = r"[a-z]{2,8}(-[a-z0-9]+){1,4}"
EXTERNAL_KEY_ID_PATTERN = r"[A-Za-z0-9._-]{1,128}"
ACCESS_KEY_ID_PATTERN = r"[A-Z2-7]{20,30}"
NAME_PATTERN = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
LOCAL_LABEL_PATTERN = r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}"
ACCOUNT_PATTERN = r"[0-9]{12}"
SERVICE_NAME_PATTERN = r"com\.amazonaws\.vpce\.[a-z0-9-]+\.vpce-svc-[0-9a-z]+"
ENDPOINT_PATTERN = r"https://[a-z0-9][a-z0-9.-]*[a-z0-9]"

MAX_REGION_CHARS = 32
MAX_LABEL_BYTES = 255
MAX_TAGS = 50
MAX_ALLOWED_PRINCIPALS = 100
MAX_PRINCIPAL_PATTERN_CHARS = 256
LEAST_STALE_AFTER_S = 10

API_PATH = "/kms/xks/v1"


def name_problem(name: str) -> str | None:
    """Of a key store, operator or AWS connection."""
    if re.fullmatch(NAME_PATTERN, name):
        return None
    return "a name has 1 to 64 characters of A-Z a-z 0-9 . _ - and begins with a letter or digit"


def prefix_problem(uri_path_prefix: str) -> str | None:
    """What stands before /kms/xks/v1."""
    if not re.fullmatch(PREFIX_PATTERN, uri_path_prefix):
        return "must be empty or like /payments: parts of A-Z a-z 0-9 _ -, no slash at the end"
    if len(uri_path_prefix) + len(API_PATH) > limits.MAX_URI_PATH_CHARS:
        return f"with {API_PATH} it must not exceed {limits.MAX_URI_PATH_CHARS} characters"
    return None


def region_problem(region: str) -> str | None:
    """An AWS region."""
    if len(region) <= MAX_REGION_CHARS and re.fullmatch(REGION_PATTERN, region):
        return None
    return f"{region!r} is not an AWS region such as us-east-1"


def external_key_id_problem(external_key_id: str, uri_path_prefix: str) -> str | None:
    """What KMS calls the XKS key id; it stands in the URI path behind the store's prefix."""
    if not re.fullmatch(EXTERNAL_KEY_ID_PATTERN, external_key_id):
        return "an external key id has 1 to 128 characters of A-Z a-z 0-9 - . _"
    if external_key_id in (".", ".."):  # RFC 3986 removes them from paths: a request for such a key is one for something else
        return "an external key id is neither . nor .., which would vanish from the URI path"
    if len(f"{uri_path_prefix}{API_PATH}/keys/{external_key_id}/metadata") > limits.MAX_URI_CHARS:
        return f"the URI path would exceed {limits.MAX_URI_CHARS} characters"
    return None


def access_key_id_problem(access_key_id: str) -> str | None:
    """Of a SigV4 credential."""
    return None if re.fullmatch(ACCESS_KEY_ID_PATTERN, access_key_id) else "must have 20 to 30 characters of A-Z 2-7"


def label_problem(label: str, *, local: bool) -> str | None:
    """Of a source key: CKA_LABEL in a token, or the name of a `local` key."""
    if local and not re.fullmatch(LOCAL_LABEL_PATTERN, label):
        return "the name of a local key has 1 to 128 characters of A-Z a-z 0-9 . _ - and begins with a letter or digit"
    if not 1 <= len(label.encode()) <= MAX_LABEL_BYTES:
        return f"must have 1 to {MAX_LABEL_BYTES} bytes"
    return None


def usage_problem(usage: tuple[str, ...]) -> str | None:
    """Of a HYOK key."""
    return "names a usage twice" if len(set(usage)) != len(usage) else None


def endpoint_problem(endpoint: str) -> str | None:
    """XksProxyUriEndpoint: https, a host name, port 443 and nothing behind it."""
    if not endpoint or (len(endpoint) <= 128 and re.fullmatch(ENDPOINT_PATTERN, endpoint)):
        return None
    return "must be https:// and a host name in lower case, without port and path: KMS always calls port 443"


def service_name_problem(name: str, connectivity: str) -> str | None:
    """XksProxyVpcEndpointServiceName, which goes with VPC_ENDPOINT_SERVICE."""
    if connectivity != "VPC_ENDPOINT_SERVICE":
        return "goes with connectivity VPC_ENDPOINT_SERVICE only" if name else None
    if re.fullmatch(SERVICE_NAME_PATTERN, name):
        return None
    return "connectivity VPC_ENDPOINT_SERVICE needs one like com.amazonaws.vpce.us-east-1.vpce-svc-0123456789abcdef0"


def principals_problem(patterns: tuple[str, ...]) -> str | None:
    """allowed_principals: patterns in which "*" stands for any run of characters. Each request may be compared with all of them."""
    if len(patterns) > MAX_ALLOWED_PRINCIPALS:
        return (
            f"a key store has at most {MAX_ALLOWED_PRINCIPALS} patterns, not {len(patterns)}: let one with * stand for several"
        )
    for number, pattern in enumerate(patterns, start=1):
        if not 1 <= len(pattern) <= MAX_PRINCIPAL_PATTERN_CHARS:
            return f"a pattern has 1 to {MAX_PRINCIPAL_PATTERN_CHARS} characters, and number {number} has {len(pattern)}"
    return None


def tags_problem(tags: dict[str, str]) -> str | None:
    """At most 50; AWS's rules for keys and values."""
    if len(tags) > MAX_TAGS:
        return f"there may be {MAX_TAGS} tags at most"
    for key, value in tags.items():
        if not 1 <= len(key) <= 128 or len(value) > 256:
            return f"{key!r}: a tag's key has 1 to 128 characters, its value at most 256"
        if key.lower().startswith("aws:"):
            return f"{key!r}: AWS keeps the prefix aws: for itself"
    return None
