"""Writes ONNX graphs."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from latency_lab.runtimes.base import Shape

_OPSET = 15
_IR_VERSION = 8
"""Both as `keras.Model.export(format="onnx")` writes them."""


class Writer:
    """An ONNX graph while it is built, all float32. A tensor has the name of the node that makes it."""

    def __init__(self) -> None:
        self._nodes: list[Any] = []
        self._constants: dict[str, Any] = {}
        self._inputs: list[Any] = []

    def feed(self, name: str, shape: Shape) -> str:
        """An input of the graph."""
        self._inputs.append(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape))
        return name

    def constant(self, name: str, values: npt.ArrayLike) -> str:
        """A constant: float32, or int64 where the values are integers. One of the same name is not written again."""
        if name not in self._constants:
            array = np.asarray(values)
            array = np.ascontiguousarray(array, np.int64 if array.dtype.kind == "i" else np.float32)
            self._constants[name] = numpy_helper.from_array(array.reshape(np.shape(values)), name)
        return name

    def node(self, kind: str, inputs: list[str], name: str, **attributes: Any) -> str:
        """A node of one output; that output's name."""
        self._nodes.append(helper.make_node(kind, inputs, [name], name, **attributes))
        return name

    def to_bytes(self, outputs: dict[str, Shape]) -> bytes:
        """The file.

        Args:
            outputs: name -> shape, in order.
        """
        float32 = onnx.TensorProto.FLOAT
        declared = [helper.make_tensor_value_info(name, float32, shape) for name, shape in outputs.items()]
        graph = helper.make_graph(self._nodes, "main", self._inputs, declared, list(self._constants.values()))
        opsets = [helper.make_opsetid("", _OPSET)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=_IR_VERSION, producer_name="latency-lab")
        return bytes(model.SerializeToString())
