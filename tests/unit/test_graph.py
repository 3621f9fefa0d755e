"""Channel groups, the maps from widths to channels, and what a model is read as."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

from latency_lab.cost import ParamsCost
from latency_lab.errors import UnsupportedModelError, UsageError
from latency_lab.graph import ChannelGraph, Group
from latency_lab.graph.channels import Channels
from latency_lab.graph.generate import random_network
from latency_lab.ops import Network, OpConfig


@pytest.fixture(autouse=True)
def _fresh_names() -> None:
    keras.utils.clear_session()


def conv(channels: int, name: str, **arguments: Any) -> Any:
    return layers.Conv2D(channels, 3, padding="same", name=name, **arguments)


def graph_of(inputs: Any, outputs: Any) -> ChannelGraph:
    return ChannelGraph.from_model(keras.Model(inputs, outputs, name="net"))


def head(x: Any) -> Any:
    return layers.Dense(3, name="head")(layers.GlobalAveragePooling2D(name="pool")(x))


def check_wires(network: Network) -> None:
    """Nodes are in topological order, and what a node makes is what its readers say they read."""
    for i, (op, inputs) in enumerate(network.nodes):
        assert len(inputs) == op.operands
        made = [network.nodes[j][0] for j in inputs if j >= 0]
        assert all(j < i for j in inputs)
        sizes = [(m.output_height, m.output_width) for m in made]
        if len(made) < len(inputs):
            continue
        if op.kind == "concatenate":
            assert sum(m.out_channels for m in made) == op.in_channels
        elif op.broadcast:
            assert [m.out_channels for m in made] == [op.in_channels] * op.operands
            assert op.operands == 1 or sizes.pop() == (1, 1)
        else:
            assert {m.out_channels for m in made} == {op.in_channels}
        assert set(sizes) == {(op.height, op.width)}


# ---- union-find -------------------------------------------------------------------------------------------------


def test_a_sum_of_a_concatenation_splits_the_other_operand() -> None:
    channels = Channels()
    a, b, c = channels.fresh(2, "a"), channels.fresh(3, "b"), channels.fresh(5, "c")
    channels.join(np.concatenate([a, b]), c)
    found = channels.resolve()
    assert found.groups == (Group("a", 2, ("a", "c")), Group("b", 3, ("b", "c")))
    assert found.slots.tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4]


def test_two_parts_of_one_layer_have_two_names() -> None:
    channels = Channels()
    c, a, b = channels.fresh(5, "c"), channels.fresh(2, "a"), channels.fresh(3, "b")
    channels.join(np.concatenate([a, b]), c)
    assert [group.name for group in channels.resolve().groups] == ["c", "c.2"]


def test_one_pinned_channel_pins_the_group_with_its_first_reason() -> None:
    channels = Channels()
    a, b = channels.fresh(3, "a"), channels.fresh(3, "b")
    channels.join(a, b)
    channels.pin(b[:1], "why")
    channels.pin(b[:1], "another")
    found = channels.resolve()
    assert not found.groups
    assert (found.pinned[0].members, found.pinned[0].reason) == (("a", "b"), "why")
    assert found.slots.tolist() == [-1] * 6


# ---- reading a model --------------------------------------------------------------------------------------------


def test_a_residual_joins_its_branches() -> None:
    image = keras.Input((8, 8, 3), name="image")
    x = layers.ReLU()(layers.BatchNormalization()(conv(6, "stem")(image)))
    y = conv(6, "last")(conv(4, "inner", activation="relu")(x))
    graph = graph_of(image, head(layers.Add()([x, y])))
    assert graph.groups == (Group("stem", 6, ("stem", "last")), Group("inner", 4, ("inner",), True))
    assert [(p.name, p.reason) for p in graph.pinned] == [
        ("image", "it is an input of the model"),
        ("head", "it is an output of the model"),
    ]
    assert [node.name for node in graph.nodes] == [
        "stem", "batch_normalization", "re_lu", "inner", "inner.activation", "last", "add", "pool", "head",
    ]  # fmt: skip
    ops = dict(zip([node.name for node in graph.nodes], graph.op_configs({"inner": 3, "stem": 5}), strict=True))
    assert ops["last"] == OpConfig("conv2d", height=8, width=8, in_channels=3, out_channels=5, kernel_size=(3, 3))
    assert ops["add"] == OpConfig("add", height=8, width=8, in_channels=5, out_channels=5, operands=2)
    assert graph.nodes[6].inputs == (2, 5)
    check_wires(graph.network())


def test_concatenation_adds_widths_and_keeps_slots_in_order() -> None:
    image = keras.Input((8, 8, 3))
    a, b = conv(4, "a")(image), conv(2, "b")(image)
    graph = graph_of(image, head(conv(5, "c")(layers.Concatenate(name="cat")([a, image, b, a]))))
    row = [node.name for node in graph.nodes].index("cat")
    assert graph.in_map[row].tolist() == graph.out_map[row].tolist() == [2, 1, 0]
    assert graph.in_const[row] == 3
    assert graph.layer_channels["c"].in_ids.tolist() == [0, 1, 2, 3, -1, -1, -1, 4, 5, 0, 1, 2, 3]
    assert graph.op_configs([1, 2, 5])[row].in_channels == 2 + 2 + 3
    check_wires(graph.network())


def test_a_dense_layer_after_a_flatten_reads_a_channel_at_every_position() -> None:
    image = keras.Input((2, 3, 3))
    graph = graph_of(image, layers.Dense(2)(layers.Flatten()(conv(4, "a")(image))))
    assert graph.in_map[:, 0].tolist() == [0, 1, 6]
    assert graph.layer_channels["dense"].in_ids.tolist() == [0, 1, 2, 3] * 6
    assert graph.op_configs([3])[1:] == (
        OpConfig("flatten", height=2, width=3, in_channels=3, out_channels=18),
        OpConfig("dense", in_channels=18, out_channels=2),
    )


def test_a_depthwise_multiplier_repeats_each_channel() -> None:
    image = keras.Input((8, 8, 3))
    x = layers.DepthwiseConv2D(3, depth_multiplier=2, name="deep")(conv(4, "a")(image))
    graph = graph_of(image, head(conv(5, "b")(x)))
    assert graph.layer_channels["b"].in_ids.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert graph.op_configs([3, 5])[1].key == "depthwise_conv2d 8x8 k3x3 s1x1 valid bias float32 3->6"


def test_a_separable_convolution_is_two_operations() -> None:
    image = keras.Input((8, 8, 3))
    x = layers.SeparableConv2D(6, 3, strides=2, padding="same", name="sep")(conv(4, "a")(image))
    graph = graph_of(image, head(x))
    assert [(n.name, n.op.kind, n.layer) for n in graph.nodes[1:3]] == [
        ("sep.depthwise", "depthwise_conv2d", "sep"),
        ("sep", "conv2d", "sep"),
    ]
    assert not graph.nodes[1].op.use_bias
    check_wires(graph.network())


@pytest.mark.parametrize("swap", [False, True])
def test_squeeze_and_excite_is_tied_to_what_it_scales(swap: bool) -> None:
    image = keras.Input((8, 8, 3))
    x = conv(6, "a")(image)
    s = layers.Dense(2, activation="relu", name="reduce")(layers.GlobalAveragePooling2D()(x))
    s = layers.Reshape((1, 1, 6))(layers.Dense(6, activation="sigmoid", name="expand")(s))
    graph = graph_of(image, head(layers.Multiply(name="scale")([s, x] if swap else [x, s])))
    assert [group.members for group in graph.groups] == [("a", "expand"), ("reduce",)]
    scale = next(node for node in graph.nodes if node.name == "scale")
    assert scale.op.broadcast
    assert [graph.nodes[i].name for i in scale.inputs] == ["a", "expand.activation"]
    check_wires(graph.network())


def test_an_unknown_layer_is_listed_and_pins_what_it_touches() -> None:
    image = keras.Input((8, 8, 3))
    x = layers.EinsumDense("abcd,de->abce", (8, 8, 6), name="norm")(conv(6, "a")(image))
    graph = graph_of(image, head(conv(5, "b")(x)))
    assert [group.name for group in graph.groups] == ["b"]
    reason = "layer 'norm' (EinsumDense) is of a kind that cannot be narrowed"
    assert [p.reason for p in graph.pinned if p.name in {"a", "norm"}] == [reason, reason]
    (unknown,) = graph.unknown
    assert (unknown.name, unknown.layer_class, unknown.input_bytes, unknown.output_bytes) == (
        "norm", "EinsumDense", 4 * 8 * 8 * 6, 4 * 8 * 8 * 6,
    )  # fmt: skip
    assert graph.unknown_parameters == 36
    assert graph.input_shapes == ((8, 8, 3), (8, 8, 6))
    assert [node.inputs for node in graph.nodes[:2]] == [(-1,), (-2,)]


def test_an_activation_without_a_cost_is_listed_and_pins_nothing() -> None:
    image = keras.Input((8, 8, 3))
    graph = graph_of(image, head(conv(5, "b")(conv(6, "a", activation="celu")(image))))
    assert [group.name for group in graph.groups] == ["a", "b"]
    assert [(u.name, u.layer_class) for u in graph.unknown] == [("a.activation", "celu")]


def test_a_class_of_ones_own_is_unknown_even_under_a_known_name() -> None:
    class ReLU(layers.Layer):
        def call(self, x: Any) -> Any:
            return x[..., ::-1]

    image = keras.Input((8, 8, 3))
    graph = graph_of(image, head(ReLU()(conv(6, "a")(image))))
    assert not graph.groups


def test_a_grouped_convolution_keeps_the_same_channels_of_each_group() -> None:
    image = keras.Input((8, 8, 3))
    x = conv(4, "grouped", groups=2)(conv(6, "a")(image))
    graph = graph_of(image, head(layers.Softmax(name="soft")(conv(5, "b")(x))))
    assert {g.name: g.size for g in graph.groups} == {"a": 3, "grouped": 2}
    assert {p.name: p.reason for p in graph.pinned}["b"] == "layer 'soft' takes a softmax over it"
    _, grouped, *_ = graph.op_configs({"a": 2, "grouped": 1})
    assert (grouped.in_channels, grouped.out_channels, grouped.groups) == (4, 2, 2)
    _, grouped, *_ = graph.op_configs({"a": 1, "grouped": 1})
    assert (grouped.kind, grouped.in_channels, grouped.groups) == ("depthwise_conv2d", 2, 1)


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (layers.ReLU(6.0), "relu6"),
        (layers.ReLU(), "relu"),
        (layers.ReLU(negative_slope=0.1), "leaky_relu"),
        (layers.LeakyReLU(), "leaky_relu"),
        (layers.ELU(), "elu"),
        (layers.Activation("swish"), "silu"),
        (layers.Activation("hard_swish"), "hard_swish"),
        (layers.Activation("hard_sigmoid"), "hard_sigmoid"),
        (layers.Activation(keras.activations.relu6), "relu6"),
    ],
)
def test_activations(layer: Any, expected: str) -> None:
    image = keras.Input((8, 8, 3))
    assert graph_of(image, layer(conv(4, "a")(image))).nodes[1].op.activation == expected


@pytest.mark.parametrize(
    "layer",
    [
        layers.Conv2D(5, 3), layers.Conv2D(5, (3, 1), use_bias=False, dilation_rate=2), layers.Conv2D(4, 1, groups=2),
        layers.DepthwiseConv2D(3, depth_multiplier=2), layers.DepthwiseConv2D(3, use_bias=False),
        layers.SeparableConv2D(5, 3, depth_multiplier=2), layers.SeparableConv2D(5, 3, use_bias=False),
        layers.BatchNormalization(), layers.BatchNormalization(scale=False), layers.BatchNormalization(center=False),
        layers.LayerNormalization(), layers.PReLU(), layers.Conv2DTranspose(3, 2), layers.MaxPooling2D(),
        layers.ZeroPadding2D(((0, 1), (2, 3))), layers.UpSampling2D(), layers.Cropping2D(), layers.Permute((2, 1, 3)),
        layers.Dense(3), layers.GlobalMaxPooling2D(keepdims=True), layers.Rescaling(0.5), layers.Dropout(0.1),
    ],
)  # fmt: skip
def test_every_weight_is_counted_and_every_shape_is_right(layer: Any) -> None:
    image = keras.Input((9, 8, 3))
    model = keras.Model(image, layers.Conv2D(2, 1, name="last")(layer(conv(4, "a")(image))))
    graph = ChannelGraph.from_model(model)
    weights = sum(n.weights.const + n.weights.per_in * n.op.in_channels + n.weights.per_out * n.op.out_channels
                  + n.weights.per_in_out * n.op.in_channels * n.op.out_channels for n in graph.nodes)  # fmt: skip
    assert weights + graph.unknown_parameters == model.count_params()
    last = graph.nodes[-1].op
    assert (last.height, last.width, last.in_channels) == layer.output.shape[1:]
    assert np.array_equal(graph.in_map @ graph.full_widths + graph.in_const, [n.op.in_channels for n in graph.nodes])
    assert np.array_equal(graph.out_map @ graph.full_widths + graph.out_const, [n.op.out_channels for n in graph.nodes])
    check_wires(graph.network())


def test_weights_do_not_change_the_digest_and_architecture_does() -> None:
    def build(channels: int) -> Any:
        keras.utils.clear_session()
        image = keras.Input((8, 8, 3))
        return keras.Model(image, head(conv(channels, "a")(image)))

    model = build(4)
    digest = ChannelGraph.from_model(model).digest
    model.set_weights([weight + 1 for weight in model.get_weights()])
    assert ChannelGraph.from_model(model).digest == ChannelGraph.from_model(build(4)).digest == digest
    assert ChannelGraph.from_model(build(5)).digest != digest


def test_a_model_file_is_read(tmp_path: Any) -> None:
    image = keras.Input((8, 8, 3))
    model = keras.Model(image, head(conv(4, "a")(image)))
    model.save(tmp_path / "net.keras")
    assert ChannelGraph.from_model(tmp_path / "net.keras").digest == ChannelGraph.from_model(model).digest
    with pytest.raises(UnsupportedModelError, match="Expected a Keras model or a .keras file"):
        ChannelGraph.from_model("net.h5")


def test_wrong_widths_are_named() -> None:
    image = keras.Input((8, 8, 3))
    graph = graph_of(image, head(conv(4, "a")(image)))
    assert graph.op_configs([2]) == graph.op_configs(np.array([2.0])) == graph.op_configs({"a": 2})
    with pytest.raises(UsageError, match="no group 'b'"):
        graph.op_configs({"b": 2})
    with pytest.raises(UsageError, match=r"group 'a' must be an integer in 1\.\.4\. Received: 5"):
        graph.op_configs([5])
    with pytest.raises(UsageError, match="Expected 1 widths"):
        graph.op_configs([1, 2])


def test_the_explanation_lists_every_group() -> None:
    image = keras.Input((8, 8, 3), name="image")
    graph = graph_of(image, head(layers.UnitNormalization(name="norm")(conv(4, "a")(conv(5, "b")(image)))))
    text = str(graph.explain())
    assert text.splitlines()[0] == (
        "net: 4 operations, 1 group of 5 channels can shrink: 94.4 % of 339 parameters lie in it"
    )
    assert all(line in text for line in ("it is an input of the model", "norm (UnitNormalization)"))
    data = graph.explain().to_json()
    assert [group["name"] for group in data["groups"]] == ["b"]
    assert [group["name"] for group in data["pinned"]] == ["image", "a", "norm", "head"]
    assert data["unknown"] == [{"name": "norm", "class": "UnitNormalization"}]


# ---- random networks --------------------------------------------------------------------------------------------


def test_random_networks_are_well_formed_and_within_bounds() -> None:
    seen = set()
    for seed in range(40):
        network = random_network(np.random.default_rng(seed))
        check_wires(network)
        assert 10e6 <= sum(op.macs for op, _ in network.nodes) <= 400e6
        assert len(network.outputs) == 1
        assert network == random_network(np.random.default_rng(seed))
        seen |= {op.kind for op, _ in network.nodes}
    assert seen >= {"conv2d", "depthwise_conv2d", "dense", "batch_norm", "activation", "add", "concatenate", "pad"}
    small = random_network(np.random.default_rng(0), macs=(10e6, 12e6))
    assert 10e6 <= sum(op.macs for op, _ in small.nodes) <= 12e6


# ---- kinds beside the common ones ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layer", "key"),
    [
        (layers.LayerNormalization(), "layer_norm 8x8 float32 6->6"),
        (layers.GroupNormalization(3), "group_norm 8x8 g3 float32 6->6"),
        (layers.PReLU(shared_axes=[1, 2]), "activation 8x8 prelu float32 6->6"),
        (layers.Dense(5), "dense 8x8 bias float32 6->5"),
        (layers.Conv2D(6, 3, groups=6, padding="same"), "depthwise_conv2d 8x8 k3x3 s1x1 same bias float32 6->6"),
        (layers.Conv2DTranspose(4, 3, strides=2), "conv2d_transpose 8x8 k3x3 s2x2 valid bias float32 6->4"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_less_common_layers_have_a_cost(layer, key) -> None:
    image = keras.Input((8, 8, 3))
    model = keras.Model(image, layer(conv(6, "a")(image)))
    graph = ChannelGraph.from_model(model)
    assert graph.nodes[-1].op.key == key
    assert graph.unknown == ()
    assert ParamsCost(graph).at() == model.count_params()
    assert (graph.nodes[-1].op.output_height, graph.nodes[-1].op.output_width) == tuple(model.output.shape[1:3])


@pytest.mark.parametrize(
    ("before", "expected"),
    [
        ([layers.Rescaling(1 / 255)], ["multiply by scalar"]),
        ([layers.Rescaling(1 / 127.5, offset=-1)], ["multiply by scalar", "add by scalar"]),
        ([layers.Rescaling([0.5, 1.0, 2.0])], ["multiply by channels"]),
        ([layers.Normalization()], ["subtract by channels", "multiply by channels"]),
        ([layers.Normalization(mean=0.5, variance=2.0, axis=None)], ["subtract by scalar", "multiply by scalar"]),
        (
            [layers.Rescaling(1 / 255), layers.Normalization(), layers.Rescaling([0.5, 1.0, 2.0])],
            ["multiply by scalar", "subtract by channels", "multiply by channels"],
        ),
        ([layers.Rescaling(2.0), layers.Rescaling([0.5, 1.0, 2.0])], ["multiply by channels"]),
    ],
)
def test_normalisation_of_images_is_arithmetic(before, expected) -> None:
    image = x = keras.Input((8, 8, 3))
    for layer in before:
        x = type(layer).from_config(layer.get_config())(x)
    model = keras.Model(image, conv(6, "a")(x))
    graph = ChannelGraph.from_model(model)
    assert [node.op.family for node in graph.nodes[:-1]] == expected
    assert graph.unknown == ()
    assert ParamsCost(graph).at() == model.count_params()


def test_the_scaled_residual_of_inception_resnet_is_an_add() -> None:
    from keras.src.applications.inception_resnet_v2 import CustomScaleLayer

    image = keras.Input((8, 8, 3))
    x = conv(6, "a")(image)
    y = conv(6, "c")(conv(4, "b")(x))
    graph = graph_of(image, head(CustomScaleLayer(0.2, name="sum")([x, y])))
    assert [node.op.kind for node in graph.nodes[:5]] == ["conv2d", "conv2d", "conv2d", "multiply", "add"]
    assert {group.name: group.can_vanish for group in graph.groups} == {"a": False, "b": True}
    assert [op.kind for op in graph.op_configs({"b": 0})][:2] == ["conv2d", "global_avg_pool"]


@pytest.mark.parametrize(
    ("layer", "kind"), [(layers.UpSampling2D(2), "resize_nearest"), (layers.Cropping2D(((1, 0), (2, 1))), "slice")]
)
def test_layers_that_move_positions_leave_channels_free(layer, kind) -> None:
    image = keras.Input((8, 8, 3))
    model = keras.Model(image, head(layer(conv(6, "a")(image))))
    graph = ChannelGraph.from_model(model)
    moved = next(node.op for node in graph.nodes if node.op.kind == kind)
    assert (moved.output_height, moved.output_width) == tuple(model.layers[2].output.shape[1:3])
    assert [group.name for group in graph.groups] == ["a"]
