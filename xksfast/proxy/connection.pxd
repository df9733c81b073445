# SPDX-License-Identifier: Apache-2.0
from libc.stdint cimport uint64_t

from xksfast.native.api cimport xks_header, xks_tls, xks_tls_context
from xksfast.proxy.exchange cimport AnswerSink, Exchange
from xksfast.proxy.pipeline cimport Pipeline
from xksfast.proxy.serving cimport ServedStore
from xksfast.wire.http_rules cimport Framing
from xksfast.wire.routes cimport Route


cdef extern from "<sys/ioctl.h>" nogil:
    int ioctl(int fd, unsigned long request, ...)
    unsigned long FIONREAD


# How far the request being read has come.
cdef enum Reading:
    NOTHING         # between requests
    HEAD            # the first byte is there, the end of the headers is not
    BODY            # headers are there, the body is not


cdef class Connection(AnswerSink):
    cdef Pipeline pipeline
    cdef object settings            # ConnectionSettings, shared
    cdef object transport
    cdef object parser              # httptools.HttpRequestParser
    cdef Reading reading
    cdef uint64_t first_byte_ns     # of the request being read, or of the last one read; before any: when the connection was made
    cdef uint64_t since_ns          # set by the sweeper: when it first saw the state that it is timing; 0: none yet
    cdef bint handshaking
    cdef bint known                 # a signature on this connection was accepted; else it is a stranger's
    cdef int refusals               # of requests while it was not known
    cdef bint closing               # the last answer is sent; what still comes in is thrown away
    cdef bint feeding               # inside feed_data: answers wait for its end
    cdef bytes request_start        # bytes being fed that begin with the request being read; None: it began elsewhere
    # --- the request being read
    cdef bytes path
    cdef bytes body
    cdef list body_parts            # None while the body came in one piece
    cdef size_t body_len
    cdef list header_bytes          # owns what `headers` points into
    cdef xks_header headers[32]
    cdef Framing framing
    cdef Route route
    cdef ServedStore store
    cdef uint64_t changes           # of the serving table when `store` was looked up
    cdef object refusal             # XksError found at the end of the headers; answered when the body is read or too long
    cdef size_t bytes_in_head       # fed since the head began, against a head that never ends
    # --- answers
    cdef object owed                # deque of exchanges, in the order of their requests
    cdef bint write_paused
    cdef bint read_paused
    cdef bint stop_parsing          # a refusal ended the stream of requests
    cdef bint draining              # go on reading, but close after an answer that nothing follows, or after a moment of silence
    cdef bint bodiless              # the last answer is one to HEAD
    cdef bint peer_done             # the peer sent FIN
    # --- TLS
    cdef xks_tls *tls
    cdef object tls_context         # keeps the context alive
    cdef bytes put_off              # handshake input that waits for the gate

    cdef _feed(self, bytes data)
    cdef _check_head(self)
    cdef bint _bytes_wait(self)
    cdef bint _has_no_followers(self)
    cdef _send_interim(self)
    cdef void _received(self, bytes data)
    cdef void _tls_received(self, bytes data)
    cdef bint _may_handshake(self, bytes data)
    cdef bint _handshake(self)
    cdef void _start_request(self)
    cdef void _serve_request(self)
    cdef void _judge_stranger(self, Exchange exchange)
    cdef void _refuse_stream(self, object error)
    cdef void _send_ready(self)
    cdef void _send(self, bytes data)
    cdef void _flush_tls(self)
    cdef void _close_gently(self)
    cdef void _regulate_reading(self)
