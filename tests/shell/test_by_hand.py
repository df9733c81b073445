# SPDX-License-Identifier: Apache-2.0
"""AWS's side built by hand, with what the shell writes: a real proxy, and a fake AWS KMS that calls it over HTTPS."""

from __future__ import annotations

import json
import os
import stat
import subprocess
from pathlib import Path

import pytest

from tests.fake_kms import FakeKms
from tests.fake_kms.aws_command import AwsCommand
from tests.fix_aws import ENDPOINT, HOST, LinkedProxy
from tests.shell.ran import Run, runner
from xksfast.admin.aws.kms import KmsConnection

DONE, FAILED, USAGE, REFUSED = range(4)
LOCAL = ("--region", "us-east-1", "--key-source", "local")


@pytest.fixture
def run(linked_proxy: LinkedProxy, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """A command, administering the proxy that the fake KMS can reach."""
    ready = linked_proxy.ready
    return runner(monkeypatch, capfd, ready["admin_url"], ready["admin_token"], ready["ca_file"])


def test_the_lines_and_the_credential_that_the_shell_writes_build_the_aws_side(
    run: Run, linked_kms: FakeKms, kms: KmsConnection, tmp_path: Path
) -> None:
    assert run("store", "create", "by-hand", "--uri-path-prefix", "/by-hand", *LOCAL, "--endpoint", ENDPOINT).code == DONE
    assert run("key", "create", "by-hand", "orders", "--alias", "orders").code == DONE
    out = tmp_path / "out"
    ran = run("aws", "snippet", "by-hand", "--issue-credential", "--out", str(out), "--json")
    assert ran.code == DONE, ran.err
    script, credential = (Path(file) for file in ran.json["files"])
    assert {stat.S_IMODE(file.stat().st_mode) for file in (script, credential)} == {0o600}
    secret = json.loads(credential.read_text())["RawSecretAccessKey"]
    assert secret not in ran.out + ran.err + script.read_text()
    with AwsCommand(tmp_path, linked_kms.url) as command:
        environment = {**os.environ, "PATH": f"{command.path}:{os.environ['PATH']}"}
        done = subprocess.run(
            ["sh", script.name], cwd=out, env=environment, capture_output=True, text=True, timeout=60, check=False
        )
    assert done.returncode == 0, done.stderr
    (store,) = kms.stores()
    assert (store.name, store.connection_state, store.access_key_id) == ("by-hand", "CONNECTED", ran.json["access_key_id"])
    (key,) = kms.keys_of_store(store.id)
    kms.prove_key(key.arn)
    again = run("aws", "snippet", "by-hand", "--issue-credential", "--out", str(out))
    assert (again.code, "is there already" in again.err) == (USAGE, True)
    assert len(run("credential", "list", "by-hand", "--json").json) == 2


def test_a_placeholder_is_shown_with_how_to_get_the_secret(run: Run, tmp_path: Path) -> None:
    assert run("store", "create", "shown", "--uri-path-prefix", "/shown", *LOCAL).code == DONE
    refused = run("aws", "snippet", "shown")
    assert refused.code == REFUSED
    assert "[store-has-no-endpoint]" in refused.err
    assert run("store", "update", "shown", "--endpoint", "https://shown.example.com").code == DONE
    ran = run("aws", "snippet", "shown", "--format", "terraform")
    assert ran.code == DONE
    assert 'custom_key_store_type  = "EXTERNAL_KEY_STORE"' in ran.out
    assert "it reads shown.auto.tfvars.json, which is: {" in ran.err
    assert "<the secret: " in ran.err
    assert "xksfast aws snippet shown --format terraform --issue-credential --out DIR" in ran.out
    unsafe = run("aws", "snippet", "shown", "--issue-credential")
    assert (unsafe.code, "--out" in unsafe.err, unsafe.out) == (USAGE, True, "")
    assert run("aws", "snippet", "shown", "--format", "pulumi").code == USAGE
    written = run("aws", "snippet", "shown", "--format", "cloudformation", "--out", str(tmp_path / "cf"), "--json").json
    assert [Path(file).name for file in written["files"]] == ["shown.cloudformation.yaml"]
    assert len(run("credential", "list", "shown", "--json").json) == 1


def test_the_way_is_shown_and_what_is_wrong_with_it_is_exit_code_1(run: Run, linked_proxy: LinkedProxy) -> None:
    assert run("store", "create", "way", "--uri-path-prefix", "/way", *LOCAL, "--endpoint", ENDPOINT).code == DONE
    ran = run("aws", "topology", "way", "--json")
    told = {finding["rule"]: finding["level"] for finding in ran.json["findings"]}
    assert told["certificate-common-name"] == "ok"
    assert "problem" in told.values()  # a development certificate comes from no authority that AWS knows
    assert ran.code == FAILED
    assert HOST in ran.json["certificate_common_names"]
    shown = run("aws", "topology", "way", "--connectivity", "VPC_ENDPOINT_SERVICE")
    assert "private_dns_name" in shown.out
    assert "its private DNS name must be" in " ".join(shown.out.split())
    assert f"cks.kms.{linked_proxy.ready['region']}.amazonaws.com" in shown.out
