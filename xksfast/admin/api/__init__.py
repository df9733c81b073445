# SPDX-License-Identifier: Apache-2.0
"""The REST interface of administration: HTTP around admin/service.py, one file per noun. No rule stands here."""
