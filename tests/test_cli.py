# SPDX-License-Identifier: Apache-2.0
"""The command line as people and scripts use it: exit codes, texts, and `xksfast dev` end to end."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench.requests import Target, encrypt_document, prove_encrypt
from tests.servers import Process, running_dev, wait_until
from xksfast.admin import dev as development
from xksfast.admin.dev_certificates import Authority, CertificateFiles
from xksfast.config import ProxyHealth

CONFIG = '[proxy]\nlisten = ["127.0.0.1:0"]\n[state]\nurl = "file:stores.toml"\n'


def xksfast(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "xksfast", *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture
def config(tmp_path: Path) -> Path:
    (tmp_path / "xksfast.toml").write_text(CONFIG)
    (tmp_path / "stores.toml").write_text("")
    return tmp_path / "xksfast.toml"


def test_version_is_quick_since_scripts_ask_for_it() -> None:
    took = []
    for _ in range(5):
        began = time.perf_counter()
        done = xksfast("version")
        took.append(time.perf_counter() - began)
    assert re.fullmatch(r"xksfast \d+\.\d+\.\d+\n", done.stdout)
    assert min(took) < 0.15, took
    assert xksfast("--version").stdout == done.stdout
    assert json.loads(xksfast("version", "--json").stdout) == {"version": done.stdout.split()[1]}


@pytest.mark.parametrize(
    "arguments", [["bogus"], ["serve"], ["dev", "--bogus"], ["config", "check"], ["dev", "--workers", "x"]]
)
def test_wrong_usage_is_exit_code_2_without_a_traceback(arguments: list[str]) -> None:
    done = xksfast(*arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert "xksfast" in done.stderr


def in_a_terminal(*arguments: str, **environment: str) -> str:
    """What a person sees."""
    ours, theirs = os.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "xksfast", *arguments],
        env={**os.environ, "TERM": "xterm-256color", **environment},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    text = b""
    try:
        while part := os.read(ours, 65536):
            text += part
    except OSError:  # how a terminal says that nobody holds its other end any more
        pass
    os.close(ours)
    assert process.wait(20) == 0
    return text.decode()


@pytest.mark.parametrize("command", [[], ["serve"], ["dev"], ["config"], ["config", "check"]])
def test_help_has_no_colour_when_it_is_not_wanted(command: list[str]) -> None:
    colour = re.compile(r"\x1b\[[\d;]*\b[349]\d[\d;]*m")
    assert colour.search(in_a_terminal(*command, "--help"))
    plain = in_a_terminal(*command, "--help", NO_COLOR="1")
    assert "Usage" in plain
    assert not colour.search(plain)


def test_config_check_says_good_and_counts(config: Path) -> None:
    done = xksfast("config", "check", str(config))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{config}: good; 0 partitions, 0 key stores, 0 keys\n"
    done = xksfast("config", "check", str(config), "--json")
    assert (done.returncode, json.loads(done.stdout)) == (0, {"ok": True, "problems": []})


def test_config_check_notes_connections_for_which_there_are_no_files(config: Path) -> None:
    check = ["prlimit", "--nofile=512:512", sys.executable, "-m", "xksfast", "config", "check", str(config)]
    done = subprocess.run(check, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "note: proxy.max_connections = 1024 is lowered to 384" in done.stderr
    assert "LimitNOFILE" in done.stderr
    done = subprocess.run([*check, "--json"], capture_output=True, text=True, check=False)
    assert len(json.loads(done.stdout)["notes"]) == 1


def test_config_check_says_all_that_is_wrong_each_on_a_line(config: Path) -> None:
    config.write_text(CONFIG.replace("listen", "workerz = 1\ndeadline_ms = 5\nlisten"))
    expected = [
        f"{config}: proxy.workerz: unknown key 'workerz': did you mean 'workers'?",
        f"{config}: proxy.deadline_ms: expected a whole number from 10 to 240, got 5",
    ]
    done = xksfast("config", "check", str(config))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines() == [f"xksfast: {line}" for line in expected]
    done = xksfast("config", "check", str(config), "--json")
    assert (done.returncode, json.loads(done.stdout)) == (2, {"ok": False, "problems": expected})


def test_config_check_looks_at_the_state_and_at_named_files(config: Path) -> None:
    config.write_text(CONFIG + 'master_key_file = "gone.key"\n')
    (config.parent / "stores.toml").write_text('[key_stores.a]\nregion = "x"\n')
    lines = xksfast("config", "check", str(config)).stderr
    assert f"state.master_key_file: there is no file {config.parent / 'gone.key'}" in lines
    assert "key_stores.a.region" in lines


def test_serve_refuses_what_config_check_refuses_in_the_same_words(config: Path) -> None:
    config.write_text(CONFIG.replace("listen", "listne"))
    checked, served = xksfast("config", "check", str(config)), xksfast("serve", "--config", str(config))
    assert served.returncode == checked.returncode == 2
    assert served.stderr == checked.stderr
    assert "did you mean 'listen'?" in served.stderr


TLS = """
[proxy.tls]
certificate = "server.pem"
private_key = "server.key"
"""


@pytest.mark.parametrize("fault", ["mismatch", "garbage", "intermediate before leaf", "no file"])
def test_config_check_and_serve_refuse_the_same_certificates_in_the_same_words(config: Path, fault: str) -> None:
    directory = config.parent
    config.write_text(CONFIG + TLS)
    for name in ("one", "two"):
        (directory / name).mkdir()
        Authority(directory / name).issue_server(
            CertificateFiles(directory / name / "server.pem", directory / name / "server.key")
        )
    certificate, private_key = directory / "server.pem", directory / "server.key"
    certificate.write_bytes((directory / "one" / "server.pem").read_bytes())
    private_key.write_bytes((directory / "one" / "server.key").read_bytes())
    private_key.chmod(0o600)
    assert xksfast("config", "check", str(config)).returncode == 0
    match fault:
        case "mismatch":
            private_key.write_bytes((directory / "two" / "server.key").read_bytes())
            expected = "is not the private key of the certificate"
        case "garbage":
            certificate.write_text("garbage")
            expected = "is not a PEM certificate chain"
        case "intermediate before leaf":
            certificate.write_bytes((directory / "one" / "dev-ca.pem").read_bytes() + certificate.read_bytes())
            expected = "is not the private key of the certificate"
        case _:
            private_key.unlink()
            expected = f"there is no file {private_key}"
    checked, served = xksfast("config", "check", str(config)), xksfast("serve", "--config", str(config))
    assert served.returncode == checked.returncode == 2
    assert expected in checked.stderr
    assert served.stderr == checked.stderr


@pytest.mark.parametrize("fault", ["mismatch", "passphrase"])
def test_config_check_names_a_certificate_of_administration_that_cannot_be_used(config: Path, fault: str) -> None:
    directory = config.parent
    config.write_text(
        CONFIG.replace("file:stores.toml", "sqlite:///x.db")
        + '[admin]\ncertificate = "server.pem"\nprivate_key = "server.key"\n'
    )
    Authority(directory).issue_server(CertificateFiles(directory / "server.pem", directory / "server.key"))
    assert xksfast("config", "check", str(config)).returncode == 0
    command = {
        "mismatch": ["genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"],
        "passphrase": ["pkey", "-aes256", "-passout", "pass:word", "-in", str(directory / "server.key")],
    }[fault]
    made = subprocess.run(["openssl", *command], capture_output=True, check=True).stdout
    (directory / "server.key").write_bytes(made)
    checked = xksfast("config", "check", str(config))
    assert checked.returncode == 2
    expected = {"mismatch": "do not go together", "passphrase": "is encrypted: store it without a passphrase"}[fault]
    assert expected in checked.stderr


def test_a_traceback_is_for_those_who_ask(config: Path) -> None:
    config.write_text("nonsense")
    assert "Traceback" not in xksfast("serve", "--config", str(config)).stderr
    assert "Traceback" in xksfast("serve", "--config", str(config), XKSFAST_DEBUG="1").stderr


FIELDS = [
    "event", "pid", "url", "tls_url", "ca_file", "admin_url", "admin_token", "key_store", "uri_path_prefix", "region",
    "access_key_id", "secret_access_key", "keys", "key_source",
]  # fmt: skip


@pytest.mark.parametrize("key_source", ["local", "softhsm", "nss"])
def test_dev_tells_all_of_the_contract_and_serves_over_http_and_https(tmp_path: Path, key_source: str) -> None:
    began = time.monotonic()
    with running_dev(tmp_path, key_source) as (ready, process):
        assert time.monotonic() - began < 30.0  # a hang; 5.4 s on a machine where nginx's `return 200` takes 24 us
        assert [name for name in ready if name in FIELDS] == FIELDS
        assert (ready["event"], ready["pid"], ready["key_source"]) == ("ready", process.pid, key_source)
        assert re.fullmatch(r"https://localhost:\d+", ready["admin_url"])
        assert re.fullmatch(r"xkt_[\w-]{43}", ready["admin_token"])
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+", ready["health_url"])
        assert list(ready["keys"]) == ["default", "encrypt_only", "decrypt_only", "no_usage"]
        assert re.fullmatch("[A-Z2-7]{20,30}", ready["access_key_id"])
        assert re.fullmatch("[A-Za-z0-9+/=]{43,64}", ready["secret_access_key"])
        for tls in (False, True):
            prove_encrypt(Target.from_dev(ready, tls=tls), ready["keys"]["default"], encrypt_document())
        target = Target.from_dev(ready)
        for name in ("decrypt_only", "no_usage"):
            status, answer = target.post(target.path(ready["keys"][name], "encrypt"), encrypt_document())
            assert (status, answer["errorName"]) == (400, "InvalidKeyUsageException")


@pytest.mark.parametrize("key_source", ["local", "softhsm", "nss"])
def test_a_data_directory_is_opened_again_with_its_credential_and_keys(tmp_path: Path, key_source: str) -> None:
    document = encrypt_document()
    with running_dev(tmp_path, key_source) as (first, _):
        answer = prove_encrypt(Target.from_dev(first), first["keys"]["default"], document)
    with running_dev(tmp_path, key_source) as (second, _):
        assert second["access_key_id"] == first["access_key_id"]
        assert second["secret_access_key"] == first["secret_access_key"]
        target = Target.from_dev(second)
        back = {
            "requestMetadata": document["requestMetadata"],
            "encryptionAlgorithm": "AES_GCM",
            "additionalAuthenticatedData": document["additionalAuthenticatedData"],
            **{name: answer[name] for name in ("ciphertext", "initializationVector", "authenticationTag")},
        }
        status, opened = target.post(target.path(second["keys"]["default"], "decrypt"), back)
        assert (status, opened.get("plaintext")) == (200, document["plaintext"])


def test_a_data_directory_is_not_opened_with_another_key_source(tmp_path: Path) -> None:
    with running_dev(tmp_path, "local"):
        pass
    done = xksfast("dev", "--data", str(tmp_path / "data"), "--key-source", "softhsm")
    assert done.returncode == 2
    assert "was made with --key-source local" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_dev_ends_by_a_signal_with_0_no_process_and_no_directory(tmp_path: Path, number: signal.Signals) -> None:
    process = dev(tmp_path)
    ready = json.loads(process.first_line())
    children = process.children("_worker") + process.children("_control")
    assert len(children) == 2
    directory = Path(ready["ca_file"]).parent
    assert directory.is_dir()
    assert process.stop(number) == 0
    assert not directory.exists()
    assert not any(Path(f"/proc/{pid}").exists() for pid in children)
    assert process.stdout_file.read_text().count("\n") == 1


@pytest.mark.parametrize("delay_s", [0.15, 0.25, 0.35, 0.45, 0.6])
def test_dev_stopped_while_it_starts_leaves_nothing(tmp_path: Path, delay_s: float) -> None:
    process = dev(tmp_path, TMPDIR=str(tmp_path))
    time.sleep(delay_s)  # not a wait for anything: the moment is what is tried
    began = time.monotonic()
    process.stop(signal.SIGTERM)
    assert time.monotonic() - began < 5, "there are no requests to wait for"
    assert list(tmp_path.glob("xksfast-dev-*")) == []
    assert process.children("") == []


def dev(directory: Path, *arguments: str, **environment: str) -> Process:
    addresses = ["--http", "127.0.0.1:0", "--tls", "127.0.0.1:0"]
    return Process(["dev", "--json", *addresses, *arguments], directory / "logs", environment)


def test_what_dev_prints_for_people_works_when_pasted(tmp_path: Path) -> None:
    process = Process(["dev", "--http", "127.0.0.1:0", "--tls", "127.0.0.1:0", "--key-source", "local"], tmp_path)
    try:
        text = wait_until(lambda: (t := process.stdout_file.read_text()) and "Ctrl-C" in t and t, "the text", 20)
        assert "NOT FOR PRODUCTION" in text
        (line,) = [line for line in text.splitlines() if line.startswith("curl ")]
        done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=20, check=True)
        answer = json.loads(done.stdout)
        assert {"ciphertext", "initializationVector", "authenticationTag"} <= set(answer)
        export = text[text.index("export XKS_PROXY_HOST") : text.index("Ctrl-C")]
        names = "XKS_PROXY_HOST URI_PREFIX SCHEME REGION SIGV4_ACCESS_KEY_ID SIGV4_SECRET_ACCESS_KEY KEY_ID"
        check = export + f'\nfor name in {names}; do test -n "${{!name}}" || exit 1; done'
        subprocess.run(["bash", "-c", check], timeout=20, check=True)
    finally:
        assert process.stop() == 0


def test_dev_listens_for_health_at_the_usual_address_or_at_a_free_one(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        usual = f"127.0.0.1:{taken.getsockname()[1]}"
        monkeypatch.setattr(development, "ProxyHealth", lambda: ProxyHealth(listen=usual))
        assert development.default_health() == "127.0.0.1:0"
    assert development.default_health() == usual


def test_dev_without_a_health_listener_says_so(tmp_path: Path) -> None:
    with running_dev(tmp_path, "local", "--health", "") as (ready, _):
        assert ready["health_url"] is None


def test_a_port_in_use_is_said_in_one_line(tmp_path: Path) -> None:
    with running_dev(tmp_path, "local") as (ready, _):
        port = ready["url"].rpartition(":")[2]
        done = xksfast("dev", "--http", f"127.0.0.1:{port}", "--tls", "127.0.0.1:0", "--key-source", "local")
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("xksfast: ")]
    assert f"cannot listen on 127.0.0.1:{port}: another program listens there" in line


def test_an_unknown_key_source_is_said_with_the_known_ones() -> None:
    done = xksfast("dev", "--key-source", "softhms")
    assert done.returncode == 2
    assert "softhsm" in done.stderr


def test_a_worker_is_small_and_holds_no_tools_for_people(tmp_path: Path) -> None:
    key_source = "softhsm" if shutil.which("softhsm2-util") else "local"
    with running_dev(tmp_path, key_source) as (ready, process):
        prove_encrypt(Target.from_dev(ready), ready["keys"]["default"], encrypt_document())
        (worker,) = process.children("_worker")
        status = Path(f"/proc/{worker}/status").read_text()
        rss_kib = int(re.search(r"VmRSS:\s+(\d+)", status).group(1))  # type: ignore[union-attr]
        maps = Path(f"/proc/{worker}/maps").read_text()
    assert rss_kib < 60 * 1024
    for library in ("pkcs11/_pkcs11", "cryptography/hazmat", "_sqlite3"):
        assert library not in maps


def test_children_do_not_import_what_only_people_need() -> None:
    code = (
        "import sys; sys.argv = ['xksfast', 'version']; import xksfast.cli, xksfast.proxy.worker, xksfast.admin.control; "
        "xksfast.cli.main(); print(sorted(name for name in ('typer', 'rich', 'cryptography', 'pkcs11') if name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
