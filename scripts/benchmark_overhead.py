"""What the regularizers add to a training step, to its first one, and before it.

    scripts/benchmark_overhead -o docs/overhead.json    # on a quiet machine

Each variant of a network trains on the same random images, batch 32: as it is ("plain"); with gates that pay for
nothing ("gates"); with Gamma, GroupLasso and LogisticSigmoid, which pay for LiteRT's latency within half of it, their
callback included. Every round takes all variants in a new random order, some steps of each in one `fit`; the time of a
step is that of the round over its steps, and the ratio to "plain" is taken round by round. A case is a network,
compiled by XLA (as Keras does by itself) or not; one that the output holds is not done again.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any

import keras
import numpy as np
from keras import layers

import latency_lab as ll
from latency_lab import files
from latency_lab.gates import Gates, insert_masks
from latency_lab.profiling.environment import conditions, identity
from latency_lab.report import table
from regularizers import BudgetControl, Gamma, GroupLasso, LogisticSigmoid, Regularizer
from regularizers.base import copied

PROFILE = "amd-epyc-zen4-litert-1t"
BATCH = 32
EVERY = 10
"""Batches between two readings of the budget: as in any training of 1000 steps or more. Rounds are of whole tens."""
HELD = BudgetControl(1.0, start=0.0, cap=0.0)
"""The strength is computed, paid and set like any other, and stays 0: so few steps would close all channels but one."""
REGULARIZERS: Mapping[str, type[Regularizer]] = {
    "gamma": Gamma,
    "group_lasso": GroupLasso,
    "logistic_sigmoid": LogisticSigmoid,
}
VARIANTS = ("plain", "gates", *REGULARIZERS)


def resnet20() -> keras.Model:
    """CIFAR's ResNet-20, 32x32, 1x1 convs where the size changes."""
    image = layers.Input((32, 32, 3))
    x = layers.ReLU()(_conv(image, 16))
    for width, strides in ((16, 1), (16, 1), (16, 1), (32, 2), (32, 1), (32, 1), (64, 2), (64, 1), (64, 1)):
        kept = x if x.shape[-1] == width else _conv(x, width, 1, strides)
        x = layers.ReLU()(_conv(x, width, 3, strides))
        x = layers.ReLU()(layers.Add()([_conv(x, width), kept]))
    return keras.Model(image, layers.Dense(10)(layers.GlobalAveragePooling2D()(x)), name="resnet20")


def _conv(x: Any, width: int, kernel: int = 3, strides: int = 1) -> Any:
    x = layers.Conv2D(width, kernel, strides, padding="same", use_bias=False)(x)
    return layers.BatchNormalization()(x)


def resnet50() -> keras.Model:
    """keras.applications' ResNet50 at 64x64, 10 classes."""
    return keras.applications.ResNet50(
        weights=None, input_shape=(64, 64, 3), classes=10, classifier_activation=None, name="resnet50"
    )


NETWORKS: Mapping[str, Callable[[], keras.Model]] = {"resnet20": resnet20, "resnet50": resnet50}


class Runner:
    """One variant, ready to train.

    Args:
        name: one of `VARIANTS`.
        model: the network.
        jit: whether XLA compiles it.
    """

    def __init__(self, name: str, model: keras.Model, jit: bool) -> None:
        began = time.perf_counter()
        self.callbacks: list[Any] = []
        if name == "plain":
            self.model = copied(model)
        elif name == "gates":
            graph = ll.ChannelGraph.from_model(model)
            self.model = insert_masks(model, graph, Gates([group.size for group in graph.groups], name="gates"))
        else:
            cost = ll.LatencyCost(ll.ChannelGraph.from_model(model), ll.load_profile(PROFILE))
            began = time.perf_counter()  # of attach alone: a cost is made once and used for all
            regularizer = REGULARIZERS[name](cost, target=0.5, every=EVERY, control=HELD)
            self.model = regularizer.attach(model)
            self.callbacks = regularizer.callbacks()
        self.attach_s = time.perf_counter() - began
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        self.model.compile(keras.optimizers.SGD(1e-3), loss, jit_compile=jit)

    def steps(self, images: Any, labels: Any) -> float:
        """Seconds of training on so many images, over the number of steps."""
        clock = _Clock()
        callbacks = [_Start(clock), *self.callbacks, clock]
        self.model.fit(images, labels, batch_size=BATCH, shuffle=False, verbose=0, callbacks=callbacks)
        return clock.seconds / (len(images) // BATCH)


class _Clock(keras.callbacks.Callback):
    """Time from the first batch's beginning to the end of what callbacks do after the last."""

    def __init__(self) -> None:
        super().__init__()
        self.began = self.seconds = 0.0

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Last in the list: after the other callbacks."""
        self.seconds = time.perf_counter() - self.began


class _Start(keras.callbacks.Callback):
    """Starts a clock before the other callbacks."""

    def __init__(self, clock: _Clock) -> None:
        super().__init__()
        self.clock = clock

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        """Of the first batch."""
        if batch == 0:
            self.clock.began = time.perf_counter()


def case(
    network: str, jit: bool, rounds: int, steps: int, names: Sequence[str] = VARIANTS, minutes: float = math.inf
) -> dict[str, Any]:
    """Variants of one network, "plain" among them. No round begins when so many minutes are over, but the first."""
    end = time.monotonic() + 60 * minutes
    keras.utils.clear_session(free_memory=True)
    keras.utils.set_random_seed(0)
    before = conditions()
    model = NETWORKS[network]()
    random = np.random.default_rng(0)
    images = random.random((BATCH * steps, *model.input_shape[1:]), np.float32)
    labels = random.integers(0, 10, len(images))
    runners, first = {}, {}
    for name in names:
        runners[name] = Runner(name, model, jit)
        first[name] = runners[name].steps(images[:BATCH], labels[:BATCH])
        print(f"  {name}: attach {runners[name].attach_s:.2f} s, first step {first[name]:.1f} s", file=sys.stderr)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for round_ in range(rounds + 1):
        if round_ > 1 and time.monotonic() > end:
            break
        order = list(names)
        Random(f"0:{round_}").shuffle(order)
        for name in order:
            taken = runners[name].steps(images, labels)
            if round_:  # one round to warm up
                seconds[name].append(taken)
    plain = seconds["plain"]
    variants = {name: _figures(seconds[name], plain, runners[name].attach_s, first[name]) for name in names}
    return {
        "network": network,
        "xla": jit,
        "batch": BATCH,
        "image": list(model.input_shape[1:]),
        "parameters": int(model.count_params()),
        "groups": len(ll.ChannelGraph.from_model(model).groups),
        "rounds": len(plain),
        "steps_a_round": steps,
        "variants": variants,
        "conditions": before,
    }


def _figures(seconds: list[float], plain: list[float], attach: float, first: float) -> dict[str, Any]:
    """step_ms: least and median over rounds; ratio to plain: of the leasts, and median and quartiles round by round."""
    ratios = [ours / theirs for ours, theirs in zip(seconds, plain, strict=True)]
    low, high = np.percentile(ratios, [25, 75])
    return {
        "step_ms": {"minimum": round(1e3 * min(seconds), 3), "median": round(1e3 * statistics.median(seconds), 3)},
        "ratio": {
            "of_minima": round(min(seconds) / min(plain), 4),
            "median": round(statistics.median(ratios), 4),
            "quartiles": [round(float(low), 4), round(float(high), 4)],
        },
        "attach_s": round(attach, 2),
        "first_step_s": round(first, 2),
    }


def text(found: Mapping[str, Any]) -> str:
    """The table of all cases."""
    ratios = ("ratio of least", "median [quartiles]")
    head = ["network", "variant", "step ms, least", "median", *ratios, "attach s", "first step s"]
    rows = []
    for entry in found["cases"]:
        name = f"{entry['network']}, {'XLA' if entry['xla'] else 'graph'}"
        for variant, figures in entry["variants"].items():
            ms, ratio = figures["step_ms"], figures["ratio"]
            low, high = ratio["quartiles"]
            rows.append([name, variant, f"{ms['minimum']:.1f}", f"{ms['median']:.1f}", f"{ratio['of_minima']:.3f}"])
            rows[-1] += [f"{ratio['median']:.3f} [{low:.3f}, {high:.3f}]", figures["attach_s"], figures["first_step_s"]]
    return str(table(head, rows))


def main() -> None:
    """Runs every case that is missing, writes after each, and prints the table."""
    args = _arguments()
    onednn = os.environ.get("TF_ENABLE_ONEDNN_OPTS")  # TensorFlow decides by the CPU where it is not set
    environment = {**identity(), "keras": keras.__version__, "TF_ENABLE_ONEDNN_OPTS": onednn}
    done: dict[str, Any] = {"environment": environment, "profile": PROFILE, "cases": []}
    if args.output.exists() and not args.fresh:
        done = json.loads(args.output.read_text())
    if not args.table:
        for network in args.network:
            for jit in (False, True) if args.compile is None else (args.compile == "xla",):
                if any((entry["network"], entry["xla"]) == (network, jit) for entry in done["cases"]):
                    continue
                print(f"{network}, {'XLA' if jit else 'graph'} ...", file=sys.stderr)
                names = [name for name in VARIANTS if name in {"plain", *args.variants}]
                done["cases"].append(case(network, jit, args.rounds, args.steps, names, args.minutes))
                files.write_json(args.output, done)
    print(text(done))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser("scripts/benchmark_overhead", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--network", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--compile", choices=("graph", "xla"), help="only this (default: both)")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--steps", type=int, default=EVERY, help="of a variant a round (default %(default)s)")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS), help="beside plain")
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin no round of a case later")
    parser.add_argument("-o", "--output", type=Path, default=Path("overhead.json"), metavar="F")
    parser.add_argument("--fresh", action="store_true", help="do all anew")
    parser.add_argument("--table", action="store_true", help="print the table of the output alone")
    return parser.parse_args()


if __name__ == "__main__":
    main()
