# SPDX-License-Identifier: Apache-2.0
from libc.stdint cimport int64_t, uint64_t

from xksfast.native.api cimport xks_engine, xks_header, xks_job, xks_job_pool, xks_random_pool
from xksfast.proxy.exchange cimport Exchange
from xksfast.proxy.metrics cimport Metrics
from xksfast.proxy.serving cimport ServedStore, ServingTable


# One request as the connection read it; everything is borrowed for the call of Pipeline.serve.
cdef struct Request:
    const char *path
    size_t path_len
    const xks_header *headers
    size_t header_count
    const char *body
    size_t body_len
    size_t key_start        # the external key id within path
    size_t key_len


cdef class Pipeline:
    cdef readonly ServingTable table
    cdef object loop
    cdef object request_log         # log.RequestLog or None
    cdef bint logs_success
    cdef object sweep_timer
    cdef bint flush_scheduled
    cdef uint64_t deadline_budget_ns
    cdef xks_engine *engine         # NULL: no PKCS#11 partitions are configured
    cdef xks_job_pool *jobs
    cdef xks_random_pool *random
    cdef object keep_alive
    cdef object partition_names     # list by partition index
    cdef readonly Metrics metrics

    cdef ServedStore find_store(self, bytes prefix)
    cdef void serve(self, Exchange exchange, const Request *request, bytes body)
    cdef void refuse(self, Exchange exchange, object error)
    cdef _serve(self, Exchange exchange, const Request *request, bytes body)
    cdef _authenticate(self, Exchange exchange, const Request *request)
    cdef _find_key(self, Exchange exchange, const Request *request)
    cdef _read_metadata(self, Exchange exchange, bytes body)
    cdef _read_encrypt(self, Exchange exchange, bytes body)
    cdef _read_decrypt(self, Exchange exchange, bytes body)
    cdef xks_job *_take_job(self, Exchange exchange, str aad, str text) except NULL
    cdef _check_key_and_limits(self, Exchange exchange)
    cdef _job_error(self, Exchange exchange)
    cdef _submit(self, Exchange exchange)
    cdef void _finish(self, Exchange exchange)
    cdef void _answer(self, Exchange exchange, bytes response)
    cdef void _log(self, Exchange exchange, object error)
