"""Networks trained as spiking networks: what recipes say of one, and its rows of the table.

Floor 8.3. `SpikingSpec` is the ``spiking`` block of a recipe; `build_spiking` makes the network of
it, `learned` trains it, `rows_of` evaluates it.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...data import ImageSet, Splits, batches
from ...direct.named import ALGORITHMS, SURROGATES
from ...errors import Fault, SpecError
from ...neurons.dynamics import IF, LIF, PLIF, Charge, MTNeuron, NeuronSpec, Reset
from ...neurons.ladder import LADDERS, Firing, Ladder
from ...report.rows import Row
from ...spiking.simulate import count_events
from ...system.peak_memory import meter_of
from ...system.processes import Processes
from ...system.progress import progress
from ...system.storage import read_json, write_json
from ..loop import fit
from ..spec import History, TrainSpec
from .network import SpikingNetwork, spiking
from .tensor_train import TensorTrain

NEURONS = ("if", "lif", "plif")
LEARNS_BY = tuple(name for name in ALGORITHMS if name != "tandem")
THROUGH = tuple(name for name in SURROGATES if name != "stdb")
STARTS = ("random", "ann")


@dataclass(frozen=True)
class SpikingSpec:
    """Which neurons stand where a network has activations, for how many steps, and how they learn.

    ``surrogate`` and ``detach_reset`` say what gradients pass through, ``algorithm`` how they are
    made.
    ``ladder`` null is the mode's own: equal steps for parallel thresholds, powers of two for a
    cascade. All n thresholds together emit at most 1, as a single one does. ``tau`` is the leak of
    lif, and where that of plif starts. ``start`` "ann" takes over the weights of the recipe's float
    network; "random" draws them from the recipe's seed. ``tensor_train`` trains 3x3 convolutions as
    products of small ones, and merges them when training is over. ``read_out_tau`` null means the
    read-out is the mean over the steps, a number that it leaks; with ``learn_read_out`` that is
    where its leak starts to learn. ``compile`` makes one kernel of
    the neurons' steps by torch.compile, which needs a C++ compiler: seconds once, then a training
    that takes about half the time; the same spikes, gradients up to rounding.

    Units: ``initial`` potential in thresholds (of the lowest).

    Raises:
        SpecError: values outside what is allowed, or that do not go together; all of them at once.

    Example:
        >>> SpikingSpec("lif", mode="cascade", n=4).neuron_spec().ladder
        Binary(bits=4)
    """

    neuron: str = "plif"
    mode: Firing = Firing.PARALLEL
    n: int = 1
    ladder: str | None = None
    time_steps: int = 1
    reset: Reset = Reset.SOFT
    tau: float = 2.0
    decay_input: bool = True
    signed: bool = False
    initial: float = 0.0
    surrogate: str = "atan"
    detach_reset: bool = True
    algorithm: str = "bptt"
    start: str = "random"
    tensor_train: TensorTrain | None = None
    read_out_tau: float | None = None
    learn_read_out: bool = False
    compile: bool = False

    def __post_init__(self) -> None:
        names = {
            "neuron": NEURONS,
            "mode": tuple(Firing),
            "ladder": (None, *LADDERS),
            "reset": tuple(Reset),
            "surrogate": THROUGH,
            "algorithm": LEARNS_BY,
            "start": STARTS,
        }
        faults = [
            Fault(where, repr(getattr(self, where)), f"allowed: {', '.join(map(str, allowed))}")
            for where, allowed in names.items()
            if getattr(self, where) not in allowed
        ]
        if self.time_steps < 1:
            faults.append(Fault("time_steps", str(self.time_steps), "allowed: 1 or more"))
        faults = faults or list(self._mismatches())
        if faults:
            raise SpecError(f"{len(faults)} values of SpikingSpec are not allowed", faults)

    def _mismatches(self) -> Iterator[Fault]:
        """What each value allows, and all together do not."""
        try:
            self.neuron_spec()
        except SpecError as error:
            yield Fault("neuron", self.neuron, str(error))
        if self.learn_read_out and self.read_out_tau is None:
            yield Fault("learn_read_out", "true", "give read_out_tau, where its leak starts")
        if self.algorithm not in ("ottt_a", "ottt_o", "dsr"):
            return
        if self.learn_read_out:
            yield Fault("learn_read_out", "true", "leave it false, or train by bptt")
        if self.neuron == "plif":
            yield Fault(
                "algorithm", self.algorithm, "it cannot learn the leak of plif: take bptt, or lif"
            )
        if Reset(self.reset) is Reset.HARD:
            yield Fault("algorithm", self.algorithm, "it needs reset: soft; or train by bptt")
        if not self.detach_reset:
            yield Fault("detach_reset", "false", "leave it true, or train by bptt")
        if self.tensor_train is not None and self.tensor_train.form == "htt":
            yield Fault("tensor_train", "htt", "take form stt or ptt, or train by bptt")
        leak = self.tau if self.neuron == "lif" else None
        if self.algorithm == "dsr" and self.time_steps > 1 and self.read_out_tau != leak:
            hint = f"read-out and neurons weigh steps alike: take {leak}, or train by bptt"
            yield Fault("read_out_tau", str(self.read_out_tau), hint)

    def neuron_spec(self) -> NeuronSpec:
        """The neurons."""
        return NeuronSpec(
            self._ladder(),
            firing=Firing(self.mode),
            charge=self._charge(),
            reset=Reset(self.reset),
            signed=self.signed,
            initial=self.initial,
            surrogate=SURROGATES[self.surrogate],
            detach_reset=self.detach_reset,
        )

    def _ladder(self) -> Ladder:
        natural = "binary" if Firing(self.mode) is Firing.CASCADE else "uniform"
        return LADDERS[self.ladder or natural](self.n)

    def _charge(self) -> Charge:
        if self.neuron == "if":
            return IF()
        kind = LIF if self.neuron == "lif" else PLIF
        return kind(self.tau, self.decay_input)


def build_spiking(ann: nn.Module, spec: SpikingSpec, example: Tensor) -> SpikingNetwork:
    """The spiking network of a float one, with its weights.

    Shapes: example [batch, channels, height, width], one step's input.
    Raises:
        UnsupportedLayerError: operators without a rule.
        SpecError: nothing to replace; no convolution to decompose.
    """
    return spiking(
        ann,
        spec.neuron_spec(),
        example=example,
        time_steps=spec.time_steps,
        tensor_train=spec.tensor_train,
        read_out_tau=spec.read_out_tau,
        learn_read_out=spec.learn_read_out,
        compiled=spec.compile,
    )


def learned(
    network: SpikingNetwork,
    spec: SpikingSpec,
    splits: Splits,
    train: TrainSpec,
    folder: Path,
    *,
    classes: int,
    teacher: nn.Module | None = None,
) -> tuple[History, dict[str, Any]]:
    """Train in place, resumed from ``folder``; the history, and the columns that tell of it.

    ``teacher`` is asked where ``train.distillation_weight`` is above 0.

    Raises:
        CheckpointError: the folder holds another training.
        SpecError: what does not go together; the loss became NaN or infinite.
    """
    meter = meter_of(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    meter.start()
    history = fit(
        network,
        splits,
        train,
        folder,
        classes=classes,
        teacher=teacher,
        algorithm=ALGORITHMS[spec.algorithm],
    )
    path = folder / "peak.json"
    if not path.is_file():
        write_json(path, {"peak_mib": round(meter.stop(), 1)})
    return history, {
        "algorithm": spec.algorithm,
        "epochs": len(history.rows),
        "seconds_per_epoch": statistics.median(row.seconds for row in history.rows),
        "peak_mib": float(read_json(path)["peak_mib"]),
    }


def rows_of(
    network: SpikingNetwork,
    spec: SpikingSpec,
    test: ImageSet,
    time_steps: Sequence[int],
    known: dict[str, Any],
    *,
    batch_size: int,
    processes: Processes,
) -> list[Row]:
    """A row behind each of ``time_steps``, all from one pass over the test images.

    ``known`` are the columns that are not measured here: model, dataset, presentation and the like.

    Raises:
        SpecError: no images, or steps beyond those of the network.
    """
    steps = sorted(set(time_steps))
    if not len(test):
        raise SpecError("no images to evaluate on: raise evaluate.images or data.test_images")
    if not steps or steps[-1] > network.time_steps:
        hint = f"the network was trained for {network.time_steps}; allowed are steps up to that"
        raise SpecError("cannot evaluate", [Fault("time_steps", str(time_steps), hint)])
    counts, neurons = _counted(network.eval(), test, batch_size, processes)
    images = len(test)
    ladder = spec.neuron_spec().ladder
    row = Row(
        mode=str(spec.mode),
        signed=spec.signed,
        n=spec.n,
        T=steps[-1],
        snn_accuracy=0.0,
        spikes_per_neuron=0.0,
        images=images,
        qann_accuracy=None,
        agreement=None,
        exact_share=None,
        ladder=ladder.kind,
        levels=int(ladder.reach),
        weight_bits=None,
        whole_window=False,
        settling_T=None,
        method=f"mt_{spec.neuron}",
        **known,
    )
    correct, events = counts.tolist()
    return [
        replace(
            row,
            T=T,
            snn_accuracy=100 * correct[T - 1] / images,
            spikes_per_neuron=sum(events[:T]) / (neurons * images),
        )
        for T in steps
    ]


def accuracy_of(model: nn.Module, test: ImageSet, batch_size: int, processes: Processes) -> float:
    """Percent of the test images that a float network gets right."""
    correct = torch.zeros((), dtype=torch.float64)
    model.eval()
    with torch.no_grad():
        for images, labels in batches(test, batch_size, share=processes.share):
            device = next(model.parameters()).device
            correct += int((model(images.to(device)).argmax(1).cpu() == labels).sum())
    return 100 * float(processes.summed(correct)) / len(test)


@torch.no_grad()
def _counted(
    network: SpikingNetwork, test: ImageSet, batch_size: int, processes: Processes
) -> tuple[Tensor, int]:
    """Right answers after, and events in, each step [2, T]; and how many neurons there are."""
    steps = range(network.time_steps)
    counts = torch.zeros(2, len(steps), dtype=torch.float64)
    device = next(network.parameters()).device
    neurons = 0
    shown: Any = batches(test, batch_size, share=processes.share)
    if processes.first:
        total = -(-len(test) // (batch_size * processes.share[1]))
        shown = progress(shown, f"test images, T = {network.time_steps}", total=total)
    for images, labels in shown:
        with _events(network) as seen:
            read_outs, _ = network(images.to(device), steps)
        counts[0] += (read_outs.argmax(2).cpu() == labels).sum(1)
        calls = [count for each in seen.values() for count, _ in each]  # T for each layer's place
        counts[1] += torch.stack(calls).reshape(-1, len(steps)).sum(0).cpu()
        neurons = sum(size for each in seen.values() for _, size in each[:: len(steps)])
    return processes.summed(counts), max(processes.all_of(neurons))


@contextmanager
def _events(network: SpikingNetwork) -> Iterator[dict[str, list[tuple[Tensor, int]]]]:
    """Events in each step and neurons per image, of each layer that runs in this context; step by
    step, which a compiled kernel does not show."""
    seen: dict[str, list[tuple[Tensor, int]]] = {}
    handles = []
    compiled, network.compiled = network.compiled, False

    def listener(name: str) -> Any:
        def hear(layer: nn.Module, _: Any, result: Any) -> None:
            assert isinstance(layer, MTNeuron)
            emitted = (result[0] / layer.delta).round()
            events = count_events(emitted, layer.spec.ladder).sum(dtype=torch.float64)
            seen.setdefault(name, []).append((events, emitted[0].numel()))

        return hear

    for name, layer in network.named_modules():
        if isinstance(layer, MTNeuron):
            handles.append(layer.register_forward_hook(listener(name)))
    try:
        yield seen
    finally:
        network.compiled = compiled
        for handle in handles:
            handle.remove()
