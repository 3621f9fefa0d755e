"""A budget held by any optimizer, a training that goes on where it was cut off, and what is written down meanwhile."""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest

from latency_lab.cost import FlopsCost
from latency_lab.errors import BudgetError, UsageError
from latency_lab.graph import ChannelGraph
from latency_lab.structure import Structure
from regularizers import BudgetControl, Gamma, LogisticSigmoid

keras = pytest.importorskip("keras")
layers = keras.layers
RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.normal(size=(256, 8, 8, 1)).astype("float32")
LABELS = RANDOM.integers(0, 10, size=256)
CROSS_ENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def network():
    """Three convs and a head."""
    keras.utils.clear_session()
    keras.utils.set_random_seed(0)
    image = x = keras.Input((8, 8, 1), name="image")
    for name, width in (("a", 24), ("b", 32), ("c", 48)):
        x = layers.Conv2D(width, 3, padding="same", use_bias=False, name=name)(x)
        x = layers.ReLU()(layers.BatchNormalization(name=f"{name}_norm")(x))
    return keras.Model(image, layers.Dense(10, name="head")(layers.GlobalAveragePooling2D()(x)))


def flops(model) -> FlopsCost:
    return FlopsCost(ChannelGraph.from_model(model))


def compiled(model, optimizer=None, scale: float = 1.0, eager: bool = True):
    model.compile(
        optimizer or keras.optimizers.SGD(0.0),
        lambda y, out: scale * CROSS_ENTROPY(y, out),
        run_eagerly=eager,
    )
    return model


def fit(model, callbacks, steps: int = 4, **options):
    """Epochs of so many batches of 16."""
    return model.fit(
        IMAGES[: 16 * steps], LABELS[: 16 * steps], batch_size=16, callbacks=callbacks, verbose=0, **options
    )


# ---- the control, without a network -------------------------------------------------------------------------------


def adam(decay: float = 0.0):
    state = {"m": 0.0, "v": 0.0}

    def step(raw, gradient, t, rate):
        state["m"] = 0.9 * state["m"] + 0.1 * gradient
        state["v"] = 0.999 * state["v"] + 0.001 * gradient**2
        moved = state["m"] / (1 - 0.9**t) / (np.sqrt(state["v"] / (1 - 0.999**t)) + 1e-7)
        return raw * (1 - rate * decay) - rate * moved

    return step


def momentum():
    state = {"m": 0.0}

    def step(raw, gradient, t, rate):
        state["m"] = 0.9 * state["m"] - rate * gradient
        return raw + state["m"]

    return step


OPTIMIZERS = {
    "adam": (adam, 1e-3),
    "adamw": (lambda: adam(0.004), 1e-3),
    "fast adam": (adam, 5e-3),
    "momentum": (momentum, 1e-2),
    "fast momentum": (momentum, 1e-1),
}


def simulate(control: BudgetControl, make, rate: float, steps: int, noise: float) -> np.ndarray:
    """Gates that an optimizer moves by what channels cost and what they are worth, with the noise of a batch."""
    rng, step = np.random.default_rng(0), make()
    worth, price = rng.lognormal(size=200) / 200, rng.uniform(0.5, 1.5, 200)
    price /= price.sum()
    every, strength, shares = min(max(steps // 100, 1), 10), control.start, []
    raw = np.zeros(200)
    last = 2.5 + 30 * raw
    for t in range(1, steps + 1):
        z = 1 / (1 + np.exp(-np.clip(2.5 + 30 * raw, -50, 50)))
        slope = strength * price - worth + noise / 200 * rng.normal(size=200)
        raw = step(raw, 30 * z * (1 - z) * slope, t, rate)
        logits = 2.5 + 30 * raw
        shares.append(price[logits > 0].sum())
        if t % every == 0:
            ahead = logits + (logits - last) * min(LogisticSigmoid.horizon, steps - t) / every
            strength, last = control.update(t / steps, price[ahead > 0].sum()), logits
    return np.array(shares)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("steps", [200, 600, 2000])
@pytest.mark.parametrize("noise", [0.1, 1.0], ids=["large batch", "small batch"])
def test_control_holds_a_budget_whatever_moves_the_gates(name: str, steps: int, noise: float) -> None:
    make, rate = OPTIMIZERS[name]
    for target in (0.3, 0.5, 0.8):
        shares = simulate(BudgetControl(target), make, rate, steps, noise) / target
        assert shares.min() >= 0.9
        assert shares[-1] <= 1.15  # what is left is closed by projection


# ---- optimizers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        lambda: keras.optimizers.Adam(5e-3),
        lambda: keras.optimizers.AdamW(5e-3, weight_decay=0.1),
        lambda: keras.optimizers.SGD(1e-2, momentum=0.9),
    ],
    ids=["adam", "adamw", "momentum"],
)
def test_sixty_steps_of_any_optimizer_meet_the_budget(make) -> None:
    model = network()
    learner = LogisticSigmoid(flops(model), target=0.5, seed=0)
    gated = compiled(learner.attach(model), make(), eager=False)
    fit(gated, learner.callbacks(), steps=15, epochs=4)
    share = learner.cost.at(learner.widths()) / learner.initial
    assert 0.9 * 0.5 <= share < 1
    structure = learner.structure()
    assert 0.97 * 0.5 <= structure.provenance["cost_after"] / learner.initial <= 0.5


@pytest.mark.parametrize("regularizer", [LogisticSigmoid, Gamma])
@pytest.mark.parametrize("loaded", [False, True], ids=["fresh", "loaded"])
def test_weight_decay_moves_weights_but_no_gate(regularizer, loaded, tmp_path) -> None:
    model = network()
    learner = regularizer(flops(model), strength=1e-6)
    gated = learner.attach(model)
    optimizer = keras.optimizers.AdamW(1e-3, weight_decay=100.0)
    optimizer.exclude_from_weight_decay(var_list=[gated.get_layer("head").kernel])
    compiled(gated, optimizer)
    fit(gated, learner.callbacks(), steps=1)
    if loaded:  # its optimizer is built
        compiled(gated, keras.optimizers.AdamW(1e-3, weight_decay=100.0))
        gated.optimizer.build(gated.trainable_variables)
    gates = [gated.get_layer("gates").raw] if regularizer is LogisticSigmoid else [gated.get_layer("b_norm").gamma]
    gates[0].assign(np.full(gates[0].shape, 0.5))
    kernels = [gated.get_layer("b").kernel, gated.get_layer("head").kernel]
    before = [np.asarray(variable) for variable in (*gates, *kernels)]
    fit(gated, learner.callbacks(), steps=3)
    left = [
        np.abs(variable).sum() / np.abs(start).sum() for variable, start in zip((*gates, *kernels), before, strict=True)
    ]
    assert left[0] == pytest.approx(1, abs=0.01)  # three steps of at most 1e-3 from 0.5
    assert left[1] < 0.8  # decay takes a tenth a step
    assert (left[2] > 0.8) is not loaded  # what the user excluded


# ---- strength="auto" ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1.0, 1000.0])
def test_auto_charges_as_much_as_the_task_loses_at_first(scale: float) -> None:
    model = network()
    learner = LogisticSigmoid(flops(model), strength="auto", seed=0)
    gated = compiled(learner.attach(model), scale=scale)  # a learning rate of 0: the loss stays
    seen: list[float] = []
    spy = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: seen.append(logs["loss"]))
    fit(gated, [*learner.callbacks(), spy], steps=4, epochs=10)
    assert learner.strength == pytest.approx(seen[1])  # a twentieth of 40 steps; logs have the mean of an epoch
    assert learner.strength == pytest.approx(scale * np.log(10), rel=0.3)
    assert [record["strength"] for record in learner.history()] == pytest.approx(
        [learner.strength] * len(learner.history())
    )


def test_auto_is_the_unit_in_which_a_budget_is_steered() -> None:
    found = []
    for scale in (1.0, 1000.0):
        model = network()
        learner = LogisticSigmoid(flops(model), strength="auto", target=0.5, seed=0)
        gated = compiled(learner.attach(model), scale=scale)
        fit(gated, learner.callbacks(), steps=4, epochs=5)
        found.append([record["strength"] for record in learner.history()])
    assert found[1] == pytest.approx([1000 * strength for strength in found[0]], rel=1e-4)
    assert found[0][-1] > found[0][0] > 0


def test_auto_of_a_loss_that_is_no_number_says_so(caplog) -> None:
    model = network()
    learner = LogisticSigmoid(flops(model), strength="auto")
    fit(compiled(learner.attach(model), scale=0.0), learner.callbacks(), steps=2)
    assert "finite loss other than 0" in caplog.text
    assert learner.strength == 1.0


# ---- collapse -----------------------------------------------------------------------------------------------------


def test_a_collapse_is_logged_warned_of_once_and_in_the_structure(caplog) -> None:
    model = network()
    learner = LogisticSigmoid(flops(model), strength=1.0)
    gated = compiled(learner.attach(model))
    raw = np.zeros(104)
    raw[24 : 24 + 32] = -1.0
    gated.get_layer("gates").raw.assign(raw)
    assert learner.collapsed() == ["b"]
    with caplog.at_level(logging.WARNING):
        history = fit(gated, learner.callbacks(), epochs=3).history
    assert [record.message for record in caplog.records if "last channel" in record.message] == [
        "LogisticSigmoid: down to the last channel at step 1: b. The network may not get over it: aim higher, or lower "
        "the learning rate."
    ]
    assert history["collapsed"] == [1, 1, 1]
    assert learner.structure().provenance["collapsed"] == ["b"]


def test_a_training_that_diverged_has_no_structure() -> None:
    model = network()
    learner = LogisticSigmoid(flops(model), target=0.5)
    gated = learner.attach(model)
    raw = np.zeros(104)
    raw[3] = np.nan
    gated.get_layer("gates").raw.assign(raw)
    with pytest.raises(UsageError, match="Training diverged: the openness of 1 of 104 channels is NaN"):
        learner.structure()


def test_a_price_that_is_no_finite_number_is_refused() -> None:
    cost = flops(network())
    for factor in (np.nan, np.inf):
        with pytest.raises(UsageError, match="The cost in .* FLOPs is (nan|inf) at 1 of all channels"):
            LogisticSigmoid(cost, target=0.5, paid=factor * cost)


def test_a_budget_that_cannot_be_reached_is_refused_with_one_that_can() -> None:
    cost = flops(network())
    with pytest.raises(BudgetError, match=r"a share of \S+\)") as refusal:
        LogisticSigmoid(cost, target=1e-5)
    share = str(refusal.value).split("a share of ")[1].split(")")[0]
    assert LogisticSigmoid(cost, target=float(share)).budget >= cost.at(np.ones(3))


# ---- a training that was cut off ----------------------------------------------------------------------------------


class CutError(Exception):
    """What ends a training."""


def cut_at(epoch: int):
    def cut(now: int, logs=None) -> None:
        if now == epoch:
            raise CutError

    return keras.callbacks.LambdaCallback(on_epoch_begin=cut)


def state(clock) -> tuple[float, ...]:
    control, learner = clock.control, clock.regularizer
    return (control.origin, control.progress, control.integral, learner.strength, clock.step)


def spy_on(clock, into: list):
    """Notes the state as the first epoch begins."""
    return keras.callbacks.LambdaCallback(on_epoch_begin=lambda epoch, logs: into.append((epoch, *state(clock))))


def test_a_saved_model_goes_on_with_the_state_of_its_control(tmp_path) -> None:
    model = network()
    cost = flops(model)
    learner = LogisticSigmoid(cost, target=0.5)
    gated = learner.attach(model)
    gated.compile(keras.optimizers.SGD(0.01), CROSS_ENTROPY, run_eagerly=True)
    (clock,) = learner.callbacks()
    with pytest.raises(CutError):
        fit(gated, [clock, cut_at(2)], epochs=5)
    gated.save(tmp_path / "cut.keras")

    loaded = keras.models.load_model(tmp_path / "cut.keras")
    again = LogisticSigmoid(cost, target=0.5)
    again.bind(loaded)
    (resumed,) = again.callbacks()
    seen: list = []
    fit(loaded, [resumed, spy_on(resumed, seen)], epochs=5, initial_epoch=2)
    assert resumed.resumed
    assert seen[0][0] == 2
    assert seen[0][1:] == pytest.approx(state(clock))
    assert seen[0][3] != pytest.approx(1.0)  # the integral: it had been steered
    assert resumed.control.progress == 1.0
    assert [again.history()[0]["step"], again.history()[-1]["step"]] == [9, 20]


def test_backup_and_restore_goes_on_with_the_state_of_the_control(tmp_path) -> None:
    states: list = []
    for attempt in range(2):
        model = network()
        learner = LogisticSigmoid(flops(model), target=0.5)
        gated = learner.attach(model)
        gated.compile(keras.optimizers.SGD(0.01), CROSS_ENTROPY, run_eagerly=True)
        (clock,) = learner.callbacks()
        backup = keras.callbacks.BackupAndRestore(str(tmp_path / "backup"))
        if attempt == 0:
            with pytest.raises(CutError):
                fit(gated, [clock, backup, cut_at(2)], epochs=5)
            before = state(clock)
        else:
            fit(gated, [clock, backup, spy_on(clock, states)], epochs=5)
    assert states[0][0] == 2
    assert states[0][1:] == pytest.approx(before)
    assert len(states) == 3


def test_a_new_training_that_starts_at_a_later_epoch_has_its_whole_ramp() -> None:
    model = network()
    learner = LogisticSigmoid(flops(model), target=0.5)
    gated = compiled(learner.attach(model))
    (clock,) = learner.callbacks()
    seen: list = []
    spy = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: seen.append(clock.control.progress))
    fit(gated, [clock, spy], epochs=12, initial_epoch=8)
    assert not clock.resumed
    assert seen == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert learner.history()[0]["step"] == 33

    clock.control.progress = 0.5  # as after two of the four epochs
    clock._keep()
    (resumed,) = learner.callbacks()
    seen.clear()
    spy = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: seen.append(resumed.control.progress))
    fit(gated, [resumed, spy], epochs=12, initial_epoch=10)
    assert resumed.resumed
    assert seen == pytest.approx([0.75, 1.0])


@pytest.mark.filterwarnings("ignore:Your input ran out of data")  # Keras's, of any generator
def test_a_training_of_unknown_steps_is_read_all_the_same() -> None:
    model = network()
    learner = LogisticSigmoid(flops(model), target=0.5)
    gated = learner.attach(model)
    gated.compile(keras.optimizers.SGD(0.0), CROSS_ENTROPY, run_eagerly=True)

    (clock,) = learner.callbacks()
    batches = ((IMAGES[i : i + 4], LABELS[i : i + 4]) for i in range(0, 40, 4))
    gated.fit(batches, callbacks=[clock], shuffle=False, verbose=0)
    assert clock.step == 10
    assert learner.history()[-1]["step"] == 10


def endless():
    """A dataset that does not know its length: 4 batches of 16."""
    tf = pytest.importorskip("tensorflow")
    batches = tf.data.Dataset.from_tensor_slices((IMAGES[:64], LABELS[:64])).batch(16)
    return batches.filter(lambda image, label: True)


@pytest.mark.filterwarnings("ignore:Your input ran out of data")
def test_the_ramp_starts_when_the_length_of_an_epoch_is_known(caplog) -> None:
    model = network()
    learner = Gamma(flops(model), target=0.5)
    gated = compiled(learner.attach(model), keras.optimizers.Adam(1e-6))
    (clock,) = learner.callbacks()
    seen: list = []
    spy = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: seen.append(clock._progress))
    gated.fit(endless(), epochs=3, shuffle=False, callbacks=[clock, spy], verbose=0)
    assert seen == pytest.approx([0.0] * 4 + [i / 8 for i in range(1, 9)])
    assert "not steered before the first epoch has ended" in caplog.text
    assert "assert_cardinality" in caplog.text
    assert "no other epoch" not in caplog.text
    assert "Train for" not in caplog.text
    caplog.clear()
    gated.fit(endless(), epochs=1, shuffle=False, callbacks=learner.callbacks(), verbose=0)
    assert "no other epoch" in caplog.text
    caplog.clear()
    repeated = endless().repeat()
    gated.fit(repeated, epochs=2, steps_per_epoch=4, shuffle=False, callbacks=learner.callbacks(), verbose=0)
    assert "not steered" not in caplog.text


# ---- what is written down -----------------------------------------------------------------------------------------


def test_history_has_a_reading_each_so_many_steps() -> None:
    model = network()
    learner = LogisticSigmoid(flops(model), target=0.5, every=3)
    gated = compiled(learner.attach(model))
    logs = fit(gated, learner.callbacks(), steps=6, epochs=2).history
    history = learner.history()
    assert [(record["step"], record["epoch"]) for record in history] == [(3, 0), (6, 0), (9, 1), (12, 1)]
    last = history[-1]
    assert last["channels"] == {"a": 24, "b": 32, "c": 48}
    assert (last["cost"], last["share"]) == (learner.initial, 1.0)
    assert last["strength"] == learner.strength == logs["strength"][-1]
    assert logs["share"] == [1.0, 1.0]
    assert logs["flops"] == [learner.initial] * 2
    json.dumps(history)
    fit(gated, learner.callbacks(), steps=6)
    assert [record["step"] for record in learner.history()] == [3, 6]  # of the last training


@pytest.mark.parametrize(
    ("options", "steps"), [({}, [4, 8, 12]), ({"epochs": 2}, [8]), ({"every": 5}, [5, 10])], ids=["epoch", "2", "steps"]
)
def test_structures_are_written_as_json_lines(options, steps, tmp_path) -> None:
    model = network()
    path = tmp_path / "structures.jsonl"
    learner = LogisticSigmoid(flops(model), target=0.5)
    gated = compiled(learner.attach(model))
    path.write_text("of an earlier training\n")
    fit(gated, learner.callbacks(structures=path, **options), epochs=3)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["step"] for line in lines] == steps
    assert [line["epoch"] for line in lines] == [(step - 1) // 4 for step in steps]
    found = Structure.from_json(lines[-1]["structure"])
    assert found.kept == learner.structure().kept
    fit(gated, learner.callbacks(structures=path, **options), epochs=6, initial_epoch=3)
    assert len(path.read_text().splitlines()) == 2 * len(steps) + (options == {"epochs": 2})


def test_openness_is_drawn_as_histograms_for_tensorboard(tmp_path) -> None:
    tf = pytest.importorskip("tensorflow")
    pytest.importorskip("tensorboard")
    model = network()
    learner = LogisticSigmoid(flops(model), strength=1.0)
    gated = compiled(learner.attach(model))
    board = keras.callbacks.TensorBoard(str(tmp_path), write_graph=False)
    fit(gated, [*learner.callbacks(histograms=tmp_path / "gates"), board], epochs=2)
    found: dict[str, list[int]] = {}
    for path in tmp_path.rglob("events.out*"):
        for event in tf.compat.v1.train.summary_iterator(str(path)):
            for value in event.summary.value:
                found.setdefault(value.tag, []).append(event.step)
    assert found["openness/a"] == found["openness/b"] == found["openness/c"] == [4, 8]
    assert {"epoch_share", "epoch_strength", "epoch_channels", "epoch_flops"} <= set(found)
