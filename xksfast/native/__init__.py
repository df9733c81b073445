# SPDX-License-Identifier: Apache-2.0
"""The one door to the native module: builder, loader, and typed wrappers without logic. Nothing else imports cffi."""
