# SPDX-License-Identifier: Apache-2.0
"""What AWS says when it does not do what was asked, in words: why, and what to do next.

What lives here: the connection error codes of custom key stores (all of them), the exceptions of the operations we call, and the
failures on the way to AWS. What must not: boto3, and handling. A newcomer's trap: ConnectCustomKeyStore succeeds at once and the
reason for a failure is found minutes later, as a connection error code; the same fault at CreateCustomKeyStore is an exception.
Source: AWS KMS API Reference, CustomKeyStoresListEntry; AWS KMS Developer Guide, Troubleshooting external key stores.
"""

from __future__ import annotations

from typing import NamedTuple

from xksfast.errors import OperatorError

MAX_AWS_MESSAGE_CHARS = 400


class Explanation(NamedTuple):
    """why and next are each one or more sentences without the last full stop."""

    why: str
    next: str


class AwsRefused(OperatorError):
    """AWS did not do what was asked, or could not be asked.

    operation: AWS's name of it, "ConnectCustomKeyStore". code: AWS's error name or connection error code, the name of boto3's exception
    when AWS gave no answer, "TimedOut" when our patience ended. aws_message: AWS's own words, "" when there are none.
    retried: it was sent more than once, so an earlier attempt may have been carried out.
    """

    def __init__(
        self, operation: str, code: str, what: str, explanation: Explanation, *, aws_message: str = "", retried: bool = False
    ) -> None:
        said = f" AWS says: {aws_message}" if aws_message else ""
        super().__init__(f"{what}: {explanation.why}. {explanation.next}.{said}")
        self.operation = operation
        self.code = code
        self.what = what
        self.explanation = explanation
        self.aws_message = aws_message
        self.retried = retried

    @property
    def transient(self) -> bool:
        """The same call may succeed a little later without anything being changed."""
        return self.code in TRANSIENT


_CLOUDHSM = "The custom key store stands on an AWS CloudHSM cluster, so it is not one of ours"
_CLOUDHSM_NEXT = "Link the key store to a custom key store of type EXTERNAL_KEY_STORE; mend this one by AWS's CloudHSM manual"
_RECONNECT = "then disconnect and connect the key store again"

# ConnectionErrorCodeType, complete.
CONNECTION_ERRORS: dict[str, Explanation] = {
    "INTERNAL_ERROR": Explanation(
        "AWS KMS failed for a reason of its own", "Disconnect the key store and connect it again; if it stays, ask AWS support"
    ),
    "NETWORK_ERRORS": Explanation(
        "Something in the network keeps AWS KMS from this proxy",
        f"Check firewalls, load balancer targets and routes on the way to port 443, {_RECONNECT}",
    ),
    "INVALID_CREDENTIALS": Explanation(
        "This proxy refused the signature: AWS KMS has another access key id or secret than the key store, or something between "
        "the two changes HTTP headers",
        "Issue a credential (xksfast credential rotate), give it to AWS KMS, which is possible while connected, and make sure that no "
        f"reverse proxy rewrites Host or x-amz headers; {_RECONNECT}",
    ),
    "XKS_PROXY_ACCESS_DENIED": Explanation(
        "Something before the proxy denies access: the proxy itself never denies a health check",
        f"Let AWS KMS through at the web application firewall, API gateway or reverse proxy in front, {_RECONNECT}",
    ),
    "XKS_PROXY_INVALID_CONFIGURATION": Explanation(
        "The proxy serves no key store under the URI path that AWS KMS calls",
        f"Make XksProxyUriPath the key store's prefix followed by /kms/xks/v1 (xksfast store show), {_RECONNECT}",
    ),
    "XKS_PROXY_INVALID_RESPONSE": Explanation(
        "AWS KMS does not understand what it was answered: something other than this proxy answers under the endpoint, "
        "or the proxy failed",
        "Call the endpoint as AWS KMS does (xksfast test URL), look at the proxy's log for the KMS request id, "
        f"and see that no reverse proxy answers with pages of its own; {_RECONNECT}",
    ),
    "XKS_PROXY_INVALID_TLS_CONFIGURATION": Explanation(
        "The TLS handshake failed: the certificate has expired, names another host in its common name, lacks its intermediate "
        "certificates, comes from an authority that AWS KMS does not trust, or TLS is older than 1.2",
        "Run `xksfast aws topology STORE`, which looks at the certificate; AWS's list is TrustedCertificateAuthorities in "
        f"github.com/aws/aws-kms-xksproxy-api-spec; install the right certificate (SIGHUP reloads it), {_RECONNECT}",
    ),
    "XKS_PROXY_NOT_REACHABLE": Explanation(
        "AWS KMS cannot reach the proxy on port 443 over IPv4, or the proxy reports that no partition can serve",
        "Check the endpoint's name in DNS, port 443 and the firewall from outside, and xksfast status --partitions; "
        "the way from the AWS Region should take 35 ms at most; " + _RECONNECT,
    ),
    "XKS_PROXY_TIMED_OUT": Explanation(
        "The proxy was reached but did not answer within 250 ms",
        "Look at xksfast status for slow partitions and at the round trip between the AWS Region, the proxy and the HSM "
        f"(35 ms and 25 ms are advised), {_RECONNECT}",
    ),
    "XKS_VPC_ENDPOINT_SERVICE_NOT_FOUND": Explanation(
        "AWS KMS does not find the VPC endpoint service: its name is wrong, it is in another Region, or AWS KMS is not among its "
        "allowed principals",
        "Compare the service name in the VPC console, and allow the principal cks.kms.<region>.amazonaws.com on it, "
        + _RECONNECT,
    ),
    "XKS_VPC_ENDPOINT_SERVICE_INVALID_CONFIGURATION": Explanation(
        "The VPC endpoint service does not meet the requirements: a network load balancer in at least two Availability Zones, no "
        "acceptance required, cks.kms.<region>.amazonaws.com allowed, a verified private DNS name of its own, "
        "a certificate for that name",
        f"Go through the list that `xksfast aws topology STORE --connectivity VPC_ENDPOINT_SERVICE` prints, {_RECONNECT}",
    ),
    "CLUSTER_NOT_FOUND": Explanation(_CLOUDHSM + "; AWS KMS does not find the cluster", _CLOUDHSM_NEXT),
    "INSUFFICIENT_CLOUDHSM_HSMS": Explanation(_CLOUDHSM + "; the cluster has no active HSM", _CLOUDHSM_NEXT),
    "INSUFFICIENT_FREE_ADDRESSES_IN_SUBNET": Explanation(
        _CLOUDHSM + "; a subnet of the cluster has no free address", _CLOUDHSM_NEXT
    ),
    "SUBNET_NOT_FOUND": Explanation(_CLOUDHSM + "; a subnet of the cluster was deleted", _CLOUDHSM_NEXT),
    "USER_LOCKED_OUT": Explanation(_CLOUDHSM + "; the user kmsuser is locked out of the cluster", _CLOUDHSM_NEXT),
    "USER_LOGGED_IN": Explanation(_CLOUDHSM + "; the user kmsuser is logged in to the cluster", _CLOUDHSM_NEXT),
    "USER_NOT_FOUND": Explanation(_CLOUDHSM + "; the cluster has no user kmsuser", _CLOUDHSM_NEXT),
}

_PERMISSION = Explanation(
    "The AWS principal of this connection may not do that",
    "Add the permission named below to its IAM policy (or the key's policy), or use a connection with another profile or role",
)
_CREDENTIALS = Explanation(
    "AWS does not accept the AWS credentials of this connection",
    "Renew them where boto3 finds them (profile, environment, role), and check the machine's clock",
)
_OVERLOAD = Explanation("AWS asks for fewer requests", "Try again in a minute")
_PENDING_KEY = Explanation(
    "The KMS key is in a state that does not allow it, or its key store is not connected or did not answer",
    "Look at the key's state: cancel a scheduled deletion, enable it, or connect the key store; then try again",
)

# Exceptions of the operations that we call.
EXCEPTIONS: dict[str, Explanation] = {
    "XksProxyUriInUseException": Explanation(
        "Another custom key store of this account and Region has the same endpoint and path",
        "Link that one instead (it may have been made by hand), or give the key store another prefix",
    ),
    "XksProxyUriEndpointInUseException": Explanation(
        "Another custom key store of this Region has the endpoint with the other kind of connectivity, or has this private DNS name",
        "Use an endpoint of its own: stores behind VPC endpoint services each need one, public ones may share theirs among each other",
    ),
    "XksProxyUriUnreachableException": CONNECTION_ERRORS["XKS_PROXY_NOT_REACHABLE"]._replace(
        why="AWS KMS got no usable answer from the proxy within 250 ms, or the proxy reports that no partition can serve"
    ),
    "XksProxyIncorrectAuthenticationCredentialException": CONNECTION_ERRORS["INVALID_CREDENTIALS"]._replace(
        next="Issue a credential (xksfast credential rotate) and give that to AWS KMS; make sure that no reverse proxy rewrites headers"
    ),
    "XksProxyInvalidConfigurationException": Explanation(
        "AWS KMS reached the proxy, but path or TLS are not right",
        "See AWS's words below; check prefix and certificate with `xksfast aws topology STORE` and `xksfast test URL`",
    ),
    "XksProxyInvalidResponseException": CONNECTION_ERRORS["XKS_PROXY_INVALID_RESPONSE"]._replace(
        next="Call the endpoint as AWS KMS does (xksfast test URL) and look at the proxy's log for the time of this call"
    ),
    "XksProxyVpcEndpointServiceInUseException": Explanation(
        "Another custom key store of this Region has the VPC endpoint service",
        "Make a VPC endpoint service for this key store alone",
    ),
    "XksProxyVpcEndpointServiceNotFoundException": CONNECTION_ERRORS["XKS_VPC_ENDPOINT_SERVICE_NOT_FOUND"]._replace(
        next="Compare the service name in the VPC console, and allow the principal cks.kms.<region>.amazonaws.com on it"
    ),
    "XksProxyVpcEndpointServiceInvalidConfigurationException": CONNECTION_ERRORS[
        "XKS_VPC_ENDPOINT_SERVICE_INVALID_CONFIGURATION"
    ]._replace(next="Go through the list that `xksfast aws topology STORE --connectivity VPC_ENDPOINT_SERVICE` prints"),
    "CustomKeyStoreNameInUseException": Explanation(
        "Another custom key store of this account and Region has that name",
        "Choose another name, or link that one if it is meant",
    ),
    "CustomKeyStoreNotFoundException": Explanation(
        "AWS has no such custom key store in this account and Region",
        "It was deleted, or the connection points at another account or Region: sync the key store to see, and link it anew",
    ),
    "CustomKeyStoreInvalidStateException": Explanation(
        "The custom key store is in a connection state that does not allow it",
        "A FAILED one must be disconnected before it is connected again; endpoint, connectivity and service name change, and deletion "
        "works, only while DISCONNECTED; keys are created only while CONNECTED, and when the proxy answers",
    ),
    "CustomKeyStoreHasCMKsException": Explanation(
        "The custom key store still holds KMS keys; those that wait for their deletion count too",
        "Schedule the deletion of its keys and wait until their waiting periods (7 to 30 days) are over",
    ),
    "XksKeyAlreadyInUseException": Explanation(
        "A KMS key of this custom key store already stands for that external key",
        "Link that KMS key to it, or choose another external key: AWS allows one KMS key for each",
    ),
    "XksKeyNotFoundException": Explanation(
        "The proxy told AWS KMS that it has no such external key in that key store",
        "Create the key here first (xksfast key create); the id is case-sensitive",
    ),
    "XksKeyInvalidConfigurationException": Explanation(
        "The external key is disabled or blocked here, or may not both encrypt and decrypt",
        "Enable and unblock it, and give it both usages (xksfast key show), then create the KMS key again",
    ),
    "AlreadyExistsException": Explanation(
        "The alias exists in this account and Region", "Choose another alias, or move that one"
    ),
    "InvalidAliasNameException": Explanation(
        "AWS does not allow that alias",
        "An alias starts with alias/, then letters, digits, : / _ and -, and never with alias/aws/",
    ),
    "NotFoundException": Explanation(
        "AWS has no such key or alias in this account and Region",
        "It was deleted, or the connection points at another account or Region: sync the key to see",
    ),
    "DisabledException": Explanation("The KMS key is disabled", "Enable it in AWS (xksfast key enable does for linked keys)"),
    "KMSInvalidStateException": _PENDING_KEY,
    "InvalidArnException": Explanation("AWS does not take that for a key's ARN or id", "Use the ARN as AWS shows it"),
    "LimitExceededException": Explanation(
        "A quota of the AWS account is used up", "Delete what is not needed, or ask AWS for a higher quota (Service Quotas)"
    ),
    "TagException": Explanation(
        "AWS does not allow one of the tags",
        "Keys of up to 128 characters, not starting with aws:, each once; values of up to 256",
    ),
    "UnsupportedOperationException": Explanation(
        "AWS KMS does not do this for keys in external key stores, or the proxy said that it does not",
        "Look at AWS's words below",
    ),
    "MalformedPolicyDocumentException": Explanation("AWS cannot read the key policy", "Mend the policy document"),
    "InvalidMarkerException": Explanation("The list changed while it was read", "Try again"),
    "ValidationException": Explanation("AWS finds a value wrong", "See AWS's words below for which one and why"),
    "KMSInternalException": Explanation("AWS KMS failed for a reason of its own", "Try again; if it stays, ask AWS support"),
    "DependencyTimeoutException": Explanation("AWS KMS timed out on a service of its own", "Try again in a minute"),
    "KeyUnavailableException": Explanation("AWS KMS cannot use the key now", "Try again in a minute"),
    "AccessDeniedException": _PERMISSION,
    "AccessDenied": _PERMISSION,
    "NotAuthorizedException": _PERMISSION,
    "UnrecognizedClientException": _CREDENTIALS,
    "InvalidClientTokenId": _CREDENTIALS,
    "InvalidSignatureException": _CREDENTIALS,
    "SignatureDoesNotMatch": _CREDENTIALS,
    "ExpiredTokenException": _CREDENTIALS,
    "ExpiredToken": _CREDENTIALS,
    "IncompleteSignature": _CREDENTIALS,
    "MissingAuthenticationTokenException": _CREDENTIALS,
    "ThrottlingException": _OVERLOAD,
    "RequestLimitExceeded": _OVERLOAD,
    "ServiceUnavailable": Explanation("AWS is not available at the moment", "Try again in a minute"),
    "InternalFailure": Explanation("AWS failed for a reason of its own", "Try again in a minute"),
}

_NO_CREDENTIALS = Explanation(
    "No AWS credentials were found",
    "Give the control process a profile (the connection's profile), a role, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
)
_NO_ANSWER = Explanation(
    "AWS gave no answer", "Check the way out to AWS: DNS, proxy and firewall for port 443, and the endpoint URL"
)
_LATE = Explanation(
    "AWS did not answer in time", "Sync to see whether it was done all the same; then check the way out to AWS, and try again"
)

# Names of botocore's exceptions: AWS was not reached, or not asked.
UNREACHED: dict[str, Explanation] = {
    "NoCredentialsError": _NO_CREDENTIALS,
    "PartialCredentialsError": _NO_CREDENTIALS,
    "CredentialRetrievalError": _NO_CREDENTIALS,
    "TokenRetrievalError": _NO_CREDENTIALS._replace(
        why="The single sign-on session has ended", next="Sign in again: aws sso login"
    ),
    "SSOTokenLoadError": _NO_CREDENTIALS._replace(why="There is no single sign-on session", next="Sign in: aws sso login"),
    "ProfileNotFound": _NO_CREDENTIALS._replace(
        why="The connection's profile is not in the AWS configuration of the control process",
        next="Write it to ~/.aws/config of the user that runs xksfast, or name another profile",
    ),
    "EndpointConnectionError": _NO_ANSWER,
    "ConnectionClosedError": _NO_ANSWER._replace(why="AWS closed the connection without an answer"),
    "ConnectTimeoutError": _NO_ANSWER,
    "ReadTimeoutError": _LATE,
    "ProxyConnectionError": _NO_ANSWER._replace(why="The HTTP proxy towards AWS does not answer"),
    "SSLError": _NO_ANSWER._replace(
        why="The TLS certificate of AWS's endpoint is not trusted here",
        next="Something on the way may open TLS: set AWS_CA_BUNDLE to its authority, or go around it",
    ),
    "ParamValidationError": Explanation("A value cannot be right, so AWS was not asked", "See below for which one and why"),
    "InvalidRegionError": Explanation("There is no such AWS Region", "Give the connection a Region like eu-central-1"),
}

TRANSIENT = frozenset(
    {
        *(code for code, explanation in EXCEPTIONS.items() if explanation is _OVERLOAD),
        *(
            "KMSInternalException",
            "DependencyTimeoutException",
            "KeyUnavailableException",
            "ServiceUnavailable",
            "InternalFailure",
        ),
        *(
            "EndpointConnectionError",
            "ConnectionClosedError",
            "ConnectTimeoutError",
            "ReadTimeoutError",
            "ProxyConnectionError",
        ),
    }
)


def explain_connection_error(code: str) -> Explanation:
    """For a ConnectionErrorCode; one that AWS has added since is named and passed on to AWS's manual."""
    unknown = Explanation(
        f"AWS gives the connection error code {code or 'nothing'}, which this version does not know",
        "Look it up in the AWS KMS Developer Guide under connection error codes for external key stores",
    )
    return CONNECTION_ERRORS.get(code, unknown)


def explain_exception(code: str) -> Explanation:
    """For the name of an exception of AWS or of botocore."""
    unknown = Explanation(f"AWS answered {code or 'an error without a name'}", "Look it up in the AWS KMS API Reference")
    return EXCEPTIONS.get(code) or UNREACHED.get(code) or unknown


def refused(operation: str, code: str, what: str, *, aws_message: str = "", retried: bool = False) -> AwsRefused:
    """An AwsRefused for an exception. what: "create custom key store payments". aws_message: cut to MAX_AWS_MESSAGE_CHARS."""
    message = " ".join(aws_message.split())[:MAX_AWS_MESSAGE_CHARS]
    return AwsRefused(operation, code, what, explain_exception(code), aws_message=message, retried=retried)


def connecting_failed(custom_key_store: str, code: str) -> AwsRefused:
    """A custom key store whose connection state is FAILED."""
    what = f"connect custom key store {custom_key_store}: {code or 'FAILED'}"
    return AwsRefused("ConnectCustomKeyStore", code, what, explain_connection_error(code))
