# SPDX-License-Identifier: Apache-2.0
"""The key tool: creates AES-256 keys in one token, in a process of its own. The only module that imports python-pkcs11.

One JSON request on stdin, one JSON answer on stdout. The PIN is named by file or variable, never passed. Keys are TOKEN,
PRIVATE, SENSITIVE and not EXTRACTABLE, with exactly the rights asked for. A newcomer's trap: python-pkcs11 cannot hand
LibraryParameters to C_Initialize, which NSS softoken needs: such tokens go through our own C (`xks_p11_provision`).
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import msgspec

from xksfast.admin.partitions.tool_process import PartitionTarget
from xksfast.errors import OperatorError
from xksfast.native.crypto import Secret
from xksfast.native.engine import ensure_token_key

RACE_PATIENCE_S = 3.0  # the start of other processes takes as long as the machine is busy
RACE_PAUSE_S = 0.05


class KeyRequest(msgspec.Struct, frozen=True):
    """A key that shall exist."""

    label: str
    encrypt: bool
    decrypt: bool


class KeyToolRequest(PartitionTarget, frozen=True, kw_only=True):
    """The token, and the keys that shall exist on it."""

    keys: list[KeyRequest]


class KeyToolAnswer(msgspec.Struct, frozen=True):
    """Labels of the keys made now; problem: what is wrong and what to do, "" when nothing is."""

    created: list[str] = []
    problem: str = ""


def main() -> int:
    """Answer one request; the exit code is 0 even for a problem, which is in the answer."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # ending inside a login would leave half a token
    request = msgspec.json.decode(sys.stdin.buffer.read(), type=KeyToolRequest)
    try:
        answer = KeyToolAnswer(created=ensure_keys(request))
    except OperatorError as error:
        answer = KeyToolAnswer(problem=str(error))
    sys.stdout.buffer.write(msgspec.json.encode(answer))
    sys.stdout.flush()
    return 0


def ensure_keys(request: KeyToolRequest) -> list[str]:
    """Create each key that is not there; the labels of those made. OperatorError says what is wrong and what to do."""
    if request.parameters:
        return _ensure_by_engine(request)
    return _ensure_by_python_pkcs11(request)


def _ensure_by_engine(request: KeyToolRequest) -> list[str]:
    pin = None
    if request.pin_file:
        pin = Secret.from_file(request.pin_file)
    elif request.pin_env:
        pin = Secret.from_environment(request.pin_env)
    return [
        key.label
        for key in request.keys
        if ensure_token_key(
            module_path=request.module_path,
            parameters=request.parameters,
            token_label=request.token_label,
            token_serial=request.serial,
            slot=request.slot,
            pin=pin,
            profile=request.profile,
            label=key.label,
            can_encrypt=key.encrypt,
            can_decrypt=key.decrypt,
        )
    ]


def _ensure_by_python_pkcs11(request: KeyToolRequest) -> list[str]:
    import pkcs11

    try:
        library = pkcs11.lib(request.module_path)
    except (pkcs11.PKCS11Error, RuntimeError) as error:
        raise OperatorError(f"the PKCS#11 module {request.module_path} cannot be loaded: {_words(error)}") from None
    try:
        token = _find_token_patiently(library, request)
        with _open_session(token, request) as session:
            return [key.label for key in request.keys if _ensure_key(session, token.label, key)]
    except pkcs11.PKCS11Error as error:
        wanted = request.token_label or request.serial or f"slot {request.slot}"
        raise OperatorError(f"token {wanted!r}: {_words(error)}") from None


def _ensure_key(session: Any, token_label: str, key: KeyRequest) -> bool:
    """True when the key was made now."""
    import pkcs11
    from pkcs11 import Attribute, KeyType, ObjectClass

    found = list(session.get_objects({Attribute.CLASS: ObjectClass.SECRET_KEY, Attribute.LABEL: key.label}))
    if len(found) > 1:
        raise OperatorError(f"token {token_label!r} has several secret keys with the label {key.label!r}: rename one")
    if found:
        if found[0].key_type != KeyType.AES or found[0].key_length != 256:
            raise OperatorError(f"the key {key.label!r} on token {token_label!r} is not AES-256: choose another label")
        return False
    try:
        session.generate_key(
            KeyType.AES,
            256,
            label=key.label,
            store=True,
            template={
                Attribute.TOKEN: True,
                Attribute.PRIVATE: True,
                Attribute.SENSITIVE: True,
                Attribute.EXTRACTABLE: False,
                Attribute.ENCRYPT: key.encrypt,
                Attribute.DECRYPT: key.decrypt,
                Attribute.WRAP: False,
                Attribute.UNWRAP: False,
                Attribute.SIGN: False,
                Attribute.VERIFY: False,
                Attribute.DERIVE: False,
            },
        )
    except pkcs11.PKCS11Error as error:
        raise OperatorError(f"the key {key.label!r} cannot be made on token {token_label!r}: {_words(error)}") from None
    return True


def _words(error: Exception) -> str:
    """python-pkcs11 names its errors by class, mostly without a text."""
    text = str(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _find_token_patiently(library: Any, request: KeyToolRequest) -> Any:
    """SoftHSM 2.6 may miss a token, for as long as it stays initialised, while another process logs in to it."""
    import pkcs11

    deadline = time.monotonic() + (RACE_PATIENCE_S if request.profile == "softhsm" else 0)
    while time.monotonic() < deadline:
        try:
            return _find_token(library, request)
        except (OperatorError, pkcs11.PKCS11Error):
            time.sleep(RACE_PAUSE_S)
            library.reinitialize()
    return _find_token(library, request)


def _find_token(library: Any, request: KeyToolRequest) -> Any:
    """The one token that the request names; else OperatorError lists what there is."""
    tokens = [slot.get_token() for slot in library.get_slots(token_present=True)]
    wanted = request.token_label or request.serial or f"slot {request.slot}"
    found = [
        token
        for token in tokens
        if (request.token_label is not None and token.label == request.token_label)
        or (request.serial is not None and token.serial.decode() == request.serial)
        or (request.slot is not None and token.slot.slot_id == request.slot)
    ]
    if len(found) != 1:
        labels = ", ".join(repr(token.label) for token in tokens if token.label) or "none"
        problem = "there is no token" if not found else "there are several tokens"
        raise OperatorError(f"{problem} {wanted!r} in {request.module_path}; tokens found: {labels}")
    return found[0]


def _open_session(token: Any, request: KeyToolRequest) -> Any:
    """A logged-in read-write session. A refused PIN is never tried again."""
    import pkcs11

    pin = _read_pin(request)
    deadline = time.monotonic() + (RACE_PATIENCE_S if request.profile == "softhsm" else 0)
    while True:
        try:
            return token.open(rw=True, user_pin=pin)
        except pkcs11.exceptions.UserPinNotInitialized:
            # SoftHSM 2.6 says so while another process is starting; a token that really has no PIN says it to the end.
            if time.monotonic() >= deadline:
                raise OperatorError(f"token {token.label!r} has no user PIN: initialise it") from None
            time.sleep(RACE_PAUSE_S)
        except pkcs11.exceptions.GeneralError:  # the same, seldom
            if time.monotonic() >= deadline:
                raise
            time.sleep(RACE_PAUSE_S)
        except (pkcs11.exceptions.PinIncorrect, pkcs11.exceptions.PinInvalid, pkcs11.exceptions.PinLenRange):
            raise OperatorError(
                f"token {token.label!r} refuses the PIN: it was tried once and will not be tried again, since tokens lock; "
                "correct the PIN, then start again"
            ) from None


def _read_pin(request: KeyToolRequest) -> str | None:
    """The PIN as python-pkcs11 wants it, by the same rules as everywhere: only a 0600 file."""
    if request.pin_file:
        Secret.from_file(request.pin_file)  # refuses a file that others can read
        return Path(request.pin_file).read_text(encoding="utf-8").rstrip("\r\n")
    if request.pin_env:
        Secret.from_environment(request.pin_env)
        return os.environ[request.pin_env]
    return None
