# SPDX-License-Identifier: Apache-2.0
"""CK_RV values by name, as people type them: "CKR_DEVICE_ERROR", "device_error", "0x30", 48. The names are those of csrc/xks_ckr.c."""

from __future__ import annotations

from functools import cache

from xksfast.errors import OperatorError
from xksfast.native.loader import ffi, lib

LAST_NAMED_CKR = 0x2FF
MAX_CKR = 0xFFFFFFFF


@cache
def _values() -> dict[str, int]:
    """Every standard name and its value."""
    named = {ffi.string(lib.xks_ckr_name(value)).decode("ascii"): value for value in range(LAST_NAMED_CKR, -1, -1)}
    named.pop("CKR_UNKNOWN", None)
    return named


def ckr_value(given: int | str) -> int:
    """The CK_RV of a name or number. 0 and "CKR_OK" mean no fault."""
    if isinstance(given, str):
        name = given.upper() if given.upper().startswith("CKR_") else f"CKR_{given.upper()}"
        if name in _values():
            return _values()[name]
        try:
            given = int(given, 0)
        except ValueError:
            raise OperatorError(f"{given}: no CK_RV; give a name such as CKR_DEVICE_ERROR, or a number such as 0x30") from None
    if not 0 <= given <= MAX_CKR:
        raise OperatorError(f"{given}: a CK_RV is between 0 and 0xffffffff")
    return given


def ckr_name(value: int) -> str:
    """The name, or the number in hexadecimal for a value that has none."""
    name: str = ffi.string(lib.xks_ckr_name(value)).decode("ascii")
    return name if name in _values() else hex(value)
