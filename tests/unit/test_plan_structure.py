"""Widths for a budget without training: the knapsack against all there is, importance by hand, what has to stay."""

from __future__ import annotations

import itertools
import math

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import layers

import latency_lab as ll
from latency_lab import knapsack
from latency_lab.cost import ActivationMemoryCost, FlopsCost, LatencyCost, ParamsCost
from latency_lab.errors import BudgetError, StructureError, UnsupportedModelError, UsageError
from latency_lab.importance import scores
from latency_lab.ops import OpConfig
from latency_lab.plan_structure import lowest_widths, plan_structure
from tests.unit.cost_nets import StepProfile, residual_net

HAND = residual_net()
ONES = np.ones(2, np.int64)


# ---- the knapsack -------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), share=st.floats(0.0, 1.0))
def test_choose_is_the_best_of_all_choices(seed: int, share: float) -> None:
    random = np.random.default_rng(seed)
    # steps: several options of a group cost alike, and a dearer one may be worth less
    costs = [np.floor(random.uniform(-3, 6, n)) for n in random.integers(1, 5, 5)]
    worths = [random.uniform(0, 1, len(c)) for c in costs]
    least, most = sum(c.min() for c in costs), sum(c.max() for c in costs)
    room = least + share * (most - least)
    picks = knapsack.choose(costs, worths, room)
    every = itertools.product(*(range(len(c)) for c in costs))
    best = max(
        sum(w[i] for w, i in zip(worths, pick, strict=True))
        for pick in every
        if sum(c[i] for c, i in zip(costs, pick, strict=True)) <= room + 1e-9
    )
    assert sum(c[i] for c, i in zip(costs, picks, strict=True)) <= room + 1e-9
    assert sum(w[i] for w, i in zip(worths, picks, strict=True)) == pytest.approx(best)


def test_choose_takes_the_cheapest_where_nothing_fits() -> None:
    assert knapsack.choose([np.array([3.0, 1.0, 1.0]), np.array([2.0])], [np.array([9.0, 1.0, 2.0]), ONES[:1]], 0) == [
        2,
        0,
    ]


def test_choose_comes_near_the_bound_where_there_are_too_many_sums_to_carry() -> None:
    random = np.random.default_rng(0)
    costs = [np.concatenate([[0], np.cumsum(random.uniform(0.5, 1.5, 20))]) for _ in range(30)]
    worths = [np.log1p(c) * random.uniform(0.5, 2) for c in costs]
    room = 0.4 * sum(c[-1] for c in costs)
    picks = knapsack.choose(costs, worths, room)
    found = sum(w[i] for w, i in zip(worths, picks, strict=True))
    # Lagrange: for any price, no choice in the room is worth more than this
    bound = min(
        sum((w - price * c).max() for w, c in zip(worths, costs, strict=True)) + price * room
        for price in np.linspace(0.01, 1, 200)
    )
    assert sum(c[i] for c, i in zip(costs, picks, strict=True)) <= room
    assert 0.999 * bound <= found <= bound


def worth_of(seed: int) -> np.ndarray:
    """Worth as it comes: falling steeply at first, in any order."""
    random = np.random.default_rng(seed)
    return np.concatenate([random.permutation(1 / np.arange(1, n + 1)) * random.uniform(1, 4) for n in (32, 48)])


@pytest.mark.parametrize("cost", [LatencyCost(HAND, StepProfile()), FlopsCost(HAND)], ids=["steps", "flops"])
@pytest.mark.parametrize("share", [0.25, 0.5, 0.7, 0.9])
def test_widths_are_worth_what_the_best_of_all_are(cost, share: float) -> None:
    at = np.array([[cost.at([a, b]) for b in range(1, 49)] for a in range(1, 33)])
    for seed in range(3):
        shelf = knapsack.Shelf(cost, worth_of(seed), ONES)
        worth = np.add.outer(shelf.totals[0][1:], shelf.totals[1][1:])
        best = worth[at <= share * cost.at()].max()
        widths = knapsack.best_widths(cost, worth_of(seed), share * cost.at(), ONES)
        assert cost.at(widths) <= share * cost.at()
        assert 0.98 * best <= shelf.worth(widths) <= best + 1e-9


def test_plain_widths_are_blind_to_steps() -> None:
    cost = LatencyCost(HAND, StepProfile())
    target, worth = 0.5 * cost.at(), worth_of(0)
    plain = knapsack.plain_widths(cost, worth, target, ONES)
    assert cost.value(plain) <= target < cost.at(plain)
    assert cost.at(knapsack.best_widths(cost, worth, target, ONES)) <= target


class CliffProfile(StepProfile):
    """A device that is slow where a convolution's input channels are no multiple of 4."""

    def latency_ms(self, op: OpConfig) -> float:
        slow = 3 if op.kind == "conv2d" and op.in_channels > 4 and op.in_channels % 4 else 1
        return slow * super().latency_ms(op)


def dense_block() -> keras.Model:
    """Each convolution reads all that came before it: no group alone decides what is a multiple of 4."""
    y = x = keras.Input((8, 8, 4))
    for i in range(6):
        z = layers.Conv2D(32, 3, padding="same", use_bias=False, name=f"grow{i}")(y)
        y = layers.Concatenate(name=f"cat{i}")([y, z])
    return keras.Model(x, layers.Dense(5, name="head")(layers.GlobalAveragePooling2D()(y)))


def test_groups_that_meet_in_a_concatenation_reach_a_step_together() -> None:
    model = dense_block()
    graph = ll.ChannelGraph.from_model(model)
    cost = LatencyCost(graph, CliffProfile())
    structure = plan_structure(model, cost, 0.4)
    convs = [op for op in graph.op_configs(structure.widths(graph)) if op.kind == "conv2d"]
    assert [op.in_channels % 4 for op in convs] == [0] * 6
    assert 0.97 * 0.4 * cost.at() <= structure.provenance["cost_after"] <= 0.4 * cost.at()


# ---- networks -----------------------------------------------------------------------------------------------------


def network(norm: bool = True) -> keras.Model:
    """A residual, a depthwise and a concatenated part."""
    keras.utils.set_random_seed(3)

    def conv(y, width: int, name: str, kernel: int = 1):
        y = layers.Conv2D(width, kernel, padding="same", use_bias=False, name=name)(y)
        return layers.ReLU(name=f"{name}_relu")(layers.BatchNormalization(name=f"{name}_bn")(y) if norm else y)

    x = keras.Input((16, 16, 3))
    y = conv(x, 32, "stem", 3)
    z = conv(y, 64, "expand")
    z = layers.DepthwiseConv2D(3, padding="same", name="deep")(z)
    y = layers.Add(name="sum")([y, conv(z, 32, "project")])
    y = layers.Concatenate(name="both")([conv(y, 48, "left", 3), conv(y, 40, "right")])
    y = conv(y, 64, "last")
    return keras.Model(x, layers.Dense(10, name="head")(layers.GlobalAveragePooling2D()(y)), name="net")


MODEL = network()
GRAPH = ll.ChannelGraph.from_model(MODEL)
STEPS = LatencyCost(GRAPH, StepProfile())
COSTS = {
    "steps": STEPS,
    "flops": FlopsCost(GRAPH),
    "params": ParamsCost(GRAPH),
    "memory": ActivationMemoryCost(GRAPH),
    "sum": STEPS + 1e-7 * FlopsCost(GRAPH),
}


@pytest.mark.parametrize("name", COSTS)
@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_the_budget_is_met_and_spent(name: str, share: float) -> None:
    cost = COSTS[name]
    structure = plan_structure(MODEL, cost, share)
    reached = cost.at(structure.widths(GRAPH)) / cost.at()
    assert 0.97 * share <= reached <= share


def test_a_budget_in_ms_and_all_of_it() -> None:
    limit = 0.6 * STEPS.at()
    structure = plan_structure(MODEL, STEPS, target_ms=limit)
    assert STEPS.at(structure.widths(GRAPH)) <= limit
    assert structure.provenance["budget"] == limit
    assert plan_structure(MODEL, STEPS, 1.0).kept == ll.Structure.full(GRAPH).kept


@pytest.mark.parametrize("how", ["l2", "l1", "gamma"])
def test_no_channel_stays_in_the_place_of_a_more_important_one(how) -> None:
    random = np.random.default_rng(0)
    for layer in MODEL.layers:
        if isinstance(layer, layers.BatchNormalization):
            layer.gamma.assign(random.uniform(0.1, 1, layer.gamma.shape))
    values = scores(MODEL, GRAPH, how)
    mask = plan_structure(MODEL, STEPS, 0.5, importance=how).mask(GRAPH).astype(bool)
    for start, end in zip(GRAPH.offsets[:-1], GRAPH.offsets[1:], strict=True):
        kept, closed = values[start:end][mask[start:end]], values[start:end][~mask[start:end]]
        assert not len(closed) or kept.min() >= closed.max()
    assert not mask.all()


def test_provenance_says_how_it_came_about() -> None:
    structure = plan_structure(MODEL, STEPS, 0.5, importance="l1", keep=["stem"], minimum={"left": 8})
    said = structure.provenance
    assert said["cost_before"] == STEPS.at()
    assert said["cost_after"] == STEPS.at(structure.widths(GRAPH)) <= said["budget"] == 0.5 * STEPS.at()
    assert (said["importance"], said["keep"], said["minimum"]) == ("l1", ["stem"], {"left": 8})
    assert (said["profile"], said["unit"], said["method"]) == ("steps", "ms", "knapsack")
    assert ll.Structure.from_json(structure.to_json()) == structure


def test_what_the_structure_says_is_what_the_rebuilt_network_costs() -> None:
    structure = plan_structure(MODEL, COSTS["params"], 0.4)
    slim = ll.shrink(MODEL, structure)
    assert slim.count_params() == structure.provenance["cost_after"] <= 0.4 * MODEL.count_params()


# ---- importance ---------------------------------------------------------------------------------------------------


def lamp(values: list[float]) -> list[float]:
    """Each value's square over the sum of the squares of those that are no smaller."""
    return [v**2 / sum(u**2 for u in values if u >= v) for v in values]


def two_makers() -> keras.Model:
    """a and b are added, then a depthwise layer without bias, then batch norm: one group of three channels."""
    x = keras.Input((2, 2, 2))
    a = layers.Conv2D(3, 1, use_bias=False, name="a")(x)
    b = layers.Conv2D(3, 1, use_bias=True, name="b")(x)
    y = layers.DepthwiseConv2D(1, use_bias=False, name="deep")(layers.Add()([a, b]))
    y = layers.BatchNormalization(name="bn")(y)
    model = keras.Model(x, layers.Dense(2, name="head")(layers.GlobalAveragePooling2D()(y)))
    model.get_layer("a").set_weights([np.array([[3.0, 0.0, 1.0], [4.0, 5.0, 0.0]]).reshape(1, 1, 2, 3)])
    kernel = np.array([[1.0, -2.0, 4.0], [0.0, 2.0, -4.0]]).reshape(1, 1, 2, 3)
    model.get_layer("b").set_weights([kernel, np.full(3, 100.0)])
    model.get_layer("deep").set_weights([np.array([2.0, -1.0, 6.0]).reshape(1, 1, 3, 1)])
    model.get_layer("bn").gamma.assign([0.5, -1.5, 0.1])
    return model


def test_scores_by_hand() -> None:
    model = two_makers()
    graph = ll.ChannelGraph.from_model(model)

    def expected(*members: list[float]) -> list[float]:
        comparable = [np.array(m) / np.mean(m) for m in members]
        return [len(members) * score for score in lamp(np.mean(comparable, axis=0).tolist())]

    root = math.sqrt
    l2 = expected([5.0, 5.0, 1.0], [1.0, root(8), root(32)], [2.0, 1.0, 6.0])
    l1 = expected([7.0, 5.0, 1.0], [1.0, 4.0, 8.0], [2.0, 1.0, 6.0])
    assert scores(model, graph, "l2").tolist() == pytest.approx(l2)
    assert scores(model, graph, "l1").tolist() == pytest.approx(l1)
    assert scores(model, graph, "gamma").tolist() == pytest.approx(expected([0.5, 1.5, 0.1]))


def test_the_size_of_a_layer_s_weights_does_not_matter() -> None:
    before = scores(MODEL, GRAPH)
    other = keras.models.clone_model(MODEL)
    other.set_weights(MODEL.get_weights())
    other.get_layer("left").set_weights([37.0 * w for w in MODEL.get_layer("left").get_weights()])
    assert scores(other, GRAPH) == pytest.approx(before)


def test_a_group_without_batch_norm_stays_whole_by_gamma(caplog) -> None:
    x = keras.Input((4, 4, 1))
    y = layers.BatchNormalization()(layers.Conv2D(16, 1, name="normed")(x))
    y = layers.Conv2D(16, 1, name="bare")(layers.ReLU()(y))
    model = keras.Model(x, layers.Dense(2)(layers.GlobalAveragePooling2D()(y)))
    cost = FlopsCost(ll.ChannelGraph.from_model(model))
    structure = plan_structure(model, cost, 0.5, importance="gamma")
    assert len(structure.kept["bare"]) == 16 > len(structure.kept["normed"])
    assert "left whole: bare" in caplog.text


def test_gamma_needs_a_batch_norm() -> None:
    model = network(norm=False)
    with pytest.raises(UnsupportedModelError, match="goes through a batch norm with a scale"):
        plan_structure(model, FlopsCost(ll.ChannelGraph.from_model(model)), 0.5, importance="gamma")


def test_numbers_of_one_s_own_are_taken_as_they_are() -> None:
    cost = COSTS["flops"]
    values = np.random.default_rng(1).uniform(0.5, 1, GRAPH.slots)
    by_group = {g.name: values[at : at + g.size] for g, at in zip(GRAPH.groups, GRAPH.offsets, strict=False)}
    structure = plan_structure(MODEL, cost, 0.5, importance=values)
    assert plan_structure(MODEL, cost, 0.5, importance=by_group).kept == structure.kept
    assert structure.provenance["importance"] == "given"
    # a group worth a thousand times the others stays, and so does one channel that has to
    by_group["left"] = 1000 * by_group["left"]
    by_group["right"] = np.zeros(40)
    by_group["right"][17] = np.inf
    structure = plan_structure(MODEL, cost, 0.5, importance=by_group)
    assert len(structure.kept["left"]) == 48
    assert structure.kept["right"] == (17,)


@pytest.mark.parametrize(
    ("importance", "message"),
    [
        ("l3", "Expected one of 'l2', 'l1', 'gamma', or numbers.*Received: 'l3'"),
        ([1.0, 2.0], r"expected \d+ numbers, one a slot. Received: an array of shape \(2,\)"),
        ({"stem": np.ones(32)}, "no numbers for group 'expand'"),
        ({g.name: np.ones(7) for g in GRAPH.groups}, "group 'stem': expected 32 numbers.*Received: 7"),
        (np.full(GRAPH.slots, -1.0), "0 or more.*Received: -1.0 for slot 0"),
        (np.full(GRAPH.slots, np.nan), "0 or more.*Received: nan for slot 0"),
    ],
)
def test_importance_of_another_form_is_refused(importance, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        plan_structure(MODEL, COSTS["flops"], 0.5, importance=importance)


# ---- what has to stay ---------------------------------------------------------------------------------------------


def test_kept_layers_and_groups_stay_whole_by_any_of_their_names() -> None:
    free = plan_structure(MODEL, STEPS, 0.4)
    assert len(free.kept["stem"]) < 32
    assert len(free.kept["expand"]) < 64
    # by the group, a second member, a depthwise layer, a batch norm, an activation
    for name, group in {
        "stem": "stem",
        "project": "stem",
        "deep": "expand",
        "expand_bn": "expand",
        "sum": "stem",
    }.items():
        structure = plan_structure(MODEL, STEPS, 0.4, keep=[name])
        assert len(structure.kept[group]) == GRAPH.widths()[[g.name for g in GRAPH.groups].index(group)], name
        assert structure.provenance["cost_after"] <= 0.4 * STEPS.at()
    assert plan_structure(MODEL, STEPS, 0.4, keep="stem").kept == plan_structure(MODEL, STEPS, 0.4, keep=["stem"]).kept


def test_a_layer_that_reads_two_groups_names_both() -> None:
    lowest = dict(zip([g.name for g in GRAPH.groups], lowest_widths(GRAPH, ["both"]).tolist(), strict=True))
    assert lowest == {"stem": 1, "expand": 1, "left": 48, "right": 40, "last": 1}
    assert lowest_widths(GRAPH, ["head"]).tolist() == [1] * 5  # an output of the model stays anyway


def test_minimum_widths_hold() -> None:
    values = np.ones(GRAPH.slots)  # all channels are worth the same: dear groups close wholly
    everywhere = plan_structure(MODEL, STEPS, 0.3, importance=values, minimum=16).widths(GRAPH)
    assert everywhere.min() >= 16
    assert plan_structure(MODEL, STEPS, 0.3, importance=values).widths(GRAPH).min() < 16
    named = plan_structure(MODEL, STEPS, 0.3, importance=values, minimum={"deep": 40, "project": 20})
    assert len(named.kept["expand"]) >= 40
    assert len(named.kept["stem"]) >= 20
    assert lowest_widths(GRAPH, minimum=41).tolist() == [32, 41, 41, 40, 41]  # all of a smaller group


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep": ["stm"]}, r"`keep`: the model has no layer or group 'stm'. Did you mean 'stem'"),
        ({"minimum": {"projct": 3}}, r"`minimum`: the model has no layer or group 'projct'. Did you mean 'project'"),
        ({"minimum": {"deep": 65}}, r"`minimum` of 'deep': expected a whole number in 1..64.*group 'expand'.*: 65"),
        ({"minimum": 0}, "`minimum`: expected a whole number of channels, 1 or more. Received: 0"),
        ({"minimum": 2.5}, "Received: 2.5"),
    ],
)
def test_names_and_minima_that_cannot_be_are_refused(options, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        plan_structure(MODEL, STEPS, 0.5, **options)


# ---- budgets that cannot be ---------------------------------------------------------------------------------------


def test_an_unreachable_budget_names_the_lowest_that_can_be_reached() -> None:
    cost = COSTS["flops"]
    lowest = cost.at(lowest_widths(GRAPH, ["left"]))
    with pytest.raises(BudgetError, match=f"the network still costs {lowest:.4g} FLOPs".replace("+", r"\+")):
        plan_structure(MODEL, cost, 0.99 * lowest / cost.at(), keep=["left"])
    structure = plan_structure(MODEL, cost, 1.001 * lowest / cost.at(), keep=["left"])
    assert len(structure.kept["left"]) == 48


@pytest.mark.parametrize(
    ("target", "target_ms", "message"),
    [
        (None, None, "exactly one of `target` and `target_ms`"),
        (0.5, 1.0, "exactly one of `target` and `target_ms`"),
        (1.5, None, r"a share in \(0, 1\]. Received: 1.5"),
        (0.0, None, r"a share in \(0, 1\]. Received: 0.0"),
        (None, 1.0, "needs a cost in ms; this one is in FLOPs"),
    ],
)
def test_targets_that_are_none_are_refused(target, target_ms, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        plan_structure(MODEL, COSTS["flops"], target, target_ms=target_ms)


def test_a_cost_of_another_model_is_refused() -> None:
    with pytest.raises(StructureError, match="made for another model"):
        plan_structure(two_makers(), COSTS["flops"], 0.5)
