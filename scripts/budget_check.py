"""Is a budget met whatever the network, regularizer, optimizer, batch and number of steps?

    scripts/budget_check -o docs/budget.json            # trains what is missing, cell by cell
    scripts/budget_check --table -o docs/budget.json    # prints what it found

Two small networks on Fashion-MNIST, halved to 14x14 by averaging, trained once without a budget, are trained on to
one: a quarter of all combinations (`budget_cells`), in which any two levels of two factors meet. Of each is kept what
the final structure is predicted to take, what training alone had come to before the budget was met by projection, and
the least that it came to at any step, as shares of the target. Nothing is timed. A cell that is finished is kept in the
work folder at once, and a run that was stopped goes on with the next.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import budget_cells
from budget_cells import FACTORS, Cell
from experiment_cells import Store, run_missing

import latency_lab as ll
from latency_lab import files
from latency_lab.errors import LatencyLabError

FOLDER = Path.home() / ".cache" / "latency-lab" / "budget"
PROFILE = "amd-epyc-zen4-litert-1t"
IMAGES, SIZE = 6400, 14
SEED_EPOCHS, SEED_BATCH, SEED_RATE = 4, 64, 2e-3
"""How a network is trained before it gets a budget: by Adam."""
RATES = {
    "adam": {"LogisticSigmoid": 1e-3, "Gamma": 5e-3, "GroupLasso": 2e-3},
    "momentum": {"LogisticSigmoid": 1e-2, "Gamma": 5e-2, "GroupLasso": 5e-2},
}
"""Learning rates; AdamW's are Adam's. Scales and weights close by a learning rate a step, logits 30 times as fast."""
DECAY = 0.05
"""Of AdamW: twelve times Keras's own."""

_began = time.monotonic()


def main() -> int:
    """Does what the arguments say; 1 when cells are missing at the end."""
    args = _arguments()
    if args.table:
        print(budget_cells.text(files.read_json(args.output, "results of scripts/budget_check")))
        return 0
    args.folder.mkdir(parents=True, exist_ok=True)
    profile = ll.load_profile(PROFILE)
    settings = {"images": IMAGES, "size": SIZE, "seed": [SEED_EPOCHS, SEED_BATCH, SEED_RATE], "decay": DECAY}
    store = Store(args.folder, {**settings, "rates": RATES, "profile": profile.digest})
    images = _images(args.data)

    def run(cell: Cell) -> dict[str, Any]:
        found = train(cell, images, profile, args.folder)
        say(f"{cell.key}: {', '.join(f'{name} {value}' for name, value in found.items() if 'of_target' in name)}")
        return found

    wanted = [cell for cell in budget_cells.cells() if args.only is None or args.only in cell.key]
    run_missing(wanted, store, run, args.minutes)
    found = collect(store, profile)
    files.write_json(args.output, found)
    say(f"wrote {args.output}: {len(found['cells'])} cells, {len(found['missing'])} missing")
    return int(bool(found["missing"]))


def collect(store: Store, profile: ll.DeviceProfile) -> dict[str, Any]:
    """Everything that the work folder holds, as one JSON."""
    kept = {cell.key: store.read(cell) for cell in budget_cells.cells()}
    combinations = 1
    for levels in FACTORS.values():
        combinations *= len(levels)
    return {
        "data": "fashion-mnist",
        "images": IMAGES,
        "size": SIZE,
        "rates": RATES,
        "decay": DECAY,
        "profile": {"name": profile.name, "digest": profile.digest},
        "combinations": combinations,
        "cells": [
            {k: v for k, v in entry.items() if k not in {"made_with", "finished"}}
            for entry in kept.values()
            if entry is not None
        ],
        "missing": [key for key, entry in kept.items() if entry is None],
    }


# ---- one cell -----------------------------------------------------------------------------------------------------


def train(cell: Cell, images: tuple[Any, Any], profile: ll.DeviceProfile, folder: Path) -> dict[str, Any]:
    """Trains one network to its budget.

    Returns:
        predicted_of_target: of the final structure; trained_of_target: of the channels that were open when training
        ended; lowest_of_target: the least of those at any step; strengths: the least and the largest; channels of each
        group.
    """
    import keras

    import regularizers

    keras.utils.clear_session()
    model = seed_network(cell.net, images, folder)
    keras.utils.set_random_seed(1)
    cost = ll.LatencyCost(ll.ChannelGraph.from_model(model), profile)
    options = {"seed": 1} if cell.regularizer == "LogisticSigmoid" else {}
    learner = getattr(regularizers, cell.regularizer)(cost, target=cell.target, **options)
    gated = learner.attach(model)
    _compile(gated, _optimizer(cell))
    shares: list[float] = []

    def note(batch: int, logs: Any) -> None:
        shares.append(cost.at(learner.widths()) / learner.initial / cell.target)

    spy = keras.callbacks.LambdaCallback(on_train_batch_end=note)
    epochs, left = divmod(cell.steps * cell.batch, IMAGES)
    if left:
        raise ValueError(f"{cell.steps} steps of {cell.batch} are no whole epochs of {IMAGES} images")
    gated.fit(*images, batch_size=cell.batch, epochs=epochs, verbose=0, callbacks=[*learner.callbacks(), spy])
    widths = learner.structure().widths(cost.graph)
    strengths = [record["strength"] for record in learner.history()]
    return {
        "predicted_of_target": round(cost.at(widths) / learner.initial / cell.target, 4),
        "trained_of_target": round(shares[-1], 4),
        "lowest_of_target": round(min(shares), 4),
        "strengths": [round(min(strengths), 2), round(max(strengths), 2)],
        "collapsed": learner.history()[-1]["collapsed"],
        "channels": widths.tolist(),
    }


def seed_network(net: str, images: tuple[Any, Any], folder: Path) -> Any:
    """The network that all cells of a net start from: trained once, then read."""
    import experiment_networks
    import keras

    path = folder / f"{net}-{IMAGES}x{SIZE}-{SEED_EPOCHS}-{SEED_BATCH}-{SEED_RATE:g}.keras"
    if not path.exists():
        model = experiment_networks.build(net, 0, SIZE)
        _compile(model, keras.optimizers.Adam(SEED_RATE))
        model.fit(*images, batch_size=SEED_BATCH, epochs=SEED_EPOCHS, verbose=0)
        whole = path.with_name(f"unfinished-{path.name}")
        model.save(whole)
        whole.replace(path)
    return keras.models.load_model(path, compile=False)


def _compile(model: Any, optimizer: Any) -> None:
    import keras

    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    # XLA takes two to ten times as long for these networks on a CPU.
    model.compile(optimizer, loss, jit_compile=False)


def _optimizer(cell: Cell) -> Any:
    import keras

    rate = RATES.get(cell.optimizer, RATES["adam"])[cell.regularizer]
    if cell.optimizer == "momentum":
        return keras.optimizers.SGD(rate, momentum=0.9)
    if cell.optimizer == "adamw":
        return keras.optimizers.AdamW(rate, weight_decay=DECAY)
    return keras.optimizers.Adam(rate)


def _images(folder: Path | None) -> tuple[Any, Any]:
    """Images [IMAGES, SIZE, SIZE, 1] and their classes."""
    import demo_data

    found = demo_data.fashion_mnist(IMAGES, folder)
    small = found.train_x.reshape(IMAGES, SIZE, 28 // SIZE, SIZE, 28 // SIZE, 1).mean(axis=(2, 4))
    return small, found.train_y


def say(text: str) -> None:
    """Print with the time since the start."""
    minutes, seconds = divmod(int(time.monotonic() - _began), 60)
    print(f"[{minutes}:{seconds:02d}] {text}", flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser("scripts/budget_check", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--table", action="store_true", help="print the tables of the output")
    parser.add_argument("-o", "--output", type=Path, default=Path("budget.json"), metavar="F")
    parser.add_argument("--minutes", type=float, default=60, help="begin no cell that would end later (default 60)")
    parser.add_argument("--only", metavar="TEXT", help="cells whose name has this in it")
    parser.add_argument("--data", type=Path, metavar="DIR", help="folder of Fashion-MNIST's four files")
    parser.add_argument("--folder", type=Path, default=FOLDER, metavar="DIR", help=f"work folder (default {FOLDER})")
    return parser.parse_args()


if __name__ == "__main__":
    try:
        sys.exit(main())
    except LatencyLabError as error:
        raise SystemExit(f"scripts/budget_check: {error}") from error
