"""One architecture through one peer: what `peers.py` runs in a process of its own, many times.

Each peer is called as its own documentation and examples call it; the functions below are printed
on the page word by word. Imports SpikingJelly and sinabs, so it runs in their environment only.
"""

from __future__ import annotations

import inspect
import re
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import sinabs.from_torch
import sinabs.layers
import timm
import timm.layers.activations as timm_activations
import torch
import torchvision
from spikingjelly.activation_based import ann2snn, base, functional, neuron
from spikingjelly.activation_based.ann2snn.operators import TDModule
from spikingjelly.activation_based.ann2snn.recipes.sta_transformer import _STASpikeEncoder
from torch import Tensor, nn
from torch.nn.modules import activation as torch_activations
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader, TensorDataset

IMAGES = 2
CALIBRATION_BATCHES = 4
TIME_STEPS = 4

NEURONS = (neuron.BaseNode, _STASpikeEncoder, sinabs.layers.StatefulLayer)
STATEFUL = (base.MemoryModule, sinabs.layers.StatefulLayer)
NOT_POINTWISE = {"MultiheadAttention", "Softmin", "Softmax", "Softmax2d", "LogSoftmax"}
ACTIVATION_LAYERS = (
    *(getattr(torch_activations, n) for n in set(torch_activations.__all__) - NOT_POINTWISE),
    *(v for v in vars(timm_activations).values() if inspect.isclass(v)),
)
ACTIVATION_OPERATORS = {
    *("relu", "hardtanh", "gelu", "silu", "sigmoid", "tanh", "hardswish", "hardsigmoid", "mish"),
    *("elu", "leaky_relu", "_prelu_kernel", "softplus", "threshold", "glu", "log_sigmoid_forward"),
    *("softshrink", "hardshrink", "rrelu_with_noise"),
}


@dataclass(frozen=True)
class Peer:
    """How one peer converts a network and shows it a batch of images for the first time."""

    convert: Callable[[nn.Module, DataLoader], nn.Module]
    forward: Callable[[nn.Module, Tensor], Tensor]


def spikingjelly_rate(ann: nn.Module, loader: DataLoader) -> nn.Module:
    recipe = ann2snn.RateCodingRecipe(
        dataloader=loader,
        mode="99.9%",
        fuse_flag=True,
        channel_wise=True,
        pre_spike_maxpool=True,
        half_threshold=True,
    )
    return ann2snn.Converter(recipe=recipe).convert(ann)


def spikingjelly_ltb(ann: nn.Module, loader: DataLoader) -> nn.Module:
    recipe = ann2snn.LocalThresholdBalancingRecipe(dataloader=loader, fuse_flag=True)
    return ann2snn.Converter(recipe=recipe).convert(ann)


def spikingjelly_sta(ann: nn.Module, loader: DataLoader) -> nn.Module:
    recipe = ann2snn.STATransformerRecipe(
        dataloader=loader, time_steps=TIME_STEPS, mode="spiking_encoder", threshold_mode="mse"
    )
    return ann2snn.Converter(recipe=recipe).convert(ann)


def spikingjelly_td(ann: nn.Module, loader: DataLoader) -> nn.Module:
    recipe = ann2snn.TransformerTDEquivalentRecipe(time_steps=TIME_STEPS)
    return ann2snn.Converter(recipe=recipe).convert(ann)


def sinabs_from_model(ann: nn.Module, loader: DataLoader) -> nn.Module:
    return sinabs.from_torch.from_model(ann, batch_size=IMAGES).spiking_model


def one_step(snn: nn.Module, images: Tensor) -> Tensor:
    functional.reset_net(snn)
    return snn(images)


def image_then_zeros(snn: nn.Module, images: Tensor) -> Tensor:
    functional.set_step_mode(snn, "m")
    functional.reset_net(snn)
    sequence = torch.zeros(TIME_STEPS, *images.shape)
    sequence[0] = images
    return snn(sequence).sum(dim=0)


def batch_of_one_step(snn: nn.Module, images: Tensor) -> Tensor:
    return snn(images)


PEERS = {
    "spikingjelly_rate": Peer(spikingjelly_rate, one_step),
    "spikingjelly_ltb": Peer(spikingjelly_ltb, one_step),
    "spikingjelly_sta": Peer(spikingjelly_sta, image_then_zeros),
    "spikingjelly_td": Peer(spikingjelly_td, image_then_zeros),
    "sinabs": Peer(sinabs_from_model, batch_of_one_step),
}


def calls() -> dict[str, str]:
    """The source of what converts and what runs, by peer."""
    return {
        name: inspect.getsource(peer.convert) + "\n" + inspect.getsource(peer.forward)
        for name, peer in PEERS.items()
    }


class Activations(TorchDispatchMode):
    """Counts point-wise activation operators that run outside stateful (spiking) modules."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self.fired: Counter[nn.Module] = Counter()
        self._depth = 0
        for module in network.modules():
            if isinstance(module, STATEFUL):
                module.register_forward_pre_hook(self._enter)
                module.register_forward_hook(self._leave)

    def _enter(self, module: nn.Module, inputs: Any) -> None:
        self._depth += 1
        self.fired[module] += isinstance(module, NEURONS)

    def _leave(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self._depth -= 1

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__.removesuffix("_")
        if not self._depth and name in ACTIVATION_OPERATORS:
            self.counts[name.strip("_").removesuffix("_kernel")] += 1
        return func(*args, **(kwargs or {}))


def trial(architecture: str, size: int, peer: str) -> dict[str, Any]:
    """Everything measured on one architecture with one peer; an exception ends up in the row.

    Returns:
        The columns of a row of peers.json except its names; ``stage`` is what raised.
    """
    row: dict[str, Any] = {
        "converted": False,
        "forward": None,
        "spiking_layers": 0,
        "shared_neurons": None,
        "time_operators": 0,
        "activations": None,
        "modules_left": None,
        "operators_left": None,
        "stage": "build",
        "error": None,
    }
    torch.manual_seed(0)
    started = time.perf_counter()
    try:
        with torch.no_grad():
            _measure(row, architecture, size, PEERS[peer])
        row["stage"] = None
    except Exception as error:
        row["error"] = one_line(error)
        if row["stage"] == "forward":
            row["forward"] = False
    row["seconds"] = round(time.perf_counter() - started, 2)
    return row


def _measure(row: dict[str, Any], architecture: str, size: int, peer: Peer) -> None:
    """Fill ``row`` stage by stage, so that what was found before an exception stays."""
    images = torch.randn(IMAGES, 3, size, size)
    ann = build(architecture, images)
    with Activations(ann) as before:
        ann(images)
    row["activations"] = dict(before.counts)
    row["stage"] = "convert"
    pictures = torch.randn(IMAGES * CALIBRATION_BATCHES, 3, size, size)
    labels = torch.zeros(len(pictures), dtype=torch.long)
    snn = peer.convert(ann, DataLoader(TensorDataset(pictures, labels), batch_size=IMAGES)).eval()
    modules = list(snn.modules())
    row["converted"] = True
    row["spiking_layers"] = sum(isinstance(module, NEURONS) for module in modules)
    row["time_operators"] = sum(isinstance(module, TDModule) for module in modules)
    row["modules_left"] = dict(Counter(type(m).__name__ for m in modules if is_activation(m)))
    row["stage"] = "forward"
    with Activations(snn) as after:
        peer.forward(snn, images)
    row["forward"] = True
    row["operators_left"] = dict(after.counts)
    row["shared_neurons"] = sum(times > 1 for times in after.fired.values())


def build(architecture: str, images: Tensor) -> nn.Module:
    """Random weights, in evaluation mode, made for the size of ``images`` where that is offered."""
    library, _, name = architecture.rpartition("/")
    size = images.shape[-1]
    if library == "torchvision":
        sized = {"image_size": size} if name.startswith("vit") else {}
        return torchvision.models.get_model(name, weights=None, **sized).eval()
    try:
        ann = timm.create_model(architecture, img_size=size).eval()
        ann(images)
    except Exception:  # not every architecture takes img_size, or works with what it takes
        ann = timm.create_model(architecture).eval()
    return ann


def is_activation(module: nn.Module) -> bool:
    """Whether it is a point-wise activation layer of torch or timm, subclasses included."""
    return isinstance(module, ACTIVATION_LAYERS) or type(module).__name__ == "StarReLU"


def one_line(error: BaseException) -> str:
    """Type and first line of an exception, and the last line of timm's source it came through."""
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "/timm/" in f.filename]
    where = ""
    if frames:
        file = frames[-1].filename.rpartition("/timm/")[2]
        where = f" [timm/{file}:{frames[-1].lineno}]"
    text = re.sub(r" at 0x[0-9a-f]+", "", text)
    return f"{type(error).__name__}: {text}"[:240] + where
