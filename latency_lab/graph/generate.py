"""Random networks of common blocks, to calibrate and to check what is said about whole networks.

A network is given as a model is read: conv, batch norm and activation apart, before any fusion.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from latency_lab.errors import UsageError
from latency_lab.ops import Network, OpConfig

RESOLUTIONS = (16, 24, 32, 48, 56, 64, 96, 112, 160, 224)
_MAX_WIDTH = 2048
_LAST_SIZE = 8
_EVEN = (6, 6, 6)
_LATE = (2, 4, 12)
"""Blocks at most of a stage that reads more than 64 positions a side, more than 32, or fewer. In most networks most
blocks come late, as in the published ones: there are the weights, and with them what a cache cannot keep."""
_LATE_SHARE = 0.75
_COMMON = {"inverted": 6, "bottleneck": 4, "separable": 3, "preactivated": 2}
"""How much more often than others some blocks are drawn."""
_UNITS = (32, 16, 8, 8, 4, 1)
"""What a network's channels are multiples of, each as often as it stands here."""
_TRIES = 100
_SCALINGS = 4
_NEAR = 0.3
"""A network has its multiply-adds within this of what was drawn, as a logarithm."""


@dataclass(frozen=True)
class _Tensor:
    source: int
    height: int
    width: int
    channels: int


@dataclass
class _Stack:
    """Nodes so far; channels come in whole units."""

    unit: int
    nodes: list[tuple[OpConfig, tuple[int, ...]]] = field(default_factory=list)

    @property
    def macs(self) -> int:
        return sum(op.macs for op, _ in self.nodes)

    @property
    def parameters(self) -> int:
        return sum(op.weight_bytes for op, _ in self.nodes) // 4

    def round(self, channels: float) -> int:
        """Whole units of channels: at least 8, at most `_MAX_WIDTH`."""
        return int(min(max(self.unit * round(channels / self.unit), 8), _MAX_WIDTH))

    def add(self, kind: str, x: _Tensor, *others: _Tensor, out: int | None = None, **static: object) -> _Tensor:
        """One node of this kind on x (and others); `out` channels where they differ from those of x."""
        out = out or x.channels
        op = OpConfig(kind, height=x.height, width=x.width, in_channels=x.channels, out_channels=out, **static)  # type: ignore[arg-type]
        if kind == "concatenate":
            total = sum(t.channels for t in (x, *others))
            op = op.with_channels(total, total)
        self.nodes.append((op, tuple(t.source for t in (x, *others))))
        return _Tensor(len(self.nodes) - 1, op.output_height, op.output_width, op.out_channels)

    def conv(
        self, x: _Tensor, out: int, size: int = 3, stride: int = 1, act: str | None = "relu", padding: str = "same"
    ) -> _Tensor:
        """Conv, batch norm, activation."""
        x = self.add(
            "conv2d", x, out=out, kernel_size=(size, size), strides=(stride, stride), padding=padding, use_bias=False
        )
        return self.norm(x, act)

    def depthwise(self, x: _Tensor, size: int = 3, stride: int = 1, act: str | None = "relu") -> _Tensor:
        """Depthwise conv, batch norm, activation."""
        x = self.add("depthwise_conv2d", x, kernel_size=(size, size), strides=(stride, stride), use_bias=False)
        return self.norm(x, act)

    def norm(self, x: _Tensor, act: str | None) -> _Tensor:
        x = self.add("batch_norm", x)
        return self.add("activation", x, activation=act) if act else x


_Block = Callable[[_Stack, np.random.Generator, _Tensor, int, int, str], _Tensor]
"""(stack, rng, input, channels, stride, activation) -> output."""


def random_network(
    rng: np.random.Generator,
    macs: tuple[float, float] = (10e6, 400e6),
    resolutions: Sequence[int] = RESOLUTIONS,
    parameters: tuple[float, float] = (0.0, np.inf),
) -> Network:
    """One network: a stem, stages of blocks of a few kinds at falling resolution and growing width, a head.

    Args:
        rng: the same generator state gives the same network.
        macs: least and most multiply-adds; the network's are spread evenly between their logarithms.
        resolutions: positions a side of the image, of which one is drawn.
        parameters: least and most weights.

    Returns:
        the network; widths 8 to 2048 (times 6 inside inverted residuals) in whole `_UNITS`. A stage has 1 to 12
        blocks; stages follow until 8 positions a side are left.

    Raises:
        UsageError: no network was found within the bounds.

    Example:
        >>> import numpy as np
        >>> from latency_lab.graph.generate import random_network
        >>> network = random_network(np.random.default_rng(0))
        >>> 10e6 <= sum(op.macs for op, _ in network.nodes) <= 400e6
        True
    """
    low, high = macs
    for _ in range(_TRIES):
        goal = float(np.exp(rng.uniform(np.log(low), np.log(high))))
        seed, width = int(rng.integers(2**32)), float(rng.uniform(8, 64))
        for _ in range(_SCALINGS):
            stack = _draw(np.random.default_rng(seed), width, resolutions)
            if low <= stack.macs <= high and abs(np.log(stack.macs / goal)) < _NEAR:
                if parameters[0] <= stack.parameters <= parameters[1]:
                    return Network(tuple(stack.nodes), f"random {seed}")
                break
            width *= float(np.sqrt(goal / stack.macs))
    raise UsageError(
        f"Found no network of {low:.3g} to {high:.3g} multiply-adds and {parameters[0]:.3g} to {parameters[1]:.3g} "
        "parameters. Give `macs` or `parameters` a wider range."
    )


def _draw(rng: np.random.Generator, width: float, resolutions: Sequence[int]) -> _Stack:
    """A network whose stem has about this width."""
    stack = _Stack(int(rng.choice(_UNITS)))
    size, growth = int(rng.choice(resolutions)), float(rng.uniform(1.5, 2.4))
    act = str(rng.choice(["relu", "relu", "relu6", "hard_swish", "silu", "silu"]))
    names, most = sorted(_BLOCKS), _LATE if rng.random() < _LATE_SHARE else _EVEN
    shares = np.array([_COMMON.get(name, 1) for name in names], float)
    kinds = rng.choice(names, size=int(rng.integers(1, 4)), replace=False, p=shares / shares.sum())
    x = stack.conv(_Tensor(-1, size, size, 3), stack.round(width), 3, 2 if size >= 32 else 1, act)
    stride = 1
    while True:
        kind = str(rng.choice(kinds))
        for block in range(int(rng.integers(1, most[(x.height <= 64) + (x.height <= 32)] + 1))):
            x = _BLOCKS[kind](stack, rng, x, stack.round(width), stride if block == 0 else 1, act)
        if x.height <= _LAST_SIZE:
            break
        stride, width = 2, width * growth
    _head(stack, rng, x, act)
    return stack


def _head(stack: _Stack, rng: np.random.Generator, x: _Tensor, act: str) -> None:
    """Perhaps a wide 1x1 conv, pooling, perhaps a hidden dense layer, classes."""
    if rng.random() < 0.5:
        x = stack.conv(x, stack.round(x.channels * rng.uniform(1.5, 6.0)), 1, 1, act)
    x = stack.add("global_avg_pool", x)
    if rng.random() < 0.5:
        x = stack.add("activation", stack.add("dense", x, out=int(rng.choice([256, 512, 1024, 2048]))), activation=act)
    stack.add("dense", x, out=int(rng.choice([10, 100, 1000, 1000])))


# ---- blocks -----------------------------------------------------------------------------------------------------


def _plain(stack: _Stack, rng: np.random.Generator, x: _Tensor, channels: int, stride: int, act: str) -> _Tensor:
    x = stack.conv(x, channels, int(rng.choice([1, 3, 3, 3, 5])), 1, act)
    if stride == 1:
        return x
    kind = str(rng.choice(["max_pool", "avg_pool"]))
    size = int(rng.choice([2, 3]))
    return stack.add(kind, x, kernel_size=(size, size), strides=(2, 2), padding="same")


def _residual(stack: _Stack, rng: np.random.Generator, x: _Tensor, channels: int, stride: int, act: str) -> _Tensor:
    y = stack.conv(stack.conv(x, channels, 3, stride, act), channels, 3, 1, None)
    return _joined(stack, x, y, stride, act)


def _bottleneck(stack: _Stack, rng: np.random.Generator, x: _Tensor, channels: int, stride: int, act: str) -> _Tensor:
    inner = stack.round(channels / 4)
    y = stack.conv(stack.conv(x, inner, 1, 1, act), inner, 3, stride, act)
    return _joined(stack, x, stack.conv(y, channels, 1, 1, None), stride, act)


def _joined(stack: _Stack, x: _Tensor, y: _Tensor, stride: int, act: str) -> _Tensor:
    if stride != 1 or x.channels != y.channels:
        x = stack.conv(x, y.channels, 1, stride, None)
    return stack.add("activation", stack.add("add", x, y, operands=2), activation=act)


def _inverted(stack: _Stack, rng: np.random.Generator, x: _Tensor, channels: int, stride: int, act: str) -> _Tensor:
    y = stack.conv(x, x.channels * int(rng.choice([3, 4, 6])), 1, 1, act)
    y = stack.depthwise(y, int(rng.choice([3, 3, 5])), stride, act)
    if rng.random() < 0.3:
        y = _squeeze_excite(stack, rng, y)
    y = stack.conv(y, channels, 1, 1, None)
    return stack.add("add", x, y, operands=2) if stride == 1 and x.channels == channels else y


def _squeeze_excite(stack: _Stack, rng: np.random.Generator, x: _Tensor) -> _Tensor:
    kind = str(rng.choice(["conv2d", "dense"]))
    s = stack.add("global_avg_pool", x)
    s = stack.add("activation", stack.add(kind, s, out=stack.round(x.channels / 8)), activation="relu")
    s = stack.add(kind, s, out=x.channels)
    s = stack.add("activation", s, activation=str(rng.choice(["sigmoid", "hard_sigmoid"])))
    return stack.add("multiply", x, s, operands=2, broadcast="channels")


def _separable(stack: _Stack, rng: np.random.Generator, x: _Tensor, channels: int, stride: int, act: str) -> _Tensor:
    x = stack.depthwise(x, int(rng.choice([3, 3, 5])), stride, str(act))
    return stack.conv(x, channels, 1, 1, act)


def _dense_block(stack: _Stack, rng: np.random.Generator, x: _Tensor, channels: int, stride: int, act: str) -> _Tensor:
    for _ in range(int(rng.integers(2, 5))):
        y = stack.conv(x, stack.round(channels / 4), 3, 1, act)
        x = stack.add("concatenate", x, y, operands=2)
    x = stack.conv(x, channels, 1, 1, act)
    return x if stride == 1 else stack.add("avg_pool", x, kernel_size=(2, 2), strides=(2, 2), padding="valid")


def _branches(stack: _Stack, rng: np.random.Generator, x: _Tensor, channels: int, stride: int, act: str) -> _Tensor:
    parts = [stack.conv(x, stack.round(channels / 4), 1, stride, act)]
    parts.append(
        stack.conv(stack.conv(x, stack.round(channels / 4), 1, 1, act), stack.round(channels / 2), 3, stride, act)
    )
    pooled = stack.add("max_pool", x, kernel_size=(3, 3), strides=(stride, stride), padding="same")
    parts.append(stack.conv(pooled, stack.round(channels / 4), 1, 1, act))
    return stack.add("concatenate", *parts, operands=3)


def _padded(stack: _Stack, rng: np.random.Generator, x: _Tensor, channels: int, stride: int, act: str) -> _Tensor:
    pads = ((0, 1), (0, 1)) if stride == 2 else ((1, 1), (1, 1))
    return stack.conv(stack.add("pad", x, padding=pads), channels, 3, stride, act, "valid")


def _expanded(stack: _Stack, rng: np.random.Generator, x: _Tensor, channels: int, stride: int, act: str) -> _Tensor:
    """An inverted residual whose expansion and depthwise convolution are one convolution."""
    y = stack.conv(x, min(x.channels * int(rng.choice([2, 4])), 4 * _MAX_WIDTH), 3, stride, act)
    y = stack.conv(y, channels, 1, 1, None)
    return stack.add("add", x, y, operands=2) if stride == 1 and x.channels == channels else y


def _normalized(stack: _Stack, rng: np.random.Generator, x: _Tensor, channels: int, stride: int, act: str) -> _Tensor:
    """Depthwise, layer norm, two dense layers at each position, layer scale, residual."""
    if stride == 2 or x.channels != channels:
        x = stack.add("layer_norm", x)
        size = (stride, stride)
        x = stack.add("conv2d", x, out=channels, kernel_size=size, strides=size, padding="valid")
    y = stack.add("layer_norm", stack.add("depthwise_conv2d", x, kernel_size=(7, 7)))
    y = stack.add("activation", stack.add("dense", y, out=4 * channels), activation="gelu")
    y = stack.add("dense", y, out=channels)
    y = stack.add("multiply", y, broadcast="channels")
    return stack.add("add", x, y, operands=2)


def _cell(stack: _Stack, rng: np.random.Generator, x: _Tensor, channels: int, stride: int, act: str) -> _Tensor:
    """Separable convolutions and poolings added in pairs, the sums concatenated."""
    width = stack.round(channels / 3)
    x = stack.conv(stack.add("activation", x, activation="relu"), width, 1, 1, None)
    sums = []
    for _ in range(3):
        parts = []
        for size in (int(rng.choice([3, 5, 7])), int(rng.choice([0, 3, 3]))):
            if not size:
                kind = str(rng.choice(["max_pool", "avg_pool"]))
                parts.append(stack.add(kind, x, kernel_size=(3, 3), strides=(stride, stride), padding="same"))
                continue
            y = stack.depthwise(stack.add("activation", x, activation="relu"), size, stride, None)
            parts.append(stack.conv(y, width, 1, 1, None))
        sums.append(stack.add("add", *parts, operands=2))
    return stack.add("concatenate", *sums, operands=3)


def _preactivated(stack: _Stack, rng: np.random.Generator, x: _Tensor, channels: int, stride: int, act: str) -> _Tensor:
    """Batch norm and activation before each convolution, all outputs so far concatenated."""
    growth = stack.round(channels / 4)
    for _ in range(int(rng.integers(2, 5))):
        y = stack.conv(stack.norm(x, act), 4 * growth if rng.random() < 0.5 else growth, 1, 1, act)
        y = stack.add("conv2d", y, out=growth, kernel_size=(3, 3), use_bias=False)
        x = stack.add("concatenate", x, y, operands=2)
    x = stack.add("conv2d", stack.norm(x, act), out=channels, use_bias=False)
    return x if stride == 1 else stack.add("avg_pool", x, kernel_size=(2, 2), strides=(2, 2), padding="valid")


_BLOCKS: dict[str, _Block] = {
    "plain": _plain,
    "residual": _residual,
    "bottleneck": _bottleneck,
    "inverted": _inverted,
    "separable": _separable,
    "dense": _dense_block,
    "branches": _branches,
    "padded": _padded,
    "expanded": _expanded,
    "normalized": _normalized,
    "cell": _cell,
    "preactivated": _preactivated,
}
