# SPDX-License-Identifier: Apache-2.0
from libc.stdint cimport uint64_t

from xksfast.native.api cimport xks_job
from xksfast.proxy.serving cimport ServedKey, ServedStore
from xksfast.wire.routes cimport Operation


cdef class Exchange:
    cdef AnswerSink sink            # the connection; None once it is gone
    cdef bytes response             # None while the answer is not there
    cdef bint close_after           # the connection ends after this answer
    cdef bint answered              # `response` was set; a later result is only released
    cdef Operation operation
    cdef ServedStore store
    cdef ServedKey key
    cdef object request_id          # kmsRequestId as sent, for the log; None before the body was read
    cdef object principal           # awsPrincipalArn as sent; None before the body was read, and for GetHealthStatus
    cdef xks_job *job               # between submit and completion
    cdef uint64_t first_byte_ns     # CLOCK_MONOTONIC
    cdef uint64_t deadline_ns


cdef class AnswerSink:
    cdef void exchange_answered(self, Exchange exchange)
