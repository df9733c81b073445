# SPDX-License-Identifier: Apache-2.0
from libc.stdint cimport uint8_t


cdef enum Operation:
    NO_OPERATION = 0
    GET_HEALTH_STATUS = 1
    GET_KEY_METADATA = 2
    ENCRYPT = 3
    DECRYPT = 4


# Where the parts of an XKS path stand, as offsets into it. operation is NO_OPERATION when it is no XKS path.
cdef struct Route:
    Operation operation
    size_t prefix_len       # the path prefix is path[:prefix_len]
    size_t key_start        # the external key id, for all but GET_HEALTH_STATUS
    size_t key_len


cdef Route parse_route(const char *path, size_t path_len) noexcept nogil
