"""The tensors of a .tflite file at the sizes that are asked for: shapes, and what is constant once it is loaded."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from latency_lab.errors import FileFormatError, UnsupportedModelError, UsageError
from latency_lab.graph import tflite_infer
from latency_lab.graph.channel_graph import Shapes
from latency_lab.graph.tflite_file import Operator, Shape, Tensor, TfliteFile, Values

_NO_STATE = frozenset({"RANDOM_STANDARD_NORMAL", "RANDOM_UNIFORM", "MULTINOMIAL"})
"""Builtins that make something new of constants on each run."""
_BYTES = {
    "float64": 8, "int64": 8, "uint64": 8, "complex64": 8, "float16": 2, "bfloat16": 2, "int16": 2, "uint16": 2,
    "int8": 1, "uint8": 1, "bool": 1,
}  # fmt: skip


@dataclass(frozen=True)
class SizedModel:
    """A file at given input sizes.

    Attributes:
        file: as decoded.
        operators: those that run: an operator that reads constants alone is worked out on loading.
        shapes: of each tensor.
        constant: whether each tensor is known before the first run.
        known: numbers of small constants, by tensor.
        batch: examples of the first input.
    """

    file: TfliteFile
    operators: tuple[Operator, ...]
    shapes: tuple[Shape, ...]
    constant: tuple[bool, ...]
    known: Mapping[int, Values]
    batch: int

    def size_bytes(self, tensors: Sequence[int]) -> int:
        """Bytes of these tensors, without the constants among them."""
        run = [index for index in tensors if index >= 0 and not self.constant[index]]
        return sum(_BYTES.get(self.file.tensors[i].dtype, 4) * math.prod(self.shapes[i]) for i in run)


def sized(file: TfliteFile, input_shapes: Shapes | None) -> SizedModel:
    """The model at these input shapes, or at the file's own.

    Args:
        file: as decoded.
        input_shapes: name -> shape with the batch first, or one shape for a model of one input.

    Raises:
        UsageError: `input_shapes` does not fit the inputs.
        UnsupportedModelError: an input has open sizes, or an operator's output at these sizes cannot be told.
        FileFormatError: an operator reads a tensor that nothing before it makes.
    """
    asked = _asked(file, input_shapes)
    shapes: dict[int, Shape] = {index: asked[index] for index in file.inputs if index >= 0}
    is_open = any(-1 in tensor.signature for tensor in file.tensors)
    resized = any(file.tensors[index].shape != shape for index, shape in shapes.items())
    walk = _Walk(file, shapes, as_filed=not is_open and not resized)
    running = tuple(op for op in file.operators if walk.runs(op))
    every = tuple(walk.shapes.get(t.index, t.shape) for t in file.tensors)
    constant = tuple(t.index in walk.constant for t in file.tensors)
    batches = [every[index][0] for index in file.inputs if index >= 0 and len(every[index]) > 1]
    return SizedModel(file, running, every, constant, walk.known, max(batches[0], 1) if batches else 1)


def _asked(file: TfliteFile, input_shapes: Shapes | None) -> dict[int, Shape]:
    """The shape of each input: what is asked for, else the file's with an open batch of 1."""
    inputs = [file.tensors[index] for index in file.inputs if index >= 0]
    given = _by_name(file, inputs, input_shapes)
    found = {}
    for tensor in inputs:
        shape = given.pop(tensor.name, None) or given.pop(_short(tensor.name), None)
        if shape is None:
            if -1 in tensor.signature[1:]:
                example = ",".join(str(size if size > 0 else 224) for size in (1, *tensor.signature[1:]))
                raise UnsupportedModelError(
                    f"Input {tensor.name!r} of {file.path} has open sizes {tensor.signature}; latency depends on them. "
                    f"Give its shape: --input-shape {tensor.name}={example}"
                )
            shape = tensor.shape
        elif len(shape) != len(tensor.shape) or any(size < 1 for size in shape):
            raise UsageError(
                f"Input {tensor.name!r} of {file.path} has {len(tensor.shape)} sizes {tensor.signature}. "
                f"Expected as many, all positive. Received: {shape}"
            )
        found[tensor.index] = shape
    if given:
        names = [tensor.name for tensor in inputs]
        raise UsageError(f"{file.path} has no input {next(iter(given))!r}. Expected one of {names}.")
    return found


def _by_name(file: TfliteFile, inputs: Sequence[Tensor], input_shapes: Shapes | None) -> dict[str, Shape]:
    if input_shapes is None:
        return {}
    if isinstance(input_shapes, Mapping):
        return {name: tuple(int(size) for size in shape) for name, shape in input_shapes.items()}
    if len(inputs) != 1:
        names = [tensor.name for tensor in inputs]
        raise UsageError(f"{file.path} has the inputs {names}. Expected a shape for each, by name.")
    return {inputs[0].name: tuple(int(size) for size in input_shapes)}


def _short(name: str) -> str:
    """An input's name without what the converter puts around it: "serving_default_image:0" is "image"."""
    return name.removeprefix("serving_default_").rsplit(":", 1)[0]


class _Walk:
    """Shapes and constants, operator after operator."""

    def __init__(self, file: TfliteFile, shapes: dict[int, Shape], as_filed: bool) -> None:
        self._file = file
        self._as_filed = as_filed
        held = [t for t in file.tensors if t.constant or t.variable or (0 in t.shape and t.index not in shapes)]
        self.shapes = {**{tensor.index: tensor.shape for tensor in held}, **shapes}
        self.constant = {tensor.index for tensor in held if not tensor.variable and tensor.index not in shapes}
        self.known: dict[int, Values] = {}
        for index in self.constant:
            found = file.values(index)
            if found is not None:
                self.known[index] = found

    def runs(self, op: Operator) -> bool:
        """Takes one operator's outputs up; whether it does anything once the model is loaded."""
        present = [index for index in op.inputs if index >= 0]
        for index in present:
            if index not in self.shapes:
                raise FileFormatError(
                    f"{self._file.path} is damaged: {op.code} reads {self._file.tensors[index].name!r}, "
                    "which no operator before it makes."
                )
        inputs = [self.shapes[index] if index >= 0 else () for index in op.inputs]
        values = [self.known.get(index) for index in op.inputs]
        for index, shape in zip(op.outputs, self._outputs(op, inputs, values), strict=True):
            if index >= 0:
                self.shapes[index] = shape
        made = tflite_infer.value(op, inputs, values)
        if made is not None and op.outputs:
            self.known[op.outputs[0]] = made
        fixed = bool(present) and self.constant.issuperset(present) and op.builtin and op.code not in _NO_STATE
        if made is not None or fixed:
            self.constant.update(op.outputs)
            return False
        return True

    def _outputs(self, op: Operator, inputs: list[Shape], values: list[Values | None]) -> Sequence[Shape]:
        tensors = self._file.tensors
        filed = [tensors[index].shape if index >= 0 else () for index in op.outputs]
        if self._as_filed:
            return filed
        told = tflite_infer.shapes(op, inputs, values)
        if told is not None and len(told) == len(filed):
            return told
        before = [tensors[index].shape if index >= 0 else () for index in op.inputs]
        if inputs == before:
            return filed
        if [shape[1:] for shape in inputs] == [shape[1:] for shape in before] and all(s[:1] == (1,) for s in filed):
            return [(*inputs[0][:1], *shape[1:]) for shape in filed]
        name = tensors[op.outputs[0]].name if op.outputs else op.code
        raise UnsupportedModelError(
            f"The shape that {op.code} gives {name!r} in {self._file.path} at inputs of {inputs} is not known. "
            "Convert the model with fixed input shapes."
        )
