# SPDX-License-Identifier: Apache-2.0
"""Sealing secrets for the table `secrets`, and MACs, under the data key.

Each row is bound to its place: to "xksfast|secrets|" purpose | version | id, so that a row copied over another one, or an old version
put back under the new number, does not open. What must not be here: where the master key comes from (master_key.py), SQL. A newcomer's
trap: after a rotation of the data key the old one stays open beside the new one until every row has moved; a row names its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from xksfast.errors import NativeError, OperatorError
from xksfast.native.crypto import (
    Secret,
    SecretPages,
    mac,
    mac_is_right,
    seal_derive_signing_keys,
    seal_move,
    seal_open_all,
    seal_open_secret,
    seal_open_text,
    seal_secret,
)
from xksfast.state.master_key import MasterKey, fingerprint, new_data_key
from xksfast.state.records import Purpose, SealedSecret, WrappedDataKey

LOCAL_KEY_BYTES = 32
SECRET_ACCESS_KEY_CHARS = 64
SAME_LABEL = "xksfast-same-secret"


class SealError(OperatorError):
    """A sealed row does not open. The text names the row, what can be wrong and what to do."""


@dataclass(frozen=True, slots=True)
class Rotation:
    """What a rotation of the data key writes, all in one transaction, and the sealer to go on with once it is committed.

    rows replace those of the same id. Data keys of which no row is left may be removed then; MACs made under them no longer verify.
    """

    data_key: WrappedDataKey
    rows: list[SealedSecret]
    sealer: Sealer


@dataclass(frozen=True, slots=True)
class _DataKey:
    secret: Secret
    created_at: int


class Sealer:
    """Holds the open data keys and seals with the newest. From any thread."""

    def __init__(self, keys: dict[str, _DataKey]) -> None:
        """Use new() or open_with()."""
        self._keys = keys
        self.data_key_id = max(keys, key=lambda id: (keys[id].created_at, id))
        self._current = keys[self.data_key_id].secret

    @classmethod
    def new(cls, master: MasterKey, *, now: int) -> tuple[Sealer, WrappedDataKey]:
        """For a state that has no data key yet: one is made; store the row before anything that was sealed."""
        row, data_key = new_data_key(master, now=now)
        return cls({row.id: _DataKey(data_key, row.created_at)}), row

    @classmethod
    def open_with(cls, master: MasterKey, rows: Iterable[WrappedDataKey]) -> Sealer:
        """With the state's data keys, at least one. MasterKeyError when one does not open."""
        keys = {row.id: _DataKey(master.open(row), row.created_at) for row in rows}
        if not keys:
            raise SealError("the state has no data key: restore it from a backup, or start with an empty one")
        return cls(keys)

    def knows(self, rows: Iterable[SealedSecret]) -> bool:
        """Whether the data keys of all of these are here."""
        return all(row.data_key_id in self._keys for row in rows)

    # --- sealing

    def seal(self, secret: Secret, id: str, purpose: Purpose, *, version: int = 1) -> SealedSecret:
        """A secret of 1 to 1024 bytes as a row. version: one more than that of the row which it replaces."""
        sealed = seal_secret(self._current, _context(id, purpose, version), secret)
        return SealedSecret(id, purpose, version, self.data_key_id, sealed)

    def new_credential_secret(self, id: str) -> tuple[SealedSecret, str]:
        """A new secret access key of 384 bits: its row, and its text for the one answer in which it is shown."""
        secret = Secret.random_text(SECRET_ACCESS_KEY_CHARS)
        return self.seal(secret, id, "credential"), secret.reveal()

    def new_local_key(self, id: str) -> SealedSecret:
        """A new AES-256 key."""
        return self.seal(Secret.random(LOCAL_KEY_BYTES), id, "local_key")

    # --- opening

    def open(self, row: SealedSecret) -> Secret:
        """The secret. SealError when the row was moved or changed, or its data key is not here."""
        try:
            return seal_open_secret(self._key_of(row), _context(row.id, row.purpose, row.version), row.sealed)
        except NativeError:
            raise _does_not_open(row) from None

    def reveal_credential(self, row: SealedSecret) -> str:
        """The text of a stored secret access key, for AWS KMS, which must be given it, and for nobody else. SealError as for open()."""
        if row.purpose != "credential":
            raise SealError(f"secret {row.id!r} is a {row.purpose}: only secret access keys are handed to AWS")
        try:
            return seal_open_text(self._key_of(row), _context(row.id, row.purpose, row.version), row.sealed).reveal()
        except NativeError:
            raise _does_not_open(row) from None

    def holds_same(self, row: SealedSecret, other: Sealer, others: SealedSecret) -> bool:
        """Whether a row of this sealer and one of another hold the same key. What does not open, or is none, is like nothing."""
        try:
            ours, theirs = (mac(secret, SAME_LABEL, b"") for secret in (self.open(row), other.open(others)))
        except (SealError, NativeError):  # of a secret access key no MAC is made
            return False
        return ours == theirs

    def open_all_into(self, rows: Mapping[int, SealedSecret], pages: SecretPages) -> dict[int, SealError]:
        """Secrets of 32 bytes into slots. rows: by slot. Slot -> why it does not open, as for open()."""
        problems: dict[int, SealError] = {}
        of_key: dict[str, list[int]] = {}
        for slot, row in rows.items():
            of_key.setdefault(row.data_key_id, []).append(slot)
        for data_key_id, slots in of_key.items():
            key = self._keys.get(data_key_id)
            if key is None:
                problems.update((slot, _has_no_data_key(rows[slot])) for slot in slots)
                continue
            together = [rows[slot] for slot in slots]
            contexts = [_context(row.id, row.purpose, row.version) for row in together]
            failed = seal_open_all(key.secret, contexts, [row.sealed for row in together], pages, slots)
            problems.update((slot, _does_not_open(rows[slot])) for slot in failed)
        return problems

    def derive_signing_keys(
        self, row: SealedSecret, days: Sequence[str], region: str, pages: SecretPages, first_slot: int
    ) -> None:
        """SigV4 signing keys of a credential for `days` ("YYYYMMDD"), into the slots from first_slot on. SealError as for open()."""
        context = _context(row.id, row.purpose, row.version)
        try:
            seal_derive_signing_keys(self._key_of(row), context, row.sealed, "".join(days), region, pages, first_slot)
        except NativeError:
            raise _does_not_open(row) from None

    def _key_of(self, row: SealedSecret) -> Secret:
        key = self._keys.get(row.data_key_id)
        if key is None:
            raise _has_no_data_key(row)
        return key.secret

    # --- MACs

    def mac(self, label: str, data: bytes) -> bytes:
        """32 bytes under the newest data key. label: what it is for, up to 128 bytes: a MAC for one use is none for another."""
        return mac(self._current, label, data)

    def verify_mac(self, label: str, data: bytes, given: bytes) -> bool:
        """Whether it was made under any of the data keys here."""
        return any(mac_is_right(key.secret, label, data, given) for key in self._keys.values())

    # --- rotation

    def rotate_data_key(self, master: MasterKey, rows: Iterable[SealedSecret], *, now: int) -> Rotation:
        """A new data key and every row sealed under it. This sealer goes on as it is until the rotation is committed."""
        newest = self._keys[self.data_key_id].created_at
        row, data_key = new_data_key(master, now=max(now, newest + 1))  # the newest seals, whatever the clock does
        sealer = Sealer({**self._keys, row.id: _DataKey(data_key, row.created_at)})
        return Rotation(row, [self._moved(old, sealer) for old in rows], sealer)

    def _moved(self, row: SealedSecret, to: Sealer) -> SealedSecret:
        old = _context(row.id, row.purpose, row.version)
        new = _context(row.id, row.purpose, row.version + 1)
        try:
            sealed = seal_move(self._key_of(row), old, row.sealed, to._current, new)
        except NativeError:
            raise _does_not_open(row) from None
        return SealedSecret(row.id, row.purpose, row.version + 1, to.data_key_id, sealed)

    def rewrap(self, master: MasterKey) -> list[WrappedDataKey]:
        """Every data key under another master key: rows that replace those of the same id. No secret is sealed anew."""
        rows = []
        for id, key in self._keys.items():
            row = master.wrap(key.secret, id=id, created_at=key.created_at)
            if fingerprint(master.open(row)) != fingerprint(key.secret):  # what does not open must not replace what does
                raise SealError(f"data key {id} comes back from the new master key as another one: keep the old master key")
            rows.append(row)
        return rows


def _context(id: str, purpose: Purpose, version: int) -> str:
    """What a row is bound to. The id is the only free part, and the last."""
    return f"xksfast|secrets|{purpose}|{version}|{id}"


def _has_no_data_key(row: SealedSecret) -> SealError:
    return SealError(
        f"secret {row.id!r} ({row.purpose}) is sealed under the data key {row.data_key_id!r}, which the state does not have: "
        "restore the state from a backup"
    )


def _does_not_open(row: SealedSecret) -> SealError:
    return SealError(
        f"secret {row.id!r} ({row.purpose}, version {row.version}) does not open under its data key {row.data_key_id!r}: the row was "
        "moved, changed or damaged: restore the state from a backup, or make the secret anew"
    )
