# SPDX-License-Identifier: Apache-2.0
"""Every command and option that a text names is there: an operator in trouble types what an error says."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from xksfast.commands import app

ROOT = Path(__file__).resolve().parents[2]

# What follows the program's name in sentences and in labels that are hashed. A word that stands neither here nor among the commands
# fails: either the command is not there, or it is a new sentence.
PROSE = {
    "administration", "and", "answer", "answers", "asks", "backup", "checkpoint", "does", "event", "from", "health", "holds",
    "in", "is", "its", "keeps", "local", "mac", "memory", "needs", "of", "on", "once", "or", "peer", "proxy", "runs", "says",
    "serves", "takes", "wrote",
}  # fmt: skip

_NAMED = re.compile(r"(?<![\w./-])xksfast((?: +[^\s`\"'()<>]+)+)")
_WORD = re.compile(r"[a-z][a-z-]*")


def command_tree() -> Any:
    """With what is imported only when it is needed."""
    top: Any = typer.main.get_command(app)
    context = top.make_context("xksfast", ["version"], resilient_parsing=True)
    for name in top.list_commands(context):
        top.resolve_command(context, [name])
    return top


def strings_of(tree: ast.AST) -> Iterator[str]:
    """Whole strings as they are read: what is put into an f-string stands as {}."""
    inner = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        match node:
            case ast.JoinedStr():
                yield "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)
            case ast.Constant(value=str(text)) if id(node) not in inner:
                yield text


def texts() -> Iterator[tuple[str, str]]:
    """(file, text) of all that people may read: strings of Python, C with its comments, README."""
    for path in sorted((ROOT / "xksfast").rglob("*.py")):
        for text in strings_of(ast.parse(path.read_text())):
            yield str(path.relative_to(ROOT)), " ".join(text.split("\n")) if "`" in text else text
    for path in sorted([*(ROOT / "csrc").rglob("*.[ch]"), *(ROOT / "xksfast").rglob("*.pyx")]):
        if "third_party" not in path.parts:
            yield str(path.relative_to(ROOT)), path.read_text()
    for name in ("README.md", "CONTRIBUTING.md"):
        yield name, (ROOT / name).read_text()


def problem(tree: Any, words: list[str]) -> str:
    """What is wrong with the words behind "xksfast", "" if nothing is."""
    if not _WORD.fullmatch(words[0].split("|")[0].rstrip(".,:;…")):
        return ""  # an option, a version, a placeholder
    command = tree
    while hasattr(command, "commands") and words:
        named = words[0].rstrip(".,:;").split("|")
        if not _WORD.fullmatch(named[0]):
            return ""  # a noun alone, such as `xksfast store …`
        for name in named:
            if name not in command.commands:
                if command is tree and name in PROSE:
                    return ""
                return f"{command.name or 'xksfast'} has no command {name!r}"
        words, command = words[1:], command.commands[named[0]]
    known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    for word in words:
        option = re.match(r"--[a-z][a-z-]*", word)
        if option and option[0] not in known | {"--help"}:
            return f"{command.name} has no option {option[0]}"
        if word.endswith((".", ";", ",", ":")) or word in ("and", "or", "xksfast", "#", "|", "&&"):
            break  # the sentence goes on
    return ""


def test_every_command_that_a_text_names_is_there() -> None:
    tree = command_tree()
    wrong = set()
    found = 0
    for file, text in texts():
        for named in _NAMED.finditer(text):
            found += 1
            if said := problem(tree, named[1].split()):
                wrong.add(f"{file}: xksfast{named[1][:60]}: {said}")
    assert found > 100
    assert not wrong, "\n" + "\n".join(sorted(wrong))


def test_a_command_or_option_that_is_not_there_is_found() -> None:
    tree = command_tree()
    for words in (
        "doctor",
        "doctor, which",
        "store lst",
        "partition list|ad",
        "store block x --reasn",
        "aws topology STORE --conectivity",
    ):
        assert problem(tree, words.split()), words
    for words in (
        "store block payments --reason drill",
        "aws topology STORE",
        "partition list|add",
        "store …",
        "--version",
        "is",
    ):
        assert not problem(tree, words.split()), words
