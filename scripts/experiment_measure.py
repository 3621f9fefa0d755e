"""Times the networks of the experiment: all of one net interleaved, in each runtime, one thread."""

from __future__ import annotations

from typing import Any

from experiment_cells import Cell, Store

from latency_lab import files
from latency_lab.profiling import Protocol
from latency_lab.profiling.environment import conditions
from latency_lab.validation import SUFFIXES, measure_all

RUNTIMES = ("litert", "onnxruntime")
ROUNDS = 12


def to_measure(wanted: list[Cell], store: Store, net: str) -> dict[str, dict[str, Any]]:
    """Key -> entry of the finished cells of a net, if one of them has not been measured as it is now; else nothing."""
    own = [cell for cell in wanted if cell.net == net and cell.device == "cpu"]
    entries = {cell.key: entry for cell in own if (entry := store.with_measured(cell)) is not None}
    return entries if any("measured" not in entry for entry in entries.values()) else {}


def measure(entries: dict[str, dict[str, Any]], store: Store, net: str, rounds: int = ROUNDS) -> None:
    """Measures all models of a net anew, and keeps it: what is interleaved can be compared."""
    before = conditions()
    models: dict[str, Any] = {key: {"finished": entry["finished"], "measured": {}} for key, entry in entries.items()}
    environment = {}
    for runtime in RUNTIMES:
        paths = {key: store.folder / f"{key}{SUFFIXES[runtime]}" for key in entries}
        results, _ = measure_all(paths, runtime, 1, protocol=Protocol(rounds=rounds))
        for key, result in zip(entries, results, strict=True):
            s = result.statistic
            models[key]["measured"][runtime] = {
                "ms": s.latency_ms,
                "interval_ms": [s.low_ms, s.high_ms],
                "unstable": s.unstable,
            }
            environment[runtime] = dict(result.environment)
    found = {"net": net, "rounds": rounds, "conditions": before, "environment": environment, "models": models}
    files.write_json(store.measured_path(net), found)
