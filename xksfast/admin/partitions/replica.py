# SPDX-License-Identifier: Apache-2.0
"""One partition of a group as replication sees it, and the question whether two partitions hold the same key.

What lives here: looking up, comparing, comparing all with all. What must not: changing a key (replication.py). A newcomer's trap:
a token that unwrapped a key may not tell its length (SoftHSM): then only a proof from a token that does tell says it is AES-256.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import msgspec

from xksfast.admin.partitions.link import PartitionFailure, PartitionLink
from xksfast.errors import OperatorError
from xksfast.native.partition import TokenKey

AES_256_BYTES = 32
PENDING = "xksfast-pending:"  # label of a key that no proxy uses yet; what bears it may be finished or destroyed by any run

Sameness = Literal["same", "differs", "not_checked"]


class ReplicationProblem(OperatorError):
    """Why a key cannot be replicated or does not agree. Exit code 1."""

    exit_code = 1


@dataclass(frozen=True)
class Replica:
    """A partition with its open link. wrap_mechanism: its own number for AES key wrap."""

    link: PartitionLink
    wrap_mechanism: int
    profile: str = "generic"

    @property
    def name(self) -> str:
        """The partition's name."""
        return self.link.name

    def one(self, label: str) -> TokenKey | None:
        """The key with this label, None when there is none; PartitionFailure when there are several or it is no AES-256 key."""
        found = self.link.find(label)
        if len(found) > 1:
            raise PartitionFailure(self.name, f"{len(found)} secret keys have the label {label!r}: give each its own")
        if found and not is_aes_256(found[0]):
            raise PartitionFailure(self.name, f"the key {label!r} is not AES with 256 bits: choose another label")
        return found[0] if found else None

    def pending(self, label: str) -> list[TokenKey]:
        """What an interrupted run has left of this key."""
        return self.link.find(PENDING + label)


def is_aes_256(key: TokenKey) -> bool:
    """Also when the token does not tell the length."""
    return key.is_aes and key.value_len in (0, AES_256_BYTES)


def opens(maker: Replica, made_by: TokenKey, reader: Replica, read_by: TokenKey) -> Sameness:
    """Whether what is encrypted on `maker` is decrypted on `reader`."""
    if not (made_by.can_encrypt and read_by.can_decrypt):
        return "not_checked"
    proof = maker.link.prove(made_by.handle)
    return "same" if reader.link.check(read_by.handle, proof, can_encrypt=read_by.can_encrypt) else "differs"


def compare(a: Replica, on_a: TokenKey, b: Replica, on_b: TokenKey) -> Sameness:
    """Both directions, as far as the keys' rights allow."""
    results = {opens(a, on_a, b, on_b), opens(b, on_b, a, on_a)}
    if "differs" in results:
        return "differs"
    return "same" if "same" in results else "not_checked"


class KeyOnPartition(msgspec.Struct, frozen=True):
    """What one partition holds under a label. present: how many keys; the rest is of the one. value_bytes 0: not told."""

    present: int
    aes_256: bool = False
    value_bytes: int = 0
    encrypt: bool = False
    decrypt: bool = False
    extractable: bool = False
    problem: str = ""


class Pair(msgspec.Struct, frozen=True):
    """Encrypted here, decrypted there."""

    encrypted_on: str
    decrypted_on: str
    result: Sameness


class VerifyReport(msgspec.Struct, frozen=True):
    """One key over a group. ok: present once everywhere, AES-256, same rights, not extractable, and no pair differs."""

    key: str
    ok: bool
    partitions: dict[str, KeyOnPartition]
    pairs: list[Pair]
    problems: list[str]
    notes: list[str]


def verify(replicas: list[Replica], label: str) -> VerifyReport:
    """Look everywhere and try every ordered pair of partitions; nothing is changed, and one that fails does not end it."""
    partitions: dict[str, KeyOnPartition] = {}
    keys: list[tuple[Replica, TokenKey]] = []
    problems: list[str] = []
    for replica in replicas:
        try:
            found = replica.link.find(label)
        except PartitionFailure as failure:
            partitions[replica.name] = KeyOnPartition(present=0, problem=failure.problem)
            problems.append(str(failure))
            continue
        partitions[replica.name], wrong = _describe(found, label)
        problems += [f"partition {replica.name}: {text}" for text in wrong]
        if len(found) == 1 and is_aes_256(found[0]):
            keys.append((replica, found[0]))
    pairs = _pairs(keys, problems)
    if len({(key.can_encrypt, key.can_decrypt) for _, key in keys}) > 1:
        problems.append("the partitions do not give the key the same rights to encrypt and decrypt")
    if keys and all(key.value_len == 0 for _, key in keys):
        problems.append("no partition tells the key's length: it may be shorter than 256 bits")
    notes = []
    if any(pair.result == "not_checked" for pair in pairs):
        notes.append(
            "the key's rights do not allow encrypting here and decrypting there: nothing says that it is the same everywhere"
        )
    return VerifyReport(key=label, ok=not problems, partitions=partitions, pairs=pairs, problems=problems, notes=notes)


def _describe(found: list[TokenKey], label: str) -> tuple[KeyOnPartition, list[str]]:
    if len(found) != 1:
        problem = f"{len(found)} secret keys have the label {label!r}" if found else f"there is no key {label!r}"
        return KeyOnPartition(present=len(found), problem=problem), [problem]
    (key,) = found
    wrong = []
    if not is_aes_256(key):
        wrong.append(f"the key {label!r} is not AES with 256 bits")
    if key.extractable:
        wrong.append(f"the key {label!r} is extractable")
    described = KeyOnPartition(
        present=1,
        aes_256=is_aes_256(key),
        value_bytes=key.value_len,
        encrypt=key.can_encrypt,
        decrypt=key.can_decrypt,
        extractable=key.extractable,
        problem="; ".join(wrong),
    )
    return described, wrong


def _pairs(keys: list[tuple[Replica, TokenKey]], problems: list[str]) -> list[Pair]:
    pairs = []
    for maker, made_by in keys:
        for reader, read_by in keys:
            if maker is reader:
                continue
            try:
                result = opens(maker, made_by, reader, read_by)
            except PartitionFailure as failure:
                problems.append(str(failure))
                continue
            pairs.append(Pair(maker.name, reader.name, result))
            if result == "differs":
                problems.append(f"what partition {maker.name} encrypts, partition {reader.name} does not decrypt: another key")
    return pairs
