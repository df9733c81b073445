# SPDX-License-Identifier: Apache-2.0
"""Administration from the shell: a client of the REST interface, one file per noun. Nothing here knows the state or the service."""
