"""The verbs of this room, one for each target."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..spiking.model import SpikingModel
from .approximation import Difference, write_qdq
from .targets import export
from .verdict import Verdict


def tables(snn: SpikingModel, folder: str | Path, *, images: Any = None) -> Verdict:
    """Write one time step of a converted network as integers to take away: a folder of weights,
    thresholds and multipliers, golden vectors of every layer, and a reader in NumPy.

    ``images`` to compare on, normalised as in training; without, 1,000 random ones.

    Raises:
        UnsupportedLayerError: what of the network has no exact form, all of it; or the folder does
            not answer as the network, of which nothing is kept then.
        OutputError: the folder cannot be written, or is something else.

    Example:
        >>> import tempfile
        >>> from torch import nn, randn
        >>> from ..spiking.convert import convert
        >>> from ..quantization.quantize import QuantSpec, quantize
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
        >>> images = randn(8, 1, 4, 4)
        >>> snn = convert(quantize(net, QuantSpec(), calibration=images))
        >>> folder = Path(tempfile.mkdtemp()) / "tables"
        >>> tables(snn, folder, images=images).exact
        True
        >>> sorted(path.name for path in folder.iterdir())
        ['golden', 'network.json', 'network.safetensors', 'reader.py', 'verdict.json']
    """
    return export(snn, "tables", folder, images=images)


def c(snn: SpikingModel, file: str | Path, *, images: Any = None) -> Verdict:
    """Write one time step of a converted network as one C99 file of integers alone.

    The verdict stands beside it. See `tables` for ``images`` and what is raised; a compiler must be
    installed.
    """
    return export(snn, "c", file, images=images)


def onnx(
    snn: SpikingModel,
    file: str | Path,
    *,
    images: Any = None,
    time_steps: int | None = None,
    approximate: bool = False,
) -> Verdict:
    """Write a converted network as an ONNX file of whole numbers, for onnxruntime.

    ``time_steps``: one unless given. T of them are unrolled: the file gives the logits behind the
    last, and neurons move on from what they have emitted. Where layers wait for their window it is
    one pass, however many steps it has. ``approximate`` takes operators on real numbers between
    layers of neurons too (norms, softmax): onnxruntime's own have other last bits, so whole numbers
    alone are exact, node by node, and the verdict says what differs in the end. See `tables` for
    ``images`` and what is raised.
    """
    return export(snn, "onnx", file, images=images, time_steps=time_steps, approximate=approximate)


def qonnx(snn: SpikingModel, file: str | Path, *, images: Any = None) -> Verdict:
    """Write one time step of a converted network as a QONNX file: whole weights, and neurons as
    MultiThreshold nodes.

    See `tables` for ``images`` and what is raised.
    """
    return export(snn, "qonnx", file, images=images)


def torch(
    snn: SpikingModel, file: str | Path, *, images: Any = None, time_steps: int | None = None
) -> Verdict:
    """Write a converted network as a program of torch.export on whole numbers:
    ``torch.export.load(file).module()(images)`` gives the logits, without this package.

    Operators on real numbers between layers of neurons (norms, softmax) are torch's own, float32:
    the same bits with the same version on the same machine, which is what is checked. It is run in
    a process of its own. See `onnx` for ``time_steps``, `tables` for ``images`` and what is raised.
    """
    return export(snn, "torch", file, images=images, time_steps=time_steps)


def nir(snn: SpikingModel, file: str | Path, *, images: Any = None) -> Verdict:
    """Write one time step of a converted network as a graph of NIR: whole weights, and for each
    threshold a population of integrate-and-fire neurons. It reads levels of the image.

    Where SpikingJelly is installed it reads the file, and its logits are compared. See `tables` for
    ``images`` and what is raised.
    """
    return export(snn, "nir", file, images=images)


def spikingjelly(snn: SpikingModel, folder: str | Path, *, images: Any = None) -> Verdict:
    """Write one time step of a converted network as a module of SpikingJelly: a folder with
    ``spiking_network.py``, whose ``load(folder)`` gives it, to be watched and trained there.

    Neurons are their FewSpikeNode where that is equal, else one of ours behind their interface. See
    `tables` for ``images`` and what is raised.
    """
    return export(snn, "spikingjelly", folder, images=images)


def qdq(
    snn: SpikingModel, file: str | Path, *, images: Any = None, approximate: bool = False
) -> Difference:
    """Write the quantized network that a converted one equals at T = 1 as an ONNX file with
    QuantizeLinear and DequantizeLinear, as other tools do: not exact, so ``approximate`` must be
    asked for. What differs on ``images`` from the integer network is measured and stands beside it.

    Raises:
        SpecError: it was not asked for, or packages are missing.
        UnsupportedLayerError: functions, learned thresholds, fewer thresholds than levels,
            calibrated neurons, more than 8 bits.
        OutputError: the file cannot be written.

    Example:
        >>> import tempfile
        >>> from torch import nn, randn
        >>> from ..spiking.convert import convert
        >>> from ..quantization.quantize import QuantSpec, quantize
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
        >>> images = randn(8, 1, 4, 4)
        >>> snn = convert(quantize(net, QuantSpec(), calibration=images))
        >>> file = Path(tempfile.mkdtemp()) / "network.onnx"
        >>> found = qdq(snn, file, images=images, approximate=True)
        >>> found.exact, found.largest < 0.2
        (False, True)
    """
    return write_qdq(snn, file, images=images, approximate=approximate)
