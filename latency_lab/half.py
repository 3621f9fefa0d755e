"""Float32 model files as the same networks in float16: weights, activations, inputs and outputs.

What a runtime asks to be float32 stays so: the scales of an ONNX Resize, and what TensorFlow's ResizeBilinear makes,
which is cast.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

LARGEST = float(np.finfo(np.float16).max)
"""Numbers beyond are cut to it."""


def half_onnx(file: bytes) -> bytes:
    """A float32 .onnx file in float16.

    Args:
        file: of one graph, without subgraphs.

    Raises:
        ModuleNotFoundError: onnx is not installed.
    """
    import onnx

    model = onnx.load_from_string(file)
    graph, float32, float16 = model.graph, onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16
    stays = {name for node in graph.node if node.op_type == "Resize" for name in node.input[1:] if name}
    for tensor in graph.initializer:
        if tensor.name not in stays:
            _halve_onnx_tensor(tensor)
    for value in (*graph.input, *graph.output, *graph.value_info):
        kind = value.type.tensor_type
        kind.elem_type = float16 if kind.elem_type == float32 else kind.elem_type
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.TENSOR and not stays.intersection(node.output):
                _halve_onnx_tensor(attribute.t)
            elif node.op_type == "Cast" and attribute.name == "to" and attribute.i == float32:
                attribute.i = float16
    return bytes(model.SerializeToString())


def _halve_onnx_tensor(tensor: Any) -> None:
    import onnx
    from onnx import numpy_helper

    if tensor.data_type == onnx.TensorProto.FLOAT:
        tensor.CopyFrom(numpy_helper.from_array(_half(numpy_helper.to_array(tensor)), tensor.name))


def half_graphdef(file: bytes) -> bytes:
    """A float32 TensorFlow GraphDef (.pb) whose weights are constants, in float16.

    Raises:
        ModuleNotFoundError: tensorflow is not installed.
    """
    import tensorflow as tf

    graph = tf.compat.v1.GraphDef()
    graph.ParseFromString(file)
    _halve_nodes(graph.node)
    for function in graph.library.function:  # a name is one function's in all of a process
        function.signature.name += _SUFFIX
        _halve_nodes(function.node_def)
        for argument in (*function.signature.input_arg, *function.signature.output_arg):
            argument.type = _HALF if argument.type == _FLOAT else argument.type
    for node in [node for node in graph.node if node.op == "ResizeBilinear"]:
        cast = f"{node.name}/half"
        for reader in graph.node:
            reader.input[:] = [cast if name in {node.name, f"{node.name}:0"} else name for name in reader.input]
        attributes = graph.node.add(name=cast, op="Cast", input=[node.name]).attr
        attributes["SrcT"].type, attributes["DstT"].type = _FLOAT, _HALF
    return bytes(graph.SerializeToString())


_FLOAT, _HALF = 1, 19
"""TensorFlow's DT_FLOAT and DT_HALF."""
_SUFFIX = "_half"


def _halve_nodes(nodes: Iterable[Any]) -> None:
    import tensorflow as tf

    for node in nodes:
        for attribute in node.attr.values():
            kind = attribute.WhichOneof("value")
            if kind == "type" and attribute.type == _FLOAT:
                attribute.type = _HALF
            elif kind == "tensor" and attribute.tensor.dtype == _FLOAT:
                values = _half(tf.make_ndarray(attribute.tensor))
                attribute.tensor.CopyFrom(tf.make_tensor_proto(values))
            elif kind == "func":
                attribute.func.name += _SUFFIX
            elif kind == "list":
                attribute.list.type[:] = [_HALF if each == _FLOAT else each for each in attribute.list.type]


def _half(values: Any) -> Any:
    return np.clip(values, -LARGEST, LARGEST).astype(np.float16)
