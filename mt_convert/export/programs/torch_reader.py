"""Runs a program of torch.export, whole and node by node, with torch alone.

`python torch_reader.py network.pt2` answers requests on its standard input: a line of JSON,
{"node": null or the value to make, "inputs": {value: [kind, *shape]}, "show": [value, ...]}, and
the numbers behind it. The answer is a line of JSON with [kind, *shape] for each value, or an error.
To use a program: ``torch.export.load("network.pt2").module()(images)``.
"""

import json
import math
import re
import sys
import zipfile

LARGEST = 2**31  # bytes of a member
MEMBERS = re.compile(
    r"[^/]+/(data/weights/(weight_\d+|model_weights_config\.json)"
    r"|data/constants/model_constants_config\.json|models/model\.json"
    r"|data/sample_inputs/model\.pt|archive_format|archive_version|byteorder|\.data/(version|serialization_id))"
)
TARGETS = re.compile(
    r"torch\.ops\.aten\.(_assert_tensor_metadata|add|amax|arange|cat|clamp|constant_pad_nd|conv[123]d"
    r"|ge|gather|index|index_select|linear|max_pool[123]d|mul|new_zeros|pad|reshape|round|sub|sum"
    r"|sym_size|to|unsqueeze|where|zeros|div|alias|le|_to_copy|_assert_scalar"
    r"|sym_constrain_range_for_size|view|abs|bmm|clone|detach|erf|exp|expand|expm1|flatten|flip|gelu"
    r"|group_norm|layer_norm|leaky_relu|log|log1p|log_softmax|matmul|maximum|mean|minimum|mm|neg|norm"
    r"|permute|pow|reciprocal|relu|roll|rsqrt|rsub|select|sigmoid|silu|slice|softmax|softplus|split"
    r"|split_with_sizes|sqrt|square|squeeze|stack|t|tanh|transpose|unbind|unflatten|_unsafe_view"
    r"|var)\.\w+|_operator\.(ge|le|eq|mul|add|getitem)"
)
SIZES = re.compile(
    r"Symbol\('[su]\d+'(, (positive|integer|nonnegative)=True)*\)"
    r"|(Mul|Add|Integer)\(|[su]?\d+|[\s),*+-]"
)


def check(path):
    """Raise ValueError for a file that asks for more than operators on whole numbers."""
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        if len({*names}) < len(names):
            raise ValueError("a part stands there twice")
        for item in archive.infolist():
            if not MEMBERS.fullmatch(item.filename) or item.file_size > LARGEST:
                raise ValueError(f"{item.filename[:60]} is no part of a program of ours")
            if item.compress_type != zipfile.ZIP_STORED:
                raise ValueError(f"{item.filename[:60]} is packed")
            if item.filename.endswith(".json"):
                _check_text(json.loads(archive.read(item)), "")
            elif item.filename.endswith(".pt") and item.file_size:
                raise ValueError("it holds an example, which is pickled")
        damaged = archive.testzip()
        if damaged is not None:
            raise ValueError(f"{damaged[:60]} is damaged")


def _check_text(value, key):
    """Names of operators, sizes and guards: torch would look them up or evaluate them."""
    if isinstance(value, dict):
        for name, item in value.items():
            _check_text(item, name)
    elif isinstance(value, list):
        for item in value:
            _check_text(item, key)
    elif key == "use_pickle" and value is not False:
        raise ValueError("tensors are pickled")
    elif isinstance(value, str):
        if key == "target" and not TARGETS.fullmatch(value):
            raise ValueError(f"{value[:60]} is no operator of ours")
        if key == "expr_str" and SIZES.sub("", value):
            raise ValueError(f"{value[:60]} is no size")
        if key == "guards_code" or (key == "path_name" and not re.fullmatch(r"weight_\d+", value)):
            raise ValueError(f"{value[:60]} is no part of a program of ours")


class Program:
    """A loaded program whose values are known by number."""

    def __init__(self, path):
        import torch

        check(path)
        self.torch = torch
        self.module = torch.export.load(path).module()
        self.values = {}
        for node in self.module.graph.nodes:
            if node.op == "call_function" and "val" in node.meta:
                for where, _ in (node.meta.get("nn_module_stack") or {}).values():
                    if re.fullmatch(r"value_\d+", where):
                        self.values[int(where[6:])] = node
            elif node.op == "placeholder":
                self.values[0] = node

    def run(self, given, show):
        """The numbers of some values from those of others."""
        import torch

        known = {self.values[index]: tensor for index, tensor in given.items()}
        size, batch = torch.ops.aten.sym_size.int, len(next(iter(given.values())))
        known |= {  # every value has an axis of images in front
            node: batch
            for node in self.module.graph.nodes
            if (node.target, node.args[1:]) == (size, (0,))
        }
        order = [node for node in self.module.graph.nodes if node.op != "output"]
        needed, stack = set(), [self.values[index] for index in show]
        while stack:
            node = stack.pop()
            if node not in needed:
                needed.add(node)
                stack += () if node in known else node.all_input_nodes
        with torch.no_grad():
            for node in order:
                if node in needed and node not in known:
                    known[node] = self._compute(node, known)
        return [known[self.values[index]] for index in show]

    def _compute(self, node, known):
        if node.op == "get_attr":
            owner, _, leaf = node.target.rpartition(".")
            return getattr(self.module.get_submodule(owner), leaf)
        if node.op != "call_function":
            raise ValueError(f"{node.name} is not given")
        look_up = self.torch.fx.node.map_arg
        args, kwargs = (look_up(part, known.__getitem__) for part in (node.args, node.kwargs))
        return node.target(*args, **kwargs)


def serve(path, source, sink, threads=1):
    """Answer requests until the source ends."""
    import numpy as np
    import torch

    torch.set_num_threads(threads)
    program = Program(path)
    sink.write(json.dumps({"version": torch.__version__, "values": [*program.values]}).encode())
    sink.write(b"\n")
    sink.flush()
    for line in iter(source.readline, b""):
        request = json.loads(line)
        given = {}
        for index, (kind, *shape) in request["inputs"].items():
            size = np.dtype(kind).itemsize * math.prod(shape)
            numbers = np.frombuffer(bytearray(source.read(size)), kind).reshape(shape)
            given[int(index)] = torch.from_numpy(numbers)
        try:
            shown = [one.contiguous().numpy() for one in program.run(given, request["show"])]
            head = {"values": [[one.dtype.str, *one.shape] for one in shown]}
        except Exception as error:
            shown, head = [], {"error": f"{type(error).__name__}: {str(error)[:200]}"}
        sink.write(json.dumps(head).encode() + b"\n")
        for one in shown:
            sink.write(one.tobytes())
        sink.flush()


if __name__ == "__main__":
    sys.modules.update({"mt_convert": None})  # type: ignore[dict-item]  # what was written must not need it
    try:
        serve(sys.argv[1], sys.stdin.buffer, sys.stdout.buffer, *map(int, sys.argv[2:]))
    except Exception as error:
        sys.stdout.write(
            json.dumps({"error": f"{type(error).__name__}: {str(error)[:200]}"}) + "\n"
        )
