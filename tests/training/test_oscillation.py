"""Weights that oscillate: the frequency by hand, what is frozen and stays, and the report."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_training import DATA, IMAGES, LABELS, SPEC, quantized_net, splits
from torch import Tensor, nn

from mt_convert.data import tensor_set
from mt_convert.errors import SpecError
from mt_convert.quantization.brevitas_layers import quantize_weighted, quantized_weight
from mt_convert.quantization.spec import QuantSpec, Scale
from mt_convert.training.loop import fit
from mt_convert.training.oscillation import Oscillation
from mt_convert.training.spec import FreezeOscillating


def layer_of(weights: list[float]) -> nn.Module:
    """A layer of 3 bits and step 1."""
    plain = nn.Linear(len(weights), 1, bias=False)
    plain.weight.data = torch.tensor([weights])
    layer = quantize_weighted(plain, 3, Scale.LEARNED)
    quantized_weight(layer)
    step = layer.get_parameter("weight_quant.tensor_quant.scaling_impl.value")
    step.data.mul_(1 / quantized_weight(layer)[1].flatten())
    assert float(quantized_weight(layer)[1]) == pytest.approx(1)
    return layer


def show(layer: nn.Module, tracker: Oscillation, weights: list[float], progress: float = 0) -> None:
    """What an optimizer's step would do."""
    layer.get_parameter("weight").data.copy_(torch.tensor([weights]))
    tracker.update_(progress)


def levels(layer: nn.Module) -> list[float]:
    value, step = quantized_weight(layer)
    found: list[float] = (value / step).round().flatten().tolist()
    return found


def test_only_changes_of_alternating_sign_count() -> None:
    layer = layer_of([0.4, 0.4, 0.4, 0.4])
    tracker = Oscillation(layer, FreezeOscillating(momentum=0.5, bound=1.0, final_bound=1.0))
    for weights in (
        [0.6, 0.6, 0.4, 0.4],  # the first change has none before it
        [0.4, 1.6, 0.4, 0.4],  # back; on in the same direction
        [0.4, 1.6, 0.4, 0.4],  # standing still
        [0.6, 0.6, 0.4, 0.4],  # forth; back
    ):
        show(layer, tracker, weights)
    expected = [0.0, 0.0, 0.0, 0.0]
    for turned in ([0, 0], [1, 0], [0, 0], [1, 1]):
        for i, item in enumerate(turned):
            expected[i] = 0.5 * expected[i] + 0.5 * item
    torch.testing.assert_close(tracker.get_buffer("frequency0"), torch.tensor([expected]))
    assert tracker.counts() == (2, 0)


def test_a_weight_above_the_bound_is_frozen_at_the_level_it_was_most_at() -> None:
    layer = layer_of([0.9, 0.9])
    tracker = Oscillation(layer, FreezeOscillating(momentum=0.1, bound=0.15, final_bound=0.15))
    for k in range(8):  # mostly at 1, sometimes at 0
        show(layer, tracker, [0.4 if k % 4 == 1 else 0.6, 0.9])
    assert tracker.counts() == (0, 1)
    show(layer, tracker, [-2.9, -2.9])
    assert levels(layer) == [1.0, -3.0]
    step = layer.get_parameter("weight_quant.tensor_quant.scaling_impl.value")
    step.data.mul_(1.7)  # the step may move on, the level stays
    show(layer, tracker, [0.0, -2.9])
    assert levels(layer)[0] == 1.0
    assert tracker.counts()[1] == 1


def test_the_bound_falls_along_a_cosine() -> None:
    """Frequency 0.19 is frozen when the bound, from 0.3 to 0.1, is below it."""
    for progress, frozen in ((0.0, 0), (0.5, 0), (0.6, 1), (1.0, 1)):
        layer = layer_of([0.4])
        tracker = Oscillation(layer, FreezeOscillating(momentum=0.1, bound=0.3, final_bound=0.1))
        for weight in ([0.6], [0.4], [0.6]):  # f = 0.1 + 0.09
            show(layer, tracker, weight, progress if weight == [0.6] else 0.0)
        assert float(tracker.get_buffer("frequency0")) == pytest.approx(0.19)
        assert tracker.counts()[1] == frozen, progress


@pytest.mark.slow
def test_training_reports_how_many_oscillate_and_how_many_froze(tmp_path: Path) -> None:
    how = FreezeOscillating(momentum=0.3, bound=0.2, final_bound=0.1)
    spec = replace(SPEC, epochs=4, lr=0.1, freeze_oscillating=how)
    qann = quantized_net()
    history = fit(qann, splits(), spec, tmp_path, classes=3)
    rows = history.rows
    counts = [(row.oscillating, row.frozen) for row in rows]
    assert all(isinstance(number, int) for pair in counts for number in pair)
    frozen = [pair[1] for pair in counts]
    assert frozen == sorted(frozen), "what is frozen stays so"  # type: ignore[type-var]
    assert frozen[-1] > 0  # type: ignore[operator]
    plain = fit(quantized_net(), splits(), SPEC, tmp_path / "plain", classes=3)
    assert plain.rows[0].oscillating is None


@pytest.mark.slow
@pytest.mark.parametrize("normalize_weights", [False, True])
def test_frozen_weights_keep_their_level_to_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, normalize_weights: bool
) -> None:
    trackers: list[Oscillation] = []
    start = Oscillation.__init__

    def remember(self: Oscillation, *args: object) -> None:
        start(self, *args)  # type: ignore[arg-type]
        trackers.append(self)

    monkeypatch.setattr(Oscillation, "__init__", remember)
    how = FreezeOscillating(momentum=0.3, bound=0.2, final_bound=0.1)
    few = QuantSpec(weight_bits=3, act_bits=3, normalize_weights=normalize_weights)
    qann = quantized_net(few)
    lr = 1.0 if normalize_weights else 0.1  # normalised weights are larger
    spec = replace(SPEC, epochs=3, lr=lr, freeze_oscillating=how)
    nothing = tensor_set(IMAGES[:0], LABELS[:0], DATA)  # the last epoch is kept
    fit(qann, replace(splits(), validation=nothing), spec, tmp_path, classes=3)
    found: list[Tensor] = []
    for i, name in enumerate(("3", "6")):
        value, step = quantized_weight(qann.layers.get_submodule(name))
        frozen, held = (trackers[0].get_buffer(f"{kind}{i}") for kind in ("frozen", "held"))
        assert torch.equal((value / step).round()[frozen], held[frozen].float())
        found.append(frozen)
    assert sum(int(item.sum()) for item in found) == trackers[0].counts()[1] > 0


def test_what_cannot_be_frozen_is_refused() -> None:
    with pytest.raises(SpecError, match=r"no weights of 4 bits or fewer  leave freeze_oscillating"):
        Oscillation(nn.Linear(1, 1), FreezeOscillating())
    with pytest.raises(SpecError, match="3 values of FreezeOscillating"):
        FreezeOscillating(momentum=0, bound=2, final_bound=0)
    with pytest.raises(SpecError, match=r"at most bound = 0\.1"):
        FreezeOscillating(final_bound=0.2)
