# SPDX-License-Identifier: Apache-2.0
"""Key versions in ciphertextMetadata, and ciphertexts of AWS's sample proxy. Each with `local` keys and with keys in SoftHSM."""

from __future__ import annotations

import base64
import hashlib
import os
import secrets
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from bench.requests import integrity_value
from tests.client import AAD, Answer, Client, b64
from tests.proxy.worker_process import State, Worker, running_worker
from tests.setups import SOFTHSM, Setup
from xksfast.config import load_config
from xksfast.model import Key, KeyVersion
from xksfast.native.crypto import compose_sample_aad, read_metadata, write_metadata

requirement = pytest.mark.requirement

KEY = bytes(range(32))  # of k1-1, in every key source, so that others can encrypt and decrypt with it


class Source:
    """A worker whose keys are `local` or in SoftHSM; begin() makes it forget what was before."""

    def __init__(self, worker: Worker, key_source: str) -> None:
        self.worker = worker
        self.state = worker.state
        self.local = key_source == "local"
        self.state.local_keys["one/k1-1"] = KEY
        self.kind: Any = "local" if self.local else "pkcs11"

    def key(self, *versions: int, **changes: Any) -> Key:
        return self.state.key(versions=versions, local=self.local, **changes)

    def begin(self, *versions: int, **store: Any) -> Client:
        self.worker.begin(key_source=self.kind, keys=(self.key(*versions),), **store)
        return self.worker.client()


@pytest.fixture(scope="module", params=["local", "softhsm"])
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Source]:
    config = None
    if request.param == "softhsm":
        tmp_path: Path = tmp_path_factory.mktemp("token")
        setup = Setup(tmp_path)
        setup.use_softhsm(sessions=2)
        setup.write()
        config = load_config(tmp_path / "xksfast.toml")
        (tmp_path / "key").write_bytes(KEY)
        tool = ["pkcs11-tool", "--module", SOFTHSM, "--token-label", "t0", "--login", "--pin", "1234"]
        made: list[tuple[str, ...]] = [
            ("--write-object", str(tmp_path / "key"), "--type", "secrkey", "--key-type", "AES:32", "--label", "k1-1",
             "--usage-decrypt"),
            *(("--keygen", "--key-type", "AES:32", "--label", f"k1-{number}", "--sensitive") for number in (2, 3)),
        ]  # fmt: skip
        for arguments in made:
            subprocess.run(
                [*tool, *arguments], env={**os.environ, **setup.softhsm_environment}, check=True, capture_output=True
            )
    with running_worker(config, State()) as worker:
        yield Source(worker, request.param)


def metadata_of(answer: Answer) -> bytes | None:
    assert answer.status == 200, answer
    text = answer.document.get("ciphertextMetadata")
    return None if text is None else base64.b64decode(text)


def opened(key: bytes, answer: Answer, aad: bytes) -> bytes:
    """The plaintext, by an implementation of others."""
    iv, ciphertext, tag = (
        base64.b64decode(answer.document[name]) for name in ("initializationVector", "ciphertext", "authenticationTag")
    )
    return AESGCM(key).decrypt(iv, ciphertext + tag, aad)


def composed(aad: bytes, metadata: bytes) -> bytes:
    return len(aad).to_bytes(2, "big") + aad + len(metadata).to_bytes(1, "big") + metadata


@requirement(59, 60, 61, 62, 68, 76)
def test_the_last_version_encrypts_and_all_decrypt(source: Source) -> None:
    client = source.begin(1)
    answers = {1: client.call("encrypt")}
    for versions in ((1, 2), (1, 2, 3)):
        source.worker.change(keys=(source.key(*versions),))
        answers[versions[-1]] = client.call("encrypt", ciphertextDataIntegrityValueAlgorithm="SHA_256")
    assert {number: metadata_of(answer) for number, answer in answers.items()} == {
        1: None,
        2: bytes.fromhex("a500000002"),
        3: bytes.fromhex("a500000003"),
    }
    for number, answer in answers.items():
        assert client.call("decrypt", client.decrypt_document(answer.document)).document["plaintext"] == b64(b"Hello World!")
        if number > 1:
            assert answer.document["ciphertextDataIntegrityValue"] == integrity_value(
                {"additionalAuthenticatedData": AAD}, answer.document
            )
    assert client.call("metadata").document == {
        "keySpec": "AES_256", "keyUsage": ["ENCRYPT", "DECRYPT"], "keyStatus": "ENABLED",
    }  # fmt: skip
    client.close()


@requirement(62, 64)
def test_version_1_is_what_it_always_was(source: Source) -> None:
    client = source.begin(1)
    for aad in (b"", b"project=nile"):
        answer = client.call("encrypt", additionalAuthenticatedData=b64(aad))
        assert opened(KEY, answer, composed(aad, b"")) == b"Hello World!"
    client.close()


@requirement(62, 63)
def test_metadata_is_authenticated_in_the_composed_aad(source: Source) -> None:
    client = source.begin(1, 7) if source.local else source.begin(1, 2)
    answer = client.call("encrypt")
    metadata = metadata_of(answer)
    assert metadata is not None
    if source.local:
        key = source.state.local_keys["one/k1-7"]
        assert opened(key, answer, composed(base64.b64decode(AAD), metadata)) == b"Hello World!"
    for changed in (None, b64(write_metadata(1)), b64(write_metadata(3)), b64(metadata[:-1]), b64(metadata + b"\0")):
        document = client.decrypt_document(answer.document)
        refused = client.call("decrypt", document, ciphertextMetadata=changed)
        assert (refused.status, refused.error) == (400, "InvalidCiphertextException")
    client.close()


@requirement(77, 84)
@pytest.mark.parametrize(
    "metadata",
    [b"\xa5\0\0\0\x02", b"\xa5\xff\xff\xff\xff", b"\xa5\0\0\0\0", b"\xa4\0\0\0\x01", b"\xa5", b"\0" * 20, b"key_version=1"],
)
def test_metadata_of_others_and_unknown_versions_are_invalid_ciphertexts(source: Source, metadata: bytes) -> None:
    client = source.begin(1)
    document = client.decrypt_document(client.call("encrypt").document)
    answer = client.call("decrypt", document, ciphertextMetadata=b64(metadata))
    assert (answer.status, answer.error) == (400, "InvalidCiphertextException")
    assert client.call("decrypt", document).status == 200
    client.close()


def test_a_version_that_is_gone_takes_its_ciphertexts_with_it_and_no_others(source: Source) -> None:
    client = source.begin(1, 2)
    second = client.decrypt_document(client.call("encrypt").document)
    source.worker.change(keys=(source.key(1),))
    assert client.call("decrypt", second).error == "InvalidCiphertextException"
    first = client.call("encrypt")
    assert metadata_of(first) is None
    source.worker.change(keys=(source.key(2, 3),))
    assert client.call("decrypt", second).status == 200
    assert client.call("decrypt", client.decrypt_document(first.document)).error == "InvalidCiphertextException"
    client.close()


def test_a_version_that_the_key_manager_lost_does_not_keep_the_others_from_serving(source: Source) -> None:
    client = source.begin(1)
    old = client.decrypt_document(client.call("encrypt").document)
    lost = Key("one", "k1", (KeyVersion(number=1, label="lost"), *source.key(2).versions), ("ENCRYPT", "DECRYPT"))
    applied = source.worker.applied(source.worker.tell(keys=(lost,)))
    assert "key k1: version 1: " in applied.problems[0]
    assert client.call("encrypt").status == client.call("metadata").status == 200
    # A token says itself that it has no such key. A `local` key that the state knows and that did not open is our trouble.
    assert client.call("decrypt", old).error == ("InternalException" if source.local else "KeyNotFoundException")
    client.close()


def test_uses_are_counted_by_version(source: Source) -> None:
    client = source.begin(1)
    source.worker.usage()
    for _ in range(3):
        client.call("encrypt")
    source.worker.change(keys=(source.key(1, 2),))
    for _ in range(2):
        client.call("decrypt", client.decrypt_document(client.call("encrypt").document))
    client.call("encrypt", plaintext="!")
    client.call("encrypt", additionalAuthenticatedData=b64(bytes(8193)))
    report = source.worker.usage()
    assert report.worker == 3
    assert sorted((use.store, use.external_key_id, use.version, use.encryptions) for use in report.keys) == [
        ("one", "k1", 1, 3),
        ("one", "k1", 2, 2),
    ]
    (use,) = report.credentials
    assert (use.store, use.access_key_id) == ("one", source.state.credential().access_key_id)
    assert abs(use.last_used - time.time()) < 30
    again = source.worker.usage()
    assert (again.keys, again.credentials) == ((), ())
    client.call("encrypt")
    assert [use.encryptions for use in source.worker.usage().keys] == [1]
    client.close()


# --- AWS's sample proxy


def sample_aad(aad: bytes | None, metadata: bytes) -> bytes:
    """What aws-samples/aws-kms-xks-proxy gives the HSM: the digest is there when the AAD is, be it empty."""
    digest = b"" if aad is None else hashlib.sha256(aad).digest()
    return len(aad or b"").to_bytes(2, "big") + digest + len(metadata).to_bytes(1, "big") + metadata


def made_by_the_sample(client: Client, aad: bytes | None, metadata: bytes) -> dict[str, Any]:
    """The Decrypt body for a ciphertext of the sample proxy."""
    iv = secrets.token_bytes(12)
    sealed = AESGCM(KEY).encrypt(iv, b"made elsewhere", sample_aad(aad, metadata))
    encrypted = {
        "ciphertext": b64(sealed[:-16]), "initializationVector": b64(iv), "authenticationTag": b64(sealed[-16:]),
    }  # fmt: skip
    if metadata:
        encrypted["ciphertextMetadata"] = b64(metadata)
    return client.decrypt_document(encrypted, None if aad is None else b64(aad))


AADS = (None, b"", b"a", b"a" * 31, b"a" * 32, b"a" * 33, b"a" * 8192)
METADATA = (b"", b"key_version=1", b"\xa5\0\0\0", b"\xa5\0\0\0\0", b"\0" * 20)


def test_the_composed_aad_of_the_sample_is_as_documented() -> None:
    for aad in AADS:
        for metadata in METADATA:
            assert compose_sample_aad(aad, metadata) == sample_aad(aad, metadata)


@requirement(66)
def test_a_store_from_the_sample_opens_its_ciphertexts_and_its_own(source: Source) -> None:
    client = source.begin(1, aad_scheme="aws-sample")
    for aad in AADS:
        for metadata in METADATA:
            document = made_by_the_sample(client, aad, metadata)
            answer = client.call("decrypt", document)
            assert answer.document.get("plaintext") == b64(b"made elsewhere"), (aad, metadata, answer)
    ours = client.call("encrypt", ciphertextDataIntegrityValueAlgorithm="SHA_256")
    assert metadata_of(ours) == write_metadata(1), "every new ciphertext can be told from the sample's"
    assert opened(KEY, ours, composed(base64.b64decode(AAD), write_metadata(1))) == b"Hello World!"
    assert ours.document["ciphertextDataIntegrityValue"] == integrity_value({"additionalAuthenticatedData": AAD}, ours.document)
    source.worker.change(keys=(source.key(1, 2),))
    newer = client.call("encrypt")
    assert read_metadata(metadata_of(newer) or b"") == 2
    for answer in (ours, newer):
        assert client.call("decrypt", client.decrypt_document(answer.document)).status == 200
    assert client.call("decrypt", made_by_the_sample(client, b"x", b"")).status == 200, "with version 1, whatever encrypts"
    client.close()


def test_what_the_sample_made_is_authenticated_as_strictly(source: Source) -> None:
    client = source.begin(1, aad_scheme="aws-sample")
    document = made_by_the_sample(client, b"aad", b"v1")
    for changes in (
        {"additionalAuthenticatedData": b64(b"aae")},
        {"additionalAuthenticatedData": None},
        {"additionalAuthenticatedData": ""},
        {"ciphertextMetadata": None},
        {"ciphertextMetadata": b64(b"v2")},
        {"authenticationTag": b64(bytes(16))},
        {"ciphertextMetadata": b64(write_metadata(1))},
    ):
        assert client.call("decrypt", document, **changes).error == "InvalidCiphertextException"
    absent = made_by_the_sample(client, None, b"")
    assert client.call("decrypt", absent, additionalAuthenticatedData="").error == "InvalidCiphertextException"
    assert client.call("decrypt", document).status == client.call("decrypt", absent).status == 200
    client.close()


def test_other_stores_do_not_open_what_the_sample_made(source: Source) -> None:
    client = source.begin(1)
    for metadata in (b"", b"v1"):
        document = made_by_the_sample(client, b"aad", metadata)
        assert client.call("decrypt", document).error == "InvalidCiphertextException"
    client.close()
