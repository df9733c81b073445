# SPDX-License-Identifier: Apache-2.0
from libc.stdint cimport uint32_t

from xksfast.native.api cimport xks_aes_gcm_key, xks_sigv4_keyring


cdef class ServedKey:
    cdef readonly str external_key_id
    cdef readonly str label
    cdef readonly bint enabled
    cdef bint blocked               # may turn True while requests of it are in flight
    cdef bint may_encrypt
    cdef bint may_decrypt
    cdef readonly str problem       # why the key cannot be served; "" when it can
    cdef bint absent                # the token has no such key
    cdef xks_aes_gcm_key *local     # NULL: a key of the engine
    cdef uint32_t engine_key
    cdef bytes metadata_response
    cdef object keep_alive          # what owns `local`


cdef class ServedStore:
    cdef readonly str name
    cdef readonly bytes prefix
    cdef readonly str region
    cdef bint blocked
    cdef xks_sigv4_keyring *keyring
    cdef object keep_alive          # what owns `keyring`
    cdef readonly dict keys         # external key id as bytes -> ServedKey
    cdef object principals          # compiled pattern of the AWS principals that may use the keys; None: all may
    cdef readonly object fleet      # the key source that answers for health


cdef class ServingTable:
    cdef readonly unsigned long long seq
    cdef readonly dict stores       # path prefix as bytes -> ServedStore
