"""What it is worth to time a single thread while its core runs at full speed: with and without the wait, interleaved.

    scripts/benchmark_pace -o docs/pace.json

Operations and generated networks are drawn from the general plan. In each round each of them is timed twice, one right
after the other in random order, by a worker that waits (`worker.Pace`) and by one that does not. All is set against the
fastest block of the same thing. It prints, for both: how many blocks are within 5, 10 and 20 % of that, how many minima
of three rounds are, how many things are stable after all rounds, and the seconds that it took.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from latency_lab import files
from latency_lab.errors import UnmeasuredError
from latency_lab.plan import general_plan
from latency_lab.profiling import LocalWorker, Protocol, statistic
from latency_lab.profiling.environment import conditions, identity
from latency_lab.profiling.models import Models
from latency_lab.profiling.protocol import block_latency_ms

WAYS = {"waits": {}, "does_not_wait": {"patience_ms": 0}}
MARGINS = (0.05, 0.10, 0.20)


def main() -> None:
    """Measure, summarise, print."""
    args = _arguments()
    blocks, seconds = measured(args)
    names = list(blocks["waits"])
    found: dict[str, Any] = {
        "environment": {**identity(), **conditions()},
        "runtime": args.runtime,
        "rounds": args.rounds,
        "things": len(names),
    }
    best = np.array([min(block_latency_ms(b) for way in WAYS for b in blocks[way][name]) for name in names])
    for way in WAYS:
        rounds = np.array([[block_latency_ms(block) for block in blocks[way][name]] for name in names])
        over = rounds / best[:, None] - 1
        found[way] = {
            "blocks_within": shares(over),
            "minima_of_three_within": shares(over[:, :3].min(axis=1)),
            "median_over_best": round(float(np.median(over)), 4),
            "stable": round(float(np.mean([not statistic(blocks[way][name]).unstable for name in names])), 4),
            "seconds": round(seconds[way], 1),
        }
    files.write_json(args.output, found)
    print(json.dumps(found, indent=1))


def measured(args: argparse.Namespace) -> tuple[dict[str, dict[str, list[dict[str, Any]]]], dict[str, float]]:
    """way -> key -> a block a round; way -> seconds."""
    plan = general_plan(args.runtime, "float32")
    chosen = random.Random(0)
    tasks = chosen.sample([t for t in plan if t.role != "network"], args.operations)
    tasks += chosen.sample([t for t in plan if t.role == "network"], args.networks)
    blocks: dict[str, dict[str, list[dict[str, Any]]]] = {way: {t.key: [] for t in tasks} for way in WAYS}
    seconds = dict.fromkeys(WAYS, 0.0)
    workers = {way: LocalWorker(args.runtime, 1) for way in WAYS}
    with tempfile.TemporaryDirectory(prefix="latency-lab-") as folder:
        models = Models(args.runtime, Protocol(), Path(folder))
        for _ in range(args.rounds):
            for task in chosen.sample(tasks, len(tasks)):
                path = str(models.path(task))
                for way in chosen.sample(list(WAYS), len(WAYS)):
                    began = time.monotonic()
                    block = workers[way].block(path, {**models.settings(task), "cold": 0, **WAYS[way]})
                    seconds[way] += time.monotonic() - began
                    if block["status"] != "ok":
                        raise UnmeasuredError(f"{task.key} cannot be measured: {block['reason']}")
                    blocks[way][task.key].append(block)
    for worker in workers.values():
        worker.close()
    return blocks, seconds


def shares(over: Any) -> dict[str, float]:
    """How many are no further from the best than each margin."""
    return {f"{margin:.0%}": round(float(np.mean(over <= margin)), 4) for margin in MARGINS}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--runtime", choices=("litert", "onnxruntime"), default="litert")
    parser.add_argument("--operations", type=int, default=80, metavar="N")
    parser.add_argument("--networks", type=int, default=10, metavar="N")
    parser.add_argument("--rounds", type=int, default=6, metavar="N")
    parser.add_argument("-o", "--output", type=Path, default=Path("pace.json"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
