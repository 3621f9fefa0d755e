"""The steps of the demo, a function each: train, learn, rebuild, fine-tune, export, and a network to compare with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import demo_networks
import keras
import numpy as np
from demo_data import Images

import latency_lab as ll
from latency_lab import convert
from latency_lab.validation import SUFFIXES
from regularizers import Gamma, GroupLasso, LogisticSigmoid, recalibrate_batch_norm

REGULARIZERS = {"logistic_sigmoid": LogisticSigmoid, "gamma": Gamma, "group_lasso": GroupLasso}
TARGET = 0.5
"""Of the seed's latency on LiteRT."""
BATCH = 64
LEARNING_BATCH = 32
LEARNING_RATES = {"logistic_sigmoid": 1e-3, "gamma": 5e-3, "group_lasso": 2e-3}
"""While widths are learned. Scales and weights close by a learning rate a step, logits 30 times as fast."""


@dataclass(frozen=True)
class Epochs:
    """How long each stage trains. The uniform network gets as many epochs as the others together."""

    seed: int
    learn: int
    fine_tune: int

    @property
    def all(self) -> int:
        """Of the uniform network."""
        return self.seed + self.learn + self.fine_tune


def epochs_of(images: Images, regularizer: str) -> Epochs:
    """Fewer for more images; more for a network without batch norm, and where channels close slowly."""
    if len(images.train_x) > 5_000:
        return Epochs(3, 4, 2)
    return {"logistic_sigmoid": Epochs(5, 10, 5), "gamma": Epochs(5, 10, 5), "group_lasso": Epochs(8, 10, 4)}[
        regularizer
    ]


def seed_rate(batch_norm: bool) -> float:
    """Learning rate of a network that is trained from the beginning."""
    return 2e-3 if batch_norm else 1e-3


def train(model: Any, images: Images, epochs: int, learning_rate: float) -> None:
    """Adam, with a learning rate that comes down to 0 along a cosine."""
    steps = -(-len(images.train_x) // BATCH) * epochs
    _compile(model, keras.optimizers.schedules.CosineDecay(learning_rate, steps))
    model.fit(images.train_x, images.train_y, batch_size=BATCH, epochs=epochs, verbose=0)


def learn(seed: Any, cost: ll.Cost, images: Images, name: str, epochs: int) -> tuple[Any, ll.Structure, dict[str, Any]]:
    """Trains a copy of the seed that pays for its milliseconds, down to half of them.

    Returns:
        The gated model, the structure that it learned, and the last logs of the training.
    """
    regularizer = REGULARIZERS[name](cost, target=TARGET)
    gated = regularizer.attach(seed)
    _compile(gated, LEARNING_RATES[name])
    history = gated.fit(
        images.train_x,
        images.train_y,
        batch_size=LEARNING_BATCH,
        epochs=epochs,
        verbose=0,
        callbacks=regularizer.callbacks(),
    )
    recalibrate_batch_norm(gated, [images.train_x[:512]])
    return gated, regularizer.structure(), {key: values[-1] for key, values in history.history.items()}


def accuracy(model: Any, images: Images) -> float:
    """Share of the test images that are classified right, 0 to 1."""
    logits = model.predict(images.test_x, batch_size=256, verbose=0)
    return float(np.mean(np.argmax(logits, axis=-1) == images.test_y))


def uniform(name: str, images: Images, cost: ll.Cost, latency_ms: float, batch_norm: bool) -> Any:
    """The network of the demo, every stage narrowed alike, that is predicted to take nearest to `latency_ms`."""
    full = demo_networks.seed_width(name, images.shape)
    widths = cost.graph.full_widths

    def predicted(width: int) -> float:
        return cost.at(np.maximum(1, widths * width // full).astype(int))

    # Whole fours, as people choose widths; a staircase need not rise everywhere, so all of them are tried.
    best = min(range(4, full + 1, 4), key=lambda width: abs(predicted(width) - latency_ms))
    return demo_networks.build(name, images.shape, best, batch_norm=batch_norm, seed=1)


def export(model: Any, stem: Path) -> dict[str, Path]:
    """Writes .keras, .tflite and .onnx.

    Returns:
        The file of each runtime.
    """
    model.save(stem.with_suffix(".keras"))
    found = {runtime: stem.with_suffix(SUFFIXES[runtime]) for runtime in ("litert", "onnxruntime")}
    found["litert"].write_bytes(convert.to_tflite(model))
    found["onnxruntime"].write_bytes(convert.to_onnx(model))
    return found


def _compile(model: Any, learning_rate: Any) -> None:
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    # XLA takes five times as long for depthwise convs on a CPU.
    model.compile(keras.optimizers.Adam(learning_rate), loss, metrics=["accuracy"], jit_compile=False)
