# SPDX-License-Identifier: Apache-2.0
"""What can be asked of the service, as pydantic models: REST bodies, and the same for the CLI and `apply`.

What lives here: shapes with their descriptions, which become the OpenAPI document. What must not: rules that need the state
(plans/). Unknown members are refused. In an update an absent member stays as it is.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr

from xksfast.state import rules

Usage = Literal["ENCRYPT", "DECRYPT"]
Name = Annotated[str, Field(min_length=1, max_length=64, pattern=f"^{rules.NAME_PATTERN}$")]
Tags = Annotated[dict[str, str], Field(max_length=rules.MAX_TAGS)]
Text = Annotated[str, Field(max_length=1024)]
SnippetFormat = Literal["aws-cli", "terraform", "cloudformation"]
ExternalKeyIds = Annotated[tuple[Annotated[str, Field(max_length=128)], ...], Field(max_length=500)]
Days = Annotated[int, Field(ge=0, le=3650, strict=True)]  # true is no number


class Request(BaseModel):
    """Base of all requests."""

    model_config = ConfigDict(extra="forbid", frozen=True, str_strip_whitespace=False)


class CredentialGiven(Request):
    """A credential that exists elsewhere: from a declarative file or from AWS's sample proxy."""

    access_key_id: str
    secret_access_key: SecretStr = Field(min_length=43, max_length=64)


class StoreCreate(Request):
    """A new external key store."""

    name: Name
    uri_path_prefix: str = Field("", max_length=256, description='What stands before /kms/xks/v1: "" or "/payments".')
    region: str = Field(max_length=rules.MAX_REGION_CHARS, description="AWS region; it cannot be changed later.")
    partition_group: str | None = Field(None, description="Where the keys live; or key_source local.")
    key_source: Literal["pkcs11", "local"] | None = None
    account: str = Field("", pattern=f"^({rules.ACCOUNT_PATTERN})?$", description="AWS account id.")
    description: Text = ""
    endpoint: str = Field("", max_length=128, description="https://host by which KMS reaches this proxy.")
    connectivity: Literal["PUBLIC_ENDPOINT", "VPC_ENDPOINT_SERVICE"] = "PUBLIC_ENDPOINT"
    vpc_endpoint_service_name: str = Field("", max_length=128)
    max_credentials: int = Field(4, ge=rules.MIN_CREDENTIALS, le=rules.MAX_CREDENTIALS, strict=True)
    rotate_credential_days: Days = 0
    allowed_principals: tuple[str, ...] = ()
    health_check_label: str = Field("", max_length=255)
    aad_scheme: Literal["xksfast", "aws-sample"] = "xksfast"
    on_stale: Literal["serve", "refuse"] = "serve"
    stale_after_s: int = Field(900, ge=rules.LEAST_STALE_AFTER_S, le=7 * 86400, strict=True)
    tags: Tags = {}
    credentials: tuple[CredentialGiven, ...] = Field((), description="Absent: one is made, and its secret shown once.")


class StoreUpdate(Request):
    """What is to change. Region, key source and partition group never do."""

    uri_path_prefix: str | None = Field(None, max_length=256)
    account: str | None = Field(None, pattern=f"^({rules.ACCOUNT_PATTERN})?$")
    description: Text | None = None
    endpoint: str | None = Field(None, max_length=128)
    connectivity: Literal["PUBLIC_ENDPOINT", "VPC_ENDPOINT_SERVICE"] | None = None
    vpc_endpoint_service_name: str | None = Field(None, max_length=128)
    max_credentials: int | None = Field(None, ge=rules.MIN_CREDENTIALS, le=rules.MAX_CREDENTIALS, strict=True)
    rotate_credential_days: Days | None = None
    allowed_principals: tuple[str, ...] | None = None
    on_stale: Literal["serve", "refuse"] | None = None
    stale_after_s: int | None = Field(None, ge=rules.LEAST_STALE_AFTER_S, le=7 * 86400, strict=True)
    tags: Tags | None = None


class KeyCreate(Request):
    """A new HYOK key. label: of a source key that exists already; absent: one is made."""

    external_key_id: str = Field(min_length=1, max_length=128, pattern=f"^{rules.EXTERNAL_KEY_ID_PATTERN}$")
    label: str = Field("", max_length=255)
    create: bool = Field(False, description="Make the source key `label` when there is none.")
    usage: tuple[Usage, ...] = ("ENCRYPT", "DECRYPT")
    alias: str = Field("", max_length=256)
    description: Text = ""
    tags: Tags = {}
    enabled: bool = True
    rotate_days: Days = 0


class KeyUpdate(Request):
    """What is to change."""

    usage: tuple[Usage, ...] | None = None
    alias: str | None = Field(None, max_length=256)
    description: Text | None = None
    tags: Tags | None = None
    rotate_days: Days | None = None


class KeyRotate(Request):
    """A new version. label: of a source key that exists already; absent: one is made."""

    label: str = Field("", max_length=255)
    create: bool = Field(False, description="Make the source key `label` when there is none.")


class Block(Request):
    """The kill switch."""

    reason: Text = ""


class OperatorCreate(Request):
    """A new token. stores: absent or empty, all of them."""

    name: Name
    role: Literal["admin", "operator", "auditor", "blocker"]
    stores: tuple[Name, ...] = ()
    expires_in_days: int = Field(0, ge=0, le=3650, strict=True)


class ConnectionCreate(Request):
    """How to reach AWS KMS. boto3 finds the credential itself: by profile, by role, or in the environment of the proxy."""

    name: Name
    account: str = Field(pattern=f"^{rules.ACCOUNT_PATTERN}$")
    region: str = Field(max_length=rules.MAX_REGION_CHARS)
    profile: str = Field("", max_length=128)
    role_arn: str = Field("", max_length=2048)
    endpoint_url: str = Field("", max_length=2048)


class StoreLinkRequest(Request):
    """Make the custom key store in AWS, or take one that was made by hand."""

    connection: Name
    custom_key_store_name: str = Field("", max_length=256, description="Absent: the store's own name.")
    custom_key_store_id: str = Field("", max_length=64, description="Of a custom key store that exists already.")


class KeyLinkRequest(Request):
    """Make the KMS key in AWS, or take one that was made by hand."""

    key_arn: str = Field("", max_length=2048, description="Of a KMS key that exists already.")
    policy: str = Field("", max_length=32768)


class SnippetRequest(Request):
    """What builds the AWS side of a key store."""

    format: SnippetFormat = "aws-cli"
    keys: ExternalKeyIds = Field((), description="External key ids; absent: all that are not linked.")
    custom_key_store_name: str = Field(
        "", max_length=256, pattern=r"^[^\x00-\x1f\x7f]*$", description="Absent: the store's own name."
    )
    connectivity: Literal["PUBLIC_ENDPOINT", "VPC_ENDPOINT_SERVICE"] | None = Field(
        None, description="As if the store had this connectivity; absent: its own."
    )


class BulkRequest(Request):
    """The same for many. keys: "store/external key id"; stores: names. A key without its id is not taken for its store."""

    action: Literal["block", "unblock", "enable", "disable"]
    stores: tuple[Annotated[str, Field(pattern="^[^/]+$")], ...] = ()
    keys: tuple[Annotated[str, Field(pattern="^[^/]+/[^/]+$")], ...] = ()
    reason: Text = ""
