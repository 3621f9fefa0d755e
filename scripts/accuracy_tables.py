"""Prints the tables of docs/accuracy.md from docs/accuracy*.json, a file for each CPU, and docs/fit.json.

.venv/bin/python scripts/accuracy_tables.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parents[1] / "docs"
WORST = 0.10


def main() -> None:
    """Runs, networks that are far off, and imported timings."""
    for path in sorted(DOCS.glob("accuracy*.json")):
        found = json.loads(path.read_text())
        print(f"\n{found['environment']['cpu']} ({path.name})\n")
        _runs(found["runs"])
        _own({name: run["own"] for name, run in found["runs"].items() if "own" in run})
        for name, run in found["runs"].items():
            _networks(name, run)
    _fits(json.loads((DOCS / "fit.json").read_text()))


def _runs(runs: dict[str, Any]) -> None:
    heads = ("run", "profiling, s", "points", "networks", "median error", "within 5 %", "within 10 %", "worst")
    print("| " + " | ".join([*heads, "intervals hold"]) + " |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name, run in runs.items():
        error, made, interval = run["error"], run["profile"], run["interval"]
        cells = [
            name, f"{made['seconds']:.0f}", f"{made['points']:,}", str(run["measured"]),
            _percent(error["median"]), _percent(error["within_5_percent"]), _percent(error["within_10_percent"]),
            _percent(error["worst"]), f"{_percent(interval['coverage'])} (+-{_percent(interval['mean_half_width'])})",
        ]  # fmt: skip
        print("| " + " | ".join(cells) + " |")
    heads = ("run", "of the .keras file: median, within 10 %", "kernels in the table exactly", "without those: median")
    print("\n| " + " | ".join([*heads, "unstable networks"]) + " |")
    print("|---|---|---|---|---|")
    for name, run in runs.items():
        keras, bare = run.get("keras_error"), run["error_without_exact"]
        first = f"{_percent(keras['median'])}, {_percent(keras['within_10_percent'])}" if keras else "-"
        unstable = sum(row.get("unstable", False) for row in run["networks"])
        print(f"| {name} | {first} | {_percent(run['exact_share'])} | {_percent(bare['median'])} | {unstable} |")


def _own(runs: dict[str, Any]) -> None:
    if not runs:
        return
    heads = ("own kernels measured", "kernels", "s", "networks", "median error", "within 5 %", "within 10 %", "worst")
    print("\n| " + " | ".join(heads) + " |")
    print("|---|---|---|---|---|---|---|---|")
    for name, run in runs.items():
        error = run["error"]
        figures = (error[n] for n in ("median", "within_5_percent", "within_10_percent", "worst"))
        cells = [name, f"{run['kernels']:,}", f"{run['seconds']:.0f}", str(run["measured"]), *map(_percent, figures)]
        print("| " + " | ".join(cells) + " |")
    for name, run in runs.items():
        _networks(f"{name}, own kernels", run, 0.05)


def _networks(name: str, run: dict[str, Any], worst: float = WORST) -> None:
    rows = [row for row in run["networks"] if abs(row.get("error", 0.0)) > worst]
    print(f"\n{name}: {len(rows)} of {run['measured']} networks are further off than {worst:.0%}:")
    print(", ".join(f"{r['name']} {100 * r['error']:+.1f} %" for r in sorted(rows, key=lambda r: -abs(r["error"]))))


def _fits(fits: dict[str, Any]) -> None:
    print("\n| device | operations | rows to learn from | within 10 % | median error | 90 % intervals hold |")
    print("|---|---|---|---|---|---|")
    for found in fits["sets"]:
        cells = [found["device"], f"{found['rows']}, {found['dtype']}", f"{found['training_rows']:,}"]
        figures = ("within_10_percent", "median_error", "coverage_of_90_percent_intervals")
        print("| " + " | ".join([*cells, *(_percent(found[name]) for name in figures)]) + " |")


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


if __name__ == "__main__":
    main()
