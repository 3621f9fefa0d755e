"""Networks trained to a budget on an Arm Ethos-U NPU, beside what Vela, the compiler, says of what came out.

    scripts/train_vela -o docs/vela_training.json             # needs ethos-u-vela: pip install 'latency-lab[vela]'
    scripts/train_vela --table -o docs/vela_training.json     # prints what it found

Two networks of `experiment_networks` learn their widths on Fashion-MNIST under LogisticSigmoid, to a share of the
seed's latency on an NPU; the slim network is fine-tuned, converted to int8 with real images for its ranges, and
compiled whole. Latency is predicted by a profile of the network's own operations, which Vela's estimates fill in a
minute and without a board (`latency-lab profile --model`), or by the profile that ships.

A cell is one network, NPU, target and profile. One that is finished is kept in the work folder, and a run that was
stopped goes on with the next. Nothing is timed.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import Any

import demo_data
import experiment_train
import keras
import numpy as np
from benchmark_vela import quiet, whole_estimate
from experiment_cells import Cell, Settings, Store, run_missing

import latency_lab as ll
from latency_lab import convert, files
from latency_lab.errors import BudgetError
from latency_lab.plan import plan
from latency_lab.profiles import shipped_profiles
from regularizers import LogisticSigmoid, recalibrate_batch_norm

FOLDER = Path.home() / ".cache" / "latency-lab" / "train_vela"
NETS = ("residual", "depthwise")
ACCELERATORS = ("ethos-u55-128", "ethos-u65-512", "ethos-u85-256")
TARGETS = (0.5, 0.3)
PROFILES = ("own", "shipped")
SETTINGS = Settings(images=6_000, seed_epochs=3, learn_epochs=3, fine_epochs=1, batch=64)
RANGES_FROM = 64
"""Training images that the ranges of int8 activations are read from."""


def main() -> int:
    """Trains what is missing; writes all that there is; 1 where a cell is missing."""
    args = _arguments()
    if args.table:
        print(table(files.read_json(args.output, "networks of scripts/train_vela")["cells"]))
        return 0
    out = quiet()
    args.folder.mkdir(parents=True, exist_ok=True)
    store = Store(args.folder, {"settings": dataclasses.asdict(SETTINGS), "vela": _version()})
    bench = experiment_train.Bench(demo_data.fashion_mnist(SETTINGS.images, args.data), {}, SETTINGS, store)
    wanted = [
        Cell(net, 0, profile, target, accelerator)
        for profile in args.profile
        for accelerator in args.accelerator
        for net in NETS
        for target in TARGETS
        if profile == "own" or accelerator in shipped_profiles()
    ]

    def run(cell: Cell) -> dict[str, Any]:
        try:
            found = trained(cell, bench)
        except BudgetError as error:
            print(f"{cell.key}: {error}", file=out, flush=True)
            return {"refused": str(error)}
        print(f"{cell.key}: {found['vela_of_target'] - 1:+.1%} of the target, by Vela", file=out, flush=True)
        return found

    missing = run_missing(wanted, store, run, args.minutes)
    rows = [row(found) for cell in wanted if (found := store.read(cell)) is not None]
    files.write_json(args.output, {"settings": store.made_with["settings"], "vela": _version(), "cells": rows})
    print(f"wrote {args.output}: {len(rows)} cells, {len(missing)} missing", file=out)
    return int(bool(missing))


def trained(cell: Cell, bench: experiment_train.Bench) -> dict[str, Any]:
    """One network trained to its budget, and Vela's figure of the whole of it."""
    keras.utils.clear_session()
    seed = experiment_train.seed_of(cell, bench)
    profile = profile_of(cell, seed, bench.store.folder)
    cost = ll.LatencyCost(ll.ChannelGraph.from_model(seed), profile)
    keras.utils.set_random_seed(100)
    regularizer = LogisticSigmoid(cost, target=cell.target, seed=0)
    gated = regularizer.attach(seed)
    experiment_train.compile_for(gated, experiment_train.LEARNING_RATES[LogisticSigmoid])
    experiment_train.fit(gated, bench, SETTINGS.learn_epochs, regularizer.callbacks())
    recalibrate_batch_norm(gated, [bench.images.train_x[: experiment_train.RECALIBRATE]])
    slim = ll.shrink(gated, regularizer.structure())
    experiment_train.train(slim, bench, SETTINGS.fine_epochs, experiment_train.FINE_RATE)
    seed_ms, slim_ms = (vela_ms(model, cell, bench) for model in (seed, slim))
    target_ms = cell.target * cost.at()
    predicted_ms = ll.LatencyCost(ll.ChannelGraph.from_model(slim), profile).at()
    return {
        "seed_predicted_ms": cost.at(),
        "seed_vela_ms": seed_ms,
        "target_ms": target_ms,
        "predicted_ms": predicted_ms,
        "vela_ms": slim_ms,
        "vela_of_target": slim_ms / target_ms,
        "vela_of_seed": slim_ms / seed_ms,
        "accuracy": [experiment_train.accuracy(model, bench.images) for model in (seed, slim)],
        "parameters": [int(model.count_params()) for model in (seed, slim)],
    }


def profile_of(cell: Cell, seed: keras.Model, folder: Path) -> ll.DeviceProfile:
    """The profile that a cell is trained against: the one that ships, or one of the network's own operations."""
    if cell.method == "shipped":
        return ll.load_profile(cell.device)
    path = folder / f"{cell.net}-{cell.device}.json"
    if not path.exists():
        runtime = f"vela:{cell.device}"
        tasks = plan([ll.ChannelGraph.from_model(seed)], runtime, "int8")
        ll.fit_profile(ll.profile(tasks, runtime=runtime, journal=path.with_suffix(".journal.jsonl"))).save(path)
    return ll.load_profile(path)


def vela_ms(model: keras.Model, cell: Cell, bench: experiment_train.Bench) -> float:
    """Vela's figure of a network, converted to int8.

    Raises:
        SystemExit: Vela leaves an operator to the CPU.
    """
    images = bench.images.train_x[:RANGES_FROM]
    path = bench.store.path(cell, ".tflite")
    files.write_bytes(path, convert.to_tflite(model, "int8", [[image[np.newaxis]] for image in images]))
    whole = whole_estimate(path, f"vela:{cell.device}")
    if whole.on_cpu:
        raise SystemExit(f"{cell.key}: Vela leaves to the CPU: {', '.join(sorted(set(whole.on_cpu)))}")
    return whole.latency_ms


def row(found: dict[str, Any]) -> dict[str, Any]:
    """What is kept of a cell."""
    named = {"network": found["net"], "accelerator": found["device"], "profile": found["method"]}
    kept = ("target", "refused", "vela_of_target", "vela_of_seed", "accuracy", "parameters")
    times = {key: value for key, value in found.items() if key.endswith("_ms")}
    shown = {**named, **{key: found[key] for key in kept if key in found}, **times}
    return {key: _rounded(value) for key, value in shown.items()}


def table(rows: list[dict[str, Any]]) -> str:
    """The rows in Markdown."""
    lines = [
        "| NPU | network | profile | target | ms: target, predicted, Vela's | over the target | accuracy: seed, slim |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        head = " | ".join(str(r[key]) for key in ("accelerator", "network", "profile", "target"))
        if "refused" in r:
            lines.append(f"| {head} | cannot be reached | | |")
            continue
        times = ", ".join(f"{r[key]:.4f}" for key in ("target_ms", "predicted_ms", "vela_ms"))
        accuracy = ", ".join(f"{value:.3f}" for value in r["accuracy"])
        lines.append(f"| {head} | {times} | {r['vela_of_target'] - 1:+.1%} | {accuracy} |")
    return "\n".join(lines)


def _rounded(value: Any) -> Any:
    if isinstance(value, list):
        return [_rounded(each) for each in value]
    return round(value, 6) if isinstance(value, float) else value


def _version() -> str:
    import ethosu.vela

    return str(ethosu.vela.__version__)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser("scripts/train_vela", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--accelerator", nargs="+", choices=ACCELERATORS, default=list(ACCELERATORS))
    parser.add_argument("--profile", nargs="+", choices=PROFILES, default=list(PROFILES))
    parser.add_argument("--table", action="store_true", help="print the table of the output")
    parser.add_argument("--minutes", type=float, default=120, help="begin no cell that would end later (default 120)")
    parser.add_argument("--data", type=Path, metavar="DIR", help="folder of Fashion-MNIST's four files")
    parser.add_argument("--folder", type=Path, default=FOLDER, metavar="DIR", help=f"work folder (default {FOLDER})")
    parser.add_argument("-o", "--output", type=Path, default=Path("vela_training.json"), metavar="F")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
