# SPDX-License-Identifier: Apache-2.0
"""xksfast: a high-throughput AWS KMS External Key Store (XKS) proxy."""

from xksfast._version import __version__

__all__ = ["__version__"]
