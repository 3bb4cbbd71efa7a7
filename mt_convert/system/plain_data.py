"""Dataclasses from plain data, every field of the type that it is declared with."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

from pydantic import TypeAdapter, ValidationError

from ..errors import CheckpointError


def as_type(kind: Any, stored: Any) -> Any:
    """``stored`` as a value of a type; fields that it does not have are passed over.

    Raises:
        CheckpointError: something is missing, or of another type.

    Example:
        >>> as_type(tuple[int, ...], [1, 2])
        (1, 2)
        >>> as_type(dict[str, int], {"a": "b"})
        Traceback (most recent call last):
        mt_convert.errors.CheckpointError: a: input should be a valid integer, is 'b'
    """
    try:
        return _adapter(kind).validate_json(json.dumps(stored), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the content"
        said = first["msg"][:1].lower() + first["msg"][1:]
        raise CheckpointError(f"{where}: {said}, is {str(first['input'])[:60]!r}") from error


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)
