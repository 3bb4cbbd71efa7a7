"""The network to convert: a name of timm's registry, and where its weights come from.

Importing this module adds the networks of `cifar` to timm's registry.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from ...errors import CheckpointError, Fault, SpecError, did_you_mean, near_names
from ...system.foreign_weights import ForeignWeights, load_foreign
from ...system.progress import notice
from ...system.storage import load_tensors, reading
from . import cifar as _registered  # noqa: F401

_NO_KWARGS = {
    **dict.fromkeys(("checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay"), "checkpoint"),
    **{"pretrained": "pretrained", "num_classes": "classes", "in_chans": "channels"},
    "cache_dir": "checkpoint",
}
"""What timm's constructor would take that is no argument of a network, and what says it here."""


@dataclass(frozen=True)
class ModelSpec:
    """Which network: a name of timm's registry, its size, and where its weights come from.

    ``checkpoint`` is a safetensors file or a torch file of plain tensors; it is used instead of the
    hub's weights, even if ``pretrained`` is set. Of several sets in it the averaged one is taken
    (``state_dict_ema`` and the like), as timm does; a wrapper's prefix before all names is removed.
    ``kwargs`` go to the network's constructor. ``from_run`` is the folder of a run whose trained
    quantized network the quantization starts from, in a chain of widths; the float network is not
    touched by it.

    Example:
        >>> ModelSpec("resnet20_cifar", classes=10).channels
        3
    """

    architecture: str
    classes: int
    channels: int = 3
    pretrained: bool = False
    checkpoint: str | None = None
    kwargs: dict[str, Any] = field(default_factory=dict)
    from_run: str | None = None

    def __post_init__(self) -> None:
        for name in ("classes", "channels"):
            if getattr(self, name) < 1:
                raise SpecError(f"{name} is {getattr(self, name)}; allowed: 1 or more")
        faults = [
            Fault(
                f"kwargs.{name}", "is no argument of a network", f"set {_NO_KWARGS[name]} instead"
            )
            for name in self.kwargs
            if name in _NO_KWARGS
        ]
        if faults:
            raise SpecError(f"{len(faults)} kwargs are not the network's", faults)


def build(spec: ModelSpec, *, seed: int = 0, image_size: int | None = None) -> nn.Module:
    """`build_described` without the description.

    Example:
        >>> ann = build(ModelSpec("digits_cnn", classes=10, channels=1))
        >>> ann(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 10])
    """
    return build_described(spec, seed=seed, image_size=image_size)[0]


def build_described(
    spec: ModelSpec, *, seed: int = 0, image_size: int | None = None
) -> tuple[nn.Module, dict[str, Any]]:
    """Make the network and load its weights; untrained ones are drawn from ``seed``.

    Units: ``image_size`` pixels; None for the architecture's own. Architectures that timm builds
        for one size (vision transformers: position embeddings, windows) are built for this one,
        unless ``spec.kwargs`` has an ``img_size``; the hub's weights are fitted to it by timm.
        All others take images of any size.

    Returns:
        A module in training mode: images ``[batch, channels, H, W]`` to logits
        ``[batch, classes]``; and where its weights come from, as plain data.

    Raises:
        SpecError: timm knows no such architecture, or it does not take these ``kwargs``.
        CheckpointError: weights missing, damaged, not finite or of another network (all faults
            listed), or the hub out of reach.
    """
    fault = architecture_fault(spec.architecture)
    if fault is not None:
        raise SpecError("cannot build the model", [fault])
    spec = _for_size(spec, image_size)
    if spec.checkpoint is None:
        source = "the hub" if spec.pretrained else f"drawn from seed {seed}"
        model = _create(spec, pretrained=spec.pretrained, seed=seed)
        return model, {"weights": source}
    weights = load_foreign(spec.checkpoint)
    model = _create(spec, pretrained=False, seed=seed)
    try:
        weights = weights.named_as(model.state_dict())
    except CheckpointError as error:
        raise CheckpointError(f"{spec.checkpoint} {error}") from error
    _load_(model, weights, spec)
    if weights.taken or weights.prefix or weights.left_out:
        notice(f"{spec.checkpoint}: {weights}")
    return model, {"weights": spec.checkpoint, **weights.to_json()}


def weights_path(spec: ModelSpec) -> str | None:
    """The file or folder here that the weights come from, if they do.

    Example:
        >>> weights_path(ModelSpec("local-dir:mine", classes=10))
        'mine'
    """
    local = "local-dir:"
    if spec.checkpoint is None and spec.architecture.startswith(local):
        return spec.architecture.removeprefix(local)
    return spec.checkpoint


def has_random_weights(spec: ModelSpec) -> bool:
    """Whether nothing is loaded into the network.

    Example:
        >>> has_random_weights(ModelSpec("digits_cnn", classes=10))
        True
    """
    return weights_path(spec) is None and not spec.pretrained


def architecture_fault(name: str) -> Fault | None:
    """What is wrong with the name of an architecture, with the nearest names; None if it is known.

    Example:
        >>> architecture_fault("resnet20_cifra").hint[:27]
        'did you mean resnet20_cifar'
    """
    if ":" in name:  # "hf-hub:..." and the like are the hub's to judge
        return None
    architecture, _, tag = name.partition(".")
    if timm.is_model(architecture):
        tags = timm.list_models(f"{architecture}.*", pretrained=True)
        if not tag or name in tags:
            return None
        return Fault(f"architecture {name}", "has no such weights", f"allowed: {', '.join(tags)}")
    hint = did_you_mean(near_names(architecture, timm.list_models()))
    hint = hint or "every name of timm.list_models() is allowed"
    return Fault(f"architecture {name}", "is not in timm's registry", hint)


def _for_size(spec: ModelSpec, image_size: int | None) -> ModelSpec:
    """The spec with ``img_size`` among its arguments, where the architecture is of one size."""
    config = None if ":" in spec.architecture else timm.get_pretrained_cfg(spec.architecture)
    if image_size is None or config is None or not config.fixed_input_size:
        return spec
    return replace(spec, kwargs={"img_size": image_size, **spec.kwargs})


def _create(spec: ModelSpec, *, pretrained: bool, seed: int) -> nn.Module:
    """The network from timm, without touching the caller's random state."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        try:
            return timm.create_model(
                spec.architecture,
                pretrained=pretrained,
                num_classes=spec.classes,
                in_chans=spec.channels,
                **spec.kwargs,
            )
        except TypeError as error:
            raise SpecError(
                f"{spec.architecture} does not take these arguments ({error}): mend model.kwargs, "
                f"now {spec.kwargs}, or model.channels"
            ) from error
        except Exception as error:
            if not pretrained and ":" not in spec.architecture:
                raise
            raise CheckpointError(  # timm and the hub raise a dozen types here
                f"could not get {spec.architecture} from the hub: it needs a network, and the hub "
                "must have weights of this name. Give a local file instead: "
                f"model.checkpoint=FILE. What it said: {type(error).__name__}, "
                f"{(str(error).splitlines() or [''])[0]}"
            ) from error


def _load_(model: nn.Module, weights: ForeignWeights, spec: ModelSpec) -> None:
    """Put weights into the model, or raise one error that lists everything that does not fit."""
    expected, tensors = model.state_dict(), weights.tensors
    network = f"{spec.architecture} with {spec.classes} classes and {spec.channels} input channels"
    if not expected.keys() & tensors.keys():
        faults = [
            Fault("in the file", _some(tensors), f"{len(tensors)} tensors ({weights})"),
            Fault("in the network", _some(expected), f"{len(expected)} tensors"),
        ]
        hint = "name the architecture it was made for, or rename its tensors"
        raise CheckpointError(
            f"{spec.checkpoint} holds no tensor that {network} has: {hint}", faults
        )
    optional = {name for name in expected if name.endswith("num_batches_tracked")}
    faults = [
        Fault(name, "missing", f"expected {_shape(expected[name])}")
        for name in expected
        if name not in tensors and name not in optional
    ]
    for name, tensor in tensors.items():
        if name not in expected:
            faults.append(Fault(name, "unexpected", f"{spec.architecture} has no such tensor"))
        elif name in optional and tensor.shape == expected[name].shape and not tensor.is_complex():
            continue  # counts that averaging made fractions; nothing depends on them here
        elif wrong := _misfit(tensor, expected[name]):
            faults.append(Fault(name, *wrong))
    if faults:
        raise CheckpointError(
            f"{spec.checkpoint} does not fit {network}, {len(faults)} faults ({weights}):", faults
        )
    model.load_state_dict({**{name: expected[name] for name in optional}, **tensors})


def _misfit(tensor: Tensor, expected: Tensor) -> tuple[str, str] | None:
    """Why a tensor cannot take another's place, and what to do; None if it can."""
    if tensor.shape != expected.shape:
        return f"is {_shape(tensor)}", f"expected {_shape(expected)}"
    kind = str(tensor.dtype).removeprefix("torch.")
    wanted = str(expected.dtype).removeprefix("torch.")
    if expected.is_floating_point() != tensor.is_floating_point() or tensor.is_complex():
        if tensor.is_complex() or not torch.equal(
            tensor.to(expected.dtype).to(tensor.dtype), tensor
        ):
            return f"is {kind}", f"expected {wanted}: numbers would be cut"
        if expected.is_floating_point():
            return f"is {kind}", f"expected {wanted}: multiply it by its scale and store floats"
    value = tensor.to(expected.dtype)
    if value.is_floating_point() and not bool(value.isfinite().all()):
        return "holds NaN or infinity", f"in {wanted}: train again or use another file"
    return None


def _some(names: Iterable[str]) -> str:
    """The first few of many names."""
    return ", ".join(list(names)[:4])


def _shape(tensor: Tensor) -> str:
    """A tensor's shape as people write it."""
    return "x".join(map(str, tensor.shape)) or "a single number"


def load_ann(spec: ModelSpec, image_size: int, folder: Path) -> nn.Module:
    """The float network that the first stage of a run left in ``folder``."""
    fresh = dataclasses.replace(spec, checkpoint=None, pretrained=False)
    ann = build(fresh, image_size=image_size)
    path = folder / "model.safetensors"
    with reading(path):
        ann.load_state_dict(load_tensors(path))
    return ann.eval()
