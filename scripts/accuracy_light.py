"""The light models of the onnx package with real weights: theirs are one number, repeated.

Runtimes may treat weights that are all alike, or made by the graph itself, in another way than trained ones. So each
becomes an initialiser of random numbers; the rest of the graph stays as it is.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

Array = npt.NDArray[Any]

_NEAR_ONE = {("BatchNormalization", 1), ("BatchNormalization", 4), ("Mul", 1)}
"""Operator and place of an input: scales and variances. Unsqueeze stands between a scale and its Mul or Add."""
_KERNELS = {("Conv", 1), ("Gemm", 1)}
_FIRST_IR_WITHOUT_WEIGHT_INPUTS = 4


def model_bytes(entry: Mapping[str, Any], precision: str) -> bytes:
    """The .onnx file of an entry, float32 or int8."""
    model = with_random_weights(source(entry["light"]), zlib.crc32(entry["name"].encode()))
    _soften(model)
    if precision == "float32":
        return bytes(model.SerializeToString())
    from latency_lab.convert import quantise_onnx

    return bytes(quantise_onnx(model.SerializeToString()))


def source(file_name: str) -> onnx.ModelProto:
    """A light model as the onnx package brings it."""
    return onnx.load(Path(onnx.__file__).parent / "backend" / "test" / "data" / "light" / file_name)


def with_random_weights(model: onnx.ModelProto, seed: int) -> onnx.ModelProto:
    """The model with each float constant replaced by random numbers of the same shape, as an initialiser.

    Args:
        model: whose weights are made by ConstantOfShape or are initialisers; it is changed.
        seed: of the numbers.
    """
    graph = model.graph
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    made = [node for node in graph.node if node.op_type == "ConstantOfShape"]
    for node in made:
        values[node.output[0]] = np.zeros(values[node.input[0]], np.float32)
        graph.node.remove(node)
    roles = _roles(graph)
    random = np.random.default_rng(seed)
    del graph.initializer[:]
    for name, value in values.items():
        if name not in roles:
            continue  # shapes of what ConstantOfShape made, and what nothing reads
        if value.dtype == np.float32:
            value = _numbers(roles[name], value.shape, random).astype(np.float32)
        graph.initializer.append(numpy_helper.from_array(value, name))
    inputs = [value for value in graph.input if value.name not in values]
    del graph.input[:]
    graph.input.extend(inputs)
    model.ir_version = max(model.ir_version, _FIRST_IR_WITHOUT_WEIGHT_INPUTS)
    onnx.checker.check_model(model)
    return model


def _soften(model: onnx.ModelProto) -> None:
    """Divides the weights that make the logits, so that the softmax of a random image has no denormal numbers."""
    import onnxruntime

    graph = model.graph
    last = next((node for node in graph.node if node.op_type == "Softmax"), None)
    if last is None:
        return
    outputs = list(graph.output)
    del graph.output[:]
    graph.output.append(onnx.helper.make_tensor_value_info(last.input[0], onnx.TensorProto.FLOAT, None))
    session = onnxruntime.InferenceSession(model.SerializeToString())
    random = np.random.default_rng(0)
    logits = session.run(None, {value.name: random.uniform(-1, 1, value.shape).astype(np.float32)
                                for value in session.get_inputs()})[0]  # fmt: skip
    del graph.output[:]
    graph.output.extend(outputs)
    names = {name for node in graph.node for name in node.input[1:2] if (node.op_type, 1) in _KERNELS}
    kernel = [tensor for tensor in graph.initializer if tensor.name in names][-1]
    kernel.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(kernel) / max(logits.std(), 1), kernel.name))


def _roles(graph: onnx.GraphProto) -> dict[str, tuple[onnx.NodeProto, int]]:
    """Tensor -> the node that first reads it and at which place, looking through Unsqueeze."""
    roles: dict[str, tuple[onnx.NodeProto, int]] = {}
    for node in reversed(graph.node):
        for place, name in enumerate(node.input):
            through = node.op_type == "Unsqueeze" and node.output[0] in roles
            roles[name] = roles[node.output[0]] if through else (node, place)
    return roles


def _numbers(role: tuple[onnx.NodeProto, int], shape: tuple[int, ...], random: np.random.Generator) -> Array:
    """Random numbers for one weight: kernels keep the scale of what goes through, vectors are near 1 or near 0."""
    node, place = role
    if (node.op_type, place) in _KERNELS:
        turned = node.op_type == "Gemm" and not any(a.name == "transB" and a.i for a in node.attribute)
        fan_in = shape[0] if turned else np.prod(shape[1:])
        return random.normal(0, np.sqrt(2 / fan_in), shape)
    if (node.op_type, place) in _NEAR_ONE:
        return random.uniform(0.5, 1.5, shape)
    return random.uniform(-0.2, 0.2, shape)
