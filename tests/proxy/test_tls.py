# SPDX-License-Identifier: Apache-2.0
"""TLS as KMS speaks it, against a running proxy, with Python's ssl and curl as peers."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.servers import Process, wait_until
from tests.setups import ACCESS_KEY_IDS, REGION, Setup
from xksfast.admin.dev_certificates import Authority, CertificateFiles

requirement = pytest.mark.requirement
KMS = "cks.kms.eu-central-1.amazonaws.com"


@pytest.fixture
def setup(tmp_path: Path) -> Setup:
    setup = Setup(tmp_path)
    setup.use_tls()
    return setup


@pytest.fixture
def server(setup: Setup) -> Iterator[Process]:
    with setup.running() as process:
        yield process


def context(setup: Setup, client: CertificateFiles | None = None) -> ssl.SSLContext:
    made = ssl.create_default_context(cafile=str(setup.directory / "dev-ca.pem"))
    if client is not None:
        made.load_cert_chain(client.certificate, client.private_key)
    return made


def connect(setup: Setup, made: ssl.SSLContext) -> ssl.SSLSocket:
    raw = socket.create_connection(("127.0.0.1", setup.tls_port), timeout=5)
    try:
        return made.wrap_socket(raw, server_hostname="localhost")
    except BaseException:
        raw.close()
        raise


def request(setup: Setup) -> bytes:
    client = setup.client()
    path, body = client.path("health"), json.dumps(client.valid("health")).encode()
    headers = client.target.sign(path, body) | {"Content-Length": str(len(body))}
    return (f"POST {path} HTTP/1.1\r\n" + "".join(f"{n}: {v}\r\n" for n, v in headers.items()) + "\r\n").encode() + body


def ask(setup: Setup, connection: ssl.SSLSocket) -> bytes:
    """The status line of one request over an open connection."""
    connection.sendall(request(setup))
    answer = b""
    while b"\r\n\r\n" not in answer or not answer.endswith(b"}"):
        part = connection.recv(4096)
        if not part:
            break
        answer += part
    return answer.split(b"\r\n")[0]


OK = b"HTTP/1.1 200 OK"


@requirement(4, 5)
@pytest.mark.parametrize(
    ("version", "suite"),
    [
        (ssl.TLSVersion.TLSv1_3, None),
        (ssl.TLSVersion.TLSv1_2, "ECDHE-ECDSA-AES256-GCM-SHA384"),
    ],
)
def test_the_suites_of_the_api_are_served(setup: Setup, server: Process, version: ssl.TLSVersion, suite: str | None) -> None:
    made = context(setup)
    made.minimum_version = made.maximum_version = version
    if suite:
        made.set_ciphers(suite)
    with connect(setup, made) as connection:
        assert connection.cipher()[0] == (suite or "TLS_AES_256_GCM_SHA384")  # type: ignore[index]
        assert ask(setup, connection) == OK


@requirement(4, 5)
@pytest.mark.parametrize(
    "suite", ["ECDHE-ECDSA-AES128-GCM-SHA256", "ECDHE-ECDSA-AES256-SHA384", "ECDHE-ECDSA-CHACHA20-POLY1305"]
)
def test_no_other_suite_is_served(setup: Setup, server: Process, suite: str) -> None:
    made = context(setup)
    made.maximum_version = ssl.TLSVersion.TLSv1_2
    made.set_ciphers(suite)
    with pytest.raises(ssl.SSLError, match="HANDSHAKE_FAILURE"):
        connect(setup, made)


@requirement(4)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tls_1_1_is_refused(setup: Setup, server: Process) -> None:
    made = context(setup)
    made.minimum_version = made.maximum_version = ssl.TLSVersion.TLSv1_1
    made.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.raises(ssl.SSLError):
        connect(setup, made)


@requirement(3)
def test_alpn_falls_back_to_http_1_1(setup: Setup, server: Process) -> None:
    made = context(setup)
    made.set_alpn_protocols(["h2", "http/1.1"])
    with connect(setup, made) as connection:
        assert connection.selected_alpn_protocol() == "http/1.1"
        assert ask(setup, connection) == OK


@requirement(6)
def test_a_big_request_in_small_records_is_served(setup: Setup, server: Process) -> None:
    with connect(setup, context(setup)) as connection:
        for byte in request(setup):
            connection.send(bytes([byte]))
        assert connection.recv(4096).startswith(OK)


def test_certificates_are_reloaded_without_a_lost_connection(setup: Setup, server: Process) -> None:
    with connect(setup, context(setup)) as old:
        former = old.getpeercert(binary_form=True)
        for name in ("server.pem", "server.key"):
            (setup.directory / name).unlink()
        Authority(setup.directory).issue_server(
            CertificateFiles(setup.directory / "server.pem", setup.directory / "server.key")
        )
        server.popen.send_signal(signal.SIGHUP)
        wait_until(lambda: server.events("certificates_reloaded"), "reloaded")
        with connect(setup, context(setup)) as new:
            assert new.getpeercert(binary_form=True) != former
            assert ask(setup, new) == OK
        assert ask(setup, old) == OK


def test_a_broken_certificate_is_reported_and_the_former_stays(setup: Setup, server: Process) -> None:
    (setup.directory / "server.pem").write_text("not a certificate")
    server.popen.send_signal(signal.SIGHUP)
    (line,) = wait_until(lambda: server.events("certificates_kept"), "reported")
    assert "server.pem" in line["problem"]
    with connect(setup, context(setup)) as connection:
        assert ask(setup, connection) == OK


def test_a_private_key_that_others_can_read_is_refused(setup: Setup) -> None:
    (setup.directory / "server.key").chmod(0o644)
    process = setup.start(ready=False)
    assert process.popen.wait(20) == 2
    assert "chmod 600" in process.log_file.read_text()


def test_a_private_key_with_a_passphrase_is_refused_and_nobody_is_asked_for_it(setup: Setup) -> None:
    key = setup.directory / "server.key"
    subprocess.run(
        ["openssl", "pkey", "-in", str(key), "-aes256", "-passout", "pass:locked", "-out", str(key) + "2"],
        check=True, capture_output=True,
    )  # fmt: skip
    Path(str(key) + "2").rename(key)
    key.chmod(0o600)
    process = setup.start(ready=False)
    assert process.popen.wait(20) == 2
    text = process.log_file.read_text()
    assert "server.key: needs a passphrase" in text
    assert "Enter PEM" not in text


def s_client(setup: Setup, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["openssl", "s_client", "-connect", f"127.0.0.1:{setup.tls_port}", "-brief", *arguments]
    return subprocess.run(command, input="", capture_output=True, text=True, check=False, timeout=20)


@pytest.mark.parametrize("groups", ["X25519", "P-256", "P-384"])
def test_a_client_with_a_fast_group_is_served(setup: Setup, server: Process, groups: str) -> None:
    done = s_client(setup, "-groups", groups)
    assert done.returncode == 0, done.stderr
    assert "CONNECTION ESTABLISHED" in done.stderr


@pytest.mark.parametrize("groups", ["ffdhe8192", "ffdhe2048", "P-521"])
def test_a_client_that_has_slow_groups_only_is_refused(setup: Setup, server: Process, groups: str) -> None:
    done = s_client(setup, "-groups", groups)
    assert done.returncode != 0
    assert "handshake failure" in done.stderr
    wait_until(lambda: server.events("tls_handshake_refused"), "logged")


def test_garbage_instead_of_a_handshake_ends_the_connection(setup: Setup, server: Process) -> None:
    with socket.create_connection(("127.0.0.1", setup.tls_port), timeout=5) as raw:
        raw.sendall(b"GET / HTTP/1.1\r\n\r\n" * 10)
        raw.recv(4096)
        assert raw.recv(4096) == b""
    with connect(setup, context(setup)) as connection:
        assert ask(setup, connection) == OK


def test_a_flood_of_handshakes_does_not_stop_a_served_connection(setup: Setup, server: Process) -> None:
    stop = threading.Event()

    def flood() -> None:
        made = context(setup)
        while not stop.is_set():
            with contextlib.suppress(OSError):
                connect(setup, made).close()

    with connect(setup, context(setup)) as served:
        threads = [threading.Thread(target=flood) for _ in range(8)]
        for thread in threads:
            thread.start()
        try:
            answers = [ask(setup, served) for _ in range(100)]
        finally:
            stop.set()
            for thread in threads:
                thread.join(10)
        assert answers == [OK] * 100


class TestMutualTls:
    """Client CA and subject name, both."""

    @pytest.fixture
    def setup(self, tmp_path: Path) -> Setup:
        setup = Setup(tmp_path)
        self.authority = setup.use_tls(client_common_name=KMS)
        return setup

    def client_files(self, setup: Setup, kind: str) -> CertificateFiles | None:
        files = CertificateFiles(setup.directory / "client.pem", setup.directory / "client.key")
        match kind:
            case "kms":
                self.authority.issue_client(files, KMS)
            case "other name":
                self.authority.issue_client(files, "cks.kms.us-east-1.amazonaws.com")
            case "expired":
                self.authority.issue_client(files, KMS, days=-1)
            case "other authority":
                other = setup.directory / "other"
                other.mkdir()
                Authority(other).issue_client(files, KMS)
            case "server certificate":
                self.authority.issue_server(files, (KMS,))
            case _:
                return None
        return files

    @requirement(135, 136, 138)
    @pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
    def test_kms_is_let_in(self, setup: Setup, server: Process, version: ssl.TLSVersion) -> None:
        made = context(setup, self.client_files(setup, "kms"))
        made.minimum_version = made.maximum_version = version
        with connect(setup, made) as connection:
            assert ask(setup, connection) == OK

    @requirement(137, 139, 165)
    @pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
    @pytest.mark.parametrize("kind", ["other name", "expired", "other authority", "server certificate"])
    def test_anyone_else_ends_with_the_alert_handshake_failure(
        self, setup: Setup, server: Process, kind: str, version: ssl.TLSVersion
    ) -> None:
        made = context(setup, self.client_files(setup, kind))
        made.minimum_version = made.maximum_version = version
        with pytest.raises(ssl.SSLError, match="HANDSHAKE_FAILURE"), connect(setup, made) as connection:
            connection.recv(1)
        (line,) = wait_until(lambda: server.events("tls_handshake_refused"), "logged")
        assert "client certificate refused" in line["reason"]

    @requirement(137)
    def test_no_certificate_at_all_is_refused(self, setup: Setup, server: Process) -> None:
        with pytest.raises(ssl.SSLError, match="CERTIFICATE_REQUIRED"), connect(setup, context(setup)) as connection:
            connection.recv(1)

    @requirement(165)
    @pytest.mark.parametrize("kind", ["expired", "other authority"])
    def test_curl_shows_the_alert_that_awss_test_client_looks_for(self, setup: Setup, server: Process, kind: str) -> None:
        files = self.client_files(setup, kind)
        assert files is not None
        done = subprocess.run(
            [
                "curl", "-sv", "--max-time", "10", "--cacert", str(setup.directory / "dev-ca.pem"),
                "--cert", str(files.certificate), "--key", str(files.private_key),
                "--aws-sigv4", f"aws:amz:{REGION}:kms-xks-proxy", "--user", f"{ACCESS_KEY_IDS[0]}:x", "-d", "{}",
                f"https://localhost:{setup.tls_port}/one/kms/xks/v1/health",
            ],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode != 0
        assert "TLS alert, handshake failure" in done.stderr
