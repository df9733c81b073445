# SPDX-License-Identifier: Apache-2.0
from libc.stdint cimport uint64_t

from xksfast.native.api cimport xks_job
from xksfast.proxy.serving cimport ServedCredential, ServedKey, ServedStore, ServedVersion
from xksfast.wire.routes cimport Operation


cdef class Exchange:
    cdef AnswerSink sink            # the connection; None once it is gone
    cdef bytes response             # None while the answer is not there
    cdef bint close_after           # the connection ends after this answer
    cdef bint answered              # `response` was set; a later result is only released
    cdef bint granted               # `response` is what was asked for, not a refusal
    cdef Operation operation
    cdef uint64_t changes           # of the serving table when `store` was looked up
    cdef ServedStore store
    cdef ServedCredential credential # that signed the request
    cdef ServedKey key
    cdef ServedVersion version      # of the key; None: the one that made the ciphertext is not known
    cdef bint want_cdiv
    cdef bint has_aad               # the request has additionalAuthenticatedData, be it empty
    cdef bint from_sample           # the ciphertext was made by AWS's sample proxy
    cdef object request_id          # kmsRequestId as sent, for the log; None before the body was read
    cdef object principal           # awsPrincipalArn as sent; None before the body was read, and for GetHealthStatus
    cdef xks_job *job               # between submit and completion
    cdef uint64_t first_byte_ns     # CLOCK_MONOTONIC
    cdef uint64_t deadline_ns


cdef class AnswerSink:
    cdef void exchange_answered(self, Exchange exchange)
