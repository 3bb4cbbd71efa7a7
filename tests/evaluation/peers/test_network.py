"""Peers: converted as documented, run from fresh potentials, their failures told in one line."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from networks import Functional, OneReLU, images, lived_in
from torch import Tensor, nn
from torch.nn import functional as F

import mt_convert.experiments.models.cifar  # noqa: F401  (registers resnet20_cifar)
from mt_convert.errors import SpecError, UnsupportedLayerError
from mt_convert.evaluation.peers.converters import BATCH, read_from
from mt_convert.evaluation.peers.network import PEERS, available, calls, peer_network
from mt_convert.evaluation.peers.plain_form import plain

SPIKINGJELLY = [name for name in PEERS if PEERS[name].package == "spikingjelly"]


class Net(nn.Module):
    """A residual sum with a strided, padded shortcut, two pools, three ReLU modules."""

    def __init__(self, pool: Callable[[Tensor, int], Tensor] = F.max_pool2d) -> None:
        super().__init__()
        self.pool = pool
        self.stem, self.left = nn.Conv2d(2, 6, 3, padding=1), nn.Conv2d(6, 12, 3, 2, padding=1)
        self.norm, self.last = nn.BatchNorm2d(12), nn.Linear(12, 5)
        self.side = nn.Conv2d(12, 12, 1)
        self.act1, self.act2, self.act3 = nn.ReLU(), nn.ReLU(), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.act1(self.stem(x))
        x = self.act2(self.norm(self.left(x)) + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 4)))
        x = self.pool(self.act3(self.side(x)), 2)
        return self.last(F.avg_pool2d(x, 2).flatten(1))


@pytest.fixture(scope="module")
def ann() -> nn.Module:
    """The plain form of a net with seeded weights."""
    return plain(lived_in(Net()), images(2))


@pytest.fixture(params=PEERS)
def name(request: pytest.FixtureRequest) -> str:
    """Each peer whose package is installed."""
    pytest.importorskip(PEERS[request.param].package)
    return str(request.param)


@pytest.mark.slow
def test_the_plain_form_of_a_net_is_the_same_function() -> None:
    for net in (lived_in(Net()), lived_in(Functional()), lived_in(OneReLU())):
        x = images(7, seed=3)
        with torch.no_grad():
            torch.testing.assert_close(plain(net, images(2))(x), net(x), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_the_plain_form_leaves_no_aten_operator_and_gives_each_activation_a_layer() -> None:
    network = plain(lived_in(OneReLU()), images(2))
    targets = {node.target for node in network.graph.nodes if node.op == "call_function"}
    assert not [target for target in targets if isinstance(target, torch._ops.OpOverload)]
    assert sum(isinstance(layer, nn.ReLU) for layer in network.modules()) == 3


@pytest.mark.slow
def test_the_plain_form_pads_an_image_as_tensorflow_does_and_with_zeros_alone() -> None:
    class Padded(nn.Module):
        def __init__(self, **settings: Any) -> None:
            super().__init__()
            self.conv, self.settings = nn.Conv2d(2, 3, 3, 2), settings

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.conv(F.pad(x, (0, 1, 0, 1), **self.settings)).flatten(1)

    net, x = lived_in(Padded()), images(3)
    network = plain(net, x)
    assert sum(isinstance(layer, nn.ZeroPad2d) for layer in network.modules()) == 1
    with torch.no_grad():
        assert torch.equal(network(x), net(x))
    for settings in ({"value": 1.0}, {"mode": "reflect"}):
        with pytest.raises(UnsupportedLayerError, match="1 operator without a plain form"):
            plain(lived_in(Padded(**settings)), x)


@pytest.mark.slow
def test_the_plain_form_of_resnet20_keeps_its_shortcuts_and_the_model_as_it_was() -> None:
    model = lived_in(timm.create_model("resnet20_cifar")).train()
    network = plain(model, torch.randn(2, 3, 32, 32))
    assert model.training
    x = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        expected = model.eval()(x)
        assert (network(x) - expected).abs().max() <= 1e-5 * expected.abs().max()
    strided = [c for c in network.modules() if isinstance(c, nn.Conv2d) and c.kernel_size == (1, 1)]
    assert sorted((c.in_channels, c.out_channels, c.stride) for c in strided) == [
        (16, 32, (2, 2)),
        (32, 64, (2, 2)),
    ]
    assert all(torch.equal(c.weight.sum(0).flatten(), torch.ones(c.in_channels)) for c in strided)


def test_operators_without_a_plain_form_are_all_listed() -> None:
    class Odd(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.softmax(1).flatten(1).cumsum(1)

    with pytest.raises(UnsupportedLayerError, match="2 operators") as caught:
        plain(Odd(), images(2))
    assert ["softmax" in fault.what for fault in caught.value.faults] == [True, False]
    assert "cumsum" in caught.value.faults[1].what


@pytest.mark.slow
def test_a_peer_shows_logits_for_every_step_and_the_same_twice(name: str, ann: nn.Module) -> None:
    network = peer_network(name, ann, images(BATCH + 8))
    x = images(5, seed=2)
    run, other = network.run(x, 4), network.run(images(3, seed=9), 2)
    again = network.run(x, 4)
    assert run.logits.shape == (4, 5, 5)
    assert other.logits.shape == (2, 3, 5)
    assert torch.equal(run.logits, again.logits)
    assert torch.equal(run.spikes_per_neuron, again.spikes_per_neuron)
    assert torch.equal(network.run(x, 2).logits, run.logits[:2])


@pytest.mark.sampled
def test_a_peer_names_its_neurons_and_leaves_nothing(name: str, ann: nn.Module) -> None:
    network = peer_network(name, ann, images(BATCH))
    # these two recipes put a max-pool before the neurons that feed it
    pooled = name in ("spikingjelly_rate", "spikingjelly_ltb")
    sizes = sorted([6 * 64, 12 * 16, 12 * 4 if pooled else 12 * 16])
    assert sorted(network.neurons.values()) == sizes
    assert (network.shared, dict(network.left)) == ((), {})
    assert network.version


@pytest.mark.slow
def test_the_running_mean_of_a_peer_approaches_the_logits_of_the_ann(
    name: str,
) -> None:
    """Without a max-pool: the mean of maxima over steps is not the maximum of the means."""
    ann = plain(lived_in(Net(F.avg_pool2d)), images(2))
    x = images(24, seed=5)
    network = peer_network(name, ann, x)
    logits = network.run(x, 256).logits
    with torch.no_grad():
        expected = ann(x)
    errors = [float((logits[t] - expected).pow(2).mean()) for t in (3, 31, 255)]
    assert errors[2] < 0.1 * errors[1] < 0.1 * errors[0]
    assert errors[2] < 0.01 * float(expected.var())


def test_the_spikes_of_a_peer_are_counted_per_neuron_and_image(name: str) -> None:
    """A layer that copies images of ones, zeros and minus ones: only the first image spikes."""
    net = nn.Sequential(nn.Conv2d(1, 1, 1), nn.ReLU(), nn.Flatten(), nn.Linear(4, 2)).eval()
    with torch.no_grad():
        net[0].weight.fill_(1)
        net[0].bias.zero_()
    ones = torch.ones(BATCH, 1, 2, 2)
    x = torch.stack([ones[0], 0 * ones[0], -ones[0]])
    run = peer_network(name, net, ones).run(x, 6)
    expected = torch.tensor([1.0, 2, 3, 4, 5, 6], dtype=torch.float64)
    if name == "spikingjelly_ltb":  # a threshold of 2, half of it there at the start
        expected = torch.tensor([1.0, 1, 2, 2, 3, 3], dtype=torch.float64)
    if name == "sinabs_scaled":
        expected = 10 * expected
    torch.testing.assert_close(run.spikes_per_neuron, expected / 3)


@pytest.mark.sampled
def test_converting_leaves_the_network_and_the_random_state_alone(
    name: str, ann: nn.Module
) -> None:
    before = {key: value.clone() for key, value in ann.state_dict().items()}
    kinds = [type(layer) for layer in ann.modules()]
    state = torch.get_rng_state()
    peer_network(name, ann, images(BATCH)).run(images(3), 2)
    assert torch.equal(torch.get_rng_state(), state)
    assert [type(layer) for layer in ann.modules()] == kinds
    assert all(torch.equal(value, before[key]) for key, value in ann.state_dict().items())


@pytest.mark.sampled
def test_a_peer_writes_nothing(
    name: str, ann: nn.Module, capfd: pytest.CaptureFixture[str]
) -> None:
    available(name)
    capfd.readouterr()
    peer_network(name, ann, images(BATCH)).run(images(3), 2)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", SPIKINGJELLY)
def test_what_a_peer_raises_becomes_one_line_of_ours(name: str) -> None:
    pytest.importorskip("spikingjelly")
    with pytest.raises(UnsupportedLayerError, match=r"ValueError: .*relu") as caught:
        peer_network(name, lived_in(Functional()), images(4))
    assert str(caught.value).startswith(f"{name} cannot convert Functional: ")
    assert "\n" not in str(caught.value)


def test_a_peer_that_converts_nothing_is_an_error() -> None:
    pytest.importorskip("sinabs")
    message = "sinabs converted nothing of Functional: activations left: 4 relu"
    with pytest.raises(UnsupportedLayerError, match=message):
        peer_network("sinabs", lived_in(Functional()), images(4))


def test_neurons_that_are_used_twice_and_activations_left_are_named() -> None:
    pytest.importorskip("sinabs")

    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = OneReLU()
            self.end = nn.Hardtanh(0, 6)

        def forward(self, x: Tensor) -> Tensor:
            return torch.sigmoid(self.end(self.net(x)))

    network = peer_network("sinabs", lived_in(Mixed()), images(4))
    assert network.shared == ("net.relu",)
    assert dict(network.left) == {"hardtanh": 1, "sigmoid": 1}


def test_scaling_refuses_a_network_with_batch_norms() -> None:
    pytest.importorskip("sinabs")
    with pytest.raises(UnsupportedLayerError, match="batch norms not folded"):
        peer_network("sinabs_scaled", lived_in(Net()), images(4))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:estimate_delay_start")
def test_the_delayed_read_out_is_the_mean_from_the_step_that_spikingjelly_names(
    ann: nn.Module,
) -> None:
    ann2snn = pytest.importorskip("spikingjelly.activation_based.ann2snn")
    network = peer_network("spikingjelly_ltb", ann, images(BATCH))
    run = network.run(images(3, seed=4), 24)
    assert network.delay is not None
    assert run.delayed is not None
    assert network.delay > 0
    for steps in (1, 3, 7, 24):
        loader = [(images(BATCH),)]
        start = ann2snn.estimate_delay_start(network.layers, loader, "cpu", steps)
        assert read_from(network.delay, steps) == start
        total = steps * run.logits[steps - 1] - (start * run.logits[start - 1] if start else 0)
        torch.testing.assert_close(
            run.delayed[steps - 1], total / (steps - start), rtol=1e-4, atol=1e-4
        )


def test_a_peer_without_its_package_says_why(
    name: str, ann: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert available(name) is None
    monkeypatch.setitem(sys.modules, PEERS[name].package, None)
    reason = available(name)
    assert reason is not None
    assert PEERS[name].package in reason
    assert "\n" not in reason
    with pytest.raises(SpecError, match=f"{name} cannot run here: ModuleNotFoundError"):
        peer_network(name, ann, images(4))


@pytest.mark.parametrize(
    "function", [available, calls, lambda n: peer_network(n, Net(), images(2))]
)
def test_an_unknown_peer_lists_all_names(function: Callable[[str], object]) -> None:
    with pytest.raises(SpecError, match="spikingjelly_ltbb") as caught:
        function("spikingjelly_ltbb")
    assert all(known in str(caught.value) for known in PEERS)


def test_no_steps_are_refused(ann: nn.Module) -> None:
    pytest.importorskip("sinabs")
    with pytest.raises(SpecError, match="time_steps is 0"):
        peer_network("sinabs", ann, images(2)).run(images(2), 0)


def test_the_calls_of_a_peer_can_be_printed() -> None:
    for name, peer in PEERS.items():
        assert "import" in calls(name)
        assert len(peer.about) > 60
    assert "estimate_delay_start" in calls("spikingjelly_ltb")


@pytest.mark.long
def test_peers_are_imported_only_where_they_are_used() -> None:
    code = (
        "import sys, mt_convert.evaluation.peers\n"
        "sys.exit(any(name in sys.modules for name in ('spikingjelly', 'sinabs')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
