"""ONNX operators that move numbers, resize images or cast."""

from __future__ import annotations

from latency_lab.runtimes._onnx_ops import Node, builds


@builds("concatenate")
def _concatenate(node: Node, operands: list[str]) -> str:
    return node.add("Concat", operands, axis=node.channel_axis)


@builds("pad")
def _pad(node: Node, operands: list[str]) -> str:
    space = [list(pair) for pair in zip(*node.op.pads, strict=True)]
    before, after = ([0, 0, *ends] if node.channels_first else [0, *ends, 0] for ends in space)
    return node.add("Pad", [operands[0], node.constant("pads", [*before, *after])])


@builds("slice")
def _slice(node: Node, operands: list[str]) -> str:
    """The first rows, columns and channels."""
    op, rank = node.op, len(node.shape)
    ends = [op.batch, *node.shape[1:]]
    if node.channels_first and rank > 2:
        ends = [ends[0], ends[-1], *ends[1:-1]]
    bounds = {"starts": [0] * rank, "ends": ends, "axes": list(range(rank))}
    return node.add("Slice", [operands[0], *(node.constant(name, values) for name, values in bounds.items())])


@builds("flatten")
def _flatten(node: Node, operands: list[str]) -> str:
    data = operands[0]
    if node.op.depth * node.op.height * node.op.width > 1 and node.channels_first:
        data = node.add("Transpose", [data], "transpose", perm=(0, *range(2, node.operand_ranks[0]), 1))
    return node.add("Reshape", [data, node.constant("shape", [node.op.batch, node.op.out_channels])])


@builds("reshape")
def _reshape(node: Node, operands: list[str]) -> str:
    return node.add("Reshape", [operands[0], node.constant("shape", list(node.shape))])


@builds("channel_shuffle")
def _channel_shuffle(node: Node, operands: list[str]) -> str:
    """Of (batch, ..., channels): groups and the channels of a group change places."""
    op, space = node.op, list(node.shape[1:-1])
    parted = node.constant("parted", [-1, *space, op.groups, op.in_channels // op.groups])
    data = node.add("Reshape", [operands[0], parted], "part")
    rank = len(node.shape) + 1
    data = node.add("Transpose", [data], "swap", perm=[*range(rank - 2), rank - 1, rank - 2])
    return node.add("Reshape", [data, node.constant("whole", [-1, *space, op.in_channels])])


@builds("resize_bilinear")
def _resize_bilinear(node: Node, operands: list[str]) -> str:
    return _resize(node, operands, "linear", "half_pixel")


@builds("resize_nearest")
def _resize_nearest(node: Node, operands: list[str]) -> str:
    return _resize(node, operands, "nearest", "tf_half_pixel_for_nn")


def _resize(node: Node, operands: list[str], mode: str, coordinates: str) -> str:
    batch, rows, columns, channels = node.shape
    sizes = node.constant("sizes", [batch, channels, rows, columns])
    return node.add(
        "Resize",
        [operands[0], "", "", sizes],
        mode=mode,
        coordinate_transformation_mode=coordinates,
        nearest_mode="floor",
    )
