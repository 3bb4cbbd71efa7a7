"""`mt-convert run` and `show`: every shipped recipe, and every fault.

Each fault ends with exit code 2 and one message that says what is wrong, where, and what to do;
what stood in the output folder before is there afterwards.
"""

from __future__ import annotations

import hashlib
import json
import resource
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import Command, call_here
from PIL import Image
from safetensors.torch import save_file

from mt_convert.experiments.models.build import ModelSpec, build
from mt_convert.experiments.recipes.catalogue import shipped_recipes
from mt_convert.experiments.recipes.conversion import Recipe
from mt_convert.experiments.recipes.from_scratch import SpikingRecipe, load

MARKER = "the_checkpoint_ran_code"
FEW = (
    *("evaluate.thresholds=[15]", "evaluate.time_steps=[1]", "evaluate.modes=[parallel]"),
    "evaluate.iso_level=false",
)
UNTRAINED = ("ann=null", "train=null", *FEW)


def message(done: subprocess.CompletedProcess[str]) -> str:
    """The one message of a command that failed as it should."""
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    before, found, text = f"\n{done.stderr}".partition("\nerror: ")
    assert found
    assert "\nerror: " not in text
    assert "rror" not in before
    return text


def contents(folder: Path) -> dict[str, str]:
    """Digests of all files of a folder that a fault may not change: all but the log, and what is
    unfinished or new."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        and path.name != "log.jsonl"
        and path.relative_to(folder).parts[0].endswith((".partial", ".new")) is False
    }


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run by the command."""
    folder = tmp_path_factory.mktemp("finished")
    done = call_here(folder, "run", "digits", "--smoke", "--out", str(folder), *FEW)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def earlier(finished: Path, tmp_path: Path) -> Path:
    """A copy of a finished run, as ``out`` in the folder where commands run."""
    return Path(shutil.copytree(finished, tmp_path / "out"))


# ----------------------------------------------------------------------------------------- recipes

HEAVY = (
    "cifar10_resnet56_w4a4",
    "imagenet_convnext_atto_w4a4",
    "imagenet_efficientnet_b0_w4a4",
    "imagenet_efficientnet_lite0_w4a4",
    "imagenet_mobilenetv2_w4a4",
    "imagenet_resnet18_w4a4",
    "imagenet_resnet34_w4a4",
    "imagenet_swin_tiny_w4a4",
    "imagenet_vit_tiny_w4a4",
    "imagenet_vit_tiny_w8a8",
)
LIGHT = (
    "digits",
    "digits_vit",
    "cifar10_resnet20_w2a2",
    "cifar10_resnet20_w3a3",
    "cifar10_resnet20_w4a4",
)
TWINS = (  # the same networks as those of 4 bits above; one recipe of 8 bits is run
    "imagenet_convnext_atto_w8a8",
    "imagenet_efficientnet_b0_w8a8",
    "imagenet_efficientnet_lite0_w8a8",
    "imagenet_mobilenetv2_w8a8",
    "imagenet_swin_tiny_w8a8",
)


SYSTEMS = (
    "cifar10_resnet18_noise_adaptor",
    "cifar10_resnet20_fatnn",
    "cifar10_resnet20_subbit",
    "cifar10_vgg16_dual_phase",
    "cifar10_vgg16_hybrid_stdb",
    "cifar10_vgg16_tandem",
    "cifar10_vgg16_ultra_low_latency",
    "digits_dual_phase",
    "digits_fatnn",
    "digits_hybrid_stdb",
    "digits_noise_adaptor",
    "digits_subbit",
    "digits_tandem",
    "digits_ultra_low_latency",
)
SPIKING = (
    "cifar10_jpeg_vgg7_plif",
    "cifar10_resnet18_dsr",
    "cifar10_resnet18_tensor_train",
    "cifar10_vgg_ottt",
    "digits_dsr",
    "digits_leaky_read_out",
    "digits_mt_cascade",
    "digits_ottt",
    "digits_poisson_delayed",
    "digits_tensor_train",
    "cifar10_resnet18_plif",
    "cifar10_vgg16_plif",
    "digits_plif",
    "dvs_cifar10_vgg_plif",
    "imagenet_resnet34_plif",
)
SPIKING_TWINS = ("cifar100_resnet18_plif", "cifar100_vgg16_plif")  # of CIFAR-10's
QUICK = (  # run by `make test`: convolutions, networks from scratch
    *("digits", "digits_fatnn", "digits_ottt"),
)


def timed(names: Iterable[str]) -> list[Any]:
    """Recipes with the mark of the command that runs their smoke variants."""
    return [
        pytest.param(name, marks=pytest.mark.slow if name in QUICK else pytest.mark.long)
        for name in names
    ]


def test_the_lists_of_recipes_are_complete() -> None:
    listed = HEAVY + LIGHT + TWINS + SYSTEMS + SPIKING + SPIKING_TWINS
    assert sorted(listed) == sorted(shipped_recipes())
    assert len(shipped_recipes()) == 51
    assert {*QUICK} < {*HEAVY, *LIGHT, *SPIKING, *SYSTEMS}
    assert {name.replace("cifar100", "cifar10") for name in SPIKING_TWINS} <= set(SPIKING)
    assert {name.replace("w8a8", "w4a4") for name in TWINS} <= set(HEAVY)


def ran(name: str, folder: Path) -> tuple[Path, str]:
    """A recipe's smoke variant by the command, in this process; its folder, and what it printed."""
    done = call_here(folder, "run", name, "--smoke")
    assert done.returncode == 0, done.stderr
    out = folder / "runs" / f"{name}_smoke"
    end = f"artefacts are in runs/{out.name}. page: runs/{out.name}/report.html"
    assert " ".join(done.stdout.split()).endswith(end)
    return out, done.stdout


def converts(name: str, folder: Path) -> None:
    """Run a conversion's smoke variant and look at what it leaves."""
    out, printed = ran(name, folder)
    rows = json.loads((out / "results.json").read_text())["rows"]
    bits = int(name[-1]) if name[-1].isdigit() else 4
    one_step = [row for row in rows if (row["n"], row["T"]) == (2**bits - 1, 1)]
    assert one_step
    for row in one_step:
        assert row["exact_share"] == 1.0
        assert row["snn_accuracy"] == row["qann_accuracy"]
    stored = json.loads((out / "convert" / "report.json").read_text())["report"]
    assert stored["verdict"]["exact_t1"] is True
    assert "ANN %" in printed
    assert "equals its quantized network bit for bit at T = 1" in printed


@pytest.mark.parametrize("name", timed(LIGHT + HEAVY))
def test_the_smoke_variant_of_a_recipe_runs(name: str, tmp_path: Path) -> None:
    converts(name, tmp_path)


@pytest.mark.parametrize("name", timed(SYSTEMS))
def test_the_smoke_variant_of_a_system_runs_and_leaves_its_rows(name: str, tmp_path: Path) -> None:
    out, _ = ran(name, tmp_path)
    recipe = load(name, smoke=True)
    assert isinstance(recipe, Recipe)
    stored = json.loads((out / "convert" / "report.json").read_text())["report"]
    assert stored["verdict"]["exact_t1"] is True
    rows = json.loads((out / "results.json").read_text())["rows"]
    assert {row["weights"] for row in rows} == {str(recipe.quantize.weights)}
    calibrations = {row["calibration"] for row in rows}
    assert len(calibrations) == 1 + (recipe.calibrate is not None)
    algorithms = {row["algorithm"] for row in rows} - {"none"}
    assert len(algorithms) == (recipe.finetune is not None)


@pytest.mark.parametrize("name", timed(SPIKING))
def test_the_smoke_variant_of_a_spiking_recipe_runs(name: str, tmp_path: Path) -> None:
    out, printed = ran(name, tmp_path)
    rows = json.loads((out / "results.json").read_text())["rows"]
    recipe = load(name, smoke=True)
    assert isinstance(recipe, SpikingRecipe)
    assert [row["T"] for row in rows] == list(range(1, recipe.spiking.time_steps + 1))
    assert {row["presentation"] for row in rows} == {"every_step" if recipe.data else "frames"}
    assert f"layers of mt_{recipe.spiking.neuron} neurons" in " ".join(printed.split())
    looked = json.loads((out / "inspect" / "inspection.json").read_text())
    measured = json.loads((out / "results.json").read_text())["neurobench"]
    assert measured == looked["account"]["neurobench"]
    first, spiking = looked["account"]["networks"][:2]
    assert (first["role"], spiking["role"]) == ("reference", "spiking")
    assert first["name"] == "float network, the same architecture"
    page = (out / "report.html").read_text()
    for name in ("accuracies", "over-time", "spikes", "energy", "layers", "again", "downloads"):
        assert f'<section id="{name}"' in page
    assert len(page.encode()) < 2_000_000


# --------------------------------------------------------------------------------------- the recipe


@pytest.mark.slow
def test_a_run_leaves_the_house_and_is_checked_again(tmp_path: Path, earlier: Path) -> None:
    words = ("export", "out", "--to", "tables", "--out", "out/tables", "--images", "300")
    done = call_here(tmp_path, *words)
    assert done.returncode == 0, done.stderr
    assert "tables: exact in numpy" in done.stdout
    assert json.loads((earlier / "tables" / "verdict.json").read_text())["images"] == 300
    assert "checked out/tables" in call_here(tmp_path, *words, "--check").stdout
    shutil.rmtree(earlier / "convert")
    assert "holds no converted network; finish it" in message(call_here(tmp_path, *words))
    (earlier / "network").mkdir()
    (earlier / "network" / "config.json").touch()
    assert "name its fine-tuned one: out/network" in message(call_here(tmp_path, *words))


@pytest.mark.slow
def test_a_misspelt_key_is_named_with_its_neighbour(command: Command, earlier: Path) -> None:
    before = contents(earlier)
    done = command("run", "digits", "--smoke", "--out", "out", "quantize.weight_bit=3")
    text = message(done)
    assert "quantize.weight_bit" in text
    assert "did you mean weight_bits?" in text
    assert contents(earlier) == before


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"\xff\xfe\x00", "cannot read mine.yaml"), (b"name: [", "mine.yaml is not valid YAML")],
)
def test_a_recipe_that_cannot_be_read_is_named(
    command: Command, tmp_path: Path, content: bytes, words: str
) -> None:
    (tmp_path / "mine.yaml").write_bytes(content)
    assert words in message(command("run", "mine.yaml", "--out", "out"))
    assert not (tmp_path / "out").exists()


# -------------------------------------------------------------------------------------- checkpoints


class Bomb:
    """Leaves a file behind when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (MARKER, "w")


def checkpoint(kind: str, folder: Path) -> Path:
    """A faulty file of weights for the digits' network."""
    tensors = build(ModelSpec("digits_cnn", classes=10, channels=1)).state_dict()
    path = folder / f"weights.{'safetensors' if 'safetensors' in kind else 'th'}"
    if kind == "bomb":
        torch.save({"state_dict": tensors, "more": Bomb()}, path)
    elif path.suffix == ".th":
        torch.save(tensors, path)
    else:
        if kind == "nan in safetensors":
            next(iter(tensors.values())).flatten()[3] = float("nan")
        save_file(tensors, path)
    if kind.startswith("truncated"):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("missing", ("model.checkpoint", "nowhere.th is not here", "model.checkpoint=PATH")),
        ("truncated th", ("weights.th is not a whole torch file", "download or write it again")),
        (
            "truncated safetensors",
            ("weights.safetensors is not a whole safetensors file", "download or write it again"),
        ),
        ("bomb", ("weights.th", "Python objects", "was not opened", "Allowed: safetensors")),
        ("nan in safetensors", ("weights.safetensors", "holds NaN or infinity", "another file")),
    ],
)
def test_a_faulty_checkpoint_is_one_message(
    command: Command, tmp_path: Path, earlier: Path, kind: str, words: tuple[str, ...]
) -> None:
    before = contents(earlier)
    path = Path("nowhere.th") if kind == "missing" else checkpoint(kind, tmp_path)
    done = command(
        *(
            "run",
            "digits",
            "--smoke",
            "--overwrite",
            "--out",
            "out",
            *UNTRAINED,
            f"model.checkpoint={path.name}",
        )
    )
    text = message(done)
    for part in words:
        assert part in text
    assert contents(earlier) == before
    assert not list(tmp_path.rglob(MARKER))


def test_the_bomb_would_have_gone_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.load(checkpoint("bomb", tmp_path), weights_only=False)["more"].close()
    assert (tmp_path / MARKER).exists()


@pytest.mark.slow
def test_a_w4a4_network_for_a_w2a2_recipe_is_refused_with_each_difference(
    command: Command, tmp_path: Path, earlier: Path
) -> None:
    before = contents(earlier)
    done = command(
        *("run", "digits", "--smoke", "--out", "new", "quantize.checkpoint=out/train"),
        *("quantize.weight_bits=2", "quantize.act_bits=2"),
    )
    text = message(done)
    assert text.startswith("out/train was quantized with another QuantSpec")
    rows = [line.split()[:5] for line in text.splitlines()[1:]]
    assert rows == [
        ["weight_bits", "stored", "4", "wanted", "2:"],
        ["act_bits", "stored", "4", "wanted", "2:"],
    ]
    assert contents(earlier) == before
    assert not (tmp_path / "new").exists()


# ------------------------------------------------------------------------------ networks and images


UNSUPPORTED = """
import timm, torch


class Running(torch.nn.Module):
    def __init__(self, **_):
        super().__init__()
        self.stem, self.head = torch.nn.Conv2d(1, 4, 3), torch.nn.Linear(4, 10)

    def forward(self, x):
        x = torch.logcumsumexp(self.stem(x).cumprod(1), 1)
        return self.head(x.mean((2, 3)))


@timm.models.register_model
def of_running_products(pretrained=False, **kwargs):
    return Running(**kwargs)
"""


@pytest.mark.long
def test_unsupported_layers_are_all_named(process: Command, tmp_path: Path, earlier: Path) -> None:
    before = contents(earlier)
    (tmp_path / "sitecustomize.py").write_text(UNSUPPORTED)
    done = process(
        *("run", "digits", "--smoke", "--overwrite", "--out", "out", *UNTRAINED),
        "model.architecture=of_running_products",
        before='export PYTHONPATH="$PWD:$PYTHONPATH"',
    )
    lines = message(done).splitlines()
    assert lines[0] == "2 operators of Running cannot be quantized"
    assert [line.split()[1] for line in lines[1:]] == [
        "aten.cumprod.default",
        "aten.logcumsumexp.default",
    ]
    assert all("no rule" in line for line in lines[1:])
    assert contents(earlier) == before


def pictures(root: Path, side: int) -> None:
    """Grey PNG files of two classes in two splits."""
    for split, count in (("train", 8), ("validation", 4)):
        for label in ("cat", "dog"):
            folder = root / split / label
            folder.mkdir(parents=True)
            for index in range(count):
                Image.new("L", (side, side), color=20 * index).save(folder / f"{index}.png")


@pytest.mark.slow
def test_a_wrong_image_size_is_told_with_the_size_of_the_file(
    command: Command, tmp_path: Path, earlier: Path
) -> None:
    before = contents(earlier)
    pictures(tmp_path / "pictures", 12)
    words = (
        *("run", "digits", "--smoke", *UNTRAINED, 'data.dataset=""', "data.root=pictures"),
        *("data.limit=null", "data.test_images=null", "data.calibration_images=4"),
        *("data.classes=2", "model.classes=2", "evaluate.batch_size=4"),
    )
    text = message(command(*words, "--overwrite", "--out", "out"))
    assert "0.png" in text
    assert "is 12x12, the spec says 8x8" in text
    assert "set image_size: 12, or resize: true" in text
    assert contents(earlier) == before
    done = command(*words, "--out", "resized", "data.resize=true")  # the advice holds
    assert done.returncode == 0, done.stderr


# ------------------------------------------------------------------------------------------- output


@pytest.mark.parametrize("out", ["file", "file/inside", "/proc/nonexistent/out"])
def test_an_output_folder_that_cannot_be_written_is_named(
    command: Command, tmp_path: Path, out: str
) -> None:
    (tmp_path / "file").write_text("mine")
    text = message(command("run", "digits", "--smoke", "--out", out))
    assert out in text
    assert "--out" in text
    assert (tmp_path / "file").read_text() == "mine"


@contextmanager
def small_disk(kilobytes: int) -> Iterator[None]:
    """A limit on the size of files stands for the disk: writing beyond it fails in the same way."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024 * kilobytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kilobytes", "alone"),
    [(0, False), pytest.param(20, False, marks=pytest.mark.long), (160, False), (20, True)],
)
def test_a_full_disk_is_one_message_and_leaves_what_was_there(
    command: Command, process: Command, earlier: Path, kilobytes: int, alone: bool
) -> None:
    before = contents(earlier)
    words = ("run", "digits", "--smoke", "--overwrite", "--out", "out", "seed=1")
    if alone:
        done = process(*words, before=f"ulimit -f {kilobytes}")
    else:
        with small_disk(kilobytes):
            done = command(*words)
    text = message(done)
    assert "cannot write" in text
    assert "out/" in text
    assert "File too large" in text
    assert contents(earlier) == before


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_log_that_cannot_be_written_is_one_message(
    command: Command, tmp_path: Path, earlier: Path
) -> None:
    before = contents(earlier)
    (earlier / "log.jsonl").unlink()
    (earlier / "log.jsonl").symlink_to("/dev/full")
    text = message(command("run", "digits", "--smoke", "--out", "out", *FEW))
    assert "cannot write out/log.jsonl" in text
    assert "No space left on device" in text
    assert contents(earlier) == before


# --------------------------------------------------------------------------------------------- show


def test_show_of_a_folder_that_holds_nothing_is_one_message(
    command: Command, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    text = message(command("show", "empty"))
    assert "empty holds no finished run (results.json) and no network (config.json)" in text


@pytest.mark.slow
def test_show_of_a_damaged_network_is_one_message(command: Command, earlier: Path) -> None:
    path = earlier / "convert" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-4])
    assert "model.safetensors is not a whole" in message(command("show", "out/convert"))


@pytest.mark.slow
def test_show_prints_a_run_and_a_converted_network(command: Command, earlier: Path) -> None:
    done = command("show", "out")
    assert done.returncode == 0
    assert done.stdout.rstrip().endswith("all artefacts are in out.\npage: out/report.html")
    assert "direct coding" in command("show", "out/convert").stdout


# -------------------------------------------------------------------------------- several processes


@pytest.mark.long
def test_two_processes_share_the_training_and_one_of_them_writes(
    process: Command, tmp_path: Path
) -> None:
    words = ("run", "digits", "--smoke", "--out", "out", *FEW)
    done = process(*words, processes=2)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("SNN %") == 1
    log = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    stages = ("ann", "quantize", "train", "convert", "evaluate", "inspect", "report")
    expected = [(stage, event) for stage in stages for event in ("started", "finished")]
    assert [(line["stage"], line["event"]) for line in log] == expected
    identity = json.loads((tmp_path / "out" / "train" / "finished.json").read_text())["identity"]
    assert identity["processes"] == 2
    (row,) = json.loads((tmp_path / "out" / "results.json").read_text())["rows"]
    assert row["exact_share"] == 1.0
