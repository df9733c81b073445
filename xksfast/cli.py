# SPDX-License-Identifier: Apache-2.0
"""Entry point of every process. Hidden commands (worker, control, key tool) are told apart here, before typer and all that it
brings is imported: a worker stays small. What people type is in commands.py.
"""

from __future__ import annotations

import os
import sys

from xksfast._version import __version__
from xksfast.errors import OperatorError


def main() -> int:
    """Run what the arguments say; the exit code: 0 done, 1 failed, 2 wrong usage or configuration."""
    arguments = sys.argv[1:]
    try:
        match arguments:
            case ["_worker", fd]:
                from xksfast.proxy import worker

                return worker.main(int(fd))
            case ["_control", fd]:
                from xksfast.admin import control

                return control.main(int(fd))
            case ["_keytool"]:
                from xksfast.admin.partitions import keytool

                return keytool.main()
            case ["_partitiontool"]:
                from xksfast.admin.partitions import tool

                return tool.main()
            case ["version"] | ["--version"]:
                print(f"xksfast {__version__}")
                return 0
            case _:
                from xksfast import commands

                return commands.run(arguments)
    except OperatorError as error:
        if os.environ.get("XKSFAST_DEBUG") == "1":
            raise
        for line in str(error).splitlines():
            print(f"xksfast: {line}", file=sys.stderr)
        return int(getattr(error, "exit_code", 2))
    except KeyboardInterrupt:
        return 130
