# SPDX-License-Identifier: Apache-2.0
"""The refusals of the fake KMS, with the HTTP status that AWS gives them."""

from __future__ import annotations

import functools
from typing import Any

import botocore.session
from botocore.model import ServiceModel


@functools.cache
def service_model() -> ServiceModel:
    """botocore's model of KMS: what is valid, and which errors there are."""
    return botocore.session.get_session().get_service_model("kms")


class KmsError(Exception):
    """One of AWS's errors: `name` without a prefix."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(f"{name}: {message}")
        self.name = name
        self.message = message

    @property
    def http_status(self) -> int:
        """500 for faults of AWS's own, 400 for all others."""
        model = service_model()
        fault = self.name in model.shape_names and _raw(model, self.name).get("fault", False)
        return 500 if fault or self.name in ("InternalFailure", "ServiceUnavailable") else 400


def _raw(model: ServiceModel, shape: str) -> dict[str, Any]:
    raw: dict[str, Any] = model._shape_resolver._shape_map[shape]  # "fault" is not among the metadata of a Shape
    return raw
