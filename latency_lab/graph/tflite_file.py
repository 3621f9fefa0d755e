"""Decodes .tflite files to plain values: tensors, operators, and the constants that shapes depend on.

Weights stay where they are in the file: only constants of a few integers are ever looked at.
"""

from __future__ import annotations

import functools
import inspect
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from ai_edge_litert import schema_py_generated as schema

from latency_lab.errors import FileFormatError

Shape = tuple[int, ...]
Values = npt.NDArray[Any]

_IDENTIFIER = b"TFL3"
_IDENTIFIER_END = 8
_OUTSIDE_FROM = 2
"""The least `offset` of a buffer whose data follows the flatbuffer; 0 and 1 say that there is none."""
_MOST_VALUES = 1024
"""Numbers in the largest constant that is looked at."""
_DAMAGE = (struct.error, IndexError, ValueError, TypeError, AttributeError, OverflowError)
"""What the flatbuffers package raises on offsets that lead nowhere."""


def _names(enumeration: Any) -> dict[int, str]:
    return {value: name for name, value in vars(enumeration).items() if isinstance(value, int)}


_CODES = _names(schema.BuiltinOperator)
_TYPES = {value: name.lower() for value, name in _names(schema.TensorType).items()}
_OPTIONS = _names(schema.BuiltinOptions)


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor of the file.

    Attributes:
        index: in the file.
        name: as in the file; "tensor{index}" where it has none.
        shape: as in the file, open sizes as 1.
        signature: the same with -1 for open sizes.
        dtype: in lower case as the schema names it: "float32", "int8", "int32".
        constant: whether the file holds its values.
        variable: whether it is state that operators write in place.
    """

    index: int
    name: str
    shape: Shape
    signature: Shape
    dtype: str
    constant: bool = False
    variable: bool = False


@dataclass(frozen=True, slots=True)
class Operator:
    """One operator of the file.

    Attributes:
        code: the schema's name of a builtin; of a custom operator its own.
        inputs: tensors; -1 where an optional one is left out.
        outputs: tensors.
        options: of a builtin, by the names of the schema's classes ("StrideH"); lists as tuples.
        builtin: whether it is a builtin.
    """

    code: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    builtin: bool = True

    def option(self, name: str, default: Any = 0) -> Any:
        """An option, or the default where the file has no such option."""
        return self.options.get(name, default)


@dataclass(frozen=True)
class TfliteFile:
    """The first subgraph of a .tflite file.

    Attributes:
        path: of the file, for messages.
        tensors: all of them.
        operators: in the order of execution.
        inputs, outputs: tensors of the subgraph.
    """

    path: Path
    tensors: tuple[Tensor, ...]
    operators: tuple[Operator, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    _data: Mapping[int, Values] = field(default_factory=dict, repr=False)

    def values(self, index: int) -> Values | None:
        """The numbers of a small constant, in the shape of its tensor; None of any other tensor."""
        tensor = self.tensors[index]
        data = self._data.get(index)
        kinds = {"int32": np.int32, "int64": np.int64, "float32": np.float32, "bool": np.bool_}
        if data is None or tensor.dtype not in kinds or math.prod(tensor.shape) > _MOST_VALUES:
            return None
        kind = np.dtype(kinds[tensor.dtype])
        if data.nbytes != math.prod(tensor.shape) * kind.itemsize:
            raise FileFormatError(
                f"{self.path} is damaged: the constant {tensor.name!r} of shape {tensor.shape} has {data.nbytes} bytes."
            )
        return np.frombuffer(data.tobytes(), kind).reshape(tensor.shape)


def load(path: str | Path) -> TfliteFile:
    """The first subgraph of a .tflite file.

    Raises:
        FileFormatError: the file is missing, is no .tflite file, or is damaged.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            head = file.read(_IDENTIFIER_END)
            if head[4:] != _IDENTIFIER:
                raise FileFormatError(
                    f"{path} is no .tflite file: it has no {_IDENTIFIER.decode()!r} at byte 4. Received: {head[4:]!r}"
                )
            file.seek(0)
            data = file.read()
    except OSError as error:
        raise FileFormatError(f"Cannot read {path}: {error.strerror or error}.") from error
    try:
        return _decoded(path, data)
    except _DAMAGE as error:
        raise FileFormatError(f"{path} is damaged or cut short: {error}. Convert or download it again.") from error


def _decoded(path: Path, data: bytes) -> TfliteFile:
    model = schema.Model.GetRootAs(data, 0)
    if model.SubgraphsLength() < 1:
        raise FileFormatError(f"{path} holds no subgraph.")
    graph = model.Subgraphs(0)
    codes = [_code(model.OperatorCodes(i)) for i in range(model.OperatorCodesLength())]
    buffers: dict[int, Values] = {}
    tensors = tuple(_tensor(model, graph.Tensors(i), i, buffers) for i in range(graph.TensorsLength()))
    operators = tuple(_operator(graph.Operators(i), codes) for i in range(graph.OperatorsLength()))
    file = TfliteFile(path, tensors, operators, _ints(graph.InputsAsNumpy()), _ints(graph.OutputsAsNumpy()), buffers)
    used = (*file.inputs, *file.outputs, *(i for op in operators for i in (*op.inputs, *op.outputs)))
    wrong = [index for index in used if not -1 <= index < len(tensors)]
    if wrong:
        raise FileFormatError(f"{path} is damaged: it names tensor {wrong[0]} of {len(tensors)}.")
    return file


def _code(code: Any) -> tuple[str, bool]:
    """Name of an operator, and whether it is a builtin. Old files have the number in the first field, new in both."""
    number = max(code.DeprecatedBuiltinCode(), code.BuiltinCode())
    name = _CODES.get(number, f"BUILTIN_{number}")
    if name != "CUSTOM":
        return name, True
    return _text(code.CustomCode()) or name, False


def _tensor(model: Any, tensor: Any, index: int, buffers: dict[int, Values]) -> Tensor:
    shape = _ints(tensor.ShapeAsNumpy())
    signature = _ints(tensor.ShapeSignatureAsNumpy()) or shape
    buffer = model.Buffers(tensor.Buffer()) if tensor.Buffer() < model.BuffersLength() else None
    if buffer is not None and buffer.DataLength() > 0:
        buffers[index] = buffer.DataAsNumpy()
    return Tensor(
        index=index,
        name=_text(tensor.Name()) or f"tensor{index}",
        shape=tuple(max(size, 0) for size in shape),
        signature=signature if len(signature) == len(shape) else shape,
        dtype=_TYPES.get(tensor.Type(), f"type {tensor.Type()}"),
        constant=index in buffers or (buffer is not None and buffer.Offset() >= _OUTSIDE_FROM),
        variable=bool(tensor.IsVariable()),
    )


def _operator(operator: Any, codes: list[tuple[str, bool]]) -> Operator:
    code, builtin = codes[operator.OpcodeIndex()]
    inputs, outputs = _ints(operator.InputsAsNumpy()), _ints(operator.OutputsAsNumpy())
    return Operator(code, inputs, outputs, _options(operator), builtin)


def _options(operator: Any) -> dict[str, Any]:
    """Every option of the table that the file says it is."""
    table = operator.BuiltinOptions()
    kind = getattr(schema, _OPTIONS.get(operator.BuiltinOptionsType(), ""), None)
    if table is None or kind is None:
        return {}
    options = kind()
    options.Init(table.Bytes, table.Pos)
    found = {name: getattr(options, name)() for name in _accessors(kind)}
    return {
        name.removesuffix("AsNumpy"): _ints(value) if name.endswith("AsNumpy") else value
        for name, value in found.items()
    }


@functools.cache
def _accessors(kind: Any) -> tuple[str, ...]:
    """The methods of a table's class that read one whole option: those without an argument."""
    methods = {name: m for name, m in vars(kind).items() if name[0].isupper() and inspect.isfunction(m)}
    whole = [name for name, method in methods.items() if len(inspect.signature(method).parameters) == 1]
    return tuple(name for name in whole if not name.endswith(("Length", "IsNone")))


def _ints(found: Any) -> Shape:
    """A vector of the file; flatbuffers gives 0 for one that is not there."""
    return tuple(found.tolist()) if isinstance(found, np.ndarray) else ()


def _text(name: bytes | None) -> str:
    return "" if name is None else name.decode("utf-8", "replace")
