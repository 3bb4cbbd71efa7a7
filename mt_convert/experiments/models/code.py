"""Networks of one's own: Python files that a recipe names. They are run, as any program is.

A file is run where the user gave its name: in a recipe, or as ``key=value``. The copy that a run
keeps is run only where a file of the same bytes was run so before, by this user on this machine:
a folder from elsewhere brings no code into a process. Folders of weights never hold any.
"""

from __future__ import annotations

import hashlib
import inspect
import os
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from ...errors import (
    CheckpointError,
    Fault,
    OutputError,
    SpecError,
    did_you_mean,
    error_line,
    near_names,
)

FOLDER = "code"
_IMPORT, _ARCHITECTURE = "import.py", "architecture.py"
_PREFIX = "mt_convert_code_"


def split_architecture(architecture: str) -> tuple[str, str] | None:
    """The file and the name in ``file.py:Name``; None for a name of timm's.

    Example:
        >>> split_architecture("nets/mine.py:Net"), split_architecture("hf-hub:timm/resnet18")
        (('nets/mine.py', 'Net'), None)
    """
    file, colon, name = architecture.rpartition(":")
    return (file, name) if colon and file.endswith(".py") else None


def code_files(architecture: str, imported: str | None) -> dict[str, str]:
    """The files that a network's recipe runs, by the name that a run keeps them under.

    Example:
        >>> code_files("nets/mine.py:Net", None), code_files("resnet18", "mine.py")
        ({'architecture.py': 'nets/mine.py'}, {'import.py': 'mine.py'})
    """
    own = split_architecture(architecture)
    files = {_IMPORT: imported, _ARCHITECTURE: own[0] if own else None}
    return {name: path for name, path in files.items() if path is not None}


def run_file(path: str | Path, *, given: bool) -> ModuleType:
    """Run a file once in this process; ``given``: by the user, who trusts it by doing so.

    Raises:
        SpecError: it is not here, or stops with an error; the line is named.
        CheckpointError: the copy of a run, and no such file was run here before.
    """
    file = Path(path).expanduser()
    try:
        source = file.read_bytes()
    except OSError as error:
        raise SpecError(f"cannot read {file}: {error.strerror or error}") from error
    digest = hashlib.sha256(source).hexdigest()
    if given:
        _trust(digest)
    elif not (_ledger() / digest).is_file():
        named = (
            f"model.import={file}" if file.name == _IMPORT else f"model.architecture={file}:NAME"
        )
        raise CheckpointError(
            f"{file} is code that was never run here: it came with the folder. Read it, and if you "
            f"trust it name it yourself: mt-convert check {file.parents[2]}/recipe.yaml {named}"
        )
    name = _PREFIX + digest[:24]
    if name in sys.modules:
        return sys.modules[name]
    module = ModuleType(name)
    module.__file__ = str(file)
    sys.modules[name] = module  # timm's register_model looks there
    try:
        exec(compile(source, str(file), "exec"), module.__dict__)
    except Exception as error:
        del sys.modules[name]
        hint = "mend it"
        if isinstance(error, ImportError):
            hint = "it must be one file: put its helpers into it, or install them as a package"
        raise SpecError(f"{_line(error, file)} {error_line(error)}; {hint}") from error
    return module


def create(file: str, name: str, settings: dict[str, Any], *, given: bool) -> nn.Module:
    """The network that a class or function of a file makes. Of ``num_classes`` and ``in_chans`` it
    gets those that it takes, of all else everything.

    Raises:
        SpecError: no such name there; it fails, or makes no network.
    """
    module = run_file(file, given=given)
    make = getattr(module, name, None)
    if not callable(make):
        here = [key for key, item in vars(module).items() if callable(item) and key[0] != "_"]
        hint = did_you_mean(near_names(name, here)) or f"it holds {', '.join(here) or 'nothing'}"
        raise SpecError(
            "cannot build the network", [Fault(f"{file}:{name}", "is not in the file", hint)]
        )
    taken = inspect.signature(make).parameters
    every = any(item.kind is item.VAR_KEYWORD for item in taken.values())
    sizes = ("num_classes", "in_chans")
    passed = {
        key: item for key, item in settings.items() if key not in sizes or every or key in taken
    }
    try:
        network = make(**passed)
    except Exception as error:
        hint = f"it was called with {passed}: set model.kwargs"
        where = _line(error, Path(str(module.__file__)))
        raise SpecError(f"{where} {error_line(error)}; {hint}") from error
    if not isinstance(network, nn.Module):
        raise SpecError(f"{file}:{name} gives a {type(network).__name__}, not an nn.Module")
    return network


@torch.no_grad()
def check_logits(network: nn.Module, shape: tuple[int, ...], classes: int, name: str) -> None:
    """Refuse a network of one's own that does not take the recipe's images, or gives other logits.

    Raises:
        SpecError: what it gives, and what the recipe says.
    """
    training = network.training
    try:
        logits = network.eval()(torch.zeros(2, *shape))
    except Exception as error:
        hint = "model.channels and data.image_size say what images are"
        raise SpecError(f"{name} on images {list(shape)}: {error_line(error)}; {hint}") from error
    finally:
        network.train(training)
    given = list(getattr(logits, "shape", ())) or type(logits).__name__
    if given != [2, classes]:
        raise SpecError(
            f"{name} gives {given} for two images, and model.classes is {classes}: logits must be "
            f"[batch, {classes}]"
        )


def store(files: dict[str, str], folder: Path) -> None:
    """Copies of the files, as they are now, in a folder of a run."""
    for name, path in files.items():
        try:
            (folder / FOLDER).mkdir(parents=True, exist_ok=True)
            (folder / FOLDER / name).write_bytes(Path(path).expanduser().read_bytes())
        except OSError as error:
            raise OutputError(f"cannot keep {path} in {folder / FOLDER}: {error}") from error


def faults(files: dict[str, str], architecture: str) -> Iterator[Fault]:
    """What is wrong with the files; they are run for it."""
    keys = {_IMPORT: "model.import", _ARCHITECTURE: "model.architecture"}
    for name, path in files.items():
        try:
            module = run_file(path, given=True)
        except SpecError as error:
            yield Fault(keys[name], error.headline, "name a file of Python that runs")
            continue
        own = split_architecture(architecture)
        if name == _ARCHITECTURE and own and not callable(getattr(module, own[1], None)):
            here = [key for key, item in vars(module).items() if isinstance(item, type)]
            hint = did_you_mean(near_names(own[1], here)) or f"classes: {', '.join(here)}"
            yield Fault(keys[name], f"{own[1]} is not in {own[0]}", hint)


def _line(error: Exception, file: Path) -> str:
    """Where in the file an error arose."""
    if isinstance(error, SyntaxError):
        return f"{file}:{error.lineno}:"
    stack = traceback.extract_tb(error.__traceback__)
    frames = [item for item in stack if item.filename == str(file)]
    return f"{file}:{frames[-1].lineno}:" if frames else f"{file}:"


def _ledger() -> Path:
    """The folder that names all files which the user has given."""
    if named := os.environ.get("MT_CONVERT_CACHE"):
        return Path(named) / "code_run_here"
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return caches / "mt_convert" / "code_run_here"


def _trust(digest: str) -> None:
    """Note that a file was given by the user; where it cannot be noted, the run's copy is refused
    later, and says so."""
    try:
        _ledger().mkdir(parents=True, exist_ok=True, mode=0o700)
        (_ledger() / digest).touch()
    except OSError:
        pass
