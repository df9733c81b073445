# SPDX-License-Identifier: Apache-2.0
"""The state of the fake AWS account: custom key stores, KMS keys, aliases, and the network that leads to proxies."""

from __future__ import annotations

import secrets
import time
import uuid
from dataclasses import dataclass, field
from typing import Any

from tests.fake_kms.errors import KmsError
from tests.fake_kms.proxy_client import Way

ACCOUNT = "111122223333"
DAY_S = 86400


@dataclass
class Host:
    """Where a host name of public DNS leads."""

    address: str
    port: int


@dataclass
class VpcService:
    """A VPC endpoint service, as EC2 would show it; the defaults meet every requirement."""

    private_dns_name: str
    address: str
    port: int
    allowed_principals: tuple[str, ...] = ()
    owner: str = ACCOUNT
    acceptance_required: bool = False
    domain_verified: bool = True
    zones: int = 2
    load_balancer: str = "network"


@dataclass
class Store:
    """A custom key store. state is what it was at `settles_at` or before; `next_state` what it is from then on."""

    id: str
    name: str
    endpoint: str
    uri_path: str
    connectivity: str
    access_key_id: str
    secret_access_key: str = field(repr=False)
    vpc_service: str = ""
    vpc_owner: str = ""
    created_at: float = field(default_factory=time.time)
    state: str = "DISCONNECTED"
    error: str = ""
    settles_at: float = 0.0
    next_state: str = ""
    next_error: str = ""

    def settle(self) -> None:
        """What time has done."""
        if self.next_state and time.monotonic() >= self.settles_at:
            self.state, self.error, self.next_state, self.next_error = self.next_state, self.next_error, "", ""

    def change(self, state: str, then: str, error: str, after_s: float) -> None:
        """CONNECTING now, CONNECTED or FAILED later, and the like."""
        self.state, self.error = state, ""
        self.next_state, self.next_error, self.settles_at = then, error, time.monotonic() + after_s

    @property
    def host(self) -> str:
        return self.endpoint.removeprefix("https://")


@dataclass
class Key:
    """A KMS key. material: the inner layer of double encryption."""

    id: str
    arn: str
    store: str
    external_key_id: str
    description: str = ""
    enabled: bool = True
    deletion_at: float = 0.0
    created_at: float = field(default_factory=time.time)
    tags: dict[str, str] = field(default_factory=dict)
    material: bytes = field(default_factory=lambda: secrets.token_bytes(32), repr=False)


class Account:
    """One account in one Region.

    hosts: public DNS. vpc_services: by name. taken_endpoints: of other accounts, by host name. limit_s: KMS's 250 ms for a proxy.
    connect_s, disconnect_s: how long these take. failures: connection error codes that the next connects end with.
    """

    def __init__(self, region: str, *, ca_file: str | None, limit_s: float, connect_s: float, disconnect_s: float) -> None:
        self.region = region
        self.ca_file = ca_file
        self.limit_s = limit_s
        self.connect_s = connect_s
        self.disconnect_s = disconnect_s
        self.hosts: dict[str, Host] = {}
        self.vpc_services: dict[str, VpcService] = {}
        self.stores: dict[str, Store] = {}
        self.keys: dict[str, Key] = {}
        self.aliases: dict[str, str] = {}  # "alias/…" -> key id
        self.failures: list[str] = []
        self.time_passed_s = 0.0

    def now(self) -> float:
        """Unix seconds, with the days that tests let pass."""
        return time.time() + self.time_passed_s

    def pass_days(self, days: int) -> None:
        """Let time pass for keys that wait for their deletion."""
        self.time_passed_s += days * DAY_S
        for key in [key for key in self.keys.values() if key.deletion_at and key.deletion_at <= self.now()]:
            del self.keys[key.id]
            self.aliases = {alias: target for alias, target in self.aliases.items() if target != key.id}

    # --- by hand: what somebody did in the console

    def add_store(self, name: str, **values: Any) -> Store:
        """A custom key store that nobody here asked for; not checked."""
        store = Store(f"cks-{secrets.token_hex(9)[:17]}", name, **values)
        self.stores[store.id] = store
        return store

    def add_key(self, store: str, external_key_id: str, **values: Any) -> Key:
        """A KMS key that nobody here asked for; not checked."""
        key_id = str(uuid.uuid4())
        key = Key(key_id, f"arn:aws:kms:{self.region}:{ACCOUNT}:key/{key_id}", store, external_key_id, **values)
        self.keys[key.id] = key
        return key

    # --- looking up

    def store(self, custom_key_store_id: str) -> Store:
        """By id, as it is now."""
        found = self.stores.get(custom_key_store_id)
        if found is None:
            raise KmsError("CustomKeyStoreNotFoundException", f"{custom_key_store_id} does not exist")
        found.settle()
        return found

    def key(self, key_id: str, *, alias: bool = False) -> Key:
        """By key id or ARN, with `alias` by alias and its ARN too."""
        prefix = f"arn:aws:kms:{self.region}:{ACCOUNT}:"
        short = key_id.removeprefix(prefix)
        if short.startswith("arn:"):
            raise KmsError("NotFoundException", f"Invalid arn {self.region}")
        if short.startswith("alias/"):
            if not alias:
                raise KmsError("NotFoundException", f"Invalid keyId '{key_id}'")
            short = self.aliases.get(short, short)
        found = self.keys.get(short.removeprefix("key/"))
        if found is None:
            raise KmsError("NotFoundException", f"Key '{key_id}' does not exist")
        return found

    def key_state(self, key: Key) -> str:
        """AWS's KeyState."""
        if key.deletion_at:
            return "PendingDeletion"
        store = self.stores.get(key.store)
        if store is not None:
            store.settle()
        if store is None or store.state != "CONNECTED":
            return "Unavailable"
        return "Enabled" if key.enabled else "Disabled"

    def way(self, store: Store) -> Way:
        """How KMS reaches the proxy of a store."""
        place: Host | VpcService | None = self.hosts.get(store.host)
        if store.connectivity == "VPC_ENDPOINT_SERVICE":
            place = self.vpc_services.get(store.vpc_service)
        return Way(
            host=store.host,
            address=None if place is None else (place.address, place.port),
            uri_path=store.uri_path,
            region=self.region,
            access_key_id=store.access_key_id,
            secret_access_key=store.secret_access_key,
            ca_file=self.ca_file,
            limit_s=self.limit_s,
        )
