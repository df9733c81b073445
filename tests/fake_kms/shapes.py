# SPDX-License-Identifier: Apache-2.0
"""Requests and answers against botocore's service model: required members, types, lengths, patterns, enums, nothing unknown."""

from __future__ import annotations

import base64
import binascii
import re
from typing import Any

from botocore.model import ListShape, MapShape, Shape, StructureShape

from tests.fake_kms.errors import KmsError, service_model


def check_request(operation: str, document: Any) -> dict[str, Any]:
    """The request with its blobs decoded. KmsError: SerializationException for a wrong type, ValidationException for a wrong value."""
    model = service_model().operation_model(operation)
    if not isinstance(document, dict):
        raise KmsError("SerializationException", "the body is not a JSON object")
    problems: list[str] = []
    shape = model.input_shape
    value = _check(shape, document, "", problems) if shape is not None else {}
    if problems:
        count = "1 validation error" if len(problems) == 1 else f"{len(problems)} validation errors"
        raise KmsError("ValidationException", f"{count} detected: {'; '.join(problems)}")
    checked: dict[str, Any] = value
    return checked


def check_answer(operation: str, answer: dict[str, Any]) -> None:
    """AssertionError when the fake itself answers what the model does not know, so that no test leans on it."""
    shape = service_model().operation_model(operation).output_shape
    problems: list[str] = []
    if shape is None:
        assert answer == {}, (operation, answer)
        return
    _check(shape, answer, "", problems, answer=True)
    assert problems == [], (operation, problems)


def _check(shape: Shape, value: Any, path: str, problems: list[str], *, answer: bool = False) -> Any:
    if isinstance(shape, StructureShape):
        _type(value, dict, path)
        for name in shape.required_members:
            if value.get(name) is None:
                problems.append(f"Value null at '{_where(path, name)}' failed to satisfy constraint: Member must not be null")
        unknown = sorted(set(value) - set(shape.members))
        if unknown and answer:
            problems.append(f"unknown members {unknown} at {path!r}")
        known = {name: item for name, item in value.items() if name in shape.members and item is not None}
        return {
            name: _check(shape.members[name], item, _where(path, name), problems, answer=answer) for name, item in known.items()
        }
    if isinstance(shape, ListShape):
        _type(value, list, path)
        _length(shape, len(value), path, problems)
        return [_check(shape.member, item, f"{path}.{i}.member", problems, answer=answer) for i, item in enumerate(value, 1)]
    if isinstance(shape, MapShape):
        _type(value, dict, path)
        return {name: _check(shape.value, item, f"{path}.{name}", problems, answer=answer) for name, item in value.items()}
    return _check_scalar(shape, value, path, problems)


def _check_scalar(shape: Shape, value: Any, path: str, problems: list[str]) -> Any:
    if shape.type_name == "string":
        _type(value, str, path)
        _length(shape, len(value), path, problems)
        _text(shape, value, path, problems)
    elif shape.type_name == "blob":
        _type(value, str, path)
        try:
            decoded = base64.b64decode(value, validate=True)
        except binascii.Error:
            raise KmsError("SerializationException", f"{path} is not Base64") from None
        _length(shape, len(decoded), path, problems)
        return decoded
    elif shape.type_name == "boolean":
        _type(value, bool, path)
    elif shape.type_name in ("integer", "long"):
        _type(value, int, path)
        metadata = shape.metadata
        if not metadata.get("min", value) <= value <= metadata.get("max", value):
            bounds = f"between {metadata.get('min')} and {metadata.get('max')}"
            problems.append(f"Value '{value}' at '{path}' failed to satisfy constraint: Member must have value {bounds}")
    elif shape.type_name == "timestamp":
        _type(value, (int, float), path)
    return value


def _text(shape: Shape, value: str, path: str, problems: list[str]) -> None:
    pattern = shape.metadata.get("pattern")
    if pattern and not re.fullmatch(pattern, value):
        problems.append(_broken(shape, value, path, f"Member must satisfy regular expression pattern: {pattern}"))
    enum = shape.metadata.get("enum")
    if enum and value not in enum:
        problems.append(_broken(shape, value, path, f"Member must satisfy enum value set: [{', '.join(enum)}]"))


def _length(shape: Shape, length: int, path: str, problems: list[str]) -> None:
    least, most = shape.metadata.get("min"), shape.metadata.get("max")
    if least is not None and length < least:
        problems.append(
            f"Value at '{path}' failed to satisfy constraint: Member must have length greater than or equal to {least}"
        )
    if most is not None and length > most:
        problems.append(f"Value at '{path}' failed to satisfy constraint: Member must have length less than or equal to {most}")


def _broken(shape: Shape, value: str, path: str, constraint: str) -> str:
    shown = "***" if shape.metadata.get("sensitive") else value
    return f"Value '{shown}' at '{path}' failed to satisfy constraint: {constraint}"


def _where(path: str, name: str) -> str:
    """AWS writes members with a small first letter there."""
    small = name[:1].lower() + name[1:]
    return f"{path}.{small}" if path else small


def _type(value: Any, wanted: type | tuple[type, ...], path: str) -> None:
    if not isinstance(value, wanted) or (isinstance(value, bool) and wanted is not bool):
        raise KmsError("SerializationException", f"{path or 'the body'} is of the wrong type")
