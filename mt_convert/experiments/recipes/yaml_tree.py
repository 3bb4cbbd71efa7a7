"""The text of a recipe: YAML to a tree of plain values that knows the line of each of its keys.

Knows nothing of what a recipe may contain; `validation` checks that. Duplicate keys, anchors and
tags are refused; ``1e-4`` is a number, which plain YAML 1.1 takes for text, and ``no`` is a word,
which it takes for false: as in YAML 1.2, ``true`` and ``false`` alone are truths.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import yaml

from ...errors import Fault, RecipeError

Path = tuple[str | int, ...]

_LARGEST = 2.0**200
_DEEPEST = 20
_PLAIN_TAGS = (
    yaml.resolver.Resolver.DEFAULT_MAPPING_TAG,
    yaml.resolver.Resolver.DEFAULT_SEQUENCE_TAG,
)


class _Loader(yaml.SafeLoader):
    """yaml.SafeLoader without anchors, dates and merges, with 1e-4 as a number and no as a word."""

    yaml_implicit_resolvers: ClassVar[dict[str, list[tuple[str, Any]]]] = {
        first: [
            (tag, pattern)
            for tag, pattern in rules
            if not tag.endswith(("timestamp", "merge", "bool"))
        ]
        for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise yaml.composer.ComposerError(None, None, "anchors are not allowed here", mark)
        self.depth = getattr(self, "depth", 0) + 1
        if self.depth > _DEEPEST:
            raise RecursionError  # soon: what is nested deeper takes minutes to be read
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


@dataclass(frozen=True)
class Tree:
    """Plain values as YAML gives them, where each key was set, and what was wrong already."""

    value: Any
    places: dict[Path, str] = field(default_factory=dict)
    faults: tuple[Fault, ...] = ()

    def place(self, path: Path) -> str:
        """Where ``path``, or the nearest block around it that was written, was set."""
        while path and path not in self.places:
            path = path[:-1]
        return self.places.get(path, "line 1")


def parse(text: str, source: str) -> Tree:
    """Parse YAML text.

    Raises:
        RecipeError: not YAML; with the line. A key set twice is a fault of the tree.

    Example:
        >>> tree = parse("train:\\n  epochs: 3", "a.yaml")
        >>> tree.value, tree.place(("train", "epochs"))
        ({'train': {'epochs': 3}}, 'line 2')
    """
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        walk = _Walk(loader)
        value = walk.value(node, ()) if node is not None else None
    except yaml.YAMLError as error:
        raise RecipeError(f"{source} is not valid YAML", [_fault(error)]) from error
    except RecursionError as error:
        raise RecipeError(f"{source} is nested too deeply to be a recipe") from error
    return Tree(value, walk.places, tuple(walk.faults))


def merge(base: Tree, over: Tree) -> Tree:
    """``base`` with the keys of ``over`` put in: blocks key by key, all else replaced.

    Example:
        >>> merge(Tree({"a": {"b": 1, "c": 2}}), Tree({"a": {"b": 3}})).value
        {'a': {'b': 3, 'c': 2}}
    """
    return Tree(
        _merge(base.value, over.value), {**base.places, **over.places}, base.faults + over.faults
    )


def override(tree: Tree, assignments: Sequence[str]) -> Tree:
    """``tree`` with ``to_dotted.key=value`` assignments carried out, later ones winning.

    Assignments without ``=``, with a value that is not YAML, or into a value that has no keys
    become faults of the tree.

    Example:
        >>> override(Tree({"train": {"epochs": 3}}), ["train.epochs=5"]).value
        {'train': {'epochs': 5}}
    """
    faults: list[Fault] = []
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals or not key.strip():
            faults.append(Fault(assignment, "is no override", "write key=value: train.epochs=5"))
            continue
        path: Path = tuple(int(part) if part.isdigit() else part for part in key.strip().split("."))
        try:
            read = parse(text, "the value")
            if read.faults:
                fault = read.faults[0]
                faults.append(Fault(f"override  {to_dotted(path)}", fault.what, fault.hint))
                continue
            value = _with_value(tree.value, path, read.value)
            places = {**tree.places, path: "override"}
            tree = replace(tree, value=value, places=places)
        except RecipeError as error:
            faults.append(Fault(assignment, "has a value that is not YAML", _reason(error)))
        except (KeyError, IndexError, TypeError):
            hint = "only blocks have keys inside, and lists the numbers 0, 1, ..."
            faults.append(Fault(assignment, "sets a key inside a single value", hint))
    return replace(tree, faults=(*tree.faults, *faults))


class _Walk:
    """One pass over YAML nodes that gathers values, lines and faults."""

    def __init__(self, loader: _Loader) -> None:
        self.loader = loader
        self.places: dict[Path, str] = {}
        self.faults: list[Fault] = []

    def value(self, node: yaml.Node, path: Path) -> Any:
        """The plain value of a node."""
        if len(path) > _DEEPEST:
            raise RecursionError
        if not isinstance(node, yaml.ScalarNode) and node.tag not in _PLAIN_TAGS:
            hint = "allowed: plain blocks and lists"
            self.faults.append(Fault(_line(node), f"has the tag {node.tag}", hint))
        if isinstance(node, yaml.MappingNode):
            return self._block(node, path)
        if isinstance(node, yaml.SequenceNode):
            for index, item in enumerate(node.value):
                self.places[(*path, index)] = _line(item)
            return [self.value(item, (*path, index)) for index, item in enumerate(node.value)]
        try:
            value = self.loader.construct_object(node)
            if isinstance(value, int) and abs(value) > _LARGEST:
                raise ValueError("beyond all numbers of recipes")
            if isinstance(value, str):
                value.encode()
            return value
        except (
            ValueError,
            OverflowError,
            TypeError,
            AttributeError,
            KeyError,
            IndexError,
        ) as error:
            said = f"cannot be read ({str(error)[:100]})"
            where = f"{_line(node)}  {to_dotted(path)}".rstrip()
            self.faults.append(Fault(where, said, "allowed: plain text, numbers, true, false"))
            return None

    def _block(self, node: yaml.MappingNode, path: Path) -> dict[str, Any]:
        """The keys of a mapping, each once and each text."""
        block: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = key_node.value if isinstance(key_node, yaml.ScalarNode) else "?"
            inner = (*path, key)
            if key in block:
                hint = f"first on {self.places[inner]}: keep one of them"
                where = f"{_line(key_node)}  {to_dotted(inner)}"
                self.faults.append(Fault(where, "is set twice", hint))
            self.places[inner] = _line(key_node)
            block[key] = self.value(value_node, inner)
        return block


def to_dotted(path: Path) -> str:
    """A path as it is written in overrides.

    Example:
        >>> to_dotted(("quantize", "overrides", 0, "pattern"))
        'quantize.overrides.0.pattern'
    """
    return ".".join(map(str, path))


def _line(node: yaml.Node) -> str:
    return f"line {node.start_mark.line + 1}"


def _fault(error: yaml.YAMLError) -> Fault:
    """A YAML error as a fault with its line."""
    mark = getattr(error, "problem_mark", None)
    where = f"line {mark.line + 1}, column {mark.column + 1}" if mark else "the text"
    problem = getattr(error, "problem", None) or str(error).splitlines()[0]
    return Fault(where, problem, "allowed: YAML of blocks, lists, numbers and text")


def _reason(error: RecipeError) -> str:
    return error.faults[0].what if error.faults else error.headline


def _merge(base: Any, over: Any) -> Any:
    if isinstance(base, dict) and isinstance(over, dict):
        return {**base, **{key: _merge(base.get(key), value) for key, value in over.items()}}
    return over


def _with_value(tree: Any, path: Path, value: Any) -> Any:
    """A copy of ``tree`` with ``value`` at ``path``; blocks on the way are made where absent."""
    if not path:
        return value
    head, rest = path[0], path[1:]
    if isinstance(tree, list):
        if not isinstance(head, int):
            raise TypeError(head)
        items = list(tree)
        items[head] = _with_value(items[head], rest, value)
        return items
    if tree is not None and not isinstance(tree, dict):
        raise TypeError(head)
    block = dict(tree or {})
    block[str(head)] = _with_value(block.get(str(head)), rest, value)
    return block
