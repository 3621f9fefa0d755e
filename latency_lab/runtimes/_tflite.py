"""Writes TFLite flatbuffers through the schema that ai-edge-litert ships."""

from __future__ import annotations

from typing import Any

import flatbuffers
import numpy as np
import numpy.typing as npt
from ai_edge_litert import schema_py_generated as schema

from latency_lab.runtimes.base import Shape

_SCHEMA_VERSION = 3
_IDENTIFIER = b"TFL3"
_ALIGNMENT = 16
_LAST_DEPRECATED_CODE = 127
_ACTIVATIONS = {None: "NONE", "relu": "RELU", "relu6": "RELU6"}
_VERSIONS = {"CONV_2D": 6, "DEPTHWISE_CONV_2D": 2}
"""Versions of operators other than 1: grouped and dilated."""


class Writer:
    """A TFLite model while it is built, of one subgraph, all float32.

    Tensors are integers, as in the file. -1 stands for an operand that is left out.
    """

    def __init__(self) -> None:
        self._buffers = [schema.BufferT()]
        self._tensors: list[Any] = []
        self._operators: list[Any] = []
        self._codes: dict[str, int] = {}
        self._constant_bytes = 0

    def tensor(self, name: str, shape: Shape) -> int:
        """A tensor that is computed or fed."""
        return self._add_tensor(name, shape, schema.TensorType.FLOAT32, 0)

    def constant(self, name: str, values: npt.ArrayLike) -> int:
        """A constant tensor: float32, or int32 where the values are integers."""
        array = np.asarray(values)
        kind = np.int32 if array.dtype.kind == "i" else np.float32
        array = np.ascontiguousarray(array, kind)
        self._buffers.append(schema.BufferT(data=array.reshape(-1).view(np.uint8)))
        self._constant_bytes += array.nbytes
        code = schema.TensorType.INT32 if kind is np.int32 else schema.TensorType.FLOAT32
        return self._add_tensor(name, array.shape, code, len(self._buffers) - 1)

    def operator(self, code: str, inputs: list[int], name: str, shape: Shape, options: str = "", **fields: Any) -> int:
        """An operator of one output.

        Args:
            code: as in the schema's BuiltinOperator.
            inputs: tensors.
            name, shape: of the output tensor.
            options: name of the schema's options table, without "Options".
            **fields: of the options. An `activation` is named as in `ops`.

        Returns:
            the output tensor.
        """
        output = self.tensor(name, shape)
        index = self._codes.setdefault(code, len(self._codes))
        operator = schema.OperatorT(opcodeIndex=index, inputs=inputs, outputs=[output])
        if options:
            if "activation" in fields:
                activation = _ACTIVATIONS[fields.pop("activation")]
                fields["fusedActivationFunction"] = getattr(schema.ActivationFunctionType, activation)
            operator.builtinOptionsType = getattr(schema.BuiltinOptions, f"{options}Options")
            operator.builtinOptions = getattr(schema, f"{options}OptionsT")(**fields)
        self._operators.append(operator)
        return output

    def rename(self, tensor: int, name: str) -> None:
        """Give a tensor another name."""
        self._tensors[tensor].name = name

    def to_bytes(self, inputs: list[int], outputs: list[int]) -> bytes:
        """The file.

        Args:
            inputs, outputs: tensors of the subgraph, in order.
        """
        subgraph = schema.SubGraphT(
            tensors=self._tensors, inputs=inputs, outputs=outputs, operators=self._operators, name="main"
        )
        model = schema.ModelT(
            version=_SCHEMA_VERSION,
            operatorCodes=[_operator_code(code) for code in self._codes],
            subgraphs=[subgraph],
            description="latency-lab",
            buffers=self._buffers,
        )
        builder = _Builder(self._constant_bytes + 512 * (len(self._tensors) + len(self._operators)) + 4096)
        builder.Finish(model.Pack(builder), _IDENTIFIER)
        return bytes(builder.Output())

    def _add_tensor(self, name: str, shape: Shape, code: int, buffer: int) -> int:
        self._tensors.append(schema.TensorT(shape=list(shape), type=code, buffer=buffer, name=name, hasRank=True))
        return len(self._tensors) - 1


class _Builder(flatbuffers.Builder):
    """Aligns constants as the schema asks (force_align: 16), which the generated Python does not."""

    def CreateNumpyVector(self, x: npt.NDArray[np.uint8]) -> Any:  # noqa: N802 (name of the base class)
        self.Prep(_ALIGNMENT, x.nbytes)
        self.StartVector(1, x.size, 1)
        self.head -= x.nbytes
        self.Bytes[self.head : self.head + x.nbytes] = x.data
        return self.EndVector()


def _operator_code(name: str) -> Any:
    code = getattr(schema.BuiltinOperator, name)
    return schema.OperatorCodeT(
        deprecatedBuiltinCode=min(code, _LAST_DEPRECATED_CODE), builtinCode=code, version=_VERSIONS.get(name, 1)
    )
