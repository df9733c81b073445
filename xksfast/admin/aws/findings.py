# SPDX-License-Identifier: Apache-2.0
"""One thing that must be true for AWS KMS, and whether it is: the value that checks of the AWS side return."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

Level = Literal["ok", "problem", "to do"]

OK: Final = "ok"
PROBLEM: Final = "problem"
TO_DO: Final = "to do"


@dataclass(frozen=True)
class Finding:
    """rule: a short stable name, for scripts.

    level "to do": it cannot be seen from here, or soon becomes a problem; text says what to look at.
    """

    rule: str
    level: Level
    text: str


def worst(findings: list[Finding]) -> Level:
    """ "problem" over "to do" over "ok"."""
    levels = {finding.level for finding in findings}
    return PROBLEM if PROBLEM in levels else TO_DO if TO_DO in levels else OK
