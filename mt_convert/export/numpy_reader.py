"""Runs what `mt-convert export --to tables` wrote: *_, logits = run(*read(folder), x).values()"""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file


def windows(x, node, shape, fill):  # [N, C, *space] -> [N, C, taps, *out], ``fill`` around
    sizes = (node[name] for name in ("kernel", "stride", "padding", "dilation"))
    axes = list(zip(*sizes, shape[1:], x.shape[2:], strict=True))
    around = [(p, max(0, (k - 1) * d + (o - 1) * s + 1 - p - n)) for k, s, p, d, o, n in axes]
    x = np.pad(x, [(0, 0), (0, 0), *around], constant_values=fill)
    cuts = [[(t * d, t * d + (o - 1) * s + 1, s) for t in range(k)] for k, s, p, d, o, n in axes]
    taps = [zip(cuts, tap, strict=True) for tap in np.ndindex(*node["kernel"])]
    return np.stack([x[(..., *(slice(*c[t]) for c, t in tap))] for tap in taps], 2)


def formula(a, x):  # float32, in this order, every operator rounded by itself
    total = x[0].astype(np.float32) * a["multiplier_0"]
    total = total + a["bias"] if "bias" in a else total
    for i in range(1, len(x)):
        total = total + x[i].astype(np.float32) * a[f"multiplier_{i}"]
    return total + a["offset"] if "offset" in a else total


def levels_of(x, node):
    return np.clip(np.rint(x), node["low"], node["high"]).astype(np.int64)


def count_reached(rows, place, u):  # thresholds of its row that a number reaches, by halving
    count = np.zeros(u.shape, np.int64)
    for step in 2 ** np.arange(rows.shape[1].bit_length())[::-1]:
        more = np.minimum(count + step, rows.shape[1])
        count = np.where(u >= rows[place, more - 1], more, count)
    return count


def fire(node, a, x):
    if "levels" in a:
        return a["levels"][levels_of(formula(a, x), node) - node["low"]]
    u = sum(one * a[f"factor_{i}"][a["place"]] for i, one in enumerate(x))
    count = [count_reached(a[k], a["place"], u) for k in ("thresholds", "falls") if k in a]
    return node["first"] + count[0] - sum(count[1:])


def run_node(node, shape, a, x):
    op, n, x0, axes = node["op"], len(x[0]), x[0], tuple(node.get("axes", ()))
    if op == "conv":
        w = a["weight"].reshape(node["groups"], -1, a["weight"][0].size)
        columns = windows(x0, node, shape, 0)
        return (w @ columns.reshape(n, len(w), w.shape[2], -1)).reshape(n, *shape)
    if op == "gather":
        flat = [np.zeros((n, 1), np.int64), *(one.reshape(n, -1) for one in x)]
        return np.concatenate(flat, 1)[:, a["index"]]
    simple = {"max_pool": lambda: windows(x0, node, shape, -(2**63)).max(2)}
    simple |= {"sum_pool": lambda: windows(x0, node, shape, 0).sum(2), "max": lambda: x0.max(axes)}
    simple |= {"encode": lambda: levels_of(x0 / a["scale"], node), "sum": lambda: x0.sum(axes)}
    simple |= {"linear": lambda: x0 @ a["weight"].T, "scale": lambda: x0 * a["factor"]}
    simple |= {"fire": lambda: fire(node, a, x), "read_out": lambda: formula(a, x)}
    return simple.get(op, lambda: x0)().reshape(n, *shape)


def read(folder):
    network = json.loads((Path(folder) / "network.json").read_text())
    wide = load_file(Path(folder) / "network.safetensors")
    wide = {k: v if v.dtype == np.float32 else v.astype(np.int64) for k, v in wide.items()}
    arrays = [{k: wide[name] for k, name in node["arrays"].items()} for node in network["nodes"]]
    return network, arrays


def run(network, arrays, images):  # every value of the network; the last are the logits
    values = {0: images}
    for node, a in zip(network["nodes"], arrays, strict=True):
        shape = network["values"][str(node["out"])]["shape"]
        values[node["out"]] = run_node(node, shape, a, [values[i] for i in node["in"]])
    return values
