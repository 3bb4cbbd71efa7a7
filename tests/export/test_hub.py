"""A folder for the Hub: written, read back, and uploaded without a connection."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from networks import images, network, quantized
from torch import nn

import mt_convert as mt
from mt_convert.errors import CheckpointError, OutputError
from mt_convert.export import hub
from mt_convert.quantization.quantize import QuantSpec, quantize

huggingface_hub = pytest.importorskip("huggingface_hub", reason="timm brings it")

ROWS = [
    {"dataset": "digits", "n": n, "T": t, "snn_accuracy": 90.0 + n, "method": "mt_uniform"}
    for n in (3, 15)
    for t in (1, 2)
]


def test_a_folder_is_what_the_hub_expects_and_comes_back_equal(tmp_path: Path) -> None:
    snn, batch = mt.convert(quantized("residual"), verify=images(2)), images(3, seed=4)
    card = {"license": "mit", "model_name": "small", "base_model": "timm/none", "tags": ["tiny"]}
    mt.export.save_pretrained(snn, tmp_path / "a", rows=ROWS, card=card, notes="Dear reader.")
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
        "summary.json",
    ]
    back = mt.export.from_pretrained(tmp_path / "a")
    for loaded in (back, mt.load(tmp_path / "a")):
        runs = [mt.simulate(one, batch, time_steps=1).logits for one in (snn, loaded)]
        assert torch.equal(*runs)
    head = huggingface_hub.ModelCard.load(tmp_path / "a" / "README.md")
    assert head.data.license == "mit"
    assert head.data.library_name == "mt_convert"
    assert {"spiking-neural-network", "tiny"} <= set(head.data.tags)
    assert len(head.data.eval_results) == len(ROWS)
    found = {(one.metric_args["n"], one.metric_args["T"]) for one in head.data.eval_results}
    assert found == {(row["n"], row["T"]) for row in ROWS}
    assert "Exact at T = 1" in head.text
    assert "Dear reader." in head.text


@pytest.mark.slow
def test_networks_of_every_kind_go_and_old_folders_stay_readable(tmp_path: Path) -> None:
    qann = quantized("line")
    mt.export.save_pretrained(qann, tmp_path / "q")
    assert type(mt.export.from_pretrained(str(tmp_path / "q"))).__name__ == "QuantizedModel"
    spec = mt.neurons.NeuronSpec(mt.Uniform(2), initial=0.0, surrogate=mt.neurons.surrogate.ATan())
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
    scratch = mt.training.build_from_scratch(
        net, spec, example=torch.zeros(2, 1, 4, 4), time_steps=3
    ).eval()
    mt.export.save_pretrained(scratch, tmp_path / "s")
    x = torch.randn(2, 1, 4, 4)
    assert torch.equal(mt.export.from_pretrained(tmp_path / "s")(x), scratch(x))
    mt.save(qann, tmp_path / "old")
    assert type(mt.export.from_pretrained(tmp_path / "old")).__name__ == "QuantizedModel"


@pytest.mark.slow
def test_how_timm_prepares_images_travels_along(tmp_path: Path) -> None:
    timm_data = pytest.importorskip("timm.data")
    net: Any = network("residual")
    net.pretrained_cfg = {"mean": (0.1, 0.2), "std": (0.5, 0.5), "crop_pct": 0.9, "url": "secret"}
    qann = quantize(net, QuantSpec(), calibration=images(8))
    mt.save(qann, tmp_path / "plain")
    snn = mt.convert(mt.load(tmp_path / "plain")).with_neurons({})
    mt.export.save_pretrained(snn, tmp_path / "a", data_settings={"interpolation": "bicubic"})
    text = (tmp_path / "a" / "config.json").read_text()
    assert "secret" not in text
    settings = json.loads(text)["pretrained_cfg"]
    config = timm_data.resolve_data_config(pretrained_cfg=settings)
    assert config["mean"] == [0.1, 0.2]
    assert (config["crop_pct"], config["interpolation"]) == (0.9, "bicubic")
    assert tuple(config["input_size"]) == tuple(snn.image_shape)
    assert mt.export.from_pretrained(tmp_path / "a").report.data_settings["crop_pct"] == 0.9


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    snn = mt.convert(quantized("line"))
    (tmp_path / "config.json").write_text('{"architecture": "resnet18"}')
    with pytest.raises(OutputError, match="another library"):
        mt.export.save_pretrained(snn, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text()) == {"architecture": "resnet18"}
    mt.save(snn, tmp_path / "mine")
    mt.export.save_pretrained(snn, tmp_path / "mine")  # the same files, and a card
    assert {path.name for path in (tmp_path / "mine").iterdir()} == {
        *("README.md", "config.json", "model.safetensors", "summary.json")
    }
    (tmp_path / "mine" / "README.md").write_text("my own words")
    mt.export.save_pretrained(snn, tmp_path / "mine")
    assert (tmp_path / "mine" / "README.md").read_text() == "my own words"


def test_an_upload_is_the_same_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snn, sent = mt.convert(quantized("line")), {}

    class Api:
        def __init__(self, token: Any = None) -> None:
            pass

        def create_repo(self, repo_id: str, **given: Any) -> Any:
            return type("Repo", (), {"repo_id": repo_id})

        def upload_folder(self, *, folder_path: Path, **given: Any) -> str:
            sent.update({path.name: path.read_bytes() for path in Path(folder_path).iterdir()})
            return f"https://example.org/{given['repo_id']}"

    monkeypatch.setattr("huggingface_hub.hub_mixin.HfApi", Api)
    assert mt.export.push_to_hub(snn, "me/small") == "https://example.org/me/small"
    mt.export.save_pretrained(snn, tmp_path, card={"model_name": "me/small"})
    assert sent == {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def refuse(self: Any, **given: Any) -> str:
        raise ConnectionError("no way\nthere")

    monkeypatch.setattr(Api, "upload_folder", refuse)
    with pytest.raises(OutputError, match=r"cannot upload to me/small: no way$"):
        mt.export.push_to_hub(snn, "me/small")


def test_a_download_is_read_as_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mt.export.save_pretrained(quantized("line"), tmp_path / "cache")

    def download(name: str, file: str, **given: Any) -> str:
        if name != "me/small":
            raise ConnectionError("not found")
        return str(tmp_path / "cache" / file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert type(mt.export.from_pretrained("me/small")).__name__ == "QuantizedModel"
    with pytest.raises(CheckpointError, match="neither a folder nor reachable: not found"):
        mt.export.from_pretrained("me/other")
    with pytest.raises(CheckpointError, match="no name of a repository"):
        mt.export.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="no name of a repository"):
        mt.export.from_pretrained("./nowhere")


@pytest.mark.slow
def test_without_the_package_folders_still_go_and_the_hub_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    mt.export.save_pretrained(quantized("line"), tmp_path)
    assert type(mt.export.from_pretrained(tmp_path)).__name__ == "QuantizedModel"
    with pytest.raises(mt.MTConvertError, match=r"pip install mt-convert\[export\]"):
        hub.push_to_hub(quantized("line"), "me/small")
