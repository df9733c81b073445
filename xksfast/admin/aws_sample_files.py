# SPDX-License-Identifier: Apache-2.0
"""Writes what was read from AWS's sample proxy as our own files: stores.toml, the lines for the configuration, secrets of mode 0600.

A newcomer's trap: the secrets' files are written before the file that names them, and nothing that exists is ever overwritten.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from xksfast.admin.aws_sample_plan import SamplePlan
from xksfast.errors import OperatorError
from xksfast.secret_file import write_secret_file
from xksfast.toml_reader import join

AAD_SCHEME = "aws-sample"  # u16be len(AAD) | SHA-256(AAD) | u8 len(metadata) | metadata
SECRETS = "secrets"
PARTITION, GROUP, MODULE = "p0", "main", "hsm"


@dataclass(frozen=True)
class Written:
    """The files that were made."""

    stores_file: Path
    config_file: Path
    secret_files: tuple[Path, ...]


def secret_file_name(store_name: str) -> str:
    """Of a key store's secret, relative to stores.toml."""
    return f"{SECRETS}/{store_name}.secret"


def render_stores(plan: SamplePlan, partition_group: str = GROUP) -> str:
    """The text of stores.toml. Secrets stand in it as file names (secret_file_name) only."""
    lines = [f"# From {_comment(plan.source)}."]
    if plan.ciphertext_metadata:
        text = plan.ciphertext_metadata.hex()
        lines.append(f"# Ciphertexts made there carry the metadata 0x{text}; it comes back with each Decrypt.")
    for store in plan.stores:
        table = join("key_stores", store.name)
        lines += [
            "",
            f"[{table}]",
            f"uri_path_prefix = {_quoted(store.uri_path_prefix)}",
            f"region = {_quoted(store.region)}",
            f"partition_group = {_quoted(partition_group)}",
            f"aad_scheme = {_quoted(AAD_SCHEME)}",
            f"[[{table}.credentials]]",
            f"access_key_id = {_quoted(store.access_key_id)}",
            f"secret_access_key_file = {_quoted(secret_file_name(store.name))}",
        ]
        for key in store.keys:
            lines += [f"[{join(join(table, 'keys'), key.external_key_id)}]", f"label = {_quoted(key.label)}"]
    return "\n".join(lines) + "\n"


def render_config(plan: SamplePlan, *, token_label: str = "", pin_file: str = f"{SECRETS}/{PARTITION}.pin") -> str:
    """The lines of xksfast.toml that the sample's settings lead to. token_label: "" leaves it to be filled in."""
    server, pkcs11 = plan.server, plan.pkcs11
    lines = [f"# From {_comment(plan.source)}.", "[proxy]", f"listen = [{_quoted(server.listen)}]"]
    if server.certificate:
        lines += ["[proxy.tls]", f"certificate = {_quoted(server.certificate)}", f"private_key = {_quoted(server.private_key)}"]
        if server.client_ca:
            lines += [f"client_ca = {_quoted(server.client_ca)}", f"client_common_name = {_quoted(server.client_name)}"]
    else:
        lines.append("# allow_plaintext = true       # only where TLS ends before this proxy")
    label = (
        f"token_label = {_quoted(token_label)}"
        if token_label
        else '# token_label = ""            # of the token in the first slot'
    )
    lines += [
        "[state]",
        'url = "file:stores.toml"',
        f"[modules.{MODULE}]",
        f"path = {_quoted(pkcs11.module_path)}",
        f"[partitions.{PARTITION}]",
        f"module = {_quoted(MODULE)}",
        label,
        f"pin_file = {_quoted(pin_file)}",
        f"profile = {_quoted(pkcs11.profile)}",
        f"sessions = {pkcs11.sessions}",
        f"[partition_groups.{GROUP}]",
        f"partitions = [{_quoted(PARTITION)}]",
    ]
    return "\n".join(lines) + "\n"


def write_files(plan: SamplePlan, directory: Path, *, token_label: str = "") -> Written:
    """Write stores.toml, xksfast.toml and the secrets they name (0600) into a directory, which is made when absent.

    OperatorError when one of them exists: nothing is overwritten, and then nothing is written at all.
    """
    secrets = directory / SECRETS
    contents = {directory / secret_file_name(store.name): store.secret_access_key for store in plan.stores}
    contents[secrets / f"{PARTITION}.pin"] = plan.pkcs11.pin
    stores_file, config_file = directory / "stores.toml", directory / "xksfast.toml"
    there = [path for path in (*contents, stores_file, config_file) if os.path.lexists(path)]
    if there:
        raise OperatorError(f"{there[0]} exists already: choose an empty directory, or move the file away")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        secrets.mkdir(mode=0o700, exist_ok=True)
        for path, secret in contents.items():
            write_secret_file(path, secret.reveal().encode() + b"\n")
        _write(stores_file, render_stores(plan))
        _write(config_file, render_config(plan, token_label=token_label))
    except OSError as error:
        raise OperatorError(f"{error.filename or directory}: {error.strerror or error}") from None
    return Written(stores_file, config_file, tuple(contents))


def _write(path: Path, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    with os.fdopen(fd, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _quoted(text: str) -> str:
    """A TOML basic string."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _comment(text: str) -> str:
    """A path in a comment, on one line."""
    return "".join(char if char.isprintable() else "?" for char in text)
