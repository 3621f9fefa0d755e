"""Which operations a runtime executes as one kernel, and the kernels of a network under such rules.

A rule is two words joined by "+": what a kernel is, and what it swallows. "conv2d+relu" puts the activation into
the conv, "conv2d+batch_norm" folds the normalisation into its weights, "pad+conv2d" turns a pad into the conv's own
padding, and "conv2d+add" adds a residual inside of the conv. In "transpose+conv2d" and "conv2d+reshape" what is
swallowed costs nothing: it is another name of the same bytes. "scale+shift" makes a batch norm of a product and a sum
with a number for each channel. "image+conv2d" makes arithmetic with constants on a network's own input a part of the
conv that reads it, whose image then comes from nearer than an input does.

Rules that add kernels. "input+transpose": the runtime works channels first, and each image that comes in is transposed.
"concatenate+copy" and "pad+copy": what makes an operand of a concatenation or pad writes it to its place there, unless
something else reads the operand too, or it is a concatenation itself: then it is copied.

Rules of how tensors lie on an NPU, which keeps them in bricks of 16 channels elsewhere (`OpConfig.linear`).
"concatenate+linear": a concatenation of parts that are not of whole bricks has none. "slice+linear": a slice is read
where it lies in the tensor that it is of, which then has none either.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass

from latency_lab.ops import BINARY, BRICK, Network, OpConfig

INPUT_TRANSPOSE = "input+transpose"
SCALE_SHIFT = "scale+shift"
IMAGE_CONV = "image+conv2d"
COPIES = {"concatenate+copy": "concatenate", "pad+copy": "pad"}
"""Rule -> the kind whose operands it copies."""
LINEAR = {"concatenate+linear": "concatenate", "slice+linear": "slice"}
"""Rule -> the kind whose result has no bricks of channels."""
ADDING = frozenset({INPUT_TRANSPOSE, *COPIES})
"""Rules that add kernels."""


@dataclass(frozen=True, slots=True)
class Kernel:
    """What a runtime executes in one piece.

    Attributes:
        op: the merged operation.
        main: index of the network's node that gives the kernel its kind and its channels.
        nodes: indices of all nodes that it stands for, in order; none for a transpose or copy that a rule adds.
        inputs: as in `ops.Network`, counted in kernels.
    """

    op: OpConfig
    main: int
    nodes: tuple[int, ...]
    inputs: tuple[int, ...]


def fuse(network: Network, fusions: Collection[str]) -> tuple[Kernel, ...]:
    """The kernels that a network becomes, in topological order.

    Args:
        network: operations as the model states them.
        fusions: rules; those of a `DeviceProfile`, or a runtime's `conversion_fusions`.

    A tensor that more than one node reads is never swallowed.

    Example:
        >>> from latency_lab.ops import Network, OpConfig
        >>> conv = OpConfig("conv2d", height=8, width=8, in_channels=4, out_channels=8)
        >>> relu = OpConfig("activation", height=8, width=8, in_channels=8, out_channels=8, activation="relu")
        >>> [k.op.activation for k in fuse(Network(((conv, (-1,)), (relu, (0,)))), {"conv2d+relu"})]
        ['relu']
    """
    readers = Counter(i for _, inputs in network.nodes for i in inputs)
    images = _scaled_images(network) if IMAGE_CONV in fusions else frozenset()
    open_kernels: dict[int, Kernel] = {}  # by the node whose output the kernel gives so far
    for index, (op, inputs) in enumerate(network.nodes):
        merged = None
        for i in sorted((i for i in inputs if i >= 0 and readers[i] == 1), reverse=True):
            merged = _merge(open_kernels[i], index, op, inputs, i, fusions)
            if merged is not None:
                del open_kernels[i]
                break
            if i in images and op.kind == "conv2d":
                chain = _chain_to(i, network, readers)
                scaled = dataclasses.replace(op, broadcast=network.nodes[i][0].broadcast)
                merged = Kernel(scaled, index, (*chain, index), network.nodes[chain[0]][1])
                for node in chain:
                    open_kernels.pop(node, None)  # one may be part of another
                break
        open_kernels[index] = merged or Kernel(op, index, (index,), inputs)
    transposes = _transposed_inputs(network) if INPUT_TRANSPOSE in fusions else ()
    order = sorted(open_kernels)
    position = {node: len(transposes) + k for k, node in enumerate(order)}
    position |= {kernel.inputs[0]: k for k, kernel in enumerate(transposes)}
    rest = (
        dataclasses.replace(open_kernels[node], inputs=tuple(position.get(i, i) for i in open_kernels[node].inputs))
        for node in order
    )
    found = (*transposes, *rest)
    copied = _with_copies(found, {kind for rule, kind in COPIES.items() if rule in fusions})
    return _with_linear(copied, {kind for rule, kind in LINEAR.items() if rule in fusions})


def fused_network(network: Network, fusions: Collection[str]) -> Network:
    """The network with each kernel as one node; rules that add kernels play no part."""
    fusions = frozenset(fusions) - ADDING
    return Network(tuple((kernel.op, kernel.inputs) for kernel in fuse(network, fusions)), network.name)


def as_run(network: Network, fusions: Collection[str], precision: str, exported: bool) -> Network:
    """The network of a model as a runtime is given it, not fused yet.

    Args:
        network: of the model, or of the model at other widths.
        fusions: what the runtime merges; `INPUT_TRANSPOSE` among them says that it has channels first.
        precision: that a model is exported in.
        exported: whether the model is still to be exported; a file states types and layout itself.
    """
    typed = network.of_type(precision) if exported else network
    return as_stored(typed, INPUT_TRANSPOSE in fusions, exported)


def as_stored(network: Network, channels_first: bool, exported: bool) -> Network:
    """The network with constants by channels named as they lie in memory (`OpConfig.broadcast`).

    For a runtime of channels first, an export transposes an image after the arithmetic with constants that is done on
    the image itself; a runtime of channels last has every constant innermost, and no name for it.

    Args:
        network: what is run.
        channels_first: whether the runtime has channels first.
        exported: whether the network is of a model that is still to be exported; else of a file, which says itself.
    """
    found: list[tuple[OpConfig, tuple[int, ...]]] = []
    image = _scaled_images(network)
    for index, (op, inputs) in enumerate(network.nodes):
        if not channels_first and op.broadcast == "innermost":
            op = dataclasses.replace(op, broadcast="channels")
        elif channels_first and exported and index in image and op.broadcast == "channels":
            op = dataclasses.replace(op, broadcast="innermost")
        found.append((op, inputs))
    return Network(tuple(found), network.name)


def _scaled_images(network: Network) -> frozenset[int]:
    """Nodes of arithmetic with constants on what the network reads, and of more of it on that."""
    found: set[int] = set()
    for index, (op, inputs) in enumerate(network.nodes):
        if op.kind in BINARY and op.operands == 1 and (inputs[0] < 0 or inputs[0] in found):
            found.add(index)
    return frozenset(found)


def _chain_to(index: int, network: Network, readers: Counter[int]) -> list[int]:
    """The nodes from a network's input, or from what more than one node reads, to a node of `_scaled_images`."""
    chain = [index]
    while (source := network.nodes[chain[0]][1][0]) >= 0 and readers[source] == 1:
        chain.insert(0, source)
    return chain


def _transposed_inputs(network: Network) -> tuple[Kernel, ...]:
    """A transpose for each image that the network reads."""
    found: dict[int, Kernel] = {}
    for index, (op, inputs) in enumerate(network.nodes):
        images = inputs[:1] if op.broadcast else inputs  # a second operand of one position needs no transpose
        for i in images:
            if i < 0 and i not in found and op.height * op.width > 1:
                size = OpConfig(
                    "transpose", op.batch, op.height, op.width, op.in_channels, op.in_channels, dtype=op.dtype
                )
                found[i] = Kernel(size, index, (), (i,))
    return tuple(found[i] for i in sorted(found, reverse=True))


def _with_copies(kernels: tuple[Kernel, ...], kinds: Collection[str]) -> tuple[Kernel, ...]:
    """The kernels with a copy, an average pooling of one position, before each operand of these kinds that cannot be
    made in its place. An operand that is an input of the network gets none: its channels are not stated."""
    readers = Counter(i for kernel in kernels for i in kernel.inputs)
    found: list[Kernel] = []
    position: dict[int, int] = {}
    for index, kernel in enumerate(kernels):
        inputs = []
        for i in kernel.inputs:
            source = position.get(i, i)
            if kernel.op.kind in kinds and i >= 0 and (readers[i] > 1 or kernels[i].op.kind == "concatenate"):
                found.append(_copy_of(kernels[i], source))
                source = len(found) - 1
            inputs.append(source)
        position[index] = len(found)
        found.append(dataclasses.replace(kernel, inputs=tuple(inputs)))
    return tuple(found)


def _copy_of(kernel: Kernel, source: int) -> Kernel:
    op = kernel.op
    size = (op.batch, op.output_height, op.output_width, op.out_channels, op.out_channels)
    return Kernel(OpConfig("avg_pool", *size, dtype=op.dtype), (kernel.nodes or (kernel.main,))[-1], (), (source,))


def _with_linear(kernels: tuple[Kernel, ...], kinds: Collection[str]) -> tuple[Kernel, ...]:
    """The kernels with `OpConfig.linear` of those that read what results of these kinds are, and of copies that are
    made for a pad of which a slice is read."""
    linear = {k for k, kernel in enumerate(kernels) if kernel.op.kind in kinds and _has_no_bricks(kernel, kernels)}
    sliced = {i for k in linear if kernels[k].op.kind == "slice" for i in kernels[k].inputs if i >= 0}
    padded = {i for k in sliced if kernels[k].op.kind == "pad" for i in kernels[k].inputs}
    found = []
    for index, kernel in enumerate(kernels):
        op = kernel.op
        if kernel.inputs[0] in linear and index not in linear:
            op = dataclasses.replace(op, linear="input")
        elif index in padded and not kernel.nodes:
            op = dataclasses.replace(op, linear="output")
        found.append(dataclasses.replace(kernel, op=op))
    return tuple(found)


def _has_no_bricks(kernel: Kernel, kernels: tuple[Kernel, ...]) -> bool:
    """Whether it is a slice, or a concatenation of parts that are not of whole bricks."""
    parts = [kernels[i].op.out_channels for i in kernel.inputs if i >= 0]
    return kernel.op.kind == "slice" or any(part % BRICK for part in parts)


def _merge(
    kernel: Kernel, index: int, op: OpConfig, inputs: tuple[int, ...], source: int, fusions: Collection[str]
) -> Kernel | None:
    """`kernel`, whose output `source` only node `index` reads, together with that node; None where no rule says so."""
    nodes = (*kernel.nodes, index)
    if kernel.op.kind == "transpose" and f"transpose+{op.kind}" in fusions:
        return Kernel(op, index, nodes, tuple(kernel.inputs[0] if i == source else i for i in inputs))
    if op.kind in {"reshape", "flatten"} and f"{kernel.op.kind}+{op.kind}" in fusions:
        return dataclasses.replace(kernel, nodes=nodes)
    if SCALE_SHIFT in fusions and _by_channels(kernel.op, "multiply") and _by_channels(op, "add"):
        size = (op.batch, op.height, op.width, op.in_channels, op.out_channels)
        return Kernel(OpConfig("batch_norm", *size, dtype=op.dtype), kernel.main, nodes, kernel.inputs)
    bare = kernel.op.activation is None
    if op.kind == "activation" and bare and f"{kernel.op.kind}+{op.activation}" in fusions:
        return Kernel(dataclasses.replace(kernel.op, activation=op.activation), kernel.main, nodes, kernel.inputs)
    if op.kind == "batch_norm" and bare and not kernel.op.residual and f"{kernel.op.kind}+batch_norm" in fusions:
        return Kernel(dataclasses.replace(kernel.op, use_bias=True), kernel.main, nodes, kernel.inputs)
    plain = op.kind == "add" and op.operands == 2 and not op.broadcast and inputs[0] != inputs[1]
    if plain and bare and not kernel.op.residual:
        if f"{kernel.op.kind}+add" in fusions:
            other = inputs[1] if inputs[0] == source else inputs[0]
            merged = dataclasses.replace(kernel.op, residual=True, activation=op.activation)
            return Kernel(merged, kernel.main, nodes, (*kernel.inputs, other))
    if kernel.op.kind == "pad" and f"pad+{op.kind}" in fusions and op.padding != "same":
        pads = tuple((a + c, b + d) for (a, b), (c, d) in zip(kernel.op.pads, op.pads, strict=True))
        merged = dataclasses.replace(op, height=kernel.op.height, width=kernel.op.width, padding=(pads[0], pads[1]))
        return Kernel(merged, index, nodes, kernel.inputs)
    return None


def _by_channels(op: OpConfig, kind: str) -> bool:
    """Whether it is arithmetic of this kind with a constant for each channel, and no more."""
    return op.kind == kind and op.operands == 1 and op.broadcast == "channels" and op.activation is None
