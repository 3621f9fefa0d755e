"""Predictions for Arm Ethos-U NPUs beside what Vela, the compiler, says of the whole network.

    scripts/benchmark_vela -o docs/vela.json        # needs ethos-u-vela: pip install 'latency-lab[vela]'
    scripts/benchmark_vela --accelerator ethos-u85-256 -o docs/vela.json        # one anew, the others as they are there

Three figures for each of ten networks of keras.applications (int8, random weights, as accuracy_models.py converts them)
on each shipped profile, over Vela's own: the prediction by the general profile; the plain sum of Vela's figures for the
operations in their context (`runtimes.vela`), and for each alone, which are those of the code as it is, whatever the
profile was made by. A network of which Vela leaves operators to the CPU
is listed with them: it has no figure. An operation that Vela cannot compile by itself is listed with the reason, and
counts as nothing: that sum is a lower bound, and never among those within 10 %.

Then networks are narrowed by `ll.plan_structure` to a share of their predicted latency, and Vela's figure of the slim
network, converted to int8, is set beside the budget.

Nothing is timed, and a second run gives the same numbers.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TextIO

import accuracy_models
import numpy as np

import latency_lab as ll
from latency_lab import convert, files, runtimes
from latency_lab.ops import Network, OpConfig
from latency_lab.profiles import fuse
from latency_lab.runtimes.vela_worker import Estimate, Target, answer, estimate

ACCELERATORS = ("ethos-u55-128", "ethos-u55-256", "ethos-u65-512", "ethos-u85-256")
NETWORKS = (
    "MobileNet-224",
    "MobileNetV2-224",
    "MobileNetV3Small-224",
    "MobileNetV3Large-224",
    "EfficientNetB0-224",
    "EfficientNetV2B0-224",
    "DenseNet121-224",
    "ResNet50-224",
    "InceptionV3-224",
    "NASNetMobile-224",
)
ON_CPU = "ConvNeXtTiny-224"
"""Its layer norms are not for the NPU."""
SHRUNK = ("MobileNetV2-224", "MobileNetV3Large-224")
TARGET = 0.6
"""Of the predicted latency of the whole network."""


def main() -> None:
    """Compare, narrow, summarise; prints a line of each."""
    args = _arguments()
    out = quiet()
    entries = {entry["name"]: entry for entry in accuracy_models.networks()}
    found = others(args.output, args.accelerator)
    for accelerator in args.accelerator:
        profile = ll.load_profile(accelerator)
        found["vela"] = profile.environment["version"]
        for name in (*NETWORKS, ON_CPU):
            path = accuracy_models.model_file(entries[name], "litert", "int8", args.cache)
            found["networks"].append({"network": name, "accelerator": accelerator, **compared(path, profile)})
            print(line(found["networks"][-1]), file=out, flush=True)
    for accelerator in args.accelerator:
        profile = ll.load_profile(accelerator)
        for name in SHRUNK:
            model = accuracy_models.keras_model(entries[name], args.cache)
            found["shrunk"].append({"network": name, "accelerator": accelerator, **narrowed(model, profile)})
            print(line(found["shrunk"][-1]), file=out, flush=True)
    found["summary"] |= {name: summary(found, name) for name in args.accelerator}
    files.write_json(args.output, found)
    print(*(f"{name}: {figures}" for name, figures in found["summary"].items()), sep="\n", file=out)


def others(path: Path, accelerators: Sequence[str]) -> dict[str, Any]:
    """What a file of this script has of other accelerators than these; nothing where there is no file."""
    found = files.read_json(path, "the comparison with Vela") if path.exists() else {}
    kept = {
        name: [r for r in found.get(name, []) if r["accelerator"] not in accelerators]
        for name in ("networks", "shrunk")
    }
    summaries = {name: row for name, row in found.get("summary", {}).items() if name not in accelerators}
    return {**kept, "summary": summaries}


def compared(path: Path, profile: ll.DeviceProfile) -> dict[str, Any]:
    """One network: Vela's figure, what it leaves to the CPU, and the predictions over that figure, less 1."""
    whole = whole_estimate(path, profile.runtime)
    if whole.on_cpu:
        return {"operators": len(whole.layers), "on_cpu": sorted(set(whole.on_cpu)), "cpu_operators": len(whole.on_cpu)}
    graph = ll.ChannelGraph.from_model(path)
    predicted = ll.LatencyCost(graph, profile).at()
    ops = [kernel.op for kernel in fuse(graph.network(), runtimes.get(profile.runtime).fusions("int8")[1])]
    row: dict[str, Any] = {
        "vela_ms": round(whole.latency_ms, 6),
        "predicted_ms": round(predicted, 6),
        "error": round(predicted / whole.latency_ms - 1, 4),
    }
    for name, builder in (("sum_in_context", profile.runtime), ("sum_alone", "litert")):
        total, failed = sum_ms(ops, profile.runtime, runtimes.get(builder).build)
        row[name] = round(total / whole.latency_ms - 1, 4)
        if failed:
            row[f"{name}_lacks"] = failed
    return row


def narrowed(model: Any, profile: ll.DeviceProfile) -> dict[str, Any]:
    """One network narrowed to `TARGET`: the budget, and Vela's figure of what came out."""
    cost = ll.LatencyCost(ll.ChannelGraph.from_model(model), profile)
    structure = ll.plan_structure(model, cost, TARGET)
    slim = ll.shrink(model, structure)
    with tempfile.TemporaryDirectory(prefix="latency-lab-") as folder:
        path = Path(folder) / "slim.tflite"
        path.write_bytes(convert.to_tflite(slim, precision="int8"))
        whole = whole_estimate(path, profile.runtime)
    budget = TARGET * cost.at()
    return {
        "seed_predicted_ms": round(cost.at(), 6),
        "budget_ms": round(budget, 6),
        "predicted_ms": round(ll.LatencyCost(ll.ChannelGraph.from_model(slim), profile).at(), 6),
        "vela_ms": round(whole.latency_ms, 6),
        "over_budget": round(whole.latency_ms / budget - 1, 4),
        "parameters": [int(model.count_params()), int(slim.count_params())],
    }


def whole_estimate(path: Path, runtime: str) -> Estimate:
    """What Vela says of a file."""
    return estimate(str(path), Target.of(runtime.partition(":")[2]))


def sum_ms(ops: Sequence[OpConfig], runtime: str, build: Callable[[Network], bytes]) -> tuple[float, dict[str, str]]:
    """Sum of Vela's figures of operations, each compiled by itself, ms; and those without one: key -> reason."""
    target = Target.of(runtime.partition(":")[2])
    times: dict[OpConfig, float] = {}
    failed: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="latency-lab-") as folder:
        path = Path(folder) / "op.tflite"
        for op in dict.fromkeys(ops):
            path.write_bytes(build(Network.of(op)))
            found = answer({"path": str(path)}, target)
            if found["status"] == "ok":
                times[op] = found["wall_ms"]["min"]
            else:
                failed[op.key] = found["reason"]
    return sum(times.get(op, 0.0) for op in ops), failed


def summary(found: dict[str, Any], accelerator: str) -> dict[str, Any]:
    """Over the networks of one accelerator that are on the NPU whole, and over those that were narrowed."""
    rows = [r for r in found["networks"] if r["accelerator"] == accelerator and "error" in r]
    over = [abs(r["over_budget"]) for r in found["shrunk"] if r["accelerator"] == accelerator]
    figures = {}
    for name in ("error", "sum_in_context", "sum_alone"):
        errors = np.abs([row[name] for row in rows])
        complete = np.array([f"{name}_lacks" not in row for row in rows])
        figures[name] = {
            "within_10_percent": int((complete & (errors <= 0.1)).sum()),
            "median": round(float(np.median(errors)), 4),
            "worst": round(float(errors.max()), 4),
        }
    return {"networks": len(rows), **figures, "worst_over_budget": max(over)}


def line(row: dict[str, Any]) -> str:
    """One row for a person."""
    head = f"{row['accelerator']} {row['network']}:"
    if "on_cpu" in row:
        return f"{head} {row['cpu_operators']} of {row['operators']} operators on the CPU: {', '.join(row['on_cpu'])}"
    if "budget_ms" in row:
        return f"{head} budget {row['budget_ms']:.4g} ms, Vela {row['vela_ms']:.4g} ms ({row['over_budget']:+.1%})"
    lacks = [f"; {name} {', '.join(row[name])}" for name in row if name.endswith("_lacks")]
    return (
        f"{head} Vela {row['vela_ms']:.4g} ms, predicted {row['error']:+.1%}; sums of operations: in context "
        f"{row['sum_in_context']:+.1%}, alone {row['sum_alone']:+.1%}{''.join(lacks)}"
    )


def quiet() -> TextIO:
    """What was stdout, which from here on takes nothing: Vela prints its tables there, from Python and from C++."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return out


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--accelerator", nargs="+", choices=ACCELERATORS, default=list(ACCELERATORS))
    parser.add_argument("--cache", type=Path, default=accuracy_models.CACHE, metavar="DIR")
    parser.add_argument("-o", "--output", type=Path, default=Path("vela.json"))
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
