# SPDX-License-Identifier: Apache-2.0
"""stores.toml as a declaration: what stands in the file and nothing else, with the secrets that it names.

load_store_file gives a whole with all defaults filled in, to be served. Here what the file does not say must stay unsaid, so that
applying it leaves that alone. The rules are checked by whoever applies it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from xksfast.state.store_file import StoreFile
from xksfast.toml_reader import Problems, join, read_toml, to_struct


def read_declared(file: Path) -> dict[str, Any]:
    """key store -> its members as in the file, each credential with its secret_access_key. RefusedFile lists every fault by its key."""
    table = read_toml(file)
    problems = Problems(str(file))
    to_struct(StoreFile, table, "", problems)  # names and types
    problems.raise_if_any()
    stores: dict[str, Any] = table.get("key_stores", {})
    for name, store in stores.items():
        for number, credential in enumerate(store.get("credentials", [])):
            path = file.resolve().parent / credential.pop("secret_access_key_file")
            key = f"{join('key_stores', name)}.credentials[{number}].secret_access_key_file"
            credential["secret_access_key"] = _secret(path, key, problems)
    problems.raise_if_any()
    return stores


def _secret(path: Path, key: str, problems: Problems) -> str:
    try:
        mode = path.stat().st_mode
        secret = path.read_bytes().strip().decode("ascii")
    except OSError as error:
        problems.add(key, f"{path} cannot be read: {error.strerror}")
    except UnicodeDecodeError:
        problems.add(key, f"{path} holds no secret access key: that has 43 to 64 characters of A-Z a-z 0-9 / + =")
    else:
        if mode & 0o077:
            problems.add(key, f"{path} can be read by others: chmod 600 {path}")
        return secret
    return ""
