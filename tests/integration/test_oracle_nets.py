"""Small networks of the oracles, built in Keras and read by `ChannelGraph`."""

from __future__ import annotations

import numpy as np
import pytest

from latency_lab.cost import FlopsCost, LatencyCost, ParamsCost, linearised_loss, linearised_per_op
from latency_lab.cost.roofline import charged_bytes
from latency_lab.cost.terms import Polynomial
from latency_lab.graph import ChannelGraph
from latency_lab.profiles import DeviceProfile
from regularizers import Gamma
from regularizers.openness import combined, weight_size
from tests.unit.cost_nets import GAMMA_A

keras = pytest.importorskip("keras")
layers = keras.layers


def block(x, filters: int, kernel, name: str, **options):
    x = layers.Conv2D(filters, kernel, padding="same", use_bias=False, name=name, **options)(x)
    return layers.ReLU()(layers.BatchNormalization(name=f"{name}_norm")(x))


def head(*tensors):
    """A reader for channels that would be outputs: an output is pinned, and these have a gamma in the oracles."""
    return [layers.Dense(1, name=f"head{i}")(layers.GlobalAveragePooling2D()(x)) for i, x in enumerate(tensors)]


def share(cost, values, *without: str) -> float:
    """Sum of the ops' values, less those of the ops named."""
    return float(sum(v for name, v in zip(cost.ops, values, strict=True) if name not in without))


def sums(gammas, threshold: float):
    alive = np.array([(np.abs(g) > threshold).sum() for g in gammas], float)
    return alive, np.array([np.abs(g).sum() for g in gammas])


@pytest.fixture(scope="module")
def net_a_model():
    image = keras.Input((17, 19, 3))
    both = layers.Concatenate()([block(image, 13, (7, 5), "conv1"), block(image, 23, 1, "conv2")])
    outputs = head(block(both, 29, 3, "conv3", strides=2), block(both, 31, 1, "conv4"))
    model = keras.Model(image, outputs)
    for i, gamma in enumerate(GAMMA_A):
        model.get_layer(f"conv{i + 1}_norm").gamma.assign(gamma)
    return model


@pytest.fixture(scope="module")
def net_a(net_a_model) -> ChannelGraph:
    return ChannelGraph.from_model(net_a_model)


def in_order(graph: ChannelGraph, by_name: dict[str, float]) -> np.ndarray:
    return np.array([by_name[group.name] for group in graph.groups], float)


@pytest.mark.parametrize(
    ("make", "unit", "cost_total", "loss_total"),
    [
        (FlopsCost, 1, 985404, 1410376.375),
        (lambda graph: ParamsCost(graph, weights_only=True), 1, 2694, 4569.8),
        (
            lambda graph: LatencyCost(graph, DeviceProfile.analytic("P100", peak_gflops=9300, bandwidth_gb_s=732)),
            1e6,
            515.251526,
            461.267181,
        ),
        (
            lambda graph: LatencyCost(graph, DeviceProfile.analytic("V100", peak_gflops=125000, bandwidth_gb_s=900)),
            1e6,
            395.168915,
            347.760895,
        ),
    ],
    ids=["flops", "size", "P100", "V100"],
)
def test_net_a(net_a, make, unit, cost_total, loss_total) -> None:
    cost = make(net_a)
    alive, r = sums(GAMMA_A, 0.45)
    alive = in_order(net_a, dict(zip(("conv1", "conv2", "conv3", "conv4"), alive, strict=True)))
    r = in_order(net_a, dict(zip(("conv1", "conv2", "conv3", "conv4"), r, strict=True)))
    assert share(cost, cost.per_op(alive)[0] * unit, "head0", "head1") == pytest.approx(cost_total, rel=1e-5)
    assert share(cost, linearised_per_op(cost, alive, r) * unit, "head0", "head1") == pytest.approx(
        loss_total, rel=1e-5
    )


def test_net_a_bytes(net_a) -> None:
    """At each op in turn, as the roofline charges them: the heads are not MorphNet's."""
    alive, r = sums(GAMMA_A, 0.45)
    names = ("conv1", "conv2", "conv3", "conv4")
    alive, r = (in_order(net_a, dict(zip(names, found, strict=True))) for found in (alive, r))
    bytes_of = Polynomial.of([node.op for node in net_a.nodes], charged_bytes)
    x_in, x_out = net_a.in_map @ alive + net_a.in_const, net_a.out_map @ alive + net_a.out_const
    values, slope_in, slope_out = bytes_of(x_in, x_out, np)
    loss = slope_in * (net_a.in_map @ r) + slope_out * (net_a.out_map @ r)
    ours = [not node.name.startswith("head") for node in net_a.nodes]
    assert values[ours].sum() == 355652
    assert loss[ours].sum() == pytest.approx(312984.78, rel=1e-5)


@pytest.mark.parametrize(
    ("make", "slopes"),
    [
        (FlopsCost, [(95012, 95012), (-29120, 29120), (29160, -29160), (-11628, -11628)]),
        (lambda graph: ParamsCost(graph, weights_only=True), [(212, 212), (-110, 110), (162, -162), (-18, -18)]),
    ],
    ids=["flops", "size"],
)
def test_net_a_as_gamma_trains_it(net_a_model, make, slopes) -> None:
    """Alive channels, loss and its gradient over gamma, from the layers of the model that trains."""
    tf = pytest.importorskip("tensorflow")
    cost = make(ChannelGraph.from_model(net_a_model))
    regularizer = Gamma(cost, strength=1.0, threshold=0.45)
    gated = regularizer.attach(net_a_model)
    alive = regularizer.alive()
    assert [int(alive[name].sum()) for name in ("conv1", "conv2", "conv3", "conv4")] == [7, 11, 10, 17]
    assert all(
        (alive[f"conv{i + 1}"] == (np.abs(gamma) > 0.45)).all() for i, gamma in enumerate(GAMMA_A)
    )  # the very channels
    gammas = [gated.get_layer(f"conv{i}_norm").gamma for i in (1, 2, 3, 4)]
    with tf.GradientTape() as tape:
        gated(np.zeros((1, 17, 19, 3), "float32"), training=True)
        loss = gated.losses[0] * regularizer.initial
    found = np.array([(g[0], g[-1]) for g in tape.gradient(loss, [gamma.value for gamma in gammas])])
    price = dict(zip(cost.ops, cost.per_op(regularizer.widths())[1], strict=True))
    # the heads are not MorphNet's; each charges the channels that it reads
    heads = np.array([0, 0, price["head0"], price["head1"]])[:, None] * np.sign([(g[0], g[-1]) for g in GAMMA_A])
    assert found - heads == pytest.approx(np.array(slopes), rel=1e-5)


def test_net_b_counts_a_depthwise_op_once() -> None:
    image = keras.Input((17, 19, 3))
    x = layers.BatchNormalization()(layers.Conv2D(4, 1, use_bias=False, name="a")(image))
    x = layers.BatchNormalization()(layers.DepthwiseConv2D(3, padding="same", use_bias=False, name="dw")(x))
    x = layers.BatchNormalization()(layers.Conv2D(5, 1, use_bias=False, name="b")(x))
    graph = ChannelGraph.from_model(keras.Model(image, head(x)[0]))
    group = combined([[0.9, 0.1, 0.9, 0.2], [0.2, 0.8, 0.1, 0.3]], "max")
    assert (group > 0.5).tolist() == [True, True, True, False]
    alive, r = sums([group, np.array([0.6, 0.6, 0.4, 0.4, 0.7])], 0.5)
    assert alive.tolist() == [3, 3]
    flops, size = FlopsCost(graph), ParamsCost(graph, weights_only=True)
    assert flops.per_op(alive)[0][:3] == pytest.approx([5814, 17442, 5814])
    assert share(flops, flops.per_op(alive)[0], "head0") == pytest.approx(29070)
    assert linearised_per_op(flops, alive, r)[:3] == pytest.approx([5620.2, 33721.2 / 2, 10852.8])
    assert share(flops, linearised_per_op(flops, alive, r), "head0") == pytest.approx(33333.6)
    assert size.per_op(alive)[0][:3] == pytest.approx([9, 27, 9])
    # MorphNet's 77.7 charges the depthwise conv's 9 * 2.9 for its in slot too
    assert share(size, linearised_per_op(size, alive, r), "head0") == pytest.approx(77.7 - 9 * group.sum())
    depthwise = next(node.op for node in graph.nodes if node.op.kind == "depthwise_conv2d")
    assert Polynomial.of([depthwise], charged_bytes)(np.array([3.0]), np.array([3.0]), np)[0] == 7860


def test_net_b2_follows_a_depth_multiplier() -> None:
    image = keras.Input((17, 19, 3))
    x = layers.Conv2D(3, 1, use_bias=False, name="a")(image)
    x = layers.BatchNormalization(name="a_norm")(x)
    x = layers.DepthwiseConv2D(3, padding="same", depth_multiplier=2, use_bias=False, name="dw")(x)
    x = layers.Conv2D(5, 1, use_bias=False, name="b")(x)
    x = layers.BatchNormalization(name="b_norm")(x)
    model = keras.Model(image, head(x)[0])
    model.get_layer("a_norm").gamma.assign([0.9, 0.1, 0.8])
    regularizer = Gamma(FlopsCost(ChannelGraph.from_model(model)), strength=1.0, threshold=0.5)
    regularizer.attach(model)
    assert regularizer.alive()["a"].tolist() == [True, False, True]
    graph, cost = regularizer.cost.graph, regularizer.cost
    after = np.repeat(regularizer.alive()["a"], 2)  # each channel makes two, side by side
    assert after.tolist() == [True, True, False, False, True, True]
    assert graph.layer_channels["dw"].out_ids.tolist() == [0, 0, 1, 1, 2, 2]
    alive, r = regularizer.widths(), np.array([1.8, 5.0])
    by_op = dict(zip(cost.ops, cost.per_op(alive)[0], strict=True))
    assert (by_op["dw"], by_op["b"]) == (23256, 12920)
    assert share(cost, cost.per_op(alive)[0], "head0") == pytest.approx(40052)
    # MorphNet's 31395.6 and 59432 charge the depthwise op for its in slot, which is the same width, once more
    assert dict(zip(cost.ops, linearised_per_op(cost, alive, r), strict=True))["dw"] == pytest.approx(20930.4)
    assert share(cost, linearised_per_op(cost, alive, r), "head0") == pytest.approx(48966.8)


def test_net_c_residual() -> None:
    image = keras.Input((8, 8, 3))
    options = {"padding": "same", "use_bias": False}
    a = layers.Conv2D(4, 3, name="a", **options)(image)
    c = layers.Conv2D(4, 3, name="c", **options)(layers.Conv2D(6, 3, name="b", **options)(a))
    x = layers.GlobalAveragePooling2D()(layers.ReLU()(layers.Add()([a, c])))
    graph = ChannelGraph.from_model(keras.Model(image, layers.Dense(10, use_bias=False)(x)))
    group = combined([[0.9, 0.1, 0.2, 0.7], [0.1, 0.8, 0.3, 0.2]], "max")
    assert group.tolist() == [0.9, 0.8, 0.3, 0.7]
    assert (group > 0.5).tolist() == [True, True, False, True]
    alive, r = sums([group, np.array([0.6, 0.4, 0.8, 0.1, 0.2, 0.9])], 0.5)
    flops, size = FlopsCost(graph), ParamsCost(graph, weights_only=True)
    assert flops.per_op(alive)[0].tolist() == [10368, 10368, 10368, 60]
    assert flops.value(alive) == 31164
    assert linearised_loss(flops, alive, r) == pytest.approx(48783.6)
    assert size.value(alive) == 273
    assert linearised_loss(size, alive, r) == pytest.approx(407.7)


MEMBERS = [[0.1, 0.3, 0.6, 0.2], [0.2, 0.4, 0.5, 0.1], [0.3, 0.2, 0.0, 0.25]]


@pytest.mark.parametrize("xp", [np, keras.ops], ids=["numpy", "keras.ops"])
@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("max", [0.3, 0.4, 0.6, 0.25]),
        ("l2", [0.374165, 0.538516, 0.781024, 0.335410]),
        ("probabilistic", [0.496, 0.664, 0.8, 0.46]),
    ],
)
def test_members_combine(how, expected, xp) -> None:
    assert np.array(combined(xp.array(MEMBERS), how, xp)) == pytest.approx(np.array(expected), rel=1e-5)


def test_probabilities_of_a_residual_group() -> None:
    first, second = (1 / (1 + np.exp(-np.array(z))) for z in ([0.0, 1, -2], [0.0, -1, -2]))
    assert combined(np.stack([first, second]), "probabilistic") == pytest.approx([0.75, 0.80338806, 0.2241965])


def test_group_lasso_of_two_dense_layers() -> None:
    first = weight_size(np.arange(24.0).reshape(6, 4), (0,), 0.0)
    second = weight_size(np.array([[21.0], [22], [23], [24]]), (0,), 0.0)
    assert first == pytest.approx([12.110601, 12.948616, 13.808210, 14.685594], rel=1e-6)
    assert second == pytest.approx([22.527761], rel=1e-6)
    features = keras.Input((6,))
    x = layers.Dense(4, use_bias=False, name="first")(features)
    x = layers.Dense(1, use_bias=False, name="second")(x)
    graph = ChannelGraph.from_model(keras.Model(features, layers.Dense(1, name="head")(x)))
    alive, r = sums([first, second], 13.0)
    assert alive.tolist() == [2, 1]
    cost = FlopsCost(graph)
    assert share(cost, cost.per_op(alive)[0], "head") == 28
    assert share(cost, linearised_per_op(cost, alive, r), "head") == pytest.approx(839.8534, rel=1e-6)


# ---- whole networks -----------------------------------------------------------------------------------------------

PEAKS = {"V100": (125000, 900), "P100": (9300, 732), "T4": (8100, 300)}


def resnet20():
    """CIFAR's ResNet-20: three stages of three blocks, 16, 32 and 64 channels, 1x1 convs for shortcuts that change."""
    image = keras.Input((32, 32, 3))
    x, count = block(image, 16, 3, "stem"), 0
    for stage, filters in enumerate((16, 32, 64)):
        for first in (True, False, False):
            stride, count = 2 if first and stage else 1, count + 1
            y = block(x, filters, 3, f"a{count}", strides=stride)
            y = layers.Conv2D(filters, 3, padding="same", use_bias=False, name=f"b{count}")(y)
            y = layers.BatchNormalization()(y)
            if first and stage:
                x = layers.Conv2D(filters, 1, strides=2, use_bias=False, name=f"shortcut{stage}")(x)
                x = layers.BatchNormalization()(x)
            x = layers.ReLU()(layers.Add()([x, y]))
    return keras.Model(image, layers.Dense(10)(layers.GlobalAveragePooling2D()(x)))


def of_applications(name: str):
    return getattr(keras.applications, name)(weights=None, input_shape=(224, 224, 3))


def roofline_ns(graph: ChannelGraph, name: str) -> float:
    peak, bandwidth = PEAKS[name]
    return LatencyCost(graph, DeviceProfile.analytic(name, peak_gflops=peak, bandwidth_gb_s=bandwidth)).at() * 1e6


@pytest.mark.parametrize(
    ("name", "flops", "weights", "nanoseconds"),
    [
        ("ResNet20", 81626368, 270896, {"V100": 7644.13}),
        ("ResNet50", 7715946500, 25502912, {"V100": 455133.094, "P100": 1145882.12, "T4": 1775820}),
        ("VGG16", 30940528640, 138344128, {"V100": 941211.812, "P100": 4124326.5, "T4": 5823231}),
        ("MobileNetV2", 601548544, 3469760, {}),  # no latency: MorphNet's bytes of depthwise convs are wrong
        ("InceptionV3", 5675842560, 23799136, {"V100": 254516.969, "P100": 742085.312, "T4": 1117628.75}),
        ("DenseNet121", 5668323330, 7894208, {}),
        ("Xception", 9105756160, 22800424, {}),
    ],
)
def test_whole_networks(name: str, flops: int, weights: int, nanoseconds: dict[str, float]) -> None:
    graph = ChannelGraph.from_model(resnet20() if name == "ResNet20" else of_applications(name))
    assert FlopsCost(graph).at() == pytest.approx(flops, rel=1e-4)
    assert ParamsCost(graph, weights_only=True).at() == weights
    for device, expected in nanoseconds.items():
        assert roofline_ns(graph, device) == pytest.approx(expected, rel=1e-4)
