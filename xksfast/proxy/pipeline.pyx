# SPDX-License-Identifier: Apache-2.0
"""One request after its route is known: signature, body, key, limits, crypto, answer. In exactly this order (practice.md rule 4).

Everything runs on the event loop without awaiting; a job of a PKCS#11 key leaves for the engine and comes back through one
eventfd for many. A refusal is an XksError raised where it is found and rendered in one place. A newcomer's trap: `job.owner` holds
a reference to its Exchange from submit until a job with that owner is drained, even when the client is gone; the drained job may be
another than the one submitted (a hedge that won, a stand-in for one that hangs in a token).

What a request may do is checked when it comes in, and once more before its answer leaves if anything was forbidden meanwhile: against
the table as it is then, by names, since the objects of then may be served no more.
"""

from cpython.bytes cimport PyBytes_AS_STRING
from cpython.ref cimport Py_DECREF, Py_INCREF, PyObject
from cpython.unicode cimport PyUnicode_AsUTF8AndSize
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t, uintptr_t
from libc.string cimport memcpy

from xksfast.native.api cimport (
    XKS_BAD_INPUT, XKS_CONFIG, XKS_DECRYPT, XKS_ENCRYPT, XKS_METADATA_BYTES, XKS_NOT_FOUND, XKS_OK, XKS_SAMPLE_DIGEST_BYTES,
    XKS_TICK_NS, xks_api, xks_job, xks_sigv4_reason, xks_sigv4_request, xks_span, xks_status,
)
from xksfast.proxy.exchange cimport Exchange
from xksfast.proxy.metrics cimport Metrics
from xksfast.proxy.refusals cimport job_refusal, submit_refusal
from xksfast.proxy.request_line cimport request_line
from xksfast.proxy.serving cimport ServedCredential, ServedKey, ServedStore, ServedVersion, ServingTable
from xksfast.proxy.usage cimport Usage
from xksfast.wire.responses cimport decrypt_response, encrypt_response, error_response, json_response
from xksfast.wire.routes cimport DECRYPT, ENCRYPT, GET_HEALTH_STATUS, GET_KEY_METADATA

import msgspec
import orjson

from xksfast.errors import XksError, XksErrorName
from xksfast.native.crypto import SIGV4_REASONS
from xksfast.native.loader import api_address
from xksfast.wire import bodies, limits

cdef const xks_api *API = <const xks_api *><uintptr_t>api_address

cdef size_t MAX_PLAINTEXT = limits.MAX_PLAINTEXT_BYTES
cdef size_t MAX_AAD = limits.MAX_AAD_BYTES
cdef size_t MAX_METADATA = limits.MAX_METADATA_BYTES
cdef size_t TAG_BYTES = limits.TAG_BYTES
cdef Py_ssize_t MAX_PRINCIPAL = limits.MAX_PRINCIPAL_CHARS
cdef uint32_t NO_PARTITION = 0xFFFFFFFF
cdef double SWEEP_INTERVAL_S = XKS_TICK_NS / 1e9

cdef object decode_encrypt = bodies.decode_encrypt
cdef object decode_decrypt = bodies.decode_decrypt
cdef object decode_metadata = bodies.decode_metadata
cdef object decode_health = bodies.decode_health

NOT_SIGNED = "The request is not signed with a valid credential of this key store"
BODY_ERRORS = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


cdef inline xks_span _span(const char *data, size_t length) noexcept:
    cdef xks_span span
    span.data = <const uint8_t *>data
    span.len = length
    return span


cdef inline const char *_text(str value, size_t *length) except NULL:
    """The UTF-8 of a str, borrowed from it."""
    cdef Py_ssize_t size
    cdef const char *text = PyUnicode_AsUTF8AndSize(value, &size)
    length[0] = <size_t>size
    return text


cdef _bad_base64(member):
    return XksError(XksErrorName.VALIDATION, f"{member} is not Base64 (RFC 4648 section 4: standard alphabet, padded, no white space)")


cdef size_t _decode(str value, member, uint8_t *out, size_t capacity) except? <size_t>-1:
    """Strict Base64 of a body member into out; returns the number of bytes."""
    cdef size_t text_len = 0, written = 0
    cdef const char *text = _text(value, &text_len)
    cdef xks_status status = API.base64_decode(text, text_len, out, capacity, &written)
    if status == XKS_BAD_INPUT:
        raise _bad_base64(member)
    if status != XKS_OK:
        raise XksError(XksErrorName.VALIDATION, f"{member} has a length that is not allowed")
    return written


cdef class Pipeline:
    """Serves the requests of one worker.

    loop: the event loop. engine: native.engine.Engine or None. jobs, random: native.crypto.JobPool and RandomPool.
    deadline_ms: from a request's first byte to its answer. request_log: log.RequestLog; logs_success: a line for every
    request, not only for refused ones. strangers: line_limit.LineLimit for what is refused before its signature was accepted;
    None: all of it is logged.
    """

    def __init__(
        self, loop, *, engine, jobs, random, deadline_ms, request_log, logs_success=False, partition_names=(), strangers=None
    ):
        self.loop = loop
        self.table = ServingTable()
        self.request_log = request_log
        self.logs_success = logs_success
        self.strangers = strangers
        self.sweep_timer = None
        self.flush_scheduled = False
        self.deadline_budget_ns = <uint64_t>deadline_ms * 1000000
        self.engine = <xks_engine *><uintptr_t>(engine.address if engine is not None else 0)
        self.jobs = <xks_job_pool *><uintptr_t>jobs.address
        self.random = <xks_random_pool *><uintptr_t>random.address
        self.keep_alive = (engine, jobs, random)
        self.partition_names = list(partition_names)
        self.metrics = Metrics()
        self.usage = Usage()
        self.unanswered = 0

    @property
    def in_flight(self):
        """Jobs with the engine that are not answered, and calls that it still waits for: an upper bound of the unanswered ones."""
        return API.engine_outstanding(self.engine) if self.engine != NULL else 0

    def replace_table(self, ServingTable table not None):
        """Serve `table` from now on. What it forbids is forbidden from this call, for results in flight as well."""
        table.follow(self.table)
        self.table = table

    cdef ServedStore find_store(self, bytes prefix):
        return self.table.stores.get(prefix)

    cdef void serve(self, Exchange exchange, const Request *request, bytes body):
        """Bring the exchange to its answer, now or by a job. Never raises: whatever goes wrong is answered."""
        exchange.deadline_ns = exchange.first_byte_ns + self.deadline_budget_ns
        try:
            self._serve(exchange, request, body)
        except Exception as error:
            if exchange.job != NULL:
                API.job_release(self.jobs, exchange.job)
                exchange.job = NULL
            self.refuse(exchange, error)

    cdef _serve(self, Exchange exchange, const Request *request, bytes body):
        self._authenticate(exchange, request)
        if API.json_check_members(request.body, request.body_len) != XKS_OK:
            raise XksError(XksErrorName.VALIDATION, "The body is not one well-formed JSON document without repeated members")
        if exchange.operation == ENCRYPT:
            self._read_encrypt(exchange, body)
        elif exchange.operation == DECRYPT:
            self._read_decrypt(exchange, body)
        else:
            self._read_metadata(exchange, body)
        if exchange.principal is not None and len(<str>exchange.principal) > MAX_PRINCIPAL:
            raise XksError(XksErrorName.VALIDATION, f"requestMetadata.awsPrincipalArn is longer than {MAX_PRINCIPAL} characters")

        if exchange.store.blocked:
            raise XksError(XksErrorName.INVALID_STATE, "The key store is blocked")
        if exchange.operation == GET_HEALTH_STATUS:
            return self._answer(exchange, exchange.store.fleet.response)
        self._find_key(exchange, request)
        self._check_principal(exchange, exchange.store)
        if exchange.operation == GET_KEY_METADATA:
            return self._answer(exchange, exchange.key.metadata_response)
        self._check_key(exchange, exchange.key)
        self._check_limits(exchange)
        return self._submit(exchange)

    cdef _authenticate(self, Exchange exchange, const Request *request):
        cdef xks_sigv4_request signed
        cdef uint32_t credential = 0
        cdef int64_t now = API.unix_seconds()
        cdef xks_sigv4_reason reason = <xks_sigv4_reason>0
        signed.method = _span(b"POST", 4)
        signed.path = _span(request.path, request.path_len)
        signed.headers = request.headers
        signed.header_count = request.header_count
        signed.body = _span(request.body, request.body_len)
        if API.sigv4_verify(exchange.store.keyring, &signed, now, &credential, &reason) != XKS_OK:
            raise XksError(XksErrorName.AUTHENTICATION_FAILED, NOT_SIGNED, cause=SIGV4_REASONS[reason])
        exchange.credential = <ServedCredential>exchange.store.credentials[credential]
        self.usage.signed(exchange.store, exchange.credential, now)

    cdef _read_metadata(self, Exchange exchange, bytes body):
        try:
            if exchange.operation == GET_HEALTH_STATUS:
                document = decode_health(body)
            else:
                document = decode_metadata(body)
                exchange.principal = document.request_metadata.aws_principal_arn
        except BODY_ERRORS as error:
            raise bodies.refusal(error) from None
        exchange.request_id = document.request_metadata.kms_request_id

    cdef _read_encrypt(self, Exchange exchange, bytes body):
        cdef xks_job *job
        cdef str plaintext, aad
        try:
            document = decode_encrypt(body)
        except BODY_ERRORS as error:
            raise bodies.refusal(error) from None
        exchange.request_id = document.request_metadata.kms_request_id
        exchange.principal = document.request_metadata.aws_principal_arn
        plaintext = document.plaintext
        aad = document.additional_authenticated_data
        job = self._take_job(exchange, aad, plaintext)
        job.operation = XKS_ENCRYPT
        job.want_cdiv = exchange.want_cdiv = document.ciphertext_data_integrity_value_algorithm is not None
        job.input_len = _decode(plaintext, "plaintext", job.input, job.input_capacity)

    cdef _read_decrypt(self, Exchange exchange, bytes body):
        cdef xks_job *job
        cdef str ciphertext, aad, metadata
        cdef size_t length
        cdef uint8_t short_value[64]
        try:
            document = decode_decrypt(body)
        except BODY_ERRORS as error:
            raise bodies.refusal(error) from None
        exchange.request_id = document.request_metadata.kms_request_id
        exchange.principal = document.request_metadata.aws_principal_arn
        ciphertext = document.ciphertext
        aad = document.additional_authenticated_data
        metadata = document.ciphertext_metadata
        job = self._take_job(exchange, aad, ciphertext)
        job.operation = XKS_DECRYPT
        job.input_len = _decode(ciphertext, "ciphertext", job.input, job.input_capacity)

        length = _decode(document.initialization_vector, "initializationVector", short_value, sizeof(short_value))
        if length != 12 and length != 16:
            raise XksError(XksErrorName.VALIDATION, "initializationVector must be 12 or 16 bytes")
        memcpy(job.iv, short_value, length)
        job.iv_len = <uint8_t>length
        length = _decode(document.authentication_tag, "authenticationTag", short_value, sizeof(short_value))
        if length != TAG_BYTES:
            raise XksError(XksErrorName.VALIDATION, "authenticationTag must be 16 bytes")
        memcpy(job.tag, short_value, length)
        if metadata is not None:
            length = _decode(metadata, "ciphertextMetadata", short_value, sizeof(short_value))
            if length > MAX_METADATA:
                raise XksError(XksErrorName.VALIDATION, f"ciphertextMetadata must be at most {MAX_METADATA} bytes")
            memcpy(job.metadata, short_value, length)
            job.metadata_len = <uint8_t>length

    cdef xks_job *_take_job(self, Exchange exchange, str aad, str text) except NULL:
        """A job with room for both Base64 texts, the AAD decoded into it. job.aad_len is that of the request's own AAD until
        the job is submitted."""
        cdef size_t aad_capacity = 0, text_len = 0
        cdef xks_job *job = NULL
        _text(text, &text_len)
        if aad is not None:
            _text(aad, &aad_capacity)
            aad_capacity = aad_capacity // 4 * 3
        if exchange.store.sample_aad and aad_capacity < XKS_SAMPLE_DIGEST_BYTES:
            aad_capacity = XKS_SAMPLE_DIGEST_BYTES  # the digest takes the place of a shorter AAD
        if API.job_take(self.jobs, aad_capacity, text_len // 4 * 3, &job) != XKS_OK:
            raise MemoryError
        exchange.job = job
        exchange.has_aad = aad is not None
        job.aad_len = 0
        if aad is not None:
            job.aad_len = _decode(aad, "additionalAuthenticatedData", job.aad + 2, job.aad_capacity)
        return job

    cdef _check_principal(self, Exchange exchange, ServedStore store):
        if not store.permits(exchange.principal):
            raise XksError(
                XksErrorName.ACCESS_DENIED, "This AWS principal may not use the keys of this key store",
                cause="awsPrincipalArn matches none of allowed_principals",
            )

    cdef _check_key(self, Exchange exchange, ServedKey key):
        """State and usage of `key`, for Encrypt and Decrypt."""
        if not key.enabled:
            raise XksError(XksErrorName.INVALID_STATE, "The external key is disabled")
        if exchange.operation == ENCRYPT:
            if not key.may_encrypt:
                raise XksError(XksErrorName.INVALID_KEY_USAGE, "The external key must not be used to encrypt")
            if exchange.want_cdiv and not key.may_decrypt:
                raise XksError(
                    XksErrorName.INVALID_KEY_USAGE,
                    "A ciphertextDataIntegrityValue takes a check decrypt, and the external key must not be used to decrypt",
                )
        elif not key.may_decrypt:
            raise XksError(XksErrorName.INVALID_KEY_USAGE, "The external key must not be used to decrypt")

    cdef _check_limits(self, Exchange exchange):
        cdef xks_job *job = exchange.job
        if job.input_len > MAX_PLAINTEXT:
            member = "plaintext" if exchange.operation == ENCRYPT else "ciphertext"
            raise XksError(XksErrorName.UNSUPPORTED_OPERATION, f"{member} is longer than {MAX_PLAINTEXT} bytes")
        if job.aad_len > MAX_AAD:
            raise XksError(
                XksErrorName.UNSUPPORTED_OPERATION, f"additionalAuthenticatedData is longer than {MAX_AAD} bytes"
            )

    cdef _find_key(self, Exchange exchange, const Request *request):
        cdef ServedKey key = exchange.store.keys.get(request.path[request.key_start : request.key_start + request.key_len])
        cdef ServedVersion version
        cdef xks_status status
        if key is None:
            raise XksError(XksErrorName.KEY_NOT_FOUND, "No such external key in this key store")
        exchange.key = key
        if key.blocked:
            raise XksError(XksErrorName.INVALID_STATE, "The external key is blocked")
        exchange.version = self._pick_version(exchange)
        version = key.current if exchange.version is None else exchange.version
        if version.problem:
            raise XksError(XksErrorName.INTERNAL, "The key manager cannot use the key", cause=version.problem)
        if exchange.operation == GET_KEY_METADATA and version.local == NULL and self.engine != NULL:
            status = API.engine_key_verdict(self.engine, version.engine_key)
            if status == XKS_NOT_FOUND or status == XKS_CONFIG:  # an outage says nothing about the key
                raise submit_refusal(status)

    cdef ServedVersion _pick_version(self, Exchange exchange):
        """The version of exchange.key that the operation is for: the last one, or that which made the ciphertext.

        None: no version of this key made it, which is told only after everything else has been checked. Ciphertexts without metadata are
        of version 1, and so are all that AWS's sample proxy has made.
        """
        cdef xks_job *job = exchange.job
        cdef uint32_t number = 1
        if exchange.operation != DECRYPT:
            return exchange.key.current
        if job.metadata_len == 0 or API.metadata_read(job.metadata, job.metadata_len, &number) != XKS_OK:
            if exchange.store.sample_aad:
                exchange.from_sample = True
                number = 1
            elif job.metadata_len > 0:
                return None
        return exchange.key.version(number)

    cdef _submit(self, Exchange exchange):
        cdef xks_job *job = exchange.job
        cdef ServedVersion version = exchange.version
        cdef xks_status status
        if version is None:
            raise XksError(
                XksErrorName.INVALID_CIPHERTEXT, "The ciphertext was not made by this key",
                cause="ciphertextMetadata names no version of the key",
            )
        if exchange.operation == ENCRYPT and (version.number != 1 or exchange.store.sample_aad):
            API.metadata_write(version.number, job.metadata)
            job.metadata_len = XKS_METADATA_BYTES
        if self._compose_aad(exchange) != XKS_OK:
            raise XksError(XksErrorName.UNSUPPORTED_OPERATION, "additionalAuthenticatedData is too long")
        job.deadline_ns = exchange.deadline_ns
        if version.local != NULL:
            API.local_run(version.local, self.random, job)
            self._finish(exchange)
            return
        if self.engine == NULL:
            raise XksError(XksErrorName.INTERNAL, "", cause="no PKCS#11 engine for a pkcs11 key")
        job.key = version.engine_key
        job.owner = <void *>exchange
        status = API.engine_submit(self.engine, job)
        if status != XKS_OK:
            raise submit_refusal(status)
        Py_INCREF(exchange)
        self.unanswered += 1
        exchange.job = NULL  # the engine's until it is drained
        if not self.flush_scheduled:
            self.flush_scheduled = True
            self.loop.call_soon(self._flush)
        if self.sweep_timer is None:
            self.sweep_timer = self.loop.call_later(SWEEP_INTERVAL_S, self._sweep)

    cdef xks_status _compose_aad(self, Exchange exchange) except *:
        if exchange.from_sample:
            return API.job_compose_sample_aad(exchange.job, exchange.job.aad_len, exchange.has_aad)
        return API.job_compose_aad(exchange.job, exchange.job.aad_len)

    def _flush(self):
        """Once a loop turn: wake workers for all jobs that the turn brought."""
        self.flush_scheduled = False
        API.engine_flush(self.engine)

    def on_completions(self):
        """The engine's eventfd is readable: take all answered jobs."""
        cdef xks_job *job = API.engine_drain(self.engine)
        cdef xks_job *following
        cdef Exchange exchange
        while job != NULL:
            following = job.next
            exchange = <Exchange>job.owner
            Py_DECREF(exchange)
            self.unanswered -= 1
            exchange.job = job
            self._finish(exchange)
            job = following

    def _sweep(self):
        """While jobs are out: the engine answers those past their deadline, retries, hedges, and wakes workers behind a call that hangs."""
        self.on_completions()
        self.sweep_timer = (
            self.loop.call_later(SWEEP_INTERVAL_S, self._sweep) if API.engine_outstanding(self.engine) > 0 else None
        )

    cdef void _count_encryptions(self, Exchange exchange):
        """Each call that a key may have answered, whether or not its answer is used."""
        cdef uint64_t times = 1 if exchange.version.local != NULL else exchange.job.route.calls
        if times:
            self.usage.encrypted(exchange.store, exchange.key, exchange.version, times)

    cdef void _finish(self, Exchange exchange):
        """The job ran: answer with its result, unless that was forbidden meanwhile."""
        cdef xks_job *job = exchange.job
        cdef bytes response = None
        error = None
        try:
            if exchange.operation == ENCRYPT:
                self._count_encryptions(exchange)
            if exchange.changes != self.table.changes:
                self._check_again(exchange)
            if job.status == XKS_OK:
                response = encrypt_response(job) if exchange.operation == ENCRYPT else decrypt_response(job)
                self._answer(exchange, response)
            else:
                self.refuse(exchange, job_refusal(job))
        except Exception as refusal:
            self.refuse(exchange, refusal)
        finally:
            API.job_release(self.jobs, job)
            exchange.job = NULL

    cdef _check_again(self, Exchange exchange):
        """All that may have been forbidden since the request came in. Raises XksError."""
        cdef ServedStore store = self.table.names.get(exchange.store.name)
        cdef ServedKey key
        cdef ServedVersion version
        if store is None or store.blocked:
            raise XksError(XksErrorName.INVALID_STATE, "The key store is blocked")
        if store.index_of(exchange.credential.access_key_id) < 0:
            raise XksError(XksErrorName.AUTHENTICATION_FAILED, NOT_SIGNED, cause="the credential was removed meanwhile")
        if exchange.operation != GET_HEALTH_STATUS:
            key = store.keys.get(exchange.key.external_key_id)
            if key is None or key.blocked:
                raise XksError(XksErrorName.INVALID_STATE, "The external key is blocked")
            self._check_principal(exchange, store)
            if exchange.operation == GET_KEY_METADATA:
                exchange.response = key.metadata_response
            else:
                self._check_key(exchange, key)
                version = key.version(exchange.version.number)
                if version is None or version.label != exchange.version.label:
                    raise XksError(XksErrorName.INVALID_STATE, "This version of the external key was removed")
        exchange.changes = self.table.changes

    cdef void look_again(self, Exchange exchange):
        """The answer has waited for those before it, and something was forbidden meanwhile: the last chance to withhold it.

        It was counted and logged as answered already; a refusal is counted and logged beside that.
        """
        exchange.sink = None  # it is sending this one right now
        try:
            self._check_again(exchange)
        except Exception as refusal:
            self.refuse(exchange, refusal)

    cdef void _answer(self, Exchange exchange, bytes response):
        exchange.response = response
        exchange.answered = exchange.granted = True
        self.metrics.answered(exchange.operation, API.monotonic_ns() - exchange.first_byte_ns)
        if self.logs_success:
            self._log(exchange, None)
        if exchange.sink is not None:
            exchange.sink.exchange_answered(exchange)

    cdef void refuse(self, Exchange exchange, object error):
        """Answer with an error: an XksError as it is, anything else as InternalException with the cause in the log."""
        if not isinstance(error, XksError):
            error = XksError(XksErrorName.INTERNAL, "The proxy failed", cause=f"{type(error).__name__}")
        exchange.response = error_response(error)
        exchange.answered = True
        exchange.granted = False
        self.metrics.refused(exchange.operation, error.name.error_name, API.monotonic_ns() - exchange.first_byte_ns)
        self._log(exchange, error)
        if exchange.sink is not None:
            exchange.sink.exchange_answered(exchange)

    cdef void _log(self, Exchange exchange, object error):
        """One line of what happened, unless a stranger brings about too many of them."""
        if self.request_log is None:
            return
        if exchange.credential is None and self.strangers is not None and error is not None:
            if not self.strangers.admits("request", error.name.error_name):
                return
        self.request_log.record(request_line(exchange, error, self.partition_names, API.monotonic_ns()))
