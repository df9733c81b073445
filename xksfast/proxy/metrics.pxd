# SPDX-License-Identifier: Apache-2.0
from libc.stdint cimport uint64_t

from xksfast.wire.routes cimport Operation

cdef enum:
    OPERATIONS = 5      # of wire.routes, NO_OPERATION included
    RESULTS = 13        # "ok" and the errors of the XKS API
    BUCKETS = 80        # four per doubling from a microsecond on; the last has all that is longer


cdef class Metrics:
    cdef uint64_t results[OPERATIONS][RESULTS]
    cdef uint64_t duration_counts[OPERATIONS][BUCKETS]
    cdef uint64_t duration_sum_ns[OPERATIONS]

    cdef void answered(self, Operation operation, uint64_t duration_ns) noexcept
    cdef void refused(self, Operation operation, object error_name, uint64_t duration_ns)
