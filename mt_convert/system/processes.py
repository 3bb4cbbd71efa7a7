"""The processes of ``accelerate launch`` that share one piece of work; alone there is one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import gather_object, parse_flag_from_env, reduce
from torch import Tensor

from ..errors import OutputError
from .folder_lock import folder_lock

Item = TypeVar("Item")


class Processes:
    """This process among those that were launched together.

    ``share`` is (index, count): what `data.batches` takes to yield this process's batches. Every
    process must come to each of the methods below, in the same order.

    Example:
        >>> alone = Processes()
        >>> alone.share, alone.first, alone.sum(torch.ones(2)).tolist(), alone.all_of([3])
        ((0, 1), True, [1.0, 1.0], [[3]])
    """

    def __init__(self) -> None:
        several = int(os.environ.get("WORLD_SIZE", "1")) > 1
        on_cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
        self._state = PartialState(cpu=on_cpu) if several else None
        self.first = self._state is None or self._state.is_main_process
        state = self._state
        self.share = (0, 1) if state is None else (state.process_index, state.num_processes)

    def wait(self) -> None:
        """Let the other processes catch up."""
        if self._state is not None:
            self._state.wait_for_everyone()

    def sum(self, counts: Tensor) -> Tensor:
        """The sum over all processes, in each of them; exact where counts are whole numbers."""
        if self._state is None:
            return counts
        total: Tensor = reduce(counts.to(self._state.device), "sum")
        return total.cpu()

    def all_of(self, item: Item) -> list[Item]:
        """What every process holds, in order of processes."""
        if self._state is None:
            return [item]
        items: list[Item] = gather_object([item])
        return items


@contextmanager
def alone_in(folder: Path, processes: Processes) -> Iterator[None]:
    """Work in a folder with none but these processes, of which the first holds its lock.

    Raises:
        OutputError: in all of them, what keeps the first one out.
    """
    with ExitStack() as stack:
        fault = None
        if processes.first:
            try:
                stack.enter_context(folder_lock(folder))
            except OutputError as error:
                fault = error.headline
        said = processes.all_of(fault)[0]
        if said is not None:
            raise OutputError(said)
        yield
