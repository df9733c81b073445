# SPDX-License-Identifier: Apache-2.0
"""Talks to the admin listener, and turns what goes wrong into words that say what to do.

A newcomer's trap: a POST is sent with an Idempotency-Key, and once more with the same one when its answer got lost on the way. What
was turned away because the listener is busy, so that nothing was done, is tried again a few times whatever it is.
"""

from __future__ import annotations

import os
import ssl
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import httpx
import orjson

from xksfast.errors import OperatorError

DEFAULT_URL = "https://localhost:8444"
URL_VARIABLE, TOKEN_VARIABLE, CA_VARIABLE = "XKSFAST_ADMIN_URL", "XKSFAST_ADMIN_TOKEN", "XKSFAST_ADMIN_CA"
CONNECT_TIMEOUT_S = 15.0  # a listener that starts just now lets one wait
ANSWER_TIMEOUT_S = 120.0  # an HSM may take its time to make a key
PAGE = 1000
BUSY = 503
BUSY_WAITS_S = (0.2, 0.5, 1.0, 2.0)  # before what was turned away is tried again
_BY_A_RULE = (403, 404, 405, 409, 412, 413, 422)


class RequestFailed(OperatorError):
    """The server said no, or nothing. exit_code: 3 by a rule, which the text names; else 1. status: 0 without an answer."""

    def __init__(self, message: str, *, status: int = 0, rule: str = "") -> None:
        super().__init__(message)
        self.exit_code = 3 if status in _BY_A_RULE else 1
        self.status = status
        self.rule = rule


def failure(line: dict[str, Any]) -> RequestFailed:
    """The line of a stream that says why nothing more was done."""
    return RequestFailed(f"{line['detail']} [{line['rule']}]", status=line["status"], rule=line["rule"])


def connect(url: str | None, token_file: Path | None, ca: Path | None, *, timeout_s: float = ANSWER_TIMEOUT_S) -> Client:
    """By what was given, else by the environment. OperatorError when that cannot work."""
    where = url or os.environ.get(URL_VARIABLE) or DEFAULT_URL
    parts = urlsplit(where)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise OperatorError(f"{where!r} is no URL such as {DEFAULT_URL}: mend --admin or {URL_VARIABLE}")
    if parts.scheme == "http" and parts.hostname not in ("localhost", "127.0.0.1", "::1"):
        raise OperatorError(f"{where} would send the token over the network in clear: use https://")
    return Client(where.rstrip("/"), _token(token_file), _trust(ca), timeout_s)


def _token(file: Path | None) -> str:
    if file is None:
        token = os.environ.get(TOKEN_VARIABLE, "").strip()
        if not token:
            raise OperatorError(f"no token: name a file with --token-file, or set {TOKEN_VARIABLE}")
        source = TOKEN_VARIABLE
    else:
        try:
            token = file.read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise OperatorError(
                f"--token-file {file} cannot be read: {getattr(error, 'strerror', None) or 'no text'}"
            ) from None
        source = str(file)
    if not token.isascii() or not token.isprintable() or " " in token or not token:
        raise OperatorError(f"{source} holds no token: it is one word that begins with xkt_")
    return token


def _trust(given: Path | None) -> ssl.SSLContext:
    file = given or (Path(os.environ[CA_VARIABLE]) if os.environ.get(CA_VARIABLE) else None)
    if file is None:
        return ssl.create_default_context()
    try:
        return ssl.create_default_context(cafile=str(file))
    except (OSError, ssl.SSLError) as error:
        fault = "is no PEM file with certificates" if isinstance(error, ssl.SSLError) else f"cannot be read: {error.strerror}"
        raise OperatorError(f"{file} {fault}: mend --ca or {CA_VARIABLE}") from None


class Client:
    """One connection's worth of requests. Paths are relative to the server, with their parts quoted by `path`."""

    def __init__(self, url: str, token: str, trust: ssl.SSLContext, timeout_s: float) -> None:
        self.url = url
        self._http = httpx.Client(
            base_url=url,
            headers={"Authorization": f"Bearer {token}"},
            verify=trust,
            timeout=httpx.Timeout(timeout_s, connect=min(CONNECT_TIMEOUT_S, timeout_s)),
            trust_env=False,  # never by way of a web proxy
            follow_redirects=False,
        )

    def close(self) -> None:
        """Leave nothing open."""
        self._http.close()

    def get(self, where: str, **query: Any) -> Any:
        """The document."""
        return self._document(self._send("GET", where, query=query))

    def items(self, where: str, **query: Any) -> list[Any]:
        """All items of a list, over all its pages."""
        found: list[Any] = []
        cursor = None
        while True:
            page = self.get(where, **query, limit=PAGE, cursor=cursor)
            found += page["items"]
            cursor = page["next"]
            if cursor is None:
                return found

    def post(self, where: str, body: Any = None) -> Any:
        """The document."""
        return self._document(self._send("POST", where, body, headers={"Idempotency-Key": str(uuid.uuid4())}))

    def patch(self, where: str, body: Any, *, revision: int | None = None) -> Any:
        """The document."""
        return self._document(self._send("PATCH", where, body, headers=_if_match(revision)))

    def delete(self, where: str, *, dry_run: bool = False, revision: int | None = None) -> Any:
        """None when it is done; with dry_run what would be."""
        return self._document(self._send("DELETE", where, query={"dry_run": dry_run or None}, headers=_if_match(revision)))

    def lines(self, where: str, body: Any) -> Iterator[dict[str, Any]]:
        """The objects of an answer of JSON lines, as they come. The last one is no promise: see its `event`."""
        content = _encoded(body) if body is not None else None
        timeout = httpx.Timeout(None, connect=CONNECT_TIMEOUT_S)
        for wait_s in (*BUSY_WAITS_S, None):
            try:
                with self._http.stream("POST", where, content=content, headers=_JSON, timeout=timeout) as response:
                    if response.status_code != 200:
                        response.read()
                    if wait_s is None or not _is_busy(response):
                        if response.status_code != 200:
                            self._document(response)
                        for line in response.iter_lines():
                            yield orjson.loads(line)
                        return
            except httpx.HTTPError as error:
                if wait_s is None or not _was_turned_away(error):
                    raise self._unreachable(error) from None
            time.sleep(wait_s)

    def _send(
        self,
        method: str,
        where: str,
        body: Any = None,
        *,
        query: dict[str, Any] | None = None,
        headers: dict[str, str] | None = None,
    ) -> httpx.Response:
        chosen = {
            name: str(value).lower() if isinstance(value, bool) else value
            for name, value in (query or {}).items()
            if value is not None
        }
        sent = {**(headers or {}), **(_JSON if body is not None else {})}
        content = _encoded(body) if body is not None else None
        may_repeat = "Idempotency-Key" in sent
        for wait_s in (*BUSY_WAITS_S, None):
            try:
                response = self._http.request(method, where, params=chosen, content=content, headers=sent)
                if wait_s is None or not _is_busy(response):
                    return response
            except (httpx.RemoteProtocolError, httpx.ReadError) as error:
                if not may_repeat:
                    raise self._unreachable(error) from None
                may_repeat = False
            except httpx.HTTPError as error:
                if wait_s is None or not _was_turned_away(error):
                    raise self._unreachable(error) from None
            time.sleep(wait_s or 0)
        raise AssertionError("unreachable")

    def _document(self, response: httpx.Response) -> Any:
        try:
            document = orjson.loads(response.content) if response.content else None
        except ValueError:
            document = None
        if response.is_success and (document is not None or response.status_code == 204):
            return document
        if not isinstance(document, dict) or "rule" not in document:
            if response.status_code == BUSY:
                raise RequestFailed(f"{self.url} is busy: it answers 503, and did so each time; try again in a moment")
            raise RequestFailed(
                f"{self.url} answers {response.status_code} without a document: it is no admin listener of xksfast; "
                f"name that (admin.listen in its configuration) with --admin or {URL_VARIABLE}"
            )
        raise self._refusal(response.status_code, document)

    def _refusal(self, status: int, problem: dict[str, Any]) -> RequestFailed:
        texts = [problem["detail"], problem.get("why", ""), problem.get("next", "")]
        if status == 401:
            texts = [f"{self.url} refuses the token: {problem['detail']}", f"Check --token-file or {TOKEN_VARIABLE}"]
        sentences = [text if text.endswith((".", "?", "!")) else f"{text}." for text in texts if text]
        more = [f"\n  {each['field'] or 'body'}: {each['problem']}" for each in problem.get("errors", [])[1:]]
        return RequestFailed(f"{' '.join(sentences)} [{problem['rule']}]{''.join(more)}", status=status, rule=problem["rule"])

    def _unreachable(self, error: Exception) -> RequestFailed:
        text = str(error)
        look = "look whether the change was made (`xksfast audit tail`) before you repeat it"
        if "CERTIFICATE_VERIFY_FAILED" in text:
            fault = text.partition("CERTIFICATE_VERIFY_FAILED] ")[2].partition(" (_ssl")[0] or "not trusted"
            next = f"Name its CA with --ca or {CA_VARIABLE}, and the host as the certificate does"
            return RequestFailed(f"{self.url}: its certificate is not accepted: {fault}. {next}")
        if "WRONG_VERSION_NUMBER" in text or "record layer" in text.lower():
            return RequestFailed(f"{self.url} does not speak TLS: try http:// when it is on this machine")
        if _was_turned_away(error):
            return RequestFailed(f"{self.url} is busy: it closed each connection before TLS was set up; try again in a moment")
        if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
            return RequestFailed(
                f"nothing answers at {self.url}: is the proxy running, with its state in a database? "
                f"Say where its admin listener is with --admin or {URL_VARIABLE}"
            )
        if isinstance(error, httpx.TimeoutException):
            return RequestFailed(f"{self.url} did not answer in time: {look}")
        return RequestFailed(f"{self.url}: the connection was lost ({type(error).__name__}): {look}")


_JSON = {"Content-Type": "application/json"}


def _is_busy(response: httpx.Response) -> bool:
    """Whether nothing was done because too many connections are at work. Other answers of 503 say what is away."""
    if response.status_code != BUSY:
        return False
    try:
        document = orjson.loads(response.content)
    except ValueError:
        return True  # something before the listener
    return not isinstance(document, dict) or document.get("rule", "busy") == "busy"


def _was_turned_away(error: Exception) -> bool:
    """Whether somebody listens who closed the connection before a request could be sent over it, as one does who has too many."""
    return isinstance(error, httpx.ConnectError) and any(
        word in str(error) for word in ("UNEXPECTED_EOF", "EOF occurred", "Connection reset", "ECONNRESET", "Broken pipe")
    )


def _encoded(body: Any) -> bytes:
    return orjson.dumps(body)


def _if_match(revision: int | None) -> dict[str, str]:
    return {} if revision is None else {"If-Match": f'"{revision}"'}


def path(*parts: str) -> str:
    """ "/v1/stores/payments" from "stores", "payments".

    OperatorError for what would reach something else: the key ".." of a store would be the store itself.
    """
    for part in parts:
        if part in ("", ".", "..") or "/" in part:
            raise OperatorError(
                f"{part!r} is no name: give that of one object, which is not empty, has no / and is neither . nor .."
            )
    return "/v1/" + "/".join(quote(part, safe="") for part in parts)
