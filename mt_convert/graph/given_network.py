"""What people hand over as a network: wrappers are taken off, and what no export can follow is told
by name before it is tried."""

from __future__ import annotations

import copy
import inspect
import keyword
import logging
import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path as FilePath
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..errors import Fault, SpecError, UnsupportedLayerError, error_line, many

_WRAPPERS: dict[type, str] = {
    nn.DataParallel: "module",
    nn.parallel.DistributedDataParallel: "module",
    torch.optim.swa_utils.AveragedModel: "module",
    torch._dynamo.OptimizedModule: "_orig_mod",
}
_EMA = ("ModelEma", "ModelEmaV2", "ModelEmaV3")  # timm's, which hold the network as `module`
_TAKEN = {*dir(fx.GraphModule(nn.Module(), fx.Graph()))} - {*dir(nn.Module())} | {"image_shape"}
"""Names that torch.fx gives to parts of a graph module, so that no layer can have them."""
_WRAP = "wrap it in a module whose forward(images) returns the logits alone"


def plain_network(model: Any) -> nn.Module:
    """The network in what was handed over: without DataParallel, torch.compile or averaging.

    Raises:
        SpecError: no network: a class, a function, a name, a state_dict, TorchScript.

    Example:
        >>> plain_network(nn.DataParallel(nn.ReLU()))
        ReLU()
    """
    for wrapper, inner in _WRAPPERS.items():
        if isinstance(model, wrapper):
            return plain_network(getattr(model, inner))
    if type(model).__name__ in _EMA and isinstance(getattr(model, "module", None), nn.Module):
        return plain_network(model.module)
    kind = type(model).__name__
    if isinstance(model, torch.jit.ScriptModule):
        hint = "pass the Python module that it was made from"
        raise SpecError(f"the network is TorchScript ({kind}), which cannot be traced: {hint}")
    if isinstance(model, nn.Module):
        return model
    hint = "pass a network, an instance of nn.Module"
    if isinstance(model, type):
        hint = f"pass an instance: {model.__name__}(...)"
    elif isinstance(model, dict):
        hint = "these are weights: build the network and load_state_dict them"
    elif isinstance(model, str):
        hint = f"pass the network itself, such as timm.create_model({model!r})"
    raise SpecError(f"the network is a {kind}: {hint}")


def check_network(model: nn.Module, example: Tensor) -> None:
    """Refuse by name what export cannot follow: other inputs than images, other results than one
    tensor, names that torch.fx cannot write, images that the network itself does not take.

    Raises:
        UnsupportedLayerError: each fault, with what to do.
    """
    faults = [*_input_faults(model), *_name_faults(model)]
    if not faults:
        faults = [*_result_faults(model, example)]
    if faults:
        raise UnsupportedLayerError(
            f"{type(model).__name__} cannot be traced on an input of shape "
            f"{tuple(example.shape[1:])}: {many(faults, 'fault', 'faults')}",
            faults,
        )


def _input_faults(model: nn.Module) -> Iterator[Fault]:
    """A fault unless the network can be called with images alone."""
    try:
        parameters = list(inspect.signature(model.forward).parameters.values())
    except (TypeError, ValueError):
        return
    required = [
        item.name
        for item in parameters
        if item.default is item.empty and item.kind not in (item.VAR_POSITIONAL, item.VAR_KEYWORD)
    ]
    takes_none = not any(item.kind is not item.VAR_KEYWORD for item in parameters)
    if len(required) > 1 or takes_none:
        what = (
            f"takes {len(required)} inputs ({', '.join(required)})"
            if required
            else "takes no input"
        )
        yield Fault("forward", what, _WRAP)


def _name_faults(model: nn.Module) -> Iterator[Fault]:
    """A fault for each layer or tensor with a name that a traced graph cannot hold."""
    paths = [name for name, _ in model.named_modules(remove_duplicate=False) if name]
    paths += [name for name, _ in model.named_parameters(recurse=False)]
    paths += [name for name, _ in model.named_buffers(recurse=False)]
    for path in paths:
        *outer, leaf = path.split(".")
        what = ""
        if keyword.iskeyword(leaf):
            what = f"{leaf!r} is a word of Python"
        elif not outer and leaf in _TAKEN:
            what = f"{leaf!r} is the name of a part of every traced graph"
        if what:
            yield Fault(path, what, f"call it otherwise in the network, such as {leaf}_")


@torch.no_grad()
def _result_faults(model: nn.Module, example: Tensor) -> Iterator[Fault]:
    """A fault unless the network takes such images, and gives one tensor."""
    network = copy.deepcopy(model).eval()
    devices = [example.device] if example.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        try:
            result = network(torch.cat([example[:1], example[:1]]))
        except Exception as error:  # the network's own, of any type
            hint = "the model itself must run on such images: check the image size"
            if example.dim() == 3:
                hint += "; if this is one image, pass images[None]"
            yield Fault(user_line(error), error_line(error), hint)
            return
    if not isinstance(result, Tensor):
        what = f"a {type(result).__name__}{_inside(result)}, where one tensor is needed"
        yield Fault("output", what, _WRAP)


def user_line(error: Exception) -> str:
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
        return "torch"
    return f"{frames[-1].filename}:{frames[-1].lineno}: {frames[-1].line}"


def _inside(result: Any) -> str:
    """What a result that is no tensor holds."""
    if isinstance(result, dict):
        return f" of {', '.join(map(str, list(result)[:4]))}"
    if isinstance(result, (list, tuple)):
        return f" of {len(result)} values"
    return ""


def idle_parts(model: nn.Module) -> Iterator[str]:
    """A warning for what acts in training alone and is not in the traced graph: stochastic depth,
    dropped blocks; and for dropouts of whole channels, which are kept as plain ones."""
    lost, plain = [], []
    for name, module in model.named_modules():
        drops = re.search("drop|stochastic", type(module).__name__.lower())
        rates = [getattr(module, key, None) for key in ("drop_prob", "p") if drops]
        rate = next((item for item in rates if isinstance(item, float) and item > 0), None)
        if rate is None or next(module.children(), None) is not None:
            continue
        if not isinstance(module, nn.modules.dropout._DropoutNd):
            lost.append(f"{name} ({type(module).__name__} {rate:g})")
        elif not isinstance(module, nn.Dropout):
            plain.append(f"{name} ({type(module).__name__})")
    if lost:
        yield (
            f"{_few(lost)} act in training alone and are left out: quantization-aware training "
            "goes on without them; set their rate to 0 to do so knowingly"
        )
    if plain:
        yield f"{_few(plain)} drop whole channels, and are kept as plain dropouts"


def _few(names: list[str]) -> str:
    """The first names of many."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


@contextmanager
def without_torch_log() -> Iterator[None]:
    """Nothing of what torch logs inside: an export that fails writes thousands of lines.

    Example:
        >>> with without_torch_log():
        ...     logging.getLogger("torch.export").error("2,000 lines")
    """
    names = [name for name in logging.root.manager.loggerDict if name.split(".")[0] == "torch"]
    late = "torch.utils.cpp_extension"  # made on import, when it finds no CUDA
    loggers = [logging.getLogger(name) for name in dict.fromkeys(("torch", late, *names))]
    quiet = [logger for logger in loggers if not logger.disabled]
    for logger in quiet:
        logger.disabled = True
    try:
        yield
    finally:
        for logger in quiet:
            logger.disabled = False
