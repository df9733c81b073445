# SPDX-License-Identifier: Apache-2.0
"""Which AWS principals a key store's `allowed_principals` mean.

In a pattern "*" stands for any run of characters, also for none; every other character stands for itself. A newcomer's trap: this is
no place for regular expressions. Patterns and principals come from tenants, and a backtracking search takes time with a power of the
number of "*", on the event loop that serves everybody. Each piece between two "*" is found once, at its first place behind the piece
before it: if any places fit, these do. So a pattern costs time with the length of the principal and its own, whatever they are.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.unicode cimport PyUnicode_AsUTF8AndSize
from libc.string cimport memcmp

cdef extern from "string.h" nogil:
    void *memmem(const void *haystack, size_t haystack_len, const void *needle, size_t needle_len)  # linear


cdef class Wildcard:
    """One pattern with at least one "*"."""

    def __init__(self, str pattern not None):
        head, *middle, tail = [part.encode("utf-8") for part in pattern.split("*")]
        self.head, self.tail = head, tail
        self.middle = tuple([part for part in middle if part])
        self.least_len = len(head) + sum([len(part) for part in self.middle]) + len(tail)

    cdef bint fits(self, const char *text, Py_ssize_t length) noexcept:
        """Whether the pattern matches these bytes of UTF-8 from end to end."""
        cdef const char *begin = text + PyBytes_GET_SIZE(self.head)
        cdef const char *end = text + length - PyBytes_GET_SIZE(self.tail)
        cdef bytes piece
        if (
            length < self.least_len
            or memcmp(text, PyBytes_AS_STRING(self.head), <size_t>PyBytes_GET_SIZE(self.head)) != 0
            or memcmp(end, PyBytes_AS_STRING(self.tail), <size_t>PyBytes_GET_SIZE(self.tail)) != 0
        ):
            return False
        for piece in self.middle:
            begin = <const char *>memmem(
                begin, <size_t>(end - begin), PyBytes_AS_STRING(piece), <size_t>PyBytes_GET_SIZE(piece)
            )
            if begin == NULL:
                return False
            begin += PyBytes_GET_SIZE(piece)
        return True


cdef class PrincipalPatterns:
    """The patterns of one key store. patterns: at least one; a principal may use the keys when any of them matches."""

    def __init__(self, patterns):
        self.exact = frozenset([pattern for pattern in patterns if "*" not in pattern])
        self.wildcards = [Wildcard(pattern) for pattern in patterns if "*" in pattern]

    cdef bint permit(self, str principal) except -1:
        cdef Py_ssize_t length = 0
        cdef const char *text
        cdef Wildcard wildcard
        if principal in self.exact:
            return True
        text = PyUnicode_AsUTF8AndSize(principal, &length)
        for wildcard in self.wildcards:
            if wildcard.fits(text, length):
                return True
        return False

    def permits(self, str principal not None):
        """Whether any pattern matches the principal."""
        return self.permit(principal)
