# SPDX-License-Identifier: Apache-2.0
"""External key managers behind one interface: `local` keys in memory and keys in PKCS#11 tokens."""
