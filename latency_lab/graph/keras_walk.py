"""The wiring of a Keras model as plain values, and a model rebuilt from a wiring.

The one place that knows how Keras 3 records which layer was called on what. Nested models are opened, so that all calls
are of plain layers.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import sys
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from textwrap import shorten
from typing import Any

import keras

from latency_lab.errors import UnsupportedModelError

_AS_LAYER = (
    " If it is one operation rather than a network, derive its class from keras.layers.Layer: its channels then stay, "
    "and it is listed as a layer without a cost of its own."
)


_FRAMES = 4
"""Python calls that Keras nests for one layer of the network read, at most: itself, its mask, a branch's presence."""


@contextlib.contextmanager
def room_for(layers: int) -> Iterator[None]:
    """Lets Keras put together a functional model of this many layers one after another.

    It looks for a model's layers by recursion, one Python call a layer, and Python allows 1000 unless told otherwise.

    Args:
        layers: of the network, without the masks and penalties that it may hold.

    Example:
        >>> import keras
        >>> from latency_lab.graph.keras_walk import room_for
        >>> x = y = keras.Input((4,))
        >>> for _ in range(1200):
        ...     y = keras.layers.Identity()(y)
        >>> with room_for(1200):
        ...     model = keras.Model(x, y)
        >>> len(model.layers)
        1201
    """
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(before + _FRAMES * layers)
    try:
        yield
    finally:
        sys.setrecursionlimit(before)


@dataclass(frozen=True, eq=False)
class Value:
    """A tensor between two layers: `shape` with the batch first (None where open), the dtype, and a name for inputs."""

    shape: tuple[int | None, ...]
    dtype: str
    name: str = ""


@dataclass(frozen=True, eq=False)
class Call:
    """One call of one layer.

    Attributes:
        layer: the Keras layer (or operation) that is called.
        name: unique in the model; the layer's own name wherever that is unique.
        args, kwargs: what it is called with; tensors are `Value`.
        inputs, outputs: the values in args and kwargs, and those returned, in order.
    """

    layer: Any
    name: str
    args: Any
    kwargs: Any
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]

    @property
    def passthrough(self) -> bool:
        """Whether the layer hands on its first input (gates and penalties): readers look through it."""
        return bool(getattr(self.layer, "latency_lab_passthrough", False))


@dataclass(frozen=True, eq=False)
class Wiring:
    """Calls in topological order, depth first from the outputs. `inputs` and `outputs` are nested as in the model."""

    name: str
    inputs: Any
    calls: tuple[Call, ...]
    outputs: Any


def wiring(model: Any) -> Wiring:
    """How the layers of a functional or built Sequential Keras model are wired.

    Passthrough layers (gates, penalties) are left out; a reader with a mask (`gates.MaskedReader`) is the layer in it.

    Raises:
        UnsupportedModelError: the model is subclassed or not built.
    """
    functional = _functional(model)
    values = {id(t): Value(tuple(t.shape), t.dtype, t._keras_history.operation.name) for t in functional.inputs}
    inputs = keras.tree.map_structure(lambda t: values[id(t)], _struct(functional, "inputs"))
    calls = list(_calls(functional, values, {}, {}))
    outputs = keras.tree.map_structure(lambda t: values[id(t)], _struct(functional, "outputs"))
    return Wiring(model.name, inputs, _depth_first(calls, outputs), outputs)


def _depth_first(calls: list[Call], outputs: Any) -> tuple[Call, ...]:
    """The calls that the outputs need, in the order in which they are found again once nested models are opened."""
    maker = {id(value): call for call in calls for value in call.outputs}
    found: list[Call] = []
    done: set[int] = set()
    stack: list[tuple[Any, bool]] = [(value, False) for value in reversed(keras.tree.flatten(outputs))]
    while stack:
        item, ready = stack.pop()
        if ready:
            found.append(item)
            continue
        call = maker.get(id(item))
        if call is None or id(call) in done:
            continue
        done.add(id(call))
        stack.append((call, True))
        stack.extend((value, False) for value in reversed(call.inputs))
    return tuple(found)


def readings(
    model: Any, wanted: Callable[[Any], bool], inputs: Any = None
) -> Iterator[tuple[Any, Callable[[Any], Any]]]:
    """What layers are called on, in the order of their calls, those in nested models among them.

    Args:
        model: functional or built Sequential Keras model.
        wanted: which layers. Those in a nested model that cannot be read are passed over.
        inputs: the model's, nested as it will be given them; None: as the model nests them.

    Yields:
        A layer, and a function of what the model takes that returns the first tensor of one of its calls, computed as
        at inference by the layers themselves.

    Raises:
        UnsupportedModelError: the model is subclassed or not built.
    """
    functional = _functional(model)
    for node in _nodes(functional, {id(tensor) for tensor in functional.inputs}):
        nested = isinstance(node.operation, keras.Model)
        if not nested and not wanted(node.operation):
            continue
        with room_for(len(functional.layers)):
            before = keras.Model(
                _struct(functional, "inputs") if inputs is None else inputs, list(node.arguments.keras_tensors)
            )
        if not nested:
            yield node.operation, functools.partial(_first, before, None)
            continue
        with contextlib.suppress(UnsupportedModelError):
            for layer, inner in readings(node.operation, wanted, _functional(node.operation).inputs):
                yield layer, functools.partial(_first, before, inner)


def _first(before: Any, inner: Callable[[Any], Any] | None, given: Any) -> Any:
    """The first of the tensors that a model gives at inference, or what `inner` makes of them."""
    tensors = keras.tree.flatten(before(given, training=False))
    return inner(tensors) if inner else tensors[0]


def fresh_inputs(wired: Wiring) -> Any:
    """New Keras inputs, nested as in the model."""
    return keras.tree.map_structure(
        lambda value: keras.Input(batch_shape=value.shape, dtype=value.dtype, name=value.name), wired.inputs
    )


def rebuild(
    wired: Wiring,
    inputs: Any,
    make_layer: Callable[[Call], Any],
    feed: Callable[[Call, Value, Any], Any] | None = None,
) -> Any:
    """A functional model of new layers, wired alike.

    Args:
        wired: the wiring to follow.
        inputs: from `fresh_inputs`.
        make_layer: the new layer for a call; asked once a layer.
        feed: the tensor that a call receives for a value, given the tensor of that value; or a list with others behind
            it. Default: that tensor.

    Returns:
        the model; its layers have the names that `make_layer` gave.
    """
    tensors = {
        id(value): tensor
        for value, tensor in zip(keras.tree.flatten(wired.inputs), keras.tree.flatten(inputs), strict=True)
    }
    layers: dict[str, Any] = {}
    for call in wired.calls:
        if call.name not in layers:
            layers[call.name] = make_layer(call)

        def fill(leaf: Any, call: Call = call) -> Any:
            if not isinstance(leaf, Value):
                return leaf
            return feed(call, leaf, tensors[id(leaf)]) if feed else tensors[id(leaf)]

        args, kwargs = keras.tree.map_structure(fill, (call.args, call.kwargs))
        results = keras.tree.flatten(layers[call.name](*args, **kwargs))
        tensors.update({id(value): result for value, result in zip(call.outputs, results, strict=True)})
    outputs = keras.tree.map_structure(lambda value: tensors[id(value)], wired.outputs)
    with room_for(len(wired.calls)):
        return keras.Model(inputs, outputs, name=wired.name)


def before_last(
    wired: Wiring, change: Callable[[Any], Any], feed: Callable[[Call, Value, Any], Any] | None = None
) -> Callable[[Call, Value, Any], Any]:
    """A `feed` for `rebuild`: the last call reads change(tensor) in the place of its first input.

    So a layer gets into a model without making an output of it: Keras names outputs by the layers that make them.

    Args:
        wired: of the model that is rebuilt.
        change: asked once.
        feed: of all tensors, before the change; default: none.
    """
    last = next(call for call in reversed(wired.calls) if call.inputs)
    changed: list[Any] = []

    def fed(call: Call, value: Value, tensor: Any) -> Any:
        found = feed(call, value, tensor) if feed else tensor
        if call is not last or value is not last.inputs[0]:
            return found
        first, *others = found if isinstance(found, list) else [found]
        if not changed:
            changed.append(change(first))
        return [changed[0], *others] if others else changed[0]

    return fed


def copy_layer(call: Call, **changes: Any) -> Any:
    """A new layer of the same class and config, under the call's name, with `changes` to the config.

    Raises:
        UnsupportedModelError: the class does not say how: its config is missing or is not enough.
    """
    kind = type(call.layer)
    if kind is keras.layers.Lambda:
        return _copy_lambda(call)
    try:
        layer = kind.from_config({**call.layer.get_config(), "name": call.name, **changes})
    except (NotImplementedError, TypeError, ValueError, KeyError) as error:
        raise UnsupportedModelError(
            f"Layer {call.name!r} ({kind.__name__}) cannot be copied. Expected {kind.__name__}.from_config() to take "
            f"what its get_config() returns. Received: {type(error).__name__}: {shorten(str(error), 200)} "
            "Give the class a get_config() with all arguments of its constructor."
        ) from error
    if isinstance(layer, keras.layers.Layer):
        layer.trainable = call.layer.trainable
    return layer


def _copy_lambda(call: Call) -> Any:
    """Calls the same function: one of Python cannot be written into a config and come back whole."""
    old = call.layer
    config = {**keras.layers.Layer.get_config(old), "name": call.name}
    return keras.layers.Lambda(old.function, old._output_shape, old.mask, old.arguments, **config)


def copy_weights(wired: Wiring, target: Any, values: Callable[[Call], list[Any]] | None = None) -> None:
    """Sets the weights of the layers of `target` to `values(call)`; default: those of the layer of the same name."""
    layers = {layer.name: layer for layer in target.layers}
    for call in {call.name: call for call in wired.calls if getattr(call.layer, "weights", None)}.values():
        layer = layers[call.name]
        layer.set_weights(values(call) if values else call.layer.get_weights())
        if isinstance(layer, keras.layers.Normalization):
            layer.finalize_state()


def _calls(
    model: Any, values: dict[int, Value], names: dict[str, Any], given: dict[str, Any], prefix: str = ""
) -> Iterator[Call]:
    """Calls of one model, nested models opened. `values` maps id(Keras tensor) to its value, and is added to."""
    for node in _nodes(model, values):
        args, kwargs = keras.tree.map_structure(
            lambda leaf: values[id(leaf)] if isinstance(leaf, keras.KerasTensor) else leaf,
            (node.arguments.args, node.arguments.kwargs),
        )
        found = tuple(leaf for leaf in keras.tree.flatten((args, kwargs)) if isinstance(leaf, Value))
        layer = node.operation
        if getattr(layer, "latency_lab_reader", False):
            layer, args, found = layer.layer, found[:1], found[:1]
        if isinstance(layer, keras.Model):
            inner = _functional(layer, model.name)
            inside = {id(t): value for t, value in zip(inner.inputs, found, strict=True)}
            passed = {**given, **{k: v for k, v in kwargs.items() if k == "training" and v is not None}}
            yield from _calls(inner, inside, names, passed, f"{prefix}{layer.name}_")
            values.update({id(t): inside[id(s)] for t, s in zip(node.outputs, inner.outputs, strict=True)})
            continue
        if given and "training" in inspect.signature(layer.call).parameters and kwargs.get("training") is None:
            kwargs = {**kwargs, **given}
        name = layer.name if names.setdefault(layer.name, layer) is layer else f"{prefix}{layer.name}"
        names.setdefault(name, layer)
        outputs = tuple(Value(tuple(t.shape), t.dtype) for t in node.outputs)
        call = Call(layer, name, args, kwargs, found, outputs)
        if call.passthrough:
            outputs = (found[0],) * len(outputs)
        else:
            yield call
        values.update({id(t): value for t, value in zip(node.outputs, outputs, strict=True)})


def _nodes(model: Any, known: Collection[int]) -> list[Any]:
    """Keras's records of the calls that lead from the known tensors to the model's outputs, depth first."""
    found: list[Any] = []
    done: set[int] = set()
    stack: list[tuple[Any, bool]] = [(tensor, False) for tensor in reversed(model.outputs)]
    inputs = set(known)
    while stack:
        item, ready = stack.pop()
        if ready:
            found.append(item)
            continue
        if id(item) in inputs:
            continue
        history = item._keras_history
        node = history.operation._inbound_nodes[history.node_index]
        if id(node) in done:
            continue
        done.add(id(node))
        stack.append((node, True))
        stack.extend((tensor, False) for tensor in reversed(node.arguments.keras_tensors))
    return found


def _functional(model: Any, outer: str = "") -> Any:
    """The functional form of a functional or built Sequential model; `outer`: name of the model that it is in."""
    if not isinstance(model, keras.Model):
        raise UnsupportedModelError(
            f"Expected a functional or Sequential model of Keras 3, or a path. Received: {type(model).__name__}"
        )
    name = f"{model.name!r} in model {outer!r}" if outer else repr(model.name)
    plain: list[Any] = [
        c
        for c in type(model).__mro__
        if c.__name__ in {"Functional", "Sequential"} and c.__module__.startswith("keras.")
    ]
    if not plain or type(model).call is not plain[0].call:
        raise UnsupportedModelError(
            f"Model {name} is of class {type(model).__name__}, whose call() is Python code that cannot be read. "
            "Expected a functional or Sequential Keras model: x = keras.Input(shape); keras.Model(x, layers(x))."
            + (_AS_LAYER if outer else "")
        )
    if not isinstance(model, keras.Sequential):
        return model
    if not model.built:
        raise UnsupportedModelError(
            f"Sequential model {name} is not built, so its shapes are unknown. "
            "Add keras.Input(shape=...) as its first layer, or call model.build((None, height, width, channels))."
        )
    if not getattr(model, "inputs", None):
        raise UnsupportedModelError(
            f"Sequential model {name} has a layer whose output shape Keras cannot tell beforehand. "
            "Give the class of that layer compute_output_shape(), and build the model anew."
        )
    with room_for(len(model.layers)):
        return keras.Model(model.inputs, model.outputs, name=model.name)


def _struct(functional: Any, which: str) -> Any:
    """Inputs or outputs as the model nests them; a single tensor stands alone."""
    struct = getattr(functional, f"_{which}_struct", getattr(functional, which))
    return struct[0] if isinstance(struct, list) and len(struct) == 1 else struct
