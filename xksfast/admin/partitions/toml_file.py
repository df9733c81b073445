# SPDX-License-Identifier: Apache-2.0
"""Adding a partition to xksfast.toml: comments, order and everything else stay, and what results is checked before it is kept.

What lives here: the text of the file. What must not: talking to tokens. A newcomer's trap: the file is replaced by rename, in its
own directory, so a reader sees the old one or the new one and never half of it.
"""

from __future__ import annotations

import difflib
import os
import re
import tempfile
from pathlib import Path
from typing import Any

import msgspec
import tomlkit

from xksfast.config import Config, load_config
from xksfast.errors import ConfigError, OperatorError


class NewModule(msgspec.Struct, frozen=True):
    """A [modules.<name>] table to be."""

    name: str
    path: str
    parameters: str = ""
    environment: dict[str, str] = {}


class NewPartition(msgspec.Struct, frozen=True):
    """A [partitions.<name>] table to be. fields: in the order in which they shall stand. module: None when it is there already."""

    name: str
    fields: dict[str, str | int]
    module: NewModule | None = None
    group: str | None = None


def module_name(path: str, taken: set[str]) -> str:
    """A name for a module after its file, that none has yet."""
    stem = re.sub(r"[^A-Za-z0-9_-]+", "_", Path(path).name.split(".so")[0].removeprefix("lib")).strip("_-") or "module"
    names = [stem, *(f"{stem}_{number}" for number in range(2, len(taken) + 3))]
    return next(name for name in names if name not in taken)


def shown_path(path: str, directory: Path) -> str:
    """`path` as it shall stand in a file in `directory`: relative when it is below it."""
    absolute = Path(path).absolute()
    return str(absolute.relative_to(directory)) if absolute.is_relative_to(directory) else str(absolute)


class EditedFile:
    """xksfast.toml with a partition more, not written yet. RefusedFile when what results is no good configuration."""

    def __init__(self, path: Path, added: NewPartition) -> None:
        self._path = path
        self._before = path.read_text(encoding="utf-8")
        self._after = _with_partition(self._before, added)
        self.config = self._checked()

    def diff(self) -> str:
        """What would change, as a unified diff."""
        before, after = self._before.splitlines(keepends=True), self._after.splitlines(keepends=True)
        return "".join(difflib.unified_diff(before, after, str(self._path), str(self._path)))

    def write(self) -> None:
        """Replace the file, with the mode it had. OperatorError when it changed meanwhile."""
        if self._path.read_text(encoding="utf-8") != self._before:
            raise OperatorError(f"{self._path} was changed meanwhile: nothing was written, run this again")
        target = self._path.resolve()
        temporary = self._temporary()
        try:
            temporary.chmod(target.stat().st_mode & 0o7777)
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)

    def _checked(self) -> Config:
        temporary = self._temporary()
        try:
            return load_config(temporary)
        except OperatorError as error:
            raise OperatorError(str(error).replace(str(temporary), str(self._path))) from None
        finally:
            temporary.unlink()

    def _temporary(self) -> Path:
        """The new text, synced, in the directory of the file: its relative paths mean the same there."""
        descriptor, name = tempfile.mkstemp(prefix=f".{self._path.name}.", dir=self._path.resolve().parent)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(self._after)
            file.flush()
            os.fsync(file.fileno())
        return Path(name)


def _with_partition(text: str, added: NewPartition) -> str:
    document = tomlkit.parse(text)
    if added.module is not None:
        table: dict[str, Any] = {"path": added.module.path}
        if added.module.environment:
            table["environment"] = tomlkit.inline_table()
            table["environment"].update(added.module.environment)
        if added.module.parameters:
            table["parameters"] = added.module.parameters
        _add_table(document, "modules", added.module.name, table)
    _add_table(document, "partitions", added.name, dict(added.fields))
    if added.group is not None:
        groups: Any = document.get("partition_groups", {})
        if added.group in groups:
            groups[added.group]["partitions"].append(added.name)
        else:
            _add_table(document, "partition_groups", added.group, {"partitions": [added.name]})
    return tomlkit.dumps(document)


def _add_table(document: tomlkit.TOMLDocument, parent: str, name: str, values: dict[str, Any]) -> None:
    table = tomlkit.table()
    table.update(values)
    if parent not in document:
        document[parent] = tomlkit.table(is_super_table=True)
    tables: Any = document[parent]
    if name in tables:
        raise ConfigError(f"{parent}.{name}", "is there already: choose another name")
    tables[name] = table
