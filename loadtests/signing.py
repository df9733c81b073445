# SPDX-License-Identifier: Apache-2.0
"""SigV4 at the price of a load generator: the day's signing key is derived once, the second's date is written once.

botocore (bench.requests.Target.sign) is the independent signer that this one is tested against; it costs some 100 us a request.
"""

from __future__ import annotations

import hashlib
import hmac
import time
from collections.abc import Callable

from bench.requests import SERVICE, Target

SIGNED_HEADERS = "content-type;host;x-amz-date"


class Signer:
    """Signs POST requests of one credential. clock: seconds since the epoch."""

    def __init__(self, target: Target, clock: Callable[[], float] = time.time) -> None:
        self._host = target.url.split("://")[1]
        self._access_key_id = target.access_key_id
        self._secret = ("AWS4" + target.secret_access_key).encode()
        self._region = target.region
        self._clock = clock
        self._second = -1
        self._date = ""
        self._day = ""

    def sign(self, path: str, body: bytes) -> dict[str, str]:
        """Every header of the request. path: unreserved characters and slashes only, as key stores and keys have."""
        second = int(self._clock())
        if second != self._second:
            self._begin_second(second)
        canonical = (
            f"POST\n{path}\n\ncontent-type:application/json\nhost:{self._host}\nx-amz-date:{self._date}\n\n"
            f"{SIGNED_HEADERS}\n{hashlib.sha256(body).hexdigest()}"
        )
        to_sign = self._to_sign + hashlib.sha256(canonical.encode("ascii")).hexdigest()
        signature = hmac.digest(self._key, to_sign.encode("ascii"), "sha256").hex()
        return {
            "Host": self._host,
            "Content-Type": "application/json",
            "X-Amz-Date": self._date,
            "Authorization": self._authorization + signature,
        }

    def _begin_second(self, second: int) -> None:
        date = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(second))
        if date[:8] != self._day:
            self._begin_day(date[:8])
        self._second, self._date = second, date
        self._to_sign = f"AWS4-HMAC-SHA256\n{date}\n{self._scope}\n"

    def _begin_day(self, day: str) -> None:
        self._day = day
        self._scope = f"{day}/{self._region}/{SERVICE}/aws4_request"
        key = self._secret
        for part in (day, self._region, SERVICE, "aws4_request"):
            key = hmac.digest(key, part.encode(), "sha256")
        self._key = key
        self._authorization = (
            f"AWS4-HMAC-SHA256 Credential={self._access_key_id}/{self._scope}, SignedHeaders={SIGNED_HEADERS}, Signature="
        )
