"""How well the fit predicts timings that it did not see: share within 10 %, median error, coverage of the intervals.

    scripts/benchmark_fit TIMINGS.csv.gz... -o docs/fit.json

Each device and precision of a file is split into convs, dense operations and families of blocks. Of each, some rows
are drawn to fit, and 1,500 others (all others of a small set) to test, once a seed. One configuration serves all.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import sklearn

from latency_lab import files
from latency_lab.errors import UsageError
from latency_lab.fitting.operations import fit_alone, fit_ops, roofline_of
from latency_lab.fitting.points import Measured
from latency_lab.fitting.timings import Timings, list_timings, read_timings
from latency_lab.ops import CONVS
from latency_lab.profiles import DeviceProfile, OpPrediction
from latency_lab.profiling.environment import cpu_model

TRAINING_ROWS = (200, 1000, 2000)
FEW_TRAINING_ROWS = 50
TEST_ROWS = 1500
LEAST_ROWS = 90


def main() -> None:
    """Runs every set and prints the figures."""
    args = _arguments()
    found: dict[str, Any] = {
        "environment": {
            "cpu": cpu_model(),
            "python": platform.python_version(),
            "numpy": np.__version__,
            "scikit_learn": sklearn.__version__,
        },
        "seeds": args.seeds,
        "sets": [],
    }
    for path in args.files:
        for device, dtype in list_timings(path):
            timings = read_timings(path, device=device, dtype=dtype)
            for name, points in groups(timings):
                for rows in sizes(len(points)):
                    found["sets"].append(evaluate(timings, name, points, rows, args.seeds))
                    print(_line(found["sets"][-1]), file=sys.stderr)
    if args.output:
        files.write_json(args.output, found)
    print(json.dumps(found, indent=1))


def groups(timings: Timings) -> Iterator[tuple[str, Sequence[Measured]]]:
    """(name, points) of convs, of dense operations, of each family of blocks, if there are enough."""
    convs = [m for m in timings.ops if m.op.kind in CONVS]
    dense = [m for m in timings.ops if m.op.kind == "dense"]
    for name, points in (("convs", convs), ("dense", dense), *timings.blocks.items()):
        if len(points) >= LEAST_ROWS:
            yield name, points


def sizes(rows: int) -> list[int]:
    """How many rows to fit."""
    return [n for n in TRAINING_ROWS if n + TEST_ROWS <= rows] or [FEW_TRAINING_ROWS]


def evaluate(timings: Timings, name: str, points: Sequence[Measured], rows: int, seeds: int) -> dict[str, Any]:
    """Figures of one set and number of rows, means over seeds."""
    runs = []
    for seed in range(seeds):
        order = np.random.default_rng(seed).permutation(len(points))
        few = rows == FEW_TRAINING_ROWS
        test = [points[i] for i in (order[rows:] if few else order[:TEST_ROWS])]
        train = [points[i] for i in (order[:rows] if few else order[TEST_ROWS : TEST_ROWS + rows])]
        runs.append(_run(name, train, test))
    return {
        "file": timings.file,
        "device": timings.device,
        "dtype": timings.dtype,
        "rows": name,
        "training_rows": rows,
        "test_rows": len(points) - rows if rows == FEW_TRAINING_ROWS else TEST_ROWS,
        **{key: round(float(np.mean([run[key] for run in runs])), 4) for key in runs[0]},
        "within_10_percent_by_seed": [round(run["within_10_percent"], 4) for run in runs],
    }


def _run(name: str, train: Sequence[Measured], test: Sequence[Measured]) -> dict[str, float]:
    began = time.process_time()
    predictions, nodes = _fit(name, train, test)
    times = np.array([m.point.latency_ms for m in test])
    errors = np.abs(np.array([p.latency_ms for p in predictions]) / times - 1)
    inside = [p.low_ms <= t <= p.high_ms for p, t in zip(predictions, times, strict=True)]
    return {
        "within_10_percent": float(np.mean(errors <= 0.1)),
        "within_5_percent": float(np.mean(errors <= 0.05)),
        "median_error": float(np.median(errors)),
        "p90_error": float(np.percentile(errors, 90)),
        "coverage_of_90_percent_intervals": float(np.mean(inside)),
        "tree_nodes": nodes,
        "seconds": time.process_time() - began,
    }


def _fit(name: str, train: Sequence[Measured], test: Sequence[Measured]) -> tuple[list[OpPrediction], int]:
    """What a profile of the training rows says about the test rows, and the nodes that it stores."""
    if name in {"convs", "dense"}:
        profile = fit_ops(DeviceProfile(name, "", "measured", roofline_of(train)), train)
        predictors = list(profile.predictors.values())
        predictions = profile.predict([m.op for m in test])
    else:
        predictors = [fit_alone(name, train)[0]]
        found = zip(predictors[0].latency_ms([m.op for m in test]), test, strict=True)
        ratios = [(float(t), predictors[0].interval_ratio(m.op)) for t, m in found]
        predictions = [OpPrediction(t, t / ratio, t * ratio, "predicted") for t, ratio in ratios]
    return predictions, sum(len(p.trees.number) for p in predictors if p.trees is not None)


def _line(entry: dict[str, Any]) -> str:
    return (
        f"{entry['device']}, {entry['dtype']}, {entry['rows']}, {entry['training_rows']} rows: "
        f"{entry['within_10_percent']:.1%} within 10 %, median {entry['median_error']:.1%}, "
        f"coverage {entry['coverage_of_90_percent_intervals']:.1%}, {entry['seconds']:.1f} s a seed"
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("files", metavar="CSV", nargs="+", type=Path, help="timings, .csv or .csv.gz")
    parser.add_argument("-o", "--output", metavar="F", type=Path, help="write the figures here too, JSON")
    parser.add_argument("--seeds", metavar="N", type=int, default=5, help="random splits (default 5)")
    args = parser.parse_args()
    if args.seeds < 1:
        raise UsageError(f"Invalid value for --seeds. Expected at least 1. Received: {args.seeds}")
    return args


if __name__ == "__main__":
    main()
