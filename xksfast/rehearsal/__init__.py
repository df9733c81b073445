# SPDX-License-Identifier: Apache-2.0
"""Rehearsing failures: steering libxksfault.so, the PKCS#11 module that stands before a real one and makes it slow, silent or wrong.

What lives here: the control file and the `xksfast rehearse` commands. What must not: anything that a serving process needs.
"""
