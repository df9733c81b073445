# SPDX-License-Identifier: Apache-2.0
"""One TCP connection: bytes to requests, answers to bytes in the order of the requests.

What lives here: TLS bytes, HTTP framing with all its bounds, order of answers, back-pressure, time-outs. What must
not: anything of XKS beyond "which operation does this path name" (that is the pipeline's). No Task, Future or dict per request.
A newcomer's trap: httptools calls back from inside feed_data, and one feed_data may hold many requests; a refusal therefore raises
out of the parser, and what was parsed before it is still answered first.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport uint8_t, uint64_t, uintptr_t
from libc.string cimport memset

from xksfast.native.api cimport XKS_CLOSED, XKS_OK, XKS_WANT_MORE, xks_api, xks_header, xks_status, xks_tls_context
from xksfast.proxy.exchange cimport Exchange
from xksfast.proxy.pipeline cimport Pipeline, Request
from xksfast.wire.http_refusals cimport framing_refusal, http_refusal
from xksfast.wire.http_rules cimport is_plain_post, note_header
from xksfast.wire.responses cimport last_response
from xksfast.wire.routes cimport NO_OPERATION, parse_route

from collections import deque

import httptools

from xksfast.errors import XksError, XksErrorName
from xksfast.native.loader import api_address
from xksfast.wire import limits
from xksfast.wire.responses import CONTINUE

cdef const xks_api *API = <const xks_api *><uintptr_t>api_address

cdef size_t MAX_BODY = limits.MAX_BODY_BYTES
cdef size_t MAX_HEAD = limits.MAX_HEADER_BYTES
cdef int MAX_HEADERS = limits.MAX_HEADERS
cdef size_t MAX_PIPELINED = limits.MAX_PIPELINED
cdef int MAX_STRANGERS_REFUSALS = limits.MAX_STRANGERS_REFUSALS
cdef uint64_t CLOSING_NS = 1000000000  # how long a closing connection may go on sending before it is cut
cdef uint64_t DRAIN_QUIET_NS = 200000000  # seen by two sweeps in a row: 250 to 500 ms without a byte


class _Refused(Exception):
    """Raised out of the parser's callbacks to end parsing; the XksError stands in Connection.refusal."""


cdef class Connection(AnswerSink):
    """An asyncio.Protocol for one accepted connection.

    settings: ConnectionSettings. tls_context: native.tls.TlsContext, or None for plain HTTP.
    """

    def __init__(self, settings, tls_context=None):
        self.settings = settings
        self.pipeline = settings.pipeline
        self.parser = httptools.HttpRequestParser(self)
        self.owed = deque()
        self.header_bytes = []
        self.reading = NOTHING
        self.tls_context = tls_context
        if tls_context is not None:
            if API.tls_new(<xks_tls_context *><uintptr_t>tls_context.address, &self.tls) != XKS_OK:
                raise MemoryError("no TLS connection could be made")
            self.handshaking = True

    def __dealloc__(self):
        if self.tls != NULL:
            API.tls_free(self.tls)

    # --- asyncio.Protocol

    def connection_made(self, transport):
        self.transport = transport
        self.since_ns = self.first_byte_ns = API.monotonic_ns()
        self.draining = self.settings.draining
        self.settings.opened(self)

    def connection_lost(self, error):
        cdef Exchange exchange
        for exchange in self.owed:
            exchange.sink = None
        self.owed.clear()
        self.stop_parsing = True
        self.settings.lost(self)
        if self.put_off is not None:
            self.settings.gate.forget(self)
            self.put_off = None
        self.transport = None
        self.parser = None
        self.settings.on_closed()

    def data_received(self, bytes data not None):
        self._received(data)

    def eof_received(self):
        """The peer will send no more. Answers that are owed still go out; True keeps the transport open for them."""
        self.peer_done = True
        return bool(self.owed)

    def pause_writing(self):
        self.write_paused = True
        self.since_ns = 0
        self._regulate_reading()

    def resume_writing(self):
        self.write_paused = False
        self._regulate_reading()

    # --- for the worker

    def check_time(self, uint64_t now):
        """Called by the sweeper a few times a second: end what has taken too long."""
        cdef uint64_t limit
        settings = self.settings
        if self.transport is None:
            return
        if self.reading != NOTHING and not self.closing:
            limit = settings.header_timeout_ns if self.reading == HEAD else settings.request_timeout_ns
            if now > self.first_byte_ns + limit:
                part = "headers" if self.reading == HEAD else "body"
                self._refuse_stream(http_refusal(408, f"The {part} of the request did not arrive in time"))
            return
        if self.handshaking and not self.closing and now > self.first_byte_ns + settings.handshake_timeout_ns:
            return self.transport.abort()
        if self.since_ns == 0:
            self.since_ns = now
        if self.closing:
            limit = CLOSING_NS
        elif self.draining and not self.write_paused and self.put_off is None:
            limit = DRAIN_QUIET_NS
        elif self.handshaking:
            limit = settings.handshake_timeout_ns
        elif self.write_paused:
            limit = settings.request_timeout_ns  # answers are ready, and the peer does not read them
        else:
            limit = settings.idle_timeout_ns if self.known else settings.header_timeout_ns
        if now <= self.since_ns + limit:
            return
        if self.closing or self.write_paused or (self.handshaking and not self.draining):
            self.transport.abort()
        elif not self.owed and not (self.draining and self._bytes_wait()):
            self._close_gently()

    def drain(self):
        """Go on reading and answering; close after an answer that no request follows, or after a moment without a byte."""
        self.draining = True
        if not self.closing:
            self.since_ns = 0

    def evict(self):
        """Make room: for another connection, of which there are as many as may be, or at the gate."""
        if self.transport is not None:
            self.transport.abort()

    def resume_handshake(self):
        """The gate's turn for this connection has come."""
        cdef bytes data = self.put_off
        self.put_off = None
        if self.transport is not None and data is not None:
            self._regulate_reading()
            self._received(data)

    # --- bytes in

    cdef void _received(self, bytes data):
        if self.draining and not self.closing:
            self.since_ns = 0
        try:
            if self.tls != NULL:
                self._tls_received(data)
            else:
                self._feed(data)
                self._send_ready()
        except Exception as error:
            self.settings.log("connection_failed", error=type(error).__name__)
            if self.transport is not None:
                self.transport.abort()

    cdef void _tls_received(self, bytes data):
        cdef char plain[16384]
        cdef size_t plain_len = 0
        cdef xks_status status
        if self.closing:
            return
        if self.handshaking and not self._may_handshake(data):
            return
        API.tls_input(self.tls, <const uint8_t *>PyBytes_AS_STRING(data), <size_t>PyBytes_GET_SIZE(data))
        if self.handshaking and not self._handshake():
            return
        while True:
            status = API.tls_read(self.tls, <uint8_t *>plain, sizeof(plain), &plain_len)
            if status != XKS_OK:
                break
            self._feed(PyBytes_FromStringAndSize(plain, <Py_ssize_t>plain_len))
        self._send_ready()
        if status == XKS_WANT_MORE or self.transport is None:
            return
        if status == XKS_CLOSED:
            self.peer_done = True
            if not self.owed:
                self._close_gently()
        else:
            self.settings.log("tls_failed", reason=API.tls_error(self.tls).decode("utf-8", "replace"))
            self._close_gently()

    cdef bint _may_handshake(self, bytes data):
        """Whether the gate lets the handshake go on now; else `data` is kept until it does."""
        if self.put_off is not None:
            self.put_off += data
            return False
        if self.settings.gate.admit():
            return True
        self.put_off = data
        self._regulate_reading()
        self.settings.gate.wait(self)
        return False

    cdef bint _handshake(self):
        """Advance the handshake; True when it is done."""
        cdef uint64_t began = API.monotonic_ns()
        cdef xks_status status = API.tls_handshake(self.tls)
        self.settings.gate.spent(API.monotonic_ns() - began)
        self._flush_tls()
        if status == XKS_OK:
            self.handshaking = False
            self.since_ns = 0
            return True
        if status != XKS_WANT_MORE:
            self.settings.log("tls_handshake_refused", reason=API.tls_error(self.tls).decode("utf-8", "replace"))
            self._close_gently()
        return False

    cdef _feed(self, bytes data):
        """Plain bytes into the parser. A refusal becomes the last answer of this connection."""
        if self.stop_parsing:
            return
        if self.reading == NOTHING:
            self.request_start = data
        if self.reading != BODY:
            self.bytes_in_head += <size_t>PyBytes_GET_SIZE(data)
        self.feeding = True
        try:
            self.parser.feed_data(data)
            if self.reading == HEAD and self.bytes_in_head > MAX_HEAD:
                self._refuse_stream(http_refusal(431, f"Request line and headers must fit into {MAX_HEAD} bytes"))
        except httptools.HttpParserCallbackError:
            if self.refusal is None and not self.stop_parsing:
                raise
            self._refuse_stream(self.refusal)
        except httptools.HttpParserUpgrade:
            self._refuse_stream(http_refusal(400, "Upgrade is not supported"))
        except httptools.HttpParserError:
            self._refuse_stream(http_refusal(400, "The request is not well-formed HTTP/1.1"))
        finally:
            self.feeding = False
            self.request_start = None

    # --- httptools callbacks

    def on_message_begin(self):
        self._start_request()

    def on_url(self, bytes url not None):
        self.path = url if self.path is None else self.path + url

    def on_header(self, bytes name not None, bytes value not None):
        cdef int index = self.framing.headers
        cdef size_t name_len = <size_t>PyBytes_GET_SIZE(name)
        cdef size_t value_len = <size_t>PyBytes_GET_SIZE(value)
        cdef const char *text = PyBytes_AS_STRING(value)
        while value_len > 0 and (text[value_len - 1] == b" " or text[value_len - 1] == b"\t"):
            value_len -= 1
        note_header(&self.framing, PyBytes_AS_STRING(name), name_len, text, value_len)
        if index < MAX_HEADERS:
            self.header_bytes.append(name)
            self.header_bytes.append(value)
            self.headers[index].name.data = <const uint8_t *>PyBytes_AS_STRING(name)
            self.headers[index].name.len = name_len
            self.headers[index].value.data = <const uint8_t *>text
            self.headers[index].value.len = value_len

    def on_headers_complete(self):
        self.reading = BODY
        self._check_head()

    def on_body(self, bytes data not None):
        self.body_len += <size_t>PyBytes_GET_SIZE(data)
        if self.body is None:
            self.body = data
        elif self.body_parts is None:
            self.body_parts = [self.body, data]
        else:
            self.body_parts.append(data)

    def on_message_complete(self):
        self._serve_request()
        if self.stop_parsing:
            raise _Refused

    # --- one request

    cdef void _start_request(self):
        self.reading = HEAD  # from the method's first byte: an empty line before it begins nothing
        self.first_byte_ns = API.monotonic_ns()
        self.since_ns = 0
        self.path = self.body = self.body_parts = None
        self.body_len = 0
        self.header_bytes.clear()
        memset(&self.framing, 0, sizeof(self.framing))
        self.store = self.refusal = None

    cdef _check_head(self):
        """All that can be refused before the body: order as in practice.md rule 4, but broken framing first of all."""
        cdef const char *path = PyBytes_AS_STRING(self.path)
        cdef size_t path_len = <size_t>PyBytes_GET_SIZE(self.path)
        cdef bint plain_post = is_plain_post(self.request_start, self.path)
        cdef bint post = plain_post or self.parser.get_method() == b"POST"
        self.request_start = None
        self.refusal = framing_refusal(&self.framing, path_len, None if plain_post else self.parser.get_http_version())
        if self.refusal is not None:
            raise _Refused

        self.route = parse_route(path, path_len)
        if self.route.operation != NO_OPERATION:
            self.changes = self.pipeline.table.changes
            self.store = self.pipeline.find_store(path[: self.route.prefix_len])
        if self.store is None:
            self.refusal = XksError(XksErrorName.INVALID_URI_PATH, "No key store at this path")
        elif not post:
            self.refusal = http_refusal(405, "The XKS API is POST only")
        elif self.framing.content_lengths == 0:
            self.refusal = http_refusal(411, "Content-Length is required")
            raise _Refused
        # What follows another method may be no request (CONNECT), and an intermediary may see the answer's end elsewhere (HEAD).
        # Who asks whether to send the body waits for this answer and may send none after it.
        if self.refusal is not None and (not post or self.framing.expects_continue):
            raise _Refused
        if self.framing.content_length > <long long>MAX_BODY:
            if self.refusal is None:
                self.refusal = http_refusal(413, f"The body must not be longer than {MAX_BODY} bytes")
            raise _Refused
        if self.framing.expects_continue:
            self._send_interim()

    cdef _send_interim(self):
        """100 Continue, behind the answers that are owed already."""
        cdef Exchange interim = Exchange.__new__(Exchange)
        interim.response = CONTINUE
        interim.answered = True
        self.owed.append(interim)

    cdef void _serve_request(self):
        cdef Exchange exchange = Exchange.__new__(Exchange)
        cdef Request request
        cdef bytes body
        exchange.sink = self
        exchange.first_byte_ns = self.first_byte_ns
        exchange.changes = self.changes
        exchange.store = self.store
        exchange.operation = self.route.operation
        exchange.close_after = not self.parser.should_keep_alive()
        self.owed.append(exchange)
        if self.refusal is not None:
            self.pipeline.refuse(exchange, self.refusal)
        else:
            if self.body_parts is not None:
                body = b"".join(self.body_parts)
            elif self.body is not None:
                body = self.body
            else:
                body = b""
            request.path = PyBytes_AS_STRING(self.path)
            request.path_len = <size_t>PyBytes_GET_SIZE(self.path)
            request.headers = self.headers
            request.header_count = <size_t>self.framing.headers
            request.body = PyBytes_AS_STRING(body)
            request.body_len = <size_t>PyBytes_GET_SIZE(body)
            request.key_start = self.route.key_start
            request.key_len = self.route.key_len
            self.pipeline.serve(exchange, &request, body)
        if not self.known:
            self._judge_stranger(exchange)
        if exchange.close_after:
            self.stop_parsing = True
        self.reading = NOTHING
        self.bytes_in_head = 0
        if <size_t>len(self.owed) > MAX_PIPELINED:
            self._regulate_reading()

    cdef void _judge_stranger(self, Exchange exchange):
        """Its request shows who it is, or costs it one of the refusals that it may have: each takes time from those we serve."""
        if exchange.credential is not None:
            self.known = True
            self.settings.recognised(self)
            return
        self.refusals += 1
        exchange.close_after = exchange.close_after or self.refusals >= MAX_STRANGERS_REFUSALS

    cdef void _refuse_stream(self, object error):
        """The stream of requests cannot go on: `error` is the last answer, after those that are owed."""
        cdef Exchange exchange
        if self.stop_parsing:
            return
        self.stop_parsing = True
        self.bodiless = self.reading != NOTHING and self.parser.get_method() == b"HEAD"
        exchange = Exchange.__new__(Exchange)
        exchange.sink = self
        exchange.first_byte_ns = self.first_byte_ns if self.reading != NOTHING else API.monotonic_ns()
        exchange.store = self.store
        exchange.close_after = True
        self.reading = NOTHING
        self.owed.append(exchange)
        self.pipeline.refuse(exchange, error)

    # --- answers out

    cdef void exchange_answered(self, Exchange exchange):
        """An answer is there. Those that come while bytes are being fed leave together at the end of the feed."""
        if not self.feeding:
            self._send_ready()

    cdef void _send_ready(self):
        """Send every answer at the head of the queue, in order."""
        cdef Exchange exchange
        cdef bint last = False
        if self.transport is None:
            return
        while self.owed and not last:
            exchange = self.owed[0]
            if not exchange.answered:
                break
            self.owed.popleft()
            if exchange.granted and exchange.changes != self.pipeline.table.changes:
                self.pipeline.look_again(exchange)
            last = exchange.close_after or self._has_no_followers()
            self._send(last_response(exchange.response, self.bodiless) if last else exchange.response)
            exchange.response = None
            exchange.sink = None
        if last:
            self._close_gently()
        elif self.read_paused:
            self._regulate_reading()

    cdef bint _has_no_followers(self):
        """Whether the answer being sent is the last one, because we or the peer are at an end."""
        if not (self.draining or self.peer_done) or self.owed or self.reading != NOTHING:
            return False
        return self.peer_done or not self._bytes_wait()

    cdef bint _bytes_wait(self):
        """Whether the kernel holds bytes of the peer that were not read: a request that has arrived is not lost."""
        cdef int waiting = 0
        return ioctl(self.transport.get_extra_info("socket").fileno(), FIONREAD, &waiting) == 0 and waiting > 0

    cdef void _send(self, bytes data):
        if self.tls == NULL:
            self.transport.write(data)
            return
        if API.tls_write(self.tls, <const uint8_t *>PyBytes_AS_STRING(data), <size_t>PyBytes_GET_SIZE(data)) != XKS_OK:
            self.transport.abort()
            return
        self._flush_tls()

    cdef void _flush_tls(self):
        """Hand TLS bytes that wait to the transport."""
        cdef size_t length = 0
        cdef const uint8_t *data = API.tls_output(self.tls, &length)
        if length > 0:
            if self.transport is not None:
                self.transport.write(PyBytes_FromStringAndSize(<const char *>data, <Py_ssize_t>length))
            API.tls_output_clear(self.tls)

    cdef void _close_gently(self):
        """Send FIN and wait a moment for the peer's, so that the last answer is not lost to a reset."""
        if self.transport is None or self.closing:
            return
        if self.tls != NULL:
            API.tls_shutdown(self.tls)
            self._flush_tls()
        self.closing = True
        self.since_ns = 0
        self.stop_parsing = True
        if self.peer_done or not self.transport.can_write_eof():
            self.transport.close()
        else:
            self._regulate_reading()
            self.transport.write_eof()

    cdef void _regulate_reading(self):
        """Read only while the peer takes our answers, waits for no more than MAX_PIPELINED of them and the gate lets it."""
        cdef bint pause = not self.closing and (
            self.write_paused or <size_t>len(self.owed) > MAX_PIPELINED or self.put_off is not None
        )
        if self.transport is None or pause == self.read_paused:
            return
        self.read_paused = pause
        if pause:
            self.transport.pause_reading()
        else:
            self.transport.resume_reading()
