"""The recurrence against the loop that autograd unrolls, and against a dense linear system."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mt_convert.errors import SpecError
from mt_convert.neurons.linear_recurrence import leaky_mean, linrec

STEP = (2, 3, 4, 5)
DECAYS = {"scalar": (), "channel": (3, 1, 1), "element": STEP}


def drawn(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, dtype=torch.float64, generator=generator)


def unrolled(x: Tensor, decay: Tensor, start: Tensor | None) -> Tensor:
    y = torch.zeros_like(x[0]) if start is None else start
    steps = []
    for current in x:
        y = decay * y + current
        steps.append(y)
    return torch.stack(steps)


@pytest.mark.parametrize("time_steps", [1, 2, 7])
@pytest.mark.parametrize("decay_shape", DECAYS.values(), ids=DECAYS)
@pytest.mark.parametrize("start_shape", [None, STEP, (1,)], ids=str)
def test_forward_and_gradients_are_the_unrolled_loop_s(
    time_steps: int, decay_shape: tuple[int, ...], start_shape: tuple[int, ...] | None
) -> None:
    x = drawn(time_steps, *STEP, seed=time_steps).requires_grad_()
    decay = drawn(*decay_shape, seed=11).sigmoid().requires_grad_()
    start = None if start_shape is None else drawn(*start_shape, seed=12).requires_grad_()
    inputs = [x, decay] if start is None else [x, decay, start]
    weight = drawn(time_steps, *STEP, seed=13)

    own, loop = linrec(x, decay, start=start), unrolled(x, decay, start)
    assert torch.allclose(own, loop, rtol=0, atol=1e-10)
    found = torch.autograd.grad((own * weight).sum(), inputs)
    expected = torch.autograd.grad((loop * weight).sum(), inputs)
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape
        assert torch.allclose(one, other, rtol=0, atol=1e-10)


@pytest.mark.parametrize("decay", [0.0, 0.9, 1.0, -1.3])
def test_gradcheck_passes_inside_and_outside_of_zero_to_one(decay: float) -> None:
    x = drawn(4, 2, 3, seed=1).requires_grad_()
    rate = torch.tensor([decay, 0.5, decay], dtype=torch.float64, requires_grad=True)
    start = drawn(2, 3, seed=2).requires_grad_()
    assert torch.autograd.gradcheck(linrec, (x, rate))
    assert torch.autograd.gradcheck(
        lambda *given: linrec(*given[:2], start=given[2]), (x, rate, start)
    )


def test_it_solves_the_banded_system_and_its_gradient_the_transposed_one() -> None:
    x = drawn(9, 6, seed=3).requires_grad_()
    system = torch.eye(9, dtype=torch.float64) - 0.7 * torch.diag(
        torch.ones(8, dtype=torch.float64), -1
    )
    y = linrec(x, 0.7)
    assert torch.allclose(y, torch.linalg.solve(system, x), rtol=0, atol=1e-12)
    arriving = drawn(9, 6, seed=4)
    (found,) = torch.autograd.grad(y, x, arriving)
    assert torch.allclose(found, torch.linalg.solve(system.T, arriving), rtol=0, atol=1e-12)


def test_saved_are_one_tensor_over_time_and_the_decay() -> None:
    saved = {}
    for time_steps in (3, 6, 12):
        held: list[int] = []

        def pack(tensor: Tensor, held: list[int] = held) -> Tensor:
            held.append(tensor.nbytes)
            return tensor

        x = drawn(time_steps, *STEP, seed=5).requires_grad_()
        decay = drawn(3, 1, 1, seed=6).requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            linrec(x, decay)
        assert sorted(held) == [decay.nbytes, x.nbytes]
        saved[time_steps] = sum(held) - decay.nbytes
    assert saved[12] == 2 * saved[6] == 4 * saved[3]


def test_a_gradient_is_only_computed_where_one_is_asked_for() -> None:
    x, decay = drawn(3, 2, seed=7), torch.tensor(0.5, requires_grad=True)
    linrec(x, decay, start=drawn(2, seed=8)).sum().backward()
    assert decay.grad is not None
    assert decay.grad.dtype == torch.float32
    assert not linrec(x, 0.5).requires_grad


def test_expanded_and_transposed_inputs_count_like_copies() -> None:
    x = drawn(5, 4, seed=9).T
    wide = drawn(4, 1, seed=10).expand(4, 5)
    for given in (x, wide):
        assert torch.equal(linrec(given, 0.25), linrec(given.contiguous(), 0.25))


@pytest.mark.parametrize("time_steps", [1, 2, 7])
@pytest.mark.parametrize("decay_shape", DECAYS.values(), ids=DECAYS)
def test_leaky_mean_is_the_last_step_of_the_recurrence_over_its_weights(
    time_steps: int, decay_shape: tuple[int, ...]
) -> None:
    x = drawn(time_steps, *STEP, seed=14).requires_grad_()
    decay = drawn(*decay_shape, seed=15).sigmoid().requires_grad_()
    ones = torch.ones_like(x)
    expected = unrolled(x, decay, None)[-1] / unrolled(ones, decay, None)[-1]
    found = leaky_mean(x, decay)
    assert torch.allclose(found, expected, rtol=0, atol=1e-12)
    for one, other in zip(
        torch.autograd.grad(found.square().sum(), [x, decay]),
        torch.autograd.grad(expected.square().sum(), [x, decay]),
        strict=True,
    ):
        assert torch.allclose(one, other, rtol=0, atol=1e-10)


def test_leaky_mean_spans_from_the_last_step_to_the_plain_mean() -> None:
    x = drawn(6, 3, seed=16)
    assert torch.allclose(leaky_mean(x, 1.0), x.mean(0), rtol=0, atol=1e-15)
    zero = torch.tensor(0.0, dtype=torch.float64, requires_grad=True)
    last = leaky_mean(x, zero)
    assert torch.equal(last, x[-1])
    (slope,) = torch.autograd.grad(last.sum(), zero)
    assert slope.item() == pytest.approx((x[-2] - x[-1]).sum().item())


@pytest.mark.parametrize("verb", [linrec, leaky_mean])
@pytest.mark.parametrize(
    ("x", "decay", "told"),
    [
        (torch.tensor(1.0), 0.5, r"shape \[\] has no time steps"),
        (torch.zeros(0, 2), 0.5, r"shape \[0, 2\] has no time steps"),
        (torch.ones(3, 2, dtype=torch.long), 0.5, r"torch\.int64.*x\.float"),
        (torch.ones(3, 2, 4), torch.ones(3), r"decay of shape \[3\].*one step \[2, 4\]"),
        (torch.ones(3, 1), torch.ones(5), r"decay of shape \[5\].*one step \[1\]"),
        (torch.ones(3, 2), torch.ones(1, 1, 2), r"decay of shape \[1, 1, 2\].*one step \[2\]"),
    ],
)
def test_what_does_not_fit_is_named(verb: object, x: Tensor, decay: object, told: str) -> None:
    with pytest.raises(SpecError, match=told):
        verb(x, decay)  # type: ignore[operator]


def test_a_start_that_does_not_fit_is_named() -> None:
    with pytest.raises(SpecError, match=r"start of shape \[4\].*one step \[2\]"):
        linrec(torch.ones(3, 2), 0.5, start=torch.ones(4))
