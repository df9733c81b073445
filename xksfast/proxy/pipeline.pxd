# SPDX-License-Identifier: Apache-2.0
from libc.stdint cimport int64_t, uint64_t

from xksfast.native.api cimport xks_engine, xks_header, xks_job, xks_job_pool, xks_random_pool, xks_status
from xksfast.proxy.exchange cimport Exchange
from xksfast.proxy.metrics cimport Metrics
from xksfast.proxy.serving cimport ServedKey, ServedStore, ServedVersion, ServingTable
from xksfast.proxy.usage cimport Usage


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
    cdef object strangers           # line_limit.LineLimit or None
    cdef object sweep_timer
    cdef bint flush_scheduled
    cdef uint64_t deadline_budget_ns
    cdef xks_engine *engine         # NULL: no PKCS#11 partitions are configured
    cdef xks_job_pool *jobs
    cdef xks_random_pool *random
    cdef object keep_alive
    cdef object partition_names     # list by partition index
    cdef readonly Metrics metrics
    cdef readonly Usage usage
    cdef readonly uint64_t unanswered    # jobs with the engine whose exchange has no answer

    cdef ServedStore find_store(self, bytes prefix)
    cdef void serve(self, Exchange exchange, const Request *request, bytes body)
    cdef void refuse(self, Exchange exchange, object error)
    cdef void look_again(self, Exchange exchange)
    cdef _serve(self, Exchange exchange, const Request *request, bytes body)
    cdef _authenticate(self, Exchange exchange, const Request *request)
    cdef _find_key(self, Exchange exchange, const Request *request)
    cdef ServedVersion _pick_version(self, Exchange exchange)
    cdef _read_metadata(self, Exchange exchange, bytes body)
    cdef _read_encrypt(self, Exchange exchange, bytes body)
    cdef _read_decrypt(self, Exchange exchange, bytes body)
    cdef xks_job *_take_job(self, Exchange exchange, str aad, str text) except NULL
    cdef _check_principal(self, Exchange exchange, ServedStore store)
    cdef _check_key(self, Exchange exchange, ServedKey key)
    cdef _check_limits(self, Exchange exchange)
    cdef _check_again(self, Exchange exchange)
    cdef _submit(self, Exchange exchange)
    cdef xks_status _compose_aad(self, Exchange exchange) except *
    cdef void _count_encryptions(self, Exchange exchange)
    cdef void _finish(self, Exchange exchange)
    cdef void _answer(self, Exchange exchange, bytes response)
    cdef void _log(self, Exchange exchange, object error)
