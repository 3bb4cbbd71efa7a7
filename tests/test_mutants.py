"""The list of faults for `make mutants` fits the code: it cannot go out of date unseen."""

from __future__ import annotations

import ast
from functools import cache

import pytest
from mutant_table import MUTANTS, Mutant
from mutants import chosen, mutate
from paths import ROOT, TESTS

INVARIANTS = range(1, 22)


@cache
def functions(file: str) -> frozenset[str]:
    """The tests of a file."""
    body = ast.parse((TESTS / file).read_text()).body
    return frozenset(item.name for item in body if isinstance(item, ast.FunctionDef))


def test_every_invariant_has_a_mutant() -> None:
    assert {mutant.invariant for mutant in MUTANTS} == set(INVARIANTS)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_the_old_line_is_there_once_the_new_one_is_python_and_the_guards_exist(
    mutant: Mutant,
) -> None:
    text = (ROOT / "mt_convert" / mutant.file).read_text()
    if mutant.file.endswith(".py"):
        assert ast.dump(ast.parse(mutate(text, mutant))) != ast.dump(ast.parse(text))
    else:  # of the kernels
        assert mutate(text, mutant) != text
    assert mutant.guards
    for guard in mutant.guards:
        file, name = guard.split("::")
        assert name.split("[")[0] in functions(file), guard


def test_one_fault_can_be_run_alone() -> None:
    assert chosen([]) == list(MUTANTS)
    one = MUTANTS[0]
    assert chosen([one.new]) == [one]
    assert {item.file for item in chosen(["folder_lock"])} == {"system/folder_lock.py"}
    assert chosen(["no such fault"]) == []
