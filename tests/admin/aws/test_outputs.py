# SPDX-License-Identifier: Apache-2.0
"""What operators paste: the shell lines are run, the files are read back, and no secret stands where it would be seen."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from tests.fake_kms import FakeKms
from tests.fake_kms.aws_command import AwsCommand
from tests.fake_kms.shapes import check_request
from tests.fix_aws import ENDPOINT, HOST, LinkedProxy
from xksfast.admin.aws.kms import KmsConnection
from xksfast.admin.aws.outputs import Output, aws_cli, cloudformation, credentials_file, terraform
from xksfast.admin.aws.results import ProxyCredential
from xksfast.errors import OperatorError
from xksfast.state.objects import Key, KeyStore, KeyVersion, StoreLink

SECRET = "topsecret/topsecret+topsecret/topsecret+topse="
CREDENTIAL = ProxyCredential("A" * 20, SECRET)
SERVICE = "com.amazonaws.vpce.us-east-1.vpce-svc-0123456789abcdef0"
STORE = KeyStore(name="one", uri_path_prefix="/one", region="us-east-1", key_source="local", endpoint=ENDPOINT)
VPC_STORE = msgspec.structs.replace(STORE, connectivity="VPC_ENDPOINT_SERVICE", vpc_endpoint_service_name=SERVICE)
NASTY = """it's a "test" $(touch pwned) `touch pwned` ${x} %{y} \\ end"""


def key(external_key_id: str, **values: object) -> Key:
    return Key(store="one", external_key_id=external_key_id, versions=(KeyVersion(number=1, label="k"),), **values)  # type: ignore[arg-type]


def test_the_credentials_file_is_what_the_console_takes() -> None:
    text = credentials_file(STORE, CREDENTIAL)
    assert json.loads(text) == {
        "XksProxyUriPath": "/one/kms/xks/v1",
        "XksProxyAuthenticationCredential": {"AccessKeyId": "A" * 20, "RawSecretAccessKey": SECRET},
    }
    members = json.loads(text) | {"CustomKeyStoreName": "one"}
    assert check_request("CreateCustomKeyStore", members) == members


@pytest.mark.parametrize("make", [aws_cli, terraform])
@pytest.mark.parametrize("store", [STORE, VPC_STORE])
def test_the_secret_stands_in_its_file_only(make: Callable[..., Output], store: KeyStore) -> None:
    output = make(store, CREDENTIAL, [key("k1")])
    assert "topsecret" not in output.text
    assert "topsecret" not in repr(output)
    (content,) = output.files.values()
    assert SECRET in json.loads(content).values()


def test_the_shell_lines_build_the_aws_side(
    linked_kms: FakeKms, kms: KmsConnection, linked_proxy: LinkedProxy, tmp_path: Path
) -> None:
    default = linked_proxy.ready["keys"]["default"]
    keys = [key(default, description=NASTY, tags={"note": "a b,c=d"}, alias="orders")]
    output = aws_cli(linked_proxy.store, linked_proxy.credential, keys, name="it's mine")
    for name, content in output.files.items():
        (tmp_path / name).write_text(content)
    with AwsCommand(tmp_path, linked_kms.url) as command:
        environment = {**os.environ, "PATH": f"{command.path}:{os.environ['PATH']}"}
        done = subprocess.run(
            ["sh", "-c", output.text], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=False
        )
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "pwned").exists()
    (store,) = kms.stores()
    assert (store.name, store.connection_state, store.uri_path) == ("it's mine", "CONNECTED", linked_proxy.uri_path)
    (made,) = kms.keys_of_store(store.id)
    seen = kms.look_at_key(made.arn)
    assert (seen.external_key_id, seen.description, seen.aliases) == (default, NASTY, ("alias/orders",))
    assert dict(seen.tags) == {"note": "a b,c=d"}
    assert f"{default} {made.arn}" in done.stdout


def test_the_shell_lines_are_right_for_a_vpc_endpoint_service_too() -> None:
    text = aws_cli(VPC_STORE, CREDENTIAL, [key("k1"), key("k2")]).text
    assert f"--xks-proxy-vpc-endpoint-service-name {SERVICE}" in text
    assert subprocess.run(["sh", "-n", "-c", text], check=False).returncode == 0


@pytest.mark.parametrize("store", [STORE, VPC_STORE])
def test_terraform_has_what_the_provider_needs(store: KeyStore) -> None:
    keys = [key("a.b", description=NASTY, tags={"t": NASTY}, alias="orders"), key("a-b")]
    output = terraform(store, CREDENTIAL, keys)
    text = output.text
    resources = re.findall(r'^resource "(\w+)" "(\w+)" \{$', text, flags=re.M)
    assert resources == [
        ("aws_kms_custom_key_store", "one"),
        ("aws_kms_key", "one_a_b"),
        ("aws_kms_alias", "one_a_b"),
        ("aws_kms_key", "one_a_b_2"),
    ]
    assert ('xks_proxy_vpc_endpoint_service_name = "com' in text) == (store is VPC_STORE)
    ((name, content),) = output.files.items()
    assert name.endswith(".auto.tfvars.json")
    assert set(json.loads(content)) == set(re.findall(r'^variable "(\w+)"', text, flags=re.M))
    for variable in json.loads(content):
        assert f"= var.{variable}\n" in text


@pytest.mark.parametrize("make", [aws_cli, terraform])
def test_what_aws_would_refuse_is_said_first(make: Callable[..., Output]) -> None:
    link = StoreLink(connection="c", custom_key_store_id="cks-1", custom_key_store_name="one")
    store = msgspec.structs.replace(STORE, link=link, blocked=True)
    text = make(
        store,
        CREDENTIAL,
        [key("good"), key("off", enabled=False), key("stopped", blocked=True), key("half", usage=("ENCRYPT",))],
    ).text
    said = text.splitlines()[:5]
    assert "one is linked to cks-1" in said[0]
    assert "one is blocked" in said[1]
    assert [line.split()[2] for line in said[2:]] == ["off", "stopped", "half"]
    assert "AWS refuses another" not in make(STORE, CREDENTIAL, [key("good")]).text


@pytest.mark.parametrize("store", [STORE, VPC_STORE])
def test_terraform_stands_as_its_own_formatter_has_it(store: KeyStore) -> None:
    (block,) = re.findall(
        r'^resource "aws_kms_custom_key_store" "one" \{\n((?:  \S.*\n)+)', terraform(store, CREDENTIAL).text, flags=re.M
    )
    assert len({line.index("=") for line in block.splitlines()}) == 1


def test_terraform_strings_hold_any_text() -> None:
    text = terraform(STORE, CREDENTIAL, [key("k", description=NASTY + "\n\x01")]).text
    (line,) = re.findall(r"^  description         = (.*)$", text, flags=re.M)
    assert line == '"it\'s a \\"test\\" $(touch pwned) `touch pwned` $${x} %%{y} \\\\ end\\n\\u0001"'


def test_cloudformation_says_that_it_cannot_and_builds_the_service() -> None:
    public, private = cloudformation(STORE).text, cloudformation(VPC_STORE).text
    assert all(line.startswith("#") for line in public.splitlines())
    assert "no resource type for custom key stores" in public
    assert "cks.kms.us-east-1.amazonaws.com" in private
    assert f"--private-dns-name {HOST}" in private
    types = set(re.findall(r"Type: (AWS::\S+)", private))
    assert types >= {
        "AWS::EC2::VPCEndpointService",
        "AWS::EC2::VPCEndpointServicePermissions",
        "AWS::ElasticLoadBalancingV2::Listener",
    }
    referred = set(re.findall(r"!Ref (\w+)", private))
    named = set(re.findall(r"^  (\w+):$", private, flags=re.M))
    assert referred <= named


@pytest.mark.parametrize("make", [aws_cli, terraform])
def test_what_is_missing_is_asked_for(make: Callable[..., Output]) -> None:
    with pytest.raises(OperatorError, match="has no endpoint yet"):
        make(msgspec.structs.replace(STORE, endpoint=""), CREDENTIAL)
    with pytest.raises(OperatorError, match="no VPC endpoint service is named"):
        make(msgspec.structs.replace(VPC_STORE, vpc_endpoint_service_name=""), CREDENTIAL)
