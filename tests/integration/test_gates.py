"""Gate layers in Keras models."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

from latency_lab.gates import ChannelMask, FixedMask, Gates, MaskedReader, insert_masks, masked
from latency_lab.graph import ChannelGraph
from latency_lab.shrink import shrink
from latency_lab.structure import Structure


@pytest.fixture(autouse=True)
def _fresh_names() -> None:
    keras.utils.clear_session()
    keras.utils.set_random_seed(0)


def network() -> Any:
    image = keras.Input((6, 6, 3), name="image")
    x = layers.Conv2D(6, 3, padding="same", name="a")(image)
    x = layers.ReLU(name="relu")(layers.BatchNormalization(name="norm")(x))
    y = layers.Conv2D(6, 3, padding="same", name="b")(x)
    z = layers.Conv2D(4, 1, name="c")(x)
    x = layers.Concatenate(name="cat")([layers.Add(name="add")([x, y]), z])
    return keras.Model(image, layers.Dense(3, name="head")(layers.GlobalAveragePooling2D(name="pool")(x)), name="net")


def gated() -> tuple[Any, ChannelGraph, Gates, Any]:
    model = network()
    graph = ChannelGraph.from_model(model)
    gates = Gates([group.size for group in graph.groups], seed=1, name="gates")
    return model, graph, gates, insert_masks(model, graph, gates)


IMAGES = np.random.default_rng(0).normal(size=(4, 6, 6, 3)).astype("float32")


def test_a_mask_multiplies_channels_by_slot() -> None:
    x = np.ones((2, 1, 1, 4), "float32")
    y = np.asarray(ChannelMask([2, -1, 0, 0])([x, np.array([0.0, 1.0, 0.5], "float32")]))
    assert y[1, 0, 0].tolist() == [0.5, 1.0, 0.0, 0.0]


def test_open_gates_change_nothing_and_leave_the_model_alone() -> None:
    model, graph, _, clone = gated()
    names = [layer.name for layer in model.layers]
    assert np.allclose(model.predict(IMAGES, verbose=0), clone.predict(IMAGES, verbose=0), atol=1e-6)
    assert [layer.name for layer in model.layers] == names
    assert set(names) <= {layer.name for layer in clone.layers}
    assert ChannelGraph.from_model(clone).digest == graph.digest


def test_readers_of_shrinkable_channels_are_masked_by_one_draw_a_step() -> None:
    *_, clone = gated()
    masked_readers = [layer.name for layer in clone.layers if isinstance(layer, MaskedReader)]
    assert masked_readers == ["b", "c", "head"]
    assert not any(isinstance(layer, ChannelMask) for layer in clone.layers)
    drawn = keras.Model(clone.input, [clone.get_layer(name).input[1] for name in masked_readers])
    first, second, third = drawn(IMAGES, training=True)
    assert np.array_equal(first, second) and np.array_equal(first, third)
    assert not np.array_equal(first, drawn(IMAGES, training=True)[0])


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_a_gated_model_says_the_precision_of_each_layer(policy: str) -> None:
    keras.config.set_dtype_policy(policy)
    try:
        model, *_, clone = gated()
    finally:
        keras.config.set_dtype_policy("float32")
    for layer in model.layers:
        assert clone.get_layer(layer.name).output.dtype == layer.output.dtype, layer.name


READERS = {
    "Conv1D": (lambda: layers.Conv1D(5, 3, strides=2, padding="same", activation="relu"), (7, 4)),
    "Conv2D": (lambda: layers.Conv2D(5, (3, 2), padding="same", use_bias=False), (6, 5, 4)),
    "Conv3D": (lambda: layers.Conv3D(5, 2, dilation_rate=1), (3, 4, 5, 4)),
    "Dense": (lambda: layers.Dense(5, "tanh"), (3, 4)),
}


@pytest.mark.parametrize("kind", READERS)
@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_a_mask_on_the_kernel_is_one_on_what_it_reads_in_values_and_gradients(kind: str, policy: str) -> None:
    import tensorflow as tf

    make, shape = READERS[kind]
    slots = [2, -1, 0, 0]
    keras.config.set_dtype_policy(policy)
    try:
        plain, reader = make(), MaskedReader(make(), slots)
        x = np.random.default_rng(1).normal(size=(3, *shape)).astype("float32")
        mask = tf.Variable([0.0, 1.0, 0.5])
        plain(x), reader([x, mask])
        reader.layer.set_weights(plain.get_weights())
        found = []
        for layer, read in (
            (plain, lambda: plain(ChannelMask(slots)([x, mask]))),
            (reader.layer, lambda: reader([x, mask])),
        ):
            with tf.GradientTape() as tape:
                y = read()
                loss = keras.ops.sum(keras.ops.sin(keras.ops.cast(y, "float32")))
            gradients = tape.gradient(loss, [mask, layer.kernel.value])
            found.append([y, *(tf.convert_to_tensor(gradient) for gradient in gradients)])
    finally:
        keras.config.set_dtype_policy("float32")
    tolerance = 1e-5 if policy == "float32" else 3e-2
    for before, behind in zip(*found, strict=True):
        assert before.dtype == behind.dtype
        before, behind = (np.asarray(tf.cast(tensor, "float32")) for tensor in (before, behind))
        assert np.abs(before).max() > 0
        assert np.allclose(before, behind, rtol=tolerance, atol=tolerance * np.abs(before).max())


@pytest.mark.parametrize(
    ("make", "size"),
    [
        (lambda: layers.Conv2D(64, 3, padding="same"), 4),  # 9 * 64 weights a channel, 16 positions of 32 images
        (lambda: layers.Conv2D(4, 3, groups=2), 8),
        (lambda: layers.Conv2DTranspose(4, 3), 8),
        (lambda: layers.SeparableConv2D(4, 3), 8),
        (lambda: layers.Conv2D(4, 3, activity_regularizer="l2"), 8),
    ],
    ids=["large", "grouped", "transposed", "separable", "activity"],
)
def test_where_a_kernel_is_larger_or_has_no_place_for_a_channel_the_tensor_is_masked(make: Any, size: int) -> None:
    image = keras.Input((size, size, 3))
    x = layers.Conv2D(6, 3, padding="same", name="first")(image)
    reader = make()
    y = layers.GlobalAveragePooling2D()(reader(x))
    z = layers.GlobalAveragePooling2D()(layers.Conv2D(2, 1, name="other")(x))  # reads what is masked anyway
    model = keras.Model(image, layers.Concatenate()([y, z]))
    structure = Structure.from_mask(
        ChannelGraph.from_model(model), np.arange(ChannelGraph.from_model(model).slots) % 2 == 0
    )
    closed = masked(model, structure)
    masks = [layer.name for layer in closed.layers if isinstance(layer, ChannelMask)]
    assert len(masks) == 1 and masks[0] in {f"{reader.name}_mask", "other_mask"}
    assert not isinstance(closed.get_layer("other"), MaskedReader)
    images = np.random.default_rng(0).normal(size=(2, size, size, 3)).astype("float32")
    assert np.allclose(closed(images), shrink(model, structure)(images), atol=1e-5)


def test_samples_are_hard_with_a_soft_gradient_and_open_as_often_as_they_should() -> None:
    import tensorflow as tf

    gates = Gates([400, 400], seed=3)
    gates.build(None)
    gates.raw.assign(np.repeat([0.0, -0.15], 400))
    with tf.GradientTape() as tape:
        mask = gates(IMAGES, training=True)
        loss = keras.ops.sum(mask)
    gradient = np.asarray(tape.gradient(loss, gates.raw.value))
    mask = np.asarray(mask)
    assert np.allclose(mask, mask.round(), atol=1e-6)
    share = mask.reshape(2, 400).mean(axis=1)
    assert np.allclose(share, 1 / (1 + np.exp([-2.5, 2.0])), atol=0.05)
    assert np.mean(gradient > 1e-6) > 0.7
    assert np.allclose(gates.open_logits()[:400], 2.5)


@pytest.mark.parametrize("training", [False, True])
def test_the_most_open_channel_of_each_group_is_always_open(training: bool) -> None:
    gates = Gates([3, 1, 4], seed=0)
    gates.build(None)
    gates.raw.assign(np.array([-9, -8, -9, -9, -7, -7, -9, -9], "float32"))
    assert np.allclose(gates(IMAGES, training=training), [0, 1, 0, 1, 1, 0, 0, 0], atol=1e-6)


def test_at_the_start_only_the_first_of_equals_is_forced_open() -> None:
    gates = Gates([500], initial=-1.0, seed=0)
    gates.build(None)
    assert np.asarray(gates(IMAGES)).sum() == 1


def test_a_gated_model_trains_and_goes_round_through_a_file(tmp_path: Any) -> None:
    model, _, gates, clone = gated()
    clone.compile("adam", "mse")
    clone.fit(IMAGES, np.zeros((4, 3), "float32"), epochs=2, verbose=0)
    assert np.any(np.asarray(gates.raw) != 0)
    clone.save(tmp_path / "gated.keras")
    loaded = keras.saving.load_model(tmp_path / "gated.keras")
    assert np.allclose(loaded.predict(IMAGES, verbose=0), clone.predict(IMAGES, verbose=0), atol=1e-6)
    assert loaded.get_layer("gates").get_config() == gates.get_config()


def test_a_masked_model_closes_channels_and_can_be_masked_again() -> None:
    model = network()
    graph = ChannelGraph.from_model(model)
    mask = np.ones(graph.slots)
    mask[:5] = 0
    structure = Structure.from_mask(graph, mask)
    once = masked(model, structure)
    assert isinstance(once.get_layer("mask"), FixedMask)
    again = masked(once, structure)
    assert len(again.layers) == len(once.layers)
    assert np.allclose(once(IMAGES), again(IMAGES), atol=1e-6)
    assert not np.allclose(once(IMAGES), model(IMAGES), atol=1e-3)


def test_gates_work_under_mixed_precision() -> None:
    keras.config.set_dtype_policy("mixed_float16")
    try:
        *_, clone = gated()
        assert np.all(np.isfinite(np.asarray(clone(IMAGES, training=True), "float32")))
        assert clone.get_layer("gates").raw.dtype == "float32"
    finally:
        keras.config.set_dtype_policy("float32")
