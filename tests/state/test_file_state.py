# SPDX-License-Identifier: Apache-2.0
"""A file as what workers are told: signing keys for three days with which requests pass, slots that do not overlap, no secret in it."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest

from xksfast.model import Delta
from xksfast.native.aes_gcm_key import AesGcmKey
from xksfast.native.crypto import Keyring, SecretPages
from xksfast.state.delta import DeltaBuilder, covered_days
from xksfast.state.file_state import FileSecrets, state_of_file
from xksfast.state.local_keys import LocalKeyFiles
from xksfast.state.store_file import CredentialEntry, KeyEntry, StoreEntry, StoreFile

NOON = int(datetime(2026, 3, 1, 12, tzinfo=UTC).timestamp())
REGION = "us-east-1"
IDS = ("A" * 20, "B" * 20)


class Setup:
    def __init__(self, directory: Path) -> None:
        self.secrets: dict[str, str] = {}
        for name in (*IDS, "master.key"):
            self.secrets[name] = secrets.token_hex(32)
            (directory / name).write_text(self.secrets[name])
            (directory / name).chmod(0o600)
        self.directory = directory
        self.local_keys = LocalKeyFiles(directory / "local-keys", str(directory / "master.key"))
        self.problems: list[str] = []

    def store(self, prefix: str, **values: object) -> StoreEntry:
        credentials = tuple(CredentialEntry(name, str(self.directory / name)) for name in IDS)
        return StoreEntry(region=REGION, uri_path_prefix=prefix, credentials=credentials, **values)  # type: ignore[arg-type]

    def build(self, stores: dict[str, StoreEntry], now: int = NOON) -> tuple[Delta, SecretPages | None]:
        builder = DeltaBuilder(FileSecrets(self.local_keys), self.problems.append)
        (part,) = builder.whole(state_of_file(StoreFile(stores), 7), covered_days(now))
        return part


@pytest.fixture
def setup(tmp_path: Path) -> Setup:
    return Setup(tmp_path)


def signature(secret: str, day: str, time: str, request: str) -> str:
    """SigV4 as written down by AWS, from the secret itself."""
    key = ("AWS4" + secret).encode()
    for part in (day, REGION, "kms-xks-proxy", "aws4_request"):
        key = hmac.digest(key, part.encode(), "sha256")
    scope = f"{day}/{REGION}/kms-xks-proxy/aws4_request"
    text = f"AWS4-HMAC-SHA256\n{day}T{time}Z\n{scope}\n{hashlib.sha256(request.encode()).hexdigest()}"
    return hmac.new(key, text.encode(), "sha256").hexdigest()


def verifies(keyring: Keyring, access_key_id: str, secret: str, at: int) -> bool:
    """Whether a request signed at `at` is accepted at `at`."""
    day, time = datetime.fromtimestamp(at, UTC).strftime("%Y%m%d %H%M%S").split()
    empty = hashlib.sha256(b"").hexdigest()
    request = f"POST\n/x\n\nhost:h\nx-amz-date:{day}T{time}Z\n\nhost;x-amz-date\n{empty}"
    authorization = (
        f"AWS4-HMAC-SHA256 Credential={access_key_id}/{day}/{REGION}/kms-xks-proxy/aws4_request, "
        f"SignedHeaders=host;x-amz-date, Signature={signature(secret, day, time, request)}"
    )
    headers = [(b"host", b"h"), (b"x-amz-date", f"{day}T{time}Z".encode()), (b"authorization", authorization.encode())]
    credential, _ = keyring.verify(b"POST", b"/x", headers, b"", at)
    return credential is not None


def keyring_of(delta: Delta, pages: SecretPages) -> Keyring:
    keyring = Keyring(delta.key_stores[0].region)
    for credential in delta.credentials:
        keyring.replace(credential.access_key_id, credential.signing_keys, pages)
    return keyring


def test_every_credential_signs_for_yesterday_today_and_tomorrow_and_for_no_other_day(setup: Setup) -> None:
    delta, pages = setup.build({"a": setup.store("/a", partition_group="main")})
    assert pages is not None
    keyring = keyring_of(delta, SecretPages.open(pages.fd))
    for access_key_id in IDS:
        secret = setup.secrets[access_key_id]
        days = [verifies(keyring, access_key_id, secret, NOON + offset * 86400) for offset in (-2, -1, 0, 1, 2)]
        assert days == [False, True, True, True, False]
    assert not verifies(keyring, IDS[0], setup.secrets[IDS[1]], NOON)


@pytest.mark.parametrize(
    ("now", "days"),
    [
        (datetime(2026, 12, 31, 23, 59, 59, tzinfo=UTC), ("20261230", "20261231", "20270101")),
        (datetime(2027, 1, 1, tzinfo=UTC), ("20261231", "20270101", "20270102")),
        (datetime(2028, 2, 29, 12, tzinfo=UTC), ("20280228", "20280229", "20280301")),
    ],
)
def test_covered_days_follow_the_calendar(now: datetime, days: tuple[str, str, str]) -> None:
    assert covered_days(int(now.timestamp())) == days


def test_local_keys_are_unsealed_into_slots_of_their_own(setup: Setup) -> None:
    for label in ("one", "two"):
        setup.local_keys.ensure(label)
    keys = {"k1": KeyEntry(label="one"), "k2": KeyEntry(label="two"), "again": KeyEntry(label="one")}
    delta, pages = setup.build({"a": setup.store("/a", key_source="local", keys=keys)})
    assert pages is not None
    key_slots = {key.external_key_id: key.versions[0].local_slot or 0 for key in delta.keys}
    slots = [slot for credential in delta.credentials for slot in credential.signing_keys.values()]
    assert sorted([*slots, *key_slots.values()]) == list(range(2 * 3 + 3))
    opened = {name: AesGcmKey(SecretPages.open(pages.fd), slot) for name, slot in key_slots.items()}
    iv, ciphertext, tag = opened["k1"].encrypt(b"hello", b"")
    assert opened["again"].decrypt(iv, ciphertext, tag, b"") == b"hello"
    assert delta.key_stores[0].key_source == "local"


def test_a_local_key_that_cannot_be_opened_is_reported_and_the_others_are_served(setup: Setup) -> None:
    setup.local_keys.ensure("one")
    keys = {"k1": KeyEntry(label="one"), "k2": KeyEntry(label="gone")}
    delta, _ = setup.build({"a": setup.store("/a", key_source="local", keys=keys)})
    slots = {key.external_key_id: key.versions[0].local_slot for key in delta.keys}
    assert slots["k1"] is not None
    assert slots["k2"] is None
    assert len(setup.problems) == 1
    assert "'gone'" in setup.problems[0]


def test_no_secret_is_in_what_workers_are_told(setup: Setup) -> None:
    delta, _ = setup.build({"a": setup.store("/a", partition_group="main", blocked=True)})
    packed = msgspec.msgpack.encode(delta)
    for secret in setup.secrets.values():
        assert secret.encode() not in packed
    assert delta.key_stores[0].blocked


def test_an_empty_state_is_told_too(setup: Setup) -> None:
    delta, pages = setup.build({})
    assert (delta.seq, delta.reset, delta.complete, delta.key_stores, pages) == (7, True, True, (), None)
