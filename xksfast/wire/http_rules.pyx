# SPDX-License-Identifier: Apache-2.0
"""The strictness that llhttp leaves to us: one Host, at most one Content-Length, no Transfer-Encoding, no Upgrade, plain values.

Pure: facts are noted header by header into a Framing, and the connection refuses when `broken` is set. llhttp has refused bare
LF, folded lines and characters outside the token set in names before a header reaches us.
Source: RFC 9112; the bounds are those of limits.py.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.string cimport memcmp, strncasecmp

from xksfast.wire import limits

cdef int MAX_HEADERS = limits.MAX_HEADERS


cdef inline void _break(Framing *framing, const char *rule) noexcept nogil:
    if not framing.broken:
        framing.broken = True
        framing.rule = rule


cdef inline bint _named(const char *name, size_t name_len, const char *wanted, size_t wanted_len) noexcept nogil:
    return name_len == wanted_len and strncasecmp(name, wanted, wanted_len) == 0


cdef void _note_host(Framing *framing, const char *value, size_t value_len) noexcept nogil:
    cdef size_t i
    cdef char c
    framing.hosts += 1
    if framing.hosts > 1:
        _break(framing, b"Host must be given exactly once")
    if value_len == 0:
        _break(framing, b"Host must not be empty")
    for i in range(value_len):
        c = value[i]
        if not (
            (b"a" <= c <= b"z") or (b"A" <= c <= b"Z") or (b"0" <= c <= b"9")
            or c == b"." or c == b"-" or c == b":" or c == b"[" or c == b"]" or c == b"_"
        ):
            _break(framing, b"Host holds a character that no host name has")


cdef void _note_content_length(Framing *framing, const char *value, size_t value_len) noexcept nogil:
    cdef size_t i
    cdef int64_t length = 0
    framing.content_lengths += 1
    if framing.content_lengths > 1:
        _break(framing, b"Content-Length must be given exactly once")
    if value_len == 0 or value_len > 15:
        _break(framing, b"Content-Length must be a decimal number")
        return
    for i in range(value_len):
        if value[i] < b"0" or value[i] > b"9":
            _break(framing, b"Content-Length must be a decimal number")
            return
        length = length * 10 + (value[i] - 48)
    framing.content_length = length


cdef bint is_plain_post(bytes start, bytes path):
    """Whether the request line is POST with HTTP/1.1: asking the parser costs 0.4 us more.

    start: bytes that begin with the request line, or None when those are not at hand. path: as the parser gave it.
    """
    cdef Py_ssize_t path_len = PyBytes_GET_SIZE(path)
    if start is None or PyBytes_GET_SIZE(start) < path_len + 16:
        return False
    cdef const char *text = PyBytes_AS_STRING(start)
    return (
        memcmp(text, b"POST ", 5) == 0
        and memcmp(text + 5, PyBytes_AS_STRING(path), <size_t>path_len) == 0
        and memcmp(text + 5 + path_len, b" HTTP/1.1\r\n", 11) == 0
    )


cdef void note_header(Framing *framing, const char *name, size_t name_len, const char *value, size_t value_len) noexcept nogil:
    """Take one header, value without surrounding white space, into account."""
    cdef size_t i
    cdef unsigned char c
    framing.headers += 1
    framing.header_bytes += <int64_t>(name_len + value_len + 4)
    if framing.headers > MAX_HEADERS:
        _break(framing, b"Too many headers")
    for i in range(value_len):
        c = <unsigned char>value[i]
        if (c < 0x20 and c != 0x09) or c == 0x7F:
            _break(framing, b"A header value holds a control character")
            break
    if name_len == 4 and _named(name, name_len, b"host", 4):
        _note_host(framing, value, value_len)
    elif name_len == 14 and _named(name, name_len, b"content-length", 14):
        _note_content_length(framing, value, value_len)
    elif name_len == 17 and _named(name, name_len, b"transfer-encoding", 17):
        _break(framing, b"Transfer-Encoding is not supported: send Content-Length")
    elif name_len == 7 and _named(name, name_len, b"upgrade", 7):
        _break(framing, b"Upgrade is not supported")
    elif name_len == 7 and _named(name, name_len, b"trailer", 7):
        _break(framing, b"Trailers are not supported")
    elif name_len == 6 and _named(name, name_len, b"expect", 6):
        if value_len == 12 and strncasecmp(value, b"100-continue", 12) == 0:
            framing.expects_continue = True
        else:
            _break(framing, b"Expect knows 100-continue only")
