# SPDX-License-Identifier: Apache-2.0
"""AWS KMS, called: the only module that imports boto3.

What lives here: one class whose methods are KMS's operations with plain values in and out, every failure an AwsRefused. What must
not: rules about our objects (admin/service) and comparisons (admin/aws/sync). All calls block and end within a bounded time; call
them in a thread. A newcomer's trap: botocore repeats a call that got no answer, so CreateKey or CreateCustomKeyStore may be told
that what an earlier attempt made is in the way; both look whether it is theirs.
"""

from __future__ import annotations

import ipaddress
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

import boto3
from botocore import xform_name
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, ParamValidationError

from xksfast.admin.aws.errors import AwsRefused, Explanation, refused
from xksfast.admin.aws.results import (
    EXTERNAL_KEY_STORE,
    CustomKeyStore,
    Identity,
    KmsKey,
    ProxyCredential,
    custom_key_store,
    full_alias,
    kms_key,
    unix_seconds,
)
from xksfast.admin.aws.waiting import Patience, Progress, until_connected, until_disconnected
from xksfast.errors import OperatorError
from xksfast.state.objects import AwsConnection, Connectivity

CONNECT_TIMEOUT_S = 5.0
READ_TIMEOUT_S = 20.0
ATTEMPTS = 4  # of one call, the first included
ROLE_SESSION_S = 3600
RENEW_BEFORE_S = 300
ROLE_SESSION_NAME = "xksfast"
USUAL_PATIENCE = Patience()


class KmsConnection:
    """KMS in one account and Region. May be used by several threads at once.

    Raises OperatorError at once when `connection` cannot be right, else nothing until the first call.
    """

    def __init__(
        self,
        connection: AwsConnection,
        *,
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
        read_timeout_s: float = READ_TIMEOUT_S,
        attempts: int = ATTEMPTS,
    ) -> None:
        _refuse_plain_http(connection)
        # At DEBUG botocore logs whole requests, and those that create or update a store hold the proxy's secret.
        for name in ("boto3", "botocore"):
            logger = logging.getLogger(name)
            logger.setLevel(max(logger.level, logging.INFO))
        self.connection = connection
        self._config = Config(
            connect_timeout=connect_timeout_s,
            read_timeout=read_timeout_s,
            retries={"mode": "standard", "total_max_attempts": attempts},
            user_agent_extra="xksfast",
        )
        self._lock = threading.Lock()
        self._boto: Any = None
        self._clients: dict[str, Any] = {}
        self._renew_at = 0.0  # unix seconds; at first there is no session

    def identity(self) -> Identity:
        """Who AWS takes us for. AwsRefused with code "WrongAccount" when that is not the connection's account."""
        answer = self._call("GetCallerIdentity", f"use AWS connection {self.connection.name}", service="sts")
        found = Identity(answer["Account"], answer["Arn"])
        if self.connection.account and found.account != self.connection.account:
            raise AwsRefused(
                "GetCallerIdentity",
                "WrongAccount",
                f"use AWS connection {self.connection.name}",
                Explanation(
                    f"Its credentials belong to account {found.account} ({found.arn}), not to {self.connection.account}",
                    "Give the connection another profile or role, or the account number that is meant",
                ),
            )
        return found

    # --- custom key stores

    def create_store(
        self,
        name: str,
        *,
        endpoint: str,
        uri_path: str,
        connectivity: Connectivity,
        credential: ProxyCredential,
        vpc_endpoint_service_name: str = "",
    ) -> str:
        """CreateCustomKeyStore; the id of the new custom key store, which is DISCONNECTED. AWS calls the proxy meanwhile."""
        parameters: dict[str, Any] = {
            "CustomKeyStoreName": name,
            "CustomKeyStoreType": EXTERNAL_KEY_STORE,
            "XksProxyUriEndpoint": endpoint,
            "XksProxyUriPath": uri_path,
            "XksProxyConnectivity": connectivity,
            "XksProxyAuthenticationCredential": _credential(credential),
        }
        if vpc_endpoint_service_name:
            parameters["XksProxyVpcEndpointServiceName"] = vpc_endpoint_service_name
        try:
            answer = self._call("CreateCustomKeyStore", f"create custom key store {name}", **parameters)
        except AwsRefused as refusal:
            in_use = ("CustomKeyStoreNameInUseException", "XksProxyUriInUseException")
            made = self.find_store(name) if refusal.retried and refusal.code in in_use else None
            wanted = (endpoint, uri_path, connectivity, credential.access_key_id)
            if made is None or (made.endpoint, made.uri_path, made.connectivity, made.access_key_id) != wanted:
                raise
            return made.id  # an earlier attempt of this very call, whose answer was lost, made it
        return str(answer["CustomKeyStoreId"])

    def describe_store(self, custom_key_store_id: str) -> CustomKeyStore:
        """One custom key store. AwsRefused with CustomKeyStoreNotFoundException when AWS has none with this id."""
        what = f"look at custom key store {custom_key_store_id}"
        answer = self._call("DescribeCustomKeyStores", what, CustomKeyStoreId=custom_key_store_id)
        return custom_key_store(answer["CustomKeyStores"][0])

    def find_store(self, name: str) -> CustomKeyStore | None:
        """The custom key store with this name, None when there is none."""
        try:
            answer = self._call("DescribeCustomKeyStores", f"look for custom key store {name}", CustomKeyStoreName=name)
        except AwsRefused as refusal:
            if refusal.code == "CustomKeyStoreNotFoundException":
                return None
            raise
        return custom_key_store(answer["CustomKeyStores"][0])

    def stores(self) -> list[CustomKeyStore]:
        """All external key stores of the account and Region; those on CloudHSM are left out."""
        pages = self._pages("DescribeCustomKeyStores", "list the custom key stores", "CustomKeyStores")
        return [store for store in map(custom_key_store, pages) if store.type == EXTERNAL_KEY_STORE]

    def update_store(
        self,
        custom_key_store_id: str,
        *,
        new_name: str | None = None,
        uri_path: str | None = None,
        credential: ProxyCredential | None = None,
        endpoint: str | None = None,
        connectivity: Connectivity | None = None,
        vpc_endpoint_service_name: str | None = None,
    ) -> None:
        """UpdateCustomKeyStore with what is not None. The last three only while DISCONNECTED; the others while CONNECTED too."""
        changes: dict[str, Any] = {
            "NewCustomKeyStoreName": new_name,
            "XksProxyUriPath": uri_path,
            "XksProxyAuthenticationCredential": None if credential is None else _credential(credential),
            "XksProxyUriEndpoint": endpoint,
            "XksProxyConnectivity": connectivity,
            "XksProxyVpcEndpointServiceName": vpc_endpoint_service_name,
        }
        given = {name: value for name, value in changes.items() if value is not None}
        what = f"update custom key store {custom_key_store_id}"
        self._call("UpdateCustomKeyStore", what, CustomKeyStoreId=custom_key_store_id, **given)

    def connect_store(self, custom_key_store_id: str) -> None:
        """ConnectCustomKeyStore: starts connecting, which takes minutes; see wait_connected. Refused while FAILED."""
        what = f"connect custom key store {custom_key_store_id}"
        self._call("ConnectCustomKeyStore", what, CustomKeyStoreId=custom_key_store_id)

    def disconnect_store(self, custom_key_store_id: str) -> None:
        """DisconnectCustomKeyStore: from now on AWS KMS refuses to use its keys."""
        what = f"disconnect custom key store {custom_key_store_id}"
        self._call("DisconnectCustomKeyStore", what, CustomKeyStoreId=custom_key_store_id)

    def delete_store(self, custom_key_store_id: str) -> None:
        """DeleteCustomKeyStore: only while DISCONNECTED and without KMS keys. Nothing of ours is touched."""
        what = f"delete custom key store {custom_key_store_id}"
        self._call("DeleteCustomKeyStore", what, CustomKeyStoreId=custom_key_store_id)

    def wait_connected(
        self, custom_key_store_id: str, progress: Progress | None = None, patience: Patience = USUAL_PATIENCE
    ) -> CustomKeyStore:
        """Wait until it is CONNECTED. AwsRefused: it FAILED (code: its connection error code), nobody connects it, or patience ended.

        progress is called after each look with what was seen and the seconds waited so far.
        """
        return until_connected(lambda: self.describe_store(custom_key_store_id), progress, patience)

    def wait_disconnected(
        self, custom_key_store_id: str, progress: Progress | None = None, patience: Patience = USUAL_PATIENCE
    ) -> CustomKeyStore:
        """Wait until it is DISCONNECTED; as wait_connected."""
        return until_disconnected(lambda: self.describe_store(custom_key_store_id), progress, patience)

    # --- keys

    def create_key(
        self, custom_key_store_id: str, external_key_id: str, *, description: str = "", tags: Mapping[str, str] | None = None
    ) -> KmsKey:
        """CreateKey for an external key; the store must be CONNECTED, and AWS asks the proxy about the key meanwhile."""
        what = f"create a KMS key for external key {external_key_id}"
        try:
            answer = self._call(
                "CreateKey",
                what,
                Origin=EXTERNAL_KEY_STORE,
                CustomKeyStoreId=custom_key_store_id,
                XksKeyId=external_key_id,
                Description=description,
                Tags=_tags(tags or {}),
            )
        except AwsRefused as refusal:
            if not (refusal.retried and refusal.code == "XksKeyAlreadyInUseException"):
                raise
            # An earlier attempt of this very call, whose answer was lost, may have made it.
            for key in self.keys_of_store(custom_key_store_id):
                if key.external_key_id == external_key_id and key.description == description:
                    return key
            raise
        return kms_key(answer["KeyMetadata"])

    def describe_key(self, key: str) -> KmsKey:
        """One KMS key by id, ARN or alias; without aliases and tags."""
        return kms_key(self._call("DescribeKey", f"look at KMS key {key}", KeyId=key)["KeyMetadata"])

    def look_at_key(self, key: str) -> KmsKey:
        """One KMS key with its aliases and tags: three calls or more."""
        bare = self.describe_key(key)
        values = vars(bare) | {"aliases": tuple(self.aliases(bare.id)), "tags": self.tags(bare.id), "details": True}
        return KmsKey(**values)

    def key_arns(self) -> list[str]:
        """All KMS keys of the account and Region, in stores or not."""
        return [str(entry["KeyArn"]) for entry in self._pages("ListKeys", "list the KMS keys", "Keys")]

    def keys_of_store(self, custom_key_store_id: str) -> Iterator[KmsKey]:
        """The KMS keys of a store. AWS cannot list them, so every key of the account is looked at: one call each."""
        for arn in self.key_arns():
            try:
                key = self.describe_key(arn)
            except AwsRefused as refusal:
                # Deleted since the list was read, or its key policy keeps it from us: then it is not a key that we made.
                if refusal.code in ("NotFoundException", "AccessDeniedException"):
                    continue
                raise
            if key.custom_key_store_id == custom_key_store_id:
                yield key

    def enable_key(self, key: str) -> None:
        """EnableKey."""
        self._call("EnableKey", f"enable KMS key {key}", KeyId=key)

    def disable_key(self, key: str) -> None:
        """DisableKey."""
        self._call("DisableKey", f"disable KMS key {key}", KeyId=key)

    def schedule_key_deletion(self, key: str, days: int) -> int:
        """ScheduleKeyDeletion in 7 to 30 days; when the KMS key will be deleted, unix seconds. Our key stays."""
        what = f"schedule the deletion of KMS key {key}"
        return unix_seconds(self._call("ScheduleKeyDeletion", what, KeyId=key, PendingWindowInDays=days).get("DeletionDate"))

    def cancel_key_deletion(self, key: str) -> None:
        """CancelKeyDeletion: the KMS key is Disabled afterwards."""
        self._call("CancelKeyDeletion", f"cancel the deletion of KMS key {key}", KeyId=key)

    def set_description(self, key: str, description: str) -> None:
        """UpdateKeyDescription."""
        self._call("UpdateKeyDescription", f"describe KMS key {key}", KeyId=key, Description=description)

    def aliases(self, key: str) -> list[str]:
        """Aliases of a KMS key, with "alias/" in front, sorted."""
        return sorted(
            str(entry["AliasName"]) for entry in self._pages("ListAliases", f"list aliases of {key}", "Aliases", KeyId=key)
        )

    def create_alias(self, alias: str, key: str) -> None:
        """CreateAlias. alias: with or without "alias/" in front."""
        self._call("CreateAlias", f"create alias {alias}", AliasName=full_alias(alias), TargetKeyId=key)

    def move_alias(self, alias: str, key: str) -> None:
        """UpdateAlias: an existing alias now means this key."""
        self._call("UpdateAlias", f"move alias {alias}", AliasName=full_alias(alias), TargetKeyId=key)

    def delete_alias(self, alias: str) -> None:
        """DeleteAlias."""
        self._call("DeleteAlias", f"delete alias {alias}", AliasName=full_alias(alias))

    def tags(self, key: str) -> dict[str, str]:
        """Tags of a KMS key."""
        entries = self._pages("ListResourceTags", f"list tags of KMS key {key}", "Tags", KeyId=key)
        return {str(entry["TagKey"]): str(entry["TagValue"]) for entry in entries}

    def set_tags(self, key: str, tags: Mapping[str, str]) -> None:
        """Make these its tags: what differs is written, what is not among them is taken away."""
        former = self.tags(key)
        changed = {name: value for name, value in tags.items() if former.get(name) != value}
        if changed:
            self._call("TagResource", f"tag KMS key {key}", KeyId=key, Tags=_tags(changed))
        gone = sorted(former.keys() - tags.keys())
        if gone:
            self._call("UntagResource", f"untag KMS key {key}", KeyId=key, TagKeys=gone)

    def prove_key(self, key: str) -> tuple[float, float]:
        """Encrypt random bytes through AWS KMS, decrypt and compare: KMS, proxy and HSM work together. (Encrypt ms, Decrypt ms)."""
        what, context = f"use KMS key {key}", {"xksfast": "proof"}
        plaintext = os.urandom(32)
        started = time.monotonic()
        blob = self._call("Encrypt", what, KeyId=key, Plaintext=plaintext, EncryptionContext=context)["CiphertextBlob"]
        between = time.monotonic()
        found = self._call("Decrypt", what, KeyId=key, CiphertextBlob=blob, EncryptionContext=context)["Plaintext"]
        ended = time.monotonic()
        if found != plaintext:
            explanation = Explanation("Another plaintext came back than was encrypted", "Stop using the key and report this")
            raise AwsRefused("Decrypt", "WrongPlaintext", what, explanation)
        return (between - started) * 1e3, (ended - between) * 1e3

    # --- calling

    def _pages(self, operation: str, what: str, member: str, **parameters: Any) -> Iterator[dict[str, Any]]:
        """Every entry of a list that AWS gives in pages."""
        while True:
            answer = self._call(operation, what, **parameters)
            yield from answer[member]
            if not answer.get("Truncated"):
                return
            parameters["Marker"] = answer["NextMarker"]

    def _call(self, operation: str, what: str, *, service: str = "kms", **parameters: Any) -> dict[str, Any]:
        def call(**given: Any) -> dict[str, Any]:
            answer: dict[str, Any] = getattr(self._client(service), xform_name(operation))(**given)
            return answer

        return _ask(call, operation, what, parameters)

    def _client(self, service: str) -> Any:
        with self._lock:
            if time.time() >= self._renew_at:
                self._clients.clear()
                self._boto, self._renew_at = self._session()
            if service not in self._clients:
                endpoint = self.connection.endpoint_url if service == "kms" else ""
                self._clients[service] = self._boto.client(service, endpoint_url=endpoint or None, config=self._config)
            return self._clients[service]

    def _session(self) -> tuple[Any, float]:
        """A boto3 session, and the unix time from which a new one is needed: never, but for an assumed role."""
        connection = self.connection
        session = boto3.Session(profile_name=connection.profile or None, region_name=connection.region)
        if not connection.role_arn:
            return session, float("inf")
        asked = {"RoleArn": connection.role_arn, "RoleSessionName": ROLE_SESSION_NAME, "DurationSeconds": ROLE_SESSION_S}
        sts = session.client("sts", config=self._config)
        found = _ask(sts.assume_role, "AssumeRole", f"assume role {connection.role_arn}", asked)["Credentials"]
        assumed = boto3.Session(
            aws_access_key_id=found["AccessKeyId"],
            aws_secret_access_key=found["SecretAccessKey"],
            aws_session_token=found["SessionToken"],
            region_name=connection.region,
        )
        return assumed, found["Expiration"].timestamp() - RENEW_BEFORE_S


def _ask(function: Callable[..., dict[str, Any]], operation: str, what: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """What boto3's function answers; AwsRefused for whatever it raises. The proxy's secret is never part of the text."""
    secret = parameters.get("XksProxyAuthenticationCredential", {}).get("RawSecretAccessKey", "")

    def hide(text: str) -> str:
        return text.replace(secret, "***") if secret else text

    try:
        return function(**parameters)
    except ClientError as error:
        said, metadata = error.response.get("Error", {}), error.response.get("ResponseMetadata", {})
        retried = bool(metadata.get("RetryAttempts"))
        message = hide(said.get("Message", ""))
        refusal = refused(operation, said.get("Code", ""), what, aws_message=message, retried=retried)
    except ParamValidationError as error:
        refusal = refused(operation, "ParamValidationError", what, aws_message=hide(str(error.kwargs.get("report", ""))))
    except BotoCoreError as error:
        refusal = refused(operation, type(error).__name__, what)
    raise refusal  # outside of the handlers: the request, secret included, hangs from boto3's traceback


def _credential(credential: ProxyCredential) -> dict[str, str]:
    return {"AccessKeyId": credential.access_key_id, "RawSecretAccessKey": credential.secret_access_key}


def _tags(tags: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"TagKey": name, "TagValue": value} for name, value in tags.items()]


def _refuse_plain_http(connection: AwsConnection) -> None:
    """Requests hold the proxy's secret: they go to AWS by TLS, or to this machine."""
    url = urlsplit(connection.endpoint_url)
    if not connection.endpoint_url or (url.scheme == "https" and url.hostname):
        return
    try:
        loopback = ipaddress.ip_address(url.hostname or "").is_loopback
    except ValueError:
        loopback = url.hostname == "localhost"
    if url.scheme != "http" or not loopback:
        raise OperatorError(
            f"AWS connection {connection.name}: endpoint_url {connection.endpoint_url!r} must start with https://, since requests "
            "to it hold the secret of the key store's credential; leave it empty for AWS's own endpoint"
        )
