# SPDX-License-Identifier: Apache-2.0
"""One virtual slot of the shim: setters for its faults, and its counters.

What lives here: names for the words of xksfault_slot. What must not: the file they are in (control.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Self

from xksfast.errors import OperatorError
from xksfast.native.loader import ffi, lib
from xksfast.rehearsal.ckr import ckr_value
from xksfast.rehearsal.counters import SlotCounters, read_slot
from xksfast.rehearsal.latency import FUNCTION_CLASSES, OPERATIONS, PPM, Latency

IV_MODES: dict[str, int] = {
    "caller": lib.XKS_FAULT_IV_CALLER,
    "returned_in_param": lib.XKS_FAULT_IV_RETURNED_IN_PARAM,
    "appended_16": lib.XKS_FAULT_IV_APPENDED_16,
    "appended_12": lib.XKS_FAULT_IV_APPENDED_12,
    "zero_silently": lib.XKS_FAULT_IV_ZERO_SILENTLY,
}
# What a rehearsal may set; the rest of xksfault_slot says which real token is behind a slot and stays.
FAULT_FIELDS = (
    "multiplier_permille", "servers", "network_ns", "hang", "hang_classes", "hang_max_ms", "hang_rv", "dead_rv", "error_rv",
    "error_ppm", "error_classes", "error_times", "error_at_once", "max_sessions", "login_rv", "tag_rv", "iv_mode",
    "flip_encrypt_ppm", "flip_decrypt_ppm", "wrong_length_ppm",
)  # fmt: skip


def mask_of(classes: Iterable[str]) -> int:
    """The mask of function classes; 0, which means all, for none."""
    mask = 0
    for name in classes:
        if name not in FUNCTION_CLASSES:
            raise OperatorError(f"{name}: no class of functions; known: {', '.join(FUNCTION_CLASSES)}")
        mask |= 1 << FUNCTION_CLASSES[name]
    return mask


class SlotControl:
    """The settings and counters of one virtual slot. Every setter returns the slot, so that they can be chained."""

    def __init__(self, file_words: Callable[[], Any], number: int) -> None:
        self._file_words = file_words  # asked each time: it refuses once the file is closed
        self.number = number

    @property
    def words(self) -> Any:
        """The slot's xksfault_slot, for what has no setter."""
        return self._file_words().slots[self.number]

    def named(self, label: str, *, real_label: str = "") -> Self:
        """Its token label, and the label of the real token behind it ("": as before). Holds from the next C_GetSlotList on."""
        for field, text in (("label", label), ("real_label", real_label)):
            encoded = text.encode()
            if len(encoded) >= lib.XKS_FAULT_LABEL_BYTES:
                raise OperatorError(f"{text}: a token label has at most {lib.XKS_FAULT_LABEL_BYTES - 1} bytes here")
            if encoded:
                setattr(self.words, field, encoded)
        return self

    def latency(self, latency: Latency, classes: Iterable[str] = OPERATIONS) -> Self:
        """How long calls of these classes take. By default an operation costs one round trip, in C_Encrypt or C_Decrypt."""
        mask = mask_of(classes)
        for index in FUNCTION_CLASSES.values():
            if mask & 1 << index:
                word = self.words.latency[index]
                word.a_ns, word.b, word.c_ns, word.kind = latency.a_ns, latency.b, latency.c_ns, latency.kind
        return self

    def multiplier(self, times: float) -> Self:
        """Every latency `times` as long; 1 is usual."""
        self.words.multiplier_permille = max(1, round(times * 1000))
        return self

    def servers(self, count: int) -> Self:
        """Calls that the HSM works on at a time, the others wait in its queue. 0: no limit."""
        if not 0 <= count <= lib.XKS_FAULT_SERVERS:
            raise OperatorError(f"{count} servers: 0 to {lib.XKS_FAULT_SERVERS} are possible")
        self.words.servers = count
        return self

    def network_ms(self, ms: float) -> Self:
        """A time on the wire, added to every call that has a latency; it occupies no server."""
        self.words.network_ns = round(ms * 1_000_000)
        return self

    def hang(self, *, max_ms: int = 0, ckr: int | str = 0, classes: Iterable[str] = ()) -> Self:
        """Calls do not return until release(), or until max_ms are over (0: never); then with `ckr`, or as if nothing had been."""
        words = self.words
        words.hang_max_ms, words.hang_rv, words.hang_classes = max_ms, ckr_value(ckr), mask_of(classes)
        words.hang = 1
        return self

    def release(self) -> Self:
        """The hang is over."""
        self.words.hang = 0
        return self

    def dead(self, ckr: int | str = "CKR_DEVICE_ERROR") -> Self:
        """Everything fails at once; 0 ends it."""
        self.words.dead_rv = ckr_value(ckr)
        return self

    def error(
        self, ckr: int | str, ppm: int = PPM, *, classes: Iterable[str] = (), times: int = 0, at_once: bool = False
    ) -> Self:
        """`ppm` of 1,000,000 calls fail with `ckr`, the first `times` of them only (0: all). ckr 0 ends it."""
        words = self.words
        rv, mask = ckr_value(ckr), mask_of(classes)
        words.error_ppm, words.error_classes, words.error_times, words.error_at_once = ppm, mask, times, at_once
        words.error_rv = rv
        return self

    def restart(self) -> Self:
        """As if the HSM had restarted: sessions invalid, logins lost, object handles changed."""
        self.words.epoch += 1
        return self

    def lose_login(self) -> Self:
        """Logins lost; sessions and handles stay."""
        self.words.login_epoch += 1
        return self

    def device_error(self) -> Self:
        """CKR_DEVICE_ERROR until a process calls C_Finalize and C_Initialize."""
        self.words.device_error_epoch += 1
        return self

    def max_sessions(self, count: int) -> Self:
        """A process may have so many sessions, then CKR_SESSION_COUNT. 0: no limit."""
        self.words.max_sessions = count
        return self

    def login_error(self, ckr: int | str = "CKR_PIN_INCORRECT") -> Self:
        """What C_Login returns without asking the real token; 0 ends it."""
        self.words.login_rv = ckr_value(ckr)
        return self

    def login_with_any_pin(self, needed: bool = True) -> Self:
        """C_Login is needed and takes any PIN, whatever the real token wants (NSS softoken without a password wants none)."""
        self.words.login_mode = lib.XKS_FAULT_LOGIN_ANY_PIN if needed else lib.XKS_FAULT_LOGIN_AS_REAL
        return self

    def tag_error(self, ckr: int | str) -> Self:
        """What a decryption that is not authentic returns instead; 0: what the real token returns."""
        self.words.tag_rv = ckr_value(ckr)
        return self

    def iv_mode(self, mode: str) -> Self:
        """Who makes the IV of an encryption: see IV_MODES."""
        if mode not in IV_MODES:
            raise OperatorError(f"{mode}: no IV mode; known: {', '.join(IV_MODES)}")
        self.words.iv_mode = IV_MODES[mode]
        return self

    def flip_bits(self, *, encrypt_ppm: int = 0, decrypt_ppm: int = 0) -> Self:
        """So many of 1,000,000 outputs have one bit changed."""
        self.words.flip_encrypt_ppm, self.words.flip_decrypt_ppm = encrypt_ppm, decrypt_ppm
        return self

    def wrong_lengths(self, ppm: int) -> Self:
        """So many of 1,000,000 outputs have a wrong length."""
        self.words.wrong_length_ppm = ppm
        return self

    def set_word(self, setting: str, value: int | str) -> Self:
        """One of FAULT_FIELDS by name; value: a number, or the name of an IV mode or CK_RV for a setting that is one."""
        if setting == "iv_mode" and isinstance(value, str):
            return self.iv_mode(value)
        setattr(self.words, setting, ckr_value(value) if setting.endswith("_rv") else whole_number(setting, value))
        return self

    def reset(self) -> Self:
        """No faults and no latency. Epochs, names and counters stay."""
        for field in FAULT_FIELDS:
            setattr(self.words, field, 0)
        for index in FUNCTION_CLASSES.values():
            self.words.latency[index].kind = lib.XKS_FAULT_NONE
        return self

    def counters(self) -> SlotCounters:
        """What happened here since the file was made, or since reset_counters()."""
        return read_slot(self._file_words().counters[self.number])


def whole_number(setting: str, value: int | str) -> int:
    """A word's value: 0 to 2^64 - 1."""
    try:
        number = int(value, 0) if isinstance(value, str) else value
    except ValueError:
        number = -1
    if not 0 <= number < 1 << 64:
        raise OperatorError(f"{setting}: {value} is no whole number of at least 0")
    return number


def setting_offset(setting: str) -> int:
    """Offset in bytes of a setting in xksfault_slot."""
    parts: list[str | int] = [*setting.split(".")]
    if len(parts) == 3 and parts[0] == "latency":
        parts[1] = FUNCTION_CLASSES.get(str(parts[1]), -1)
    try:
        return int(ffi.offsetof("xksfault_slot", *parts))
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise OperatorError(f"{setting}: no setting of a slot; see csrc/shim/xksfault_control.h") from error


def describe_slot(slot: SlotControl) -> Mapping[str, int]:
    """The faults of a slot that are set: name -> value, nothing for what is as usual."""
    return {field: int(getattr(slot.words, field)) for field in FAULT_FIELDS if getattr(slot.words, field) != 0}
