"""The native CPU backend: segments of a program in C++, what is left of it in torch."""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ...errors import SpecError
from .. import torch_backend
from ..int8 import torch_kernels
from ..program import Accumulate, Encode, Fire, Operate, Program, ReadOut
from . import build
from .layout import IMAGES, LOGITS, Call, External
from .lowering import Lowered, lower, title
from .segments import OpNote, Segment

# Of a part of an op that is handed to another thread, in products of four bytes with 16 channels:
# some microseconds. Shared out more finely, two threads took 1.2 times as long as one on ResNet-20.
LEAST_WORK = 16_000


class NativeBackend:
    """Runs programs: program t is step t, or one program is every step.

    ``instruction_set``: one of `build.instruction_sets`, the best by default.

    Raises:
        SpecError: instructions that this CPU does not have; programs of different networks.
        NativeUnavailable: the kernels cannot be built here.

    Attributes:
        instruction_set: what the kernels were built for. segments: how many runs of instructions
        they do. outside: names of the operators and layers that run in torch.
    """

    def __init__(self, programs: Sequence[Program], instruction_set: str | None = None) -> None:
        self.instruction_set = build.choose_instruction_set(instruction_set)
        self._library = build.library(self.instruction_set)
        self._lowered = lower(programs, self.instruction_set)
        work = self._lowered.work
        self.segments = sum(isinstance(piece, Segment) for piece in work)
        self.outside = self._lowered.outside
        self._operate = torch_kernels.fast_operators(programs[0])
        self._whole = self.segments == len(work) == 1
        self._logits_shape = _logits_shape(programs[0])
        self._arena = torch.empty(0, dtype=torch.uint8, device="cpu")
        self._lock = threading.Lock()
        self._externals = (External * (len(self._lowered.externals) + 2))()
        self._call = _prepare_call(self._lowered, self._externals)
        self._steps: dict[tuple[int, int], Any] = {}
        self._times: dict[int, Any] = {}  # of each op, by piece of work, while somebody asks

    @torch.inference_mode()
    def run(
        self,
        images: Tensor,
        time_steps: int,
        totals: bool = False,
        *,
        threads: int | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """All steps, from fresh totals; ``threads`` are those of torch by default.

        Shapes: images [batch, channels, height, width]; logits [T, batch, ...], float32; with
            ``totals``, what each layer of neurons has emitted by the end, [batch, ...].
        Raises: SpecError: more steps than there are programs; fewer than one step or thread.
        """
        threads = torch.get_num_threads() if threads is None else threads
        count = len(self._lowered.programs)
        if not 1 <= time_steps <= (time_steps if count == 1 else count) or threads < 1:
            raise SpecError(
                f"NativeBackend.run: time_steps={time_steps}, threads={threads} with {count} "
                "programs; allowed are at least one of each, and one program or one for each step"
            )
        images = images.detach().to("cpu", torch.float32).contiguous()
        logits = _buffer(time_steps, len(images), *self._logits_shape)
        if not len(images):
            return logits, self._empty_totals() if totals else {}
        with self._lock:
            self._prepare(images, logits, threads)
            if self._whole:
                layer_totals = self._run_whole(len(images), time_steps, totals)
            else:
                layer_totals = self._run_pieces(images, logits, totals)
        return logits, layer_totals

    def op_times(
        self, images: Tensor, time_steps: int, *, threads: int | None = None
    ) -> list[tuple[OpNote, float]]:
        """What each op of the kernels does, and the seconds that it took for these images, over all
        steps; last, what ran in torch, op by op. Parameters are those of `run`.
        """
        work = self._lowered.work
        self._times = {
            index: (ctypes.c_int64 * len(piece.notes))() if isinstance(piece, Segment) else [0.0]
            for index, piece in enumerate(work)
        }
        try:
            self.run(images, time_steps, threads=threads)
            found: list[tuple[OpNote, float]] = []
            for index, piece in enumerate(work):
                taken = self._times[index]
                if isinstance(piece, Segment):
                    found += zip(piece.notes, (value / 1e9 for value in taken), strict=True)
                else:
                    item = self._lowered.programs[0].instructions[piece]
                    found.append((OpNote(title(item), "in torch"), taken[0]))
            return found
        finally:
            self._times, self._call.times = {}, None

    def _prepare(self, images: Tensor, logits: Tensor, threads: int) -> None:
        """Set up the arena and the fields shared by all calls of a run."""
        call, lowered = self._call, self._lowered
        arenas = min(threads, len(images)) if self._whole else len(images)
        if self._arena.numel() < (arenas + 1) * lowered.arena_bytes:
            self._arena = torch.empty(
                (arenas + 1) * lowered.arena_bytes, dtype=torch.uint8, device="cpu"
            )
            call.arena = (self._arena.data_ptr() + 63) // 64 * 64
            for index in range(arenas):
                start = call.arena + index * lowered.arena_bytes
                self._library.mt_prepare(call.values, call.n_values, start)
        call.batch, call.threads, call.least_work = len(images), threads, LEAST_WORK
        self._connect(IMAGES, images, lowered.programs[0].values[0].shape)
        self._connect(LOGITS, logits[0], self._logits_shape, logits.stride(0))

    def _connect(self, external: int, tensor: Tensor, shape: Sequence[int], step: int = 0) -> None:
        """Tell the kernels where a tensor [batch, *shape] lies; they take its type on trust."""
        assert tensor.dtype == torch.float32, (external, tensor.dtype)
        assert tensor.device.type == "cpu", (external, tensor.device)
        assert tensor.is_contiguous(), (external, tensor.stride())
        assert tuple(tensor.shape) == (self._call.batch, *shape), (external, tensor.shape, shape)
        place = self._externals[external]
        place.data, place.image, place.step = tensor.data_ptr(), tensor.stride(0), step

    def _call_steps(self, segment: int, first: int, end: int, last_ops: int = 0) -> None:
        """Some steps of one segment, for all images."""
        call = self._call
        call.first_step, call.end_step, call.n_last_ops = first, end, last_ops
        if end > first:
            piece = self._lowered.work[segment]
            assert isinstance(piece, Segment)
            call.n_ops = len(piece.ops[0])
            call.steps = ctypes.addressof(self._step_pointers(segment, end)) + 8 * first
            call.times = ctypes.addressof(self._times[segment]) if self._times else None
        self._library.mt_run(ctypes.addressof(call))

    def _step_pointers(self, segment: int, end: int) -> Any:
        """The ops of each step of a segment, at least up to ``end``."""
        if (segment, end) not in self._steps:
            ops = self._lowered.work[segment].ops  # type: ignore[union-attr]
            places = [ctypes.addressof(ops[min(t, len(ops) - 1)]) for t in range(end)]
            self._steps[segment, end] = (ctypes.c_void_p * end)(*places)
        return self._steps[segment, end]

    def _run_whole(self, batch: int, time_steps: int, totals: bool) -> dict[str, Tensor]:
        """Everything is one segment: one call for all steps."""
        call = self._call
        call.keep_images, call.skip = 0, int(time_steps > 1 and len(self._lowered.programs) == 1)
        layer_totals = self._total_tensors(batch) if totals else {}
        self._call_steps(0, 0, time_steps, len(self._lowered.total_ops) if totals else 0)
        return layer_totals

    def _total_tensors(self, batch: int) -> dict[str, Tensor]:
        """Where the kernels put totals."""
        tensors = {}
        for name, value in self._lowered.totals.items():
            shape = self._lowered.programs[0].values[value].shape
            tensors[name] = _buffer(batch, *shape)
            self._connect(self._lowered.externals["total", value], tensors[name], shape)
        return tensors

    def _empty_totals(self) -> dict[str, Tensor]:
        program = self._lowered.programs[0]
        fires = [item for item in program.instructions if isinstance(item, Fire)]
        return {item.name: _buffer(0, *program.values[item.out].shape) for item in fires}

    def _run_pieces(self, images: Tensor, logits: Tensor, totals: bool) -> dict[str, Tensor]:
        """Step by step, segments and torch in turn; each image keeps its arena."""
        lowered, state = self._lowered, dict[str, Tensor]()
        self._call.keep_images, self._call.skip = 1, 0
        for t in range(len(logits)):
            program = lowered.programs[min(t, len(lowered.programs) - 1)]
            values: dict[int, Any] = {0: images}
            for index, piece in enumerate(lowered.work):
                if isinstance(piece, Segment):
                    self._run_segment(index, piece, values, t, len(images))
                else:
                    begun = time.perf_counter()
                    self._run_in_torch(program.instructions[piece], values, state, logits[t])
                    if self._times:
                        self._times[index][0] += time.perf_counter() - begun
        if not totals:
            return {}
        tensors = self._total_tensors(len(images))
        self._call_steps(0, 0, 0, len(lowered.total_ops))
        order = [item.name for item in program.instructions if isinstance(item, Fire)]
        return {name: tensors[name] if name in tensors else state[name].float() for name in order}

    def _run_segment(
        self, index: int, segment: Segment, values: dict[int, Any], t: int, batch: int
    ) -> None:
        """One step of a segment, with values from torch and for it."""
        places, shapes = self._lowered.externals, self._lowered.programs[0].values
        taken = []
        for value in segment.before:
            taken.append(values[value].float().contiguous())
            self._connect(places["value", value], taken[-1], shapes[value].shape)
        for value in segment.after:
            values[value] = _buffer(batch, *shapes[value].shape)
            self._connect(places["value", value], values[value], shapes[value].shape)
        self._call_steps(index, t, t + 1)

    def _run_in_torch(
        self, item: Any, values: dict[int, Any], state: dict[str, Tensor], logits: Tensor
    ) -> None:
        """One instruction as the torch backend runs it."""
        seen = _Seen(values, self._lowered)
        if isinstance(item, Encode):
            levels = torch.round(values[0] / item.scale).clamp(*item.bounds)
            values[item.out] = levels.contiguous()
        elif isinstance(item, Accumulate):
            values[item.out] = torch_backend.accumulate(item, seen[item.value])
        elif isinstance(item, Fire):
            state[item.name] = torch_backend.fire(item, seen, state.get(item.name))
            values[item.out] = state[item.name]
        elif isinstance(item, Operate):
            self._operate(item, seen, len(logits))
        else:
            logits.copy_(torch_backend.real_sum(item.input, seen))


class _Seen(dict[int, Any]):
    """Values as torch sees them: those that are another one in another shape included."""

    def __init__(self, values: dict[int, Any], lowered: Lowered) -> None:
        super().__init__()
        self._values, self._lowered = values, lowered

    def __getitem__(self, index: int) -> Any:
        root = self._lowered.roots[index]
        value = self._values[root]
        if index != root:
            shape = self._lowered.programs[0].values[index].shape
            value = value.reshape(len(value), *shape)
        return value.double() if index in self._lowered.double else value

    def update(self, values: Any) -> None:
        self._values.update(values)


def _buffer(*shape: int) -> Tensor:
    """Room for what the kernels write, in their own type whatever torch's defaults are."""
    return torch.empty(shape, dtype=torch.float32, device="cpu")


def _prepare_call(lowered: Lowered, externals: Any) -> Any:
    """What stays the same in all calls."""
    call = Call(
        values=ctypes.addressof(lowered.values),
        last_ops=ctypes.addressof(lowered.total_ops),
        externals=ctypes.addressof(externals),
        arena_bytes=lowered.arena_bytes,
        n_values=len(lowered.values),
        n_externals=len(externals),
    )
    call.marks, call.n_marks = lowered.marks
    return call


def _logits_shape(program: Program) -> tuple[int, ...]:
    """The logits of one image."""
    last = program.instructions[-1]
    assert isinstance(last, ReadOut), "a program ends with its read-out"
    shapes: Mapping[int, Any] = program.values
    return tuple(torch.broadcast_shapes(*(shapes[term.value].shape for term in last.input.terms)))
