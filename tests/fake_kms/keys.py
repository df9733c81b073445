# SPDX-License-Identifier: Apache-2.0
"""Operations on KMS keys, their aliases and tags. Source: AWS KMS API Reference; Developer Guide, Key states."""

from __future__ import annotations

import uuid
from typing import Any

from tests.fake_kms.account import ACCOUNT, DAY_S, Account, Key
from tests.fake_kms.errors import KmsError
from tests.fake_kms.paging import page
from tests.fake_kms.proxy_client import Fault, ProxyFailure, call

Request = dict[str, Any]
Answer = dict[str, Any]

MAX_TAGS = 50

# What a failed GetKeyMetadata means for CreateKey; everything else is CustomKeyStoreInvalidStateException.
METADATA_FAULTS = {
    Fault.KEY_NOT_FOUND: "XksKeyNotFoundException",
    Fault.INVALID_STATE: "XksKeyInvalidConfigurationException",
    Fault.KEY_USAGE: "XksKeyInvalidConfigurationException",
    Fault.UNSUPPORTED: "UnsupportedOperationException",
}


def create(account: Account, request: Request, principal: str) -> Answer:
    """CreateKey in an external key store."""
    if request.get("Origin") != "EXTERNAL_KEY_STORE":
        raise KmsError("UnsupportedOperationException", "the fake has keys in external key stores only")
    for name in ("CustomKeyStoreId", "XksKeyId"):
        if name not in request:
            raise KmsError("ValidationException", f"{name} is required with the origin EXTERNAL_KEY_STORE")
    spec = request.get("KeySpec", request.get("CustomerMasterKeySpec", "SYMMETRIC_DEFAULT"))
    if (
        spec != "SYMMETRIC_DEFAULT"
        or request.get("KeyUsage", "ENCRYPT_DECRYPT") != "ENCRYPT_DECRYPT"
        or request.get("MultiRegion")
    ):
        raise KmsError("UnsupportedOperationException", "keys in custom key stores are symmetric encryption keys of one Region")
    tags = _tags(request.get("Tags", []))
    store = account.store(request["CustomKeyStoreId"])
    if store.state != "CONNECTED":
        raise KmsError("CustomKeyStoreInvalidStateException", f"{store.id} is {store.state}")
    external_key_id = request["XksKeyId"]
    if any(key.store == store.id and key.external_key_id == external_key_id for key in account.keys.values()):
        raise KmsError("XksKeyAlreadyInUseException", f"{external_key_id} is in use")
    metadata = {"awsPrincipalArn": principal, "kmsOperation": "CreateKey", "kmsRequestId": str(uuid.uuid4())}
    try:
        found = call(account.way(store), f"/keys/{external_key_id}/metadata", {"requestMetadata": metadata})
    except ProxyFailure as failure:
        name = METADATA_FAULTS.get(failure.fault, "CustomKeyStoreInvalidStateException")
        raise KmsError(name, failure.text) from None
    _check_external_key(found)
    key = account.add_key(store.id, external_key_id, description=request.get("Description", ""), tags=tags)
    return {"KeyMetadata": _metadata(account, key)}


def _check_external_key(found: Answer) -> None:
    spec, status, usage = found.get("keySpec"), found.get("keyStatus"), found.get("keyUsage")
    if not isinstance(usage, list) or len(usage) > 10:
        raise KmsError("CustomKeyStoreInvalidStateException", "KMS cannot interpret the response of the proxy")
    if spec != "AES_256":
        raise KmsError("XksKeyInvalidConfigurationException", f"The key spec of the external key must be AES_256, it is {spec}")
    if status != "ENABLED":
        raise KmsError("XksKeyInvalidConfigurationException", f"The status of the external key must be ENABLED, it is {status}")
    if not {"ENCRYPT", "DECRYPT"} <= set(usage):
        raise KmsError("XksKeyInvalidConfigurationException", f"The key usage must include ENCRYPT and DECRYPT, it is {usage}")


def describe(account: Account, request: Request) -> Answer:
    """DescribeKey."""
    return {"KeyMetadata": _metadata(account, account.key(request["KeyId"], alias=True))}


def _metadata(account: Account, key: Key) -> Answer:
    state = account.key_state(key)
    return {
        "AWSAccountId": ACCOUNT,
        "KeyId": key.id,
        "Arn": key.arn,
        "CreationDate": key.created_at,
        "Enabled": state == "Enabled",
        "Description": key.description,
        "KeyUsage": "ENCRYPT_DECRYPT",
        "KeyState": state,
        "Origin": "EXTERNAL_KEY_STORE",
        "CustomKeyStoreId": key.store,
        "KeyManager": "CUSTOMER",
        "CustomerMasterKeySpec": "SYMMETRIC_DEFAULT",
        "KeySpec": "SYMMETRIC_DEFAULT",
        "EncryptionAlgorithms": ["SYMMETRIC_DEFAULT"],
        "MultiRegion": False,
        "XksKeyConfiguration": {"Id": key.external_key_id},
        **({"DeletionDate": key.deletion_at} if key.deletion_at else {}),
    }


def list_keys(account: Account, request: Request) -> Answer:
    """ListKeys."""
    return page([{"KeyId": key.id, "KeyArn": key.arn} for key in account.keys.values()], "Keys", request)


def enable(account: Account, request: Request) -> Answer:
    """EnableKey."""
    _alive(account, request).enabled = True
    return {}


def disable(account: Account, request: Request) -> Answer:
    """DisableKey."""
    _alive(account, request).enabled = False
    return {}


def set_description(account: Account, request: Request) -> Answer:
    """UpdateKeyDescription."""
    _alive(account, request).description = request["Description"]
    return {}


def schedule_deletion(account: Account, request: Request) -> Answer:
    """ScheduleKeyDeletion."""
    days = request.get("PendingWindowInDays", 30)
    if not 7 <= days <= 30:
        raise KmsError("ValidationException", "PendingWindowInDays must be between 7 and 30")
    key = _alive(account, request)
    key.deletion_at = account.now() + days * DAY_S
    return {"KeyId": key.arn, "DeletionDate": key.deletion_at, "KeyState": "PendingDeletion", "PendingWindowInDays": days}


def cancel_deletion(account: Account, request: Request) -> Answer:
    """CancelKeyDeletion: the key is disabled then."""
    key = account.key(request["KeyId"])
    if not key.deletion_at:
        raise KmsError("KMSInvalidStateException", f"{key.arn} is not pending deletion.")
    key.deletion_at, key.enabled = 0.0, False
    return {"KeyId": key.arn}


def _alive(account: Account, request: Request) -> Key:
    key = account.key(request["KeyId"])
    if key.deletion_at:
        raise KmsError("KMSInvalidStateException", f"{key.arn} is pending deletion.")
    return key


# --- aliases and tags


def create_alias(account: Account, request: Request) -> Answer:
    """CreateAlias."""
    alias = _alias(request)
    if alias in account.aliases:
        raise KmsError("AlreadyExistsException", f"An alias with the name {alias} already exists")
    account.aliases[alias] = _target(account, request)
    return {}


def update_alias(account: Account, request: Request) -> Answer:
    """UpdateAlias."""
    alias = _alias(request)
    if alias not in account.aliases:
        raise KmsError("NotFoundException", f"Alias {alias} is not found.")
    account.aliases[alias] = _target(account, request)
    return {}


def delete_alias(account: Account, request: Request) -> Answer:
    """DeleteAlias."""
    alias = _alias(request)
    if alias not in account.aliases:
        raise KmsError("NotFoundException", f"Alias {alias} is not found.")
    del account.aliases[alias]
    return {}


def list_aliases(account: Account, request: Request) -> Answer:
    """ListAliases, of one key or of all."""
    wanted = account.key(request["KeyId"]).id if "KeyId" in request else None
    prefix = f"arn:aws:kms:{account.region}:{ACCOUNT}:"
    entries = [
        {"AliasName": alias, "AliasArn": prefix + alias, "TargetKeyId": target}
        for alias, target in sorted(account.aliases.items())
        if wanted in (None, target)
    ]
    return page(entries, "Aliases", request)


def _alias(request: Request) -> str:
    alias: str = request["AliasName"]
    if not alias.startswith("alias/") or alias.startswith("alias/aws/") or alias == "alias/":
        raise KmsError("InvalidAliasNameException", "An alias starts with alias/ and not with alias/aws/")
    return alias


def _target(account: Account, request: Request) -> str:
    key = account.key(request["TargetKeyId"])
    if key.deletion_at:
        raise KmsError("KMSInvalidStateException", f"{key.arn} is pending deletion.")
    return key.id


def tag(account: Account, request: Request) -> Answer:
    """TagResource."""
    key = _alive(account, request)
    tags = key.tags | _tags(request["Tags"])
    if len(tags) > MAX_TAGS:
        raise KmsError("TagException", "Too many tags")
    key.tags = tags
    return {}


def untag(account: Account, request: Request) -> Answer:
    """UntagResource."""
    key = _alive(account, request)
    key.tags = {name: value for name, value in key.tags.items() if name not in request["TagKeys"]}
    return {}


def list_tags(account: Account, request: Request) -> Answer:
    """ListResourceTags."""
    key = account.key(request["KeyId"])
    return page([{"TagKey": name, "TagValue": value} for name, value in sorted(key.tags.items())], "Tags", request)


def _tags(entries: list[dict[str, str]]) -> dict[str, str]:
    tags = {entry["TagKey"]: entry["TagValue"] for entry in entries}
    if len(tags) < len(entries) or any(name.startswith("aws:") for name in tags):
        raise KmsError("TagException", "Duplicate tag keys, or one that starts with aws:")
    return tags
