"""Keras models as frozen TensorFlow graphs: weights as constants, batch norms folded into the kernel before them.

    scale * (kernel x + bias) + shift  =  (scale kernel) x + (scale bias + shift)

TensorFlow's own optimiser does this on loading for a convolution without bias alone, and then no longer merges what
follows; folded beforehand, a convolution, its batch norm, a residual and an activation are one kernel.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

_OUT_AXIS = {"Conv2D": -1, "Conv3D": -1, "MatMul": -1, "Conv2DBackpropInput": -2, "DepthwiseConv2dNative": None}
"""Operators with a kernel as their second input, and the axis of it that counts output channels; None: the last two."""
_CALLS = frozenset({"PartitionedCall", "StatefulPartitionedCall"})
_TRANSPARENT = frozenset({"Identity", "BatchToSpaceND", "Reshape"})
"""Between a kernel and its bias; they leave channels where they are, if they leave their count."""


def frozen_graph(model: Any) -> bytes:
    """A Keras model as a serialised GraphDef.

    Args:
        model: built over flat lists of inputs and outputs, fixed shapes after the batch.

    Returns:
        Placeholders "input0", "input1", ... and outputs "output0", ... in the model's order, batch 1.
    """
    import tensorflow as tf
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    specs = [tf.TensorSpec((1, *tensor.shape[1:]), tensor.dtype) for tensor in model.inputs]
    traced = tf.function(lambda *xs: model(list(xs) if len(xs) > 1 else xs[0], training=False))
    function = convert_variables_to_constants_v2(traced.get_concrete_function(*specs))
    graph = function.graph.as_graph_def()
    for node in graph.node:  # nothing in it has side effects that would have to be waited for
        node.input[:] = [name for name in node.input if not name.startswith("^")]
    named = _with_names(graph, [t.name for t in function.inputs], [t.name for t in function.outputs], specs)
    return bytes(_folded(named, [f"output{k}" for k in range(len(function.outputs))]).SerializeToString())


def _with_names(graph: Any, inputs: Sequence[str], outputs: Sequence[str], specs: Sequence[Any]) -> Any:
    """The graph between placeholders and identities that are named by their places."""
    import tensorflow as tf

    with tf.Graph().as_default() as whole:
        fed = [tf.compat.v1.placeholder(s.dtype, s.shape, f"input{k}") for k, s in enumerate(specs)]
        mapped = dict(zip(inputs, fed, strict=True))
        for k, tensor in enumerate(tf.graph_util.import_graph_def(graph, mapped, list(outputs), name="model")):
            tf.identity(tensor, f"output{k}")
    return whole.as_graph_def()


def needed(graph: Any, outputs: Sequence[str]) -> Any:
    """A GraphDef's nodes that outputs need, each after what it reads, and named in that order.

    TensorFlow's optimiser sorts the operands of an addition or a product by name before it looks for what it can merge:
    what becomes one kernel would hang on what layers are called.

    Args:
        graph: a GraphDef.
        outputs: names of nodes; they and the placeholders keep their names.
    """
    nodes, found, waiting = {node.name: node for node in graph.node}, set(), list(outputs)
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += [_name(source) for source in nodes[name].input]
    kept = type(graph)(library=graph.library, versions=graph.versions)
    kept.node.extend(n for n in sorted(graph.node, key=lambda node: node.op != "Const") if n.name in found)
    names = {n.name: f"n{i:05d}.{n.name}" for i, n in enumerate(kept.node) if n.op != "Placeholder"}
    names.update((name, name) for name in outputs)
    for node in kept.node:
        node.name = names.get(node.name, node.name)
        node.attr.pop("_class", None)  # names other nodes
        for i, source in enumerate(node.input):
            name = _name(source)
            node.input[i] = names.get(name, name) + source[len(name) :]
    return kept


@dataclass(frozen=True)
class _Fold:
    """One batch norm: the names of what computes and what is multiplied and added, all constant but `data`."""

    addition: str
    data: str
    operator: str
    kernel: str
    bias: str | None
    scale: str
    shift: str


def _folded(graph: Any, outputs: Sequence[str]) -> Any:
    """The graph with each batch norm that follows a kernel in that kernel, and nothing that no output needs."""
    import tensorflow as tf

    folds = _Finder(graph).folds()
    wanted = sorted({name for f in folds for name in (f.kernel, f.bias, f.scale, f.shift) if name is not None})
    with tf.Graph().as_default() as constants:
        tf.graph_util.import_graph_def(graph, name="")
        with tf.compat.v1.Session(graph=constants) as session:
            values = dict(zip(wanted, session.run([_tensor(name) for name in wanted]), strict=True)) if wanted else {}
    nodes = {node.name: node for node in graph.node}
    for fold in folds:
        operator, addition = nodes[fold.operator], nodes[fold.addition]
        scale, shift, kernel = values[fold.scale], values[fold.shift], values[fold.kernel]
        channels = _channels(operator, kernel)
        if not all(v.ndim and v.size == v.shape[-1] == int(np.prod(channels)) for v in (scale, shift)):
            continue
        bias = values[fold.bias] if fold.bias is not None else 0.0
        operator.input[_kernel_place(operator)] = _add_constant(
            graph, f"{operator.name}/folded_kernel", kernel * scale.reshape(channels)
        )
        shift = _add_constant(graph, f"{addition.name}/folded_shift", shift.ravel() + scale.ravel() * bias)
        addition.op, addition.input[:] = "BiasAdd", [fold.data, shift]
        addition.attr["data_format"].s = b"NHWC"
    return needed(graph, outputs)


class _Finder:
    """Looks for batch norms: AddV2(Mul(x, constant), constant), where x is a kernel's output, with its bias or not."""

    def __init__(self, graph: Any) -> None:
        self._nodes = {node.name: node for node in graph.node}
        self._readers = Counter(_name(source) for node in graph.node for source in node.input)
        self._functions = {f.signature.name: f for f in graph.library.function}
        self._constant: dict[str, bool] = {}
        for node in graph.node:  # in topological order
            reads = all(self._is_constant(source) for source in node.input)
            self._constant[node.name] = node.op != "Placeholder" and reads

    def folds(self) -> list[_Fold]:
        """What was found, in the order of the graph."""
        found = [self._fold(node) for node in self._nodes.values() if node.op in {"AddV2", "Add"}]
        return [fold for fold in found if fold is not None]

    def _fold(self, addition: Any) -> _Fold | None:
        scaled, shift = self._data_and_constant(addition)
        product = self._alone(scaled)
        if product is None or product.op != "Mul":
            return None
        data, scale = self._data_and_constant(product)
        last = self._alone(data)
        bias = None
        if last is not None and last.op == "BiasAdd" and self._is_constant(last.input[1]):
            data, bias = last.input[0], last.input[1]
            last = self._alone(data)
        while last is not None and last.op in _TRANSPARENT:
            last = self._alone(last.input[0])
        if last is None or data is None or not self._has_kernel(last):
            return None
        kernel = last.input[_kernel_place(last)]
        return _Fold(addition.name, data, last.name, kernel, bias, scale, shift)

    def _data_and_constant(self, node: Any) -> tuple[Any, Any]:
        """The inputs of a node of two, the constant one second; None and None where not exactly one is."""
        a, b = node.input[:2]
        if self._is_constant(a) == self._is_constant(b):
            return None, None
        return (b, a) if self._is_constant(a) else (a, b)

    def _alone(self, name: str | None) -> Any:
        """The node that makes a tensor that nothing else reads."""
        return self._nodes[_name(name)] if name is not None and self._readers[_name(name)] == 1 else None

    def _has_kernel(self, node: Any) -> bool:
        if node.op in _CALLS:
            function = self._functions.get(node.attr["f"].func.name)
            inside = {n.op for n in function.node_def} - {"Identity", "NoOp"} if function else set()
            return inside == {"Conv2D"} and len(node.input) == 2 and self._is_constant(node.input[_kernel_place(node)])
        transposed = "transpose_b" in node.attr and node.attr["transpose_b"].b  # reading an attribute would add it
        return node.op in _OUT_AXIS and self._is_constant(node.input[1]) and not transposed

    def _is_constant(self, name: str) -> bool:
        """Whether no placeholder leads to a tensor."""
        return self._constant[_name(name)]


def _kernel_place(node: Any) -> int:
    """Which input is the kernel: a compiled function takes what it captured in the order of its body's arguments."""
    return 0 if node.op in _CALLS else 1


def _channels(operator: Any, kernel: Any) -> tuple[int, ...]:
    """Shape of one number an output channel, to be multiplied with the kernel."""
    axis = _OUT_AXIS.get(operator.op, -1)
    if axis is None:
        return tuple(kernel.shape[-2:])
    return (kernel.shape[axis], *[1] * (-1 - axis))


def _add_constant(graph: Any, name: str, values: Any) -> str:
    import tensorflow as tf

    node = graph.node.add(name=name, op="Const")
    array = np.asarray(values, np.float32)
    node.attr["dtype"].type = tf.float32.as_datatype_enum
    node.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(array))
    return name


def _name(tensor: str) -> str:
    return tensor.removeprefix("^").partition(":")[0]


def _tensor(name: str) -> str:
    return name if ":" in name else f"{name}:0"
