# SPDX-License-Identifier: Apache-2.0
"""Calling an external key store proxy as KMS does: HTTPS on a connection of its own, SigV4, a limit of 250 ms, answers judged.

What a failure means for each KMS operation stands in `stores` and `keys`; here it only gets a kind.
"""

from __future__ import annotations

import http.client
import json
import socket
import ssl
import time
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

SERVICE = "kms-xks-proxy"


class Fault(Enum):
    """What went wrong. The last ones are errorNames of the XKS API that KMS treats each in its own way."""

    NOT_REACHABLE = auto()
    TIMED_OUT = auto()
    TLS = auto()
    INVALID_RESPONSE = auto()
    AUTHENTICATION = auto()
    ACCESS_DENIED = auto()
    URI_PATH = auto()
    KEY_NOT_FOUND = auto()
    INVALID_STATE = auto()
    KEY_USAGE = auto()
    CIPHERTEXT = auto()
    THROTTLED = auto()
    UNSUPPORTED = auto()
    UNHEALTHY = auto()


class ProxyFailure(Exception):
    """A call to the proxy failed. text: what KMS would tell its caller."""

    def __init__(self, fault: Fault, text: str) -> None:
        super().__init__(text)
        self.fault = fault
        self.text = text


# errorName -> (HTTP status that must go with it, fault). Source: XKS Proxy API spec v1.0.3, Error codes.
_ERRORS = {
    "ValidationException": (400, Fault.INVALID_RESPONSE, "KMS cannot interpret the response of the proxy"),
    "InvalidStateException": (400, Fault.INVALID_STATE, "the external key is not enabled in the external key manager"),
    "InvalidCiphertextException": (
        400,
        Fault.CIPHERTEXT,
        "the ciphertext or additional authenticated data is corrupted or missing",
    ),
    "InvalidKeyUsageException": (400, Fault.KEY_USAGE, "the external key does not support the requested operation"),
    "AuthenticationFailedException": (401, Fault.AUTHENTICATION, "the proxy could not authenticate AWS KMS"),
    "AccessDeniedException": (403, Fault.ACCESS_DENIED, "the proxy denied access to the operation or the external key"),
    "KeyNotFoundException": (404, Fault.KEY_NOT_FOUND, "the proxy could not find the external key"),
    "InvalidUriPathException": (404, Fault.URI_PATH, "the proxy rejected the request because of an invalid URI path"),
    "ThrottlingException": (429, Fault.THROTTLED, "the proxy rejected the request due to a very high request rate"),
    "InternalException": (500, Fault.INVALID_RESPONSE, "KMS cannot interpret the response of the proxy"),
    "UnsupportedOperationException": (
        501,
        Fault.UNSUPPORTED,
        "the proxy does not support the requested cryptographic operation",
    ),
    "DependencyTimeoutException": (503, Fault.TIMED_OUT, "the proxy did not respond in the time allotted"),
}


@dataclass(frozen=True)
class Way:
    """How to reach a proxy. host: of the endpoint, for TLS and the Host header. address: where DNS or the VPC leads, None: nowhere."""

    host: str
    address: tuple[str, int] | None
    uri_path: str
    region: str
    access_key_id: str
    secret_access_key: str
    ca_file: str | None
    limit_s: float


class _Connection(http.client.HTTPSConnection):
    """To an address of our choice, under the endpoint's name and KMS's port, with one limit for everything."""

    def __init__(self, way: Way, address: tuple[str, int]) -> None:
        self._context = ssl.create_default_context(cafile=way.ca_file)
        self._context.minimum_version = ssl.TLSVersion.TLSv1_2
        super().__init__(way.host, 443, context=self._context)
        self._way = way
        self._address = address
        self._deadline = time.monotonic() + way.limit_s

    def connect(self) -> None:
        plain = socket.create_connection(self._address, self.left())
        try:
            plain.settimeout(self.left())
            self.sock = self._context.wrap_socket(plain, server_hostname=self._way.host)
        except BaseException:
            plain.close()
            raise
        self.sock.settimeout(self.left())

    def left(self) -> float:
        """Seconds until the limit. TimeoutError after it."""
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        return left


def call(way: Way, path: str, document: dict[str, Any]) -> dict[str, Any]:
    """One signed POST to <uri_path><path>. The answer's members; ProxyFailure for anything that KMS does not take."""
    if way.address is None:
        raise ProxyFailure(Fault.NOT_REACHABLE, "KMS cannot communicate with the proxy")
    body = json.dumps(document).encode()
    url = f"https://{way.host}{way.uri_path}{path}"
    request = AWSRequest(method="POST", url=url, data=body, headers={"Content-Type": "application/json"})
    SigV4Auth(Credentials(way.access_key_id, way.secret_access_key), SERVICE, way.region).add_auth(request)
    connection = _Connection(way, way.address)
    try:
        connection.request("POST", f"{way.uri_path}{path}", body, dict(request.headers.items()))
        assert connection.sock is not None
        _check_common_name(connection.sock, way.host)  # type: ignore[arg-type]
        connection.sock.settimeout(connection.left())
        response = connection.getresponse()
        status, content_type, raw = response.status, response.getheader("Content-Type", ""), response.read()
        connection.left()
    except TimeoutError:
        raise ProxyFailure(Fault.TIMED_OUT, "the proxy did not respond in time") from None
    except ssl.SSLError:
        raise ProxyFailure(Fault.TLS, "KMS cannot establish a TLS connection to the proxy") from None
    except http.client.HTTPException:
        raise ProxyFailure(Fault.INVALID_RESPONSE, "KMS cannot interpret the response of the proxy") from None
    except OSError:
        raise ProxyFailure(Fault.NOT_REACHABLE, "KMS cannot communicate with the proxy") from None
    finally:
        connection.close()
    return _judge(status, content_type, raw)


def _check_common_name(sock: ssl.SSLSocket, host: str) -> None:
    """Beyond what TLS checks, AWS wants the common name to be the host or its wildcard."""
    subject = (sock.getpeercert() or {}).get("subject", ())
    names = [value for part in subject for name, value in part if name == "commonName"]
    if not {host, f"*.{host.partition('.')[2]}"} & set(names):
        raise ProxyFailure(Fault.TLS, "KMS cannot establish a TLS connection to the proxy: the common name does not match")


def _judge(status: int, content_type: str, raw: bytes) -> dict[str, Any]:
    try:
        answer = json.loads(raw)
    except ValueError:
        answer = None
    if not isinstance(answer, dict) or content_type.partition(";")[0].strip() != "application/json":
        raise ProxyFailure(Fault.INVALID_RESPONSE, "KMS cannot interpret the response of the proxy")
    if status == 200:
        return answer
    wanted, fault, text = _ERRORS.get(str(answer.get("errorName")), (0, Fault.INVALID_RESPONSE, ""))
    if status != wanted:
        raise ProxyFailure(Fault.INVALID_RESPONSE, "KMS cannot interpret the response of the proxy")
    raise ProxyFailure(fault, f"The external key store proxy rejected the request: {text}.")


def check_health(way: Way, operation: str, request_id: str) -> None:
    """GetHealthStatus as for this KMS operation. ProxyFailure also when every external key manager is unavailable."""
    answer = call(way, "/health", {"requestMetadata": {"kmsRequestId": request_id, "kmsOperation": operation}})
    fleet = answer.get("ekmFleetDetails")
    complete = (
        isinstance(answer.get("xksProxyFleetSize"), int)
        and all(isinstance(answer.get(name), str) for name in ("xksProxyVendor", "xksProxyModel", "ekmVendor"))
        and isinstance(fleet, list)
        and 1 <= len(fleet) <= 10
        and all(isinstance(entry, dict) and entry.keys() >= {"id", "model", "healthStatus"} for entry in fleet)
    )
    if not complete or not isinstance(fleet, list):
        raise ProxyFailure(Fault.INVALID_RESPONSE, "KMS cannot interpret the response of the proxy")
    if all(entry["healthStatus"] == "UNAVAILABLE" for entry in fleet):
        raise ProxyFailure(Fault.UNHEALTHY, "The external key store proxy is in an unhealthy state.")
