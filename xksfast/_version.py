# SPDX-License-Identifier: Apache-2.0
"""The version of the package: its only home. The build hands it to the C code, and the loader compares the two."""

__version__ = "0.1.0"
