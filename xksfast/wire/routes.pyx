# SPDX-License-Identifier: Apache-2.0
"""URI path -> (path prefix, operation, external key id). Pure: whether the prefix or the key exists is not known here.

The path is read from its end, since the prefix may itself hold anything that the prefix rules allow, even "/kms/xks/v1".
Source: XKS Proxy API spec v1.0.3, API operations; requirements 17-20, 24.
"""

from libc.string cimport memcmp

from xksfast.wire import limits

cdef size_t MAX_URI = limits.MAX_URI_CHARS
cdef size_t MAX_URI_PATH = limits.MAX_URI_PATH_CHARS
cdef size_t MAX_KEY_ID = limits.MAX_EXTERNAL_KEY_ID_CHARS

OPERATION_NAMES = ("", "GetHealthStatus", "GetKeyMetadata", "Encrypt", "Decrypt")


cdef inline bint _ends_with(const char *text, size_t text_len, const char *tail, size_t tail_len) noexcept nogil:
    return text_len >= tail_len and memcmp(text + text_len - tail_len, tail, tail_len) == 0


cdef inline bint _is_key_id_char(char c) noexcept nogil:
    return (b"a" <= c <= b"z") or (b"A" <= c <= b"Z") or (b"0" <= c <= b"9") or c == b"-" or c == b"." or c == b"_"


cdef Route parse_route(const char *path, size_t path_len) noexcept nogil:
    """The parts of `path`; operation is NO_OPERATION when it is no XKS path or over a length limit."""
    cdef Route route
    cdef size_t last, start, i
    route.operation = NO_OPERATION
    route.prefix_len = route.key_start = route.key_len = 0
    if path_len == 0 or path_len > MAX_URI:
        return route

    last = path_len
    while last > 0 and path[last - 1] != b"/":
        last -= 1
    if last == 0:
        return route
    cdef const char *name = path + last
    cdef size_t name_len = path_len - last
    cdef size_t base = last - 1  # length of what stands before "/<name>"

    if name_len == 6 and memcmp(name, b"health", 6) == 0:
        if _ends_with(path, base, b"/kms/xks/v1", 11) and base <= MAX_URI_PATH:
            route.operation = GET_HEALTH_STATUS
            route.prefix_len = base - 11
        return route

    cdef Operation operation
    if name_len == 7 and memcmp(name, b"encrypt", 7) == 0:
        operation = ENCRYPT
    elif name_len == 7 and memcmp(name, b"decrypt", 7) == 0:
        operation = DECRYPT
    elif name_len == 8 and memcmp(name, b"metadata", 8) == 0:
        operation = GET_KEY_METADATA
    else:
        return route

    start = base
    while start > 0 and path[start - 1] != b"/":
        start -= 1
    if start == 0 or base == start or base - start > MAX_KEY_ID:
        return route
    for i in range(start, base):
        if not _is_key_id_char(path[i]):
            return route
    if not _ends_with(path, start - 1, b"/kms/xks/v1/keys", 16) or start - 1 - 5 > MAX_URI_PATH:
        return route
    route.operation = operation
    route.prefix_len = start - 1 - 16
    route.key_start = start
    route.key_len = base - start
    return route


def parse_path(bytes path not None):
    """(prefix, operation name, external key id) of `path`, or None when it is no XKS path. For tests and tools."""
    cdef Route route = parse_route(path, len(path))
    if route.operation == NO_OPERATION:
        return None
    return (
        path[: route.prefix_len].decode("latin-1"),
        OPERATION_NAMES[route.operation],
        path[route.key_start : route.key_start + route.key_len].decode("latin-1"),
    )
