"""Prints the tables of the README from docs/demo.json and docs/validation.json."""

from __future__ import annotations

import json
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"


def demo_rows() -> list[str]:
    """A row a network of the demo."""
    rows = []
    for entry in json.loads((DOCS / "demo.json").read_text())["models"]:
        for key in ("seed", "slim", "uniform"):
            f = entry[key]
            times = [f"{f['predicted_ms'][r]:.3f}, {f['measured_ms'][r]:.3f}" for r in ("litert", "onnxruntime")]
            name = f"{entry['name']} {key}"
            rows.append(f"| {name} | {f['accuracy']:.4f} | {times[0]} | {times[1]} | {f['parameters']:,} |")
    return rows


def validation_rows() -> list[str]:
    """A row a runtime and network."""
    return [
        f"| {r['runtime']} | {r['model']} | {r['measured_ms']:.2f} | {r['error']:+.1%} | {r['general_error']:+.1%} "
        f"| {r['points_a_minute']:,} |"
        for r in json.loads((DOCS / "validation.json").read_text())["rows"]
    ]


if __name__ == "__main__":
    print("\n".join(demo_rows()), "\n")
    print("\n".join(validation_rows()))
