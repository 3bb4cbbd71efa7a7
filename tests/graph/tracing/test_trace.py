"""A traced network is the network: same numbers, same names; and its stored form is only data."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from networks import NETWORKS, NORMED, PAIRS, conv, images, lived_in, network, quantized, shape_of
from timm_networks import TIMM, timm_names
from torch import Tensor, fx, nn
from torch.nn import functional as F

from mt_convert.errors import CheckpointError, DataError, UnsupportedLayerError
from mt_convert.graph.nodes import NORMS, check_images, fold_batch_norm_, layer_nodes, unused_name
from mt_convert.graph.serialization import (
    graph_from_json,
    graph_to_json,
    plain_layer_from_json,
    plain_layer_to_json,
)
from mt_convert.graph.tracing.trace import trace
from mt_convert.quantization.spec import BatchNorm

Nodes = list[dict[str, Any]]


_TRACED: dict[str, fx.GraphModule] = {}


def traced(name: str, model: nn.Module | None = None) -> fx.GraphModule:
    """The trace of one of the networks, shared by the tests, which do not change it."""
    if name not in _TRACED:
        _TRACED[name] = trace(model or network(name), images(1, shape_of(name)))
    return _TRACED[name]


def called(graph_module: fx.GraphModule) -> list[str]:
    """Names of the layers, in order of execution."""
    return [str(node.target) for node, _ in layer_nodes(graph_module, nn.Module)]


def parts_of(graph_module: fx.GraphModule) -> dict[str, Any]:
    """What `graph_from_json` needs besides the nodes."""
    parts: dict[str, Any] = {
        str(node.target): graph_module.get_submodule(str(node.target))
        for node in graph_module.graph.nodes
        if node.op == "call_module"
    }
    loose = {str(node.target) for node in graph_module.graph.nodes if node.op == "get_attr"}
    return parts | {name: graph_module.get_buffer(name) for name in loose}


# ----------------------------------------------------------------------------------------- trace


@pytest.mark.sampled
@pytest.mark.parametrize("name", NETWORKS)
def test_the_trace_computes_the_same_and_leaves_the_model_alone(name: str) -> None:
    model = network(name).train()
    before = copy.deepcopy(model.state_dict())
    graph = traced(name, model)
    assert model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not any(module.training for module in graph.modules())
    model.eval()
    for batch in (1, 3):
        x = images(batch, shape_of(name), seed=batch)
        assert torch.equal(graph(x), model(x))


@pytest.mark.parametrize("name", timm_names())
def test_timm_models_compute_the_same_when_traced(name: str) -> None:
    model = lived_in(TIMM[name]())
    graph = trace(model, torch.zeros(2, 3, 64, 64))
    for batch in (1, 3):
        x = images(batch, (3, 64, 64))
        assert torch.equal(graph(x), model(x))
    lost = set(dict(model.named_parameters())) - set(dict(graph.named_parameters()))
    assert all("bn" in key or "norm" in key for key in lost), lost


@pytest.mark.slow
def test_layers_keep_their_names_and_each_use_of_an_activation_gets_its_own() -> None:
    assert called(traced("one_relu")) == [
        *("conv1", "bn1", "relu", "conv2", "bn2", "relu_1", "fc1", "relu_2", "fc2")
    ]
    assert called(traced("functional")) == [
        *("a", "relu", "b", "relu_1", "c", "relu_2", "d", "relu_3", "head")
    ]


@pytest.mark.slow
def test_clamps_keep_their_bounds() -> None:
    graph = traced("clamps")
    bounds = [
        (layer.min_val, layer.max_val) if isinstance(layer, nn.Hardtanh) else "relu"
        for _, layer in layer_nodes(graph, (nn.ReLU, nn.Hardtanh))
    ]
    assert bounds == [(0, 6), (-1, 2), (0, 1), "relu"]


@pytest.mark.slow
def test_one_weight_with_two_strides_becomes_two_layers() -> None:
    graph = traced("shared_weight")
    strides = [layer.stride for _, layer in layer_nodes(graph, nn.Conv2d)]
    assert strides == [(1, 1), (2, 2)]


@pytest.mark.slow
def test_one_convolution_used_three_times_stays_one_layer() -> None:
    graph = traced("shared_conv")
    assert called(graph).count("shared") == 3


def test_a_batch_norm_keeps_its_momentum() -> None:
    model = nn.Sequential(conv(2, 2), nn.BatchNorm2d(2, eps=1e-3, momentum=0.25)).eval()
    norm = trace(model, images(2)).get_submodule("1")
    assert (norm.momentum, norm.eps) == (0.25, 1e-3)
    assert plain_layer_to_json(norm)["momentum"] == 0.25


@pytest.mark.slow
@pytest.mark.parametrize(("name", "batch_norm"), PAIRS)
def test_every_parameter_of_the_quantized_network_gets_a_gradient(
    name: str, batch_norm: BatchNorm
) -> None:
    qann = quantized(name, batch_norm).train()
    logits = qann(images(4, shape_of(name)))
    logits.square().sum().backward()
    missing = [key for key, value in qann.named_parameters() if value.grad is None]
    assert not missing
    assert list(qann.parameters())


# ------------------------------------------------------------------------- what cannot be traced


class Branches(nn.Module):
    """Control flow that depends on the data."""

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:  # the line that the message must name
            return x.flatten(1)
        return -x.flatten(1)


class Fails(nn.Module):
    """A shape that only fits other images."""

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(x.shape[0], 7)


class Pair(nn.Module):
    """Two results."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x + 1


@pytest.mark.parametrize(
    ("model", "code", "advice"),
    [
        (Branches(), "if x.sum() > 0:", "rewrite that line without control flow"),
        (Fails(), "return x.reshape(x.shape[0], 7)", "check the image size"),
    ],
)
def test_an_untraceable_model_is_refused_with_the_line_that_stops_it(
    model: nn.Module, code: str, advice: str
) -> None:
    with pytest.raises(UnsupportedLayerError, match=r"shape \(2, 8, 8\)") as caught:
        trace(model, images(2))
    (fault,) = caught.value.faults
    file, line, text = fault.where.split(":", 2)
    assert Path(file).name == Path(__file__).name
    assert text.strip().startswith(code)
    assert code in Path(__file__).read_text().splitlines()[int(line) - 1]
    assert advice in fault.hint


def test_a_wrong_number_of_channels_names_both_numbers() -> None:
    with pytest.raises(UnsupportedLayerError, match="3 channels, but got 2 channels"):
        trace(nn.Conv2d(3, 2, 3), images(2))


def test_a_model_with_two_results_is_refused() -> None:
    with pytest.raises(UnsupportedLayerError, match="one tensor") as caught:
        trace(Pair(), images(2))
    assert "2 values" in str(caught.value)


# ---------------------------------------------------------------------------------------- images


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (torch.zeros(2, 2, 9, 8), r"\(2, 2, 9, 8\) do not fit.*\[batch, 2, 8, 8\]"),
        (torch.zeros(2, 8, 8), r"\(2, 8, 8\) do not fit"),
        (torch.zeros(2, 2, 8, 8, dtype=torch.uint8), r"torch\.uint8: convert them to float"),
    ],
)
def test_images_that_do_not_fit_are_refused(batch: Tensor, message: str) -> None:
    with pytest.raises(DataError, match=message):
        check_images(batch, (2, 8, 8))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_images_that_are_not_finite_are_named(value: float) -> None:
    batch = images(4)
    batch[1, 0, 3, 3] = batch[3, 1, 0, 0] = value
    with pytest.raises(DataError, match=r"images \[1, 3\] of the batch hold NaN or infinity"):
        check_images(batch, (2, 8, 8))
    batch[1] = batch[3] = 0
    check_images(batch, (2, 8, 8))


# --------------------------------------------------------------------------------------- folding


@pytest.mark.sampled
@pytest.mark.parametrize("name", NETWORKS)
def test_folding_changes_nothing_but_rounding(name: str) -> None:
    model, x = network(name), images(5, shape_of(name))
    graph = copy.deepcopy(traced(name))
    fold_batch_norm_(graph)
    torch.testing.assert_close(graph(x), model(x), rtol=1e-5, atol=1e-5)
    held = {str(node.target) for node in graph.graph.nodes if node.op == "call_module"}
    assert {name.split(".")[0] for name in held} == {key for key, _ in graph.named_children()}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "left"),
    [(name, 2 if name == "pre_activation" else 0) for name in NORMED],
)
def test_only_norms_behind_something_else_than_a_layer_stay(name: str, left: int) -> None:
    graph = copy.deepcopy(traced(name))
    assert len(list(layer_nodes(graph, NORMS))) > left
    fold_batch_norm_(graph)
    assert len(list(layer_nodes(graph, NORMS))) == left


def test_folding_is_in_place_and_folded_weights_stay_trainable() -> None:
    graph = copy.deepcopy(traced("one_relu"))
    before = graph.get_submodule("conv1").weight.detach().clone()
    fold_batch_norm_(graph)
    layer = graph.get_submodule("conv1")
    assert not torch.equal(layer.weight, before)
    assert layer.weight.requires_grad
    assert layer.bias.requires_grad


@pytest.mark.slow
def test_a_layer_used_by_others_too_keeps_its_norm_apart() -> None:
    class TwoReaders(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = conv(2, 2), nn.BatchNorm2d(2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(x)
            return (x + self.norm(x)).mean((2, 3))

    model, x = lived_in(TwoReaders()), images(3)
    graph = trace(model, x)
    fold_batch_norm_(graph)
    assert len(list(layer_nodes(graph, NORMS))) == 1
    assert torch.equal(graph(x), model(x))


def test_an_unused_name_is_new() -> None:
    graph = copy.deepcopy(traced("one_relu"))
    assert unused_name(graph, "relu") == "relu_3"
    assert unused_name(graph, "conv1.weight") == "conv1_weight"  # beside the layer, not in it
    assert unused_name(graph, "fresh") == "fresh"


# ----------------------------------------------------------------------------------- stored form


@pytest.mark.sampled
@pytest.mark.parametrize("name", NETWORKS)
def test_a_graph_comes_back_from_json(name: str) -> None:
    graph, x = traced(name), images(3, shape_of(name))
    stored = json.loads(json.dumps(graph_to_json(graph), allow_nan=False))
    again = graph_from_json(stored, parts_of(graph), graph.image_shape)
    assert torch.equal(again(x), graph(x))
    assert again.image_shape == shape_of(name)
    assert graph_to_json(again) == graph_to_json(graph)


@pytest.mark.sampled
@pytest.mark.parametrize("name", NETWORKS)
def test_plain_layers_come_back_from_json(name: str) -> None:
    graph = traced(name)
    for _, layer in layer_nodes(graph, nn.Module):
        stored = json.loads(json.dumps(plain_layer_to_json(layer)))
        again = plain_layer_from_json(stored)
        assert type(again) is type(layer)
        again.load_state_dict(layer.state_dict())
        assert plain_layer_to_json(again) == plain_layer_to_json(layer)


def first(nodes: Nodes, op: str) -> dict[str, Any]:
    """The first node of a kind."""
    return next(node for node in nodes if node["op"] == op)


HARM = "open('harm', 'w')"
DAMAGES: dict[str, Callable[[Nodes], Any]] = {
    "os.system": lambda nodes: first(nodes, "call_function").update(target="os.system"),
    "builtins.eval": lambda nodes: first(nodes, "call_function").update(target="builtins.eval"),
    "aten.nothing.default": lambda nodes: first(nodes, "call_function").update(
        target="aten.nothing.default"
    ),
    "no operator": lambda nodes: first(nodes, "call_function").update(
        target="aten.__class__.__init__"
    ),
    "an operator that writes files": lambda nodes: first(nodes, "call_function").update(
        target="aten.from_file.default", args={"tuple": ["harm", True, 4]}
    ),
    "a default that runs code": lambda nodes: first(nodes, "placeholder").update(
        target=f"x={HARM}"
    ),
    "a keyword that runs code": lambda nodes: first(nodes, "call_function").update(
        kwargs={f"x={HARM}, y": 1}
    ),
    "a layer's name that runs code": lambda nodes: first(nodes, "call_module").update(
        target=f'0"), {HARM} or getattr(self, "0'
    ),
    "a call of a method": lambda nodes: first(nodes, "call_function").update(
        op="call_method", target="__class__"
    ),
    "unknown layer": lambda nodes: first(nodes, "call_module").update(target="gone"),
    "unknown op": lambda nodes: first(nodes, "call_module").update(op="call_everything"),
    "missing node": lambda nodes: nodes.remove(first(nodes, "call_module")),
    "no output": lambda nodes: nodes.pop(),
    "nothing": lambda nodes: nodes.clear(),
    "a node twice": lambda nodes: nodes.insert(0, copy.deepcopy(nodes[-1])),
    "no dtype": lambda nodes: first(nodes, "call_function").update(
        args={"tuple": [{"dtype": "os"}]}
    ),
    "no number": lambda nodes: first(nodes, "call_function").update(
        args={"tuple": [{"float": "many"}]}
    ),
    "unknown tag": lambda nodes: first(nodes, "call_function").update(
        args={"tuple": [{"pickle": "gASV"}]}
    ),
    "no target": lambda nodes: first(nodes, "call_function").pop("target"),
    "no text": lambda nodes: first(nodes, "call_module").update(target=3),
}


@pytest.mark.sampled
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_or_hostile_graph_is_refused_and_runs_nothing(
    damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = nn.Sequential(conv(2, 2), nn.ReLU(), nn.Flatten()).eval()
    graph = trace(model, images(2))
    stored, parts = graph_to_json(graph), parts_of(graph)
    DAMAGES[damage](stored)
    parts[f'0"), {HARM} or getattr(self, "0'] = parts["0"]  # a hostile file names its layers too
    with pytest.raises(CheckpointError, match="the stored graph cannot be rebuilt"):
        graph_from_json(stored, parts, (2, 8, 8))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"type": "Module"}, "unknown layer type 'Module': allowed are Conv1d"),
        ({"type": "os.system"}, "unknown layer type"),
        ({}, "unknown layer type None"),
        ({"type": "Linear", "in_features": 2}, "a stored Linear cannot be built"),
        ({"type": "Linear", "in_features": -2, "out_features": 1}, "cannot be built"),
        ({"type": "Dropout", "p": 2}, "a stored Dropout cannot be built"),
    ],
)
def test_a_hostile_layer_is_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        plain_layer_from_json(config)


@pytest.mark.slow
def test_dropout_is_active_in_training_alone() -> None:
    graph = copy.deepcopy(traced("pools"))
    x = images(4)
    assert torch.equal(graph(x), graph(x))
    graph.train()
    assert not torch.equal(graph(x), graph(x))


@pytest.mark.slow
def test_gradients_of_the_trace_equal_the_models() -> None:
    model, x = network("residual"), images(3)
    graph = trace(model, x)
    F.mse_loss(graph(x), torch.ones(3, 3)).backward()
    F.mse_loss(model(x), torch.ones(3, 3)).backward()
    expected = dict(model.named_parameters())
    for name, parameter in graph.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name].grad)
    assert len(dict(graph.named_parameters())) == len(expected)
