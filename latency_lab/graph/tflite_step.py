"""One operator of a .tflite file while it is read: its tensors as operations have them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from latency_lab.errors import UsageError
from latency_lab.graph.tflite_file import Operator, Shape, Values
from latency_lab.graph.tflite_shapes import SizedModel
from latency_lab.ops import OpConfig

Dims = tuple[int, int, int, int]
"""(batch, height, width, channels)."""

DTYPES = {"float32": "float32", "float16": "float16", "bfloat16": "bfloat16", "int8": "int8", "uint8": "int8"}
"""TensorType -> dtype of operations."""
FUSED = {0: None, 1: "relu", 2: "relu6", 3: "relu6", 4: "tanh"}
"""ActivationFunctionType -> activation. RELU_N1_TO_1 clamps at both ends, as relu6 does."""
SAME_PADDING = 0
"""Of the schema's Padding."""
NOT_AS_EXPECTED = (UsageError, IndexError, KeyError, ValueError, ZeroDivisionError)
"""What reading raises of an operator whose inputs or sizes no operation can have: it is listed as unknown."""


@dataclass(frozen=True, slots=True)
class Made:
    """One operation of an operator.

    Attributes:
        op: the operation.
        inputs, output: tensors.
    """

    op: OpConfig
    inputs: tuple[int, ...]
    output: int


def dims(model: SizedModel, tensor: int) -> Dims:
    """A tensor as (batch, height, width, channels).

    (b, n, c) is (b, 1, n, c). Rows that are not the model's examples are positions: (49, 96) at batch 1 is
    (1, 1, 49, 96). A vector is channels. Axes beyond the fourth are rows.
    """
    shape = model.shapes[tensor]
    if len(shape) >= 4:
        return (shape[0], math.prod(shape[1:-2]), shape[-2], shape[-1])
    if len(shape) == 3:
        return (shape[0], 1, shape[1], shape[2])
    if len(shape) == 2:
        batch = model.batch if shape[0] % model.batch == 0 else 1
        return (batch, 1, shape[0] // batch, shape[1])
    return (1, 1, 1, shape[0] if shape else 1)


class Step:
    """One operator while it is read."""

    def __init__(self, model: SizedModel, op: Operator) -> None:
        self.model = model
        self.op = op

    @property
    def computes_in_floats_or_bytes(self) -> bool:
        """Whether all tensors but constants are of a type that operations have."""
        tensors = (i for i in (*self.op.inputs, *self.op.outputs) if i >= 0 and not self.model.constant[i])
        return all(self.model.file.tensors[i].dtype in DTYPES for i in tensors)

    @property
    def wired(self) -> tuple[int, ...]:
        """Inputs that are no constants."""
        return tuple(i for i in self.op.inputs if i >= 0 and not self.model.constant[i])

    def shape(self, i: int) -> Shape:
        """Shape of input i."""
        return self.model.shapes[self.op.inputs[i]]

    def values(self, i: int) -> Values | None:
        """Numbers of input i, if it is a small constant."""
        return self.model.known.get(self.op.inputs[i])

    def dims(self, i: int) -> Dims:
        """Input i as (batch, height, width, channels)."""
        return dims(self.model, self.op.inputs[i])

    def output_dims(self, k: int = 0) -> Dims:
        """Output k as (batch, height, width, channels)."""
        return dims(self.model, self.op.outputs[k])

    def dtype(self, i: int) -> str:
        """Of input i, as operations have it."""
        return DTYPES[self.model.file.tensors[self.op.inputs[i]].dtype]

    def one(self, kind: str, x: Dims, out: int, inputs: Sequence[int] = (0,), k: int = 0, **fields: Any) -> list[Made]:
        """One operation that reads x of these inputs of the operator and makes `out` channels of output k."""
        batch, height, width, channels = x
        tensors = tuple(self.op.inputs[i] for i in inputs)
        if min(tensors) < 0:
            raise UsageError(f"{self.op.code} is left without its input.")
        fields = {"activation": FUSED[self.op.option("FusedActivationFunction")], **fields}
        fields.setdefault("dtype", self.dtype(inputs[0]))
        op = OpConfig(kind, batch, height, width, channels, out, **fields)
        return [Made(op, tensors, self.op.outputs[k])]

    def only(self, data: int) -> bool:
        """Whether this input alone is no constant."""
        return self.wired == (self.op.inputs[data],)
