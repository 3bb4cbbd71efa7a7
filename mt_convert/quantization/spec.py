"""What the quantizers of a network must do, as values. No torch, no Brevitas."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import Any

from ..errors import Fault, SpecError, did_you_mean, many, near_names


class Scale(StrEnum):
    """How quantizer steps are chosen: trained, or powers of two (shifts in hardware)."""

    LEARNED = "learned"
    POWER_OF_TWO = "power_of_two"


class BatchNorm(StrEnum):
    """Batch norm folded into the weights before training, or kept and absorbed at conversion."""

    FOLD = "fold"
    KEEP = "keep"


class ActNoise(StrEnum):
    """What disturbs activation quantizers while they train (`noise.add_noise` has the formulas)."""

    NONE = "none"
    STOCHASTIC = "stochastic"
    ADDITIVE = "additive"
    DROP = "drop"


class Spacing(StrEnum):
    """Where the thresholds of activations lie: one step apart, or each learned by itself."""

    EQUAL = "equal"
    LEARNED = "learned"


class Rounding(StrEnum):
    """To which level an activation goes that lies half-way between two."""

    HALF_EVEN = "half_even"
    HALF_UP = "half_up"


class WeightCode(StrEnum):
    """How weights are stored: equal levels, −1/0/1, or 3×3 kernels out of a few sign patterns."""

    UNIFORM = "uniform"
    TERNARY = "ternary"
    SUBBIT = "subbit"


_CHOICES = {
    "scale": Scale,
    "batch_norm": BatchNorm,
    "act_noise": ActNoise,
    "spacing": Spacing,
    "rounding": Rounding,
    "weights": WeightCode,
}
EQUALIZE = "equalize"
LAYER_BY_LAYER = ("output_steps", "gptq", "match_bn", "correct_bias")
AFTER = (EQUALIZE, *LAYER_BY_LAYER, "reestimate_bn")
"""Corrections without training, by name."""
LADDER, ANALOG = "ladder", "analog"
FUNCTIONS = (LADDER, ANALOG)
"""What becomes of a function such as GELU: thresholds of a neuron, or it stays as it is."""
_MOST_LEARNED = 4  # bits of activations with learned thresholds


@dataclass(frozen=True)
class Override:
    """Other bits for the layers whose name matches a shell pattern.

    Example:
        >>> Override("layer3.*", weight_bits=8).weight_bits
        8
    """

    pattern: str
    weight_bits: int | None = None
    act_bits: int | None = None


@dataclass(frozen=True)
class QuantSpec:
    """What the quantizers of a network must do.

    Units: bits. Weights are signed, symmetric, per output channel: 2 to 8 bits, 2^(b-1)-1 levels on
        each side. Activations are per tensor: 1 to 8 bits, 2^b - 1 levels above 0 after ReLU-like
        functions; 2 to 8 bits and 2^(b-1)-1 levels on each side where values are signed.
        ``weight_bits`` None leaves weights floats, in layers without quantizers of their own;
        ``first_bits`` and ``last_bits`` None mean as ``weight_bits``, ``input_bits`` None an image
        that is not quantized. ``drop_share``, from 0 to 1, belongs to `ActNoise.DROP`. Learned
        ``spacing`` is for activations that never fall below 0, up to 4 bits: those whose values are
        signed, the image, and layers with more bits by an override keep equal steps.
        ``rounding`` half_up takes an activation half-way between two levels to the upper one, as
        neurons do that fire *at* their threshold; half_even to the even one, as torch.round does.
        The image is no neuron and keeps half_even; learned thresholds are reached at equality.
        ``narrow_range`` False gives weights of 4 bits and fewer, whose steps are learned, the level
        -2^(b-1) as well: at 2 bits -2, -1, 0 and 1. ``normalize_weights`` quantizes (w - mean)/std
        of each such layer that a batch norm alone follows, which takes up the scale.
        ``after``: what is done without training, in this order: ``equalize`` (first, since it comes
        before the quantizers), then in one walk beside the float network those of ``output_steps``,
        ``gptq``, ``match_bn`` and ``correct_bias`` that stand together; ``reestimate_bn``. See
        `corrections`.
        ``weights`` other than uniform are for layers without bits of their own (first, last and
        overridden ones have them): ternary for all of these, sub-bit with ``codeword_bits`` (1 to
        9) per kernel for 3×3 convolutions, while others keep uniform ``weight_bits``.
        ``functions`` says by name, or shell pattern, which functions (GELU, SiLU, sigmoid …) stay
        analog; all others become thresholds. "analog" alone is meant for all. The last pattern
        that matches counts.

    Source:
        LSQ (ICLR 2020) for the uneven range; APoT (ICLR 2020), section 2.3, for normalised weights.

    Raises:
        SpecError: all faults of the values at once.

    Example:
        >>> QuantSpec(weight_bits=4, act_bits=4).levels
        15
    """

    weight_bits: int | None = 4
    act_bits: int = 4
    first_bits: int | None = 8
    last_bits: int | None = 8
    input_bits: int | None = 8
    scale: Scale = Scale.LEARNED
    batch_norm: BatchNorm = BatchNorm.KEEP
    act_noise: ActNoise = ActNoise.NONE
    drop_share: float = 0.1
    spacing: Spacing = Spacing.EQUAL
    rounding: Rounding = Rounding.HALF_EVEN
    weights: WeightCode = WeightCode.UNIFORM
    codeword_bits: int = 5
    narrow_range: bool = True
    normalize_weights: bool = False
    after: tuple[str, ...] = ()
    functions: Mapping[str, str] | str = field(default_factory=dict, hash=False)
    overrides: tuple[Override, ...] = field(default=())

    def __post_init__(self) -> None:
        faults = list(self._override_faults())
        faults += [
            Fault(name, repr(value), f"allowed: {low} to 8" + (" or none" if optional else ""))
            for name, value, low, optional in self._bit_fields()
            if not (value is None and optional) and not _whole(value, low, 8)
        ]
        for name, choices in _CHOICES.items():
            value = getattr(self, name)
            if value not in list(choices):
                faults.append(Fault(name, repr(value), "allowed: " + ", ".join(choices)))
            else:
                object.__setattr__(self, name, choices(value))
        if self.spacing == Spacing.LEARNED and _whole(self.act_bits, _MOST_LEARNED + 1, 8):
            hint = f"learned spacing goes up to {_MOST_LEARNED}: lower act_bits, or use equal"
            faults.append(Fault("act_bits", repr(self.act_bits), hint))
        if not _whole(self.codeword_bits, 1, 9):
            faults.append(Fault("codeword_bits", repr(self.codeword_bits), "allowed: 1 to 9"))
        for name in ("narrow_range", "normalize_weights"):
            if not isinstance(getattr(self, name), bool):
                faults.append(Fault(name, repr(getattr(self, name)), "allowed: True or False"))
        if self.normalize_weights and self.batch_norm != BatchNorm.KEEP:
            hint = "a batch norm must stand behind normalised weights: batch_norm keep"
            faults.append(Fault("normalize_weights", "batch norms are folded", hint))
        faults += self._after_faults()
        faults += self._function_faults()
        if not _share(self.drop_share):
            faults.append(Fault("drop_share", repr(self.drop_share), "allowed: 0 to 1"))
        if faults:
            raise SpecError(f"QuantSpec: {many(faults, 'value', 'values')} out of range", faults)

    def _override_faults(self) -> Iterator[Fault]:
        """What is no override, nor a mapping of the fields of one; the others stay."""
        given, taken = self.overrides, list[Override]()
        names = [item.name for item in fields(Override)]
        if isinstance(given, str | Mapping) or not isinstance(given, Sequence):
            yield Fault("overrides", repr(given), "allowed: a list of Override('layer3.*', 8)")
            given = ()
        for place, item in enumerate(given):
            if isinstance(item, Mapping) and "pattern" in item and set(item) <= set(names):
                item = Override(**item)
            if isinstance(item, Override) and isinstance(item.pattern, str):
                taken.append(item)
            else:
                hint = f"allowed: an Override, or a mapping of {', '.join(names)}"
                yield Fault(f"overrides[{place}]", repr(item), hint)
        object.__setattr__(self, "overrides", tuple(taken))

    def _after_faults(self) -> Iterator[Fault]:
        """What is wrong with the corrections: their names, one twice, their order."""
        if isinstance(self.after, str) or not isinstance(self.after, Sequence):
            yield Fault("after", repr(self.after), "allowed: a list of " + ", ".join(AFTER))
            return
        object.__setattr__(self, "after", tuple(self.after))
        for name in self.after:
            if name not in AFTER:
                yield Fault("after", repr(name), "allowed: " + ", ".join(AFTER))
        if len(set(self.after)) < len(self.after):
            yield Fault("after", repr(list(self.after)), "name each once")
        if EQUALIZE in self.after[1:]:
            yield Fault("after", repr(list(self.after)), f"{EQUALIZE} comes first")

    def _function_faults(self) -> Iterator[Fault]:
        """What is no word for functions; one word alone is meant for all of them."""
        given = self.functions
        if given is None or isinstance(given, str):
            given = {} if given is None else {"*": given}
        if not isinstance(given, Mapping):
            hint = f"allowed: {' or '.join(FUNCTIONS)}, or a mapping of names to them"
            yield Fault("functions", repr(given), hint)
            given = {}
        for name, word in given.items():
            if not isinstance(name, str) or word not in FUNCTIONS:
                yield Fault(f"functions[{name}]", repr(word), "allowed: " + ", ".join(FUNCTIONS))
        object.__setattr__(self, "functions", dict(given))

    def function_word(self, name: str) -> str:
        """What becomes of the function of this name.

        Example:
            >>> spec = QuantSpec(functions={"blocks.*": "analog", "blocks.0.act": "ladder"})
            >>> spec.function_word("blocks.3.act"), spec.function_word("blocks.0.act")
            ('analog', 'ladder')
        """
        assert isinstance(self.functions, Mapping)
        for pattern, word in reversed(list(self.functions.items())):
            if fnmatchcase(name, pattern):
                return word
        return LADDER

    def _bit_fields(self) -> list[tuple[str, Any, int, bool]]:
        """Name, value, least allowed, whether None is allowed, of everything counted in bits."""
        rows: list[tuple[str, Any, int, bool]] = [
            ("weight_bits", self.weight_bits, 2, True),
            ("act_bits", self.act_bits, 1, False),
            ("first_bits", self.first_bits, 2, True),
            ("last_bits", self.last_bits, 2, True),
            ("input_bits", self.input_bits, 2, True),
        ]
        for item in self.overrides:
            rows.append((f"overrides[{item.pattern}].weight_bits", item.weight_bits, 2, True))
            rows.append((f"overrides[{item.pattern}].act_bits", item.act_bits, 1, True))
        return rows

    @property
    def levels(self) -> int:
        """L, the number of levels above 0 of an ordinary activation."""
        return 2**self.act_bits - 1

    def to_json(self) -> dict[str, Any]:
        """Plain data, for recipes and sidecar files; `from_json` is the inverse. A rounding half to
        even, which no earlier version could name, is left out: digests stay what they were."""
        fields_ = {item.name: getattr(self, item.name) for item in fields(self)}
        said = {
            **{name: value for name, value in fields_.items() if name != "overrides"},
            **{name: str(getattr(self, name)) for name in _CHOICES},
            "overrides": tuple(asdict(item) for item in self.overrides),
        }
        if self.rounding is Rounding.HALF_EVEN:
            del said["rounding"]
        return said

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> QuantSpec:
        """The spec that `to_json` described."""
        return cls(**data)


def _whole(value: Any, low: int, high: int) -> bool:
    """Whether a value is an integer in [low, high]; True and False are not."""
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _share(value: Any) -> bool:
    """Whether a value is a number from 0 to 1."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1


def spec_of(given: Any) -> QuantSpec:
    """A `QuantSpec` from one, from a number of bits for weights and activations, from a name such
    as "w4a8", or from a mapping of its fields.

    Raises:
        SpecError: anything else, with what is allowed; an unknown field.

    Example:
        >>> spec_of(3).act_bits, spec_of("w4a8").levels, spec_of({"act_bits": 2}).levels
        (3, 255, 3)
    """
    if isinstance(given, QuantSpec):
        return given
    if isinstance(given, int) and not isinstance(given, bool):
        return QuantSpec(weight_bits=given, act_bits=given)
    if isinstance(given, str) and (match := re.fullmatch(r"w(\d)a(\d)", given.lower())):
        return QuantSpec(weight_bits=int(match[1]), act_bits=int(match[2]))
    if isinstance(given, Mapping):
        names = [item.name for item in fields(QuantSpec)]
        faults = [
            Fault(str(name), "is no field of a QuantSpec", _nearest(str(name), names))
            for name in given
            if name not in names
        ]
        if faults:
            raise SpecError(f"{many(faults, 'field is', 'fields are')} unknown", faults)
        return QuantSpec.from_json(given)
    shown = given.__name__ if isinstance(given, type) else repr(given)
    raise SpecError(
        f"spec is {shown}: allowed are QuantSpec(weight_bits=4, act_bits=4), a number of bits for "
        'both such as 4, a name such as "w4a8", or a mapping of the fields of a QuantSpec'
    )


def _nearest(name: str, names: list[str]) -> str:
    """The field that was probably meant, or all of them."""
    return did_you_mean(near_names(name, names)) or f"allowed: {', '.join(names)}"
