# SPDX-License-Identifier: Apache-2.0
"""Distributions of how long a call takes, and the classes of calls that they are set for.

Pure; the words behind them stand in csrc/shim/xksfault_control.h.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from xksfast.errors import OperatorError
from xksfast.native.loader import lib

NS_PER_MS = 1_000_000
PPM = 1_000_000

FUNCTION_CLASSES: dict[str, int] = {
    name: getattr(lib, f"XKS_FAULT_{name.upper()}")
    for name in (
        "open_session",
        "login",
        "find",
        "get_attribute",
        "encrypt_init",
        "encrypt",
        "decrypt_init",
        "decrypt",
        "message_encrypt",
        "message_decrypt",
        "generate",
        "other",
    )
}

# One round trip for an operation: what a latency is set for if nothing else is said.
OPERATIONS = ("encrypt", "decrypt", "message_encrypt", "message_decrypt")


@dataclass(frozen=True)
class Latency:
    """The four words of xksfault_latency. Made by the functions below."""

    kind: int
    a_ns: int = 0
    b: int = 0
    c_ns: int = 0


def no_latency() -> Latency:
    """As fast as the real module."""
    return Latency(lib.XKS_FAULT_NONE)


def fixed_ms(ms: float) -> Latency:
    """Always the same."""
    return Latency(lib.XKS_FAULT_FIXED, round(ms * NS_PER_MS))


def exponential_ms(mean: float) -> Latency:
    """Exponential: a queue with memoryless service."""
    return Latency(lib.XKS_FAULT_EXP, round(mean * NS_PER_MS))


def lognormal_ms(median: float, *, sigma: float = 0.35) -> Latency:
    """Log-normal, the usual shape of a network HSM; sigma of the logarithm."""
    return Latency(lib.XKS_FAULT_LOGNORMAL, round(median * NS_PER_MS), round(sigma * PPM))


def bimodal_ms(usual: float, slow: float, *, slow_ppm: int) -> Latency:
    """`usual`, but `slow` in slow_ppm of 1,000,000 calls."""
    return Latency(lib.XKS_FAULT_BIMODAL, round(usual * NS_PER_MS), slow_ppm, round(slow * NS_PER_MS))


def parse_latency(text: str) -> Latency:
    """From what people type, in milliseconds: none, fixed:1, exp:1, lognormal:1:0.35, bimodal:1:50:1000 (usual:slow:ppm)."""
    kind, *given = text.split(":")
    try:
        numbers = [float(number) for number in given]
        match kind, numbers:
            case "none", []:
                return no_latency()
            case "fixed", [ms] if ms >= 0:
                return fixed_ms(ms)
            case "exp", [mean] if mean >= 0:
                return exponential_ms(mean)
            case "lognormal", [median] if median >= 0:
                return lognormal_ms(median)
            case "lognormal", [median, sigma] if median >= 0 and sigma >= 0:
                return lognormal_ms(median, sigma=sigma)
            case "bimodal", [usual, slow, ppm] if usual >= 0 and slow >= 0 and 0 <= ppm <= PPM:
                return bimodal_ms(usual, slow, slow_ppm=round(ppm))
    except (ValueError, OverflowError):
        pass
    raise OperatorError(
        f"{text}: no latency; give none, fixed:MS, exp:MS, lognormal:MS[:SIGMA] or bimodal:MS:SLOW_MS:PPM, for example lognormal:1:0.35"
    )


def describe_latency(words: Any) -> str:
    """An xksfault_latency as parse_latency takes it; "" for none."""
    a_ms, c_ms = words.a_ns / NS_PER_MS, words.c_ns / NS_PER_MS
    match int(words.kind):
        case lib.XKS_FAULT_FIXED:
            return f"fixed:{a_ms:g}"
        case lib.XKS_FAULT_EXP:
            return f"exp:{a_ms:g}"
        case lib.XKS_FAULT_LOGNORMAL:
            return f"lognormal:{a_ms:g}:{words.b / PPM:g}"
        case lib.XKS_FAULT_BIMODAL:
            return f"bimodal:{a_ms:g}:{c_ms:g}:{words.b}"
    return ""
