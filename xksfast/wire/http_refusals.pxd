# SPDX-License-Identifier: Apache-2.0
from xksfast.wire.http_rules cimport Framing


cdef object http_refusal(int status, str message)
cdef object framing_refusal(const Framing *framing, size_t path_len, str version)
