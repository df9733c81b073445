# SPDX-License-Identifier: Apache-2.0
"""Directories that `xksfast serve` can be started in: configuration, state, tokens, certificates, written and rewritten by tests."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.requests import Target
from tests.client import Client
from tests.servers import Process, free_port, wait_until
from xksfast.admin.dev_certificates import Authority, CertificateFiles
from xksfast.rehearsal.control import FaultControl, shim_path
from xksfast.rehearsal.latency import OPERATIONS, fixed_ms, no_latency

SOFTHSM = "/usr/lib/softhsm/libsofthsm2.so"
ACCESS_KEY_IDS = ("AAAAAAAAAAAAAAAAAAAA", "BBBBBBBBBBBBBBBBBBBB", "CCCCCCCCCCCCCCCCCCCC")
REGION = "eu-central-1"


class Setup:
    """A `serve` directory. Change `config` and `stores` (plain dictionaries), then write()."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        self.port, self.tls_port, self.health_port = free_port(), free_port(), free_port()
        self.secrets = {access_key_id: secrets.token_urlsafe(40).replace("-", "+") for access_key_id in ACCESS_KEY_IDS}
        for access_key_id, secret in self.secrets.items():
            self.write_secret(access_key_id, secret)
        self.write_secret("master.key", secrets.token_hex(32))
        self.config: dict[str, Any] = {
            "proxy": {
                "listen": [f"127.0.0.1:{self.port}"],
                "health": {"listen": f"127.0.0.1:{self.health_port}", "probe_interval_s": 1},
            },
            "state": {"url": "file:stores.toml", "master_key_file": "master.key"},
        }
        self.stores: dict[str, Any] = {"key_stores": {"one": self.local_store("/one")}}

    def local_store(self, prefix: str, *access_key_ids: str) -> dict[str, Any]:
        """A store with one `local` key, "k1"."""
        return {
            "uri_path_prefix": prefix,
            "region": REGION,
            "key_source": "local",
            "credentials": [
                {"access_key_id": name, "secret_access_key_file": name} for name in access_key_ids or ACCESS_KEY_IDS[:1]
            ],
            "keys": {"k1": {"label": "k1", "create": True}},
        }

    def use_softhsm(self, *, module: str = SOFTHSM, environment: dict[str, str] | None = None, **partition: Any) -> None:
        """A SoftHSM token "t0" with PIN 1234 as the only partition; the store "one" uses it."""
        tokens, conf = self.directory / "tokens", self.directory / "softhsm2.conf"
        tokens.mkdir(exist_ok=True)
        conf.write_text(f"directories.tokendir = {tokens}\nlog.level = ERROR\n")
        self.softhsm_environment = {"SOFTHSM2_CONF": str(conf)}
        if not any(tokens.iterdir()):
            self.softhsm_util("--init-token", "--free", "--label", "t0", "--pin", "1234", "--so-pin", "12345678")
        self.write_secret("pin", "1234")
        self.config["modules"] = {"hsm": {"path": module, "environment": {**self.softhsm_environment, **(environment or {})}}}
        self.config["partitions"] = {
            "p0": {"module": "hsm", "token_label": "t0", "pin_file": "pin", "profile": "softhsm", "sessions": 4, **partition}
        }
        self.config["partition_groups"] = {"main": {"partitions": ["p0"]}}
        store = self.stores["key_stores"]["one"]
        store.pop("key_source", None)
        store["partition_group"] = "main"

    def softhsm_util(self, *arguments: str) -> None:
        subprocess.run(
            ["softhsm2-util", *arguments], env={**os.environ, **self.softhsm_environment}, check=True, capture_output=True
        )

    def use_tls(self, *, client_common_name: str = "") -> Authority:
        """TLS on `tls_port` beside plain HTTP; mutual TLS when a client name is given."""
        authority = Authority(self.directory)
        authority.issue_server(CertificateFiles(self.directory / "server.pem", self.directory / "server.key"))
        proxy = self.config["proxy"]
        proxy["listen"] = [f"127.0.0.1:{self.tls_port}"]
        proxy["plaintext_listen"] = [f"127.0.0.1:{self.port}"]
        proxy["tls"] = {"certificate": "server.pem", "private_key": "server.key"}
        if client_common_name:
            proxy["tls"] |= {"client_ca": "dev-ca.pem", "client_common_name": client_common_name}
        return authority

    def write_secret(self, name: str, text: str) -> None:
        path = self.directory / name
        path.write_text(text + "\n")
        path.chmod(0o600)

    def write(self) -> None:
        (self.directory / "xksfast.toml").write_text(toml(self.config))
        (self.directory / "stores.toml").write_text(toml(self.stores))

    def start(self, environment: dict[str, str] | None = None, *, ready: bool = True, wrapper: tuple[str, ...] = ()) -> Process:
        """Write and start; with `ready` wait until requests are served."""
        self.write()
        process = Process(["serve", "--config", str(self.directory / "xksfast.toml")], self.directory, environment, wrapper)
        if ready:

            def look() -> bool:
                assert process.popen.poll() is None, process.log_file.read_text()[-4000:]
                workers = self.config["proxy"].get("workers", 1)
                return len({line["worker"] for line in process.events("worker_ready")}) == workers

            wait_until(look, "every worker ready", 20)
        return process

    @contextmanager
    def running(self, environment: dict[str, str] | None = None) -> Iterator[Process]:
        """start(), and the process ended at the end whatever happens."""
        process = self.start(environment)
        try:
            yield process
        finally:
            process.stop()

    def target(self, store: str = "one", credential: int = 0) -> Target:
        access_key_id = ACCESS_KEY_IDS[credential]
        prefix = self.stores["key_stores"][store]["uri_path_prefix"]
        return Target(f"http://127.0.0.1:{self.port}", prefix, REGION, access_key_id, self.secrets[access_key_id])

    def client(self, store: str = "one", credential: int = 0) -> Client:
        ready = {"keys": {"default": "k1"}}
        return Client(ready, self.target(store, credential))


def toml(document: dict[str, Any]) -> str:
    """A TOML document of tables, lists and plain values."""
    lines: list[str] = []
    _write_table(document, (), lines)
    return "\n".join(lines) + "\n"


def _write_table(table: dict[str, Any], path: tuple[str, ...], lines: list[str]) -> None:
    lines += [f"{_key(name)} = {_value(value)}" for name, value in table.items() if not isinstance(value, dict)]
    for name, value in table.items():
        if isinstance(value, dict):
            lines.append("[" + ".".join(_key(part) for part in (*path, name)) + "]")
            _write_table(value, (*path, name), lines)


def _key(name: str) -> str:
    return json.dumps(name)


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{_key(name)} = {_value(item)}" for name, item in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_value(item) for item in value) + "]"
    return json.dumps(value)


class Faults:
    """libxksfault.so before SoftHSM, its tokens shown as they are; what the tests of one partition set, all at once."""

    def __init__(self, directory: Path) -> None:
        self.module = shim_path()
        self.control = FaultControl.create(directory / "faults")
        self.environment = self.control.environment(SOFTHSM)

    def set(self, *, delay_ms: int = 0, rv: int = 0, times: int = 0, login_rv: int = 0) -> None:
        """delay_ms and rv are of encryptions and decryptions; times: of rv, 0: until it is set again."""
        slot = self.control.slot(0).latency(fixed_ms(delay_ms) if delay_ms else no_latency())
        slot.error(rv, classes=OPERATIONS, times=times).login_error(login_rv)

    @property
    def logins(self) -> int:
        """Calls of C_Login so far."""
        return self.control.slot(0).counters().calls["login"]
