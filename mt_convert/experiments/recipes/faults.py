"""What pydantic rejects in a recipe, as faults with line, dotted key and nearest valid key.

`conversion` and `from_scratch` pass their own recipe types in.
"""

from __future__ import annotations

import dataclasses
import json
import re
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from ...errors import Fault, MTConvertError, did_you_mean, near_names
from .yaml_tree import Path, Tree, to_dotted

_UNKNOWN = ("extra_forbidden", "unexpected_keyword_argument")
_MISSING = ("missing", "missing_argument")
_PLAIN = {
    "a valid integer": "a whole number",
    "a valid number": "a number",
    "a valid string": "text",
    "a valid boolean": "true or false",
    "a valid tuple": "a list",
    "a valid array": "a list",
    "an object": "a block of keys",
}


@dataclasses.dataclass(frozen=True)
class Finding:
    """A fault, the path it stands at, and the key that was probably meant."""

    path: Path
    fault: Fault
    missing: bool = False
    meant: Path | None = None


def findings(errors: Iterable[ErrorDetails], tree: Tree, root: type) -> list[Finding]:
    """Everything one validation of ``tree`` found.

    A key that is missing because it was misspelt is reported once, as misspelt.
    """
    errors = list(errors)
    items = {error["loc"][:-1] for error in errors if error["loc"]}
    candidates = [
        finding
        for error in errors  # a list whose items are at fault is not at fault for being short
        if not (error["type"] == "too_short" and error["loc"] in items)
        for finding in _findings_of(error, tree, root)
    ]
    meant = {finding.meant for finding in candidates}
    return [item for item in candidates if not (item.missing and item.path in meant)]


def without(value: Any, paths: Iterable[Path]) -> Any:
    """``value`` without the keys at ``paths``; a path into a list takes the whole list away.

    Example:
        >>> without({"a": {"b": 1, "c": [1]}}, [("a", "c", 0)])
        {'a': {'b': 1}}
    """
    for path in paths:
        keys = tuple(_until_number(path))
        value = _remove(value, keys) if keys else {}
    return value


def keys_of(kind: Any) -> Mapping[str, Any]:
    """Names and types of the keys that a block of type ``kind`` may have.

    Example:
        >>> list(keys_of(Fault | None))
        ['where', 'what', 'hint']
    """
    kind = _bare(kind)
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return {name: item.annotation for name, item in kind.model_fields.items()}
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)  # a word of Python has a line behind it: import_
        return {item.name.rstrip("_"): hints[item.name] for item in dataclasses.fields(kind)}
    return {}


def _findings_of(error: ErrorDetails, tree: Tree, root: type) -> Iterator[Finding]:
    """The findings in one error of pydantic's."""
    path: Path = tuple(error["loc"])
    cause = error.get("ctx", {}).get("error")
    if error["type"] in _UNKNOWN:
        meant, hint = _nearest(path, root)
        yield Finding(path, _fault(path, "is no known key", hint, tree), meant=meant)
    elif error["type"] in _MISSING:
        yield Finding(path, _fault(path, "is missing", "write it", tree), missing=True)
    elif isinstance(cause, MTConvertError) and cause.faults:
        for inner in cause.faults:
            name = re.match(r"\w+", inner.where)
            at = (
                (*path, name.group()) if name and name.group() in keys_of(_at(root, path)) else path
            )
            said = "" if at[-1:] == (inner.where,) else f"{inner.where}: "
            yield Finding(at, _fault(at, f"is {said}{inner.what}", inner.hint, tree))
    elif isinstance(cause, Exception):
        headline = getattr(cause, "headline", str(cause))
        yield Finding(path, _fault(path, "is outside what is allowed", headline, tree))
    else:
        allowed = error["msg"].removeprefix("Input should be ")
        if error["type"] == "too_short":
            allowed = "a list of one or more"
        hint = f"allowed: {_PLAIN.get(allowed, allowed)}"
        yield Finding(path, _fault(path, f"is {_short(error['input'])}", hint, tree))


def _fault(path: Path, what: str, hint: str, tree: Tree) -> Fault:
    return Fault(f"{tree.place(path)}  {to_dotted(path)}".rstrip(), what, hint)


def _nearest(path: Path, root: type) -> tuple[Path | None, str]:
    """The key that was probably meant, and a hint that names it and all that are allowed."""
    block, key = path[:-1], str(path[-1])
    siblings = list(keys_of(_at(root, block)))
    allowed = f"allowed: {', '.join(siblings)}"
    near = near_names(key, siblings, most=1)
    if near:
        return (*block, near[0]), f"{did_you_mean(near)} {allowed}"
    elsewhere = [to_dotted(other) for other in _all_keys(root) if other[-1] == key]
    if elsewhere:
        return None, f"{did_you_mean(elsewhere)} {allowed}"
    return None, allowed


def _all_keys(kind: Any, path: Path = ()) -> Iterator[Path]:
    """The path of every key that exists."""
    for name, inner in keys_of(kind).items():
        yield (*path, name)
        yield from _all_keys(inner, (*path, name))


def _at(kind: Any, path: Path) -> Any:
    """The type at ``path``, or None where types do not tell."""
    for part in path:
        kind = item_of(kind) if isinstance(part, int) else keys_of(kind).get(part)
    return kind


def fault_at(path: Path, value: Any, hint: str, tree: Tree) -> Fault:
    """A fault of the value at a path, with the line where it was set."""
    return _fault(path, f"is {_short(value)}", hint, tree)


def item_of(kind: Any) -> Any:
    """The type of the items of a list."""
    return next(iter(typing.get_args(_bare(kind))), None)


def _bare(kind: Any) -> Any:
    """A type without Annotated and without None."""
    if typing.get_origin(kind) is typing.Annotated:
        return _bare(typing.get_args(kind)[0])
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        rest = [item for item in typing.get_args(kind) if item is not type(None)]
        return _bare(rest[0]) if len(rest) == 1 else kind
    return kind


def _short(value: Any) -> str:
    """A value as it could stand in YAML, cut to a line."""
    text = json.dumps(value, default=repr, ensure_ascii=False)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _until_number(path: Path) -> Iterator[str]:
    for part in path:
        if isinstance(part, int):
            return
        yield part


def _remove(value: Any, keys: tuple[str, ...]) -> Any:
    if not isinstance(value, dict) or keys[0] not in value:
        return value
    rest = {key: item for key, item in value.items() if key != keys[0]}
    return rest if len(keys) == 1 else {**value, keys[0]: _remove(value[keys[0]], keys[1:])}
