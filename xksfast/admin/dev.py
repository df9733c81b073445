# SPDX-License-Identifier: Apache-2.0
"""`xksfast dev`: everything that a proxy needs, made in one directory, then served by the same code as `xksfast serve`.

What lives here: making token, keys, credential, certificates and the two TOML files, and telling about them. What must not: any
way of serving that `serve` has not.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from xksfast.admin.dev_certificates import Authority, CertificateFiles
from xksfast.config import Admin, ProxyHealth, parse_address
from xksfast.errors import OperatorError
from xksfast.secret_file import write_secret_file

SOFTHSM_MODULES = (
    "/usr/lib/softhsm/libsofthsm2.so",
    "/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so",
    "/usr/local/lib/softhsm/libsofthsm2.so",
)
NSS_MODULES = (
    "/usr/lib/x86_64-linux-gnu/libsoftokn3.so",
    "/usr/lib/aarch64-linux-gnu/libsoftokn3.so",
    "/usr/lib64/libsoftokn3.so",
)
REGION = "us-east-1"
PREFIX = "/dev"
STORE = "dev"
TOKEN_LABEL = "xksfast-dev"
ACCESS_KEY_ID_ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"
KEYS = {
    "default": ("xksfast-dev-default", ["ENCRYPT", "DECRYPT"]),
    "encrypt_only": ("xksfast-dev-encrypt-only", ["ENCRYPT"]),
    "decrypt_only": ("xksfast-dev-decrypt-only", ["DECRYPT"]),
    "no_usage": ("xksfast-dev-no-usage", []),
}


@dataclass(frozen=True)
class DevSetup:
    """What was made. key_source: "softhsm", "nss" or "local"."""

    directory: Path
    config_file: Path
    ca_file: Path
    access_key_id: str
    secret_access_key: str
    key_source: str
    admin_token_file: Path


def choose_key_source(wanted: str) -> str:
    """ "auto" -> "softhsm" where its module is found, else "local". OperatorError when the wanted one is not installed."""
    if wanted == "auto":
        return "softhsm" if _find(SOFTHSM_MODULES) and shutil.which("softhsm2-util") else "local"
    if wanted == "softhsm" and not (_find(SOFTHSM_MODULES) and shutil.which("softhsm2-util")):
        raise OperatorError("SoftHSM2 is not installed: run apt-get install softhsm2, or use --key-source local")
    if wanted == "nss" and not (_find(NSS_MODULES) and shutil.which("certutil")):
        raise OperatorError(
            "NSS softoken is not installed: run apt-get install libnss3 libnss3-tools, or use --key-source local"
        )
    if wanted not in ("softhsm", "nss", "local"):
        raise OperatorError(f"there is no key source {wanted!r}: it may be auto, local, softhsm or nss")
    return wanted


def default_health() -> str:
    """Where `xksfast status` looks."""
    return _usual_or_free(ProxyHealth().listen)


def default_admin() -> str:
    """Where the other commands look."""
    return _usual_or_free(Admin().listen)


def _usual_or_free(usual: str) -> str:
    """The usual address; any free port when another proxy listens there."""
    address = parse_address(usual)
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except OSError:
            return f"{address.host}:0"
    return usual


def make_setup(directory: Path, *, http: str, tls: str, admin: str, health: str, key_source: str, workers: int) -> DevSetup:
    """Make in `directory` whatever is not there yet; a directory made before is opened again with its keys and credential."""
    directory = directory.resolve()
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    source = choose_key_source(key_source)
    _remember_key_source(directory, source)
    authority = Authority(directory)
    authority.issue_server(CertificateFiles(directory / "server.pem", directory / "server.key"))
    access_key_id = _kept(
        directory / "access-key-id", lambda: "".join(secrets.choice(ACCESS_KEY_ID_ALPHABET) for _ in range(20))
    )
    secret = _kept(directory / "secret-access-key", lambda: secrets.token_urlsafe(48).replace("-", "+").replace("_", "/"))
    _kept(directory / "master.key", lambda: secrets.token_hex(32))
    makers: dict[str, Callable[[Path], str]] = {"softhsm": _make_softhsm, "nss": _make_nss, "local": lambda _: ""}
    token = makers[source](directory)
    config_file = directory / "xksfast.toml"
    config_file.write_text(
        f"""# Written by xksfast dev at each start.
[proxy]
listen = [{_toml(tls)}]
plaintext_listen = [{_toml(http)}]
workers = {workers}
[proxy.tls]
certificate = "server.pem"
private_key = "server.key"
[proxy.health]
listen = {_toml(health)}
[admin]
listen = {_toml(admin)}
node = "dev"
[state]
url = "sqlite:///xksfast.db"
master_key_file = "master.key"
apply = "stores.toml"
{token}"""
    )
    (directory / "stores.toml").write_text(_stores(source, access_key_id))
    return DevSetup(
        directory, config_file, authority.files.certificate, access_key_id, secret, source, directory / "admin.token"
    )


def _toml(value: object) -> str:
    """A TOML basic string; JSON's escapes are a subset of TOML's."""
    return json.dumps(value)


def _stores(source: str, access_key_id: str) -> str:
    where = 'key_source = "local"' if source == "local" else 'partition_group = "main"'
    lines = [
        "# Written by xksfast dev at each start.",
        f"[key_stores.{STORE}]",
        f"uri_path_prefix = {_toml(PREFIX)}",
        f"region = {_toml(REGION)}",
        where,
        f"[[key_stores.{STORE}.credentials]]",
        f"access_key_id = {_toml(access_key_id)}",
        'secret_access_key_file = "secret-access-key"',
    ]
    for external_key_id, usage in KEYS.values():
        lines += [
            f"[key_stores.{STORE}.keys.{external_key_id}]",
            f"label = {_toml(external_key_id)}",
            f"usage = {_toml(usage)}",
            "create = true",
        ]
    return "\n".join(lines) + "\n"


def _make_softhsm(directory: Path) -> str:
    """A SoftHSM token of its own; the TOML of its partition."""
    conf, tokens = directory / "softhsm2.conf", directory / "softhsm-tokens"
    tokens.mkdir(mode=0o700, exist_ok=True)
    conf.write_text(f"directories.tokendir = {tokens}\nobjectstore.backend = file\nlog.level = ERROR\n")
    pin = _kept(directory / "pin", lambda: str(secrets.randbelow(10**8)).zfill(8))
    if not any(tokens.iterdir()):
        security_officer_pin = _kept(directory / "so-pin", lambda: str(secrets.randbelow(10**8)).zfill(8))
        _run_tool(
            ["softhsm2-util", "--init-token", "--free", "--label", TOKEN_LABEL, "--pin", pin, "--so-pin", security_officer_pin],
            {"SOFTHSM2_CONF": str(conf)},
        )
    return f"""[modules.hsm]
path = {_toml(_find(SOFTHSM_MODULES))}
environment = {{ SOFTHSM2_CONF = {_toml(str(conf))} }}
[partitions.p0]
module = "hsm"
token_label = {_toml(TOKEN_LABEL)}
pin_file = "pin"
profile = "softhsm"
[partition_groups.main]
partitions = ["p0"]
"""


def _make_nss(directory: Path) -> str:
    """An NSS database without a password as the token; the TOML of its partition."""
    database = directory / "nss"
    if not database.exists():
        database.mkdir(mode=0o700)
        _run_tool(["certutil", "-N", "-d", f"sql:{database}", "--empty-password"], {})
    parameters = f"configdir='sql:{database}' certPrefix='' keyPrefix='' secmod='' dbTokenDescription='{TOKEN_LABEL}' flags="
    return f"""[modules.hsm]
path = {_toml(_find(NSS_MODULES))}
parameters = {_toml(parameters)}
[partitions.p0]
module = "hsm"
token_label = {_toml(TOKEN_LABEL)}
profile = "nss"
[partition_groups.main]
partitions = ["p0"]
"""


def _run_tool(command: list[str], environment: dict[str, str]) -> None:
    done = subprocess.run(
        command,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    if done.returncode != 0:
        raise OperatorError(f"{command[0]} failed: {(done.stderr or done.stdout).strip()[:300]}")


def _find(paths: tuple[str, ...]) -> str | None:
    return next((path for path in paths if Path(path).exists()), None)


def _kept(path: Path, make: Callable[[], str]) -> str:
    """The text of a 0600 file, made when absent."""
    if not path.exists():
        write_secret_file(path, make().encode() + b"\n")
    return path.read_text().strip()


def _remember_key_source(directory: Path, source: str) -> None:
    """The same directory always with the same key source: its keys live there."""
    former = _kept(directory / "key-source", lambda: source)
    if former != source:
        raise OperatorError(
            f"{directory} was made with --key-source {former}: use that, or another --data directory for {source}"
        )


@dataclass(frozen=True)
class DevAddresses:
    """As bound; health_url: None when there is no health listener."""

    http: tuple[str, int]
    tls: tuple[str, int]
    admin: tuple[str, int]
    health_url: str | None


def ready_document(setup: DevSetup, at: DevAddresses) -> dict[str, object]:
    """The object of `xksfast dev --json`."""
    return {
        "event": "ready",
        "pid": os.getpid(),
        "url": f"http://{_host_port(at.http)}",
        "tls_url": f"https://localhost:{at.tls[1]}",
        "ca_file": str(setup.ca_file),
        "admin_url": f"https://localhost:{at.admin[1]}",
        "admin_token": setup.admin_token_file.read_text().strip(),
        "key_store": STORE,
        "uri_path_prefix": PREFIX,
        "region": REGION,
        "access_key_id": setup.access_key_id,
        "secret_access_key": setup.secret_access_key,
        "keys": {name: external_key_id for name, (external_key_id, _) in KEYS.items()},
        "key_source": setup.key_source,
        "health_url": at.health_url,
    }


def _host_port(address: tuple[str, int]) -> str:
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def ready_text(setup: DevSetup, at: DevAddresses) -> str:
    """What a person reads: where it is, a curl line that works, the environment of AWS's test client, and the warning."""
    document = ready_document(setup, at)
    url = at.health_url
    status = f"{url}/metrics, or: xksfast status --partitions --url {url}" if url else "not listened for"
    key = KEYS["default"][0]
    metadata = {
        "awsPrincipalArn": "arn:aws:iam::123456789012:user/Alice",
        "kmsKeyArn": f"arn:aws:kms:{REGION}:123456789012:key/1234abcd-12ab-34cd-56ef-1234567890ab",
        "kmsOperation": "Encrypt",
        "kmsRequestId": "4112f4d6-db54-4af4-ae30-c55a22a8dfae",
    }
    body = {
        "requestMetadata": metadata,
        "plaintext": "SGVsbG8gZnJvbSB4a3NmYXN0",
        "encryptionAlgorithm": "AES_GCM",
        "additionalAuthenticatedData": "cHJvamVjdD1uaWxl",
    }
    sign = f'--aws-sigv4 "aws:amz:{REGION}:kms-xks-proxy" --user "{setup.access_key_id}:{setup.secret_access_key}"'
    return f"""
  xksfast dev                                              NOT FOR PRODUCTION
  ---------------------------------------------------------------------------
  The credential below was printed, the CA is made up, and anyone on this
  machine can use the keys. KMS itself needs a public certificate and an HSM.
  ---------------------------------------------------------------------------
  HTTP          {document["url"]}{PREFIX}/kms/xks/v1
  HTTPS         {document["tls_url"]}{PREFIX}/kms/xks/v1        (CA: {setup.ca_file})
  status        {status}
  region        {REGION}
  credential    {setup.access_key_id}
  secret        {setup.secret_access_key}
  keys          {key} ({setup.key_source})
                {", ".join(external_key_id for name, (external_key_id, _) in KEYS.items() if name != "default")}
  files         {setup.directory}

  Administer it from another shell:

export XKSFAST_ADMIN_URL={document["admin_url"]} XKSFAST_ADMIN_CA={setup.ca_file} XKSFAST_ADMIN_TOKEN={document["admin_token"]}
xksfast store list

  Encrypt something:

curl -s {sign} -H "Content-Type: application/json" -d '{json.dumps(body)}' {document["url"]}{PREFIX}/kms/xks/v1/keys/{key}/encrypt

  AWS's own test client (aws-samples/aws-kms-xksproxy-test-client):

export XKS_PROXY_HOST={_host_port(at.http)} URI_PREFIX={PREFIX.lstrip("/")} SCHEME=http:// REGION={REGION} \\
  SIGV4_ACCESS_KEY_ID={setup.access_key_id} SIGV4_SECRET_ACCESS_KEY={setup.secret_access_key} \\
  KEY_ID={key} ENCRYPT_ONLY_KEY_ID={KEYS["encrypt_only"][0]} \\
  DECRYPT_ONLY_KEY_ID={KEYS["decrypt_only"][0]} IMPOTENT_KEY_ID={KEYS["no_usage"][0]}

  Ctrl-C ends it.
"""
