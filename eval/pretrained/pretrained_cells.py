"""What the study of a pretrained network measures: its cells, what they are called, and what tells
two networks on the same photographs apart."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mt_convert.evaluation.peers.network import PEERS
from mt_convert.quantization.spec import QuantSpec
from mt_convert.system.storage import digest

KEY = "mt_convert.pretrained/1"  # what stored networks and cells are known by
MODEL = "tf_efficientnet_lite0"
ROWS = (0, 217, 482, 491, 497, 566, 569, 571, 574, 701)  # of ImageNet-1k, in order of the folders
WIDTHS = ((8, 8), (4, 8), (8, 4), (4, 4))
AFTER = ("output_steps", "gptq", "match_bn")
AFTER_8 = ("match_bn",)  # weights of 8 bits are rounded finely enough
CALIBRATED_ON = 64
FEW = 200
SETS = {
    "imagenette": (1000, "Imagenette, ten logits"),
    "photos": (500, "photographs, 1,000 logits"),
}
TRAINED = {"epochs": 8, "lr": 5e-4, "batch_size": 64}
Z = 1.96


@dataclass(frozen=True)
class Answer:
    """How one network did on one set of images, image by image, in the order of `Photographs`.

    ``right``: "1" for each image whose class it gave, else "0". ``compared``: of how many images
    the quantized network's answers were compared with those of the integer engine, ``equal``: on
    how many the class was the same; ``different``: the share of their levels that was not, next to
    thresholds, where floats are summed in another order than whole numbers. ``spikes`` and
    ``packets``: per neuron and image.
    """

    images: str
    right: str
    compared: int = 0
    equal: int = 0
    different: float | None = None
    spikes: float | None = None
    packets: float | None = None

    @property
    def accuracy(self) -> float:
        """Percent."""
        return 100 * self.right.count("1") / len(self.right)


@dataclass(frozen=True)
class Paid:
    """What one way to run a network costs, per image: the mean of ``images`` photographs.

    ``fed`` is the share of multiply-accumulates of layers that spikes feed; ``compute`` and
    ``total`` (memory counted) are shares of what the quantized network of equal bits costs.
    """

    images: int
    fed: float
    spikes: float
    packets: float
    compute: float
    total: float
    prices: str


@dataclass(frozen=True)
class Way:
    """A way to run a converted network, and how it did on the first images of a set."""

    ladder: str
    n: int
    T: int
    answer: Answer
    paid: Paid | None = None


@dataclass(frozen=True)
class Cell:
    """What one cell gave. ``refused``: the words in which it could not be made."""

    name: str
    settings: str
    answers: Sequence[Answer] = ()
    ways: Sequence[Way] = ()
    bits: tuple[int, int] | None = None
    after: Sequence[str] = ()
    levels: int | None = None
    network: str | None = None
    refused: str | None = None
    version: str | None = None
    notes: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Cell:
        """The cell that `dataclasses.asdict` wrote."""

        def way(item: Mapping[str, Any]) -> Way:
            paid = None if item["paid"] is None else Paid(**item["paid"])
            return Way(**{**item, "answer": Answer(**item["answer"]), "paid": paid})

        made = {
            "answers": [Answer(**item) for item in stored["answers"]],
            "ways": [way(item) for item in stored["ways"]],
            "bits": None if stored["bits"] is None else tuple(stored["bits"]),
        }
        return cls(**{**stored, **made})


@dataclass(frozen=True)
class Difference:
    """Points by which a network is better than another on the same images, with its 95 % interval.

    ``only_first``, ``only_second``: images that one of them alone got right.
    """

    points: float
    low: float
    high: float
    only_first: int
    only_second: int
    both_wrong: int

    def within(self, bound: float) -> str:
        """Whether the second is at most ``bound`` points below the first, as far as is known.

        Example:
            >>> difference("1" * 100, "1" * 100).within(5), difference("1" * 9, "0" * 9).within(5)
            ('yes', 'no')
        """
        if self.low >= -bound:
            return "yes"
        return "no" if self.high < -bound else "not decided"


def title(bits: tuple[int, int]) -> str:
    """Bits of weights and activations in a word."""
    return f"W{bits[0]}A{bits[1]}"


def names() -> list[str]:
    """All cells, what tells most first."""
    first = [(8, 8), (4, 8)]
    rest = [item for item in WIDTHS if item not in first]
    made = [f"{title(bits)} {stage}" for bits in first for stage in ("corrected", "calibrated")]
    made += [f"{title(bits)} {stage}" for bits in rest for stage in ("corrected", "calibrated")]
    ways = [f"{title(bits)} {stage} steps" for bits in WIDTHS for stage in ("corrected",)]
    peers = [f"{peer} {form}" for peer in PEERS for form in ("as it is", "plain form")]
    trained = [f"{title(bits)} trained" for bits in reversed(WIDTHS)]
    return [
        "float",
        *made[:4],
        "photograph",
        *made[4:],
        *ways,
        *peers,
        *trained,
        *(f"{item} steps" for item in trained),
        "time",
    ]


def on_request(name: str) -> bool:
    """Whether a cell is made only where it is asked for: it trains, or takes times."""
    return "trained" in name or name == "time"


def settings(name: str) -> str:
    """A digest of all that the numbers of a cell depend on, but of how many images were shown."""
    said: list[Any] = [KEY, MODEL, name, CALIBRATED_ON, ROWS]
    if name.startswith("W"):
        said += [spec_of_cell(name).to_json(), TRAINED if "trained" in name else None]
    return str(digest(said))[:16]


def enough(cell: Cell, asked: int | None) -> bool:
    """Whether a stored cell was shown as many images of each set as are asked for, None for all.

    Example:
        >>> few = Cell("float", "", [Answer("photos", "1" * 200)])
        >>> enough(few, 200), enough(few, 500), enough(few, None)
        (True, False, False)
    """
    return all(
        len(item.right) >= min(SETS[item.images][0], asked or SETS[item.images][0])
        for item in cell.answers
    )


def peers_of(name: str) -> list[str]:
    """The peer that a cell is of: the longest name that fits."""
    return sorted((peer for peer in PEERS if name.startswith(f"{peer} ")), key=len)[-1:]


def spec_of_cell(name: str) -> QuantSpec:
    """How the network of a cell is quantized.

    Example:
        >>> spec_of_cell("W4A8 corrected").weight_bits, spec_of_cell("W8A8 calibrated").after
        (4, ())
    """
    weight_bits, act_bits = int(name[1]), int(name[3])
    after: tuple[str, ...] = ()
    if "calibrated" not in name:
        after = AFTER if weight_bits < 5 else AFTER_8
    return QuantSpec(weight_bits=weight_bits, act_bits=act_bits, after=after)


def correct(word: str, logits: Tensor, labels: Tensor) -> str:
    """For each image whether the class is right; of Imagenette ten rows compete."""
    if word == "imagenette":
        rows = torch.tensor(ROWS)
        said = logits.argmax(1) if logits.shape[1] == len(ROWS) else logits[:, rows].argmax(1)
        right = rows[said] == labels
    else:
        right = logits.argmax(1) == labels
    return "".join("1" if item else "0" for item in right.tolist())


def difference(first: str, second: str) -> Difference:
    """The second network against the first, image by image; those that both were shown.

    Source:
        Bonett and Price, Adjusted Wald confidence interval for a difference of binomial proportions
        based on paired data (2012).

    Example:
        >>> found = difference("1111011111", "1111011110")
        >>> found.points, found.only_first, found.only_second, found.both_wrong
        (-10.0, 1, 0, 1)
    """
    pairs = list(zip(first, second, strict=False))
    count = len(pairs)
    one, other = pairs.count(("1", "0")), pairs.count(("0", "1"))
    p, q = (one + 1) / (count + 2), (other + 1) / (count + 2)
    half = Z * math.sqrt((p + q - (p - q) ** 2) / (count + 2))
    low, high = 100 * (q - p - half), 100 * (q - p + half)
    points = 100 * (other - one) / count
    return Difference(points, low, high, one, other, pairs.count(("0", "0")))
