"""Every key of a recipe that has a list of allowed values, by walking the specifications."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Iterator
from enum import StrEnum
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import BaseModel

from mt_convert.data import image_spec
from mt_convert.neurons.ladder import LADDERS
from mt_convert.quantization import spec as quant_spec
from mt_convert.training import spec as train_spec
from mt_convert.training.from_scratch import spec as spiking_spec
from mt_convert.training.from_scratch.poisson import Coding
from mt_convert.training.from_scratch.tensor_trains import tensor_train
from mt_convert.training.gradients import ALGORITHMS

Value = bool | str | int | list[str] | None

NAMED: dict[str, tuple[Value, ...]] = {
    "TrainSpec.scheduler": train_spec.SCHEDULES,
    "TrainSpec.mixed_precision": train_spec.PRECISIONS,
    "QuantizeBlock.after": tuple([name] for name in quant_spec.AFTER),
    "QuantizeBlock.functions": quant_spec.FUNCTIONS,
    "CalibrateBlock.calibration": (
        *("initial_potential", "percentile", "maximum", "mse", "alpha_beta", "gaussian"),
        *("alpha_beta(signed)", "membrane_mean", "membrane_mean(per=neuron)"),
        *("layer_wise(epochs=1)", "layer_wise(epochs=1,loss=kl)", "thresholds(levels=1)"),
    ),
    "DataSpec.augmentation": image_spec.AUGMENTATIONS,
    "DataSpec.interpolation": image_spec.INTERPOLATIONS,
    "DataSpec.compare": image_spec.COMPARISONS,
    "SpikingSpec.neuron": spiking_spec.NEURONS,
    "SpikingSpec.ladder": (None, *LADDERS),
    "SpikingSpec.surrogate": spiking_spec.THROUGH,
    "SpikingSpec.algorithm": tuple(ALGORITHMS),
    "SpikingSpec.start": spiking_spec.STARTS,
    "SpikingSpec.coding": tuple(map(str, Coding)),
    "TensorTrain.form": tuple(map(str, tensor_train.Form)),
    "TensorTrain.rank": ("evbmf", 2),
}
"""What words stand for where the type says no more than that it is one."""

FREE = (
    *("Recipe.name", "SpikingRecipe.name", "TrainSpec.optimizer", "QuantizeBlock.checkpoint"),
    *(
        "ModelSpec.architecture",
        "ModelSpec.checkpoint",
        "ModelSpec.from_run",
        "DataSpec.dataset",
        "ModelSpec.import_",
    ),
    *("DataSpec.root", "DataSpec.train_split", "DataSpec.test_split", "DataSpec.name"),
    *("DataSpec.class_map", "Override.pattern"),
    *("EventSpec.dataset", "EventSpec.root", "EventSpec.bins", "EvaluateBlock.calibrations"),
)
"""Words that may be anything, or are no value that a smoke run could have."""


def enumerated(kind: type, path: tuple[str, ...] = ()) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """Each key below a block, dotted, with all of its values.

    Raises: AssertionError: a word that neither `NAMED` nor `FREE` knows.
    """
    for name, hint in get_type_hints(kind).items():
        if name.startswith("model_") or typing.get_origin(hint) is typing.ClassVar:
            continue
        here, owner = ".".join((*path, name)), f"{kind.__name__}.{name}"
        if owner in NAMED:
            yield here, NAMED[owner]
            continue
        words = list(_kinds(hint))
        for item in words:
            if _is_block(item) and not _in_tuple(hint):
                yield from enumerated(item, (*path, name))
        assert str not in words or owner in FREE, f"{owner}: name its words in NAMED or FREE"
        values = tuple(value for item in words for value in _values(item))
        if values:
            several = _in_tuple(hint)
            yield here, tuple([value] if several else value for value in values)


def _kinds(hint: Any) -> Iterator[Any]:
    """The types within a union, a tuple, an annotation."""
    if get_origin(hint) in (Union, types.UnionType, tuple, typing.Annotated):
        for item in get_args(hint):
            yield from _kinds(item)
    elif get_origin(hint) is not dict:
        yield hint


def _in_tuple(hint: Any) -> bool:
    """Whether there can be several of them."""
    if get_origin(hint) is tuple:
        return True
    inside = get_args(hint) if get_origin(hint) is not Literal else ()
    return any(_in_tuple(item) for item in inside)


def _is_block(item: Any) -> bool:
    """Whether a type has keys of its own."""
    if not isinstance(item, type):
        return False
    return dataclasses.is_dataclass(item) or issubclass(item, BaseModel)


def _values(item: Any) -> tuple[Value, ...]:
    """The values of a type that lists them."""
    if get_origin(item) is Literal:
        return get_args(item)
    if isinstance(item, type) and issubclass(item, StrEnum):
        return tuple(map(str, item))
    return (False, True) if item is bool else ()
