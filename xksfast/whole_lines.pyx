# SPDX-License-Identifier: Apache-2.0
"""Writing lines to a pipe that other processes write to as well, so that no line is torn.

The kernel keeps a write to a pipe in one piece up to PIPE_BUF bytes, and may put others' bytes into the middle of a longer one. So
each write is whole lines of at most that. A newcomer's trap: this is C without the interpreter's lock because there are many writes;
getting the lock back after each of them would stop the event loop as often.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.errno cimport EAGAIN, EINTR, errno
from posix.unistd cimport write

cdef extern from "string.h" nogil:
    void *memrchr(const void *text, int character, size_t length)

cdef extern from "poll.h" nogil:
    cdef struct pollfd:
        int fd
        short events
        short revents
    int poll(pollfd *fds, unsigned long count, int timeout_ms)
    enum: POLLOUT

cdef extern from "limits.h":
    enum: PIPE_BUF

MAX_LINE_BYTES = <int>PIPE_BUF  # 4096 on Linux


def write_lines(int fd, bytes lines not None):
    """Write all of it, and wait as long as that takes. Returns 0, or the errno of what it cannot be written for.

    lines: whole lines. One that is longer than MAX_LINE_BYTES may be torn.
    """
    cdef const char *at = PyBytes_AS_STRING(lines)
    cdef const char *end = at + PyBytes_GET_SIZE(lines)
    cdef const char *newline
    cdef Py_ssize_t size, written
    cdef pollfd waiting
    cdef int problem = 0
    with nogil:
        while at < end and problem == 0:
            size = end - at
            if size > PIPE_BUF:
                size = PIPE_BUF
                newline = <const char *>memrchr(at, b"\n", <size_t>size)
                if newline != NULL:
                    size = newline + 1 - at
            written = write(fd, at, <size_t>size)
            if written >= 0:
                at += written
            elif errno == EAGAIN:  # somebody made it non-blocking
                waiting.fd, waiting.events = fd, POLLOUT
                poll(&waiting, 1, -1)
            elif errno != EINTR:
                problem = errno
    return problem
