# SPDX-License-Identifier: Apache-2.0
"""SigV4 verification against botocore's signer, an implementation that shares no code with ours."""

from __future__ import annotations

import calendar
import datetime
from typing import Any
from unittest import mock

import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from hypothesis import given
from hypothesis import strategies as st

from xksfast.errors import NativeError
from xksfast.native.crypto import Keyring, Secret, SecretPages, derive_signing_key

NOW = datetime.datetime(2026, 3, 4, 5, 6, 7)
UNIX_NOW = calendar.timegm(NOW.timetuple())
REGION = "us-east-1"
IDS = ("AKIDAAAAAAAAAAAAAAAA", "AKIDBBBBBBBBBBBBBBBB")
SECRETS = ("first/secret+0123456789", "second/secret+0123456789")
PATH = "/prefix/kms/xks/v1/keys/some.key-1_2/encrypt"
Headers = list[tuple[bytes, bytes]]


def keyring(*, region: str = REGION, days: tuple[str, ...] = ("20260303", "20260304", "20260305")) -> Keyring:
    ring, pages = Keyring(region), SecretPages.new(len(IDS) * len(days))
    slot = 0
    for access_key_id, secret in zip(IDS, SECRETS, strict=True):
        for day in days:
            derive_signing_key(Secret.from_bytes(secret.encode()), day, region, pages, slot)
            ring.put(access_key_id, day, pages, slot)
            slot += 1
    return ring


RING = keyring()


def sign(
    body: bytes = b"{}",
    headers: dict[str, str] | None = None,
    *,
    who: int = 0,
    path: str = PATH,
    at: datetime.datetime = NOW,
    region: str = REGION,
    service: str = "kms-xks-proxy",
    secret: str | None = None,
    access_key_id: str | None = None,
) -> Headers:
    request = AWSRequest(method="POST", url=f"http://proxy.example{path}", data=body, headers=headers or {})
    with mock.patch("botocore.auth.get_current_datetime", return_value=at):
        credentials = Credentials(access_key_id or IDS[who], secret or SECRETS[who])
        SigV4Auth(credentials, service, region).add_auth(request)
    return [(b"Host", b"proxy.example"), *((n.encode(), v.encode()) for n, v in request.headers.items())]


def verify(headers: Headers, body: bytes = b"{}", path: str = PATH, now: int = UNIX_NOW, ring: Keyring = RING) -> Any:
    return ring.verify(b"POST", path.encode(), headers, body, now)


def test_each_of_two_credentials_is_accepted_and_told_apart() -> None:
    assert verify(sign(who=0)) == (0, "accepted")
    assert verify(sign(who=1)) == (1, "accepted")


NAMES = st.text("abcdefghijklmnopqrstuvwxyz-", min_size=1, max_size=12).map(lambda name: f"x-{name}")
VALUES = st.text("abc XYZ019,;=/+", max_size=40)


@given(body=st.binary(max_size=2000), headers=st.dictionaries(NAMES, VALUES, max_size=12), who=st.integers(0, 1))
def test_whatever_botocore_signs_is_accepted_and_a_changed_bit_is_not(body: bytes, headers: dict[str, str], who: int) -> None:
    signed = sign(body, headers, who=who)
    assert verify(signed, body) == (who, "accepted")
    assert verify(signed, body + b"x") == (None, "wrong_signature")


@given(st.text("abcdefghijklmnopqrstuvwxyzABCDEFGHIJ0123456789-._", min_size=1, max_size=100))
def test_every_path_of_the_api_is_signed_as_it_stands(key: str) -> None:
    path = f"/p/kms/xks/v1/keys/{key}/encrypt"
    if "/./" in path or "/../" in path:
        return  # botocore normalises those away; they are no external key ids that KMS would send
    assert verify(sign(path=path), path=path) == (0, "accepted")


def changed(headers: Headers, name: bytes, old: bytes, new: bytes) -> Headers:
    assert any(n.lower() == name.lower() and old in v for n, v in headers)
    return [(n, v.replace(old, new) if n.lower() == name.lower() else v) for n, v in headers]


def without(headers: Headers, name: bytes) -> Headers:
    return [(n, v) for n, v in headers if n.lower() != name.lower()]


A = b"Authorization"


@pytest.mark.parametrize(
    ("reason", "make"),
    [
        ("no_authorization", lambda h: without(h, A)),
        ("wrong_algorithm", lambda h: changed(h, A, b"AWS4-HMAC-SHA256", b"AWS4-HMAC-SHA512")),
        ("wrong_algorithm", lambda h: changed(h, A, b"AWS4-HMAC-SHA256 ", b"AWS4-HMAC-SHA256, ")),
        ("malformed_authorization", lambda h: changed(h, A, b"Signature=", b"Signatur=")),
        ("malformed_authorization", lambda h: changed(h, A, b"Signature=", b"Signature=a")),
        ("malformed_authorization", lambda h: changed(h, A, b"SignedHeaders=host;", b"SignedHeaders=Host;")),
        ("malformed_authorization", lambda h: changed(h, A, b"SignedHeaders=host;x-amz-date", b"SignedHeaders=x-amz-date;host")),
        ("malformed_authorization", lambda h: changed(h, A, b"SignedHeaders=host;", b"SignedHeaders=host;host;")),
        ("malformed_authorization", lambda h: changed(h, A, b"x-amz-date,", b"x-amz-date;,")),
        ("malformed_authorization", lambda h: changed(h, A, b"/aws4_request", b"")),
        ("header_not_signed", lambda h: changed(h, A, b"SignedHeaders=host;", b"SignedHeaders=")),
        ("header_not_signed", lambda h: changed(h, A, b"SignedHeaders=host;x-amz-date", b"SignedHeaders=host")),
        ("signed_header_absent", lambda h: changed(h, A, b"host;x-amz-date", b"host;x-absent;x-amz-date")),
        ("signed_header_absent", lambda h: without(h, b"Host")),
        ("no_date", lambda h: without(h, b"X-Amz-Date")),
        ("malformed_date", lambda h: changed(h, b"X-Amz-Date", b"Z", b"")),
        ("malformed_date", lambda h: changed(h, b"X-Amz-Date", b"20260304T", b"20261304T")),
        ("malformed_date", lambda h: changed(h, b"X-Amz-Date", b"20260304T", b"20260230T")),
        ("scope_date", lambda h: changed(h, A, b"/20260304/", b"/20260303/")),
        ("scope_region", lambda h: changed(h, A, b"/us-east-1/", b"/us-east-2/")),
        ("scope_service", lambda h: changed(h, A, b"/kms-xks-proxy/", b"/kms/")),
        ("scope_terminator", lambda h: changed(h, A, b"/aws4_request", b"/aws5_request")),
        ("unknown_access_key_id", lambda h: changed(h, A, IDS[0].encode(), b"AKIDCCCCCCCCCCCCCCCC")),
        ("wrong_signature", lambda h: changed(h, A, IDS[0].encode(), IDS[1].encode())),
        ("wrong_signature", lambda h: changed(h, b"Host", b"proxy", b"other")),
        ("duplicate_header", lambda h: [*h, next(x for x in h if x[0] == b"Authorization")]),
        ("duplicate_header", lambda h: [*h, (b"x-amz-date", b"20260304T050607Z")]),
    ],
)  # fmt: skip
def test_each_fault_is_refused_with_its_reason(reason: str, make: Any) -> None:
    assert verify(make(sign())) == (None, reason)


def test_the_signature_must_be_lower_case_hexadecimal() -> None:
    headers = sign()
    (authorization,) = (v for n, v in headers if n == A)
    signature = authorization.rpartition(b"=")[2]
    assert signature != signature.upper()
    assert verify(changed(headers, A, signature, signature.upper())) == (None, "wrong_signature")


@pytest.mark.parametrize(
    ("skew_s", "reason"), [(-300, "accepted"), (300, "accepted"), (-301, "clock_skew"), (301, "clock_skew")]
)
def test_a_timestamp_may_differ_by_exactly_five_minutes(skew_s: int, reason: str) -> None:
    assert verify(sign(), now=UNIX_NOW + skew_s)[1] == reason


def test_a_request_signed_before_midnight_is_good_after_it() -> None:
    before = datetime.datetime(2026, 3, 4, 23, 59, 59)
    assert verify(sign(at=before), now=calendar.timegm(before.timetuple()) + 5) == (0, "accepted")


def test_a_day_without_a_signing_key_is_told_apart_in_the_log() -> None:
    later = NOW + datetime.timedelta(days=5)
    assert verify(sign(at=later), now=calendar.timegm(later.timetuple())) == (None, "no_key_for_day")


def test_spaces_in_values_are_folded_as_sigv4_says() -> None:
    headers = sign(headers={"x-spaces": "  a   b  c "})
    assert verify(headers) == (0, "accepted")


def test_headers_of_one_name_are_joined_in_order() -> None:
    headers = sign(headers={"x-many": "one,two"})
    split = [*without(headers, b"x-many"), (b"X-Many", b"one"), (b"x-many", b"two")]
    assert verify(split) == (0, "accepted")
    assert verify([*without(headers, b"x-many"), (b"x-many", b"two"), (b"x-many", b"one")]) == (None, "wrong_signature")


def test_33_headers_are_too_many() -> None:
    assert verify(sign() + [(b"x", b"")] * 33) == (None, "too_many_headers")


@pytest.mark.parametrize("region", ["", "US-EAST-1", "us east", "u" * 33])
def test_an_ill_formed_region_is_refused(region: str) -> None:
    with pytest.raises(NativeError):
        Keyring(region)


def test_a_keyring_takes_at_most_twenty_credentials() -> None:
    ring, pages = Keyring(REGION), SecretPages.new(1)
    for i in range(20):
        ring.put("AKID" + chr(65 + i) * 16, "20260304", pages, 0)
    with pytest.raises(NativeError, match="too long"):
        ring.put("AKID" + "Z" * 16, "20260304", pages, 0)


@given(st.data())
def test_a_keyring_knows_at_each_moment_whom_it_should(data: st.DataObject) -> None:
    """Credentials and days put in, replaced and removed in any order, against a plain dictionary."""
    days = ("20260303", "20260304", "20260305")
    ring, pages = Keyring(REGION), SecretPages.new(len(SECRETS) * len(days))
    for slot, (secret, day) in enumerate((secret, day) for secret in SECRETS for day in days):
        derive_signing_key(Secret.from_bytes(secret.encode()), day, REGION, pages, slot)
    known: dict[int, dict[str, int]] = {}  # who -> day -> whose secret signs
    for _ in range(data.draw(st.integers(1, 6))):
        who = data.draw(st.integers(0, 1))
        if data.draw(st.booleans()):
            signs = data.draw(st.dictionaries(st.sampled_from(days), st.integers(0, 1), max_size=3))
            ring.replace(IDS[who], {day: whose * len(days) + days.index(day) for day, whose in signs.items()}, pages)
            if signs or who in known:
                known[who] = signs
        elif who in known:
            assert ring.remove(IDS[who]) == list(known).index(who)
            del known[who]
        else:
            with pytest.raises(NativeError, match="not found"):
                ring.remove(IDS[who])
    for who in (0, 1):
        for whose in (0, 1):
            headers = sign(secret=SECRETS[whose], access_key_id=IDS[who])
            accepted = who in known and known[who].get("20260304") == whose
            assert verify(headers, ring=ring)[0] == (list(known).index(who) if accepted else None)


def test_a_credential_whose_signing_keys_are_not_there_stays_unknown() -> None:
    ring, pages = Keyring(REGION), SecretPages.new(1)
    for signing_keys, given_pages in (({"20260304": 0}, None), ({"20260304": 0, "20260305": 1}, pages)):
        with pytest.raises(NativeError, match=IDS[0]):
            ring.replace(IDS[0], signing_keys, given_pages)
        assert verify(sign(), ring=ring) == (None, "unknown_access_key_id")
