# SPDX-License-Identifier: Apache-2.0
"""`xksfast test`: asks a running XKS proxy, ours or anybody's, what KMS asks and what KMS never should, and judges the answers.

What must not live here: anything of the proxy. Signing, HTTP and the rules are written a second time on purpose, from the
specification: a mistake that the proxy and its judge share would be found by neither.
"""
