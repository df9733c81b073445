# SPDX-License-Identifier: Apache-2.0
"""What the log says of one request: names, codes and times to find it by. Never a plaintext, an AAD, a key, a signature."""

from libc.stdint cimport uint64_t

from xksfast.native.api cimport xks_job
from xksfast.proxy.exchange cimport Exchange

from xksfast.errors import XksErrorName
from xksfast.wire import limits
from xksfast.wire.routes import OPERATION_NAMES

cdef Py_ssize_t MAX_LOGGED = limits.MAX_LOGGED_CHARS
cdef Py_ssize_t MAX_LOGGED_PRINCIPAL = limits.MAX_LOGGED_PRINCIPAL_CHARS
cdef object ACCESS_DENIED = XksErrorName.ACCESS_DENIED


cdef dict request_line(Exchange exchange, object error, list partition_names, uint64_t now_ns):
    """The fields of its line. error: the XksError it was refused with; None: it was answered. partition_names: by their index."""
    cdef xks_job *job = exchange.job
    cdef dict line = {
        "event": "request",
        "kms_request_id": None if exchange.request_id is None else exchange.request_id[:MAX_LOGGED],
        "operation": OPERATION_NAMES[exchange.operation] or None,
        "key_store": None if exchange.store is None else exchange.store.name,
        "external_key_id": None if exchange.key is None else exchange.key.external_key_id.decode("ascii"),
        "partition": None,
        "result": "ok" if error is None else error.name.error_name,
        "us": (now_ns - exchange.first_byte_ns) // 1000,
    }
    if job != NULL and exchange.version is not None and exchange.version.local == NULL and job.partition < <size_t>len(partition_names):
        line["partition"] = partition_names[job.partition]
    if error is not None:
        line["http_status"] = error.http_status
        line["message"] = error.message
        if error.name is ACCESS_DENIED and exchange.principal is not None:
            line["aws_principal_arn"] = exchange.principal[:MAX_LOGGED_PRINCIPAL]
        if error.cause:
            line["cause"] = error.cause
    return line
