"""Constants of closed channels: a folded slim model answers as the whole one does."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

from latency_lab.fold import fold_constants
from latency_lab.gates import masked
from latency_lab.graph import ChannelGraph
from latency_lab.shrink import shrink
from latency_lab.structure import Structure

IMAGES = np.random.default_rng(0).normal(size=(8, 9, 9, 3)).astype("float32")


def silenced(model: Any, names: set[str]) -> tuple[ChannelGraph, Structure]:
    """Random weights; half of the channels of these groups have a scale of 0 in all of their batch norms, and close."""
    rng = np.random.default_rng(1)
    for layer in model.layers:
        layer.set_weights([rng.uniform(0.3, 1.0, w.shape) * rng.choice([-1, 1], w.shape) for w in layer.get_weights()])
    graph = ChannelGraph.from_model(model)
    mask = np.ones(graph.slots)
    for group, start in zip(graph.groups, graph.offsets, strict=False):
        if group.name in names:
            mask[start : start + group.size : 2] = 0
    whole = np.append(mask, 1.0)
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization):
            layer.moving_variance.assign(np.abs(layer.moving_variance))
            layer.gamma.assign(layer.gamma * whole[graph.layer_channels[layer.name].out_ids])
    return graph, Structure.from_mask(graph, mask)


def unit(x: Any, width: int, size: int, name: str, **options: Any) -> Any:
    x = layers.Conv2D(width, size, name=name, **options)(x)
    return layers.ReLU()(layers.BatchNormalization(name=f"{name}_norm")(x))


def net(**second: Any) -> Any:
    """A residual net, whose second convolution has the given options."""
    keras.utils.clear_session()
    image = keras.Input((9, 9, 3))
    x = unit(image, 6, 3, "first")
    y = unit(x, 8, second.pop("size", 3), "second", **second)
    y = layers.AveragePooling2D(2)(layers.Concatenate()([y, unit(y, 4, 1, "side", use_bias=False)]))
    return keras.Model(image, layers.Dense(5, name="head")(layers.Flatten()(y)))


def difference(left: Any, right: Any) -> float:
    a, b = (np.asarray(model(IMAGES, training=False)) for model in (left, right))
    return float(np.abs(a - b).max() / np.std(a, axis=0).mean())


@pytest.mark.parametrize("options", [{}, {"use_bias": False}, {"size": 1, "padding": "same"}])
def test_a_folded_model_answers_as_the_whole_one(options: dict[str, Any]) -> None:
    model = net(**options)
    _, structure = silenced(model, {"first", "second", "side"})
    slim = shrink(model, structure)
    assert difference(model, slim) > 1e-2
    folded = fold_constants(model, structure, slim)
    assert difference(model, slim) < 1e-4
    assert [entry.layer for entry in folded] == ["second", "side", "head"]
    assert all(not entry.left and entry.largest > 0 for entry in folded)


@pytest.mark.parametrize(
    ("options", "why"),
    [({"padding": "same"}, "reaches over the border"), ({"groups": 2}, "convolution of groups")],
)
def test_what_is_not_exact_is_left_and_listed(options: dict[str, Any], why: str) -> None:
    model = net(**options)
    _, structure = silenced(model, {"first"})
    slim = shrink(model, structure)
    before = slim.get_weights()
    (entry,) = fold_constants(model, structure, slim)
    assert entry.layer == "second" and why in entry.left and entry.channels >= 1
    assert all(np.array_equal(a, b) for a, b in zip(before, slim.get_weights(), strict=True))


def head(x: Any) -> Any:
    return layers.Dense(5, name="head")(layers.GlobalAveragePooling2D()(x))


def folded(model: Any, name: str = "second") -> tuple[Any, Any]:
    """What became of the constants that a layer hears of half of the first channels, and the slim model."""
    _, structure = silenced(model, {"first"})
    slim = shrink(model, structure)
    before = slim.get_weights()
    (entry,) = [entry for entry in fold_constants(model, structure, slim) if entry.layer == name]
    if entry.left:
        assert all(np.array_equal(a, b) for a, b in zip(before, slim.get_weights(), strict=True))
    return entry, slim


def test_a_layer_that_is_called_twice_is_left_and_listed_once() -> None:
    keras.utils.clear_session()
    image = keras.Input((9, 9, 3))
    x = unit(image, 6, 3, "first")
    second = layers.Conv2D(6, 1, name="second")
    model = keras.Model(image, head(layers.Concatenate()([second(x), second(layers.MaxPooling2D(1)(x))])))
    assert folded(model)[0].left == "it is called more than once"


def test_a_batch_norm_behind_an_activation_does_not_take_the_change() -> None:
    keras.utils.clear_session()
    image = keras.Input((9, 9, 3))
    x = unit(image, 6, 3, "first")
    model = keras.Model(image, head(unit(x, 4, 1, "second", use_bias=False, activation="relu")))
    assert "batch norm of its own right behind it" in folded(model)[0].left
    keras.utils.clear_session()
    image = keras.Input((9, 9, 3))
    x = unit(image, 6, 3, "first")
    model = keras.Model(image, head(unit(x, 4, 1, "second", activation="relu")))
    entry, slim = folded(model)
    assert not entry.left
    assert difference(model, slim) < 1e-4


def test_a_batch_norm_that_something_else_reads_into_does_not_take_the_change() -> None:
    keras.utils.clear_session()
    image = keras.Input((9, 9, 3))
    x = unit(image, 6, 3, "first")
    norm = layers.BatchNormalization(name="second_norm")
    y = layers.Conv2D(4, 1, use_bias=False, name="second")(x)
    z = layers.Conv2D(4, 3, use_bias=False, name="other")(image)
    model = keras.Model(image, head(layers.Concatenate()([norm(y), norm(z)])))
    assert "batch norm of its own right behind it" in folded(model)[0].left


@pytest.mark.parametrize(
    ("second", "why"),
    [
        (lambda: layers.SeparableConv2D(4, 3, name="second"), "separable"),
        (lambda: layers.Conv2DTranspose(4, 3, name="second"), "transposed"),
    ],
)
def test_readers_that_are_not_folded_are_listed(second: Any, why: str) -> None:
    keras.utils.clear_session()
    image = keras.Input((9, 9, 3))
    model = keras.Model(image, head(second()(unit(image, 6, 3, "first"))))
    assert why in folded(model)[0].left


@pytest.mark.parametrize("shape", [(98, 3), (21, 14)])
def test_a_reshape_that_mixes_positions_and_channels_says_nothing(shape: tuple[int, ...]) -> None:
    keras.utils.clear_session()
    image = keras.Input((9, 9, 3))
    x = layers.Reshape(shape)(unit(image, 6, 3, "first"))
    model = keras.Model(image, layers.Dense(5, name="head")(layers.Flatten()(x)))
    graph = ChannelGraph.from_model(model)
    whole = Structure.from_mask(graph, np.ones(graph.slots))
    assert fold_constants(model, whole, shrink(model, whole)) == ()


def test_channels_that_say_more_than_a_constant_are_no_constants() -> None:
    model = net()
    _, structure = silenced(model, {"first"})
    model.get_layer("first_norm").gamma.assign(np.full(6, 0.5))
    slim = shrink(model, structure)
    assert fold_constants(model, structure, slim) == ()


def test_a_branch_that_is_removed_is_listed_where_it_was_added() -> None:
    keras.utils.clear_session()
    image = keras.Input((9, 9, 3))
    x = unit(image, 6, 3, "first", padding="same")
    y = layers.Conv2D(6, 1, name="out")(unit(x, 4, 1, "inner"))
    x = layers.Add(name="sum")([x, y])
    model = keras.Model(image, layers.Dense(5, name="head")(layers.Flatten()(x)))
    graph, structure = silenced(model, set())
    kept = {**structure.kept, "inner": ()}
    structure = Structure(kept, structure.sizes, structure.model)
    slim = shrink(model, structure)
    assert "out" not in {layer.name for layer in slim.layers}
    (entry,) = fold_constants(model, structure, slim)
    assert (entry.layer, entry.channels, entry.largest) == ("sum", 6, None)
    assert entry.left == "the branch at its operand 1 is removed"
    assert str(entry) == f"sum: constants of 6 channels NOT folded, unknown size: {entry.left}"
    assert entry.to_json()["folded"] is False


def test_closed_channels_of_a_model_with_masks_are_silent() -> None:
    model = net()
    _, structure = silenced(model, {"first"})
    with_masks = masked(model, structure)
    slim = shrink(with_masks, structure)
    assert difference(with_masks, slim) < 1e-4
    assert fold_constants(with_masks, structure, slim) == ()
    assert difference(with_masks, slim) < 1e-4
