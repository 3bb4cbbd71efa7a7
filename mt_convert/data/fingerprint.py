"""What a run knows its files by, so that it sees when they have changed under their names."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..errors import DataError
from .class_map import head_rows
from .events.spec import SYNTHETIC, EventSpec
from .image_files import list_split
from .image_listing import FolderFiles
from .image_spec import DataSpec

_GENERATED = ("digits", "synthetic")


def describe_files(spec: DataSpec | EventSpec) -> dict[str, Any]:
    """The files of a data set as plain data: how many, what was passed over, and their ``digest``;
    empty where images are generated; ``not_compared`` says why nobody looked.

    Raises:
        DataError: files are missing or cannot be read.

    Example:
        >>> describe_files(DataSpec("digits"))
        {}
    """
    if isinstance(spec, EventSpec):
        if spec.dataset == SYNTHETIC:
            return {}
        root = Path(spec.root or "").expanduser()
        folders = dict.fromkeys(spec.files.part(root, train=train) for train in (True, False))
        return _trees(folders)
    mapped = {} if spec.class_map is None else {"class_map": list(head_rows(spec) or ())}
    if spec.dataset in _GENERATED:
        return mapped
    if spec.dataset.startswith("torch/"):
        return mapped | _trees([Path(spec.root or "").expanduser()])
    if spec.dataset:
        return mapped | {"not_compared": f"{spec.dataset} lies where its library keeps it"}
    description: dict[str, Any] = {"splits": {}}
    digests = []
    for split in (spec.train_split, spec.test_split):
        listing = list_split(spec, split)
        digests.append(listing.digest(content=spec.compare == "content"))
        description["splits"][split] = {
            "path": str(listing.path),
            "images": len(listing.names),
            "classes": len(listing.classes),
            "not_read": dict(sorted(listing.skipped.items())),
        }
    return mapped | description | {"compared": spec.compare, "digest": _digest(digests)}


def identity_of(spec: DataSpec) -> dict[str, Any]:
    """What tells the images of a data set from others: its fields, and its files; where these are
    known by what they hold, not the folder they lie in."""
    fields = without_place(dataclasses.asdict(spec))
    return {**fields, "files": describe_files(spec).get("digest")}


def without_place(value: Any) -> Any:
    """Plain data of a recipe, of `DataSpec` or of `describe_files` without the folders of images
    that are known by what they hold.

    Example:
        >>> here = {"root": "/here", "test_split": "test", "compare": "content"}
        >>> without_place({"data": here})
        {'data': {'test_split': 'test', 'compare': 'content'}}
    """
    if isinstance(value, list):
        return [without_place(item) for item in value]
    if not isinstance(value, dict):
        return value
    if value.get("compare") == "content" and "test_split" in value:
        return {key: item for key, item in value.items() if key != "root"}
    if value.get("compared") == "content" and "splits" in value:
        splits = {
            split: {key: item for key, item in described.items() if key != "path"}
            for split, described in value["splits"].items()
        }
        return {**value, "splits": splits}
    return {key: without_place(item) for key, item in value.items()}


def _trees(folders: Iterable[Path]) -> dict[str, Any]:
    """Names, sizes and times of everything below some folders."""
    lines = []
    for folder in folders:
        if not folder.is_dir():
            raise DataError(f"{folder} is not here: set root to the folder that holds it")
        entries = FolderFiles(folder).entries
        lines += [f"{name} {entries[name]}" for name in sorted(entries)]
    return {"files": len(lines), "compared": "times", "digest": _digest(lines)}


def _digest(lines: Iterable[str]) -> str:
    sha = hashlib.sha256()
    for line in lines:
        sha.update(os.fsencode(line) + b"\n")
    return sha.hexdigest()
