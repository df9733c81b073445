# SPDX-License-Identifier: Apache-2.0
"""A stores.toml on this machine as a declaration: its secrets are read here, to be sealed at once."""

from __future__ import annotations

from pathlib import Path

from pydantic import SecretStr, ValidationError

from xksfast.admin.declaration import ApplyRequest, DeclaredKey, DeclaredStore
from xksfast.admin.requests import CredentialGiven
from xksfast.errors import OperatorError
from xksfast.state.store_file import CredentialEntry, StoreFile


def declared_by(document: StoreFile) -> ApplyRequest:
    """OperatorError: a secret cannot be read, or is none that KMS takes."""
    return ApplyRequest(
        key_stores={
            name: DeclaredStore(
                region=store.region,
                uri_path_prefix=store.uri_path_prefix,
                partition_group=store.partition_group,
                key_source=store.key_source,
                blocked=store.blocked or None,
                allowed_principals=store.allowed_principals,
                aad_scheme=store.aad_scheme,
                credentials=tuple(_credential(name, entry) for entry in store.credentials),
                keys={
                    external_key_id: DeclaredKey(
                        label=key.label, usage=key.usage, create=key.create, enabled=key.enabled, blocked=key.blocked or None
                    )
                    for external_key_id, key in store.keys.items()
                },
            )
            for name, store in document.key_stores.items()
        }
    )


def _credential(store: str, entry: CredentialEntry) -> CredentialGiven:
    path = Path(entry.secret_access_key_file)
    where = f"key_stores.{store}.credentials: {path}"
    try:
        secret = path.read_text().strip()
    except OSError as error:
        raise OperatorError(f"{where} cannot be read: {error.strerror}") from error
    try:
        return CredentialGiven(access_key_id=entry.access_key_id, secret_access_key=SecretStr(secret))
    except ValidationError as error:
        raise OperatorError(f"{where}: {error.errors(include_input=False)[0]['msg']}") from None
