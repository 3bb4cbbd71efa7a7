"""Keys are plain JSON that hangs on no name of a class; those of common values stand here."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, ClassVar, get_args

import pytest
import torch
from networks import images, lived_in
from torch import nn

from mt_convert.calibration.spec import NAMES, Calibration, LayerWise, Maximum, Percentile
from mt_convert.errors import SpecError
from mt_convert.evaluation.settings import METHODS, PeerSetting, Setting
from mt_convert.neurons.ladder import (
    LADDERS,
    Binary,
    Ladder,
    Learned,
    PowerOfTwo,
    Radix,
    Uniform,
    UnsignedRadix,
    ladder_to_json,
)
from mt_convert.neurons.spec import IF, LIF, PLIF, Charge, NeuronSpec, Reset
from mt_convert.neurons.surrogate import ATan, Rectangular, SpikeTime, Surrogate
from mt_convert.quantization.quantize import quantize
from mt_convert.quantization.spec import QuantSpec
from mt_convert.spiking.convert import convert
from mt_convert.system.keys import key, to_json
from mt_convert.system.storage import digest
from mt_convert.training.algorithm import Backpropagation
from mt_convert.training.finetune.learner import TrainableSpikingModel
from mt_convert.training.finetune.neuron import TrainableParts
from mt_convert.training.from_scratch.network import build_from_scratch
from mt_convert.training.gradients import BPTT, DSR, OTTT, SURROGATES, Algorithm, Tandem

UNIONS = {
    "ladder": (
        Ladder,
        ["uniform", "binary", "power_of_two", "learned", "radix", "unsigned_radix", "digit"],
    ),
    "charge": (Charge, ["IF", "LIF", "PLIF"]),
    "surrogate": (
        Surrogate,
        ["rectangular", "atan", "sigmoid", "triangular", "straight_through", "linear", "stdb"],
    ),
    "calibration": (
        Calibration,
        [
            *("initial_potential", "percentile", "maximum", "mse", "alpha_beta", "gaussian"),
            *("membrane_mean", "layer_wise", "thresholds"),
        ],
    ),
    "algorithm": (Algorithm, ["bptt", "ottt", "dsr", "tandem"]),
}

PINNED: list[tuple[Any, Any]] = [
    (Uniform(3), {"kind": "uniform", "n": 3}),
    (Binary(4), {"kind": "binary", "bits": 4}),
    (PowerOfTwo(2), {"kind": "power_of_two", "n": 2}),
    (Learned((0.5,)), {"kind": "learned", "gaps": [0.5], "weights": [1.0]}),
    (Radix(1), {"kind": "radix", "n": 1, "steps": None, "gaps": []}),
    (UnsignedRadix(1), {"kind": "unsigned_radix", "n": 1, "steps": None, "gaps": []}),
    (LIF(2.0), {"kind": "LIF", "tau": 2.0, "decay_input": True}),
    (SpikeTime(), {"kind": "stdb", "alpha": 0.3, "beta": 0.01, "first": 1000.0}),
    (Rectangular(), {"kind": "rectangular", "width": 1.0}),
    (Percentile(99.0), {"kind": "percentile", "percent": 99.0}),
    (
        LayerWise(),
        {"kind": "layer_wise", "epochs": 10, "lr": 0.001, "batch_size": 32, "loss": "mse"},
    ),
    (Backpropagation(), {"kind": "backpropagation"}),
    (BPTT(0.5), {"kind": "bptt", "every_step": 0.5}),
    (OTTT(online=True), {"kind": "ottt", "online": True}),
    (DSR(), {"kind": "dsr"}),
    (Tandem(), {"kind": "tandem"}),
    (
        TrainableParts(),
        {
            "kind": "trainable_parts",
            "weights": True,
            "thresholds": True,
            "potentials": False,
            "leaks": False,
        },
    ),
    (
        NeuronSpec(Uniform(2), charge=PLIF(), reset=Reset.HARD, surrogate=ATan()),
        {
            "kind": "neuron",
            "ladder": {"kind": "uniform", "n": 2},
            "firing": None,
            "charge": {"kind": "PLIF", "tau": 2.0, "decay_input": True},
            "reset": "hard",
            "signed": False,
            "initial": 0.5,
            "bounds": None,
            "surrogate": {"kind": "atan", "alpha": 2.0},
            "detach_reset": True,
        },
    ),
    (
        NeuronSpec(Uniform(1), bounds=(0, None)),
        {
            "kind": "neuron",
            "ladder": {"kind": "uniform", "n": 1},
            "firing": None,
            "charge": {"kind": "IF"},
            "reset": "soft",
            "signed": False,
            "initial": 0.5,
            "bounds": [0, None],
            "surrogate": None,
            "detach_reset": True,
        },
    ),
]


@pytest.mark.parametrize(("value", "plain"), PINNED, ids=[row[1]["kind"] for row in PINNED])
def test_a_value_is_its_kind_and_all_of_its_fields(value: Any, plain: Any) -> None:
    assert to_json(value) == plain
    assert json.loads(json.dumps(plain, allow_nan=False)) == to_json(value)


def test_the_key_of_a_setting_is_its_fields_under_a_schema() -> None:
    setting = Setting(Uniform(3), (2, 1), calibration=(Maximum(0.5),))
    assert setting.to_json() == {
        "schema": "setting/1",
        "value": {
            "kind": "setting",
            "ladder": {"kind": "uniform", "n": 3},
            "time_steps": [1, 2],
            "firing": "parallel",
            "signed": True,
            "presentation": "once",
            "whole_window": False,
            "method": "mt_uniform",
            "calibration": [{"kind": "maximum", "scale": 0.5}],
            "calibrated_T": 2,
            "keep_better": True,
        },
    }
    assert PeerSetting("sinabs", (4, 1)).to_json() == {
        "schema": "setting/1",
        "value": {"kind": "peer_setting", "method": "sinabs", "time_steps": [1, 4]},
    }


def test_settings_that_differ_have_keys_that_differ() -> None:
    settings: list[Setting | PeerSetting] = [
        *(method.setting(3, (1, 4)) for method in METHODS.values()),
        *(METHODS["mt_signed"].setting(n, (1, 4)) for n in (1, 2)),
        PeerSetting("mt_signed", (1, 4)),
    ]
    assert len({digest(setting.to_json()) for setting in settings}) == len(set(settings))


@pytest.mark.parametrize("name", UNIONS)
def test_the_names_of_kinds_stand_as_they_are_stored(name: str) -> None:
    union, kinds = UNIONS[name]
    assert [item.kind for item in get_args(union)] == kinds
    assert all("kind" in vars(item) for item in get_args(union))


def test_recipes_and_archives_call_kinds_alike() -> None:
    assert all(value.kind == name for name, value in SURROGATES.items())
    assert set(SURROGATES) == set(UNIONS["surrogate"][1])
    assert all(item.kind == name for name, item in (LADDERS | NAMES).items())  # type: ignore[operator]
    for ladder in (Uniform(3), Binary(2), PowerOfTwo(4), Learned((1.0, 2.0), (1.0, 3.0)), Radix(1)):
        assert ladder_to_json(ladder) == to_json(ladder)


def test_a_renamed_class_keeps_its_key() -> None:
    @dataclass(frozen=True)
    class Even:
        """`Uniform`, renamed."""

        kind: ClassVar[str] = "uniform"

        n: int

    assert digest(key("ladder/1", Even(3))) == digest(key("ladder/1", Uniform(3)))


def test_a_class_without_a_kind_of_its_own_is_refused() -> None:
    class Narrow(Rectangular):
        """Would have the key of the class it changes."""

    @dataclass(frozen=True)
    class Unnamed:
        n: int

    for value in (Narrow(), Unnamed(1), object(), Uniform):
        with pytest.raises(SpecError, match="cannot be part of a key"):
            to_json((value,))


@pytest.mark.slow
def test_what_a_training_must_share_is_plain() -> None:
    net = lived_in(nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2)))
    shown = images(8, (1, 4, 4))
    learner = TrainableSpikingModel(convert(quantize(net, QuantSpec(), calibration=shown)), 2)
    assert learner.settings == {
        "learns": {"schema": "trainable_parts/1", "value": to_json(TrainableParts())},
        "surrogate": {"schema": "surrogate/1", "value": None},
        "T": 2,
    }
    neuron = NeuronSpec(Uniform(2), charge=IF(), initial=0.0, surrogate=ATan())
    network = build_from_scratch(net, neuron, example=torch.zeros(2, 1, 4, 4), time_steps=3)
    (spec,) = network.settings["neurons"]["value"]
    assert network.settings["neurons"]["schema"] == "neurons/1"
    assert spec["surrogate"] == {"kind": "atan", "alpha": 2.0}
    assert json.loads(json.dumps(network.settings)) == network.settings
