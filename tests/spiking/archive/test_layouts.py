"""The Hub's form of a folder: the same network, weights of few bits packed; damage is refused."""

from __future__ import annotations

import copy
import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from networks import images, quantized

from mt_convert.errors import CheckpointError
from mt_convert.spiking import archive
from mt_convert.spiking.archive import layouts
from mt_convert.spiking.archive.layouts import pack, unpack
from mt_convert.spiking.convert import convert
from mt_convert.spiking.simulate import simulate
from mt_convert.system.network_files import holds_network

HERE = Path("config.json")


def hub_folder(network: Any, folder: Path) -> Path:
    archive.save(network, folder / "hub")
    layouts.add_settings(folder / "hub", {"mean": [0.5]})
    return folder / "hub"


def earlier_folder(folder: Path, to: Path) -> Path:
    """The same network as earlier versions wrote it, every tensor as it is."""
    content, tensors = layouts.read_description(folder), layouts.read_tensors(folder)
    to.mkdir()
    (to / "network.json").write_text(json.dumps(content))
    layouts.save_tensors(to / "tensors.safetensors", tensors)
    return to


@pytest.mark.parametrize("bits", range(1, 9))
def test_levels_of_every_width_come_back(bits: int) -> None:
    low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    levels = torch.arange(low, high + 1).repeat(3)[: 2 * (high - low) + 1 or 1]
    step = torch.tensor([[0.25]])
    weight = (levels * 0.25).reshape(1, -1)
    found = pack(weight, step)
    assert found is not None
    assert found[0] == bits
    assert len(found[1]) == -(-weight.numel() * bits // 8)
    packed = {"w": [bits, *weight.shape]}
    back = unpack(packed, {"w": found[1], "w_scale": step}, HERE)
    assert torch.equal(back["w"], weight)


def test_weights_off_their_grid_are_not_packed() -> None:
    step = torch.tensor([[0.3]])
    assert pack(torch.tensor([[0.3, 0.61]]), step) is None
    assert pack(torch.tensor([[0.3 * 200]]), step) is None
    assert pack(torch.tensor([[1.0]]), torch.tensor([[0.0]])) is None


def test_a_folder_of_either_form_is_the_same_network(tmp_path: Path) -> None:
    snn, batch = convert(quantized("residual")), images(4, seed=3)
    folder = hub_folder(snn, tmp_path)
    names = {path.name for path in folder.iterdir()}
    assert names == {"config.json", "model.safetensors", "summary.json"}
    back, old = archive.load(folder), archive.load(earlier_folder(folder, tmp_path / "earlier"))
    for name, tensor in snn.layers.state_dict().items():
        assert torch.equal(back.layers.state_dict()[name], tensor)
        assert torch.equal(old.layers.state_dict()[name], tensor)
    runs = [simulate(network, batch, time_steps=2).logits for network in (snn, back, old)]
    assert all(torch.equal(run, runs[0]) for run in runs)
    prepared = {"mean": [0.5], "input_size": list(snn.image_shape)}
    assert layouts.read_settings(folder)["pretrained_cfg"] == prepared
    assert holds_network(folder)
    assert not holds_network(tmp_path)


@pytest.mark.slow
def test_four_bits_of_a_weight_are_four_bits_of_the_file(tmp_path: Path) -> None:
    snn = convert(quantized("residual"))
    folder = hub_folder(snn, tmp_path)
    packed = json.loads((folder / "config.json").read_text())["packed"]
    weights = {
        name: item for name, item in snn.layers.state_dict().items() if name.endswith(".weight")
    }
    assert {name for name, (bits, *_) in packed.items() if bits <= 4}
    stored = layouts.load_tensors(folder / "model.safetensors")
    for name, (bits, *shape) in packed.items():
        assert shape == list(weights[name].shape)
        assert stored[name].numel() == -(-weights[name].numel() * bits // 8)
    earlier = earlier_folder(folder, tmp_path / "earlier")
    whole, small = earlier / "tensors.safetensors", folder / "model.safetensors"
    saved = sum(
        4 * weights[name].numel() - stored[name].numel() for name in packed
    )  # bytes of floats less those of levels
    assert whole.stat().st_size - small.stat().st_size == pytest.approx(saved, abs=1000)


def test_a_quantized_network_keeps_its_floats(tmp_path: Path) -> None:
    qann = quantized("residual")
    back = archive.load(hub_folder(qann, tmp_path))
    here, there = qann.layers.state_dict(), back.layers.state_dict()
    assert all(torch.equal(here[name], there[name]) for name in here)


def test_what_was_changed_or_cut_is_one_message(tmp_path: Path) -> None:
    folder = hub_folder(convert(quantized("residual")), tmp_path)
    path, draw = folder / "config.json", random.Random(0)
    config = json.loads(path.read_text())
    name = next(iter(config["packed"]))

    def refused(edit: Any) -> str:
        changed = copy.deepcopy(config)
        changed = edit(changed) or changed
        path.write_text(json.dumps(changed))
        with pytest.raises(CheckpointError) as error:
            archive.load(folder)
        path.write_text(json.dumps(config))
        return str(error.value)

    assert "does not fit its bytes" in refused(lambda c: c["packed"].update({name: [4, 2**40]}))
    assert "does not fit its bytes" in refused(lambda c: c["packed"].update({name: [64, 4]}))
    assert "does not fit its bytes" in refused(lambda c: c["packed"].update({name: "4"}))
    assert "does not fit its bytes" in refused(lambda c: c["packed"].update({"other": [4, 4]}))
    assert "packed" in refused(lambda c: c.update(packed=[1]))
    refused(lambda c: c["packed"].pop(name) and None)
    assert "another library" in refused(lambda c: {"architecture": "resnet18"})
    assert "schema" in refused(lambda c: c["network"].update(schema="mt_convert.network/0"))
    assert "belong to different" in refused(lambda c: c["network"].update(digest="0"))
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    for index in range(20):
        content = bytearray(whole)
        if index % 2:
            content = content[: draw.randrange(len(content))]
        else:
            content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        weights.write_bytes(content)
        with pytest.raises(CheckpointError):
            archive.load(folder)
