# SPDX-License-Identifier: Apache-2.0
"""AES-256-GCM keys of this process, as objects that own them. In Cython because a start may make a hundred thousand."""

from libc.stdint cimport uint8_t, uint32_t, uintptr_t

from xksfast.native.api cimport xks_aes_gcm_key, xks_api, xks_secret_pages, xks_span

import os

cimport cython

from xksfast.native.loader import api_address, check

cdef const xks_api *API = <const xks_api *><uintptr_t>api_address


cdef xks_span _span(const uint8_t[::1] data) noexcept:
    cdef xks_span span
    span.data = &data[0] if data.shape[0] else NULL
    span.len = data.shape[0]
    return span


@cython.no_gc
cdef class AesGcmKey:
    """An AES-256-GCM key from a slot of SecretPages; wiped when nobody holds it any more. IndexError: there is no such slot.

    address: for the request path.
    """

    cdef xks_aes_gcm_key *_key

    def __cinit__(self, pages, uint32_t slot):
        cdef const uint8_t *data = API.secret_pages_view(<const xks_secret_pages *><uintptr_t>pages.address, slot)
        if data == NULL:
            raise IndexError(f"no secret slot {slot}")
        check(API.aes_gcm_key_new(data, &self._key), what="AES key")

    def __dealloc__(self):
        API.aes_gcm_key_free(self._key)

    @property
    def address(self):
        return <uintptr_t>self._key

    def encrypt(self, bytes plaintext not None, bytes aad not None, bytes iv=None):
        """(iv, ciphertext, tag). iv: 12 or 16 bytes; drawn when None."""
        cdef uint8_t[::1] tag = bytearray(16)
        cdef uint8_t[::1] ciphertext = bytearray(len(plaintext) or 1)
        iv = os.urandom(12) if iv is None else iv
        status = API.aes_gcm_encrypt(self._key, _span(iv), _span(aad), _span(plaintext), &ciphertext[0], &tag[0])
        check(status, what="encrypt")
        return iv, bytes(ciphertext[: len(plaintext)]), bytes(tag)

    def decrypt(self, bytes iv not None, bytes ciphertext not None, bytes tag not None, bytes aad not None):
        """The plaintext; NativeError "not authentic" when anything was changed."""
        cdef uint8_t[::1] plaintext = bytearray(len(ciphertext) or 1)
        status = API.aes_gcm_decrypt(self._key, _span(iv), _span(aad), _span(ciphertext), _span(tag), &plaintext[0])
        check(status, what="decrypt")
        return bytes(plaintext[: len(ciphertext)])
