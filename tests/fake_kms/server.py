# SPDX-License-Identifier: Apache-2.0
"""The HTTP side of the fake KMS: the JSON 1.1 protocol of KMS, two operations of STS, and faults that tests ask for.

A listener with one thread per connection at 127.0.0.1, inside the test's own process, so that a test may look at the account and change
it between calls.
"""

from __future__ import annotations

import functools
import json
import secrets
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl

from tests.fake_kms import crypto, keys, stores
from tests.fake_kms.account import ACCOUNT, Account
from tests.fake_kms.errors import KmsError
from tests.fake_kms.shapes import check_answer, check_request
from tests.fake_kms.sigv4 import AwsCredential, verify

TARGET_PREFIX = "TrentService."
USER_ARN = f"arn:aws:iam::{ACCOUNT}:user/tester"

Handler = Callable[[Account, dict[str, Any]], dict[str, Any]]
UsingHandler = Callable[[Account, dict[str, Any], str], dict[str, Any]]

OPERATIONS: dict[str, Handler] = {
    "CreateCustomKeyStore": stores.create,
    "DescribeCustomKeyStores": stores.describe,
    "ConnectCustomKeyStore": stores.connect,
    "DisconnectCustomKeyStore": stores.disconnect,
    "UpdateCustomKeyStore": stores.update,
    "DeleteCustomKeyStore": stores.delete,
    "DescribeKey": keys.describe,
    "ListKeys": keys.list_keys,
    "EnableKey": keys.enable,
    "DisableKey": keys.disable,
    "UpdateKeyDescription": keys.set_description,
    "ScheduleKeyDeletion": keys.schedule_deletion,
    "CancelKeyDeletion": keys.cancel_deletion,
    "CreateAlias": keys.create_alias,
    "UpdateAlias": keys.update_alias,
    "DeleteAlias": keys.delete_alias,
    "ListAliases": keys.list_aliases,
    "TagResource": keys.tag,
    "UntagResource": keys.untag,
    "ListResourceTags": keys.list_tags,
}
# These tell the proxy who is asking.
USING: dict[str, UsingHandler] = {
    "CreateKey": keys.create,
    "Encrypt": crypto.encrypt,
    "Decrypt": crypto.decrypt,
    "GenerateDataKey": crypto.generate_data_key,
}


class _Fault:
    """What happens to one call of an operation. lost: it is carried out, but the connection closes instead of an answer."""

    def __init__(self, error: str = "", *, slow_s: float = 0.0, lost: bool = False) -> None:
        self.error = error
        self.slow_s = slow_s
        self.lost = lost


class FakeKms:
    """Use as a context manager. url: of KMS and of STS. access_key_id, secret_access_key: what the tests' boto3 signs with.

    calls: operation names in the order in which they came, refused ones included.
    """

    def __init__(
        self,
        *,
        region: str = "us-east-1",
        ca_file: str | None = None,
        limit_s: float = 0.25,
        connect_s: float = 0.05,
        disconnect_s: float = 0.02,
    ) -> None:
        self._new_account = functools.partial(
            Account, region, ca_file=ca_file, limit_s=limit_s, connect_s=connect_s, disconnect_s=disconnect_s
        )
        self.account = self._new_account()
        self.region = region
        self.access_key_id = "AKIA" + secrets.token_hex(8).upper()
        self.secret_access_key = secrets.token_urlsafe(30)
        self.calls: list[str] = []
        self.role_arns: list[str] = []
        self.problems: list[BaseException] = []
        self._known: dict[str, AwsCredential] = {self.access_key_id: AwsCredential(self.secret_access_key, USER_ARN)}
        self._faults: dict[str, list[_Fault]] = defaultdict(list)
        self._lock = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), _RequestHandler)
        self._server.fake = self
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, name="fake-kms")

    def __enter__(self) -> FakeKms:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        assert self.problems == [], self.problems

    def reset(self) -> None:
        """An empty account, and no fault that an earlier test asked for."""
        assert self.problems == [], self.problems
        self.account = self._new_account()
        self.calls.clear()
        self.role_arns.clear()
        self._faults.clear()

    # --- what tests ask for

    def refuse(self, operation: str, error: str, *, times: int = 1) -> None:
        """The next calls of an operation are refused with this of AWS's errors."""
        self._faults[operation] += [_Fault(error) for _ in range(times)]

    def throttle(self, operation: str, *, times: int = 1) -> None:
        """The next calls of an operation are throttled."""
        self.refuse(operation, "ThrottlingException", times=times)

    def delay(self, operation: str, seconds: float, *, times: int = 1) -> None:
        """The next calls of an operation are answered late."""
        self._faults[operation] += [_Fault(slow_s=seconds) for _ in range(times)]

    def lose_answer(self, operation: str, *, times: int = 1) -> None:
        """The next calls of an operation are carried out, but their answers are lost."""
        self._faults[operation] += [_Fault(lost=True) for _ in range(times)]

    def fail_connect(self, code: str) -> None:
        """The next ConnectCustomKeyStore ends with this connection error code."""
        self.account.failures.append(code)

    # --- requests

    def answer(
        self, method: str, target: str, headers: dict[str, str], body: bytes
    ) -> tuple[int, dict[str, str], bytes] | None:
        """(status, headers, body), or None: close without an answer."""
        if "x-amz-target" not in headers:
            return self._answer_sts(method, target, headers, body)
        name = headers["x-amz-target"].removeprefix(TARGET_PREFIX)
        with self._lock:
            self.calls.append(name)
            fault = self._faults[name].pop(0) if self._faults[name] else _Fault()
        time.sleep(fault.slow_s)
        try:
            if fault.error:
                raise KmsError(fault.error, "asked for by the test")
            status, document = 200, self._perform(name, method, target, headers, body)
        except KmsError as error:
            status, document = error.http_status, {"__type": error.name, "message": error.message}
        if fault.lost:
            return None
        headers = {"Content-Type": "application/x-amz-json-1.1", "x-amzn-RequestId": str(uuid.uuid4())}
        return status, headers, json.dumps(document).encode()

    def _perform(self, name: str, method: str, target: str, headers: dict[str, str], body: bytes) -> dict[str, Any]:
        if method != "POST" or name not in OPERATIONS.keys() | USING.keys():
            raise KmsError("UnknownOperationException", name)
        if headers.get("content-type") != "application/x-amz-json-1.1":
            raise KmsError("UnknownOperationException", "the content type is not that of JSON 1.1")
        caller = verify(method, target, headers, body, region=self.region, service="kms", known=self._known)
        try:
            document = json.loads(body)
        except ValueError:
            raise KmsError("SerializationException", "the body is not JSON") from None
        request = check_request(name, document)
        with self._lock:
            answer = (
                USING[name](self.account, request, caller.arn) if name in USING else OPERATIONS[name](self.account, request)
            )
        check_answer(name, answer)
        return answer

    def _answer_sts(self, method: str, target: str, headers: dict[str, str], body: bytes) -> tuple[int, dict[str, str], bytes]:
        form = dict(parse_qsl(body.decode()))
        name = form.get("Action", "")
        with self._lock:
            self.calls.append(name)
        try:
            caller = verify(method, target, headers, body, region=self.region, service="sts", known=self._known)
            inner = self._assume(form) if name == "AssumeRole" else _identity(caller)
            status = 200
            text = f"<{name}Response><{name}Result>{inner}</{name}Result></{name}Response>"
        except KmsError as error:
            status = 403
            text = f"<ErrorResponse><Error><Code>{error.name}</Code><Message>{error.message}</Message></Error></ErrorResponse>"
        return status, {"Content-Type": "text/xml"}, text.encode()

    def _assume(self, form: dict[str, str]) -> str:
        role = form["RoleArn"]
        if role not in self.role_arns:
            raise KmsError("AccessDenied", f"not authorized to perform: sts:AssumeRole on resource: {role}")
        access_key_id, secret, token = (
            "ASIA" + secrets.token_hex(8).upper(),
            secrets.token_urlsafe(30),
            secrets.token_urlsafe(40),
        )
        arn = f"arn:aws:sts::{ACCOUNT}:assumed-role/{role.rpartition('/')[2]}/{form['RoleSessionName']}"
        self._known[access_key_id] = AwsCredential(secret, arn, token)
        expires = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + int(form.get("DurationSeconds", "3600"))))
        return (
            f"<Credentials><AccessKeyId>{access_key_id}</AccessKeyId><SecretAccessKey>{secret}</SecretAccessKey>"
            f"<SessionToken>{token}</SessionToken><Expiration>{expires}</Expiration></Credentials>"
            f"<AssumedRoleUser><Arn>{arn}</Arn><AssumedRoleId>AROAEXAMPLE:xksfast</AssumedRoleId></AssumedRoleUser>"
        )


def _identity(caller: AwsCredential) -> str:
    return f"<Arn>{caller.arn}</Arn><UserId>AIDAEXAMPLE</UserId><Account>{ACCOUNT}</Account>"


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    fake: FakeKms

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that gave up waiting is no fault; one of the fake is kept in `problems`."""


class _RequestHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        headers = {name.lower(): value for name, value in self.headers.items()}
        try:
            answered = self.server.fake.answer(self.command, self.path, headers, body)
        except BaseException as problem:  # a fault of the fake itself: the test must fail, not only see a closed connection
            self.server.fake.problems.append(problem)
            raise
        if answered is None:
            self.close_connection = True
            return
        status, answer_headers, answer = answered
        self.send_response(status)
        for name, value in {**answer_headers, "Content-Length": str(len(answer))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(answer)

    do_GET = do_POST

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: requests hold secrets."""
