"""Regularizers on small Keras models: what they charge, what they refuse, how they train, save and load."""

from __future__ import annotations

import json

import numpy as np
import pytest

from latency_lab.budget import fit
from latency_lab.cost import ActivationMemoryCost, FlopsCost, LatencyCost, ParamsCost, linearised_loss, worst_of
from latency_lab.errors import BudgetError, StructureError, UnsupportedModelError, UsageError
from latency_lab.gates import masked
from latency_lab.graph import ChannelGraph
from latency_lab.shrink import shrink
from regularizers import BudgetControl, Gamma, GroupLasso, LogisticSigmoid, recalibrate_batch_norm
from regularizers.openness import kernel_of
from tests.unit.cost_nets import StepProfile

keras = pytest.importorskip("keras")
layers = keras.layers
ALL = pytest.mark.parametrize("regularizer", [LogisticSigmoid, Gamma, GroupLasso])


def network(norm: bool = True, scale: bool = True):
    """conv a, conv b + a (residual), depthwise, conv c, dense head."""
    image = keras.Input((8, 8, 1), name="image")

    def finish(x):
        return layers.ReLU()(layers.BatchNormalization(scale=scale)(x) if norm else x)

    x = finish(layers.Conv2D(16, 3, padding="same", use_bias=not norm, name="a")(image))
    y = layers.Conv2D(16, 3, padding="same", use_bias=not norm, name="b")(x)
    x = layers.ReLU()(layers.Add()([x, layers.BatchNormalization(scale=scale)(y) if norm else y]))
    x = finish(layers.DepthwiseConv2D(3, strides=2, padding="same", use_bias=not norm, name="dw")(x))
    x = finish(layers.Conv2D(32, 1, use_bias=not norm, name="c")(x))
    return keras.Model(image, layers.Dense(10, name="head")(layers.GlobalAveragePooling2D()(x)))


def latency(model) -> LatencyCost:
    return LatencyCost(ChannelGraph.from_model(model), StepProfile())


def flops(model) -> FlopsCost:
    return FlopsCost(ChannelGraph.from_model(model))


@pytest.fixture(scope="module")
def digits():
    datasets = pytest.importorskip("sklearn.datasets")
    images, labels = datasets.load_digits(return_X_y=True)
    return (images / 16).reshape(-1, 8, 8, 1).astype("float32"), labels


def compiled(model, learning_rate: float = 1e-3, eager: bool = False):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(learning_rate), loss, metrics=["accuracy"], run_eagerly=eager)
    return model


# ---- attaching ----------------------------------------------------------------------------------------------------


@ALL
def test_attach_copies_and_changes_nothing_yet(regularizer) -> None:
    model = network()
    before = [w.copy() for w in model.get_weights()]
    gated = regularizer(flops(model), strength=1.0).attach(model)
    images = np.random.default_rng(0).normal(size=(4, 8, 8, 1)).astype("float32")
    assert np.array(gated(images)) == pytest.approx(np.array(model(images)), abs=1e-5)
    assert all((a == b).all() for a, b in zip(before, model.get_weights(), strict=True))
    assert {layer.name for layer in model.layers} <= {layer.name for layer in gated.layers}
    assert gated.get_layer("a").kernel is not model.get_layer("a").kernel
    assert ChannelGraph.from_model(gated).digest == ChannelGraph.from_model(model).digest


@ALL
def test_no_weight_is_tracked_twice(regularizer) -> None:
    model = network()
    gated = regularizer(flops(model), strength=1.0).attach(model)
    extra = 3  # logits or the latest openness, strength, state of the control
    seeds = [v for v in gated.variables if "seed" in v.path]
    assert len(gated.variables) - len(seeds) == len(model.variables) + extra
    assert not gated.get_layer("penalty").trainable_variables


def test_outputs_keep_their_nesting() -> None:
    image = keras.Input((8, 8, 1))
    x = layers.BatchNormalization()(layers.Conv2D(8, 3, name="a")(image))
    x = layers.GlobalAveragePooling2D()(x)
    model = keras.Model(image, {"x": layers.Dense(2)(x), "y": layers.Dense(3)(x)})
    found = Gamma(flops(model), strength=1.0).attach(model)(np.zeros((1, 8, 8, 1), "float32"))
    assert {name: tuple(value.shape) for name, value in found.items()} == {"x": (1, 2), "y": (1, 3)}


def two_heads(how: str):
    """A conv with a class and a box; the second head stands alone, reads the first, or is a layer called twice."""
    keras.utils.clear_session()
    image = keras.Input((8, 8, 1))
    x = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(8, 3, name="a")(image)))
    x = layers.GlobalAveragePooling2D()(x)
    y = layers.Dense(3, name="cls")(x)
    if how == "shared":
        scale = layers.Rescaling(2.0, name="box")
        return keras.Model(image, [y, scale(scale(y))])
    return keras.Model(image, [y, layers.Dense(4, name="box")(y if how == "chained" else x)])


@ALL
@pytest.mark.parametrize("how", ["apart", "chained", "shared"])
def test_losses_metrics_and_targets_find_their_outputs_by_name(regularizer, how, tmp_path) -> None:
    model = two_heads(how)
    learner = regularizer(flops(model), strength=1.0)
    gated = learner.attach(model)
    assert gated.output_names == model.output_names == ["cls", "box"]
    gated.save(tmp_path / "gated.keras")
    loaded = keras.models.load_model(tmp_path / "gated.keras")
    learner.bind(loaded)
    assert loaded.output_names == ["cls", "box"]
    assert charged(loaded) == pytest.approx(charged(gated), rel=1e-6)
    width = loaded.output_shape[1][-1]
    for trained in (gated, loaded):
        trained.compile("sgd", loss={"cls": "mse", "box": "mae"}, metrics={"box": ["mse"]}, run_eagerly=True)
        targets = {"cls": np.zeros((4, 3)), "box": np.zeros((4, width))}
        logs = trained.fit(np.ones((4, 8, 8, 1)), targets, verbose=0).history
        assert {"cls_loss", "box_loss", "box_mse"} <= set(logs)


def test_a_penalty_hands_on_the_mask_of_a_sequence() -> None:
    image, words = keras.Input((8, 8, 1)), keras.Input((6, 5))
    x = layers.GlobalAveragePooling2D()(layers.BatchNormalization()(layers.Conv2D(8, 3, name="a")(image)))
    model = keras.Model([image, words], [layers.Dense(3)(x), layers.LSTM(4)(layers.Masking()(words))])
    gated = Gamma(flops(model), strength=1.0).attach(model)  # Keras warns of layers that lose masks
    sentences = np.ones((2, 6, 5), "float32")
    sentences[0, 3:] = 0
    data = [np.ones((2, 8, 8, 1), "float32"), sentences]
    assert np.array(gated(data)[1]) == pytest.approx(np.array(model(data)[1]), abs=1e-6)


# ---- what is charged ----------------------------------------------------------------------------------------------


def charged(gated, strength: float = 1.0) -> float:
    gated(np.zeros((2, 8, 8, 1), "float32"), training=True)
    assert len(gated.losses) == 1
    return float(gated.losses[0]) / strength


@pytest.mark.parametrize("make", [flops, latency], ids=["flops", "latency"])
def test_logistic_sigmoid_pays_for_the_expected_widths(make) -> None:
    model = network()
    cost = make(model)
    gated = LogisticSigmoid(cost, strength=2.0).attach(model)
    raw = np.random.default_rng(0).normal(scale=0.1, size=48).astype("float32")
    gated.get_layer("gates").raw.assign(raw)
    probability = 1 / (1 + np.exp(-(2.5 + 30 * raw.astype(float))))
    widths = np.add.reduceat(probability, cost.graph.offsets[:-1])
    assert charged(gated, 2.0) == pytest.approx(cost.value(widths) / cost.value(None), rel=1e-5)


@pytest.mark.parametrize("make", [flops, latency], ids=["flops", "latency"])
def test_gamma_minimises_the_linearised_loss(make) -> None:
    model = network()
    rng = np.random.default_rng(0)
    norms = [layer for layer in model.layers if isinstance(layer, layers.BatchNormalization)]
    for norm in norms:
        norm.gamma.assign(np.where(rng.uniform(size=norm.gamma.shape) < 0.4, 0.001, rng.normal(size=norm.gamma.shape)))
    a, b, dw, c = (np.abs(keras.ops.convert_to_numpy(norm.gamma).astype(float)) for norm in norms)
    r = [np.max([a, b, dw], axis=0), c]
    cost = make(model)
    regularizer = Gamma(cost, strength=3.0)
    gated = regularizer.attach(model)
    alive = [(vector > 1e-2).sum() for vector in r]
    expected = linearised_loss(cost, alive, np.array([vector.sum() for vector in r])) / cost.value(None)
    assert charged(gated, 3.0) == pytest.approx(expected, rel=1e-5)
    assert regularizer.widths().tolist() == alive
    assert [found.sum() for found in regularizer.alive().values()] == alive


@pytest.mark.parametrize("fraction", [0.0, 0.3])
@pytest.mark.parametrize("relative", [False, True])
def test_group_lasso_minimises_the_linearised_loss(fraction: float, relative: bool) -> None:
    model = network(norm=False)
    cost = flops(model)

    def r(name: str) -> np.ndarray:
        kernel, axes = kernel_of(model.get_layer(name))
        kernel = keras.ops.convert_to_numpy(kernel).astype(float)
        size = (1 - fraction) * np.sqrt((kernel**2).mean(axes)) + fraction * np.abs(kernel).mean(axes)
        return size.reshape(-1) / (np.median(size) if relative else 1)

    groups = [np.max([r("a"), r("b"), r("dw")], axis=0), r("c")]
    gated = GroupLasso(cost, strength=1.0, l1_fraction=fraction, relative=relative).attach(model)
    expected = linearised_loss(cost, [16, 32], np.array([g.sum() for g in groups])) / cost.value(None)
    assert charged(gated) == pytest.approx(expected, rel=1e-5)


def test_group_lasso_reads_kernels_against_what_they_were_when_it_was_attached(tmp_path) -> None:
    model = network(norm=False)
    learner = GroupLasso(flops(model), strength=1.0)
    gated = learner.attach(model)
    before = learner.openness()
    kernel = gated.get_layer("c").kernel
    kernel.assign(kernel * 0.5)
    gated.save(tmp_path / "gated.keras")
    resumed = GroupLasso(learner.cost, strength=1.0)
    resumed.bind(keras.models.load_model(tmp_path / "gated.keras"))
    assert np.median(before[16:]) == pytest.approx(1.0)
    assert resumed.openness() == pytest.approx(np.append(before[:16], 0.5 * before[16:]), rel=1e-5)


def test_group_lasso_takes_the_typical_size_of_a_layer_from_channels_that_are_open() -> None:
    model = network(norm=False)
    kernel = keras.ops.convert_to_numpy(model.get_layer("c").kernel).copy()
    kernel[..., :20] = 0
    model.get_layer("c").kernel.assign(kernel)
    learner = GroupLasso(flops(model), strength=1.0)
    learner.attach(model)
    assert np.median(learner.openness()[16 + 20 :]) == pytest.approx(1.0)
    model.get_layer("c").kernel.assign(0 * kernel)
    learner.attach(model)
    assert learner.openness()[16:].tolist() == [0.0] * 32


def test_group_lasso_has_a_finite_slope_where_weights_are_zero() -> None:
    tf = pytest.importorskip("tensorflow")
    model = network(norm=False)
    model.get_layer("c").kernel.assign(np.zeros((1, 1, 16, 32)))
    gated = GroupLasso(flops(model), strength=1.0, group="l2").attach(model)
    with tf.GradientTape() as tape:
        gated(np.zeros((1, 8, 8, 1), "float32"), training=True)
        loss = sum(gated.losses)
    gradients = tape.gradient(loss, [layer.kernel.value for layer in gated.layers if hasattr(layer, "kernel")][:-1])
    assert all(np.isfinite(g).all() for g in gradients if g is not None)


def pure_loss(regularizer, gated, cost) -> float:
    """What is charged, from the numbers in the model's layers, in float64: the equation of each class."""
    groups = np.repeat(np.arange(2), [16, 32])

    def total(r: np.ndarray) -> np.ndarray:
        return np.bincount(groups, r)

    if regularizer is LogisticSigmoid:
        raw = np.asarray(gated.get_layer("gates").raw, float)
        return cost.value(total(1 / (1 + np.exp(-(2.5 + 30 * raw))))) / cost.value(None)
    if regularizer is Gamma:
        norms = [layer for layer in gated.layers if isinstance(layer, layers.BatchNormalization)]
        r, threshold = [np.abs(np.asarray(norm.gamma, float)) for norm in norms], 1e-2
    else:
        kernels = [np.asarray(gated.get_layer(name).kernel, float) for name in ("a", "b", "dw", "c")]
        sizes = [np.sqrt((k**2).mean((0, 1) if k.shape[-1] == 1 else (0, 1, 2))).reshape(-1) for k in kernels]
        typical, threshold = gated.get_layer("openness").typical, 5e-2
        r = [size / typical[name] for size, name in zip(sizes, ("a", "b", "dw", "c"), strict=True)]
    both = np.concatenate([np.max(r[:3], axis=0), r[3]])
    return linearised_loss(cost, total(1.0 * (both > threshold)), total(both)) / cost.value(None)


COSTS = {
    "latency": latency,
    "flops": flops,
    "parameters": lambda model: ParamsCost(ChannelGraph.from_model(model)),
    "memory": lambda model: ActivationMemoryCost(ChannelGraph.from_model(model)),
    "sum": lambda model: latency(model) + 1e-6 * flops(model),
    "worst": lambda model: worst_of(latency(model), 0.9 * latency(model)),
}


@ALL
@pytest.mark.parametrize("name", COSTS)
def test_any_cost_is_charged_with_its_slope_by_any_regularizer(regularizer, name) -> None:
    tf = pytest.importorskip("tensorflow")
    model = network(norm=regularizer is not GroupLasso)
    cost, rng = COSTS[name](model), np.random.default_rng(0)
    gated = regularizer(cost, strength=1.0).attach(model)
    for variable in gated.trainable_variables:
        scale = 0.05 if "logits" in variable.path else 0.5
        variable.assign(rng.normal(scale=scale, size=variable.shape))
    with tf.GradientTape() as tape:
        gated(np.zeros((1, 8, 8, 1), "float32"), training=True)
        loss = gated.losses[0]
    slopes = tape.gradient(loss, [variable.value for variable in gated.trainable_variables])
    assert float(loss) == pytest.approx(pure_loss(regularizer, gated, cost), rel=1e-5)
    charged = 0
    for variable, slope in zip(gated.trainable_variables, slopes, strict=True):
        if slope is None:
            continue
        charged += 1
        start, step = np.asarray(variable), np.sign(slope.numpy()) * 3e-5
        ends = []
        for sign in (1, -1):
            variable.assign(start + sign * step)
            ends.append(pure_loss(regularizer, gated, cost))
        variable.assign(start)
        assert np.isfinite(slope.numpy()).all()
        assert np.sum(slope.numpy() * step) == pytest.approx((ends[0] - ends[1]) / 2, rel=0.02)
    assert charged == {LogisticSigmoid: 1, Gamma: 4, GroupLasso: 4}[regularizer]


@ALL
def test_one_cost_may_be_paid_for_and_another_hold_the_budget(regularizer) -> None:
    model = network(norm=regularizer is not GroupLasso)
    graph = ChannelGraph.from_model(model)
    read, paid = LatencyCost(graph, StepProfile()), FlopsCost(graph)
    learner = regularizer(read, target_ms=0.5 * read.at(), paid=paid)
    gated = learner.attach(model)
    alone = regularizer(paid, target=0.5).attach(model)
    assert charged(gated) == pytest.approx(charged(alone), rel=1e-6)
    structure = learner.structure()
    assert read.at(structure.widths(graph)) <= 0.5 * read.at()
    assert structure.provenance["unit"] == "ms"
    assert structure.provenance["paid_unit"] == "FLOPs"
    assert learner.log_name == "latency_ms"


@ALL
def test_nothing_is_charged_at_inference(regularizer) -> None:
    model = network()
    gated = regularizer(flops(model), strength=1.0).attach(model)
    gated(np.zeros((1, 8, 8, 1), "float32"), training=False)
    assert not gated.losses


# ---- what is refused ----------------------------------------------------------------------------------------------


@ALL
def test_exactly_one_of_strength_and_budgets(regularizer) -> None:
    cost = flops(network())
    for wrong in ({}, {"strength": 1.0, "target": 0.5}, {"target": 0.5, "target_ms": 3.0}):
        with pytest.raises(UsageError, match="exactly one"):
            regularizer(cost, **wrong)
    with pytest.raises(UsageError, match="in FLOPs"):
        regularizer(cost, target_ms=3.0)
    with pytest.raises(UsageError, match="share in"):
        regularizer(cost, target=50)
    with pytest.raises(UsageError, match="a number or 'auto'"):
        regularizer(cost, strength="high")
    with pytest.raises(UsageError, match="exactly one"):
        regularizer(cost, strength="auto", target=0.5, target_ms=3.0)
    with pytest.raises(BudgetError, match="2 channels in the 2 groups"):
        regularizer(cost, target=1e-4)


@ALL
def test_another_model_is_refused(regularizer) -> None:
    other = keras.Sequential([keras.Input((8, 8, 1)), layers.Conv2D(3, 3, name="a"), layers.Flatten(), layers.Dense(2)])
    with pytest.raises(StructureError, match="`paid` was made for another model"):
        regularizer(flops(network()), strength=1.0, paid=flops(other))
    with pytest.raises(StructureError, match="another model"):
        regularizer(flops(network()), strength=1.0).attach(other)


def test_gamma_refuses_what_it_cannot_regularize() -> None:
    model = network(scale=False)
    name = next(layer.name for layer in model.layers if isinstance(layer, layers.BatchNormalization))
    with pytest.raises(UnsupportedModelError, match=rf"{name}.*scale=False.*LogisticSigmoid or GroupLasso"):
        Gamma(flops(model), strength=1.0).attach(model)
    model = network(norm=False)
    with pytest.raises(UnsupportedModelError, match="no channel group.*LogisticSigmoid or GroupLasso"):
        Gamma(flops(model), strength=1.0).attach(model)


def half_normed():
    """A conv with a batch norm, and one without."""
    image = keras.Input((8, 8, 1))
    x = layers.BatchNormalization(name="norm")(layers.Conv2D(8, 3, name="normed")(image))
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(12, 3, name="bare")(x))
    return keras.Model(image, layers.Dense(2)(x))


def test_gamma_leaves_a_group_without_batch_norm_whole_and_says_so(tmp_path) -> None:
    model = half_normed()
    regularizer = Gamma(flops(model), target=0.5)
    gated = regularizer.attach(model)
    assert regularizer.unregularized == ("bare",)
    assert regularizer.widths().tolist() == [8, 12]
    cost = regularizer.cost
    assert charged(gated) * cost.value(None) == pytest.approx(cost.gradient([8, 12]) @ [8, 12], rel=1e-5)
    assert len(regularizer.structure().kept["bare"]) == 12
    gated.save(tmp_path / "gated.keras")
    again = Gamma(cost, target=0.5)
    again.bind(keras.models.load_model(tmp_path / "gated.keras"))
    assert again.unregularized == ("bare",)
    assert again.structure().kept == regularizer.structure().kept


@pytest.mark.parametrize("regularizer", [Gamma, GroupLasso])
def test_groups_of_frozen_layers_stay_whole_and_are_named(regularizer, caplog) -> None:
    model = branched()
    for layer in model.layers:
        layer.trainable = not layer.name.startswith("a_")
    cost = flops(model)
    learner = regularizer(cost, target=0.9)
    gated = learner.attach(model)
    stem = ("stem",) * (regularizer is GroupLasso)  # a_out, frozen, makes channels of the stem's group
    assert set(learner.unregularized) == {"a_in", *stem}
    assert "frozen (trainable=False), left whole: " in caplog.text
    slots = gated.get_layer("openness").slots
    assert not any(name.startswith("a_") for name in slots)
    assert len(learner.structure().kept["a_in"]) == 16
    for layer in model.layers:
        layer.trainable = False
    with pytest.raises(UnsupportedModelError, match=r"nothing to train: .* is frozen .*, such as .*Unfreeze"):
        regularizer(cost, target=0.9).attach(model)
    gated.trainable = False
    compiled(gated)
    learner.begin(100)
    assert "frozen (trainable=False) after attach()" in caplog.text


def test_gamma_refuses_a_budget_that_its_groups_cannot_reach() -> None:
    model = half_normed()
    with pytest.raises(BudgetError, match="13 channels in the 2 groups"):
        Gamma(flops(model), target=0.05).attach(model)


def test_reading_before_attaching_is_refused() -> None:
    with pytest.raises(UsageError, match="attach"):
        LogisticSigmoid(flops(network()), strength=1.0).widths()


# ---- training -----------------------------------------------------------------------------------------------------


@ALL
def test_a_budget_is_met_and_logged(regularizer, digits) -> None:
    images, labels = digits
    keras.utils.set_random_seed(0)
    model = network(norm=regularizer is not GroupLasso)
    cost = latency(model)
    options = {"seed": 0} if regularizer is LogisticSigmoid else {}
    learner = regularizer(cost, target=0.5, **options)
    gated = compiled(learner.attach(model), 1e-2)
    history = gated.fit(images[:512], labels[:512], epochs=3, callbacks=learner.callbacks(), verbose=0).history
    assert {"latency_ms", "channels", "strength"} <= set(history)
    assert history["latency_ms"][-1] == pytest.approx(cost.at(learner.widths()))
    assert any(strength != 1.0 for strength in history["strength"]), "nobody steered"
    structure = learner.structure()
    widths = structure.widths(cost.graph)
    assert cost.at(widths) <= 0.5 * cost.at()
    assert structure.provenance["cost_after"] == pytest.approx(cost.at(widths))
    json.dumps(structure.to_json())
    slim, wide = shrink(gated, structure), masked(gated, structure)
    assert np.array(slim(images[:8])) == pytest.approx(np.array(wide(images[:8])), abs=1e-4)


def test_where_training_ends_far_from_its_budget_channels_are_weighed_against_what_they_cost() -> None:
    image = keras.Input((8, 8, 1))
    dear, cheap = (
        layers.GlobalAveragePooling2D()(layers.BatchNormalization()(layers.Conv2D(16, 3, stride, "same")(image)))
        for stride in (1, 2)
    )
    model = keras.Model(image, layers.Dense(4)(layers.Concatenate()([dear, cheap])))
    cost = flops(model)  # a channel of the first group costs 3.6 times one of the second
    learner = Gamma(cost, target=0.5)
    learner.attach(model)
    openness = np.repeat([0.9, 0.8], 16)
    learner.openness = lambda: openness
    assert fit(cost, openness, 0.5 * cost.at()).tolist()[1] <= 4
    found = learner.structure()
    widths = found.widths(cost.graph)
    assert widths[1] >= 10
    assert widths[0] >= 5
    assert 0.97 * 0.5 * cost.at() <= cost.at(widths) <= 0.5 * cost.at()
    openness[6:16] = learner.threshold / 2  # training closed these, and came near
    assert learner.structure().widths(cost.graph).tolist() == fit(cost, openness, 0.5 * cost.at()).tolist()


def test_logistic_sigmoid_holds_its_budget_by_itself(digits) -> None:
    images, labels = digits
    keras.utils.set_random_seed(0)
    model = network()
    cost = flops(model)
    learner = LogisticSigmoid(cost, target=0.5, seed=0)
    gated = compiled(learner.attach(model), 2e-3)
    gated.fit(images[:1024], labels[:1024], epochs=6, callbacks=learner.callbacks(), verbose=0)
    assert cost.at(learner.widths()) / cost.at() == pytest.approx(0.5, abs=0.1)
    recalibrate_batch_norm(gated, [images[:256]])
    assert gated.evaluate(images[:256], labels[:256], verbose=0, return_dict=True)["accuracy"] > 0.5


def test_too_few_steps_for_weights_to_close_are_warned_of(digits, caplog) -> None:
    images, labels = digits
    model = network()
    learner = Gamma(flops(model), target=0.5)
    gated = compiled(learner.attach(model), eager=True)
    gated.fit(images[:32], labels[:32], callbacks=learner.callbacks(), verbose=0)
    assert "Train for 2000 steps or more" in caplog.text


@pytest.mark.parametrize("scaled", [False, True], ids=["plain", "loss scaled"])
def test_a_warm_up_is_judged_by_the_largest_rate_ahead(scaled, caplog) -> None:
    model = network()
    learner = Gamma(flops(model), target=0.5)
    gated = learner.attach(model)

    def begin(steps: int, top: float, warmup: int = 10) -> str:
        rate = keras.optimizers.schedules.CosineDecay(0.0, steps, warmup_target=top or None, warmup_steps=warmup)
        optimizer = keras.optimizers.Adam(rate)
        gated.compile(keras.optimizers.LossScaleOptimizer(optimizer) if scaled else optimizer, "mse")
        caplog.clear()
        learner.begin(steps)
        return caplog.text

    assert begin(4000, 1e-3) == ""
    assert "learning rate of up to 0.001 close 0.1 at most" in begin(100, 1e-3)
    assert "Train for 2000 steps or more" in begin(100, 1e-3)
    assert "close 0 at most" in begin(100, 0.0) and "Train at a higher rate" in begin(100, 0.0)


def test_a_constant_strength_stays(digits) -> None:
    images, labels = digits
    model = network()
    learner = LogisticSigmoid(ParamsCost(ChannelGraph.from_model(model)), strength=0.7)
    gated = compiled(learner.attach(model), eager=True)
    history = gated.fit(images[:128], labels[:128], epochs=2, callbacks=learner.callbacks(), verbose=0).history
    assert history["strength"] == pytest.approx([0.7, 0.7])
    assert "parameters" in history
    assert learner.structure().widths(learner.cost.graph).tolist() == learner.widths().tolist()


def test_a_second_fit_starts_from_where_the_first_ended(digits) -> None:
    images, labels = digits
    model = network()
    learner = LogisticSigmoid(flops(model), target=0.5)
    gated = compiled(learner.attach(model), eager=True)
    gated.get_layer("gates").raw.assign(np.where(np.arange(48) % 2, 0.1, -0.1))
    share = learner.cost.at(learner.widths()) / learner.initial
    (callback,) = learner.callbacks()
    gated.fit(images[:64], labels[:64], callbacks=[callback], verbose=0)
    assert callback.control.origin == pytest.approx(share)
    assert callback.control.reference(0.3) == pytest.approx((share + 0.5) / 2)


# ---- saving and loading -------------------------------------------------------------------------------------------


def test_a_gated_model_loads_and_trains_on(digits, tmp_path) -> None:
    images, labels = digits
    model = network()
    cost = latency(model)
    learner = LogisticSigmoid(cost, strength=1.0)
    gated = learner.attach(model)
    gated.get_layer("gates").raw.assign(np.linspace(-0.2, 0.2, 48))
    gated.save(tmp_path / "gated.keras")
    loaded = keras.models.load_model(tmp_path / "gated.keras")
    assert np.array(loaded(images[:4])) == pytest.approx(np.array(gated(images[:4])), abs=1e-5)
    assert charged(loaded) == pytest.approx(charged(gated), rel=1e-6)
    resumed = LogisticSigmoid(cost, target=0.5)
    resumed.bind(loaded)
    assert resumed.widths().tolist() == learner.widths().tolist()
    compiled(loaded, eager=True).fit(images[:64], labels[:64], callbacks=resumed.callbacks(), verbose=0)


@pytest.mark.parametrize("regularizer", [Gamma, GroupLasso])
def test_a_loaded_penalty_on_weights_has_to_be_bound_to_train(regularizer, digits, tmp_path) -> None:
    images, labels = digits
    model = network(norm=regularizer is Gamma)
    learner = regularizer(flops(model), strength=1.0)
    gated = learner.attach(model)
    gated.save(tmp_path / "gated.keras")
    loaded = keras.models.load_model(tmp_path / "gated.keras")
    assert np.array(loaded(images[:4])) == pytest.approx(np.array(gated(images[:4])), abs=1e-5)
    with pytest.raises(UsageError, match=r"regularizer\.bind\(model\)"):
        loaded(images[:4], training=True)
    resumed = regularizer(learner.cost, strength=1.0)
    resumed.bind(loaded)
    assert charged(loaded) == pytest.approx(charged(gated), rel=1e-6)
    compiled(loaded, eager=True).fit(images[:64], labels[:64], verbose=0)
    with pytest.raises(UsageError, match="no layer 'penalty'"):
        resumed.bind(model)


@ALL
def test_a_regularizer_that_takes_up_a_model_charges_its_own_strength(regularizer, tmp_path) -> None:
    model = network(norm=regularizer is not GroupLasso)
    cost = flops(model)
    gated = regularizer(cost, strength=1.0).attach(model)
    regularizer(cost, strength=7.0).bind(gated)
    assert charged(gated, 7.0) == pytest.approx(charged(regularizer(cost, strength=1.0).attach(model)), rel=1e-5)
    steered = regularizer(cost, target=0.5)
    steered.bind(gated)
    assert steered.strength == 7.0
    automatic = regularizer(cost, strength="auto")
    automatic.bind(gated)
    assert automatic.strength == 7.0


@ALL
def test_a_regularizer_takes_up_no_model_of_another_graph_price_or_depth(regularizer) -> None:
    model = branched()
    cost, in_ms = flops(model), latency(model)
    gated = regularizer(cost, strength=1.0).attach(model)
    with pytest.raises(StructureError, match="made for another model"):
        regularizer(flops(network(norm=regularizer is not GroupLasso)), strength=1.0).bind(gated)
    with pytest.raises(UsageError, match="another price than this regularizer's in ms.*`paid=`"):
        regularizer(in_ms, strength=1.0).bind(gated)
    with pytest.raises(UsageError, match="attached with depth=False.*depth=True"):
        regularizer(cost, strength=1.0, depth=True).bind(gated)
    reader = regularizer(in_ms, target_ms=0.5 * in_ms.at(), paid=cost)
    reader.bind(gated)
    assert in_ms.at(reader.structure().widths(cost.graph)) <= 0.5 * in_ms.at()


# ---- control and batch norm ---------------------------------------------------------------------------------------


def simulate(control: BudgetControl, steps: int, speed: float) -> list[float]:
    """A plant like Adam on logits: widths close at a speed that saturates in the strength, and never reopen."""
    logits = np.linspace(1.5, 3.5, 100)
    worth = np.random.default_rng(0).permutation(np.linspace(0.05, 1.5, 100))
    shares = []
    for step in range(steps):
        share = float((logits > 0).mean())
        shares.append(share)
        if step % 10 == 0:
            strength = control.update(step / steps, share)
        logits = logits + speed * np.tanh(worth - strength)
    return shares


@pytest.mark.parametrize("steps", [200, 600, 2000])
@pytest.mark.parametrize("target", [0.3, 0.5, 0.8])
def test_control_brings_a_saturating_plant_to_its_target(steps: int, target: float) -> None:
    shares = simulate(BudgetControl(target), steps, speed=0.03)
    assert shares[-1] == pytest.approx(target, abs=0.1)


def test_control_does_not_wind_up_at_its_cap() -> None:
    control = BudgetControl(0.5, cap=5.0)
    for step in range(100):
        assert control.update(step / 100, 1.0) <= 5.0
    assert control.integral <= 5.0
    assert control.update(1.0, 0.3) < 5.0


def test_recalibration_takes_the_statistics_of_the_data() -> None:
    model = network()
    images = np.random.default_rng(0).normal(3, 2, size=(256, 8, 8, 1)).astype("float32")
    recalibrate_batch_norm(model, [images[:128], images[128:]])
    norms = [layer for layer in model.layers if isinstance(layer, layers.BatchNormalization)]
    for norm in norms:
        out = np.array(keras.Model(model.input, norm.output)(images))
        assert out.mean((0, 1, 2)) == pytest.approx(np.zeros(out.shape[-1]), abs=1e-3)
        assert out.std((0, 1, 2)) == pytest.approx(np.ones(out.shape[-1]), abs=0.05)


def assert_normal(*calls) -> None:
    """All channels of what a norm made, over all its calls, have mean 0 and deviation 1."""
    made = np.concatenate([np.array(call).reshape(-1, call.shape[-1]) for call in calls])
    assert made.mean(0) == pytest.approx(np.zeros(made.shape[-1]), abs=2e-3)
    assert made.std(0) == pytest.approx(np.ones(made.shape[-1]), abs=0.05)


IMAGES = np.random.default_rng(0).normal(3, 2, size=(64, 8, 8, 1)).astype("float32")


def test_recalibration_pools_the_calls_of_a_shared_norm() -> None:
    image = keras.Input((8, 8, 1))
    norm = layers.BatchNormalization()
    one, two = (norm(layers.Conv2D(4, 3)(layers.Rescaling(scale)(image))) for scale in (1.0, 5.0))
    model = keras.Model(image, [one, two])
    recalibrate_batch_norm(model, IMAGES)
    assert_normal(*model(IMAGES))


@pytest.mark.parametrize("sequential", [False, True])
def test_recalibration_reaches_norms_in_nested_models(sequential) -> None:
    inside = keras.Sequential([keras.Input((6, 6, 4)), layers.BatchNormalization(), layers.ReLU()])
    nested_image = keras.Input((6, 6, 4))
    nested = keras.Model(nested_image, layers.BatchNormalization()(inside(nested_image)))
    if sequential:
        model = keras.Sequential([keras.Input((8, 8, 1)), layers.Conv2D(4, 3), nested])
    else:
        image = keras.Input((8, 8, 1))
        model = keras.Model(image, nested(layers.Conv2D(4, 3)(image)))
    recalibrate_batch_norm(model, [IMAGES])
    assert_normal(model(IMAGES))
    conv = model.layers[-2]
    assert_normal(inside.layers[0](conv(IMAGES)))


def test_norms_that_recalibration_cannot_reach_are_named(caplog) -> None:
    @keras.saving.register_keras_serializable(package="test")
    class Block(layers.Layer):
        def __init__(self, **options):
            super().__init__(**options)
            self.norm = layers.BatchNormalization(name="hidden")

        def build(self, shape):
            self.norm.build(shape)

        def call(self, x):
            return self.norm(x)

        def compute_output_shape(self, shape):
            return shape

    image = keras.Input((8, 8, 1))
    model = keras.Model(image, layers.BatchNormalization(name="seen")(Block()(image)))
    recalibrate_batch_norm(model, [IMAGES])
    assert "whose call() is Python code: hidden." in caplog.text
    assert_normal(model(IMAGES))


# ---- depth --------------------------------------------------------------------------------------------------------


def branched():
    """A stem and two residual branches, each with a group of its own."""
    keras.utils.clear_session()
    image = keras.Input((8, 8, 1), name="image")
    x = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(16, 3, padding="same", name="stem")(image)))
    for name in "ab":
        y = layers.Conv2D(16, 3, padding="same", use_bias=False, name=f"{name}_in")(x)
        y = layers.ReLU()(layers.BatchNormalization(name=f"{name}_norm")(y))
        y = layers.Conv2D(16, 3, padding="same", name=f"{name}_out")(y)
        x = layers.Add(name=f"{name}_add")([x, y])
    return keras.Model(image, layers.Dense(10, name="head")(layers.GlobalAveragePooling2D()(x)))


def close(regularizer, gated, name: str) -> None:
    """Closes all channels of one group, by hand."""
    graph = regularizer.cost.graph
    if isinstance(regularizer, LogisticSigmoid):
        raw = gated.get_layer("gates").raw
        start = graph.offsets[[group.name for group in graph.groups].index(name)]
        raw.assign(np.where((np.arange(graph.slots) - start) // 16 == 0, -1.0, np.asarray(raw)))
    elif isinstance(regularizer, Gamma):
        gated.get_layer(name.replace("_in", "_norm")).gamma.assign(np.zeros(16))
    else:
        gated.get_layer(name).kernel.assign(np.zeros((3, 3, 16, 16)))


@ALL
@pytest.mark.parametrize("depth", [True, False])
def test_a_branch_that_closed_leaves_the_network_with_depth_alone(regularizer, depth) -> None:
    model = branched()
    options = {"group": "max"} if regularizer is not LogisticSigmoid else {}
    reg = regularizer(flops(model), strength=1.0, depth=depth, **options)
    gated = reg.attach(model)
    close(reg, gated, "a_in")
    structure = reg.structure()
    assert len(structure.kept["a_in"]) == (0 if depth else 1)
    slim = shrink(gated, structure)
    assert ("a_out" in {layer.name for layer in slim.layers}) is not depth
    assert reg.cost.at(structure.widths(reg.cost.graph)) == flops(slim).at()
    if regularizer is LogisticSigmoid:  # the gates close what the slim model leaves out
        images = np.random.default_rng(0).normal(size=(4, 8, 8, 1)).astype("float32")
        assert np.allclose(gated(images), slim(images), atol=1e-5)


def test_a_budget_below_what_widths_alone_allow_is_met_by_depth() -> None:
    model = branched()
    cost = flops(model)
    lowest = cost.at(np.ones(len(cost.graph.groups)))
    branchless = cost.at([16 if group.name == "stem" else 0 for group in cost.graph.groups])
    assert branchless < cost.at([16, 1, 1])
    with pytest.raises(BudgetError):
        LogisticSigmoid(cost, target=0.9 * lowest / cost.at())
    reg = LogisticSigmoid(cost, target=0.9 * lowest / cost.at(), depth=True)
    reg.attach(model)
    assert cost.at(reg.structure().widths(cost.graph)) <= 0.9 * lowest


def test_depth_survives_saving(tmp_path) -> None:
    model = branched()
    reg = LogisticSigmoid(flops(model), strength=1.0, depth=True)
    gated = reg.attach(model)
    close(reg, gated, "b_in")
    gated.save(tmp_path / "gated.keras")
    loaded = keras.models.load_model(tmp_path / "gated.keras", compile=False)
    again = LogisticSigmoid(flops(model), strength=1.0, depth=True)
    again.bind(loaded)
    assert again.structure().kept == reg.structure().kept
    images = np.random.default_rng(0).normal(size=(4, 8, 8, 1)).astype("float32")
    assert np.allclose(gated(images), loaded(images), atol=1e-6)
