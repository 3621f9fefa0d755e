"""What a predictor reads of an operation: its work, and how its shape fills the tiles that devices compute in."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from latency_lab.ops import BROADCASTS, KERNELED, MIXING, OpConfig

Floats = npt.NDArray[np.float64]

WORK = 7
CHANNEL_TILES = (4, 8, 16, 32, 64, 128)
POSITION_TILES = (16, 32, 64, 128, 256)
WINDOW_TILES = (2, 4, 8)
"""Outputs along one axis that a Winograd or FFT kernel computes at a time."""
PRODUCT_TILES = ((32, 32), (64, 64), (128, 128), (128, 64), (128, 32), (256, 64))
"""(positions, channels) of the output that one block of threads of a GPU computes."""

_SHAPE = ("batch", "height", "width", "output_height", "output_width", "output_depth")
_CHANNELS = ("in_channels", "out_channels", "groups", "operands", "residual")
_STATIC = (*_SHAPE, *_CHANNELS, "macs", "input_bytes", "weight_bytes", "output_bytes")
_LOGARITHMS = 22
_FLAGS = 10
_REMAINDERS = 15
FEATURES = (
    _LOGARITHMS
    + 2 * len(CHANNEL_TILES)
    + len(POSITION_TILES)
    + len(WINDOW_TILES)
    + len(PRODUCT_TILES)
    + _REMAINDERS
    + _FLAGS
)


def work(ops: Sequence[OpConfig], quanta: tuple[int, int], cached: float = np.inf) -> Floats:
    """[n, 7]: 1, multiply-adds with channels rounded up to `quanta`, input, weight and output bytes, rows, and bytes of
    weights beyond the `cached`, of operations of one position (in 1e6).

    Of a kind without multiply-adds, the numbers made take their place; of an innermost constant, the positions. Rows:
    where it has no faster way, a convolution reads its input a tap, a channel and a row of its output at a time.
    """
    rows = []
    for op in ops:
        weights = op.weight_bytes
        if op.kind in KERNELED:
            stepped = op.macs * _filled(op.out_channels, quanta[1])
        else:
            stepped = op.output_positions * op.out_channels * _filled(op.out_channels, quanta[1])
            stepped *= op.kernel_size[0] * op.kernel_size[1]
        if op.broadcast == "innermost":  # a row of channels at a time
            stepped = op.output_positions
        if op.kind in MIXING:
            stepped *= _filled(op.in_channels // op.groups, quanta[0])
        read = _rows(op) if op.kind in KERNELED else 0
        far = weights - cached if weights > cached and op.output_positions == 1 else 0.0
        rows.append([1e6, stepped, op.input_bytes, weights, op.output_bytes, read, far])
    return np.array(rows, np.float64).reshape(len(ops), WORK) * 1e-6


def _rows(op: OpConfig) -> int:
    taps = op.kernel_size[0] * op.kernel_size[1] * op.kernel_depth
    return taps * op.in_channels * op.output_height * op.output_depth * op.batch


def features(ops: Sequence[OpConfig]) -> npt.NDArray[np.float32]:
    """[n, `FEATURES`]: logarithms of shape and work, how channels and positions fill tiles, and what is fused.

    Channels are those of one group; positions count all examples of the batch. To a dense layer each position is an
    example, however a file shapes them.
    """
    shape = {name: np.array([getattr(op, name) for op in ops], np.float64) for name in _STATIC}
    dense = np.array([op.kind == "dense" for op in ops], bool)
    if dense.any():
        shape["batch"][dense] = [op.output_positions for op in ops if op.kind == "dense"]
        for name in _SHAPE[1:]:
            shape[name][dense] = 1.0
    kernel = np.array([(*op.kernel_size, op.kernel_depth, *op.strides, op.dilation[0]) for op in ops], np.float64)
    kernel = kernel.reshape(len(ops), 6)
    taps = kernel[:, :3].prod(axis=1)
    inside, out = shape["in_channels"] // shape["groups"], np.maximum(shape["out_channels"] // shape["groups"], 1)
    plane = shape["output_height"] * shape["output_width"]
    positions = shape["batch"] * shape["output_depth"] * plane
    mixing = np.array([op.kind in MIXING for op in ops], bool)
    inner = np.where(mixing, taps * inside, taps)
    columns = [
        *_logarithms(shape, kernel, positions, inside, out, inner),
        *(_up(inside, tile) / inside for tile in CHANNEL_TILES),
        *(_up(out, tile) / out for tile in CHANNEL_TILES),
        *(_up(positions, tile) / positions for tile in POSITION_TILES),
        *(_up(shape["output_height"], t) * _up(shape["output_width"], t) / plane for t in WINDOW_TILES),
        *(
            np.log2(_up(positions, rows) / rows * _up(out, tile) / tile * shape["groups"])
            for rows, tile in PRODUCT_TILES
        ),
        *(count % modulus for count in (inside, out) for modulus in (2, 4, 8, 16, 32)),
        *(positions % 32, shape["batch"] % 8, shape["batch"] % 32, inner % 8, inner % 32),
        *_flags(ops, shape, kernel),
    ]
    return np.stack(columns, axis=1).astype(np.float32)


def _logarithms(
    shape: dict[str, Floats], kernel: Floats, positions: Floats, inside: Floats, out: Floats, inner: Floats
) -> list[Floats]:
    """log2 of sizes, of work, and of multiply-adds a byte."""
    traffic = shape["input_bytes"] + shape["weight_bytes"] + shape["output_bytes"]
    rows, columns = shape["output_height"], shape["output_width"]
    sizes = [
        *(positions, rows * columns, shape["batch"], shape["output_depth"], shape["groups"]),
        *(shape["height"], shape["width"], rows, columns),
        *(inside, out, shape["in_channels"], shape["out_channels"], inner),
        *(shape["macs"] + 1, shape["weight_bytes"] + 1, shape["input_bytes"], shape["output_bytes"], traffic),
        (shape["macs"] + 1) / traffic,
        *(shape["batch"] * _up(rows, tile) * _up(columns, tile) for tile in (2, 4)),
    ]
    return [np.log2(size) for size in sizes]


def _flags(ops: Sequence[OpConfig], shape: dict[str, Floats], kernel: Floats) -> list[Floats]:
    """Kernel, stride and dilation as they are; padding, what is fused, how many operands, of which shape."""
    pads = np.array([op.pads[0][0] + op.pads[1][0] for op in ops], np.float64)
    acts = np.array([op.activation is not None for op in ops], np.float64)
    broadcast = np.array([BROADCASTS.index(op.broadcast) for op in ops], np.float64)
    rows, columns, strides, dilation = kernel[:, 0], kernel[:, 1], kernel[:, 3], kernel[:, 5]
    return [rows, columns, kernel[:, 2], strides, dilation, pads, shape["operands"], shape["residual"], acts, broadcast]


def _up(count: Floats, tile: int) -> Floats:
    """Counts rounded up to whole tiles."""
    rounded: Floats = np.ceil(count / tile) * tile
    return rounded


def _filled(channels: int, tile: int) -> float:
    """How much larger the channels are once rounded up to whole tiles: at least 1."""
    return -(-channels // tile) * tile / channels
