"""What identifies a value in the keys of caches and of resumable runs: plain JSON, by stable names.

A class that can be part of a key names itself in ``kind``, so that it can be renamed and the key
stays. No torch.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from ..errors import SpecError


def key(schema: str, value: Any) -> dict[str, Any]:
    """A value as `to_json` has it, under the schema that says how it is to be understood.

    The number of the schema is raised when equal fields come to mean something else.

    Example:
        >>> key("time_steps/1", (1, 2, 4))
        {'schema': 'time_steps/1', 'value': [1, 2, 4]}
    """
    return {"schema": schema, "value": to_json(value)}


def to_json(value: Any) -> Any:
    """Plain data equal to what JSON gives back: a dataclass is its kind and all of its fields.

    Raises:
        SpecError: what has no plain form; a class without a ``kind`` of its own, which would have
            the key of another one.

    Example:
        >>> @dataclasses.dataclass(frozen=True)
        ... class Uniform:
        ...     kind = "uniform"
        ...     n: int
        >>> to_json((Uniform(3), "cascade", None))
        [{'kind': 'uniform', 'n': 3}, 'cascade', None]
    """
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, str):
        return str(value)  # the word of an enumeration
    if isinstance(value, tuple | list):
        return [to_json(item) for item in value]
    if not dataclasses.is_dataclass(value) or "kind" not in vars(type(value)):
        raise SpecError(
            f"{value!r} cannot be part of a key: allowed are numbers, words, tuples, and frozen "
            'dataclasses with a name of their own, kind: ClassVar[str] = "…"'
        )
    fields = {item.name: to_json(getattr(value, item.name)) for item in dataclasses.fields(value)}
    return {"kind": vars(type(value))["kind"], **fields}
