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

CONVS = frozenset({"conv2d", "depthwise_conv2d"})
POOLS = frozenset({"max_pool", "avg_pool"})
GLOBAL_POOLS = frozenset({"global_avg_pool", "global_max_pool"})
WINDOWED = CONVS | POOLS
MIXING = frozenset({"conv2d", "dense"})
"""Kinds whose every output channel reads every input channel; all others have one width."""
KINDS = (
    WINDOWED
    | GLOBAL_POOLS
    | {"dense", "add", "multiply", "concatenate", "batch_norm", "activation", "softmax", "pad", "flatten", "transpose"}
)
ACTIVATIONS = frozenset(
    {
        "relu",
        "relu6",
        "sigmoid",
        "hard_sigmoid",
        "tanh",
        "hard_swish",
        "silu",
        "gelu",
        "elu",
        "leaky_relu",
        "exponential",
    }
)
DTYPE_BYTES: Mapping[str, int] = {"float32": 4, "float16": 2, "int8": 1}

Pads = tuple[tuple[int, int], tuple[int, int]]


@dataclass(frozen=True, slots=True)
class OpConfig:
    """One operation, every static parameter of it, and no name.

    Attributes:
        kind: one of `KINDS`.
        batch: examples.
        height, width: of the input, in positions (1 and 1 for a dense operation and for (batch, channels) tensors).
        in_channels: of the input; of all inputs together for "concatenate"; height * width * channels for a dense
            operation after a flatten.
        out_channels: of the output. Equals in_channels for all kinds but conv2d, dense, flatten (height * width *
            in_channels) and a depthwise_conv2d with a multiplier.
        kernel_size, strides, dilation: (rows, columns); the window of a conv or pooling operation.
        padding: "same", "valid", or explicit ((top, bottom), (left, right)); what a "pad" operation adds.
        groups: of a conv2d. A depthwise_conv2d has its own kind and groups 1.
        activation: fused into the operation, or what an "activation" operation does.
        dtype: of activations and weights.
        use_bias: of a conv or dense operation.
        operands: number of input tensors of add, multiply, concatenate.
        broadcast: of a multiply: the second operand is (batch, 1, 1, channels).
        residual: a fused add: the output has a tensor of its own shape added to it before the activation.

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
    broadcast: bool = False
    residual: bool = False

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
        for name in ("batch", "height", "width", "in_channels", "out_channels", "groups", "operands"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise UsageError(
                    f"Invalid value for argument `{name}`. Expected a positive int. Received: {name}={value!r}"
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
        if self.kind in GLOBAL_POOLS or self.kind == "flatten":
            return 1
        if self.kind == "pad":
            return size + sum(self.pads[axis])
        if self.kind not in WINDOWED:
            return size
        window = (self.kernel_size[axis] - 1) * self.dilation[axis] + 1
        return (size + sum(self.pads[axis]) - window) // self.strides[axis] + 1

    # ---- work and traffic -------------------------------------------------------------------------------------

    @property
    def macs(self) -> int:
        """Multiply-adds of a conv or dense operation; 0 for the other kinds."""
        positions = self.batch * self.output_height * self.output_width
        kernel = math.prod(self.kernel_size)
        if self.kind == "conv2d":
            return positions * kernel * (self.in_channels // self.groups) * self.out_channels
        if self.kind == "depthwise_conv2d":
            return positions * kernel * self.out_channels
        if self.kind == "dense":
            return positions * self.in_channels * self.out_channels
        return 0

    @property
    def weight_count(self) -> int:
        """Numbers in kernel and bias (batch norm: the two that are left at inference)."""
        kernel = math.prod(self.kernel_size)
        if self.kind == "conv2d":
            return kernel * (self.in_channels // self.groups) * self.out_channels + self.use_bias * self.out_channels
        if self.kind == "depthwise_conv2d":
            return kernel * self.out_channels + self.use_bias * self.out_channels
        if self.kind == "dense":
            return self.in_channels * self.out_channels + self.use_bias * self.out_channels
        return 2 * self.out_channels if self.kind == "batch_norm" else 0

    @property
    def weight_bytes(self) -> int:
        """Bytes of kernel and bias."""
        return DTYPE_BYTES[self.dtype] * self.weight_count

    @property
    def input_bytes(self) -> int:
        """Bytes of all input tensors."""
        positions = self.batch * self.height * self.width
        tensors = self.operands if self.kind in {"add", "multiply"} and not self.broadcast else 1
        extra = self.batch * self.in_channels if self.broadcast else 0
        residual = self.batch * self.output_height * self.output_width * self.out_channels if self.residual else 0
        return DTYPE_BYTES[self.dtype] * (positions * self.in_channels * tensors + extra + residual)

    @property
    def output_bytes(self) -> int:
        """Bytes of the output tensor."""
        return DTYPE_BYTES[self.dtype] * self.batch * self.output_height * self.output_width * self.out_channels

    @property
    def traffic_bytes(self) -> int:
        """Bytes read and written once: inputs, weights, output."""
        return self.input_bytes + self.weight_bytes + self.output_bytes

    # ---- identity ---------------------------------------------------------------------------------------------

    def with_channels(self, in_channels: int, out_channels: int) -> OpConfig:
        """The same operation at other channel counts."""
        return dataclasses.replace(self, in_channels=in_channels, out_channels=out_channels)

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
        if self.kind in WINDOWED:
            words += [f"k{self.kernel_size[0]}x{self.kernel_size[1]}", f"s{self.strides[0]}x{self.strides[1]}"]
        if self.kind in WINDOWED or self.kind == "pad":
            (top, bottom), (left, right) = self.pads
            words.append(self.padding if isinstance(self.padding, str) else f"p{top},{bottom},{left},{right}")
        if self.dilation != (1, 1):
            words.append(f"d{self.dilation[0]}x{self.dilation[1]}")
        if self.groups != 1:
            words.append(f"g{self.groups}")
        if self.operands != 1:
            words.append(f"n{self.operands}")
        words += [name for name in ("broadcast", "residual") if getattr(self, name)]
        if self.activation:
            words.append(self.activation)
        if self.kind in CONVS or self.kind == "dense":
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
        if self.kind not in WINDOWED:
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
        unknown = set(data) - {f.name for f in dataclasses.fields(cls)}
        if unknown:
            raise FileFormatError(f"An operation has no field {sorted(unknown)[0]!r}. Received: {dict(data)!r}")
        try:
            return cls(**{name: _tuples(value) for name, value in data.items()})
        except (TypeError, ValueError, UsageError) as error:
            raise FileFormatError(f"Not an operation: {dict(data)!r}: {error}") from error


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


def _same_pads(size: int, kernel: int, stride: int, dilation: int) -> tuple[int, int]:
    """Positions before and after for an output of ceil(size / stride): the odd one goes after."""
    window = (kernel - 1) * dilation + 1
    total = max((math.ceil(size / stride) - 1) * stride + window - size, 0)
    return total // 2, total - total // 2


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value
