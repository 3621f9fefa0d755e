"""The three networks of the experiment: small enough to train on two cores, and unlike in where their time goes."""

from __future__ import annotations

from typing import Any

import keras
from keras import layers

NAMES = ("residual", "depthwise", "plain")
SEEDS = {"residual": 1, "depthwise": 1, "plain": 3}
"""Network -> how many times all of it is trained, from different initial weights."""


def build(name: str, seed: int, size: int = 28) -> keras.Model:
    """A network with random weights.

    Args:
        name: one of `NAMES`.
        seed: of the weights.
        size: rows and columns of an image, at least 8.

    Returns:
        Images [batch, size, size, 1] -> logits [batch, 10].
    """
    keras.utils.set_random_seed(seed)
    image = layers.Input((size, size, 1), name="image")
    features = {"residual": _residual, "depthwise": _depthwise, "plain": _plain}[name](image)
    return keras.Model(image, layers.Dense(10, name="logits")(features), name=name)


def _residual(image: Any) -> Any:
    """ResNet-8: a stem and three blocks of two 3x3 convs, at 28, 14 and 7 pixels."""
    x = _conv(image, 16, 3, "stem")
    for number, (width, strides) in enumerate(((16, 1), (32, 2), (64, 2)), 1):
        kept = x if strides == 1 else _conv(x, width, 1, f"block{number}_project", strides, activation=None)
        x = _conv(x, width, 3, f"block{number}_a", strides)
        x = _conv(x, width, 3, f"block{number}_b", activation=None)
        x = layers.ReLU(name=f"block{number}_relu")(layers.Add(name=f"block{number}_add")([x, kept]))
    return layers.GlobalAveragePooling2D(name="pool")(x)


def _depthwise(image: Any) -> Any:
    """Wide depthwise convs at 28 and 14 pixels, a concatenation at 28, and a large dense layer: much of the time goes
    where few of the FLOPs are."""
    x = _conv(_conv(image, 8, 3, "stem"), 48, 1, "expand1")
    x = layers.Concatenate(name="mix1")([x, _depth(x, "depth1")])
    x = _conv(layers.MaxPooling2D(name="pool1")(x), 24, 1, "project1", activation=None)
    narrow = _conv(_depth(_conv(x, 72, 1, "expand2"), "depth2"), 24, 1, "project2", activation=None)
    x = layers.Add(name="add2")([x, narrow])
    x = _depth(_conv(x, 72, 1, "expand3"), "depth3", strides=2)
    x = _conv(x, 48, 1, "project3", activation=None)
    x = layers.Dense(256, use_bias=False, name="hidden")(layers.Flatten(name="flatten")(x))
    return _normed(x, "hidden", "relu")


def _plain(image: Any) -> Any:
    """VGG-like, without batch norm: five 3x3 convs, two of them at 28 pixels, and a dense layer on flat features."""
    x = image
    for number, (width, pool) in enumerate(((16, False), (16, True), (32, False), (32, True), (64, False)), 1):
        x = layers.Conv2D(width, 3, padding="same", kernel_initializer="he_normal", name=f"conv{number}")(x)
        x = layers.ReLU(name=f"relu{number}")(x)
        if pool:
            x = layers.MaxPooling2D(name=f"pool{number}")(x)
    x = layers.MaxPooling2D(name="pool5")(x)
    return layers.Dense(64, activation="relu", name="hidden")(layers.Flatten(name="flatten")(x))


def _conv(x: Any, width: int, kernel: int, name: str, strides: int = 1, *, activation: str | None = "relu") -> Any:
    x = layers.Conv2D(
        width, kernel, strides, padding="same", use_bias=False, kernel_initializer="he_normal", name=name
    )(x)
    return _normed(x, name, activation)


def _depth(x: Any, name: str, strides: int = 1) -> Any:
    initial = keras.initializers.RandomNormal(stddev=(2 / 9) ** 0.5)
    x = layers.DepthwiseConv2D(3, strides, padding="same", use_bias=False, depthwise_initializer=initial, name=name)(x)
    return _normed(x, name, "relu")


def _normed(x: Any, name: str, activation: str | None) -> Any:
    x = layers.BatchNormalization(momentum=0.9, name=f"{name}_bn")(x)
    return layers.ReLU(name=f"{name}_relu")(x) if activation else x
