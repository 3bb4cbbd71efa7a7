"""Compile the kernels and try them, in a process of its own: a compiler, or what it makes, may fail
in any way without harm to the caller.

Called as a program: SOURCE, FOLDER, SIZES (what the library's structures must measure), FLAG ...
It prints the library's path in its last line, or why there is none, and then exits with 1.
"""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path


def compile_library(source: Path, folder: Path, flags: list[str]) -> Path:
    """The library of one C++ file, made in a folder with the compiler that Python uses."""
    from setuptools import Distribution, Extension
    from setuptools.command.build_ext import build_ext

    extension = Extension(
        "kernels",
        [str(source)],
        language="c++",
        extra_compile_args=flags,
        extra_link_args=["-pthread"],
    )
    command = build_ext(Distribution({"name": "kernels", "ext_modules": [extension]}))
    command.build_lib = command.build_temp = str(folder)
    command.ensure_finalized()
    command.run()
    return Path(command.get_ext_fullpath("kernels"))


def structure_sizes(library: Path, count: int) -> list[int]:
    """The sizes of a library's structures, as it says itself."""
    sizes = (ctypes.c_int64 * count)()
    ctypes.CDLL(str(library)).mt_sizes(sizes)
    return list(sizes)


def main(words: list[str]) -> None:
    """The program."""
    source, folder, expected = Path(words[0]), Path(words[1]), words[2].split(",")
    try:
        library = compile_library(source, folder, words[3:])
        sizes = structure_sizes(library, len(expected))
    except Exception as fact:  # compilers fail in many ways
        sys.exit(f"{type(fact).__name__}: {fact}")
    if [str(size) for size in sizes] != expected:
        sys.exit(f"the compiler lays structures out as {sizes}, expected {', '.join(expected)}")
    sys.stdout.write(f"\n{library}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
