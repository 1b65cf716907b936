"""The README's comparison with other chats: behind each cell of ours that says yes stands a test."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
README = (TESTS.parent / "README.md").read_text(encoding="utf-8")
SECTION = README.partition("## Beside other terminal chats")[2].partition("\n## ")[0]
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")] for line in SECTION.splitlines() if line[:1] == "|"
]
FEATURES = {row[0]: row[1] for row in ROWS if len(row) > 2 and row[0].strip("-")}
PROOFS = {row[0]: row[1].strip("`") for row in ROWS if len(row) == 2 and row[0].strip("-")}


def test_every_feature_of_ours_names_its_test():
    assert {name for name, ours in FEATURES.items() if ours != "–"} == PROOFS.keys()
    assert {name for name, ours in FEATURES.items() if ours == "–"} == {n for n in FEATURES if n[:2] == "**"}


@pytest.mark.parametrize("proof", PROOFS.values())
def test_the_named_test_exists(proof: str):
    file, _, name = proof.partition("::")
    functions = ast.parse((TESTS / file).read_text(encoding="utf-8")).body
    assert name in [
        each.name for each in functions if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
