"""What timm's registry holds: architectures by family, how large they are, and a choice of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import timm
import torch

from ...errors import Fault, SpecError, did_you_mean, near_names
from ...system.bounded import Note
from ...system.storage import read_json

COUNTED = Path(__file__).parent / "parameters.json"


@dataclass(frozen=True)
class Architecture:
    """One name of the registry. ``family`` is the module of timm that defines it; ``params`` its
    number of parameters, None where that is not known.

    Example:
        >>> Architecture("vgg11", "vgg", 132_863_336).family
        'vgg'
    """

    name: str
    family: str
    params: int | None = None


def families() -> dict[str, list[str]]:
    """The names of each family, both in alphabetical order.

    Example:
        >>> families()["vgg"][:2]
        ['vgg11', 'vgg11_bn']
    """
    return {family: timm.list_models(module=family) for family in sorted(timm.list_modules())}


def matching(patterns: Sequence[str], known: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """The architectures that shell patterns name, by their own name or their family's; all of them
    without patterns.

    Raises:
        SpecError: patterns that match nothing, with the nearest names.

    Example:
        >>> known = {"resnet": ["resnet18", "wide_resnet50_2"], "vgg": ["vgg11"]}
        >>> matching(["resnet*", "vgg"], known)
        {'resnet': ['resnet18', 'wide_resnet50_2'], 'vgg': ['vgg11']}
    """
    if not patterns:
        return {family: list(names) for family, names in known.items()}
    faults = [
        Fault(pattern, "matches nothing", _nearest(pattern, known))
        for pattern in patterns
        if not any(
            fnmatchcase(name, pattern) for item in known.items() for name in (item[0], *item[1])
        )
    ]
    if faults:
        raise SpecError("timm's registry has no such architecture or family", faults)
    matches = {
        family: [name for name in names if _any((name, family), patterns)]
        for family, names in known.items()
    }
    return {family: names for family, names in matches.items() if names}


def _any(names: Iterable[str], patterns: Sequence[str]) -> bool:
    """Whether one of the names matches one of the patterns."""
    return any(fnmatchcase(name, pattern) for name in names for pattern in patterns)


def _nearest(pattern: str, known: Mapping[str, Sequence[str]]) -> str:
    """The names that a pattern may have meant."""
    names = [*known, *(name for names in known.values() for name in names)]
    hint = did_you_mean(near_names(pattern.replace("*", ""), names, cutoff=0.5))
    return hint or "timm.list_models() lists architectures, timm.list_modules() families"


def choose(
    names_of: Mapping[str, Sequence[str]],
    params: Mapping[str, int | None],
    selected: Callable[[str], bool],
) -> list[Architecture]:
    """The smallest architecture of each family, smallest first; then those ``selected`` besides.

    Example:
        >>> names_of = {"a": ["a1", "a2"], "b": ["b1", "b2"]}
        >>> params = {"a1": 9, "a2": 5, "b1": 1, "b2": 2}
        >>> [item.name for item in choose(names_of, params, selected=lambda name: name == "a1")]
        ['b1', 'a2', 'a1']
    """
    first, rest = [], []
    for family, names in names_of.items():
        items = sorted(
            (Architecture(name, family, params.get(name)) for name in names), key=_by_size
        )
        first.append(items[0])
        rest += [item for item in items[1:] if selected(item.name)]
    return [*sorted(first, key=_by_size), *sorted(rest, key=_by_size)]


def _by_size(item: Architecture) -> tuple[float, str]:
    """Small ones first; those of unknown size last."""
    return (float("inf") if item.params is None else item.params, item.name)


def parameter_counts() -> dict[str, int]:
    """Parameters of the architectures that timm had when this was written: counting all takes
    minutes. They choose and order; a trial counts those of the network that it built.

    Example:
        >>> parameter_counts()["vgg11"]
        132863336
    """
    return dict(read_json(COUNTED)["params"])


def count_parameters(names: Sequence[str], *, note: Note) -> dict[str, int | None]:
    """Parameters of each architecture, built without memory; None where that is not possible."""
    counts: dict[str, int | None] = {}
    for name in names:
        try:
            with torch.device("meta"):
                model = timm.create_model(name)
            counts[name] = sum(parameter.numel() for parameter in model.parameters())
        except Exception:  # whatever a constructor raises on a device without data
            counts[name] = None
        note({"params": counts})
    return counts
