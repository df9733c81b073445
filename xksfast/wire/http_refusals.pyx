# SPDX-License-Identifier: Apache-2.0
"""Refusals of HTTP itself, for which the XKS API has statuses and no names."""

from libc.stdint cimport int64_t

from xksfast.wire.http_rules cimport Framing

from xksfast.errors import XksError, XksErrorName
from xksfast.wire import limits

cdef int64_t MAX_HEAD = limits.MAX_HEADER_BYTES
cdef int MAX_HEADERS = limits.MAX_HEADERS


cdef object http_refusal(int status, str message):
    """The XksError for an HTTP status and what is wrong."""
    if status in (405, 413, 501, 505):
        return XksError(XksErrorName.UNSUPPORTED_OPERATION, message, http_status=status)
    return XksError(XksErrorName.VALIDATION, message, http_status=status)


cdef object framing_refusal(const Framing *framing, size_t path_len, str version):
    """What makes a head unfit to be followed by anything, or None. version: of HTTP; None: it is known to be 1.1."""
    if framing.header_bytes + <int64_t>path_len > MAX_HEAD:
        return http_refusal(431, f"Request line and headers must fit into {MAX_HEAD} bytes")
    if framing.headers > MAX_HEADERS:
        return http_refusal(431, f"At most {MAX_HEADERS} headers")
    if version is not None and version != "1.1":
        return http_refusal(505, "HTTP/1.1 only")
    if framing.broken:
        return http_refusal(400, framing.rule.decode("ascii"))
    if framing.hosts == 0:
        return http_refusal(400, "Host is required")
    return None
