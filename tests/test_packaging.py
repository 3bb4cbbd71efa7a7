"""The wheel, installed outside the repository, does what the checkout does."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest
from paths import ROOT

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package as `python -m build` makes it."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    assert len(list(folder.glob("*.tar.gz"))) == 1
    (built,) = folder.glob("*.whl")
    return built


def test_the_wheel_holds_code_recipes_and_data_and_nothing_else(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    ours = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "mt_convert").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    recipes = {f"mt_convert/recipes/{path.name}" for path in (ROOT / "recipes").glob("*.yaml")}
    assert len(recipes) > 20
    packaged = {name for name in names if not name.startswith("mt_convert-")}
    assert packaged == ours | recipes


def test_installed_in_an_environment_of_its_own_it_runs_the_digits(
    wheel: Path, tmp_path: Path
) -> None:
    """The environment is new; only what the package depends on is taken from this one."""
    home = tmp_path / "venv"
    venv.create(home, with_pip=True)
    python = home / "bin" / "python"
    (libraries,) = {path for path in sys.path if path.endswith("site-packages")}
    (own,) = home.glob("lib/python*/site-packages")
    surroundings = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    surroundings["OMP_NUM_THREADS"] = "1"

    def call(*words: str) -> str:
        done = subprocess.run(
            words, cwd=tmp_path, env=surroundings, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    call(str(python), "-m", "pip", "install", "--quiet", "--no-deps", str(wheel))
    (own / "dependencies.pth").write_text(f"{libraries}\n")
    where = call(str(python), "-c", "import mt_convert; print(mt_convert.__file__)")
    assert Path(where.strip()).is_relative_to(home)
    command = str(home / "bin" / "mt-convert")
    assert "digits" in call(command, "ls")
    printed = call(command, "run", "digits", "--out", "digits")
    assert "equals its quantized network bit for bit at T = 1" in " ".join(printed.split())
    assert (tmp_path / "digits" / "results.json").is_file()
