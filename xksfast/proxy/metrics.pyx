# SPDX-License-Identifier: Apache-2.0
"""Counters of one worker's requests: how many by operation and result, and how long from first byte to answer.

Plain integers, counted on the event loop and read on it, so there are no locks and no atomics. A newcomer's trap: `answered` is on
the path of every request; it is a bit scan and three additions (`count_many` is there to measure it).
"""

from libc.stdint cimport uint64_t, uintptr_t
from libc.string cimport memset

from xksfast.native.api cimport xks_api
from xksfast.wire.routes cimport ENCRYPT, Operation

from xksfast.errors import XksErrorName
from xksfast.native.loader import api_address
from xksfast.wire.routes import OPERATION_NAMES

cdef const xks_api *API = <const xks_api *><uintptr_t>api_address

cdef extern from *:
    """
    static inline unsigned xks_top_bit(unsigned long long value) { return 63u - (unsigned)__builtin_clzll(value); }
    """
    unsigned xks_top_bit(unsigned long long value) noexcept nogil

OPERATION_LABELS = tuple(name or "none" for name in OPERATION_NAMES)
RESULT_LABELS = ("ok", *(name.error_name for name in XksErrorName))
BOUNDS_NS = tuple((5 + (i & 3)) << (8 + (i >> 2)) for i in range(BUCKETS - 1))

cdef dict RESULT_INDEX = {label: index for index, label in enumerate(RESULT_LABELS)}

if len(OPERATION_LABELS) != OPERATIONS or len(RESULT_LABELS) != RESULTS:
    raise ImportError("metrics.pxd counts other operations or errors than the API has")


cdef inline unsigned _bucket(uint64_t ns) noexcept nogil:
    """The index of the first bound that is at least ns: the top bit says which doubling, the two bits below it which quarter."""
    cdef unsigned top, bucket
    if ns <= 1024:
        return 0
    ns -= 1
    top = xks_top_bit(ns)
    bucket = ((top - 10) << 2) + <unsigned>((ns >> (top - 2)) & 3)
    return bucket if bucket < BUCKETS else BUCKETS - 1


cdef class Metrics:
    """What one worker counts. Read it with `requests` and `durations`."""

    def __cinit__(self):
        memset(self.results, 0, sizeof(self.results))
        memset(self.duration_counts, 0, sizeof(self.duration_counts))
        memset(self.duration_sum_ns, 0, sizeof(self.duration_sum_ns))

    cdef void answered(self, Operation operation, uint64_t duration_ns) noexcept:
        """A request had the answer it asked for."""
        self.results[<int>operation][0] += 1
        self.duration_counts[<int>operation][_bucket(duration_ns)] += 1
        self.duration_sum_ns[<int>operation] += duration_ns

    cdef void refused(self, Operation operation, object error_name, uint64_t duration_ns):
        """A request was answered with an error of the XKS API."""
        cdef int index = RESULT_INDEX[error_name]
        self.results[<int>operation][index] += 1
        self.duration_counts[<int>operation][_bucket(duration_ns)] += 1
        self.duration_sum_ns[<int>operation] += duration_ns

    def requests(self):
        """[(operation, result, count)] of all that happened, and "ok" of every operation."""
        return [
            (OPERATION_LABELS[operation], RESULT_LABELS[result], self.results[operation][result])
            for operation in range(OPERATIONS)
            for result in range(RESULTS)
            if self.results[operation][result] or (operation and not result)
        ]

    def durations(self):
        """[(operation, counts by bucket, sum in ns)] of the operations that were asked for."""
        return [
            (
                OPERATION_LABELS[operation],
                [self.duration_counts[operation][bucket] for bucket in range(BUCKETS)],
                self.duration_sum_ns[operation],
            )
            for operation in range(OPERATIONS)
            if self.duration_sum_ns[operation]
        ]

    # --- for tests and benchmarks

    def count_one(self, int operation, str result not None, uint64_t duration_ns):
        """As the pipeline counts: `operation` by its number in wire.routes."""
        if not 0 <= operation < OPERATIONS:
            raise ValueError("no such operation")
        if result == "ok":
            self.answered(<Operation>operation, duration_ns)
        else:
            self.refused(<Operation>operation, result, duration_ns)

    def count_many(self, int times, uint64_t first_byte_ns):
        """Count `times` successes as the pipeline does, the clock included; the duration varies as real ones do."""
        cdef int i
        for i in range(times):
            self.answered(ENCRYPT, API.monotonic_ns() - first_byte_ns + <uint64_t>((i & 0xFF) << 12))
