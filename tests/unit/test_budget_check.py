"""The cells of the budget check, and what is said of them."""

import itertools
import sys
from collections import Counter
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture
def cells(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    yield __import__("budget_cells")
    del sys.modules["budget_cells"]


def entry(cell, predicted: float = 0.99, trained: float = 1.01, lowest: float = 0.95) -> dict:
    figures = {"predicted_of_target": predicted, "trained_of_target": trained, "lowest_of_target": lowest}
    return {**vars(cell), **figures}


def test_any_two_levels_meet_about_as_often_as_others(cells) -> None:
    found = cells.cells()
    assert len({cell.key for cell in found}) == len(found) == 36
    for one, other in itertools.combinations(cells.FACTORS, 2):
        counts = Counter((getattr(cell, one), getattr(cell, other)) for cell in found)
        assert len(counts) == len(cells.FACTORS[one]) * len(cells.FACTORS[other])
        assert max(counts.values()) - min(counts.values()) <= 2


def test_the_text_has_ranges_and_names_what_missed(cells) -> None:
    first, second, third = cells.cells()[:3]
    entries = [entry(first), entry(second, predicted=0.96), entry(third, lowest=0.85)]
    profile = {"name": "cpu", "digest": "abc"}
    said = cells.text(
        {"cells": entries, "missing": ["x"], "combinations": 144, "images": 10, "size": 14, "profile": profile}
    )
    assert "3 of 144 combinations" in said
    assert "| all |  | 3 | 0.960 to 0.990 | 1.010 to 1.010 | 0.850 |" in said
    assert "not within 3 % of the target: 1" in said
    assert "below 0.9 of the target in training: 1" in said
    assert "missing: x" in said


@pytest.mark.parametrize(("predicted", "met"), [(1.0, True), (0.97, True), (0.969, False), (1.001, False)])
def test_a_budget_is_met_from_below(cells, predicted: float, met: bool) -> None:
    assert cells.is_met(entry(cells.cells()[0], predicted=predicted)) is met
