# SPDX-License-Identifier: Apache-2.0
"""Why a key source did not do a job: its status as the XksError that KMS is answered with. CK_RV names are for our log."""

from libc.stdint cimport uintptr_t

from xksfast.native.api cimport (
    XKS_BUSY, XKS_CONFIG, XKS_NOT_AUTHENTIC, XKS_NOT_FOUND, XKS_NOT_PERMITTED, XKS_TIMEOUT, XKS_UNAVAILABLE, xks_api, xks_job, xks_status,
)

from xksfast.errors import XksError, XksErrorName
from xksfast.native.loader import api_address

WRONG_KEY = "no partition has the right key under this label: key_not_served or key_refused in the log says which and why"

cdef const xks_api *API = <const xks_api *><uintptr_t>api_address


cdef submit_refusal(xks_status status):
    """For a job that the engine did not take."""
    if status == XKS_BUSY:
        return XksError(XksErrorName.THROTTLING, "The proxy is at its limit of queued requests", cause="engine queue full")
    if status == XKS_TIMEOUT:
        return XksError(
            XksErrorName.DEPENDENCY_TIMEOUT, "The key manager cannot answer in time", cause="no partition would answer in time"
        )
    if status == XKS_NOT_FOUND:
        return XksError(
            XksErrorName.KEY_NOT_FOUND, "The key manager has no such key",
            cause="every partition of the group is in service and has no such key",
        )
    if status == XKS_CONFIG:
        return XksError(XksErrorName.INTERNAL, "The key manager cannot use the key", cause=WRONG_KEY)
    return XksError(
        XksErrorName.INTERNAL, "The key manager is not available",
        cause="no partition can use the key now, and one of them is out of service or cannot be asked for the key",
    )


cdef job_refusal(const xks_job *job):
    """For a job that did not end in XKS_OK."""
    cause = ""
    if job.failed_call != NULL:
        cause = f"{job.failed_call.decode('ascii')}: {API.ckr_name(job.ckr).decode('ascii')}"
    if job.status == XKS_NOT_AUTHENTIC:
        return XksError(
            XksErrorName.INVALID_CIPHERTEXT, "Ciphertext, IV, tag, AAD or metadata do not belong together", cause=cause
        )
    if job.status == XKS_NOT_PERMITTED:
        return XksError(XksErrorName.INVALID_KEY_USAGE, "The key manager forbids this use of the key", cause=cause)
    if job.status == XKS_NOT_FOUND:
        return XksError(XksErrorName.KEY_NOT_FOUND, "The key manager has no such key", cause=cause)
    if job.status == XKS_TIMEOUT:
        return XksError(XksErrorName.DEPENDENCY_TIMEOUT, "The key manager did not answer in time", cause=cause)
    if job.status == XKS_BUSY:
        return XksError(XksErrorName.THROTTLING, "The key manager is at its limit", cause=cause)
    if job.status == XKS_CONFIG:
        return XksError(XksErrorName.INTERNAL, "The key manager cannot use the key", cause=cause or WRONG_KEY)
    if job.status == XKS_UNAVAILABLE:
        return XksError(XksErrorName.INTERNAL, "The key manager failed", cause=cause)
    return XksError(XksErrorName.INTERNAL, "The key manager failed", cause=cause or f"job status {<int>job.status}")
