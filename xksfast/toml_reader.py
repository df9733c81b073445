# SPDX-License-Identifier: Apache-2.0
"""TOML -> frozen structs, with every problem of the file found at once and named by its dotted key.

What lives here: reading, types, unknown names. What must not: rules between values; whoever owns the file has those
(`config.py`, `state/store_file.py`) and adds them to the same `Problems`. A newcomer's trap: msgspec itself stops at the first
problem, which is why tables are walked here and only single values are left to it.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterable
from typing import Any, TypeVar

import msgspec
from msgspec import inspect

from xksfast.errors import ConfigError, OperatorError

T = TypeVar("T", bound=msgspec.Struct)

MAX_FILE_BYTES = 16 * 1024 * 1024

_WRONG = object()


class RefusedFile(OperatorError):
    """A file that cannot be used: all that is wrong with it, one line each."""

    def __init__(self, source: str, problems: Iterable[ConfigError]) -> None:
        self.source = source
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


class Problems:
    """Collects what is wrong with one file. source: its path, for the messages."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.found: list[ConfigError] = []

    def add(self, key: str, problem: str) -> None:
        """key: dotted path, "" for the file as a whole."""
        self.found.append(ConfigError(key, problem, source=self.source))

    def raise_if_any(self) -> None:
        """Raise RefusedFile unless all is well."""
        if self.found:
            raise RefusedFile(self.source, self.found)


def nearest(word: str, known: Iterable[str]) -> str:
    """What follows an unknown word: the closest known one, or else all of them."""
    from difflib import get_close_matches  # rarely needed, and not small

    names = sorted(known)
    close = get_close_matches(word, names, n=1, cutoff=0.6)
    if close:
        return f": did you mean {close[0]!r}?"
    return f": known are {', '.join(names)}" if names else ""


def read_toml(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The tables of a TOML file; RefusedFile when it cannot be read or is no TOML."""
    problems = Problems(os.fspath(path))
    try:
        with open(path, "rb") as file:
            text = file.read(MAX_FILE_BYTES + 1)
        if len(text) > MAX_FILE_BYTES:
            raise OSError(f"over {MAX_FILE_BYTES} bytes")
        return tomllib.loads(text.decode("utf-8"))
    except OSError as error:
        problems.add("", f"cannot be read: {error.strerror or error}")
    except UnicodeDecodeError as error:
        problems.add("", f"not UTF-8 at byte {error.start}")
    except tomllib.TOMLDecodeError as error:
        problems.add("", f"not TOML: {error}")
    raise RefusedFile(problems.source, problems.found)


def join(key: str, name: str) -> str:
    """The dotted key of `name` in the table `key`; a name that TOML would quote is quoted."""
    bare = name.replace("-", "").replace("_", "").isalnum() and name.isascii()
    part = name if bare else '"' + name.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return f"{key}.{part}" if key else part


def to_struct(cls: type[T], table: Any, key: str, problems: Problems) -> T | None:
    """`table` as a `cls`, with what is wrong added to `problems`.

    A wrong value leaves its field at the default, so that the rules of the other fields can still be tried; only a required
    field that is wrong or missing gives None. In a table of structs a None stands for the one that could not be made.
    """
    if not isinstance(table, dict):
        problems.add(key, f"expected a table, got {_shown(table)}")
        return None
    fields = {field.encode_name: field for field in msgspec.structs.fields(cls)}
    for name in table:
        if name not in fields:
            problems.add(join(key, name), f"unknown key {name!r}{nearest(name, fields)}")
    values: dict[str, Any] = {}
    complete = True
    for name, field in fields.items():
        if name not in table:
            value = _WRONG
            if field.required:
                problems.add(join(key, name), "is missing")
        else:
            value = _convert(inspect.type_info(field.type), table[name], join(key, name), problems)
        if value is not _WRONG:
            values[field.name] = value
        elif field.required:
            complete = False
    return cls(**values) if complete else None


def _convert(info: inspect.Type, value: Any, key: str, problems: Problems) -> Any:
    """One value, or _WRONG."""
    match info:
        case inspect.UnionType():
            (info,) = (part for part in info.types if not isinstance(part, inspect.NoneType))
            return _convert(info, value, key, problems)
        case inspect.StructType():
            made = to_struct(info.cls, value, key, problems)
            return _WRONG if made is None else made
        case inspect.DictType():
            return _convert_dict(info, value, key, problems)
        case inspect.VarTupleType():
            if not isinstance(value, list):
                return _wrong(problems, key, f"expected a list, got {_shown(value)}")
            items = [_convert(info.item_type, entry, f"{key}[{index}]", problems) for index, entry in enumerate(value)]
            return _WRONG if any(item is _WRONG for item in items) else tuple(items)
        case inspect.LiteralType():
            if value in info.values:
                return value
            name = key.rpartition(".")[2].split("[")[0]
            what = f"unknown {name} {value!r}" if isinstance(value, str) else f"expected text, got {_shown(value)}"
            return _wrong(problems, key, what + nearest(str(value), map(str, info.values)))
        case inspect.IntType():
            low, high = info.ge, info.le
            if type(value) is int and (low is None or value >= low) and (high is None or value <= high):
                return value
            bounds = f" from {low} to {high}" if high is not None else ""
            return _wrong(problems, key, f"expected a whole number{bounds}, got {_shown(value)}")
        case inspect.FloatType():
            least, most = info.ge, info.le
            if type(value) in (int, float) and (least is None or value >= least) and (most is None or value <= most):
                return float(value)
            bounds = f" from {least} to {most}" if most is not None else ""
            return _wrong(problems, key, f"expected a number{bounds}, got {_shown(value)}")
        case inspect.StrType():
            return value if isinstance(value, str) else _wrong(problems, key, f"expected text, got {_shown(value)}")
        case inspect.BoolType():
            return value if isinstance(value, bool) else _wrong(problems, key, f"expected true or false, got {_shown(value)}")
        case _:
            raise TypeError(f"{key}: no rule for {info}")


def _convert_dict(info: inspect.DictType, value: Any, key: str, problems: Problems) -> Any:
    """A table with names of the user's own: of structs (None for one that could not be made) or of plain values."""
    if not isinstance(value, dict):
        return _wrong(problems, key, f"expected a table, got {_shown(value)}")
    made = {name: _convert(info.value_type, entry, join(key, name), problems) for name, entry in value.items()}
    if isinstance(info.value_type, inspect.StructType):
        return {name: None if entry is _WRONG else entry for name, entry in made.items()}
    return _WRONG if any(entry is _WRONG for entry in made.values()) else made


def _wrong(problems: Problems, key: str, problem: str) -> Any:
    problems.add(key, problem)
    return _WRONG


def _shown(value: Any) -> str:
    """A value in a message: its kind, and itself when it is short and plain."""
    match value:
        case bool():
            return "true" if value else "false"
        case int() | float():
            return str(value)
        case str():
            return repr(value) if len(value) <= 64 else "a long text"
        case dict():
            return "a table"
        case list():
            return "a list"
        case _:
            return type(value).__name__
