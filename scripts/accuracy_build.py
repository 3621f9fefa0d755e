"""The Keras networks of the accuracy benchmark: whole or narrowed, with random weights that keep numbers tame."""

from __future__ import annotations

import inspect
import os
import tempfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
from _narrow import narrow

from latency_lab.graph import ChannelGraph
from latency_lab.shrink import shrink

EXAMPLES = 2
"""Images that the statistics of batch norms are taken from."""


def parameters_of_all() -> dict[str, int]:
    """Class of keras.applications -> its parameters with the head of 1000 classes."""
    counted = {}
    for name in sorted(vars(keras.applications)):
        if name[0].isupper() and inspect.isfunction(getattr(keras.applications, name)):
            keras.backend.clear_session()
            counted[name] = int(getattr(keras.applications, name)(weights=None).count_params())
    return counted


def can_narrow(class_name: str) -> bool:
    """Whether any channel group of the class can shrink."""
    return bool(ChannelGraph.from_model(architecture({"class": class_name, "size": 224})).groups)


def architecture(entry: Mapping[str, Any]) -> Any:
    """The network of an entry with fresh weights."""
    keras.backend.clear_session()
    keras.utils.set_random_seed(0)
    size = entry["size"]
    model = getattr(keras.applications, entry["class"])(weights=None, input_shape=(size, size, 3))
    if "narrow_seed" not in entry:
        return model
    graph = ChannelGraph.from_model(model)
    random = np.random.default_rng(entry["narrow_seed"])
    return shrink(model, narrow(graph, random, entry["odd"]), weights=False)


def build(entry: Mapping[str, Any]) -> Any:
    """The network of an entry; the same weights each time."""
    model = architecture(entry)
    random = np.random.default_rng(zlib.crc32(entry["name"].encode()))
    for layer in model.layers:
        if layer.weights and type(layer).__name__ != "Normalization":
            layer.set_weights([_values(layer, variable, random) for variable in layer.weights])
    _settle(model, random)
    return model


def save(model: Any, path: Path) -> None:
    """Writes the .keras file whole or not at all."""
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        part = Path(folder) / path.name
        model.save(part)
        os.replace(part, path)


def _values(layer: Any, variable: Any, random: np.random.Generator) -> npt.NDArray[Any]:
    """Random numbers for one weight: kernels keep the scale of what goes through, vectors are near 1 or near 0."""
    shape = tuple(variable.shape)
    if "kernel" in variable.name:
        deep = variable.name == "depthwise_kernel" or type(layer).__name__ == "DepthwiseConv2D"
        fan_in = np.prod(shape[:2]) if deep else np.prod(shape[:-1])
        return random.normal(0, np.sqrt(2 / fan_in), shape)
    if variable.name in {"gamma", "moving_variance"} or type(layer).__name__ == "LayerScale":
        return random.uniform(0.5, 1.5, shape)
    if variable.name in {"bias", "beta", "moving_mean"}:
        return random.uniform(-0.2, 0.2, shape)
    raise ValueError(f"Layer {layer.name!r} has a weight {variable.name!r} that is not known.")


def _settle(model: Any, random: np.random.Generator) -> None:
    """Sets the moving statistics of batch norms to those of random images, so that no depth makes numbers run away."""
    norms = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
    if not norms:
        return
    momenta = [layer.momentum for layer in norms]
    for layer in norms:
        layer.momentum = 0.0
    model(random.uniform(-1, 1, (EXAMPLES, *model.input_shape[1:])).astype(np.float32), training=True)
    for layer, momentum in zip(norms, momenta, strict=True):
        layer.momentum = momentum
