# SPDX-License-Identifier: Apache-2.0
"""Stands in for `python -m xksfast`: argv as the supervisor makes it, _worker N or _control N."""

import runpy
import sys
from pathlib import Path

name = {"_worker": "fake_worker.py", "_control": "fake_control.py"}[sys.argv.pop(1)]
runpy.run_path(str(Path(__file__).parent / name), run_name="__main__")
