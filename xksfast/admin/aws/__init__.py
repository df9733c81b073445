# SPDX-License-Identifier: Apache-2.0
"""The AWS side of a key store: AWS KMS called, its errors in words, our state compared with its, and what builds it by hand."""
