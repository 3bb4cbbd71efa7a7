"""What people hand over as a network: wrappers are taken off, the rest is refused by name."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import timm.utils
import torch
from networks import images
from timm.layers import DropPath
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from mt_convert.errors import SpecError, UnsupportedLayerError
from mt_convert.graph.given_network import (
    check_network,
    idle_parts,
    plain_network,
    without_torch_log,
)
from mt_convert.graph.tracing.trace import trace

NET = nn.Sequential(nn.Conv2d(2, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(72, 3)).eval()

WRAPPED: dict[str, Callable[[], nn.Module]] = {
    "as it is": lambda: NET,
    "DataParallel": lambda: nn.DataParallel(NET),
    "torch.compile": lambda: torch.compile(NET),  # type: ignore[return-value]
    "compiled in DataParallel": lambda: nn.DataParallel(torch.compile(NET)),  # type: ignore[arg-type]
    "AveragedModel": lambda: torch.optim.swa_utils.AveragedModel(NET),
    "timm's EMA": lambda: timm.utils.ModelEmaV3(NET),
    "timm's second EMA": lambda: timm.utils.ModelEmaV2(NET),
}


@pytest.mark.sampled
@pytest.mark.parametrize("name", list(WRAPPED))
def test_a_wrapper_is_taken_off(name: str) -> None:
    plain = plain_network(WRAPPED[name]())
    assert type(plain) is nn.Sequential
    assert list(plain.state_dict()) == list(NET.state_dict())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (nn.Linear, r"is a type: pass an instance: Linear\(...\)"),
        (lambda x: x, "is a function"),
        (NET.state_dict(), "is a OrderedDict: these are weights"),
        ("resnet18", r"timm.create_model\('resnet18'\)"),
        (None, "is a NoneType"),
        (torch.zeros(2), "is a Tensor"),
        (torch.jit.script(nn.ReLU()), "is TorchScript"),
        (torch.jit.trace(nn.ReLU(), torch.zeros(1)), "is TorchScript"),
    ],
)
def test_what_is_no_network_is_told_with_what_to_pass(wrong: Any, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        plain_network(wrong)


class Named(nn.Module):
    """A layer of any name, at the top or inside."""

    def __init__(self, name: str, inside: bool) -> None:
        super().__init__()
        self.path = [*(["block"] if inside else []), name]
        layer: nn.Module = nn.Linear(8, 3)
        for part in reversed(self.path):
            holder = nn.Module()
            holder.add_module(part, layer)
            layer = holder
        self.add_module(self.path[0], layer.get_submodule(self.path[0]))

    def forward(self, x: Tensor) -> Tensor:
        layer = self.get_submodule(".".join(self.path))
        result: Tensor = layer(x)
        return result


GRAPH = ["code", "graph", "meta", "image_shape", "recompile", "print_readable", "add_submodule"]
WORDS = ["class", "lambda", "None", "True", "import"]
FINE = ["self", "operator", "a-b"]


@pytest.mark.sampled
@pytest.mark.parametrize(
    ("name", "inside"),
    [(name, False) for name in (*GRAPH, *WORDS, *FINE)]
    + [(name, True) for name in ("code", "image_shape", "class", "self")],
)
def test_a_layer_is_traced_under_its_name_or_the_name_is_told(name: str, inside: bool) -> None:
    network, x = Named(name, inside).eval(), torch.randn(2, 8)
    if name in WORDS or (name in GRAPH and not inside):
        with pytest.raises(UnsupportedLayerError, match=f"such as {name}_") as refused:
            trace(network, x)
        assert [fault.where for fault in refused.value.faults] == [".".join(network.path)]
        return
    graph = trace(network, x)
    assert torch.equal(graph(x), network(x))
    assert ".".join(network.path) in dict(graph.named_modules())


class Result(nn.Module):
    """A network with a result of any kind."""

    def __init__(self, make: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.make = make

    def forward(self, x: Tensor) -> Any:
        return self.make(x)


class Inputs(nn.Module):
    """A network with two inputs."""

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return x * mask


class Keyword(nn.Module):
    """A network with a second input that must be named."""

    def forward(self, x: Tensor, *, scale: float) -> Tensor:
        return x * scale


class NoInput(nn.Module):
    """A network without inputs."""

    def forward(self) -> Tensor:
        return torch.zeros(1)


class Optional(nn.Module):
    """A second input that may be left out, as of many networks of timm."""

    def forward(self, x: Tensor, mask: Tensor | None = None, *more: Tensor, **named: Any) -> Tensor:
        return x if mask is None else x * mask


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (Result(lambda x: (x, x)), "a tuple of 2 values, where one tensor"),
        (Result(lambda x: {"logits": x}), "a dict of logits, where one tensor"),
        (Result(lambda x: [{"boxes": x}]), "a list of 1 values"),
        (Result(lambda x: None), "a NoneType"),
        (Result(lambda x: x[:, 5]), "IndexError: .*check the image size"),
        (Inputs(), r"takes 2 inputs \(x, mask\)"),
        (Keyword(), r"takes 2 inputs \(x, scale\)"),
        (NoInput(), "takes no input"),
    ],
)
def test_what_cannot_be_traced_is_told_before_it_is_tried(network: nn.Module, message: str) -> None:
    with pytest.raises(UnsupportedLayerError, match=message):
        check_network(network, images(2))
    check_network(Optional(), images(2))


def test_one_image_without_its_batch_is_told() -> None:
    with pytest.raises(UnsupportedLayerError, match=r"if this is one image, pass images\[None\]"):
        check_network(nn.Conv2d(1, 2, 3), images(2)[0, :1])


def test_stochastic_depth_and_whole_channels_are_warned_of() -> None:
    parts: list[nn.Module] = [DropPath(0.1), StochasticDepth(0.2, "row"), DropPath(0.0)]
    parts += [nn.Dropout(0.5), nn.Identity()]
    (said,) = idle_parts(nn.Sequential(*parts))
    assert said.startswith("0 (DropPath 0.1), 1 (StochasticDepth 0.2) act in training alone")
    (said,) = idle_parts(nn.Sequential(nn.Dropout2d(0.1), nn.Dropout(0.1)))
    assert said == "0 (Dropout2d) drop whole channels, and are kept as plain dropouts"


def test_what_torch_logs_is_silent_inside_and_heard_behind(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch_logger, other = logging.getLogger("torch.export.some"), logging.getLogger("other")
    for name in ("torch", "torch.export"):  # older versions of torch pass nothing on
        monkeypatch.setattr(logging.getLogger(name), "propagate", True)
    with caplog.at_level("ERROR"):
        with without_torch_log():
            torch_logger.error("one")
            other.error("two")
        torch_logger.error("three")
    heard = [record.message for record in caplog.records]
    assert list(dict.fromkeys(heard)) == ["two", "three"]
