"""The rooms of the package: a file imports only from rooms below its own, and no circle among
files.

``python -m pytest tests/test_rooms.py`` prints the table of rooms.
"""

from __future__ import annotations

import ast
import subprocess
import sys
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from paths import ROOT

PACKAGE = ROOT / "mt_convert"

# A floor for each room. Rooms of one floor do not know each other.
FLOORS = {
    "errors": 1,
    "neurons": 2,
    "graph": 2,
    "system": 2,
    "quantization": 3,
    "data": 3,
    "report": 3,
    "spiking": 4,
    "calibration": 5,
    "training": 5,
    "integer_engine": 5,
    "export": 6,
    "evaluation": 6,
    "experiments": 7,
    "cli": 8,
    "__init__": 8,
}
CROWDED, FULL = 15, 20  # files in one folder: warned of, refused
WITHOUT_TORCH = (
    *("errors", "report", "neurons/ladder", "quantization/spec", "data/events/spec", "system/keys"),
    *(
        "calibration/spec",
        "calibration/text",
        "calibration/report",
        "experiments/recipes/catalogue",
        "experiments/run_page",
        "experiments/comparison",
        "experiments/coverage/rows",
        "experiments/coverage/browser_page",
    ),
)
FILES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))


def room(file: Path) -> str:
    """The room a file lies in; the files at the top are rooms of their own."""
    return file.parts[0].removesuffix(".py")


def imports(file: Path) -> Iterator[tuple[str, Path | None]]:
    """Everything a file imports, wherever in it: dotted names, and ours as files."""
    yield from imports_of(file, (PACKAGE / file).read_text())


def imports_of(file: Path, text: str) -> Iterator[tuple[str, Path | None]]:
    """The same for a text that is not there yet."""
    home = ("mt_convert", *file.parts[:-1])
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, ours(alias.name)) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = home[: len(home) - node.level + 1] if node.level else ()
            start = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                yield f"{start}.{alias.name}", ours(f"{start}.{alias.name}")


def ours(dotted: str) -> Path | None:
    """The file of the package behind a dotted name, if there is one."""
    head, *parts = dotted.split(".")
    if head != "mt_convert":
        return None
    for count in (len(parts), len(parts) - 1):
        inside = Path(*parts[:count])
        for path in (
            inside.with_suffix(".py") if parts[:count] else inside,
            inside / "__init__.py",
        ):
            if (PACKAGE / path).is_file():
                return path
    raise AssertionError(f"{dotted} is no file of the package")


@cache
def arrows() -> Mapping[Path, frozenset[Path]]:
    """Which files of the package each file imports."""
    return {file: frozenset(to for _, to in imports(file) if to is not None) for file in FILES}


def upward(file: Path, imported: Path) -> bool:
    """Whether an import leads to the same floor or up, out of its own room."""
    return room(file) != room(imported) and FLOORS[room(imported)] >= FLOORS[room(file)]


def table() -> str:
    """The rooms from the top down: floor, files, lines, and how often each imports another."""
    rows = []
    for name in sorted(FLOORS, key=lambda name: -FLOORS[name]):
        files = [file for file in FILES if room(file) == name]
        lines = sum(len((PACKAGE / file).read_text().splitlines()) for file in files)
        to = Counter(room(other) for file in files for other in arrows()[file])
        del to[name]
        text = ", ".join(f"{other} {count}" for other, count in to.most_common())
        rows.append(f"{FLOORS[name]:>5}  {name:<15}{len(files):>5}{lines:>7}  {text or '-'}")
    return "\n".join([f"{'floor':>5}  {'room':<15}{'files':>5}{'lines':>7}  imports", *rows])


@pytest.mark.slow
def test_the_table_of_rooms(capsys: pytest.CaptureFixture[str]) -> None:
    assert {room(file) for file in FILES} == set(FLOORS)
    assert all(isinstance(floor, int) for floor in FLOORS.values())
    assert sum(file.parent == Path(".") for file in FILES) == 2
    with capsys.disabled():
        print(f"\n\n{table()}")  # noqa: T201


def test_a_file_imports_only_from_rooms_below_its_own() -> None:
    wrong = [
        f"{file} imports {other}, from its own floor or above"
        for file, others in arrows().items()
        for other in sorted(others)
        if upward(file, other)
    ]
    assert not wrong, "\n".join(wrong)


def test_an_import_upward_would_be_seen() -> None:
    text = "def f():\n    from ..spiking.convert import convert\n"
    (_, found), *_ = imports_of(Path("neurons/ladder.py"), text)
    assert found == Path("spiking/convert.py")
    assert upward(Path("neurons/ladder.py"), found)
    assert upward(Path("neurons/ladder.py"), Path("graph/rules.py"))
    assert not upward(Path("spiking/convert.py"), Path("neurons/ladder.py"))


def test_no_circle_among_files() -> None:
    try:
        TopologicalSorter({file: arrows()[file] for file in FILES}).prepare()
    except CycleError as error:
        pytest.fail("a circle: " + " -> ".join(map(str, error.args[1])))


def test_a_circle_would_be_seen() -> None:
    with pytest.raises(CycleError):
        TopologicalSorter({"a": {"b"}, "b": {"a"}}).prepare()


def test_no_folder_is_full() -> None:
    for folder, count in Counter(file.parent for file in FILES).items():
        assert count < FULL, f"{folder} holds {count} files: split it"
        if count > CROWDED:
            warnings.warn(f"{folder} holds {count} files, {FULL} are refused", stacklevel=1)


def test_no_room_shares_its_name_with_a_public_verb() -> None:
    import mt_convert as mt

    assert not {*FLOORS} & {*mt.__all__}


@pytest.mark.slow
def test_only_the_quantized_layers_import_brevitas() -> None:
    importers = {
        str(file)
        for file in FILES
        if any(name.split(".")[0] == "brevitas" for name, _ in imports(file))
    }
    assert importers == {
        f"quantization/{name}.py"
        for name in ("activations/quant_act", "brevitas_layers", "corrections")
    }


def test_plain_files_do_not_import_torch() -> None:
    plain = [file for file in FILES if str(file).startswith(WITHOUT_TORCH)]
    assert len(plain) >= len(WITHOUT_TORCH)
    for file in plain:
        names = {name.split(".")[0] for name, _ in imports(file)}
        assert not names & {"torch", "timm", "brevitas"}, file


def test_the_command_line_starts_without_torch() -> None:
    code = "import sys, mt_convert.cli; sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False, capture_output=True)
    assert done.returncode == 0, "import mt_convert.cli takes torch with it: --help gets slow"
