# SPDX-License-Identifier: Apache-2.0
"""One key on every partition of a group: generate, wrap across, prove, lock down, and only then give it its name.

A key on its way has the label "xksfast-pending:<label>", so no proxy ever uses one that is not proven, and a run that is killed at
any point leaves only such keys. The next run finishes those that prove to be the right key and destroys the others. The order:

  1. generate on the first partition (extractable, pending)      only when no partition has the key
  2. wrap under the transport key, unwrap as pending, not extractable; type and length; both directions of encrypt and decrypt
  3. when all are proven: rename, the source first               it still can be wrapped again if we are killed here
  4. CKA_EXTRACTABLE = false on the source                        unless asked to keep it

A newcomer's trap: after step 4 the key cannot leave any more, so a partition that joins the group later needs `keep_extractable`,
or the HSM's own cloning.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import msgspec

from xksfast.admin.partitions.link import PartitionFailure
from xksfast.admin.partitions.replica import PENDING, Replica, ReplicationProblem, compare, is_aes_256
from xksfast.errors import OperatorError
from xksfast.native.partition import KeyTemplate, TokenKey

KeyStep = Literal["present", "made", "replicated", "finished", "absent"]


class KeyReport(msgspec.Struct):
    """What became of one key. partitions: by name; planned: nothing was changed (dry run). notes: what an operator should know."""

    key: str
    ok: bool = False
    planned: bool = False
    partitions: dict[str, KeyStep] = {}
    locked_down: list[str] = []
    problems: list[str] = []
    notes: list[str] = []


class Rights(msgspec.Struct, frozen=True):
    """Of a key to be created."""

    encrypt: bool
    decrypt: bool


class Replicator:
    """Works on the partitions of one group. transport_key: its label. driver: see PartitionGroup.replication."""

    def __init__(
        self,
        replicas: list[Replica],
        *,
        transport_key: str,
        driver: Literal["wrap", "clone"] = "wrap",
        keep_extractable: bool = False,
        dry_run: bool = False,
        on_step: Callable[[str], None] = lambda step: None,
    ) -> None:
        self._replicas = replicas
        self._transport_key = transport_key
        self._driver = driver
        self._keep_extractable = keep_extractable
        self._dry_run = dry_run
        self._on_step = on_step

    def replicate(self, label: str, create: Rights | None = None) -> KeyReport:
        """Bring the key to every partition. create: make it when no partition has it. A problem is in the report, never raised."""
        report = KeyReport(key=label, planned=self._dry_run)
        try:
            self._replicate(label, create, report)
        except OperatorError as problem:
            report.problems.append(str(problem))
        report.ok = not report.problems and "absent" not in report.partitions.values()
        return report

    # --- one key

    def _replicate(self, label: str, create: Rights | None, report: KeyReport) -> None:
        finals = [(replica, replica.one(label)) for replica in self._replicas]
        holders = [(replica, key) for replica, key in finals if key is not None]
        report.partitions = {replica.name: "present" if key else "absent" for replica, key in finals}
        if self._dry_run:
            self._plan(label, holders, create, report)
            return
        if holders:
            self._complete(label, holders, report)
        elif not self._finish_left_over(label, report):
            if create is None:
                raise ReplicationProblem(f"the key {label!r} is on none of the partitions: create it first")
            self._create(label, create, report)

    def _plan(self, label: str, holders: list[tuple[Replica, TokenKey]], create: Rights | None, report: KeyReport) -> None:
        """What a run would do, as far as looking tells."""
        if not holders and create is None:
            report.notes.append(
                f"the key {label!r} is on none of the partitions; a run would finish what an earlier one has left"
            )
        missing = [name for name, step in report.partitions.items() if step == "absent"]
        if holders and missing:
            source = self._source(label, holders)
            for replica in self._replicas:
                if replica.name in missing:
                    self._transport_pair(source[0], replica)
        for name in missing:
            report.partitions[name] = "replicated" if holders or name != self._replicas[0].name else "made"

    def _complete(self, label: str, holders: list[tuple[Replica, TokenKey]], report: KeyReport) -> None:
        """The key is on some partitions under its name."""
        reference, on_reference = holders[0]
        for replica, key in holders[1:]:
            if compare(reference, on_reference, replica, key) == "differs":
                raise ReplicationProblem(
                    f"the key {label!r} on partition {replica.name} is another key than on partition {reference.name}: nothing was "
                    "changed; find out which is in use, and give the other another label"
                )
        held = {replica.name for replica, _ in holders}
        arrived: list[tuple[Replica, TokenKey]] = []
        for replica in self._replicas:
            left = replica.pending(label)
            kept = None
            if replica.name not in held and len(left) == 1 and self._is_good(reference, on_reference, replica, left[0]):
                kept = left[0]
                arrived.append((replica, kept))
                report.partitions[replica.name] = "finished"
            self._destroy(replica, [key for key in left if key is not kept], report)
        missing = [replica for replica in self._replicas if report.partitions[replica.name] == "absent"]
        if missing and self._driver == "clone":
            names = ", ".join(replica.name for replica in missing)
            raise ReplicationProblem(
                f'the key {label!r} is not on {names}: its group says replication = "clone": clone it with the HSM\'s own tool, then '
                "run xksfast partition verify"
            )
        if missing:
            source, on_source = self._source(label, holders)
            for replica in missing:
                arrived.append((replica, self._bring(label, source, on_source, replica)))
                report.partitions[replica.name] = "replicated"
        for replica, key in arrived:
            self._give_name(replica, key, label)
        self._lock_down([(replica, key) for replica, key in holders if key.extractable], label, report)

    def _finish_left_over(self, label: str, report: KeyReport) -> bool:
        """No partition has the key under its name: take over a run that had proven all and was killed, or clear what it left."""
        left = [(replica, replica.pending(label)) for replica in self._replicas]
        if all(len(keys) == 1 for _, keys in left):
            found = [(replica, keys[0]) for replica, keys in left]
            first, on_first = found[0]
            if is_aes_256(on_first) and all(self._is_good(first, on_first, replica, key) for replica, key in found[1:]):
                for replica, key in found:
                    self._give_name(replica, key, label)
                    report.partitions[replica.name] = "finished"
                self._lock_down([(replica, key) for replica, key in found if key.extractable], label, report)
                return True
        for replica, keys in left:
            self._destroy(replica, keys, report)
        return False

    def _create(self, label: str, rights: Rights, report: KeyReport) -> None:
        first, *others = self._replicas
        wraps = self._driver == "wrap" and bool(others)
        if wraps:
            for replica in others:  # before anything is made
                self._transport_pair(first, replica)
        self._on_step(f"generate {label} on {first.name}")
        template = KeyTemplate(PENDING + label, encrypt=rights.encrypt, decrypt=rights.decrypt, extractable=wraps)
        handle = first.link.generate(template)
        made = self._described(first, PENDING + label, handle)
        arrived = [(replica, self._bring(label, first, made, replica)) for replica in others if wraps]
        self._give_name(first, made, label)
        report.partitions[first.name] = "made"
        for replica, key in arrived:
            self._give_name(replica, key, label)
            report.partitions[replica.name] = "replicated"
        self._lock_down([(first, made)] if made.extractable else [], label, report)
        if others and not wraps:
            raise ReplicationProblem(
                f'the key {label!r} was made on {first.name}: its group says replication = "clone": clone it to '
                f"{', '.join(replica.name for replica in others)} with the HSM's own tool, then run xksfast partition verify"
            )

    # --- steps

    def _source(self, label: str, holders: list[tuple[Replica, TokenKey]]) -> tuple[Replica, TokenKey]:
        for replica, key in holders:
            if key.extractable:
                return replica, key
        names = ", ".join(replica.name for replica, _ in holders)
        raise ReplicationProblem(
            f"the key {label!r} on {names} is not extractable, so it cannot be wrapped: clone it with the HSM's own tool, or create a "
            "new key for the whole group"
        )

    def _transport_pair(self, source: Replica, target: Replica) -> tuple[TokenKey, TokenKey]:
        """The transport key on both, with the rights that each needs."""
        pair = (source.one(self._transport_key), target.one(self._transport_key))
        for replica, key, right in ((source, pair[0], "wrap"), (target, pair[1], "unwrap")):
            if key is None:
                raise PartitionFailure(
                    replica.name,
                    f"there is no transport key {self._transport_key!r}: bring the same AES-256 key to each partition by your HSM's "
                    "own means (cloning domain, key ceremony), or set transport_key of the group; for soft tokens run "
                    "xksfast partition replicate GROUP --make-transport-key",
                )
            if not (key.can_wrap if right == "wrap" else key.can_unwrap):
                raise PartitionFailure(
                    replica.name, f"the transport key {self._transport_key!r} may not {right}: set CKA_{right.upper()}"
                )
        assert pair[0] is not None
        assert pair[1] is not None
        return pair[0], pair[1]

    def _bring(self, label: str, source: Replica, on_source: TokenKey, target: Replica) -> TokenKey:
        """Wrap there, unwrap here as pending, prove. Whatever does not prove is destroyed."""
        self._on_step(f"replicate {label} from {source.name} to {target.name}")
        wrapping, unwrapping = self._transport_pair(source, target)
        blob = source.link.wrap(wrapping.handle, on_source.handle, source.wrap_mechanism)
        if not (on_source.can_encrypt and on_source.can_decrypt):
            self._probe(label, source, on_source, target, unwrapping, blob)
        template = KeyTemplate(PENDING + label, encrypt=on_source.can_encrypt, decrypt=on_source.can_decrypt)
        handle = target.link.unwrap(unwrapping.handle, blob, target.wrap_mechanism, template)
        arrived = self._described(target, PENDING + label, handle)
        if arrived.extractable or compare(source, on_source, target, arrived) == "differs":
            target.link.destroy(arrived.handle)
            raise PartitionFailure(
                target.name,
                f"what was unwrapped is not the key {label!r} of partition {source.name}, and was destroyed: compare the transport "
                "keys and wrap_mechanism of the two partitions",
            )
        return arrived

    def _probe(
        self, label: str, source: Replica, on_source: TokenKey, target: Replica, unwrapping: TokenKey, blob: bytes
    ) -> None:
        """For a key that may not both encrypt and decrypt: a session copy with both rights proves what the blob holds."""
        template = KeyTemplate("xksfast-probe", encrypt=True, decrypt=True, on_token=False)
        handle = target.link.unwrap(unwrapping.handle, blob, target.wrap_mechanism, template)
        probe = TokenKey(handle, 0, True, True, True, False, False, True, False)
        result = compare(source, on_source, target, probe)
        target.link.destroy(handle)
        if result == "differs":
            raise PartitionFailure(
                target.name,
                f"what was unwrapped is not the key {label!r} of partition {source.name}: compare the transport keys and "
                "wrap_mechanism of the two partitions",
            )

    @staticmethod
    def _described(replica: Replica, label: str, handle: int) -> TokenKey:
        found = [key for key in replica.link.find(label) if key.handle == handle]
        if len(found) != 1:
            raise PartitionFailure(replica.name, f"a key made just now is not found as {label!r}: does another run work on it?")
        return found[0]

    @staticmethod
    def _is_good(reference: Replica, on_reference: TokenKey, replica: Replica, key: TokenKey) -> bool:
        """Whether a left-over key is proven to be the reference's, has its rights, and cannot leave."""
        same_rights = (key.can_encrypt, key.can_decrypt) == (on_reference.can_encrypt, on_reference.can_decrypt)
        if not is_aes_256(key) or not same_rights or key.extractable:
            return False
        return compare(reference, on_reference, replica, key) == "same"

    def _lock_down(self, keys: list[tuple[Replica, TokenKey]], label: str, report: KeyReport) -> None:
        """A token that refuses leaves the key usable and extractable, and that is said."""
        for replica, key in keys:
            if self._keep_extractable:
                report.notes.append(f"the key {label!r} stays extractable on partition {replica.name}, as asked")
                continue
            try:
                replica.link.lock_down(key.handle)
                report.locked_down.append(replica.name)
            except PartitionFailure as failure:
                report.problems.append(f"{failure}: the key {label!r} stays extractable there")

    def _give_name(self, replica: Replica, key: TokenKey, label: str) -> None:
        """What makes it usable. Another run that was quicker is noticed as far as a token allows."""
        pending = replica.pending(label)
        if replica.one(label) is not None or [other.handle for other in pending] != [key.handle]:
            raise PartitionFailure(
                replica.name, f"another run works on the key {label!r} at the same time: run this again when it is done"
            )
        replica.link.rename(key.handle, label)

    @staticmethod
    def _destroy(replica: Replica, keys: list[TokenKey], report: KeyReport) -> None:
        for key in keys:
            replica.link.destroy(key.handle)
            report.notes.append(f"partition {replica.name}: destroyed a key that an interrupted run had left unproven")
