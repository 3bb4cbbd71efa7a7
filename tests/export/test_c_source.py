"""C: integers alone, compiled without a warning, run under sanitizers, equal to the last bit."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from export_networks import converted, some_images

import mt_convert as mt
from mt_convert.errors import CheckpointError, SpecError
from mt_convert.export import c_program, c_source, targets, verdict
from mt_convert.export.forms.integer_form import integer_form
from mt_convert.export.forms.nodes import IntegerForm

CASES = [
    *(("residual", None), ("mixed", None), ("pre_activation", None), ("volume", None)),
    *(("line", "binary_4"), ("line", "uniform_3"), ("doubled", None)),
]


def written(name: str, ladder: str | None, folder: Path) -> tuple[IntegerForm, Path]:
    form = integer_form(converted(name, ladder))
    c_source.write_c(form, folder / "network.c")
    return form, folder / "network.c"


@pytest.mark.slow
@pytest.mark.parametrize(("name", "ladder"), CASES)
def test_a_file_of_integers_runs_clean_under_sanitizers_and_is_equal(
    name: str, ladder: str | None, tmp_path: Path
) -> None:
    form, path = written(name, ladder, tmp_path)
    text = path.read_text()
    assert not re.search(r"(?i)float|double|malloc|\d\.\d", text.split("#include", 1)[1])
    assert re.findall(r"#include.*", text) == ["#include <stdint.h>"]
    assert "float" not in text
    program = c_program.CProgram(path, form, c_program.SANITIZE)
    found = verdict.verify("c", form, program, some_images(name), {})
    assert found.exact, found.faults()
    assert len(found.on_images) == 1 + sum(node.op == "fire" for node in form.nodes)


def test_a_binary_ladder_is_searched_bit_by_bit(tmp_path: Path) -> None:
    _, path = written("residual", "binary_4", tmp_path)
    assert "for (int32_t bit = 8; bit; bit >>= 1)" in path.read_text()
    _, path = written("residual", None, tmp_path)
    assert "bit >>= 1" not in path.read_text()


@pytest.mark.slow
def test_the_verb_reports_sizes_and_the_class(tmp_path: Path) -> None:
    snn, images = converted("residual"), some_images("residual", 64)
    assert mt.export.c(snn, tmp_path / "network", images=images[:2]).exact  # whatever its name
    (tmp_path / "network").unlink()
    found = mt.export.c(snn, tmp_path / "network.c", images=images)
    assert found.exact
    assert set(found.sizes) >= {"source_bytes"}
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "network.c",
        "network.c.verdict.json",
        "network.verdict.json",
    ]
    form = integer_form(snn)
    run = form.model.run(images)
    program = c_program.CProgram(tmp_path / "network.c", form)
    scores = program.run(images.numpy())[form.nodes[-1].out]
    assert torch.equal(torch.tensor(scores), run.logits[-1])


CHANGES = {
    "a threshold": (r"(t_\d+\[\d+\] = \{\n )(-?\d+)", lambda m: f"{m[1]}{int(m[2]) + 1}"),
    "a bias": (r"\(k \+ 0\)", lambda m: "(k + 1)"),
    "a padding": (r"i1 \* 1 - 1 \+", lambda m: "i1 * 1 - 0 +"),
    "a weight": (r"(w_\d+\[\d+\] = \{\n )(-?\d+)", lambda m: f"{m[1]}{int(m[2]) ^ 1}"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_file_is_red(change: str, tmp_path: Path) -> None:
    form, path = written("line", None, tmp_path)
    pattern, repair = CHANGES[change]
    text, count = re.subn(pattern, repair, path.read_text(), count=1)
    assert count == 1
    path.write_text(text)
    found = verdict.verify(
        "c", form, c_program.CProgram(path, form, ["-O0"]), some_images("line", 2), {}
    )
    assert not found.exact
    assert found.faults()


def test_a_damaged_file_is_one_message(tmp_path: Path) -> None:
    form, path = written("line", None, tmp_path)
    whole = path.read_text()
    path.write_text(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match=r"network\.c does not compile"):
        c_program.CProgram(path, form)
    path.write_text(whole.replace("void network_run(", "void network_ran("))
    with pytest.raises(CheckpointError, match=r"network\.c does not compile"):
        c_program.CProgram(path, form)


def test_without_a_compiler_it_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SpecError, match="c cannot be written here: no C compiler") as error:
        targets.export(converted("line"), "c", tmp_path / "network.c")
    assert "\n" not in str(error.value)


def test_formulas_on_integers_round_as_binary32_does(tmp_path: Path) -> None:
    _, path = written("line", None, tmp_path)
    program = path.with_name("try.c")
    program.write_text(
        f'#include "{path}"\n#include <stdio.h>\nint main(void) {{\n'
        "  int32_t n; uint32_t bits[3];\n"
        "  while (fread(&n, 4, 1, stdin) == 1 && fread(bits, 12, 1, stdin) == 1) {\n"
        "    uint32_t y = real_bits(real_plus(real_plus(real_times(n, bits[0]), "
        "real_of(bits[1])), real_times(n / 3, bits[2])));\n"
        "    fwrite(&y, 4, 1, stdout);\n  }\n  (void)network_run; return 0;\n}\n"
    )
    binary = str(tmp_path / "try")
    c_program.call_tool(["cc", *c_program.FLAGS, str(program), "-o", binary], program, "fails")
    draw = np.random.default_rng(0)
    count = 20000
    numbers = (draw.integers(-(2**31) + 1, 2**31, count) >> draw.integers(0, 31, count)).astype(
        np.int32
    )
    factors = (draw.standard_normal((count, 3)) * 2.0 ** draw.integers(-40, 40, (count, 3))).astype(
        np.float32
    )
    factors[:50, 1] = -(numbers[:50].astype(np.float32) * factors[:50, 0])  # nothing is left
    factors[50:90, 1] = 0
    third = np.trunc(numbers / 3).astype(np.int32).astype(np.float32)
    wanted = numbers.astype(np.float32) * factors[:, 0] + factors[:, 1] + third * factors[:, 2]
    given = np.concatenate([numbers[:, None].view(np.uint8), factors.view(np.uint8)], 1).tobytes()
    found = np.frombuffer(c_program.call_tool([binary], program, "stops", given), np.float32)
    assert np.array_equal(found, wanted)
