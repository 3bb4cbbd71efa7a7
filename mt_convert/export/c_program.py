"""A C file of `c`, compiled on this machine and run, whole and function by function."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from ..errors import CheckpointError
from . import numpy_reader
from .c_source import SILENT, c_type, owners
from .forms.nodes import IntegerForm, Node, Value

FLAGS = ("-std=c99", "-O2", "-Wall", "-Wextra", "-Werror", "-pedantic")
SANITIZE = ("-g", "-fsanitize=undefined,address", "-fno-sanitize-recover=all")
SECONDS = 3600


def missing() -> str | None:
    """What this machine lacks to check a C file."""
    if shutil.which("cc") is None:
        return "no C compiler: install one that answers to `cc`, such as gcc or clang"
    return None


class CProgram:
    """A C file, compiled with what runs its functions one by one.

    Raises:
        CheckpointError: it does not compile, or stops before its end.
    """

    def __init__(self, path: Path, form: IntegerForm, flags: Sequence[str] = ()) -> None:
        self.form, self.path = form, path
        self._folder = tempfile.TemporaryDirectory()
        harness = Path(self._folder.name) / "harness.c"
        harness.write_text("".join(_harness(form)))
        self._program = Path(self._folder.name) / "harness"
        network = ["-include", str(path.resolve())]  # whatever characters its name has
        command = ["cc", *FLAGS, *flags, *network, str(harness), "-o", str(self._program)]
        call_tool(command, path, "does not compile")
        first = call_tool(["cc", "--version"], path, "has no compiler").decode().splitlines()[0]
        self.version = f"{first}, {' '.join((*FLAGS, *flags))}"

    def run(self, images: np.ndarray) -> dict[int, np.ndarray]:
        """Scores of the network's function; levels of its neurons from its parts in order."""
        form, encode, last = self.form, self.form.node("encode"), self.form.nodes[-1]
        levels = self.run_node(encode, [images])
        raw = self._start(0, [(encode.out, levels)])
        shown = [node for node in form.nodes if node.op == "fire"]
        classes = form.values[last.inputs[0]].size
        row = np.dtype(
            [("scores", "<f4", classes)]
            + [
                (str(node.out), _numpy_type(form.values[node.out]), form.values[node.out].size)
                for node in shown
            ]
        )
        table = np.frombuffer(raw, row)
        shape = form.values[last.inputs[0]].shape
        values = {last.out: table["scores"].reshape(-1, *shape)}
        for node in shown:
            found = table[str(node.out)].reshape(-1, *form.values[node.out].shape)
            values[node.out] = found.astype(np.int64)
        return values

    def run_node(self, node: Node, inputs: list[np.ndarray]) -> np.ndarray:
        """One function; what has none (levels of the image, another shape) by the reader."""
        if node.op in SILENT:
            arrays = {name: array.numpy() for name, array in node.arrays.items()}
            shape = self.form.values[node.out].shape
            row = {"op": node.op, **node.settings}
            return numpy_reader.run_node(row, shape, arrays, inputs)
        raw = self._start(node.out, list(zip(node.inputs, inputs, strict=True)))
        if node.op == "read_out":
            shape = self.form.values[node.inputs[0]].shape
            return np.frombuffer(raw, "<f4").reshape(-1, *shape)
        value = self.form.values[node.out]
        return np.frombuffer(raw, _numpy_type(value)).reshape(-1, *value.shape).astype(np.int64)

    def _start(self, number: int, inputs: list[tuple[int, np.ndarray]]) -> bytes:
        """The program on numbers, image by image."""
        count = len(inputs[0][1])
        columns = [
            array.astype(_numpy_type(self.form.values[index])).reshape(count, -1).view(np.uint8)
            for index, array in inputs
        ]
        words = [str(self._program), str(number), str(count)]
        return call_tool(words, self.path, "stops", np.concatenate(columns, 1).tobytes())


def _numpy_type(value: Value) -> str:
    return {"uint8_t": "<u1", "int8_t": "<i1", "int16_t": "<i2"}.get(c_type(value), "<i4")


def _harness(form: IntegerForm) -> Iterable[str]:
    """A main function: 0 N runs the network on N images, K N the function of value K."""
    yield "#include <stdio.h>\n#include <stdlib.h>\n"
    encode, last = form.node("encode"), form.nodes[-1]
    owner, steps = owners(form), [node for node in form.nodes if node.op not in SILENT]
    real = {last.out: ("uint32_t", form.values[last.inputs[0]].size)}
    own = {encode.out, *(node.out for node in steps), *(x for node in steps for x in node.inputs)}
    for index in sorted(own):  # a shape that is read has a place beside the value it is of
        value = form.values.get(index)
        kind, size = real[index] if value is None else (c_type(value), value.size)
        yield f"static {kind} v{index}[{size}];\n"
    yield (
        "#define IN(v) if (fread(v, sizeof v, 1, stdin) != 1) return 2\n"
        "#define OUT(v) if (fwrite(v, sizeof v, 1, stdout) != 1) return 3\n"
        "int main(int count, char **words) {\n"
        "  if (count != 3) return 1;\n"
        "  for (long n = atol(words[2]); n > 0; n--) switch (atoi(words[1])) {\n"
        f"    case 0: IN(v{encode.out}); network_run(v{encode.out}, v{last.out}); "
        f"OUT(v{last.out});\n"
    )

    def call(node: Node, places: Iterable[int]) -> str:
        return f"step_{node.out}({', '.join(f'v{index}' for index in (*places, node.out))});"

    for node in steps[:-1]:
        shown = f" OUT(v{node.out});" if node.op == "fire" else ""
        yield f"      {call(node, (owner[index] for index in node.inputs))}{shown}\n"
    yield "      break;\n"
    for node in steps:
        reads = " ".join(f"IN(v{index});" for index in node.inputs)
        yield f"    case {node.out}: {reads} {call(node, node.inputs)} OUT(v{node.out}); break;\n"
    yield "    default: return 4;\n  }\n  return 0;\n}\n"


def call_tool(words: list[str], path: Path, what: str, given: bytes = b"") -> bytes:
    done = subprocess.run(words, input=given, capture_output=True, timeout=SECONDS, check=False)
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        why = next((line for line in said if "error" in line), f"exit code {done.returncode}")
        raise CheckpointError(f"{path} {what}: {why[:300]}")
    return done.stdout


def sizes(path: Path) -> dict[str, int]:
    """Bytes of the compiled file: code and constants, and the memory it needs."""
    found = {"source_bytes": path.stat().st_size}
    if shutil.which("size") is None:
        return found
    with tempfile.TemporaryDirectory() as folder:
        compiled = str(Path(folder) / "network.o")
        call_tool(
            ["cc", *FLAGS, "-x", "c", "-c", str(path), "-o", compiled], path, "does not compile"
        )
        listed = call_tool(["size", "-A", compiled], path, "cannot be measured").decode()
    sections: dict[str, int] = {}
    for line in listed.splitlines():
        words = line.split()
        if len(words) == 3 and words[1].isdecimal():
            sections[words[0]] = int(words[1])
    parts = {"code_bytes": ".text", "constant_bytes": ".rodata", "memory_bytes": ".bss"}
    for name, start in parts.items():
        found[name] = sum(size for section, size in sections.items() if section.startswith(start))
    return found
