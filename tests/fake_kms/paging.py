# SPDX-License-Identifier: Apache-2.0
"""Lists in pages, with Limit, Marker, NextMarker and Truncated."""

from __future__ import annotations

from typing import Any

from tests.fake_kms.errors import KmsError

USUAL_PAGE = 50


def page(entries: list[dict[str, Any]], member: str, request: dict[str, Any]) -> dict[str, Any]:
    """One page of `entries` under the name `member`."""
    marker = request.get("Marker", "from:0")
    if not marker.startswith("from:") or not marker[5:].isdigit():
        raise KmsError("InvalidMarkerException", f"{marker} is not a marker")
    start = int(marker[5:])
    end = start + request.get("Limit", USUAL_PAGE)
    more = end < len(entries)
    return {member: entries[start:end], "Truncated": more, **({"NextMarker": f"from:{end}"} if more else {})}
