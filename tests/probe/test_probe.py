# SPDX-License-Identifier: Apache-2.0
"""`xksfast test`: no false alarm on proxies that are right, and for every way of being wrong the case that is meant for it finds it."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import sys
import threading
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.fix_proxy import RunningProxy
from tests.probe.any_api import CREDENTIALS, FOREIGN, PREFIX, REGION
from tests.probe.any_proxy import AnyProxy, serving
from tests.probe.wrongness import EXTRA, FOUND_BY
from tests.setups import ACCESS_KEY_IDS, Setup
from tests.setups import REGION as SETUP_REGION
from xksfast import cli
from xksfast.admin.dev_certificates import Authority, CertificateFiles
from xksfast.probe import client
from xksfast.probe.case import CASES, Verdict
from xksfast.probe.run import Report, Result, chosen, run
from xksfast.probe.target import Address, Credential, Keys, Target

KMS = "cks.kms.eu-central-1.amazonaws.com"
SECRET = next(iter(CREDENTIALS.values()))
ALL_KEYS = Keys("k-default", "k-encrypt", "k-decrypt", "k-none", "k-disabled", "k-denied")


def target(port: int, **changes: Any) -> Target:
    """An AnyProxy at this port, everything given."""
    first, second = (Credential(*item) for item in CREDENTIALS.items())
    (foreign,) = (Credential(*item) for item in FOREIGN.items())
    values: dict[str, Any] = {
        "address": Address(False, "127.0.0.1", port, PREFIX), "region": REGION, "credential": first, "keys": ALL_KEYS,
        "second": second, "foreign": foreign, "rounds": 5,
    }  # fmt: skip
    return Target(**{**values, **changes})


def bad(report: Report) -> dict[str, tuple[str, ...]]:
    """What is wrong or too slow, by case."""
    return {r.case.name: r.seen for r in report.results if r.verdict in (Verdict.WRONG, Verdict.TOO_SLOW)}


def result(report: Report, name: str) -> Result:
    return next(one for one in report.results if one.case.name == name)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What never answers is given up sooner."""
    monkeypatch.setattr(client, "TIMEOUT_S", 1.0)


# --- proxies that are right


def test_a_right_proxy_gives_no_alarm() -> None:
    with serving(AnyProxy()) as port:
        report = run(target(port))
    assert bad(report) == {}
    assert report.exit_code == 0
    assert {r.case.name for r in report.results if r.verdict is Verdict.CANNOT_TELL} <= {"reach.kms-address", "load.distance"}
    untried = {r.case.name for r in report.results if r.verdict is Verdict.NOT_TRIED}
    assert untried == {name for name, case in CASES.items() if case.area == "tls"} | {"load.quota"}


@pytest.mark.parametrize("difference", EXTRA)
def test_a_proxy_that_is_right_in_another_way_gives_no_alarm(difference: str) -> None:
    with serving(AnyProxy(difference)) as port:
        report = run(target(port), ("encrypt", "decrypt", "bodies", "http", "answers"))
    assert bad(report) == {}
    doubted = {"tells an empty AAD apart": {"encrypt.empty-aad"}, "no Expect": {"http.expect-continue"}}
    assert {r.case.name for r in report.results if r.verdict is Verdict.CANNOT_TELL} == doubted.get(difference, set())


class Done(NamedTuple):
    """What a command ended with."""

    returncode: int
    stdout: str
    stderr: str


Command = Callable[..., Done]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """`xksfast test …` in this process. Keywords: environment."""

    def run_it(*arguments: str, **environment: str) -> Done:
        monkeypatch.setattr(sys, "argv", ["xksfast", "test", *arguments])
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        return Done(cli.main(), *capsys.readouterr())

    return run_it


def dev_arguments(ready: dict[str, Any]) -> list[str]:
    keys = ready["keys"]
    return [
        "--access-key-id", ready["access_key_id"], "--region", ready["region"], "--key", keys["default"],
        "--encrypt-only-key", keys["encrypt_only"], "--decrypt-only-key", keys["decrypt_only"], "--no-usage-key", keys["no_usage"],
        "--rounds", "10",
    ]  # fmt: skip


@pytest.mark.parametrize("key_source", ["local", "softhsm"])
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_our_own_proxy_gives_no_alarm(
    proxies: dict[str, RunningProxy], scheme: str, key_source: str, tmp_path: Path, command: Command
) -> None:
    ready = proxies[key_source].ready
    url = (ready["url"] if scheme == "http" else ready["tls_url"]) + ready["uri_path_prefix"]
    junit = tmp_path / "report.xml"
    done = command(
        url, *dev_arguments(ready), "--plaintext-http", "--ca", ready["ca_file"], "--json", "--junit", str(junit),
        XKSFAST_TEST_SECRET_ACCESS_KEY=ready["secret_access_key"],
    )  # fmt: skip
    document = json.loads(done.stdout)
    assert [case for case in document["cases"] if case["verdict"] in ("wrong", "too slow")] == []
    assert done.returncode == 0 == document["exit_code"]
    assert document["counts"]["ok"] >= 55 + 4 * (scheme == "https")
    tried = {case["name"] for case in document["cases"] if case["verdict"] != "not tried"}
    assert ("tls.suites" in tried) == (scheme == "https")
    suite = ElementTree.parse(junit).getroot()
    assert (suite.get("failures"), suite.get("tests")) == ("0", str(len(CASES)))
    for text in (done.stdout, done.stderr, junit.read_text()):
        assert ready["secret_access_key"] not in text


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setup]:
    """`xksfast serve` with two key stores, two credentials in the first, a disabled key, and TLS that demands a client certificate."""
    setup = Setup(tmp_path_factory.mktemp("own"))
    setup.stores["key_stores"] = {
        "one": setup.local_store("/one", *ACCESS_KEY_IDS[:2]),
        "two": setup.local_store("/two", ACCESS_KEY_IDS[2]),
    }
    setup.stores["key_stores"]["one"]["keys"] |= {"off": {"label": "off", "create": True, "enabled": False}}
    authority = setup.use_tls(client_common_name=KMS)
    authority.issue_client(CertificateFiles(setup.directory / "kms.pem", setup.directory / "kms.key"), KMS)
    with setup.running():
        yield setup


def own_target(setup: Setup, **changes: Any) -> Target:
    first, second, foreign = (Credential(name, setup.secrets[name]) for name in ACCESS_KEY_IDS)
    values: dict[str, Any] = {"address": Address(False, "127.0.0.1", setup.port, "/one"), "keys": Keys("k1", disabled="off")}
    return Target(**{"region": SETUP_REGION, "credential": first, "second": second, "foreign": foreign, **values, **changes})


def test_a_disabled_key_and_two_credentials_of_our_own(own: Setup) -> None:
    report = run(own_target(own), ("authentication", "rights"))
    assert bad(report) == {}
    for name in ("authentication.second-credential", "authentication.foreign-credential", "rights.disabled"):
        assert result(report, name).verdict is Verdict.OK


def test_mutual_tls_of_our_own_gives_no_alarm(own: Setup) -> None:
    ours = own_target(
        own,
        address=Address(True, "localhost", own.tls_port, "/one"),
        ca_file=own.directory / "dev-ca.pem",
        client_certificate=own.directory / "kms.pem",
        client_key=own.directory / "kms.key",
    )
    report = run(ours, ("tls", "encrypt.round-trip"))
    assert bad(report) == {}
    assert result(report, "tls.client-certificate").verdict is Verdict.OK


def test_without_a_key_what_needs_none_is_tried() -> None:
    with serving(AnyProxy()) as port:
        report = run(target(port, keys=Keys(), second=None, foreign=None))
    assert bad(report) == {}
    tried = {r.case.name for r in report.results if r.verdict is Verdict.OK}
    assert {"health.members", "authentication.wrong-secret", "http.malformed", "bodies.empty"} <= tried
    assert all("--key" in r.seen[0] for r in report.results if r.case.name in ("encrypt.round-trip", "decrypt.altered-tag"))


# --- proxies that are wrong


@pytest.mark.parametrize("switch", sorted(FOUND_BY))
def test_each_wrongness_is_found_by_the_case_meant_for_it(switch: str, impatient: None) -> None:
    name = FOUND_BY[switch]
    only = (name, "bodies.missing-members", "bodies.unlike-base64") if name.startswith("answers.") else (name,)
    quota = 30 if name == "load.quota" else 0
    with serving(AnyProxy(switch, quota=quota)) as port:
        report = run(target(port, quota=20 if quota else 0), only)
    found = result(report, name)
    assert found.verdict is Verdict.WRONG, found.seen
    assert report.exit_code == 1
    assert found.seen
    assert all(SECRET not in text for text in found.seen)


def test_every_case_but_those_of_the_connection_has_a_wrongness() -> None:
    elsewhere = {
        "reach.connects",
        "reach.kms-address",
        "load.latency",
        "load.new-connection",
        "load.distance",
        "encrypt.empty-aad",
    }
    named = set(FOUND_BY.values()) | elsewhere | {"bodies.unlike-base64"}
    assert {name for name, case in CASES.items() if case.area != "tls"} == named


def test_lenient_base64_is_found_in_both_directions() -> None:
    with serving(AnyProxy("lenient Base64")) as port:
        assert result(run(target(port), ("bodies.unlike-base64",)), "bodies.unlike-base64").verdict is Verdict.WRONG


def test_a_slow_operation_is_too_slow_and_not_wrong() -> None:
    proxy = AnyProxy()
    proxy.delay_s["metadata"] = 0.26
    with serving(proxy) as port:
        report = run(target(port), ("load.latency", "metadata.members"))
    assert report.exit_code == 4
    assert {name: result(report, name).verdict for name in ("load.latency", "metadata.members", "encrypt.round-trip")} == {
        "load.latency": Verdict.TOO_SLOW, "metadata.members": Verdict.TOO_SLOW, "encrypt.round-trip": Verdict.OK,
    }  # fmt: skip


def test_one_hiccup_is_no_news() -> None:
    proxy = AnyProxy()
    proxy.delay_s["metadata"], proxy.delayed_calls = 0.26, 1
    with serving(proxy) as port:
        report = run(target(port), ("metadata.members",))
    assert proxy.delayed_calls == 0
    assert result(report, "metadata.members").verdict is Verdict.OK


def test_a_quota_that_throttles_is_right_and_the_same_among_fifty_cannot_be_told() -> None:
    with serving(AnyProxy(quota=30)) as port:
        report = run(target(port, quota=20), ("load.quota",))
        assert result(report, "load.quota").verdict is Verdict.OK
    with serving(AnyProxy(quota=20)) as port:
        report = run(target(port), ("load.fifty-at-once",))
    assert result(report, "load.fifty-at-once").verdict is Verdict.CANNOT_TELL
    assert report.exit_code == 0


def test_an_answer_without_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "MAX_ANSWER_BYTES", 100_000)

    def babble(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection, contextlib.suppress(OSError):
            connection.recv(65536)
            connection.sendall(b"HTTP/1.1 200 OK\r\n")
            while True:
                connection.sendall(b"X: " + b"x" * 1000 + b"\r\n")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=babble, args=(listener,))
        thread.start()
        address, too_long = Address(False, "127.0.0.1", listener.getsockname()[1]), "longer than 100000 bytes"
        with client.Connection(address, None) as connection, pytest.raises(client.BadAnswer, match=too_long):
            connection.call(b"POST / HTTP/1.1\r\n\r\n")
        thread.join(10)
        assert not thread.is_alive()


def test_nothing_there_is_said_once() -> None:
    with serving(AnyProxy()) as port:
        pass
    report = run(target(port))
    assert report.exit_code == 1
    assert list(bad(report)) == ["reach.connects"]
    assert all(r.verdict in (Verdict.NOT_TRIED, Verdict.CANNOT_TELL) for r in report.results[1:])


def test_a_wrong_credential_is_one_finding_and_no_refusal_counts_as_right() -> None:
    with serving(AnyProxy()) as port:
        report = run(target(port, credential=Credential("A" * 20, "another")))
    assert "authentication.wrong-secret" not in {r.case.name for r in report.results if r.verdict is Verdict.OK}
    assert next(iter(bad(report))) == "health.answers"
    assert "AuthenticationFailedException" in bad(report)["health.answers"][0]


# --- TLS


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def server_context(tmp_path: Path, authority: Authority) -> ssl.SSLContext:
    files = CertificateFiles(tmp_path / "server.pem", tmp_path / "server.key")
    authority.issue_server(files)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.certificate, files.private_key)
    return context


def tls_target(port: int, authority: Authority, **changes: Any) -> Target:
    address = Address(True, changes.pop("host", "localhost"), port, PREFIX)
    return target(port, address=address, ca_file=authority.files.certificate, **changes)


def test_a_right_tls_server_gives_no_alarm(authority: Authority, server_context: ssl.SSLContext) -> None:
    server_context.minimum_version = ssl.TLSVersion.TLSv1_2
    with serving(AnyProxy(), server_context) as port:
        report = run(tls_target(port, authority), ("tls", "reach", "http"))
    assert bad(report) == {}
    assert result(report, "tls.suites").verdict is Verdict.OK


def test_suites_with_aes_128_only_are_wrong(authority: Authority, server_context: ssl.SSLContext) -> None:
    server_context.maximum_version = ssl.TLSVersion.TLSv1_2
    server_context.set_ciphers("ECDHE-ECDSA-AES128-GCM-SHA256")
    with serving(AnyProxy(), server_context) as port:
        report = run(tls_target(port, authority), ("tls.suites",))
    assert result(report, "tls.suites").verdict is Verdict.WRONG


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tls_1_1_is_wrong(authority: Authority, server_context: ssl.SSLContext) -> None:
    server_context.minimum_version = ssl.TLSVersion.TLSv1
    server_context.set_ciphers("ALL:@SECLEVEL=0")
    with serving(AnyProxy(), server_context) as port:
        report = run(tls_target(port, authority), ("tls.old-versions",))
    assert result(report, "tls.old-versions").verdict is Verdict.WRONG


def test_a_certificate_for_another_name_is_wrong(authority: Authority, tmp_path: Path) -> None:
    files = CertificateFiles(tmp_path / "other.pem", tmp_path / "other.key")
    authority.issue_server(files, ("xks.example.com",))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.certificate, files.private_key)
    with serving(AnyProxy(), context) as port:
        report = run(tls_target(port, authority), ("reach.connects",))
    assert report.exit_code == 1
    assert "certificate" in result(report, "reach.connects").seen[0]


def test_a_certificate_that_soon_expires_is_wrong(
    authority: Authority, server_context: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    from xksfast.probe.cases import reach

    monkeypatch.setattr(reach, "SOON_DAYS", 100)
    with serving(AnyProxy(), server_context) as port:
        report = run(tls_target(port, authority), ("tls.certificate",))
    assert result(report, "tls.certificate").verdict is Verdict.WRONG


@pytest.fixture
def client_files(tmp_path: Path, authority: Authority) -> CertificateFiles:
    files = CertificateFiles(tmp_path / "client.pem", tmp_path / "client.key")
    authority.issue_client(files, "cks.kms.us-east-1.amazonaws.com")
    return files


@pytest.mark.parametrize("demanded", [True, False])
def test_mutual_tls_that_is_not_demanded_is_wrong(
    demanded: bool, authority: Authority, server_context: ssl.SSLContext, client_files: CertificateFiles
) -> None:
    server_context.load_verify_locations(authority.files.certificate)
    server_context.verify_mode = ssl.CERT_REQUIRED if demanded else ssl.CERT_NONE
    with serving(AnyProxy(), server_context) as port:
        ours = tls_target(port, authority, client_certificate=client_files.certificate, client_key=client_files.private_key)
        report = run(ours, ("tls.client-certificate",))
    assert result(report, "tls.client-certificate").verdict is (Verdict.OK if demanded else Verdict.WRONG)


# --- the command


@pytest.fixture
def any_proxy() -> Iterator[int]:
    with serving(AnyProxy("no fleet size", "tag unchecked")) as port:
        yield port


def test_people_read_what_is_wrong_why_and_what_to_do(any_proxy: int, command: Command) -> None:
    done = command(
        f"http://127.0.0.1:{any_proxy}{PREFIX}/kms/xks/v1", "--plaintext-http", "--access-key-id", "A" * 20, "--region", REGION,
        "--key", "k-default", "--only", "health", "--only", "decrypt.altered-tag", "--calls", XKSFAST_TEST_SECRET_ACCESS_KEY=SECRET,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    for text in (
        "WRONG",
        "xksProxyFleetSize",
        "Why it matters",
        "What to do",
        "400 InvalidCiphertextException",
        "decrypt.altered-tag",
    ):
        assert text in done.stdout
    assert SECRET not in done.stdout + done.stderr


def test_junit_has_failures_with_reasons(any_proxy: int, tmp_path: Path, command: Command) -> None:
    secret = tmp_path / "secret"
    secret.write_text(SECRET + "\n")
    secret.chmod(0o600)
    done = command(
        f"http://127.0.0.1:{any_proxy}{PREFIX}", "--plaintext-http", "--access-key-id", "A" * 20, "--region", REGION,
        "--only", "health", "--secret-access-key-file", str(secret), "--junit", str(tmp_path / "junit.xml"),
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    failures = ElementTree.parse(tmp_path / "junit.xml").findall(".//failure")
    assert len(failures) == 1
    assert "xksProxyFleetSize" in str(failures[0].get("message"))
    assert "What to do" in str(failures[0].text)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["http://localhost/dev"], "--plaintext-http"),
        (["ftp://localhost"], "is no URL"),
        (["https://user:word@localhost"], "a user, a query or a fragment"),
        (["https://localhost/a b"], "path prefix"),
        (["https://localhost:99999"], "ort"),
        (["https://localhost", "--only", "decrypt.altered-tga"], "did you mean 'decrypt.altered-tag'"),
        (["https://localhost", "--ca", "/nowhere"], "there is no file /nowhere"),
        (["https://localhost", "--client-certificate", "x.pem"], "belong together"),
        (["https://localhost", "--key", "a b"], "is no external key id"),
        (["https://localhost", "--foreign-access-key-id", "a/b"], "--foreign-access-key-id"),
        (["https://l\u00f6calhost"], "in ASCII"),
        (["https://localhost", "--second-access-key-id", "B"], "XKSFAST_TEST_SECOND_SECRET_ACCESS_KEY"),
        (["https://localhost", "--secret-access-key-file", "/nowhere"], "/nowhere"),
    ],
)
def test_wrong_usage_is_explained(arguments: list[str], said: str, command: Command) -> None:
    done = command(*arguments, "--access-key-id", "A" * 20, "--region", REGION, XKSFAST_TEST_SECRET_ACCESS_KEY=SECRET)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr
    assert SECRET not in done.stderr


def test_help_can_be_read(command: Command) -> None:
    done = command("--help")
    assert done.returncode == 0
    for option in ("URL", "--plaintext-http", "--decrypt-only-key", "--junit"):
        assert option in done.stdout.replace("url", "URL")


def test_a_secret_that_others_can_read_is_refused(tmp_path: Path, command: Command) -> None:
    file = tmp_path / "secret"
    file.write_text(SECRET)
    file.chmod(0o644)
    done = command("https://localhost", "--access-key-id", "A", "--region", REGION, "--secret-access-key-file", str(file))
    assert done.returncode == 2
    assert "chmod 600" in done.stderr


def test_only_names_cases_areas_and_patterns() -> None:
    assert chosen(("decrypt.again",)) == ["decrypt.again"]
    assert set(chosen(("*.altered-*",))) == {
        f"decrypt.altered-{what}" for what in ("ciphertext", "tag", "iv", "aad", "metadata")
    }
    assert set(chosen(("health", "rights"))) == {name for name, case in CASES.items() if case.area in ("health", "rights")}
