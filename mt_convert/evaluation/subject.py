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
from ..quantization.spec import QuantSpec, WeightCode
from .stored import StoredNetwork, StoredSpec


def network_digest(network: nn.Module) -> str:
    """The first characters of a digest of a network's numbers, and of how it was quantized.

    Example:
        >>> network_digest(nn.ReLU())
        'e3b0c442'
    """
    sha = hashlib.sha256()
    if isinstance(network, QuantizedModel):
        sha.update(json.dumps(network.spec.to_json(), sort_keys=True).encode())
    _add_tensors(sha, network)
    return sha.hexdigest()[:8]


def bits_per_weight(spec: QuantSpec | StoredSpec) -> float | None:
    """Bits of a weight of an ordinary layer; None of a float.

    Example:
        >>> bits_per_weight(QuantSpec(weights="subbit", codeword_bits=5))
        0.56
    """
    if isinstance(spec, StoredSpec):
        return spec.weight_bits
    if spec.weights is WeightCode.SUBBIT:
        return round(spec.codeword_bits / 9, 2)
    return 2 if spec.weights is WeightCode.TERNARY else spec.weight_bits


def _add_tensors(sha: Any, network: nn.Module) -> None:
    """Names and numbers of a network's tensors."""
    for name, value in network.state_dict().items():
        sha.update(name.encode())
        sha.update(value.detach().cpu().contiguous().view(-1).numpy().tobytes())


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
            if network is not None:
                _add_tensors(sha, network)
        sha.update(self.calibration.cpu().contiguous().numpy().tobytes())
        return sha.hexdigest()
