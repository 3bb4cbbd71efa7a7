"""The rank and the first cores of a train, against the weights they are found from."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from tensor_trains import dense, random_tensor
from torch import Tensor, nn

from mt_convert.training.from_scratch.tensor_trains.tensor_train import (
    ConvByStep,
    TensorTrain,
    TTConv2d,
    decompose,
    merge,
)
from mt_convert.training.from_scratch.tensor_trains.tensor_train_start import Form, evb_rank

FULL = {Form.STT: 3 * 5, Form.PTT: 7, Form.HTT: 7}  # of 5 inputs and 7 outputs


@pytest.mark.parametrize("shape", [(4, 4), (3, 5), (7, 2), (1, 20)], ids=str)
def test_at_full_rank_a_row_is_the_convolution_itself(shape: tuple[int, int]) -> None:
    inputs, outputs = shape
    rank = max(min(inputs, 9 * outputs), 3 * min(inputs, outputs), min(9 * inputs, outputs))
    source = dense(inputs, outputs, seed=6)
    merged = merge(TTConv2d(source.float(), Form.STT, rank))
    assert isinstance(merged, nn.Conv2d)
    assert (merged.weight - source.weight).abs().max().item() <= 1e-5


@pytest.mark.parametrize("form", [Form.PTT, Form.HTT])
def test_at_full_rank_a_cross_holds_all_taps_but_the_corners(form: Form) -> None:
    source = dense(5, 7, seed=7)
    expected = source.weight.detach().clone()
    expected[..., ::2, ::2] = 0
    merged = merge(TTConv2d(source, form, FULL[form]))
    kernel = (merged.early if isinstance(merged, ConvByStep) else merged).weight
    assert torch.allclose(kernel, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_a_higher_rank_never_rebuilds_a_row_worse(seed: int) -> None:
    source = dense(5, 6, bias=False, seed=seed)
    errors = []
    for rank in range(1, 16):
        merged = merge(TTConv2d(source, Form.STT, rank))
        assert isinstance(merged, nn.Conv2d)
        errors.append((merged.weight - source.weight).norm().item())
    assert all(later <= former + 1e-12 for former, later in pairwise(errors))
    assert errors[0] > 1
    assert errors[-1] < 1e-12


def test_the_centre_of_htt_starts_near_the_centre_tap_of_the_weights() -> None:
    source = dense(6, 6, bias=False, seed=11)
    merged = merge(TTConv2d(source, Form.HTT, 6))
    assert isinstance(merged, ConvByStep)
    tap = source.weight[..., 1, 1]
    assert (merged.late.weight[..., 0, 0] - tap).norm() < 0.2 * tap.norm()


@pytest.mark.parametrize("form", list(Form))
@pytest.mark.parametrize("rank", [2, 12])
def test_gradients_reach_every_number_of_every_core(form: Form, rank: int) -> None:
    train = TTConv2d(dense(4, 3, seed=14), form, rank)
    x, weight = random_tensor(2, 4, 5, 5, seed=15), random_tensor(2, 3, 5, 5, seed=16)
    cores = dict(train.named_parameters())
    for step in range(2):
        grads = torch.autograd.grad((train.in_step(0, 2)(x) * weight).sum(), list(cores.values()))
        for (name, core), grad in zip(cores.items(), grads, strict=True):
            assert grad.abs().sum() > 0, name
            # Where a bond is wider than needed one side starts at 0: it moves, then the other can.
            assert step == 0 or (grad != 0).all(), name
            core.data.sub_(grad, alpha=1e-3)


def planted(rows: int, columns: int, rank: int, seed: int) -> Tensor:
    left, _ = torch.linalg.qr(random_tensor(rows, max(rank, 1), seed=seed))
    right, _ = torch.linalg.qr(random_tensor(columns, max(rank, 1), seed=seed + 1))
    strength = 3 * (math.sqrt(rows) + math.sqrt(columns))  # of the noise's largest singular value
    return strength * (left @ right.T) * (rank > 0)


@pytest.mark.parametrize("shape", [(30, 30), (24, 100), (100, 24), (16, 144)], ids=str)
@pytest.mark.parametrize("rank", [0, 1, 4, 9])
@pytest.mark.parametrize("scale", [1.0, 1e-3])
def test_a_planted_rank_is_found_in_noise(shape: tuple[int, int], rank: int, scale: float) -> None:
    noise = random_tensor(*shape, seed=50 + rank)
    assert evb_rank(scale * (planted(*shape, rank, seed=60 + rank) + noise)) == rank


@pytest.mark.parametrize("rank", [0, 1, 3, 7])
def test_without_noise_the_rank_is_the_algebraic_one(rank: int) -> None:
    assert evb_rank(planted(12, 40, rank, seed=70)) == rank


def free_energy(x: Tensor, alpha: float) -> Tensor:
    """The least free energy of one component over M, on a grid of its two signal-to-noise ratios.

    u = |a|²/(Mσ_a²) and v = |b|²/(Lσ_b²), everything else already at its optimum: then it is
    log(1 + u) + α log(1 + v) − x uv/((1 + u)(1 + v)), and 0 for a component that is not there.
    """
    u = torch.logspace(-2, 3.3, 140, dtype=torch.float64)
    v = torch.logspace(-2, 4.3, 150, dtype=torch.float64)
    gain = (u / (1 + u))[:, None] * (v / (1 + v))
    cost = u.log1p()[:, None] + alpha * v.log1p()
    return torch.stack([(cost - value * gain).min().clamp(max=0) for value in x.reshape(-1)])


@pytest.mark.parametrize("seed", range(4))
def test_the_rank_is_that_of_the_least_free_energy(seed: int) -> None:
    rows, columns = 8 + seed, 30 - 2 * seed
    fading = torch.diag(5.0 * 0.7 ** torch.arange(rows, dtype=torch.float64)) * math.sqrt(columns)
    left, _ = torch.linalg.qr(random_tensor(rows, rows, seed=80 + seed))
    matrix = left @ fading @ random_tensor(rows, columns, seed=90 + seed) / columns**0.5
    matrix = matrix + 0.7 * random_tensor(rows, columns, seed=95 + seed)
    squares = torch.linalg.svdvals(matrix).square()
    best, rank = math.inf, -1
    mean = (squares.sum() / (rows * columns)).item()
    for noise in torch.logspace(-2, 0.5, 100, dtype=torch.float64) * mean:
        x = squares / (columns * noise)
        gains = free_energy(x, rows / columns)
        total = (rows * noise.log() + x.sum() + gains.sum()).item()
        if total < best:
            best, rank = total, int((gains < 0).sum())
    assert evb_rank(matrix) == rank
    assert 0 < rank < rows


def test_evbmf_takes_the_output_side_then_the_input_side_then_one() -> None:
    def ranked(weight: Tensor) -> int:
        conv = dense(weight.shape[1], weight.shape[0])
        with torch.no_grad():
            conv.weight.copy_(weight)
        model = nn.Sequential(nn.Conv2d(1, weight.shape[1], 1), conv)
        return decompose(model, TensorTrain("stt", "evbmf")).ranks["1"]

    noise = random_tensor(24, 20, 3, 3, seed=30)
    outputs = planted(24, 180, 3, seed=31).reshape(24, 20, 3, 3)
    inputs = planted(20, 216, 5, seed=33).reshape(20, 24, 3, 3).transpose(0, 1)
    assert ranked(noise + outputs) == 3
    assert ranked(noise) == 1
    assert ranked(torch.zeros(24, 20, 3, 3)) == 1
    faint = noise + 0.62 * inputs
    assert evb_rank(faint.flatten(1)) == 0
    assert ranked(faint) == 5
