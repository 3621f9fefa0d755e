"""Writes 8-bit ONNX graphs as `onnxruntime.quantization.quantize_static` does: float operators between casts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from latency_lab.runtimes._onnx import Writer
from latency_lab.runtimes.base import Shape

_QUANTISED = frozenset(
    {"Conv", "ConvTranspose", "Gemm", "MatMul", "Add", "Mul", "LeakyRelu", "Sigmoid", "Softmax"}
    | {"GlobalAveragePool", "Concat"}
)
"""Operators whose inputs and outputs become 8-bit numbers."""
_FOLLOWING = frozenset(
    {"Relu", "Clip", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "MaxPool", "AveragePool", "Slice", "Resize", "Pad"}
)
"""Operators that become so where their input is."""
_SAME_SCALE = _FOLLOWING - {"Relu", "Clip", "Pad"}
"""Operators whose output keeps the scale of their input."""
_KERNEL_AXIS = {"Conv": 0, "ConvTranspose": 1, "Gemm": 1, "MatMul": 1}
"""The axis of output channels in the weights: each channel has a scale of its own."""
_RANGE = 8.0
"""Activations are taken to lie in -4 to 4; after a ReLU, in 0 to 8."""
_UNIT_RANGE = frozenset({"Sigmoid", "Softmax"})


@dataclass(slots=True)
class _Tensor:
    """An activation while the graph is built: in numbers of 4 bytes, of 1, or both.

    Attributes:
        real, coded: names of the two forms, "" where there is none yet.
        quantised: whether it is meant to be 8-bit.
        scale, zero: real = scale * (coded - zero).
    """

    real: str
    coded: str
    quantised: bool
    scale: float
    zero: int


class QuantisedWriter(Writer):
    """A graph of 8-bit operators: uint8 activations, int8 weights with a scale for each output channel, int32 biases.

    Each operator that is quantised reads a DequantizeLinear of its own for each input, and its output goes through a
    QuantizeLinear; ONNX Runtime merges the group to one integer kernel where it has one. A ReLU is left out where the
    QuantizeLinear before it does its work.

    Activations are unsigned: ONNX Runtime on x86 turns signed ones into unsigned ones where a tensor has one reader,
    and keeps the operators around the others in float32, with casts.

    Attributes:
        precise: operators from here on are float32.
    """

    def __init__(self) -> None:
        super().__init__()
        self.precise = False
        self._tensors: dict[str, _Tensor] = {}

    def feed(self, name: str, shape: Shape, quantised: bool = False) -> str:
        """An input of the graph."""
        real, coded = ("", name) if quantised else (name, "")
        self._tensors[name] = _Tensor(real, coded, quantised, *self._next_scale())
        return super().feed(name, shape, quantised)

    def node(self, kind: str, inputs: list[str], name: str, **attributes: Any) -> str:
        """A node of one output, with its casts; that output's name."""
        first = self._tensors.get(inputs[0]) or self._tensors[inputs[1]]
        quantised = not self.precise and (kind in _QUANTISED or (kind in _FOLLOWING and first.quantised))
        if quantised and kind in {"Relu", "Clip"} and not first.coded:
            first.zero = 0
            self._tensors[name] = first
            return name
        scale, zero = self._next_scale()
        if kind in _SAME_SCALE:
            scale, zero = first.scale, first.zero
        elif kind in {"Relu", "Clip"} or kind in _UNIT_RANGE:
            scale, zero = (1 / 255 if kind in _UNIT_RANGE else scale), 0
        sources = [self._source(kind, inputs, k, name, quantised) for k in range(len(inputs))]
        made = self._plain(kind, sources, name, f"{name}_real", **attributes)
        self._tensors[name] = _Tensor(made, "", quantised, scale, zero)
        return name

    def context(self, kind: str, inputs: list[str], name: str, **attributes: Any) -> str:
        """A node that only moves numbers, of whichever form there is."""
        found = self._tensors[inputs[0]]
        if found.quantised:
            self._plain(kind, [self._coded(inputs[0])], name, **attributes)
            self._tensors[name] = _Tensor("", name, True, found.scale, found.zero)
        else:
            self._plain(kind, [self._real(inputs[0], name)], name, **attributes)
            self._tensors[name] = _Tensor(name, "", False, found.scale, found.zero)
        return name

    def plain(self, kind: str, inputs: list[str], name: str, **attributes: Any) -> str:
        """A node without casts, its output in float32."""
        self._tensors[name] = _Tensor(name, "", False, *self._next_scale())
        return self._plain(kind, inputs, name, **attributes)

    def quantise(self, source: str, name: str) -> str:
        """A QuantizeLinear that the network itself has."""
        found = self._tensors[source]
        self._plain("QuantizeLinear", [self._real(source, name), *self._scale(found)], name)
        self._tensors[name] = _Tensor("", name, True, found.scale, found.zero)
        return name

    def dequantise(self, source: str, name: str) -> str:
        """A DequantizeLinear that the network itself has."""
        found = self._tensors[source]
        self._plain("DequantizeLinear", [self._coded(source), *self._scale(found)], name)
        self._tensors[name] = _Tensor(name, "", False, found.scale, found.zero)
        return name

    def settle(self, name: str) -> None:
        """Round the tensor here, before a ReLU: it has other readers."""
        if self._tensors[name].quantised:
            self._coded(name)

    def output(self, name: str, quantised: bool) -> str:
        """The tensor in this form, as an output of the graph; its name there."""
        return self._coded(name) if quantised else self._real(name, name)

    # ---- forms ------------------------------------------------------------------------------------------------

    def _source(self, kind: str, inputs: list[str], k: int, reader: str, quantised: bool) -> str:
        """What a node reads as its input k."""
        name = inputs[k]
        if name in self._tensors:
            if not quantised:
                return self._real(name, f"{reader}_{k}")
            return self._dequantised(self._coded(name), f"{reader}_{k}", self._tensors[name])
        if not quantised or name not in self._constants or self._constants[name].dtype != np.float32:
            return name
        if kind in _KERNEL_AXIS:
            return self._bias(inputs) if k == 2 else self._kernel(name, _KERNEL_AXIS[kind])
        return self._operand(name, f"{reader}_{k}") if kind in {"Add", "Mul", "Concat"} else name

    def _coded(self, name: str) -> str:
        found = self._tensors[name]
        if not found.coded:
            found.coded = self._plain("QuantizeLinear", [found.real, *self._scale(found)], f"{name}_quantize")
        return found.coded

    def _real(self, name: str, reader: str) -> str:
        found = self._tensors[name]
        if found.quantised or found.coded:  # an 8-bit tensor is what it was rounded to, for every reader
            return self._dequantised(self._coded(name), reader, found)
        return found.real

    def _dequantised(self, coded: str, reader: str, found: _Tensor) -> str:
        return self._plain("DequantizeLinear", [coded, *self._scale(found)], f"{reader}_dequantize")

    def _scale(self, found: _Tensor) -> list[str]:
        scale = super().constant(f"scale.{found.scale:.6f}", np.float32(found.scale))
        return [scale, self._store(f"zero.{found.zero}", np.array(found.zero, np.uint8))]

    def _next_scale(self) -> tuple[float, int]:
        """Scales differ from tensor to tensor: where they are equal, a runtime has less to do."""
        return _RANGE / 255 * (1 + len(self._tensors) % 7 / 16), 128

    # ---- constants --------------------------------------------------------------------------------------------

    def _kernel(self, name: str, axis: int) -> str:
        """Weights of a conv or dense operator."""
        values = self._constants[name]
        others = tuple(k for k in range(values.ndim) if k != axis)
        scales = (np.maximum(np.abs(values).max(axis=others), 1e-6) / 127).astype(np.float32)
        spread = scales.reshape([-1 if k == axis else 1 for k in range(values.ndim)])
        self._store(f"{name}.coded", np.clip(np.rint(values / spread), -127, 127).astype(np.int8))
        return self._channelwise(name, scales, axis)

    def _bias(self, inputs: list[str]) -> str:
        """A bias, in the scale of the products that it is added to."""
        name, values = inputs[2], self._constants[inputs[2]]
        scales = self._constants[f"{inputs[1]}.scale"] * np.float32(self._tensors[inputs[0]].scale)
        self._store(f"{name}.coded", np.rint(values / scales).astype(np.int32))
        return self._channelwise(name, scales, 0)

    def _channelwise(self, name: str, scales: npt.NDArray[Any], axis: int) -> str:
        coded = self._constants[f"{name}.coded"]
        self._constants.pop(name)
        self._store(f"{name}.scale", scales)
        self._store(f"{name}.zero", np.zeros(scales.shape, coded.dtype))
        parts = [f"{name}.coded", f"{name}.scale", f"{name}.zero"]
        return self._plain("DequantizeLinear", parts, f"{name}_dequantize", axis=axis)

    def _operand(self, name: str, reader: str) -> str:
        """A constant that is added or multiplied."""
        values = self._constants[name]
        low, high = min(0.0, float(values.min())), max(0.0, float(values.max()), 1e-6)
        scale = (high - low) / 255
        zero = round(-low / scale)
        coded = np.clip(np.rint(values / np.float32(scale)) + zero, 0, 255).astype(np.uint8)
        self._store(f"{name}.coded", coded)
        return self._dequantised(f"{name}.coded", reader, _Tensor("", f"{name}.coded", True, scale, zero))
