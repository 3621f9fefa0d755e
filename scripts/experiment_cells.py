"""The cells of the experiment, and the folder that keeps what came of each: a JSON file a cell, whole or not there."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiment_networks import SEEDS

from latency_lab import files
from latency_lab.errors import LatencyLabError

METHODS = ("latency", "weights", "flops", "flops-priced", "uniform", "plan")
"""
latency: LogisticSigmoid pays ms, within a budget of ms.
weights: the same by Gamma, or by GroupLasso where there is no batch norm.
flops: LogisticSigmoid pays FLOPs, within a budget of FLOPs.
flops-priced: it pays FLOPs, within a budget of ms.
uniform: the same share of channels in each group, within ms.
plan: `ll.plan_structure`, within ms.
"""
TARGETS = (0.5, 0.3)
"""Shares of the seed's predicted latency; for `flops`, of its FLOPs."""
ROOFLINE_NET = "depthwise"
ROOFLINE_METHODS = ("latency", "uniform")
"""What a second device, the V100 by its datasheet, is tried on: predictions alone."""


@dataclass(frozen=True)
class Settings:
    """What all cells have in common; a cell that was made with others is made anew.

    Attributes:
        images: of training.
        seed_epochs: of the network that all others start from.
        learn_epochs, fine_epochs: with the regularizer, and of the rebuilt network; others train for both together.
        batch: images a step.
    """

    images: int = 20_000
    seed_epochs: int = 6
    learn_epochs: int = 3
    fine_epochs: int = 3
    batch: int = 128


@dataclass(frozen=True)
class Cell:
    """One network that is trained.

    Attributes:
        net: its name.
        seed: of initial weights and noise.
        method: one of `METHODS`, or "seed": all channels, trained for as many epochs as the others.
        target: share of the cost of all channels.
        device: whose ms: "cpu" or "v100".
    """

    net: str
    seed: int
    method: str
    target: float = 1.0
    device: str = "cpu"

    @property
    def key(self) -> str:
        """Its name, and that of its files."""
        return f"{self.net}-{self.seed}-{self.method}-{self.target:g}-{self.device}"


def cells(nets: Iterable[str] | None = None) -> list[Cell]:
    """All cells, those first without which the others say least: each network once, then more seeds.

    Args:
        nets: only these networks.
    """
    found: list[Cell] = []
    for seed in range(max(SEEDS.values())):
        for net in (net for net, seeds in SEEDS.items() if seed < seeds):
            found.append(Cell(net, seed, "seed"))
            found += [Cell(net, seed, method, target) for target in TARGETS for method in METHODS]
            if seed == 0 and net == ROOFLINE_NET:
                found += [Cell(net, 0, method, target, "v100") for target in TARGETS for method in ROOFLINE_METHODS]
    chosen = set(SEEDS if nets is None else nets)
    return [cell for cell in found if cell.net in chosen]


@dataclass(frozen=True)
class Store:
    """The work folder.

    Attributes:
        folder: of cells, models and measurements.
        made_with: settings and profiles; a cell of others counts as missing.
    """

    folder: Path
    made_with: dict[str, Any]

    def read(self, cell: Cell) -> dict[str, Any] | None:
        """What came of a cell; None: missing, or made with other settings."""
        path = self.path(cell, ".json")
        found: dict[str, Any] | None = json.loads(path.read_text()) if path.exists() else None
        return found if found is not None and found["made_with"] == self.made_with else None

    def write(self, cell: Cell, result: dict[str, Any]) -> None:
        """Keeps what came of a cell, whole or not at all."""
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        entry = {"key": cell.key, **dataclasses.asdict(cell), **result, "finished": now, "made_with": self.made_with}
        files.write_json(self.path(cell, ".json"), entry)

    def path(self, cell: Cell, suffix: str) -> Path:
        """A file of a cell."""
        return self.folder / f"{cell.key}{suffix}"

    def measured_path(self, net: str) -> Path:
        """The measurement of all models of a network."""
        return self.folder / f"measured-{net}.json"

    def measured(self, net: str) -> dict[str, Any] | None:
        """The last measurement of a network."""
        path = self.measured_path(net)
        return json.loads(path.read_text()) if path.exists() else None

    def with_measured(self, cell: Cell) -> dict[str, Any] | None:
        """A cell with what was measured of it, unless it was trained anew since."""
        entry, net = self.read(cell), self.measured(cell.net)
        if entry is None or net is None:
            return entry
        row = net["models"].get(cell.key)
        return entry if row is None or row["finished"] != entry["finished"] else {**entry, "measured": row["measured"]}


def run_missing(
    wanted: Sequence[Cell],
    store: Store,
    run: Callable[[Cell], dict[str, Any]],
    minutes: float,
    clock: Callable[[], float] = time.monotonic,
) -> list[Cell]:
    """Runs the cells that the store does not hold, one after another, and keeps each at once.

    No cell is begun that would end after the time is over, were it to take as long as the longest so far. A cell that
    cannot be made (its budget cannot be reached) is reported and left missing.

    Args:
        wanted: in order.
        store: what is done, and where to keep what will be.
        run: makes one.
        minutes: wall time in all.
        clock: seconds.

    Returns:
        The cells that are missing still.
    """
    began, longest = clock(), 0.0
    missing = []
    for cell in wanted:
        if store.read(cell) is not None:
            continue
        at = clock()
        if at - began + longest > 60 * minutes:
            missing.append(cell)
            continue
        try:
            store.write(cell, run(cell))
        except LatencyLabError as error:
            print(f"{cell.key}: {error}", flush=True)
            missing.append(cell)
        longest = max(longest, clock() - at)
    return missing
