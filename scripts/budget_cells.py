"""The cells of the budget check, and what they say together."""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from latency_lab.report import table

FACTORS: Mapping[str, Sequence[Any]] = {
    "net": ("residual", "depthwise"),
    "regularizer": ("LogisticSigmoid", "Gamma", "GroupLasso"),
    "target": (0.5, 0.3),
    "optimizer": ("adam", "momentum", "adamw"),
    "batch": (32, 128),
    "steps": (200, 400),
}
"""What a budget should not depend on: 144 combinations in all."""
MET = 0.03
"""Of the target, that the final structure may leave unspent."""
OVERSHOOT = 0.9
"""Of the target, below which training should not come."""


@dataclass(frozen=True)
class Cell:
    """One training to a budget: a level of each of `FACTORS`."""

    net: str
    regularizer: str
    target: float
    optimizer: str
    batch: int
    steps: int

    @property
    def key(self) -> str:
        """Its name, and that of its file."""
        return f"{self.net}-{self.regularizer}-{self.target:g}-{self.optimizer}-batch{self.batch}-{self.steps}"


def cells() -> list[Cell]:
    """A quarter of all combinations, in which any two levels of two factors meet, in a random order.

    With n, r, t, o, b, s the numbers of the levels in the order of `FACTORS`: n + t + b + r and n + s + r + o are even.
    """
    found = []
    for levels in itertools.product(*(range(len(values)) for values in FACTORS.values())):
        n, r, t, o, b, s = levels
        if (n + t + b + r) % 2 == 0 and (n + s + r + o) % 2 == 0:
            found.append(Cell(*(values[k] for values, k in zip(FACTORS.values(), levels, strict=True))))
    random.Random(0).shuffle(found)  # so that a run that is stopped has seen something of everything
    return found


# ---- what they say ------------------------------------------------------------------------------------------------


def is_met(entry: Mapping[str, Any]) -> bool:
    """Whether the structure that a cell ended with is within `MET` of its target, and not above it."""
    return 1 - MET <= float(entry["predicted_of_target"]) <= 1


def is_held(entry: Mapping[str, Any]) -> bool:
    """Whether training never came below `OVERSHOOT` of the target."""
    return float(entry["lowest_of_target"]) >= OVERSHOOT


def text(found: Mapping[str, Any]) -> str:
    """The settings, a row a level of each factor, and the cells that missed."""
    entries = found["cells"]
    parts = [
        f"{len(entries)} of {found['combinations']} combinations; {found['images']} images of {found['size']}x"
        f"{found['size']}; profile {found['profile']['name']} ({found['profile']['digest']})",
        str(levels_table(entries)),
    ]
    for what, holds in (("not within 3 % of the target", is_met), ("below 0.9 of the target in training", is_held)):
        missed = [entry for entry in entries if not holds(entry)]
        parts += [f"{what}: {len(missed)}", *([str(cells_table(missed))] if missed else [])]
    if found["missing"]:
        parts.append(f"missing: {', '.join(found['missing'])}")
    return "\n\n".join(parts)


def levels_table(entries: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: over the cells of each level, ranges of what the structure, and training alone, came to."""
    head = ["", "", "cells", "structure / target", "training's end / target", "lowest in training / target"]
    rows = [["all", "", *_ranges(entries)]]
    for factor, levels in FACTORS.items():
        for level in levels:
            chosen = [entry for entry in entries if entry[factor] == level]
            if chosen:
                rows.append([factor, f"{level}", *_ranges(chosen)])
    return markdown(head, rows)


def _ranges(entries: Sequence[Mapping[str, Any]]) -> list[str]:
    figures = [str(len(entries))]
    for name in ("predicted_of_target", "trained_of_target", "lowest_of_target"):
        values = sorted(entry[name] for entry in entries)
        figures.append(f"{values[0]:.3f} to {values[-1]:.3f}" if name != "lowest_of_target" else f"{values[0]:.3f}")
    return figures


def cells_table(entries: Sequence[Mapping[str, Any]]) -> str:
    """A row a cell."""
    head = [*FACTORS, "structure / target", "training's end / target", "lowest in training / target"]
    figures = ("predicted_of_target", "trained_of_target", "lowest_of_target")
    rows = [[*(f"{entry[f]}" for f in FACTORS), *(f"{entry[name]:.3f}" for name in figures)] for entry in entries]
    return str(table(head, rows))


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table as Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
