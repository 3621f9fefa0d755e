"""The two networks of the demo, as functions of one width."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import layers

NAMES = ("residual", "depthwise")


def seed_width(name: str, shape: Sequence[int]) -> int:
    """Width of the seed, channels: 0.5 to 1 ms on LiteRT for small images, less width for larger ones."""
    small = shape[0] <= 16
    return {"residual": 96 if small else 48, "depthwise": 160 if small else 64}[name]


def build(name: str, shape: Sequence[int], width: int, *, batch_norm: bool = True, seed: int = 0) -> keras.Model:
    """A network of the demo.

    Args:
        name: "residual" or "depthwise".
        shape: (rows, columns, channels) of an image.
        width: channels of the first stage; all others are multiples of it.
        batch_norm: whether batch norm follows each conv.
        seed: of the initial weights.

    Returns:
        Images [batch, rows, columns, channels] -> logits [batch, 10].
    """
    keras.utils.set_random_seed(seed)
    return {"residual": _residual, "depthwise": _depthwise}[name](tuple(shape), width, batch_norm)


def _residual(shape: tuple[int, ...], width: int, batch_norm: bool) -> keras.Model:
    """A stem and three blocks of two 3x3 convs; the last one halves the image."""
    image = layers.Input(shape, name="image")
    x = _stem(image, width, batch_norm)
    x = _residual_block(x, width, 1, "block1", batch_norm)
    x = _residual_block(x, width, 1, "block2", batch_norm)
    x = _residual_block(x, 3 * width // 2, 2, "block3", batch_norm)
    return _classifier(image, x, "residual")


def _residual_block(x: Any, width: int, stride: int, name: str, batch_norm: bool) -> Any:
    kept = x
    if stride != 1 or x.shape[-1] != width:
        kept = _conv(x, width, 1, f"{name}_project", batch_norm, stride=stride, activation=None)
    x = _conv(x, width, 3, f"{name}_a", batch_norm, stride=stride)
    x = _conv(x, width, 3, f"{name}_b", batch_norm, activation=None)
    x = layers.Add(name=f"{name}_add")([x, kept])
    return layers.Activation("relu", name=f"{name}_relu")(x)


def _depthwise(shape: tuple[int, ...], width: int, batch_norm: bool) -> keras.Model:
    """A stem, three inverted residual blocks (widen three times, depthwise 3x3, narrow), and a 1x1 conv."""
    image = layers.Input(shape, name="image")
    x = _stem(image, width, batch_norm)
    x = _inverted_block(x, width, 1, "block1", batch_norm)
    x = _inverted_block(x, width, 1, "block2", batch_norm)
    x = _inverted_block(x, 3 * width // 2, 2, "block3", batch_norm)
    x = _conv(x, 3 * width, 1, "head", batch_norm)
    return _classifier(image, x, "depthwise")


def _inverted_block(x: Any, width: int, stride: int, name: str, batch_norm: bool) -> Any:
    kept = x
    x = _conv(x, 3 * x.shape[-1], 1, f"{name}_expand", batch_norm)
    x = layers.DepthwiseConv2D(
        3,
        strides=stride,
        padding="same",
        use_bias=not batch_norm,
        depthwise_initializer=keras.initializers.RandomNormal(stddev=(2 / 9) ** 0.5),
        name=f"{name}_depthwise",
    )(x)
    x = _after(x, f"{name}_depthwise", batch_norm, "relu")
    x = _conv(x, width, 1, f"{name}_project", batch_norm, activation=None)
    if stride == 1 and kept.shape[-1] == width:
        x = layers.Add(name=f"{name}_add")([x, kept])
    return x


def _stem(image: Any, width: int, batch_norm: bool) -> Any:
    return _conv(image, width, 3, "stem", batch_norm, stride=1 if image.shape[1] <= 16 else 2)


def _conv(
    x: Any, width: int, kernel: int, name: str, batch_norm: bool, *, stride: int = 1, activation: str | None = "relu"
) -> Any:
    initial = "he_normal" if batch_norm or activation else keras.initializers.VarianceScaling(0.5)
    x = layers.Conv2D(
        width, kernel, strides=stride, padding="same", use_bias=not batch_norm, kernel_initializer=initial, name=name
    )(x)
    return _after(x, name, batch_norm, activation)


def _after(x: Any, name: str, batch_norm: bool, activation: str | None) -> Any:
    if batch_norm:
        x = layers.BatchNormalization(momentum=0.9, name=f"{name}_bn")(x)
    return layers.Activation(activation, name=f"{name}_{activation}")(x) if activation else x


def _classifier(image: Any, x: Any, name: str) -> keras.Model:
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(image, layers.Dense(10, name="logits")(x), name=name)
