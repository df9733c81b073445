# SPDX-License-Identifier: Apache-2.0
"""A stand-in for the `aws` command, for shell lines that call `aws kms …`: parameters by botocore's model, --query by JMESPath.

Run as a program; the endpoint comes from AWS_ENDPOINT_URL_KMS, the Region from AWS_REGION. Unlike the real one it refuses a
structure, and so a secret, on the command line.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import boto3
import jmespath
from botocore import xform_name

PLAIN = ("string",)


def main(arguments: list[str]) -> int:
    service, command, *rest = arguments
    assert service == "kms", service
    client = boto3.client("kms", region_name=os.environ["AWS_REGION"])
    operation = next(name for name in client.meta.service_model.operation_names if xform_name(name, "-") == command)
    members = client.meta.service_model.operation_model(operation).input_shape.members
    names = {f"--{xform_name(name, '-')}": name for name in members}
    options: dict[str, str] = {}
    parameters: dict[str, Any] = {}
    for option, text in zip(rest[::2], rest[1::2], strict=True):
        if option not in names:
            options[option] = text
            continue
        shape = members[names[option]]
        assert not text.startswith("{"), f"{option}: a structure on the command line is seen by everyone"
        value = Path(text.removeprefix("file://")).read_text() if text.startswith("file://") else text
        parameters[names[option]] = value if shape.type_name in PLAIN else json.loads(value)
    answer = getattr(client, xform_name(operation))(**parameters)
    answer.pop("ResponseMetadata")
    found = jmespath.search(options["--query"], answer) if "--query" in options else answer
    print(found if options.get("--output") == "text" else json.dumps(found, default=str))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
