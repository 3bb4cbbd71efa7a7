"""The network to convert: a name of timm's registry, and where its weights come from.

Importing this module adds the networks of `cifar` to timm's registry.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import timm
import torch
from pydantic import Field
from torch import Tensor, nn

from ...errors import CheckpointError, Fault, SpecError, did_you_mean, many, near_names
from ...system.foreign_weights import ForeignWeights, load_foreign
from ...system.progress import notice
from ...system.storage import load_tensors, reading
from . import cifar as _registered  # noqa: F401
from . import code

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
    ``kwargs`` go to the network's constructor. ``architecture`` may be ``file.py:Name``, a class or
    function of a file of yours, and ``import_`` (in recipes ``import``) a file that registers
    networks with timm: files that are run as code, and kept by a run. ``rows`` are the rows of the
    weights' head that become its ``classes``: ten of ImageNet's thousand, for images of ten.
    ``from_run`` is the folder of a run whose trained quantized network the quantization starts
    from, in a chain of widths; the float network is not touched by it.

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
    import_: Annotated[str | None, Field(alias="import")] = None
    rows: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        self._check_rows()
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
            raise SpecError(f"{many(faults, 'kwarg is', 'kwargs are')} not the network's", faults)

    def _check_rows(self) -> None:
        """Raise unless the rows can be taken from a head."""
        if self.rows is None:
            return
        object.__setattr__(self, "rows", tuple(self.rows))
        faults = []
        if len(self.rows) != self.classes:
            what = f"are {len(self.rows)}, classes is {self.classes}"
            faults.append(Fault("rows", what, "name one row of the head for each class"))
        if len(set(self.rows)) < len(self.rows) or any(row < 0 for row in self.rows):
            faults.append(Fault("rows", str(list(self.rows)), "allowed: each row once, from 0"))
        if self.checkpoint is None and not self.pretrained:
            hint = "set checkpoint=FILE or pretrained=true, or leave rows out"
            faults.append(Fault("rows", "of weights that are not loaded", hint))
        if faults:
            raise SpecError("no rows of a head can be taken", faults)

    def without_weights(self) -> ModelSpec:
        """The same network, its weights drawn.

        Example:
            >>> spec = ModelSpec("resnet18", classes=2, pretrained=True, rows=(0, 9))
            >>> spec.without_weights() == ModelSpec("resnet18", classes=2)
            True
        """
        return dataclasses.replace(self, checkpoint=None, pretrained=False, rows=None)

    @property
    def code_files(self) -> dict[str, str]:
        """The files of code that it names, by the name that a run keeps them under."""
        return code.code_files(self.architecture, self.import_)

    @property
    def short_name(self) -> str:
        """What tables call the network: its architecture, without the file that it is in."""
        own = code.split_architecture(self.architecture)
        return own[1] if own else self.architecture


def model_faults(spec: ModelSpec) -> Iterator[Fault]:
    """What is wrong with the name of the architecture, or with the files that are to make it, which
    are run for it."""
    own = list(code.faults(spec.code_files, spec.architecture))
    yield from own
    if own or code.split_architecture(spec.architecture) is not None:
        return
    if (unknown := architecture_fault(spec.architecture)) is not None:
        yield replace(unknown, where=f"model.{unknown.where}")


def build(
    spec: ModelSpec, *, seed: int = 0, image_size: int | None = None, given: bool = True
) -> nn.Module:
    """`build_described` without the description.

    Example:
        >>> ann = build(ModelSpec("digits_cnn", classes=10, channels=1))
        >>> ann(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 10])
    """
    return build_described(spec, seed=seed, image_size=image_size, given=given)[0]


def build_described(
    spec: ModelSpec, *, seed: int = 0, image_size: int | None = None, given: bool = True
) -> tuple[nn.Module, dict[str, Any]]:
    """Make the network and load its weights; untrained ones are drawn from ``seed``. ``given``:
    the user named the files of code that ``spec`` names, so that they may be run.

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
    if spec.import_ is not None:
        code.run_file(spec.import_, given=given)
    own = code.split_architecture(spec.architecture)
    fault = None if own else architecture_fault(spec.architecture)
    if fault is not None:
        raise SpecError("cannot build the model", [fault])
    if own:
        return _own(spec, own, seed, image_size, given)
    spec = _for_size(spec, image_size)
    if spec.checkpoint is None:
        source = "the hub" if spec.pretrained else f"drawn from seed {seed}"
        model = _create(spec, pretrained=spec.pretrained and spec.rows is None, seed=seed)
        if spec.rows is not None:
            whole = _create(spec, pretrained=True, seed=seed, own_head=True)
            model.load_state_dict(_take_rows(model, whole.state_dict(), spec.rows, source))
            return model, {"weights": source, "rows": list(spec.rows)}
        return model, {"weights": source}
    return _with_weights(_create(spec, pretrained=False, seed=seed), spec)


def _own(
    spec: ModelSpec, own: tuple[str, str], seed: int, image_size: int | None, given: bool
) -> tuple[nn.Module, dict[str, Any]]:
    """A network that a file of the user's makes, with its weights."""
    if spec.pretrained:
        fault = Fault(
            "model.pretrained", "true", f"{own[1]} has no weights on the hub: leave it out"
        )
        raise SpecError("cannot build the model", [fault])
    settings = {"num_classes": spec.classes, "in_chans": spec.channels, **spec.kwargs}
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = code.create(*own, settings, given=given)
        if image_size is not None:
            shape = (spec.channels, image_size, image_size)
            code.check_logits(model, shape, spec.classes, own[1])
    if spec.checkpoint is None:
        return model, {"weights": f"drawn from seed {seed}"}
    return _with_weights(model, spec)


def _with_weights(model: nn.Module, spec: ModelSpec) -> tuple[nn.Module, dict[str, Any]]:
    """The model with the weights of its checkpoint, and a description of them."""
    assert spec.checkpoint is not None
    weights = load_foreign(spec.checkpoint)
    try:
        weights = weights.named_as(model.state_dict())
    except CheckpointError as error:
        raise CheckpointError(f"{spec.checkpoint} {error}") from error
    if spec.rows is not None:
        tensors = _take_rows(model, weights.tensors, spec.rows, str(spec.checkpoint))
        weights = replace(weights, tensors=tensors)
    _load_(model, weights, spec)
    if weights.taken or weights.prefix or weights.left_out:
        notice(f"{spec.checkpoint}: {weights}")
    rows = {} if spec.rows is None else {"rows": list(spec.rows)}
    return model, {"weights": spec.checkpoint, **rows, **weights.to_json()}


def _take_rows(
    model: nn.Module, tensors: Mapping[str, Tensor], rows: Sequence[int], where: str
) -> dict[str, Tensor]:
    """The tensors with these rows of the head alone, the head being what timm calls classifier.

    Raises:
        CheckpointError: the head has fewer rows, or there is none.
    """
    heads = getattr(model, "pretrained_cfg", {}).get("classifier") or ()
    heads = (heads,) if isinstance(heads, str) else tuple(heads)
    own = model.state_dict()
    names = [
        name
        for name in tensors
        if name in own and any(name.startswith(f"{head}.") for head in heads)
        if tensors[name].dim() == own[name].dim() and len(own[name]) == len(rows)
    ]
    faults = [
        Fault("model.rows", f"holds row {row}", f"{name} has {len(tensors[name])} rows, from 0")
        for name in names
        for row in rows
        if row >= len(tensors[name])
    ]
    if faults or not names:
        what = f"{where} has no head of which rows could be taken"
        raise CheckpointError(what if not names else f"{where} has a smaller head", faults[:20])
    return {
        name: tensor[list(rows)] if name in names else tensor for name, tensor in tensors.items()
    }


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


def _create(spec: ModelSpec, *, pretrained: bool, seed: int, own_head: bool = False) -> nn.Module:
    """The network from timm, without touching the caller's random state; ``own_head``: with as many
    classes as its weights have."""
    classes = {} if own_head else {"num_classes": spec.classes}
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        try:
            return timm.create_model(
                spec.architecture,
                pretrained=pretrained,
                in_chans=spec.channels,
                **classes,
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
            f"{spec.checkpoint} does not fit {network}, "
            f"{many(faults, 'fault', 'faults')} ({weights}):",
            faults,
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
    """The float network that the first stage of a run left in ``folder``, made by the code that is
    kept there where it is of one's own."""
    kept = {name: str(folder / code.FOLDER / name) for name in spec.code_files}
    own = code.split_architecture(spec.architecture)
    fresh = dataclasses.replace(
        spec.without_weights(),
        import_=kept.get("import.py"),
        architecture=f"{kept['architecture.py']}:{own[1]}" if own else spec.architecture,
    )
    ann = build(fresh, image_size=image_size, given=False)
    path = folder / "model.safetensors"
    with reading(path):
        ann.load_state_dict(load_tensors(path))
    return ann.eval()
