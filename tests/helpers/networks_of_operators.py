"""One small network per family of operators, and what its conversion report must say.

Each takes [batch, 2, 8, 8], turns it into maps or tokens by a convolution, applies the operators
under test, and ends in weighted layers: so what they give must be quantized. Weights are seeded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import timm.layers as tl
import torch
from networks import conv, images, lived_in
from timm.layers.attention import Attention as TimmAttention
from timm.models.cait import TalkingHeadAttn
from timm.models.metaformer import StarReLU
from timm.models.mlp_mixer import MixerBlock, SpatialGatingBlock
from timm.models.swin_transformer import SwinTransformerBlock
from timm.models.xcit import XCA
from torch import Tensor, nn
from torch.nn import functional as F

Function = Callable[..., Tensor]


@dataclass(frozen=True)
class Family:
    """A network and the operators that its report lists: analog ones, and products."""

    build: Callable[[], nn.Module]
    analog: str = ""
    products: str = ""
    exact: bool = True  # the traced network gives the same bits as the model, not only close ones
    idle: str = ""  # a weighted layer that, in one of its uses, reads parameters alone


class Do(nn.Module):
    """A function as a layer; with a parameter of the given shape as its second argument."""

    def __init__(self, function: Function, *shape: int) -> None:
        super().__init__()
        self.function = function
        self.weight = nn.Parameter(torch.empty(shape)) if shape else None

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x) if self.weight is None else self.function(x, self.weight)


class Gate(nn.Module):
    """A product of two branches."""

    def __init__(self, left: nn.Module, right: nn.Module) -> None:
        super().__init__()
        self.left, self.right = left, right

    def forward(self, x: Tensor) -> Tensor:
        return self.left(x) * self.right(x)


class Residual(nn.Module):
    """x + body(x)."""

    def __init__(self, *body: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(*body)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


def maps(*body: nn.Module) -> nn.Module:
    """The body on maps [batch, 8, 8, 8]."""
    ends = (nn.LazyConv2d(4, 1), nn.Flatten(), nn.LazyLinear(3))
    return nn.Sequential(conv(2, 8), *body, *ends)


def tokens(*body: nn.Module) -> nn.Module:
    """The body on tokens [batch, 16, 8]."""
    patches = (nn.Conv2d(2, 8, 2, stride=2), Do(lambda x: x.flatten(2).transpose(1, 2)))
    return nn.Sequential(*patches, *body, nn.LazyLinear(4), nn.Flatten(), nn.LazyLinear(3))


def chain(*activations: nn.Module) -> nn.Module:
    """Activations, each between two convolutions."""
    return maps(*(layer for item in activations for layer in (item, conv(8, 8, 1))))


class Attends(nn.Module):
    """nn.MultiheadAttention on one sequence of tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x, need_weights=False)[0]


class Recurrent(nn.Module):
    """A recurrent layer over the first four tokens."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x[:, :4])[0]


class Prefixed(nn.Module):
    """Class, distillation and register tokens in front, a position embedding on all."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = (nn.Parameter(torch.empty(1, 1, 8)) for _ in range(2))
        self.registers = nn.Parameter(torch.empty(1, 3, 8))
        self.position = nn.Parameter(torch.empty(1, 21, 8))

    def forward(self, x: Tensor) -> Tensor:
        prefixes = [t.expand(x.shape[0], -1, -1) for t in (self.first, self.second, self.registers)]
        return torch.cat([*prefixes, x], 1) + self.position


class Biased(nn.Module):
    """timm's attention with a table of relative positions added to the scores."""

    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.attention = attention(fused)
        self.bias = tl.RelPosBias((4, 4), 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, attn_mask=self.bias.get_bias())


class Rotates(nn.Module):
    """timm's attention with rotary position embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.rope = tl.RotaryEmbeddingCat(4, in_pixels=False, feat_shape=[4, 4])
        self.attention = tl.AttentionRope(8, 2, num_prefix_tokens=0)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, rope=self.rope.get_embed())


class Causal(nn.Module):
    """Attention by function, each token looking back alone, two queries to a key."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.kv = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        q = self.q(x).unflatten(-1, (2, 4)).transpose(1, 2)
        k, v = self.kv(x).unflatten(-1, (2, 4)).transpose(1, 2).chunk(2, 1)
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return out.transpose(1, 2).flatten(2)


class Routed(nn.Module):
    """A convolution whose weights are mixed from two by what the image shows."""

    def __init__(self) -> None:
        super().__init__()
        self.route = nn.Linear(8, 2)
        self.conv = tl.CondConv2d(8, 4, 3, num_experts=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x, torch.sigmoid(self.route(x.mean((2, 3)))))


def attention(fused: bool = True) -> nn.Module:
    """timm's attention, as one operator or spelled out."""
    layer = TimmAttention(8, 2, qkv_bias=True)
    layer.fused_attn = fused
    return layer


def windows(x: Tensor) -> Tensor:
    """[batch, 8, 8, 8] cut into windows of 4 by 4, as tokens [batch * 4, 16, 8]."""
    x = x.reshape(-1, 8, 2, 4, 2, 4).permute(0, 2, 4, 3, 5, 1)
    return x.reshape(-1, 16, 8)


def and_back(x: Tensor) -> Tensor:
    """The inverse of `windows`."""
    return x.reshape(-1, 2, 2, 4, 4, 8).permute(0, 5, 1, 3, 2, 4).reshape(-1, 8, 8, 8)


def last_axis(layer: nn.Module) -> nn.Module:
    """A layer for channels-last maps."""
    to, back = Do(lambda x: x.permute(0, 2, 3, 1)), Do(lambda x: x.permute(0, 3, 1, 2))
    return nn.Sequential(to, layer, back)


def erased(x: Tensor) -> Tensor:
    """A copy of the map with a number written over some of its columns."""
    x = x.clone()
    x[..., 2:5] = 0.5
    return x


def pooled(x: Tensor, weight: Tensor) -> Tensor:
    """A generalised mean with a trained power near 3 (GeM)."""
    return F.avg_pool2d(x.clamp(min=1e-3).pow(3), 2).pow(1 / 3) * weight


FAMILIES: dict[str, Family] = {
    # ------------------------------------------------------------------------------- activations
    "clamped": Family(
        lambda: chain(
            *(nn.ReLU(), nn.ReLU6(), nn.LeakyReLU(), nn.PReLU(8), nn.Hardtanh(-1, 2)),
            *(nn.Hardswish(), nn.Hardsigmoid()),
        ),
        "hardsigmoid hardswish leaky_relu prelu",
    ),
    "smooth": Family(
        lambda: chain(
            *(nn.GELU("tanh"), nn.Sigmoid(), nn.Tanh(), nn.Mish(), nn.ELU(), nn.CELU(), nn.SELU()),
            nn.Softplus(),
        ),
        "celu elu gelu mish selu sigmoid softplus tanh",
    ),
    "shrinking": Family(
        lambda: chain(
            *(nn.Softsign(), nn.LogSigmoid(), nn.Softshrink(0.1), nn.Hardshrink(0.1)),
            *(nn.Threshold(0.1, 0), nn.Tanhshrink(), nn.RReLU()),
        ),
        "abs abs abs div gt le leaky_relu log_sigmoid sign tanh threshold where where",
    ),
    "silu": Family(lambda: chain(nn.SiLU()), "silu"),
    "gelu": Family(lambda: chain(nn.GELU()), "gelu"),
    "star_relu": Family(lambda: chain(StarReLU()), "pow"),
    "quick_gelu": Family(lambda: chain(tl.QuickGELU(), tl.HardMish()), "sigmoid", "mul mul"),
    "leaky_by_hand": Family(lambda: chain(Do(lambda x: x.where(x > 0, 0.1 * x))), "gt where"),
    # -------------------------------------------------------------------- norms and convolutions
    "batch_norm": Family(
        lambda: maps(
            *(tl.BatchNormAct2d(8, act_layer=nn.SiLU), conv(8, 8), nn.ReLU()),
            *(nn.BatchNorm2d(8), conv(8, 8), nn.ReLU()),  # in front of a convolution
        ),
        "silu",
    ),
    "layer_norm": Family(lambda: tokens(nn.LayerNorm(8)), "layer_norm"),
    "layer_norm_2d": Family(
        lambda: maps(tl.LayerNorm2d(8), conv(8, 8), last_axis(nn.LayerNorm(8))),
        "layer_norm layer_norm",
    ),
    "group_norm": Family(
        lambda: maps(nn.GroupNorm(2, 8), conv(8, 8), tl.GroupNorm1(8)), "group_norm group_norm"
    ),
    "instance_norm": Family(
        lambda: maps(
            *(nn.InstanceNorm2d(8, affine=True), conv(8, 8)),
            *(nn.InstanceNorm2d(8, track_running_stats=True), conv(8, 8), nn.ReLU()),
        ),
        "group_norm",
        exact=False,
    ),
    "rms_norm": Family(
        lambda: tokens(
            *(tl.RmsNorm(8), nn.Linear(8, 8), nn.RMSNorm(8), nn.Linear(8, 8), tl.SimpleNorm(8))
        ),
        "rms_norm rms_norm rsqrt var",
        "mul",
    ),
    "normalize": Family(
        lambda: tokens(Do(lambda x: F.normalize(x, dim=-1))), "clamp_min div linalg_vector_norm"
    ),
    "response_norm": Family(
        lambda: maps(tl.FilterResponseNormTlu2d(8), conv(8, 8), tl.EvoNorm2dS0(8, groups=2)),
        "div maximum rsqrt sigmoid sqrt square var",
        "mul mul",
    ),
    "global_response_norm": Family(
        lambda: maps(last_axis(tl.GlobalResponseNormMlp(8, 8))),
        "div gelu linalg_vector_norm",
        "mul",
        exact=False,
    ),
    "standardised": Family(
        lambda: maps(
            *(tl.ScaledStdConv2d(8, 8, 3, padding=1), nn.ReLU()),
            *(tl.StdConv2dSame(8, 8, 3, stride=2), nn.ReLU()),
        )
    ),
    "convolutions": Family(
        lambda: maps(
            *(conv(8, 8, groups=4), nn.ReLU(), conv(8, 8, groups=8)),
            *(nn.Conv2d(8, 8, 3, padding=2, dilation=2), nn.ReLU()),
        )
    ),
    "transposed": Family(
        lambda: maps(nn.ReLU(), nn.ConvTranspose2d(8, 4, 2, stride=2), nn.ReLU()),
        "conv_transpose2d",
        "conv_transpose2d",
    ),
    "routed": Family(lambda: maps(nn.ReLU(), Routed(), nn.ReLU()), "sigmoid", "conv2d"),
    # ------------------------------------------------------------------------------------- gates
    "squeeze_excite": Family(
        lambda: maps(
            nn.ReLU(), tl.SEModule(8, rd_channels=4), conv(8, 8), nn.ReLU(), tl.EffectiveSEModule(8)
        ),
        "hardsigmoid sigmoid",
        "mul mul",
    ),
    "channel_attention": Family(
        lambda: maps(nn.ReLU(), tl.EcaModule(8), conv(8, 8), tl.GlobalContext(8)),
        "layer_norm sigmoid sigmoid softmax",
        "matmul mul mul",
    ),
    "split_attention": Family(
        lambda: maps(nn.ReLU(), tl.SplitAttn(8), conv(8, 8), nn.ReLU(), tl.SelectiveKernel(8)),
        "softmax softmax",
        "mul mul",
    ),
    "gate": Family(
        lambda: tokens(Gate(nn.Linear(8, 8), nn.Sequential(nn.Linear(8, 8), nn.Sigmoid()))),
        "sigmoid",
        "mul",
    ),
    "gated_mlp": Family(
        lambda: tokens(tl.SwiGLU(8, 8), tl.GluMlp(8, 16)), "sigmoid silu", "mul mul"
    ),
    "glu": Family(lambda: maps(nn.GLU(1)), "sigmoid", "mul"),
    "layer_scale": Family(
        lambda: tokens(
            Residual(nn.LayerNorm(8), nn.Linear(8, 8), tl.LayerScale(8), tl.DropPath(0.3))
        ),
        "layer_norm",
    ),
    # --------------------------------------------------------------------------------- attention
    "attention_fused": Family(
        lambda: tokens(attention(True)), "softmax", "matmul matmul", exact=False
    ),
    "attention_explicit": Family(lambda: tokens(attention(False)), "softmax", "matmul matmul"),
    "relative_position": Family(
        lambda: tokens(Biased(True)), "softmax", "matmul matmul", exact=False
    ),
    "rotary": Family(lambda: tokens(Rotates()), "softmax", "matmul matmul", exact=False),
    "causal": Family(lambda: tokens(Causal()), "softmax", "matmul matmul", exact=False),
    "cross_covariance": Family(
        lambda: tokens(XCA(8, 2)),
        "clamp_min clamp_min div div linalg_vector_norm linalg_vector_norm softmax",
        "matmul matmul",
    ),
    "talking_heads": Family(lambda: tokens(TalkingHeadAttn(8, 2)), "softmax", "matmul matmul"),
    "multihead": Family(lambda: tokens(Attends()), "softmax", "matmul matmul", exact=False),
    "encoder_layer": Family(
        lambda: tokens(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)),
        "layer_norm layer_norm softmax",
        "matmul matmul",
        exact=False,
    ),
    "windows": Family(
        lambda: maps(Do(windows), attention(), Do(and_back)),
        "softmax",
        "matmul matmul",
        exact=False,
    ),
    "shifted_windows": Family(
        lambda: maps(
            last_axis(SwinTransformerBlock(8, (8, 8), 2, window_size=(4, 4), shift_size=(2, 2)))
        ),
        "gelu layer_norm layer_norm softmax",
        "matmul matmul",
        exact=False,
    ),
    "prefix_tokens": Family(
        lambda: tokens(Prefixed(), attention()), "softmax", "matmul matmul", exact=False
    ),
    "attention_pool": Family(
        lambda: maps(tl.AttentionPool2d(8, 8, 8, head_dim=4), nn.Unflatten(1, (8, 1, 1))),
        "softmax",
        "matmul matmul",
        exact=False,
    ),
    "attention_pool_latent": Family(
        lambda: tokens(tl.AttentionPoolLatent(8, 8, num_heads=2)),
        "Linear gelu matmul softmax",
        "matmul matmul",
        exact=False,
        idle="2.q",
    ),
    # -------------------------------------------------------------------- pooling and resampling
    "max_pool": Family(lambda: maps(nn.ReLU(), nn.MaxPool2d(2)), "max_pool2d"),
    "pooling": Family(
        lambda: maps(
            *(nn.ReLU(), nn.AvgPool2d(3, 1, 1), conv(8, 8), nn.AdaptiveAvgPool2d(5), conv(8, 8)),
            *(nn.ReLU(), nn.AdaptiveMaxPool2d(2), conv(8, 8)),
            tl.SelectAdaptivePool2d(1, "avgmax"),
        ),
        "amax amax amax amax amax amax",
    ),
    "power_means": Family(
        lambda: maps(nn.ReLU(), Do(pooled, 8, 1, 1), conv(8, 8), nn.LPPool2d(2, 2)),
        "abs clamp pow pow pow pow sign",
        "mul",
    ),
    "blur": Family(lambda: maps(nn.ReLU(), tl.BlurPool2d(8), conv(8, 8), nn.ReLU())),
    "resampling": Family(
        lambda: maps(
            *(nn.Upsample(scale_factor=2), nn.AvgPool2d(2), conv(8, 8)),
            *(nn.Upsample(scale_factor=2, mode="bilinear"), conv(8, 8)),
            nn.Upsample(size=5, mode="bicubic"),
        )
    ),
    # ------------------------------------------------------------------------------ moving about
    "moves": Family(
        lambda: maps(
            *(nn.PixelUnshuffle(2), conv(32, 8), nn.PixelShuffle(2), nn.ChannelShuffle(2)),
            *(conv(2, 8), Do(lambda x: torch.cat(x.split([2, 6], 1)[::-1], 1))),
            Do(lambda x: torch.stack(x.chunk(2, 1), 1).flatten(1, 2)),
            Do(lambda x: torch.stack(x.unbind(1)[::2], 1).roll((1, -2), (2, 3)).flip(3)),
            *(nn.Unfold(3, padding=1), nn.Fold((8, 8), 3, padding=1)),
        )
    ),
    "written_to": Family(lambda: maps(Do(erased)), "slice_scatter"),
    # ------------------------------------------------------------------ mixers, products, memory
    "mixer": Family(lambda: tokens(MixerBlock(8, 16)), "gelu gelu layer_norm layer_norm"),
    "spatial_gate": Family(
        lambda: tokens(SpatialGatingBlock(8, 16)), "gelu layer_norm layer_norm", "mul"
    ),
    "einsum": Family(
        lambda: tokens(
            *(Do(lambda x: torch.einsum("bnc,bmc->bnm", x, x)), nn.Linear(16, 8)),
            Do(lambda x, w: torch.einsum("bnc,cd->bnd", x, w), 8, 8),
        ),
        products="bmm",
        exact=False,
    ),
    "added_products": Family(
        lambda: tokens(
            Do(lambda x: torch.baddbmm(x, x, x[:, :8], beta=0.5, alpha=0.25)),
            Do(lambda x, w: torch.addmm(w[0], x.flatten(0, 1), w).view_as(x), 8, 8),
        ),
        products="bmm",
        exact=False,
    ),
    "lstm": Family(
        lambda: tokens(Recurrent(nn.LSTM(8, 8, batch_first=True))),
        "Linear " + "sigmoid " * 12 + "tanh " * 8,
        "mul " * 11,
        exact=False,
        idle="2.layer.layer_hh_l0",
    ),
    "gru": Family(
        lambda: tokens(Recurrent(nn.GRU(8, 8, batch_first=True))),
        "Linear " + "sigmoid " * 8 + "tanh " * 4,
        "mul " * 7,
        exact=False,
        idle="2.layer.layer_hh_l0",
    ),
}


def network(name: str) -> nn.Module:
    """One of `FAMILIES` with seeded weights, in eval mode."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = FAMILIES[name].build().eval()
        model(images(2))  # fills in lazy layers
        lived_in(model)
        for path, parameter in model.named_parameters():
            owner = model.get_submodule(path.rpartition(".")[0])
            if isinstance(owner, (nn.modules.conv._ConvNd, nn.Linear)):
                continue
            if not parameter.abs().sum() < 9e9 or parameter.dim() > 1:
                nn.init.normal_(parameter, 0, 0.4)
            elif path.endswith("bias"):
                nn.init.normal_(parameter, 0, 0.3)
            else:
                nn.init.normal_(parameter, 0.8, 0.3)
    return model
