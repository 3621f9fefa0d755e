"""From openness to widths: thresholds, budgets and steps."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latency_lab import budget
from latency_lab.cost import Cost, FlopsCost, LatencyCost
from latency_lab.errors import BudgetError, UsageError
from tests.unit.cost_nets import HandGraph, HandGroup, StepProfile, residual_net

GRAPH = residual_net()
STEPS = LatencyCost(GRAPH, StepProfile())
FLOPS = FlopsCost(GRAPH)


def openness(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(size=80)


@pytest.mark.parametrize("cost", [STEPS, FLOPS], ids=["steps", "flops"])
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1000), share=st.floats(0.2, 1.0))
def test_fit_meets_the_budget_and_comes_near_it(cost, seed: int, share: float) -> None:
    target = share * cost.at()
    widths = budget.fit(cost, openness(seed), target)
    assert cost.at(widths) <= target
    # one channel of a group is one step of 16 at most: on this small network a quarter of the whole
    assert cost.at(widths) >= target - (0.25 if cost is STEPS else 0.05) * cost.at()


def test_fit_is_one_threshold_for_all_groups_when_the_cost_has_no_steps() -> None:
    values = openness()
    mask = budget.mask_of(FLOPS, values, budget.fit(FLOPS, values, 0.5 * FLOPS.at())).astype(bool)
    assert values[mask].min() > values[~mask].max()


def test_fit_keeps_the_most_open_channel_of_a_closed_group() -> None:
    values = np.concatenate([np.linspace(0.001, 0.002, 32), np.linspace(0.5, 1, 48)])
    widths = budget.fit(FLOPS, values, 0.1 * FLOPS.at())
    assert widths[0] == 1
    assert np.flatnonzero(budget.mask_of(FLOPS, values, widths)[:32]).tolist() == [31]


def test_fit_never_closes_a_channel_that_has_to_stay() -> None:
    values = openness()
    values[:32] = np.inf
    assert budget.fit(FLOPS, values, 0.4 * FLOPS.at())[0] == 32
    assert budget.snap(STEPS, [32, 33], lowest=[32, 33]).tolist() == [32, 33]
    with pytest.raises(BudgetError, match="33 channels in the 2 groups"):
        budget.fit(FLOPS, values, 0.01 * FLOPS.at())


def test_fit_opens_closed_channels_where_training_went_too_far() -> None:
    values = np.where(np.arange(80) % 4 == 0, 0.9, 0.1 * openness())
    assert budget.fit(FLOPS, values, 0.9 * FLOPS.at()).sum() > (values > 0.5).sum()


class Cliffs:
    """6 ms a channel of `a`, and 1 ms a channel of `b`: one wider than 4 is a cliff that 2 of the other pay for."""

    class graph:  # noqa: N801
        full_widths = np.array([6.0, 32.0])
        offsets = np.array([0, 6, 38])

    def at(self, widths) -> float:
        return float(6 * widths[0] + widths[1])


def test_one_group_pays_for_another_where_a_budget_is_left_unspent() -> None:
    lowest = np.array([1, 1])
    traded = budget._trade(Cliffs(), np.array([4, 32]), 60.0, lowest)
    assert traded.tolist() == [5, 30]
    assert budget._trade(Cliffs(), np.array([4, 32]), 57.0, lowest).tolist() == [4, 32]  # 3 channels are too many
    assert budget._trade(Cliffs(), np.array([4, 32]), 60.0, np.array([1, 31])).tolist() == [4, 32]


def test_a_budget_out_of_reach_is_refused_with_what_can_be_reached() -> None:
    lowest = FLOPS.at([1, 1])
    with pytest.raises(BudgetError, match=f"{lowest:.4g} FLOPs"):
        budget.fit(FLOPS, openness(), 0.9 * lowest)
    with pytest.raises(BudgetError, match="2 channels in the 2 groups"):
        budget.uniform_widths(STEPS, 1e-9)


@pytest.mark.parametrize("cost", [STEPS, FLOPS], ids=["steps", "flops"])
def test_the_lowest_target_in_the_refusal_can_be_reached(cost) -> None:
    with pytest.raises(BudgetError) as refusal:
        budget.check_reachable(cost, 1e-9)
    value, share = re.search(r"target to (\S+) \S+ or more \(a share of (\S+)\)", str(refusal.value)).groups()
    for target in (float(value), budget.limit(cost, float(share), None)):
        budget.check_reachable(cost, target)
        with pytest.raises(BudgetError):
            budget.check_reachable(cost, 0.99 * target)


@pytest.mark.parametrize("wrong", [0.0, -1.0, float("nan")])
def test_a_budget_is_above_zero(wrong: float) -> None:
    with pytest.raises(UsageError, match="above 0"):
        budget.limit(STEPS, None, wrong)


def test_snap_raises_to_an_edge_that_is_free_and_drops_to_one_that_saves() -> None:
    def b(width: int) -> int:
        return int(budget.snap(STEPS, [32, width])[1])

    assert b(47) == 48
    assert b(31) == 32
    assert b(33) == 32
    assert b(17) == 16
    assert b(39) == 39  # in the middle of a step there is nothing nearby that pays


def branch_cost() -> Cost:
    """A group "a" that gates a branch of half a ms, and a group "b" beside it."""
    graph = HandGraph((HandGroup("a", 16), HandGroup("b", 64)))
    formula = LatencyCost(GRAPH, StepProfile()).formula
    return Cost(graph, "ms", formula, lambda widths: 1.0 + 0.01 * widths[0] + 0.5 * (widths[0] > 0) + 0.1 * widths[1])


def test_snap_never_takes_a_branch_away_with_its_last_channel(monkeypatch) -> None:
    cost = branch_cost()
    monkeypatch.setattr(cost, "gradient", lambda widths: np.array([0.01, 0.1]))
    assert budget.snap(cost, [1, 64], lowest=[0, 1]).tolist() == [1, 64]
    assert budget.snap(cost, [0, 64], lowest=[0, 1]).tolist() == [0, 64]
    assert budget._trade(cost, np.array([1, 8]), 2.5, np.array([0, 1]))[0] == 1


def test_snap_leaves_a_cost_without_steps_alone() -> None:
    assert budget.snap(FLOPS, [13, 29]).tolist() == [13, 29]


def test_uniform_widths_are_the_largest_equal_share() -> None:
    target = 0.5 * FLOPS.at()
    widths = budget.uniform_widths(FLOPS, target)
    assert FLOPS.at(widths) <= target
    assert abs(widths[0] / 32 - widths[1] / 48) < 1 / 32
    assert FLOPS.at(widths + 1) > target
    assert budget.uniform_widths(FLOPS, FLOPS.at()).tolist() == [32, 48]


def test_widths_above_a_threshold_are_at_least_one() -> None:
    values = np.concatenate([np.full(32, 0.3), np.full(48, 0.7)])
    assert budget.widths_above(FLOPS, values, 0.5).tolist() == [1, 48]


def test_mask_keeps_the_most_open() -> None:
    values = openness()
    mask = budget.mask_of(FLOPS, values, [3, 5])
    assert mask[:32].sum() == 3
    assert mask[32:].sum() == 5
    assert set(np.flatnonzero(mask[:32])) == set(np.argsort(-values[:32])[:3])
