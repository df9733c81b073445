# SPDX-License-Identifier: Apache-2.0
"""StoreFile -> Snapshot and its secret pages.

Every credential gets a signing key for yesterday, today and tomorrow (UTC): a request signed just before midnight is still good
after it, and the key for the next day is with every worker long before the day begins.
"""

from __future__ import annotations

from collections.abc import Callable

from xksfast.errors import OperatorError
from xksfast.model import Credential, Key, KeyStore, Snapshot
from xksfast.native.crypto import Secret, SecretPages, derive_signing_key, utc_day
from xksfast.state.local_keys import LocalKeyFiles
from xksfast.state.store_file import StoreEntry, StoreFile

DAY_S = 86400


def covered_days(now: int) -> tuple[str, str, str]:
    """Yesterday, today and tomorrow of `now` (unix seconds), as "YYYYMMDD"."""
    return utc_day(now - DAY_S), utc_day(now), utc_day(now + DAY_S)


def build_snapshot(
    document: StoreFile, *, seq: int, now: int, local_keys: LocalKeyFiles, on_problem: Callable[[str], None]
) -> tuple[Snapshot, SecretPages]:
    """The snapshot as of `now` and the pages that its slots point into.

    A `local` key that cannot be unsealed is reported by on_problem and left without a slot: its requests are refused, all
    others are served. OperatorError when a credential's secret cannot be read.
    """
    days = covered_days(now)
    slots = sum(len(days) * len(store.credentials) + len(store.keys) for store in document.key_stores.values())
    pages = SecretPages.new(max(slots, 1))
    builder = _Builder(pages, days, local_keys, on_problem)
    stores = tuple(builder.store(name, store) for name, store in document.key_stores.items())
    return Snapshot(seq=seq, key_stores=stores), pages


class _Builder:
    """Hands out slots one after the other."""

    def __init__(
        self, pages: SecretPages, days: tuple[str, str, str], local_keys: LocalKeyFiles, on_problem: Callable[[str], None]
    ) -> None:
        self._pages = pages
        self._days = days
        self._local_keys = local_keys
        self._on_problem = on_problem
        self._next = 0

    def _slot(self) -> int:
        self._next += 1
        return self._next - 1

    def store(self, name: str, entry: StoreEntry) -> KeyStore:
        return KeyStore(
            name=name,
            uri_path_prefix=entry.uri_path_prefix,
            region=entry.region,
            key_source="local" if entry.is_local else "pkcs11",
            partition_group=entry.partition_group,
            blocked=entry.blocked,
            allowed_principals=entry.allowed_principals,
            credentials=tuple(
                self._credential(c.access_key_id, c.secret_access_key_file, entry.region) for c in entry.credentials
            ),
            keys=tuple(
                Key(
                    external_key_id=external_key_id,
                    label=key.label,
                    usage=key.usage,
                    enabled=key.enabled,
                    blocked=key.blocked,
                    local_slot=self._local_slot(key.label) if entry.is_local else None,
                )
                for external_key_id, key in entry.keys.items()
            ),
        )

    def _credential(self, access_key_id: str, secret_file: str, region: str) -> Credential:
        secret = Secret.from_file(secret_file)
        signing_keys = {}
        for day in self._days:
            signing_keys[day] = self._slot()
            derive_signing_key(secret, day, region, self._pages, signing_keys[day])
        return Credential(access_key_id=access_key_id, signing_keys=signing_keys)

    def _local_slot(self, label: str) -> int | None:
        slot = self._slot()
        try:
            self._local_keys.unseal(label, self._pages, slot)
        except OperatorError as error:
            self._on_problem(str(error))
            return None
        return slot
