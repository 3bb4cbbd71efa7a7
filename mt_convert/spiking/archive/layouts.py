"""The folder of a stored network as the Hub knows models, and as earlier versions wrote it.

``config.json`` holds the description, how images are prepared, and which weights are packed;
``model.safetensors`` the tensors, of a converted network weights that lie on a grid as whole
numbers of as few bits as they need, beside their steps. Earlier versions wrote ``network.json``,
the description alone, and ``tensors.safetensors``, every tensor as it is: both are read.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...errors import CheckpointError, OutputError
from ...system.network_files import EARLIER, NAMES, files_of, remove_earlier_
from ...system.storage import atomic, json_text, load_tensors, read_json, save_tensors

MOST_BITS = 8


def read_tensors(folder: str | Path) -> dict[str, Tensor]:
    """The tensors of a folder, in whichever form it is, as they are used.

    Raises:
        CheckpointError: a file is missing or damaged.
    """
    description, tensors = files_of(folder)
    if description.name == EARLIER[0]:
        return load_tensors(tensors)
    return unpack(read_json(description).get("packed", {}), load_tensors(tensors), description)


def read_description(folder: str | Path) -> Any:
    """The description, not yet looked at.

    Raises:
        CheckpointError: it is missing or damaged, or a config.json of another library.
    """
    path = files_of(folder)[0]
    content = read_json(path)
    if path.name == EARLIER[0]:
        return content
    if not isinstance(content, dict) or not isinstance(content.get("network"), dict):
        hint = "it is of another library, or was changed"
        raise CheckpointError(f"{path} describes no network of ours: {hint}")
    return content["network"]


def read_settings(folder: str | Path) -> dict[str, Any]:
    """What a config.json says beside the network."""
    content = read_json(Path(folder) / NAMES[0])
    return {key: value for key, value in content.items() if key not in ("network", "packed")}


def write_files(
    folder: Path, content: Mapping[str, Any], tensors: Mapping[str, Tensor], settings: Any
) -> None:
    """Write a description, which has no digest yet, and its tensors, with ``settings`` beside it.

    Raises:
        OutputError: no permission, no space, or a model of another library stands there.
    """
    if (folder / NAMES[0]).exists() and not _is_ours(folder / NAMES[0]):
        raise OutputError(f"{folder} holds a model of another library: name another folder")
    grids = [name for name, layer in content["layers"].items() if "weight_scale" in layer]
    packed, stored, whole = {}, dict(tensors), dict(tensors)
    for name in grids:
        found = pack(tensors[f"{name}.weight"], tensors[f"{name}.weight_scale"])
        if found is not None:
            bits, stored[f"{name}.weight"], whole[f"{name}.weight"] = found
            packed[f"{name}.weight"] = [bits, *tensors[f"{name}.weight"].shape]
    network = {**content, "digest": digest_of(content, whole)}
    description = {"library_name": "mt_convert", **settings, "packed": packed, "network": network}
    with atomic(folder / NAMES[0]) as temporary:  # both are written before either is renamed
        temporary.write_text(json_text(description))
        save_tensors(folder / NAMES[1], stored)
    remove_earlier_(folder)


def add_settings(folder: Path, settings: Mapping[str, Any]) -> None:
    """Say more of how images are prepared, in timm's words; the network stays as it is."""
    content = read_json(folder / NAMES[0])
    content["pretrained_cfg"] = {**content["pretrained_cfg"], **settings}
    with atomic(folder / NAMES[0]) as temporary:
        temporary.write_text(json_text(content))


def _is_ours(path: Path) -> bool:
    """Whether a config.json describes a network of ours, whole or damaged."""
    try:
        content = read_json(path)
    except CheckpointError:
        return True
    return isinstance(content, dict) and "network" in content


def pack(weight: Tensor, step: Tensor) -> tuple[int, Tensor, Tensor] | None:
    """Bits, bytes of the levels, and the weights that they stand for; None where those are others.

    A level is written in two's complement, the first one in the highest bits of the first byte.

    Example:
        >>> bits, packed, weight = pack(torch.tensor([[0.5, -1.0, 1.5]]), torch.tensor([[0.5]]))
        >>> bits, packed.tolist(), weight.tolist()
        (3, [57, 128], [[0.5, -1.0, 1.5]])
    """
    levels = torch.round(weight / step)
    if not bool(levels.isfinite().all()) or weight.dtype != torch.float32:
        return None
    low, high = (int(end) for end in levels.aminmax())
    bits = 1 + max((-low - 1).bit_length() if low < 0 else 0, max(high, 0).bit_length())
    whole = levels.to(torch.int8).float() * step  # without the sign of a zero
    if bits > MOST_BITS or not torch.equal(whole, weight):
        return None
    numbers = levels.to(torch.int16).flatten().numpy() & ((1 << bits) - 1)
    places = np.arange(bits - 1, -1, -1)
    columns = (numbers[:, None] >> places & 1).astype(np.uint8)
    return bits, torch.from_numpy(np.packbits(columns)), whole


def unpack(packed: Any, stored: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """All tensors as they are used, from those that were stored.

    Raises:
        CheckpointError: sizes that do not go together.
    """
    tensors = dict(stored)
    if not isinstance(packed, dict):
        raise _damage(path, "packed")
    for name, given in packed.items():
        whole = isinstance(given, list) and all(type(one) is int and one > 0 for one in given)
        content, step = stored.get(name), stored.get(f"{name}_scale")
        if not whole or content is None or step is None or not 1 <= given[0] <= MOST_BITS:
            raise _damage(path, name)
        bits, shape = given[0], given[1:]
        count = math.prod(shape)
        fits = content.dtype == torch.uint8 and content.dim() == 1
        if not fits or -(-count * bits // 8) != len(content) or step.dtype != torch.float32:
            raise _damage(path, name)
        columns = np.unpackbits(content.numpy(), count=count * bits).reshape(count, bits)
        values = np.concatenate([[-(1 << (bits - 1))], 1 << np.arange(bits - 2, -1, -1)])
        levels = torch.from_numpy(columns.astype(np.float32) @ values.astype(np.float32))
        try:
            weight = levels.reshape(shape) * step
        except RuntimeError as error:
            raise _damage(path, name) from error
        if weight.shape != torch.Size(shape):
            raise _damage(path, name)
        tensors[name] = weight
    return tensors


def _damage(path: Path, name: str) -> CheckpointError:
    return CheckpointError(f"{path} is damaged: {name[:80]} does not fit its bytes; get it again")


def digest_of(content: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over the description, and over names, shapes and bytes of all tensors."""
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
