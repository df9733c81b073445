# SPDX-License-Identifier: Apache-2.0
"""Loads the native module and refuses one that was built from another version of the package.

`ffi` and `lib` are cffi's; `api_address` is the address of the C function table for Cython modules. Import this, never `_xks`.
"""

from __future__ import annotations

from typing import Any

from xksfast._version import __version__
from xksfast.errors import NativeError

API_ABI = 5  # csrc/xks_api.h, XKS_API_ABI: what the Cython modules were written against

try:
    from xksfast.native import _xks  # type: ignore[attr-defined]
except ImportError as error:
    raise NativeError(f"the native module cannot be loaded ({error}): run make build") from error

ffi: Any = _xks.ffi
lib: Any = _xks.lib

_api = lib.xks_api_get()
_built_version = ffi.string(_api.version).decode("ascii")
if _built_version != __version__ or _api.abi != API_ABI:
    raise NativeError(
        f"the native module is of version {_built_version} (ABI {_api.abi}), the package of {__version__} (ABI {API_ABI}): "
        "run make build"
    )

api_address = int(ffi.cast("uintptr_t", _api))


def error_buffer() -> Any:
    """A char array for functions that write an error text."""
    return ffi.new("char[]", lib.XKS_ERROR_TEXT_BYTES)


def check(status: int, error: Any = None, what: str = "") -> None:
    """Raise NativeError unless status is XKS_OK. error: an error_buffer; what: used when it is empty."""
    if status == lib.XKS_OK:
        return
    text = ffi.string(error).decode("utf-8", "replace") if error is not None else ""
    refusal = NativeError(text or f"{what}: {STATUS_NAMES.get(status, status)}")
    refusal.is_final = status == lib.XKS_FINAL
    raise refusal


STATUS_NAMES = {
    getattr(lib, name): name.removeprefix("XKS_").lower().replace("_", " ")
    for name in (
        "XKS_OK",
        "XKS_BAD_INPUT",
        "XKS_TOO_LONG",
        "XKS_NO_SPACE",
        "XKS_NOT_AUTHENTIC",
        "XKS_NOT_FOUND",
        "XKS_NOT_PERMITTED",
        "XKS_TIMEOUT",
        "XKS_BUSY",
        "XKS_UNAVAILABLE",
        "XKS_CONFIG",
        "XKS_SYSTEM",
        "XKS_WANT_MORE",
        "XKS_CLOSED",
        "XKS_BUG",
        "XKS_FINAL",
    )
}
