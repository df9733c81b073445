# SPDX-License-Identifier: Apache-2.0
"""Benchmarks. Each proves its result correct before it times anything, alternates what it compares, and reports medians."""
