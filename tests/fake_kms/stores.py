# SPDX-License-Identifier: Apache-2.0
"""Operations on custom key stores. Source: AWS KMS API Reference; Developer Guide, Troubleshooting external key stores."""

from __future__ import annotations

import copy
import secrets
import uuid
from collections.abc import Callable
from typing import Any

from tests.fake_kms.account import ACCOUNT, Account, Store
from tests.fake_kms.errors import KmsError
from tests.fake_kms.paging import page
from tests.fake_kms.proxy_client import Fault, ProxyFailure, check_health

Request = dict[str, Any]
Answer = dict[str, Any]

# What a failed health check means for CreateCustomKeyStore and UpdateCustomKeyStore (an exception) and after ConnectCustomKeyStore (a
# connection error code). AWS documents neither for every fault; where it is silent, the nearest one is taken.
HEALTH_FAULTS: dict[Fault, tuple[str, str]] = {
    Fault.NOT_REACHABLE: ("XksProxyUriUnreachableException", "XKS_PROXY_NOT_REACHABLE"),
    Fault.TIMED_OUT: ("XksProxyUriUnreachableException", "XKS_PROXY_TIMED_OUT"),
    Fault.TLS: ("XksProxyInvalidConfigurationException", "XKS_PROXY_INVALID_TLS_CONFIGURATION"),
    Fault.INVALID_RESPONSE: ("XksProxyInvalidResponseException", "XKS_PROXY_INVALID_RESPONSE"),
    Fault.AUTHENTICATION: ("XksProxyIncorrectAuthenticationCredentialException", "INVALID_CREDENTIALS"),
    Fault.ACCESS_DENIED: ("XksProxyInvalidResponseException", "XKS_PROXY_ACCESS_DENIED"),
    Fault.URI_PATH: ("XksProxyInvalidConfigurationException", "XKS_PROXY_INVALID_CONFIGURATION"),
    Fault.INVALID_STATE: ("XksProxyUriUnreachableException", "XKS_PROXY_NOT_REACHABLE"),
    Fault.THROTTLED: ("XksProxyUriUnreachableException", "XKS_PROXY_NOT_REACHABLE"),
    Fault.UNHEALTHY: ("XksProxyUriUnreachableException", "XKS_PROXY_NOT_REACHABLE"),
}
_OTHER_FAULT = HEALTH_FAULTS[Fault.INVALID_RESPONSE]


def create(account: Account, request: Request) -> Answer:
    """CreateCustomKeyStore, for external key stores."""
    if request.get("CustomKeyStoreType") != "EXTERNAL_KEY_STORE":
        raise KmsError("UnsupportedOperationException", "the fake has no AWS CloudHSM")
    for name in ("XksProxyConnectivity", "XksProxyAuthenticationCredential", "XksProxyUriEndpoint", "XksProxyUriPath"):
        if name not in request:
            raise KmsError("ValidationException", f"{name} is required for an external key store")
    foreign = {"CloudHsmClusterId", "KeyStorePassword", "TrustAnchorCertificate"} & request.keys()
    if foreign:
        raise KmsError("ValidationException", f"{sorted(foreign)[0]} is not for an external key store")
    credential = request["XksProxyAuthenticationCredential"]
    store = Store(
        id=f"cks-{secrets.token_hex(9)[:17]}",
        name=request["CustomKeyStoreName"],
        endpoint=request["XksProxyUriEndpoint"],
        uri_path=request["XksProxyUriPath"],
        connectivity=request["XksProxyConnectivity"],
        access_key_id=credential["AccessKeyId"],
        secret_access_key=credential["RawSecretAccessKey"],
        vpc_service=request.get("XksProxyVpcEndpointServiceName", ""),
        vpc_owner=request.get("XksProxyVpcEndpointServiceOwner", ""),
    )
    _check_service_named(store)
    _check_unique(account, store)
    if store.connectivity == "PUBLIC_ENDPOINT":
        _check_proxy(account, store, "CreateCustomKeyStore")
    else:
        _check_vpc(account, store, _raise_exception)
    account.stores[store.id] = store
    return {"CustomKeyStoreId": store.id}


def describe(account: Account, request: Request) -> Answer:
    """DescribeCustomKeyStores."""
    store_id, name = request.get("CustomKeyStoreId"), request.get("CustomKeyStoreName")
    if store_id and name:
        raise KmsError("ValidationException", "either CustomKeyStoreId or CustomKeyStoreName may be given, not both")
    stores = [account.store(store_id)] if store_id else list(account.stores.values())
    if name:
        stores = [store for store in stores if store.name == name]
        if not stores:
            raise KmsError("CustomKeyStoreNotFoundException", f"{name} does not exist")
    return page([_entry(store) for store in stores], "CustomKeyStores", request)


def _entry(store: Store) -> Answer:
    store.settle()
    proxy = {
        "Connectivity": store.connectivity,
        "AccessKeyId": store.access_key_id,
        "UriEndpoint": store.endpoint,
        "UriPath": store.uri_path,
        **({"VpcEndpointServiceName": store.vpc_service} if store.vpc_service else {}),
        **({"VpcEndpointServiceOwner": store.vpc_owner or ACCOUNT} if store.vpc_service else {}),
    }
    return {
        "CustomKeyStoreId": store.id,
        "CustomKeyStoreName": store.name,
        "ConnectionState": store.state,
        **({"ConnectionErrorCode": store.error} if store.state == "FAILED" and store.error else {}),
        "CreationDate": store.created_at,
        "CustomKeyStoreType": "EXTERNAL_KEY_STORE",
        "XksProxyConfiguration": proxy,
    }


def connect(account: Account, request: Request) -> Answer:
    """ConnectCustomKeyStore: answered at once, what came of it is shown after connect_s."""
    store = account.store(request["CustomKeyStoreId"])
    if store.state in ("DISCONNECTING", "FAILED"):
        raise KmsError("CustomKeyStoreInvalidStateException", f"{store.id} is {store.state}")
    if store.state in ("CONNECTED", "CONNECTING"):
        return {}
    code = account.failures.pop(0) if account.failures else _connection_error(account, store)
    store.change("CONNECTING", "FAILED" if code else "CONNECTED", code, account.connect_s)
    return {}


def _connection_error(account: Account, store: Store) -> str:
    """ "" or the code with which connecting fails."""
    try:
        if store.connectivity == "VPC_ENDPOINT_SERVICE":
            _check_vpc(account, store, _raise_code)
        check_health(account.way(store), "ConnectCustomKeyStore", str(uuid.uuid4()))
    except _ConnectionError as error:
        return error.code
    except ProxyFailure as failure:
        return HEALTH_FAULTS.get(failure.fault, _OTHER_FAULT)[1]
    return ""


def disconnect(account: Account, request: Request) -> Answer:
    """DisconnectCustomKeyStore."""
    store = account.store(request["CustomKeyStoreId"])
    if store.state in ("DISCONNECTING", "DISCONNECTED"):
        raise KmsError("CustomKeyStoreInvalidStateException", f"{store.id} is {store.state}")
    store.change("DISCONNECTING", "DISCONNECTED", "", account.disconnect_s)
    return {}


def update(account: Account, request: Request) -> Answer:
    """UpdateCustomKeyStore: everything while DISCONNECTED; name, credential and path while CONNECTED too."""
    store = account.store(request["CustomKeyStoreId"])
    if {"CloudHsmClusterId", "KeyStorePassword"} & request.keys():
        raise KmsError("ValidationException", "the parameter is not for an external key store")
    restricted = {
        "XksProxyUriEndpoint",
        "XksProxyConnectivity",
        "XksProxyVpcEndpointServiceName",
        "XksProxyVpcEndpointServiceOwner",
    }
    allowed = ("DISCONNECTED",) if restricted & request.keys() else ("DISCONNECTED", "CONNECTED")
    if store.state not in allowed:
        raise KmsError("CustomKeyStoreInvalidStateException", f"{store.id} is {store.state}")
    changed = copy.copy(store)
    changed.name = request.get("NewCustomKeyStoreName", store.name)
    changed.uri_path = request.get("XksProxyUriPath", store.uri_path)
    changed.endpoint = request.get("XksProxyUriEndpoint", store.endpoint)
    changed.connectivity = request.get("XksProxyConnectivity", store.connectivity)
    changed.vpc_service = request.get("XksProxyVpcEndpointServiceName", store.vpc_service)
    changed.vpc_owner = request.get("XksProxyVpcEndpointServiceOwner", store.vpc_owner)
    if "XksProxyAuthenticationCredential" in request:
        credential = request["XksProxyAuthenticationCredential"]
        changed.access_key_id, changed.secret_access_key = credential["AccessKeyId"], credential["RawSecretAccessKey"]
    if changed.connectivity != store.connectivity:
        if "XksProxyUriEndpoint" not in request:
            raise KmsError("ValidationException", "XksProxyUriEndpoint must change with XksProxyConnectivity")
        if changed.connectivity == "PUBLIC_ENDPOINT" and "XksProxyVpcEndpointServiceName" not in request:
            changed.vpc_service = changed.vpc_owner = ""
    _check_service_named(changed)
    _check_unique(account, changed)
    proxy = ("uri_path", "endpoint", "connectivity", "vpc_service", "access_key_id", "secret_access_key")
    if any(getattr(changed, name) != getattr(store, name) for name in proxy):
        if changed.connectivity == "VPC_ENDPOINT_SERVICE":
            _check_vpc(account, changed, _raise_exception)
        # Behind a VPC endpoint service KMS reaches the proxy only while the store is connected.
        if changed.connectivity == "PUBLIC_ENDPOINT" or changed.state == "CONNECTED":
            _check_proxy(account, changed, "UpdateCustomKeyStore")
    account.stores[store.id] = changed
    return {}


def delete(account: Account, request: Request) -> Answer:
    """DeleteCustomKeyStore."""
    store = account.store(request["CustomKeyStoreId"])
    if any(key.store == store.id for key in account.keys.values()):
        raise KmsError("CustomKeyStoreHasCMKsException", f"{store.id} has KMS keys")
    if store.state != "DISCONNECTED":
        raise KmsError("CustomKeyStoreInvalidStateException", f"{store.id} is {store.state}")
    del account.stores[store.id]
    return {}


def _check_service_named(store: Store) -> None:
    if (store.connectivity == "VPC_ENDPOINT_SERVICE") != bool(store.vpc_service):
        raise KmsError("ValidationException", "XksProxyVpcEndpointServiceName goes with VPC_ENDPOINT_SERVICE, and only with it")


def _check_unique(account: Account, store: Store) -> None:
    for other in account.stores.values():
        if other.id == store.id:
            continue
        if other.name == store.name:
            raise KmsError("CustomKeyStoreNameInUseException", f"{store.name} is in use")
        if (other.endpoint, other.uri_path) == (store.endpoint, store.uri_path):
            raise KmsError("XksProxyUriInUseException", f"{store.endpoint}{store.uri_path} is in use")
        behind_vpc = "VPC_ENDPOINT_SERVICE" in (other.connectivity, store.connectivity)
        if other.endpoint == store.endpoint and behind_vpc:
            raise KmsError("XksProxyUriEndpointInUseException", f"{store.endpoint} is in use")
        if store.vpc_service and other.vpc_service == store.vpc_service:
            raise KmsError("XksProxyVpcEndpointServiceInUseException", f"{store.vpc_service} is in use")


def _check_proxy(account: Account, store: Store, operation: str) -> None:
    try:
        check_health(account.way(store), operation, str(uuid.uuid4()))
    except ProxyFailure as failure:
        raise KmsError(HEALTH_FAULTS.get(failure.fault, _OTHER_FAULT)[0], failure.text) from None


class _ConnectionError(Exception):
    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


def _raise_code(missing: bool, problem: str) -> None:
    raise _ConnectionError(
        "XKS_VPC_ENDPOINT_SERVICE_NOT_FOUND" if missing else "XKS_VPC_ENDPOINT_SERVICE_INVALID_CONFIGURATION"
    )


def _raise_exception(missing: bool, problem: str) -> None:
    kind = "NotFound" if missing else "InvalidConfiguration"
    raise KmsError(f"XksProxyVpcEndpointService{kind}Exception", problem)


def _check_vpc(account: Account, store: Store, refuse: Callable[[bool, str], None]) -> None:
    service = account.vpc_services.get(store.vpc_service)
    if service is None or f".{account.region}." not in store.vpc_service or service.owner != (store.vpc_owner or ACCOUNT):
        refuse(True, f"{store.vpc_service} was not found")
        return
    if f"cks.kms.{account.region}.amazonaws.com" not in service.allowed_principals:
        refuse(True, "AWS KMS is not an allowed principal of the service")
    problems = {
        "the service requires acceptance": service.acceptance_required,
        "the domain of the private DNS name is not verified": not service.domain_verified,
        "the private DNS name is not the proxy URI endpoint": service.private_dns_name != store.host,
        "fewer than two Availability Zones": service.zones < 2,
        "no network load balancer": service.load_balancer != "network",
    }
    for problem, found in problems.items():
        if found:
            refuse(False, problem)
