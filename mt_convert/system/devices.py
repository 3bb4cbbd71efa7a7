"""Where networks run."""

from __future__ import annotations

import torch


def device() -> torch.device:
    """Where evaluation runs: the accelerator if there is one."""
    accelerator = (
        torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    )
    return accelerator or torch.device("cpu")
