# SPDX-License-Identifier: Apache-2.0
"""A use case says no: what was asked, which rule it breaks, what to do instead. REST renders it as problem+json, the CLI as text."""

from __future__ import annotations

from typing import Literal

from xksfast.errors import OperatorError
from xksfast.state.records import Idempotency

Category = Literal["invalid", "unauthenticated", "forbidden", "not_found", "conflict", "stale", "too_many", "unavailable"]


MAX_SHOWN_CHARS = 128
_LISTS = {
    "key store": "store list",
    "key": "key list STORE",
    "credential": "credential list STORE",
    "operator": "operator list",
    "AWS connection": "aws list",
}


class Refused(OperatorError):
    """category: what kind of no. rule: its stable name, for scripts ("store-has-keys"). field: the member at fault, or "".

    what, why, next: a sentence each. near: " (did you mean …?)" with names that only those who may see every key store are shown.
    """

    exit_code = 3
    near = ""

    def __init__(self, category: Category, rule: str, what: str, *, why: str = "", next: str = "", field: str = "") -> None:
        super().__init__(" ".join(f"{part}." if not part.endswith((".", "?")) else part for part in (what, why, next) if part))
        self.category = category
        self.rule = rule
        self.field = field
        self.what = what
        self.why = why
        self.next = next


class Repeated(Exception):
    """No refusal: what is asked for was carried out before. row: what was answered then."""

    def __init__(self, row: Idempotency) -> None:
        super().__init__("this request was carried out before")
        self.row = row


def invalid(field: str, problem: str | None, value: object = None) -> None:
    """Refuse when there is a problem. value: shown, so it must not be a secret."""
    if problem is not None:
        shown = f" {value!r}" if value is not None else ""
        raise Refused("invalid", "field-invalid", f"{field}{shown}: {problem}", field=field)


def no_such(kind: str, name: str, near: str = "") -> Refused:
    """kind: "key store", "key", ... near: what " (did you mean …?)" adds. A name is shown up to 128 characters."""
    shown = name if len(name) <= MAX_SHOWN_CHARS else name[:MAX_SHOWN_CHARS] + "…"
    command = next((command for start, command in _LISTS.items() if kind.startswith(start)), "")
    hint = f"`xksfast {command}` shows those that there are" if command else ""
    return Refused("not_found", "no-such-object", f"There is no {kind} {shown!r}{near}", next=hint)
