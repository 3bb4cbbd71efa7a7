"""The real command line: what it prints, where, and with which exit code."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from commands import Command
from paths import ROOT

from mt_convert.experiments.models.names import CIFAR_MODELS
from mt_convert.experiments.recipes.catalogue import shipped_recipes


def failed(done: subprocess.CompletedProcess[str]) -> str:
    """The message of a command that failed as it should: code 2, stderr only, no traceback."""
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    return done.stderr


def test_help_names_every_command_and_shows_examples(command: Command, process: Command) -> None:
    done = process("--help")
    assert done.returncode == 0
    assert done.stdout.replace("python -m mt_convert.cli", "mt-convert") == command("--help").stdout
    for name in ("ls", "cp", "check", "run", "export", "show", "coverage"):
        assert f"\n  {name} " in done.stdout
        text = command(name, "--help").stdout
        assert "Example" in text
        assert f"mt-convert {name}" in text


def test_ls_lists_every_recipe_and_every_network_with_a_line_each(command: Command) -> None:
    done = command("ls")
    assert done.returncode == 0
    rows = dict(line.split(maxsplit=1) for line in done.stdout.splitlines() if line[:1] == " ")
    assert set(rows) == {*shipped_recipes(), *CIFAR_MODELS}
    assert rows["digits"].startswith("Handwritten digits")


def test_ls_into_a_closed_pipe_is_quiet() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "mt_convert.cli", "ls"],
        cwd=ROOT,
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(writing)
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr


def test_cp_writes_a_recipe_that_checks_and_refuses_to_overwrite(
    command: Command, tmp_path: Path
) -> None:
    done = command("cp", "digits", "mine.yaml")
    assert done.returncode == 0
    copied = tmp_path / "mine.yaml"
    assert copied.read_bytes() == shipped_recipes()["digits"].read_bytes()
    copied.write_text("name: changed")
    assert "mine.yaml exists already" in failed(command("cp", "digits", "mine.yaml"))
    assert copied.read_text() == "name: changed"
    (tmp_path / "folder").mkdir()
    assert command("cp", "digits", "folder").returncode == 0
    assert (tmp_path / "folder" / "digits.yaml").is_file()


def test_cp_to_where_it_cannot_write_is_one_message(command: Command) -> None:
    assert "cannot write no/such/folder" in failed(command("cp", "digits", "no/such/folder"))
    assert "did you mean digits" in failed(command("cp", "digts", "mine.yaml"))


def test_check_shows_all_stages_of_a_good_recipe(command: Command) -> None:
    done = command("check", "digits", "quantize.weight_bits=3", "seed=4")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "ok: digits"
    stages = dict(line.split(maxsplit=1) for line in lines[1:-1])
    assert lines[-1] == "an image of 1x8x8 passes through digits_cnn, by its shape alone"
    assert list(stages) == [
        *("seed", "model", "data", "ann", "quantize", "train", "control", "convert", "evaluate"),
        *("energy", "calibrate", "finetune"),
    ]
    assert "weight_bits=3" in stages["quantize"]
    assert "seed=4" in stages["train"]


def test_check_lists_all_faults_with_lines_and_nearest_keys(
    command: Command, tmp_path: Path
) -> None:
    text = shipped_recipes()["digits"].read_text()
    line = text.splitlines().index("  weight_bits: 4") + 1
    (tmp_path / "mine.yaml").write_text(text.replace("weight_bits: 4", "weight_bit: 4"))
    message = failed(command("check", "mine.yaml", "train.epochs=many", "epochs=3"))
    assert "3 faults in mine.yaml" in message
    assert f"line {line}  quantize.weight_bit" in message
    assert "did you mean weight_bits?" in message
    assert re.search(r'override  train.epochs +is "many" +allowed: a whole number', message)
    assert "did you mean ann.epochs or train.epochs or finetune.train.epochs?" in message


def test_check_names_files_and_networks_that_are_not_here(command: Command) -> None:
    message = failed(command("check", "cifar10_resnet20_w4a4", "model.architecture=resnet20_cifra"))
    assert "3 faults" in message
    assert "model.checkpoint=PATH" in message
    assert "data.root=PATH" in message
    assert "did you mean resnet20_cifar" in message


def test_usage_errors_have_exit_code_2(command: Command) -> None:
    for words in (["run"], ["walk"], ["run", "digits", "--uot", "x"]):
        done = command(*words)
        assert done.returncode == 2
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize("words", [["digits", "modle.classes=3"], ["nowhere.yaml"]])
def test_run_refuses_a_faulty_recipe_before_it_writes(
    command: Command, tmp_path: Path, words: list[str]
) -> None:
    failed(command("run", *words, "--out", "results"))
    assert not (tmp_path / "results").exists()


@pytest.mark.slow
@pytest.mark.parametrize("words", [["cp", "digts", "mine.yaml"], ["walk"]])
def test_a_process_says_and_answers_what_the_entry_point_does(
    command: Command, process: Command, words: list[str]
) -> None:
    here, real = command(*words), process(*words)
    assert (real.returncode, real.stdout) == (here.returncode, here.stdout)
    assert real.stderr.replace("python -m mt_convert.cli", "mt-convert") == here.stderr
