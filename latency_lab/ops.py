"""One operation with every static parameter, and a network as operations wired together.

Layout is channels last throughout: a tensor is (batch, height, width, channels) or (batch, channels).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from latency_lab.errors import FileFormatError, UsageError

CONVS = frozenset({"conv2d", "depthwise_conv2d", "conv3d"})
POOLS = frozenset({"max_pool", "avg_pool"})
GLOBAL_POOLS = frozenset({"global_avg_pool", "global_max_pool"})
WINDOWED = CONVS | POOLS
KERNELED = CONVS | {"conv2d_transpose", "dense"}
"""Kinds that multiply by a kernel of weights."""
MIXING = frozenset({"conv2d", "conv3d", "conv2d_transpose", "dense"})
"""Kinds whose every output channel reads every input channel (of its group); all others have one width."""
BINARY = frozenset({"add", "subtract", "multiply", "divide", "maximum", "minimum", "squared_difference"})
RESIZES = frozenset({"resize_nearest", "resize_bilinear"})
NORMS = frozenset({"batch_norm", "layer_norm", "group_norm", "local_response_norm"})
REORDERS = frozenset({"reorder_input", "reorder_output"})
"""Into and out of a runtime's blocked layout of channels; no operation of a model."""
MOVES = REORDERS | {"concatenate", "pad", "slice", "flatten", "reshape", "transpose", "channel_shuffle"}
"""Kinds that compute nothing."""
CASTS = frozenset({"quantize", "dequantize"})
KINDS = (
    WINDOWED
    | GLOBAL_POOLS
    | KERNELED
    | BINARY
    | RESIZES
    | NORMS
    | MOVES
    | CASTS
    | {"activation", "softmax", "channel_mean"}
)
ACTIVATIONS = frozenset(
    {
        "relu",
        "relu6",
        "prelu",
        "leaky_relu",
        "elu",
        "selu",
        "sigmoid",
        "hard_sigmoid",
        "tanh",
        "hard_swish",
        "silu",
        "gelu",
        "softplus",
        "exponential",
        "log",
        "sqrt",
        "rsqrt",
        "square",
        "abs",
        "negative",
        "erf",
    }
)
"""What an "activation" operation does to each number; those of a network, and the arithmetic that exports leave."""
SHORT_ROW = 8
"""Channels that fill no vector register."""
BRICK = 16
"""Channels that lie together in the layout that Ethos-U prefers."""
BROADCASTS = ("", "channels", "positions", "scalar", "innermost")
DTYPE_BYTES: Mapping[str, int] = {"float32": 4, "float16": 2, "bfloat16": 2, "int8": 1}

Pads = tuple[tuple[int, int], tuple[int, int]]
_COUNTS = (
    *("batch", "height", "width", "in_channels", "out_channels", "groups", "operands"),
    *("depth", "kernel_depth", "stride_depth"),
)


@dataclass(frozen=True, slots=True)
class OpConfig:
    """One operation, every static parameter of it, and no name.

    Attributes:
        kind: one of `KINDS`.
        batch: examples.
        height, width: of the input, in positions (1 and 1 for (batch, channels) tensors; 1 and the length of a
            sequence; a dense operation is applied at each position).
        in_channels: of the input; of all inputs together for "concatenate"; height * width * channels for a dense
            operation after a flatten.
        out_channels: of the output. Equals in_channels for all kinds but those in `MIXING`, flatten (height * width *
            in_channels), reshape, slice, channel_mean (1) and a depthwise_conv2d with a multiplier.
        kernel_size, strides, dilation: (rows, columns); the window of a conv or pooling operation.
        padding: "same", "valid", or explicit ((top, bottom), (left, right)); what a "pad" operation adds. Of a
            conv2d_transpose: explicit counts are cut off its output.
        groups: of a conv2d, a group_norm, a channel_shuffle. A depthwise_conv2d has its own kind and groups 1.
        activation: fused into the operation, or what an "activation" operation does.
        dtype: of activations and weights.
        use_bias: of a conv or dense operation.
        operands: number of input tensors of a `BINARY` kind or a concatenate.
        broadcast: of a `BINARY` kind, the shape of its second operand: "" that of the first, "channels" (batch, 1, 1,
            channels), "positions" (batch, height, width, 1), "scalar". With one operand, the second is a constant;
            "innermost" is one of a number for each channel of a tensor whose channels are last in memory, under a
            runtime that has them first elsewhere. Of a conv2d: its image is scaled and shifted by such first.
        residual: a fused add: the output has a tensor of its own shape added to it before the activation.
        output_size: (rows, columns) of the output of a resize, slice or reshape.
        depth, kernel_depth, stride_depth: of a conv3d, the third axis of positions, kernel and stride.
        linear: "input" or "output" where that tensor lies in memory position by position, whole, on a device that has
            blocks of channels and stripes of rows elsewhere.

    Example:
        >>> from latency_lab.ops import OpConfig
        >>> op = OpConfig("conv2d", height=8, width=8, in_channels=16, out_channels=32, kernel_size=(3, 3))
        >>> op.macs
        294912
    """

    kind: str
    batch: int = 1
    height: int = 1
    width: int = 1
    in_channels: int = 1
    out_channels: int = 1
    kernel_size: tuple[int, int] = (1, 1)
    strides: tuple[int, int] = (1, 1)
    padding: Literal["same", "valid"] | Pads = "same"
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    activation: str | None = None
    dtype: str = "float32"
    use_bias: bool = True
    operands: int = 1
    broadcast: str = ""
    residual: bool = False
    output_size: tuple[int, int] | None = None
    depth: int = 1
    kernel_depth: int = 1
    stride_depth: int = 1
    linear: Literal["", "input", "output"] = ""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UsageError(
                f"Invalid value for argument `kind`. Expected one of {sorted(KINDS)}. Received: kind={self.kind!r}"
            )
        if self.activation is not None and self.activation not in ACTIVATIONS:
            raise UsageError(
                "Invalid value for argument `activation`. "
                f"Expected None or one of {sorted(ACTIVATIONS)}. Received: activation={self.activation!r}"
            )
        if self.dtype not in DTYPE_BYTES:
            raise UsageError(
                "Invalid value for argument `dtype`. "
                f"Expected one of {sorted(DTYPE_BYTES)}. Received: dtype={self.dtype!r}"
            )
        if self.broadcast not in BROADCASTS:
            raise UsageError(
                "Invalid value for argument `broadcast`. "
                f"Expected one of {list(BROADCASTS)}. Received: broadcast={self.broadcast!r}"
            )
        if self.broadcast == "innermost" and self.operands != 1:
            raise UsageError(f"Only a constant is innermost. Expected operands=1. Received: operands={self.operands}")
        for name in _COUNTS:
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise UsageError(
                    f"Invalid value for argument `{name}`. Expected a positive int. Received: {name}={value!r}"
                )
        for name in ("kernel_size", "strides", "dilation", "output_size"):
            value = getattr(self, name)
            if not (_is_pair(value, 1) or (name == "output_size" and value is None)):
                raise UsageError(
                    f"Invalid value for argument `{name}`. Expected (rows, columns). Received: {name}={value!r}"
                )
        if self.padding not in {"same", "valid"} and not _are_pads(self.padding):
            raise UsageError(
                "Invalid value for argument `padding`. Expected 'same', 'valid' or ((top, bottom), (left, right)). "
                f"Received: padding={self.padding!r}"
            )
        if self.output_height < 1 or self.output_width < 1:
            raise UsageError(
                "The window does not fit into the input: "
                f"{self.kind} of kernel_size {self.kernel_size} on {self.height}x{self.width}"
            )

    # ---- geometry ---------------------------------------------------------------------------------------------

    @property
    def pads(self) -> Pads:
        """((top, bottom), (left, right)) positions that the operation adds around its input."""
        if isinstance(self.padding, tuple):
            return self.padding
        if self.padding == "valid" or self.kind not in WINDOWED:
            return ((0, 0), (0, 0))
        sizes = zip((self.height, self.width), self.kernel_size, self.strides, self.dilation, strict=True)
        (top, bottom), (left, right) = (_same_pads(*size) for size in sizes)
        return ((top, bottom), (left, right))

    @property
    def output_height(self) -> int:
        """Rows of the output."""
        return self._output_size(0)

    @property
    def output_width(self) -> int:
        """Columns of the output."""
        return self._output_size(1)

    def _output_size(self, axis: int) -> int:
        size = (self.height, self.width)[axis]
        if self.output_size is not None:
            return self.output_size[axis]
        if self.kind in GLOBAL_POOLS or self.kind == "flatten":
            return 1
        if self.kind == "pad":
            return size + sum(self.pads[axis])
        if self.kind == "conv2d_transpose":
            if self.padding == "same":
                return size * self.strides[axis]
            window = (self.kernel_size[axis] - 1) * self.dilation[axis] + 1
            return size * self.strides[axis] + max(window - self.strides[axis], 0) - sum(self.pads[axis])
        if self.kind not in WINDOWED:
            return size
        window = (self.kernel_size[axis] - 1) * self.dilation[axis] + 1
        return (size + sum(self.pads[axis]) - window) // self.strides[axis] + 1

    @property
    def output_depth(self) -> int:
        """Positions of the output along the third axis; 1 where there is none, or none is left."""
        if self.kind in GLOBAL_POOLS or self.kind in {"flatten", "reshape"}:
            return 1
        if self.padding == "valid":
            return (self.depth - self.kernel_depth) // self.stride_depth + 1
        return math.ceil(self.depth / self.stride_depth)

    @property
    def input_positions(self) -> int:
        """Positions of the input over all examples."""
        return self.batch * self.depth * self.height * self.width

    @property
    def output_positions(self) -> int:
        """Positions of the output over all examples."""
        return self.batch * self.output_depth * self.output_height * self.output_width

    # ---- work and traffic -------------------------------------------------------------------------------------

    @property
    def macs(self) -> int:
        """Multiply-adds of a conv or dense operation; 0 for the other kinds."""
        if self.kind not in KERNELED:
            return 0
        positions = self.input_positions if self.kind == "conv2d_transpose" else self.output_positions
        return positions * self._kernel_count

    @property
    def _kernel_count(self) -> int:
        """Numbers in the kernel."""
        kernel = math.prod(self.kernel_size) * self.kernel_depth
        if self.kind == "dense":
            return self.in_channels * self.out_channels
        if self.kind == "depthwise_conv2d":
            return kernel * self.out_channels
        return kernel * (self.in_channels // self.groups) * self.out_channels

    @property
    def weight_count(self) -> int:
        """Numbers in kernel and bias (batch norm: the two that are left at inference), or in a constant operand."""
        if self.kind in KERNELED:
            return self._kernel_count + self.use_bias * self.out_channels
        if self.kind in BINARY and self.operands == 1:
            return self._second_operand
        if self.kind == "activation":
            return self.out_channels if self.activation == "prelu" else 0
        return 2 * self.out_channels if self.kind in NORMS and self.kind != "local_response_norm" else 0

    @property
    def weight_bytes(self) -> int:
        """Bytes of kernel and bias."""
        return DTYPE_BYTES[self.dtype] * self.weight_count

    @property
    def input_bytes(self) -> int:
        """Bytes of all input tensors."""
        count = self.input_positions * self.in_channels
        if self.kind in BINARY and self.operands > 1:
            count += (self.operands - 1) * self._second_operand
        if self.residual:
            count += self.output_positions * self.out_channels
        return (4 if self.kind == "quantize" else DTYPE_BYTES[self.dtype]) * count

    @property
    def _second_operand(self) -> int:
        """Numbers in the second operand of a binary operation; a constant has no batch."""
        sizes = {
            "": self.input_positions * self.in_channels,
            "channels": self.in_channels * (self.batch if self.operands > 1 else 1),
            "positions": self.input_positions,
            "scalar": 1,
            "innermost": self.in_channels,
        }
        return sizes[self.broadcast]

    @property
    def output_bytes(self) -> int:
        """Bytes of the output tensor."""
        number = 4 if self.kind == "dequantize" else DTYPE_BYTES[self.dtype]
        return number * self.output_positions * self.out_channels

    @property
    def traffic_bytes(self) -> int:
        """Bytes read and written once: inputs, weights, output."""
        return self.input_bytes + self.weight_bytes + self.output_bytes

    # ---- identity ---------------------------------------------------------------------------------------------

    def with_channels(self, in_channels: int, out_channels: int) -> OpConfig:
        """The same operation at other channel counts; a grouped conv2d of one channel a group is a depthwise_conv2d."""
        found = dataclasses.replace(self, in_channels=in_channels, out_channels=out_channels)
        if self.kind == "conv2d" and self.groups == in_channels > 1:
            return dataclasses.replace(found, kind="depthwise_conv2d", groups=1)
        return found

    @property
    def static_key(self) -> str:
        """Everything but the channel counts, in words: one lookup table each.

        Example:
            >>> from latency_lab.ops import OpConfig
            >>> OpConfig("conv2d", height=8, width=8, kernel_size=(3, 3), activation="relu").static_key
            'conv2d 8x8 k3x3 s1x1 same relu bias float32'
        """
        words = [self.kind, f"{self.height}x{self.width}"]
        if self.batch != 1:
            words.append(f"b{self.batch}")
        if self.depth != 1 or self.kernel_depth != 1:
            words.append(f"depth{self.depth},{self.kernel_depth},{self.stride_depth}")
        if self.kind in WINDOWED or self.kind == "conv2d_transpose":
            words += [f"k{self.kernel_size[0]}x{self.kernel_size[1]}", f"s{self.strides[0]}x{self.strides[1]}"]
        if self.kind in WINDOWED or self.kind in {"pad", "conv2d_transpose"}:
            (top, bottom), (left, right) = self.pads
            words.append(self.padding if isinstance(self.padding, str) else f"p{top},{bottom},{left},{right}")
        if self.dilation != (1, 1):
            words.append(f"d{self.dilation[0]}x{self.dilation[1]}")
        if self.groups != 1:
            words.append(f"g{self.groups}")
        if self.operands != 1:
            words.append(f"n{self.operands}")
        if self.output_size is not None:
            words.append(f"to {self.output_size[0]}x{self.output_size[1]}")
        if self.broadcast:
            words.append(f"by {self.broadcast}")
        if self.residual:
            words.append("residual")
        if self.linear:
            words.append(f"linear {self.linear}")
        if self.activation:
            words.append(self.activation)
        if self.kind in KERNELED:
            words.append("bias" if self.use_bias else "nobias")
        return " ".join([*words, self.dtype])

    @property
    def key(self) -> str:
        """The static key and the channel counts: one measured point each."""
        return f"{self.static_key} {self.in_channels}->{self.out_channels}"

    @property
    def family(self) -> str:
        """Kind, kernel and stride: operations whose times are predicted, and whose errors are stated, together."""
        if self.kind == "activation":
            return f"activation {self.activation}"
        if self.kind in BINARY and self.broadcast:
            return f"{self.kind} by {self.broadcast}"
        if self.kind not in WINDOWED and self.kind != "conv2d_transpose":
            return self.kind
        rows, columns = self.kernel_size
        return f"{self.kind} k{rows}x{columns} s{self.strides[0]}x{self.strides[1]}"

    def to_json(self) -> dict[str, Any]:
        """The fields that differ from their defaults, as JSON values."""
        found = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if getattr(self, f.name) != f.default}
        return json.loads(json.dumps(found))  # type: ignore[no-any-return]

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> OpConfig:
        """The operation that `to_json` wrote.

        Raises:
            FileFormatError: a field is unknown or has a wrong value.
        """
        unknown = data.keys() - _FIELDS
        if unknown:
            raise FileFormatError(f"An operation has no field {sorted(unknown)[0]!r}. Received: {dict(data)!r}")
        try:
            return cls(**{name: _tuples(value) for name, value in data.items()})
        except (TypeError, ValueError, ArithmeticError, LookupError, UsageError) as error:
            raise FileFormatError(f"Not an operation: {dict(data)!r}: {error}") from error


_FIELDS = frozenset(field.name for field in dataclasses.fields(OpConfig))


@dataclass(frozen=True, slots=True)
class Network:
    """Operations wired together, as a runtime executes them. A lone operation is a network of one node.

    Attributes:
        nodes: (operation, inputs) in topological order. An input i >= 0 is the output of node i; i < 0 is a network
            input, -1 the first, -2 the second. Nodes that read the same network input agree on its shape.
        name: for messages; no part of the identity.

    A node's output that no other node reads is an output of the network.
    """

    nodes: tuple[tuple[OpConfig, tuple[int, ...]], ...]
    name: str = dataclasses.field(default="", compare=False)

    @classmethod
    def of(cls, op: OpConfig) -> Network:
        """The network of one operation, each operand an input of its own."""
        tensors = op.operands + op.residual
        return cls(((op, tuple(-1 - i for i in range(tensors))),), op.key)

    def of_type(self, dtype: str) -> Network:
        """The network on numbers of another type."""
        return Network(tuple((dataclasses.replace(op, dtype=dtype), inputs) for op, inputs in self.nodes), self.name)

    @property
    def outputs(self) -> tuple[int, ...]:
        """Indices of the nodes that no other node reads."""
        read = {i for _, inputs in self.nodes for i in inputs}
        return tuple(i for i in range(len(self.nodes)) if i not in read)

    @property
    def key(self) -> str:
        """Short and unique: a digest of operations and wiring."""
        if len(self.nodes) == 1:
            return self.nodes[0][0].key
        text = json.dumps([[op.key, list(inputs)] for op, inputs in self.nodes])
        return f"network {len(self.nodes)} ops {hashlib.sha256(text.encode()).hexdigest()[:16]}"

    def to_json(self) -> dict[str, Any]:
        """Name and nodes as JSON values."""
        return {"name": self.name, "nodes": [[op.to_json(), list(inputs)] for op, inputs in self.nodes]}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Network:
        """The network that `to_json` wrote."""
        try:
            nodes = tuple((OpConfig.from_json(op), tuple(int(i) for i in inputs)) for op, inputs in data["nodes"])
            return cls(nodes, str(data.get("name", "")))
        except (KeyError, TypeError, ValueError) as error:
            raise FileFormatError(
                f"Not a network: {error!r}. Expected name and nodes [[operation, inputs], ...]."
            ) from error


def has_short_rows(op: OpConfig) -> bool:
    """Whether a constant has a number for each of channels so few, more than one, that they fill no vector register.

    Example:
        >>> image = {"height": 32, "width": 32, "broadcast": "channels"}
        >>> [has_short_rows(OpConfig("add", in_channels=n, out_channels=n, **image)) for n in (1, 3, 32)]
        [False, True, False]
    """
    by_channels = op.kind in BINARY and op.operands == 1 and op.broadcast == "channels"
    return by_channels and 1 < op.in_channels < SHORT_ROW and op.height * op.width > 1


def _same_pads(size: int, kernel: int, stride: int, dilation: int) -> tuple[int, int]:
    """Positions before and after for an output of ceil(size / stride): the odd one goes after."""
    window = (kernel - 1) * dilation + 1
    total = max((math.ceil(size / stride) - 1) * stride + window - size, 0)
    return total // 2, total - total // 2


def _is_pair(value: Any, least: int) -> bool:
    """Whether it is a tuple of two whole numbers of at least `least`."""
    return isinstance(value, tuple) and len(value) == 2 and all(isinstance(v, int) and v >= least for v in value)


def _are_pads(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and all(_is_pair(axis, 0) for axis in value)


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value
