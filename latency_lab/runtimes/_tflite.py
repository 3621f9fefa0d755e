"""Writes TFLite flatbuffers through the schema that ai-edge-litert ships."""

from __future__ import annotations

from dataclasses import dataclass
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
_SCALE_OF_ZEROS = 1e-6 / 255
"""Of a constant of zeros, as the converter has it. A comparison aborts the process at a scale of 1."""
_ACTIVATIONS = {None: "NONE", "relu": "RELU", "relu6": "RELU6"}
_TYPES = {
    np.dtype(np.float32): schema.TensorType.FLOAT32,
    np.dtype(np.int32): schema.TensorType.INT32,
    np.dtype(np.int8): schema.TensorType.INT8,
    np.dtype(np.bool_): schema.TensorType.BOOL,
}


@dataclass(frozen=True, slots=True)
class Quantisation:
    """What the integers of a tensor stand for: scale * (integer - zero_point).

    Attributes:
        scale: of one step.
        zero_point: the integer that is 0.
        axis, channels: where each of so many channels along this axis has a scale of its own. Made-up weights are
            alike in all channels, so that the scales are the same number.
    """

    scale: float
    zero_point: int = 0
    axis: int = 0
    channels: int = 1

    def integers(self, values: npt.ArrayLike) -> npt.NDArray[np.int8]:
        """The integers that are nearest to these values."""
        steps = np.rint(np.asarray(values, np.float32) / np.float32(self.scale)) + self.zero_point
        integers: npt.NDArray[np.int8] = np.clip(steps, -128, 127).astype(np.int8)
        return integers

    @classmethod
    def spanning(cls, values: npt.ArrayLike) -> Quantisation:
        """As the converter chooses it for a constant: 255 steps from the lowest to the highest value, and 0 in it."""
        low, high = min(float(np.min(values)), 0.0), max(float(np.max(values)), 0.0)
        if low == high:
            return cls(_SCALE_OF_ZEROS)
        scale = (high - low) / 255
        return cls(scale, round(-128 - low / scale))


class Writer:
    """A TFLite model while it is built, of one subgraph.

    Tensors are integers, as in the file. -1 stands for an operand that is left out.
    """

    def __init__(self) -> None:
        self._buffers = [schema.BufferT()]
        self._tensors: list[Any] = []
        self._quantisations: list[Quantisation | None] = []
        self._operators: list[Any] = []
        self._versions: dict[str, int] = {}
        self._constant_bytes = 0

    def tensor(self, name: str, shape: Shape, quantisation: Quantisation | None = None, boolean: bool = False) -> int:
        """A tensor that is computed or fed: float32, int8 where it is quantised, or of truth values."""
        kind = np.bool_ if boolean else np.float32 if quantisation is None else np.int8
        return self._add_tensor(name, shape, np.dtype(kind), quantisation)

    def constant(self, name: str, values: npt.ArrayLike, quantisation: Quantisation | None = None) -> int:
        """A constant tensor.

        Args:
            name: of the tensor.
            values: floats; or integers, written as they are: int32, or int8 where they are of that type.
            quantisation: what integers stand for.
        """
        array = np.asarray(values)
        if array.dtype != np.int8:
            array = array.astype(np.int32 if array.dtype.kind == "i" else np.float32, copy=False)
        self._buffers.append(schema.BufferT(data=np.ascontiguousarray(array).reshape(-1).view(np.uint8)))
        self._constant_bytes += array.nbytes
        return self._add_tensor(name, array.shape, array.dtype, quantisation, len(self._buffers) - 1)

    def operator(
        self, code: str, inputs: list[int], output: int, options: str = "", version: int = 1, **fields: Any
    ) -> int:
        """An operator of one output.

        Args:
            code: as in the schema's BuiltinOperator.
            inputs, output: tensors.
            options: name of the schema's options table, without "Options".
            version: of the operator, by what it is given. A file has one version of each, the highest.
            **fields: of the options. An `activation` is named as in `ops`.

        Returns:
            the output tensor.
        """
        self._versions[code] = max(self._versions.get(code, 1), version)
        index = list(self._versions).index(code)
        operator = schema.OperatorT(opcodeIndex=index, inputs=inputs, outputs=[output])
        if options:
            if "activation" in fields:
                activation = _ACTIVATIONS[fields.pop("activation")]
                fields["fusedActivationFunction"] = getattr(schema.ActivationFunctionType, activation)
            operator.builtinOptionsType = getattr(schema.BuiltinOptions, f"{options}Options")
            operator.builtinOptions = getattr(schema, f"{options}OptionsT")(**fields)
        self._operators.append(operator)
        return output

    def quantisation(self, tensor: int) -> Quantisation | None:
        """What the integers of a tensor stand for; None of a tensor of floats or counts, and of one left out."""
        return self._quantisations[tensor] if tensor >= 0 else None

    def shape(self, tensor: int) -> Shape:
        """Of a tensor."""
        return tuple(self._tensors[tensor].shape)

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
            operatorCodes=[_operator_code(*code) for code in self._versions.items()],
            subgraphs=[subgraph],
            description="latency-lab",
            buffers=self._buffers,
        )
        builder = _Builder(self._constant_bytes + 512 * (len(self._tensors) + len(self._operators)) + 4096)
        builder.Finish(model.Pack(builder), _IDENTIFIER)
        return bytes(memoryview(builder.Bytes)[builder.Head() :])  # Output() would copy once more

    def _add_tensor(
        self, name: str, shape: Shape, dtype: np.dtype[Any], quantisation: Quantisation | None, buffer: int = 0
    ) -> int:
        tensor = schema.TensorT(shape=list(shape), type=_TYPES[dtype], buffer=buffer, name=name, hasRank=True)
        if quantisation is not None:
            tensor.quantization = _parameters(quantisation)
        self._tensors.append(tensor)
        self._quantisations.append(quantisation)
        return len(self._tensors) - 1


class _Builder(flatbuffers.Builder):
    """Aligns constants as the schema asks (force_align: 16), which the generated Python does not."""

    def CreateNumpyVector(self, x: npt.NDArray[Any]) -> Any:  # noqa: N802 (name of the base class)
        self.Prep(_ALIGNMENT, x.nbytes)
        self.StartVector(x.itemsize, x.size, x.itemsize)
        self.head -= x.nbytes
        self.Bytes[self.head : self.head + x.nbytes] = x.view(np.uint8).data
        return self.EndVector()


def _parameters(quantisation: Quantisation) -> Any:
    return schema.QuantizationParametersT(
        scale=np.full(quantisation.channels, quantisation.scale, "<f4"),
        zeroPoint=np.full(quantisation.channels, quantisation.zero_point, "<i8"),
        quantizedDimension=quantisation.axis,
    )


def _operator_code(name: str, version: int) -> Any:
    code = getattr(schema.BuiltinOperator, name)
    return schema.OperatorCodeT(
        deprecatedBuiltinCode=min(code, _LAST_DEPRECATED_CODE), builtinCode=code, version=version
    )
