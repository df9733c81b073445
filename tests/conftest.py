# SPDX-License-Identifier: Apache-2.0
"""Fixtures of all tests live in the fix_* plugins beside this file; what they have in common with the benchmarks in bench/."""

pytest_plugins = ["tests.fix_proxy", "tests.fix_database", "tests.fix_aws", "tests.fix_admin", "tests.fix_scenario"]
