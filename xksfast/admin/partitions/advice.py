# SPDX-License-Identifier: Apache-2.0
"""What a measured partition is worth, in words: each rule of a vendor or of ours with ok, warn or refuse.

What lives here: pure rules over numbers. What must not: measuring. Sources: Thales documentation for Luna (firmware, Functionality
Modules, about 30 threads per partition, 25 ms for an external key store), nShield's tuning guide (40 jobs per module), KMS's limit
of 250 ms an operation. A newcomer's trap: the firmware of CK_TOKEN_INFO has no patch level.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from xksfast.config import Partition
from xksfast.native.partition import NOT_TOLD, Measured, TokenInfo

Level = Literal["ok", "warn", "refuse"]

LUNA_PROFILES = ("luna", "luna_fips")
LUNA_FIRMWARE = (7, 4)
ADVISED_ROUND_TRIP_MS = 25.0
LONGEST_ROUND_TRIP_MS = 200.0
ADVISED_SESSIONS = {"luna": (24, 50), "luna_fips": (24, 50), "nshield": (32, 80)}
LITTLE_GAIN = 1.15


class Verdict(msgspec.Struct, frozen=True):
    """rule: a short stable name, for scripts."""

    rule: str
    level: Level
    text: str


def advise(partition: Partition, token: TokenInfo, measured: Measured) -> list[Verdict]:
    """Every rule that applies to this partition, in the order in which an operator wants to read them."""
    verdicts = [_firmware(partition, token), _functionality_modules(partition), _self_test(measured)]
    verdicts += [_round_trip(measured), _sessions_opened(partition, measured), _session_count(partition)]
    verdicts += [_throughput(measured), _message_api(measured)]
    return [verdict for verdict in verdicts if verdict is not None]


def worst(verdicts: list[Verdict]) -> Level:
    """ "refuse" over "warn" over "ok"."""
    levels = {verdict.level for verdict in verdicts}
    return "refuse" if "refuse" in levels else "warn" if "warn" in levels else "ok"


def _firmware(partition: Partition, token: TokenInfo) -> Verdict | None:
    if partition.profile not in LUNA_PROFILES:
        return None
    version = (token.firmware_major, token.firmware_minor)
    shown, wanted = f"{version[0]}.{version[1]}", f"{LUNA_FIRMWARE[0]}.{LUNA_FIRMWARE[1]}"
    if version < LUNA_FIRMWARE:
        return Verdict(
            "firmware", "refuse", f"firmware {shown}: a Luna needs {wanted} or newer for an external key store: update it"
        )
    return Verdict("firmware", "ok", f"firmware {shown} is {wanted} or newer")


def _functionality_modules(partition: Partition) -> Verdict | None:
    rule = "functionality_modules"
    if partition.functionality_modules:
        return Verdict(
            rule,
            "refuse",
            "the HSM is configured for Functionality Modules: Thales does not support it behind an external key store; use another HSM",
        )
    if partition.functionality_modules is False:
        return Verdict(rule, "ok", "declared: the HSM is not configured for Functionality Modules")
    if partition.profile in LUNA_PROFILES:
        return Verdict(
            rule,
            "warn",
            "unknown: no PKCS#11 call tells whether the HSM is configured for Functionality Modules; look with lunacm (HSM policy 50), "
            "and declare functionality_modules = true or false in the partition's table",
        )
    return None


def _self_test(measured: Measured) -> Verdict:
    return Verdict(
        "self_test",
        "ok",
        f"self-test: IVs differ (mode {measured.iv_mode}), what was encrypted decrypts, and a wrong tag is found (said by "
        f"{measured.tag_failure})",
    )


def _round_trip(measured: Measured) -> Verdict:
    median_ms, p99_ms = measured.encrypt.median_ns / 1e6, measured.encrypt.p99_ns / 1e6
    shown = f"an encryption takes {median_ms:.2f} ms (median), {p99_ms:.2f} ms (p99)"
    if median_ms > LONGEST_ROUND_TRIP_MS:
        return Verdict("round_trip", "refuse", f"{shown}: KMS gives up at 250 ms; use an HSM nearer to the proxy")
    if median_ms > ADVISED_ROUND_TRIP_MS:
        return Verdict(
            "round_trip",
            "warn",
            f"{shown}: at most {ADVISED_ROUND_TRIP_MS:.0f} ms are advised; move the proxy nearer to the HSM",
        )
    if p99_ms > LONGEST_ROUND_TRIP_MS:
        return Verdict("round_trip", "warn", f"{shown}: one in a hundred comes near the 250 ms at which KMS gives up")
    return Verdict("round_trip", "ok", f"{shown}: at most {ADVISED_ROUND_TRIP_MS:.0f} ms are advised")


def _sessions_opened(partition: Partition, measured: Measured) -> Verdict:
    opened, wanted = measured.sessions_opened, partition.sessions
    if opened < wanted:
        return Verdict(
            "sessions_opened",
            "warn",
            f"{opened} of {wanted} sessions could be opened ({measured.sessions_refusal}): set sessions to {opened} divided by the "
            "number of worker processes, or raise the token's limit",
        )
    return Verdict("sessions_opened", "ok", f"all {wanted} sessions were opened")


def _session_count(partition: Partition) -> Verdict | None:
    advised = ADVISED_SESSIONS.get(partition.profile)
    if advised is None:
        return None
    low, high = advised
    text = f"sessions = {partition.sessions} per worker process; the vendor's best is about {low} to {high} over all workers"
    return Verdict("session_count", "ok" if low <= partition.sessions <= high else "warn", text)


def _throughput(measured: Measured) -> Verdict:
    single, full = measured.single.per_second, measured.full.per_second
    shown = f"{single:,.0f} operations/s with 1 session, {full:,.0f} with {measured.full.threads}"
    failed = measured.full if measured.full.failures else measured.single
    if failed.failures:
        return Verdict("throughput", "refuse", f"{shown}; {failed.failures} sessions failed under load ({failed.failure})")
    if measured.full.threads > 1 and full < single * LITTLE_GAIN:
        return Verdict("throughput", "warn", f"{shown}: more sessions bring nothing here; fewer would do")
    return Verdict("throughput", "ok", shown)


def _message_api(measured: Measured) -> Verdict:
    if measured.message_api:
        return Verdict("message_api", "ok", "PKCS#11 3.0 message encryption is offered: one call an operation instead of two")
    return Verdict("message_api", "ok", "PKCS#11 3.0 message encryption is not offered: two calls an operation")


def free_sessions(token: TokenInfo) -> int | None:
    """Sessions that the token could still open; None: it sets no limit, or does not tell."""
    if token.max_sessions in (0, NOT_TOLD) or token.sessions == NOT_TOLD:
        return None
    return max(0, token.max_sessions - token.sessions)
