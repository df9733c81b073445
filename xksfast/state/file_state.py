# SPDX-License-Identifier: Apache-2.0
"""stores.toml as a state: the same objects as those of a database, whose secrets stand in files.

There is no log, so nothing can be administered: `[state] url = "file:…"` is for people whose whole truth is a file in git.
"""

from __future__ import annotations

from collections.abc import Mapping

from xksfast.errors import OperatorError
from xksfast.native.crypto import Secret, SecretPages, derive_signing_key
from xksfast.state.delta import Days
from xksfast.state.events import GENESIS
from xksfast.state.local_keys import LocalKeyFiles
from xksfast.state.objects import Credential, Key, KeyStore, KeyVersion, SourceKey, Stored
from xksfast.state.projection import State
from xksfast.state.store_file import StoreFile


def state_of_file(document: StoreFile, seq: int) -> State:
    """The state that a file describes; secret_id is the path of a credential's secret, or the label of a `local` key."""
    objects: list[Stored] = []
    sources: dict[str, SourceKey] = {}
    for name, entry in document.key_stores.items():
        place = entry.partition_group or "local"
        objects.append(
            KeyStore(
                name=name,
                uri_path_prefix=entry.uri_path_prefix,
                region=entry.region,
                key_source="local" if entry.is_local else "pkcs11",
                partition_group=entry.partition_group,
                blocked=entry.blocked,
                allowed_principals=entry.allowed_principals,
                aad_scheme=entry.aad_scheme,
            )
        )
        for credential in entry.credentials:
            objects.append(
                Credential(store=name, access_key_id=credential.access_key_id, secret_id=credential.secret_access_key_file)
            )
        for external_key_id, key in entry.keys.items():
            source = SourceKey(place=place, label=key.label, secret_id=key.label if entry.is_local else "", ready=True)
            sources[source.id] = source
            objects.append(
                Key(
                    store=name,
                    external_key_id=external_key_id,
                    versions=(KeyVersion(number=1, label=key.label),),
                    usage=key.usage,
                    enabled=key.enabled,
                    blocked=key.blocked,
                )
            )
    state = State()
    state.load(((value, seq) for value in [*objects, *sources.values()]), seq, GENESIS)
    return state


class FileSecrets:
    """A SecretSource over files."""

    def __init__(self, local_keys: LocalKeyFiles) -> None:
        self._local_keys = local_keys

    def check(self, state: State) -> None:
        """OperatorError when a credential's secret cannot be read: a file that says so is refused as a whole."""
        for credential in state.credentials.values():
            self._open(credential)

    def derive_signing_keys(self, credential: Credential, region: str, days: Days, pages: SecretPages, first_slot: int) -> None:
        """From the file that the credential names."""
        secret = self._open(credential)
        for number, day in enumerate(days):
            derive_signing_key(secret, day, region, pages, first_slot + number)

    def unseal_local_keys(self, sources: Mapping[int, SourceKey], pages: SecretPages) -> dict[int, OperatorError]:
        """Each from its sealed file."""
        problems = {}
        for slot, source in sources.items():
            try:
                self._local_keys.unseal(source.secret_id, pages, slot)
            except OperatorError as error:
                problems[slot] = error
        return problems

    @staticmethod
    def _open(credential: Credential) -> Secret:
        return Secret.from_file(credential.secret_id)
