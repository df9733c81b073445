# SPDX-License-Identifier: Apache-2.0
"""The `pkcs11` key source: keys in HSM partitions, through the C engine.

One `TokenEngine` per worker holds all modules and partitions; one `PartitionGroup` per configured group is the KeySource of the
stores that name it. No call into a token is made here: the engine's keepers and session workers do that in threads of their own,
and what is read here is what they have written down.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from time import monotonic_ns

from xksfast.config import Config
from xksfast.ekm.base import Fleet, FleetMember, KeyBinding, MemberStatus
from xksfast.errors import OperatorError
from xksfast.model import Key, KeyVersion
from xksfast.native.crypto import Secret, SecretPages
from xksfast.native.engine import Engine, PartitionStatus
from xksfast.wire import limits

REFERENCES_FILE = "key-references"


class TokenEngine:
    """The engine of one worker, built from the configuration. Raises OperatorError when a PIN or a module cannot be read."""

    def __init__(self, config: Config) -> None:
        self.engine = Engine(
            max_queued=config.proxy.max_queued,
            probe_interval_s=float(config.proxy.health.probe_interval_s),
            retry_budget=config.routing.retry_budget,
            hedge_budget=config.routing.hedge_budget,
        )
        self.engine.keep_references(_references_file(Path(config.state.directory)))
        self.partition_names = list(config.partitions)
        self._pins: list[Secret] = []  # the engine borrows them until it stops
        modules = {}
        for name, module in config.modules.items():
            modules[name] = self.engine.add_module(module.path, module.parameters, module.environment)
        self._indexes: dict[str, int] = {}
        for name, partition in config.partitions.items():
            self._indexes[name] = self.engine.add_partition(
                name=name,
                module=modules[partition.module],
                token_label=partition.token_label,
                token_serial=partition.serial,
                slot=partition.slot,
                pin=self._read_pin(name, partition.pin_file, partition.pin_env),
                profile=partition.profile,
                sessions=partition.sessions,
                health_check_label=self._health_check_label(config, name),
                remote=bool(config.routing.site) and partition.site != config.routing.site,
            )
        self.groups = {
            name: PartitionGroup(
                self.engine,
                name,
                {partition: self._indexes[partition] for partition in group.partitions},
                group.verify == "other",
            )
            for name, group in config.partition_groups.items()
        }

    def start(self) -> None:
        """Start the threads; returns before the tokens have answered."""
        self.engine.start()

    def refusals(self) -> list[str]:
        """A sentence for each partition when none can ever serve: what is wrong and what to do. Else nothing: the others serve."""
        statuses = {name: self.engine.partition_status(index) for name, index in self._indexes.items()}
        if any(status.state != "refused" for status in statuses.values()):
            return []
        return [f"partition {name}: {status.reason}" for name, status in statuses.items()]

    def key_news(self) -> Iterator[tuple[str, dict[str, str | int]]]:
        """(event, fields) for the log: keys that are not what they were, since the last call."""
        news, lost = self.engine.take_key_news()
        for at in news:
            event, field = ("key_used_again", "key") if at.state == "usable" else ("key_refused", "problem")
            yield event, {"partition": self.partition_names[at.partition], field: at.text}
        if lost:
            yield (
                "key_refused",
                {"problem": f"and {lost} more keys that are used no more, or again: xksfast status shows how many"},
            )

    def _read_pin(self, partition: str, pin_file: str | None, pin_env: str | None) -> Secret | None:
        if pin_file:
            pin = Secret.from_file(pin_file)
        elif pin_env:
            pin = Secret.from_environment(pin_env)
        else:
            return None
        self._pins.append(pin)
        return pin

    @staticmethod
    def _health_check_label(config: Config, partition: str) -> str | None:
        """The health check key of the group that the partition belongs to; None: a session key is made."""
        for group in config.partition_groups.values():
            if partition in group.partitions and group.health_check_key:
                return group.health_check_key
        return None


class PartitionGroup:
    """The partitions that serve the same keys, as a KeySource."""

    def __init__(self, engine: Engine, name: str, partitions: dict[str, int], verify_other: bool) -> None:
        if not partitions:
            raise OperatorError(f"partition_groups.{name}: no partitions: list at least one")
        self.name = name
        self.fleet = Fleet()
        self._engine = engine
        self._partitions = partitions
        self._group = engine.add_group(list(partitions.values()), verify_other=verify_other, name=name)

    def request(self, version: KeyVersion, pages: SecretPages | None) -> int:
        """Have the keepers look for the key by its label."""
        return self._engine.key_add(self._group, version.label)

    def binding(self, ticket: int, key: Key, version: KeyVersion) -> KeyBinding:
        """Served when at least one partition has it with the rights that its usage needs; else what each partition says."""
        problems = []
        states = set()
        served = False
        for partition, index in self._partitions.items():
            rights = self._engine.key_rights(ticket, index)
            if rights is not None:
                states.add("usable")
                missing = self._missing_rights(key, version, partition, *rights)
                served = served or not missing
                problems.extend(missing)
            else:
                status = self._engine.key_status(ticket, index)
                states.add(status.state)
                problems.append(f"partition {partition}: {status.reason or status.state}")
        if served:
            return KeyBinding(engine_key=ticket, note="; ".join(problems))
        # "pending" is no verdict: the token does not answer now, and the engine itself refuses until it does.
        if states <= {"pending", "usable"} and "pending" in states:
            return KeyBinding(engine_key=ticket)
        # The keepers look again, and the engine knows with each request how it stands; rights are looked at here alone.
        return KeyBinding(engine_key=ticket, problem="; ".join(problems), passing="usable" not in states)

    def release(self, ticket: int) -> None:
        """The engine forgets the key."""
        self._engine.key_remove(ticket)

    def statuses(self) -> dict[str, PartitionStatus]:
        """What the keepers know, by partition name."""
        return {name: self._engine.partition_status(index) for name, index in self._partitions.items()}

    def check(self) -> None:
        """Health as of the keepers' last probes: a real encrypt and decrypt on each partition, in the background."""
        self.fleet.update([_member(name, status) for name, status in self.statuses().items()])

    @staticmethod
    def _missing_rights(key: Key, version: KeyVersion, partition: str, can_encrypt: bool, can_decrypt: bool) -> list[str]:
        missing = []
        for usage, right, allowed in (("ENCRYPT", "CKA_ENCRYPT", can_encrypt), ("DECRYPT", "CKA_DECRYPT", can_decrypt)):
            if usage in key.usage and not allowed:
                missing.append(
                    f"partition {partition}: the key {version.label!r} has {right} = false, but its usage lists {usage}: "
                    f"take {usage} out of its usage, or use a key that has the right"
                )
        return missing


def _references_file(directory: Path) -> str:
    """Where this node keeps what its keys are proven against. Raises OperatorError when there is no place for it."""
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise OperatorError(
            f"state.directory: {directory} cannot be made: {error.strerror}: name a directory that this user may write in, "
            "where it keeps what it proves keys against"
        ) from None
    return str(directory / REFERENCES_FILE)


def _member(name: str, status: PartitionStatus) -> FleetMember:
    age_s = (monotonic_ns() - status.last_good_probe_ns) / 1e9 if status.last_good_probe_ns else None
    if status.state != "ready" or age_s is None or age_s > limits.MAX_HEALTH_AGE_S:
        health: MemberStatus = "UNAVAILABLE"
    elif status.last_probe_ns > status.last_good_probe_ns:
        health = "DEGRADED"
    else:
        health = "ACTIVE"
    model = f"{status.model.strip()} firmware {status.firmware_major}.{status.firmware_minor}".strip()
    return FleetMember(
        id=f"{name}:{status.serial.strip()}" if status.serial.strip() else name,
        model=model,
        status=health,
        vendor=status.manufacturer.strip() or "unknown",
        note=status.reason,
    )
