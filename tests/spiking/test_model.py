"""A network is copied whole, stored by `save` alone, and is what it was in every mode."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import weakref

import pytest
import torch
from networks import images, network, quantized
from torch.fx.experimental.sym_node import SymNode
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from traces import PLACE

from mt_convert.errors import MTConvertError
from mt_convert.graph.leftovers import sources
from mt_convert.graph.tracing.trace import trace
from mt_convert.neurons.ladder import Uniform
from mt_convert.quantization.quantize import quantize
from mt_convert.quantization.spec import BatchNorm, QuantSpec
from mt_convert.spiking.convert import convert
from mt_convert.spiking.simulate import simulate


@pytest.mark.slow
def test_train_changes_neither_results_nor_statistics() -> None:
    snn, x = convert(quantized("bn_act", BatchNorm.KEEP)), images(6)
    assert not any(module.training for module in snn.modules())
    expected = simulate(snn, x, time_steps=1).logits
    before = {name: value.clone() for name, value in snn.state_dict().items()}
    assert snn.train() is snn
    assert not any(module.training for module in snn.modules())
    assert torch.equal(simulate(snn, x, time_steps=1).logits, expected)
    assert all(torch.equal(value, before[name]) for name, value in snn.state_dict().items())


@pytest.mark.slow
def test_a_ladder_for_a_layer_that_is_not_there_is_refused_with_near_names() -> None:
    qann = quantized("clamps")
    with pytest.raises(MTConvertError, match=r"act7 +is no layer of neurons +did you mean act6\?"):
        convert(qann, ladder={"act7": Uniform(2)})
    with pytest.raises(MTConvertError, match=r"input_quant +is no layer of neurons"):
        convert(qann, ladder={"input_quant": Uniform(2)})


def test_copies_are_whole_and_pickles_name_what_to_do_instead() -> None:
    qann, x = quantized("residual"), images(3)
    snn = convert(qann, ladder=Uniform(3), signed=True)
    for copied in (copy.deepcopy(copy.deepcopy(snn)), copy.copy(snn)):
        assert copied.report == snn.report
        run = simulate(copied, x, time_steps=2)
        assert torch.equal(run.logits, simulate(snn, x, time_steps=2).logits)
    assert torch.equal(copy.deepcopy(qann)(x), qann(x))
    for item in (qann, snn):
        for store in (pickle.dumps, lambda net: torch.save(net, io.BytesIO())):
            with pytest.raises(MTConvertError, match=r"mt\.save\(network, folder\)"):
                store(item)
        other = copy.deepcopy(item)
        for value in other.state_dict().values():
            value.zero_()
        other.load_state_dict(item.state_dict())
        assert all(
            torch.equal(value, item.state_dict()[name])
            for name, value in other.state_dict().items()
        )


@pytest.mark.slow
def test_nothing_of_a_conversion_stays_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(*PLACE, trace)  # each time

    def work() -> list[weakref.ref[object]]:
        qann = quantize(network("one_relu"), QuantSpec(), calibration=images(4))
        snn = convert(qann)
        return [weakref.ref(item) for item in (qann, snn, qann.layers, snn.layers)]

    before = len(sources())
    kept = work()
    gc.collect()
    assert [item() for item in kept] == [None] * 4
    assert len(sources()) == before

    def symbols() -> int:
        gc.collect()
        return sum(type(item) in (SymNode, ShapeEnv) for item in gc.get_objects())

    start, counts = symbols(), []
    for _ in range(2):
        work()
        counts.append(symbols())
    assert counts[0] == counts[1] < start + 100
