# SPDX-License-Identifier: Apache-2.0


cdef class Wildcard:
    cdef bytes head                 # before the first "*"
    cdef tuple middle               # bytes between two "*", none of them empty
    cdef bytes tail                 # behind the last "*"
    cdef Py_ssize_t least_len       # of what can match

    cdef bint fits(self, const char *text, Py_ssize_t length) noexcept


cdef class PrincipalPatterns:
    cdef frozenset exact            # patterns without "*"
    cdef list wildcards

    cdef bint permit(self, str principal) except -1
