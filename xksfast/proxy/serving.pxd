# SPDX-License-Identifier: Apache-2.0
from libc.stdint cimport int64_t, uint32_t, uint64_t

from xksfast.native.api cimport xks_aes_gcm_key, xks_sigv4_keyring
from xksfast.proxy.principals cimport PrincipalPatterns


cdef class ServedVersion:
    cdef readonly uint32_t number
    cdef readonly str label         # of the source key
    cdef uint32_t engine_key        # where `local` is NULL
    cdef readonly bint absent       # the key source has no such key
    cdef readonly str problem       # why it cannot be used; "" when it can
    cdef xks_aes_gcm_key *local     # NULL: a key of the engine
    cdef object owner               # of `local`; None: a key of the engine
    cdef uint64_t encryptions       # not reported yet; not 0: it stands in Usage's list


cdef class ServedKey:
    cdef readonly bytes external_key_id
    cdef readonly bint enabled
    cdef readonly bint blocked
    cdef bint may_encrypt
    cdef bint may_decrypt
    cdef readonly tuple usage
    cdef readonly ServedVersion current     # the last version: it encrypts
    cdef dict older                 # number -> ServedVersion; None: there is one version
    cdef bytes metadata_response    # shared by all keys with the same

    cdef ServedVersion version(self, uint32_t number)
    cdef void _refresh(self)


cdef class ServedCredential:
    cdef readonly str access_key_id
    cdef int64_t used_at            # unix seconds of the last use that is not reported yet; not 0: it stands in Usage's list


cdef class ServedStore:
    cdef readonly str name
    cdef readonly bytes prefix
    cdef readonly str region
    cdef readonly bint blocked
    cdef bint sample_aad            # ciphertexts that do not carry our metadata were made by AWS's sample proxy
    cdef xks_sigv4_keyring *keyring
    cdef object ring                # native.crypto.Keyring, which owns `keyring`
    cdef list credentials           # ServedCredentials, by their index in the keyring
    cdef readonly dict keys         # external key id as bytes -> ServedKey
    cdef PrincipalPatterns principals    # the AWS principals that may use the keys; None: all may
    cdef tuple narrowed             # PrincipalPatterns that principals must match as well, of deltas not applied yet; None: there are none
    cdef readonly object source     # the key source
    cdef readonly object fleet      # of `source`: it answers for health

    cdef bint permits(self, str principal) except -1
    cdef Py_ssize_t index_of(self, str access_key_id) except -2
    cdef void _set(self, store)


cdef class ServingTable:
    cdef public unsigned long long seq
    cdef uint64_t changes           # grows with everything that is blocked, disabled or removed, and with the table itself
    cdef readonly dict stores       # path prefix as bytes -> ServedStore
    cdef readonly dict names        # name -> ServedStore
    cdef list dropped               # (key source, what has tickets() of it)
