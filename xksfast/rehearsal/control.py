# SPDX-License-Identifier: Apache-2.0
"""The control file of libxksfault.so: created, opened, steered and read while servers run on it.

    with FaultControl.create(path, slots=3) as control:
        control.slot(0).latency(lognormal_ms(1.0))
        control.slot(1).hang()
        ...
        control.slot(1).release()

What lives here: names for the words of the file. What must not: their layout, which is `csrc/shim/xksfault_control.h` and reaches us
through the native module. A newcomer's trap: a setting holds from the next call on, and every process with the same file sees it; a
setting of several words is not seen at once.
"""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from xksfast import native
from xksfast.errors import OperatorError
from xksfast.native.loader import ffi, lib
from xksfast.rehearsal.counters import MisuseCounters, read_misuse
from xksfast.rehearsal.slot import SlotControl, setting_offset

MAX_SLOTS: int = lib.XKS_FAULT_SLOTS
MAX_EVENTS: int = lib.XKS_FAULT_EVENTS
FILE_BYTES: int = ffi.sizeof("xksfault_control")
ALL_SLOTS = -1

FLAGS: dict[str, int] = {
    name: getattr(lib, f"XKS_FAULT_{name.upper()}")
    for name in ("strict", "check_ivs", "global_lock", "hide_3_0", "stable_handles", "reuse_handles")
}


def shim_path() -> Path:
    """The built libxksfault.so of this package."""
    path = Path(str(native.__file__)).absolute().with_name("libxksfault.so")
    if not path.exists():
        raise OperatorError(f"{path} does not exist: run make build")
    return path


class FaultControl:
    """An open control file. Close it, or use it as a context manager; servers go on without it."""

    def __init__(self, path: Path, mapped: mmap.mmap) -> None:
        self.path = path
        self._mapped = mapped
        self._buffer = ffi.from_buffer(mapped, require_writable=True)
        self._words = ffi.cast("xksfault_control *", self._buffer)

    @classmethod
    def create(
        cls,
        path: Path | str,
        *,
        slots: int = 0,
        labels: Iterable[str] = (),
        flags: Iterable[str] = (),
        seed: int = 0,
    ) -> Self:
        """Make a control file anew. `slots` virtual slots over the first real token, labelled p0, p1, ... unless `labels` says
        otherwise; 0: one for each real token, with its own label. flags: see FLAGS. seed: of every random choice, 0: none.
        """
        path = Path(path)
        if not 0 <= slots <= MAX_SLOTS:
            raise OperatorError(f"{slots} virtual slots: 0 to {MAX_SLOTS} are possible")
        new = path.with_name(f"{path.name}.new")
        try:
            descriptor = os.open(new, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(descriptor, "r+b") as file:
                file.truncate(FILE_BYTES)
                head = ffi.new("xksfault_control *")
                head.magic, head.version, head.size = lib.XKS_FAULT_MAGIC, lib.XKS_FAULT_VERSION, FILE_BYTES
                head.slot_count, head.seed = slots, seed
                file.write(ffi.buffer(head, ffi.offsetof("xksfault_control", "events"))[:])
            new.replace(path)
        except OSError as error:
            raise OperatorError(f"{path}: the control file cannot be made: {error.strerror}") from error
        control = cls.open(path)
        for number, label in enumerate(labels):
            control.slot(number).named(label)
        control.set_flags(flags)
        return control

    @classmethod
    def open(cls, path: Path | str) -> Self:
        """Open a control file that create() or `xksfast rehearse init` made."""
        path = Path(path)
        try:
            with path.open("r+b") as file:
                mapped = mmap.mmap(file.fileno(), FILE_BYTES) if os.fstat(file.fileno()).st_size == FILE_BYTES else None
        except OSError as error:
            raise OperatorError(f"{path}: {error.strerror}: make it with: xksfast rehearse init {path}") from error
        if mapped is not None:
            control = cls(path, mapped)
            words = control.words
            if (words.magic, words.version, words.size) == (lib.XKS_FAULT_MAGIC, lib.XKS_FAULT_VERSION, FILE_BYTES):
                return control
            control.close()
        raise OperatorError(f"{path} is no control file of this version: make it anew with: xksfast rehearse init {path}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Unmap. Faults that are set stay set."""
        self._words = None
        ffi.release(self._buffer)
        self._mapped.close()

    @property
    def words(self) -> Any:
        """The file's xksfault_control, for what has no setter."""
        return self._get_words()

    def _get_words(self) -> Any:
        if self._words is None:
            raise OperatorError(f"{self.path}: the control file has been closed")
        return self._words

    @property
    def slot_count(self) -> int:
        """Virtual slots; 0: as many as the real module has tokens."""
        return int(self.words.slot_count)

    def slot(self, number: int) -> SlotControl:
        """One virtual slot."""
        last = (self.slot_count or MAX_SLOTS) - 1
        if not 0 <= number <= last:
            raise OperatorError(f"slot {number}: there are slots 0 to {last}")
        return SlotControl(self._get_words, number)

    def slots(self) -> list[SlotControl]:
        """Every virtual slot."""
        return [SlotControl(self._get_words, number) for number in range(self.slot_count or MAX_SLOTS)]

    def set_flags(self, names: Iterable[str]) -> None:
        """Exactly these flags of FLAGS."""
        value = 0
        for name in names:
            if name not in FLAGS:
                raise OperatorError(f"{name}: no flag; known: {', '.join(FLAGS)}")
            value |= FLAGS[name]
        self.words.flags = value

    def flags(self) -> list[str]:
        """The flags that are set."""
        return [name for name, bit in FLAGS.items() if self.words.flags & bit]

    def device_error(self) -> None:
        """The whole library is broken: CKR_DEVICE_ERROR everywhere until C_Finalize and C_Initialize."""
        for number in range(MAX_SLOTS):
            SlotControl(self._get_words, number).device_error()

    def schedule(self, events: Iterable[tuple[float, int, str, int]], *, start: bool = True) -> None:
        """A timeline of (seconds, slot or ALL_SLOTS, setting, value). A setting is a name of xksfault_slot: "hang", "dead_rv",
        "latency.encrypt.a_ns". It starts now, or with start=False at the next C_Initialize.
        """
        words, steps = self.words, sorted(events, key=lambda event: event[0])
        if len(steps) > MAX_EVENTS:
            raise OperatorError(f"a timeline has at most {MAX_EVENTS} events")
        words.event_count = words.timeline_start_ns = words.event_next = 0
        for index, (seconds, slot, setting, value) in enumerate(steps):
            event = words.events[index]
            event.at_ns, event.value, event.word = round(seconds * 1e9), value, setting_offset(setting) // 8
            event.slot = MAX_SLOTS if slot == ALL_SLOTS else self.slot(slot).number
        words.timeline_start_ns = time.monotonic_ns() if start else 0
        words.event_count = len(steps)

    def misuse(self) -> MisuseCounters:
        """What callers did wrong, all slots together."""
        return read_misuse(self.words)

    def reset_counters(self) -> None:
        """Counters, histograms and queues to zero; gauges of what is open and in flight stay."""
        for number in range(MAX_SLOTS):
            counters = self.words.counters[number]
            gauges = {name: getattr(counters, name) for name in ("sessions_open", "in_flight", "hung")}
            ffi.memmove(ffi.addressof(counters), bytes(ffi.sizeof("xksfault_counters")), ffi.sizeof("xksfault_counters"))
            for name, value in gauges.items():
                setattr(counters, name, value)
        for name in MisuseCounters.__annotations__:
            setattr(self.words, name, 0)

    def reset(self) -> None:
        """No faults, no latency, no timeline, and zero counters."""
        self.words.event_count = 0
        for slot in [SlotControl(self._get_words, number) for number in range(MAX_SLOTS)]:
            slot.reset()
        self.reset_counters()

    def environment(self, real_module: Path | str) -> dict[str, str]:
        """What a server needs in its environment so that shim_path() stands before real_module."""
        return {"XKSFAULT_MODULE": str(real_module), "XKSFAULT_CONTROL": str(self.path.absolute())}
