# SPDX-License-Identifier: Apache-2.0
"""Pages of lists: `limit`, `cursor`, a Link header. A cursor is the name of the last item, so that nothing is shown twice or left out
when objects come and go between two pages."""

from __future__ import annotations

import base64
import binascii
import itertools
from bisect import bisect_right
from collections.abc import Callable, Mapping
from typing import Annotated, TypeVar
from urllib.parse import urlencode

from fastapi import Query, Request, Response
from pydantic import BaseModel, SerializeAsAny

from xksfast.admin.api.route import answer
from xksfast.admin.api.views import Page
from xksfast.admin.refusals import Refused

DEFAULT_LIMIT, MAX_LIMIT = 100, 1000

_AnyPage = Page[SerializeAsAny[BaseModel]]  # made once: pydantic makes a class of it each time

Thing = TypeVar("Thing")
Shown = TypeVar("Shown", bound=BaseModel)

Limit = Annotated[int, Query(ge=1, le=MAX_LIMIT, description="How many at most.")]
Cursor = Annotated[str, Query(max_length=512, description="`next` of the page before; absent: the first page.")]
Filter = Annotated[str, Query(max_length=300, pattern=r"^[^\x00-\x1f\x7f]*$")]


def page(
    request: Request,
    things: Mapping[str, Thing],
    view: Callable[[Thing], Shown],
    limit: int,
    cursor: str,
    wanted: Callable[[Thing], bool] = lambda _: True,
) -> Response:
    """In the order of their names, which they are given by. Nothing is asked of those that come after the page: there may be many."""
    names = sorted(things)
    first = bisect_right(names, decode_cursor(cursor)) if cursor else 0
    left = (name for name in itertools.islice(names, first, None) if wanted(things[name]))
    found = list(itertools.islice(left, limit + 1))
    more = len(found) > limit
    return page_answer(
        request, [view(things[name]) for name in found[:limit]], encode_cursor(found[limit - 1]) if more else None
    )


def page_answer(request: Request, items: list[Shown], next_cursor: str | None) -> Response:
    """A page with its Link header."""
    headers = {}
    if next_cursor is not None:
        rest = [(key, value) for key, value in request.query_params.multi_items() if key != "cursor"]
        headers["Link"] = f'<{request.url.path}?{urlencode([*rest, ("cursor", next_cursor)])}>; rel="next"'
    return answer(_AnyPage(items=items, next=next_cursor), headers=headers)


def encode_cursor(name: str) -> str:
    """Opaque to clients."""
    return base64.urlsafe_b64encode(name.encode()).decode().rstrip("=")


def decode_cursor(cursor: str) -> str:
    """Refused when it is none of ours."""
    try:
        return base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True).decode()
    except (binascii.Error, ValueError):
        raise Refused(
            "invalid", "cursor-invalid", "cursor: it is not one that this proxy has given out", next="Begin at the first page",
            field="cursor",
        ) from None  # fmt: skip
