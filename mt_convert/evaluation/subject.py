"""A network to evaluate, with its float original and the images it is evaluated on."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from torch import Tensor, nn

from ..data import ImageSet
from ..quantization.quantize import QuantizedModel
from .stored import StoredNetwork


@dataclass(frozen=True)
class Subject:
    """A network with its float original (if there is one) and the images it is evaluated on.

    ``describe`` holds model, dataset, seed; ``data`` what tells these images from others.
    """

    qann: QuantizedModel | StoredNetwork
    ann: nn.Module | None
    test: ImageSet
    calibration: Tensor
    describe: dict[str, Any]
    data: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def identity(self) -> str:
        """A digest of the networks' numbers and of what the images are."""
        sha = hashlib.sha256()
        description = [self.describe, self.data, len(self.test), self.qann.spec.to_json()]
        sha.update(json.dumps(description, sort_keys=True).encode())
        for network in (self.qann, self.ann):
            for name, value in ({} if network is None else network.state_dict()).items():
                sha.update(name.encode())
                sha.update(value.detach().cpu().contiguous().view(-1).numpy().tobytes())
        sha.update(self.calibration.cpu().contiguous().numpy().tobytes())
        return sha.hexdigest()
