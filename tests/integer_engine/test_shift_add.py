"""Shifts, additions and comparisons alone: the bits of the reference, the counts of the energy
report."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib import import_module
from typing import Any

import networks
import pytest
import torch
from export_networks import Mixed, shape_of, volume
from networks_of_operators import network as network_of_operators
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mt_convert.errors import SpecError
from mt_convert.evaluation.energy.event_sums import connections
from mt_convert.evaluation.energy.fanout import event_paths
from mt_convert.evaluation.energy.measure import energy
from mt_convert.graph.nodes import WEIGHTED, layer_nodes
from mt_convert.integer_engine.arithmetic import IntegerArithmetic, integer_thresholds
from mt_convert.integer_engine.model import IntegerModel
from mt_convert.integer_engine.program import Fire
from mt_convert.integer_engine.shift_add import ShiftAddRun, shift_add
from mt_convert.neurons.ladder import Binary, Learned, PowerOfTwo, Uniform
from mt_convert.neurons.spec import NeuronSpec
from mt_convert.quantization.quantize import QuantizedModel, quantize
from mt_convert.quantization.spec import QuantSpec
from mt_convert.spiking.convert import convert
from mt_convert.spiking.model import SpikingModel
from mt_convert.spiking.simulate import simulate

module = import_module("mt_convert.integer_engine.shift_add")
tables = import_module("mt_convert.integer_engine.threshold_tables")
events = import_module("mt_convert.integer_engine.spike_events")

WAYS: dict[str, tuple[dict[str, Any], int]] = {
    "exact": ({}, 1),
    "uniform": ({"ladder": Uniform(3), "signed": True}, 4),
    "binary_2": ({"ladder": Binary(2), "signed": True}, 4),
    "binary_4": ({"ladder": Binary(4), "signed": True}, 4),
    "power_of_two": ({"ladder": PowerOfTwo(4), "signed": True}, 4),
    "every_step": ({"ladder": Uniform(3), "presentation": "every_step"}, 3),
}


class Wide(Mixed):
    """What the small networks lack, with a mean at its end."""

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.avg_pool2d(self.features(x), 2, 1).flip(3).mean((2, 3)))


def maximum() -> nn.Module:
    """A maximum of neurons whose input changes from step to step."""
    layers = [nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU()]
    layers += [nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()]
    return nn.Sequential(*layers, nn.LazyLinear(3))


OWN: dict[str, Callable[[], nn.Module]] = {"wide": Wide, "volume": volume, "maximum": maximum}
_KEPT: dict[str, QuantizedModel] = {}


def quantized(name: str) -> QuantizedModel:
    """A network of `networks`, or of this file."""
    if name not in OWN:
        return networks.quantized(name)
    if name not in _KEPT:
        model, batch = OWN[name](), networks.images(8, shape_of(name), 2)
        model.eval()(batch)
        _KEPT[name] = quantize(networks.lived_in(model), QuantSpec(), calibration=batch)
    return _KEPT[name]


def fresh(name: str, batch: int = 3, seed: int = 77) -> Tensor:
    """Images that no network was calibrated on."""
    return networks.images(batch, shape_of(name), seed)


def check(snn: SpikingModel, images: Tensor, steps: int) -> ShiftAddRun:
    """A run without multiplications, equal to the reference."""
    model = IntegerModel(snn, "torch")
    run, wanted = shift_add(model, images, steps), model.run(images, steps, totals=True)
    assert torch.equal(run.logits, wanted.logits)
    assert run.totals.keys() == wanted.totals.keys()
    for name, total in wanted.totals.items():
        assert run.totals[name].dtype == torch.int32
        assert torch.equal(run.totals[name], total.int()), name
        assert total.unique().numel() > 1, f"{name} is too quiet to tell anything"
    return run


# ------------------------------------------------------------------------------- bit for bit

NAMES = [*networks.NETWORKS, *OWN]
COUNTED = ("residual", "pools", "shared_weight", "kinds_of_convolution")


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_every_small_network_runs_without_multiplying_and_gives_the_same_bits(way: str) -> None:
    options, steps = WAYS[way]
    refused = []
    for name in NAMES if way in ("exact", "uniform") else (*COUNTED, *OWN):
        snn = convert(quantized(name), **options)
        try:
            check(snn, fresh(name), steps)
        except SpecError:
            refused.append(name)
    assert refused == []


@pytest.mark.slow
@pytest.mark.parametrize("ladder", [Uniform(3), Binary(3), PowerOfTwo(4)], ids=str)
def test_neurons_that_never_take_back_run_too(ladder: Any) -> None:
    for name in ("residual", "pools", "pre_activation"):
        check(convert(quantized(name), ladder=ladder), fresh(name), 4)


def test_offsets_of_a_calibration_move_the_thresholds() -> None:
    snn, images = convert(quantized("residual"), ladder=Uniform(3), signed=True), fresh("residual")
    plain = check(snn, images, 4)
    for index, (_, neuron) in enumerate(snn.neurons()):
        channels = torch.arange(1.0, 5 if index < 3 else 9).reshape(-1, 1, 1)
        neuron.offset = channels / 10 - 0.3
    moved = check(snn, images, 4)
    assert not torch.equal(moved.totals["relu"], plain.totals["relu"])


def test_a_wrong_threshold_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    thresholds = tables.ThresholdTable.thresholds

    def late(self: Any, rows: Tensor) -> tuple[Tensor, Tensor]:
        found, falling = thresholds(self, rows)
        return found + torch.where(falling, -2, 2)[:, None], falling

    monkeypatch.setattr(tables.ThresholdTable, "thresholds", late)
    with pytest.raises(AssertionError):
        check(convert(quantized("residual")), fresh("residual", 16), 1)


# --------------------------------------------------------------------------------- thresholds


def fires(name: str, **options: Any) -> list[tuple[Any, Fire]]:
    program = IntegerModel(convert(quantized(name), **options), "torch").program()
    items = [item for item in program.instructions if isinstance(item, Fire)]
    return [(tables.ThresholdTable(item, program), item) for item in items]


@pytest.mark.slow
def test_of_a_neuron_behind_one_layer_the_table_is_that_of_integer_thresholds() -> None:
    found = [pair for name in ("bn_act", "one_relu") for pair in fires(name)]
    assert len(found) == 6
    falling_seen = False
    for table, item in found:
        (term,) = item.input.terms
        rows = table.places[:, :1, :1] if table.places.dim() == 3 else table.places
        thresholds, falling = table.thresholds(rows.reshape(-1, 1))
        factor, bias = term.multiplier.flatten(), item.input.bias.flatten()
        wanted = integer_thresholds(factor, bias, 15, table._limit)
        assert torch.equal(thresholds, wanted)
        assert torch.equal(falling, factor < 0)
        falling_seen |= bool(falling.any())
    assert len({tuple(row) for row in wanted.tolist()}) > 1


@pytest.mark.slow
def test_along_a_residual_connection_the_levels_choose_the_thresholds() -> None:
    table, item = fires("residual")[2]
    first, second = item.input.terms
    assert table.free == 1, "the accumulator is compared, the levels are looked up"
    levels = torch.arange(16)
    channel = 2
    row = table.places[channel, 0, 0].expand(16)
    thresholds, _ = table.thresholds(torch.stack([row, levels], 1))
    sums = torch.arange(-1440, 1441)
    written = levels[:, None].float() * first.multiplier.flatten()[0]
    written = written + item.input.bias.flatten()[channel]
    written = written + sums.float() * second.multiplier.flatten()[channel]
    reached = (sums[None, :, None] >= thresholds[:, None]).sum(2)
    assert torch.equal(reached, written.round().clamp(0, 15).long())


# ------------------------------------------------------------------------ nothing is multiplied

SHIFTS = {"bitwise_left_shift", "bitwise_right_shift", "bitwise_and"}
SUMS = {"add", "sub", "rsub", "neg", "sum"}
LOGIC = {"bitwise_and", "bitwise_or", "bitwise_not"}
COMPARISONS = {"any", "amax", "max", "clamp", "where", "eq", "ne", "lt", "le", "gt", "ge"}
LOOKED_UP = {"gather", "index", "index_select", "unique_dim", "is_nonzero", "_local_scalar_dense"}
MADE = {"zeros", "zeros_like", "ones_like", "new_zeros", "new_full", "full_like", "scalar_tensor"}
MOVED = {
    *("_to_copy", "clone", "copy_", "view", "_unsafe_view", "reshape", "expand", "permute"),
    *("squeeze", "unsqueeze", "select", "slice", "detach", "alias", "cat", "stack", "flip"),
}
ALLOWED = SHIFTS | SUMS | LOGIC | COMPARISONS | LOOKED_UP | MADE | MOVED


class IntegersOnly(TorchDispatchMode):
    """Notes every operator that is not a shift, an addition, a comparison or a movement, and every
    real number."""

    def __init__(self) -> None:
        super().__init__()
        self.paused, self.seen, self.faults = 0, set[str](), set[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if not self.paused:
            name = func.overloadpacket.__name__
            self.seen.add(name)
            made = tree_leaves([args, kwargs, found])
            real = any(isinstance(item, Tensor) and item.is_floating_point() for item in made)
            if name not in ALLOWED or real:
                self.faults.add(name)
        return found

    def pausing(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, which is not looked into."""

        def call(*args: Any, **kwargs: Any) -> Any:
            self.paused += 1
            try:
                return function(*args, **kwargs)
            finally:
                self.paused -= 1

        return call


OFFLINE = [  # tables and wiring are made before a run; both ends of a network are real
    *(
        (tables, name)
        for name in ("check", "taps", "pool_windows", "move_sources", "weights_by_group")
    ),
    *((tables, "factor"), (tables.ThresholdTable, "__init__")),
    *((tables.ThresholdTable, "thresholds"), (module, "encode"), (module, "scores")),
    *((module, "check_images"),),
]


@pytest.mark.slow
@pytest.mark.parametrize("way", ["uniform", "binary_4", "power_of_two", "every_step"])
@pytest.mark.parametrize("name", ["residual", "wide"])
def test_between_the_levels_of_the_image_and_the_scores_are_integers_and_no_product(
    name: str, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    options, steps = WAYS[way]
    model, images = IntegerModel(convert(quantized(name), **options), "torch"), fresh(name)
    for t in range(steps):
        model.program(t)
    guard = IntegersOnly()
    for owner, function in OFFLINE:
        monkeypatch.setattr(owner, function, guard.pausing(getattr(owner, function)))
    with guard:
        run = shift_add(model, images, steps)
    assert guard.faults <= {"stack"}, "no more than the scores of all steps side by side"
    assert {"add", "bitwise_left_shift", "ge", "le"} <= guard.seen
    assert torch.equal(run.logits, model.run(images, steps).logits)


@pytest.mark.slow
def test_the_guard_sees_what_the_reference_does() -> None:
    model, images = IntegerModel(convert(quantized("residual")), "reference"), fresh("residual")
    with torch.no_grad(), IntegersOnly() as guard:
        model._runner(1).run(images, 1, True)
    assert {"convolution", "mul", "round"} <= guard.faults


def test_the_source_has_no_operator_that_multiplies_or_divides() -> None:
    body = [
        node for source in (module, events) for node in ast.parse(inspect.getsource(source)).body
    ]
    inside = [node for node in body if getattr(node, "name", "") != "encode"]
    assert len(inside) == len(body) - 1
    products = (ast.Mult, ast.MatMult, ast.Div, ast.FloorDiv, ast.Mod, ast.Pow)
    nodes = [node for top in inside for node in ast.walk(top)]
    assert not [node.lineno for node in nodes if isinstance(getattr(node, "op", None), products)]


# -------------------------------------------------------------------------------------- counts


def synops(
    snn: SpikingModel, images: Tensor, steps: int, patch: pytest.MonkeyPatch
) -> dict[str, list[int]]:
    """What the energy report counts per layer and step, on the exact integers."""
    counting = import_module("mt_convert.evaluation.energy.synops")
    patch.setattr(counting, "simulate", partial(simulate, arithmetic=IntegerArithmetic(snn)))
    counts = counting.count_synops(snn, event_paths(snn), [images], steps)
    found: dict[str, list[int]] = {}
    for node, row in counts.synops.items():
        name = snn.operations[node].name
        before = found.get(name, [0] * steps)
        found[name] = [one + int(two) for one, two in zip(before, row.tolist(), strict=True)]
    return found


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_additions_of_every_layer_and_step_are_the_synops_of_the_energy_report(
    way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    options, steps = WAYS[way]
    for name in COUNTED:
        snn, images = convert(quantized(name), **options), fresh(name, 2)
        run = shift_add(IntegerModel(snn, "torch"), images, steps)
        assert run.additions == synops(snn, images, steps, monkeypatch), name
        assert sum(map(sum, run.additions.values())) > 0
        rows = energy(snn, images, time_steps=steps).rows
        compared = {row.name: row.comparisons * len(images) for row in rows if row.comparisons}
        assert {layer: sum(row) for layer, row in run.comparisons.items()} == compared


@pytest.mark.slow
@pytest.mark.parametrize("name", ["kinds_of_convolution", "shared_weight", "line"])
def test_the_first_layers_add_a_weight_for_each_set_bit_of_the_image_once(name: str) -> None:
    snn = convert(quantized(name), ladder=Uniform(3), signed=True)
    model, images = IntegerModel(snn, "torch"), fresh(name)
    run = shift_add(model, images, 3)
    encode = model.program().instructions[0]
    sizes = module.encode(encode, images).abs()
    bits = sum((sizes >> bit) & 1 for bit in range(7)).double()
    layers = {str(node.target): layer for node, layer in layer_nodes(snn.layers, WEIGHTED)}
    first = [layer for layer, row in run.encoder.items() if any(row)]
    assert len(first) == (2 if name == "shared_weight" else 1)
    for layer in first:
        assert run.encoder[layer] == [int(connections(layers[layer], bits)), 0, 0]
        assert run.additions[layer] == [0, 0, 0]


def bits_of(numbers: Tensor) -> int:
    """Set bits of whole numbers, signs aside."""
    return sum(int(number).bit_count() for number in numbers.abs().flatten().tolist())


@pytest.mark.slow
def test_a_maximum_can_change_by_more_than_one_power_of_two(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # a neuron at 4 leads one at 3, which emits 4 and comes to 7: the larger of both changes by 3
    options, steps = WAYS["power_of_two"]
    snn, images = convert(quantized("maximum"), **options), fresh("maximum", 32)
    model = IntegerModel(snn, "torch")
    changes, before = [], torch.zeros(())
    for T in range(1, steps + 1):
        shown = F.max_pool2d(model.run(images, T, totals=True).totals["5"].float(), 2)
        changes.append(shown - before)
        before = shown
    additions = [3 * bits_of(change) for change in changes]
    assert shift_add(model, images, steps).additions["8"] == additions
    assert synops(snn, images, steps, monkeypatch)["8"] == additions
    assert sum(additions) > sum(3 * int((change != 0).sum()) for change in changes)


@pytest.mark.slow
def test_windows_of_different_sizes_cost_a_shifted_addition_for_each_bit_of_their_weight(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options, steps = WAYS["uniform"]
    snn, images = convert(quantized("wide"), **options), fresh("wide")
    run = shift_add(IntegerModel(snn, "torch"), images, steps)
    reported = synops(snn, images, steps, monkeypatch)
    assert run.additions.keys() == reported.keys()
    differing = [name for name, row in reported.items() if run.additions[name] != row]
    assert differing == ["mixed"]
    assert sum(run.additions["mixed"]) > sum(reported["mixed"])


@pytest.mark.slow
def test_pools_and_maxima_are_counted_apart() -> None:
    snn, images = convert(quantized("pools")), fresh("pools", 2)
    run = shift_add(IntegerModel(snn, "torch"), images)
    assert run.maxima == [2 * 3 * 16 * 3], "windows of 4 entries: 3 comparisons each"
    entering = [int(run.totals[name].sum()) for name in ("relu_1", "relu_2")]
    assert run.pools == [sum(entering)], "windows do not overlap: each spike enters one"


# ------------------------------------------------------------------------------------ messages


@pytest.mark.slow
def test_what_needs_real_numbers_is_refused_by_name_and_runs_otherwise() -> None:
    model = network_of_operators("silu")
    snn = convert(
        quantize(model, QuantSpec(functions="analog"), calibration=networks.images(8, seed=2))
    )
    images = fresh("residual", 2)
    exact = IntegerModel(snn, "torch")
    with pytest.raises(SpecError, match=r"(?s)shifts and additions.*1 .*integer\(snn\)"):
        shift_add(exact, images)
    exact.run(images)  # the advice


def test_an_image_that_is_not_quantized_is_refused() -> None:
    spec = QuantSpec(input_bits=None)
    net = nn.Sequential(nn.ReLU(), nn.Flatten(), nn.Linear(128, 3))
    snn = convert(quantize(net, spec, calibration=networks.images(8)))
    with pytest.raises(SpecError, match="input_bits"):
        shift_add(IntegerModel(snn, "torch"), fresh("residual", 2))


@pytest.mark.slow
def test_learned_ladders_are_refused_all_of_them_at_once() -> None:
    program = IntegerModel(convert(quantized("residual")), "torch").program()
    learned = NeuronSpec(Learned((0.5, 1.0)), initial=0, bounds=(0, 2))
    items = [
        replace(item, spec=learned) if isinstance(item, Fire) else item
        for item in program.instructions
    ]
    with pytest.raises(SpecError, match="Uniform, Binary or PowerOfTwo") as caught:
        tables.check(replace(program, instructions=tuple(items)))
    assert [fault.where for fault in caught.value.faults] == [
        *("relu", "relu_1", "relu_2", "relu_3", "relu_4")
    ]


@pytest.mark.slow
@pytest.mark.parametrize("steps", [0, 1.5])
def test_steps_that_are_no_whole_numbers_from_1_are_refused(steps: Any) -> None:
    model = IntegerModel(convert(quantized("line")), "torch")
    with pytest.raises(SpecError, match="whole numbers from 1"):
        shift_add(model, fresh("line"), steps)
