"""Masked equals slim (law 6), on random graphs and on small versions of well-known networks."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from keras import layers

from latency_lab.cost import FlopsCost, ParamsCost
from latency_lab.errors import StructureError, UnsupportedModelError
from latency_lab.gates import FixedMask, Gates, insert_masks, masked
from latency_lab.graph import ChannelGraph
from latency_lab.shrink import shrink
from latency_lab.structure import Structure

EXAMPLES = 8


def randomise(model: Any, rng: np.random.Generator) -> None:
    """Random weights under which every channel matters and no layer collapses or blows up."""
    for layer in model.layers:
        values = []
        for variable in layer.weights:
            shape = tuple(variable.shape)
            if variable.name == "gamma":
                values.append(rng.choice([-1, 1], shape) * rng.uniform(0.5, 1.5, shape))
            elif variable.name == "moving_variance":
                values.append(rng.uniform(0.5, 1.5, shape))
            elif "kernel" in variable.name:
                deep = variable.name == "depthwise_kernel" or type(layer).__name__ == "DepthwiseConv2D"
                fan_in = np.prod(shape[:2]) if deep else np.prod(shape[:-1])
                values.append(rng.normal(0, np.sqrt(2 / fan_in), shape))
            elif variable.name == "moving_mean":
                values.append(rng.uniform(-0.5, 0.5, shape))
            else:
                values.append(rng.uniform(0.0, 1.0, shape))
        if values:
            layer.set_weights(values)


def random_structure(graph: ChannelGraph, rng: np.random.Generator) -> Structure:
    mask = rng.random(graph.slots) < 0.6
    for group, start in zip(graph.groups, graph.offsets, strict=False):
        mask[start + rng.permutation(group.size)[0]] = True
        mask[start + rng.permutation(group.size)[0]] = False
        if not mask[start : start + group.size].any():
            mask[start] = True
    return Structure.from_mask(graph, mask)


def swapped(structure: Structure, rng: np.random.Generator) -> Structure:
    """One kept index of one group exchanged for a closed channel."""
    names = [name for name, kept in structure.kept.items() if 0 < len(kept) < structure.sizes[name]]
    name = names[rng.integers(len(names))]
    closed = sorted(set(range(structure.sizes[name])) - set(structure.kept[name]))
    kept = [*structure.kept[name]]
    kept[rng.integers(len(kept))] = closed[rng.integers(len(closed))]
    return Structure({**structure.kept, name: tuple(sorted(kept))}, structure.sizes, structure.model)


def distance(left: Any, right: Any, images: Any) -> float:
    """Largest difference of two models' outputs, in standard deviations over the inputs."""
    a, b = (np.asarray(model(images, training=False)) for model in (left, right))
    assert np.std(a, axis=0).mean() > 1e-3, "the outputs do not depend on the inputs: the test would be empty"
    return float(np.abs(a - b).max() / np.std(a, axis=0).mean())


def parameters(graph: ChannelGraph, widths: Any) -> float:
    ins, outs = graph.in_map @ widths + graph.in_const, graph.out_map @ widths + graph.out_const
    terms = (n.weights.const + n.weights.per_in * i + n.weights.per_out * o + n.weights.per_in_out * i * o
             for n, i, o in zip(graph.nodes, ins, outs, strict=True))  # fmt: skip
    return sum(terms) + graph.unknown_parameters


def check_masked_equals_slim(model: Any, seed: int) -> None:
    rng = np.random.default_rng(seed)
    randomise(model, rng)
    graph = ChannelGraph.from_model(model)
    structure = random_structure(graph, rng)
    images = rng.normal(size=(EXAMPLES, *model.input_shape[1:])).astype("float32")
    with_mask, slim = masked(model, structure), shrink(model, structure)
    assert distance(with_mask, slim, images) < 1e-4
    assert ChannelGraph.from_model(slim).op_configs() == graph.op_configs(structure.widths(graph))
    assert parameters(graph, structure.widths(graph)) == slim.count_params()
    assert distance(with_mask, shrink(model, swapped(structure, rng)), images) > 1e-2


# ---- networks ---------------------------------------------------------------------------------------------------


def conv_block(x: Any, channels: int, size: int = 3, stride: int = 1, act: str | None = "relu") -> Any:
    x = layers.Conv2D(channels, size, stride, padding="same", use_bias=False)(x)
    x = layers.BatchNormalization()(x)
    return layers.Activation(act)(x) if act else x


def squeeze_excite(x: Any) -> Any:
    channels = x.shape[-1]
    s = layers.GlobalAveragePooling2D(keepdims=True)(x)
    s = layers.Conv2D(max(channels // 2, 2), 1, activation="relu")(s)
    return layers.Multiply()([x, layers.Conv2D(channels, 1, activation="sigmoid")(s)])


def squeeze_excite_dense(x: Any) -> Any:
    channels = x.shape[-1]
    s = layers.Dense(4, activation="relu")(layers.GlobalAveragePooling2D()(x))
    s = layers.Reshape((1, 1, channels))(layers.Dense(channels, activation="hard_sigmoid")(s))
    return layers.Multiply()([s, x])


BLOCKS = {
    "conv": lambda x, n: conv_block(x, n),
    "biased": lambda x, n: layers.Conv2D(n, 3, activation="relu6", padding="valid")(layers.ZeroPadding2D(1)(x)),
    "residual": lambda x, n: layers.ReLU()(layers.Add()([x, conv_block(conv_block(x, n), x.shape[-1], act=None)])),
    "shortcut": lambda x, n: layers.Add()([conv_block(x, n, 1, act=None), conv_block(conv_block(x, 5), n, act=None)]),
    "inverted": lambda x, n: conv_block(conv_depthwise(conv_block(x, 2 * n, 1)), n, 1, act=None),
    "multiplied": lambda x, n: conv_block(layers.DepthwiseConv2D(3, padding="same", depth_multiplier=2)(x), n, 1),
    "separable": lambda x, n: layers.SeparableConv2D(n, 3, padding="same", depth_multiplier=2, activation="silu")(x),
    "dense_block": lambda x, n: layers.Concatenate()([x, conv_block(x, n)]),
    "branches": lambda x, n: conv_block(layers.Concatenate()([conv_block(x, n), x, conv_block(x, 3, 1)]), n, 1),
    "joined_concat": lambda x, n: layers.Add()(
        [layers.Concatenate()([conv_block(x, n), conv_block(x, 3)]), conv_block(x, n + 3, 1, act=None)]
    ),
    "squeeze": lambda x, n: squeeze_excite(conv_block(x, n)),
    "squeeze_dense": lambda x, n: squeeze_excite_dense(conv_block(x, n)),
    "pool": lambda x, n: layers.MaxPooling2D(3, 1, padding="same")(conv_block(x, n)),
    "average": lambda x, n: layers.AveragePooling2D(2)(conv_block(x, n)) if x.shape[1] > 3 else conv_block(x, n),
    "dropout": lambda x, n: layers.SpatialDropout2D(0.3)(layers.LeakyReLU()(conv_block(x, n, act=None))),
    "unscaled": lambda x, n: layers.BatchNormalization(scale=False)(layers.Conv2D(n, 3, padding="same")(x)),
    "arithmetic": lambda x, n: conv_block(x, n) * 0.5 + conv_block(x, n, 1, act=None),
    "grouped": lambda x, n: layers.Conv2D(4, 3, groups=2, padding="same")(conv_block(x, 4)),
    "normed": lambda x, n: layers.LayerNormalization()(conv_block(x, n)),
}


def conv_depthwise(x: Any) -> Any:
    return layers.ReLU(6.0)(layers.BatchNormalization()(layers.DepthwiseConv2D(3, padding="same", use_bias=False)(x)))


def head(x: Any, kind: str) -> Any:
    if kind == "flatten":
        x = layers.Dense(6, activation="relu")(layers.Flatten()(x))
    elif kind == "max":
        x = layers.Dropout(0.2)(layers.GlobalMaxPooling2D()(x))
    else:
        x = layers.Dense(9, activation="gelu")(layers.GlobalAveragePooling2D()(x))
    return layers.Dense(5)(x)


@settings(max_examples=15, deadline=None, derandomize=True, database=None, phases=[Phase.generate])
@given(
    st.lists(st.tuples(st.sampled_from(sorted(BLOCKS)), st.integers(4, 8)), min_size=1, max_size=3),
    st.sampled_from(["flatten", "max", "average"]),
    st.integers(0, 2**16),
)
def test_masked_equals_slim_on_random_graphs(blocks: list[tuple[str, int]], top: str, seed: int) -> None:
    keras.utils.clear_session()
    image = keras.Input((6, 6, 3))
    x = conv_block(image, 6)
    for name, channels in blocks:
        x = BLOCKS[name](x, channels)
    check_masked_equals_slim(keras.Model(image, head(x, top)), seed)


@pytest.mark.parametrize("name", sorted(BLOCKS))
def test_masked_equals_slim_on_each_block(name: str) -> None:
    keras.utils.clear_session()
    image = keras.Input((5, 6, 3))
    check_masked_equals_slim(keras.Model(image, head(BLOCKS[name](conv_block(image, 6), 5), "flatten")), 7)


def mobilenet() -> Any:
    image = keras.Input((16, 16, 3))
    x = conv_block(image, 8, 3, 2, "relu6")
    for channels, expansion, stride in ((4, 1, 1), (6, 4, 2), (6, 4, 1), (8, 4, 1), (8, 4, 1)):
        y = conv_block(x, expansion * x.shape[-1], 1, act="relu6")
        if stride == 2:
            y = layers.ZeroPadding2D(((0, 1), (0, 1)))(y)
        y = layers.DepthwiseConv2D(3, stride, padding="same" if stride == 1 else "valid", use_bias=False)(y)
        y = conv_block(layers.ReLU(6.0)(layers.BatchNormalization()(y)), channels, 1, act=None)
        x = layers.Add()([x, y]) if x.shape == y.shape else y
    return keras.Model(image, layers.Dense(10)(layers.GlobalAveragePooling2D()(conv_block(x, 24, 1, act="relu6"))))


def resnet() -> Any:
    image = keras.Input((12, 12, 3))
    x = conv_block(image, 8)
    for channels, stride in ((8, 1), (12, 2), (12, 1)):
        y = conv_block(conv_block(x, channels, 3, stride), channels, act=None)
        shortcut = x if stride == 1 else conv_block(x, channels, 1, stride, None)
        x = layers.ReLU()(layers.Add()([shortcut, y]))
    return keras.Model(image, layers.Dense(10)(layers.GlobalAveragePooling2D()(x)))


def sequential() -> Any:
    return keras.Sequential(
        [
            layers.Input((8, 8, 3)), layers.Conv2D(6, 3, activation="relu"), layers.MaxPooling2D(),
            layers.Conv2D(7, 3, activation="elu"), layers.Flatten(), layers.Dense(5, "tanh"), layers.Dense(4),
        ],
        name="plain",
    )  # fmt: skip


def nested() -> Any:
    inner_image = keras.Input((8, 8, 6))
    inner = keras.Model(inner_image, BLOCKS["residual"](inner_image, 5), name="body")
    image = keras.Input((8, 8, 3))
    x = layers.Conv2D(6, 3, padding="same")(image)
    return keras.Model(image, head(inner(x, training=False), "average"))


@pytest.mark.parametrize("build", [mobilenet, resnet, sequential, nested])
def test_masked_equals_slim_on_small_networks(build: Any) -> None:
    keras.utils.clear_session()
    model = build()
    check_masked_equals_slim(model, 3) if build is not nested else _check_nested(model)


def _check_nested(model: Any) -> None:
    graph = ChannelGraph.from_model(model)
    structure = random_structure(graph, np.random.default_rng(0))
    images = np.random.default_rng(1).normal(size=(EXAMPLES, 8, 8, 3)).astype("float32")
    assert distance(masked(model, structure), shrink(model, structure), images) < 1e-4
    assert {group.members[0] for group in graph.groups} >= {"conv2d"}


def test_slim_of_a_gated_model_is_its_inference() -> None:
    keras.utils.clear_session()
    model, rng = resnet(), np.random.default_rng(5)
    randomise(model, rng)
    graph = ChannelGraph.from_model(model)
    gates = Gates([group.size for group in graph.groups], name="gates")
    gated = insert_masks(model, graph, gates)
    gates.raw.assign(rng.normal(-0.08, 0.1, graph.slots))
    images = rng.normal(size=(EXAMPLES, 12, 12, 3)).astype("float32")
    structure = Structure.from_mask(graph, np.asarray(gates(images, training=False)))
    slim = shrink(gated, structure)
    assert sum(len(kept) for kept in structure.kept.values()) < graph.slots
    assert distance(gated, slim, images) < 1e-4
    assert distance(gated, shrink(model, structure), images) < 1e-4
    assert {layer.name for layer in slim.layers} == {layer.name for layer in model.layers}
    assert all(type(layer).__module__.startswith("keras.") for layer in slim.layers)


def test_the_original_model_is_not_changed() -> None:
    keras.utils.clear_session()
    model = resnet()
    before = [weight.copy() for weight in model.get_weights()]
    structure = random_structure(ChannelGraph.from_model(model), np.random.default_rng(0))
    slim = shrink(model, structure)
    slim.set_weights([weight + 1 for weight in slim.get_weights()])
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))
    assert slim.name == model.name


def test_trainable_flags_and_config_are_kept() -> None:
    keras.utils.clear_session()
    image = keras.Input((6, 6, 3))
    conv = layers.Conv2D(6, 3, name="conv", kernel_regularizer="l2", dtype="mixed_float16")
    conv.trainable = False
    model = keras.Model(image, layers.Dense(2)(layers.GlobalAveragePooling2D()(conv(image))))
    slim = shrink(model, Structure.from_mask(ChannelGraph.from_model(model), [1, 1, 0, 0, 0, 1]), weights=False)
    found = slim.get_layer("conv")
    assert (found.filters, found.trainable, found.dtype_policy.name) == (3, False, "mixed_float16")
    assert isinstance(found.kernel_regularizer, keras.regularizers.L2)


def test_calls_of_a_shared_layer_shrink_together() -> None:
    keras.utils.clear_session()
    image = keras.Input((6, 6, 3))
    shared, relu = layers.Conv2D(4, 3, padding="same", name="shared"), layers.ReLU()
    x = relu(layers.Conv2D(4, 3, padding="same", name="first")(image))
    x = relu(shared(shared(x)))
    model = keras.Model(image, head(layers.Conv2D(5, 3, name="last")(x), "average"))
    graph = ChannelGraph.from_model(model)
    assert {group.name: group.members for group in graph.groups}["first"] == ("first", "shared")
    check_masked_equals_slim(model, 1)


# ---- branches that vanish -----------------------------------------------------------------------------------------


def with_branches() -> Any:
    """Two residual branches, of which one is grouped, and two parallel ones."""
    keras.utils.clear_session()
    image = keras.Input((6, 6, 3))
    x = layers.Conv2D(6, 3, padding="same", name="stem")(image)
    for name, groups in (("a", 1), ("b", 2)):
        y = layers.Conv2D(4, 1, activation="relu", name=f"{name}_in")(x)
        y = layers.Conv2D(4, 3, groups=groups, padding="same", name=f"{name}_mid")(y)
        y = layers.Conv2D(6, 1, name=f"{name}_out")(layers.BatchNormalization(name=f"{name}_norm")(y))
        x = layers.Add(name=f"{name}_add")([x, y])
    left = layers.Conv2D(3, 1, name="left")(x)
    right = layers.Conv2D(3, 3, padding="same", name="right")(layers.Conv2D(5, 1, name="right_in")(x))
    x = layers.BatchNormalization(name="norm")(layers.Concatenate(name="join")([left, right]))
    return keras.Model(image, head(x, "average"))


@pytest.mark.parametrize(
    ("closed", "gone"),
    [
        (["a_in"], {"a_in", "a_mid", "a_norm", "a_out", "a_add"}),
        (["b_mid"], {"b_in", "b_mid", "b_norm", "b_out", "b_add"}),
        (["right_in"], {"right_in", "right", "join"}),
        (["right"], {"right_in", "right", "join"}),
        (["a_mid", "b_in"], {f"{n}_{part}" for n in "ab" for part in ("in", "mid", "norm", "out", "add")}),
    ],
)
def test_a_branch_whose_group_closes_is_removed(closed: list[str], gone: set[str]) -> None:
    model, rng = with_branches(), np.random.default_rng(3)
    randomise(model, rng)
    graph = ChannelGraph.from_model(model)
    mask = random_structure(graph, rng).mask(graph)
    for group, start in zip(graph.groups, graph.offsets, strict=False):
        if group.name in closed:
            mask[start : start + group.size] = 0
    structure = Structure.from_mask(graph, mask)
    assert Structure.from_json(structure.to_json()) == structure
    slim = shrink(model, structure)
    assert {layer.name for layer in model.layers} - {layer.name for layer in slim.layers} == gone
    images = rng.normal(size=(EXAMPLES, 6, 6, 3)).astype("float32")
    assert distance(masked(model, structure), slim, images) < 1e-4
    assert distance(masked(model, swapped(structure, rng)), slim, images) > 1e-2
    widths, found = structure.widths(graph), ChannelGraph.from_model(slim)
    assert found.network() == graph.network(widths)
    assert ParamsCost(graph).at(widths) == slim.count_params()
    assert FlopsCost(graph).at(widths) == FlopsCost(found).at()


def test_gates_of_a_mask_that_closes_a_branch_take_all_of_it() -> None:
    model, rng = with_branches(), np.random.default_rng(4)
    randomise(model, rng)
    graph = ChannelGraph.from_model(model)
    mask = np.ones(graph.slots)
    start = graph.offsets[[group.name for group in graph.groups].index("right_in")]
    mask[start : start + 5] = 0  # the channels of "right" are open still
    gated = insert_masks(model, graph, FixedMask(mask.tolist(), name="mask"), vanishing=True)
    images = rng.normal(size=(EXAMPLES, 6, 6, 3)).astype("float32")
    assert distance(gated, shrink(model, Structure.from_mask(graph, mask)), images) < 1e-4


def test_a_group_without_which_nothing_would_come_out_cannot_vanish() -> None:
    model = with_branches()
    graph = ChannelGraph.from_model(model)
    assert {g.name for g in graph.groups if g.can_vanish} == {"a_in", "a_mid", "b_in", "b_mid", "right_in", "right"}
    mask = np.ones(graph.slots)
    mask[:6] = 0
    with pytest.raises(StructureError, match="'stem' keeps no channel"):
        Structure.from_mask(graph, mask)
    kept = {**Structure.full(graph).kept, "a_in": ()}
    with pytest.raises(StructureError, match="'a_mid' keeps 4 channels of a branch that vanishes"):
        shrink(model, Structure(kept, Structure.full(graph).sizes, graph.digest))


def test_a_structure_of_another_model_is_refused() -> None:
    keras.utils.clear_session()
    model = sequential()
    structure = random_structure(ChannelGraph.from_model(model), np.random.default_rng(0))
    slim = shrink(model, structure)
    with pytest.raises(StructureError, match="channels in the model and .* in the structure"):
        shrink(slim, structure)


def test_models_that_cannot_be_read_are_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="is not built"):
        ChannelGraph.from_model(keras.Sequential([layers.Conv2D(3, 3)]))
    with pytest.raises(UnsupportedModelError, match="open sizes"):
        image = keras.Input((None, None, 3))
        ChannelGraph.from_model(keras.Model(image, layers.Conv2D(3, 3)(image)))
    with pytest.raises(UnsupportedModelError, match="channels_first"):
        image = keras.Input((3, 8, 8))
        ChannelGraph.from_model(keras.Model(image, layers.GlobalMaxPooling2D(data_format="channels_first")(image)))

    class Own(keras.Model):  # type: ignore[misc]
        pass

    with pytest.raises(UnsupportedModelError, match="of class Own"):
        ChannelGraph.from_model(Own())
