# SPDX-License-Identifier: Apache-2.0
"""One module a revision, named r<number>_<what it is for>."""
