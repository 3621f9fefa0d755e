"""Arm Ethos-U NPUs by Vela, the compiler: int8 TFLite files, of which `vela_worker` gives the compiler's estimate.

An operation alone reads from and writes to wherever the network's own inputs and outputs are, which on an NPU with a
small memory of its own is the large, slow one: a sum over lone operations came to 3 to 4 times what the compiler says
of the network on Ethos-U65 and U85. So a lone operation is compiled between others as networks have them, 1x1
convolutions of images and dense layers of vectors, and its own rows of the compiler's table alone count. What comes
before also hides the time in which an operation's first weights are read.

Ethos-U85 chains arithmetic onto what makes its operand last, whose row then has the cycles of both. Arithmetic with
constants is never behind a convolution, whose weights and bias would have taken it in, and a gate by channels is made
after what it scales: these stand behind a concatenation, onto which nothing is chained. A sum of two tensors is chained
in networks as well, and costs what the convolution before it has more than its twin, which makes the other operand.

A concatenation or a slice without bricks of channels (`OpConfig.linear`) is not made stripe by stripe: it lies whole,
and what it is made of, or what is made of it, lies beside it. If it takes more than half of the small memory, it is in
the slow one, position by position, just as the network's own inputs and outputs are: then nothing comes before an
operation that reads it, or after one that writes it.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

from latency_lab.errors import UsageError
from latency_lab.ops import BINARY, BRICK, Network, OpConfig
from latency_lab.runtimes import base
from latency_lab.runtimes.litert import LiteRT
from latency_lab.runtimes.vela_worker import DEFAULT, Target, context_mark

_LITERT = LiteRT()
_MOST_IMAGE_CHANNELS = 4
"""A tensor of so few channels is a network's own input: nothing comes before it."""
_CONTEXT_SHARE, _CONTEXT_CHANNELS = 4, (8, 64)
"""What is before and after has a fourth of the channels, within these limits."""
_LUTS = ("hard_sigmoid", "hard_swish", "leaky_relu", "sigmoid", "tanh")
"""Activations that are one look-up, which the NPU does on the way out of a convolution."""
_COPIES = frozenset({"concatenate+copy", "pad+copy"})
"""Seen in what Vela 5.2 makes of them: the copy takes the cycles of an average pooling of one position."""
_LINEAR = frozenset({"concatenate+linear", "slice+linear"})
"""Seen on NPUs whose own memory stands in front of a slower one, as Vela 5.2 configures Ethos-U65 and U85."""
_READS = frozenset({"pad+conv2d", "pad+depthwise_conv2d", "image+conv2d"})
"""The NPU pads what it reads; and an image that was scaled lies in its own memory, a network's input does not."""


@dataclass(frozen=True)
class Vela:
    """Builds .tflite files for Vela, int8 alone.

    Attributes:
        target: "" (Vela's default, ethos-u55-256) or ACCELERATOR[:SYSTEM_CONFIG[:MEMORY_MODE]].

    Example:
        >>> from latency_lab import runtimes
        >>> runtimes.get("vela:ethos-u55-128").name
        'vela:ethos-u55-128'
    """

    target: str = ""
    suffix = ".tflite"
    times_kernels = True
    pays_for_calls = False

    def on(self, target: str) -> Vela:
        """The same for another target; "" is Vela's default.

        Raises:
            UsageError: there is no such accelerator.
        """
        try:
            Target.of(target or DEFAULT)
        except ValueError as error:
            raise UsageError(f"Invalid value for argument `runtime`. {error}") from None
        return dataclasses.replace(self, target=target)

    @property
    def name(self) -> str:
        """ "vela", or "vela:" and the target."""
        return f"vela:{self.target}" if self.target else "vela"

    @property
    def conversion_fusions(self) -> frozenset[str]:
        """What the TFLite converter merges."""
        return _LITERT.conversion_fusions

    @property
    def expected_fusions(self) -> frozenset[str]:
        """Look-ups in the convolution that makes their operand, pads and scaled images in the one that reads them,
        copies of operands of concatenations and pads, and tensors without bricks where that makes them slow."""
        lut = frozenset(f"{kind}+{name}" for kind in ("conv2d", "depthwise_conv2d", "dense") for name in _LUTS)
        return lut | _READS | _COPIES | (_LINEAR if self._cache_bytes else frozenset())

    @property
    def _cache_bytes(self) -> int | None:
        return Target.of(self.target or DEFAULT).cache_bytes

    def fusions(self, precision: str) -> tuple[frozenset[str], frozenset[str]]:
        """Merges by the converter and by Vela.

        Raises:
            UsageError: the precision is not "int8".
        """
        if precision != "int8":
            raise UsageError(f"{self.name} runs int8 networks alone: ask for precision int8. Received: {precision!r}")
        return self.conversion_fusions, self.expected_fusions

    def build(self, network: Network) -> bytes:
        """Bytes of a .tflite file: of a network as it is, of a lone operation in its context, which the file names.

        Raises:
            UnsupportedOpError: an operation cannot be built.
            MissingRuntimeError: ai-edge-litert is not installed.
        """
        base.check(self, network)
        if len(network.nodes) > 1:
            return _LITERT.build(network)
        wrapped, before, after = in_context(network.nodes[0][0], self._cache_bytes)
        return _LITERT.build(wrapped) + context_mark(before, after)

    def contexts_of(self, op: OpConfig) -> tuple[OpConfig, ...]:
        """Nothing."""
        return ()

    def reason_unsupported(self, op: OpConfig) -> str | None:
        """None if the operation can be built, else why not, in a sentence."""
        if op.dtype != "int8":
            return f"Ethos-U runs int8 networks alone (--precision int8), this is {op.dtype}."
        return _LITERT.reason_unsupported(op)


def in_context(op: OpConfig, cache_bytes: int | None = None) -> tuple[Network, int, int]:
    """The operation between 1x1 convolutions or dense layers, and how many of these are before and after it.

    Tensors of at most 4 channels and floats have none: such are a network's input. Nor have linear tensors of more than
    half of the small memory. What is before arithmetic by channels on at least 32 of them is two convolutions or dense
    layers and their concatenation, which is no row of Vela's table.

    Args:
        op: the operation.
        cache_bytes: of the NPU's own memory, in front of a slower one; None: there is no slower one.

    Example:
        >>> image = {"height": 8, "width": 8, "in_channels": 16, "out_channels": 16}
        >>> network, before, after = in_context(OpConfig("add", **image, operands=2, dtype="int8"))
        >>> [op.kind for op, _ in network.nodes], before, after
        (['conv2d', 'conv2d', 'add', 'conv2d'], 2, 1)
    """
    shapes = base.tensor_shapes(Network.of(op))
    ends = {"input": shapes.inputs[0], "output": shapes.outputs[-1]}
    spilled = op.linear if cache_bytes and op.linear and 2 * math.prod(ends[op.linear]) > cache_bytes else ""
    nodes: list[tuple[OpConfig, tuple[int, ...]]] = []
    sources: list[int] = []
    for k, shape in enumerate(shapes.inputs):
        if op.kind == "quantize" or not _has_neighbour(shape) or (spilled == "input" and not k):
            sources.append(-1 - k)
            continue
        nodes += _makers(shape, len(nodes), -1 - k, joined=_by_channels(op) and not k)
        sources.append(len(nodes) - 1)
    before = sum(node.kind != "concatenate" for node, _ in nodes)
    nodes.append((op, tuple(sources)))
    index = len(nodes) - 1
    output = shapes.outputs[-1]
    after = op.kind != "dequantize" and _has_neighbour(output) and spilled != "output"
    if after:
        nodes.append((_neighbour(output, output[-1], _context_channels(output)), (index,)))
    return Network(tuple(nodes)), before, int(after)


def _by_channels(op: OpConfig) -> bool:
    return op.kind == "batch_norm" or (op.kind in BINARY and (op.operands == 1 or bool(op.broadcast)))


def _makers(shape: base.Shape, first: int, source: int, joined: bool) -> list[tuple[OpConfig, tuple[int, ...]]]:
    """What makes a tensor, the last of these nodes: `first` is the index of the first, `source` what they read."""
    inner, channels = _context_channels(shape), shape[-1]
    part = channels // 2 // BRICK * BRICK
    if not joined or not part:
        return [(_neighbour(shape, inner, channels), (source,))]
    parts = [_neighbour(shape, inner, width) for width in (part, channels - part)]
    join = dataclasses.replace(parts[0], kind="concatenate", in_channels=channels, out_channels=channels, operands=2)
    return [(parts[0], (source,)), (parts[1], (source,)), (join, (first, first + 1))]


def _has_neighbour(shape: base.Shape) -> bool:
    return len(shape) in {2, 4} and shape[-1] > _MOST_IMAGE_CHANNELS


def _context_channels(shape: base.Shape) -> int:
    low, high = _CONTEXT_CHANNELS
    return min(max(shape[-1] // _CONTEXT_SHARE, low), high)


def _neighbour(shape: base.Shape, in_channels: int, out_channels: int) -> OpConfig:
    """What reads or writes a tensor of this shape (batch, height, width, channels), or (batch, channels)."""
    batch, height, width = shape[:3] if len(shape) == 4 else (shape[0], 1, 1)
    kind = "conv2d" if len(shape) == 4 else "dense"
    return OpConfig(kind, batch, height, width, in_channels, out_channels, dtype="int8", use_bias=True)
