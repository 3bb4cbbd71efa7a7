"""Where networks run."""

from __future__ import annotations

import torch


def device() -> torch.device:
    """Where evaluation runs: the accelerator if there is one."""
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return found or torch.device("cpu")
