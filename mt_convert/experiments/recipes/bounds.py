"""Both bounds of every number that a recipe can hold, and the arguments of networks it may name.

Far beyond what anybody trains, and short of what breaks: a seed that no generator takes, workers
that no machine has, a decay that is no float32. What a block itself allows may be less.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Iterator, Mapping
from typing import Any

import timm

from ...errors import Fault, did_you_mean, near_names
from .faults import Finding, fault_at, item_of, keys_of
from .yaml_tree import Path, Tree

_WEIGHT = (0, 1000)
BOUNDS: Mapping[str, tuple[float, float]] = {
    "seed": (0, 2**32 - 1),
    "classes": (1, 1_000_000),
    "channels": (1, 64),
    "image_size": (1, 4096),
    "size": (1, 4096),
    "mean": (-1e6, 1e6),
    "std": (1e-6, 1e6),
    "validation_share": (0, 1),
    "calibration_images": (1, 10**8),
    "test_images": (1, 10**9),
    "images": (1, 10**9),
    "limit": (1, 10**9),
    "crop_pct": (0.01, 1),
    "class_map": (0, 999_999),
    "rows": (0, 999_999),
    "epochs": (1, 100_000),
    "batch_size": (1, 65_536),
    "lr": (1e-12, 1000),
    "momentum": (0, 1),
    "weight_decay": _WEIGHT,
    "warmup_epochs": (0, 100_000),
    "label_smoothing": (0, 1),
    "mse_weight": (0, 1),
    "mixup": (0, 100),
    "ema_decay": (0, 1),
    "distillation_weight": (0, 1),
    "distillation_temperature": (1e-3, 1e3),
    "clip_grad": (1e-9, 1e9),
    "patience": (1, 100_000),
    "save_every": (1, 10**9),
    "freeze_bn_after": (0, 100_000),
    "workers": (0, 1024),
    "reestimate_bn": (2, 10**8),
    "spike_weight": _WEIGHT,
    "bound": (0, 1),
    "final_bound": (0, 1),
    "lr_scale": (0, 1),
    **dict.fromkeys(("weight_bits", "act_bits", "first_bits", "last_bits", "input_bits"), (1, 8)),
    "drop_share": (0, 1),
    "codeword_bits": (1, 9),
    "thresholds": (1, 65_535),
    "n": (1, 65_535),
    "time_steps": (1, 4096),
    "calibrated_for": (1, 4096),
    "tau": (1, 1e6),
    "read_out_tau": (1, 1e6),
    "initial": (-1e6, 1e6),
    "fires_at": (0, 1),
    "rank": (1, 65_536),
    **dict.fromkeys(("mac_pj", "ac_pj", "bit_pj"), (0, 1e6)),
    "state_bits": (1, 64),
}
"""By the last name of a key: the least and the largest number, both allowed."""

_NAMES = """
act_layer anti_alias attn_drop_rate attn_pool_mlp_ratio average avg_down base_width
block_reduce_first bottle_ratio cardinality class_token conv_mlp depth depth_mult depths dim dims
down_kernel_size downsample drop drop_block_rate drop_path_rate drop_rate dynamic_img_pad
dynamic_img_size embed_dim embed_dims expand_ratio expansion_ratio final_norm first_stride fix_stem
global_pool groups growth_rate head_bias head_dim head_hidden_size head_norm_first hidden_dim
img_size in_channels init_values kernel_size kernel_sizes key_dim layer_scale_init_value layers
ls_init_value mlp_bias mlp_layer mlp_ratio mlp_ratios no_embed_class norm norm_eps norm_layer
num_blocks num_features num_heads num_init_features num_levels num_reg_tokens num_stages
out_features output_stride pad_type patch_drop_rate patch_norm patch_size plan pos_drop_rate
pos_embed pre_norm proj_bias proj_drop_rate qk_norm qkv_bias qkv_fused reg_tokens replace_stem_pool
round_limit se_ratio sr_ratios stem_chs stem_size stem_stride stem_type stem_width strict_img_size
stride strides token_mixers use_abs_pos use_grn use_layer_scale use_pos_embed use_rel_pos
weight_init width width_factor width_mult widths window_ratio window_size zero_init_last
"""
ARGUMENTS = frozenset(_NAMES.split())
"""The arguments of timm's networks that a recipe may name: sizes, shares, choices by name."""
_NEVER = {"pretrained", "self", "args", "kwargs", "device", "dtype"}
_LARGEST, _LONGEST, _DEEPEST = 65_536, 100, 4


def findings(tree: Tree, root: type) -> list[Finding]:
    """Every number of a recipe that is out of its bounds, at any depth.

    Example:
        >>> from .conversion import Recipe
        >>> [str(item.fault) for item in findings(Tree({"seed": -1}), Recipe)]
        ['line 1  seed  is -1  allowed: 0 to 4294967295']
    """
    return [
        Finding(
            path, fault_at(path, value, f"allowed: {_plain(low)} to {_plain(high)}{none}", tree)
        )
        for path, value, none in _numbers(tree.value, root, ())
        for low, high in [BOUNDS.get(_name(path), (float("-inf"), float("inf")))]
        if value < low or value > high  # what is no number is told elsewhere
    ]


def argument_faults(architecture: str, kwargs: Mapping[str, Any]) -> list[Fault]:
    """Which ``model.kwargs`` are no argument of a network, or no plain value.

    Networks that others have registered with timm may have further ones: those they name.

    Example:
        >>> [item.where for item in argument_faults("resnet18", {"device": "meta", "depth": 3})]
        ['model.kwargs.device']
    """
    allowed = ARGUMENTS | _own(architecture)
    faults = []
    for name, value in kwargs.items():
        if name not in allowed:
            guess = did_you_mean(near_names(name, sorted(allowed)))
            hint = f"{guess} allowed are sizes, shares and choices such as depths, drop_path_rate"
            faults.append(
                Fault(f"model.kwargs.{name}", "is no known argument of a network", hint.lstrip())
            )
        elif not _is_plain(value):
            hint = f"allowed: numbers up to {_LARGEST}, short texts, and lists of them"
            faults.append(Fault(f"model.kwargs.{name}", f"is {str(value)[:40]}", hint))
    return faults


def _own(architecture: str) -> frozenset[str]:
    """What a network that is not timm's names in its own constructor."""
    name = architecture.partition(".")[0]
    if ":" in name or not timm.is_model(name):
        return frozenset()
    make = timm.model_entrypoint(name)
    if make.__module__.startswith("timm."):
        return frozenset()
    return frozenset(inspect.signature(make).parameters) - _NEVER


def _is_plain(value: Any, depth: int = 0) -> bool:
    if isinstance(value, list | tuple):
        return depth < _DEEPEST and all(_is_plain(item, depth + 1) for item in value[:1000])
    if isinstance(value, str):
        return len(value) <= _LONGEST
    return value is None or isinstance(value, bool) or abs(value) <= _LARGEST


def _numbers(value: Any, kind: Any, path: Path) -> Iterator[tuple[Path, float, str]]:
    """All numbers under keys that are known, with their paths, and whether none is allowed too."""
    if isinstance(value, dict):
        for key, inner in keys_of(kind).items():
            if key in value:
                yield from _numbers(value[key], inner, (*path, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _numbers(item, item_of(kind), (*path, index))
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield path, value, ", or none" if type(None) in typing.get_args(kind) else ""


def _name(path: Path) -> str:
    """The last name of a path."""
    return next((part for part in reversed(path) if isinstance(part, str)), "")


def _plain(bound: float) -> str:
    return str(int(bound)) if float(bound).is_integer() else str(bound)
