"""`trace`: any model that `torch.export` can follow, as a graph of layers and ATen operators.

Floor 2.2. Export resolves control flow; functional activations and re-used modules are no special
cases, and the batch size stays free. `lift` then turns layers back into modules. Attention and
recurrent cells are spelled out in products and functions: each product can be fed by spikes.
"""

from __future__ import annotations

import copy
import operator
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path as FilePath
from typing import Any

import torch
from torch import Tensor, fx, nn

from .errors import Fault, UnsupportedLayerError
from .graph import set_image_shape
from .lift import lift

aten = torch.ops.aten

SPELLED_OUT = (  # operators that hide products, weighted layers or several outputs
    aten.einsum.default,
    aten.lstm.input,
    aten.gru.input,
    aten.rnn_tanh.input,
    aten.rnn_relu.input,
    aten.addcmul.default,
    aten.addcdiv.default,
    aten.baddbmm.default,
    aten.bilinear.default,
    aten.clip.default,
    aten.cosine_similarity.default,
    aten.glu.default,
    aten.inner.default,
    aten.outer.default,
    aten.tensordot.default,
    aten.tile.default,
)
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

    Example:
        >>> net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2)).eval()
        >>> graph = trace(net, torch.zeros(2, 1, 4, 4))
        >>> images = torch.randn(5, 1, 4, 4)
        >>> torch.equal(graph(images), net(images)), [name for name, _ in graph.named_children()]
        (True, ['0', '1', '3'])
    """
    exported = _export(model, example)
    graph_module = lift(exported.module(check_guards=False))
    set_image_shape(graph_module, example.shape[1:])
    for module in graph_module.modules():
        module.training = False
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
            _keep_dropouts_(exported.graph)
            return exported.run_decompositions(dict(_decompositions()))
    except Exception as error:  # torch.export raises many unrelated types
        raise UnsupportedLayerError(
            f"{type(model).__name__} cannot be traced on an input of shape "
            f"{tuple(example.shape[1:])}",
            [Fault(_user_line(error), type(error).__name__, _useful_lines(error))],
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


@cache
def _decompositions() -> Mapping[Any, Callable[..., Any]]:
    """What export spells out: attention in our words, the rest in torch's."""
    known = torch.export.default_decompositions()
    table = {target: known[target] for target in SPELLED_OUT}
    return {
        **table,
        aten.scaled_dot_product_attention.default: _attention,
        aten.instance_norm.default: _instance_norm,
        aten.addmm.default: _addmm,
        aten.hstack.default: lambda tensors: torch.cat(list(tensors), 1),
        aten.lerp.Scalar: lambda start, end, weight: start + (end - start) * weight,
        aten.rrelu.default: lambda x, lower=0.125, upper=1 / 3, *_: torch.nn.functional.leaky_relu(
            x, (lower + upper) / 2
        ),
        aten.var_mean.correction: _var_mean,
        aten.var_mean.dim: lambda x, dim, unbiased=True, keepdim=False: _var_mean(
            x, dim, correction=int(unbiased), keepdim=keepdim
        ),
        aten.zeros_like.default: lambda like, **settings: _filled(like, like.shape, 0, **settings),
        aten.ones_like.default: lambda like, **settings: _filled(like, like.shape, 1, **settings),
        aten.full_like.default: lambda like, value, **settings: _filled(
            like, like.shape, value, **settings
        ),
        aten.new_zeros.default: lambda like, size, **settings: _filled(like, size, 0, **settings),
        aten.new_ones.default: lambda like, size, **settings: _filled(like, size, 1, **settings),
        aten.new_full.default: _filled,
        aten.fill.Scalar: lambda like, value: _filled(like, like.shape, value),
    }


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """softmax(q kᵀ · scale + mask) v, both products on their own. Source: Vaswani et al. 2017."""
    if enable_gqa:
        repeats = query.shape[-3] // key.shape[-3]
        key, value = (item.repeat_interleave(repeats, -3) for item in (key, value))
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    scores = torch.matmul(query, key.transpose(-2, -1)) * factor
    if is_causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if mask is not None and mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=scores.dtype).masked_fill(~mask, float("-inf"))
    weights = torch.softmax(scores if mask is None else scores + mask, -1)
    return torch.matmul(weights, value)


def _instance_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor | None,
    variance: Tensor | None,
    own: bool,
    momentum: float,
    eps: float,
    cudnn: bool,
) -> Tensor:
    """A group norm of groups of one channel, or a batch norm where statistics were stored."""
    if own:
        return torch.group_norm(x, x.shape[1], weight, bias, eps, cudnn)
    return torch.batch_norm(x, weight, bias, mean, variance, False, momentum, eps, cudnn)


def _addmm(x: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    """x · beta + a b · alpha, the product on its own."""
    product = torch.matmul(a, b)
    return (x if beta == 1 else x * beta) + (product if alpha == 1 else product * alpha)


def _var_mean(
    x: Tensor, dim: Any = None, *, correction: float | None = None, keepdim: bool = False
) -> tuple[Tensor, Tensor]:
    """Two operators of one output each."""
    axes = list(range(x.dim())) if dim is None else dim
    return torch.var(x, dim, correction=correction, keepdim=keepdim), x.mean(axes, keepdim)


def _filled(
    like: Tensor, size: Sequence[int], value: float, *, dtype: Any = None, **settings: Any
) -> Tensor:
    """A constant, which an operator on an image that only looks at its shape is."""
    dtype = like.dtype if dtype is None else dtype
    return torch.full(list(size), value, dtype=dtype, device=settings.get("device") or like.device)


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


def _user_line(error: Exception) -> str:
    """File, line and code of the innermost frame outside torch: where the model failed."""
    inside = (str(FilePath(torch.__file__).parent), __file__)
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith(inside)
        and "_dispatch" not in frame.filename
        and FilePath(frame.filename).is_file()
    ]
    if not frames:
        return "torch.export"
    return f"{frames[-1].filename}:{frames[-1].lineno}: {frames[-1].line}"


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
