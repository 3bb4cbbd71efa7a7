"""The read-out's leak, wherever training takes it."""

from __future__ import annotations

import math

import pytest
import torch

from mt_convert.neurons.linear_recurrence import leaky_mean
from mt_convert.training.from_scratch.read_out import ReadOut


@pytest.mark.parametrize("w", [0.0, 3.0, -3.0, -20.0, -200.0])
def test_a_learned_leak_is_the_fixed_one_of_its_time_constant(w: float) -> None:
    """1 - 1 / tau rounds to 1 from w = -17 on: a plain mean, whose time constant is infinite."""
    read_out = ReadOut(2.0, learns=True)
    read_out.w.data.fill_(w)
    each = torch.randn(5, 3, 4, generator=torch.Generator().manual_seed(0))
    assert read_out.tau is not None
    assert math.isinf(read_out.tau) == (w < -17)
    torch.testing.assert_close(read_out(each)[0][-1], leaky_mean(each, 1 - 1 / read_out.tau))
