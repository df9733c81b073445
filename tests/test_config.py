# SPDX-License-Identifier: Apache-2.0
"""The configuration file: defaults, rules, and messages that name the key, what is wrong and the nearest right name."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from xksfast import messages
from xksfast.config import Config, load_config, missing_files, parse_address
from xksfast.toml_reader import RefusedFile

# The file of the contract, with state from a file.
FULL = """
[proxy]
listen = ["127.0.0.1:8443"]
workers = 1
deadline_ms = 200
[proxy.tls]
certificate = "server.pem"
private_key = "server.key"
client_ca = ""
client_common_name = ""
[proxy.health]
listen = "127.0.0.1:8081"
[admin]
listen = "127.0.0.1:8444"
[state]
url = "file:stores.toml"
master_key_file = "master.key"
[modules.hsm_a]
path = "/usr/lib/softhsm/libsofthsm2.so"
environment = { SOFTHSM2_CONF = "/etc/xksfast/a.conf" }
parameters = ""
[partitions.p0]
module = "hsm_a"
token_label = "p0"
pin_file = "p0.pin"
profile = "softhsm"
sessions = 16
[partition_groups.main]
partitions = ["p0"]
health_check_key = ""
"""
MASTER = 'master_key_file = "master.key"'
MINIMAL = '[state]\nurl = "file:stores.toml"\n'

Load = Callable[[str], Config]
Refused = Callable[[str], dict[str, str]]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    def load_text(text: str) -> Config:
        (tmp_path / "xksfast.toml").write_text(text)
        return load_config(tmp_path / "xksfast.toml")

    return load_text


@pytest.fixture
def refused(load: Load) -> Refused:
    """The problems of a text that must be refused: dotted key -> what is wrong (joined by newlines)."""

    def problems_of(text: str) -> dict[str, str]:
        with pytest.raises(RefusedFile) as caught:
            load(text)
        found: dict[str, str] = {}
        for problem in caught.value.problems:
            found[problem.key] = "\n".join(filter(None, [found.get(problem.key), problem.problem]))
        return found

    return problems_of


def change(old: str, new: str, text: str = FULL) -> str:
    assert text.count(old) == 1, old
    return text.replace(old, new)


def test_the_file_of_the_contract_is_accepted_with_paths_resolved_beside_it(load: Load, tmp_path: Path) -> None:
    config = load(FULL)
    assert config.proxy.tls is not None
    assert config.proxy.tls.certificate == str(tmp_path / "server.pem")
    assert config.proxy.tls.private_key == str(tmp_path / "server.key")
    assert config.proxy.tls.client_ca == ""
    assert config.state.store_file == str(tmp_path / "stores.toml")
    assert config.state.master_key_file == str(tmp_path / "master.key")
    assert config.partitions["p0"].pin_file == str(tmp_path / "p0.pin")
    assert config.modules["hsm_a"].environment == {"SOFTHSM2_CONF": "/etc/xksfast/a.conf"}


def test_everything_but_the_state_has_a_default(load: Load) -> None:
    proxy = load(MINIMAL).proxy
    assert (proxy.listen, proxy.workers, proxy.deadline_ms) == (("127.0.0.1:8443",), 1, 200)
    assert (proxy.max_connections, proxy.idle_timeout_s, proxy.log_requests) == (1024, 400, False)
    assert proxy.health.probe_interval_s == 10


def test_workers_0_is_one_per_core(load: Load) -> None:
    assert load("[proxy]\nworkers = 0\n" + MINIMAL).proxy.worker_count >= 1
    assert load("[proxy]\nworkers = 7\n" + MINIMAL).proxy.worker_count == 7


def test_a_configuration_survives_the_way_to_a_worker(load: Load) -> None:
    start = messages.Start(worker=1, config=load(FULL))
    packed = msgspec.msgpack.encode(start)
    assert msgspec.msgpack.decode(packed, type=messages.ToWorker) == start


def test_a_bare_library_name_is_left_to_the_dynamic_linker(load: Load) -> None:
    text = change('path = "/usr/lib/softhsm/libsofthsm2.so"', 'path = "libsofthsm2.so"')
    assert load(text).modules["hsm_a"].path == "libsofthsm2.so"


@pytest.mark.parametrize(
    ("line", "options"),
    [
        ("", {}),
        ('master_key_credential = "xksfast.master-key@1"', {"master_key_credential": "xksfast.master-key@1"}),
        ('master_key_passphrase_env = "PASSPHRASE"', {"master_key_passphrase_env": "PASSPHRASE"}),
        ('master_key_passphrase_file = "/p"', {"master_key_passphrase_file": "/p"}),
        ('master_key_partition = "p0"\nmaster_key_label = "m"', {"master_key_partition": "p0"}),
    ],
)
def test_the_master_key_may_be_in_one_of_several_places(load: Load, line: str, options: dict[str, str]) -> None:
    assert load(change(MASTER, line)).state.master_key_options == options


@pytest.mark.parametrize("url", ["file:///etc/xksfast/stores.toml", "file:/etc/xksfast/stores.toml"])
def test_an_absolute_state_url_stays_as_it_is(load: Load, url: str) -> None:
    assert load(f'[state]\nurl = "{url}"\n').state.store_file == "/etc/xksfast/stores.toml"


def test_budgets_may_be_whole_numbers_or_not_and_sites_are_text(load: Load) -> None:
    config = load(
        '[state]\nurl = "file:x"\n[routing]\nretry_budget = 0\nhedge_budget = 0.01\nsite = "a"\n[modules.m]\npath = "x.so"\n'
        '[partitions.p0]\nmodule = "m"\nslot = 0\nsite = "a"\n[partitions.p1]\nmodule = "m"\nslot = 1\n'
        '[partition_groups.g]\npartitions = ["p0", "p1"]\nverify = "other"\n'
    )
    assert (config.routing.retry_budget, config.routing.hedge_budget, config.routing.site) == (0.0, 0.01, "a")
    assert (config.partitions["p0"].site, config.partitions["p1"].site) == ("a", "")
    assert config.partition_groups["g"].verify == "other"


@pytest.mark.parametrize(
    ("old", "new", "key", "words"),
    [
        ('profile = "softhsm"', 'profile = "softhms"', "partitions.p0.profile", "profile 'softhms': did you mean 'softhsm'?"),
        ('profile = "softhsm"', "profile = 3", "partitions.p0.profile", "expected text, got 3"),
        ("workers = 1", "worker = 1", "proxy.worker", "unknown key 'worker': did you mean 'workers'?"),
        ("[proxy.health]", "[proxy.haelth]", "proxy.haelth", "did you mean 'health'?"),
        ("[admin]", "[zzz]", "zzz", "known are admin, modules,"),
        ("deadline_ms = 200", "deadline_ms = 9", "proxy.deadline_ms", "expected a whole number from 10 to 240, got 9"),
        ("deadline_ms = 200", "deadline_ms = 241", "proxy.deadline_ms", "got 241"),
        ("deadline_ms = 200", 'deadline_ms = "200"', "proxy.deadline_ms", "expected a whole number from 10 to 240, got '200'"),
        ("deadline_ms = 200", "deadline_ms = true", "proxy.deadline_ms", "got true"),
        ("workers = 1", "workers = -1", "proxy.workers", "got -1"),
        ("[proxy.health]", "[routing]\nhedge_budget = 1.5\n[proxy.health]", "routing.hedge_budget", "a number from 0 to 1, got 1.5"),
        ("[proxy.health]", '[routing]\nretry_budget = "1"\n[proxy.health]', "routing.retry_budget", "expected a number from 0 to 1"),
        ("[proxy.health]", '[routing]\nsite = "east"\n[proxy.health]', "routing.site", "no partition has the site 'east'"),
        ("sessions = 16", "sessions = 0", "partitions.p0.sessions", "from 1 to 256, got 0"),
        ("sessions = 16", "sessions = 257", "partitions.p0.sessions", "got 257"),
        ('listen = ["127.0.0.1:8443"]', 'listen = "127.0.0.1:8443"', "proxy.listen", "expected a list"),
        ('listen = ["127.0.0.1:8443"]', "listen = [1]", "proxy.listen[0]", "expected text, got 1"),
        ('listen = ["127.0.0.1:8443"]', "listen = []", "proxy.listen", "lists no address"),
        ('listen = ["127.0.0.1:8443"]', 'listen = ["127.0.0.1"]', "proxy.listen", "expected host:port"),
        ('listen = ["127.0.0.1:8443"]', 'listen = ["127.0.0.1:1", "127.0.0.1:1"]', "proxy.listen", "is listed twice"),
        ('listen = "127.0.0.1:8081"', 'listen = "x"', "proxy.health.listen", "expected host:port"),
        ('listen = "127.0.0.1:8444"', 'listen = "x"', "admin.listen", "expected host:port"),
        ('client_ca = ""', 'client_ca = "ca.pem"', "proxy.tls.client_common_name", "mTLS needs both"),
        ('client_common_name = ""', 'client_common_name = "x"', "proxy.tls.client_ca", "mTLS needs both"),
        ('private_key = "server.key"\n', "", "proxy.tls.private_key", "is missing"),
        ('"file:stores.toml"', '"mysql://host/x"', "state.url", "'mysql' is no state that can be read"),
        ('"file:stores.toml"', '"sqlite:///"', "state.url", "names no file"),
        ('"file:stores.toml"', '"file://host/x"', "state.url", "three slashes"),
        (MASTER, MASTER + '\nmaster_key_credential = "m"', "state", "master_key_file and master_key_credential are both set: keep"),
        (MASTER, 'master_key_credential = "/etc/m"', "state.master_key_credential", "a name, as in LoadCredential=, not a path"),
        (MASTER, 'master_key_credential = ".."', "state.master_key_credential", "is no name of a systemd credential"),
        (MASTER, 'master_key_partition = "p1"', "state.master_key_partition", "there is no partition 'p1': known are p0"),
        (MASTER, 'master_key_partition = "p0"\nmaster_key_label = ""', "state.master_key_label", "must have 1 to 200 bytes"),
        (MASTER, MASTER + '\nmaster_key_label = "m"', "state.master_key_label", "a key of master_key_partition, which is not set"),
        (MASTER, 'master_key_passphrase_env = "my secret"', "state.master_key_passphrase_env", "is no name of an environment variable"),
        (MASTER, 'master_key_passphrase = "x"', "state.master_key_passphrase", "did you mean 'master_key_passphrase_env'?"),
        ('module = "hsm_a"', 'module = "hsm_b"', "partitions.p0.module", "there is no module 'hsm_b': did you mean 'hsm_a'?"),
        ('partitions = ["p0"]', 'partitions = ["p1"]', "partition_groups.main.partitions", "no partition 'p1'"),
        ('partitions = ["p0"]', "partitions = []", "partition_groups.main.partitions", "lists no partition"),
        ('partitions = ["p0"]', 'partitions = ["p0", "p0"]', "partition_groups.main.partitions", "'p0' is listed twice"),
        ('token_label = "p0"\n', "", "partitions.p0", "exactly one of token_label, serial and slot"),
        ('token_label = "p0"', 'token_label = "p0"\nslot = 0', "partitions.p0", "got token_label and slot"),
        ('pin_file = "p0.pin"', 'pin_file = "p0.pin"\npin_env = "PIN"', "partitions.p0", "pin_file and pin_env are both set"),
        ('path = "/usr/lib/softhsm/libsofthsm2.so"', 'path = ""', "modules.hsm_a.path", "is empty"),
        ('{ SOFTHSM2_CONF = "/etc/xksfast/a.conf" }', "{ A = 1 }", "modules.hsm_a.environment.A", "expected text"),
        ("[partition_groups.main]", '[partition_groups."a b"]', 'partition_groups."a b"', "a name is 1 to 64"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_named_by_its_dotted_key(refused: Refused, old: str, new: str, key: str, words: str) -> None:
    problems = refused(change(old, new))
    assert words in problems[key], problems


def test_all_problems_are_found_at_once(refused: Refused) -> None:
    text = change("workers = 1", "worker = 1")
    text = change('profile = "softhsm"', 'profile = "softhms"', text)
    text = change("sessions = 16", "sessions = 0", text)
    text = change('partitions = ["p0"]', 'partitions = ["p9"]', text)
    text = change('client_ca = ""', 'client_ca = "x"', text)
    assert set(refused(text)) == {
        "proxy.worker",
        "proxy.tls.client_common_name",
        "partitions.p0.profile",
        "partitions.p0.sessions",
        "partition_groups.main.partitions",
    }


def test_a_broken_table_is_no_reason_to_call_others_wrong(refused: Refused) -> None:
    assert set(refused(change('certificate = "server.pem"', "certificate = 1"))) == {"proxy.tls.certificate"}
    assert set(refused(change('module = "hsm_a"\n', ""))) == {"partitions.p0.module"}


def test_each_problem_is_one_line_with_the_file_it_is_in(load: Load, tmp_path: Path) -> None:
    with pytest.raises(RefusedFile) as caught:
        load(change("workers = 1", "worker = 1\nworkerz = 2"))
    lines = str(caught.value).splitlines()
    assert len(lines) == 2
    assert all(line.startswith(f"{tmp_path / 'xksfast.toml'}: proxy.worker") for line in lines)


def test_two_partitions_on_one_token_are_refused(refused: Refused) -> None:
    text = FULL + '[partitions.p1]\nmodule = "hsm_a"\ntoken_label = "p0"\n'
    assert "partition 'p0' names the same token" in refused(text)["partitions.p1.token_label"]


def test_two_partitions_on_two_tokens_of_one_module_are_fine(load: Load) -> None:
    load(FULL + '[partitions.p1]\nmodule = "hsm_a"\nserial = "p0"\n')


class TestPlaintext:
    """Plain HTTP leaves the machine only when somebody said so."""

    @staticmethod
    def config(proxy: str) -> str:
        return f"[proxy]\n{proxy}\n{MINIMAL}"

    @pytest.mark.parametrize("address", ["127.0.0.1:1", "127.9.9.9:1", "[::1]:1", "localhost:1"])
    def test_loopback_needs_no_tls(self, load: Load, address: str) -> None:
        load(self.config(f'listen = ["{address}"]'))

    @pytest.mark.parametrize("address", ["0.0.0.0:1", "10.0.0.1:1", "[::]:1", "[2001:db8::1]:1"])
    def test_other_addresses_need_tls_or_allow_plaintext(self, load: Load, refused: Refused, address: str) -> None:
        listen = f'listen = ["127.0.0.1:1", "{address}"]'
        assert "would speak plain HTTP to other machines" in refused(self.config(listen))["proxy.listen"]
        load(self.config(listen + "\nallow_plaintext = true"))
        load(self.config(listen + '\n[proxy.tls]\ncertificate = "a"\nprivate_key = "b"'))

    def test_a_plaintext_listener_beside_tls_is_for_this_machine_only(self, load: Load, refused: Refused) -> None:
        tls = '\n[proxy.tls]\ncertificate = "a"\nprivate_key = "b"'
        load(self.config('plaintext_listen = ["127.0.0.1:1"]' + tls))
        problems = refused(self.config('plaintext_listen = ["0.0.0.0:1"]' + tls))
        assert set(problems) == {"proxy.plaintext_listen"}


@pytest.mark.parametrize(
    ("text", "host", "port", "loopback"),
    [
        ("127.0.0.1:8443", "127.0.0.1", 8443, True),
        ("[::1]:8443", "::1", 8443, True),
        ("localhost:0", "localhost", 0, True),
        ("0.0.0.0:65535", "0.0.0.0", 65535, False),
    ],
)
def test_addresses_are_host_and_port(text: str, host: str, port: int, loopback: bool) -> None:
    address = parse_address(text)
    assert (address.host, address.port, address.is_loopback) == (host, port, loopback)
    assert str(address) == text


@pytest.mark.parametrize(
    "text", ["", ":1", "127.0.0.1", "::1:8443", "[::1]", "127.0.0.1:", "127.0.0.1:65536", "127.0.0.1:-1", "127.0.0.1:1x",
             "127.0.0.1:\u0661", "example.com:1", "[127.0.0.1]:1", "300.0.0.1:1"]
)  # fmt: skip
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=re.compile("expected|port|address|brackets")):
        parse_address(text)


@pytest.mark.parametrize(
    ("data", "words"),
    [(b"[proxy", "not TOML"), (b"\xff", "not UTF-8 at byte 0"), (b"a = 1\na = 2\n", "not TOML")],
)
def test_what_is_no_toml_is_said(tmp_path: Path, data: bytes, words: str) -> None:
    (tmp_path / "c.toml").write_bytes(data)
    with pytest.raises(RefusedFile, match=words):
        load_config(tmp_path / "c.toml")


def test_an_absent_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(RefusedFile, match=r"none\.toml: cannot be read: No such file"):
        load_config(tmp_path / "none.toml")


def test_files_that_are_named_and_not_there_are_listed(load: Load, tmp_path: Path) -> None:
    config = load(change('path = "/usr/lib/softhsm/libsofthsm2.so"', 'path = "libsofthsm2.so"'))
    (tmp_path / "server.pem").touch()
    keys = {problem.key for problem in missing_files(config, "xksfast.toml").found}
    assert keys == {"state.master_key_file", "state.url", "proxy.tls.private_key", "partitions.p0.pin_file"}
    config = load(change(MASTER, 'master_key_passphrase_file = "pass"'))
    assert f"there is no file {tmp_path / 'pass'}" in {problem.problem for problem in missing_files(config, "x").found}
