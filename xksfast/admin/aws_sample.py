# SPDX-License-Identifier: Apache-2.0
"""Reads the settings.toml of AWS's sample proxy (aws-samples/aws-kms-xks-proxy) into a checked plan: what it served, from where.

What lives here: reading and judging. What must not: writing (aws_sample_files.py), and any change of our state. Every name in the
file ends in exactly one place: in the plan, in a finding that says why it is not needed or what to do about it, or in a finding
that it is not understood. A newcomer's trap: the sample has no token label; it logs in to the first slot that the module lists.

Source: src/settings.rs and the files in configuration/ of the sample, version 3.1.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
from typing import Any

from xksfast.admin.aws_sample_plan import (
    Finding,
    Level,
    SampleKey,
    SamplePkcs11,
    SamplePlan,
    SampleServer,
    SampleStore,
    Secret,
)
from xksfast.config import Profile
from xksfast.toml_reader import Problems, join, read_toml

SERVICE = "kms-xks-proxy"
MAX_METADATA_BYTES = 20
MAX_SESSIONS = 256
LOGGER = "pkcs11-logger"  # a module that writes calls down and hands them to another one
EXAMPLE_CREDENTIALS = ("BETWEEN2TENAND3TENCHARACTERS", "PleaseReplaceThisWithSomeSecretOfLength43To64")

_PREFIX = re.compile(r"(/[A-Za-z0-9_-]+)*")
_REGION = re.compile(r"[a-z]{2,8}(-[a-z0-9]+){1,4}")
_ACCESS_KEY_ID = re.compile(r"[A-Z2-7]{20,30}")
_SECRET = re.compile(r"[A-Za-z0-9/+=]{43,64}")
_KEY_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")

_PROFILES: dict[str, Profile] = {"softhsm": "softhsm", "cryptoki": "luna", "cloudhsm": "cloudhsm", "cknfast": "nshield"}
_NOT_NEEDED = {
    "server.service": "it is always kms-xks-proxy",
    "server.tcp_keepalive": "idle connections end by proxy.idle_timeout_s",
    "server.port_http_ping": "GET /ping is served at proxy.health.listen",
    "tracing": "logs go to stderr as JSON lines; who starts the proxy keeps them",
    "pkcs11.session_pool_timeout_milli": "a job waits for a session within its deadline",
    "pkcs11.session_eager_close": "sessions stay open",
    "pkcs11.context_read_timeout_milli": "a call that hangs is left behind by its deadline",
    "limits": "4300 bytes of plaintext and 8192 of AAD, which is all that KMS sends",
}


def read_sample(path: str | os.PathLike[str]) -> SamplePlan:
    """The plan of a settings.toml. RefusedFile lists everything that stands in the way, a line each, without secrets."""
    problems = Problems(os.fspath(path))
    reader = _Reader(problems)
    root = _Table(reader, read_toml(path), "")
    server_table = root.table("server")
    region = server_table.text("region")
    if region and not _REGION.fullmatch(region):
        problems.add("server.region", f"{region!r} is not an AWS region such as us-east-1")
    service = server_table.text("service")
    if service and service != SERVICE:
        problems.add(
            "server.service", f"{service!r} cannot be kept: requests are verified for {SERVICE}, which is what KMS signs for"
        )
    metadata = _metadata(server_table, problems)
    server = _server(root, server_table, region, reader)
    pkcs11 = _pkcs11(root, reader)
    stores = _stores(root, region, reader)
    root.end()
    problems.raise_if_any()
    assert pkcs11 is not None
    return SamplePlan(os.fspath(path), server, stores, pkcs11, metadata, tuple(reader.findings))


class _Reader:
    """What is found out on the way."""

    def __init__(self, problems: Problems) -> None:
        self.problems = problems
        self.findings: list[Finding] = []

    def note(self, key: str, text: str, level: Level = "note") -> None:
        self.findings.append(Finding(key, level, text))


class _Table:
    """A table of the file; what nobody asked for is named at the end. Values are never shown: any may be a secret put wrong."""

    def __init__(self, reader: _Reader, table: Any, key: str) -> None:
        self.reader = reader
        self.key = key
        self._left: dict[str, Any] = {}
        self._children: list[_Table] = []
        if isinstance(table, dict):
            self._left = dict(table)
        else:
            reader.problems.add(key, "is no table")

    def path(self, name: str) -> str:
        return join(self.key, name)

    def __contains__(self, name: str) -> bool:
        return name in self._left

    def _take(self, name: str, kind: type, what: str, default: Any) -> Any:
        if name not in self._left:
            if default is None:
                self.reader.problems.add(self.path(name), "is missing")
            return kind() if default is None else default
        value = self._left.pop(name)
        if type(value) is not kind:
            self.reader.problems.add(self.path(name), f"is no {what}")
            return kind()
        return value

    def text(self, name: str, default: str | None = None) -> str:
        """A text; default None: it must be there."""
        return str(self._take(name, str, "text", default))

    def number(self, name: str, default: int | None = None) -> int:
        return int(self._take(name, int, "whole number", default))

    def flag(self, name: str, default: bool | None = None) -> bool:
        return bool(self._take(name, bool, "true or false", default))

    def texts(self, name: str) -> list[str]:
        found = self._take(name, list, "list", None)
        if not all(isinstance(one, str) for one in found):
            self.reader.problems.add(self.path(name), "is no list of texts")
            return []
        return list(found)

    def table(self, name: str, *, required: bool = True) -> _Table:
        """A table in it; an empty one when it need not be there and is not."""
        if name not in self._left and required:
            self.reader.problems.add(self.path(name), "is missing")
        child = _Table(self.reader, self._left.pop(name, {}), self.path(name))
        self._children.append(child)
        return child

    def tables(self, name: str) -> list[_Table]:
        found = self._take(name, list, "list of tables", None)
        made = [_Table(self.reader, entry, f"{self.path(name)}[{i}]") for i, entry in enumerate(found)]
        self._children += made
        return made

    def end(self) -> None:
        """Name everything that was not asked for."""
        for name in self._left:
            why = _NOT_NEEDED.get(self.path(name))
            if why is not None:
                self.reader.note(self.path(name), f"is not needed: {why}")
            else:
                text = "is not known to be a setting of the sample, and was left out"
                self.reader.note(self.path(name), text, "not understood")
        for child in self._children:
            child.end()


def _metadata(server: _Table, problems: Problems) -> bytes:
    text = server.text("ciphertext_metadata_b64", "")
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        data = None
    if data is None or base64.b64encode(data).decode() != text:
        problems.add("server.ciphertext_metadata_b64", "is not standard, padded Base64")
        return b""
    if len(data) > MAX_METADATA_BYTES:
        problems.add("server.ciphertext_metadata_b64", f"has {len(data)} bytes, at most {MAX_METADATA_BYTES} are allowed")
    return data


def _server(root: _Table, table: _Table, region: str, reader: _Reader) -> SampleServer:
    ip, port = table.text("ip"), table.number("port")
    listen = f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}"
    security = root.table("security")
    tls_on, mtls_on = security.flag("is_tls_enabled"), security.flag("is_mtls_enabled")
    if not security.flag("is_sigv4_auth_enabled"):
        reader.note(
            "security.is_sigv4_auth_enabled",
            "was false: anybody could use the keys. Here every request must be signed",
            "to do",
        )
    if "secondary_auth" in security:
        which = security.text("secondary_auth")
        rules = security.table("oso", required=False).text("polar_file_path", "")
        reader.note(
            "security.secondary_auth",
            f"the rules of {which}{f' in {rules}' if rules else ''} are not translated: until allowed_principals or a policy says "
            "otherwise, whoever the credential lets in may use the keys",
            "to do",
        )
    elif "oso" in security:
        rules = security.table("oso").text("polar_file_path", "")
        reader.note("security.oso", f"was not in use: secondary_auth is not set{f' ({rules})' if rules else ''}")
    certificate, private_key, client_ca, client_name = _tls(root, reader, tls_on=tls_on, mtls_on=mtls_on)
    if not tls_on:
        if mtls_on:
            reader.problems.add("security.is_mtls_enabled", "is true without is_tls_enabled")
        text = "was false: plain HTTP needs proxy.allow_plaintext = true, and TLS that ends before this proxy"
        reader.note("security.is_tls_enabled", text, "to do")
        return SampleServer(listen)
    if not mtls_on:
        return SampleServer(listen, certificate, private_key)
    was = f"{client_name} becomes client_common_name" if client_name else "was absent: any certificate of the CA was let in"
    client_name = client_name or f"cks.kms.{region}.amazonaws.com"
    reader.note(
        "tls.mtls_client_dns_name",
        f"{was}; here the CN must be {client_name}, and KMS presents cks.kms.{region}.amazonaws.com",
        "to do",
    )
    return SampleServer(listen, certificate, private_key, client_ca, client_name)


def _tls(root: _Table, reader: _Reader, *, tls_on: bool, mtls_on: bool) -> tuple[str, str, str, str]:
    """Certificate, private key, client CA, client name; "" for what is absent."""
    tls = root.table("tls", required=tls_on or mtls_on)
    used = {"tls_cert_pem": tls_on, "tls_key_pem": tls_on, "mtls_client_ca_pem": mtls_on, "mtls_client_dns_name": mtls_on}
    values = {name: tls.text(name, "") for name in used}
    for name, value in values.items():
        if used[name] and not value and name != "mtls_client_dns_name":
            reader.problems.add(f"tls.{name}", "is missing, though it is switched on")
        elif value and not used[name]:
            reader.note(f"tls.{name}", "was not in use: it is switched off in [security]")
    return values["tls_cert_pem"], values["tls_key_pem"], values["mtls_client_ca_pem"], values["mtls_client_dns_name"]


def _pkcs11(root: _Table, reader: _Reader) -> SamplePkcs11 | None:
    table = root.table("pkcs11")
    module, pin, sessions = table.text("PKCS11_HSM_MODULE"), table.text("user_pin"), table.number("session_pool_max_size")
    if not pin and "pkcs11.user_pin" not in {problem.key for problem in reader.problems.found}:
        reader.problems.add("pkcs11.user_pin", "is empty: the sample logs in to the token with it")
    module = _behind_logger(root, module, reader)
    if not module:
        return None
    text = "stands in this file in the clear, like the secret access keys: remove the file once the import is proven"
    reader.note("pkcs11.user_pin", text, "to do")
    reader.note(
        "pkcs11.PKCS11_HSM_MODULE", "the sample lets an environment variable of this name override it: compare", "to do"
    )
    reader.note(
        "pkcs11", "the sample uses the first slot the module lists; here token_label or serial names the token", "to do"
    )
    if sessions < 1:
        reader.problems.add("pkcs11.session_pool_max_size", "must be 1 or more")
    elif sessions > MAX_SESSIONS:
        reader.note(
            "pkcs11.session_pool_max_size", f"{sessions} becomes {MAX_SESSIONS}, the most a worker opens on a partition"
        )
    capabilities = root.table("hsm_capabilities")
    makes_iv, zero_iv = capabilities.flag("can_generate_iv"), capabilities.flag("is_zero_iv_required")
    profile = _profile(module, makes_iv, zero_iv, reader)
    return SamplePkcs11(module, Secret(pin), min(max(sessions, 1), MAX_SESSIONS), profile)


def _behind_logger(root: _Table, module: str, reader: _Reader) -> str:
    """The library itself."""
    if "pkcs11_logger" not in root:
        if LOGGER in module:
            reader.problems.add("pkcs11.PKCS11_HSM_MODULE", f"is {LOGGER}, and [pkcs11_logger] does not say for which library")
            return ""
        return module
    logger = root.table("pkcs11_logger")
    library = logger.text("PKCS11_LOGGER_LIBRARY_PATH", "")
    for name in ("PKCS11_LOGGER_LOG_FILE_PATH", "PKCS11_LOGGER_FLAGS"):
        if logger.text(name, ""):
            reader.note(f"pkcs11_logger.{name}", "is not needed: calls are counted and timed by the proxy itself")
    if LOGGER not in module:
        return module
    if not library:
        reader.problems.add("pkcs11_logger.PKCS11_LOGGER_LIBRARY_PATH", f"is empty, though the module is {LOGGER}")
        return ""
    reader.note("pkcs11_logger", f"the library behind it is used directly: {library}")
    return library


def _profile(module: str, makes_iv: bool, zero_iv: bool, reader: _Reader) -> Profile:
    """By the library's name, checked against what the sample was told of the HSM."""
    name = module.rpartition("/")[2].lower()
    guess = next((profile for word, profile in _PROFILES.items() if word in name or word in module.lower()), None)
    told = {"softhsm": (False, False), "luna": (True, False), "cloudhsm": (True, True), "nshield": (True, True)}
    if guess is None:
        reader.note("hsm_capabilities", f"no vendor is known by the name {name}: profile generic; name the right one", "to do")
        return "generic"
    if told.get(guess) != (makes_iv, zero_iv):
        reader.note(
            "hsm_capabilities",
            f"can_generate_iv and is_zero_iv_required are not those of {guess}, which the library's name says: "
            "xksfast partition test tells how the token makes its IVs",
            "to do",
        )
    else:
        reader.note("hsm_capabilities", f"are those of the profile {guess}")
    return guess


def _stores(root: _Table, region: str, reader: _Reader) -> tuple[SampleStore, ...]:
    made: list[SampleStore] = []
    prefixes: dict[str, str] = {}
    owners: dict[str, list[str]] = {}
    for table in root.tables("external_key_stores"):
        prefix = table.text("uri_path_prefix")
        if not _PREFIX.fullmatch(prefix):
            reader.problems.add(table.path("uri_path_prefix"), "must be empty or like /payments: parts of A-Z a-z 0-9 _ -")
        elif prefix in prefixes:
            reader.problems.add(table.path("uri_path_prefix"), f"{prefixes[prefix]} has the same")
        prefixes.setdefault(prefix, table.key)
        access_key_id, secret = _credential(table, reader)
        keys = []
        listed = table.texts("xks_key_id_set")
        for external_key_id in dict.fromkeys(listed):
            if not _KEY_ID.fullmatch(external_key_id):
                reader.problems.add(table.path("xks_key_id_set"), f"{external_key_id[:140]!r} is no external key id")
            keys.append(SampleKey(external_key_id))
            owners.setdefault(external_key_id, []).append(prefix or "/")
        if not listed:
            reader.note(table.path("xks_key_id_set"), "is empty: the key store has no keys")
        name = _name(prefix, {store.name for store in made})
        made.append(SampleStore(name, prefix, region, access_key_id, secret, tuple(keys)))
    if not made:
        reader.problems.add("external_key_stores", "there is none")
    for external_key_id, where in owners.items():
        if len(where) > 1:
            text = f"{external_key_id} stands in {len(where)} key stores ({', '.join(where)}): they share one key of the HSM"
            reader.note("external_key_stores", text)
    return tuple(made)


def _credential(table: _Table, reader: _Reader) -> tuple[str, Secret]:
    access_key_id, secret = table.text("sigv4_access_key_id"), table.text("sigv4_secret_access_key")
    if not access_key_id or not secret:
        reader.problems.add(
            table.path("sigv4_access_key_id" if not access_key_id else "sigv4_secret_access_key"),
            "is empty: give the key store the credential that KMS has, or take it out of the file",
        )
    if access_key_id and not _ACCESS_KEY_ID.fullmatch(access_key_id):
        reader.problems.add(table.path("sigv4_access_key_id"), "must have 20 to 30 characters of A-Z and 2-7")
    if secret and not _SECRET.fullmatch(secret):
        reader.problems.add(table.path("sigv4_secret_access_key"), "must have 43 to 64 characters of A-Z a-z 0-9 / + =")
    if access_key_id in EXAMPLE_CREDENTIALS or secret in EXAMPLE_CREDENTIALS:
        reader.note(
            table.path("sigv4_secret_access_key"), "is the sample's own example, which everybody knows: rotate it", "to do"
        )
    return access_key_id, Secret(secret)


def _name(prefix: str, taken: set[str]) -> str:
    """A store name made from a prefix: "/example/uri" -> "example-uri", "" -> "default"."""
    base = re.sub(r"[^A-Za-z0-9_-]+", "-", prefix.strip("/"))[:60].strip("-_") or "default"
    name, number = base, 2
    while name in taken:
        name, number = f"{base}-{number}", number + 1
    return name
