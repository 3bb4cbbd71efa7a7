"""The numbers of the table against numbers counted by hand."""

from __future__ import annotations

import copy
from dataclasses import asdict, replace
from typing import Any

import pytest
import torch
from networks import images, levels_of, lived_in
from torch import Tensor, nn

from mt_convert.data import DataSpec, batches, open_data
from mt_convert.errors import DataError, SpecError
from mt_convert.evaluation.evaluate import evaluate
from mt_convert.evaluation.settings import OwnThresholds, Setting, iso_level
from mt_convert.evaluation.spiking_rows import rows_of_stored
from mt_convert.neurons.ladder import Binary, Firing, PowerOfTwo, Uniform
from mt_convert.quantization.quantize import QuantizedModel, quantize
from mt_convert.quantization.spec import Override, QuantSpec, Spacing
from mt_convert.report.columns import markdown_table
from mt_convert.report.row_groups import kinds_of
from mt_convert.report.rows import Row
from mt_convert.report.tables import accuracy_cells
from mt_convert.spiking.convert import convert
from mt_convert.spiking.model import SpikingModel
from mt_convert.spiking.presentation import Presentation
from mt_convert.spiking.simulate import simulate
from mt_convert.system.processes import Processes

L = 3
SEED = 7
BATCH = images(12, seed=5)
DESCRIBE: dict[str, Any] = {"model": "small", "dataset": "made up", "seed": 7}
SETTINGS = [
    Setting(Uniform(L), (1, 2)),
    Setting(Uniform(L), (1,), firing=Firing.CASCADE),
    Setting(Uniform(1), (8, 1, 4, 2, 12)),
    Setting(Uniform(1), (4,), signed=False),
    Setting(Binary(2), (1, 2)),
    Setting(PowerOfTwo(2), (1, 2, 6)),
    Setting(Uniform(1), (1, 2, 3), whole_window=True),
    Setting(Uniform(2), (1, 3), presentation=Presentation.EVERY_STEP, signed=False),
]


@pytest.fixture(scope="module")
def ann() -> nn.Module:
    """Three layers of few neurons, so that some images are exact before others."""
    layers = (
        *(nn.Conv2d(2, 4, 3, stride=4, bias=False), nn.BatchNorm2d(4), nn.ReLU()),
        *(nn.Conv2d(4, 6, 2), nn.ReLU(), nn.Flatten(), nn.Linear(6, 5), nn.ReLU()),
        nn.Linear(5, 3),
    )
    return lived_in(nn.Sequential(*layers), seed=SEED)


@pytest.fixture(scope="module")
def qann(ann: nn.Module) -> QuantizedModel:
    return quantize(ann, QuantSpec(act_bits=2), calibration=images(8, seed=2))


@pytest.fixture(scope="module")
def labels(ann: nn.Module) -> Tensor:
    """What the float network says, wrong on every fourth image: no accuracy is 0 or 100."""
    with torch.no_grad():
        right = ann(BATCH).argmax(1)
    right[::4] = (right[::4] + 1) % 3
    return right


@pytest.fixture(scope="module")
def rows(ann: nn.Module, qann: QuantizedModel, labels: Tensor) -> list[Row]:
    """All settings, over batches of uneven sizes."""
    return evaluate(
        ann, qann, zip(BATCH.split(5), labels.split(5), strict=True), SETTINGS, DESCRIBE
    )


def spiking(qann: QuantizedModel, setting: Setting) -> SpikingModel:
    return convert(
        qann,
        ladder=setting.ladder,
        firing=setting.firing,
        signed=setting.signed,
        presentation=setting.presentation,
        whole_window=setting.whole_window,
    )


def with_settings(rows: list[Row]) -> list[tuple[Setting, Row]]:
    """Each row with the setting it came from."""
    settings = [setting for setting in SETTINGS for _ in setting.time_steps]
    return list(zip(settings, rows, strict=True))


def share(hits: Tensor) -> float:
    return int(hits.sum()) / len(hits)


def percent(hits: Tensor) -> float:
    return 100 * int(hits.sum()) / len(hits)


def exact_images(qann: QuantizedModel, snn: SpikingModel, time_steps: int) -> Tensor:
    """On which images every neuron has emitted what the quantized network's activation is."""
    wanted, _ = levels_of(qann, BATCH)
    totals = simulate(snn, BATCH, time_steps=time_steps).totals
    assert totals.keys() == wanted.keys()
    even = snn.presentation is Presentation.EVERY_STEP
    hits = torch.ones(len(BATCH), dtype=torch.bool)
    for name, layer in snn.neurons():
        worth = L / (layer.spec.ladder.n * time_steps) if even else 1.0
        hits &= (totals[name] * worth == wanted[name]).flatten(1).all(1)
    return hits


@pytest.mark.slow
def test_a_row_for_each_setting_and_number_of_steps_in_order(rows: list[Row]) -> None:
    found = [(row.ladder, row.n, row.T, row.mode, row.signed, row.whole_window) for row in rows]
    assert found == [
        ("uniform", 3, 1, "parallel", True, False),
        ("uniform", 3, 2, "parallel", True, False),
        ("uniform", 3, 1, "cascade", True, False),
        *[("uniform", 1, steps, "parallel", True, False) for steps in (1, 2, 4, 8, 12)],
        ("uniform", 1, 4, "parallel", False, False),
        ("binary", 2, 1, "cascade", True, False),
        ("binary", 2, 2, "cascade", True, False),
        *[("power_of_two", 2, steps, "parallel", True, False) for steps in (1, 2, 6)],
        *[("uniform", 1, steps, "parallel", True, True) for steps in (1, 2, 3)],
        ("uniform", 2, 1, "parallel", False, False),
        ("uniform", 2, 3, "parallel", False, False),
    ]
    presented = [row.presentation for row in rows]
    assert presented == ["once"] * (len(rows) - 2) + ["every_step"] * 2


@pytest.mark.slow
def test_every_row_has_the_columns_that_others_script_against(rows: list[Row]) -> None:
    wanted = "model dataset images presentation mode signed n T ann_accuracy qann_accuracy"
    wanted += " snn_accuracy agreement exact_share spikes_per_neuron"
    for row in map(asdict, rows):
        assert list(row)[:14] == wanted.split()
        assert (row["model"], row["dataset"], row["seed"]) == ("small", "made up", 7)
        assert (row["images"], row["levels"], row["weight_bits"]) == (12, L, 4)
        assert all(
            value is None or type(value) in (str, int, float, bool) for value in row.values()
        )


def test_accuracies_of_ann_and_qann_are_those_of_the_networks_themselves(
    rows: list[Row], ann: nn.Module, qann: QuantizedModel, labels: Tensor
) -> None:
    with torch.no_grad():
        expected = [percent(net(BATCH).argmax(1) == labels) for net in (ann, qann)]
    assert expected[0] == 75
    assert {(row.ann_accuracy, row.qann_accuracy) for row in rows} == {tuple(expected)}


def test_snn_accuracy_and_agreement_are_recounted_from_the_read_out(
    rows: list[Row], qann: QuantizedModel, labels: Tensor
) -> None:
    with torch.no_grad():
        predicted = qann(BATCH).argmax(1)
    for setting, row in with_settings(rows):
        answers = simulate(spiking(qann, setting), BATCH, time_steps=row.T).logits[-1].argmax(1)
        assert row.snn_accuracy == percent(answers == labels)
        assert row.agreement == share(answers == predicted)
    assert len({row.snn_accuracy for row in rows}) > 1
    assert min(row.agreement for row in rows) < 1


@pytest.mark.slow
def test_exact_share_is_recounted_from_the_emissions(rows: list[Row], qann: QuantizedModel) -> None:
    for setting, row in with_settings(rows):
        assert row.exact_share == share(exact_images(qann, spiking(qann, setting), row.T)), row
    assert {0.0, 1.0} < {row.exact_share for row in rows}


def test_with_all_thresholds_one_step_is_exact_in_both_modes(rows: list[Row]) -> None:
    full = [row for row in rows if row.n == L and row.ladder == "uniform" and row.T == 1]
    assert [row.mode for row in full] == ["parallel", "cascade"]
    for row in full:
        assert (row.exact_share, row.agreement, row.settling_T) == (1.0, 1.0, 1)
        assert row.snn_accuracy == row.qann_accuracy


@pytest.mark.slow
def test_spikes_per_neuron_are_the_events_of_the_simulation(
    rows: list[Row], qann: QuantizedModel
) -> None:
    for setting, row in with_settings(rows):
        run = simulate(spiking(qann, setting), BATCH, time_steps=row.T, record=True)
        assert run.spikes is not None
        counted = sum(float(count.sum()) for count in run.spike_counts.values())
        if setting.ladder == Uniform(1):  # one threshold: an event is a spike that is not zero
            assert counted == sum(float((spikes != 0).sum()) for spikes in run.spikes.values())
        neurons = sum(spikes[0, 0].numel() for spikes in run.spikes.values())
        assert row.spikes_per_neuron == pytest.approx(counted / neurons / len(BATCH), rel=1e-12)


def test_settling_is_the_first_step_from_which_on_all_images_are_exact(
    rows: list[Row], qann: QuantizedModel
) -> None:
    setting = SETTINGS[2]
    snn = spiking(qann, setting)
    exact = [bool(exact_images(qann, snn, steps).all()) for steps in range(1, 13)]
    assert exact[-1]
    settled = 1 + max(step for step in range(1, 13) if not exact[step - 1])
    assert settled > 1
    assert {row.settling_T for at, row in with_settings(rows) if at is setting} == {settled}


def test_settling_is_none_where_it_was_not_seen(rows: list[Row]) -> None:
    unsigned = [row for row in rows if row.n == 1 and not row.signed]
    even = [row for row in rows if row.presentation == "every_step"]
    assert [row.settling_T for row in unsigned + even] == [None] * 3
    assert unsigned[0].exact_share < 1


def test_whole_window_rows_are_simulations_of_their_own(
    rows: list[Row], qann: QuantizedModel
) -> None:
    window = [row for row in rows if row.whole_window]
    shared = {row.T: row for row in rows if row.n == 1 and row.signed and not row.whole_window}
    assert [row.T for row in window] == [1, 2, 3]
    assert window[1].exact_share >= shared[2].exact_share
    assert window[-1].exact_share == 1.0  # L steps bring every layer to its level
    assert window[-1].settling_T == 3
    assert window[0].settling_T == 3


@pytest.mark.parametrize("levels", [1, 3, 15, 7])
def test_iso_level_goes_from_one_threshold_to_one_step(levels: int) -> None:
    pairs = [(setting.ladder.n, setting.time_steps) for setting in iso_level(levels)]
    assert pairs[0] == (1, (levels,))
    assert pairs[-1] == (levels, (1,))
    assert all(n * steps[0] == levels for n, steps in pairs)
    assert len(pairs) == sum(levels % n == 0 for n in range(1, levels + 1))


def test_iso_level_rows_present_the_image_in_every_step_and_end_exact(
    ann: nn.Module, qann: QuantizedModel, labels: Tensor
) -> None:
    rows = evaluate(ann, qann, [(BATCH, labels)], iso_level(L), DESCRIBE)
    assert [(row.n, row.T, row.presentation, row.signed) for row in rows] == [
        (1, L, "every_step", False),
        (L, 1, "every_step", False),
    ]
    assert rows[-1].exact_share == 1.0
    assert rows[-1].snn_accuracy == rows[-1].qann_accuracy


@pytest.mark.slow
def test_batches_of_any_size_give_the_same_rows(
    rows: list[Row], ann: nn.Module, qann: QuantizedModel, labels: Tensor
) -> None:
    again = evaluate(ann, qann, [(BATCH, labels)], SETTINGS, DESCRIBE)
    for row, other in zip(rows, again, strict=True):
        first, second = asdict(row), asdict(other)
        spikes = first.pop("spikes_per_neuron"), second.pop("spikes_per_neuron")
        assert first == second
        assert spikes[0] == pytest.approx(spikes[1], rel=1e-12)


def test_networks_left_in_training_mode_are_evaluated_all_the_same(
    rows: list[Row], ann: nn.Module, qann: QuantizedModel, labels: Tensor
) -> None:
    own = copy.deepcopy(qann).train()
    before = {name: tensor.clone() for name, tensor in own.state_dict().items()}
    again = evaluate(ann.train(), own, [(BATCH, labels)], SETTINGS[:1], DESCRIBE)
    assert [row.qann_accuracy for row in again] == [row.qann_accuracy for row in rows[:2]]
    assert [row.exact_share for row in again] == [1.0, 1.0]
    assert all(torch.equal(before[name], tensor) for name, tensor in own.state_dict().items())


@pytest.mark.slow
def test_no_images_are_refused(ann: nn.Module, qann: QuantizedModel) -> None:
    with pytest.raises(SpecError, match="no images to evaluate on"):
        evaluate(ann, qann, [], SETTINGS, DESCRIBE)


@pytest.mark.slow
def test_images_with_nan_are_refused_and_leave_no_hooks(
    ann: nn.Module, qann: QuantizedModel, labels: Tensor
) -> None:
    spoilt = BATCH.clone()
    spoilt[3, 0, 0, 0] = float("nan")
    with pytest.raises(DataError, match=r"images \[3\]"):
        evaluate(ann, qann, [(spoilt, labels)], SETTINGS[:1], DESCRIBE)
    assert not any(layer._forward_hooks for layer in qann.modules())


def test_a_setting_sorts_its_steps_and_refuses_none_at_all() -> None:
    assert Setting(Uniform(1), (4, 1, 4)).time_steps == (1, 4)
    for steps in ((), (0, 1), (-1,), (True,), (2.0,)):
        with pytest.raises(SpecError, match="whole numbers from 1"):
            Setting(Uniform(1), steps)  # type: ignore[arg-type]


class TokensFirst(nn.Module):
    """A neuron whose images lie on the second axis."""

    def __init__(self) -> None:
        super().__init__()
        self.inside, self.head = nn.Linear(2, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.inside(x.flatten(2).permute(2, 0, 1))).mean(0))


@pytest.mark.slow
def test_exact_images_are_counted_where_tokens_lie_in_front_of_them() -> None:
    net = lived_in(TokensFirst())
    qann = quantize(net, QuantSpec(act_bits=2), calibration=images(8))
    batch, labels = 0.2 * images(9, seed=3), torch.zeros(9, dtype=torch.long)
    batch[::2] *= 6
    one = [Setting(Uniform(2), (1,))]
    rows = [
        evaluate(net, qann, [(batch[i : i + 1], labels[:1])], one, DESCRIBE)[0] for i in range(9)
    ]
    exact = [row.exact_share for row in rows]
    assert 0 < sum(exact) < 9
    assert evaluate(net, qann, [(batch, labels)], one, DESCRIBE)[0].exact_share == sum(exact) / 9


ONE_ATTRIBUTE: dict[str, dict[str, Any]] = {
    "as it is": {},
    "weight code": {"weights": "ternary"},
    "sub-bit": {"weights": "subbit"},
    "codewords": {"weights": "subbit", "codeword_bits": 3},
    "spacing": {"spacing": "learned"},
    "rounding": {"rounding": "half_up"},
    "noise": {"act_noise": "additive"},
    "steps": {"scale": "power_of_two"},
    "batch norm": {"batch_norm": "fold"},
    "one layer": {"overrides": (Override("3", weight_bits=8),)},
}


@pytest.mark.slow
def test_networks_that_differ_in_one_attribute_have_a_row_each(labels: Tensor) -> None:
    layers = (
        *(nn.Conv2d(2, 4, 3, stride=4, bias=False), nn.BatchNorm2d(4), nn.ReLU()),
        *(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)),
    )
    ann = lived_in(nn.Sequential(*layers), seed=SEED)
    rows: list[Row] = []
    for attribute in ONE_ATTRIBUTE.values():
        qann = quantize(ann, QuantSpec(**{"act_bits": 2, **attribute}), calibration=images(8))
        own = qann.spec.spacing is Spacing.LEARNED
        setting = Setting(OwnThresholds(3) if own else Uniform(qann.spec.levels), (1,))
        rows += evaluate(ann, qann, [(BATCH, labels)], [setting], DESCRIBE)
    assert len({row.digest for row in rows}) == len(ONE_ATTRIBUTE)
    kinds = kinds_of(rows)
    assert [len(alike) for alike in kinds.values()] == [1] * len(ONE_ATTRIBUTE), list(kinds)
    assert len(accuracy_cells(rows)[1]) == len(ONE_ATTRIBUTE)
    printed = markdown_table(rows).splitlines()[2:]
    assert len(set(printed)) == len(ONE_ATTRIBUTE)
    assert "0.56" in printed[2]
    assert "ternary" in printed[1]
    without = [replace(row, digest=None) for row in rows]
    assert len(kinds_of(without)) < len(ONE_ATTRIBUTE), "digests tell nothing apart here"


def test_runs_have_names_where_nothing_else_tells_them_apart(rows: list[Row]) -> None:
    one = replace(rows[0], run="runs/a")
    other = replace(one, run="runs/b", digest="another")
    assert list(kinds_of([one, other])) == ["runs/a", "runs/b"]
    assert list(kinds_of([one, replace(other, seed=8)])) == ["seed 7", "seed 8"]
    assert list(kinds_of([one, replace(other, run="runs/a")])) == [
        f"network {one.digest}",
        "network another",
    ]


@pytest.mark.slow
def test_a_network_without_neurons_has_rows_of_no_spikes() -> None:
    spec = DataSpec(
        dataset="synthetic", image_size=8, channels=1, classes=10, limit=24, calibration_images=8
    )
    test = open_data(spec).test
    shown, labels = next(iter(batches(test, len(test))))
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval()
    qann = quantize(net, QuantSpec(), calibration=shown)
    right = 100 * float((qann(shown).argmax(1) == labels).double().mean())
    for waits in (False, True):
        setting = Setting(Uniform(1), (1, 2), whole_window=waits)
        rows = evaluate(None, qann, (shown, labels), setting)
        assert [(row.snn_accuracy, row.spikes_per_neuron) for row in rows] == [(right, 0.0)] * 2
    stored = rows_of_stored(
        convert(qann), test, (1, 2), DESCRIBE, batch_size=5, processes=Processes()
    )
    assert [(row.snn_accuracy, row.spikes_per_neuron) for row in stored] == [(right, 0.0)] * 2
