"""Batch-norm statistics estimated again: of which images, in which mode, and what stays."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_training import IMAGES, SPEC, quantized_net, splits
from torch import Tensor, nn

from mt_convert.data import DataSpec, Splits
from mt_convert.data.image_set import ImageSet, make_source
from mt_convert.errors import DataError, SpecError
from mt_convert.quantization.batch_norm import batch_norms
from mt_convert.training.accuracy import accuracy
from mt_convert.training.batch_norm import reestimate_batch_norm_
from mt_convert.training.loop import fit
from mt_convert.training.spec import TrainSpec


def simple() -> nn.Sequential:
    return nn.Sequential(nn.BatchNorm2d(1), nn.Dropout(0.9), nn.Flatten(), nn.Linear(64, 3))


def test_statistics_are_the_averages_over_whole_batches_of_plain_images() -> None:
    model = simple()
    reestimate_batch_norm_(model, splits().train, 17, 8)
    batches = [IMAGES[:8], IMAGES[8:16]]
    mean = torch.stack([batch.mean((0, 2, 3)) for batch in batches]).mean(0)
    variance = torch.stack([batch.transpose(0, 1).flatten(1).var(1) for batch in batches]).mean(0)
    torch.testing.assert_close(model[0].running_mean, mean)
    torch.testing.assert_close(model[0].running_var, variance)


def test_all_else_stays_as_it_was() -> None:
    model = simple()
    model.train()
    model(IMAGES)
    weights = [parameter.clone() for parameter in model.parameters()]
    state = torch.get_rng_state()
    reestimate_batch_norm_(model, splits().train, 16, 8)
    first = model[0].running_mean.clone()
    reestimate_batch_norm_(model, splits().train, 16, 8)
    assert torch.equal(first, model[0].running_mean), "statistics before do not matter"
    assert all(map(torch.equal, weights, model.parameters()))
    assert (model[0].momentum, int(model[0].num_batches_tracked)) == (0.1, 1)
    assert all(module.training for module in model.modules())
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.slow
def test_a_quantized_network_is_estimated_with_its_quantizers_at_rest() -> None:
    qann = quantized_net()
    steps = {name: value.clone() for name, value in qann.named_parameters()}
    reestimate_batch_norm_(qann, splits().train, 48, 48)
    assert all(torch.equal(steps[name], value) for name, value in qann.named_parameters())
    seen: list[Tensor] = []
    handle = qann.layers.get_submodule("7").register_forward_hook(
        lambda layer, inputs, output: seen.append(output)
    )
    qann(IMAGES[:48])
    handle.remove()
    norm = batch_norms(qann)[2]
    normalised = (seen[0].detach() - norm.bias.detach()[:, None, None]) / norm.weight.detach()[
        :, None, None
    ]
    assert float(normalised.mean((0, 2, 3)).abs().max()) < 1e-3


@pytest.mark.parametrize("ema", [None, 0.9])
def test_what_is_validated_and_kept_has_estimated_statistics(
    tmp_path: Path, ema: float | None
) -> None:
    model, parts = simple(), splits()
    model[1].p = 0.0
    spec = replace(SPEC, reestimate_bn=24, ema_decay=ema)
    history = fit(model, parts, spec, tmp_path, classes=3)
    assert history.best_accuracy == accuracy(model, parts.validation, 12)
    kept = {name: value.clone() for name, value in model.state_dict().items()}
    key = (spec.seed, history.best_epoch - 1)
    reestimate_batch_norm_(model, parts.train, 24, 12, key)
    assert all(torch.equal(kept[name], value) for name, value in model.state_dict().items())
    reestimate_batch_norm_(model, parts.train, 12, 12, key)
    assert not torch.equal(kept["0.running_mean"], model[0].running_mean)


def test_statistics_come_from_images_as_the_epoch_shows_them(tmp_path: Path) -> None:
    model = nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(64, 3))
    images, labels = torch.rand(48, 1, 8, 8), torch.arange(48) % 3
    spec = DataSpec("mine", image_size=8, channels=1, classes=3, augmentation="crop_flip")
    plain = replace(spec, augmentation="none")
    train = ImageSet(make_source(images, labels, spec, "train"), spec)
    rest = ImageSet(make_source(images, labels, plain, "rest"), plain)
    how = TrainSpec(epochs=1, batch_size=12, lr=0.1, reestimate_bn=24, seed=5)
    fit(model, Splits(train, rest, rest, rest), how, tmp_path, classes=3)
    kept = model[0].running_mean.clone()
    for key, same in (((5, 0), True), ((5, 1), False), (None, False)):
        reestimate_batch_norm_(model, train, 24, 12, key)
        assert torch.equal(kept, model[0].running_mean) is same, key


def test_what_cannot_be_estimated_is_refused_before_training(tmp_path: Path) -> None:
    spec = TrainSpec(epochs=1, batch_size=8, reestimate_bn=49)
    with pytest.raises(DataError, match=r"reestimate_bn  49  there are 48: lower it"):
        fit(simple(), splits(), spec, tmp_path, classes=3)
    with pytest.raises(SpecError, match=r"has no batch norm[\s\S]*quantize.batch_norm: keep"):
        fit(nn.Linear(1, 1), splits(), spec, tmp_path, classes=3)
    with pytest.raises(SpecError, match="freeze_bn_after keeps the statistics"):
        TrainSpec(epochs=1, reestimate_bn=8, freeze_bn_after=1)
