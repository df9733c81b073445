# SPDX-License-Identifier: Apache-2.0
"""The control process and the tools of an operator. Nothing here runs in a process that serves requests."""
