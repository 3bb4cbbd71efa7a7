"""Models that nobody wrote for us: torchvision's, plain PyTorch, and what cannot be followed."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
import torchvision.models as tv
from networks import conv, images, lived_in
from settling import check_settling
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.convnext import CNBlockConfig
from torchvision.models.efficientnet import MBConvConfig

from mt_convert.errors import UnsupportedLayerError
from mt_convert.graph.rules import DEFAULT_RULES, OperatorKind, Rule
from mt_convert.graph.tracing.trace import trace
from mt_convert.quantization.quantize import quantize
from mt_convert.quantization.spec import QuantSpec
from mt_convert.spiking.conversion_report import ConversionReport
from mt_convert.spiking.convert import convert
from mt_convert.spiking.model import SpikingModel

aten = torch.ops.aten


def converted(model: nn.Module, shape: tuple[int, ...] = (2, 8, 8)) -> SpikingModel:
    """A conversion that was verified on two images."""
    qann = quantize(model.eval(), QuantSpec(), calibration=images(4, shape, seed=2))
    return convert(qann, verify=images(2, shape, seed=5))


def check(snn: SpikingModel) -> ConversionReport:
    """Exact, at rest in time, and spike-fed but for the first layer; the report."""
    report = snn.report
    verdict = report.verdict
    assert verdict is not None
    assert verdict.exact_t1, verdict.differs
    assert verdict.adversarial > 0
    check_settling(verdict, snn)
    assert [row.fed_by for row in report.weighted if not row.spike_fed] == [("input_quant",)]
    return report


# ----------------------------------------------------------------------------- torchvision's models


def vision_transformer() -> nn.Module:
    """vit_b_16, smaller."""
    return tv.VisionTransformer(16, 8, 1, 2, 16, 32, num_classes=5)


def swin_v2() -> nn.Module:
    """swin_v2_t, smaller: cosine attention, continuous position bias."""
    block = tv.swin_transformer.SwinTransformerBlockV2
    return tv.SwinTransformer(
        [4, 4],
        8,
        [1, 1],
        [1, 2],
        [4, 4],
        num_classes=5,
        block=block,
        downsample_layer=tv.swin_transformer.PatchMergingV2,
    )


def efficientnet() -> nn.Module:
    """efficientnet_b0, two stages of it."""
    stages = [MBConvConfig(1, 3, 1, 8, 8, 1), MBConvConfig(4, 5, 2, 8, 16, 1)]
    return tv.EfficientNet(stages, dropout=0.2, num_classes=5)


def convnext() -> nn.Module:
    """convnext_tiny, smaller; its layer scale as training leaves it."""
    stages = [CNBlockConfig(8, 16, 1), CNBlockConfig(16, None, 1)]
    return tv.ConvNeXt(stages, layer_scale=0.5, num_classes=5)


def densenet() -> nn.Module:
    """densenet121, smaller: batch norms behind concatenations."""
    return tv.DenseNet(4, (2, 2), 8, num_classes=5)


def googlenet() -> nn.Module:
    """Inception blocks, max pools with rounding up, no auxiliary heads."""
    return tv.GoogLeNet(num_classes=5, aux_logits=False, init_weights=False)


VISION: dict[str, tuple[Callable[[], nn.Module], int, int, set[str]]] = {
    # model, image size, layers of neurons at least, analog operators
    "resnet18": (lambda: tv.resnet18(num_classes=5), 32, 17, {"max_pool2d"}),
    "mobilenet_v3_small": (
        lambda: tv.mobilenet_v3_small(num_classes=5),
        32,
        30,
        set(),
    ),
    "efficientnet": (efficientnet, 32, 13, set()),
    "vision_transformer": (vision_transformer, 16, 9, {"layer_norm", "softmax"}),
    "swin_v2": (
        swin_v2,
        32,
        10,
        {"layer_norm", "softmax", "linalg_vector_norm", "clamp_min", "div"},
    ),
    "convnext": (convnext, 32, 8, {"layer_norm"}),
    "squeezenet1_1": (lambda: tv.squeezenet1_1(num_classes=5), 32, 20, {"max_pool2d"}),
    "densenet": (densenet, 32, 5, {"max_pool2d"}),
    "shufflenet": (
        lambda: tv.ShuffleNetV2([1, 1, 1], [8, 16, 32, 64, 32], num_classes=5),
        32,
        8,
        {"max_pool2d"},
    ),
    "mnasnet": (lambda: tv.MNASNet(0.1, 5), 32, 30, set()),
    "googlenet": (googlenet, 32, 50, {"max_pool2d"}),
}
MARKS = {
    **dict.fromkeys(
        ("densenet", "shufflenet", "googlenet", "mobilenet_v3_small", "mnasnet", "convnext"),
        pytest.mark.long,
    ),
    **dict.fromkeys(("swin_v2", "resnet18", "squeezenet1_1"), pytest.mark.slow),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", [pytest.param(n, marks=MARKS.get(n, ())) for n in VISION])
def test_a_torchvision_model_converts_exactly(name: str) -> None:
    build, size, neurons, analog = VISION[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = lived_in(build())
    report = check(converted(model, (3, size, size)))
    assert len(report.neurons) >= neurons
    found = {row.operator.split(".")[1] for row in report.analog if row.operator.startswith("aten")}
    assert found == analog


# ------------------------------------------------------------------------------------ plain PyTorch


class Rearranged(nn.Module):
    """Reshapes as einops writes them: patches, heads, and back, sizes from the image."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.mix, self.head = conv(2, 8), nn.Linear(32, 32), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        b, c, h, w = x.shape  # b c (h p) (w q) -> b (h w) (p q c)
        x = x.reshape(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 3, 5, 1)
        x = self.mix(x.reshape(b, (h // 2) * (w // 2), 4 * c))
        x = x.reshape(b, h // 2, w // 2, 2, 2, c).permute(0, 5, 1, 3, 2, 4).reshape(b, c, h, w)
        return self.head(F.relu(x).mean((-2, -1)))


class Decides(nn.Module):
    """Control flow on sizes and settings, a loop, and one block used three times."""

    def __init__(self, deep: bool) -> None:
        super().__init__()
        self.deep, self.stem = deep, conv(2, 4)
        self.block = nn.Sequential(conv(4, 4), nn.ReLU(inplace=True))
        self.extra, self.head = conv(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for _ in range(3):
            x = self.block(x)
        if x.shape[-1] >= 8:
            x = F.max_pool2d(x, 2)
        while x.shape[-1] > 2:
            x = F.avg_pool2d(x, 2)
        if self.deep:
            x = F.relu(self.extra(x))
        return self.head(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))


class Transformer(nn.Module):
    """nn.TransformerEncoder on pixels as tokens, a learned position, mean of tokens."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, activation="gelu", norm_first=True)
        self.embed = nn.Conv2d(2, 8, 4, stride=4)
        self.position = nn.Parameter(images(4, (1, 8), seed=3))
        self.encoder = nn.TransformerEncoder(layer, 2, nn.LayerNorm(8), enable_nested_tensor=False)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).flatten(2).permute(2, 0, 1) + self.position
        return self.head(self.encoder(x).mean(0))


def seeded(build: Callable[[], nn.Module]) -> nn.Module:
    """A model whose own initialisation is seeded."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return lived_in(build())


@pytest.mark.slow
def test_reshapes_in_the_style_of_einops_convert_at_any_batch_size() -> None:
    model = seeded(Rearranged)
    graph, x = trace(model, images(2)), images(5)
    assert torch.equal(graph(x), model(x))
    report = check(converted(model))
    assert [row.layer for row in report.weighted] == ["Conv2d", "Linear", "Linear"]


@pytest.mark.slow
@pytest.mark.parametrize("deep", [False, True])
def test_control_flow_is_resolved_for_the_given_size_and_each_use_has_its_neurons(
    deep: bool,
) -> None:
    model = seeded(partial(Decides, deep))
    report = check(converted(model))
    assert [row.name for row in report.weighted].count("block.0") == 3
    fed_by = [row.fed_by for row in report.weighted if row.name == "block.0"]
    assert len(set(fed_by)) == 3
    operators = [row.operator for row in report.analog]
    assert operators.count("aten.max_pool2d.default") == 1
    assert any(row.name == "extra" for row in report.weighted) is deep
    small = trace(model, images(2, (2, 4, 4)))
    assert "aten.max_pool2d.default" not in [str(node.target) for node in small.graph.nodes]


@pytest.mark.slow
def test_a_plain_transformer_encoder_converts_with_both_products_spike_fed() -> None:
    report = check(converted(seeded(Transformer)))
    products = [row for row in report.weighted if row.layer == "aten.matmul.default"]
    assert len(products) == 4
    assert all(row.spike_fed and len(row.fed_by) == 2 for row in products)
    kinds = [row.operator.split(".")[1] for row in report.analog[1:]]
    assert sorted(kinds) == ["layer_norm"] * 5 + ["softmax"] * 2


# -------------------------------------------------------------------------- what cannot be followed


class Wavers(nn.Module):
    """Goes one way or the other by what the image shows."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(2, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        if x.mean() > 0:  # depends on the data
            x = F.relu(x)
        return x.mean((2, 3))


class Counts(nn.Module):
    """Fixes the number of images."""

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(len(x), -1)


def line_of(kind: type, text: str) -> str:
    """File and line of a statement of a class, as an error should name them."""
    source, first = inspect.getsourcelines(kind)
    number = next(k for k, line in enumerate(source) if text in line)
    return f"{Path(__file__)}:{first + number}: {source[number].strip()}"


def test_control_flow_on_data_is_refused_with_the_users_own_line_and_what_to_do() -> None:
    with pytest.raises(UnsupportedLayerError, match="Wavers cannot be traced") as caught:
        quantize(Wavers(), QuantSpec(), calibration=images(4))
    (fault,) = caught.value.faults
    expected = line_of(Wavers, "depends on the data").split("  #")[0]
    assert fault.where.split("  #")[0] == expected
    assert "without control flow or numbers that depend on the data" in fault.hint


def test_an_error_of_the_model_itself_is_told_with_its_line() -> None:
    class Wrong(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x @ torch.zeros(3, 3)  # 8 columns meet 3 rows

    with pytest.raises(UnsupportedLayerError) as caught:
        quantize(Wrong(), QuantSpec(), calibration=images(4))
    assert "return x @ torch.zeros(3, 3)" in caught.value.faults[0].where
    assert "the model itself must run on such images" in caught.value.faults[0].hint


def test_a_fixed_number_of_images_is_refused_with_the_way_out() -> None:
    with pytest.raises(UnsupportedLayerError) as caught:
        quantize(Counts(), QuantSpec(), calibration=images(4))
    assert "take x.shape[0]" in caught.value.faults[0].hint


class Strange(nn.Module):
    """One operator that the table does not know."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.stem, self.function, self.head = conv(2, 4), function, nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.function(self.stem(x)).flatten(1)[:, :8])


@pytest.mark.sampled
@pytest.mark.parametrize(
    ("function", "names"),
    [
        (lambda x: x.topk(2, 1).values, ["aten.topk.default"]),
        (lambda x: torch.fft.fft2(x).abs(), ["aten.fft_fft2.default"]),
        (lambda x: x.sort(1).values, ["aten.sort.default"]),
        (lambda x: x.cummax(1).values, ["aten.cummax.default"]),
        (lambda x: torch.special.i0(x), ["aten.special_i0.default"]),
    ],
)
def test_an_unknown_operator_is_refused_by_name_with_the_rule_to_pass(
    function: Callable[[Tensor], Tensor], names: list[str]
) -> None:
    with pytest.raises(UnsupportedLayerError) as caught:
        quantize(Strange(function), QuantSpec(), calibration=images(4))
    assert [fault.what for fault in caught.value.faults] == names
    for fault, name in zip(caught.value.faults, names, strict=True):
        assert f"rules={{**DEFAULT_RULES, {name}: Rule(...)}}" in fault.hint


@pytest.mark.slow
def test_the_users_rule_for_an_unknown_operator_makes_the_model_convert() -> None:
    rules = {
        **DEFAULT_RULES,
        aten.special_i0.default: Rule(OperatorKind.DIFFERENCE, "Bessel's function"),
    }
    model, x = seeded(partial(Strange, torch.special.i0)), images(8, seed=2)
    qann = quantize(model, QuantSpec(), calibration=x, rules=rules)
    with pytest.raises(UnsupportedLayerError, match=r"aten\.special_i0\.default"):
        convert(qann)
    report = check(convert(qann, rules=rules, verify=images(3)))
    assert [row.reason for row in report.analog[1:]] == ["Bessel's function"]


@pytest.mark.slow
def test_the_users_rule_wins_over_the_default_one() -> None:
    rules = {**DEFAULT_RULES, aten.silu.default: Rule(OperatorKind.DIFFERENCE, "mine")}
    model = seeded(partial(Strange, F.silu))
    qann = quantize(model, QuantSpec(), calibration=images(8, seed=2), rules=rules)
    check(convert(qann, rules=rules, verify=images(3)))
    reasons = [
        convert(qann, rules=table).report.analog[1].reason for table in (rules, DEFAULT_RULES)
    ]
    assert reasons == ["mine", "a non-linear function: temporal difference"]
