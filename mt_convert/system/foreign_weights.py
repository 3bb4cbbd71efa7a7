"""Weights that somebody else stored: a safetensors file, or a torch file, in which nothing is run.

Of several sets of weights in one file the averaged one is taken, as timm does; of several wrappers'
prefixes the one under which the network's own names stand. Both are said and can be stored.
"""

from __future__ import annotations

import argparse
import pickle
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.serialization import safe_globals

from ..errors import CheckpointError, Fault, many
from .storage import load_tensors

AVERAGED = ("state_dict_ema", "model_ema", "ema_state_dict", "ema_model", "ema", "params_ema")
SETS = (
    *("state_dict", "model_state_dict", "model", "net", "network", "weights", "params"),
    *("net_state_dict", "network_state_dict", "backbone", "module"),
)
_NO_WEIGHTS = ("optim", "sched", "scaler", "callback", "hyper_param")
_WITHIN = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
_DEEPEST = 3
_SHARE = 0.5  # of the network's or the file's names, under one prefix: then it is a wrapper's
_ZIP, _PICKLE = b"PK", (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


@dataclass(frozen=True)
class ForeignWeights:
    """Named tensors on the CPU; ``taken`` is the set they were, ``prefix`` what stood before every
    name, ``left_out`` how many tensors stood outside."""

    tensors: dict[str, Tensor]
    taken: str = ""
    passed_over: tuple[str, ...] = ()
    prefix: str = ""
    left_out: tuple[str, ...] = ()

    def __str__(self) -> str:
        taken = f"took {self.taken!r}" if self.taken else "took the file's tensors"
        over = f", passed over {', '.join(map(repr, self.passed_over))}" if self.passed_over else ""
        prefix = f", removed the prefix {self.prefix!r}" if self.prefix else ""
        left = f", left out {_some(self.left_out)}" if self.left_out else ""
        return f"{taken}{over}{prefix}{left}"

    def to_json(self) -> dict[str, Any]:
        """What was taken, as plain data."""
        return {
            "set": self.taken or None,
            "passed_over": list(self.passed_over),
            "prefix": self.prefix or None,
            "left_out": list(self.left_out),
        }

    def named_as(self, expected: Iterable[str]) -> ForeignWeights:
        """The same tensors under the network's names: without the prefix that most of them have.

        Raises:
            CheckpointError: two prefixes fit equally well.
        """
        names = set(expected)
        tensors = {_unwrap_name(name): tensor for name, tensor in self.tensors.items()}
        fits = Counter(prefix for name in tensors for prefix in _prefixes(name, names))
        most = max(fits.values(), default=0)
        best = [prefix for prefix, count in fits.items() if count == most]
        if "" in best or most < _SHARE * min(len(names), len(tensors)):
            return replace(self, tensors=tensors)
        if len(best) > 1:
            raise CheckpointError(
                f"holds {len(best)} sets of weights that fit, under {', '.join(sorted(best))}: "
                "keep one of them in the file"
            )
        (prefix,) = best
        inside = {
            name.removeprefix(prefix): tensor
            for name, tensor in tensors.items()
            if name.startswith(prefix)
        }
        outside = tuple(name for name in tensors if not name.startswith(prefix))
        return replace(self, tensors=inside, prefix=self.prefix + prefix, left_out=outside)


def load_foreign(path: str | Path) -> ForeignWeights:
    """Read somebody else's weights: a safetensors file, or a torch file with `weights_only=True`.

    Which of the two it is, the file says, not its name. Nothing in the file is run.

    Raises:
        CheckpointError: missing, truncated, damaged, holding Python objects, no tensors, or several
            sets of which none is known by its name.
    """
    path = Path(path)
    if not path.is_file():
        load_tensors(path)
    try:
        with path.open("rb") as file:
            start = file.read(9)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error
    is_torch = start.startswith(_ZIP) or start.startswith(_PICKLE)
    is_tensors = start[8:9] == b"{" or path.suffix == ".safetensors"
    if is_tensors and not is_torch:
        tensors = load_tensors(path)
        if not tensors:
            raise CheckpointError(f"{path} holds no tensors: expected named weights")
        return ForeignWeights(_check_tensors(path, tensors))
    return _choose(path, _load_torch(path))


def _load_torch(path: Path) -> Any:
    """The content of a torch file, or one message for whatever is wrong with it."""
    try:
        # timm's checkpoints keep their settings in a Namespace; of a path torch judges the suffix
        _check_packing(path)
        with safe_globals([argparse.Namespace]), path.open("rb") as file:
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} is damaged or holds Python objects beside tensors, which could run code; it "
            "was not opened. Allowed: safetensors, or a torch file of plain tensors. Ask its "
            "author for safetensors."
        ) from error
    except (KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # a changed byte can lead anywhere in the reader
        line = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(
            f"{path} is not a whole torch file ({line}): download or write it again"
        ) from error


def _check_packing(path: Path) -> None:
    """Raise for parts that are larger than the file: torch stores them as they are."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            whole = sum(item.file_size for item in archive.infolist())
        if whole > path.stat().st_size:
            raise ValueError(f"its parts would have {whole} bytes, which it does not hold")


def _choose(path: Path, content: Any) -> ForeignWeights:
    """The set of weights in a torch file: averaged before plain, known names before others."""
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not named tensors")
    sets = dict(_sets(content))
    own = {name: item for name, item in content.items() if isinstance(item, Tensor)}

    for known in (*AVERAGED, *SETS):
        names = [name for name in sets if known in name.split(".")]
        if names:
            return _take(path, names[0], sets)
    if not own and len(sets) > 1:
        faults = [Fault(name, f"{len(item)} tensors", "") for name, item in sets.items()]
        allowed = ", ".join(SETS)
        raise CheckpointError(
            f"{path} holds {len(sets)} sets of tensors, none under a name that tells weights: "
            f"store one of them alone, or under one of {allowed}",
            faults,
        )
    if not own and not sets:
        raise CheckpointError(f"{path} holds no tensors: expected a state_dict")
    return _take(path, "" if own else next(iter(sets)), {"": own, **sets} if own else sets)


def _take(path: Path, name: str, sets: Mapping[str, Mapping[Any, Any]]) -> ForeignWeights:
    content = sets[name]
    tensors = {key: item for key, item in content.items() if isinstance(item, Tensor)}
    over = tuple(other for other in sets if other not in ("", name))
    return ForeignWeights(_check_tensors(path, tensors), name, over)


def _sets(content: Mapping[Any, Any], path: str = "") -> Iterator[tuple[str, Mapping[Any, Any]]]:
    """The dictionaries in a file that hold tensors, under dotted names, the outer ones first."""
    for name, item in content.items():
        at = f"{path}.{name}" if path else str(name)
        if not isinstance(item, dict) or any(no in str(name).lower() for no in _NO_WEIGHTS):
            continue
        if any(isinstance(value, Tensor) for value in item.values()):
            yield at, item
        elif at.count(".") + 1 < _DEEPEST:
            yield from _sets(item, at)


def _check_tensors(path: Path, tensors: Mapping[Any, Tensor]) -> dict[str, Tensor]:
    """The tensors, if each has a name and holds plain numbers."""
    faults = [
        Fault(str(name), wrong, "store it as a plain tensor under a name")
        for name, tensor in tensors.items()
        if (wrong := _defect(name, tensor))
    ]
    if faults:
        raise CheckpointError(
            f"{path}: {many(faults, 'tensor is no weight', 'tensors are no weights')}",
            faults[:20],
        )
    return {str(name): tensor.detach() for name, tensor in tensors.items()}


def _defect(name: Any, tensor: Tensor) -> str:
    """What keeps a tensor from being weights; empty for nothing."""
    kinds: dict[str, Callable[[], bool]] = {
        f"is named by a {type(name).__name__}": lambda: not isinstance(name, str),
        "holds no numbers (meta)": lambda: tensor.device.type == "meta",
        f"is sparse ({tensor.layout})": lambda: tensor.layout is not torch.strided,
        "is quantized": lambda: tensor.is_quantized,
        "is nested": lambda: tensor.is_nested,
    }
    return next((what for what, holds in kinds.items() if holds()), "")


def _unwrap_name(name: str) -> str:
    """A name without what wrappers put into its middle."""
    for part in _WITHIN:
        name = name.replace(part, "")
    return name


def _prefixes(name: str, names: Set[str]) -> Iterator[str]:
    """What stands before one of the network's names at the end of a name."""
    parts = name.split(".")
    for start in range(len(parts)):
        if ".".join(parts[start:]) in names:
            yield "".join(f"{part}." for part in parts[:start])


def _some(names: Iterable[str]) -> str:
    """The first few of many names."""
    whole = list(names)
    return ", ".join(whole[:3]) + (f" and {len(whole) - 3} more" if len(whole) > 3 else "")
