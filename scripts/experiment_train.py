"""One cell of the experiment: from the seed to a narrower network, trained, weighed, exported."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import experiment_networks
import keras
import numpy as np
from demo_data import Images
from experiment_cells import Cell, Settings, Store

import latency_lab as ll
from latency_lab import budget, convert, files
from latency_lab.importance import scores
from regularizers import Gamma, GroupLasso, LogisticSigmoid, Regularizer, recalibrate_batch_norm

SEED_RATES = {"residual": 2e-3, "depthwise": 2e-3, "plain": 1e-3}
"""Of Adam, by network, from random weights; it comes down to 0 along a cosine, as does that of fine-tuning."""
FINE_RATE = 1e-3
LEARNING_RATES: Mapping[type[Regularizer], float] = {LogisticSigmoid: 1e-3, Gamma: 5e-3, GroupLasso: 2e-3}
"""While widths are learned, constant. Scales and weights close by a learning rate a step, logits 30 times as fast."""
RECALIBRATE = 512


@dataclass(frozen=True)
class Bench:
    """What every cell is made with.

    Attributes:
        images: training and test.
        profiles: "cpu" (LiteRT) and "v100" are trained against; others are predicted on.
        settings: epochs.
        store: the work folder.
    """

    images: Images
    profiles: Mapping[str, ll.DeviceProfile]
    settings: Settings
    store: Store

    def latency(self, graph: ll.ChannelGraph, device: str) -> ll.LatencyCost:
        """The cost in ms on a device."""
        return ll.LatencyCost(graph, self.profiles[device])


def run(cell: Cell, bench: Bench) -> dict[str, Any]:
    """Makes a cell, exports its network, and says what is known of it before it is timed.

    Raises:
        BudgetError: the method cannot narrow the network so far.
    """
    began = time.monotonic()
    keras.utils.clear_session()
    seed = seed_of(cell, bench)
    prepared = time.monotonic()
    keras.utils.set_random_seed(100 + cell.seed)
    epochs = bench.settings.learn_epochs + bench.settings.fine_epochs
    if cell.method in {"seed", "uniform", "plan"}:
        slim = ll.shrink(seed, _chosen(seed, cell, bench))
        started = accuracy(slim, bench.images)
    else:
        slim = _learned(seed, cell, bench)
        started, epochs = accuracy(slim, bench.images), bench.settings.fine_epochs
    train(slim, bench, epochs, FINE_RATE)
    trained = time.monotonic()
    result = {
        "accuracy": accuracy(slim, bench.images),
        "accuracy_before_fine_tuning": started,
        **weighed(seed, slim, cell, bench),
    }
    if cell.device == "cpu":
        _export(slim, bench.store, cell)
    now = time.monotonic()
    seconds = {"seed": prepared - began, "train": trained - prepared, "export": now - trained}
    return {**result, "seconds": {what: round(value, 1) for what, value in seconds.items()}}


def seed_of(cell: Cell, bench: Bench) -> Any:
    """The network that all cells of one net and seed start from: trained once, then read."""
    settings = bench.settings
    name = f"{cell.net}-{cell.seed}-{settings.images}x{settings.seed_epochs}-batch{settings.batch}.keras"
    path = bench.store.folder / name
    if not path.exists():
        model = experiment_networks.build(cell.net, cell.seed)
        train(model, bench, settings.seed_epochs, SEED_RATES[cell.net])
        whole = path.with_name(f"unfinished-{name}")
        model.save(whole)
        whole.replace(path)
    return keras.models.load_model(path, compile=False)


def accuracy(model: Any, images: Images) -> float:
    """Share of the test images that are classified right, 0 to 1."""
    logits = model.predict(images.test_x, batch_size=500, verbose=0)
    return float(np.mean(np.argmax(logits, axis=-1) == images.test_y))


def weighed(seed: Any, slim: Any, cell: Cell, bench: Bench) -> dict[str, Any]:
    """Predicted ms on each device, also as shares of the seed's; channels, parameters, FLOPs."""
    whole, graph = ll.ChannelGraph.from_model(seed), ll.ChannelGraph.from_model(slim)
    predicted = {device: bench.latency(graph, device).at() for device in bench.profiles}
    of_seed = {device: ms / bench.latency(whole, device).at() for device, ms in predicted.items()}
    flops = ll.FlopsCost(graph).at()
    return {
        "predicted_ms": predicted,
        "predicted_of_seed": of_seed,
        "predicted_of_target": of_seed[cell.device] / cell.target,
        "channels": graph.full_widths.astype(int).tolist(),
        "parameters": int(slim.count_params()),
        "flops": int(flops),
        "flops_of_seed": flops / ll.FlopsCost(whole).at(),
    }


def _chosen(seed: Any, cell: Cell, bench: Bench) -> ll.Structure:
    """Without training: the channels of the largest norms, at widths of the method."""
    graph = ll.ChannelGraph.from_model(seed)
    cost = bench.latency(graph, cell.device)
    if cell.method == "plan":
        return ll.plan_structure(seed, cost, cell.target)
    if cell.method == "seed":
        return ll.Structure.from_mask(graph, np.ones(graph.slots))
    widths = budget.uniform_widths(cost, cell.target * cost.at())
    return ll.Structure.from_mask(graph, budget.mask_of(cost, scores(seed, graph), widths))


def _learned(seed: Any, cell: Cell, bench: Bench) -> Any:
    """With a regularizer: the network rebuilt from what it learned."""
    regularizer = regularizer_of(seed, cell, bench)
    gated = regularizer.attach(seed)
    compile_for(gated, LEARNING_RATES[type(regularizer)])
    fit(gated, bench, bench.settings.learn_epochs, regularizer.callbacks())
    recalibrate_batch_norm(gated, [bench.images.train_x[:RECALIBRATE]])
    return ll.shrink(gated, regularizer.structure())


def regularizer_of(seed: Any, cell: Cell, bench: Bench) -> Regularizer:
    """The regularizer of a cell's method."""
    graph = ll.ChannelGraph.from_model(seed)
    latency, target = bench.latency(graph, cell.device), cell.target
    if cell.method == "weights":
        return (GroupLasso if cell.net == "plain" else Gamma)(latency, target=target)
    flops = ll.FlopsCost(graph)
    cost, paid = {"latency": (latency, latency), "flops": (flops, flops), "flops-priced": (latency, flops)}[cell.method]
    return LogisticSigmoid(cost, target=target, paid=paid, seed=cell.seed)


def train(model: Any, bench: Bench, epochs: int, rate: float) -> None:
    """Adam, with a learning rate that comes down to 0 along a cosine."""
    steps = -(-len(bench.images.train_x) // bench.settings.batch) * epochs
    compile_for(model, keras.optimizers.schedules.CosineDecay(rate, steps))
    fit(model, bench, epochs, [])


def compile_for(model: Any, rate: Any) -> None:
    """Adam, and the loss of logits."""
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    # XLA takes two to ten times as long for these networks on a CPU.
    model.compile(keras.optimizers.Adam(rate), loss, jit_compile=False)


def fit(model: Any, bench: Bench, epochs: int, callbacks: list[Any]) -> None:
    """Trains on the bench's images."""
    images, batch = bench.images, bench.settings.batch
    model.fit(images.train_x, images.train_y, batch_size=batch, epochs=epochs, verbose=0, callbacks=callbacks)


def _export(model: Any, store: Store, cell: Cell) -> None:
    files.write_bytes(store.path(cell, ".tflite"), convert.to_tflite(model))
    files.write_bytes(store.path(cell, ".onnx"), convert.to_onnx(model))


def profile_own(path: Path, journal: Path) -> ll.DeviceProfile:
    """A profile of this CPU, LiteRT, one thread, of the operations of the three networks. A journal that was begun is
    gone on with."""
    from latency_lab.plan import plan

    graphs = [ll.ChannelGraph.from_model(experiment_networks.build(name, 0)) for name in experiment_networks.NAMES]
    book = ll.profile(plan(graphs, "litert"), runtime="litert", threads=1, journal=journal)
    found = ll.fit_profile(book, name="experiment-litert-1t")
    found.save(path)
    return found
