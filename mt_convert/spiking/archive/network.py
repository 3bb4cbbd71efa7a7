"""`save` and `load`: quantized and spiking networks as safetensors beside JSON, never pickle.

A folder holds ``config.json`` (the graph, each layer's settings, how it was quantized) and
``model.safetensors``, as the Hub knows models (`layouts`). The JSON names the digest of both, so
that two halves of different networks are never read as one, nor a file that was changed (a W4A4
file does not load into a W2A2 network).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import astuple, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, fx, nn

from ...errors import CheckpointError, Fault, SpecError, UnsupportedLayerError, many
from ...graph.float32 import in_float32
from ...graph.leftovers import forget_leftovers
from ...graph.operations import unknown_operators
from ...graph.rules import DEFAULT_RULES, Rule
from ...graph.serialization import graph_from_json, graph_to_json
from ...quantization.activations.placement import FunctionRow
from ...quantization.activations.quant_act import QuantAct
from ...quantization.brevitas_layers import (
    quant_layer_from_json,
    quant_layer_to_json,
    tables_of,
)
from ...quantization.quantize import QuantizedModel
from ...quantization.spec import QuantSpec
from ...quantization.suspicions import not_finite
from ...system.network_files import files_of
from ...system.network_summary import write_summary
from ...system.plain_data import as_type
from ..conversion_report import ConversionReport
from ..model import SpikingModel
from ..presentation import Presentation
from .content import check_content, check_network, check_steps
from .layers import spiking_layer_from_json, spiking_layer_to_json
from .layouts import digest_of, read_description, read_tensors, write_files

NETWORK_SCHEMA = "mt_convert.network/1"
_DAMAGED = (
    *(KeyError, IndexError, TypeError, ValueError, AttributeError, AssertionError),
    *(RuntimeError, OverflowError, MemoryError, ArithmeticError),
)


def save(network: QuantizedModel | SpikingModel, folder: str | Path) -> None:
    """Write a network to a folder; what stood there is replaced only when all is written.

    Raises:
        OutputError: no permission, no space.
        SpecError: weights that hold NaN or infinity.

    Example:
        >>> import tempfile, torch
        >>> from ..convert import convert
        >>> from ...quantization.quantize import quantize
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
        >>> qann = quantize(net, QuantSpec(), calibration=torch.randn(8, 1, 4, 4))
        >>> folder = tempfile.mkdtemp()
        >>> save(convert(qann), folder)
        >>> type(load(folder)).__name__
        'SpikingModel'
    """
    if not isinstance(network, (QuantizedModel, SpikingModel)):
        hint = "its state_dict is torch's to store; save takes what quantize or convert returned"
        raise SpecError(f"save: {type(network).__name__} is no network of ours: {hint}")
    said: ConversionReport | QuantizedModel
    settings: dict[str, Any]
    if isinstance(network, SpikingModel):
        said, kind, to_json = network.report, "snn", spiking_layer_to_json
        settings = {"presentation": str(network.presentation), "whole_window": network.whole_window}
        if network.report.calibrated_T is not None:
            settings["calibrated_T"] = network.report.calibrated_T
        shared = _parameters_to_json(network.layers)
        settings |= {"tied": shared["tied"]} if "tied" in shared else {}
    else:
        said, kind, to_json = network, "qann", quant_layer_to_json
        settings = {"spec": network.spec.to_json(), **_parameters_to_json(network.layers)}
    if said.warnings:
        settings["warnings"] = list(said.warnings)
    if said.float_agreement is not None:
        settings["float_agreement"] = [said.float_agreement, said.float_images]
    if said.functions:
        settings["functions"] = [list(astuple(row)) for row in said.functions]
        settings["unrounded_agreement"] = said.unrounded_agreement
    if said.data_settings:
        settings["data_settings"] = dict(said.data_settings)
    settings["image_shape"] = list(network.image_shape)
    write_network(folder, kind, network.layers, to_json, settings)
    write_summary(folder, files_of(folder), summary_of(network))


def summary_of(network: QuantizedModel | SpikingModel) -> dict[str, Any]:
    """What a network is, as plain data for a reader without torch."""
    if isinstance(network, QuantizedModel):
        spec, warnings = network.spec.to_json(), list(network.warnings)
        return {"kind": "qann", "spec": spec, "warnings": warnings}
    sentences = [line for line in str(network.report).splitlines() if not line.startswith("  ")]
    warnings = list(network.report.warnings)
    said = [line for line in sentences if not line.startswith("warning: ")]
    return {
        **{"kind": "snn", "report": network.report.to_json()},
        **{"sentences": said, "warnings": warnings},
    }


def write_network(
    folder: str | Path,
    kind: str,
    layers: fx.GraphModule,
    to_json: Callable[[nn.Module], dict[str, Any]],
    settings: Mapping[str, Any],
) -> None:
    """Write layers to a folder, with the network's other settings; all of it or nothing.

    Raises:
        OutputError: no permission, no space.
        SpecError: weights that hold NaN or infinity.
    """
    if faults := not_finite(layers):
        raise SpecError(
            f"{many(faults, 'tensor is', 'tensors are')} not finite: nothing was written", faults
        )
    folder = Path(folder)
    tensors = {name: tensor.clone() for name, tensor in layers.state_dict().items()}
    for name, table in tables_of(layers).items():
        tensors |= {f"{name}.{leaf}": item.clone() for leaf, item in table.state_dict().items()}
    called = {str(node.target) for node in layers.graph.nodes if node.op == "call_module"}
    content: dict[str, Any] = {
        "schema": NETWORK_SCHEMA,
        "kind": kind,
        "layers": {name: to_json(layers.get_submodule(name)) for name in sorted(called)},
        "loose": {
            str(node.target): list(_tensor(layers, str(node.target)).shape)
            for node in layers.graph.nodes
            if node.op == "get_attr"
        },
        "graph": graph_to_json(layers),
        **settings,
    }
    prepared = {"input_size": content["image_shape"], **(content.get("data_settings") or {})}
    write_files(folder, content, tensors, {"pretrained_cfg": prepared})


@forget_leftovers()
@in_float32()
def load(folder: str | Path, *, rules: Mapping[Any, Rule] = DEFAULT_RULES) -> Any:
    """The network that `save` wrote, in eval mode on the CPU: a QuantizedModel or a SpikingModel.

    Rules are code and are not stored: a network converted with rules of your own needs them again.

    Raises:
        UnsupportedLayerError: the network holds operators that ``rules`` do not know.
        CheckpointError: files missing, damaged, of different networks, or of another version.
    """
    content, tensors = read_network(folder)
    if content["kind"] == "spiking":
        remedy = "read it with mt_convert.load"
        raise CheckpointError(f"{folder} holds a network trained from scratch: {remedy}")
    with name_file_in_errors(folder):
        return _rebuild(content, tensors, rules).eval()


def read_network(folder: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What `write_network` wrote: the description and the tensors, checked to belong together.

    Raises:
        CheckpointError: files missing, damaged, of different networks, or of another version.
    """
    description, stored = files_of(folder)
    content = read_description(folder)
    if not isinstance(content, dict) or content.get("schema") != NETWORK_SCHEMA:
        raise CheckpointError(
            f"{description} is no network of this version: its schema must be {NETWORK_SCHEMA}"
        )
    tensors = read_tensors(folder)
    with name_file_in_errors(folder):
        check_content(content, tensors)
    if content.pop("digest", None) != digest_of(content, tensors):
        raise CheckpointError(
            f"{folder}: {description.name} and {stored.name} belong to different networks, or one "
            "was changed; write the network again with save"
        )
    return content, tensors


@contextmanager
def name_file_in_errors(folder: str | Path) -> Iterator[None]:
    """What a changed description raises, as one error that names its file."""
    try:
        yield
    except UnsupportedLayerError:
        raise
    except (CheckpointError, SpecError, *_DAMAGED) as error:
        path = files_of(folder)[0]
        headline = getattr(error, "headline", None)
        if headline is None:
            headline = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        raise CheckpointError(
            f"{path} is damaged ({headline})", getattr(error, "faults", ())
        ) from error


def load_quantized(folder: str | Path, spec: QuantSpec) -> QuantizedModel:
    """A stored quantized network that was quantized as ``spec`` says.

    Noise in training is no property of what is stored: the network gets the noise of ``spec``.

    Raises:
        CheckpointError: it is of another kind, or was quantized otherwise; each difference listed.
    """
    network = load(folder)
    if not isinstance(network, QuantizedModel):
        raise CheckpointError(f"{folder} holds a spiking network; expected a quantized one")
    stored, expected = network.spec.to_json(), spec.to_json()
    faults = [
        Fault(
            name,
            f"stored {stored[name]!r}",
            f"wanted {expected[name]!r}: quantize afresh, or ask for the stored",
        )
        for name in expected
        if stored[name] != expected[name] and name not in ("act_noise", "drop_share")
    ]
    if faults:
        raise CheckpointError(f"{folder} was quantized with another QuantSpec", faults)
    qann = QuantizedModel(network.layers, spec)
    qann.warnings = network.warnings
    qann.float_agreement, qann.float_images = network.float_agreement, network.float_images
    qann.functions, qann.unrounded_agreement = network.functions, network.unrounded_agreement
    qann.data_settings = network.data_settings
    return qann.eval()


def _rebuild(
    content: Mapping[str, Any], tensors: Mapping[str, Tensor], rules: Mapping[Any, Rule]
) -> nn.Module:
    """The network from its description, tensors loaded strictly."""
    spiking = content["kind"] == "snn"
    if content["kind"] not in ("snn", "qann"):
        raise CheckpointError(f"kind: {content['kind']!r} is neither snn nor qann")
    layer_from_json = spiking_layer_from_json if spiking else quant_layer_from_json
    layers = rebuild_layers(content, tensors, partial(layer_from_json, rules=rules))
    warnings = tuple(map(str, content.get("warnings", ())))
    agreement = content.get("float_agreement", (None, 0))
    functions = tuple(FunctionRow(*row) for row in content.get("functions", ()))
    unrounded = content.get("unrounded_agreement")
    if spiking:
        presentation = Presentation(content["presentation"])
        whole_window = as_type(bool, content["whole_window"])
        snn = SpikingModel(layers, presentation, whole_window, rules)
        snn.report = replace(
            snn.report,
            warnings=warnings,
            float_agreement=agreement[0],
            float_images=agreement[1],
            calibrated_T=content.get("calibrated_T"),
            functions=functions,
            unrounded_agreement=unrounded,
            data_settings=content.get("data_settings"),
        )
        faults = unknown_operators(snn.operations)
        if faults:
            raise UnsupportedLayerError(
                f"{many(faults, 'operator has', 'operators have')} no rule: pass rules", faults
            )
        check_steps(snn)
        check_network(layers)
        return snn
    qann = QuantizedModel(layers, QuantSpec.from_json(content["spec"]))
    check_network(layers)
    qann.warnings = warnings
    qann.float_agreement, qann.float_images = agreement
    qann.functions, qann.unrounded_agreement = functions, unrounded
    qann.data_settings = content.get("data_settings")
    return qann


def rebuild_layers(
    content: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    from_json: Callable[[Mapping[str, Any]], nn.Module],
) -> fx.GraphModule:
    """The layers of a description, tensors loaded strictly."""
    parts: dict[str, Any] = {name: from_json(item) for name, item in content["layers"].items()}
    trained = content.get("trained", ())
    parts |= {
        name: nn.Parameter(tensors[name]) if name in trained else tensors[name]
        for name in content["loose"]
    }
    layers = graph_from_json(content["graph"], parts, tuple(content["image_shape"]))
    for first, *others in content.get("tied", ()):
        for name in others:
            owner, _, leaf = name.rpartition(".")
            setattr(layers.get_submodule(owner), leaf, layers.get_parameter(first))
    _load_strictly(layers, tensors)
    layers.eval()
    for name in content.get("frozen", ()):
        layers.get_parameter(name).requires_grad_(False)
    return layers


def _parameters_to_json(layers: fx.GraphModule) -> dict[str, Any]:
    """Which constants of the graph are trained, which parameters are frozen, which are one: what
    tensors do not say. Empty lists are left out."""
    names: dict[int, list[str]] = {}
    for name, parameter in layers.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    loose = {str(node.target) for node in layers.graph.nodes if node.op == "get_attr"}
    parameters = dict(layers.named_parameters(remove_duplicate=False))
    kept = {
        "trained": sorted(loose & set(parameters)),
        "frozen": sorted(name for name, item in parameters.items() if not item.requires_grad),
        "tied": [sorted(group) for group in names.values() if len(group) > 1],
    }
    return {key: value for key, value in kept.items() if value}


def _load_strictly(layers: fx.GraphModule, tensors: Mapping[str, Tensor]) -> None:
    """Every tensor to its place, or every misfit in one error."""
    here, tensors = layers.state_dict(), _without_tables(layers, tensors)
    faults = [
        Fault(name, f"shape {list(tensors[name].shape)}", f"expected {list(here[name].shape)}")
        for name in here
        if name in tensors and tensors[name].shape != here[name].shape
    ]
    faults += [
        Fault(name, f"is {tensors[name].dtype}", f"expected {here[name].dtype}")
        for name in here
        if name in tensors and tensors[name].dtype != here[name].dtype
    ]
    if not faults:  # a step not yet calibrated is no entry of `here`, but has its place
        misfits = layers.load_state_dict(dict(tensors), strict=False)
        for what, names in (
            ("missing", misfits.missing_keys),
            ("too many", misfits.unexpected_keys),
        ):
            faults += [Fault(name, what, "the file is of another network") for name in names]
        for layer in layers.modules():
            if isinstance(layer, QuantAct) and layer.stored_table is not None:
                layer.keep_table_()
    if faults:
        raise CheckpointError(
            f"{many(faults, 'tensor does', 'tensors do')} not fit the network", faults
        )


def _without_tables(layers: fx.GraphModule, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors that are part of the state; the thresholds of functions of a quantized network
    are not, and are put in their place here."""
    left = dict(tensors)
    for name, layer in layers.named_modules():
        if not isinstance(layer, QuantAct) or layer.stored_table is None:
            continue
        stored = layer.stored_table.state_dict()
        own = {leaf: left.get(f"{name}.table.{leaf}") for leaf in stored}
        fits = all(
            item is not None
            and item.shape == stored[leaf].shape
            and item.dtype == stored[leaf].dtype
            for leaf, item in own.items()
        )
        if not fits:
            fault = Fault(f"{name}.table", "missing, or of another shape", "the file is damaged")
            raise CheckpointError("the thresholds of a function are not stored", [fault])
        for leaf, item in own.items():
            stored[leaf].copy_(item)
            del left[f"{name}.table.{leaf}"]
    return left


def _tensor(layers: fx.GraphModule, path: str) -> Tensor:
    """A parameter or buffer by its dotted path."""
    owner, _, leaf = path.rpartition(".")
    tensor = getattr(layers.get_submodule(owner), leaf)
    assert isinstance(tensor, Tensor)
    return tensor
