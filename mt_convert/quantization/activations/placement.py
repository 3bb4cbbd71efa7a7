"""Where quantizers of activations stand: at functions, at ReLUs, and in front of what no spikes
would feed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from torch import fx, nn

from ...errors import Fault, SpecError, many
from ...graph.functions import Function, extract, find_functions, replace_
from ...graph.nodes import is_constant, layer_nodes, node_name, unused_name
from ...graph.operations import Operation, operation
from ...graph.rules import OperatorKind, Rule
from ...graph.signals import Signal, nonnegative
from ...system.devices import device_of
from ..spec import ANALOG, LADDER, QuantSpec, Rounding
from .formula import Formula, NotAFunction, clip_formula
from .quant_act import QuantAct

UNBOUNDED = (float("-inf"), float("inf"))
POSITIVE = (0.0, float("inf"))


@dataclass(frozen=True)
class FunctionRow:
    """What became of a function: its place, its operators, and "ladder" or why it stays analog."""

    name: str
    function: str
    taken: str


def quantize_functions_(
    layers: fx.GraphModule, spec: QuantSpec, rules: Mapping[Any, Rule]
) -> tuple[FunctionRow, ...]:
    """Each function of one input becomes a quantizer that knows it, or stays; what became of it."""
    names: dict[fx.Node, str] = {}

    def decide(function: Function) -> str:
        """Why a function stays analog; empty where it does not."""
        root = next(node for node in reversed(function.nodes) if node.op == "call_function")
        path = str(root.meta.get("path") or str(root.target).split(".")[1])
        name = unused_name(layers, path)
        if name != path:
            name = unused_name(layers, f"{path}.{str(root.target).split('.')[1]}")
        names[function.root] = name
        if spec.function_word(name) == ANALOG:
            return "as asked"
        if _only_moved_to_output(function.root, rules):
            return "it is the read-out"
        try:
            _formula(layers, function).samples()
        except NotAFunction as fact:
            return str(fact)
        return ""

    functions, analog = find_functions(layers, decide, rules)
    rows = [
        FunctionRow(names.get(node, node_name(node)), str(item), reason)
        for node, (item, reason) in analog.items()
    ]
    for function in functions:  # the last first: names were given in this order
        name = unused_name(layers, names[function.root])
        formula = _formula(layers, function)
        positive = _nonnegative_function(layers, function, rules)
        bits = _act_bits(spec, name, spec.act_bits if positive else max(spec.act_bits, 2))
        clip = POSITIVE if positive else UNBOUNDED
        formula.half_up = spec.rounding is Rounding.HALF_UP
        act = _quant_act(layers, bits, clip, spec, name, formula=formula)
        rows.append(FunctionRow(name, str(function), LADDER))
        replace_(layers, function, name, act)
    return tuple(reversed(rows))


def _formula(layers: fx.GraphModule, function: Function) -> Formula:
    """A function with the network's constants."""
    graph = extract(layers, function)
    return Formula(graph, str(function), function.channels, function.axis)


def _nonnegative_function(
    layers: fx.GraphModule, function: Function, rules: Mapping[Any, Rule]
) -> bool:
    """Whether a function never falls below 0: by its rules, or in all its samples."""
    if nonnegative(layers, function.root, rules):
        return True
    return bool((_formula(layers, function).samples().values >= 0).all())


def _only_moved_to_output(root: fx.Node, rules: Mapping[Any, Rule]) -> bool:
    """Whether a value is the read-out itself, moved at most."""
    stack = list(root.users)
    while stack:
        user = stack.pop()
        if user.op == "output":
            continue
        rule = rules.get(user.target) if user.op == "call_function" else None
        if rule is None or rule.kind is not OperatorKind.MOVE:
            return False
        stack.extend(user.users)
    return True


def quantize_activations_(layers: fx.GraphModule, spec: QuantSpec) -> None:
    """Each activation becomes a quantizer of the same name."""
    for node, layer in list(layer_nodes(layers, (nn.ReLU, nn.Hardtanh))):
        if is_constant(node):
            continue
        clip = POSITIVE if isinstance(layer, nn.ReLU) else (layer.min_val, layer.max_val)
        name = str(node.target)
        bits = _act_bits(spec, name, spec.act_bits)
        layers.add_submodule(name, _quant_act(layers, bits, clip, spec, name))


def _quant_act(
    layers: fx.GraphModule,
    bits: int,
    clip: tuple[float, float],
    spec: QuantSpec,
    name: str,
    encodes_input: bool = False,
    formula: Formula | None = None,
) -> QuantAct:
    """A quantizer on the device of the network; 1 bit cannot be signed."""
    if clip[0] < 0 and bits < 2:
        hint = "raise act_bits to 2, or give the layer its own bits under overrides"
        raise SpecError("1-bit activations cannot be signed", [Fault(name, "1 bit, signed", hint)])
    act = QuantAct(bits, clip, spec.scale, encodes_input, spacing=spec.spacing, formula=formula)
    up = spec.rounding is Rounding.HALF_UP and not encodes_input
    if up and formula is None and act.gaps is None:
        act = QuantAct(bits, clip, spec.scale, encodes_input, formula=clip_formula(*clip))
    return act.to(device_of(layers))


def quantize_inputs_(layers: fx.GraphModule, spec: QuantSpec, rules: Mapping[Any, Rule]) -> None:
    """A quantizer on the image, and on each current that a weighted layer or a product reads."""
    rules = {**rules, QuantAct: Rule(OperatorKind.NEURON)}
    nodes = list(layers.graph.nodes)
    rows: dict[fx.Node, Operation] = {}
    if spec.input_bits is not None:
        place = next(place for place, node in enumerate(nodes) if node.op == "placeholder")
        image = _quant_act(layers, spec.input_bits, UNBOUNDED, spec, "input_quant", True)
        name = unused_name(layers, "input_quant")
        nodes.insert(place + 1, _insert_(layers, nodes[place], name, image))
    for node in nodes:
        row = rows[node] = operation(layers, node, rows, rules)
        if row.kind not in (OperatorKind.WEIGHTED, OperatorKind.PRODUCT):
            continue
        for source in row.inputs:
            if rows[source].signal is Signal.CURRENT:
                call = _quantize_current_(layers, source, row, spec, rules)
                rows[call] = operation(layers, call, rows, rules)


def _quantize_current_(
    layers: fx.GraphModule,
    source: fx.Node,
    reader: Operation,
    spec: QuantSpec,
    rules: Mapping[Any, Rule],
) -> fx.Node:
    """Put a quantizer on a current, named after the first layer or product that reads it."""
    owner = reader.name
    if reader.layer is None:
        path, operator = reader.node.meta.get("path") or "", reader.operator.split(".")[1]
        owner = f"{path}.{operator}".lstrip(".")
    name = unused_name(layers, f"{owner}_input")
    positive = nonnegative(layers, source, rules)
    bits = _act_bits(spec, name, spec.act_bits if positive else max(spec.act_bits, 2))
    quantizer = _quant_act(layers, bits, POSITIVE if positive else UNBOUNDED, spec, name)
    return _insert_(layers, source, name, quantizer)


def _insert_(layers: fx.GraphModule, source: fx.Node, name: str, quantizer: QuantAct) -> fx.Node:
    """Put a quantizer behind ``source``; all that read ``source`` then read the quantizer."""
    layers.add_submodule(name, quantizer)
    users = [user for user in source.users if not is_constant(user)]
    with layers.graph.inserting_after(source):
        call = layers.graph.call_module(name, (source,))
    call.meta = {"path": name}
    for user in users:
        user.replace_input_with(source, call)
    return call


def _act_bits(spec: QuantSpec, name: str, default: int) -> int:
    """The bits of an activation: the last override that matches and names them, or the default."""
    named = override(spec, name, "act_bits")
    return default if named is None else named


def override(spec: QuantSpec, name: str, kind: str) -> int | None:
    """The bits of the last override that matches and names ``kind``."""
    for item in reversed(spec.overrides):
        value: int | None = getattr(item, kind)
        if value is not None and fnmatchcase(name, item.pattern):
            return value
    return None


def check_function_names(functions: Sequence[FunctionRow], spec: QuantSpec) -> None:
    """A pattern that matches no function is a misspelt name; the one for all may match none."""
    assert isinstance(spec.functions, Mapping)
    names = [row.name for row in functions]
    shown = ", ".join(names[:12]) + (" …" if len(names) > 12 else "")
    faults = [
        Fault(pattern, "matches no function", f"functions: {shown or 'none'}")
        for pattern in spec.functions
        if pattern != "*" and not any(fnmatchcase(name, pattern) for name in names)
    ]
    if faults:
        raise SpecError(f"{many(faults, 'name', 'names')} under functions", faults)
