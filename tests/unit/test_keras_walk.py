"""Models that are not plain layers: what is read, what is refused, and what the refusal says."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

from latency_lab.errors import UnsupportedModelError
from latency_lab.gates import masked
from latency_lab.graph import ChannelGraph
from latency_lab.graph.keras_walk import copy_weights, fresh_inputs, rebuild, room_for, wiring
from latency_lab.shrink import shrink
from latency_lab.structure import Structure


@pytest.fixture(autouse=True)
def _fresh_names() -> None:
    keras.utils.clear_session()


class Subclassed(keras.Model):
    def __init__(self) -> None:
        super().__init__(name="inner")
        self.conv = layers.Conv2D(4, 3)

    def call(self, x: Any) -> Any:
        return self.conv(x)


class Doubled(keras.Sequential):
    def call(self, x: Any, **arguments: Any) -> Any:
        return 2 * super().call(x, **arguments)


class Inherited(keras.Model):
    def __init__(self) -> None:
        image = keras.Input((8, 8, 3))
        super().__init__(image, head(layers.Conv2D(4, 3, name="a")(image)))


class Scaled(layers.Layer):
    """With weights, and a config that Keras knows by itself."""

    def build(self, shape: Any) -> None:
        self.scale = self.add_weight(shape=shape[-1:], initializer="random_normal")

    def call(self, x: Any) -> Any:
        return x * self.scale


class Applies(layers.Layer):
    """Without a config."""

    def __init__(self, function: Any, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.function = function

    def call(self, x: Any) -> Any:
        return self.function(x)


class Shapeless(layers.Layer):
    def compute_output_spec(self, x: Any) -> Any:
        raise NotImplementedError


def head(x: Any) -> Any:
    return layers.Dense(2, name="head")(layers.GlobalAveragePooling2D()(x))


def around(layer: Any) -> Any:
    """A layer between two convolutions, "a" of 4 channels and "b" of 5."""
    image = keras.Input((8, 8, 3), name="image")
    x = layer(layers.Conv2D(4, 3, name="a")(image))
    return keras.Model(image, head(layers.Conv2D(5, 1, name="b")(x)), name="net")


def check_shrinks_around(model: Any, name: str, kind: str) -> None:
    """The layer keeps the channels that it reads and makes, and says so; slim does what masked does."""
    graph = ChannelGraph.from_model(model)
    reason = f"layer {name!r} ({kind}) is of a kind that cannot be narrowed"
    assert {p.name: p.reason for p in graph.pinned} == {
        "image": "it is an input of the model", "a": reason, name: reason, "head": "it is an output of the model",
    }  # fmt: skip
    assert [(u.name, u.layer_class) for u in graph.unknown] == [(name, kind)]
    structure = Structure.from_mask(graph, np.array([1.0, 0, 1, 0, 1]))
    images = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype("float32")
    slim = shrink(model, structure)
    assert slim.get_layer("b").filters == 3
    np.testing.assert_allclose(slim(images), masked(model, structure)(images), atol=1e-5)


# ---- layers that cannot be read ---------------------------------------------------------------------------------


def test_a_subclassed_layer_keeps_its_channels_and_its_weights() -> None:
    model = around(Scaled(name="own"))
    check_shrinks_around(model, "own", "Scaled")
    assert ChannelGraph.from_model(model).unknown_parameters == 4


def test_a_lambda_layer_keeps_its_channels_and_its_function() -> None:
    factor = 3.0

    def local(x: Any) -> Any:
        return factor * keras.ops.square(x)

    check_shrinks_around(around(layers.Lambda(lambda x: local(x) + factor, name="own")), "own", "Lambda")
    keras.utils.clear_session()
    check_shrinks_around(around(layers.Lambda(local, lambda shape: shape, name="own")), "own", "Lambda")


def test_a_layer_without_a_config_is_named_when_it_has_to_be_copied() -> None:
    model = around(Applies(keras.ops.relu, name="own"))
    structure = Structure.full(ChannelGraph.from_model(model))
    with pytest.raises(
        UnsupportedModelError,
        match=r"Layer 'own' \(Applies\) cannot be copied. Expected Applies.from_config\(\) .* Received: "
        r"NotImplementedError: .* Give the class a get_config\(\) with all arguments of its constructor.",
    ):
        shrink(model, structure)


def test_a_layer_that_reads_channels_first_is_named() -> None:
    image = keras.Input((3, 8, 8))
    pool = layers.GlobalMaxPooling2D(data_format="channels_first", name="first")
    with pytest.raises(
        UnsupportedModelError, match="Layer 'first' has data_format='channels_first'.* Build the model with data_format"
    ):
        ChannelGraph.from_model(keras.Model(image, pool(image)))


# ---- models that cannot be read ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("model", "name", "kind"), [(Subclassed, "inner", "Subclassed"), (Doubled, "own", "Doubled")])
def test_a_model_with_a_call_of_its_own_is_refused(model: Any, name: str, kind: str) -> None:
    made = model() if model is Subclassed else model([keras.Input((8, 8, 3)), layers.Conv2D(4, 3)], name="own")
    with pytest.raises(UnsupportedModelError) as caught:
        ChannelGraph.from_model(made)
    assert str(caught.value) == (
        f"Model {name!r} is of class {kind}, whose call() is Python code that cannot be read. Expected a functional or "
        "Sequential Keras model: x = keras.Input(shape); keras.Model(x, layers(x))."
    )


def test_a_subclassed_model_inside_of_a_model_is_refused_with_both_ways_out() -> None:
    with pytest.raises(UnsupportedModelError) as caught:
        ChannelGraph.from_model(around(Subclassed()))
    text = str(caught.value)
    assert text.startswith("Model 'inner' in model 'net' is of class Subclassed")
    assert "keras.Model(x, layers(x))" in text
    assert "derive its class from keras.layers.Layer" in text


def test_a_class_that_only_builds_a_functional_model_is_read() -> None:
    assert [group.name for group in ChannelGraph.from_model(Inherited()).groups] == ["a"]


@pytest.mark.parametrize(
    ("layer", "build", "expected"),
    [
        (layers.ReLU(), False, "model 'own' is not built, so its shapes are unknown. Add keras.Input"),
        (Shapeless(), True, "model 'own' has a layer whose output shape Keras cannot tell beforehand. Give the class"),
    ],
)
def test_a_sequential_model_without_shapes_is_refused(layer: Any, build: bool, expected: str) -> None:
    model = keras.Sequential([layers.Conv2D(3, 3), layer], name="own")
    if build:
        model.build((None, 8, 8, 3))
    with pytest.raises(UnsupportedModelError, match=re.escape(expected)):
        ChannelGraph.from_model(model)


def test_what_is_no_model_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="Expected a functional or Sequential model .* Received: int"):
        ChannelGraph.from_model(3)


# ---- rebuilding -------------------------------------------------------------------------------------------------


def test_weights_go_to_the_layers_of_the_same_name() -> None:
    model = around(layers.BatchNormalization(name="norm"))
    wired = wiring(model)
    other = rebuild(wired, fresh_inputs(wired), lambda call: type(call.layer).from_config(call.layer.get_config()))
    assert any(np.any(a != b) for a, b in zip(model.get_weights(), other.get_weights(), strict=True))
    copy_weights(wired, other)
    for layer in model.layers:
        for a, b in zip(layer.get_weights(), other.get_layer(layer.name).get_weights(), strict=True):
            np.testing.assert_array_equal(a, b)


# ---- depth ------------------------------------------------------------------------------------------------------


@pytest.fixture
def limit() -> Iterator[int]:
    """A low limit of Python calls, so that few layers reach it."""
    before = sys.getrecursionlimit()
    limit = len(inspect.stack(0)) + 280
    sys.setrecursionlimit(limit)
    yield limit
    sys.setrecursionlimit(before)


def test_a_model_is_masked_that_its_masks_make_deeper_than_python_calls_may_be(limit: int, tmp_path: Path) -> None:
    x = start = keras.Input((2,))
    for k in range(160):
        x = layers.Dense(40, bias_initializer="random_normal", name=f"dense_{k}")(x)  # too wide to mask its kernel
    model = keras.Model(start, layers.Dense(3, name="head")(x))
    graph = ChannelGraph.from_model(model)
    structure = Structure.from_mask(graph, np.tile([1.0, 0.0], graph.slots // 2))
    narrowed = masked(model, structure)
    assert len(narrowed.layers) > 280
    with pytest.raises(RecursionError):
        keras.Model(narrowed.inputs, narrowed.outputs)
    slim = shrink(model, structure)
    assert sys.getrecursionlimit() == limit
    slim.save(tmp_path / "slim.keras")
    alone = keras.saving.load_model(tmp_path / "slim.keras", compile=False)
    data = np.random.default_rng(0).normal(size=(4, 2)).astype("float32")
    for other in (slim, alone):
        np.testing.assert_allclose(other(data), narrowed(data), atol=1e-5)
    assert [group.size for group in ChannelGraph.from_model(narrowed).groups] == [40] * len(graph.groups)


def test_room_for_calls_is_taken_back_when_keras_fails() -> None:
    before = sys.getrecursionlimit()
    with pytest.raises(ValueError, match="no"), room_for(100):
        assert sys.getrecursionlimit() >= before + 100
        raise ValueError("no")
    assert sys.getrecursionlimit() == before
