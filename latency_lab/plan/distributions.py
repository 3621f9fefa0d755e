"""The operations of networks in general: distributions that shapes are drawn from, no network in particular.

Of a convolution or dense operation, the multiply-adds are log-uniform within the bounds of its row in `COMPUTING`, the
positions uniform over `SIZES`, and the ratio of output to input channels log-uniform between 1/6 and 6 (1/12 and 12 of
pointwise ones); of a memory-bound operation, the numbers in the tensor are log-uniform. Channels are whole `UNITS`. A
runtime merges activations, residuals and pads into some kinds: those are drawn too.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from latency_lab.errors import UsageError
from latency_lab.ops import ACTIVATIONS, BINARY, OpConfig

SIZES = (5, 7, 8, 10, 12, 14, 16, 19, 20, 24, 28, 32, 35, 40, 48, 56, 64, 71, 80, 96, 112, 112, 128, 147, 160, 192, 224)
MOST_CHANNELS = 4096
MOST_BYTES = 48 << 20
UNITS = {32: 0.2, 16: 0.15, 8: 0.3, 4: 0.1, 1: 0.25}
"""What channels are a multiple of, and how often. Published networks have mostly multiples of 16 and 32, which is what
the vectors of a CPU hold and what a runtime may have its fast kernels for; narrowed ones have anything."""
BATCHES = (2, 3, 4, 8)
BATCH_SHARE = 0.04
TRIES = 400

Draw = Callable[[np.random.Generator, float], dict[str, Any]]
"""(generator, macs or numbers) -> the fields of an operation."""


class Row(NamedTuple):
    """How many of a family are drawn, within which bounds of macs (memory-bound: of numbers in the input)."""

    points: int
    low: float
    high: float
    draw: Draw


def draw_ops(
    rng: np.random.Generator,
    rules: Collection[str],
    supported: Callable[[OpConfig], bool],
    *,
    share: float = 1.0,
    dtype: str = "float32",
    rows: Mapping[str, Row] | None = None,
) -> Iterator[OpConfig]:
    """Operations of rows.

    Args:
        rng: the same state gives the same operations.
        rules: what the runtime merges (`profiles.fusions`): which activations a conv is drawn with.
        supported: whether the runtime can build an operation; others are left out.
        share: of each row's count.
        dtype: of the operations.
        rows: by name; None: those of `COMPUTING` and `MOVING`.
    """
    for name, row in {**COMPUTING, **MOVING}.items() if rows is None else rows.items():
        for _ in range(max(1, round(share * row.points))):
            op = _one(rng, name, row, rules, supported, dtype)
            if op is not None:
                yield op


def _one(
    rng: np.random.Generator,
    name: str,
    row: Row,
    rules: Collection[str],
    supported: Callable[[OpConfig], bool],
    dtype: str,
) -> OpConfig | None:
    """One operation of a row; None if the runtime builds none of that kind."""
    refused = 0
    for _ in range(TRIES):
        amount = float(np.exp(rng.uniform(np.log(row.low), np.log(row.high))))
        fields = row.draw(rng, amount)
        if fields["kind"] not in {"conv3d", "quantize", "dequantize"} and rng.random() < BATCH_SHARE:
            fields["batch"] = int(rng.choice(BATCHES))
        fields = {**fields, **_merged(rng, fields, rules)}
        try:
            op = OpConfig(dtype=dtype, **fields)
        except UsageError:
            continue
        if not _fits(op, row):
            continue
        if supported(op):
            return op
        refused += 1
        if refused > 20:
            return None
    raise UsageError(f"Drew no operation of {name!r} within its bounds in {TRIES} tries.")


def _fits(op: OpConfig, row: Row) -> bool:
    most = max(op.in_channels, op.out_channels)
    if op.kind not in {"flatten", "dense", "reshape"} and most > MOST_CHANNELS:
        return False
    return op.traffic_bytes <= MOST_BYTES and op.macs <= 1.5 * row.high and min(op.output_height, op.output_width) > 0


def _merged(rng: np.random.Generator, fields: Mapping[str, Any], rules: Collection[str]) -> dict[str, Any]:
    """An activation, a residual and pads that the runtime merges into this kind."""
    kind = fields["kind"]
    found: dict[str, Any] = {}
    names = sorted(rule.split("+")[1] for rule in rules if rule.startswith(f"{kind}+"))
    activations = [name for name in names if name in ACTIVATIONS]
    if activations and "activation" not in fields and rng.random() < 0.6:
        weights = np.array([6.0 if name in {"relu", "relu6"} else 1.0 for name in activations])
        found["activation"] = str(rng.choice(activations, p=weights / weights.sum()))
    if "add" in names and rng.random() < 0.15:
        found["residual"] = True
        found["activation"] = "relu" if rng.random() < 0.6 else None
    padded = 0.4 if fields["in_channels"] == 3 else 0.12  # many a first convolution is
    if f"pad+{kind}" in rules and fields.get("padding") == "same" and rng.random() < padded:
        rows, columns = (size // 2 for size in fields.get("kernel_size", (1, 1)))
        odd = int(fields.get("strides", (1, 1)) != (1, 1) and rng.random() < 0.5)
        found["padding"] = ((max(rows - odd, 0), rows), (max(columns - odd, 0), columns))
    return found


# ---- parts of a draw --------------------------------------------------------------------------------------------


def _size(rng: np.random.Generator, most: int = 224, least: int = 5) -> int:
    return int(rng.choice([size for size in SIZES if least <= size <= most]))


def _round(rng: np.random.Generator, channels: float, least: int = 1) -> int:
    unit = int(rng.choice(list(UNITS), p=list(UNITS.values())))
    unit = unit if channels >= unit else 1
    return int(max(least, round(channels / unit) * unit))


def _pair(rng: np.random.Generator, product: float, lean: float = 6.0) -> tuple[int, int]:
    """(in, out) channels of about this product."""
    ratio = float(np.exp(rng.uniform(-np.log(lean), np.log(lean))))
    middle = float(np.sqrt(max(product, 1.0)))
    return _round(rng, middle / np.sqrt(ratio), 2), _round(rng, middle * np.sqrt(ratio), 2)


def _image(rng: np.random.Generator, numbers: float, most: int = 224, least: int = 5) -> dict[str, Any]:
    """Height, width and equal channels of about this many numbers."""
    size = _size(rng, most, least)
    channels = _round(rng, numbers / size**2, 2)
    return {"height": size, "width": size, "in_channels": channels, "out_channels": channels}


# ---- operations that compute ------------------------------------------------------------------------------------


def _pointwise(rng: np.random.Generator, macs: float) -> dict[str, Any]:
    size, stride = _size(rng), 2 if rng.random() < 0.08 else 1
    ins, outs = _pair(rng, macs / (-(-size // stride)) ** 2, lean=12.0)
    padding = "same" if rng.random() < 0.7 else "valid"
    fields = {"height": size, "width": size, "in_channels": ins, "out_channels": outs, "strides": (stride, stride)}
    return {"kind": "conv2d", "padding": padding, **fields}


def _late(rng: np.random.Generator, macs: float) -> dict[str, Any]:
    """A convolution where networks have most of their weights: few positions, many channels.

    Whether they fit the cache closest to the core makes a third of the time, and where it does depends on the shape.
    """
    size, rows = _size(rng, 28, 7), 1 if rng.random() < 0.65 else 3
    ins, outs = _pair(rng, macs / size**2 / rows**2, lean=12.0 if rows == 1 else 3.0)
    shape = {"height": size, "width": size, "in_channels": ins, "out_channels": outs}
    return {"kind": "conv2d", **shape, "kernel_size": (rows, rows), "padding": "same"}


def _squeezed(rng: np.random.Generator, macs: float) -> dict[str, Any]:
    """A 1x1 convolution of one position, as in squeeze-and-excite."""
    ins, outs = _pair(rng, macs, lean=24.0)
    return {"kind": "conv2d", "in_channels": ins, "out_channels": outs}


def _conv(rng: np.random.Generator, macs: float) -> dict[str, Any]:
    kernel = [(3, 3), (5, 5), (7, 7), (1, 7), (7, 1), (1, 3), (3, 1), (2, 2), (4, 4), (11, 11)]
    rows, columns = kernel[int(rng.choice(len(kernel), p=[0.62, 0.1, 0.04, 0.05, 0.05, 0.03, 0.03, 0.02, 0.03, 0.03]))]
    size, stride = _size(rng), 2 if rng.random() < 0.3 else 1
    if (rows, columns) == (4, 4):
        stride = 4
    ins, outs = _pair(rng, macs / (-(-size // stride)) ** 2 / (rows * columns))
    dilation = (2, 2) if stride == 1 and rng.random() < 0.03 else (1, 1)
    padding = "same" if rng.random() < 0.75 else "valid"
    fields = {"kernel_size": (rows, columns), "strides": (stride, stride), "dilation": dilation, "padding": padding}
    return {"kind": "conv2d", "height": size, "width": size, "in_channels": ins, "out_channels": outs, **fields}


def _stem(rng: np.random.Generator, _: float) -> dict[str, Any]:
    """The first convolution of a network: on an image of three channels, to 8 to 96."""
    kernel, stride = [(3, 2), (3, 1), (5, 2), (7, 2), (4, 4)][int(rng.choice(5, p=[0.5, 0.1, 0.05, 0.25, 0.1]))]
    size = int(rng.choice([96, 112, 128, 160, 192, 224, 224, 240, 256, 299, 320]))
    outs = _round(rng, float(np.exp(rng.uniform(np.log(8), np.log(96)))))
    fields = {"kernel_size": (kernel, kernel), "strides": (stride, stride)}
    padding = "same" if kernel > stride and rng.random() < 0.75 else "valid"
    shape = {"height": size, "width": size, "in_channels": 3, "out_channels": outs}
    return {"kind": "conv2d", **shape, **fields, "padding": padding}


def _depthwise(rng: np.random.Generator, macs: float) -> dict[str, Any]:
    kernel = int(rng.choice([1, 3, 5, 7], p=[0.05, 0.52, 0.27, 0.16]))
    size, stride = _size(rng), 2 if rng.random() < 0.3 else 1
    channels = _round(rng, macs / (-(-size // stride)) ** 2 / kernel**2, 2)
    outs = channels * (2 if rng.random() < 0.02 else 1)
    padding = "same" if rng.random() < 0.85 else "valid"
    fields = {"kernel_size": (kernel, kernel), "strides": (stride, stride), "padding": padding}
    shape = {"height": size, "width": size, "in_channels": channels, "out_channels": outs}
    return {"kind": "depthwise_conv2d", **shape, **fields}


def _grouped(rng: np.random.Generator, macs: float) -> dict[str, Any]:
    kernel = int(rng.choice([1, 3, 3, 5]))
    groups, size, stride = int(rng.choice([2, 3, 4, 8, 16, 32])), _size(rng, 64), 2 if rng.random() < 0.2 else 1
    ins, outs = _pair(rng, macs / (-(-size // stride)) ** 2 / kernel**2 / groups, lean=2.0)
    fields = {"kernel_size": (kernel, kernel), "strides": (stride, stride), "groups": groups}
    shape = {"height": size, "width": size, "in_channels": ins * groups, "out_channels": outs * groups}
    return {"kind": "conv2d", **shape, **fields}


def _transposed(rng: np.random.Generator, macs: float) -> dict[str, Any]:
    kernel, size = int(rng.choice([2, 3, 4, 5])), _size(rng, 64)
    ins, outs = _pair(rng, macs / size**2 / kernel**2)
    shape = {"height": size, "width": size, "in_channels": ins, "out_channels": outs}
    padding = "same" if rng.random() < 0.7 else "valid"
    return {"kind": "conv2d_transpose", **shape, "kernel_size": (kernel, kernel), "strides": (2, 2), "padding": padding}


def _conv3d(rng: np.random.Generator, macs: float) -> dict[str, Any]:
    size, depth = _size(rng, 40), int(rng.choice([4, 8, 16]))
    ins, outs = _pair(rng, macs / size**2 / depth / 27)
    shape = {"height": size, "width": size, "depth": depth, "in_channels": ins, "out_channels": outs}
    return {"kind": "conv3d", **shape, "kernel_size": (3, 3), "kernel_depth": 3, "padding": "same"}


def _sequence(rng: np.random.Generator, macs: float) -> dict[str, Any]:
    """A convolution along one axis."""
    kernel, length = int(rng.choice([1, 3, 5, 7])), int(rng.choice([16, 32, 50, 64, 100, 128, 200, 256]))
    ins, outs = _pair(rng, macs / length / kernel)
    shape = {"height": 1, "width": length, "in_channels": ins, "out_channels": outs}
    return {"kind": "conv2d", **shape, "kernel_size": (1, kernel), "padding": "same"}


def _dense(rng: np.random.Generator, macs: float) -> dict[str, Any]:
    ins, outs = _pair(rng, macs, lean=16.0)
    if rng.random() < 0.35:
        outs = int(rng.choice([10, 100, 1000, 1000, 1000]))
        ins = _round(rng, macs / outs, 2)
    return {"kind": "dense", "in_channels": ins, "out_channels": outs, "use_bias": bool(rng.random() < 0.85)}


def _dense_at_positions(rng: np.random.Generator, macs: float) -> dict[str, Any]:
    size = _size(rng, 56)
    ins, outs = _pair(rng, macs / size**2)
    return {"kind": "dense", "height": size, "width": size, "in_channels": ins, "out_channels": outs}


COMPUTING: Mapping[str, Row] = {
    "pointwise": Row(850, 3e4, 4e8, _pointwise),
    "late": Row(250, 1e7, 4e8, _late),
    "squeezed": Row(130, 1e2, 1e6, _squeezed),
    "conv": Row(750, 1e5, 6e8, _conv),
    "stem": Row(70, 1e6, 2e8, _stem),
    "depthwise": Row(600, 5e3, 5e7, _depthwise),
    "grouped": Row(100, 1e5, 2e8, _grouped),
    "transposed": Row(60, 1e5, 2e8, _transposed),
    "conv3d": Row(25, 1e6, 2e8, _conv3d),
    "sequence": Row(40, 2e4, 3e7, _sequence),
    "dense": Row(220, 2e2, 8e6, _dense),
    "dense at positions": Row(90, 1e5, 3e8, _dense_at_positions),
}


# ---- operations that move -----------------------------------------------------------------------------------------


def _kind(kind: str, most: int = 224, **static: Any) -> Draw:
    """An operation of one image in and one like it out."""
    return lambda rng, numbers: {"kind": kind, **_image(rng, numbers, most), **static}


def _vector(kind: str, **static: Any) -> Draw:
    """An operation on (batch, channels)."""

    def draw(rng: np.random.Generator, numbers: float) -> dict[str, Any]:
        channels = _round(rng, numbers, 2)
        return {"kind": kind, "in_channels": channels, "out_channels": channels, **static}

    return draw


def _binary(rng: np.random.Generator, numbers: float) -> dict[str, Any]:
    """Arithmetic that exports leave: by a constant or a second tensor of any shape that broadcasts."""
    kind = str(rng.choice(sorted(BINARY), p=_BINARY_SHARES))
    broadcast = str(rng.choice(["", "channels", "positions", "scalar"], p=[0.2, 0.4, 0.15, 0.25]))
    constant = broadcast == "scalar" or (broadcast == "channels" and rng.random() < 0.7)
    return {"kind": kind, **_image(rng, numbers), "broadcast": broadcast, "operands": 1 if constant else 2}


_BINARY_SHARES = [0.3, 0.12, 0.06, 0.06, 0.28, 0.06, 0.12]
"""Of add, divide, maximum, minimum, multiply, squared_difference, subtract."""


def _concatenate(rng: np.random.Generator, numbers: float) -> dict[str, Any]:
    operands = int(rng.choice([2, 2, 2, 3, 4, 5]))
    image = _image(rng, numbers, 112)
    channels = max(image["in_channels"], 2 * operands)
    return {"kind": "concatenate", **image, "in_channels": channels, "out_channels": channels, "operands": operands}


def _pool(rng: np.random.Generator, numbers: float) -> dict[str, Any]:
    kernel, stride = [(3, 2), (3, 1), (2, 2), (5, 1)][int(rng.choice(4, p=[0.4, 0.3, 0.25, 0.05]))]
    window = {"kernel_size": (kernel, kernel), "strides": (stride, stride)}
    kind, padding = str(rng.choice(["max_pool", "avg_pool"])), "same" if rng.random() < 0.6 else "valid"
    return {"kind": kind, **_image(rng, numbers), **window, "padding": padding}


def _pad(rng: np.random.Generator, numbers: float) -> dict[str, Any]:
    image = _image(rng, numbers)
    if rng.random() < 0.25:
        size = int(rng.choice([128, 160, 192, 224, 256]))
        image = {"height": size, "width": size, "in_channels": 3, "out_channels": 3}
    before, after = [(0, 1), (1, 1), (2, 2), (3, 3), (1, 0)][int(rng.integers(5))]
    return {"kind": "pad", **image, "padding": ((before, after), (before, after))}


def _slice(rng: np.random.Generator, numbers: float) -> dict[str, Any]:
    """A crop of a position or two, or half of the channels."""
    image = _image(rng, numbers, least=8)
    if rng.random() < 0.5:
        cut = int(rng.integers(1, 3))
        return {"kind": "slice", **image, "output_size": (image["height"] - cut, image["width"] - cut)}
    size = (image["height"], image["width"])
    return {"kind": "slice", **image, "output_size": size, "out_channels": max(1, image["in_channels"] // 2)}


def _resize(rng: np.random.Generator, numbers: float) -> dict[str, Any]:
    image, kind = _image(rng, numbers, 112), str(rng.choice(["resize_nearest", "resize_bilinear"]))
    return {"kind": kind, **image, "output_size": (2 * image["height"], 2 * image["width"])}


def _group_norm(rng: np.random.Generator, numbers: float) -> dict[str, Any]:
    image, groups = _image(rng, numbers, 112), int(rng.choice([2, 4, 8]))
    channels = groups * max(1, image["in_channels"] // groups)
    return {"kind": "group_norm", **image, "in_channels": channels, "out_channels": channels, "groups": groups}


def _channel_shuffle(rng: np.random.Generator, numbers: float) -> dict[str, Any]:
    fields = _group_norm(rng, numbers)
    return {**fields, "kind": "channel_shuffle"}


def _channel_mean(rng: np.random.Generator, numbers: float) -> dict[str, Any]:
    return {"kind": "channel_mean", **_image(rng, numbers, 112), "out_channels": 1}


def _flatten(rng: np.random.Generator, numbers: float) -> dict[str, Any]:
    image = _image(rng, numbers, 16)
    return {"kind": "flatten", **image, "out_channels": image["height"] * image["width"] * image["in_channels"]}


def _reshape(rng: np.random.Generator, numbers: float) -> dict[str, Any]:
    image = _image(rng, numbers, 56)
    return {"kind": "reshape", **image, "output_size": (1, image["height"] * image["width"])}


_COMMON = ("relu", "relu6", "sigmoid", "hard_sigmoid", "tanh", "hard_swish", "silu", "gelu")
_OTHER = ("prelu", "leaky_relu", "elu", "selu", "softplus", "exponential", "log", "sqrt", "rsqrt", "square", "abs")
MOVING: Mapping[str, Row] = {
    "add": Row(200, 5e2, 3e6, _kind("add", operands=2)),
    "add of three": Row(20, 5e2, 1e6, _kind("add", operands=3)),
    "multiply": Row(60, 5e2, 3e6, _kind("multiply", operands=2)),
    "scale": Row(200, 5e2, 4e6, _kind("multiply", operands=2, broadcast="channels")),
    "constant scale": Row(90, 5e2, 4e6, _kind("multiply", operands=1, broadcast="channels")),
    "constant shift": Row(90, 5e2, 4e6, _kind("add", operands=1, broadcast="channels")),
    "binary": Row(240, 5e2, 3e6, _binary),
    "arithmetic of vectors": Row(30, 8, 4e3, _vector("add", operands=1, broadcast="scalar")),
    "concatenate": Row(200, 2e3, 3e6, _concatenate),
    "pool": Row(280, 2e3, 3e6, _pool),
    "global average": Row(150, 5e2, 2e6, _kind("global_avg_pool", 112)),
    "global maximum": Row(25, 5e2, 1e6, _kind("global_max_pool", 112)),
    **{f"activation {a}": Row(36, 5e2, 4e6, _kind("activation", activation=a)) for a in _COMMON},
    **{f"vector {a}": Row(8, 8, 4e3, _vector("activation", activation=a)) for a in _COMMON},
    **{f"activation {a}": Row(10, 5e2, 2e6, _kind("activation", activation=a)) for a in (*_OTHER, "negative", "erf")},
    "batch norm": Row(110, 5e2, 4e6, _kind("batch_norm")),
    "layer norm": Row(60, 5e2, 2e6, _kind("layer_norm", 112)),
    "group norm": Row(25, 5e2, 1e6, _group_norm),
    "local response norm": Row(45, 2e4, 1.5e6, _kind("local_response_norm", 112)),
    "channel mean": Row(50, 5e2, 2e6, _channel_mean),
    "softmax": Row(40, 8, 1e4, _vector("softmax")),
    "pad": Row(120, 5e2, 3e6, _pad),
    "slice": Row(90, 5e2, 2e6, _slice),
    "transpose": Row(60, 5e2, 2e6, _kind("transpose")),
    "channel shuffle": Row(30, 2e3, 1e6, _channel_shuffle),
    "flatten": Row(30, 1e2, 1e5, _flatten),
    "reshape": Row(30, 5e2, 1e6, _reshape),
    "resize": Row(80, 5e2, 1e6, _resize),
    "quantize": Row(25, 5e2, 1e6, _kind("quantize")),
    "dequantize": Row(25, 5e2, 1e6, _kind("dequantize")),
    "reorder in": Row(90, 5e2, 4e6, _kind("reorder_input")),
    "reorder out": Row(90, 5e2, 4e6, _kind("reorder_output")),
}


_IN_GENERATED = frozenset(
    {
        *("pointwise", "squeezed", "conv", "depthwise", "dense", "dense at positions", "add", "scale", "concatenate"),
        *("pool", "global average", "batch norm", "layer norm"),
    }
)
GENERATED: Mapping[str, Row] = {n: row for n, row in {**COMPUTING, **MOVING}.items() if n in _IN_GENERATED}
"""What generated networks (`graph.generate`) are made of, ..."""
OTHERS: Mapping[str, Row] = {n: row for n, row in {**COMPUTING, **MOVING}.items() if n not in _IN_GENERATED}
"""... and what they have little of, or nothing."""


def _by_channels(rng: np.random.Generator, numbers: float) -> dict[str, Any]:
    """Constants that images are normalised by, before the first convolution; or that scale channels last."""
    kind = str(rng.choice(["add", "multiply", "subtract"]))
    broadcast = str(rng.choice(["innermost", "channels", "scalar"], p=[0.5, 0.25, 0.25]))
    if rng.random() < 0.25:
        return {"kind": kind, **_image(rng, numbers), "broadcast": broadcast}
    channels = int(rng.choice([1, 3, 3, 3, 4]))
    size = max(8, round((numbers / channels) ** 0.5))
    image = {"height": size, "width": size, "in_channels": channels, "out_channels": channels}
    return {"kind": kind, **image, "broadcast": broadcast}


def _scaled_stem(rng: np.random.Generator, macs: float) -> dict[str, Any]:
    return {**_stem(rng, macs), "broadcast": str(rng.choice(["scalar", "channels"]))}


NORMALISING: Mapping[str, Row] = {"image normalisation": Row(150, 5e3, 8e5, _by_channels)}
"""Drawn apart from the others, and after them."""
SCALED: Mapping[str, Row] = {"stem of a scaled image": Row(70, 1e6, 2e8, _scaled_stem)}
"""What the rule "image+conv2d" makes; drawn apart as well."""
COPIES: Mapping[str, Row] = {"copy": Row(150, 5e2, 3e6, _kind("avg_pool"))}
"""What the rules "concatenate+copy" and "pad+copy" add; drawn apart as well."""


def in_type(op: OpConfig, dtype: str) -> OpConfig:
    """The operation on numbers of another type."""
    return dataclasses.replace(op, dtype=dtype)
