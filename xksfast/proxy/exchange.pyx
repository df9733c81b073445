# SPDX-License-Identifier: Apache-2.0
"""One request and its answer, and the place the answer goes to.

An Exchange is the only object made per request. It outlives its connection when a token is slower than the client's patience:
then `sink` is None and the result is released unseen.
"""


cdef class Exchange:
    """One request on its way. Fields are set by the connection and the pipeline; see exchange.pxd."""


cdef class AnswerSink:
    """Who is told that an exchange has its answer: the connection, in whose order answers leave."""

    cdef void exchange_answered(self, Exchange exchange):
        raise NotImplementedError
