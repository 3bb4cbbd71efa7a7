"""Networks and their weights: published sizes, published weights, and how files can be bad."""

from __future__ import annotations

import io
import pickle
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from mt_convert.errors import CheckpointError, SpecError
from mt_convert.experiments.models import cifar
from mt_convert.experiments.models.build import (
    ModelSpec,
    architecture_fault,
    build,
    build_described,
    load_ann,
)
from mt_convert.experiments.models.names import CIFAR_MODELS
from mt_convert.system.progress import notice

# He et al. 2016, table 6, in millions; VGG-16 and ResNet-18 as commonly built for CIFAR-10.
PUBLISHED = {
    "resnet20_cifar": 0.27,
    "resnet32_cifar": 0.46,
    "resnet44_cifar": 0.66,
    "resnet56_cifar": 0.85,
    "resnet18_cifar": 11.17,
    "vgg16_cifar": 14.72,
}
OF_DIGITS = {"digits_cnn", "digits_vit"}
DIGITS = ModelSpec("digits_cnn", classes=10, channels=1)


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def digits_weights(prefix: str = "") -> dict[str, Tensor]:
    return {prefix + name: value.clone() for name, value in build(DIGITS).state_dict().items()}


def from_file(path: Path, spec: ModelSpec = DIGITS) -> ModelSpec:
    return ModelSpec(spec.architecture, spec.classes, spec.channels, checkpoint=str(path))


def refused(path: Path) -> str:
    with pytest.raises(CheckpointError) as error:
        build(from_file(path))
    return str(error.value)


def test_the_catalogue_and_the_registry_name_the_same_networks() -> None:
    assert set(timm.list_models(module="cifar")) == set(CIFAR_MODELS)
    assert set(CIFAR_MODELS) == set(PUBLISHED) | OF_DIGITS | {"vgg7_cifar"}


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_networks_have_the_published_number_of_parameters(name: str) -> None:
    assert round(parameters(build(ModelSpec(name, classes=10))) / 1e6, 2) == PUBLISHED[name]


@pytest.mark.parametrize("name", sorted(OF_DIGITS))
def test_the_networks_for_digits_are_small(name: str) -> None:
    assert parameters(build(ModelSpec(name, classes=10, channels=1))) < 60_000


@pytest.mark.golden
def test_networks_keep_their_parameters_and_names(golden: Callable[[str, Any], None]) -> None:
    sizes = {}
    for name in sorted(CIFAR_MODELS):
        model = build(ModelSpec(name, classes=10, channels=1 if name in OF_DIGITS else 3))
        weighted = [n for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
        sizes[name] = {"parameters": parameters(model), "weighted_layers": weighted}
    golden("networks", sizes)


@pytest.mark.parametrize("name", sorted(CIFAR_MODELS))
def test_networks_take_what_timm_passes(name: str) -> None:
    model = timm.create_model(name, num_classes=7, in_chans=2, drop_rate=0.5, pretrained_cfg=None)
    side = 8 if name in OF_DIGITS else 32
    assert model.eval()(torch.zeros(3, 2, side, side)).shape == (3, 7)
    assert model.pretrained_cfg["architecture"] == name
    assert model.get_parameter(f"{model.pretrained_cfg['classifier']}.weight").shape[0] == 7
    assert model.get_parameter(f"{model.pretrained_cfg['first_conv']}.weight").shape[1] == 2


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"])
def test_networks_of_one_size_are_built_for_the_size_of_the_images(name: str) -> None:
    short: dict[str, Any] = {"depths": (1, 1, 1, 1)} if "swin" in name else {"depth": 1}
    spec = ModelSpec(name, classes=7, kwargs=short)
    assert build(spec, image_size=64)(torch.zeros(2, 3, 64, 64)).shape == (2, 7)
    with pytest.raises(AssertionError, match="224"):
        build(spec)(torch.zeros(2, 3, 64, 64))


def test_an_image_size_that_the_recipe_names_itself_wins() -> None:
    spec = ModelSpec("digits_vit", classes=10, channels=1, kwargs={"img_size": 12})
    assert build(spec, image_size=8)(torch.zeros(1, 1, 12, 12)).shape == (1, 10)


def test_networks_of_any_size_are_the_same_for_every_image_size() -> None:
    plain, sized = build(DIGITS), build(DIGITS, image_size=32)
    assert torch.equal(plain.linear.weight, sized.linear.weight)  # type: ignore[arg-type]
    assert sized(torch.zeros(2, 1, 16, 16)).shape == (2, 10)


def test_digits_vit_starts_with_positions_as_loud_as_patches() -> None:
    model = build(ModelSpec("digits_vit", classes=10, channels=1))
    position = model.pos_embed
    assert isinstance(position, Tensor)
    assert 0.4 < position.std().item() < 0.6
    bare = build(ModelSpec("digits_vit", 10, 1, kwargs={"pos_embed": "none"}))
    assert bare.eval()(torch.zeros(2, 1, 8, 8)).shape == (2, 10)


def test_dropout_and_stochastic_depth_act_in_training_only() -> None:
    spec = ModelSpec("resnet20_cifar", classes=10, kwargs={"drop_rate": 0.5, "drop_path_rate": 0.5})
    images = torch.rand(4, 3, 32, 32)
    model = build(spec)
    assert not torch.equal(model(images), model(images))
    model.eval()
    assert torch.equal(model(images), model(images))


def test_option_a_takes_every_second_pixel_and_pads_channels_on_both_sides() -> None:
    block = cifar.OptionABlock(2, 4, stride=2, drop_path=0.0)
    for parameter in block.conv2.parameters():
        nn.init.zeros_(parameter)
    images = torch.arange(1.0, 33).reshape(1, 2, 4, 4)
    out = block.eval()(images)
    assert torch.equal(out[:, 1:3], images[:, :, ::2, ::2])
    assert not out[:, [0, 3]].any()


def test_untrained_weights_follow_the_seed_and_leave_the_callers_random_state() -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first, same, other = build(DIGITS, seed=1), build(DIGITS, seed=1), build(DIGITS, seed=2)
    assert torch.equal(torch.rand(1), expected)
    assert torch.equal(first.linear.weight, same.linear.weight)  # type: ignore[arg-type]
    assert not torch.equal(first.linear.weight, other.linear.weight)  # type: ignore[arg-type]


def test_an_unknown_architecture_is_answered_with_the_nearest_names() -> None:
    with pytest.raises(SpecError, match="did you mean resnet20_cifar"):
        build(ModelSpec("resnet20_cifra", classes=10))
    fault = architecture_fault("resnet18.no_such_weights")
    assert fault is not None
    assert "resnet18.tv_in1k" in fault.hint


def test_arguments_that_a_network_does_not_take_are_named() -> None:
    with pytest.raises(SpecError, match=r"width.*model\.kwargs"):
        build(ModelSpec("resnet20_cifar", classes=10, kwargs={"width": 3}))
    with pytest.raises(SpecError, match="classes is 0"):
        ModelSpec("resnet20_cifar", classes=0)


def test_a_hub_out_of_reach_is_one_message_with_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: Any, **__: Any) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", unreachable)
    with pytest.raises(CheckpointError, match=r"resnet18.*model\.checkpoint=FILE.*no route"):
        build(ModelSpec("resnet18", classes=10, pretrained=True))


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "model."])
def test_prefixes_of_wrappers_are_taken_off(tmp_path: Path, prefix: str) -> None:
    weights = digits_weights(prefix)
    first = f"{prefix}linear.bias"
    weights[first] += 1
    path = tmp_path / "weights.safetensors"
    save_file(weights, path)
    assert torch.equal(build(from_file(path)).state_dict()["linear.bias"], weights[first])


def test_a_torch_file_is_read_under_state_dict_and_without_batch_counters(tmp_path: Path) -> None:
    weights = {k: v for k, v in digits_weights().items() if not k.endswith("num_batches_tracked")}
    weights["linear.bias"] += 1
    path = tmp_path / "weights.th"
    torch.save({"state_dict": weights, "best": 91.7}, path)
    loaded = build(from_file(path)).state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in weights.items())


def test_every_mismatch_is_listed_in_one_error(tmp_path: Path) -> None:
    weights = digits_weights()
    del weights["stem.0.weight"], weights["block.bn1.bias"]
    weights["linear.weight"] = torch.zeros(7, 64)
    weights["head.1.running_var"][3] = float("nan")
    weights["head.1.weight"][0] = float("inf")
    weights["extra"] = torch.zeros(1)
    path = tmp_path / "weights.safetensors"
    save_file(weights, path)
    with pytest.raises(CheckpointError) as error:
        build(from_file(path))
    found = {fault.where: (fault.what, fault.hint) for fault in error.value.faults}
    assert set(found) == {
        "stem.0.weight",
        "block.bn1.bias",
        "linear.weight",
        "head.1.running_var",
        "head.1.weight",
        "extra",
    }
    assert found["linear.weight"] == ("is 7x64", "expected 10x64")
    assert found["stem.0.weight"] == ("missing", "expected 32x1x3x3")
    assert "NaN" in found["head.1.running_var"][0]
    assert "6 faults" in str(error.value)


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("exploded"),)


def test_a_pickle_bomb_is_refused_and_does_not_go_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {"linear.bias": Bomb()}}, tmp_path / "zipped.pt")
    (tmp_path / "bare.pt").write_bytes(pickle.dumps(Bomb()))
    for name in ("zipped.pt", "bare.pt"):
        assert "safetensors" in refused(tmp_path / name)
        assert not Path("exploded").exists()


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pt"])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
def test_a_truncated_file_is_refused_by_its_name(tmp_path: Path, name: str, share: float) -> None:
    path = tmp_path / name
    if path.suffix == ".pt":
        torch.save(digits_weights(), path)
    else:
        save_file(digits_weights(), path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    assert name in refused(path)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    assert "nowhere.pt" in refused(tmp_path / "nowhere.pt")
    assert str(tmp_path) in refused(tmp_path)


# ------------------------------------------------------------------------------- rows of a head


def test_rows_of_a_larger_head_are_the_classes(tmp_path: Path) -> None:
    whole = build(ModelSpec("digits_cnn", classes=30, channels=1), seed=3).eval()
    file, rows = tmp_path / "whole.safetensors", (7, 29, 0)
    save_file(whole.state_dict(), file)
    spec = ModelSpec("digits_cnn", classes=3, channels=1, checkpoint=str(file), rows=rows)
    model, described = build_described(spec)
    images = torch.rand(4, 1, 8, 8)
    torch.testing.assert_close(model.eval()(images), whole(images)[:, rows])
    assert described["rows"] == [7, 29, 0]

    save_file(model.state_dict(), tmp_path / "model.safetensors")  # as a run stores it
    assert torch.equal(load_ann(spec, 8, tmp_path)(images), model(images))
    with pytest.raises(CheckpointError, match="has a smaller head") as caught:
        build(replace(spec, rows=(7, 30, 0)))
    assert caught.value.faults[0].what == "holds row 30"


def test_rows_of_the_hubs_head_are_the_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    create = timm.create_model

    def published(name: str, pretrained: bool = False, **settings: Any) -> nn.Module:
        settings = {"num_classes": 30, **settings} if pretrained else settings
        return create(name, pretrained=False, **settings)

    monkeypatch.setattr(timm, "create_model", published)
    whole = build(ModelSpec("digits_cnn", classes=30, channels=1, pretrained=True), seed=5).eval()
    spec = ModelSpec("digits_cnn", classes=2, channels=1, pretrained=True, rows=(4, 20))
    images = torch.rand(4, 1, 8, 8)
    torch.testing.assert_close(build(spec, seed=5).eval()(images), whole(images)[:, (4, 20)])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rows": (1, 2, 3), "pretrained": True}, "are 3, classes is 2"),
        ({"rows": (1, 1), "pretrained": True}, "each row once"),
        ({"rows": (-1, 2), "pretrained": True}, "each row once, from 0"),
        ({"rows": (1, 2)}, "of weights that are not loaded"),
    ],
)
def test_rows_that_cannot_be_taken_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        ModelSpec("digits_cnn", classes=2, **values)


def test_published_weights_fit_unchanged(shared_data: Path) -> None:
    pretrained = shared_data / "pretrained"
    for name, file in (
        ("resnet20_cifar", "resnet20-12fca82f.th"),
        ("resnet56_cifar", "resnet56-4bfd9763.th"),
        ("resnet20_cifar", "resnet20_cifar10_jpeg.safetensors"),
    ):
        build(ModelSpec(name, classes=10, checkpoint=str(pretrained / file)))
    path = str(pretrained / "resnet20-12fca82f.th")
    with pytest.raises(CheckpointError, match="182 faults"):
        build(ModelSpec("resnet56_cifar", classes=7, checkpoint=path))


@pytest.mark.slow
def test_resnet20_with_published_weights_recognises_real_images(shared_data: Path) -> None:
    checkpoint = str(shared_data / "pretrained" / "resnet20_cifar10_jpeg.safetensors")
    model = build(ModelSpec("resnet20_cifar", classes=10, checkpoint=checkpoint)).eval()
    pixels, labels = [], []
    with tarfile.open(shared_data / "cifar10_jpeg" / "test.tar") as tar:
        files = [member for member in tar if member.isfile()][::20]
        names = sorted({member.name.split("/")[-2] for member in files})
        for member in files:
            content = tar.extractfile(member)
            assert content is not None
            pixels.append(np.asarray(Image.open(io.BytesIO(content.read())).convert("RGB")))
            labels.append(names.index(member.name.split("/")[-2]))
    images = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2) / 255
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    with torch.inference_mode():
        logits = model((images - mean[:, None, None]) / std[:, None, None])
    accuracy = 100 * (logits.argmax(1) == torch.tensor(labels)).float().mean().item()
    assert len(labels) == 500
    assert accuracy > 80


def floats(change: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    state = digits_weights()
    return {n: change(v) if v.is_floating_point() else v for n, v in state.items()}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v.to(torch.int8), "is int8 .*expected float32"),
        (lambda v: torch.ones_like(v, dtype=torch.int64), "is int64 .*expected float32"),
        (lambda v: v > 0, "is bool .*expected float32"),
        (lambda v: v.to(torch.complex64), "is complex64 .*expected float32"),
        (lambda v: v.double() * 1e300, "holds NaN or infinity .*in float32"),
        (lambda v: (v * 0 + 1e9).to(torch.float8_e5m2), "holds NaN or infinity"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_weights_of_other_kinds_of_numbers_are_not_cut(
    tmp_path: Path, change: Callable[[Tensor], Tensor], message: str
) -> None:
    torch.save(floats(change), tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=message):
        build(from_file(tmp_path / "a.pt"))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_floats_of_other_sizes_are_taken(tmp_path: Path, dtype: torch.dtype) -> None:
    torch.save(floats(lambda v: v.to(dtype)), tmp_path / "a.pt")
    weight = build(from_file(tmp_path / "a.pt")).linear.weight
    assert torch.equal(weight, digits_weights()["linear.weight"].to(dtype).float())  # type: ignore[arg-type]


def test_a_file_of_another_network_is_two_lines_and_not_hundreds(tmp_path: Path) -> None:
    state = build(ModelSpec("resnet20_cifar", classes=10)).state_dict()
    torch.save({"wheels": {f"x.{n}.y": v for n, v in state.items()}}, tmp_path / "a.pt")
    text = refused(tmp_path / "a.pt")
    assert "holds no tensor that digits_cnn" in text
    assert "name the architecture" in text
    assert len(text.splitlines()) == 3


def test_what_was_taken_is_said_once_and_described(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    notice.cache_clear()
    path = tmp_path / "a.pt"
    other = {name: value * 0 for name, value in digits_weights().items()}
    torch.save({"state_dict": other, "state_dict_ema": digits_weights("net.")}, path)
    model, source = build_described(from_file(path))
    assert torch.equal(model.linear.weight, digits_weights()["linear.weight"])  # type: ignore[arg-type]
    assert source == {
        "weights": str(path),
        "set": "state_dict_ema",
        "passed_over": ["state_dict"],
        "prefix": "net.",
        "left_out": [],
    }
    assert "took 'state_dict_ema', passed over 'state_dict'" in capsys.readouterr().err
    build(from_file(path))
    assert not capsys.readouterr().err


def test_what_is_no_argument_of_a_network_is_refused_by_its_key() -> None:
    wrong = {"checkpoint_path": "a.pt", "pretrained_cfg": {"file": "b.pt"}, "num_classes": 3}
    with pytest.raises(SpecError, match=r"kwargs\.checkpoint_path .*set checkpoint") as caught:
        ModelSpec("digits_cnn", classes=10, kwargs={**wrong, "drop_rate": 0.1})
    assert len(caught.value.faults) == 3


def test_counters_that_averaging_made_fractions_are_taken(tmp_path: Path) -> None:
    state = {n: v.float() * 1.5 for n, v in digits_weights().items()}
    assert any(name.endswith("num_batches_tracked") for name in state)
    torch.save(state, tmp_path / "a.pt")
    build(from_file(tmp_path / "a.pt"))
