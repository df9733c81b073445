# SPDX-License-Identifier: Apache-2.0
"""What a tool's process is told of its token, and how it is started: both tools, the key tool and the partition tool.

What must not live here: the configuration (link.py reads it), and what a tool is asked. A newcomer's trap: a module reads its
environment once, so the environment of a module's configuration is set for the process, not in it.
"""

from __future__ import annotations

import os
import sys

import msgspec


class PartitionTarget(msgspec.Struct, frozen=True):
    """The token, as in a partition's configuration. The PIN is named by file or variable, never passed."""

    name: str
    module_path: str
    profile: str
    parameters: str = ""
    token_label: str | None = None
    serial: str | None = None
    slot: int | None = None
    pin_file: str | None = None
    pin_env: str | None = None
    environment: dict[str, str] = {}


def tool_start(tool: str, target: PartitionTarget) -> tuple[list[str], dict[str, str]]:
    """The command and the environment of a process of `tool`, "_keytool" or "_partitiontool": ours, and what the module wants."""
    return [sys.executable, "-m", "xksfast", tool], {**os.environ, **target.environment}
