"""`trace`: any model that `torch.export` can follow, as a graph of layers and ATen operators.

Export resolves control flow; functional activations and re-used modules are no special
cases, and the batch size stays free. `decompositions` says which operators are taken apart, `lift`
turns layers back into modules.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, fx, nn

from ...errors import Fault, UnsupportedLayerError
from ..given_network import check_network, user_line, without_torch_log
from ..leftovers import forget_shapes
from ..nodes import set_image_shape
from .agreement import check_agreement, draws_and_writes, refuse
from .decompositions import decomposition_table
from .lift import lift

aten = torch.ops.aten

DROPOUTS = (aten.dropout.default, aten.feature_dropout.default, aten.alpha_dropout.default)


def trace(model: nn.Module, example: Tensor) -> fx.GraphModule:
    """The layer graph of ``model``: same function, batch size free, module names kept.

    Shapes:
        example: [batch, channels, height, width]; only its shape, type and device matter.

    Returns:
        A new graph module in eval mode; ``model`` is untouched. ``graph_module.image_shape`` holds
        (channels, height, width).

    Raises:
        UnsupportedLayerError: `torch.export` cannot follow the model; the message names the line.
            Or the model draws random numbers in eval form, writes state, or is not its graph.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2)).eval()
        >>> graph = trace(net, torch.zeros(2, 1, 4, 4))
        >>> images = torch.randn(5, 1, 4, 4)
        >>> torch.equal(graph(images), net(images)), [name for name, _ in graph.named_children()]
        (True, ['0', '1', '3'])
    """
    check_network(model, example)
    with without_torch_log():
        exported = _export(model, example)
    graph_module = lift(exported.module(check_guards=False))
    forget_shapes(graph_module)
    set_image_shape(graph_module, example.shape[1:])
    for module in graph_module.modules():
        module.training = False
    check_agreement(model, graph_module, example)
    return graph_module


def _export(model: nn.Module, example: Tensor) -> torch.export.ExportedProgram:
    """`torch.export` with a free batch dimension, in functional form, high-level operators kept."""
    model = copy.deepcopy(model).eval()
    # a batch of 1 would be baked in as a constant, so two copies of one image are exported
    example = torch.cat([example[:1], example[:1]])
    batch = torch.export.Dim("batch", min=1, max=2**20)
    try:
        with torch.no_grad(), _plain_attention():
            exported = torch.export.export(model, (example,), dynamic_shapes=({0: batch},))
            refuse(model, draws_and_writes(exported))
            _keep_dropouts_(exported.graph)
            return exported.run_decompositions(dict(decomposition_table()))
    except UnsupportedLayerError:
        raise
    except Exception as error:  # torch.export raises many unrelated types
        raise UnsupportedLayerError(
            f"{type(model).__name__} cannot be traced on an input of shape "
            f"{tuple(example.shape[1:])}",
            [Fault(user_line(error), type(error).__name__, _useful_lines(error))],
        ) from error


@contextmanager
def _plain_attention() -> Iterator[None]:
    """Without the fused forms of nn.MultiheadAttention and nn.TransformerEncoderLayer."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def _keep_dropouts_(graph: fx.Graph) -> None:
    """Dropouts in a form that survives decomposition, in which one that is idle would vanish."""
    for node in [node for node in graph.nodes if node.target in DROPOUTS and node.args[1]]:
        with graph.inserting_before(node):
            pair = graph.call_function(aten.native_dropout.default, (*node.args[:2], True))
            kept = graph.call_function(operator.getitem, (pair, 0))
        value = node.meta["val"]
        pair.meta, kept.meta = {**node.meta, "val": (value, value)}, dict(node.meta)
        name = node.name
        node.replace_all_uses_with(kept)
        graph.erase_node(node)
        kept._rename(name)


def _useful_lines(error: Exception) -> str:
    """The first line of an export error, and the way out."""
    first = (str(error).strip().splitlines() or [""])[0]
    if "Constraints violated" in first:
        hint = (
            "a line fixes the number of images, such as len(x) or a reshape to a written number: "
            "take x.shape[0], or -1"
        )
    elif "data-dependent" in first:
        hint = "rewrite that line without control flow or numbers that depend on the data"
    else:
        hint = "check the image size, or mend that line; the model itself must run on such images"
    return f"{first[:200]}; {hint}"
