# SPDX-License-Identifier: Apache-2.0
"""The configuration file of `xksfast serve`: its tables as frozen structs with defaults, and the rules between them.

What must not live here: key stores and keys; those are in the state (`state/`). All paths of a loaded Config are absolute: in
the file they are relative to the file's directory. A newcomer's trap: `listen` speaks TLS exactly when [proxy.tls] is there;
`plaintext_listen` never does.
"""

from __future__ import annotations

import ipaddress
import os
import re
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import msgspec
from msgspec import Meta

from xksfast.toml_reader import Problems, join, nearest, read_toml, to_struct

Profile = Literal["softhsm", "luna", "luna_fips", "cloudhsm", "nshield", "utimaco", "securosys", "nss", "generic"]

AES_KEY_WRAP = 0x2109  # CKM_AES_KEY_WRAP, RFC 3394
MAX_NAME_CHARS = 64
MAX_LABEL_BYTES = 200
MASTER_KEY_OPTIONS = (
    "master_key_file", "master_key_credential", "master_key_passphrase_file", "master_key_passphrase_env", "master_key_partition",
)  # fmt: skip
_MECHANISM = re.compile(r"(?:0x[0-9A-Fa-f]{1,8}|[1-9][0-9]{0,9})?")
_CREDENTIAL = re.compile(r"(?!\.{1,2}$)[A-Za-z0-9_.@:-]{1,255}")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_NAME = re.compile(rf"[A-Za-z0-9][A-Za-z0-9_.-]{{0,{MAX_NAME_CHARS - 1}}}")


class Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Base of all tables."""


class ProxyTls(Table, frozen=True):
    """[proxy.tls]. PEM files; client_ca and client_common_name together switch mTLS on."""

    certificate: str
    private_key: str
    client_ca: str = ""
    client_common_name: str = ""


class ProxyHealth(Table, frozen=True):
    """[proxy.health]. listen: GET /ping, /livez, /readyz, /status, /metrics over plain HTTP; "" is off.

    probe_interval_s: how often each partition is tried with a real encrypt and decrypt.
    """

    listen: str = "127.0.0.1:8081"
    probe_interval_s: Annotated[int, Meta(ge=1, le=30)] = 10


class Proxy(Table, frozen=True):
    """[proxy]. listen: with TLS when `tls` is set; plaintext_listen: never with TLS, for a listener beside the TLS one.

    workers: processes, 0 = one per core. deadline_ms: from a request's first byte to its answer; KMS gives up at 250. max_queued: jobs
    waiting per worker. max_connections: over all workers; beyond it one without an accepted signature makes room, or new ones wait.
    header_timeout_ms, request_timeout_ms: from a request's first byte; the former is also the idle time-out before a signature was
    accepted. drain_delay_s: from SIGTERM, when /ping turns 503, to the end of accepting. log_requests: a log line for successes too.
    """

    listen: tuple[str, ...] = ("127.0.0.1:8443",)
    plaintext_listen: tuple[str, ...] = ()
    allow_plaintext: bool = False
    workers: Annotated[int, Meta(ge=0, le=256)] = 1
    deadline_ms: Annotated[int, Meta(ge=10, le=240)] = 200
    max_connections: Annotated[int, Meta(ge=1, le=1_000_000)] = 1024
    max_queued: Annotated[int, Meta(ge=1, le=1_000_000)] = 4096
    header_timeout_ms: Annotated[int, Meta(ge=100, le=600_000)] = 5000
    request_timeout_ms: Annotated[int, Meta(ge=100, le=600_000)] = 10_000
    handshake_timeout_ms: Annotated[int, Meta(ge=100, le=600_000)] = 3000
    idle_timeout_s: Annotated[int, Meta(ge=1, le=86_400)] = 400
    drain_delay_s: Annotated[int, Meta(ge=0, le=3600)] = 0
    drain_timeout_s: Annotated[int, Meta(ge=1, le=3600)] = 10
    log_requests: bool = False
    tls: ProxyTls | None = None
    health: ProxyHealth = ProxyHealth()

    @property
    def worker_count(self) -> int:
        """`workers`, with 0 resolved to the cores this process may use."""
        return self.workers or len(os.sched_getaffinity(0))


class Admin(Table, frozen=True):
    """[admin]: the REST listener, and this node's name among others that share a database.

    certificate, private_key: PEM files; "" takes those of [proxy.tls]; without either the listener speaks plain HTTP, on loopback only.
    token_file: written at the first start, with the token of an operator "root" of role admin, when there is no operator.
    node: "" takes the host's name. url: by which other nodes reach this listener, for blocks that cannot wait for the database; "" when
    there is one node only. ca_file: what the other nodes' certificates are checked against.
    """

    listen: str = "127.0.0.1:8444"
    certificate: str = ""
    private_key: str = ""
    token_file: str = "admin.token"
    node: str = ""
    url: str = ""
    ca_file: str = ""


class State(Table, frozen=True):
    """[state]. url: where key stores and keys stand: "sqlite:///xksfast.db", "postgresql://user@host/database", or a file that
    describes them: "file:///abs/stores.toml", "file:stores.toml". Relative paths start where this file is.

    directory: for what this node must remember (blocks that no database knows yet, the last state, what keys are proven against).
    apply: a stores.toml that is applied at each start, as `xksfast apply` does without --prune; "": none.
    The master key, under which the data key is wrapped that seals every secret; at most one of
      master_key_file: a 0600 file of 32 bytes or 64 hexadecimal digits. `local` keys as files are sealed under it directly.
      master_key_credential: name of a systemd credential (LoadCredential=, LoadCredentialEncrypted=) that holds the same.
      master_key_passphrase_file, master_key_passphrase_env: a passphrase, stretched by argon2id.
      master_key_partition: it never leaves this partition: the AES-256 key whose CKA_LABEL is master_key_label.
    """

    url: str = "sqlite:///xksfast.db"
    directory: str = "state"
    apply: str = ""
    master_key_file: str = ""
    master_key_credential: str = ""
    master_key_passphrase_file: str = ""
    master_key_passphrase_env: str = ""
    master_key_partition: str = ""
    master_key_label: str = "xksfast-master"

    @property
    def is_file(self) -> bool:
        """Whether the state is a file, which nobody administers."""
        return self.url.startswith("file:")

    @property
    def master_key_options(self) -> dict[str, str]:
        """The options that say where the master key is, by name; two or more are refused by load_config."""
        return {name: value for name in MASTER_KEY_OPTIONS if (value := getattr(self, name))}

    @property
    def store_file(self) -> str:
        """The path in a file: url; "" for a database."""
        return self.url.removeprefix("file://") if self.is_file else ""


class Module(Table, frozen=True):
    """[modules.<name>]. environment: set before the library is loaded. parameters: LibraryParameters (NSS softoken)."""

    path: str
    environment: dict[str, str] = {}
    parameters: str = ""


class Partition(Table, frozen=True):
    """[partitions.<name>]: one token on one HSM. Exactly one of token_label, serial, slot; at most one of pin_file, pin_env.

    sessions: per worker process. site: where it stands; those at the proxy's own site ([routing] site) are preferred.
    wrap_mechanism: number of the mechanism by which keys leave and reach it ("0x2109", RFC 3394, when empty).
    functionality_modules: whether the HSM is configured for them, which no PKCS#11 call tells (Luna).
    """

    module: str
    token_label: str | None = None
    serial: str | None = None
    slot: Annotated[int, Meta(ge=0, le=2**63 - 1)] | None = None
    pin_file: str | None = None
    pin_env: str | None = None
    profile: Profile = "generic"
    sessions: Annotated[int, Meta(ge=1, le=256)] = 16
    site: str = ""
    wrap_mechanism: str = ""
    functionality_modules: bool | None = None

    @property
    def wrap_mechanism_number(self) -> int:
        """`wrap_mechanism`, or RFC 3394's."""
        return int(self.wrap_mechanism, 0) if self.wrap_mechanism else AES_KEY_WRAP


class PartitionGroup(Table, frozen=True):
    """[partition_groups.<name>]: two or more partitions are HA at once.

    health_check_key: CKA_LABEL on each partition; "" = a session key made in the token. verify: where the check decrypt of a CDIV
    runs; "other" = on another partition than the one that encrypted, so that each data key proves that both hold the same key.
    replication: how keys come to the other partitions: "wrap" = by us, under the key with the label transport_key, which each
    partition has; "clone" = by the HSM's own tools, and we only verify.
    """

    partitions: tuple[str, ...]
    health_check_key: str = ""
    verify: Literal["same", "other"] = "same"
    replication: Literal["wrap", "clone"] = "wrap"
    transport_key: str = "xksfast-transport"


class Routing(Table, frozen=True):
    """[routing]. site: where this proxy stands; partitions of the same site come first, others when those have no room.

    retry_budget, hedge_budget: second calls per request, on average, after a partition's fault and beside a call that is slow.
    """

    site: str = ""
    retry_budget: Annotated[float, Meta(ge=0, le=1)] = 0.2
    hedge_budget: Annotated[float, Meta(ge=0, le=1)] = 0.05


class Config(Table, frozen=True):
    """The whole file."""

    state: State = State()
    proxy: Proxy = Proxy()
    admin: Admin | None = None
    routing: Routing = Routing()
    modules: dict[str, Module] = {}
    partitions: dict[str, Partition] = {}
    partition_groups: dict[str, PartitionGroup] = {}


class Address(NamedTuple):
    """host: IP address or "localhost", without brackets. port 0: any free one."""

    host: str
    port: int

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach it."""
        return self.host == "localhost" or ipaddress.ip_address(self.host).is_loopback

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(text: str) -> Address:
    """ "127.0.0.1:8443", "[::1]:8443", "localhost:8443" -> Address; ValueError says what is wrong."""
    host, colon, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if not colon or not host or (":" in host and not bracketed):
        raise ValueError(f"expected host:port such as 127.0.0.1:8443 or [::1]:8443, got {text!r}")
    if not (port.isascii() and port.isdigit()) or int(port) > 65535:
        raise ValueError(f"port {port!r} is not a number from 0 to 65535")
    host = host[1:-1] if bracketed else host
    if host != "localhost":
        try:
            address = ipaddress.ip_address(host)
        except ValueError:
            raise ValueError(f"{host!r} is not an IP address of this machine or localhost") from None
        if bracketed != (address.version == 6):
            raise ValueError(f"brackets are for IPv6 addresses: {text!r}")
    return Address(host, int(port))


def load_config(path: str | os.PathLike[str]) -> Config:
    """Read, check and resolve a configuration file. RefusedFile lists all that is wrong with it."""
    problems = Problems(os.fspath(path))
    config = to_struct(Config, read_toml(path), "", problems)
    assert config is not None  # every table of a Config has a default
    _check_proxy(config.proxy, problems)
    if config.admin is not None:
        _check_admin(config.admin, config.proxy, problems)
    _check_state(config.state, problems)
    _check_master_key(config, problems)
    _check_names(config, problems)
    _check_partitions(config, problems)
    _check_groups(config, problems)
    problems.raise_if_any()
    return _resolved(config, Path(path).resolve().parent)


def missing_files(config: Config, source: str) -> Problems:
    """What stands between a valid configuration and a start: files it names that are not there."""
    problems = Problems(source)
    named: list[tuple[str, str | None]] = [
        (f"state.{option}", getattr(config.state, option)) for option in ("master_key_file", "master_key_passphrase_file")
    ]
    named += [("state.url", config.state.store_file), ("state.apply", config.state.apply)]
    if config.proxy.tls is not None:
        for field in ("certificate", "private_key", "client_ca"):
            named.append((f"proxy.tls.{field}", getattr(config.proxy.tls, field)))
    for name, module in config.modules.items():
        named.append((join("modules", name) + ".path", module.path if "/" in module.path else None))
    for name, partition in config.partitions.items():
        named.append((join("partitions", name) + ".pin_file", partition.pin_file))
    for key, path in named:
        if path and not os.path.isfile(path):
            problems.add(key, f"there is no file {path}")
    return problems


# --- rules


def _check_proxy(proxy: Proxy, problems: Problems) -> None:
    if not proxy.listen and not proxy.plaintext_listen:
        problems.add("proxy.listen", "lists no address: give at least one, such as 127.0.0.1:8443")
    plain = [("proxy.plaintext_listen", _check_addresses("proxy.plaintext_listen", proxy.plaintext_listen, problems))]
    listen = _check_addresses("proxy.listen", proxy.listen, problems)
    if proxy.tls is None and not any(problem.key.startswith("proxy.tls") for problem in problems.found):
        plain.append(("proxy.listen", listen))
    for key, addresses in plain:
        for address in addresses:
            if not proxy.allow_plaintext and not address.is_loopback:
                problems.add(
                    key,
                    f"{address} would speak plain HTTP to other machines: add [proxy.tls], "
                    "or set proxy.allow_plaintext = true when TLS ends before this proxy",
                )
    if proxy.tls is not None:
        if bool(proxy.tls.client_ca) != bool(proxy.tls.client_common_name):
            absent = "client_common_name" if proxy.tls.client_ca else "client_ca"
            problems.add(f"proxy.tls.{absent}", "mTLS needs both client_ca and client_common_name")
        for field in ("certificate", "private_key"):
            if not getattr(proxy.tls, field):
                problems.add(f"proxy.tls.{field}", "is empty: name a PEM file")
    if proxy.health.listen:
        _check_addresses("proxy.health.listen", (proxy.health.listen,), problems)


def _check_admin(admin: Admin, proxy: Proxy, problems: Problems) -> None:
    if bool(admin.certificate) != bool(admin.private_key):
        absent = "private_key" if admin.certificate else "certificate"
        problems.add(f"admin.{absent}", "certificate and private_key go together")
    if admin.url and not admin.url.startswith("https://"):
        problems.add("admin.url", "must be https://host:port: other nodes send blocks there")
    for address in _check_addresses("admin.listen", (admin.listen,), problems):
        if not address.is_loopback and not admin.certificate and proxy.tls is None:
            problems.add(
                "admin.listen",
                f"{address} would speak plain HTTP to other machines: set admin.certificate and admin.private_key, or add [proxy.tls]",
            )


def _check_addresses(key: str, texts: tuple[str, ...], problems: Problems) -> list[Address]:
    found: list[Address] = []
    for text in texts:
        try:
            address = parse_address(text)
        except ValueError as error:
            problems.add(key, str(error))
            continue
        if address.port and address in found:
            problems.add(key, f"{address} is listed twice")
        found.append(address)
    return found


def _check_state(state: State, problems: Problems) -> None:
    if any(problem.key.startswith("state") for problem in problems.found):
        return
    scheme = state.url.partition(":")[0]
    if scheme not in ("sqlite", "postgresql", "file"):
        problems.add(
            "state.url",
            f"{scheme!r} is no state that can be read: use sqlite:///xksfast.db, postgresql://user@host/database or "
            "file:///absolute/path/stores.toml",
        )
    elif scheme == "sqlite" and len(state.url) <= len("sqlite:///"):
        problems.add("state.url", "names no file: use sqlite:///xksfast.db, or sqlite:////var/lib/xksfast/xksfast.db")
    elif state.url.startswith("file://") and not state.url.startswith("file:///"):
        problems.add("state.url", "a file: URL has three slashes and an absolute path: file:///etc/xksfast/stores.toml")
    elif state.url.rstrip("/") == "file:":
        problems.add("state.url", "names no file: use file:///absolute/path/stores.toml")


def _check_master_key(config: Config, problems: Problems) -> None:
    state, given = config.state, config.state.master_key_options
    if len(given) > 1:
        both = "both " if len(given) == 2 else ""
        problems.add("state", f"{' and '.join(given)} are {both}set: keep the one that holds the master key")
    name = state.master_key_credential
    if name and not _CREDENTIAL.fullmatch(name):
        problems.add(
            "state.master_key_credential",
            f"{name!r} is no name of a systemd credential: it is a name, as in LoadCredential=, not a path",
        )
    if state.master_key_passphrase_env and not _VARIABLE.fullmatch(state.master_key_passphrase_env):
        problems.add(  # not shown: it may be the passphrase
            "state.master_key_passphrase_env", "is no name of an environment variable: name the one that holds the passphrase"
        )
    if state.master_key_partition and state.master_key_partition not in config.partitions:
        problems.add(
            "state.master_key_partition",
            f"there is no partition {state.master_key_partition!r}{nearest(state.master_key_partition, config.partitions)}",
        )
    if state.master_key_label != State().master_key_label and not state.master_key_partition:
        problems.add("state.master_key_label", "names a key of master_key_partition, which is not set")
    if not 1 <= len(state.master_key_label.encode()) <= MAX_LABEL_BYTES:
        problems.add("state.master_key_label", f"must have 1 to {MAX_LABEL_BYTES} bytes")


def _check_names(config: Config, problems: Problems) -> None:
    for table in ("modules", "partitions", "partition_groups"):
        for name in getattr(config, table):
            if not _NAME.fullmatch(name):
                problems.add(
                    join(table, name), f"a name is 1 to {MAX_NAME_CHARS} of A-Z a-z 0-9 _ . -, the first a letter or digit"
                )


def _check_partitions(config: Config, problems: Problems) -> None:
    for name, module in config.modules.items():
        if module is not None and not module.path:
            problems.add(join("modules", name) + ".path", "is empty: name the PKCS#11 library")
    tokens: dict[tuple[str, str, object], str] = {}
    sites = {partition.site for partition in config.partitions.values() if partition is not None}
    if config.routing.site and config.partitions and config.routing.site not in sites:
        problems.add(
            "routing.site", f"no partition has the site {config.routing.site!r}{nearest(config.routing.site, sites - {''})}"
        )
    for name, partition in config.partitions.items():
        if partition is None:
            continue
        key = join("partitions", name)
        if partition.module not in config.modules:
            problems.add(f"{key}.module", f"there is no module {partition.module!r}{nearest(partition.module, config.modules)}")
        given = {
            field: value
            for field in ("token_label", "serial", "slot")
            if (value := getattr(partition, field)) is not None and value != ""
        }
        if len(given) != 1:
            got = " and ".join(given) or "none"
            problems.add(key, f"exactly one of token_label, serial and slot says which token, got {got}")
        if not _MECHANISM.fullmatch(partition.wrap_mechanism):
            problems.add(
                f"{key}.wrap_mechanism",
                f'{partition.wrap_mechanism!r} is no mechanism number: write it like "0x2109" (RFC 3394) or "0x210B" (RFC 5649)',
            )
        if partition.pin_file and partition.pin_env:
            problems.add(key, "pin_file and pin_env are both set: keep one")
        for field, value in given.items():
            former = tokens.setdefault((partition.module, field, value), name)
            if former != name:
                problems.add(f"{key}.{field}", f"partition {former!r} names the same token: keep one, with more sessions")


def _check_groups(config: Config, problems: Problems) -> None:
    for name, group in config.partition_groups.items():
        if group is None:
            continue
        key = join("partition_groups", name) + ".partitions"
        if not group.partitions:
            problems.add(key, "lists no partition: give at least one")
        if not 1 <= len(group.transport_key.encode()) <= MAX_LABEL_BYTES:
            problems.add(join("partition_groups", name) + ".transport_key", f"must have 1 to {MAX_LABEL_BYTES} bytes")
        for partition in dict.fromkeys(group.partitions):
            if partition not in config.partitions:
                problems.add(key, f"there is no partition {partition!r}{nearest(partition, config.partitions)}")
        for partition in sorted({name for name in group.partitions if group.partitions.count(name) > 1}):
            problems.add(key, f"partition {partition!r} is listed twice")


# --- paths


def _resolved(config: Config, directory: Path) -> Config:
    """The same configuration with absolute paths."""

    def absolute(path: str) -> str:
        return os.path.normpath(directory / path) if path else path

    replace = msgspec.structs.replace
    tls = config.proxy.tls
    if tls is not None:
        tls = replace(
            tls,
            certificate=absolute(tls.certificate),
            private_key=absolute(tls.private_key),
            client_ca=absolute(tls.client_ca),
        )
    url = config.state.url
    if config.state.is_file:
        url = "file://" + absolute(url.removeprefix("file://").removeprefix("file:"))
    elif url.startswith("sqlite:///"):
        url = "sqlite:///" + absolute(url.removeprefix("sqlite:///"))
    state = replace(
        config.state,
        url=url,
        master_key_file=absolute(config.state.master_key_file),
        directory=absolute(config.state.directory),
        apply=absolute(config.state.apply),
        master_key_passphrase_file=absolute(config.state.master_key_passphrase_file),
    )
    admin = config.admin if config.state.is_file else config.admin or Admin()
    if admin is not None:
        paths = {field: absolute(getattr(admin, field)) for field in ("certificate", "private_key", "token_file", "ca_file")}
        admin = replace(admin, **paths)
    modules = {  # a bare library name is left to the dynamic linker
        name: replace(module, path=absolute(module.path) if "/" in module.path else module.path)
        for name, module in config.modules.items()
    }
    partitions = {
        name: replace(partition, pin_file=absolute(partition.pin_file or "") or None)
        for name, partition in config.partitions.items()
    }
    return replace(
        config, proxy=replace(config.proxy, tls=tls), admin=admin, state=state, modules=modules, partitions=partitions
    )
