"""Forged folders, whose digest is right, fail when they are read, before memory is taken."""

from __future__ import annotations

import json
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mt_convert.errors import CheckpointError
from mt_convert.quantization.quantize import quantize
from mt_convert.quantization.spec import QuantSpec
from mt_convert.spiking.archive.layouts import digest_of, read_description, read_tensors
from mt_convert.spiking.archive.network import load, save
from mt_convert.spiking.convert import convert
from mt_convert.system.storage import save_tensors

Content = dict[str, Any]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A quantized and a spiking network."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten())
    net.append(nn.Linear(8, 2))
    qann = quantize(net, QuantSpec(), calibration=torch.randn(8, 1, 4, 4))
    root = tmp_path_factory.mktemp("stored")
    save(qann, root / "qann")
    save(convert(qann), root / "snn")
    return {"qann": root / "qann", "snn": root / "snn"}


def forge(folder: Path, to: Path, change: Callable[[Content, Content], Any]) -> Path:
    """A copy with another description or other tensors, and their digest."""
    content, tensors = read_description(folder), read_tensors(folder)
    change(content, tensors)
    content.pop("digest", None)
    content["digest"] = digest_of(content, tensors)
    to.mkdir()
    (to / "config.json").write_text(json.dumps({"packed": {}, "network": content}))
    save_tensors(to / "model.safetensors", tensors)
    return to


def layer(content: Content, kind: str) -> Content:
    """The first layer of a type."""
    return next(item for item in content["layers"].values() if item["type"] == kind)


def operator(content: Content) -> Content:
    """The node that calls an operator."""
    return next(node for node in content["graph"] if node["op"] == "call_function")


def weight(tensors: Content) -> str:
    return next(name for name, one in tensors.items() if name.endswith("weight") and one.dim() > 1)


BOTH: dict[str, Callable[[Content, Content], Any]] = {
    "a linear layer of 10^9 inputs": lambda c, t: layer(c, "Linear").update(in_features=10**9),
    "a linear layer of 10^15": lambda c, t: layer(c, "Linear").update(out_features=10**15),
    "a convolution of 10^6 channels": lambda c, t: layer(c, "Conv2d").update(out_channels=10**6),
    "a kernel of 10^5": lambda c, t: layer(c, "Conv2d").update(kernel_size=[10**5, 10**5]),
    "a stride of 0": lambda c, t: layer(c, "Conv2d").update(stride=[0, 0]),
    "a dilation of 0": lambda c, t: layer(c, "Conv2d").update(dilation=[0, 0]),
    "a padding of 10^9": lambda c, t: layer(c, "Conv2d").update(padding=[10**9, 10**9]),
    "a negative padding": lambda c, t: layer(c, "Conv2d").update(padding=[-9, -9]),
    "groups that do not divide": lambda c, t: layer(c, "Conv2d").update(groups=3),
    "no bias": lambda c, t: layer(c, "Linear").update(bias=False),
    "a size that is a text": lambda c, t: layer(c, "Linear").update(in_features="8"),
    "a size of 10^40": lambda c, t: layer(c, "Linear").update(in_features=10**19),
    "an unknown layer": lambda c, t: layer(c, "Linear").update(type="Module"),
    "layers that are a list": lambda c, t: c.update(layers=[]),
    "no graph": lambda c, t: c.update(graph=[]),
    "a graph of texts": lambda c, t: c.update(graph=["a", "b"]),
    "an image of 10^9 pixels": lambda c, t: c.update(image_shape=[1, 31623, 31623]),
    "an image without pixels": lambda c, t: c.update(image_shape=[1, 0, 4]),
    "an image of -4 pixels": lambda c, t: c.update(image_shape=[1, -4, 4]),
    "an image of another size": lambda c, t: c.update(image_shape=[1, 9, 9]),
    "an image of other channels": lambda c, t: c.update(image_shape=[7, 4, 4]),
    "an image of a text": lambda c, t: c.update(image_shape="1,4,4"),
    "an unknown kind": lambda c, t: c.update(kind="ann"),
    "an operator on meta": lambda c, t: operator(c)["kwargs"].update(device={"device": "meta"}),
    "an operator without arguments": lambda c, t: operator(c).update(args={"tuple": []}),
    "an operator that fills memory": lambda c, t: operator(c).update(
        target="aten.full.default", args={"tuple": [{"list": [10**6, 10**6]}, 1]}
    ),
    "an operator that repeats": lambda c, t: operator(c).update(
        target="aten.repeat.default",
        args={"tuple": [operator(c)["args"]["tuple"][0], {"list": [1, 1, 10**6, 10**6]}]},
    ),
    "NaN in a weight": lambda c, t: t[weight(t)].view(-1)[:1].fill_(float("nan")),
    "infinity in a weight": lambda c, t: t[weight(t)].view(-1)[:1].fill_(float("inf")),
    "a weight of whole numbers": lambda c, t: t.update({weight(t): t[weight(t)].to(torch.int64)}),
    "a weight of half precision": lambda c, t: t.update({weight(t): t[weight(t)].half()}),
    "a weight without numbers": lambda c, t: t.update({weight(t): torch.zeros(0)}),
    "a weight turned": lambda c, t: t.update({weight(t): t[weight(t)].flatten()}),
    "a tensor too many": lambda c, t: t.update(more=torch.ones(1)),
    "a tensor missing": lambda c, t: t.pop(weight(t)),
    "the read-out is a tuple": lambda c, t: c["graph"][-1].update(
        args={"tuple": [{"tuple": [c["graph"][-1]["args"]["tuple"][0]]}]}
    ),
}
SPIKING: dict[str, Callable[[Content, Content], Any]] = {
    "a step of 0": lambda c, t: next(v for k, v in t.items() if k.endswith("delta")).zero_(),
    "a negative step": lambda c, t: next(v for k, v in t.items() if k.endswith("delta")).neg_(),
    "an offset of 10^9": lambda c, t: layer(c, "MTNeuron").update(offset=[10**9]),
    "a ladder of 10^9": lambda c, t: layer(c, "MTNeuron")["ladder"].update(n=10**9),
    "an unknown ladder": lambda c, t: layer(c, "MTNeuron").update(ladder={"kind": "x"}),
    "bounds without 0": lambda c, t: layer(c, "MTNeuron").update(bounds=[3, 2]),
    "an unknown firing": lambda c, t: layer(c, "MTNeuron").update(firing="later"),
    "an unknown presentation": lambda c, t: c.update(presentation="twice"),
    "a window that is a text": lambda c, t: c.update(whole_window="no"),
}
QUANTIZED: dict[str, Callable[[Content, Content], Any]] = {
    "a clip that is a list": lambda c, t: layer(c, "QuantAct").update(clip=[None, []]),
    "99 bits": lambda c, t: layer(c, "QuantAct").update(bits=99),
    "weights of 99 bits": lambda c, t: layer(c, "Linear").update(weight_bits=99),
    "bits that are a text": lambda c, t: layer(c, "Conv2d").update(weight_bits="4"),
    "a scale of another kind": lambda c, t: layer(c, "QuantAct").update(scale="x"),
    "a spec of 99 bits": lambda c, t: c["spec"].update(act_bits=99),
    "a spec that is a list": lambda c, t: c.update(spec=[]),
    "a frozen name that is none": lambda c, t: c.update(frozen=["nowhere"]),
    "tied names that are none": lambda c, t: c.update(tied=[["a", "b"]]),
    "warnings that are numbers": lambda c, t: c.update(warnings=[1]),
}
CASES = [
    *(("qann", name, change) for name, change in (BOTH | QUANTIZED).items()),
    *(("snn", name, change) for name, change in (BOTH | SPIKING).items()),
]


@pytest.mark.sampled
@pytest.mark.parametrize(("kind", "name", "change"), CASES, ids=[f"{a}-{b}" for a, b, _ in CASES])
def test_a_forged_folder_fails_when_it_is_read(
    kind: str,
    name: str,
    change: Callable[[Content, Content], Any],
    folders: dict[str, Path],
    tmp_path: Path,
) -> None:
    forged = forge(folders[kind], tmp_path / "forged", change)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CheckpointError) as raised:
        load(forged)
    assert str(forged) in str(raised.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**18  # KiB


@pytest.mark.parametrize("name", ["e", "."])
def test_a_folder_of_a_short_name_is_named_in_errors_too(
    name: str, folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forged = forge(
        folders["snn"], tmp_path / "e", lambda content, tensors: content.update(presentation="e.")
    )
    monkeypatch.chdir(forged if name == "." else tmp_path)
    with pytest.raises(CheckpointError, match=r"config.json is damaged .*not a valid Presentation"):
        load(name)


@pytest.mark.parametrize("kind", ["qann", "snn"])
def test_what_is_not_forged_is_read(kind: str, folders: dict[str, Path], tmp_path: Path) -> None:
    load(forge(folders[kind], tmp_path / "copied", lambda content, tensors: None))
