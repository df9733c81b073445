# SPDX-License-Identifier: Apache-2.0
"""A stand-in for the `aws` command, for shell lines that call `aws kms …`: parameters by botocore's model, --query by JMESPath.

The command itself is a few lines that hand their arguments to the test's process, where boto3 is loaded already. Unlike the real one
it refuses a structure, and so a secret, on the command line.
"""

from __future__ import annotations

import json
import socketserver
import sys
import threading
from pathlib import Path
from typing import Any

import boto3
import jmespath
from botocore import xform_name

_COMMAND = """\
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as sock:
    sock.connect({socket!r})
    sock.sendall(json.dumps([os.getcwd(), os.environ["AWS_REGION"], *sys.argv[1:]]).encode())
    sock.shutdown(socket.SHUT_WR)
    code, out, err = json.loads(b"".join(iter(lambda: sock.recv(65536), b"")))
sys.stdout.write(out)
sys.stderr.write(err)
sys.exit(code)
"""


class AwsCommand:
    """Use as a context manager. path: a directory for PATH, with `aws` and a `sleep` that does not. endpoint_url: of the fake KMS."""

    def __init__(self, directory: Path, endpoint_url: str) -> None:
        self.path = directory / "bin"
        self.path.mkdir()
        self.endpoint_url = endpoint_url
        socket_file, script = str(directory / "aws.sock"), directory / "aws.py"
        script.write_text(_COMMAND.format(socket=socket_file))
        command = self.path / "aws"
        command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -I -S "{script}" "$@"\n')
        command.chmod(0o755)
        (self.path / "sleep").symlink_to("/bin/true")
        self._server = socketserver.ThreadingUnixStreamServer(socket_file, self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, name="aws-command")

    def __enter__(self) -> AwsCommand:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _handler(self) -> type[socketserver.StreamRequestHandler]:
        command = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                directory, region, *arguments = json.loads(self.rfile.read())
                try:
                    answer = (0, command.run(Path(directory), region, arguments), "")
                except Exception as error:  # the shell sees it as the command's failure
                    answer = (254, "", f"{type(error).__name__}: {error}\n")
                self.wfile.write(json.dumps(answer).encode())

        return Handler

    def run(self, directory: Path, region: str, arguments: list[str]) -> str:
        """What the command prints."""
        service, command, *rest = arguments
        assert service == "kms", service
        client = boto3.client("kms", region_name=region, endpoint_url=self.endpoint_url)
        operation = next(name for name in client.meta.service_model.operation_names if xform_name(name, "-") == command)
        members = client.meta.service_model.operation_model(operation).input_shape.members
        names = {f"--{xform_name(name, '-')}": name for name in members}
        options: dict[str, str] = {}
        parameters: dict[str, Any] = {}
        for option, text in zip(rest[::2], rest[1::2], strict=True):
            if option not in names:
                options[option] = text
                continue
            assert not text.startswith("{"), f"{option}: a structure on the command line is seen by everyone"
            value = (directory / text.removeprefix("file://")).read_text() if text.startswith("file://") else text
            is_text = members[names[option]].type_name == "string"
            parameters[names[option]] = value if is_text else json.loads(value)
        assert options.keys() <= {"--query", "--output"}, options
        answer = getattr(client, xform_name(operation))(**parameters)
        answer.pop("ResponseMetadata")
        found = jmespath.search(options["--query"], answer) if "--query" in options else answer
        return f"{found if options.get('--output') == 'text' else json.dumps(found, default=str)}\n"
