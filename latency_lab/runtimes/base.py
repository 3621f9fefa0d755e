"""What every runtime shares: the protocol, the shapes of a network's tensors, and its made-up weights."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from latency_lab.errors import UnsupportedOpError, UsageError
from latency_lab.ops import BINARY, GLOBAL_POOLS, MIXING, POOLS, REORDERS, RESIZES, WINDOWED, Network, OpConfig
from latency_lab.runtimes import worker

Shape = tuple[int, ...]
Array = npt.NDArray[np.float32]

_IMAGE_KINDS = (
    WINDOWED
    | GLOBAL_POOLS
    | RESIZES
    | REORDERS
    | {"conv2d_transpose", "pad", "flatten", "transpose", "channel_shuffle", "local_response_norm"}
)
"""Kinds that read (batch, height, width, channels), even where height and width are 1."""
INPUT_TRANSPOSE = "input+transpose"
"""The runtime works channels first: each image that comes in is transposed."""
NORM_EPSILON = 1e-3
"""What the builders add to the variance of a layer_norm or group_norm: Keras' default."""
LEAKY_SLOPE = 0.2
"""Of Keras' leaky_relu activation."""
RESPONSE_SIZE, RESPONSE_ALPHA, RESPONSE_BETA, RESPONSE_BIAS = 5, 1e-4, 0.75, 1.0
"""A local_response_norm over this many channels: x / (bias + alpha / size * sum of squares) ** beta (AlexNet's)."""
_RANDOM_COUNT = 65521
"""Numbers in the random buffer that all weights are cut from: a prime, so that rows of a kernel are not alike."""


class Runtime(Protocol):
    """The host half of a runtime."""

    @property
    def name(self) -> str:
        """As profiles and the command line call it."""
        ...

    @property
    def suffix(self) -> str:
        """Of its model files."""
        ...

    @property
    def conversion_fusions(self) -> frozenset[str]:
        """Merges done before the runtime sees a float32 model: "first+second", each a kind or an activation."""
        ...

    @property
    def expected_fusions(self) -> frozenset[str]:
        """Merges that the runtime is known to do on loading one. Where they can be measured, that decides."""
        ...

    def fusions(self, precision: str) -> tuple[frozenset[str], frozenset[str]]:
        """The same two of models of a precision."""
        ...

    @property
    def times_kernels(self) -> bool:
        """Whether a lone operation's time is that of its kernels alone, from the runtime's own profile."""
        ...

    @property
    def pays_for_calls(self) -> bool:
        """Whether a lone operation's time is that of a call which may cost more than the operation."""
        ...

    def build(self, network: Network) -> bytes:
        """Bytes of a model file of this network, its weights made up.

        Raises:
            UnsupportedOpError: an operation cannot be built.
            MissingRuntimeError: the package that writes the format is not installed.
        """
        ...

    def contexts_of(self, op: OpConfig) -> tuple[OpConfig, ...]:
        """What the model of this operation alone has before it, or before and after, to be taken off its time."""
        ...

    def reason_unsupported(self, op: OpConfig) -> str | None:
        """None if the operation can be built, else why not, in a sentence."""
        ...


@dataclass(frozen=True, slots=True)
class Shapes:
    """Shapes of a network's tensors, channels last: (batch, height, width, channels) or (batch, channels).

    With a depth, that of a conv3d and of what follows it, (batch, depth, height, width, channels).

    Attributes:
        inputs: of network input -1, -2, ...
        outputs: of the output of each node.
    """

    inputs: tuple[Shape, ...]
    outputs: tuple[Shape, ...]

    def of(self, index: int) -> Shape:
        """Shape of a tensor as `ops.Network` counts them: node index, or a negative network input."""
        return self.outputs[index] if index >= 0 else self.inputs[-1 - index]


def device_and_options(runtime: str, device: str) -> tuple[str, dict[str, str]]:
    """What `worker.device_and_options` reads of the device of a runtime.

    Raises:
        UsageError: an option has no value.
    """
    try:
        return worker.device_and_options(device)
    except ValueError as error:
        raise UsageError(f"Invalid device in runtime={runtime}:{device}. {error}") from None


def in_context(runtime: Runtime, network: Network) -> Network:
    """A lone operation in its context (`Runtime.contexts_of`), where it has one; any other network as it is."""
    contexts = runtime.contexts_of(network.nodes[0][0]) if len(network.nodes) == 1 else ()
    if not contexts:
        return network
    chain = (contexts[0], network.nodes[0][0], *contexts[1:])
    return Network(tuple((op, (i - 1,)) for i, op in enumerate(chain)), network.name)


def check(runtime: Runtime, network: Network) -> None:
    """See that the runtime can build every node.

    Raises:
        UnsupportedOpError: naming the first operation that it cannot build, and the reason.
    """
    for op, _ in network.nodes:
        reason = runtime.reason_unsupported(op)
        if reason:
            raise UnsupportedOpError(f"{runtime.name} cannot build {op.key!r}: {reason}")


def reason_of_groups(op: OpConfig) -> str | None:
    """Why the channels cannot be shared out to the groups, in a sentence; None where they can."""
    if op.in_channels % op.groups or (op.kind in MIXING and op.out_channels % op.groups):
        return f"{op.in_channels} -> {op.out_channels} channels cannot be shared out to {op.groups} groups."
    return None


def reason_of_depth(op: OpConfig) -> str | None:
    """Why an operation over three axes of positions is not written, in a sentence; None where it is."""
    if op.depth > 1 and op.kind in POOLS | RESIZES | {"pad", "transpose"}:
        return f"{op.kind} is not written over three axes of positions."
    return None


def tensor_shapes(network: Network) -> Shapes:
    """Shapes of all tensors of a network.

    A tensor of one position is (batch, channels), except where an operation on images makes or reads it.

    Raises:
        UsageError: the nodes do not fit together.

    Example:
        >>> from latency_lab.ops import Network, OpConfig
        >>> tensor_shapes(Network.of(OpConfig("global_avg_pool", height=7, width=7, in_channels=8, out_channels=8)))
        Shapes(inputs=((1, 7, 7, 8),), outputs=((1, 8),))
    """
    inputs: dict[int, Shape] = {}
    outputs: list[Shape] = []
    for i, (op, sources) in enumerate(network.nodes):
        if len(sources) != op.operands + op.residual:
            raise UsageError(f"Node {i} ({op.key}) takes {op.operands + op.residual} tensors. Received: {len(sources)}")
        if any(source >= i for source in sources):
            raise UsageError(f"Node {i} ({op.key}) reads {sources}, which is not in topological order.")
        image = _reads_image(network, i, outputs)
        output = _output_shape(network, i, image)
        for source, shape in zip(sources, _operand_shapes(op, sources, outputs, image), strict=True):
            found = outputs[source] if source >= 0 else inputs.setdefault(source, shape)
            if found != shape and not (op.broadcast and _fits_broadcast(op, found)):
                raise UsageError(f"Node {i} ({op.key}) reads a tensor of shape {shape}. Received: {found}")
        outputs.append(output)
    names = range(-1, -1 - len(inputs), -1)
    if set(inputs) != set(names):
        raise UsageError(f"Network inputs are -1, -2, ... without a gap. Received: {sorted(inputs, reverse=True)}")
    return Shapes(tuple(inputs[name] for name in names), tuple(outputs))


def _fits_broadcast(op: OpConfig, found: Shape) -> bool:
    """Whether the second operand of a broadcast may have this shape as well: the runtimes bring it into form."""
    if op.broadcast == "scalar":
        return math.prod(found) == 1
    return op.broadcast == "channels" and found == (op.batch, op.in_channels)


def _reads_image(network: Network, i: int, outputs: list[Shape]) -> bool:
    """Whether the first operand of node i is (batch, height, width, channels)."""
    op, sources = network.nodes[i]
    if _needs_image(op) or op.depth * op.height * op.width > 1:
        return True
    if op.kind == "dense":
        return False
    known = [len(outputs[source]) for source in sources if source >= 0]
    return max(known) >= 4 if known else op.kind != "reshape" and _feeds_image(network, i)


def _needs_image(op: OpConfig) -> bool:
    """Whether the operation reads an image even of one position."""
    return op.kind in _IMAGE_KINDS or (op.operands > 1 and op.broadcast in {"channels", "positions"})


def _feeds_image(network: Network, i: int) -> bool:
    """Whether an operation that reads node i wants an image of it."""
    shaped = {"dense", "reshape"}  # they read any shape and make their own
    readers = [(j, op) for j, (op, sources) in enumerate(network.nodes) if i in sources and op.kind not in shaped]
    return any(_needs_image(op) or _feeds_image(network, j) for j, op in readers)


def _output_shape(network: Network, i: int, image: bool) -> Shape:
    op = network.nodes[i][0]
    if op.kind == "transpose":
        return (op.batch, op.in_channels, op.height, op.width)
    if op.kind in GLOBAL_POOLS:
        image = _feeds_image(network, i)
    if op.kind == "reshape":
        image = op.output_height * op.output_width > 1 or _feeds_image(network, i)
    if op.kind == "flatten" or not image:
        return (op.batch, op.out_channels)
    return (*_output_space(op), op.out_channels)


def _has_depth(op: OpConfig) -> bool:
    return op.kind == "conv3d" or op.depth > 1


def _input_space(op: OpConfig) -> Shape:
    return (op.batch, *([op.depth] if _has_depth(op) else []), op.height, op.width)


def _output_space(op: OpConfig) -> Shape:
    deep = _has_depth(op) and op.kind != "reshape"
    return (op.batch, *([op.output_depth] if deep else []), op.output_height, op.output_width)


def _operand_shapes(op: OpConfig, sources: tuple[int, ...], outputs: list[Shape], image: bool) -> list[Shape]:
    space = _input_space(op) if image else (op.batch,)
    channels = [op.in_channels] * op.operands
    if op.kind == "concatenate":
        channels = _concatenated(op, [outputs[source][-1] if source >= 0 else None for source in sources])
    shapes: list[Shape] = [(*space, count) for count in channels]
    if op.broadcast and op.operands > 1:
        ones = (1,) * (len(space) - 1)
        forms = {"channels": (op.batch, *ones, op.in_channels), "positions": (*space, 1), "scalar": (1, *ones, 1)}
        shapes[1] = forms[op.broadcast]
    if op.residual:
        shapes.append((*(_output_space(op) if image else (op.batch,)), op.out_channels))
    return shapes


def _concatenated(op: OpConfig, known: list[int | None]) -> list[int]:
    """Channels of each operand of a concatenation: what its makers say, the rest shared out evenly."""
    rest = op.in_channels - sum(count for count in known if count is not None)
    free = known.count(None)
    if rest < free or (rest and not free):
        raise UsageError(f"A concatenation to {op.in_channels} channels cannot be made of {known}.")
    shares = [rest // free + (k < rest % free) for k in range(free)]
    return [shares.pop(0) if count is None else count for count in known]


def in_float16(network: Network) -> bool:
    """Whether a network is float16: all of it is, or nothing.

    Raises:
        UsageError: some of its operations are and others are not.
    """
    found = {op.dtype for op, _ in network.nodes}
    if "float16" in found and len(found) > 1:
        raise UsageError(f"A network is float16 as a whole. Received: operations of {', '.join(sorted(found))}")
    return "float16" in found


# ---- weights ------------------------------------------------------------------------------------------------------


def kernel(op: OpConfig, index: int) -> Array:
    """Kernel of a conv or dense operation: random, mean 0, standard deviation 1 / sqrt(fan-in), never denormal.

    The same for the same operation and index, whatever the runtime.

    Args:
        op: of a kind in `ops.KERNELED`.
        index: of the node in its network.

    Returns:
        conv2d, conv2d_transpose: [out_channels, rows, columns, in_channels / groups];
        conv3d: [out_channels, depth, rows, columns, in_channels / groups];
        depthwise_conv2d: [rows, columns, out_channels]; dense: [out_channels, in_channels].
    """
    return _cut(_kernel_shape(op), index, _kernel_scale(op))


def int8_kernel(op: OpConfig, index: int) -> tuple[npt.NDArray[np.int8], float]:
    """The kernel of an operation in 8 bits, and what one step is worth: symmetric, from -127 to 127.

    Args:
        op, index, shape of the result: as of `kernel`.
    """
    integers, step = _random_int8()
    return np.resize(integers[_start(index) :], _kernel_shape(op)), step * _kernel_scale(op)


def _kernel_shape(op: OpConfig) -> Shape:
    rows, columns = op.kernel_size
    shapes: dict[str, Shape] = {
        "conv2d": (op.out_channels, rows, columns, op.in_channels // op.groups),
        "conv2d_transpose": (op.out_channels, rows, columns, op.in_channels // op.groups),
        "conv3d": (op.out_channels, op.kernel_depth, rows, columns, op.in_channels // op.groups),
        "depthwise_conv2d": (rows, columns, op.out_channels),
        "dense": (op.out_channels, op.in_channels),
    }
    return shapes[op.kind]


def _kernel_scale(op: OpConfig) -> float:
    fan_in = op.in_channels if op.kind == "dense" else op.weight_count // op.out_channels - op.use_bias
    return 1 / math.sqrt(fan_in)


def bias(op: OpConfig, index: int) -> Array:
    """Bias of an operation [out_channels]: random, mean 0, standard deviation 0.1; zeros without `use_bias`."""
    if not op.use_bias:
        return np.zeros(op.out_channels, np.float32)
    return _cut((op.out_channels,), index + 7919, 0.1)


def scale(op: OpConfig, index: int) -> Array:
    """What a batch, layer or group norm multiplies by at inference [out_channels]: 0.5 to 1.5, mostly."""
    return 1 + _cut((op.out_channels,), index + 104729, 0.25)


def slopes(op: OpConfig, index: int) -> Array:
    """Slopes of a prelu [out_channels]: 0 to 0.5, mostly."""
    return np.float32(0.25) + _cut((op.out_channels,), index + 15485, 0.1)


def operand(op: OpConfig, index: int) -> Array:
    """The constant second operand of a binary operation with one operand: positive, about 1.

    Returns:
        by `op.broadcast`: "" [height, width, channels] (or [channels] of one position), "channels" and
        "innermost" [channels], "positions" [height, width, 1], "scalar" [].
    """
    if op.kind not in BINARY:
        raise UsageError(f"Only {sorted(BINARY)} have a second operand. Received: {op.key!r}")
    space: Shape = _input_space(op)[1:] if op.depth * op.height * op.width > 1 else ()
    shapes: dict[str, Shape] = {
        "": (*space, op.in_channels),
        "channels": (op.in_channels,),
        "positions": (*space, 1),
        "scalar": (),
        "innermost": (op.in_channels,),
    }
    return np.maximum(1 + _cut(shapes[op.broadcast], index + 27644, 0.25), np.float32(0.1))


@functools.cache
def _random() -> Array:
    numbers = np.random.default_rng(0).normal(size=_RANDOM_COUNT).astype(np.float32)
    numbers[np.abs(numbers) < 1e-3] = 1e-3
    return numbers


@functools.cache
def _random_int8() -> tuple[npt.NDArray[np.int8], float]:
    """The random numbers in 8 bits, and what one step is worth."""
    step = float(np.abs(_random()).max()) / 127
    return np.rint(_random() / step).astype(np.int8), step


def _start(index: int) -> int:
    return index * 1009 % (_RANDOM_COUNT // 2)


def _cut(shape: Shape, index: int, factor: float) -> Array:
    return np.resize(_random()[_start(index) :] * np.float32(factor), shape)
