"""The walk beside the float network: sums, rounding in turn, batch norms; each literally."""

from __future__ import annotations

import copy

import pytest
import torch
from networks import conv, images, lived_in
from torch import nn

from mt_convert.quantization.layer_by_layer import (
    best_rows,
    columns,
    damped,
    input_moments,
    match_,
    round_in_turn,
)
from mt_convert.quantization.quantize import quantize
from mt_convert.quantization.spec import QuantSpec

LEVELS = (-7, 7)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2, bias=False),
        nn.Conv2d(4, 4, 3, padding=(2, 1), dilation=2, groups=4, bias=False),
        nn.Conv2d(4, 6, 1, stride=2, bias=False),
        nn.Conv2d(4, 6, 3, padding="same", padding_mode="circular", bias=False),
        nn.Conv1d(4, 6, 3, padding=1, groups=2, bias=False),
        nn.Linear(7, 6, bias=False),
    ],
    ids=["strided", "depthwise", "1x1", "circular", "1d", "linear"],
)
def test_columns_times_weights_are_the_output(layer: nn.Module) -> None:
    x = torch.randn(2, 4, 7) if isinstance(layer, nn.Conv1d) else torch.randn(2, 4, 7, 7)
    spread = columns(layer, x)
    weight = layer.get_parameter("weight").reshape(spread.shape[0], -1, spread.shape[1])
    output = layer(x)
    together = output.flatten(0, -2).t() if isinstance(layer, nn.Linear) else output
    if not isinstance(layer, nn.Linear):
        together = output.flatten(2).transpose(0, 1).flatten(1)
    torch.testing.assert_close((weight @ spread).flatten(0, 1), together, rtol=1e-4, atol=1e-5)


def test_moments_are_those_of_all_positions_whatever_the_batches() -> None:
    layer, x = nn.Linear(3, 2), torch.randn(10, 3)
    once = input_moments(layer, [x], centred=True)
    parts = input_moments(layer, list(x.split(4)), centred=True)
    assert once is not None
    assert parts is not None
    torch.testing.assert_close(once, parts)
    torch.testing.assert_close(once[0], torch.cov(x.t(), correction=0))
    assert input_moments(nn.ConvTranspose2d(2, 2, 3), [torch.zeros(1, 2, 4, 4)], True) is None


def test_moments_of_silent_inputs_can_be_inverted_all_the_same() -> None:
    silent, noise = torch.zeros(3, 3), torch.tensor([[1e-9, 2e-9], [2e-9, -1e-9]])
    huge = torch.tensor([[1.0, 5.0], [5.0, 1.0]])  # of no inputs, whatever the damping
    for given in (silent, noise, huge):
        made = damped(given.unsqueeze(0))
        assert not bool(torch.linalg.cholesky_ex(made.double()).info.any())
    both = torch.stack([torch.eye(2), huge])
    assert torch.allclose(damped(both)[0], torch.eye(2) * 1.01), "other groups stay as they are"


def literal(row: torch.Tensor, step: float, own: torch.Tensor) -> torch.Tensor:
    """The same, column by column: what is left open is fitted again by least squares."""
    row, rounded = row.clone(), torch.zeros_like(row)
    for k in range(len(row)):
        rounded[k] = (row[k] / step).round().clamp(*LEVELS) * step
        wrong = row[k] - rounded[k]
        behind = slice(k + 1, None)
        row[behind] += torch.linalg.solve(own[behind, behind], own[behind, k]) * wrong
    return rounded


def test_rounding_in_turn_fits_what_is_left_and_is_better_than_to_the_nearest() -> None:
    torch.manual_seed(0)
    mixed = torch.randn(2, 100, 100, dtype=torch.float64)
    own = damped(mixed @ mixed.mT / 100)
    rows, step = torch.randn(2, 3, 100).double(), torch.full((2, 3, 1), 0.4).double()
    rounded = round_in_turn(rows, step, LEVELS, own)
    for group in range(2):
        for place in range(3):
            expected = literal(rows[group, place], 0.4, own[group])
            torch.testing.assert_close(rounded[group, place], expected)

    def error(given: torch.Tensor) -> torch.Tensor:
        wrong = rows - given
        return ((wrong @ own) * wrong).sum(2)

    nearest = (rows / step).round().clamp(*LEVELS) * step
    assert (error(rounded) < 0.7 * error(nearest)).all()


def test_of_several_steps_each_row_gets_the_one_of_least_error() -> None:
    rows = torch.tensor([[[0.5, -1.0, 1.5], [0.25, 0.5, -0.25]]])
    steps = torch.tensor([[1.0, 1.0], [0.5, 0.5], [0.25, 0.25]]).reshape(3, 1, 2, 1)
    best, step = best_rows(rows, steps, LEVELS, torch.eye(3).unsqueeze(0), compensating=False)
    assert step.flatten().tolist() == [0.5, 0.25]
    assert torch.equal(best, rows)
    loud = torch.diag(torch.tensor([1.0, 0.0, 0.0])).unsqueeze(0)  # only the first input is heard
    rows = torch.tensor([[[0.25, 9.0, 9.0]]])
    steps = torch.tensor([2.0, 0.25]).reshape(2, 1, 1, 1)
    assert best_rows(rows, steps, LEVELS, loud, compensating=False)[1].item() == 0.25


def test_a_batch_norm_takes_back_what_was_done_to_its_input() -> None:
    norm = nn.BatchNorm2d(3, eps=0.0)
    norm.running_mean, norm.running_var = torch.randn(3), torch.rand(3) + 0.5
    norm.eval()
    x = torch.randn(4, 3, 5, 5)
    expected = norm(x)
    gain, shift = torch.tensor([1.5, 0.5, 1.0]).reshape(1, 3, 1, 1), torch.randn(1, 3, 1, 1)
    same = copy.deepcopy(norm)
    match_(norm, x, x * gain + shift)
    torch.testing.assert_close(norm(x * gain + shift), expected, rtol=1e-4, atol=1e-4)
    match_(same, x, x)
    torch.testing.assert_close(same(x), expected, rtol=1e-5, atol=1e-5)
    silent = nn.BatchNorm1d(1)
    match_(silent, torch.ones(3, 1), torch.zeros(3, 1))
    assert bool(torch.isfinite(silent.running_var).all())  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_layer_that_is_used_twice_is_corrected_once() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = conv(2, 2), nn.BatchNorm2d(2)
            self.head = nn.Linear(2, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.norm(torch.relu(self.conv(torch.relu(self.conv(x)))))
            return self.head(x.mean((2, 3)).reshape(x.shape[0], -1))  # a size that batches set

    net, shown = lived_in(Twice()), images(40)
    after = ("output_steps", "gptq", "match_bn", "correct_bias")
    spec = QuantSpec(weight_bits=3, first_bits=3, last_bits=3, act_bits=8)
    plain, corrected = (
        quantize(net, QuantSpec(**{**spec.to_json(), "after": names}), calibration=shown)
        for names in ((), after)
    )
    fresh = images(64, seed=1)
    with torch.no_grad():
        errors = [float((one(fresh) - net(fresh)).square().mean()) for one in (plain, corrected)]
    assert errors[1] < errors[0]
