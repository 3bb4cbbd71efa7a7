"""The command that writes a network of a run, or a stored one, for another world."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commands import Command
from export_networks import converted
from networks import quantized
from safetensors.numpy import load_file, save_file

import mt_convert as mt
from mt_convert.errors import CheckpointError
from mt_convert.experiments import export
from mt_convert.report.html.export import stored_verdicts, write_page


def failed(command: Command, *words: str) -> str:
    done = command(*words)
    assert (done.returncode, done.stdout) == (2, "")
    assert "Traceback" not in done.stderr
    return str(done.stderr)


@pytest.mark.slow
def test_a_stored_network_leaves_on_a_thousand_images(command: Command, tmp_path: Path) -> None:
    mt.save(converted("line"), tmp_path / "net")
    done = command("export", "net", "--to", "tables", "--out", "net_tables")
    assert done.returncode == 0, done.stderr
    assert "1000 images" in done.stdout
    assert "page: net_tables/report.html" in done.stdout
    shown = command("show", "net_tables")
    assert "network.safetensors: exact as tables in numpy" in shown.stdout, shown.stdout
    path = tmp_path / "net_tables" / "network.json"
    path.write_text(path.read_text()[:-9])
    words = ("export", "net", "--to", "tables", "--out", "net_tables", "--check")
    assert "is not JSON" in failed(command, *words)


@pytest.mark.slow
def test_the_page_of_an_export_tells_each_node_and_turns_red(tmp_path: Path) -> None:
    mt.save(converted("line"), tmp_path / "net")
    out = tmp_path / "out"
    export.run(str(tmp_path / "net"), "tables", out, count=4)
    page = (out / "report.html").read_text()
    assert "✓ Exact as tables" in page
    assert 'href="network.safetensors"' in page
    verdict = json.loads((out / "verdict.json").read_text())
    nodes = [row["name"] for row in verdict["by_node"]]
    assert len(nodes) > 2
    assert all(f">{name}</td>" in page for name in nodes)
    golden = load_file(out / "network.safetensors")
    name = next(key for key in golden if key.endswith("weight"))
    golden[name] = golden[name] + 1
    save_file(golden, out / "network.safetensors")
    with pytest.raises(CheckpointError, match="does not answer"):
        export.run(str(tmp_path / "net"), "tables", out, count=4, again=True)
    page = (out / "report.html").read_text()
    assert "✗ Not exact" in page
    assert 'class="bad"' in page


def test_a_run_keeps_its_own_page_when_a_file_is_written_beside_it(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text("{}")
    (tmp_path / "report.html").write_text("of the run")
    written = {**dict.fromkeys(("target", "runtime"), "c"), "exact": True, "images": 4}
    written |= {"neurons": 2, "on_images": [], "by_node": [], "sizes": {"bytes": 8}}
    (tmp_path / "network.c.verdict.json").write_text(json.dumps(written))
    assert write_page(tmp_path, "net", "mt-convert export net").name == "export.html"
    assert (tmp_path / "report.html").read_text() == "of the run"


def test_a_damaged_verdict_is_named(tmp_path: Path) -> None:
    (tmp_path / "verdict.json").write_text('{"target": "c"}')
    with pytest.raises(CheckpointError, match=r"verdict\.json is damaged"):
        stored_verdicts(tmp_path)


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


@pytest.mark.slow
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


@pytest.mark.slow
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
