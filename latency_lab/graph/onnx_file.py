"""An .onnx file as operators over tensors of known shape: constants folded, weights left where they are."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper, shape_inference
from onnx.reference import ReferenceEvaluator

from latency_lab.errors import FileFormatError, UnsupportedModelError, UsageError

Shape = tuple[int, ...]
Shapes = Mapping[str, Sequence[int]] | Sequence[int]

FOLD_LIMIT = 4096
"""Numbers in the largest tensor whose values are read; of larger ones the shape alone."""
_DTYPES = {
    TensorProto.FLOAT16: "float16",
    TensorProto.BFLOAT16: "bfloat16",
    TensorProto.INT8: "int8",
    TensorProto.UINT8: "int8",
}
_OF_SHAPES = frozenset({"Shape", "Size"})
"""Operators whose result depends on the shape of their input alone."""
_BINARY = frozenset({"Add", "Sub", "Mul", "Div", "Max", "Min", "Pow"})


@dataclass(frozen=True)
class Constant:
    """A tensor that is the same in every run.

    Attributes:
        shape: of it.
        values: its numbers where there are few, else None.
    """

    shape: Shape
    values: Any = None

    @property
    def count(self) -> int:
        """Numbers in it."""
        return math.prod(self.shape)

    @property
    def scalar(self) -> float | None:
        """Its one number; None where it has more, or where they were not read."""
        return float(np.ravel(self.values)[0]) if self.values is not None and self.count == 1 else None


@dataclass(frozen=True)
class Operator:
    """One operator of the file.

    Attributes:
        kind: as ONNX calls it.
        name: of its node, else of its first output.
        inputs, outputs: names of tensors; "" where an optional one is left out.
        attributes: decoded, subgraphs left out.
    """

    kind: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]

    @property
    def output(self) -> str:
        """Its first output."""
        return self.outputs[0]


@dataclass
class OnnxFile:
    """What an .onnx file computes.

    Attributes:
        name: of the graph.
        opset: version of the standard operators.
        operators: in topological order, without those that only compute constants.
        inputs: names of the tensors that are fed.
        outputs: names of the results.
        constants: name -> constant.
        types: name -> type of a tensor, as inferred.
        readers: name -> operators that read it.
        makers: name -> operator that makes it.
    """

    name: str
    opset: int
    operators: list[Operator] = field(default_factory=list)
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    constants: dict[str, Constant] = field(default_factory=dict)
    types: dict[str, onnx.TypeProto] = field(default_factory=dict)
    readers: dict[str, list[Operator]] = field(default_factory=lambda: defaultdict(list))
    makers: dict[str, Operator] = field(default_factory=dict)

    def shape(self, name: str) -> Shape | None:
        """Shape of a tensor; None where it is not known in full."""
        if name in self.constants:
            return self.constants[name].shape
        return _known_shape(self.types.get(name))

    def dtype(self, name: str) -> str:
        """What `OpConfig.dtype` calls the type of a tensor."""
        proto = self.types.get(name)
        return _DTYPES.get(proto.tensor_type.elem_type, "float32") if proto is not None else "float32"

    def only_reader(self, name: str) -> Operator | None:
        """The operator that reads a tensor, where there is exactly one and the tensor is no result of the graph."""
        readers = self.readers[name]
        return readers[0] if len(readers) == 1 and name not in self.outputs else None

    def scalar(self, name: str) -> float | None:
        """The number that a constant of one number is, else None."""
        constant = self.constants.get(name)
        return constant.scalar if constant is not None else None

    def integers(self, operator: Operator, attribute: str, position: int) -> list[int] | None:
        """What newer operator sets give as an input and older ones as an attribute; None where it is not known."""
        if attribute in operator.attributes:
            return [int(value) for value in operator.attributes[attribute]]
        name = operator.inputs[position] if len(operator.inputs) > position else ""
        constant = self.constants.get(name)
        return None if constant is None or constant.values is None else [int(v) for v in np.ravel(constant.values)]


def load(path: str | Path, input_shapes: Shapes | None = None) -> OnnxFile:
    """Reads a file; weights outside of it stay unread.

    Args:
        path: of the .onnx file.
        input_shapes: name -> shape with the batch first, or one shape for a model of one input.

    Raises:
        FileFormatError: the file is missing or damaged.
        UnsupportedModelError: a size of an input is open and `input_shapes` does not give it.
        UsageError: `input_shapes` does not fit the model.
    """
    try:
        model = onnx.load(str(path), load_external_data=False)
    except OSError as error:
        raise FileFormatError(f"Cannot read the model {path}: {error.strerror or error}.") from error
    except Exception as error:  # whatever the parser makes of bytes that are no model
        raise FileFormatError(f"{path} is not an .onnx file, or it is damaged: {error}") from error
    if not model.HasField("graph") or not model.graph.node:
        raise FileFormatError(f"{path} is not an .onnx file, or it is damaged: it holds no graph.")
    return _Folding(model, Path(path)).run(input_shapes)


class _Folding:
    """Walks the nodes once: infers shapes, computes what does not depend on the inputs."""

    def __init__(self, model: onnx.ModelProto, path: Path) -> None:
        self._path = path
        self._graph = model.graph
        self._opsets = {opset.domain: opset.version for opset in model.opset_import}
        self._imports = list(model.opset_import)
        self._file = OnnxFile(model.graph.name, self._opsets.get("", 1))
        self._stated = {info.name: info.type for info in (*model.graph.value_info, *model.graph.output)}

    def run(self, input_shapes: Shapes | None) -> OnnxFile:
        for tensor in self._graph.initializer:
            self._add_constant(tensor.name, self._initializer(tensor), tensor.data_type)
        for sparse in self._graph.sparse_initializer:
            self._add_constant(sparse.values.name, Constant(tuple(sparse.dims)), sparse.values.data_type)
        self._add_inputs(input_shapes)
        for node in self._graph.node:
            self._add(node)
        file = self._file
        file.outputs = [output.name for output in self._graph.output]
        for operator in file.operators:
            for name in operator.inputs:
                file.readers[name].append(operator)
            file.makers.update(dict.fromkeys(operator.outputs, operator))
        return file

    # ---- inputs and constants ---------------------------------------------------------------------------------

    def _add_inputs(self, input_shapes: Shapes | None) -> None:
        fed = [info for info in self._graph.input if info.name not in self._file.constants]
        given = self._given([info.name for info in fed], input_shapes)
        for info in fed:
            shape = self._input_shape(info, given.get(info.name))
            elem_type = info.type.tensor_type.elem_type
            if len(fed) > 1 and self._is_constant(info.name, shape):
                self._add_constant(info.name, Constant(shape), elem_type)
                continue
            self._file.inputs.append(info.name)
            self._file.types[info.name] = helper.make_tensor_type_proto(elem_type, shape)

    def _given(self, names: list[str], input_shapes: Shapes | None) -> dict[str, Sequence[int]]:
        if input_shapes is None:
            return {}
        if isinstance(input_shapes, Mapping):
            for name in input_shapes:
                if name not in names:
                    raise UsageError(f"{self._path} has no input {name!r}. Expected one of {names}.")
            return dict(input_shapes)
        if len(names) != 1:
            raise UsageError(f"{self._path} has the inputs {names}: give a shape for each by name.")
        return {names[0]: input_shapes}

    def _input_shape(self, info: onnx.ValueInfoProto, given: Sequence[int] | None) -> Shape:
        ranked = info.type.tensor_type.HasField("shape")
        dims = [dim.dim_value if dim.dim_value > 0 else None for dim in info.type.tensor_type.shape.dim]
        if given is not None:
            fits = len(given) == len(dims) and all(d in (None, g) for d, g in zip(dims, given, strict=True))
            if ranked and not fits:
                raise UsageError(
                    f"Input {info.name!r} of {self._path} has shape {_written(info)}. Received: {tuple(given)}"
                )
            return tuple(int(size) for size in given)
        if not ranked or None in dims[1:]:
            raise UnsupportedModelError(
                f"Input {info.name!r} of {self._path} has shape {_written(info) if ranked else 'unknown'}. "
                f"Expected fixed sizes. Give them with --input-shape {info.name}=1,..."
            )
        return tuple(dim or 1 for dim in dims)

    def _is_constant(self, name: str, shape: Shape) -> bool:
        """Whether an input is no data but a few numbers that an export forgot: it only scales or shifts others."""
        readers = [node for node in self._graph.node if name in node.input]
        few = sum(size > 1 for size in shape) <= 1 and shape[:1] in ((), (1,))
        return not readers or (few and len(shape) != 2 and all(node.op_type in _BINARY for node in readers))

    def _initializer(self, tensor: TensorProto) -> Constant:
        shape = tuple(tensor.dims)
        if math.prod(shape) > FOLD_LIMIT:
            return Constant(shape)
        try:
            return Constant(shape, numpy_helper.to_array(tensor, str(self._path.parent)))
        except (OSError, ValueError, TypeError, onnx.checker.ValidationError):
            return Constant(shape)

    def _add_constant(self, name: str, constant: Constant, elem_type: int) -> None:
        self._file.constants[name] = constant
        self._file.types[name] = helper.make_tensor_type_proto(elem_type, constant.shape)

    # ---- nodes ------------------------------------------------------------------------------------------------

    def _add(self, node: onnx.NodeProto) -> None:
        file = self._file
        inputs = [name for name in node.input if name]
        found = self._infer(node)
        for name in filter(None, node.output):
            file.types[name] = found.get(name) or self._stated.get(name) or onnx.TypeProto()
        if all(name in file.constants for name in inputs) and self._fold(node):
            return
        if node.op_type in _OF_SHAPES and (shape := file.shape(inputs[0])) is not None:
            self._store(node.output[0], _shape_result(node, shape))
            return
        attributes = {
            a.name: helper.get_attribute_value(a)
            for a in node.attribute
            if a.type not in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)
        }
        name = node.name or next(filter(None, node.output), node.op_type)
        file.operators.append(Operator(node.op_type, name, tuple(node.input), tuple(node.output), attributes))

    def _infer(self, node: onnx.NodeProto) -> dict[str, onnx.TypeProto]:
        """Types of a node's outputs; none where ONNX does not know the operator."""
        types = {name: self._file.types[name] for name in node.input if name in self._file.types}
        data = {
            name: numpy_helper.from_array(np.asarray(constant.values), name)
            for name in node.input
            if (constant := self._file.constants.get(name)) is not None and constant.values is not None
        }
        try:
            schema = onnx.defs.get_schema(node.op_type, self._opsets.get(node.domain, 1), node.domain)
            return dict(shape_inference.infer_node_outputs(schema, node, types, data, opset_imports=self._imports))
        except (onnx.defs.SchemaError, shape_inference.InferenceError, onnx.checker.ValidationError, RuntimeError):
            return {}

    def _fold(self, node: onnx.NodeProto) -> bool:
        """Computes a node whose inputs are constants; large results keep their shape alone."""
        constants = {name: self._file.constants[name] for name in node.input if name}
        shapes = [self._result_shape(node, name) for name in node.output if name]
        values: list[Any] = [None] * len(shapes)
        small = all(shape is None or math.prod(shape) <= FOLD_LIMIT for shape in shapes)
        if small and all(constant.values is not None for constant in constants.values()):
            values = self._evaluate(node, {name: constant.values for name, constant in constants.items()})
        for name, shape, value in zip(filter(None, node.output), shapes, values, strict=True):
            if value is None and shape is None:
                return False
            self._file.constants[name] = (
                Constant(shape or ()) if value is None else Constant(np.shape(value), np.asarray(value))
            )
            self._set_type(name, value, shape or ())
        return True

    def _result_shape(self, node: onnx.NodeProto, name: str) -> Shape | None:
        if node.op_type == "ConstantOfShape" and node.input[0] in self._file.constants:
            dims = self._file.constants[node.input[0]].values
            return None if dims is None else tuple(int(dim) for dim in dims)
        return _known_shape(self._file.types.get(name))

    def _evaluate(self, node: onnx.NodeProto, feeds: Mapping[str, Any]) -> list[Any]:
        wanted = [name for name in node.output if name]
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            tensor = node.attribute[0].t
            return [numpy_helper.to_array(tensor) if math.prod(tensor.dims) <= FOLD_LIMIT else None]
        try:
            return list(ReferenceEvaluator(node, opsets=self._opsets).run(wanted, dict(feeds)))
        except Exception:  # of an operator that the evaluator does not know, or does not know in this version
            return [None] * len(wanted)

    def _set_type(self, name: str, value: Any, shape: Shape) -> None:
        if _known_shape(self._file.types.get(name)) is None and value is not None:
            elem_type = helper.np_dtype_to_tensor_dtype(np.asarray(value).dtype)
            self._file.types[name] = helper.make_tensor_type_proto(elem_type, np.shape(value))
        elif _known_shape(self._file.types.get(name)) is None:
            self._file.types[name] = helper.make_tensor_type_proto(TensorProto.FLOAT, shape)

    def _store(self, name: str, value: Any) -> None:
        self._add_constant(name, Constant(np.shape(value), value), TensorProto.INT64)


def _shape_result(node: onnx.NodeProto, shape: Shape) -> Any:
    if node.op_type == "Size":
        return np.array(math.prod(shape), np.int64)
    bounds = {a.name: a.i for a in node.attribute}
    return np.array(shape[bounds.get("start", 0) : bounds.get("end", len(shape))], np.int64)


def _known_shape(proto: onnx.TypeProto | None) -> Shape | None:
    if proto is None or not proto.HasField("tensor_type") or not proto.tensor_type.HasField("shape"):
        return None
    dims = [dim.dim_value if dim.HasField("dim_value") else -1 for dim in proto.tensor_type.shape.dim]
    return None if any(dim < 0 for dim in dims) else tuple(dims)


def _written(info: onnx.ValueInfoProto) -> tuple[Any, ...]:
    return tuple(_sizes(info))


def _sizes(info: onnx.ValueInfoProto) -> Iterator[Any]:
    for dim in info.type.tensor_type.shape.dim:
        yield dim.dim_value if dim.dim_value > 0 else dim.dim_param or "?"
