# SPDX-License-Identifier: Apache-2.0
from xksfast.native.api cimport xks_job, xks_status


cdef submit_refusal(xks_status status)
cdef job_refusal(const xks_job *job)
