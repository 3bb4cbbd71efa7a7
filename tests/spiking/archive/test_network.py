"""Saved and loaded networks: the same numbers, and every damaged file refused with its name."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from networks import images, network
from torch import Tensor, nn
from torch.nn import functional as F

from mt_convert.errors import CheckpointError, OutputError
from mt_convert.neurons.ladder import Binary, Firing, Uniform
from mt_convert.quantization.quantize import QuantizedModel, quantize
from mt_convert.quantization.spec import BatchNorm, Override, QuantSpec, Scale
from mt_convert.spiking.archive import load, load_quantized, save
from mt_convert.spiking.archive import network as archive
from mt_convert.spiking.archive.layouts import digest_of, read_description, read_tensors
from mt_convert.spiking.convert import convert
from mt_convert.spiking.model import SpikingModel
from mt_convert.spiking.presentation import Presentation
from mt_convert.spiking.simulate import simulate
from mt_convert.system import storage

FILES = ["config.json", "model.safetensors", "summary.json"]
NEEDED = FILES[:2]
BATCH = images(5, seed=3)

# Between them: batch norm kept and folded, both scales, a loose parameter, shared layers, clamps.
KINDS = {
    "residual": QuantSpec(batch_norm=BatchNorm.KEEP, overrides=(Override("c*", weight_bits=6),)),
    "shared_weight": QuantSpec(batch_norm=BatchNorm.FOLD),
    "one_relu": QuantSpec(batch_norm=BatchNorm.KEEP, scale=Scale.POWER_OF_TWO, act_bits=3),
    "clamps": QuantSpec(batch_norm=BatchNorm.FOLD, scale=Scale.POWER_OF_TWO, input_bits=None),
}


@cache
def _quantized(name: str) -> QuantizedModel:
    return quantize(network(name), KINDS[name], calibration=images(8, seed=2))


def quantized(name: str) -> QuantizedModel:
    """A quantized network of its own for each caller."""
    return copy.deepcopy(_quantized(name))


def steps(qann: QuantizedModel, count: int) -> list[Tensor]:
    """Losses of a few steps of training, in place; the optimizer is made here, after loading."""
    optimizer = torch.optim.SGD(qann.parameters(), lr=0.05, momentum=0.9)
    losses = []
    qann.train()
    for step in range(count):
        batch = images(6, seed=10 + step)
        loss = F.cross_entropy(qann(batch), torch.arange(6) % 2)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    qann.eval()
    return losses


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a W4A4 network; tests that damage it copy it first."""
    folder = tmp_path_factory.mktemp("stored")
    save(quantized("residual"), folder)
    return folder


@pytest.fixture
def stored_copy(stored: Path, tmp_path: Path) -> Path:
    """A copy of the stored network, to be damaged."""
    for name in FILES:
        (tmp_path / name).write_bytes((stored / name).read_bytes())
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_a_quantized_network_comes_back_with_the_same_logits(name: str, tmp_path: Path) -> None:
    qann = quantized(name)
    save(qann, tmp_path)
    loaded = load(tmp_path)
    assert isinstance(loaded, QuantizedModel)
    assert not loaded.training
    assert loaded.spec == KINDS[name]
    assert loaded.image_shape == qann.image_shape
    with torch.no_grad():
        for batch in (BATCH, BATCH[:1]):
            assert torch.equal(loaded(batch), qann(batch))


@pytest.mark.sampled
@pytest.mark.parametrize("name", KINDS)
def test_a_spiking_network_comes_back_with_the_same_spikes(name: str, tmp_path: Path) -> None:
    snn = convert(quantized(name))
    save(snn, tmp_path)
    loaded = load(tmp_path)
    assert isinstance(loaded, SpikingModel)
    assert loaded.report == snn.report
    one, other = (simulate(net, BATCH, time_steps=1, record=True) for net in (snn, loaded))
    assert torch.equal(one.logits, other.logits)
    assert one.spikes is not None
    assert other.spikes is not None
    assert one.spikes.keys() == other.spikes.keys()
    assert all(torch.equal(one.spikes[layer], other.spikes[layer]) for layer in one.spikes)


@pytest.mark.parametrize(
    "settings",
    [
        {"ladder": Uniform(3), "signed": True, "firing": Firing.CASCADE},
        {"ladder": Binary(2), "signed": True, "whole_window": True},
        {"ladder": Uniform(5), "presentation": Presentation.EVERY_STEP},
    ],
)
def test_ladder_presentation_and_window_come_back(settings: dict[str, Any], tmp_path: Path) -> None:
    snn = convert(quantized("residual"), **settings)
    save(snn, tmp_path)
    loaded = load(tmp_path)
    assert (loaded.presentation, loaded.whole_window) == (snn.presentation, snn.whole_window)
    assert [layer.spec for _, layer in loaded.neurons()] == [
        layer.spec for _, layer in snn.neurons()
    ]
    one, other = (simulate(net, BATCH, time_steps=3).logits for net in (snn, loaded))
    assert torch.equal(one, other)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["residual", "one_relu"])
def test_a_loaded_network_trains_as_the_one_that_was_saved(name: str, tmp_path: Path) -> None:
    qann = quantized(name)
    steps(qann, 1)  # so that steps and batch norms are not what calibration left
    save(qann, tmp_path)
    loaded = load(tmp_path)
    before = {name: tensor.clone() for name, tensor in loaded.state_dict().items()}
    assert all(map(torch.equal, steps(qann, 3), steps(loaded, 3)))
    after, expected = loaded.state_dict(), qann.state_dict()
    assert after.keys() == expected.keys()
    assert all(torch.equal(after[name], expected[name]) for name in after)
    moved = [name for name in after if not torch.equal(after[name], before[name])]
    assert any("act_quant" in name for name in moved)  # the learned steps too
    assert any("running_mean" in name for name in moved)


@pytest.mark.slow
def test_what_is_converted_from_a_loaded_network_equals_what_was_converted_before(
    tmp_path: Path,
) -> None:
    qann = quantized("residual")
    save(qann, tmp_path)
    run = simulate(convert(load(tmp_path)), BATCH, time_steps=1)
    assert torch.equal(run.logits[0], qann(BATCH))


def test_a_folder_holds_two_files_and_no_pickle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("pickle was used")

    snn = convert(quantized("residual"))
    for owner, name in ((pickle, "load"), (pickle, "loads"), (torch, "load"), (torch, "save")):
        monkeypatch.setattr(owner, name, refuse)
    save(snn, tmp_path)
    load(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == FILES
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["network"]["schema"] == archive.NETWORK_SCHEMA
    assert (tmp_path / "model.safetensors").read_bytes()[8:9] == b"{"


def test_no_line_of_the_package_unpickles() -> None:
    package = Path(archive.__file__).parents[2]
    texts = {path: path.read_text() for path in package.rglob("*.py")}
    assert len(texts) > 30
    for path, text in texts.items():
        for word in ("pickle.load", "pickle.Unpickler", "torch.save", "weights_only=False"):
            assert word not in text, path
        assert text.count("torch.load(") == text.count("weights_only=True)"), path


@pytest.mark.slow
def test_a_save_that_fails_leaves_the_network_before_it(
    stored: Path, stored_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {name: (stored / name).read_bytes() for name in FILES}

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    for owner, name in ((safetensors.torch, "save_file"), (Path, "write_text")):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, full)
            with pytest.raises(OutputError, match="No space left"):
                save(quantized("shared_weight"), stored_copy)
        assert {path.name: path.read_bytes() for path in stored_copy.iterdir()} == before
    assert torch.equal(load(stored_copy)(BATCH), load(stored)(BATCH))


# ------------------------------------------------------------------------------------ damaged files


def fails(folder: Path) -> str:
    """The message with which a folder is refused; it names the folder."""
    with pytest.raises(CheckpointError) as caught:
        load(folder)
    message = str(caught.value)
    assert str(folder) in message
    return message


@pytest.mark.parametrize("name", NEEDED)
def test_a_missing_file_is_named(stored_copy: Path, name: str) -> None:
    (stored_copy / name).unlink()
    assert name in fails(stored_copy)


@pytest.mark.parametrize("share", [0.0, 0.0001, 0.5, 0.9999])
def test_truncated_tensors_are_refused(stored_copy: Path, share: float) -> None:
    path = stored_copy / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    assert "not a whole safetensors file" in fails(stored_copy)


@pytest.mark.parametrize("text", ["", "{", "not json", '{"schema": "mt_convert.network/1"'])
def test_a_description_that_is_no_json_is_refused(stored_copy: Path, text: str) -> None:
    (stored_copy / "config.json").write_text(text)
    assert "is not JSON" in fails(stored_copy)


@pytest.mark.parametrize("text", ["{}", '{"schema": "mt_convert.network/2"}', '{"schema": null}'])
def test_another_schema_is_refused_and_the_right_one_named(stored_copy: Path, text: str) -> None:
    (stored_copy / "config.json").write_text(f'{{"network": {text}}}')
    assert "schema must be mt_convert.network/1" in fails(stored_copy)


@pytest.mark.parametrize("text", ["[]", "3", "{}", '{"network": 3}', '{"architecture": "x"}'])
def test_a_config_of_something_else_is_refused(stored_copy: Path, text: str) -> None:
    (stored_copy / "config.json").write_text(text)
    assert "describes no network of ours" in fails(stored_copy)


def test_a_folder_of_an_earlier_version_is_read_and_replaced_as_a_whole(tmp_path: Path) -> None:
    qann = quantized("residual")
    content, tensors = written(qann, tmp_path / "now")
    old = tmp_path / "old"
    old.mkdir()
    (old / "network.json").write_text(json.dumps(content))
    storage.save_tensors(old / "tensors.safetensors", tensors)
    assert torch.equal(load(old)(BATCH), qann(BATCH))
    save(convert(qann), old)
    assert sorted(path.name for path in old.iterdir()) == FILES
    assert type(load(old)).__name__ == "SpikingModel"


def written(network: Any, folder: Path) -> tuple[Any, Any]:
    """What stands in the files of a network."""
    save(network, folder)
    return read_description(folder), read_tensors(folder)


def test_a_model_of_another_library_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"architecture": "resnet18"}')
    with pytest.raises(OutputError, match="another library"):
        save(quantized("residual"), tmp_path)
    assert (tmp_path / "config.json").read_text() == '{"architecture": "resnet18"}'


def test_one_changed_weight_is_noticed(stored_copy: Path) -> None:
    path = stored_copy / "model.safetensors"
    tensors = storage.load_tensors(path)
    tensors["a.weight"][0, 0, 0, 0] += 1e-6
    storage.save_tensors(path, tensors)
    assert "different networks, or one was changed" in fails(stored_copy)


@pytest.mark.slow
def test_halves_of_two_networks_are_not_read_as_one(stored_copy: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    qann = quantized("residual")
    steps(qann, 1)
    save(qann, other)
    (stored_copy / "config.json").write_bytes((other / "config.json").read_bytes())
    assert "different networks" in fails(stored_copy)


def edit(folder: Path, change: Callable[[Any], None], sign: bool = False) -> None:
    """Change the description of a stored network; ``sign`` renews its digest."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    content = config["network"]
    change(content)
    if sign:
        content.pop("digest")
        content["digest"] = digest_of(content, read_tensors(folder))
    path.write_text(json.dumps(config))


def test_the_bits_in_the_description_cannot_be_changed_by_hand(stored_copy: Path) -> None:
    edit(stored_copy, lambda content: content["spec"].update(weight_bits=2, act_bits=2))
    assert "one was changed" in fails(stored_copy)


def test_a_description_written_in_another_layout_is_the_same(
    stored: Path, stored_copy: Path
) -> None:
    edit(stored_copy, lambda content: None)
    assert (stored_copy / "config.json").read_bytes() != (stored / "config.json").read_bytes()
    assert torch.equal(load(stored_copy)(BATCH), load(stored)(BATCH))


CHANGES: dict[str, Callable[[Any], None]] = {
    "no layers": lambda content: content.pop("layers"),
    "layers as a list": lambda content: content.update(layers=[]),
    "a layer missing": lambda content: content["layers"].pop("a"),
    "a class that is not ours": lambda content: content["layers"]["a"].update(type="Bilinear"),
    "negative channels": lambda content: content["layers"]["a"].update(out_channels=-1),
    "other channels": lambda content: content["layers"]["a"].update(out_channels=7),
    "bits out of range": lambda content: content["spec"].update(weight_bits=9),
    "no spec": lambda content: content.update(spec=None),
    "no kind": lambda content: content.pop("kind"),
    "arguments that are a number": lambda content: content["graph"][5].update(args=3.5),
    "an operator that is not ours": lambda content: content["graph"][5].update(target="os.system"),
    "no nodes": lambda content: content.update(graph=[]),
    "no image shape": lambda content: content.update(image_shape=None),
}


@pytest.mark.sampled
@pytest.mark.parametrize("what", CHANGES)
def test_a_description_that_makes_no_network_is_refused(stored_copy: Path, what: str) -> None:
    edit(stored_copy, CHANGES[what], sign=True)
    with pytest.raises(CheckpointError):
        load(stored_copy)


@pytest.mark.sampled
@pytest.mark.parametrize(
    "change",
    [
        lambda layers: layers["relu"].update(bounds=None),
        lambda layers: layers["relu"].update(ladder={"kind": "uniform", "n": 0}),
        lambda layers: layers["a"].update(weight_scale=[-1]),
        lambda layers: layers["a"].update(weight_scale=[3]),
    ],
)
def test_a_description_that_makes_no_spiking_network_is_refused(
    tmp_path: Path, change: Callable[[Any], None]
) -> None:
    save(convert(quantized("residual")), tmp_path)
    edit(tmp_path, lambda content: change(content["layers"]), sign=True)
    with pytest.raises(CheckpointError):
        load(tmp_path)


def test_tensors_that_do_not_fit_are_all_listed(stored_copy: Path) -> None:
    path = stored_copy / "model.safetensors"
    tensors = storage.load_tensors(path)
    tensors["a.extra"] = tensors.pop("a.weight")
    tensors["stray"] = torch.zeros(2)
    storage.save_tensors(path, tensors)
    edit(stored_copy, lambda content: None, sign=True)
    with pytest.raises(CheckpointError, match="3 tensors do not fit") as caught:
        load(stored_copy)
    assert {fault.where for fault in caught.value.faults} == {"a.weight", "a.extra", "stray"}


# ------------------------------------------------------------------------------- another QuantSpec


def test_a_w4a4_folder_does_not_load_into_w2a2_and_each_difference_is_named(stored: Path) -> None:
    wanted = QuantSpec(weight_bits=2, act_bits=2, batch_norm=BatchNorm.FOLD)
    with pytest.raises(CheckpointError) as caught:
        load_quantized(stored, wanted)
    faults = {fault.where: (fault.what, fault.hint) for fault in caught.value.faults}
    assert set(faults) == {"weight_bits", "act_bits", "batch_norm", "overrides"}
    assert faults["weight_bits"][0] == "stored 4"
    assert faults["weight_bits"][1].startswith("wanted 2")
    assert str(stored) in str(caught.value)


def test_the_same_spec_loads(stored: Path) -> None:
    assert load_quantized(stored, KINDS["residual"]).spec == KINDS["residual"]


def test_a_spiking_network_is_not_taken_for_a_quantized_one(tmp_path: Path) -> None:
    save(convert(quantized("residual")), tmp_path)
    with pytest.raises(CheckpointError, match="holds a spiking network; expected a quantized one"):
        load_quantized(tmp_path, KINDS["residual"])


@pytest.mark.slow
def test_a_network_on_the_way_through_training_has_no_gradients_in_its_files(
    tmp_path: Path,
) -> None:
    qann = quantized("residual")
    steps(qann, 1)
    assert any(parameter.grad is not None for parameter in qann.parameters())
    save(qann, tmp_path)
    loaded: nn.Module = load(tmp_path)
    assert all(parameter.grad is None for parameter in loaded.parameters())
    assert all(parameter.requires_grad for parameter in loaded.parameters())
