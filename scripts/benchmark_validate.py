"""Profiles each model's own operations, measures the model, and sets the prediction beside it, runtime by runtime.

    .venv/bin/python scripts/benchmark_validate.py -o docs/validation.json

A runtime and model that the output holds already is not done again; --fresh does all anew.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import keras

import latency_lab as ll
from latency_lab import files
from latency_lab.plan import plan
from latency_lab.profiling.environment import conditions, identity

MODELS = ("MobileNetV2", "ResNet50")
SHIPPED = {"litert": "amd-epyc-zen4-litert-1t", "onnxruntime": "amd-epyc-zen4-onnxruntime-1t"}
"""General profiles of the CPU that docs/validation.json was taken on: made of random networks, not of these models."""


def main() -> None:
    """Runs every pair of runtime and model that is missing, and writes after each."""
    args = _arguments()
    done: dict[str, Any] = {"environment": identity(), "rows": []}
    if args.output.exists() and not args.fresh:
        done = json.loads(args.output.read_text())
    for runtime in ("litert", "onnxruntime"):
        for name in MODELS:
            if not any((row["runtime"], row["model"]) == (runtime, name) for row in done["rows"]):
                done["rows"].append(row(runtime, name))
                files.write_json(args.output, done)
    print(json.dumps(done, indent=1))


def row(runtime: str, name: str) -> dict[str, Any]:
    """Profile, predict, measure."""
    keras.utils.set_random_seed(0)
    model = getattr(keras.applications, name)(weights=None)
    began, conditions_before = time.monotonic(), conditions()
    with tempfile.TemporaryDirectory() as folder:
        tasks = plan([ll.ChannelGraph.from_model(model)], runtime)
        measuring = time.monotonic()
        journal = ll.profile(tasks, runtime=runtime, threads=1, journal=Path(folder) / "journal.jsonl")
        measured = time.monotonic()
        profile = ll.fit_profile(journal, name=f"{name}-{runtime}")
    fitted = time.monotonic()
    found = ll.validate(profile, [model]).to_json()["models"][0]
    general = ll.LatencyCost(ll.ChannelGraph.from_model(model), ll.load_profile(SHIPPED[runtime])).estimate()
    return {
        "runtime": runtime,
        "model": name,
        "predicted_ms": found["predicted_ms"],
        "measured_ms": found["measured_ms"],
        "error": found["error"],
        "general_profile": SHIPPED[runtime],
        "general_predicted_ms": general.latency_ms,
        "general_error": general.latency_ms / found["measured_ms"] - 1,
        "points": len(journal.blocks),
        "measuring_s": round(measured - measuring, 1),
        "points_a_minute": round(60 * len(journal.blocks) / (measured - measuring)),
        "profiling_s": round(fitted - began, 1),
        "network_residuals_half_width": profile.network.half_width,
        "conditions": conditions_before,
    }


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("-o", "--output", type=Path, default=Path("validation.json"))
    parser.add_argument("--fresh", action="store_true", help="do all anew")
    return parser.parse_args()


if __name__ == "__main__":
    main()
