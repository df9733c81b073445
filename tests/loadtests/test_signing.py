# SPDX-License-Identifier: Apache-2.0
"""The load generator's signature is botocore's, whose code it shares nothing with."""

from __future__ import annotations

import calendar
import time

import pytest

from bench.requests import Target
from loadtests.signing import Signer

TARGET = Target("http://127.0.0.1:8080", "/payments", "eu-central-1", "A" * 20, "s3cret/" * 6)
PATH = "/payments/kms/xks/v1/keys/orders-v1/encrypt"


def signed_by_botocore(target: Target, body: bytes) -> tuple[dict[str, str], int]:
    """(headers by lower-case name, the moment in them)."""
    headers = {name.lower(): value for name, value in target.sign(PATH, body).items()}
    return headers, calendar.timegm(time.strptime(headers["x-amz-date"], "%Y%m%dT%H%M%SZ"))


@pytest.mark.parametrize("body", [b"", b"{}", b"x" * 10_000])
def test_the_signature_is_botocores(body: bytes) -> None:
    theirs, moment = signed_by_botocore(TARGET, body)
    ours = {name.lower(): value for name, value in Signer(TARGET, lambda: moment).sign(PATH, body).items()}
    assert ours == {name: theirs[name] for name in ours}
    assert set(ours) == {"host", "content-type", "x-amz-date", "authorization"}


def test_the_signature_depends_on_body_path_secret_and_second() -> None:
    def signature(target: Target = TARGET, path: str = PATH, body: bytes = b"{}", moment: float = 1e9) -> str:
        return Signer(target, lambda: moment).sign(path, body)["Authorization"]

    other = Target(TARGET.url, TARGET.prefix, TARGET.region, TARGET.access_key_id, "other")
    assert len({signature(), signature(other), signature(path="/x"), signature(body=b"[]"), signature(moment=1e9 + 1)}) == 5
    assert signature() == signature(moment=1e9 + 0.9)


def test_the_day_and_the_second_are_followed() -> None:
    now = [calendar.timegm((2026, 2, 28, 23, 59, 59))]
    signer = Signer(TARGET, lambda: now[0])
    first = signer.sign(PATH, b"{}")
    now[0] += 1
    second = signer.sign(PATH, b"{}")
    assert (first["X-Amz-Date"], second["X-Amz-Date"]) == ("20260228T235959Z", "20260301T000000Z")
    assert "/20260228/" in first["Authorization"]
    assert "/20260301/" in second["Authorization"]
    assert second == Signer(TARGET, lambda: now[0]).sign(PATH, b"{}")
