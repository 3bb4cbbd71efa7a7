"""Networks written down on stand-ins without data."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from mt_convert.integer_engine.backends import BACKENDS
from mt_convert.integer_engine.model import integer
from mt_convert.integer_engine.program import Operate
from mt_convert.integer_engine.tracing import trace
from mt_convert.quantization.quantize import QuantSpec, quantize
from mt_convert.spiking.convert import convert
from mt_convert.spiking.simulate import simulate


class Masked(nn.Module):
    """Positions from a mask that is made for each batch and moved to its device."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(1, 4, 1), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        mask = torch.zeros(x.shape[0], 4, 4).to(device=x.device, dtype=torch.bool)
        places = (~mask).cumsum(1, dtype=torch.float32)
        return self.last(torch.relu(self.first(x)) + places[:, None]).mean((2, 3))


@pytest.mark.slow
def test_a_constant_of_each_batch_is_moved_without_data() -> None:
    images = torch.randn(4, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    snn = convert(quantize(Masked().eval(), QuantSpec(4, 4), calibration=images))
    moved = [item for item in trace(snn).instructions if isinstance(item, Operate)]
    assert any(item.kwargs.get("device") == torch.device("cpu") for item in moved)
    ran = integer(snn, backend="torch").run(images)
    torch.testing.assert_close(ran.logits[0], simulate(snn, images, time_steps=1).logits[0])


class Turned(nn.Module):
    """A sum of a value and of another turned over, and then a view of it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 4, 1), nn.Conv2d(2, 4, 1)
        self.last = nn.Linear(64, 3)

    def forward(self, x: Tensor) -> Tensor:
        summed = self.first(x) + self.second(x).transpose(2, 3)
        return self.last(torch.relu(summed.view(x.shape[0], 4, 64)).mean(1))


@pytest.mark.slow
def test_a_view_of_a_sum_whose_parts_lie_otherwise_in_memory_is_a_reshape() -> None:
    images = torch.randn(4, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(1)
    snn = convert(quantize(Turned().eval(), QuantSpec(4, 4), calibration=images))
    wanted = integer(snn, backend="reference").run(images, totals=True)
    assert wanted.totals
    torch.testing.assert_close(wanted.logits[0], simulate(snn, images, time_steps=1).logits[0])
    for backend in ("torch", "native"):
        if BACKENDS[backend].missing() is not None:
            continue
        ran = integer(snn, backend=backend).run(images, totals=True)
        assert torch.equal(ran.logits, wanted.logits)
