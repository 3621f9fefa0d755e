"""The main job, end to end, on this machine's CPU: profile, train, learn widths, rebuild, measure.

scripts/demo makes the environment and runs this.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import demo_data
import demo_networks
import demo_steps
from demo_data import Images

import latency_lab as ll
from latency_lab.errors import UsageError
from latency_lab.plan import plan
from latency_lab.profiling import Protocol
from latency_lab.report import table
from latency_lab.validation import measure_all

RUNTIMES = ("litert", "onnxruntime")
ROUNDS = Protocol().rounds
"""Rounds of measuring seed, slim and uniform interleaved: as many as the profiles have."""

_began = time.monotonic()


def main() -> None:
    """Run the demo and write its report."""
    args = _arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    images = demo_data.load(args.data)
    batch_norm = args.regularizer != "group_lasso"
    say(f"{images.name}: {len(images.train_x)} training and {len(images.test_x)} test images {images.shape}")
    seeds = {}
    for name in demo_networks.NAMES:
        width = demo_networks.seed_width(name, images.shape)
        seeds[name] = demo_networks.build(name, images.shape, width, batch_norm=batch_norm)
    profiles = {runtime: profile(runtime, seeds, args) for runtime in RUNTIMES}
    models = [run(name, seed, images, profiles, args) for name, seed in seeds.items()]
    report = {"environment": dict(profiles["litert"].environment), "data": images.name, "models": models}
    path = args.out / "report.json"
    path.write_text(json.dumps(report, indent=1) + "\n")
    print("\n" + summary(models, args.regularizer, images.name))
    say(f"wrote {path}")
    lost = [entry["name"] for entry in models if entry["slim"]["accuracy"] < entry["seed"]["accuracy"] / 2]
    if lost:
        sys.exit(f"Narrowed, {' and '.join(lost)} classify less than half as many images right as before.")


def profile(runtime: str, seeds: Mapping[str, Any], args: argparse.Namespace) -> ll.DeviceProfile:
    """A profile of this CPU for these networks. A journal that has been begun is gone on with."""
    journal = args.out / f"{runtime}-{args.data}.journal.jsonl"
    if args.fresh:
        journal.unlink(missing_ok=True)
    tasks = plan([ll.ChannelGraph.from_model(seed) for seed in seeds.values()], runtime)
    say(f"profiling {runtime}, 1 thread: {len(tasks)} points into {journal}")
    began = time.monotonic()
    book = ll.profile(tasks, runtime=runtime, threads=1, journal=journal)
    found = ll.fit_profile(book, name=f"this-cpu-{runtime}-1t")
    found.save(profile_path(runtime, args))
    say(f"  {book.samples} samples in {time.monotonic() - began:.0f} s, {len(book.failures)} points failed")
    return found


def profile_path(runtime: str, args: argparse.Namespace) -> Path:
    """Where a profile is kept."""
    return Path(args.out / f"{runtime}.json")


def run(
    name: str, seed: Any, images: Images, profiles: Mapping[str, ll.DeviceProfile], args: argparse.Namespace
) -> dict[str, Any]:
    """Everything for one network.

    Returns:
        Its entry in the report.
    """
    batch_norm = args.regularizer != "group_lasso"
    epochs, rate = demo_steps.epochs_of(images, args.regularizer), demo_steps.seed_rate(batch_norm)
    graph = ll.ChannelGraph.from_model(seed)
    cost = ll.LatencyCost(graph, profiles["litert"])

    def reached(what: str, model: Any, comment: str) -> None:
        say(f"  {what}: accuracy {demo_steps.accuracy(model, images):.4f}, {comment}")

    say(f"{name}: {seed.count_params():,} parameters, predicted {cost.estimate()}")
    demo_steps.train(seed, images, epochs.seed, rate)
    reached("seed", seed, f"{epochs.seed} epochs. Learning widths ...")
    gated, structure, logs = demo_steps.learn(seed, cost, images, args.regularizer, epochs.learn)
    structure_path = args.out / f"{name}.structure.json"
    structure.save(structure_path)
    slim = ll.shrink(gated, structure)
    widths = structure.widths(graph)
    reached("rebuilt", slim, f"{args.regularizer}, {epochs.learn} epochs, strength at the end {logs['strength']:.3g}")
    say(f"  channels {_widths(graph.full_widths)} -> {_widths(widths)}. Fine-tuning ...")
    demo_steps.train(slim, images, epochs.fine_tune, 1e-3)
    reached("slim", slim, f"{epochs.fine_tune} epochs. Training a uniform network ...")
    even = demo_steps.uniform(name, images, cost, cost.at(widths), batch_norm)
    demo_steps.train(even, images, epochs.all, rate)
    reached("uniform", even, f"{epochs.all} epochs. Exporting and measuring all three interleaved ...")
    trained = {"seed": seed, "slim": slim, "uniform": even}
    entry = {"name": name, "regularizer": args.regularizer, "target": demo_steps.TARGET}
    entry |= figures(name, trained, images, profiles, args.out)
    entry["structure"] = str(structure_path)
    entry["widths"] = {"seed": graph.full_widths.astype(int).tolist(), "slim": widths.tolist()}
    entry["profiles"] = {runtime: str(profile_path(runtime, args)) for runtime in RUNTIMES}
    return entry


def figures(
    name: str, models: Mapping[str, Any], images: Images, profiles: Mapping[str, ll.DeviceProfile], out: Path
) -> dict[str, dict[str, Any]]:
    """Accuracy, predicted and measured milliseconds, parameters and FLOPs of each model."""
    found: dict[str, dict[str, Any]] = {}
    files = {}
    for key, model in models.items():
        graph = ll.ChannelGraph.from_model(model)
        found[key] = {
            "accuracy": demo_steps.accuracy(model, images),
            "predicted_ms": {r: ll.LatencyCost(graph, profiles[r]).estimate().latency_ms for r in RUNTIMES},
            "measured_ms": {},
            "measured_interval_ms": {},
            "parameters": model.count_params(),
            "flops": int(ll.FlopsCost(graph).at()),
        }
        files[key] = demo_steps.export(model, out / f"{name}-{key}")
    for runtime in RUNTIMES:
        named = {key: paths[runtime] for key, paths in files.items()}
        measured, _ = measure_all(named, runtime, 1, protocol=Protocol(rounds=ROUNDS))
        for key, result in zip(named, measured, strict=True):
            found[key]["measured_ms"][runtime] = result.latency_ms
            found[key]["measured_interval_ms"][runtime] = [result.statistic.low_ms, result.statistic.high_ms]
    return found


def summary(models: list[dict[str, Any]], regularizer: str, data: str) -> str:
    """The table."""
    runtimes = [f"{r} {what}" for r in RUNTIMES for what in ("predicted ms", "measured ms [interval]")]
    rows = []
    for entry in models:
        for key in ("seed", "slim", "uniform"):
            figure = entry[key]
            cells = [f"{entry['name']} {key}", f"{figure['accuracy']:.4f}"]
            for r in RUNTIMES:
                low, high = figure["measured_interval_ms"][r]
                cells += [f"{figure['predicted_ms'][r]:.3f}", f"{figure['measured_ms'][r]:.3f} [{low:.3f}, {high:.3f}]"]
            rows.append([*cells, f"{figure['parameters']:,}", f"{figure['flops'] / 1e6:.1f} M"])
    title = f"{data}, {regularizer}, target: half of LiteRT's latency, 1 thread\n\n"
    return title + table(["network", "accuracy", *runtimes, "parameters", "FLOPs"], rows)


def say(text: str) -> None:
    """Print with the time since the start."""
    minutes, seconds = divmod(int(time.monotonic() - _began), 60)
    print(f"[{minutes}:{seconds:02d}] {text}", flush=True)


def _widths(widths: Any) -> str:
    return " ".join(str(int(width)) for width in widths)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser("scripts/demo", description=__doc__.partition("\n")[0])
    parser.add_argument("--regularizer", choices=demo_steps.REGULARIZERS, default="logistic_sigmoid")
    parser.add_argument("--data", choices=("digits", "fashion-mnist"), default="digits")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "demo", help="folder (default: demo)")
    parser.add_argument("--fresh", action="store_true", help="measure anew, where journals of an earlier run would do")
    return parser.parse_args()


if __name__ == "__main__":
    try:
        main()
    except UsageError as error:
        raise SystemExit(f"scripts/demo: {error}") from error
