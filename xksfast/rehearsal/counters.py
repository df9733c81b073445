# SPDX-License-Identifier: Apache-2.0
"""What the shim counted, read out of the control file as plain values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from xksfast.native.loader import lib
from xksfast.rehearsal.latency import FUNCTION_CLASSES

FIRST_BIT: int = lib.XKS_FAULT_HISTOGRAM_FIRST_BIT
STEPS: int = lib.XKS_FAULT_HISTOGRAM_STEPS
BUCKETS: int = lib.XKS_FAULT_HISTOGRAM_BUCKETS


@dataclass(frozen=True)
class MisuseCounters:
    """Calls of a kind that a real HSM may punish late or never."""

    unlocked_initializations: int
    forked_calls: int
    shared_sessions: int
    small_buffers: int
    length_queries: int
    iv_repeats: int
    ivs_untracked: int
    calls_in_reset: int


@dataclass(frozen=True)
class SlotCounters:
    """One virtual slot: calls and errors by class of function, sessions, calls in flight, times of encryptions and decryptions."""

    calls: dict[str, int]
    errors: dict[str, int]
    sessions_open: int
    sessions_opened: int
    in_flight: int
    max_in_flight: int
    hung: int
    logins: int
    histogram: tuple[int, ...]

    @property
    def operations(self) -> int:
        """Encryptions and decryptions."""
        return sum(self.calls[name] for name in ("encrypt", "decrypt", "message_encrypt", "message_decrypt"))

    def quantile_ns(self, quantile: float) -> int:
        """The time below which this share of the operations was, at most 6.25 % too high; 0 if there were none."""
        total, below = sum(self.histogram), 0
        for bucket, count in enumerate(self.histogram):
            below += count
            if count > 0 and below >= quantile * total:
                return bucket_end_ns(bucket)
        return 0


def bucket_end_ns(bucket: int) -> int:
    """The upper bound of a bucket of the histogram."""
    doubling, step = divmod(bucket, STEPS)
    return int((1 << (FIRST_BIT + doubling)) * (STEPS + step + 1) // STEPS)


def read_slot(words: Any) -> SlotCounters:
    """From an xksfault_counters."""
    return SlotCounters(
        calls={name: int(words.calls[index]) for name, index in FUNCTION_CLASSES.items()},
        errors={name: int(words.errors[index]) for name, index in FUNCTION_CLASSES.items()},
        **{
            name: int(getattr(words, name))
            for name in ("sessions_open", "sessions_opened", "in_flight", "max_in_flight", "hung", "logins")
        },
        histogram=tuple(int(words.histogram[bucket]) for bucket in range(BUCKETS)),
    )


def read_misuse(words: Any) -> MisuseCounters:
    """From an xksfault_control."""
    return MisuseCounters(**{name: int(getattr(words, name)) for name in MisuseCounters.__annotations__})
