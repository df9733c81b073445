# SPDX-License-Identifier: Apache-2.0
"""Every limit of the wire, once. Sizes in bytes unless the name says otherwise.

What the XKS API sets is cited by requirement; what is ours says why. A newcomer's trap: the API sets *minimums* for plaintext and
AAD. Ours are exactly those, and a larger value is UnsupportedOperationException (501), not ValidationException.
"""

from __future__ import annotations

# --- XKS API
MAX_PLAINTEXT_BYTES = 4300  # Encrypt and Decrypt: at least 4300
MAX_AAD_BYTES = 8192  # at least 8192
MAX_METADATA_BYTES = 20  # decoded; never more
IV_BYTES = (12, 16)
TAG_BYTES = 16
MAX_URI_CHARS = 256
MAX_URI_PATH_CHARS = 128  # prefix + /kms/xks/v1
MAX_EXTERNAL_KEY_ID_CHARS = 128
MAX_KEY_USAGES = 10
MAX_FLEET_ENTRIES = 10
MAX_HEALTH_AGE_S = 60
MAX_PRINCIPAL_CHARS = 2048  # awsPrincipalArn: the longest ARN that AWS makes

# --- HTTP: ours, so that unauthenticated work is bounded
MAX_BODY_BYTES = 64 * 1024  # the largest valid body is under 24 KiB
MAX_HEADER_BYTES = 8 * 1024  # request line and headers together
MAX_HEADERS = 32
MAX_PIPELINED = 64  # requests of one connection that wait for an answer; reading pauses above it
MAX_STRANGERS_REFUSALS = 16  # of one connection before a signature was accepted on it; then it ends

# --- logs
MAX_LOGGED_CHARS = 256  # of any value that comes from a request
MAX_LOGGED_PRINCIPAL_CHARS = 1024  # what tells two roles with long paths apart stands at the end
