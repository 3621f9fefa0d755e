"""Makes a general profile of this CPU, and sets its predictions beside measured times of networks it never saw.

    scripts/benchmark_accuracy --runtime litert --precision float32 --threads 1 -o docs/accuracy.json

One runtime, precision and thread count a call; their results stand beside one another in the output. All goes on where
it stopped: the profile from its journal, each network from the blocks that were measured. Networks come from
accuracy_networks.json, converted beforehand by accuracy_models.py (which see); those without a file are listed with
the reason. The prediction is of the very file that is measured; that of the .keras file stands beside it.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import accuracy_models
import numpy as np

import latency_lab as ll
from latency_lab import files
from latency_lab.errors import LatencyLabError
from latency_lab.plan import general_plan, refinement
from latency_lab.profiles import DeviceProfile
from latency_lab.profiling import LocalWorker, Protocol, WorkerDiedError, statistic
from latency_lab.profiling.environment import conditions, identity

FIGURES = ("error", "keras_error", "error_without_exact")


def main() -> None:
    """Profile, predict, measure, summarise; prints what it writes."""
    args = _arguments()
    key = f"{args.runtime} {args.precision} {args.threads} thread{'s' * (args.threads > 1)}"
    folder = args.cache / "runs" / key.replace(" ", "-").replace("/", "_")
    folder.mkdir(parents=True, exist_ok=True)
    profile, made = general_profile(args.runtime, args.precision, args.threads, args.name or key, folder)
    entries = [e for e in accuracy_models.networks() if accuracy_models.runs_on(e, args.runtime)]
    found, missing = _files(entries, args.runtime, args.precision, args.cache)
    blocks = measured(found, args.runtime, args.threads, folder / "networks.jsonl")
    rows = [row(entry, path, profile, blocks.get(entry["name"], []), args.cache) for entry, path in found]
    run = {"profile": made, **summary(rows), "networks": rows, "not_measured": missing}
    done: dict[str, Any] = {"environment": identity(), "runs": {}}
    if args.output.exists():
        done = json.loads(args.output.read_text())
    done["runs"][key] = run
    files.write_json(args.output, done)
    print(json.dumps({k: v for k, v in run.items() if k != "networks"}, indent=1))


def general_profile(
    runtime: str, precision: str, threads: int, name: str, folder: Path
) -> tuple[DeviceProfile, dict[str, Any]]:
    """The general profile, made or found, and how long it took over all calls that made it."""
    path, report = folder / "profile.json.gz", folder / "profile-made.json"
    if path.exists() and report.exists():
        return ll.load_profile(path), json.loads(report.read_text())
    journal, spent = folder / "profile.journal.jsonl", _Stopwatch(folder / "seconds.json")
    with spent:
        tasks = general_plan(runtime, precision)
        first = ll.fit_profile(ll.profile(tasks, runtime=runtime, threads=threads, journal=journal), name=name)
    print(f"{len(tasks)} tasks, {spent.seconds:.0f} s; refining ...", flush=True)
    with spent:
        tasks = refinement(first)
        book = ll.profile(tasks, runtime=runtime, threads=threads, journal=journal)
        profile = ll.fit_profile(book, name=name)
    print(f"{len(tasks)} more, {spent.seconds:.0f} s in all", flush=True)
    profile.save(path)
    made = {
        "seconds": round(spent.seconds, 1),
        "points": len(book.blocks),
        "failed": len(book.failures),
        "rounds": Protocol().rounds,
        "bytes_of_json": len(json.dumps(profile.to_json())),
        "holdout": _pooled(profile.holdout),
        "networks": len(profile.network.residuals),
        "half_width": profile.network.half_width,
        "conditions": conditions(),
    }
    files.write_json(report, made)
    return ll.load_profile(path), made


class _Stopwatch:
    """Seconds over several runs, kept in a file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.seconds: float = json.loads(path.read_text()) if path.exists() else 0.0

    def __enter__(self) -> None:
        self._began = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self.seconds += time.monotonic() - self._began
        files.write_json(self._path, self.seconds)


def _pooled(holdout: Any) -> dict[str, float]:
    """Median over all held-out operations' families, weighted by points."""
    rows = [e for e in holdout.values() if e.get("points")]
    points = np.array([e["points"] for e in rows], float)
    return {
        "points": int(points.sum()),
        **{
            n: round(float(np.average([e[n] for e in rows], weights=points)), 4)
            for n in ("median", "within_10_percent")
        },
    }


def _files(
    entries: Sequence[dict[str, Any]], runtime: str, precision: str, cache: Path
) -> tuple[list[tuple[dict[str, Any], Path]], dict[str, str]]:
    """(entry, file) of the networks that were converted, and name -> reason of the others."""
    found, missing = [], {}
    for entry in entries:
        path = accuracy_models.place(entry, runtime, precision, cache)
        failure = accuracy_models.failure_of(path)
        if path.is_file():
            found.append((entry, path))
        else:
            missing[entry["name"]] = failure.read_text().strip() if failure.is_file() else "not converted"
    return found, missing


def measured(
    found: Sequence[tuple[dict[str, Any], Path]], runtime: str, threads: int, journal: Path
) -> dict[str, list[dict[str, Any]]]:
    """Blocks of each network, interleaved round by round in random orders, over two processes."""
    blocks: dict[str, list[dict[str, Any]]] = {}
    lines = [json.loads(line) for line in journal.read_text().splitlines()] if journal.exists() else []
    for line in lines:
        blocks.setdefault(line["name"], []).append(line)
    protocol, worker = Protocol(), None
    settings = {"block_ms": protocol.block_ms, "min_repeats": protocol.min_repeats, "warm_up": protocol.warm_up}
    with journal.open("a") as file:
        for round_ in range(protocol.rounds):
            waiting = [(e, p) for e, p in found if all(b["round"] != round_ for b in blocks.get(e["name"], []))]
            if worker is not None and round_ == (protocol.rounds + 1) // 2:
                worker.close()
                worker = None
            random.Random(round_).shuffle(waiting)
            for entry, path in waiting:
                worker = worker or LocalWorker(runtime, threads)
                try:
                    block = worker.block(str(path), settings)
                except WorkerDiedError as error:
                    block, worker = {"status": "failed", "reason": str(error)}, None
                line = {**block, "name": entry["name"], "round": round_}
                blocks.setdefault(entry["name"], []).append(line)
                file.write(json.dumps(line) + "\n")
                file.flush()
    if worker is not None:
        worker.close()
    return blocks


def row(
    entry: dict[str, Any], path: Path, profile: DeviceProfile, blocks: Sequence[dict[str, Any]], cache: Path
) -> dict[str, Any]:
    """One network: predicted beside measured."""
    base = {"name": entry["name"], "family": entry["family"]}
    good = [block for block in blocks if block["status"] == "ok"]
    if not good:
        return {**base, "failed": next((b["reason"] for b in blocks), "not measured")}
    s = statistic(good)
    base |= {"measured_ms": round(s.latency_ms, 4), "unstable": s.unstable, "rounds": s.rounds}
    try:
        graph = ll.ChannelGraph.from_model(path)
        estimate = ll.LatencyCost(graph, profile).estimate()
    except LatencyLabError as error:
        return {**base, "failed": f"cannot be predicted: {error}"}
    coverage = estimate.coverage
    bare = ll.LatencyCost(graph, replace(profile, tables={})).estimate().latency_ms
    low, high = estimate.interval_ms
    found = {
        "predicted_ms": round(estimate.latency_ms, 4),
        "interval_ms": [round(low, 4), round(high, 4)],
        "error": round(estimate.latency_ms / s.latency_ms - 1, 4),
        "error_without_exact": round(bare / s.latency_ms - 1, 4),
        "kernels": coverage["ops"],
        "exact": coverage["measured"],
        "extrapolated": coverage["extrapolated"],
        "bounded": coverage["bounded"],
    }
    keras_file = cache / "keras" / f"{entry['name']}.keras"
    if keras_file.exists():
        of_keras = ll.LatencyCost(ll.ChannelGraph.from_model(str(keras_file)), profile).estimate().latency_ms
        found["keras_error"] = round(of_keras / s.latency_ms - 1, 4)
    return {**base, **found}


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Over all networks that were predicted and measured."""
    good = [r for r in rows if "error" in r]
    found: dict[str, Any] = {"measured": len(good), "failed": [r["name"] for r in rows if "error" not in r]}
    for name in FIGURES:
        errors = np.abs([r[name] for r in good if name in r])
        if len(errors):
            found[name] = {
                "networks": len(errors),
                "median": round(float(np.median(errors)), 4),
                "within_5_percent": round(float(np.mean(errors <= 0.05)), 4),
                "within_10_percent": round(float(np.mean(errors <= 0.10)), 4),
                "worst": round(float(errors.max()), 4),
            }
    if good:
        inside = [r["interval_ms"][0] <= r["measured_ms"] <= r["interval_ms"][1] for r in good]
        halves = [(r["interval_ms"][1] - r["interval_ms"][0]) / 2 / r["predicted_ms"] for r in good]
        found["interval"] = {
            "coverage": round(float(np.mean(inside)), 4),
            "mean_half_width": round(float(np.mean(halves)), 4),
        }
        kernels = sum(r["kernels"] for r in good)
        found["exact_share"] = round(sum(r["exact"] for r in good) / kernels, 4)
        found["bounded_share"] = round(sum(r["bounded"] for r in good) / kernels, 4)
    return found


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runtime", default="litert")
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--name", help="of the profile")
    parser.add_argument("--cache", type=Path, default=accuracy_models.CACHE)
    parser.add_argument("-o", "--output", type=Path, default=Path("accuracy.json"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
