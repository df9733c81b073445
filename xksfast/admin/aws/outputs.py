# SPDX-License-Identifier: Apache-2.0
"""For those who build the AWS side themselves: the console's credentials file, AWS CLI lines, Terraform, and what CloudFormation can.

What lives here: texts made from a key store. What must not: files and AWS. A newcomer's trap: a secret on a command line is seen by
every user of the machine and kept in the shell's history, so each text that needs it reads it from a file of its own (`Output.files`,
to be written with mode 0600).
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable
from dataclasses import dataclass, field

from xksfast.admin.aws.results import EXTERNAL_KEY_STORE, ProxyCredential, full_alias
from xksfast.admin.aws.sync import uri_path
from xksfast.admin.aws.topology import service_principal
from xksfast.admin.refusals import Refused
from xksfast.state.objects import Key, KeyStore

TERRAFORM_PROVIDER = (
    "5.89"  # of hashicorp/aws: the oldest whose aws_kms_custom_key_store is known to us to take external key stores
)

PLACEHOLDER = "<the secret: shown only when a credential is issued>"  # AWS refuses it: no secret has such characters


@dataclass(frozen=True)
class Output:
    """text: to be shown or saved. files: name -> content of files that it reads; secret ones among them, so mode 0600."""

    text: str
    files: dict[str, str] = field(default_factory=dict, repr=False)


def credentials_file(store: KeyStore, credential: ProxyCredential) -> str:
    """What the KMS console takes as proxy configuration file, when an external key store is created or edited. Holds the secret.

    Source: XKS Proxy API spec v1.0.3, Other considerations; KMS Developer Guide, Proxy configuration file.
    """
    return _json({"XksProxyUriPath": uri_path(store), "XksProxyAuthenticationCredential": _credential(credential)})


def aws_cli(store: KeyStore, credential: ProxyCredential, keys: Iterable[Key] = (), *, name: str = "") -> Output:
    """Lines for a POSIX shell: create, connect, wait, and a KMS key with its alias for each key. name: of the custom key store.

    The credential is read from a file by file://.
    """
    _need_endpoint(store)
    name = name or store.name
    secret_file = f"{_file_part(store.name)}-credential.json"
    create = [
        "aws kms create-custom-key-store",
        f"--custom-key-store-name {shlex.quote(name)}",
        f"--custom-key-store-type {EXTERNAL_KEY_STORE}",
        f"--xks-proxy-connectivity {store.connectivity}",
        f"--xks-proxy-uri-endpoint {shlex.quote(store.endpoint)}",
        f"--xks-proxy-uri-path {shlex.quote(uri_path(store))}",
    ]
    if store.connectivity == "VPC_ENDPOINT_SERVICE":
        create.append(f"--xks-proxy-vpc-endpoint-service-name {shlex.quote(store.vpc_endpoint_service_name)}")
    create += [
        f"--xks-proxy-authentication-credential {shlex.quote('file://' + secret_file)}",
        "--query CustomKeyStoreId --output text",
    ]
    state = 'aws kms describe-custom-key-stores --custom-key-store-id "$CKS"'
    keys = list(keys)
    parts = [
        *_warnings(store, keys),
        "set -eu",
        f"export AWS_REGION={shlex.quote(store.region)}",
        "",
        f"# {secret_file} holds the secret: mode 0600, and delete it afterwards.",
        *_how_to_get_the_secret(store, credential, "aws-cli"),
        f'CKS="$({_continued(create, indent=6)})"',
        'echo "custom key store $CKS"',
        "",
        "# Connecting takes about five minutes. FAILED comes with the reason.",
        'aws kms connect-custom-key-store --custom-key-store-id "$CKS"',
        f"while STATE=\"$({state} --query 'CustomKeyStores[0].ConnectionState' --output text)\"; do",
        '  echo "$STATE"',
        '  case "$STATE" in',
        "    CONNECTED) break ;;",
        f"    FAILED) {state} --query 'CustomKeyStores[0].ConnectionErrorCode' --output text; exit 1 ;;",
        "  esac",
        "  sleep 10",
        "done",
    ]
    for key in keys:
        parts += ["", *_cli_key(key)]
    return Output("\n".join(parts) + "\n", {secret_file: _json(_credential(credential))})


def _cli_key(key: Key) -> list[str]:
    create = [
        "aws kms create-key",
        f"--origin {EXTERNAL_KEY_STORE}",
        '--custom-key-store-id "$CKS"',
        f"--xks-key-id {shlex.quote(key.external_key_id)}",
    ]
    if key.description:
        create.append(f"--description {shlex.quote(key.description)}")
    if key.tags:
        # JSON, since the CLI's shorthand has no way to write every value.
        tags = json.dumps([{"TagKey": tag, "TagValue": value} for tag, value in key.tags.items()])
        create.append(f"--tags {shlex.quote(tags)}")
    create.append("--query KeyMetadata.Arn --output text")
    lines = [f'KEY="$({_continued(create, indent=6)})"', f'printf "%s %s\\n" {shlex.quote(key.external_key_id)} "$KEY"']
    if key.alias:
        lines.append(f'aws kms create-alias --alias-name {shlex.quote(full_alias(key.alias))} --target-key-id "$KEY"')
    return lines


def terraform(store: KeyStore, credential: ProxyCredential, keys: Iterable[Key] = (), *, name: str = "") -> Output:
    """A Terraform configuration for the hashicorp/aws provider; the secret comes from a .auto.tfvars.json file.

    The awscc provider offers what CloudFormation offers, which is nothing for custom key stores.
    """
    _need_endpoint(store)
    label = _identifier(store.name)
    secret_file = f"{_file_part(store.name)}.auto.tfvars.json"
    variables = {
        f"{label}_access_key_id": credential.access_key_id,
        f"{label}_secret_access_key": credential.secret_access_key,
    }
    arguments = {
        "custom_key_store_name": _hcl(name or store.name),
        "custom_key_store_type": _hcl(EXTERNAL_KEY_STORE),
        "xks_proxy_connectivity": _hcl(store.connectivity),
        "xks_proxy_uri_endpoint": _hcl(store.endpoint),
        "xks_proxy_uri_path": _hcl(uri_path(store)),
    }
    if store.connectivity == "VPC_ENDPOINT_SERVICE":
        arguments["xks_proxy_vpc_endpoint_service_name"] = _hcl(store.vpc_endpoint_service_name)
    width = max(map(len, arguments))
    keys = list(keys)
    head = [
        *_warnings(store, keys),
        f"# {secret_file} holds the secret: mode 0600, never in version control. Terraform also keeps the secret in its state: "
        "encrypt that.",
        *_how_to_get_the_secret(store, credential, "terraform"),
    ]
    blocks = [
        _lines(head)
        + f"""\
# The provider creates the custom key store and does not connect it; the KMS keys can be created once it is connected:
#   terraform apply -target=aws_kms_custom_key_store.{label}
#   aws kms connect-custom-key-store --region {store.region} \\
#     --custom-key-store-id "$(terraform output -raw {label}_custom_key_store_id)"
#   (wait until aws kms describe-custom-key-stores shows CONNECTED, some five minutes)
#   terraform apply
terraform {{
  required_providers {{
    aws = {{
      source  = "hashicorp/aws"
      version = ">= {TERRAFORM_PROVIDER}" # older ones know AWS CloudHSM key stores only
    }}
  }}
}}

provider "aws" {{
  region = {_hcl(store.region)}
}}

variable "{label}_access_key_id" {{
  type = string
}}

variable "{label}_secret_access_key" {{
  type      = string
  sensitive = true
}}

resource "aws_kms_custom_key_store" "{label}" {{
{_lines(f"  {argument:{width}} = {value}" for argument, value in arguments.items())}
  xks_proxy_authentication_credential {{
    access_key_id         = var.{label}_access_key_id
    raw_secret_access_key = var.{label}_secret_access_key
  }}
}}

output "{label}_custom_key_store_id" {{
  value = aws_kms_custom_key_store.{label}.id
}}
"""
    ]
    taken: set[str] = set()
    for key in keys:
        blocks.append(_terraform_key(label, key, _unused(f"{label}_{_identifier(key.external_key_id)}", taken)))
    return Output("\n".join(blocks), {secret_file: _json(variables)})


def _terraform_key(store: str, key: Key, label: str) -> str:
    lines = [
        f'resource "aws_kms_key" "{label}" {{',
        f"  custom_key_store_id = aws_kms_custom_key_store.{store}.id",
        f"  xks_key_id          = {_hcl(key.external_key_id)}",
        f"  description         = {_hcl(key.description)}",
    ]
    if key.tags:
        lines += ["  tags = {", *(f"    {_hcl(tag)} = {_hcl(value)}" for tag, value in key.tags.items()), "  }"]
    lines.append("}")
    if key.alias:
        lines += [
            "",
            f'resource "aws_kms_alias" "{label}" {{',
            f"  name          = {_hcl(full_alias(key.alias))}",
            f"  target_key_id = aws_kms_key.{label}.key_id",
            "}",
        ]
    return "\n".join(lines) + "\n"


def cloudformation(store: KeyStore) -> Output:
    """What CloudFormation can do for a key store: the VPC endpoint service. It has no resource type for custom key stores.

    For PUBLIC_ENDPOINT the text is comments only, which say what to use instead.
    """
    head = """\
# CloudFormation has no resource type for custom key stores, and AWS::KMS::Key cannot make keys in an external key store: its Origin is
# AWS_KMS or EXTERNAL, and it has no XksKeyId. Create and connect the custom key store and its keys with the AWS CLI lines, Terraform's
# hashicorp/aws provider (not awscc, which offers what CloudFormation does), `xksfast store link`, or a custom resource of your own that
# calls kms:CreateCustomKeyStore. AWS::KMS::Alias takes the ids of keys made so. The AWS CLI lines for this store:
"""
    head += f"#   xksfast aws snippet {store.name} --format aws-cli\n"
    if store.connectivity == "PUBLIC_ENDPOINT":
        return Output(head + f"# {store.name} uses PUBLIC_ENDPOINT: there is nothing to build in AWS before it.\n")
    host = store.endpoint.removeprefix("https://") or "the host name of the endpoint"
    body = f"""\
# What follows is the VPC endpoint service of {store.name}. Then, by hand, as CloudFormation has no property for it:
#   aws ec2 modify-vpc-endpoint-service-configuration --region {store.region} --service-id ID --private-dns-name {host}
# and the TXT record that AWS names for it, until its verification status is verified.
AWSTemplateFormatVersion: "2010-09-09"
Description: {json.dumps(f"VPC endpoint service of the external key store {store.name}")}
Parameters:
  VpcId:
    Type: AWS::EC2::VPC::Id
  Subnets:
    Type: List<AWS::EC2::Subnet::Id>
    Description: Private subnets in two Availability Zones or more
  ProxyAddressA:
    Type: String
    Description: IPv4 address of a proxy
  ProxyAddressB:
    Type: String
    Description: IPv4 address of another proxy
  ProxyPort:
    Type: Number
    Default: 443
    Description: Where the proxies listen; AWS KMS itself always calls port 443 of the load balancer
  ProxiesInVpc:
    Type: String
    Default: "no"
    AllowedValues: ["yes", "no"]
Conditions:
  Outside: !Equals [!Ref ProxiesInVpc, "no"]
Resources:
  LoadBalancer:
    Type: AWS::ElasticLoadBalancingV2::LoadBalancer
    Properties:
      Type: network
      Scheme: internal
      IpAddressType: ipv4
      Subnets: !Ref Subnets
      LoadBalancerAttributes:
        - Key: load_balancing.cross_zone.enabled
          Value: "true"
  Targets:
    Type: AWS::ElasticLoadBalancingV2::TargetGroup
    Properties:
      VpcId: !Ref VpcId
      TargetType: ip
      Protocol: TCP
      Port: !Ref ProxyPort
      HealthCheckProtocol: TCP
      Targets:
        - Id: !Ref ProxyAddressA
          Port: !Ref ProxyPort
          AvailabilityZone: !If [Outside, all, !Ref "AWS::NoValue"]
        - Id: !Ref ProxyAddressB
          Port: !Ref ProxyPort
          AvailabilityZone: !If [Outside, all, !Ref "AWS::NoValue"]
  Listener:
    Type: AWS::ElasticLoadBalancingV2::Listener
    Properties:
      LoadBalancerArn: !Ref LoadBalancer
      Protocol: TCP
      Port: 443
      DefaultActions:
        - Type: forward
          TargetGroupArn: !Ref Targets
  Service:
    Type: AWS::EC2::VPCEndpointService
    Properties:
      AcceptanceRequired: false
      NetworkLoadBalancerArns:
        - !Ref LoadBalancer
  Permissions:
    Type: AWS::EC2::VPCEndpointServicePermissions
    Properties:
      ServiceId: !Ref Service
      AllowedPrincipals:
        - {service_principal(store.region)}
Outputs:
  ServiceName:
    Description: The VPC endpoint service name for the key store
    Value: !Sub "com.amazonaws.vpce.${{AWS::Region}}.${{Service}}"
"""
    return Output(head + body)


def _need_endpoint(store: KeyStore) -> None:
    if not store.endpoint:
        raise Refused(
            "conflict",
            "store-has-no-endpoint",
            f"Key store {store.name!r} has no endpoint yet",
            why="It is the https:// name by which AWS KMS reaches the proxy",
            next=f"Set it: `xksfast store update {store.name} --endpoint https://HOST`",
            field="endpoint",
        )
    if store.connectivity == "VPC_ENDPOINT_SERVICE" and not store.vpc_endpoint_service_name:
        raise Refused(
            "conflict",
            "store-has-no-vpc-service",
            f"Key store {store.name!r} would use VPC_ENDPOINT_SERVICE, but no VPC endpoint service is named",
            next=f"Build one (`xksfast aws snippet {store.name} --format cloudformation --connectivity VPC_ENDPOINT_SERVICE`), then "
            f"name it: `xksfast store update {store.name} --connectivity VPC_ENDPOINT_SERVICE --vpc-endpoint-service-name NAME`",
            field="vpc_endpoint_service_name",
        )


def _how_to_get_the_secret(store: KeyStore, credential: ProxyCredential, format: str) -> list[str]:
    """Comment lines; none when the secret is there."""
    if credential.secret_access_key != PLACEHOLDER:
        return []
    return [
        "# That file holds a placeholder now: a secret is shown only when its credential is issued. To have all this with a new one:",
        f"#   xksfast aws snippet {store.name} --format {format} --issue-credential --out DIR",
    ]


def _warnings(store: KeyStore, keys: list[Key]) -> list[str]:
    """Comment lines: what AWS would refuse."""
    found = []
    if store.link is not None:
        found.append(
            f"# {store.name} is linked to {store.link.custom_key_store_id}: AWS refuses another one with its endpoint and path."
        )
    if store.blocked:
        found.append(
            f"# {store.name} is blocked: AWS can neither create nor connect the custom key store before it is unblocked."
        )
    found += [
        f"# key {key.external_key_id} is not enabled for ENCRYPT and DECRYPT: AWS makes no KMS key for it before it is."
        for key in keys
        if not key.enabled or key.blocked or set(key.usage) != {"ENCRYPT", "DECRYPT"}
    ]
    return found


def _credential(credential: ProxyCredential) -> dict[str, str]:
    return {"AccessKeyId": credential.access_key_id, "RawSecretAccessKey": credential.secret_access_key}


def _json(document: object) -> str:
    return json.dumps(document, indent=2) + "\n"


def _lines(lines: Iterable[str]) -> str:
    return "".join(f"{line}\n" for line in lines)


def _continued(words: list[str], *, indent: int) -> str:
    """One command over several lines."""
    return (" \\\n" + " " * indent).join(words)


def _file_part(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]", "-", name)


def _identifier(name: str) -> str:
    """A Terraform identifier: letters, digits, _, not starting with a digit."""
    text = re.sub(r"[^A-Za-z0-9_]", "_", name)
    return text if text[:1].isalpha() else f"store_{text}"


def _unused(label: str, taken: set[str]) -> str:
    """Different keys may have the same identifier: "a.b" and "a-b"."""
    number, found = 2, label
    while found in taken:
        found, number = f"{label}_{number}", number + 1
    taken.add(found)
    return found


def _hcl(text: str) -> str:
    """An HCL string without templates."""
    escapes = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"}
    inner = "".join(escapes.get(char) or (char if char >= " " else f"\\u{ord(char):04x}") for char in text)
    return '"' + inner.replace("${", "$${").replace("%{", "%%{") + '"'
