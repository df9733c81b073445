# SPDX-License-Identifier: Apache-2.0
"""Where key stores, credentials and keys are described, and how that becomes a Snapshot."""
