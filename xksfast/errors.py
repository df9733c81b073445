# SPDX-License-Identifier: Apache-2.0
"""Every error of the package: those KMS is told about, and those an operator is.

What lives here: `XksError`, the XKS API's error names with their HTTP status (the only table of them), and `OperatorError`,
whose text says what is wrong, why, and what to do next. What must not: handling. A newcomer's trap: the text of an XksError goes
to KMS and from there into the CloudWatch log of the calling account, so it never holds a cause of ours, only the rule that was
broken; the cause goes to our log.
"""

from __future__ import annotations

from enum import Enum

MAX_ERROR_MESSAGE_CHARS = 511  # "less than 512 characters", printable ASCII


class XksErrorName(Enum):
    """The twelve errors of the XKS API and the HTTP status of each. Source: XKS Proxy API spec v1.0.3, Error codes."""

    VALIDATION = ("ValidationException", 400)
    INVALID_STATE = ("InvalidStateException", 400)
    INVALID_CIPHERTEXT = ("InvalidCiphertextException", 400)
    INVALID_KEY_USAGE = ("InvalidKeyUsageException", 400)
    AUTHENTICATION_FAILED = ("AuthenticationFailedException", 401)
    ACCESS_DENIED = ("AccessDeniedException", 403)
    KEY_NOT_FOUND = ("KeyNotFoundException", 404)
    INVALID_URI_PATH = ("InvalidUriPathException", 404)
    THROTTLING = ("ThrottlingException", 429)
    INTERNAL = ("InternalException", 500)
    UNSUPPORTED_OPERATION = ("UnsupportedOperationException", 501)
    DEPENDENCY_TIMEOUT = ("DependencyTimeoutException", 503)

    def __init__(self, error_name: str, http_status: int) -> None:
        self.error_name = error_name
        self.http_status = http_status


class XksError(Exception):
    """A request is refused. `message` is for KMS: printable ASCII, under 512 characters, no cause of ours.

    `http_status` differs from the name's own only for refusals of HTTP itself (405, 408, 413, ...), which the XKS API does not
    name. `cause` is for our log.
    """

    def __init__(self, name: XksErrorName, message: str = "", *, http_status: int = 0, cause: str = "") -> None:
        super().__init__(name, message, http_status, cause)
        self.name = name
        self.message = message
        self.http_status = http_status or name.http_status
        self.cause = cause


class OperatorError(Exception):
    """Something an operator must mend. The text names the thing, what is wrong, and what to do next.

    is_final: a token refused the PIN, and may lock when it is tried again before somebody has corrected it.
    """

    is_final = False


def is_final(error: BaseException | None) -> bool:
    """Whether this error, or one that it came of, is final."""
    while error is not None:
        if getattr(error, "is_final", False):
            return True
        error = error.__cause__ or error.__context__
    return False


class ConfigError(OperatorError):
    """A configuration value is wrong: `key` as a dotted path ("partitions.p0.profile"), `problem` in words."""

    def __init__(self, key: str, problem: str, *, source: str = "") -> None:
        where = f"{source}: " if source else ""
        super().__init__(f"{where}{key}: {problem}" if key else f"{where}{problem}")
        self.key = key
        self.problem = problem
        self.source = source


class NativeError(OperatorError):
    """A native call failed for a reason outside the request path (loading a certificate, opening a token)."""
