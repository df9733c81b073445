# SPDX-License-Identifier: Apache-2.0
"""The XKS protocol without I/O: limits, routes, bodies, HTTP rules, responses. No socket, no event loop, no token."""
