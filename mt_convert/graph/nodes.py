"""One form of a model through all stages: a `torch.fx.GraphModule` of layers and ATen operators.

`tracing` makes it; quantizing and converting swap modules in it; the rules table (`rules`) says
what each operator does over time. Here is what all of them need to read and fold it.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator, Sequence
from typing import Any
from warnings import warn

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from ..errors import DataError

CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
WEIGHTED = (*CONVS, nn.Linear)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
PLAIN = (*WEIGHTED, *NORMS, nn.Dropout, nn.Hardtanh, nn.ReLU)
FAR = 8.0
"""Times the largest value of calibration: what is beyond was not normalised, or otherwise."""


def note_warning(graph_module: fx.GraphModule, text: str) -> None:
    """Note what the user should know on the graph module; the report prints it."""
    graph_module.meta["warnings"] = (*warnings_of(graph_module), text)


def warnings_of(graph_module: fx.GraphModule) -> tuple[str, ...]:
    """What `note_warning` noted, on copies too."""
    return tuple(graph_module.meta.get("warnings", ()))


def attribute(root: nn.Module, path: str) -> Any:
    """The parameter, buffer or constant at a dotted path."""
    return operator.attrgetter(path)(root)


def set_image_shape(graph_module: fx.GraphModule, shape: Sequence[int]) -> None:
    """Note on the graph module what images it was traced for."""
    graph_module.image_shape = tuple(shape)  # type: ignore[assignment]
    graph_module.meta["image_shape"] = tuple(shape)  # a copy keeps this, a pickle the other


def image_shape_of(graph_module: fx.GraphModule) -> tuple[int, ...]:
    """What `set_image_shape` noted, on copies too."""
    noted = graph_module.meta.get("image_shape") or graph_module.__dict__["image_shape"]
    return tuple(noted)


def layer_of(graph_module: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    """The module that ``node`` calls, or None for operators."""
    if node.op != "call_module":
        return None
    return graph_module.get_submodule(str(node.target))


def source_of(node: fx.Node) -> fx.Node:
    """The node whose value a layer's call takes."""
    source = node.args[0]
    assert isinstance(source, fx.Node)
    return source


def layer_nodes(
    graph_module: fx.GraphModule, kinds: type | tuple[type, ...]
) -> Iterator[tuple[fx.Node, Any]]:
    """Nodes that call a module of the given kinds, in order of execution."""
    for node in graph_module.graph.nodes:
        layer = layer_of(graph_module, node)
        if layer is not None and isinstance(layer, kinds):
            yield node, layer


def is_constant(node: fx.Node) -> bool:
    """Whether a node's value does not depend on what the image shows: parameters, sizes, numbers,
    and what is computed from them.

    Example:
        >>> from .tracing.trace import trace
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
        >>> nodes = trace(net, torch.zeros(2, 1, 2, 2)).graph.nodes
        >>> [str(node.target) for node in nodes if is_constant(node)]
        ['aten.sym_size.int']
    """
    stack = [node]
    while stack:  # not a recursion: graphs are thousands of nodes deep
        item = stack[-1]
        if "constant" not in item.meta:
            unknown = [source for source in item.all_input_nodes if "constant" not in source.meta]
            of_sizes = item.op == "call_function" and "sym_" in str(item.target)
            if unknown and not of_sizes:
                stack.extend(unknown)
                continue
            constants = [source.meta["constant"] for source in item.all_input_nodes if not of_sizes]
            item.meta["constant"] = item.op not in ("placeholder", "output") and all(constants)
        stack.pop()
    return bool(node.meta["constant"])


def node_name(node: fx.Node) -> str:
    """What a node is called for people: its layer's name, or the module path that it was traced
    from, or its own name where there is neither."""
    if node.op == "call_module":
        return str(node.target)
    return str(node.meta.get("path") or node.name)


def check_images(
    images: Tensor,
    image_shape: tuple[int, ...],
    like: Tensor | None = None,
    reach: float | None = None,
) -> Tensor:
    """The images in the floating type of ``like``, float32 without it: the one place that decides.

    Images of any floating type are taken. Refused are other shapes, whole numbers, values that are
    not finite (in the type that they get), and another device than that of ``like``. Images that
    nobody normalised get a warning.

    Units: ``reach`` is the largest magnitude that the network was calibrated on, where it is known.

    Raises:
        DataError: what the images are, and what the network takes.

    Example:
        >>> check_images(torch.zeros(2, 3, 8, 8, dtype=torch.bfloat16), (3, 8, 8)).dtype
        torch.float32
    """
    if not isinstance(images, Tensor):
        raise DataError(f"images are a {type(images).__name__}: pass one tensor [batch, ...]")
    if images.dim() != len(image_shape) + 1 or tuple(images.shape[1:]) != tuple(image_shape):
        raise DataError(
            f"images of shape {tuple(images.shape)} do not fit: this network was traced for "
            f"[batch, {', '.join(map(str, image_shape))}]; resize the images, or quantize the "
            "model again with calibration images of the new size"
        )
    if not images.is_floating_point():
        raise DataError(
            f"images hold {images.dtype}: convert them to float and normalise them as in training"
        )
    if like is not None and images.device != like.device:
        raise DataError(
            f"images are on {images.device}, the network on {like.device}: move one to the other"
        )
    images = images.to(torch.float32 if like is None else like.dtype)
    least, most = extremes(images)
    largest = max(-least, most)
    if not math.isfinite(largest):
        bad = (~torch.isfinite(images.flatten(1))).any(1).nonzero().flatten().tolist()
        raise DataError(f"images {bad[:10]} of the batch hold NaN or infinity: remove or mend them")
    if reach is not None and largest > FAR * reach:
        warn(
            f"images reach {largest:.4g}, the network was calibrated on images within about "
            f"{reach:.4g}: normalise them as in training",
            stacklevel=3,
        )
    elif reach is None and looks_like_bytes(images):
        warn(
            f"images are whole numbers up to {largest:g}: divide them by 255 and normalise them as "
            "in training, unless the network was trained on such numbers",
            stacklevel=3,
        )
    return images


def input_reach(graph_module: fx.GraphModule) -> float | None:
    """The largest magnitude of images that the quantizer right behind them takes; None without."""
    for node in graph_module.graph.nodes:
        layer: Any = layer_of(graph_module, node)
        if hasattr(layer, "level_bounds") and node.args[0].op == "placeholder":
            return float(layer.scale) * max(map(abs, layer.level_bounds))
    return None


def extremes(numbers: Tensor) -> tuple[float, float]:
    """The least and the largest of some numbers; NaN where one is, 0 where there are none.

    On a CPU by one thread: waking torch's others costs more, and they go on spinning for
    milliseconds beside what comes next.

    Example:
        >>> extremes(torch.tensor([2.0, -1.0])), extremes(torch.zeros(0))
        ((-1.0, 2.0), (0.0, 0.0))
    """
    if not numbers.numel():
        return 0.0, 0.0
    numbers = numbers.detach()
    if numbers.device.type == "cpu" and numbers.dtype in (torch.float32, torch.float64):
        array = numbers.numpy()
        return float(array.min()), float(array.max())
    least, most = numbers.aminmax()
    return float(least), float(most)


def looks_like_bytes(images: Tensor) -> bool:
    """Whether floats are whole numbers from 0 to 255 that are no small counts: not normalised.

    Example:
        >>> looks_like_bytes(torch.tensor([0.0, 17.0, 255.0])), looks_like_bytes(torch.ones(3))
        (True, False)
    """
    least, most = extremes(images)
    if least < 0 or not 16 < most <= 255:
        return False
    return bool((images == images.round()).all())


def unused_name(graph_module: fx.GraphModule, name: str) -> str:
    """``name``, or with _1, _2 … where the graph module holds something of that name.

    A name inside a layer is moved beside it: ``act.mul_input`` to ``act_mul_input``.
    """
    *outer, leaf = name.split(".")
    holder: Any = graph_module
    for depth, part in enumerate(outer):
        holder = getattr(holder, part, None)
        if holder is not None and type(holder) is not nn.Module:
            outer, leaf = outer[:depth], "_".join([*outer[depth:], leaf])
            holder = attribute(graph_module, ".".join(outer)) if outer else graph_module
            break
    unused, count = leaf, 0
    while hasattr(holder, unused):
        count += 1
        unused = f"{leaf}_{count}"
    return ".".join([*outer, unused])


def fold_batch_norm_(graph_module: fx.GraphModule) -> None:
    """Fold each batch norm into the convolution or linear that alone feeds it, in place.

    A layer used several times is copied first, so that each use takes its own batch norm. Batch
    norms behind anything else (an addition, a concatenation) stay.
    """
    for node, norm in list(layer_nodes(graph_module, NORMS)):
        producer = source_of(node)
        layer = layer_of(graph_module, producer)
        if not isinstance(layer, WEIGHTED) or len(producer.users) != 1:
            continue
        uses = [item for item, _ in layer_nodes(graph_module, WEIGHTED)]
        if sum(item.target == producer.target for item in uses) > 1:
            name, producer.target = producer.target, unused_name(graph_module, str(producer.target))
            text = f"{name} is shared: each use takes a batch norm of its own and trains apart"
            note_warning(graph_module, f"{text}; batch_norm='keep' keeps one weight")
        elif (twin := _twin(graph_module, producer)) is not None:
            text = f"{producer.target} and {twin} share a weight"
            text = f"{text}: with a batch norm folded into it, they train apart"
            note_warning(graph_module, f"{text}; batch_norm='keep' keeps one weight")
        fuse: Any = fuse_linear_bn_eval if isinstance(layer, nn.Linear) else fuse_conv_bn_eval
        fused = fuse(layer, norm)
        biases = [part.bias for part in (layer, norm) if part.bias is not None]
        fused.bias.requires_grad_(any(item.requires_grad for item in biases or [layer.weight]))
        graph_module.add_submodule(str(producer.target), fused)
        node.replace_all_uses_with(producer)
        graph_module.graph.erase_node(node)
    graph_module.delete_all_unused_submodules()
    graph_module.recompile()


def _twin(graph_module: fx.GraphModule, node: fx.Node) -> str | None:
    """Another layer with the same weight to train, if there is one."""
    weight = graph_module.get_submodule(str(node.target)).get_parameter("weight")
    for item, layer in layer_nodes(graph_module, WEIGHTED):
        if item.target != node.target and layer.weight is weight and weight.requires_grad:
            return str(item.target)
    return None
