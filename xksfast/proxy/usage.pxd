# SPDX-License-Identifier: Apache-2.0
from libc.stdint cimport int64_t, uint64_t

from xksfast.proxy.serving cimport ServedCredential, ServedKey, ServedStore, ServedVersion


cdef class Usage:
    cdef list versions              # (key store, external key id, ServedVersion) whose encryptions are not reported
    cdef list credentials           # (key store, ServedCredential) whose use is not reported

    cdef void encrypted(self, ServedStore store, ServedKey key, ServedVersion version, uint64_t times)
    cdef void signed(self, ServedStore store, ServedCredential credential, int64_t now)
