"""The command that writes a network of a run, or a stored one, for another world."""

from __future__ import annotations

from pathlib import Path

from commands import Command
from export_networks import converted
from networks import quantized

import mt_convert as mt
from mt_convert.experiments import export


def failed(command: Command, *words: str) -> str:
    done = command(*words)
    assert (done.returncode, done.stdout) == (2, "")
    assert "Traceback" not in done.stderr
    return str(done.stderr)


def test_a_stored_network_leaves_on_a_thousand_images(command: Command, tmp_path: Path) -> None:
    mt.save(converted("line"), tmp_path / "net")
    done = command("export", "net", "--to", "tables", "--out", "net_tables")
    assert done.returncode == 0, done.stderr
    assert "1000 images" in done.stdout
    path = tmp_path / "net_tables" / "network.json"
    path.write_text(path.read_text()[:-9])
    words = ("export", "net", "--to", "tables", "--out", "net_tables", "--check")
    assert "is not JSON" in failed(command, *words)


def test_wrong_words_are_one_message(command: Command, tmp_path: Path) -> None:
    mt.save(converted("line"), tmp_path / "net")
    assert "allowed are tables" in failed(command, "export", "net", "--to", "zip", "--out", "x")
    assert "net2" in failed(command, "export", "net2", "--to", "tables", "--out", "x")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.yaml").write_text("name: x\n")
    assert "recipe" in failed(command, "export", "run", "--to", "tables", "--out", "x")
    assert not (tmp_path / "x").exists()


def test_a_quantized_network_is_converted_first(tmp_path: Path) -> None:
    mt.save(quantized("line"), tmp_path / "net")
    verdict = export.run(str(tmp_path / "net"), "tables", tmp_path / "out", count=4)
    assert verdict.exact


def test_check_says_before_training_what_will_not_leave(command: Command) -> None:
    done = command("check", "digits", "--smoke", "--target", "c")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("ok: digits, leaves as c\n")
    words = ("check", "digits", "quantize.input_bits=null", "--smoke", "--target", "tables")
    message = failed(command, *words)
    assert "does not leave the house exactly" in message
    assert "input_bits" in message
    message = failed(command, "check", "digits", "--smoke", "--target", "zip")
    assert "allowed are tables, c, onnx, qonnx" in message
    message = failed(command, "check", "digits_plif", "--smoke", "--target", "c")
    assert "trained from scratch" in message


def test_a_network_goes_to_the_hub_and_is_compared_again(command: Command, tmp_path: Path) -> None:
    mt.save(converted("line"), tmp_path / "net")
    done = command("export", "net", "--to", "hub", "--out", "hub")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("hub: equal when read back, all ")
    assert "# net\n" in (tmp_path / "hub" / "README.md").read_text()
    words = ("export", "net", "--to", "hub", "--out", "hub", "--check")
    assert command(*words).returncode == 0
    mt.save(converted("residual"), tmp_path / "net")
    assert "holds another network" in failed(command, *words)
    assert command("show", "hub").returncode == 0
    assert "layer" in command("show", "hub").stdout
