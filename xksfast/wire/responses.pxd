# SPDX-License-Identifier: Apache-2.0
from xksfast.native.api cimport xks_job


cdef bytes json_response(bytes body)
cdef bytes encrypt_response(const xks_job *job)
cdef bytes decrypt_response(const xks_job *job)
cdef bytes error_response(object error)
cdef bytes last_response(bytes response, bint bodiless)
