"""Our neurons against other people's, step for step on dyadic inputs; skipped where not installed.

The one difference found: SpikingJelly's ST-BIF fires downwards at h < 0, ours at h ≤ 0 (equality
fires in both directions, as in H-MT). Off that value the two are equal, and the tests say both.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mt_convert.neurons.dynamics import NeuronState
from mt_convert.neurons.ladder import Firing, Uniform
from mt_convert.neurons.layer import MTNeuron
from mt_convert.neurons.spec import LIF, PLIF, NeuronSpec, Reset

TIME_STEPS = 20


def dyadic(seed: int, low: int = -128, high: int = 192) -> Tensor:
    """Currents [T, 300] in multiples of 1/64."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(low, high, (TIME_STEPS, 300), generator=generator).float() / 64


def ours(spec: NeuronSpec, currents: Tensor, delta: float) -> tuple[Tensor, list[Tensor]]:
    """Spikes [T, …] and the potential after every step."""
    neuron, state = MTNeuron(spec, delta), None
    spikes: list[Tensor] = []
    potentials: list[Tensor] = []
    for current in currents:
        fired, state = neuron(current, state)
        assert isinstance(state, NeuronState)
        spikes.append(fired.detach())
        potentials.append(state.v.detach())
    return torch.stack(spikes), potentials


@pytest.mark.parametrize("most", [1, 2, 3, 7])
@pytest.mark.parametrize("reset", list(Reset))
@pytest.mark.parametrize("threshold", [0.5, 1.0])
def test_uniform_equals_sinabs_max_spike(most: int, reset: Reset, threshold: float) -> None:
    activation = pytest.importorskip("sinabs.activation")
    layers = pytest.importorskip("sinabs.layers")
    reset_fn = activation.MembraneSubtract() if reset is Reset.SOFT else activation.MembraneReset()
    theirs = layers.IAF(
        spike_threshold=torch.tensor(threshold),
        spike_fn=activation.MaxSpike(max_num_spikes_per_bin=most),
        reset_fn=reset_fn,
    )
    currents = dyadic(most, -128, 448)
    counts = theirs(currents.T[:, :, None])[:, :, 0].T
    spikes, potentials = ours(
        NeuronSpec(Uniform(most), reset=reset, initial=0.0), currents, threshold
    )
    assert counts.unique().numel() == most + 1
    assert torch.equal(spikes, counts * threshold)
    assert torch.equal(potentials[-1], theirs.v_mem[:, 0])


@pytest.mark.parametrize("reset", list(Reset))
@pytest.mark.parametrize("firing", list(Firing))
def test_one_threshold_equals_spikingjelly_if_node(reset: Reset, firing: Firing) -> None:
    neuron = pytest.importorskip("spikingjelly.activation_based.neuron")
    theirs = neuron.IFNode(v_threshold=1.0, v_reset=None if reset is Reset.SOFT else 0.0)
    spec, currents = NeuronSpec(Uniform(1), firing, reset=reset, initial=0.0), dyadic(1)
    spikes, potentials = ours(spec, currents, 1.0)
    for current, fired, v in zip(currents, spikes, potentials, strict=True):
        assert torch.equal(theirs(current), fired)
        assert torch.equal(theirs.v, v)


@pytest.mark.parametrize("reset", list(Reset))
@pytest.mark.parametrize("decay_input", [True, False])
@pytest.mark.parametrize("learned", [True, False])
def test_leaky_charge_equals_spikingjelly_lif_and_plif_nodes(
    reset: Reset, decay_input: bool, learned: bool
) -> None:
    neuron = pytest.importorskip("spikingjelly.activation_based.neuron")
    v_reset = None if reset is Reset.SOFT else 0.0
    if learned:
        theirs = neuron.ParametricLIFNode(2.0, decay_input, v_threshold=1.0, v_reset=v_reset)
    else:
        theirs = neuron.LIFNode(2.0, decay_input, v_threshold=1.0, v_reset=v_reset)
    charge = PLIF(2.0, decay_input) if learned else LIF(2.0, decay_input)
    spec, currents = NeuronSpec(Uniform(1), None, charge, reset, initial=0.0), dyadic(2)[:8]
    spikes, potentials = ours(spec, currents, 1.0)
    assert 0 < spikes.mean() < 1
    for current, fired, v in zip(currents, spikes, potentials, strict=True):
        assert torch.equal(theirs(current), fired)
        assert torch.equal(theirs.v, v)


@pytest.mark.parametrize("reset", list(Reset))
@pytest.mark.parametrize("threshold", [0.5, 1.0])
def test_signed_from_zero_equals_spikingjelly_ternary_node(reset: Reset, threshold: float) -> None:
    neuron = pytest.importorskip("spikingjelly.activation_based.neuron")
    v_reset = None if reset is Reset.SOFT else 0.0
    theirs = neuron.TernaryIFNode(v_threshold=threshold, v_reset=v_reset)
    spec = NeuronSpec(Uniform(1), reset=reset, signed=True, initial=0.0)
    currents = dyadic(3, -160, 160)
    currents[0, :4] = torch.tensor([threshold, -threshold, 0.0, threshold / 2])  # equality fires
    spikes, potentials = ours(spec, currents, threshold)
    assert (spikes / threshold).unique().tolist() == [-1, 0, 1]
    for current, fired, v in zip(currents, spikes, potentials, strict=True):
        assert torch.equal(theirs(current) * threshold, fired)
        assert torch.equal(theirs.v, v)


@pytest.mark.parametrize(("lo", "hi"), [(0, 15), (-8, 7), (0, 3)])
@pytest.mark.parametrize("delta", [0.5, 1.0])
def test_signed_bounded_equals_spikingjelly_st_bif_off_the_tie(
    lo: int, hi: int, delta: float
) -> None:
    neuron = pytest.importorskip("spikingjelly.activation_based.neuron")
    theirs = neuron.STBIFNode(delta, level=hi - lo + 1, pos_max=hi, neg_min=lo)
    spec, currents = NeuronSpec(Uniform(1), signed=True, bounds=(lo, hi)), dyadic(4, -200, 230)
    currents[0] += 1 / 128  # no h is ever 0
    currents[:, :20] += 2  # some reach the upper bound, some the lower
    currents[:, 20:40] -= 2
    spikes, potentials = ours(spec, currents, delta)
    assert (spikes / delta).unique().tolist() == [-1, 0, 1]
    for current, fired, v in zip(currents, spikes, potentials, strict=True):
        assert torch.equal(theirs(current), fired)
        assert torch.equal(theirs.q * delta, v)
    assert torch.equal(theirs.acc_q * delta, spikes.sum(0))
    assert bool((theirs.acc_q == hi).any())
    assert bool((theirs.acc_q == lo).any())


def test_at_exactly_zero_st_bif_is_silent_and_ours_fires_downwards() -> None:
    neuron = pytest.importorskip("spikingjelly.activation_based.neuron")
    theirs = neuron.STBIFNode(1.0, level=16, pos_max=7, neg_min=-8)
    spec = NeuronSpec(Uniform(1), signed=True, bounds=(-8, 7))
    tie = torch.tensor([-0.5])  # h = v0 + I = 0
    assert theirs(tie).item() == 0
    assert ours(spec, tie[None], 1.0)[0].item() == -1
    assert ours(spec, tie[None].nextafter(torch.tensor(0.0)), 1.0)[0].item() == 0
