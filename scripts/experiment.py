"""Does training against measured latency give better networks than training against FLOPs, or narrowing evenly?

    scripts/experiment --profile-own                   # quiet machine: a profile of the three nets' own operations
    scripts/experiment -o docs/results.json            # trains what is missing, cell by cell
    scripts/experiment --measure -o docs/results.json  # quiet machine: times all networks of each net interleaved
    scripts/experiment --table -o docs/results.json    # prints what it found

Fashion-MNIST, three small networks, two targets, six methods of the same epochs, from one pre-trained seed each
(`experiment_cells`). A cell that is finished is kept in the work folder at once, and a run that was stopped goes on
with the next; a cell made with other settings or another profile is made anew.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import experiment_cells
import experiment_tables
from experiment_cells import Cell, Settings, Store
from experiment_networks import NAMES

import latency_lab as ll
from latency_lab import files
from latency_lab.errors import LatencyLabError
from latency_lab.profiling.environment import identity

FOLDER = Path.home() / ".cache" / "latency-lab" / "experiment"
SHIPPED = {"cpu": "amd-epyc-zen4-litert-1t", "onnxruntime": "amd-epyc-zen4-onnxruntime-1t", "v100": "v100"}
"""What latency is predicted with; "cpu" gives way to the profile that --profile-own left in the work folder."""

_began = time.monotonic()


def main() -> int:
    """Does what the arguments say; 1 when cells are missing at the end."""
    args = _arguments()
    if args.table or args.plot:
        found = files.read_json(args.output, "results of scripts/experiment")
        if args.table:
            print(experiment_tables.text(found))
        if args.plot:
            experiment_tables.plot(found, args.plot)
        return 0
    args.folder.mkdir(parents=True, exist_ok=True)
    if args.profile_own:
        return profile_own(args.folder)
    profiles = load_profiles(args.folder)
    settings = Settings(args.images, *args.epochs)
    digests = {device: profile.digest for device, profile in profiles.items()}
    store = Store(args.folder, {"settings": dataclasses.asdict(settings), "profiles": digests})
    wanted = [cell for cell in experiment_cells.cells(args.net) if args.seed is None or cell.seed in args.seed]
    if args.measure:
        measure(wanted, store, args.rounds)
    else:
        train(wanted, store, profiles, settings, args)
    found = collect(store, profiles, settings)
    files.write_json(args.output, found)
    left = [cell.key for cell in wanted if store.read(cell) is None]
    if left:
        say(f"missing: {', '.join(left)}")
    say(f"wrote {args.output}: {len(found['cells'])} cells, {len(found['missing'])} missing of all")
    return int(bool(left))


def profile_own(folder: Path) -> int:
    """Measures the nets' own operations."""
    import experiment_train

    say("profiling LiteRT, 1 thread, on the operations of the three nets ...")
    found = experiment_train.profile_own(folder / "litert.json", folder / "litert.journal.jsonl")
    say(f"wrote {folder / 'litert.json'}: {found.name}, {found.digest}")
    return 0


def load_profiles(folder: Path) -> dict[str, ll.DeviceProfile]:
    """Device -> profile."""
    own = folder / "litert.json"
    return {device: ll.load_profile(own if device == "cpu" and own.exists() else n) for device, n in SHIPPED.items()}


def train(
    wanted: Sequence[Cell],
    store: Store,
    profiles: dict[str, ll.DeviceProfile],
    settings: Settings,
    args: argparse.Namespace,
) -> None:
    """Makes the cells that are missing, within the minutes."""
    import demo_data
    import experiment_train

    images = demo_data.fashion_mnist(settings.images, args.data)
    bench = experiment_train.Bench(images, profiles, settings, store)
    say(f"{len(images.train_x)} training and {len(images.test_x)} test images, profile {profiles['cpu'].name}")

    def run(cell: Cell) -> dict[str, Any]:
        found = experiment_train.run(cell, bench)
        say(
            f"{cell.key}: accuracy {found['accuracy']:.4f}, predicted {found['predicted_of_target']:.3f} of its "
            f"target, {found['flops_of_seed']:.2f} of the FLOPs, seconds {found['seconds']}"
        )
        return found

    experiment_cells.run_missing(wanted, store, run, args.minutes)


def measure(wanted: list[Cell], store: Store, rounds: int) -> None:
    """Times the nets that have a cell which was not timed."""
    import experiment_measure

    for net in sorted({cell.net for cell in wanted}):
        entries = experiment_measure.to_measure(wanted, store, net)
        if not entries:
            say(f"{net}: nothing to measure")
            continue
        say(f"{net}: {len(entries)} networks in {' and '.join(experiment_measure.RUNTIMES)}, {rounds} rounds ...")
        experiment_measure.measure(entries, store, net, rounds)


def collect(store: Store, profiles: dict[str, ll.DeviceProfile], settings: Settings) -> dict[str, Any]:
    """Everything that the work folder holds of these settings, as one JSON."""
    all_cells = experiment_cells.cells()
    found = {cell.key: store.with_measured(cell) for cell in all_cells}
    entries = [{k: v for k, v in entry.items() if k != "made_with"} for entry in found.values() if entry is not None]
    measured = {net: store.measured(net) for net in NAMES}
    return {
        "environment": identity(),
        "data": "fashion-mnist",
        "settings": dataclasses.asdict(settings),
        "profiles": {device: {"name": p.name, "digest": p.digest} for device, p in profiles.items()},
        "cells": entries,
        "missing": [key for key, entry in found.items() if entry is None],
        "measured": {net: {k: v for k, v in m.items() if k != "models"} for net, m in measured.items() if m},
    }


def say(text: str) -> None:
    """Print with the time since the start."""
    minutes, seconds = divmod(int(time.monotonic() - _began), 60)
    print(f"[{minutes}:{seconds:02d}] {text}", flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser("scripts/experiment", description=(__doc__ or "").partition("\n")[0])
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--profile-own", action="store_true", help="profile the nets' own operations (quiet machine)")
    mode.add_argument("--measure", action="store_true", help="time the networks that were trained (quiet machine)")
    mode.add_argument("--table", action="store_true", help="print the tables of the output")
    parser.add_argument("--plot", type=Path, metavar="PNG", help="draw accuracy against measured ms of the output")
    parser.add_argument("-o", "--output", type=Path, default=Path("results.json"), metavar="F")
    parser.add_argument("--minutes", type=float, default=120, help="begin no cell that would end later (default 120)")
    parser.add_argument("--net", nargs="+", choices=NAMES, help="only these")
    parser.add_argument("--seed", nargs="+", type=int, help="only these (0 of all nets; 1 and 2 of plain)")
    parser.add_argument("--data", type=Path, metavar="DIR", help="folder of Fashion-MNIST's four files")
    parser.add_argument("--folder", type=Path, default=FOLDER, metavar="DIR", help=f"work folder (default {FOLDER})")
    default = Settings()
    epochs = (default.seed_epochs, default.learn_epochs, default.fine_epochs)
    parser.add_argument("--images", type=int, default=default.images, help="of training (default %(default)s)")
    parser.add_argument(
        "--epochs", type=int, nargs=3, default=epochs, metavar=("SEED", "LEARN", "FINE"), help=f"default {epochs}"
    )
    parser.add_argument("--rounds", type=int, default=12, help="of --measure (default %(default)s)")
    return parser.parse_args()


if __name__ == "__main__":
    try:
        sys.exit(main())
    except LatencyLabError as error:
        raise SystemExit(f"scripts/experiment: {error}") from error
