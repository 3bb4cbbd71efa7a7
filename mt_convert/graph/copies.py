"""Networks that are copied as any module, and stored by `save` alone: never pickled."""

from __future__ import annotations

import copy
from typing import Any, NoReturn, Self

from torch import nn

from ..errors import SpecError


class NotPickled(nn.Module):
    """A module whose copies are whole, and whose pickles name what to do instead."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        new = type(self).__new__(type(self))
        memo[id(self)] = new
        new.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return new

    def __copy__(self) -> Self:
        new = type(self).__new__(type(self))
        new.__dict__.update(self.__dict__)
        return new

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise SpecError(
            f"a {type(self).__name__} is not pickled: write it with mt.save(network, folder), read "
            "it with mt.load(folder); its state_dict() is as any module's"
        )
