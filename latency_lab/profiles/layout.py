"""The reorders that a runtime of blocked channels puts between its kernels.

ONNX Runtime computes float32 convolutions on CPUs in a layout where `block` channels lie side by side (NCHWc: 16 with
AVX-512, 8 with AVX2). A convolution that can use it gets its input reordered, unless what makes the input leaves it
blocked already; what cannot use it gets its input reordered back. Which operations stay in the layout depends on their
kind and on their channels.

Source: ONNX Runtime, onnxruntime/core/optimizer/nchwc_transformer.cc, and the models that version 1.32 makes of
networks (`SessionOptions.optimized_model_filepath`).
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence

from latency_lab.ops import GLOBAL_POOLS, POOLS, RESIZES, OpConfig
from latency_lab.profiles.fusions import Kernel

ALIGNMENT = 4
"""Channels that reorders copy at once: a tensor of another number of channels is not blocked."""
_ANYWHERE = frozenset({"relu", "sigmoid", "tanh", "silu"})
"""Activations that work on blocked tensors; all are blind to where a number lies."""
_AS_OPERATORS = frozenset({"hard_sigmoid", "gelu"})
"""Such activations where the file has them as one operator."""
_INTO_CONVS = frozenset({"relu", "sigmoid", "tanh", "hard_sigmoid"})
"""Activations that a blocked convolution takes along after others were merged into it already."""


def with_reorders(kernels: Sequence[Kernel], block: int, *, exported: bool = True) -> tuple[Kernel, ...]:
    """The kernels of a network with the reorders between them.

    Args:
        kernels: of a network, as `fuse` gives them.
        block: channels that lie side by side; 1 for a runtime without such a layout.
        exported: whether the network is what Keras holds before it is exported. Its batch norms are then a Mul and an
            Add, its gelu and hard_sigmoid several operators, and a Reshape stands before a convolution of one
            position. Otherwise each is one operator of the file.

    Returns:
        The kernels in topological order. A reorder has no nodes; its `main` is the node whose output it moves (of a
        network input: the node that reads it).

    Example:
        >>> from latency_lab.ops import Network, OpConfig
        >>> from latency_lab.profiles.fusions import fuse
        >>> conv = OpConfig("conv2d", height=8, width=8, in_channels=16, out_channels=16)
        >>> [k.op.kind for k in with_reorders(fuse(Network.of(conv), ()), block=16)]
        ['reorder_input', 'conv2d', 'reorder_output']
    """
    if block <= 1:
        return tuple(kernels)
    return _Layout(kernels, block, exported).run()


class _Layout:
    """The kernels while they are laid out. Tensors are counted as in the kernels that came in."""

    def __init__(self, kernels: Sequence[Kernel], block: int, exported: bool) -> None:
        self._kernels = kernels
        self._block = block
        self._exported = exported
        self._anywhere = _ANYWHERE if exported else _ANYWHERE | _AS_OPERATORS
        self._readers = Counter(i for kernel in kernels for i in kernel.inputs)
        self._made: list[Kernel | None] = []
        self._plain: dict[int, int] = {}  # tensor -> what makes it as it is outside of the layout
        self._blocked: dict[int, int] = {}  # tensor -> what makes it blocked
        self._reordered: dict[int, int] = {}  # tensor -> the reorder into the layout

    def run(self) -> tuple[Kernel, ...]:
        for index, kernel in enumerate(self._kernels):
            if self._is_conv(kernel.op):
                self._add_conv(index, kernel)
            elif self._is_pool(kernel.op):
                self._blocked[index] = self._put(kernel, [self._blocked_of(i, kernel) for i in kernel.inputs])
            elif all(i in self._blocked for i in kernel.inputs):
                self._add_after_blocked(index, kernel)
            else:
                self._plain[index] = self._put(kernel, [self._plain_of(i) for i in kernel.inputs])
        for index in range(len(self._kernels)):
            if not self._readers[index]:
                self._plain_of(index)
        kept = [i for i, kernel in enumerate(self._made) if kernel is not None]
        position = {i: k for k, i in enumerate(kept)}
        found = (kernel for kernel in self._made if kernel is not None)
        return tuple(
            dataclasses.replace(kernel, inputs=tuple(position.get(i, i) for i in kernel.inputs)) for kernel in found
        )

    # ---- kernels that have their input reordered --------------------------------------------------------------

    def _is_conv(self, op: OpConfig) -> bool:
        sequence = op.height == 1 and op.kernel_size[0] == 1 and op.width > 1
        if op.dtype != "float32" or sequence:
            return False
        if op.kind == "depthwise_conv2d":
            return op.out_channels == op.in_channels and op.out_channels % ALIGNMENT == 0
        if op.kind != "conv2d":
            return False
        if op.groups > 1:
            return all(count // op.groups % self._block == 0 for count in (op.in_channels, op.out_channels))
        return op.in_channels < self._block or op.in_channels % ALIGNMENT == 0

    def _is_pool(self, op: OpConfig) -> bool:
        return op.kind in POOLS and op.dtype == "float32" and op.in_channels % self._block == 0 and op.depth == 1

    def _add_conv(self, index: int, kernel: Kernel) -> None:
        op, residual = kernel.op, kernel.inputs[1:]
        few = op.kind == "conv2d" and op.groups == 1 and op.in_channels < self._block
        first = self._plain_of(kernel.inputs[0]) if few else self._blocked_of(kernel.inputs[0], kernel)
        if not all(i in self._blocked for i in residual):
            self._plain[index] = self._add_apart(kernel, first)
            return
        inputs = [first, *(self._blocked[i] for i in residual)]
        if op.residual and op.activation and op.activation not in _INTO_CONVS:  # it comes after the sum: too late
            bare = dataclasses.replace(kernel, op=dataclasses.replace(op, activation=None), nodes=kernel.nodes[:-1])
            made = self._reorder("reorder_output", op, bare.nodes[-1], self._put(bare, inputs))
            self._plain[index] = self._activate(kernel, made)
        else:
            self._blocked[index] = self._put(kernel, inputs)

    def _add_apart(self, kernel: Kernel, first: int) -> int:
        """A convolution whose residual is not blocked: the runtime adds it outside of the layout."""
        op, tail = kernel.op, 2 if kernel.op.activation else 1
        bare = dataclasses.replace(op, residual=False, activation=None)
        conv = self._put(Kernel(bare, kernel.main, kernel.nodes[:-tail], ()), [first])
        channels = op.out_channels
        add = OpConfig("add", op.batch, op.output_height, op.output_width, channels, channels, operands=2)
        node = kernel.nodes[-tail]
        plain = self._reorder("reorder_output", op, kernel.nodes[-tail - 1], conv)
        last = self._put(Kernel(add, node, (node,), ()), [plain, self._plain_of(kernel.inputs[1])])
        return self._activate(kernel, last) if op.activation else last

    def _activate(self, kernel: Kernel, source: int) -> int:
        """The activation of a convolution as a kernel of its own."""
        op, node = kernel.op, kernel.nodes[-1]
        size = (op.batch, op.output_height, op.output_width, op.out_channels, op.out_channels)
        return self._put(Kernel(OpConfig("activation", *size, activation=op.activation), node, (node,), ()), [source])

    # ---- kernels whose inputs are all blocked -----------------------------------------------------------------

    def _add_after_blocked(self, index: int, kernel: Kernel) -> None:
        op, inputs = kernel.op, [self._blocked[i] for i in kernel.inputs]
        if op.kind == "activation" and (scale := self._scale_before(kernel)) is not None:
            self._blocked[index] = self._take_along(scale, kernel)
        elif self._is_scale(op):
            self._blocked[index] = self._put(dataclasses.replace(kernel, op=_as_depthwise(op)), inputs)
        elif self._passes(kernel):
            self._blocked[index] = self._put(kernel, inputs)
        elif op.kind == "transpose":
            plain = self._plain[index] = self._plain_of(kernel.inputs[0])
            self._stand_for(plain, kernel)
        elif op.kind == "batch_norm":  # of a Mul and an Add, the first stays in the layout
            self._plain[index] = self._put(kernel, [self._reorder("reorder_output", op, kernel.main, inputs[0])])
        else:
            self._plain[index] = self._put(kernel, [self._plain_of(i) for i in kernel.inputs])

    def _is_scale(self, op: OpConfig) -> bool:
        """Whether it has a number for each channel, and so becomes a depthwise convolution of one position."""
        scale = op.kind == "multiply" and op.operands == 1 and op.broadcast == "channels"
        return (scale or (op.kind == "batch_norm" and not self._exported)) and op.in_channels % ALIGNMENT == 0

    def _scale_before(self, kernel: Kernel) -> int | None:
        """The scale of channels that takes this activation along, as a convolution does."""
        source = kernel.inputs[0]
        scales = self._is_scale(self._kernels[source].op) and self._readers[source] == 1
        return self._blocked[source] if scales and kernel.op.activation in _INTO_CONVS else None

    def _take_along(self, scale: int, kernel: Kernel) -> int:
        made = self._made[scale]
        assert made is not None
        op = dataclasses.replace(made.op, activation=kernel.op.activation)
        self._made[scale] = dataclasses.replace(made, op=op, nodes=(*made.nodes, *kernel.nodes))
        return scale

    def _passes(self, kernel: Kernel) -> bool:
        """Whether it works on blocked tensors."""
        op = kernel.op
        if op.kind == "activation":
            return op.activation in self._anywhere
        if op.kind in {"add", "multiply"}:
            return op.operands > 1 and (not op.broadcast or (op.kind == "add" and op.broadcast == "channels"))
        if op.kind in GLOBAL_POOLS:
            return op.in_channels % self._block == 0
        if op.kind == "concatenate":
            return all(self._kernels[i].op.out_channels % self._block == 0 for i in kernel.inputs)
        if op.kind in RESIZES:
            whole = op.output_height % op.height == 0 and op.output_width % op.width == 0
            return whole and (op.kind == "resize_bilinear" or not self._exported)
        return False

    # ---- tensors ----------------------------------------------------------------------------------------------

    def _put(self, kernel: Kernel, inputs: Sequence[int]) -> int:
        self._made.append(dataclasses.replace(kernel, inputs=tuple(inputs)))
        return len(self._made) - 1

    def _reorder(self, kind: str, op: OpConfig, main: int, source: int) -> int:
        """A reorder of what this operation makes."""
        size = (op.batch, op.output_height, op.output_width, op.out_channels, op.out_channels)
        return self._put(Kernel(OpConfig(kind, *size), main, (), ()), [source])

    def _plain_of(self, tensor: int) -> int:
        """What makes a tensor as it is outside of the layout."""
        if tensor < 0:
            return tensor
        if tensor not in self._plain:
            kernel = self._kernels[tensor]
            self._plain[tensor] = self._reorder("reorder_output", kernel.op, _last(kernel), self._blocked[tensor])
        return self._plain[tensor]

    def _blocked_of(self, tensor: int, reader: Kernel) -> int:
        """What makes a tensor blocked."""
        reshaped = self._exported and reader.op.height * reader.op.width == 1 and reader.op.kind not in POOLS
        if tensor in self._blocked and not reshaped:
            return self._blocked[tensor]
        if tensor not in self._reordered:
            self._reordered[tensor] = self._reorder_input(tensor, reader)
        return self._reordered[tensor]

    def _reorder_input(self, tensor: int, reader: Kernel) -> int:
        source = self._plain_of(tensor)
        if tensor < 0:
            op = reader.op
            size = OpConfig("reorder_input", op.batch, op.height, op.width, op.in_channels, op.in_channels)
            return self._put(Kernel(size, reader.main, (), ()), [source])
        kernel = self._kernels[tensor]
        made = self._reorder("reorder_input", kernel.op, _last(kernel), source)
        if kernel.op.kind == "transpose" and self._readers[tensor] == 1 and self._made[source] is not None:
            self._swallow(made, source)
        return made

    def _swallow(self, reorder: int, transpose: int) -> None:
        """A reorder reads channels last as well: the transpose before it goes."""
        before, found = self._made[transpose], self._made[reorder]
        assert before is not None and found is not None
        self._made[reorder] = dataclasses.replace(found, nodes=before.nodes, inputs=before.inputs)
        self._made[transpose] = None

    def _stand_for(self, reorder: int, transpose: Kernel) -> None:
        """A reorder writes channels last as well: it stands for the transpose after it."""
        found = self._made[reorder]
        assert found is not None
        self._made[reorder] = dataclasses.replace(found, nodes=(*found.nodes, *transpose.nodes))


def _as_depthwise(op: OpConfig) -> OpConfig:
    bias = op.kind == "batch_norm"
    return dataclasses.replace(op, kind="depthwise_conv2d", broadcast="", padding="same", use_bias=bias)


def _last(kernel: Kernel) -> int:
    return kernel.nodes[-1] if kernel.nodes else kernel.main
