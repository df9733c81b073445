# SPDX-License-Identifier: Apache-2.0
"""Every error of AWS has its explanation."""

from __future__ import annotations

import pytest
from botocore import exceptions as botocore_exceptions

from tests.fake_kms.errors import service_model
from tests.fake_kms.server import OPERATIONS, USING
from xksfast.admin.aws.errors import (
    CONNECTION_ERRORS,
    EXCEPTIONS,
    TRANSIENT,
    UNREACHED,
    Explanation,
    connecting_failed,
    explain_connection_error,
    refused,
)

# Exceptions of the operations that we call, but which AWS has for AWS CloudHSM or for parameters that we never send.
NOT_OURS = {
    "CloudHsmClusterInUseException", "CloudHsmClusterNotFoundException", "CloudHsmClusterNotActiveException",
    "DryRunOperationException",
    "IncorrectTrustAnchorException", "CloudHsmClusterInvalidConfigurationException", "CloudHsmClusterNotRelatedException",
    "InvalidGrantTokenException", "InvalidKeyUsageException", "InvalidCiphertextException", "IncorrectKeyException",
}  # fmt: skip


def test_every_connection_error_code_of_aws_is_explained_and_no_other() -> None:
    assert set(CONNECTION_ERRORS) == set(service_model().shape_for("ConnectionErrorCodeType").enum)


def test_every_exception_of_the_operations_that_we_call_is_explained() -> None:
    model = service_model()
    declared = {shape.name for name in OPERATIONS | USING for shape in model.operation_model(name).error_shapes}
    assert declared - NOT_OURS <= set(EXCEPTIONS)


def test_every_failure_on_the_way_to_aws_is_one_that_botocore_has() -> None:
    for name in UNREACHED:
        assert issubclass(getattr(botocore_exceptions, name), Exception)


def test_what_is_transient_is_explained_too() -> None:
    assert set(EXCEPTIONS) | set(UNREACHED) >= TRANSIENT
    assert "XksProxyInvalidConfigurationException" not in TRANSIENT


@pytest.mark.parametrize("explanation", [*CONNECTION_ERRORS.values(), *EXCEPTIONS.values(), *UNREACHED.values()])
def test_explanations_are_sentences_that_can_be_joined(explanation: Explanation) -> None:
    for part in explanation:
        assert part[0].isupper()
        assert not part.endswith((".", " "))
        assert "  " not in part


def test_a_refusal_says_what_why_and_what_next_and_what_aws_said() -> None:
    refusal = refused("CreateKey", "XksKeyNotFoundException", "create a key", aws_message="could  not\nfind it")
    why, next_ = EXCEPTIONS["XksKeyNotFoundException"]
    assert str(refusal) == f"create a key: {why}. {next_}. AWS says: could not find it"
    assert (refusal.operation, refusal.code, refusal.transient) == ("CreateKey", "XksKeyNotFoundException", False)


def test_codes_that_are_newer_than_this_program_are_named() -> None:
    assert "XKS_PROXY_TOO_BLUE" in explain_connection_error("XKS_PROXY_TOO_BLUE").why
    assert "XKS_PROXY_TOO_BLUE" in str(connecting_failed("cks-1", "XKS_PROXY_TOO_BLUE"))
    assert "TooBlueException" in str(refused("CreateKey", "TooBlueException", "create a key"))
