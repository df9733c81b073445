# SPDX-License-Identifier: Apache-2.0
"""SIGHUP and the certificate of the administration: a new one is served at once, a bad one does not take the place of a good one."""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import ssl
from pathlib import Path

import pytest

from tests.scenario.nodes import Deployment, deployment
from tests.servers import Process, wait_until
from xksfast.admin.dev_certificates import CertificateFiles


@pytest.mark.timeout(120)
def test_sighup_brings_a_new_certificate_and_keeps_the_old_one_when_the_new_is_bad(tmp_path: Path) -> None:
    with deployment(tmp_path, f"sqlite:///{tmp_path}/state.db", ("n1",)) as proxies:
        (node,) = proxies.nodes
        process = node.process
        assert process is not None
        former = served_by(proxies)
        with connected(proxies) as old_connection:
            renew(proxies, tmp_path)
            reload(process, "admin_certificate_reloaded", 1)
            current = served_by(proxies)
            assert current != former
            assert current == of_file(tmp_path / "server.pem")
            old_connection.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert old_connection.recv(12) == b"HTTP/1.1 200"

        (tmp_path / "server.pem").write_text("-----BEGIN CERTIFICATE-----\nhalf a file")
        reload(process, "admin_certificate_kept", 1)
        (kept,) = process.events("admin_certificate_kept")
        assert kept["problem"].startswith("admin.certificate: ")
        assert "do not go together or are no PEM files" in kept["problem"]
        assert served_by(proxies) == current
        assert proxies.shell("node", "list")[0]["name"] == "n1"

        # Another pair that the configuration names by now; a control process that is started again begins with it.
        other = CertificateFiles(tmp_path / "admin.pem", tmp_path / "admin.key")
        proxies.authority.issue_server(other)
        config = node.directory / "xksfast.toml"
        text = config.read_text()
        assert '["admin"]\n' in text
        config.write_text(
            text.replace(
                '["admin"]\n', f'["admin"]\ncertificate = "{other.certificate}"\nprivate_key = "{other.private_key}"\n'
            )
        )
        reload(process, "admin_certificate_reloaded", 2)
        assert served_by(proxies) == of_file(other.certificate)
        (control,) = process.children("_control")
        os.kill(control, signal.SIGKILL)
        wait_until(lambda: len(process.events("admin_listening")) == 2, "a new control process", 40)
        assert served_by(proxies) == of_file(other.certificate)


def renew(proxies: Deployment, directory: Path) -> None:
    """Another certificate and key in the same files."""
    files = CertificateFiles(directory / "server.pem", directory / "server.key")
    files.certificate.unlink()
    proxies.authority.issue_server(files, ("localhost", "127.0.0.1"))


def reload(process: Process, event: str, count: int) -> None:
    """SIGHUP, and wait until the log says what became of it."""
    process.popen.send_signal(signal.SIGHUP)
    wait_until(lambda: len(process.events(event)) == count, f"{event} is logged")


def connected(proxies: Deployment) -> ssl.SSLSocket:
    """A connection to the administration whose certificate was checked."""
    context = ssl.create_default_context(cafile=proxies.ca_file)
    sock = socket.create_connection(("localhost", proxies.nodes[0].admin_port), 10)
    return context.wrap_socket(sock, server_hostname="localhost")


def served_by(proxies: Deployment) -> str:
    """The fingerprint of the certificate that a new client sees."""
    with connected(proxies) as sock:
        certificate = sock.getpeercert(binary_form=True)
    assert certificate is not None
    return hashlib.sha256(certificate).hexdigest()


def of_file(path: Path) -> str:
    """The fingerprint of the first certificate in a file."""
    return hashlib.sha256(ssl.PEM_cert_to_DER_cert(path.read_text())).hexdigest()
