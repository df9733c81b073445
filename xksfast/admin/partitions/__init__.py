# SPDX-License-Identifier: Apache-2.0
"""Tokens as operators manage them: keys made, replicated, compared and tried on HSM partitions.

`link` starts `tool`, a process that alone loads modules and speaks PKCS#11 by our C; `keytool` does the same by python-pkcs11 for keys
on a single partition. All else here is what those processes are asked for, and rules over what they answer.
"""
