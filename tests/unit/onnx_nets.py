"""Writes small .onnx files by hand."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


class OnnxNet:
    """A graph written operator by operator; every tensor is named after what makes it."""

    def __init__(self, opset: int = 17, ir_version: int = 8) -> None:
        self.nodes, self.initializers, self.inputs = [], [], []
        self.opset, self.ir_version = opset, ir_version
        self._count = 0

    def input(self, name: str, shape, elem_type: int = TensorProto.FLOAT) -> str:
        self.inputs.append(helper.make_tensor_value_info(name, elem_type, shape))
        return name

    def constant(self, values, dtype=np.float32) -> str:
        name = f"c{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(np.asarray(values, dtype), name))
        return name

    def op(self, kind: str, *inputs: str, name: str = "", outputs: int = 1, **attributes):
        self._count += 1
        name = name or f"{kind.lower()}{self._count}"
        made = [name] if outputs == 1 else [f"{name}_{k}" for k in range(outputs)]
        domain = attributes.pop("domain", "")
        self.nodes.append(helper.make_node(kind, inputs, made, name=name, domain=domain, **attributes))
        return name if outputs == 1 else made

    def conv(self, x: str, ins: int, outs: int, kernel: int = 3, groups: int = 1, bias: bool = False, **attributes):
        weights = self.constant(np.full((outs, ins // groups, kernel, kernel), 0.1))
        inputs = [x, weights, *([self.constant(np.ones(outs))] if bias else [])]
        attributes = {"pads": [kernel // 2] * 4, "kernel_shape": [kernel] * 2, "group": groups} | attributes
        return self.op("Conv", *inputs, **attributes)

    def model(self, *outputs: str) -> onnx.ModelProto:
        results = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
        graph = helper.make_graph(self.nodes, "net", self.inputs, results, self.initializers)
        opsets = [helper.make_opsetid("", self.opset), helper.make_opsetid("vendor", 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=self.ir_version)

    def save(self, folder: Path, *outputs: str) -> Path:
        path = folder / "net.onnx"
        path.write_bytes(self.model(*outputs).SerializeToString())
        return path
