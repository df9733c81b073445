# SPDX-License-Identifier: Apache-2.0
"""Import from AWS's sample proxy: settings files by its documented layout, read, judged, and written as ours."""

from __future__ import annotations

import copy
import stat
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.setups import toml
from xksfast.admin.aws_sample import read_sample
from xksfast.admin.aws_sample_files import render_config, render_stores, write_files
from xksfast.admin.aws_sample_plan import SamplePlan
from xksfast.config import load_config
from xksfast.errors import OperatorError
from xksfast.state.store_file import StoreEntry, load_store_file

SECRETS = ("s" * 43, "t" * 62 + "+=")
PIN = "1q@W3e$R"

SAMPLE: dict[str, Any] = {
    "server": {
        "ip": "0.0.0.0", "port": 443, "port_http_ping": 80, "region": "us-east-2", "service": "kms-xks-proxy",
        "ciphertext_metadata_b64": "djAuMC4x",
        "tcp_keepalive": {"tcp_keepalive_secs": 60, "tcp_keepalive_retries": 3, "tcp_keepalive_interval_secs": 1},
    },
    "tracing": {
        "is_stdout_writer_enabled": True, "is_file_writer_enabled": True, "level": "DEBUG", "directory": "/var/local/xks-proxy/logs",
        "file_prefix": "xks-proxy.log", "rotation_kind": "HOURLY",
    },
    "security": {"is_sigv4_auth_enabled": True, "is_tls_enabled": True, "is_mtls_enabled": True},
    "tls": {
        "tls_cert_pem": "tls/server_cert.pem", "tls_key_pem": "tls/server_key.pem", "mtls_client_ca_pem": "tls/client_ca.pem",
        "mtls_client_dns_name": "cks.kms.us-east-2.amazonaws.com",
    },
    "external_key_stores": [
        {
            "uri_path_prefix": "", "sigv4_access_key_id": "A" * 20, "sigv4_secret_access_key": SECRETS[0],
            "xks_key_id_set": ["foo", "cat", "dog"],
        },
        {
            "uri_path_prefix": "/example/uri/path/prefix", "sigv4_access_key_id": "B" * 30, "sigv4_secret_access_key": SECRETS[1],
            "xks_key_id_set": ["foo", "bar.v1"],
        },
    ],
    "pkcs11": {
        "session_pool_max_size": 30, "session_pool_timeout_milli": 0, "session_eager_close": False, "user_pin": PIN,
        "PKCS11_HSM_MODULE": "/usr/local/lib/pkcs11-logger-x64.so", "context_read_timeout_milli": 10,
    },
    "pkcs11_logger": {
        "PKCS11_LOGGER_LIBRARY_PATH": "/usr/lib/softhsm/libsofthsm2.so", "PKCS11_LOGGER_LOG_FILE_PATH": "/var/log/p11.log",
        "PKCS11_LOGGER_FLAGS": "0",
    },
    "limits": {"max_plaintext_in_base64": 8192, "max_aad_in_base64": 16384},
    "hsm_capabilities": {"can_generate_iv": False, "is_zero_iv_required": False},
}  # fmt: skip


def lines(document: dict[str, Any]) -> str:
    """The document as TOML, with its list of tables as such."""
    rest = {name: value for name, value in document.items() if name != "external_key_stores"}
    stores = document.get("external_key_stores", [])
    return toml(rest) + "".join(f"[[external_key_stores]]\n{toml(store)}" for store in stores)


def read(tmp_path: Path, change: Callable[[dict[str, Any]], None] = lambda document: None) -> SamplePlan:
    document = copy.deepcopy(SAMPLE)
    change(document)
    file = tmp_path / "settings.toml"
    file.write_text(lines(document))
    return read_sample(file)


def found(plan: SamplePlan, level: str) -> dict[str, str]:
    return {finding.key: finding.text for finding in plan.findings if finding.level == level}


def test_all_of_a_sample_is_in_the_plan(tmp_path: Path) -> None:
    plan = read(tmp_path)
    assert [store.name for store in plan.stores] == ["default", "example-uri-path-prefix"]
    assert [store.uri_path_prefix for store in plan.stores] == ["", "/example/uri/path/prefix"]
    assert {store.region for store in plan.stores} == {"us-east-2"}
    assert [store.access_key_id for store in plan.stores] == ["A" * 20, "B" * 30]
    assert [store.secret_access_key.reveal() for store in plan.stores] == list(SECRETS)
    assert [[(key.external_key_id, key.label) for key in store.keys] for store in plan.stores] == [
        [("foo", "foo"), ("cat", "cat"), ("dog", "dog")], [("foo", "foo"), ("bar.v1", "bar.v1")],
    ]  # fmt: skip
    assert plan.ciphertext_metadata == b"v0.0.1"
    assert (plan.pkcs11.module_path, plan.pkcs11.profile, plan.pkcs11.sessions) == (
        "/usr/lib/softhsm/libsofthsm2.so", "softhsm", 30
    )  # fmt: skip
    assert plan.pkcs11.pin.reveal() == PIN
    assert (plan.server.listen, plan.server.certificate, plan.server.client_name) == (
        "0.0.0.0:443", "tls/server_cert.pem", "cks.kms.us-east-2.amazonaws.com",
    )  # fmt: skip
    assert found(plan, "not understood") == {}


def test_whatever_the_plan_does_not_carry_is_named(tmp_path: Path) -> None:
    plan = read(tmp_path)
    named = {finding.key for finding in plan.findings}
    assert {
        "server.tcp_keepalive", "server.port_http_ping", "tracing", "limits", "pkcs11_logger",
        "pkcs11_logger.PKCS11_LOGGER_LOG_FILE_PATH", "pkcs11.session_pool_timeout_milli", "pkcs11.session_eager_close",
        "pkcs11.context_read_timeout_milli",
    } <= named  # fmt: skip
    assert "foo stands in 2 key stores" in found(plan, "note")["external_key_stores"]


UNKNOWN = [
    ((), "surprise"), (("server",), "surprise"), (("security",), "surprise"), (("tls",), "surprise"), (("pkcs11",), "slot"),
    (("pkcs11_logger",), "surprise"), (("hsm_capabilities",), "surprise"), (("external_key_stores", 1), "surprise"),
]  # fmt: skip


@pytest.mark.parametrize(("where", "name"), UNKNOWN)
def test_what_is_not_understood_is_named_and_its_value_not_shown(tmp_path: Path, where: tuple[Any, ...], name: str) -> None:
    def change(document: dict[str, Any]) -> None:
        table: Any = document
        for part in where:
            table = table[part]
        table[name] = "value-to-hide"

    plan = read(tmp_path, change)
    (key,) = found(plan, "not understood")
    assert key.endswith(name)
    assert "value-to-hide" not in "".join(str(finding) for finding in plan.findings)


@pytest.mark.parametrize(
    ("module", "makes_iv", "zero_iv", "profile", "to_do"),
    [
        ("/usr/lib/softhsm/libsofthsm2.so", False, False, "softhsm", False),
        ("/usr/safenet/lunaclient/lib/libCryptoki2_64.so", True, False, "luna", False),
        ("/opt/cloudhsm/lib/libcloudhsm_pkcs11.so", True, True, "cloudhsm", False),
        ("/opt/nfast/toolkits/pkcs11/libcknfast.so", True, True, "nshield", False),
        ("/usr/safenet/lunaclient/lib/libCryptoki2_64.so", False, False, "luna", True),
        ("/opt/other/libp11.so", False, False, "generic", True),
    ],
)
def test_the_profile_is_guessed_and_doubts_are_said(
    tmp_path: Path, module: str, makes_iv: bool, zero_iv: bool, profile: str, to_do: bool
) -> None:
    def change(document: dict[str, Any]) -> None:
        document["pkcs11"]["PKCS11_HSM_MODULE"] = module
        document["hsm_capabilities"] = {"can_generate_iv": makes_iv, "is_zero_iv_required": zero_iv}

    plan = read(tmp_path, change)
    assert (plan.pkcs11.module_path, plan.pkcs11.profile) == (module, profile)
    assert ("hsm_capabilities" in found(plan, "to do")) == to_do


def assign(*path: Any, value: Any = None) -> Callable[[dict[str, Any]], None]:
    """Set a value, or take the name away."""

    def change(document: dict[str, Any]) -> None:
        table: Any = document
        for part in path[:-1]:
            table = table[part]
        if value is None:
            del table[path[-1]]
        else:
            table[path[-1]] = value

    return change


STORE = ("external_key_stores", 1)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (assign("server", "region", value="nowhere!"), "server.region"),
        (assign("server", "region"), "server.region: is missing"),
        (assign("server", "port", value="443"), "server.port: is no whole number"),
        (assign("server", "service", value="kms"), "server.service"),
        (assign("server", "ciphertext_metadata_b64", value="djAuMC4"), "server.ciphertext_metadata_b64"),
        (assign("server", "ciphertext_metadata_b64", value="A" * 28), "has 21 bytes"),
        (assign("security"), "security: is missing"),
        (assign("tls", "tls_cert_pem", value=""), "tls.tls_cert_pem: is missing"),
        (assign("security", "is_tls_enabled", value=False), "security.is_mtls_enabled"),
        (assign("pkcs11"), "pkcs11: is missing"),
        (assign("pkcs11", "user_pin"), "pkcs11.user_pin: is missing"),
        (assign("pkcs11", "user_pin", value=""), "pkcs11.user_pin: is empty"),
        (assign("pkcs11", "session_pool_max_size", value=0), "session_pool_max_size"),
        (assign("pkcs11_logger"), "does not say for which library"),
        (assign("pkcs11_logger", "PKCS11_LOGGER_LIBRARY_PATH", value=""), "is empty"),
        (assign("external_key_stores"), "external_key_stores"),
        (assign(*STORE, "uri_path_prefix", value=""), "external_key_stores[0] has the same"),
        (assign(*STORE, "uri_path_prefix", value="no-slash"), "must be empty or like /payments"),
        (assign(*STORE, "sigv4_access_key_id", value=""), "sigv4_access_key_id: is empty"),
        (assign(*STORE, "sigv4_access_key_id", value="a" * 20), "20 to 30 characters"),
        (assign(*STORE, "sigv4_secret_access_key", value="short"), "43 to 64 characters"),
        (assign(*STORE, "xks_key_id_set", value=["a b"]), "is no external key id"),
        (assign(*STORE, "xks_key_id_set", value="foo"), "xks_key_id_set"),
    ],
)
def test_what_stands_in_the_way_is_said_without_secrets(
    tmp_path: Path, change: Callable[[dict[str, Any]], None], said: str
) -> None:
    with pytest.raises(OperatorError) as refused:
        read(tmp_path, change)
    assert said in str(refused.value)
    for secret in (*SECRETS, PIN, "short"):
        assert secret not in str(refused.value).replace("sigv4_secret_access_key", "")


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    def change(document: dict[str, Any]) -> None:
        assign("server", "region", value="x")(document)
        assign("pkcs11", "user_pin")(document)
        assign(*STORE, "sigv4_access_key_id", value="x")(document)

    with pytest.raises(OperatorError) as refused:
        read(tmp_path, change)
    assert len(str(refused.value).splitlines()) == 3


def test_what_an_operator_must_do_is_said(tmp_path: Path) -> None:
    def change(document: dict[str, Any]) -> None:
        document["security"] = {
            "is_sigv4_auth_enabled": False, "is_tls_enabled": False, "is_mtls_enabled": False, "secondary_auth": "Oso",
            "oso": {"polar_file_path": "configuration/oso.polar"},
        }  # fmt: skip
        document["external_key_stores"][1]["sigv4_secret_access_key"] = "PleaseReplaceThisWithSomeSecretOfLength43To64"
        document["pkcs11"]["session_pool_max_size"] = 1000

    plan = read(tmp_path, change)
    to_do = found(plan, "to do")
    assert set(to_do) >= {
        "security.is_sigv4_auth_enabled", "security.is_tls_enabled", "security.secondary_auth", "pkcs11",
        "external_key_stores[1].sigv4_secret_access_key",
    }  # fmt: skip
    assert "configuration/oso.polar" in to_do["security.secondary_auth"]
    assert plan.pkcs11.sessions == 256
    assert plan.server.certificate == ""
    assert "tls.tls_cert_pem" in found(plan, "note")


@pytest.mark.parametrize("name", ["", "cks.kms.us-east-2.amazonaws.com", "us-east-1.alpha.cks.kms.aws.internal.amazonaws.com"])
def test_a_client_name_is_always_demanded(tmp_path: Path, name: str) -> None:
    plan = read(tmp_path, assign("tls", "mtls_client_dns_name", value=name))
    assert plan.server.client_name == (name or "cks.kms.us-east-2.amazonaws.com")
    assert plan.server.client_name in found(plan, "to do")["tls.mtls_client_dns_name"]


def test_names_of_stores_are_unique(tmp_path: Path) -> None:
    def change(document: dict[str, Any]) -> None:
        first = document["external_key_stores"][0]
        document["external_key_stores"] = [{**first, "uri_path_prefix": prefix} for prefix in ("/a/b", "/a-b", "/default", "")]

    assert [store.name for store in read(tmp_path, change).stores] == ["a-b", "a-b-2", "default", "default-2"]


def test_no_secret_shows_itself(tmp_path: Path) -> None:
    plan = read(tmp_path)
    shown = repr(plan) + str(plan) + render_stores(plan) + render_config(plan) + "".join(map(str, plan.findings))
    for secret in (*SECRETS, PIN):
        assert secret not in shown
    plan.forget_secrets()
    with pytest.raises(ValueError, match="forgotten"):
        plan.stores[0].secret_access_key.reveal()


def test_the_written_files_are_ours(tmp_path: Path) -> None:
    plan = read(tmp_path)
    written = write_files(plan, tmp_path / "new", token_label="p0")
    document = tomllib.loads(written.stores_file.read_text())
    store = document["key_stores"]["example-uri-path-prefix"]
    assert store["aad_scheme"] == "aws-sample"
    if "aad_scheme" not in StoreEntry.__struct_fields__:  # before the state knows AAD schemes
        written.stores_file.write_text(written.stores_file.read_text().replace('aad_scheme = "aws-sample"\n', ""))
    config = load_config(written.config_file)
    stores = load_store_file(written.stores_file, config).key_stores
    assert stores["default"].uri_path_prefix == ""
    assert {key: entry.label for key, entry in stores["example-uri-path-prefix"].keys.items()} == {
        "foo": "foo",
        "bar.v1": "bar.v1",
    }
    assert Path(stores["default"].credentials[0].secret_access_key_file).read_text().strip() == SECRETS[0]
    partition = config.partitions["p0"]
    assert partition.pin_file is not None
    assert Path(partition.pin_file).read_text().strip() == PIN
    assert (partition.profile, partition.sessions, partition.token_label) == ("softhsm", 30, "p0")
    assert config.proxy.tls is not None
    assert config.proxy.tls.client_common_name == "cks.kms.us-east-2.amazonaws.com"
    assert len(written.secret_files) == 3
    for file in written.secret_files:
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700


def test_without_a_token_label_the_configuration_says_what_is_missing(tmp_path: Path) -> None:
    written = write_files(read(tmp_path), tmp_path / "new")
    with pytest.raises(OperatorError, match="token_label"):
        load_config(written.config_file)


@pytest.mark.parametrize("there", ["stores.toml", "xksfast.toml", "secrets/p0.pin", "secrets/default.secret"])
def test_nothing_is_overwritten(tmp_path: Path, there: str) -> None:
    plan = read(tmp_path)
    file = tmp_path / "new" / there
    file.parent.mkdir(parents=True)
    file.write_text("mine")
    with pytest.raises(OperatorError, match="exists already"):
        write_files(plan, tmp_path / "new")
    assert file.read_text() == "mine"
    assert [path for path in (tmp_path / "new").rglob("*") if path.is_file()] == [file]


@pytest.fixture(scope="module")
def quoted_plan(tmp_path_factory: pytest.TempPathFactory) -> SamplePlan:
    return read(tmp_path_factory.mktemp("quoted"))


@settings(max_examples=50, deadline=None)
@given(label=st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=20))
def test_any_text_is_quoted_for_toml(quoted_plan: SamplePlan, label: str) -> None:
    assert tomllib.loads(render_config(quoted_plan, token_label=label))["partitions"]["p0"]["token_label"] == label
