"""Reads .onnx files: the operations that they hold, as the runtime executes them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from latency_lab.graph.channel_graph import ChannelGraph
from latency_lab.graph.onnx_file import Shapes, load
from latency_lab.graph.onnx_graph import Reader
from latency_lab.graph.onnx_kinds import EFFECTS
from latency_lab.graph.onnx_patterns import find


def read_onnx(path: str | Path, input_shapes: Shapes | None = None) -> ChannelGraph:
    """The graph of a .onnx file: its operations at the sizes of the file, all channels pinned.

    Args:
        path: of the file. Weights that lie beside it are not read.
        input_shapes: name -> shape with the batch first, or one shape for a model of one input: where the file leaves
            sizes open. A batch that alone is open is 1.

    Raises:
        FileFormatError: the file is missing or damaged.
        UnsupportedModelError: an input has open sizes that `input_shapes` does not give.
        UsageError: `input_shapes` does not fit the model.

    Example:
        >>> from latency_lab.graph.onnx_reader import read_onnx
        >>> def kinds(path):
        ...     return [op.kind for op in read_onnx(path).op_configs()]
    """
    file = load(path, input_shapes)
    reader = Reader(file)
    patterns = find(file)
    inner = {member.output for match in patterns.values() for member in match.inner}
    for operator in file.operators:
        if operator.output in inner:
            continue
        match = patterns.get(operator.output)
        if match is not None:
            reader.read(dataclasses.replace(operator, inputs=match.inputs), match.effect)
        else:
            reader.read(operator, EFFECTS.get(operator.kind))
    return reader.graph(file.name or Path(path).stem)
