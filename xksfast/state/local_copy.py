# SPDX-License-Identifier: Apache-2.0
"""What a node knew last, in a file of its own: it serves from it while the database is away, and sees by it that a database went back.

File: a line of JSON each: header {"format", "seq", "head", "data_keys"}, then objects, then secrets (sealed, as in the database), then
the MAC of all lines before, under the data key. Written beside and renamed, so that it is always whole. It holds no plaintext secret;
its objects can be read by who can read the file (0600).
"""

from __future__ import annotations

import hashlib
import itertools
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from xksfast.errors import OperatorError
from xksfast.secret_file import sync_directory
from xksfast.state.events import decode_object, encode_lines
from xksfast.state.objects import Stored
from xksfast.state.records import Loaded, SealedSecret, WrappedDataKey
from xksfast.state.sealing import Sealer

FORMAT = 1
LINES_AT_ONCE = 1000  # other threads have their turn between two times
MAC_LABEL = "xksfast local copy"
_MOVE = (
    "move it away, and keep it, since it may hold keys that nothing else has; the node then needs the database to start, and where "
    "that was restored from an older backup, blocks and keys made after it are missing"
)


@dataclass(frozen=True)
class LocalCopy:
    """objects: with the seq of their last change."""

    seq: int
    head: bytes
    data_keys: list[WrappedDataKey]
    objects: list[tuple[Stored, int]]
    secrets: list[SealedSecret]


class _Header(msgspec.Struct, frozen=True):
    format: int
    seq: int
    head: bytes
    data_keys: list[WrappedDataKey]


class _Line(msgspec.Struct, frozen=True):
    """kind "secret": body is the row; else an object of that kind, changed by event seq."""

    kind: str
    seq: int
    body: msgspec.Raw


class _WrittenLine(msgspec.Struct, frozen=True):
    """A _Line with what its body is made of."""

    kind: str
    seq: int
    body: Stored | SealedSecret


def write_copy(
    path: Path, known: Loaded, data_keys: Iterable[WrappedDataKey], secrets: Iterable[SealedSecret], sealer: Sealer
) -> None:
    """On disk when this returns. OSError."""
    header = _Header(FORMAT, known.seq, known.head, list(data_keys))
    objects = (_WrittenLine(value.kind, revision, value) for value, revision in known.objects)
    lines = itertools.chain([header], objects, (_WrittenLine("secret", 0, row) for row in secrets))
    digest = hashlib.sha256()
    unfinished = path.with_suffix(".new")
    with open(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        while some := list(itertools.islice(lines, LINES_AT_ONCE)):
            data = encode_lines(some)
            digest.update(data)
            file.write(data)
        file.write(encode_lines([{"mac": sealer.mac(MAC_LABEL, digest.digest()).hex()}]))
        file.flush()
        os.fsync(file.fileno())
    os.replace(unfinished, path)
    sync_directory(path.parent)


def read_position(path: Path) -> tuple[int, bytes] | None:
    """(seq, hash) of the newest event in the copy, without reading the rest; None: there is none. OperatorError as for read_copy."""
    try:
        with path.open("rb") as file:
            header = _header_of(path, file.readline())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise OperatorError(f"{path} cannot be read: {error.strerror}") from error
    return header.seq, header.head


def read_copy(path: Path) -> tuple[LocalCopy, bytes, bytes] | None:
    """(the copy, its MAC, what the MAC is over: see is_genuine); None: there is none. OperatorError: it cannot be read."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise OperatorError(f"{path} cannot be read: {error.strerror}") from error
    body, _, last = data.rstrip(b"\n").rpartition(b"\n")
    body += b"\n"
    lines = body.splitlines()
    header = _header_of(path, lines[0] if lines else b"")
    try:
        mac = bytes.fromhex(msgspec.json.decode(last, type=dict[str, str])["mac"])
        objects, secrets = [], []
        for one in lines[1:]:
            entry = msgspec.json.decode(one, type=_Line)
            if entry.kind == "secret":
                secrets.append(msgspec.json.decode(entry.body, type=SealedSecret))
            else:
                objects.append((decode_object(entry.kind, bytes(entry.body)), entry.seq))
    except (msgspec.MsgspecError, KeyError, ValueError) as error:
        raise _damaged(path, error) from error
    return LocalCopy(header.seq, header.head, header.data_keys, objects, secrets), mac, hashlib.sha256(body).digest()


def _header_of(path: Path, line: bytes) -> _Header:
    try:
        header = msgspec.json.decode(line, type=_Header)
    except (msgspec.MsgspecError, ValueError) as error:
        raise _damaged(path, error) from error
    if header.format != FORMAT:
        raise OperatorError(
            f"{path}: format {header.format} is none that this version reads: start the newer version again, or {_MOVE}"
        )
    return header


def _damaged(path: Path, error: Exception) -> OperatorError:
    return OperatorError(f"{path} is damaged ({error}): {_MOVE}")


def is_genuine(mac: bytes, over: bytes, sealer: Sealer) -> bool:
    """Whether a node of ours wrote it."""
    return sealer.verify_mac(MAC_LABEL, over, mac)


def keep_copy(path: Path, seq: int) -> Path:
    """Give the copy, of event `seq`, a second name before another one takes its place; the name, which is on disk when this returns.

    Never over another file. What was kept before is not kept twice. OSError.
    """
    for kept in kept_copies(path.parent):
        if kept.samefile(path):
            return kept
    at = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    for number in itertools.count(1):
        kept = path.with_name(f"{path.stem}-{seq}-{at}{f'-{number}' if number > 1 else ''}{path.suffix}")
        try:
            os.link(path, kept)
        except FileExistsError:
            continue
        sync_directory(path.parent)
        return kept
    raise AssertionError  # there is always another number


def kept_copies(directory: Path) -> list[Path]:
    """Oldest first."""
    return sorted(directory.glob("copy-*.jsonl"), key=lambda kept: kept.stat().st_mtime_ns)
