"""Files that are whole or absent: temporary name, then rename; safetensors and JSON, no pickle.

What is read is looked at before memory is taken for it: size, kind of file, depth, numbers.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import stat
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from ..errors import CheckpointError, MTConvertError, OutputError

LONGEST_JSON = 1 << 27  # bytes; the longest of ours, a network of 1,000 layers, has a few MB
DEEPEST_JSON = 100
_TEMPORARY = ".mt-convert-tmp"
_ONCE = re.compile(r"\..+\.[a-z0-9_]{8}")  # as earlier versions named them
_DAMAGED = (
    *(KeyError, IndexError, TypeError, ValueError, AttributeError, AssertionError),
    *(RuntimeError, OverflowError, MemoryError),
)

if TYPE_CHECKING:  # who only reads JSON does not wait for torch
    from torch import Tensor


@contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; rename it to ``path`` if the block succeeds.

    Raises:
        OutputError: the folder cannot be written or the disk is full; an earlier file stays.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> with atomic(folder / "a.txt") as temporary:
        ...     _ = temporary.write_text("whole")
        >>> (folder / "a.txt").read_text(), len(list(folder.iterdir()))
        ('whole', 1)
    """
    path = Path(path)
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(
            prefix=f".{path.name[:100]}.", suffix=_TEMPORARY, dir=path.parent
        )
        os.close(handle)
        temporary = Path(name)
        yield temporary
        os.chmod(temporary, 0o666 & ~_umask())  # writers may have made the file anew
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        raise OutputError(
            f"cannot write {path}: {error}. Free some space or choose another --out folder; "
            "what stood there before is unchanged."
        ) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _umask() -> int:
    """The process's umask, which can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def digest(value: Any) -> str:
    """A digest of plain data, whatever the order of its keys.

    Example:
        >>> digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1}), len(digest([]))
        (True, 64)
    """
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def write_json(path: str | Path, value: Any) -> None:
    """Write ``value`` as indented JSON; NaN and infinity are refused.

    Raises:
        OutputError: see `atomic`.
    """
    text = json_text(value)
    with atomic(path) as temporary:
        temporary.write_text(text)


def json_text(value: Any) -> str:
    """``value`` as all our files hold it.

    Raises:
        OutputError: a number in it is NaN or infinite, by its name.

    Example:
        >>> json_text([])
        '[]\\n'
    """
    try:
        return json.dumps(value, indent=1, allow_nan=False) + "\n"
    except ValueError as error:
        places = list(_not_finite(value))
        if not places:
            raise
        more = f" and {len(places) - 1} more" * (len(places) > 1)
        text = f"{places[0]}{more}: NaN or infinite, which no file of ours holds"
        raise OutputError(
            f"a result is no number: {text}; look at the network's numbers"
        ) from error


def _not_finite(value: Any, name: str = "") -> Iterator[str]:
    """Where numbers are that JSON does not know."""
    if isinstance(value, float) and not math.isfinite(value):
        yield name or "the value"
    pairs = value.items() if isinstance(value, Mapping) else ()
    if isinstance(value, (list, tuple)):
        pairs = enumerate(value)  # type: ignore[assignment]
    for key, item in pairs:
        yield from _not_finite(item, f"{name}.{key}".lstrip("."))


def check_folder(path: Path) -> None:
    """Whether a path can be a folder of results: it is one, or nothing is there.

    Raises:
        OutputError: a file is in the way, or the system takes no such name.
    """
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        name = str(path) if len(str(path)) <= 60 else f"{str(path)[:57]}..."
        raise OutputError(
            f"{name} cannot be a folder ({reason}): name another with --out"
        ) from error
    if not stat.S_ISDIR(found.st_mode):
        raise OutputError(f"{path} is a file: name a folder with --out")


def check_regular(path: Path) -> None:
    """Raise OSError for what is no plain file: of a pipe or a device nobody knows the end.

    Example:
        >>> check_regular(Path("/dev/zero"))
        Traceback (most recent call last):
        OSError: it is no file
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError("it is no file")


def append_line(path: Path, line: str) -> None:
    """Write a line behind the end of a text file.

    Raises:
        OutputError: it cannot be written, or is no file.
    """
    try:
        handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK, 0o666)
        with open(handle, "a", encoding="utf-8") as file:
            file.write(line + "\n")
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error


def sweep(folder: Path, *, deep: bool = True) -> None:
    """Remove the temporary files that processes which were killed have left in a folder, and in
    those below it where it is ``deep``.

    Only for whoever holds the folder's lock; where it is ``deep``, of a folder that is ours alone.

    Example:
        >>> folder = Path(tempfile.mkdtemp())
        >>> (folder / ".rows.json.abcd1234").touch()
        >>> sweep(folder)
        >>> list(folder.iterdir())
        []
    """
    for above, below, names in os.walk(folder):
        below[:] = below if deep else []
        for name in names:
            if name.endswith(_TEMPORARY) or (deep and _ONCE.fullmatch(name)):
                with suppress(OSError):
                    os.unlink(os.path.join(above, name))


def read_json(path: str | Path, convert: Callable[[Any], Any] | None = None) -> Any:
    """Read a JSON file, and turn it into what it stands for.

    Raises:
        CheckpointError: the file is missing, too long, nested too deeply, no JSON in UTF-8, holds
            numbers that we never write, or not what ``convert`` expects.
    """
    path = Path(path)
    text = _read_text(path)
    try:
        value = json.loads(
            text, parse_int=_whole, parse_float=_finite, parse_constant=_refuse_constant
        )
        _check_plain(value)
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else error
        raise CheckpointError(
            f"{path} is not JSON ({reason}): it is damaged or of another kind; make it again"
        ) from error
    if convert is None:
        return value
    with reading(path):
        return convert(value)


@contextmanager
def reading(path: str | Path) -> Iterator[None]:
    """What a changed file can raise where it is looked into, as one error that names the file."""
    try:
        yield
    except MTConvertError as error:
        if str(path) in error.headline:
            raise
        what = f"{path} is damaged or of another kind: {error.headline}"
        raise CheckpointError(what, error.faults) from error
    except _DAMAGED as error:
        line = (str(error).splitlines() or [""])[0]
        raise CheckpointError(
            f"{path} is damaged ({type(error).__name__}: {line}): make it again"
        ) from error


def _read_text(path: Path) -> str:
    """The text of a regular file, if it is not too long."""
    try:
        check_regular(path)
        length = path.stat().st_size
        if length > LONGEST_JSON:
            size = f"{length / 2**20:.0f} MiB"
            raise CheckpointError(f"cannot read {path}: it has {size}, which no file of ours has")
        return path.read_bytes().decode("utf-8")
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise CheckpointError(
            f"{path} is not JSON ({error}): it is damaged or of another kind; make it again"
        ) from error


def _whole(text: str) -> int:
    if len(text) > 20:
        raise ValueError(f"a whole number of {len(text)} digits")
    return int(text)


def _finite(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise ValueError(f"the number {text[:40]}")
    return value


def _refuse_constant(name: str) -> None:
    raise ValueError(name)


def _check_plain(value: Any) -> None:
    """Raise ValueError for what is nested too deeply, or text that cannot be written."""
    level, depth = [value], 0
    while level:
        depth += 1
        if depth > DEEPEST_JSON:
            raise ValueError("nested too deeply")
        inner: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                inner += item.keys()
                inner += item.values()
            elif isinstance(item, list):
                inner += item
            elif isinstance(item, str) and not item.isascii():
                item.encode()
        level = inner


def save_tensors(path: str | Path, tensors: Mapping[str, Tensor]) -> None:
    """Write named tensors as safetensors.

    Raises:
        OutputError: see `atomic`.
    """
    from safetensors.torch import save_file

    # clones, because the format refuses tensors that share memory
    whole = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    with atomic(path) as temporary:
        save_file(whole, temporary)


def load_tensors(path: str | Path) -> dict[str, Tensor]:
    """Read a safetensors file onto the CPU.

    Raises:
        CheckpointError: the file is missing, truncated or no safetensors file.
    """
    from safetensors.torch import load_file

    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"no checkpoint at {path}: check the path, it must name a file")
    try:
        return load_file(path)
    except (KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # panics of the reader, which is not written in Python, too
        raise CheckpointError(
            f"{path} is not a whole safetensors file ({error}): download or write it again"
        ) from error
