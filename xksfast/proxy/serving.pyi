from collections.abc import Iterable

from xksfast.ekm.base import Fleet, KeyBinding
from xksfast.model import Key, KeyStore
from xksfast.native.crypto import Keyring

class ServedKey:
    external_key_id: str
    label: str
    enabled: bool
    problem: str
    def __init__(self, key: Key, binding: KeyBinding) -> None: ...

class ServedStore:
    name: str
    prefix: bytes
    region: str
    keys: dict[bytes, ServedKey]
    fleet: Fleet
    def __init__(self, store: KeyStore, keyring: Keyring, keys: Iterable[ServedKey], fleet: Fleet) -> None: ...

class ServingTable:
    seq: int
    stores: dict[bytes, ServedStore]
    def __init__(self, seq: int, stores: Iterable[ServedStore]) -> None: ...
    def retire(self, successor: ServingTable) -> None: ...
