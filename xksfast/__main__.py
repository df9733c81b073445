# SPDX-License-Identifier: Apache-2.0
"""`python -m xksfast`: the command line, and how the supervisor starts its children."""

import sys

from xksfast.cli import main

sys.exit(main())
