"""The regularizers on the backend that KERAS_BACKEND names: TensorFlow here, JAX and PyTorch under scripts/test --full.

What needs a process of its own (loading where nothing was trained, two devices, another backend) is a function of this
file that such a process calls; it returns JSON values.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

from latency_lab.cost import FlopsCost, LatencyCost, linearised_loss, worst_of
from latency_lab.cost.formula import formula_from_json
from latency_lab.errors import UsageError
from latency_lab.gates import ChannelMask, Gates, MaskedReader, masked
from latency_lab.graph import ChannelGraph
from latency_lab.profiles.correction import NetworkCorrection
from latency_lab.shrink import shrink
from latency_lab.structure import Structure
from regularizers import Gamma, GroupLasso, LogisticSigmoid, recalibrate_batch_norm
from regularizers.openness import weight_size
from tests.unit.cost_nets import StepProfile, residual_net

ROOT = Path(__file__).parents[2]
BACKEND = keras.backend.backend()
REGULARIZERS = {kind.__name__: kind for kind in (LogisticSigmoid, Gamma, GroupLasso)}
OTHERS = {"jax": ROOT / ".venv-jax/bin/python", "torch": ROOT / ".venv-torch/bin/python"}
on_tensorflow = pytest.mark.skipif(BACKEND != "tensorflow", reason="TensorFlow's own")


def network(norm: bool = True) -> Any:
    """conv a, conv b + a (residual), depthwise, conv c, dense head."""
    keras.utils.set_random_seed(0)
    image = keras.Input((8, 8, 1), name="image")

    def finish(x: Any, name: str) -> Any:
        return layers.ReLU(name=f"{name}_relu")(layers.BatchNormalization(name=f"{name}_norm")(x) if norm else x)

    x = finish(layers.Conv2D(16, 3, padding="same", use_bias=not norm, name="a")(image), "a")
    y = layers.Conv2D(16, 3, padding="same", use_bias=not norm, name="b")(x)
    y = layers.BatchNormalization(name="b_norm")(y) if norm else y
    x = layers.ReLU(name="add_relu")(layers.Add(name="add")([x, y]))
    x = finish(layers.DepthwiseConv2D(3, strides=2, padding="same", use_bias=not norm, name="dw")(x), "dw")
    x = finish(layers.Conv2D(32, 1, use_bias=not norm, name="c")(x), "c")
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(image, layers.Dense(4, name="head")(x), name="net")


def data(count: int = 512) -> tuple[Any, Any]:
    """Noisy stripes in one of four directions."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:8, :8]
    stripes = np.stack([np.sin(1.6 * (a * x + b * y)) for a, b in ((1, 0), (0, 1), (1, 1), (1, -1))])
    labels = rng.integers(4, size=count)
    return (stripes[labels] + rng.normal(0, 1, (count, 8, 8)))[..., None].astype("float32"), labels.astype("int32")


def flops(model: Any) -> FlopsCost:
    return FlopsCost(ChannelGraph.from_model(model))


CORRECTION = NetworkCorrection(c_ms_per_byte=1e-6, cached_bytes=2e3, alone_bytes=300.0, once=0.5)
"""Weights beyond the first cost a third of the network; of the dense head, at one position, 300 bytes count at most."""


def latency(model: Any) -> LatencyCost:
    return LatencyCost(ChannelGraph.from_model(model), StepProfile(CORRECTION))


def compiled(model: Any, optimizer: Any) -> Any:
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    return model


def outputs(model: Any, images: Any, **kwargs: Any) -> Any:
    return keras.ops.convert_to_numpy(keras.ops.cast(model(images, **kwargs), "float32"))


def learner_of(kind: str, cost: Any) -> Any:
    """A learner of half of the cost."""
    return REGULARIZERS[kind](cost, target=0.5, **({"seed": 1} if kind == "LogisticSigmoid" else {}))


def call_in_process(function: str, *args: Any, python: str | Path = sys.executable, **environ: str) -> Any:
    """What a function of this file returns in a new process, as JSON values."""
    call = f"{function}(*{[str(a) for a in args]!r})"
    code = f"import json; from tests.integration.test_backends import {function}; print(json.dumps({call}))"
    environ = {"KERAS_BACKEND": BACKEND, "PYTHONPATH": str(ROOT), **environ}
    done = subprocess.run(
        [str(python), "-c", code], cwd=ROOT, capture_output=True, text=True, env={**os.environ, **environ}, timeout=3000
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


# ---- the whole way ------------------------------------------------------------------------------------------------


def cost_of(kind: str, model: Any) -> Any:
    return latency(model) if kind == "Gamma" else flops(model)


def go_on(folder: str) -> dict[str, Any]:
    """Loads each gated model of a folder, trains on, shrinks, and says what came out."""
    images, labels = data()
    found = {}
    for path in sorted(Path(folder).glob("*.gated.keras")):
        kind = path.name.partition(".")[0]
        gated = keras.saving.load_model(path)
        learner = learner_of(kind, cost_of(kind, network(norm=kind != "GroupLasso")))
        learner.bind(gated)
        start = int(learner.widths().sum()), learner.strength, int(gated.optimizer.iterations)
        before = outputs(gated, images[:8])
        history = gated.fit(images, labels, 32, 3, callbacks=learner.callbacks(), verbose=0).history
        recalibrate_batch_norm(gated, [images[:256]])
        structure = learner.structure()
        slim = shrink(gated, structure)
        slim.save(path.with_name(f"{kind}.slim.keras"))
        wide, narrow = outputs(masked(gated, structure), images), outputs(slim, images)
        found[kind] = {
            "start": start,
            "before": before.tolist(),
            "history": {name: [float(value) for value in values] for name, values in history.items()},
            "provenance": dict(structure.provenance),
            "share": learner.cost.at(structure.widths(learner.cost.graph)) / learner.initial,
            "slim_share": cost_of(kind, slim).at() / learner.initial,
            "difference": float(np.abs(wide - narrow).max() / wide.std()),
            "accuracy": float((narrow.argmax(1) == labels).mean()),
        }
    return found


@pytest.fixture(scope="module")
def went_on(tmp_path_factory: Any) -> dict[str, Any]:
    """For each regularizer: trained here, saved in the middle, and what a new process made of it."""
    folder = tmp_path_factory.mktemp("gated")
    images, labels = data()
    saved: dict[str, Any] = {}
    for kind in REGULARIZERS:
        model = network(norm=kind != "GroupLasso")
        learner = learner_of(kind, cost_of(kind, model))
        gated = compiled(learner.attach(model), keras.optimizers.Adam(3e-3))
        gated.fit(images, labels, 32, 3, callbacks=learner.callbacks(), verbose=0)
        gated.save(folder / f"{kind}.gated.keras")
        saved[kind] = {
            "start": [int(learner.widths().sum()), learner.strength, int(gated.optimizer.iterations)],
            "before": outputs(gated, images[:8]),
        }
    return {"saved": saved, "found": call_in_process("go_on", folder)}


@pytest.mark.parametrize("kind", REGULARIZERS)
def test_training_goes_on_in_a_new_process_and_ends_in_a_smaller_network(kind: str, went_on: Any) -> None:
    saved, found = went_on["saved"][kind], went_on["found"][kind]
    assert found["start"] == pytest.approx(saved["start"])
    assert np.allclose(found["before"], saved["before"], atol=1e-4)
    assert found["start"][1] != 1.0, "nobody steered"
    assert found["history"]["latency_ms" if kind == "Gamma" else "flops"][-1] == found["provenance"]["cost_thresholded"]
    assert found["share"] <= 0.5
    assert found["share"] == pytest.approx(found["slim_share"])
    assert found["difference"] < 1e-4


def test_gates_reach_their_budget_by_training(went_on: Any) -> None:
    found = went_on["found"]["LogisticSigmoid"]
    provenance = found["provenance"]
    assert provenance["cost_thresholded"] / provenance["cost_before"] == pytest.approx(0.5, abs=0.15)
    assert found["accuracy"] > 0.5


def test_sizes_against_those_of_their_layer_reach_a_budget_by_training() -> None:
    images, labels = data()
    model = compiled(network(norm=False), keras.optimizers.Adam(1e-2))
    model.fit(images, labels, 64, 5, verbose=0)
    learner = GroupLasso(latency(model), target=0.5)
    gated = compiled(learner.attach(model), keras.optimizers.Adam(3e-3))
    kernel = keras.ops.convert_to_numpy(model.get_layer("c").kernel)
    typical = np.median(np.sqrt(np.mean(np.square(kernel), axis=(0, 1, 2))))
    assert gated.get_layer("openness").typical["c"] == pytest.approx(typical, rel=1e-5)
    gated.fit(images, labels, 32, 12, callbacks=learner.callbacks(), verbose=0)
    structure = learner.structure()
    assert learner.cost.at(learner.widths()) == pytest.approx(0.5 * learner.initial, rel=0.3), "by themselves"
    assert learner.cost.at(structure.widths(learner.cost.graph)) <= 0.5 * learner.initial
    assert (outputs(shrink(gated, structure), images).argmax(1) == labels).mean() > 0.6


def test_statistics_are_those_of_batches_in_tuples_and_in_lists() -> None:
    images, labels = data(64)
    pairs: list[Any] = [(images[:32], labels[:32]), (images[32:], labels[32:])]
    lists: Any = [list(pair) for pair in pairs]
    if BACKEND == "torch":
        import torch

        dataset = torch.utils.data.TensorDataset(torch.tensor(images), torch.tensor(labels))
        lists = torch.utils.data.DataLoader(dataset, batch_size=32)
    found = []
    for batches in (pairs, lists):
        recalibrate_batch_norm(model := network(), batches)
        found.append(keras.ops.convert_to_numpy(model.get_layer("c_norm").moving_variance))
    assert found[1] == pytest.approx(found[0], rel=1e-4)
    assert np.abs(found[0] - 1).min() > 1e-3, "as they began"


# ---- what the compiled step reads ---------------------------------------------------------------------------------


class Losses(keras.callbacks.Callback):
    """The loss of each batch of an epoch, out of the running means that are logged, and a call after each."""

    def __init__(self, then: Any = None) -> None:
        super().__init__()
        self.sums, self.then = [0.0], then

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.sums.append(float(logs["loss"]) * (batch + 1))
        if self.then:
            self.then(batch)

    @property
    def each(self) -> Any:
        return np.diff(self.sums)


def same_batch(times: int) -> tuple[Any, Any]:
    images, labels = data(16)
    return np.tile(images, (times, 1, 1, 1)), np.tile(labels, times)


def test_the_compiled_step_sees_each_new_strength() -> None:
    learner = Gamma(flops(network()), strength=1.0)
    charge = linearised_loss(learner.cost, [16, 32], [16, 32]) / learner.initial  # of scales that are all 1
    gated = compiled(learner.attach(network()), keras.optimizers.SGD(0.0))
    losses = Losses(lambda batch: learner.set_strength(2.0 + batch))
    gated.fit(*same_batch(4), 16, callbacks=[losses], shuffle=False, verbose=0)
    assert np.diff(losses.each) == pytest.approx([charge] * 3, rel=1e-3)
    assert learner.strength == 5.0
    learner.set_strength(10.0)
    later = Losses()
    gated.fit(*same_batch(1), 16, callbacks=[later], verbose=0)
    assert later.each[0] - losses.each[0] == pytest.approx(9 * charge, rel=1e-3)


def test_the_compiled_step_draws_anew_as_its_seed_says() -> None:
    learner = LogisticSigmoid(flops(network()), strength=0.0, seed=1)
    gated = compiled(learner.attach(network()), keras.optimizers.SGD(0.0))
    gated.get_layer("gates").raw.assign(np.full(48, -2.5 / 30))
    losses = Losses()
    gated.fit(*same_batch(3), 16, callbacks=[losses], shuffle=False, verbose=0)
    assert np.abs(np.diff(losses.each)).min() > 1e-4

    def draw(seed: int) -> Any:
        gates = Gates([64], initial=0.0, seed=seed)
        return [keras.ops.convert_to_numpy(gates(np.zeros(1), training=True)).round().tolist() for _ in range(2)]

    first, second = draw(1)
    assert first != second
    assert draw(1) == [first, second]
    assert draw(2)[0] != first


def test_a_budget_is_read_from_the_weights_of_the_last_step() -> None:
    learner = LogisticSigmoid(flops(network()), target=0.5, seed=0)
    gated = compiled(learner.attach(network()), keras.optimizers.SGD(1.0))
    seen = []
    gated.fit(*same_batch(3), 16, callbacks=[Losses(lambda batch: seen.append(learner.openness()))], verbose=0)
    assert np.abs(np.diff(seen, axis=0)).max(axis=1).min() > 0


@pytest.mark.parametrize("kind", ["Gamma", "GroupLasso"])
def test_a_reading_of_weights_is_what_the_last_step_began_with(kind: str) -> None:
    learner = learner_of(kind, flops(network()))
    gated = compiled(learner.attach(network()), keras.optimizers.SGD(0.1))
    now, latest = [learner.openness()], []

    def note(batch: int) -> None:
        now.append(learner.openness())
        latest.append(learner.latest_openness())

    gated.fit(*same_batch(3), 16, callbacks=[Losses(note)], verbose=0)
    assert np.array(latest) == pytest.approx(np.array(now[:-1]), rel=1e-5)
    assert np.abs(np.diff(latest, axis=0)).max(axis=1).min() > 0


def test_a_scale_of_zero_stays_where_nothing_but_its_price_moves_it() -> None:
    model = network()
    scales = model.get_layer("c_norm").gamma
    scales.assign(np.repeat([0.0, 1.0, -1.0], (8, 12, 12)))
    gated = Gamma(flops(model), strength=1.0).attach(model)
    gated.compile(keras.optimizers.SGD(1.0), lambda target, found: 0 * keras.ops.mean(found))
    gated.fit(*data(16), 16, verbose=0)
    moved = keras.ops.convert_to_numpy(gated.get_layer("c_norm").gamma) - keras.ops.convert_to_numpy(scales)
    assert not moved[:8].any()
    assert moved[8:20].max() < 0 < moved[20:].min()


class Sized(layers.Layer):
    """The sum of the sizes of a kernel's channels."""

    def __init__(self, kernel: Any, axes: tuple[int, ...], l1_fraction: float) -> None:
        super().__init__()
        self.start, self.axes, self.l1_fraction = kernel, axes, l1_fraction

    def build(self, input_shape: Any) -> None:
        self.kernel = self.add_weight(shape=self.start.shape, initializer="zeros")
        self.kernel.assign(self.start)

    def call(self, inputs: Any) -> Any:
        sizes = weight_size(keras.ops.cast(self.kernel, "float32"), self.axes, self.l1_fraction, keras.ops)
        return keras.ops.sum(sizes) + 0 * inputs


@pytest.mark.parametrize("l1_fraction", [0.0, 0.3])
@pytest.mark.parametrize(
    ("shape", "axes"),
    [((6, 4), (0,)), ((3, 3, 5, 4), (0, 1, 2)), ((3, 3, 4, 2), (0, 1)), ((3, 3, 4, 5), (0, 1, 3)), ((4, 5), (1,))],
    ids=["dense", "conv", "depthwise", "transposed", "last axis"],
)
def test_the_size_of_a_kernel_and_its_slope(shape: tuple[int, ...], axes: tuple[int, ...], l1_fraction: float) -> None:
    kernel = np.random.default_rng(0).normal(size=shape).astype("float32")
    closed = [0] * len(shape)  # a channel of zeros has a slope of 0
    kernel[tuple(slice(None) if axis in axes else place for axis, place in enumerate(closed))] = 0
    layer = Sized(kernel, axes, l1_fraction)
    model = keras.Sequential([keras.Input((1,)), layer])
    model.compile(keras.optimizers.SGD(1.0), lambda target, found: keras.ops.mean(found))
    size = weight_size(kernel, axes, l1_fraction)
    assert outputs(model, np.zeros((1, 1), "float32")) == pytest.approx(size.sum(), rel=1e-5)
    model.fit(np.zeros((1, 1), "float32"), np.zeros((1, 1), "float32"), verbose=0)
    slope = kernel - keras.ops.convert_to_numpy(layer.kernel)
    count = np.prod([shape[axis] for axis in axes])
    root = np.sqrt(np.mean(kernel**2, axis=axes, keepdims=True))
    with np.errstate(invalid="ignore"):
        expected = (1 - l1_fraction) * np.nan_to_num(kernel / root) + l1_fraction * np.sign(kernel)
    assert slope == pytest.approx(expected / count, abs=1e-5)


class Priced(layers.Layer):
    """What a formula says of some widths, and of what is added to them: a weight that starts at 0."""

    def __init__(self, formula: Any, widths: Any) -> None:
        super().__init__()
        self.formula, self.widths = formula_from_json(formula.to_json()), np.array(widths, np.float32)

    def build(self, input_shape: Any) -> None:
        self.more = self.add_weight(shape=self.widths.shape, initializer="zeros")

    def call(self, inputs: Any) -> Any:
        return self.formula.value(keras.ops.add(self.more, self.widths), keras.ops) + 0 * inputs


@pytest.mark.parametrize("widths", [(29.3, 40.6), (6.4, 40.6), (6.4, 5.7)], ids=["bounded", "memory", "cached"])
@pytest.mark.parametrize("kind", ["latency", "worst"])
def test_the_price_of_memory_and_its_slope(kind: str, widths: tuple[float, float]) -> None:
    """Of conv a and b, depthwise, conv c and a dense layer whose weights count up to a bound."""
    graph = residual_net()
    found = LatencyCost(graph, StepProfile(CORRECTION))
    cost = worst_of(found, 1.1 * LatencyCost(graph, StepProfile())) if kind == "worst" else found
    exact = np.array(widths, np.float32).astype(float)
    layer = Priced(cost.formula, exact)
    model = keras.Sequential([keras.Input((1,)), layer])
    model.compile(keras.optimizers.SGD(1.0), lambda target, found: keras.ops.mean(found))
    nothing = np.zeros((1, 1), "float32")
    assert outputs(model, nothing) == pytest.approx(cost.value(exact), rel=1e-5)
    model.fit(nothing, nothing, verbose=0)
    assert -keras.ops.convert_to_numpy(layer.more) == pytest.approx(cost.gradient(exact), rel=1e-4)
    slope = cost.gradient(keras.ops.convert_to_tensor(layer.widths), keras.ops)
    assert keras.ops.convert_to_numpy(slope) == pytest.approx(cost.gradient(exact), rel=1e-5)


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_a_price_is_a_float32_whatever_precision_keras_defaults_to(precision: str) -> None:
    cost = LatencyCost(residual_net(), StepProfile(CORRECTION))
    widths = keras.ops.convert_to_tensor(cost.graph.full_widths, "float32")
    keras.config.set_floatx(precision)
    try:
        found = cost.gradient(widths, keras.ops)
    finally:
        keras.config.set_floatx("float32")
    assert keras.ops.convert_to_numpy(found) == pytest.approx(cost.gradient(None), rel=1e-5)


class Trained(layers.Layer):
    """A mask that is a weight."""

    def build(self, input_shape: Any) -> None:
        self.mask = self.add_weight(shape=(4,), initializer=keras.initializers.Constant([0.0, 1.0, 0.5, 1.0]))

    def call(self, anchor: Any) -> Any:
        return keras.ops.convert_to_tensor(self.mask)

    def compute_output_spec(self, anchor: Any) -> Any:
        return keras.KerasTensor((4,), "float32")


@pytest.mark.parametrize("kind", ["Conv1D", "Dense"])
def test_a_mask_on_a_kernel_and_one_on_its_input_learn_alike(kind: str) -> None:
    slots = [2, -1, 0, 1, 3]
    rng = np.random.default_rng(0)
    x, target = (rng.normal(size=(8, 7, channels)).astype("float32") for channels in (5, 3))
    learned = []
    for on_kernel in (True, False):
        keras.utils.set_random_seed(0)
        layer = layers.Conv1D(3, 3, padding="same") if kind == "Conv1D" else layers.Dense(3)
        tensor, trained = keras.Input((7, 5)), Trained()
        mask = trained(tensor)
        found = MaskedReader(layer, slots)([tensor, mask]) if on_kernel else layer(ChannelMask(slots)([tensor, mask]))
        model = keras.Model(tensor, found)
        model.compile(keras.optimizers.SGD(0.1), "mse")
        model.fit(x, target, 8, 3, verbose=0)
        learned.append([keras.ops.convert_to_numpy(w) for w in (layer.kernel, layer.bias, trained.mask)])
    for one, other in zip(*learned, strict=True):
        assert one == pytest.approx(other, abs=1e-6)
    assert np.abs(learned[0][2] - [0.0, 1.0, 0.5, 1.0]).min() > 1e-4, "the mask learned nothing"


# ---- a training that was cut off ----------------------------------------------------------------------------------


class CutError(Exception):
    """What ends a training."""


def steered(folder: Path, cut: bool = False, loaded: Any = None) -> tuple[Any, list[list[float]]]:
    """Four epochs to half of the cost, with all that is written down; cut off as the third begins, or gone on with.

    Returns:
        the gated model, and the state of the control as each epoch begins.
    """
    model = network()
    learner = LogisticSigmoid(flops(model), target=0.5, strength="auto", seed=1)
    if loaded is None:
        gated = compiled(learner.attach(model), keras.optimizers.AdamW(3e-3))
    else:
        learner.bind(gated := loaded)
    states: list[list[float]] = []

    def note(epoch: int, logs: Any = None) -> None:
        states.append([epoch, *learner.control_state(), learner.strength])
        if cut and epoch == 2:
            raise CutError

    watch = keras.callbacks.LambdaCallback(on_epoch_begin=note)
    backup = [] if loaded else [keras.callbacks.BackupAndRestore(str(folder / "backup"))]
    callbacks = [*learner.callbacks(structures=folder / "structures.jsonl", every=8), *backup, watch]
    options = {"epochs": 4, "initial_epoch": 2 if loaded else 0, "callbacks": callbacks, "verbose": 0}
    try:
        gated.fit(*data(256), 32, **options)
    except CutError:
        pass
    else:
        assert [record["step"] for record in learner.history()] == list(range(17, 33))
        assert learner.history()[-1]["strength"] == pytest.approx(learner.strength)
    return gated, states


@pytest.mark.parametrize("how", ["saved", "backup"])
def test_a_training_that_was_cut_off_goes_on(how: str, tmp_path: Path) -> None:
    cut, before = steered(tmp_path, cut=True)
    assert before[-1][1] > 0, "no unit was measured"
    assert before[-1][3] == pytest.approx(0.5, abs=0.1)
    cut.save(tmp_path / "cut.keras")
    loaded = keras.saving.load_model(tmp_path / "cut.keras") if how == "saved" else None
    again, after = steered(tmp_path, loaded=loaded)
    assert after[0] == pytest.approx(before[-1], rel=1e-5)
    assert [state[0] for state in after] == [2, 3]
    assert int(again.optimizer.iterations) == 32
    lines = [json.loads(line) for line in (tmp_path / "structures.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [8, 16, 24, 32]
    share = lines[-1]["structure"]["provenance"]["cost_after"] / lines[-1]["structure"]["provenance"]["cost_before"]
    assert 0.485 <= share <= 0.5


# ---- mixed precision ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "policy"),
    [("LogisticSigmoid", "mixed_float16"), ("LogisticSigmoid", "mixed_bfloat16"), ("Gamma", "mixed_float16")],
)
def test_mixed_precision_trains_to_a_budget(kind: str, policy: str) -> None:
    if BACKEND == "torch" and policy == "mixed_float16":
        pytest.skip("PyTorch has no float16 convolutions on the CPU")
    images, labels = data()
    keras.config.set_dtype_policy(policy)
    try:
        learner = learner_of(kind, flops(network()))
        gated = compiled(learner.attach(network()), keras.optimizers.Adam(1e-2))
        history = gated.fit(images, labels, 32, 3, callbacks=learner.callbacks(), verbose=0).history
        structure = learner.structure()
        wide, narrow = (outputs(m, images[:64]) for m in (masked(gated, structure), shrink(gated, structure)))
    finally:
        keras.config.set_dtype_policy("float32")
    scaled = isinstance(gated.optimizer, keras.optimizers.LossScaleOptimizer)
    assert scaled == (policy == "mixed_float16")
    assert np.isfinite(history["loss"]).all()
    assert history["accuracy"][-1] > 0.5
    assert learner.cost.at(structure.widths(learner.cost.graph)) <= 0.5 * learner.initial
    if kind == "LogisticSigmoid":
        assert learner.cost.at(learner.widths()) < 0.75 * learner.initial, "the gates did not close by themselves"
    assert np.abs(wide - narrow).max() < 0.05 * wide.std()


# ---- several devices ----------------------------------------------------------------------------------------------


def one_step() -> tuple[dict[str, Any], Any]:
    """One step of SGD on one batch: its loss, and the logits after it; and the model.

    Without batch norm, whose statistics are those of the images of one device.
    """
    model = network(norm=False)
    learner = LogisticSigmoid(flops(model), strength=2.0, seed=3)
    gated = compiled(learner.attach(model), keras.optimizers.SGD(0.1))
    gated.get_layer("gates").raw.assign(np.linspace(-0.15, -0.05, 48))
    losses = Losses()
    gated.fit(*data(16), 16, callbacks=[losses], shuffle=False, verbose=0)
    return {"loss": float(losses.each[0]), "logits": learner.openness().tolist()}, gated


def to_budget() -> float:
    """Share of the cost that gates are left with by training to half of it."""
    learner = LogisticSigmoid(flops(network()), target=0.5, seed=3)
    gated = compiled(learner.attach(network()), keras.optimizers.Adam(3e-3))
    gated.fit(*data(), 32, 5, callbacks=learner.callbacks(), verbose=0)
    return float(learner.cost.at(learner.widths()) / learner.initial)


def mirrored() -> dict[str, Any]:
    """One step on one device, and on two that MirroredStrategy feeds; what the two draw; a budget on two."""
    import tensorflow as tf

    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    alone, _ = one_step()
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    with strategy.scope():
        both, gated = one_step()
        share = to_budget()
    gates = gated.get_layer("gates")

    @tf.function
    def draw() -> Any:
        return strategy.run(lambda: gates(tf.zeros((1,)), training=True)[0])

    masks = [[mask.numpy().round().tolist() for mask in draw().values] for _ in range(3)]
    devices = strategy.num_replicas_in_sync
    return {"alone": alone, "both": both, "devices": devices, "masks": masks, "share": share}


def data_parallel() -> dict[str, Any]:
    """One step on one device, and on two that share a batch; a budget on two."""
    import jax

    alone, _ = one_step()
    keras.distribution.set_distribution(keras.distribution.DataParallel(devices=jax.devices()))
    both, gated = one_step()
    devices = len(gated.get_layer("gates").raw.value.sharding.device_set)
    return {"alone": alone, "both": both, "devices": devices, "share": to_budget()}


def check_devices(found: dict[str, Any]) -> None:
    """The loss tells of a penalty counted twice and of masks that differ; the logits of gradients counted twice."""
    assert found["devices"] == 2
    assert found["both"]["loss"] == pytest.approx(found["alone"]["loss"], rel=1e-5)
    assert found["both"]["logits"] == pytest.approx(found["alone"]["logits"], abs=1e-4)
    assert found["share"] == pytest.approx(0.5, abs=0.15)


@on_tensorflow
def test_mirrored_devices_pay_once_and_draw_alike() -> None:
    found = call_in_process("mirrored")
    check_devices(found)
    assert all(one == other for one, other in found["masks"])
    assert found["masks"][0] != found["masks"][1]


@pytest.mark.skipif(BACKEND != "jax", reason="keras.distribution is JAX's")
def test_data_parallel_devices_pay_once_and_draw_alike() -> None:
    check_devices(call_in_process("data_parallel", XLA_FLAGS="--xla_force_host_platform_device_count=2"))


# ---- one backend beside another -----------------------------------------------------------------------------------


@pytest.mark.skipif(BACKEND == "tensorflow", reason="TensorFlow converts")
@pytest.mark.parametrize("name", ["to_tflite", "to_onnx", "to_graphdef"])
def test_conversion_says_which_backend_it_needs(name: str) -> None:
    from latency_lab import convert

    with pytest.raises(UsageError, match=rf"KERAS_BACKEND=tensorflow.*{BACKEND}|{BACKEND}.*KERAS_BACKEND=tensorflow"):
        getattr(convert, name)(network())


def read_and_train(folder: str) -> dict[str, Any]:
    """Reads and shrinks the model of a folder by the structure there, trains it anew, and says what came out."""
    where = Path(folder)
    model = keras.saving.load_model(where / "model.keras")
    structure = Structure.load(where / "structure.json")
    images, labels = data()
    slim = shrink(model, structure)
    slim.save(where / f"slim-{BACKEND}.keras")
    kept = {}
    for kind in ("LogisticSigmoid", "Gamma"):
        learner = learner_of(kind, flops(model))
        gated = compiled(learner.attach(model), keras.optimizers.Adam(5e-3))
        gated.fit(images, labels, 32, 8, callbacks=learner.callbacks(), shuffle=False, verbose=0)
        kept[kind] = learner.structure().widths(learner.cost.graph).tolist()
    digest = ChannelGraph.from_model(model).digest
    return {"digest": digest, "outputs": outputs(slim, images[:8]).tolist(), "kept": kept}


@pytest.mark.full
@on_tensorflow
@pytest.mark.parametrize("backend", OTHERS)
def test_backends_read_and_narrow_alike_and_tensorflow_converts(backend: str, tmp_path: Path) -> None:
    if not OTHERS[backend].exists():
        pytest.skip(f"there is no {OTHERS[backend]}; scripts/test --full makes it")
    from latency_lab.convert import to_tflite

    model = network()
    rng = np.random.default_rng(1)
    graph = ChannelGraph.from_model(model)
    model.save(tmp_path / "model.keras")
    Structure.from_mask(graph, rng.integers(2, size=graph.slots)).save(tmp_path / "structure.json")
    here = read_and_train(str(tmp_path))
    there = call_in_process("read_and_train", tmp_path, python=OTHERS[backend], KERAS_BACKEND=backend)
    assert there["digest"] == here["digest"]
    assert np.allclose(there["outputs"], here["outputs"], atol=1e-4)
    for kind, widths in here["kept"].items():
        assert sum(there["kept"][kind]) == pytest.approx(sum(widths), rel=0.1)
    slim = keras.saving.load_model(tmp_path / f"slim-{backend}.keras")
    assert np.allclose(outputs(slim, data()[0][:8]), here["outputs"], atol=1e-4)
    assert to_tflite(slim)[4:8] == b"TFL3"
