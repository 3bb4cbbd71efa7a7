"""A sample of timm's families converts exactly, and as the stored table says.

The whole registry is `make coverage`; its table lies in eval/coverage.
"""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import timm
import torch
from paths import EVAL

from mt_convert.experiments.coverage.registry import Architecture, families
from mt_convert.experiments.coverage.rows import CoverageRow, Settings, Table, read_table
from mt_convert.experiments.coverage.trial import trial
from mt_convert.quantization.quantize import levels_of, quantize
from mt_convert.quantization.spec import QuantSpec
from mt_convert.spiking.convert import convert
from mt_convert.spiking.simulate import simulate

SAMPLE = (
    *("cs3darknet_focus_s", "cspnext_tiny", "regnetx_002", "test_resnet", "inception_next_atto"),
    *("test_mambaout", "swiftformer_xs", "lcnetv2_small", "iformer_t", "deit_tiny_patch16_224"),
    *("efficientvit_b0", "resnetv2_18", "pit_ti_224", "vit_tiny_patch16_dinov3_qkvb", "test_nfnet"),
    *("convit_tiny", "pvt_v2_b0", "fasternet_t0", "efficientformerv2_s0", "test_byobnet"),
    *("test_efficientnet", "rexnet_100", "starnet_s050", "test_coatnet", "test_vit", "resnest14d"),
    *("test_vit_relpos", "test_convnext", "volo_d1_224", "ghostnet_050"),
)
QUICK = ("test_resnet", "test_efficientnet")  # by `make test`; the others by `make test-long`
SMALL = ("test_resnet",)  # on images of 64 x 64
STORED = EVAL / "coverage" / "results.json"


@pytest.fixture(scope="module")
def stored() -> Table:
    return read_table(STORED)


def test_the_sample_has_25_families_or_more() -> None:
    found = {family for family, names in families().items() if set(names) & set(SAMPLE)}
    assert len(found) == len(SAMPLE) >= 25
    assert set(QUICK) < set(SAMPLE)
    assert len(QUICK) == 2


def test_the_stored_table_has_every_family_of_timm(stored: Table) -> None:
    of_timm = {name for name in families() if find_spec(f"timm.models.{name}")}  # not ours
    assert len(of_timm) == stored.known["families"]
    assert set(stored.families) >= of_timm
    assert all(row.spiking_layers > 0 for row in stored.rows if row.converted)


def test_in_the_stored_table_all_that_converts_is_exact_in_four_digits_or_told_why(
    stored: Table,
) -> None:
    for row in stored.rows:
        if row.converted:
            assert (row.exact_t1, row.radix_exact, row.radix_steps) == (True, True, 4), row
            assert row.extent is not None
        else:
            assert row.error


def test_in_the_stored_table_no_function_of_one_number_is_analog(stored: Table) -> None:
    """What is left mixes numbers: norms and their parts, softmax, maxima, padding for maxima,
    divisions by sums, products of parameters, what reads the image."""
    mixing = {
        *("layer_norm", "group_norm", "rms_norm", "linalg_vector_norm", "clamp_min", "pow"),
        *("rsqrt", "softmax", "div", "max_pool2d", "amax", "pad", "bmm", "conv_transpose2d"),
        *("Conv2d", "Linear", "BatchNorm2d"),
    }
    found = {kind for row in stored.rows if row.converted for kind in row.analog}
    assert found <= mixing
    batch_norms = [row.architecture for row in stored.rows if "BatchNorm2d" in row.analog]
    assert batch_norms == ["pnasnet5large"]
    assert all(row.error for row in stored.rows if not row.converted)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [name if name in SMALL else pytest.param(name, marks=pytest.mark.long) for name in SAMPLE],
)
def test_a_family_is_exact_at_every_batch_size_with_gradients_and_without(name: str) -> None:
    torch.manual_seed(0)
    size = {"img_size": 64} if name == "test_vit" else {}
    net = timm.create_model(name, num_classes=10, **size).eval()
    side = 64 if name in SMALL else net.pretrained_cfg["input_size"][-1]
    images = torch.randn(4, 3, side, side, generator=torch.Generator().manual_seed(1))
    qann = quantize(net, QuantSpec(), calibration=images)
    snn = convert(qann)
    for batch in range(1, 5):
        run = simulate(snn, images[:batch], time_steps=1)
        for gradients in (False, True):
            with torch.set_grad_enabled(gradients), levels_of(qann) as levels:
                logits = qann(images[:batch])
            assert torch.equal(run.logits[0], logits), (batch, gradients)
            different = [
                layer for layer in levels if not torch.equal(run.totals[layer], levels[layer])
            ]
            assert not different, (batch, gradients)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if name in QUICK else pytest.mark.long)
        for name in SAMPLE
    ],
)
def test_the_smallest_network_of_a_family_converts_exactly(name: str, stored: Table) -> None:
    family = next(family for family, names in families().items() if name in names)
    found = trial(Architecture(name, family), Settings(images=2), note=lambda _: None)
    row = CoverageRow.from_json({**found, "architecture": name, "family": family})
    assert row.error is None
    assert row.converted
    assert row.exact_t1
    assert (row.radix_exact, row.radix_steps) == (True, 4)
    assert row.settling_t is None or row.settling_t <= row.time_steps  # float sums decide
    assert row.silent_layers == 0
    known = next(item for item in stored.rows if item.architecture == name)
    for column in ("params", "input_size", "macs"):
        assert getattr(row, column) == getattr(known, column), column
    if known.extent is None:  # of before functions were neurons: what is analog now is among that
        assert row.spike_fed_mac_share >= known.spike_fed_mac_share
        assert dict(row.analog).items() <= dict(known.analog).items()
        assert set(row.not_spike_fed) <= set(known.not_spike_fed)
        return
    same = ("spiking_layers", "spike_fed_mac_share", "analog", "not_spike_fed")
    for column in (*same, "extent", "extent_without_ladders"):
        assert getattr(row, column) == getattr(known, column), column
