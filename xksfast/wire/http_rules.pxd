# SPDX-License-Identifier: Apache-2.0
from libc.stdint cimport int32_t, int64_t


# What the headers of one request say about its framing. Zero it before the first header.
cdef struct Framing:
    int32_t headers
    int32_t hosts
    int32_t content_lengths
    int64_t header_bytes      # names, values and separators
    int64_t content_length
    bint expects_continue
    bint broken               # refuse: `rule` says which rule
    const char *rule


cdef bint is_plain_post(bytes start, bytes path)
cdef void note_header(Framing *framing, const char *name, size_t name_len, const char *value, size_t value_len) noexcept nogil
