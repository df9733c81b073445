# SPDX-License-Identifier: Apache-2.0
from libc.stdint cimport uint64_t

from xksfast.proxy.exchange cimport Exchange


cdef dict request_line(Exchange exchange, object error, list partition_names, uint64_t now_ns)
