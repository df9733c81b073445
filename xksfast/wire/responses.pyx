# SPDX-License-Identifier: Apache-2.0
"""Responses as bytes: status line, headers and one line of compact JSON.

Encrypt and Decrypt are assembled by hand, Base64 written straight into the response, since they are every second of KMS's traffic;
everything else is orjson. No response holds anything but the spec's members.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport uint8_t, uintptr_t
from libc.string cimport memcpy

import orjson

from xksfast.errors import MAX_ERROR_MESSAGE_CHARS
from xksfast.native.api cimport xks_api, xks_job
from xksfast.native.loader import api_address

cdef const xks_api *API = <const xks_api *><uintptr_t>api_address

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"

_REASONS = {
    200: "OK", 400: "Bad Request", 401: "Unauthorized", 403: "Forbidden", 404: "Not Found", 405: "Method Not Allowed",
    408: "Request Timeout", 411: "Length Required", 413: "Content Too Large", 417: "Expectation Failed",
    429: "Too Many Requests", 431: "Request Header Fields Too Large", 500: "Internal Server Error", 501: "Not Implemented",
    503: "Service Unavailable", 505: "HTTP Version Not Supported",
}

cdef bytes HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: "
cdef bytes CIPHERTEXT = b'{"ciphertext":"'
cdef bytes INITIALIZATION_VECTOR = b'","initializationVector":"'
cdef bytes AUTHENTICATION_TAG = b'","authenticationTag":"'
cdef bytes CIPHERTEXT_METADATA = b'","ciphertextMetadata":"'
cdef bytes CDIV = b'","ciphertextDataIntegrityValue":"'
cdef bytes PLAINTEXT = b'{"plaintext":"'
cdef bytes END = b'"}'


cdef inline char *_put(char *at, bytes text) noexcept:
    memcpy(at, PyBytes_AS_STRING(text), <size_t>PyBytes_GET_SIZE(text))
    return at + PyBytes_GET_SIZE(text)


cdef inline char *_put_base64(char *at, const uint8_t *data, size_t data_len) noexcept:
    API.base64_encode(data, data_len, at)
    return at + API.base64_encoded_len(data_len)


cdef size_t _decimal(size_t value, char *out) noexcept:
    """`value` in decimal digits to `out` (room for 20); returns their number."""
    cdef char digits[20]
    cdef size_t count = 0, i
    while True:
        digits[count] = <char>(48 + value % 10)
        count += 1
        value //= 10
        if value == 0:
            break
    for i in range(count):
        out[i] = digits[count - 1 - i]
    return count


cdef bytes _with_room(size_t body_len):
    """A 200 response whose head is written and whose last body_len bytes are for the caller to fill."""
    cdef char digits[24]
    cdef size_t digit_count = _decimal(body_len, digits)
    memcpy(digits + digit_count, b"\r\n\r\n", 4)
    cdef bytes response = PyBytes_FromStringAndSize(NULL, PyBytes_GET_SIZE(HEAD) + <Py_ssize_t>(digit_count + 4 + body_len))
    memcpy(_put(PyBytes_AS_STRING(response), HEAD), digits, digit_count + 4)
    return response


cdef inline char *_room(bytes response, size_t body_len) noexcept:
    return PyBytes_AS_STRING(response) + PyBytes_GET_SIZE(response) - <Py_ssize_t>body_len


cdef bytes json_response(bytes body):
    """200 with a body that is JSON already."""
    return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)


cdef bytes encrypt_response(const xks_job *job):
    """Encrypt: ciphertext, initializationVector, authenticationTag, ciphertextMetadata and CDIV where there are any."""
    cdef size_t body_len = (
        len(CIPHERTEXT) + API.base64_encoded_len(job.output_len)
        + len(INITIALIZATION_VECTOR) + API.base64_encoded_len(job.iv_len)
        + len(AUTHENTICATION_TAG) + API.base64_encoded_len(16)
        + len(END)
    )
    if job.metadata_len:
        body_len += len(CIPHERTEXT_METADATA) + API.base64_encoded_len(job.metadata_len)
    if job.want_cdiv:
        body_len += len(CDIV) + API.base64_encoded_len(32)
    cdef bytes response = _with_room(body_len)
    cdef char *at = _put(_room(response, body_len), CIPHERTEXT)
    at = _put_base64(at, job.output, job.output_len)
    at = _put(at, INITIALIZATION_VECTOR)
    at = _put_base64(at, job.iv, job.iv_len)
    at = _put(at, AUTHENTICATION_TAG)
    at = _put_base64(at, job.tag, 16)
    if job.metadata_len:
        at = _put(at, CIPHERTEXT_METADATA)
        at = _put_base64(at, job.metadata, job.metadata_len)
    if job.want_cdiv:
        at = _put(at, CDIV)
        at = _put_base64(at, job.cdiv, 32)
    _put(at, END)
    return response


cdef bytes decrypt_response(const xks_job *job):
    """Decrypt: plaintext."""
    cdef size_t body_len = len(PLAINTEXT) + API.base64_encoded_len(job.output_len) + len(END)
    cdef bytes response = _with_room(body_len)
    cdef char *at = _put(_room(response, body_len), PLAINTEXT)
    at = _put_base64(at, job.output, job.output_len)
    _put(at, END)
    return response


cdef bytes error_response(object error):
    """What KMS sees of an XksError."""
    message = error.message[:MAX_ERROR_MESSAGE_CHARS].encode("ascii", "replace").decode("ascii")
    document = {"errorName": error.name.error_name}
    if message:
        document["errorMessage"] = message
    body = orjson.dumps(document)
    head = f"HTTP/1.1 {error.http_status} {_REASONS.get(error.http_status, 'Error')}\r\nContent-Type: application/json\r\n"
    if error.http_status == 405:
        head += "Allow: POST\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode("ascii") + body


cdef bytes last_response(bytes response, bint bodiless):
    """`response` as the last one of its connection. bodiless: it answers HEAD, whose answers end with their head."""
    cdef Py_ssize_t at = response.index(b"\r\n") + 2
    cdef Py_ssize_t end = response.index(b"\r\n\r\n") + 4 if bodiless else PyBytes_GET_SIZE(response)
    return b"%bConnection: close\r\n%b" % (response[:at], response[at:end])


def render_error(error):
    """error_response for Python callers."""
    return error_response(error)


def render_last(response, bodiless=False):
    """last_response for Python callers."""
    return last_response(response, bodiless)


def render_json(body):
    """json_response for Python callers."""
    return json_response(body)


def metadata_body(usage, enabled):
    """The body of GetKeyMetadata. usage: of ENCRYPT and DECRYPT."""
    return orjson.dumps(
        {"keySpec": "AES_256", "keyUsage": list(usage), "keyStatus": "ENABLED" if enabled else "DISABLED"}
    )
