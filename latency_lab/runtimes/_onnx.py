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
FLOAT, BYTE = onnx.TensorProto.FLOAT, onnx.TensorProto.UINT8


class Writer:
    """An ONNX graph while it is built, all float32. A tensor has the name of the node that makes it."""

    def __init__(self) -> None:
        self._nodes: list[Any] = []
        self._constants: dict[str, npt.NDArray[Any]] = {}
        self._inputs: list[Any] = []
        self._metadata: dict[str, str] = {}

    def feed(self, name: str, shape: Shape, quantised: bool = False) -> str:
        """An input of the graph; 8-bit numbers where it is `quantised`."""
        self._inputs.append(helper.make_tensor_value_info(name, BYTE if quantised else FLOAT, shape))
        return name

    def constant(self, name: str, values: npt.ArrayLike) -> str:
        """A constant: float32, or int64 where the values are integers. One of the same name is not written again."""
        if name not in self._constants:
            array = np.asarray(values)
            self._store(name, np.asarray(array, np.int64 if array.dtype.kind == "i" else np.float32))
        return name

    def node(self, kind: str, inputs: list[str], name: str, **attributes: Any) -> str:
        """A node of one output; that output's name. An input "" is left out."""
        return self._plain(kind, inputs, name, **attributes)

    def context(self, kind: str, inputs: list[str], name: str, **attributes: Any) -> str:
        """A node that only moves numbers, whatever their type."""
        return self._plain(kind, inputs, name, **attributes)

    def plain(self, kind: str, inputs: list[str], name: str, **attributes: Any) -> str:
        """A node without casts, its output in float32."""
        return self._plain(kind, inputs, name, **attributes)

    def note(self, key: str, value: str) -> None:
        """Metadata of the model, for who runs it."""
        self._metadata[key] = value

    def to_bytes(self, outputs: dict[str, Shape], quantised: frozenset[str] = frozenset()) -> bytes:
        """The file.

        Args:
            outputs: name -> shape, in order.
            quantised: names of those that are 8-bit numbers.
        """
        declared = [
            helper.make_tensor_value_info(name, BYTE if name in quantised else FLOAT, shape)
            for name, shape in outputs.items()
        ]
        constants = [numpy_helper.from_array(array, name) for name, array in self._constants.items()]
        graph = helper.make_graph(self._nodes, "main", self._inputs, declared, constants)
        opsets = [helper.make_opsetid("", _OPSET)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=_IR_VERSION, producer_name="latency-lab")
        helper.set_model_props(model, self._metadata)
        return bytes(model.SerializeToString())

    def _plain(self, kind: str, inputs: list[str], name: str, output: str = "", **attributes: Any) -> str:
        self._nodes.append(helper.make_node(kind, inputs, [output or name], name, **attributes))
        return output or name

    def _store(self, name: str, array: npt.NDArray[Any]) -> str:
        self._constants[name] = np.ascontiguousarray(array).reshape(array.shape)
        return name
