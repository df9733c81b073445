# SPDX-License-Identifier: Apache-2.0
"""URIs, methods, HTTP, SigV4 over real sockets. Numbers: XKS proxy requirements."""

from __future__ import annotations

import datetime
import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from bench.requests import Target
from tests.client import Client
from tests.fix_proxy import RunningProxy

requirement = pytest.mark.requirement
OPERATIONS = ["health", "metadata", "encrypt", "decrypt"]


@requirement(1, 2, 15, 17, 18, 100, 103, 156)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_all_four_uris_answer_a_signed_post(local_client: Client, operation: str) -> None:
    answer = local_client.call(operation)
    assert answer.status == 200
    assert answer.headers["content-type"] == "application/json"


@requirement(16)
@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_another_method_is_not_allowed(local_client: Client, operation: str, method: str) -> None:
    answer = local_client.send(method, local_client.path(operation), b"", {"Host": "localhost"})
    assert answer.status == 405
    assert answer.headers["allow"] == "POST"
    assert answer.error


@requirement(19, 20, 24, 111, 160)
@pytest.mark.parametrize(
    "path",
    [
        "/", "/invalid/kms/xks/v1/health", "{p}/kms/xks/v1", "{p}/kms/xks/v1/", "{p}/kms/xks/v1/health/", "{p}/kms/xks/v1/healthy",
        "{p}/kms/xks/v2/health", "{p}/kms/xks/v1/health?x=1", "{p}/kms/xks/v1/keys//encrypt", "{p}/kms/xks/v1/keys/a/b/encrypt",
        "{p}/kms/xks/v1/keys/a/sign", "{p}/kms/xks/v1/keys/a%20b/encrypt", "{p}/kms/xks/v1/keys/%61/encrypt", "/kms/xks/v1/health",
        "{p}{p}/kms/xks/v1/health", "{p}/KMS/xks/v1/health", "{p}//kms/xks/v1/health", "{p}/kms/xks/v1/keys/" + "k" * 129 + "/encrypt",
        "/" + "x" * 300 + "/kms/xks/v1/health", "{p}/../dev/kms/xks/v1/health",
    ],
)  # fmt: skip
def test_another_path_is_an_invalid_uri_path(local_client: Client, path: str) -> None:
    path = path.format(p=local_client.prefix)
    answer = local_client.post(path, json.dumps(local_client.valid("health")).encode())
    assert (answer.status, answer.error) == (404, "InvalidUriPathException")


@requirement(24)
def test_an_external_key_id_may_have_128_characters(local_client: Client) -> None:
    answer = local_client.call("metadata", key="k" * 128)
    assert (answer.status, answer.error) == (404, "KeyNotFoundException")


@contextmanager
def other(client: Client, **changes: str) -> Iterator[Client]:
    """A client with another credential or region."""
    changed = Client(client.ready, Target(**{**vars(client.target), **changes}))
    yield changed
    changed.close()


@requirement(108, 118, 125, 159)
@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize(
    "changes",
    [
        {"access_key_id": "A" * 20}, {"access_key_id": "Invalid" + "A" * 30}, {"access_key_id": "x"}, {"secret_access_key": "wrong"},
        {"region": "us-west-2"},
    ],
)  # fmt: skip
def test_a_wrong_credential_fails_authentication(local_client: Client, operation: str, changes: dict[str, str]) -> None:
    document = local_client.valid(operation)
    with other(local_client, **changes) as stranger:
        answer = stranger.call(operation, document)
    assert (answer.status, answer.error) == (401, "AuthenticationFailedException")


@requirement(119, 122)
@pytest.mark.parametrize("change", ["body", "path", "host", "date", "no authorization", "no date", "service", "twice"])
def test_a_request_changed_after_signing_fails_authentication(local_client: Client, change: str) -> None:
    path, body = local_client.path("health"), json.dumps(local_client.valid("health")).encode()
    headers = local_client.target.sign(path, body)
    match change:
        case "body":
            body += b" "
        case "path":
            path = local_client.path("metadata")
        case "host":
            headers["Host"] = "other"
        case "date":
            headers["X-Amz-Date"] = headers["X-Amz-Date"][:-2] + ("0Z" if headers["X-Amz-Date"][-2] != "0" else "1Z")
        case "no authorization":
            del headers["Authorization"]
        case "no date":
            del headers["X-Amz-Date"]
        case "service":
            headers["Authorization"] = headers["Authorization"].replace("kms-xks-proxy", "kms")
        case "twice":
            headers["authorization "[:-1].upper()] = headers["Authorization"]
    answer = local_client.send("POST", path, body, headers)
    assert (answer.status, answer.error) == (401, "AuthenticationFailedException")


@requirement(123, 124)
@pytest.mark.parametrize(("offset_s", "status"), [(-290, 200), (290, 200), (-320, 401), (320, 401)])
def test_a_timestamp_may_differ_by_five_minutes(local_client: Client, offset_s: int, status: int) -> None:
    path, body = local_client.path("health"), json.dumps(local_client.valid("health")).encode()
    moved = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=offset_s)
    assert local_client.send("POST", path, body, local_client.target.sign(path, body, moved)).status == status


@requirement(121, 155)
@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("operation", ["health", "encrypt"])
def test_curl_signs_for_us(proxy: RunningProxy, scheme: str, operation: str) -> None:
    client = proxy.client()
    ready = proxy.ready
    url = (ready["url"] if scheme == "http" else ready["tls_url"]) + client.path(operation)
    done = subprocess.run(
        [
            "curl", "-s", "--fail-with-body", "--max-time", "10", "--cacert", ready["ca_file"],
            "--aws-sigv4", f"aws:amz:{ready['region']}:kms-xks-proxy", "--user",
            f"{ready['access_key_id']}:{ready['secret_access_key']}",
            "-H", "Content-Type: application/json", "-d", json.dumps(client.valid(operation)), url,
        ],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    client.close()
    assert done.returncode == 0, done.stdout
    assert "errorName" not in json.loads(done.stdout)


@requirement(121)
def test_more_headers_may_be_signed(local_client: Client) -> None:
    from botocore.auth import SigV4Auth
    from botocore.awsrequest import AWSRequest
    from botocore.credentials import Credentials

    path, body = local_client.path("health"), json.dumps(local_client.valid("health")).encode()
    target = local_client.target
    extra = {"Content-Type": "application/json", "X-Many": "a   b  c", "X-Empty": "", "A-First": "1"}
    request = AWSRequest(method="POST", url=target.url + path, data=body, headers=extra)
    SigV4Auth(Credentials(target.access_key_id, target.secret_access_key), "kms-xks-proxy", target.region).add_auth(request)
    headers: dict[str, Any] = {"Host": target.url.split("://")[1], **dict(request.headers.items())}
    assert local_client.send("POST", path, body, headers).status == 200
