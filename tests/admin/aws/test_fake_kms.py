# SPDX-License-Identifier: Apache-2.0
"""The fake KMS is as strict as AWS: protocol, signature, service model. What it does beyond that is seen in the other files here."""

from __future__ import annotations

import datetime
import http.client
import json
from typing import Any

import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from tests.fake_kms import FakeKms
from tests.fake_kms.errors import KmsError
from tests.fake_kms.shapes import check_request


class _LateAuth(SigV4Auth):
    """botocore's signer at another time."""

    at = datetime.datetime.now(datetime.UTC)

    def add_auth(self, request: AWSRequest) -> None:
        request.context["timestamp"] = self.at.strftime("%Y%m%dT%H%M%SZ")
        self._modify_request_before_signing(request)
        to_sign = self.string_to_sign(request, self.canonical_request(request))
        self._inject_signature_to_request(request, self.signature(to_sign, request))


def signed(
    fake: FakeKms, operation: str, body: bytes, *, secret: str = "", region: str = "", minutes_late: float = 0
) -> dict[str, str]:
    """Headers of a signed request."""
    headers = {"Content-Type": "application/x-amz-json-1.1", "X-Amz-Target": f"TrentService.{operation}"}
    request = AWSRequest(method="POST", url=fake.url, data=body, headers=headers)
    auth = _LateAuth(Credentials(fake.access_key_id, secret or fake.secret_access_key), "kms", region or fake.region)
    auth.at = datetime.datetime.now(datetime.UTC) - datetime.timedelta(minutes=minutes_late)
    auth.add_auth(request)
    return dict(request.headers.items())


def post(fake: FakeKms, body: bytes, headers: dict[str, str]) -> tuple[int, dict[str, Any]]:
    connection = http.client.HTTPConnection(fake.url.removeprefix("http://"), timeout=10)
    try:
        connection.request("POST", "/", body, headers)
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


def ask(fake: FakeKms, operation: str, document: Any, **how: Any) -> tuple[int, dict[str, Any]]:
    body = json.dumps(document).encode()
    return post(fake, body, signed(fake, operation, body, **how))


def test_a_signed_request_is_answered(fake_kms: FakeKms) -> None:
    assert ask(fake_kms, "ListKeys", {}) == (200, {"Keys": [], "Truncated": False})


@pytest.mark.parametrize(
    "how", [{"secret": "wrong"}, {"region": "eu-central-1"}, {"minutes_late": 5.1}, {"minutes_late": -5.1}], ids=str
)
def test_a_signature_that_is_not_right_is_refused(fake_kms: FakeKms, how: dict[str, Any]) -> None:
    status, answer = ask(fake_kms, "ListKeys", {}, **how)
    assert (status, answer["__type"]) == (400, "InvalidSignatureException")


def test_a_changed_body_is_refused(fake_kms: FakeKms) -> None:
    assert post(fake_kms, b'{"Limit":2}', signed(fake_kms, "ListKeys", b"{}"))[1]["__type"] == "InvalidSignatureException"


def test_a_changed_header_is_refused(fake_kms: FakeKms) -> None:
    headers = signed(fake_kms, "ListKeys", b"{}") | {"X-Amz-Target": "TrentService.ListAliases"}
    assert post(fake_kms, b"{}", headers)[1]["__type"] == "InvalidSignatureException"


def test_an_unsigned_request_is_refused(fake_kms: FakeKms) -> None:
    headers = {"Content-Type": "application/x-amz-json-1.1", "X-Amz-Target": "TrentService.ListKeys"}
    assert post(fake_kms, b"{}", headers)[1]["__type"] == "MissingAuthenticationTokenException"


def test_an_unknown_operation_is_refused(fake_kms: FakeKms) -> None:
    assert ask(fake_kms, "ListSheep", {})[1]["__type"] == "UnknownOperationException"


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'{"Limit":"2"}', b'{"Limit":true}', b'{"Limit":2.5}'])
def test_what_is_no_request_is_refused(fake_kms: FakeKms, body: bytes) -> None:
    assert post(fake_kms, body, signed(fake_kms, "ListKeys", body))[1]["__type"] == "SerializationException"


def test_faults_of_aws_are_500_and_refusals_400(fake_kms: FakeKms) -> None:
    for error, status in {"KMSInternalException": 500, "ThrottlingException": 400, "NotFoundException": 400}.items():
        fake_kms.refuse("ListKeys", error)
        assert ask(fake_kms, "ListKeys", {})[0] == status


STORE = {
    "CustomKeyStoreName": "x",
    "CustomKeyStoreType": "EXTERNAL_KEY_STORE",
    "XksProxyConnectivity": "PUBLIC_ENDPOINT",
    "XksProxyUriEndpoint": "https://xks.example.com",
    "XksProxyUriPath": "/p/kms/xks/v1",
    "XksProxyAuthenticationCredential": {"AccessKeyId": "A" * 20, "RawSecretAccessKey": "s" * 43},
}


def test_a_right_request_passes() -> None:
    assert check_request("CreateCustomKeyStore", STORE) == STORE


@pytest.mark.parametrize(
    "changes",
    [
        {"CustomKeyStoreName": None},
        {"CustomKeyStoreName": ""},
        {"CustomKeyStoreName": "x" * 257},
        {"CustomKeyStoreType": "SHEEP"},
        {"XksProxyUriEndpoint": "http://xks.example.com"},
        {"XksProxyUriEndpoint": "https://xks.example.com:8443"},
        {"XksProxyUriEndpoint": "https://xks.example.com/"},
        {"XksProxyUriPath": "/p/kms/xks/v1/"},
        {"XksProxyUriPath": "/p?/kms/xks/v1"},
        {"XksProxyUriPath": "/" + "p" * 120 + "/kms/xks/v1"},
        {"XksProxyAuthenticationCredential": {"AccessKeyId": "A" * 20}},
        {"XksProxyAuthenticationCredential": {"AccessKeyId": "A" * 19, "RawSecretAccessKey": "s" * 43}},
        {"XksProxyAuthenticationCredential": {"AccessKeyId": "a" * 20, "RawSecretAccessKey": "s" * 43}},
        {"XksProxyAuthenticationCredential": {"AccessKeyId": "A" * 20, "RawSecretAccessKey": "s" * 42}},
        {"XksProxyAuthenticationCredential": {"AccessKeyId": "A" * 20, "RawSecretAccessKey": "s" * 65}},
        {"XksProxyAuthenticationCredential": {"AccessKeyId": "A" * 20, "RawSecretAccessKey": "secret-" * 8}},
    ],
)
def test_requests_outside_of_the_model_are_refused_without_repeating_secrets(changes: dict[str, Any]) -> None:
    with pytest.raises(KmsError) as refusal:
        check_request("CreateCustomKeyStore", {**STORE, **changes})
    assert refusal.value.name == "ValidationException"
    assert "secret-" not in refusal.value.message


def test_blobs_are_decoded_and_measured() -> None:
    assert check_request("Encrypt", {"KeyId": "k", "Plaintext": "aGVsbG8="})["Plaintext"] == b"hello"
    with pytest.raises(KmsError, match="SerializationException"):
        check_request("Encrypt", {"KeyId": "k", "Plaintext": "aGVsbG8"})
    with pytest.raises(KmsError, match="ValidationException"):
        check_request("Encrypt", {"KeyId": "k", "Plaintext": ""})
