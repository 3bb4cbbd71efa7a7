"""The native CPU backend gives the numbers of the torch backend, bit for bit."""

from __future__ import annotations

import ctypes
import itertools
import math
import os
import random
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from networks import images as seeded_images
from networks import lived_in
from torch import Tensor

from mt_convert.errors import SpecError
from mt_convert.experiments.models.cifar import resnet20_cifar
from mt_convert.integer_engine.backends import ReferenceBackend
from mt_convert.integer_engine.native import build
from mt_convert.integer_engine.native.backend import NativeBackend
from mt_convert.integer_engine.native.layout import (
    BYTES_AND_OWN,
    DOT,
    FIRE,
    OTHERWISE,
    OWN,
    OWN_AND_BYTES,
    TILES,
    WIDE,
)
from mt_convert.integer_engine.program import (
    Accumulate,
    Encode,
    Fire,
    Instruction,
    Operate,
    Program,
    ReadOut,
    Slot,
    Sum,
    Term,
    Whole,
)
from mt_convert.integer_engine.terms import BATCH
from mt_convert.integer_engine.tracing import trace
from mt_convert.neurons.ladder import Binary, Ladder, Learned, PowerOfTwo, Uniform
from mt_convert.neurons.spec import NeuronSpec
from mt_convert.quantization.quantize import QuantSpec, quantize
from mt_convert.spiking.convert import convert

aten = torch.ops.aten
OWN_SETS = build.instruction_sets()
LACKING = tuple(name for name, (real, _) in build.EMULATED.items() if real not in OWN_SETS)
SETS = (*OWN_SETS, *LACKING)
TILED = "amx" if "amx" in OWN_SETS else "emulated_amx"
if (_lacking := build.missing()) is not None:
    pytest.skip(_lacking, allow_module_level=True)


@pytest.fixture(autouse=True)
def short_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads share out these networks too, whose ops are too short for that otherwise."""
    monkeypatch.setattr("mt_convert.integer_engine.native.backend.LEAST_WORK", 1)


class Net:
    """Writes a program, one instruction after the other; every value is an index."""

    def __init__(self, seed: int, image: tuple[int, ...] = (3, 9, 8), bits: int = 8) -> None:
        self.random = random.Random(seed)
        self.torch = torch.Generator().manual_seed(seed)
        self.instructions: list[Instruction] = []
        self.values = {0: Whole(image, -math.inf, math.inf)}
        most = 2 ** (bits - 1) - 1
        self.image = self.value(image, -most, most)
        scale = torch.tensor(2.0**-5)
        self.instructions.append(Encode(self.image, scale, (-most, most)))

    def value(self, shape: Sequence[int], low: float, high: float) -> int:
        self.values[len(self.values)] = Whole(tuple(shape), low, high)
        return len(self.values) - 1

    def shape(self, value: int) -> tuple[int, ...]:
        return self.values[value].shape

    def whole(self, low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high + 1, shape, generator=self.torch)

    def layer(
        self,
        value: int,
        out: int,
        kernel: tuple[int, int] | None = (3, 3),
        *,
        stride: tuple[int, int] = (1, 1),
        padding: tuple[int, int] = (1, 1),
        dilation: tuple[int, int] = (1, 1),
        groups: int = 1,
        weight: Tensor | None = None,
        most: int = 7,
    ) -> int:
        """A convolution, or a linear layer where there is no kernel."""
        source = self.values[value]
        if weight is None:
            channels = source.shape[0 if kernel else -1] // groups
            weight = self.whole(-most, most, out, channels, *(kernel or ())).to(torch.int8)
        geometry = (stride, padding, dilation, groups) if kernel else ()
        one = torch.zeros(1, *source.shape)
        found = (
            F.conv2d(one, weight.float(), None, *geometry)
            if kernel
            else F.linear(one, weight.float())
        )
        limit = float(weight.float().flatten(1).abs().sum(1).max()) * max(
            abs(source.low), abs(source.high)
        )
        made = self.value(found.shape[1:], -limit, limit)
        self.instructions.append(Accumulate(made, f"layer{made}", value, weight, geometry, limit))
        return made

    def sum(self, *values: int, bias: bool = True, ties: bool = False, full: bool = False) -> Sum:
        """A written sum, of a size that suits its inputs."""
        shape = self.shape(values[0])
        by_channel = [
            1,
            *(size if axis == self._channel(shape) else 1 for axis, size in enumerate(shape)),
        ]
        terms = []
        for value in values:
            known = self.values[value]
            unit = 0.5 if ties else 60 / max(1, known.high)
            size = self.random.choice(
                [by_channel, [1] * len(by_channel), [1, *shape]]
                if full
                else [by_channel, [1] * len(by_channel)]
            )
            factor = torch.rand(size, generator=self.torch) * 2 - 0.5
            terms.append(Term(value, torch.full(size, unit) if ties else factor * unit))
        offset = (
            self.whole(-1, 3, *by_channel) / 2
            if ties
            else torch.randn(by_channel, generator=self.torch) * 3
        )
        return Sum(tuple(terms), offset if bias else None)

    def _channel(self, shape: Sequence[int]) -> int:
        return 0 if len(shape) == 3 else len(shape) - 1

    def fire(
        self,
        wanted: Sum,
        ladder: Ladder | None = None,
        *,
        signed: bool = True,
        bounds: tuple[int, int] = (0, 15),
        offset: bool = False,
    ) -> int:
        shape = self.shape(wanted.terms[0].value)
        made = self.value(shape, *bounds)
        spec = NeuronSpec(ladder or Uniform(bounds[1] - bounds[0]), signed=signed, bounds=bounds)
        size = [n if axis == self._channel(shape) else 1 for axis, n in enumerate(shape)]
        moved = torch.randn(size, generator=self.torch) if offset else None
        self.instructions.append(Fire(made, f"neurons{made}", wanted, moved, spec))
        return made

    def operate(self, target: Any, *args: Any, whole: bool = True, **kwargs: Any) -> int:
        """Any operator; ``args`` hold slots."""
        return self.parts(target, *args, whole=whole, **kwargs)[0]

    def parts(self, target: Any, *args: Any, whole: bool = True, **kwargs: Any) -> list[int]:
        """Any operator with several results."""
        slots = [arg for part in args for arg in (part if isinstance(part, list) else [part])]
        slots = [arg.index for arg in slots if isinstance(arg, Slot)]

        def filled(part: Any) -> Any:
            if isinstance(part, Slot):
                return torch.zeros(2, *self.shape(part.index))
            if isinstance(part, list):
                return [filled(item) for item in part]
            return 2 if part == BATCH and isinstance(part, int) else part

        found = target(*map(filled, args), **kwargs)
        low = min(self.values[value].low for value in slots)
        high = max(self.values[value].high for value in slots)
        bounds = (min(low, 0), max(high, 0)) if whole else (-math.inf, math.inf)
        pieces = [found] if isinstance(found, Tensor) else found
        made = [self.value(piece.shape[1:], *bounds) for piece in pieces]
        self.instructions.append(Operate(tuple(made), target, args, kwargs))
        return made

    def pooled(self, value: int) -> int:
        """The sum over all pixels, as channels."""
        channels, height, width = self.shape(value)
        total = self.operate(Tensor.sum, Slot(value), [2, 3], True, whole=False)
        flat = self.operate(aten.view.default, Slot(total), [BATCH, channels], whole=False)
        known, count = self.values[value], height * width
        self.values[flat] = Whole((channels,), min(known.low, 0) * count, known.high * count)
        return flat

    def program(self, wanted: Sum) -> Program:
        return Program((*self.instructions, ReadOut(wanted)), dict(self.values), ())


def check(
    programs: Program | Sequence[Program],
    *,
    steps: Sequence[int] = (1, 3),
    batches: Sequence[int] = (1, 3),
    sets: Sequence[str] = SETS,
    threads: Sequence[int] = (1,),
    scale: float = 1.0,
    native: bool = True,
    images: Tensor | None = None,
) -> NativeBackend:
    """Logits and totals equal those of the torch backend, one set of instructions after another."""
    programs = [programs] if isinstance(programs, Program) else programs
    shape = programs[0].values[0].shape
    if images is None:
        generator = torch.Generator().manual_seed(1)
        images = torch.randn(max(batches), *shape, generator=generator) * scale
    plain = ReferenceBackend(programs)
    wanted = {t: plain.run(images, t, True) for t in steps}
    for name in sets:
        backend = NativeBackend(programs, name)
        if native:
            assert (backend.segments, backend.outside) == (1, ())
        for t, batch, count in itertools.product(steps, batches, threads):
            logits, totals = backend.run(images[:batch], t, True, threads=count)
            where = f"{name}, T={t}, batch {batch}, {count} threads"
            assert totals.keys() == wanted[t][1].keys()
            for layer, total in totals.items():
                assert torch.equal(total, wanted[t][1][layer][:batch].float()), f"{layer}: {where}"
            assert torch.equal(logits, wanted[t][0][:, :batch]), where
            assert torch.equal(backend.run(images[:batch], t, threads=count)[0], logits)
    return backend


LADDERS: list[Callable[[int], Ladder]] = [
    Uniform,
    lambda most: Uniform(3),
    lambda most: Binary(2),
    lambda most: PowerOfTwo(max(most.bit_length(), 1)),
]


def random_program(seed: int) -> Program:
    """A network with two branches and whatever else the seed brings."""
    net = Net(seed, image=(seed % 4 + 1, 5 + seed % 5, 7), bits=2 + seed % 7)
    choice = net.random.choice

    def fire(*values: int) -> int:
        bits, signed = choice([2, 3, 4, 8]), choice([True, True, False])
        most = 2**bits - 1
        bounds = choice([(0, most), (-(most // 2) - 1, most // 2)])
        wanted = net.sum(
            *values,
            bias=choice([True, False]),
            ties=choice([True, False]),
            full=choice([True, False]),
        )
        ladder = choice(LADDERS)(most)
        return net.fire(wanted, ladder, signed=signed, bounds=bounds, offset=choice([True, False]))

    def convolution(value: int, out: int, stride: tuple[int, int] = (1, 1)) -> int:
        size, most = choice([(1, 1), (3, 3), (5, 3)]), choice([1, 7, 127])
        dilation = choice([(1, 1), (1, 2), (2, 1)])
        padding = (size[0] // 2 * dilation[0], size[1] // 2 * dilation[1])
        return net.layer(
            value, out, size, stride=stride, padding=padding, dilation=dilation, most=most
        )

    width = choice([4, 6, 16, 20, 33])
    value = fire(convolution(net.image, width))
    first, stride = value, choice([(1, 1), (2, 2), (2, 1)])
    left, right = convolution(value, width, stride), convolution(first, width, stride)
    value = fire(left, right, *([first] if stride == (1, 1) else []))
    if choice([True, False]):
        value = net.operate(aten.max_pool2d.default, Slot(value), [3, 3], [2, 2], [1, 1])
    if choice([True, False]):  # a depthwise layer
        value = fire(net.layer(value, width, groups=width, most=127))
    if choice([True, False]):  # groups
        groups = choice([2, 2 if width % 4 else 4]) if width % 2 == 0 else 1
        value = fire(net.layer(value, 2 * width, groups=groups))
    if choice([True, False]):
        value = net.operate(torch.cat, [Slot(value), Slot(value)], 1)
    if choice([True, False]):
        value = net.operate(F.pad, Slot(value), [1, 2, 0, 1])
    if choice([True, False]):
        settings = {"stride": [2, 1], "divisor_override": 1}
        pool = net.operate(aten.avg_pool2d.default, Slot(value), [2, 2], [2, 1], whole=False)
        net.instructions[-1] = Operate(
            (pool,), aten.avg_pool2d.default, (Slot(value), [2, 2]), settings
        )
        known = net.values[value]
        net.values[pool] = Whole(net.shape(pool), 4 * min(known.low, 0), 4 * known.high)
        value = fire(pool)
    if choice([True, False]):
        flat = net.pooled(value)
    else:
        flat = net.operate(aten.flatten.using_ints, Slot(value), 1)
    if choice([True, False]):
        flat = fire(net.layer(flat, 19, None, most=choice([7, 127])))
    return net.program(net.sum(net.layer(flat, 5, None)))


@pytest.mark.sampled
@pytest.mark.parametrize("seed", range(40))
def test_random_networks_give_the_numbers_of_torch(seed: int) -> None:
    check(random_program(seed), steps=(1, 2 + seed % 4), batches=(1, 2) if seed % 4 else (7,))


@pytest.mark.sampled
@pytest.mark.parametrize("seed", range(40, 46))
def test_two_threads_give_the_numbers_of_torch(seed: int) -> None:
    check(random_program(seed), steps=(1, 4), batches=(1, 5), threads=(2,), sets=SETS[:1])


def test_callers_at_once_and_a_child_of_a_fork_give_the_numbers_of_torch() -> None:
    """The kernels' threads serve one caller at a time, and a fork leaves them behind."""
    backend = check(random_program(40), steps=(1,), batches=(5,), threads=(1, 2, 7))
    images = torch.randn(5, *backend._lowered.programs[0].values[0].shape)
    wanted = backend.run(images, 1, threads=1)[0]
    programs = backend._lowered.programs
    with ThreadPoolExecutor(4) as callers:
        found = callers.map(
            lambda number: NativeBackend(programs).run(images[: number % 5 + 1], 1, threads=2)[0],
            range(24),
        )
        for number, logits in enumerate(found):
            assert torch.equal(logits, wanted[:, : number % 5 + 1])
    child = os.fork()
    if child == 0:
        equal = torch.equal(backend.run(images[:1], 1, threads=2)[0], wanted[:, :1])
        os._exit(0 if equal else 1)
    assert os.waitpid(child, 0)[1] == 0


def parts_of(backend: NativeBackend, op: Any, threads: int) -> int:
    """In how many parts so many threads share out an op."""
    call, parts = ctypes.byref(backend._call), backend._library.mt_parts
    return int(parts(call, ctypes.byref(op), threads))


def test_threads_share_out_what_is_worth_it_and_change_no_bit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A convolution, and a linear layer of pooled sums: the longer, the finer."""
    net = Net(0, (16, 24, 24))
    levels = net.fire(net.sum(net.layer(net.image, 32)))
    program = net.program(net.sum(net.layer(net.pooled(levels), 1000, None)))
    for least, expected in ((1, [8, 8]), (600, [8, 4]), (16_000, [3, 1]), (10**9, [1, 1])):
        monkeypatch.setattr("mt_convert.integer_engine.native.backend.LEAST_WORK", least)
        backend = check(program, steps=(1, 3), batches=(1,), threads=(2,), sets=SETS[:1])
        (segment,) = backend._lowered.work
        ops = {op.kind: op for op in segment.ops[0]}
        assert [parts_of(backend, ops[kind], 2) for kind in (DOT, WIDE)] == expected
        assert all(parts_of(backend, op, 1) == 1 for op in segment.ops[0])


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("most", [64, 127])
def test_extreme_sums_do_not_saturate(sign: int, most: int) -> None:
    """255 times ±127 over all channels: past int16 in a single pair of products."""
    net = Net(0, image=(8, 4, 4), bits=8)
    weight = torch.full((17, 8, 3, 3), most * sign, dtype=torch.int8)
    weight[3::5] *= -1
    full = net.fire(net.sum(net.image, bias=False, ties=True), bounds=(0, 255))
    value = net.layer(full, 17, weight=weight)
    net.values[value] = replace(net.values[value], shape=(17, 4, 4))
    wanted = Sum((Term(value, torch.ones(1, 1, 1, 1)),), None)
    check(net.program(wanted), scale=1e6, steps=(1,))
    net.instructions.pop()
    shallow = net.layer(full, 17, weight=weight[:, :, :1, :1].contiguous(), padding=(0, 0))
    check(net.program(Sum((Term(shallow, torch.ones(1, 1, 1, 1)),), None)), scale=1e6, steps=(1,))


@pytest.mark.parametrize("high", [1, 7, 15, 127, 255])
@pytest.mark.parametrize("most", [1, 7, 40, 127])
def test_long_sums_of_any_width_do_not_saturate(high: int, most: int) -> None:
    net = Net(high + most, image=(70, 3, 3))
    full = net.fire(net.sum(net.image, ties=True), bounds=(0, high))
    value = net.layer(full, 18, most=most)
    net.instructions[-1].weight[:9] = most  # type: ignore[union-attr]
    limit = 70.0 * 9 * most * high
    net.values[value] = Whole((18, 3, 3), -limit, limit)
    check(net.program(Sum((Term(value, torch.ones(1, 1, 1, 1)),), None)), scale=8.0, steps=(1,))


def window(
    kernel: tuple[int, int], stride: tuple[int, int], dilation: tuple[int, int]
) -> dict[str, Any]:
    """A window over a map, padded so that the map keeps its size where the stride is 1."""
    padding = (kernel[0] // 2 * dilation[0], kernel[1] // 2 * dilation[1])
    return {"kernel": kernel, "stride": stride, "padding": padding, "dilation": dilation}


WINDOWS = [
    ((3, 3), (1, 1), (1, 1)),
    ((3, 3), (2, 2), (1, 1)),
    ((2, 3), (2, 1), (1, 1)),
    ((5, 5), (1, 1), (1, 1)),
    ((3, 3), (1, 1), (1, 2)),
    ((1, 5), (1, 2), (1, 1)),
]


@pytest.mark.sampled
@pytest.mark.parametrize("columns", [3, 8, 13, 31])
@pytest.mark.parametrize("channels", [5, 24, 70])
def test_windows_of_any_shape(channels: int, columns: int) -> None:
    """Channels by themselves and together: what kernels do in quads, pairs, rows and tiles."""
    net = Net(columns + channels, image=(3, 5, columns))
    wide = net.fire(net.sum(net.layer(net.image, channels)), bounds=(-8, 7))
    votes = []
    for one in WINDOWS:
        own = net.layer(wide, channels, groups=channels, most=127, **window(*one))
        value = net.fire(net.sum(own), bounds=(0, 255))
        joined = net.layer(value, channels, most=127, **window(*one))
        votes.append(net.layer(net.pooled(net.fire(net.sum(joined))), 3, None))
    check(net.program(net.sum(*votes)), steps=(1, 2), batches=(1,), threads=(1, 2))


MAPS = [(1, 9), (7, 7), (8, 8), (14, 14), (3, 70), (20, 33), (33, 20)]
TILED_WINDOWS = [
    ((1, 1), (1, 1), (1, 1)),
    ((1, 1), (2, 2), (1, 1)),
    ((3, 3), (1, 1), (1, 1)),
    ((3, 3), (2, 2), (1, 1)),
    ((3, 3), (1, 2), (1, 1)),
    ((3, 3), (2, 2), (2, 2)),
    ((5, 3), (2, 1), (1, 1)),
]


@pytest.mark.sampled
@pytest.mark.parametrize("rows_and_columns", MAPS)
@pytest.mark.parametrize(("channels", "out"), [(32, 16), (36, 48), (40, 80), (68, 17)])
def test_tiles_go_over_rows_and_borders(
    channels: int, out: int, rows_and_columns: tuple[int, int]
) -> None:
    """One block of channels to six, pieces of whole tiles and others, lines that end within one."""
    net = Net(channels + out, image=(channels, *rows_and_columns))
    full = net.fire(net.sum(net.image), bounds=(0, 255))
    votes = []
    for one in TILED_WINDOWS:
        made = net.layer(full, out, most=127, **window(*one))
        votes.append(net.layer(net.pooled(net.fire(net.sum(made))), 3, None))
    groups = net.layer(full, 2 * out, (3, 3), groups=2, most=127)
    votes.append(net.layer(net.pooled(net.fire(net.sum(groups))), 3, None))
    program = net.program(net.sum(*votes))
    backend = check(program, sets=[TILED], steps=(1, 2), batches=(2,), threads=(1, 2))
    ops = [op for piece in backend._lowered.work for op in piece.ops[0]]  # type: ignore[union-attr]
    assert sum(op.sums == TILES for op in ops) >= 3


@pytest.mark.parametrize("high", [15, 8191, 8192, 15000])
def test_sums_of_numbers_beyond_int16(high: int) -> None:
    net = Net(3, image=(2, 2, 2))
    value = net.fire(net.sum(net.layer(net.image, 21)), Uniform(high), bounds=(-high, high))
    votes = net.layer(net.pooled(value), 19, None, most=127)
    check(net.program(net.sum(votes)), scale=1e6, steps=(1,), batches=(8,))


@pytest.mark.parametrize("columns", [1, 63, 64, 65, 130])
def test_images_of_few_and_of_many_columns(columns: int) -> None:
    for channels in (1, 3, 4, 5):
        net = Net(columns, image=(channels, 2, columns))
        fired = net.fire(net.sum(net.layer(net.image, 7)))
        check(net.program(net.sum(net.layer(net.pooled(fired), 3, None))), steps=(1,), batches=(2,))


@pytest.mark.parametrize("make", LADDERS)
@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("bounds", [(0, 15), (-8, 7), (0, 300)])
def test_exact_ties_and_every_ladder(
    make: Callable[[int], Ladder], signed: bool, bounds: tuple[int, int]
) -> None:
    net = Net(5, image=(3, 5, 5), bits=5)
    ladder = make(bounds[1] - bounds[0])
    value = net.layer(net.image, 16, most=2)
    value = net.fire(net.sum(value, ties=True), ladder, signed=signed, bounds=bounds)
    if bounds[1] <= 255:
        drive = net.sum(net.layer(value, 16, most=1), value, ties=True)
        value = net.fire(drive, ladder, signed=signed, bounds=bounds)
    check(net.program(net.sum(value)), steps=(1, 2, 5))


@pytest.mark.sampled
@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("bounds", [(0, 15), (-128, 127), (-8, 7), (0, 255)])
@pytest.mark.parametrize("reach", [1, 4, 255, 40000])
def test_neurons_in_int16(bounds: tuple[int, int], signed: bool, reach: int) -> None:
    """Every sum that they know; a reach past int16, which only several programs may have."""
    net = Net(reach + bounds[1], image=(3, 6, 7), bits=5)
    settings = {"signed": signed, "bounds": bounds}
    for width, ties, bias in ((32, False, True), (16, True, False), (17, False, False)):
        value = net.layer(net.image, width)
        value = first = net.fire(net.sum(value, ties=ties, bias=bias), Uniform(reach), **settings)
        value = net.fire(
            net.sum(net.layer(value, width), first, bias=bias), Uniform(reach), **settings
        )
        drive = net.sum(first, net.layer(value, width), ties=ties, bias=bias)
        value = net.fire(drive, Uniform(reach), **settings)
    programs = [net.program(net.sum(value))] * (2 if reach > 32000 else 1)
    steps = (1, 2) if reach > 32000 else (1, 2, 5, 8)
    backend = check(programs, steps=steps, batches=(2,))
    (segment,) = (work for work in backend._lowered.work if not isinstance(work, int))
    known = {op.summed for op in segment.ops[0] if op.finish == FIRE}
    assert known == ({OTHERWISE} if reach > 32000 else {OWN, OWN_AND_BYTES, BYTES_AND_OWN})


@pytest.mark.sampled
@pytest.mark.parametrize("bounds", [(0, 255), (-8, 7)])
@pytest.mark.parametrize("channels", [24, 64, 88])
def test_blocks_of_neurons_side_by_side(channels: int, bounds: tuple[int, int]) -> None:
    """One step of all levels, of several blocks of 16 channels at once, the last one not always
    whole; of sums far beyond all levels, and beyond int32, too."""
    net = Net(channels + bounds[1], image=(3, 4, 9))
    votes = []
    for ties in (False, True):
        value = net.image
        for groups in (1, channels, 1):
            size = (1, 1) if groups == 1 else (3, 3)
            sums = net.layer(value, channels, size, padding=(size[0] // 2,) * 2, groups=groups)
            wanted = net.sum(sums, ties=ties, bias=groups == 1)
            (term,) = wanted.terms
            by_channel = term.multiplier.expand(1, channels, 1, 1).clone()
            by_channel[:, 1::5] *= 1e9
            wanted = replace(wanted, terms=(Term(term.value, by_channel),))
            value = net.fire(wanted, bounds=bounds)
        votes.append(net.layer(net.pooled(value), 3, None))
    check(net.program(net.sum(*votes)), steps=(1, 2), batches=(1, 2), threads=(1, 2))


def test_rows_at_rest_are_left_out_and_nothing_changes() -> None:
    """Most of the image is dark, so that most rows move in few steps only."""
    net = Net(3, image=(1, 24, 8), bits=4)
    value = net.image
    for _ in range(3):
        value = net.fire(net.sum(net.layer(value, 8, most=3), bias=False), Uniform(2))
    program = net.program(net.sum(net.layer(net.pooled(value), 4, None)))
    images = torch.zeros(2, 1, 24, 8)
    images[:, :, 3:5, 2] = 0.2
    wanted, totals = ReferenceBackend([program]).run(images, 12, True)
    for name in SETS:
        found, moved = NativeBackend([program], name).run(images, 12, True, threads=1)
        assert torch.equal(found, wanted)
        assert all(torch.equal(moved[layer], totals[layer]) for layer in totals)


LAST = 2**63 - 1  # the end of a slice as torch.export writes it
PARTS: dict[str, tuple[Any, ...]] = {
    "every other row": (aten.slice.Tensor, 2, 0, LAST, 2),
    "every third row from 2": (aten.slice.Tensor, 2, 2, 9, 3),
    "rows up to the last but one": (aten.slice.Tensor, 2, -7, -1),
    "columns past both ends": (aten.slice.Tensor, 3, -100, 100, 2),
    "columns from 1": (aten.slice.Tensor, -1, 1, LAST, 2),
    "channels": (aten.slice.Tensor, 1, 3, 9),
    "every other channel": (aten.slice.Tensor, 1, 1, LAST, 2),
    "all of it": (aten.slice.Tensor, 2, 0, LAST),
    "all images": (aten.slice.Tensor, 0, 0, LAST),
    "zero channels on both sides": (F.pad, [0, 0, 0, 0, 2, 3]),
    "zero channels in front": (aten.constant_pad_nd.default, [0, 0, 0, 0, 5, 0]),
    "zeros and cuts": (F.pad, [-1, 2, 1, -2, 3, -4]),
}


@pytest.mark.sampled
@pytest.mark.parametrize("name", PARTS)
def test_parts_of_bytes_and_of_sums(name: str) -> None:
    """Images with a single row of light: rows at rest are left out, the right ones."""
    target, *args = PARTS[name]
    net = Net(len(name), image=(2, 11, 9), bits=4)
    value = net.fire(net.sum(net.layer(net.image, 10, (1, 1), padding=(0, 0))), Uniform(3))
    part, light = (net.operate(target, Slot(v), *args) for v in (value, net.layer(value, 10)))
    value = net.fire(net.sum(light, part, bias=False), Uniform(2), bounds=(-8, 7))
    again = net.operate(target, Slot(value), *args)
    value = net.fire(net.sum(net.layer(again, 17), bias=False), Uniform(2))
    program = net.program(net.sum(net.layer(net.pooled(value), 3, None)))
    images = torch.zeros(12, 2, 11, 9)
    for row in range(11):
        images[row, :, row, row % 3 :] = torch.randn(2, 9 - row % 3, generator=net.torch)
    check(program, steps=(1, 2, 7), batches=(12,), images=images)
    check(program, steps=(1, 3), batches=(1, 3), threads=(2,), sets=SETS[:1])


@pytest.mark.parametrize("dim", [1, 2, -1])
def test_values_split_into_parts_and_joined_in_another_order(dim: int) -> None:
    net = Net(dim + 11, image=(3, 9, 8), bits=4)
    value = net.fire(net.sum(net.layer(net.image, 12)), Uniform(3))
    first, second, third = net.parts(aten.chunk.default, Slot(value), 3, dim)
    size = (1, *net.shape(second))[dim]
    left, right = net.parts(aten.split_with_sizes.default, Slot(second), [1, size - 1], dim=dim)
    middle = net.operate(aten.narrow.default, Slot(right), dim, 1, 1)
    (only,) = net.parts(aten.split.Tensor, Slot(third), 9, dim)
    joined = net.operate(torch.cat, [Slot(v) for v in (right, only, left, first, middle)], dim)
    value = net.fire(net.sum(net.layer(joined, 8), bias=False), Uniform(2))
    check(net.program(net.sum(net.layer(net.pooled(value), 3, None))), steps=(1, 4))


@pytest.mark.slow
def test_resnet20_is_one_call() -> None:
    """Its shortcuts slice rows and columns and add channels of zeros."""
    images = seeded_images(4, (3, 32, 32))
    qann = quantize(lived_in(resnet20_cifar()), QuantSpec(), calibration=images)
    program = trace(convert(qann, ladder=Uniform(4), signed=True))
    check(program, steps=range(1, 7), batches=(2,), sets=SETS[:1], images=images[:2])


def test_a_program_for_each_step() -> None:
    """Constants and bounds of totals change from step to step, past those of a byte."""
    net = Net(4, image=(3, 6, 6), bits=4)
    first = net.fire(net.sum(net.layer(net.image, 8)), bounds=(0, 100))
    value = net.fire(net.sum(net.layer(first, 8), first), bounds=(0, 100))
    base = net.program(net.sum(net.layer(net.pooled(value), 4, None)))

    def step(t: int) -> Program:
        def at(item: Instruction) -> Instruction:
            if not isinstance(item, Fire):
                return item
            terms = [
                replace(term, multiplier=term.multiplier * (1 + t)) for term in item.input.terms
            ]
            spec = NeuronSpec(Uniform(7), signed=True, bounds=(0, 100 * (1 + t)))
            return replace(item, input=replace(item.input, terms=tuple(terms)), spec=spec)

        values = dict(base.values)
        values |= {v: replace(values[v], high=100 * (1 + t)) for v in (first, value)}
        return replace(base, instructions=tuple(map(at, base.instructions)), values=values)

    check([step(0), step(1)], steps=(1, 2))
    wider = check([step(t) for t in range(4)], steps=(1, 4), native=False)
    assert "layer4" in wider.outside
    with pytest.raises(SpecError, match="time_steps=5"):
        wider.run(torch.zeros(1, 3, 6, 6), 5)


def test_operators_in_between_run_in_torch() -> None:
    """A softmax, a learned ladder and a convolution over one axis between native segments."""
    net = Net(6, image=(4, 6, 6), bits=4)
    value = net.fire(net.sum(net.layer(net.image, 8)))
    real = net.operate(torch.relu, Slot(value), whole=False)
    value = net.fire(net.sum(net.layer(value, 8), real))
    drive = net.sum(net.layer(value, 8), value)
    learned = net.value((8, 6, 6), 0, 3)
    spec = NeuronSpec(Learned((0.5, 1.0, 2.0)), bounds=(0, 3), initial=0.0)
    net.instructions.append(Fire(learned, "learned", drive, None, spec))
    value = net.fire(net.sum(net.layer(learned, 8), value))
    turned = net.operate(aten.permute.default, Slot(value), [0, 2, 3, 1])
    value = net.fire(net.sum(net.layer(turned, 5, None)))
    back = net.operate(aten.permute.default, Slot(value), [0, 3, 1, 2])
    program = net.program(net.sum(net.layer(net.pooled(back), 3, None)))
    backend = check(program, steps=(1, 3), batches=(1, 3), native=False)
    assert backend.segments >= 3
    assert "learned" in backend.outside
    assert "relu" in backend.outside


def test_a_multiplier_for_every_image_stays_in_torch() -> None:
    net = Net(9, image=(3, 6, 6), bits=4)
    value = net.fire(net.sum(net.layer(net.image, 8)))
    gate = net.operate(aten.mean.dim, Slot(value), [2, 3], True, whole=False)
    value = net.fire(Sum((Term(value, Slot(gate)),), None))
    program = net.program(net.sum(net.layer(net.pooled(value), 3, None)))
    backend = check(program, native=False)
    assert backend.segments == 2
    assert backend.outside == ("mean.dim", f"neurons{value}")


def test_rows_of_a_linear_layer() -> None:
    net = Net(7, image=(5, 9), bits=4)
    value = net.fire(net.sum(net.layer(net.image, 20, None)))
    value = net.fire(net.sum(net.layer(value, 20, None), value))
    total = net.operate(Tensor.sum, Slot(value), [1], False, whole=False)
    net.values[total] = Whole((20,), 0, 75)
    check(net.program(net.sum(net.layer(total, 4, None))), threads=(1, 2))


def test_several_axes_of_logits() -> None:
    net = Net(8, image=(3, 5, 6))
    value = net.fire(net.sum(net.layer(net.image, 6)))
    check(net.program(net.sum(net.layer(value, 5), value := net.layer(value, 5))), steps=(1, 4))


def test_images_of_any_layout_and_no_images() -> None:
    program = random_program(2)
    backend = NativeBackend([program])
    images = torch.randn(2, *program.values[0].shape)
    wanted = backend.run(images, 2)[0]
    turned = images.to(memory_format=torch.channels_last)
    assert torch.equal(backend.run(turned, 2)[0], wanted)
    logits, totals = backend.run(images[:0], 2, True)
    assert logits.shape == (2, 0, 5)
    assert all(len(total) == 0 for total in totals.values())


def test_instructions_that_the_cpu_lacks_are_refused() -> None:
    with pytest.raises(SpecError, match="portable"):
        NativeBackend([random_program(0)], "mmx")


@pytest.mark.parametrize("name", build.EMULATED)
def test_instructions_spelled_out_where_the_cpu_has_them(name: str) -> None:
    """Where it lacks them all tests above ran so."""
    for seed in (1, 5):
        check(random_program(seed), sets=[name])


@pytest.mark.parametrize("real", ["avx512_vnni", "amx"])
def test_real_instructions_where_there_are_some(real: str) -> None:
    if real not in OWN_SETS:
        pytest.skip(f"this CPU, or its compiler, has no {real}; its logic is tested spelled out")
    check(random_program(1), sets=[real])


def test_an_old_compiler_gets_no_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "_run", lambda command, seconds: (1, "unrecognized option"))
    assert not build._may_use_tiles.__wrapped__()
    monkeypatch.setenv("CXX", "/nonexistent/g++")
    assert not build._may_use_tiles.__wrapped__()


def test_without_leave_of_the_system_there_are_no_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    refusing = SimpleNamespace(syscall=lambda *words: -1)
    monkeypatch.setattr(build.ctypes, "CDLL", lambda name: refusing)
    monkeypatch.setattr(build, "_run", lambda command, seconds: (0, ""))
    assert not build._may_use_tiles.__wrapped__()


TILES_PROGRAM = r"""
#include "tiles.h"
int main() {
    TileShapes others;
    others.rows[3] = 5, others.columns[3] = 12;
    set_tiles(others);
    {
        const TileSetting ours(9, 7);
        if (tiles_set().rows[3] != 9 || tiles_set().rows[7] != 7 || tiles_set().columns[4] != 28)
            return 1;
    }
    const TileShapes now = tiles_set();
    return std::memcmp(&others, &now, sizeof now) ? 2 : 0;
}
"""


def test_tiles_of_others_are_set_up_again(tmp_path: Path) -> None:
    source = tmp_path / "program.cpp"
    source.write_text(TILES_PROGRAM)
    where = [
        "-std=c++17",
        f"-I{build.KERNELS}",
        "-DMT_EMULATE_AMX",
        "-o",
        str(tmp_path / "program"),
    ]
    subprocess.run([*build._compiler(), *where, str(source)], check=True, timeout=60)
    assert subprocess.run([tmp_path / "program"], timeout=60).returncode == 0


def test_tiles_of_torch_and_of_the_kernels_do_not_meet() -> None:
    """Both set tiles up in the same thread, by turns."""
    if "amx" not in OWN_SETS:
        pytest.skip("this CPU has no AMX, or may not use it")
    net = Net(4, image=(32, 9, 9))
    value = net.fire(net.sum(net.layer(net.image, 32)))
    program = net.program(net.sum(net.layer(net.pooled(value), 5, None)))
    backend, images = NativeBackend([program], "amx"), torch.randn(2, 32, 9, 9)
    left, right = (torch.randint(-9, 9, (64, 64), dtype=torch.int8) for _ in range(2))
    logits, product = backend.run(images, 1)[0], torch._int_mm(left, right)
    for _ in range(5):
        assert torch.equal(torch._int_mm(left, right), product)
        assert torch.equal(backend.run(images, 1)[0], logits)


@pytest.mark.parametrize("surroundings", [{"CXX": "/nonexistent/g++"}, {"PATH": ""}])
def test_without_a_compiler_the_message_says_what_to_do(
    surroundings: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MT_CONVERT_CACHE", str(tmp_path))
    for name, value in surroundings.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(build.NativeUnavailable, match=r'(?s)no C\+\+ compiler.*backend="torch"'):
        build.library.__wrapped__("portable")


def test_a_failing_build_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MT_CONVERT_CACHE", str(tmp_path / "cache"))
    broken = tmp_path / "kernels"
    broken.mkdir()
    (broken / "kernels.cpp").write_text("this is not C++")
    monkeypatch.setattr(build, "KERNELS", broken)
    with pytest.raises(build.NativeUnavailable, match="the build failed"):
        build.library.__wrapped__("portable")
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.long
def test_processes_that_build_at_once_do_not_meet(tmp_path: Path) -> None:
    code = "from mt_convert.integer_engine.native import build as b\n"
    code += "b.FLAGS += '-O0',; b.library('portable')"
    surroundings = {"MT_CONVERT_CACHE": str(tmp_path), "PATH": "/usr/bin:/bin"}
    root = Path(__file__).parents[3]
    started = [
        subprocess.Popen([sys.executable, "-c", code], env=surroundings, cwd=root) for _ in range(2)
    ]
    assert [process.wait(timeout=120) for process in started] == [0, 0]
    assert {item.suffix for item in tmp_path.iterdir()} == {".so"}
    assert len(list(tmp_path.iterdir())) <= 2
