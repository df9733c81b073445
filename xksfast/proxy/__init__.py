# SPDX-License-Identifier: Apache-2.0
"""The data plane: supervisor, proxy workers, and the way of a request from socket to key source and back."""
