"""The C99 file of `c`: a function for each node, static memory, integers alone.

The image comes in as levels, the scores go out as the bits of IEEE 754 binary32 numbers: the
written formula of the read-out, and of sums that no shift was proved for, is worked out on
integers, each operator rounded half to even by itself. Nothing is reserved, `stdint.h` is all that
is included.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..errors import Fault
from .forms.nodes import IntegerForm, Node, Value

LARGEST, SMALLEST = 2.0**60, 2.0**-60  # multipliers for which no step of a formula is subnormal
SILENT = ("encode", "reshape")  # nodes without a function
_TYPES = (("uint8_t", 0, 255), ("int8_t", -128, 127), ("int16_t", -(2**15), 2**15 - 1))
_WIDTH = {"uint8_t": 1, "int8_t": 1, "int16_t": 2, "int32_t": 4, "uint32_t": 4}

_REALS = """
/* A binary32 number as a pair of integers: m times 2^e, 2^23 <= |m| < 2^24, or m = 0. */
typedef struct { int64_t m; int32_t e; } real;

/* The nearest such number to m times 2^e, ties to even. */
static real real_near(int64_t m, int32_t e) {
  uint64_t a = m < 0 ? (uint64_t)-m : (uint64_t)m;
  int32_t s = 0;
  real y = {0, 0};
  if (a == 0) return y;
  while ((a >> s) >= 16777216u) s++;
  if (s > 0) {
    uint64_t rest = a & (((uint64_t)1 << s) - 1), half = (uint64_t)1 << (s - 1);
    a >>= s;
    if (rest > half || (rest == half && (a & 1u))) a++;
    if (a == 16777216u) { a >>= 1; s++; }
  } else {
    while (a < 8388608u) { a <<= 1; s--; }
  }
  y.m = m < 0 ? -(int64_t)a : (int64_t)a;
  y.e = e + s;
  return y;
}

static real real_of(uint32_t bits) {
  int32_t e = (int32_t)((bits >> 23) & 255u);
  int64_t m = (int64_t)(bits & 8388607u);
  if (e) m += 8388608; else e = 1;
  return real_near((bits >> 31) ? -m : m, e - 150);
}

static real real_times(int32_t number, uint32_t bits) {
  real a = real_near(number, 0), b = real_of(bits);
  return real_near(a.m * b.m, a.e + b.e);
}

static real real_plus(real a, real b) {
  int32_t apart;
  if (a.m == 0) return b;
  if (b.m == 0) return a;
  if (a.e < b.e) { real c = a; a = b; b = c; }
  apart = a.e - b.e;
  return apart > 36 ? a : real_near(a.m * ((int64_t)1 << apart) + b.m, b.e);
}
"""
_BITS = """
static uint32_t real_bits(real y) {
  uint32_t a = (uint32_t)(y.m < 0 ? -y.m : y.m);
  if (a == 0) return 0;
  return ((uint32_t)(y.m < 0) << 31) | ((uint32_t)(y.e + 150) << 23) | (a & 8388607u);
}
"""
_LEVEL = """
/* The nearest whole number, ties to even, kept within low and high. */
static int32_t real_level(real y, int32_t low, int32_t high) {
  int64_t a = y.m < 0 ? -y.m : y.m, q;
  if (y.e > 6) return y.m < 0 ? low : high;
  if (y.e >= 0) {
    q = a << y.e;
  } else if (y.e < -25) {
    q = 0;
  } else {
    int64_t half = (int64_t)1 << (-y.e - 1), rest = a & (2 * half - 1);
    q = a >> -y.e;
    if (rest > half || (rest == half && (q & 1))) q++;
  }
  if (y.m < 0) q = -q;
  return q < low ? low : q > high ? high : (int32_t)q;
}
"""


def refused(form: IntegerForm) -> list[Fault]:
    """Multipliers for which a step of a formula could leave the normal range of binary32."""
    faults = []
    for node in form.nodes:
        for name, array in node.arrays.items():
            if not array.is_floating_point() or node.op == "encode":
                continue
            size = array.abs()
            if bool(((size > LARGEST) | ((size < SMALLEST) & (size > 0))).any()):
                faults.append(Fault(node.name, name, "multipliers beyond 2^-60 … 2^60"))
    return faults


# --------------------------------------------------------------------------------------- writing


def write_c(form: IntegerForm, path: Path) -> None:
    """Write the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        file.writelines(_lines(form))


def _lines(form: IntegerForm) -> Iterable[str]:
    encode, last = form.node("encode"), form.nodes[-1]
    levels = form.values[encode.out]
    yield (
        "/* A converted network, one time step, on integers alone. Written by mt-convert.\n"
        f"   levels: {levels.low} to {levels.high}, the image as clamp(rint(x / scale)); "
        f"shape {list(levels.shape)}, row-major.\n"
        "   scores: the bits of IEEE 754 binary32 numbers, one for each class. */\n"
        "#include <stdint.h>\n"
    )
    yield _REALS + _BITS
    if any("levels" in node.arrays for node in form.nodes):
        yield _LEVEL
    for node in form.nodes:
        if node.op not in SILENT:
            yield from _FUNCTIONS[node.op](form, node)
    yield from _main(form, encode, last)


def c_type(value: Value) -> str:
    """The narrowest type of a value.

    Example:
        >>> c_type(Value((1,), 0, 15)), c_type(Value((1,), -9000, 9000))
        ('uint8_t', 'int16_t')
    """
    fitting = [name for name, low, high in _TYPES if low <= value.low and value.high <= high]
    return fitting[0] if fitting else "int32_t"


def _array(name: str, numbers: Tensor, kind: str | None = None) -> str:
    """A constant array of the narrowest type, or bits of real numbers."""
    flat = numbers.detach().contiguous().flatten()
    if flat.is_floating_point():
        whole, kind = flat.numpy().view(np.uint32), "uint32_t"
        text = [f"{int(number)}u" for number in whole]
    else:
        flat = flat if flat.numel() else torch.zeros(1, dtype=torch.int32)
        ends = Value((), int(flat.min()), int(flat.max()))
        kind, text = kind or c_type(ends), [_literal(number) for number in flat.tolist()]
    rows = (", ".join(text[start : start + 16]) for start in range(0, len(text), 16))
    return f"static const {kind} {name}[{len(text)}] = {{\n " + ",\n ".join(rows) + "};\n"


def _literal(number: int) -> str:
    return str(number) if number > -(2**31) else "(-2147483647 - 1)"


def _head(form: IntegerForm, node: Node) -> str:
    """The first line of a node's function."""
    name = re.sub(r"(?i)(flo)(at)|(dou)(ble)|\*/|/\*", r"\1\3_\2\4", node.name)
    inputs = [
        f"const {c_type(form.values[index])} *x{place}" for place, index in enumerate(node.inputs)
    ]
    out = "uint32_t" if node.op == "read_out" else c_type(form.values[node.out])
    words = ", ".join([*inputs, f"{out} *y"])
    return f"\n/* {node.op}: {name} */\nstatic void step_{node.out}({words}) {{\n"


def _loops(shape: Sequence[int], body: str) -> str:
    """``body`` for every place; i0, i1, … and the flat ``at`` say which."""
    text, pad = "  int32_t at = 0;\n", "  "
    for axis, size in enumerate(shape):
        text += f"{pad}for (int32_t i{axis} = 0; i{axis} < {size}; i{axis}++)\n"
        pad += "  "
    return f"{text}{pad}{{ {body} at++; }}\n"


def _index(shape: Sequence[int], of: Sequence[int]) -> str:
    """The flat place in an array of shape ``of`` that a place of ``shape`` reads."""
    parts, stride = [], 1
    for axis in reversed(range(len(of))):
        if of[axis] > 1:
            loop = f"i{axis + len(shape) - len(of)}"
            parts.append(loop if stride == 1 else f"{loop} * {stride}")
        stride *= of[axis]
    return " + ".join(reversed(parts)) or "0"


def _windows(form: IntegerForm, node: Node, plane: str, body: str, before: str, after: str) -> str:
    """Loops over windows of up to three axes; ``body`` where a tap meets an entry: @ is its place,
    in the plane of that name."""
    source, value = form.values[node.inputs[0]], form.values[node.out]
    axes = len(value.shape) - 1
    names = ("kernel", "stride", "padding", "dilation")
    kernel, stride, padding, dilation = (node.settings[name] for name in names)
    text, pad = "", "  "
    for axis in range(axes + 1):
        text += f"{pad}for (int32_t i{axis} = 0; i{axis} < {value.shape[axis]}; i{axis}++)\n"
        pad += "  "
    text += f"{pad}{{\n{pad}{before}\n"
    inner = pad + "  "
    if node.op == "conv":
        text += f"{pad}for (int32_t c = 0; c < {node.arrays['weight'].shape[1]}; c++)\n"
    for axis in range(axes):
        text += f"{pad}for (int32_t k{axis} = 0; k{axis} < {kernel[axis]}; k{axis}++)\n"
    text += f"{pad}{{\n"
    place = plane
    for axis, size in enumerate(source.shape[1:]):
        text += (
            f"{inner}int32_t a{axis} = i{axis + 1} * {stride[axis]} - {padding[axis]}"
            f" + k{axis} * {dilation[axis]};\n"
        )
        place = f"({place}) * {size} + a{axis}"
    outside = " || ".join(
        f"a{axis} < 0 || a{axis} >= {size}" for axis, size in enumerate(source.shape[1:])
    )
    text += f"{inner}if ({outside}) continue;\n{inner}{body.replace('@', place)}\n{pad}}}\n"
    return f"{text}{pad}{after}\n{pad}}}\n"


def _conv(form: IntegerForm, node: Node) -> Iterable[str]:
    weight, groups = node.arrays["weight"], node.settings["groups"]
    yield _array(f"w_{node.out}", weight, "int8_t")
    yield _head(form, node)
    yield "  int32_t n = 0;\n"
    tap = f"i0 * {weight.shape[1]} + c"
    for axis, size in enumerate(weight.shape[2:]):
        tap = f"({tap}) * {size} + k{axis}"
    plane = f"i0 / {len(weight) // groups} * {weight.shape[1]} + c"
    body = f"sum += (int32_t)w_{node.out}[{tap}] * x0[@];"
    yield _windows(form, node, plane, body, "int32_t sum = 0;", _store(form, node, "sum"))
    yield "}\n"


def _store(form: IntegerForm, node: Node, what: str) -> str:
    return f"y[n++] = ({c_type(form.values[node.out])}){what};"


def _pool(form: IntegerForm, node: Node) -> Iterable[str]:
    largest = node.op == "max_pool"
    yield _head(form, node)
    yield "  int32_t n = 0;\n"
    before = f"int32_t best = {'-2147483647' if largest else '0'};"
    body = "if (x0[@] > best) best = x0[@];" if largest else "best += x0[@];"
    yield _windows(form, node, "i0", body, before, _store(form, node, "best"))
    yield "}\n"


def _linear(form: IntegerForm, node: Node) -> Iterable[str]:
    weight = node.arrays["weight"]
    rows = form.values[node.out].size // len(weight)
    yield _array(f"w_{node.out}", weight, "int8_t")
    yield _head(form, node)
    store = f"y[r * {len(weight)} + o] = ({c_type(form.values[node.out])})sum;"
    inside = weight.shape[1]
    yield (
        f"  for (int32_t r = 0; r < {rows}; r++)\n"
        f"    for (int32_t o = 0; o < {len(weight)}; o++) {{\n"
        "      int32_t sum = 0;\n"
        f"      for (int32_t c = 0; c < {inside}; c++)\n"
        f"        sum += (int32_t)w_{node.out}[o * {inside} + c] * x0[r * {inside} + c];\n"
        f"      {store}\n    }}\n}}\n"
    )


def _gather(form: IntegerForm, node: Node) -> Iterable[str]:
    index, value = node.arrays["index"], form.values[node.out]
    yield _array(f"g_{node.out}", index, "int32_t")
    yield _head(form, node)
    yield f"  for (int32_t n = 0; n < {value.size}; n++) {{\n"
    yield f"    int32_t from = g_{node.out}[n];\n"
    kind, start = c_type(value), 1
    for place, source in enumerate(node.inputs):
        end = start + form.values[source].size
        yield (
            f"    if (from >= {start} && from < {end}) y[n] = ({kind})x{place}[from - {start}];\n"
        )
        start = end
    yield "    if (from == 0) y[n] = 0;\n  }\n}\n"


def _reduce(form: IntegerForm, node: Node) -> Iterable[str]:
    source, value = form.values[node.inputs[0]], form.values[node.out]
    kept = [
        1 if axis + 1 in node.settings["axes"] else size for axis, size in enumerate(source.shape)
    ]
    where = _index(source.shape, kept)
    kind = c_type(value)
    largest = node.op == "max"
    first = value.low if largest else 0
    join = (
        f"if (x0[at] > y[{where}]) y[{where}] = ({kind})x0[at];"
        if largest
        else f"y[{where}] = ({kind})(y[{where}] + x0[at]);"
    )
    yield _head(form, node)
    yield f"  for (int32_t n = 0; n < {value.size}; n++) y[n] = {_literal(first)};\n"
    yield _loops(source.shape, join) + "}\n"


def _scale(form: IntegerForm, node: Node) -> Iterable[str]:
    value, factor = form.values[node.out], node.arrays["factor"]
    yield _array(f"f_{node.out}", factor, "int32_t")
    yield _head(form, node)
    where = _index(value.shape, tuple(factor.shape))
    body = f"y[at] = ({c_type(value)})(x0[at] * f_{node.out}[{where}]);"
    yield _loops(value.shape, body) + "}\n"


def _formula(form: IntegerForm, node: Node, shape: Sequence[int]) -> tuple[str, str]:
    """Arrays and statements that leave a written sum in ``real t``."""
    arrays, steps, out = "", [], node.out
    for name in [f"multiplier_{index}" for index in range(len(node.inputs))]:
        arrays += _array(f"{name}_{out}", node.arrays[name])

    def entry(name: str) -> str:
        return f"{name}_{out}[{_index(shape, tuple(node.arrays[name].shape))}]"

    steps.append(f"real t = real_times(x0[at], {entry('multiplier_0')});")
    if "bias" in node.arrays:
        arrays += _array(f"bias_{out}", node.arrays["bias"])
        steps.append(f"t = real_plus(t, real_of({entry('bias')}));")
    for index in range(1, len(node.inputs)):
        steps.append(f"t = real_plus(t, real_times(x{index}[at], {entry(f'multiplier_{index}')}));")
    if "offset" in node.arrays:
        arrays += _array(f"offset_{out}", node.arrays["offset"])
        steps.append(f"t = real_plus(t, real_of({entry('offset')}));")
    return arrays, " ".join(steps)


def _fire(form: IntegerForm, node: Node) -> Iterable[str]:
    value, out = form.values[node.out], node.out
    kind, arrays = c_type(value), node.arrays
    if "levels" in arrays:
        text, steps = _formula(form, node, value.shape)
        yield text + _array(f"levels_{out}", arrays["levels"]) + _head(form, node)
        low, high = node.settings["low"], node.settings["high"]
        shift = f"real_level(t, {low}, {high}) {'-' if low >= 0 else '+'} {abs(low)}"
        yield _loops(value.shape, f"{steps} y[at] = ({kind})levels_{out}[{shift}];") + "}\n"
        return
    thresholds, place = arrays["thresholds"], arrays["place"]
    count = thresholds.shape[1]
    yield _array(f"t_{out}", thresholds, "int32_t")
    falls = arrays.get("falls")
    if falls is not None:
        yield _array(f"d_{out}", falls, "int32_t")
    row = _index(value.shape, tuple(place.shape))
    if not torch.equal(place.flatten(), torch.arange(place.numel()).int()):
        yield _array(f"c_{out}", place)
        row = f"c_{out}[{row}]"
    steps = f"const int32_t c = {row}; const int32_t *t = t_{out} + c * {count}; "
    terms = []
    for index in range(len(node.inputs)):
        factor = arrays[f"factor_{index}"]
        if bool((factor == 1).all()):
            terms.append(f"x{index}[at]")
            continue
        yield _array(f"f_{out}_{index}", factor, "int32_t")
        terms.append(f"x{index}[at] * f_{out}_{index}[c]")
    compared = " + ".join(terms)
    steps += f"const int32_t u = {compared}; int32_t k = 0; "
    if node.settings["search"]:  # the cascade of a binary ladder: its bits, the largest first
        top = 1 << max(count.bit_length() - 1, 0)
        steps += (
            f"for (int32_t bit = {top}; bit; bit >>= 1) "
            f"if (k + bit <= {count} && u >= t[k + bit - 1]) k += bit; "
        )
    else:
        steps += f"while (k < {count} && u >= t[k]) k++; "
    if falls is not None:  # where a function's level falls
        width = falls.shape[1]
        steps += f"const int32_t *d = d_{out} + c * {width}; int32_t l = 0; "
        steps += f"while (l < {width} && u >= d[l]) l++; k -= l; "
    yield _head(form, node)
    yield _loops(value.shape, f"{steps}y[at] = ({kind})(k + {_operand(node.settings['first'])});")
    yield "}\n"


def _operand(number: int) -> str:
    """A number behind an operator."""
    return f"({number})" if number < 0 else str(number)


def _read_out(form: IntegerForm, node: Node) -> Iterable[str]:
    shape = form.values[node.inputs[0]].shape
    text, steps = _formula(form, node, shape)
    yield text + _head(form, node)
    yield _loops(shape, f"{steps} y[at] = real_bits(t);") + "}\n"


_FUNCTIONS: dict[str, Callable[[IntegerForm, Node], Iterable[str]]] = {
    "conv": _conv,
    "max_pool": _pool,
    "sum_pool": _pool,
    "linear": _linear,
    "gather": _gather,
    "max": _reduce,
    "sum": _reduce,
    "scale": _scale,
    "fire": _fire,
    "read_out": _read_out,
}


def _main(form: IntegerForm, encode: Node, last: Node) -> Iterable[str]:
    """The network: functions in order, values in memory that others left."""
    names, sizes = _memory(form, encode)
    for width, size in sizes.items():
        if size:
            kind = {1: "uint8_t", 2: "int16_t", 4: "int32_t"}[width]
            yield f"\nstatic {kind} memory_{8 * width}[{size}];"
    classes = form.values[last.inputs[0]].size
    levels = form.values[encode.out]
    yield (
        f"\n\nvoid network_run(const {c_type(levels)} levels[{levels.size}], "
        f"uint32_t scores[{classes}]);\nint32_t network_class(const uint32_t scores[{classes}]);\n"
        f"\nvoid network_run(const {c_type(levels)} levels[{levels.size}], "
        f"uint32_t scores[{classes}]) {{\n"
    )
    for node in form.nodes:
        if node.op in SILENT:
            continue
        words = [names[index] for index in node.inputs]
        out = "scores" if node is last else names[node.out]
        yield f"  step_{node.out}({', '.join([*words, out])});\n"
    yield (
        "}\n\n/* The first of the largest scores. */\n"
        f"int32_t network_class(const uint32_t scores[{classes}]) {{\n"
        "  int32_t best = 0;\n  int64_t most = INT64_MIN;\n"
        f"  for (int32_t k = 0; k < {classes}; k++) {{\n"
        "    const int64_t size = (int64_t)(scores[k] & 2147483647u);\n"
        "    const int64_t score = (scores[k] >> 31) ? -size : size;\n"
        "    if (score > most) { most = score; best = k; }\n  }\n  return best;\n}\n"
    )


def owners(form: IntegerForm) -> dict[int, int]:
    """For each value the one whose memory it lies in: that of which it is another shape."""
    owner: dict[int, int] = {}
    for node in form.nodes:
        owner[node.out] = owner[node.inputs[0]] if node.op == "reshape" else node.out
    return owner


def _memory(form: IntegerForm, encode: Node) -> tuple[dict[int, str], dict[int, int]]:
    """An expression for each value, and how many numbers of each width the memory has."""
    owner = owners(form)
    last_use: dict[int, int] = {}
    for step, node in enumerate(form.nodes):
        if node is not encode:
            last_use |= {owner[index]: step for index in node.inputs}
    live: list[tuple[int, int, int, int]] = []  # width, start, end, last step
    sizes = {1: 0, 2: 0, 4: 0}
    names = {encode.out: "levels"}
    for step, node in enumerate(form.nodes[:-1]):
        if node.op == "encode":
            continue
        if owner[node.out] != node.out:
            names[node.out] = names[owner[node.out]]
            continue
        kind, size = c_type(form.values[node.out]), form.values[node.out].size
        width, start = _WIDTH[kind], 0
        live = [entry for entry in live if entry[3] >= step]
        for _, low, high, _ in sorted(entry for entry in live if entry[0] == width):
            if low - start >= size:
                break
            start = max(start, high)
        live.append((width, start, start + size, last_use.get(node.out, step)))
        sizes[width] = max(sizes[width], start + size)
        place = f"memory_{8 * width}" + (f" + {start}" if start else "")
        names[node.out] = f"(int8_t *)({place})" if kind == "int8_t" else place
    return names, sizes
