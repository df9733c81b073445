# SPDX-License-Identifier: Apache-2.0
"""Every refusal as application/problem+json (RFC 9457): which rule, which field, why, and what to do next.

What lives here: the shape, and the one table of HTTP statuses of the administration. A newcomer's trap: what pydantic says about a
value can quote it, so the value is never taken over, only the words about it: it may be a secret.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field, ValidationError
from starlette.exceptions import HTTPException

from xksfast.admin.aws.errors import AwsRefused
from xksfast.admin.refusals import Category, Refused
from xksfast.errors import OperatorError
from xksfast.state.errors import OutcomeUnknown
from xksfast.toml_reader import nearest

MEDIA_TYPE = "application/problem+json"
TYPE_PREFIX = "urn:xksfast:problem:"
RETRY_AFTER_S = 1  # for what may be over in a moment

STATUS_BY_CATEGORY: dict[Category, int] = {
    "invalid": 422,
    "unauthenticated": 401,
    "forbidden": 403,
    "not_found": 404,
    "conflict": 409,
    "stale": 412,
    "too_many": 429,
    "unavailable": 503,
}
_TITLES = {
    401: "Not authenticated",
    403: "Not allowed",
    404: "Not found",
    405: "Method not allowed",
    408: "Too slow",
    409: "Conflict",
    412: "Changed meanwhile",
    413: "Too large",
    422: "Invalid",
    429: "Too many",
    500: "Internal error",
    503: "Unavailable",
}
_WORDS = {  # who sends JSON knows no tuples
    "should ": "must ",
    "valid tuple": "list",
    "valid dictionary": "JSON object",
    "Tuple must": "it must",
    "Dictionary must": "it must",
    " after validation": "",
}
_PARTS = ("body", "query", "path", "header")


class FieldProblem(BaseModel):
    """One value that is wrong."""

    field: str = Field(description="Dotted path of the member or parameter; empty: the body as a whole.")
    problem: str
    rule: str


class Problem(BaseModel):
    """Why a request was refused."""

    type: str = Field(description="A stable URN, one for each rule.", examples=[TYPE_PREFIX + "store-has-keys"])
    title: str
    status: int
    detail: str = Field(description="What is wrong, in a sentence.")
    rule: str = Field(description="The stable name of the rule, for scripts.", examples=["store-has-keys"])
    field: str = Field("", description="The member at fault, if there is one.")
    why: str = ""
    next: str = Field("", description="What to do instead.")
    errors: list[FieldProblem] = Field(default=[], description="All values that are wrong, when it is more than a single rule.")


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """For a route's `responses`: the problems that it may answer with, beside those that every route may."""
    return {
        status: {"model": Problem, "description": _TITLES[status]}
        for status in sorted({*statuses, 401, 403, 422, 429, 500, 503})
    }


def problem(
    status: int,
    rule: str,
    detail: str,
    *,
    field: str = "",
    why: str = "",
    next: str = "",
    errors: Sequence[FieldProblem] = (),
    headers: Mapping[str, str] | None = None,
) -> Response:
    """The answer."""
    body = Problem(
        type=TYPE_PREFIX + rule,
        title=_TITLES.get(status, "Refused"),
        status=status,
        detail=detail,
        rule=rule,
        field=field,
        why=why,
        next=next,
        errors=list(errors),
    )
    named = {"Cache-Control": "no-store", **(headers or {})}
    if status == 401:
        named.setdefault("WWW-Authenticate", 'Bearer realm="xksfast"')
    if status in (429, 503):
        named.setdefault("Retry-After", str(RETRY_AFTER_S))
    return Response(body.model_dump_json(), status, named, MEDIA_TYPE)


def of_refusal(refusal: Refused, *, sees_all: bool = False) -> Response:
    """A use case said no. sees_all: whether who asked may see every key store, and so may be told what is near."""
    headers = {"Retry-After": str(refusal.retry_after_s)} if isinstance(refusal, TooMany) else None
    return problem(
        STATUS_BY_CATEGORY[refusal.category],
        refusal.rule,
        refusal.what + (refusal.near if sees_all else ""),
        field=refusal.field,
        why=refusal.why,
        next=refusal.next,
        headers=headers,
    )


class TooMany(Refused):
    """Come back later."""

    def __init__(self, rule: str, what: str, *, retry_after_s: int, why: str = "", next: str = "") -> None:
        super().__init__("too_many", rule, what, why=why, next=next)
        self.retry_after_s = retry_after_s


def status_and_rule(error: OperatorError) -> tuple[int, str]:
    """For a text that is made for operators and holds no secret."""
    match error:
        case Refused():
            return STATUS_BY_CATEGORY[error.category], error.rule
        case OutcomeUnknown():
            return 503, "outcome-unknown"
        case AwsRefused():
            return 503 if error.transient else 409, f"aws-{error.code or 'refused'}"
        case _:
            return 503, "unavailable"


def of_operator_error(error: OperatorError) -> Response:
    """The state, a token or AWS did not do it; the text says why."""
    status, rule = status_and_rule(error)
    next = {
        "outcome-unknown": "Look whether the change is there before you repeat it",
        "unavailable": "Mend what it says, then try again",
    }
    return problem(status, rule, str(error), next=next.get(rule, ""))


def of_internal_error() -> Response:
    """Our fault. The cause is in the log."""
    return problem(
        500,
        "internal-error",
        "This is a fault of the proxy",
        next="Look for request_failed in its log, by the X-Request-Id of this answer",
        headers={"Connection": "close"},
    )


def of_values(errors: Iterable[Mapping[str, Any]]) -> Response:
    """Values that do not have the documented shape."""
    found = [_field_problem(error) for error in errors]
    first = found[0]
    return problem(
        422,
        first.rule,
        f"{first.field or 'the body'}: {first.problem}" + (f" (and {len(found) - 1} more)" if len(found) > 1 else ""),
        field=first.field,
        next="Send what the description at /openapi.json says",
        errors=found,
    )


def _field_problem(error: Mapping[str, Any]) -> FieldProblem:
    where = [str(part) for part in error["loc"]]
    kind = str(error["type"])
    if kind == "json_invalid":
        fault = str(error.get("ctx", {}).get("error", "")) or "it ends too early or is something else"
        return FieldProblem(field="", problem=f"it is no JSON: {fault}", rule="body-no-json")
    if where and where[0] in _PARTS:
        part, where = where[0], where[1:]
        if kind == "missing" and part == "body" and not where:
            return FieldProblem(field="", problem="it is missing: send JSON", rule="body-missing")
    name = ".".join(where)
    match kind:
        case "missing":
            return FieldProblem(field=name, problem="it is missing", rule="field-missing")
        case "extra_forbidden":
            return FieldProblem(field=name, problem="there is no such member", rule="field-unknown")
        case "model_attributes_type":
            sent = "" if name else ", sent as Content-Type: application/json"
            return FieldProblem(field=name, problem=f"it must be a JSON object{sent}", rule="field-invalid")
        case _:
            return FieldProblem(field=name, problem=_plain(str(error["msg"])), rule="field-invalid")


def _plain(message: str) -> str:
    """pydantic's words as part of a sentence of ours."""
    words = message.removeprefix("Value error, ").removeprefix("Input ").removeprefix("String ")
    for theirs, ours in _WORDS.items():
        words = words.replace(theirs, ours)
    return words


def install(app: FastAPI) -> None:
    """Every error of the app is answered in this shape."""

    async def refused(request: Request, error: Exception) -> Response:
        assert isinstance(error, Refused)
        actor = getattr(request.state, "actor", None)
        return of_refusal(error, sees_all=actor is not None and not actor.stores)

    async def unavailable(_: Request, error: Exception) -> Response:
        assert isinstance(error, OperatorError)
        return of_operator_error(error)

    async def values(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError | ValidationError)
        return of_values(error.errors())

    async def http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return of_http(request, error)

    app.add_exception_handler(Refused, refused)
    app.add_exception_handler(OperatorError, unavailable)
    app.add_exception_handler(RequestValidationError, values)
    app.add_exception_handler(HTTPException, http)


def of_http(request: Request, error: HTTPException) -> Response:
    """What the framework itself refuses."""
    routes = request.app.state.routes
    match error.status_code:
        case 404:
            path = request.url.path[:200]
            hint = nearest(path, {route.path for route in routes if route.include_in_schema})
            hint = hint.removeprefix(": d") if hint.startswith(": did you mean") else ""
            next = f"D{hint}" if hint else "See /openapi.json for those that there are"
            return problem(404, "no-such-route", "There is nothing at this path", next=next)
        case 405:
            allowed = {method for route in routes if route.path_regex.match(request.url.path) for method in route.methods}
            return problem(
                405,
                "method-not-allowed",
                f"{request.method} is not possible here",
                next="See /openapi.json for what is",
                headers={"Allow": ", ".join(sorted(allowed or {"GET"}))},
            )
        case 408:
            close = {"Connection": "close"}
            return problem(
                408, "body-too-slow", f"The body did not come within {error.detail}", next="Send it again", headers=close
            )
        case 413:
            return too_large(str(error.detail))
        case _:
            return problem(422, "body-unreadable", "The body cannot be read as JSON", next="Send what /openapi.json says")


def too_large(limit: str) -> Response:
    """limit: "1 MiB"."""
    return problem(
        413,
        "body-too-large",
        f"The body is larger than {limit}",
        next="Send it in parts",
        headers={"Connection": "close"},
    )
