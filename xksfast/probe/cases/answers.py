# SPDX-License-Identifier: Apache-2.0
"""All answers of the run, looked at once more: content type, JSON, error bodies. Requirements 1, 100 to 103, 156.

These cases run last and ask nothing themselves. A newcomer's trap: with --only they see what the cases chosen have asked.
"""

from __future__ import annotations

import base64
from collections import Counter

from xksfast.errors import MAX_ERROR_MESSAGE_CHARS, XksErrorName
from xksfast.probe.asking import Asking, Call
from xksfast.probe.case import CannotTell, case
from xksfast.probe.cases.reach import REACHED
from xksfast.probe.client import Answer

HTTP_ONLY = (405, 408, 411, 413, 414, 415, 417, 426, 431, 505)  # refusals of HTTP itself, which the API does not name
NOT_OF_THE_API = (
    "http.get",
    "http.other-methods",
    "http.malformed",
    "http.large-body",
)  # the bodies of these are nobody's rule
STATUS_OF = {name.error_name: name.http_status for name in XksErrorName}


def _answered(asking: Asking) -> list[tuple[Call, Answer]]:
    found = [(call, call.answer) for call in asking.history if call.answer is not None and call.case not in NOT_OF_THE_API]
    if not found:
        raise CannotTell("no answers to look at")
    return found


def _report(asking: Asking, wrong: Counter[str]) -> None:
    for what, count in wrong.most_common(8):
        asking.wrong(f"{what}{f', {count} times' if count > 1 else ''}")


@case(
    "answers.content-type", 1,
    says="Every answer has Content-Type application/json.",
    why="The API asks for it; KMS may refuse to read anything else.",
    do="Set it on errors too, including those of the web framework and the load balancer.",
    after=REACHED, timed=False,
)  # fmt: skip
def content_type(asking: Asking) -> None:
    wrong: Counter[str] = Counter()
    for call, answer in _answered(asking):
        given = (answer.header("content-type") or "").partition(";")[0].strip().lower()
        if given != "application/json":
            wrong[f"{call.label}, {answer.status}: {'another content type' if given else 'no content type'}"] += 1
    _report(asking, wrong)


@case(
    "answers.json", 1, 103,
    says="Every answer has a body that is one JSON object.",
    why="Of an answer without it KMS knows no more than that it cannot interpret it.",
    do="Give the web framework's and the load balancer's own error pages a JSON body.",
    after=REACHED, timed=False,
)  # fmt: skip
def json_object(asking: Asking) -> None:
    _report(asking, Counter(f"{call.label}, {answer.status}" for call, answer in _answered(asking) if answer.document is None))


@case(
    "answers.one-line", 156,
    says="The JSON of every answer is one line.",
    why="AWS's own test client reads the last line only.",
    do="Send compact JSON.",
    after=REACHED, timed=False,
)  # fmt: skip
def one_line(asking: Asking) -> None:
    lines = Counter(f"{call.label}, {answer.status}" for call, answer in _answered(asking) if b"\n" in answer.body.strip())
    _report(asking, lines)


@case(
    "answers.error-names", 100, 104, 108, 110, 111, 113, 115,
    says="Every refusal has an errorName of the API, with the HTTP status that belongs to it.",
    why="KMS maps both to what its caller sees, and to whether it tries again.",
    do="Use the twelve names and their statuses.",
    after=REACHED, timed=False,
)  # fmt: skip
def error_names(asking: Asking) -> None:
    wrong: Counter[str] = Counter()
    for call, answer in _answered(asking):
        if answer.status < 400 or answer.document is None:
            continue
        right = STATUS_OF.get(answer.error_name)
        if not answer.error_name:
            wrong[f"{call.label}: {answer.status} without errorName"] += 1
        elif right is None:
            wrong[f"{call.label}: {answer.status} with an errorName that the API does not have"] += 1
        elif right != answer.status and answer.status not in HTTP_ONLY:
            wrong[f"{call.label}: {answer}, which belongs to {right}"] += 1
    _report(asking, wrong)


@case(
    "answers.error-messages", 101, 102,
    says="errorMessage, where there is one, has under 512 printable ASCII characters and repeats nothing that was to be encrypted.",
    why="KMS writes it to the CloudWatch log of the calling account.",
    do="Say which rule was broken, never a value.",
    after=REACHED, timed=False,
)  # fmt: skip
def error_messages(asking: Asking) -> None:
    wrong: Counter[str] = Counter()
    secrets = [*asking.sent_plaintexts, *(base64.b64decode(text).decode("latin-1") for text in asking.sent_plaintexts)]
    repeats: dict[str, bool] = {}  # messages are few, answers many
    for call, answer in _answered(asking):
        message = (answer.document or {}).get("errorMessage") if answer.status >= 400 else None
        if message is None:
            continue
        if not isinstance(message, str):
            wrong[f"{call.label}, {answer.status}: it is no text"] += 1
            continue
        if len(message) > MAX_ERROR_MESSAGE_CHARS:
            wrong[f"{call.label}, {answer.status}: it has {len(message)} characters"] += 1
        if not all(" " <= char <= "~" for char in message):
            wrong[f"{call.label}, {answer.status}: it is not printable ASCII"] += 1
        if message not in repeats:
            repeats[message] = any(secret in message for secret in secrets)
        if repeats[message]:
            wrong[f"{call.label}, {answer.status}: it repeats the plaintext"] += 1
    _report(asking, wrong)
