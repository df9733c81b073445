# SPDX-License-Identifier: Apache-2.0
"""The parts of `xksfast test` that judge: signatures against botocore's, and answers read strictly."""

from __future__ import annotations

import datetime
import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.requests import Target as Signer
from xksfast.errors import OperatorError
from xksfast.probe.client import BadAnswer, parse_answer
from xksfast.probe.signing import Signing, signed_headers
from xksfast.probe.target import Address, Credential, parse_url

NOW = datetime.datetime(2026, 2, 28, 23, 59, 58, tzinfo=datetime.UTC)


WORD = st.text(string.ascii_letters + string.digits + "_-", min_size=1, max_size=12)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(WORD, min_size=1, max_size=6),
    st.binary(max_size=200),
    st.text(string.ascii_letters + string.digits + "/+=", min_size=1, max_size=64),
)
def test_signatures_are_those_of_botocore(words: list[str], body: bytes, secret: str) -> None:
    path = "/" + "/".join(words)
    ours = signed_headers(
        path, body, "xks.example.com:8443", Credential("A" * 20, secret), "eu-north-1", Signing(signed=("content-type",)), NOW
    )
    theirs = Signer("https://xks.example.com:8443", "", "eu-north-1", "A" * 20, secret).sign(path, body, NOW)
    assert ours["X-Amz-Date"] == theirs["X-Amz-Date"]
    assert ours["Authorization"] == theirs["Authorization"]


def test_the_default_port_is_left_out_of_host() -> None:
    assert Address(True, "xks.example.com", 443).authority == "xks.example.com"
    assert Address(False, "xks.example.com", 443).authority == "xks.example.com:443"
    assert Address(True, "::1", 8443).authority == "[::1]:8443"


@pytest.mark.parametrize(
    ("text", "prefix"),
    [
        ("https://h", ""),
        ("https://h/", ""),
        ("https://h/a/b", "/a/b"),
        ("https://h/a/kms/xks/v1", "/a"),
        ("https://h/kms/xks/v1/", ""),
    ],
)
def test_the_prefix_is_what_stands_before_the_api(text: str, prefix: str) -> None:
    assert parse_url(text) == Address(True, "h", 443, prefix)


def test_a_url_without_a_host_is_refused() -> None:
    with pytest.raises(OperatorError, match="is no URL"):
        parse_url("https:///x")


FULL = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\nX: y\r\n\r\n{}"


@pytest.mark.parametrize("cut", range(len(FULL)))
def test_an_answer_is_complete_only_at_its_end(cut: int) -> None:
    assert parse_answer(FULL[:cut], eof=False) is None


def test_an_answer_ends_where_it_says() -> None:
    parsed = parse_answer(FULL + b"HTTP/1.1 400 more", eof=False)
    assert parsed is not None
    answer, used = parsed
    assert (answer.status, answer.body, answer.interim, used) == (200, b"{}", (100,), len(FULL))


def test_chunks_are_joined() -> None:
    data = b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\n{"a\r\n4;x=y\r\n":1}\r\n0\r\n\r\n'
    assert parse_answer(data[:-1], eof=False) is None
    parsed = parse_answer(data, eof=False)
    assert parsed is not None
    assert parsed[0].document == {"a": 1}


def test_an_answer_without_a_length_ends_with_the_connection() -> None:
    data = b"HTTP/1.1 200 OK\r\n\r\n{}"
    assert parse_answer(data, eof=False) is None
    parsed = parse_answer(data, eof=True)
    assert parsed is not None
    assert parsed[0].body == b"{}"


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/2 200\r\n\r\n", b"SSH-2.0-x\r\n", b"\x15\x03\x03\0\x02\x02\x28", b"HTTP/1.1 abc\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nnone\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
)  # fmt: skip
def test_what_is_no_answer_is_called_so(data: bytes) -> None:
    with pytest.raises(BadAnswer):
        parse_answer(data, eof=False)


@settings(deadline=None)
@given(st.binary(max_size=300), st.booleans())
def test_any_bytes_are_an_answer_or_not_yet_or_none(data: bytes, eof: bool) -> None:
    for text in (data, b"HTTP/1.1 200 OK\r\n" + data, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + data):
        try:
            parsed = parse_answer(text, eof=eof)
        except BadAnswer:
            continue
        assert parsed is None or 0 < parsed[1] <= len(text)
