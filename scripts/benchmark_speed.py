"""How long it takes to read, explain, mask and shrink networks of keras.applications, in seconds.

    scripts/benchmark_speed -o docs/speed.json

Each step is done once a round on the same model: the channel graph is read, explained as text, the model is copied with
a mask at every layer that mixes channels (`LogisticSigmoid.attach`), and rebuilt without the channels that a random
structure closes. Both copies take their weights with them. A model's first round also pays for what Keras does once.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np

import latency_lab as ll
from latency_lab import files
from latency_lab.errors import UsageError
from latency_lab.profiling.environment import conditions, identity
from regularizers import LogisticSigmoid

MODELS = ("MobileNetV2", "ResNet50", "EfficientNetV2L", "NASNetLarge")
KEPT = 0.6


def main() -> None:
    """Runs every model and prints the figures."""
    args = _arguments()
    found: dict[str, Any] = {
        "environment": {**identity(), "keras": keras.__version__, "numpy": np.__version__},
        "rounds": args.rounds,
        "models": [],
    }
    for name in args.models:
        found["models"].append(row(name, args.rounds))
        print(json.dumps(found["models"][-1]), file=sys.stderr)
        if args.output:
            files.write_json(args.output, found)
    print(json.dumps(found, indent=1))


def row(name: str, rounds: int) -> dict[str, Any]:
    """One model: its size, and the seconds of each step."""
    keras.utils.clear_session(free_memory=True)
    keras.utils.set_random_seed(0)
    model = getattr(keras.applications, name)(weights=None)
    before = conditions()
    graph = ll.ChannelGraph.from_model(model)
    cost, structure = ll.ParamsCost(graph), _random_structure(graph)
    steps: dict[str, Callable[[], object]] = {
        "graph": lambda: ll.ChannelGraph.from_model(model),
        "explain": lambda: str(graph.explain()),
        "attach": lambda: LogisticSigmoid(cost, target=0.5).attach(model),
        "shrink": lambda: ll.shrink(model, structure),
    }
    seconds: dict[str, list[float]] = {step: [] for step in steps}
    for _ in range(rounds):
        for step, run in steps.items():
            began = time.perf_counter()
            run()
            seconds[step].append(time.perf_counter() - began)
    return {
        "model": name,
        "layers": len(model.layers),
        "operations": len(graph.nodes),
        "parameters": model.count_params(),
        "groups": len(graph.groups),
        "channels": graph.slots,
        "seconds": {
            step: {"minimum": round(min(values), 4), "median": round(statistics.median(values), 4)}
            for step, values in seconds.items()
        },
        "conditions": before,
    }


def _random_structure(graph: ll.ChannelGraph) -> ll.Structure:
    """Keeps each channel with probability `KEPT`, and the first of every group."""
    mask = np.random.default_rng(0).random(graph.slots) < KEPT
    mask[graph.offsets[:-1]] = True
    return ll.Structure.from_mask(graph, mask)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("models", metavar="MODEL", nargs="*", default=list(MODELS), help="names in keras.applications")
    parser.add_argument("-o", "--output", metavar="F", type=Path, help="write the figures here too, JSON")
    parser.add_argument("--rounds", metavar="N", type=int, default=5, help="rounds of each step (default 5)")
    args = parser.parse_args()
    if args.rounds < 1:
        raise UsageError(f"Invalid value for --rounds. Expected at least 1. Received: {args.rounds}")
    return args


if __name__ == "__main__":
    main()
