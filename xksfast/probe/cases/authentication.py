# SPDX-License-Identifier: Apache-2.0
"""SigV4: what must be let in, and everything that must not. Requirements 118 to 134."""

from __future__ import annotations

import json

from xksfast.errors import XksErrorName
from xksfast.probe.asking import Asking
from xksfast.probe.case import FOREIGN, KEY, SECOND, case
from xksfast.probe.signing import Signing
from xksfast.probe.target import Credential

REFUSED = XksErrorName.AUTHENTICATION_FAILED
FIVE_MINUTES = 300
OPEN_DOOR = "Who is let in without the secret can decrypt everything."


def _refused(asking: Asking, what: str, signing: Signing) -> None:
    for operation in asking.operations():
        document = asking.document(operation)
        asking.expect_error(asking.call(operation, document, signing=signing), f"{operation} {what}", REFUSED)


def _credential(asking: Asking, access_key_id: str | None = None, secret: str | None = None) -> Signing:
    right = asking.target.credential
    return Signing(Credential(access_key_id or right.access_key_id, secret or right.secret_access_key))


@case(
    "authentication.wrong-secret", 108, 118, 159,
    says="A request signed with another secret is refused with 401 AuthenticationFailedException, on every operation.",
    why=OPEN_DOOR, do="Verify the signature on each of the four operations.",
)  # fmt: skip
def wrong_secret(asking: Asking) -> None:
    _refused(asking, "signed with another secret", _credential(asking, secret="x" * 43))


@case(
    "authentication.unknown-access-key-id", 108, 125, 159,
    says="An access key id that does not exist, well-formed or not, is refused with 401 AuthenticationFailedException.",
    why=OPEN_DOOR + " Any other answer tells a stranger which ids exist, or crashes on one that is ill-formed.",
    do="Answer an unknown access key id exactly like a wrong signature.",
)  # fmt: skip
def unknown_access_key_id(asking: Asking) -> None:
    right = asking.target.credential.access_key_id
    others = {"unknown": "Z" * 20 if right != "Z" * 20 else "Y" * 20, "lower-case and long": "Invalid" + right + "x" * 20}
    for what, access_key_id in others.items():
        _refused(asking, f"with an access key id that is {what}", _credential(asking, access_key_id))


@case(
    "authentication.unsigned", 108, 118,
    says="A request without an Authorization header, or with one that is no SigV4, is refused with 401.",
    why=OPEN_DOOR, do="Refuse before anything of the body is looked at.",
)  # fmt: skip
def unsigned(asking: Asking) -> None:
    for operation in asking.operations():
        path, body = asking.path(operation), json.dumps(asking.document(operation)).encode()
        headers = asking.headers(path, body)
        signature = headers.pop("Authorization")
        kinds = {
            "without Authorization": headers,
            "with Basic authorization": {**headers, "Authorization": "Basic eHhzOnhrcw=="},
            "with half a signature": {**headers, "Authorization": signature[: len(signature) - 32]},
            "with an empty signature": {**headers, "Authorization": signature[: signature.index("Signature=") + 10]},
        }
        for what, changed in kinds.items():
            answer = asking.send("POST", path, changed, body, label=operation)
            asking.expect_error(answer, f"{operation} {what}", REFUSED)


@case(
    "authentication.missing-date", 121, 123,
    says="A request without X-Amz-Date is refused with 401 AuthenticationFailedException.",
    why="Without a date in the signature an old request can be sent again.",
    do="Require X-Amz-Date, as a signed header.",
)  # fmt: skip
def missing_date(asking: Asking) -> None:
    path, body = asking.path("health"), json.dumps(asking.document("health")).encode()
    headers = asking.headers(path, body)
    del headers["X-Amz-Date"]
    asking.expect_error(asking.send("POST", path, headers, body, label="health"), "health without X-Amz-Date", REFUSED)


@case(
    "authentication.unsigned-headers", 121,
    says="A signature that does not cover host and x-amz-date is refused with 401 AuthenticationFailedException.",
    why="A header that is not signed can be changed on the way: the request could be sent to another host, or at another time.",
    do="Require both names in SignedHeaders.",
)  # fmt: skip
def unsigned_headers(asking: Asking) -> None:
    for name in ("host", "x-amz-date"):
        _refused(asking, f"with {name} left out of SignedHeaders", Signing(without=(name,)))


@case(
    "authentication.more-signed-headers", 121, 155,
    says="A signature that covers more headers than it must is accepted.",
    why="KMS and curl may sign more, such as content-type; what is signed stands in SignedHeaders.",
    do="Build the canonical headers from SignedHeaders, not from a fixed list.",
)  # fmt: skip
def more_signed_headers(asking: Asking) -> None:
    asking.expect_ok(asking.call("health", signing=Signing(signed=("content-type",))), "health with content-type signed")


@case(
    "authentication.wrong-region", 119, 120,
    says="A signature for another Region is refused with 401 AuthenticationFailedException.",
    why="The Region is part of the key: a signature for another one is a wrong signature.",
    do="Compare the credential scope with the key store's Region.",
)  # fmt: skip
def wrong_region(asking: Asking) -> None:
    other = "eu-north-1" if asking.target.region != "eu-north-1" else "eu-west-3"
    _refused(asking, "signed for another Region", Signing(region=other))


@case(
    "authentication.wrong-service", 119, 120,
    says="A signature for another service than kms-xks-proxy is refused with 401 AuthenticationFailedException.",
    why="A signature that was made for something else must open nothing here.",
    do="Require the service kms-xks-proxy in the credential scope.",
)  # fmt: skip
def wrong_service(asking: Asking) -> None:
    _refused(asking, "signed for the service kms", Signing(service="kms"))


@case(
    "authentication.wrong-day", 119, 122,
    says="A credential scope of another day than X-Amz-Date is refused with 401 AuthenticationFailedException.",
    why="A signing key is for one day; accepting another day's makes one that leaked useful for ever.",
    do="Compare the scope's date with that of X-Amz-Date.",
)  # fmt: skip
def wrong_day(asking: Asking) -> None:
    _refused(asking, "with yesterday's credential scope", Signing(scope_days=-1))


@case(
    "authentication.changed-request", 119, 122,
    says="A request whose body, path or date was changed after signing is refused with 401 AuthenticationFailedException.",
    why="The signature is all that protects the request's content between KMS and the proxy once TLS has ended.",
    do="Hash the body as it was received; verify path and headers as they were received.",
)  # fmt: skip
def changed_request(asking: Asking) -> None:
    path, body = asking.path("health"), json.dumps(asking.document("health")).encode()
    headers = asking.headers(path, body)
    other = asking.headers(path, body, Signing(skew_s=-60))
    changes = {
        "a space added to its body": (path, headers, body + b" "),
        "another kmsOperation in its body": (path, headers, body.replace(b"KmsHealthCheck", b"KmsHealthChecK")),
        "another date": (path, {**headers, "X-Amz-Date": other["X-Amz-Date"]}, body),
    }
    if asking.target.keys.default:
        changes["another path"] = (asking.path("metadata"), headers, body)
    for what, (changed_path, changed_headers, changed_body) in changes.items():
        answer = asking.send("POST", changed_path, changed_headers, changed_body, label="health")
        asking.expect_error(answer, f"health with {what} after signing", REFUSED)


@case(
    "authentication.clock-skew", 123, 124,
    says="A timestamp more than five minutes in the past or the future is refused with 401 AuthenticationFailedException.",
    why="A recorded request could be sent again later.",
    do="Compare X-Amz-Date with the clock, both ways.",
)  # fmt: skip
def clock_skew(asking: Asking) -> None:
    for skew_s in (-FIVE_MINUTES - 60, FIVE_MINUTES + 60, -86400 * 3):
        where = "past" if skew_s < 0 else "future"
        answer = asking.call("health", signing=Signing(skew_s=skew_s))
        asking.expect_error(answer, f"health signed {abs(skew_s)} s in the {where}", REFUSED)


@case(
    "authentication.small-skew", 124,
    says="A timestamp less than five minutes away is accepted.",
    why="Clocks differ a little; a proxy that is too strict fails at random.",
    do="Allow five minutes either way, and keep the proxy's clock right (NTP).",
)  # fmt: skip
def small_skew(asking: Asking) -> None:
    for skew_s in (-FIVE_MINUTES + 60, FIVE_MINUTES - 60):
        where = "past" if skew_s < 0 else "future"
        answer = asking.call("health", signing=Signing(skew_s=skew_s))
        if answer.status != 200:
            asking.wrong(
                f"health signed {abs(skew_s)} s in the {where}: answered {answer}, right is 200; are both clocks right?"
            )


@case(
    "authentication.before-key", 108, 110,
    says="A wrong signature on a key that does not exist is answered 401, not 404.",
    why="Otherwise a stranger can find out which keys there are.",
    do="Verify the signature before looking for the key.",
)  # fmt: skip
def before_key(asking: Asking) -> None:
    document = {"requestMetadata": asking.metadata("metadata")}
    answer = asking.call("metadata", document, key="xksfast-test-no-such-key", signing=_credential(asking, secret="x" * 43))
    asking.expect_error(answer, "metadata of a key that does not exist, signed with another secret", REFUSED)


@case(
    "authentication.before-body", 108, 104,
    says="A wrong signature on a body that is no JSON is answered 401, not 400.",
    why="A parser that strangers can reach is a target for them.",
    do="Verify the signature before the body is parsed.",
)  # fmt: skip
def before_body(asking: Asking) -> None:
    answer = asking.post(
        asking.path("health"), b'{"requestMetadata":', signing=_credential(asking, secret="x" * 43), label="health"
    )
    asking.expect_error(answer, "health with half a body, signed with another secret", REFUSED)


@case(
    "authentication.second-credential", 131, 133,
    says="Two credentials of one key store are valid at once.",
    why="Rotation without an outage needs the old and the new one together for a while.",
    do="Accept at least two credentials per path prefix.",
    needs=(SECOND,),
)  # fmt: skip
def second_credential(asking: Asking) -> None:
    for signing in (Signing(asking.target.second), Signing(), Signing(asking.target.second)):
        which = "second" if signing.credential else "first"
        asking.expect_ok(asking.call("health", signing=signing), f"health with the {which} credential")


@case(
    "authentication.foreign-credential", 134,
    says="A credential of another key store is refused with 401 AuthenticationFailedException.",
    why="Key stores of different customers share the proxy: one must not open the other.",
    do="Look credentials up within the key store of the path prefix.",
    needs=(FOREIGN, KEY),
)  # fmt: skip
def foreign_credential(asking: Asking) -> None:
    _refused(asking, "with the credential of another key store", Signing(asking.target.foreign))
