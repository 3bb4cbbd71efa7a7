"""Everything that takes part in a benchmark."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ....errors import Fault, SpecError, many
from .contender import Contender


def all_contenders() -> Mapping[str, Contender]:
    """Every contender by name: ours, float networks, quantized networks, other packages.

    Example:
        >>> list(all_contenders())[:2]
        ['integer_native', 'integer_native_binary']
    """
    from . import ours, rivals

    return {item.name: item for item in (*ours.CONTENDERS, *rivals.CONTENDERS)}


def choose_contenders(names: Iterable[str], *, every: bool = True) -> list[Contender]:
    """The contenders of these names, in the order of the table; where none is named ``every`` one,
    or those that are not slow to make ready.

    Raises:
        SpecError: unknown names, all of them.
    """
    contenders, selected = all_contenders(), set(names)
    allowed = f"allowed: {', '.join(contenders)}"
    faults = [Fault("--contender", name, allowed) for name in sorted(selected - set(contenders))]
    if faults:
        raise SpecError(f"{many(faults, 'unknown contender', 'unknown contenders')}", faults)
    return [
        item
        for name, item in contenders.items()
        if (name in selected if selected else every or not item.slow)
    ]
