"""Runs what `mt-convert export --to tables` wrote: *_, logits = run(*read(folder), x).values()"""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file


def windows(x, node, shape, fill):  # [N, C, *space] -> [N, C, taps, *out], ``fill`` around
    names = ("kernel", "stride", "padding", "dilation")
    axes = list(zip(*(node[name] for name in names), shape[1:], x.shape[2:], strict=True))
    far = [(k - 1) * d + (o - 1) * s + 1 - p - n for k, s, p, d, o, n in axes]
    around = [(axis[2], max(0, beyond)) for axis, beyond in zip(axes, far, strict=True)]
    x = np.pad(x, [(0, 0), (0, 0), *around], constant_values=fill)
    cuts = [[(t * d, t * d + (o - 1) * s + 1, s) for t in range(k)] for k, s, p, d, o, n in axes]
    taps = np.ndindex(*node["kernel"])
    cut = [tuple(slice(*c[t]) for c, t in zip(cuts, tap, strict=True)) for tap in taps]
    return np.stack([x[(..., *place)] for place in cut], 2)


def formula(a, x):  # float32, in this order, every operator rounded by itself
    total = x[0].astype(np.float32) * a["multiplier_0"]
    total = total + a["bias"] if "bias" in a else total
    for i in range(1, len(x)):
        total = total + x[i].astype(np.float32) * a[f"multiplier_{i}"]
    return total + a["offset"] if "offset" in a else total


def fire(node, a, x):
    if "levels" in a:
        q = np.clip(np.rint(formula(a, x)), node["low"], node["high"]).astype(np.int64)
        return a["levels"][q - node["low"]]
    place = a["place"]
    u = sum(one * a[f"factor_{i}"][place] for i, one in enumerate(x))
    count = [(u[..., None] >= a[k][place]).sum(-1) for k in ("thresholds", "falls") if k in a]
    return node["first"] + count[0] - sum(count[1:])


def run_node(node, shape, a, x):
    op, n, x0 = node["op"], len(x[0]), x[0]
    if op == "encode":
        return np.clip(np.rint(x0 / a["scale"]), node["low"], node["high"]).astype(np.int64)
    if op == "conv":
        groups, w = node["groups"], a["weight"]
        columns = windows(x0, node, shape, 0).reshape(n, groups, w[0].size, -1)
        return (w.reshape(groups, -1, w[0].size) @ columns).reshape(n, *shape)
    if op in ("max_pool", "sum_pool"):
        taps = windows(x0, node, shape, 0 if op == "sum_pool" else np.iinfo(np.int64).min)
        return taps.sum(2) if op == "sum_pool" else taps.max(2)
    if op in ("max", "sum"):
        return getattr(x0, op)(axis=tuple(node["axes"])).reshape(n, *shape)
    if op == "gather":
        flat = [np.zeros((n, 1), np.int64), *(one.reshape(n, -1) for one in x)]
        return np.concatenate(flat, 1)[:, a["index"]]
    simple = {"linear": lambda: x0 @ a["weight"].T, "scale": lambda: x0 * a["factor"]}
    simple |= {"fire": lambda: fire(node, a, x), "read_out": lambda: formula(a, x)}
    return simple.get(op, lambda: x0.reshape(n, *shape))()


def read(folder):
    network = json.loads((Path(folder) / "network.json").read_text())
    tensors = load_file(Path(folder) / "network.safetensors")
    wide = {k: v if v.dtype == np.float32 else v.astype(np.int64) for k, v in tensors.items()}
    arrays = [{k: wide[name] for k, name in node["arrays"].items()} for node in network["nodes"]]
    return network, arrays


def run(network, arrays, images):  # every value of the network; the last are the logits
    values = {0: images}
    for node, a in zip(network["nodes"], arrays, strict=True):
        shape = network["values"][str(node["out"])]["shape"]
        values[node["out"]] = run_node(node, shape, a, [values[i] for i in node["in"]])
    return values
