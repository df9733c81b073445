# SPDX-License-Identifier: Apache-2.0
"""Prints the table requirement -> tests: python -m tests.spec.table

The requirements are those of docs/requirements.md. Ones without a test are listed with the reason; one that has neither fails the run.
"""

from __future__ import annotations

import ast
import re
import sys
from collections import defaultdict
from pathlib import Path

REQUIREMENTS = Path(__file__).parents[2] / "docs" / "requirements.md"

# Why a requirement has no test of its own here.
WITHOUT_TEST = {
    "KMS behaves so; there is nothing for a proxy to do": [12, 25, 48, 98, 99, 116, 117],
    "a rule for the operator's deployment, said in the manual": [6, 7, 8, 9, 10, 11, 153, 154],
    "a rule for whoever makes the credential, an operator until credentials are made here": [127, 128, 129],
    "a permission or a note, not a demand": [3, 21, 26, 27, 29, 30, 41, 59, 66, 97, 120, 140, 149, 150, 166],
    "belongs to a part that is not built yet (quota, policy, audit chain, administration)": [
        22, 37, 112, 132, 133, 141, 147, 152,
    ],
    "held by the codec's own tests and fuzzers in C": [63, 73],
}  # fmt: skip


def numbered() -> list[int]:
    """The numbers of all requirements, in the order of the document: list items and rows of the table of errors."""
    return [int(number) for number in re.findall(r"^(?:\| )?(\d+)(?:\. | \| )", REQUIREMENTS.read_text(), re.MULTILINE)]


def cited() -> dict[int, list[str]]:
    """Requirement number -> names of the tests that cite it."""
    found: dict[int, list[str]] = defaultdict(list)
    root = Path(__file__).parents[1]
    for path in sorted(root.rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            for decorator in node.decorator_list:
                if isinstance(decorator, ast.Call) and ast.unparse(decorator.func).endswith("requirement"):
                    for argument in decorator.args:
                        found[ast.literal_eval(argument)].append(f"{path.relative_to(root)}::{node.name}")
    return found


def reasons() -> dict[int, str]:
    """Requirement number -> why it has no test."""
    return {number: reason for reason, numbers in WITHOUT_TEST.items() for number in numbers}


def main() -> int:
    """Print the table; 1 when a requirement has neither test nor reason."""
    tests, why = cited(), reasons()
    missing = []
    for number in numbered():
        if number in tests:
            print(f"{number:4}  {', '.join(tests[number])}")
        elif number in why:
            print(f"{number:4}  -- {why[number]}")
        else:
            missing.append(number)
            print(f"{number:4}  MISSING")
    print(f"{len(tests)} requirements have tests, {len(why)} have a reason, {len(missing)} have neither: {missing}")
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
