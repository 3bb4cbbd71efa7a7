"""The two files of a stored network, by name; without torch."""

from __future__ import annotations

from pathlib import Path

NAMES = ("config.json", "model.safetensors")
EARLIER = ("network.json", "tensors.safetensors")  # before `save` used the Hub's names


def files_of(folder: str | Path) -> tuple[Path, Path]:
    """The description and the tensors of a folder, by whichever names it has them.

    Example:
        >>> [path.name for path in files_of("nowhere")]
        ['config.json', 'model.safetensors']
    """
    folder = Path(folder)
    names = EARLIER if (folder / EARLIER[0]).is_file() else NAMES
    return folder / names[0], folder / names[1]


def holds_network(folder: str | Path) -> bool:
    """Whether a folder has a description of a network."""
    return files_of(folder)[0].is_file()


def remove_earlier_(folder: Path) -> None:
    """Take away the files that have other names now."""
    if all((folder / name).is_file() for name in EARLIER):
        for name in EARLIER:
            (folder / name).unlink()
