"""Trains against the dense convolutions they come from and are merged into."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from tensor_trains import dense, random_tensor
from torch import Tensor, nn
from torch.nn import functional as F

from mt_convert.errors import SpecError
from mt_convert.training.from_scratch.tensor_trains.tensor_train import (
    ConvByStep,
    Form,
    TensorTrain,
    TTConv2d,
    decompose,
    merge,
)

SHAPES = [(6, 6, 4), (5, 8, 6), (8, 3, 5)]  # inputs, outputs, rank: some above a side


def shaken(train: TTConv2d, seed: int) -> TTConv2d:
    """The train with its cores moved away from where the decomposition started them."""
    with torch.no_grad():
        for i, parameter in enumerate(train.parameters()):
            parameter.add_(
                random_tensor(*parameter.shape, seed=100 * seed + i).to(parameter), alpha=0.3
            )
    return train


class Residual(nn.Module):
    """A stem, a block with a stride and a 1×1 shortcut, a plain block that is used twice."""

    def __init__(self, middle: nn.Module | None = None) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 6, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.down = nn.Conv2d(6, 8, 3, stride=2, padding=1)
        self.shortcut = nn.Conv2d(6, 8, 1, stride=2)
        self.same = nn.Sequential(nn.Conv2d(8, 8, 3, padding="same", bias=False), nn.ReLU())
        self.again = self.same[0]
        self.middle = nn.Identity() if middle is None else middle
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        x = F.relu(self.down(x) + self.shortcut(x))
        x = x + self.again(self.same(self.middle(x)))
        scores: Tensor = self.head(x.mean((2, 3)))
        return scores


def network(middle: nn.Module | None = None) -> Residual:
    """The residual network with seeded weights."""
    model = Residual(middle).double().eval()
    with torch.no_grad():
        for i, parameter in enumerate(model.parameters()):
            parameter.copy_(0.3 * random_tensor(*parameter.shape, seed=i))
    return model


@pytest.mark.parametrize("form", [Form.STT, Form.PTT])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("dtype", "off"), [(torch.float64, 1e-12), (torch.float32, 1e-4)])
def test_merging_keeps_the_numbers(
    form: Form, shape: tuple[int, int, int], stride: int, bias: bool, dtype: torch.dtype, off: float
) -> None:
    inputs, outputs, rank = shape
    source = dense(inputs, outputs, stride, bias=bias, seed=1).to(dtype)
    train = shaken(TTConv2d(source, form, rank), seed=2)
    merged = merge(train)
    assert type(merged) is nn.Conv2d
    assert (merged.bias is not None) is bias
    for size in [(7, 9), (6, 6), (1, 2)]:
        x = random_tensor(2, inputs, *size, seed=3).to(dtype)
        assert merged(x).shape == source(x).shape == train(x).shape
        scale = max(1.0, merged(x).abs().max().item())
        assert (merged(x) - train(x)).abs().max().item() <= off * scale


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("form", [Form.PTT, Form.HTT])
def test_corners_of_a_cross_are_exactly_zero(form: Form, stride: int) -> None:
    train = shaken(TTConv2d(dense(4, 5, stride, seed=4), form, 3), seed=5)
    merged = merge(train)
    kernel = (merged.early if isinstance(merged, ConvByStep) else merged).weight
    assert torch.equal(kernel[..., ::2, ::2], torch.zeros(5, 4, 2, 2, dtype=torch.float64))
    assert (kernel[..., 1, :] != 0).all()
    assert (kernel[..., :, 1] != 0).all()


@pytest.mark.parametrize("form", list(Form))
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_train_has_as_many_weights_as_the_formula_says(
    form: Form, shape: tuple[int, int, int]
) -> None:
    inputs, outputs, rank = shape
    bare = TTConv2d(dense(inputs, outputs, bias=False), form, rank)
    counted = sum(parameter.numel() for parameter in bare.parameters())
    assert counted == rank * (inputs + 6 * rank + outputs)
    biased = TTConv2d(dense(inputs, outputs), form, rank)
    assert sum(parameter.numel() for parameter in biased.parameters()) == counted + outputs


@pytest.mark.parametrize(("time_steps", "early"), [(1, 1), (2, 1), (4, 2), (5, 3)])
@pytest.mark.parametrize("stride", [1, 2])
def test_htt_has_its_cross_in_the_first_half_and_its_centre_after(
    time_steps: int, early: int, stride: int
) -> None:
    train = shaken(TTConv2d(dense(4, 6, stride, seed=8), Form.HTT, 3), seed=9)
    merged = merge(train)
    assert isinstance(merged, ConvByStep)
    plus = TTConv2d(dense(4, 6, stride), Form.PTT, 3)
    plus.load_state_dict(train.state_dict())
    centre = (train.expand.weight[..., 0, 0] @ train.reduce.weight[..., 0, 0])[..., None, None]
    x = random_tensor(2, 4, 7, 8, seed=10)
    for t in range(time_steps):
        expected = plus(x) if t < early else F.conv2d(x, centre, train.expand.bias, stride=stride)
        for layer in (train, merged):
            y = layer.in_step(t, time_steps)(x)
            assert y.shape == expected.shape
            assert torch.allclose(y, expected, rtol=0, atol=1e-12)


def test_rows_and_crosses_are_the_same_in_every_step() -> None:
    train = TTConv2d(dense(3, 3, seed=12), Form.PTT, 2)
    x = random_tensor(1, 3, 4, 4, seed=13)
    assert all(torch.equal(train.in_step(t, 3)(x), train(x)) for t in range(3))


def test_forward_of_htt_names_what_to_call_instead() -> None:
    train = TTConv2d(dense(3, 3), Form.HTT, 2)
    for layer in (train, merge(train)):
        with pytest.raises(SpecError, match=r"in_step\(t, time_steps\)"):
            layer(torch.zeros(1, 3, 4, 4))


@pytest.mark.parametrize("t", [-1, 4])
def test_a_step_outside_of_time_is_an_error(t: int) -> None:
    with pytest.raises(SpecError, match=f"t={t} of 4 time steps"):
        TTConv2d(dense(3, 3), Form.STT, 2).in_step(t, 4)


@pytest.mark.parametrize("form", [Form.STT, Form.PTT])
def test_a_network_is_decomposed_and_merged_as_a_copy(form: Form) -> None:
    model = network()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    random = torch.get_rng_state()
    found = decompose(model, TensorTrain(form, 3))
    assert torch.equal(torch.get_rng_state(), random)
    assert found.ranks == {"down": 3, "same.0": 3}
    assert set(found.skipped) == {"stem", "shortcut"}
    assert "first" in found.skipped["stem"]
    assert "(1, 1)" in found.skipped["shortcut"]

    train = found.model
    assert isinstance(train, Residual)
    assert isinstance(train.down, TTConv2d)
    assert isinstance(train.same[0], TTConv2d)
    assert train.again is train.same[0]
    assert not train.down.training
    x = random_tensor(3, 2, 8, 8, seed=17)
    merged = merge(train)
    assert not any(isinstance(layer, TTConv2d) for layer in merged.modules())
    assert (merged(x) - train(x)).abs().max().item() <= 1e-12
    assert list(merged.state_dict()) == list(before)
    assert isinstance(train.down, TTConv2d)

    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert type(model.down) is nn.Conv2d


def test_at_full_rank_the_network_gives_the_same_scores() -> None:
    model = network()
    x = random_tensor(3, 2, 8, 8, seed=18)
    narrow = decompose(model, TensorTrain("stt", 18)).model  # of 6 → 8: 3 · 6
    assert (narrow(x) - model(x)).abs().max().item() > 1e-6
    model.same[0] = model.again = nn.Conv2d(8, 8, 1).double()
    wide = decompose(model, TensorTrain("stt", 18)).model
    assert (wide(x) - model(x)).abs().max().item() <= 1e-12


ODD: list[tuple[Callable[[], nn.Module], str]] = [
    (lambda: nn.Conv2d(8, 8, 3, padding=1, groups=8), "8 groups"),
    (lambda: nn.Conv2d(8, 8, 3, padding=2, dilation=2), r"dilation \(2, 2\)"),
    (lambda: nn.Conv2d(8, 8, 5, padding=2), r"kernel \(5, 5\)"),
    (lambda: nn.Conv2d(8, 8, (3, 1), padding=(1, 0)), r"kernel \(3, 1\)"),
    (lambda: nn.Conv2d(8, 8, 3, padding=0), r"padding \(0, 0\)"),
    (lambda: nn.Conv2d(8, 8, 3, padding=1, stride=3), r"stride \(3, 3\)"),
    (lambda: nn.Conv2d(8, 8, 3, padding=1, stride=(1, 2)), r"stride \(1, 2\)"),
    (lambda: nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect"), "reflect"),
    (lambda: nn.ConvTranspose2d(8, 8, 3, padding=1), "ConvTranspose2d"),
    (lambda: nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 8, 3, padding=1)), "Parametrized"),
    (lambda: nn.utils.spectral_norm(nn.Conv2d(8, 8, 3, padding=1)), "hooks"),
]


@pytest.mark.parametrize(("layer", "reason"), ODD, ids=[reason for _, reason in ODD])
def test_a_convolution_that_stays_is_listed_with_its_reason(
    layer: Callable[[], nn.Module], reason: str
) -> None:
    found = decompose(
        nn.Sequential(nn.Conv2d(2, 8, 3), layer(), dense(8, 8)), TensorTrain("ptt", 2)
    )
    assert list(found.ranks) == ["2"]
    assert list(found.skipped) == ["0", "1"]
    with pytest.raises(SpecError, match="no 3x3 convolution") as raised:
        decompose(nn.Sequential(nn.Conv2d(2, 8, 3), layer()), TensorTrain("ptt", 2))
    assert raised.match(reason)


def test_a_rank_above_the_full_one_names_every_layer_and_its_range() -> None:
    model = network(middle=dense(8, 8))
    with pytest.raises(SpecError, match="1 of 3 3x3 convolutions") as raised:
        decompose(model, TensorTrain("stt", 19))
    assert [(fault.where, fault.hint) for fault in raised.value.faults] == [
        ("down", "allowed: 1 to 18, its full rank")
    ]
    with pytest.raises(SpecError, match=r"3 of 3 .*\n.*down +rank 25 .*1 to 18"):
        decompose(model, TensorTrain("stt", 25))
    with pytest.raises(SpecError, match=r"rank 9 +allowed: 1 to 8"):
        decompose(model, TensorTrain("htt", 9))
    assert decompose(model, TensorTrain("stt", 18)).ranks["down"] == 18


def test_weights_that_are_no_numbers_are_an_error() -> None:
    model = network()
    with torch.no_grad():
        model.down.weight[0, 0, 0, 0] = math.nan
    with pytest.raises(SpecError, match=r"down +weight holds NaN"):
        decompose(model, TensorTrain("stt", "evbmf"))


@pytest.mark.parametrize("rank", [0, -1, True, 2.0, "full", None])
def test_a_rank_is_a_whole_number_from_one_or_evbmf(rank: object) -> None:
    with pytest.raises(SpecError, match=r'from 1 .*or "evbmf"'):
        TensorTrain(Form.STT, rank)  # type: ignore[arg-type]


def test_an_unknown_form_names_the_known_ones() -> None:
    with pytest.raises(SpecError, match="form='cp'; allowed: stt, ptt, htt"):
        TensorTrain("cp", 4)


def test_a_train_stands_only_for_a_plain_convolution() -> None:
    with pytest.raises(SpecError, match="TTConv2d: 8 groups"):
        TTConv2d(nn.Conv2d(8, 8, 3, padding=1, groups=8), Form.STT, 2)
