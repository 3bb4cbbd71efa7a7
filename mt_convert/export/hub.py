"""A network as the Hub knows models: `config.json`, `model.safetensors` and a card.

What is written and read back needs no connection; `push_to_hub` and the download of
`from_pretrained` are huggingface_hub's.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, OutputError, SpecError
from ..graph.rules import DEFAULT_RULES, Rule
from ..spiking.archive.layouts import add_settings, read_description
from ..spiking.model import SpikingModel
from ..system.network_files import NAMES
from ..system.network_summary import write_summary
from ..system.storage import atomic
from ..training.archive import load, save, summary_of
from .hub_card import card_text

CARD = "README.md"


def save_pretrained(
    network: Any,
    folder: str | Path,
    *,
    rows: Sequence[Any] = (),
    card: Mapping[str, Any] | None = None,
    data_settings: Mapping[str, Any] | None = None,
    notes: str = "",
) -> None:
    """Write a network of any kind as a folder for the Hub: what `save` writes, and a card.

    ``rows``: results for the card, as `evaluate` returns them or `results.json` holds them.
    ``card``: what its head says more, such as license, datasets and base_model. ``data_settings``:
    how images are prepared, where timm did not say it. ``notes``: more text for the card. A card
    that stands there stays.

    Raises:
        OutputError: the folder cannot be written.
        SpecError: no network of ours.

    Example:
        >>> import tempfile, torch
        >>> from torch import nn
        >>> from ..quantization.quantize import QuantSpec, quantize
        >>> from ..spiking.convert import convert
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
        >>> snn = convert(quantize(net, QuantSpec(), calibration=torch.randn(8, 1, 4, 4)))
        >>> folder = Path(tempfile.mkdtemp())
        >>> save_pretrained(snn, folder)
        >>> sorted(path.name for path in folder.iterdir())
        ['README.md', 'config.json', 'model.safetensors', 'summary.json']
        >>> type(from_pretrained(folder)).__name__
        'SpikingModel'
    """
    folder = Path(folder)
    save(network, folder)
    if data_settings:
        add_settings(folder, data_settings)
    content = read_description(folder)
    load(folder)  # what was written is whole, to the last bit
    write_summary(folder, [folder / name for name in NAMES], summary_of(network))
    if not (folder / CARD).exists():
        plain_rows = [asdict(row) if is_dataclass(row) else dict(row) for row in rows]  # type: ignore[arg-type]
        report = network.report if isinstance(network, SpikingModel) else None
        head = {"model_name": folder.resolve().name, **(card or {})}
        text = card_text(content, report, plain_rows, head, notes)
        with atomic(folder / CARD) as temporary:
            temporary.write_text(text)


def from_pretrained(
    name: str | Path,
    *,
    rules: Mapping[Any, Rule] = DEFAULT_RULES,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    force_download: bool = False,
    local_files_only: bool = False,
) -> Any:
    """The network of a folder that `save_pretrained` or `save` wrote, or of a repository of the
    Hub; see `load`. Nothing of a repository is run.

    Raises:
        CheckpointError: no such folder or repository, no network of ours, or a damaged one.
        UnsupportedLayerError: the network holds operators that ``rules`` do not know.
    """
    if os.path.isdir(name):
        return load(name, rules=rules)
    if not isinstance(name, str) or name.count("/") > 1 or name.startswith((".", "/", "~")):
        raise CheckpointError(f"no folder {name}, and that is no name of a repository")
    hub = _huggingface_hub()
    try:
        places = [
            hub.hf_hub_download(
                name,
                file,
                revision=revision,
                token=token,
                cache_dir=cache_dir,
                force_download=force_download,
                local_files_only=local_files_only,
            )
            for file in NAMES
        ]
    except Exception as error:  # of the connection, of names, of what is not there
        why = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CheckpointError(
            f"cannot get {name}: neither a folder nor reachable: {why}"
        ) from error
    return load(Path(places[0]).parent, rules=rules)


def push_to_hub(
    network: Any,
    repo_id: str,
    *,
    rows: Sequence[Any] = (),
    card: Mapping[str, Any] | None = None,
    data_settings: Mapping[str, Any] | None = None,
    notes: str = "",
    **upload: Any,
) -> str:
    """Write a network as `save_pretrained` does and upload it; returns where it is.

    ``upload``: what ``ModelHubMixin.push_to_hub`` of huggingface_hub takes (private, token, branch,
    create_pr, commit_message).

    Raises:
        OutputError: the Hub cannot be reached or does not take it.
    """
    mixin = _huggingface_hub().ModelHubMixin

    class Upload(mixin):  # type: ignore[misc,valid-type]
        """A network on its way: written by `save_pretrained`, uploaded by the Hub's own code."""

        def save_pretrained(self, save_directory: Any, **_: Any) -> None:
            head = {"model_name": repo_id, **(card or {})}
            given: dict[str, Any] = {"rows": rows, "data_settings": data_settings, "notes": notes}
            save_pretrained(network, save_directory, card=head, **given)

    try:
        return str(Upload().push_to_hub(repo_id, **upload))
    except (OutputError, SpecError, TypeError):
        raise
    except Exception as error:
        why = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise OutputError(f"cannot upload to {repo_id}: {why}") from error


def _huggingface_hub() -> Any:
    """The package, or one line on how to get it."""
    try:
        import huggingface_hub
    except ImportError as error:
        hint = "pip install mt-convert[export]"
        raise SpecError(f"the Hub: huggingface_hub is not installed; {hint}") from error
    return huggingface_hub
