# SPDX-License-Identifier: Apache-2.0
"""The rules of administration, without I/O: a state and a request become the changes to make, or a Refused.

Each function runs inside the transaction that makes its changes, on the newest state, so that what it has checked holds when it is
committed. Nothing here may wait, draw random numbers or read a clock: it is handed what it needs.
"""
