"""Costs: values, slopes, combinations, and what an estimate says."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from latency_lab.cost import ActivationMemoryCost, Cost, FlopsCost, LatencyCost, ParamsCost, worst_of
from latency_lab.cost.formula import formula_from_json
from latency_lab.cost.grid import Grids
from latency_lab.cost.terms import bilinear
from latency_lab.errors import FileFormatError, OutOfBoundsError, UsageError
from latency_lab.graph import Unknown
from latency_lab.ops import OpConfig
from latency_lab.profiles import DeviceProfile
from latency_lab.profiles.correction import NetworkCorrection
from tests.unit.cost_nets import StepProfile, net_a, residual_net

CORRECTION = NetworkCorrection(
    a={"window": 1.1, "pointwise": 1.2},
    b_ms=-0.001,
    c_ms_per_byte=1e-7,
    half_width=0.05,
    cached_bytes=2e3,
    alone_bytes=1e3,
    hot_bytes=4e3,
    once=0.5,
)


def costs() -> dict[str, Cost]:
    graph = residual_net()
    return {
        "flops": FlopsCost(graph),
        "params": ParamsCost(graph),
        "activations": ActivationMemoryCost(graph),
        "latency": LatencyCost(graph, StepProfile(CORRECTION)),
        "analytic": LatencyCost(graph, DeviceProfile.analytic("toy", peak_gflops=10, bandwidth_gb_s=4)),
    }


NAMES = tuple(costs())


def test_weights_at_one_position_may_cost_nothing() -> None:
    graph = residual_net()
    dense = OpConfig("dense", in_channels=32, out_channels=10)
    graph.add("head", dense, (len(graph.nodes) - 1,), {0: 1}, {})
    free = LatencyCost(graph, StepProfile(dataclasses.replace(CORRECTION, alone_bytes=None, once=0.0)))
    assert np.isfinite(free.value(None))
    assert np.isfinite(free.gradient(free.graph.full_widths)).all()


@pytest.mark.parametrize("name", NAMES)
def test_gradient_is_the_slope_of_the_value(name: str) -> None:
    cost = costs()[name]
    widths, step = np.array([13.3, 21.7]), 1e-4
    found = [(cost.value(widths + step * e) - cost.value(widths - step * e)) / (2 * step) for e in np.eye(2)]
    assert cost.gradient(widths) == pytest.approx(np.array(found), rel=1e-6)


@pytest.mark.parametrize(
    "op",
    [node.op for node in residual_net().nodes]
    + [
        OpConfig("conv2d", 1, 8, 8, 16, 32, (3, 3), groups=4),
        OpConfig("multiply", 1, 8, 8, 16, 16, operands=2, broadcast="channels"),
    ],
)
def test_bilinear_reproduces_counts(op: OpConfig) -> None:
    for count in (lambda op: op.traffic_bytes, lambda op: op.macs, lambda op: op.weight_count):
        c0, c_in, c_out, c_both = bilinear(op, count)
        at = op.with_channels(3 * op.groups, 5 * op.groups)
        x, y = at.in_channels, at.out_channels
        assert c0 + c_in * x + c_out * y + c_both * x * y == pytest.approx(count(at))


def test_params_of_a_shared_layer_count_once() -> None:
    graph = residual_net()
    once = ParamsCost(graph).value(None)
    graph.add("b_again", graph.nodes[3].op, (2,), {0: 1}, {1: 1})
    graph.nodes[-1] = type(graph.nodes[-1])("b_again", graph.nodes[3].op, (2,), "b", graph.nodes[3].weights)
    assert ParamsCost(graph).value(None) == once
    assert FlopsCost(graph).value(None) > FlopsCost(residual_net()).value(None)


def test_params_count_biases_and_norms_unless_weights_only() -> None:
    kernels = 27 * 32 + 32 * 48 + 9 * 48 + 48 * 32 + 32 * 10
    assert ParamsCost(residual_net(), weights_only=True).at() == kernels
    assert ParamsCost(residual_net()).at() == kernels + 32 + 48 + 48 + 32 + 10 + 4 * 32


def test_activation_memory_is_in_bytes() -> None:
    assert ActivationMemoryCost(residual_net()).at() == 4 * (64 * (32 + 48 + 48 + 32) + 10)


# ---- grids --------------------------------------------------------------------------------------------------------

GRIDS = Grids.of(
    [
        ([0, 4, 8], [0, 16, 20], [[0, 0, 0], [0, 3, 4], [0, 5, 9]]),
        ([0, 10], [1], [[0], [7]]),
    ]
)


def at(x_in: float, x_out: float) -> list[float]:
    return [float(v[0]) for v in GRIDS(np.array([x_in, 1.0]), np.array([x_out, 1.0]), np)]


def test_grid_is_exact_at_knots_and_bilinear_between() -> None:
    assert at(4, 16)[0] == 3
    assert at(8, 20)[0] == 9
    assert at(6, 18)[0] == pytest.approx((3 + 4 + 5 + 9) / 4)
    assert at(2, 8)[0] == pytest.approx(3 / 4)


def test_grid_slope_is_right_hand_at_a_knot_and_left_hand_at_the_last() -> None:
    assert at(4, 16)[1:] == [(5 - 3) / 4, (4 - 3) / 4]
    assert at(8, 20)[1:] == [(9 - 4) / 4, (9 - 5) / 4]
    assert at(12, 20)[0] == pytest.approx(9 + 4 * (9 - 4) / 4)


def test_grid_with_one_width_ignores_the_other() -> None:
    for x_out in (0.0, 1.0, 500.0):
        value, slope_in, slope_out = GRIDS(np.array([1.0, 5.0]), np.array([1.0, x_out]), np)
        assert (value[1], slope_in[1], slope_out[1]) == pytest.approx((3.5, 0.7, 0))


@pytest.mark.parametrize("name", NAMES)
def test_formula_survives_json_to_the_bit(name: str) -> None:
    cost = costs()[name] if name != "params" else worst_of(costs()["params"], 2.0 * ParamsCost(residual_net()))
    again = formula_from_json(json.loads(json.dumps(cost.formula.to_json())))
    widths = np.array([13.3, 21.7])
    value, gradient = again.value_and_gradient(widths, np)
    assert value == cost.value(widths)
    assert gradient.tolist() == cost.gradient(widths).tolist()


def test_unknown_terms_are_refused() -> None:
    with pytest.raises(FileFormatError, match="'magic'"):
        formula_from_json(
            {
                "formula": "op_sum",
                "groups": 0,
                "terms": {"terms": "magic"},
                **dict.fromkeys(("in_map", "in_const", "out_map", "out_const"), []),
            }
        )


# ---- combinations -------------------------------------------------------------------------------------------------


def test_costs_add_and_scale() -> None:
    found = costs()
    widths = np.array([13.0, 21.0])
    both = found["latency"] + 1e-6 * found["flops"]
    assert both.value(widths) == pytest.approx(found["latency"].value(widths) + 1e-6 * found["flops"].value(widths))
    assert both.gradient(widths) == pytest.approx(
        found["latency"].gradient(widths) + 1e-6 * found["flops"].gradient(widths)
    )
    assert both.at(widths) == pytest.approx(found["latency"].at(widths) + 1e-6 * found["flops"].at(widths))
    assert both.unit == "ms + 1e-06 FLOPs"


def test_costs_sum() -> None:
    found = costs()
    widths = np.array([13.0, 21.0])
    assert sum([found["flops"], found["flops"]]).at(widths) == 2 * found["flops"].at(widths)


def test_worst_of_is_exact_in_reports_and_smooth_in_training() -> None:
    graph = residual_net()
    slow, fast = LatencyCost(graph, StepProfile(CORRECTION)), LatencyCost(graph, StepProfile())
    for first, second in ((slow, fast), (fast, slow)):
        worst = worst_of(first, second)
        assert worst.at() == max(slow.at(), fast.at())
        parts = np.array([c.value([13.0, 21.0]) for c in (slow, fast)])
        assert worst.value([13.0, 21.0]) == pytest.approx((parts**16).sum() ** (1 / 16), rel=1e-12)
        assert parts.max() < worst.value([13.0, 21.0]) < 2 ** (1 / 16) * parts.max()
    assert worst_of(slow).value([13.0, 21.0]) == pytest.approx(slow.value([13.0, 21.0]), rel=1e-12)


def test_the_slope_of_a_worst_leans_to_the_worse() -> None:
    graph = residual_net()
    flops, params = FlopsCost(graph), ParamsCost(graph)
    widths, step = np.array([13.3, 21.7]), 1e-4
    for scale, other in ((0.1, flops), (1.0, None), (3.0, params)):
        balance = scale * flops.value(widths) / params.value(widths)
        worst = worst_of(flops, Cost(graph, "FLOPs", (balance * params).formula))
        found = [(worst.value(widths + step * e) - worst.value(widths - step * e)) / (2 * step) for e in np.eye(2)]
        assert worst.gradient(widths) == pytest.approx(np.array(found), rel=1e-6)
        if other is not None:  # one is far worse: its slope alone
            factor = balance if other is params else 1.0
            assert worst.gradient(widths) == pytest.approx(factor * other.gradient(widths), rel=1e-6)


def test_worst_of_has_the_unit_that_its_scaled_costs_share() -> None:
    graph = residual_net()
    phone, board = LatencyCost(graph, StepProfile()), LatencyCost(graph, StepProfile(CORRECTION))
    assert worst_of(0.5 * phone, board).unit == "ms"
    with pytest.raises(UsageError, match="one unit"):
        worst_of(FlopsCost(graph), phone + 1e-6 * FlopsCost(graph))


def test_costs_of_other_models_or_units_do_not_combine() -> None:
    other = net_a()
    other.digest = "another"
    with pytest.raises(UsageError, match="two different models"):
        FlopsCost(residual_net()) + FlopsCost(other)
    with pytest.raises(UsageError, match="one unit"):
        worst_of(FlopsCost(residual_net()), ParamsCost(residual_net()))
    with pytest.raises(UsageError, match="at least one"):
        worst_of()


def test_widths_by_name() -> None:
    cost = FlopsCost(residual_net())
    assert cost.at({"b": 10}) == cost.at([32, 10])
    with pytest.raises(UsageError, match="No group is named 'c'"):
        cost.at({"c": 10})


# ---- latency ------------------------------------------------------------------------------------------------------


def test_chord_meets_the_staircase_on_edges_and_lies_below_inside_a_step() -> None:
    cost = LatencyCost(residual_net(), StepProfile(CORRECTION))
    assert cost.value([32.0, 48.0]) == pytest.approx(cost.at([32, 48]))
    assert cost.value([16.0, 32.0]) == pytest.approx(cost.at([16, 32]))
    assert cost.value([16.0, 36.0]) < cost.at([16, 36])


def test_staircase_reads_the_profile_through_the_network_correction() -> None:
    graph, profile = residual_net(), StepProfile(CORRECTION)
    ops = [node.op for node in graph.nodes]
    expected = CORRECTION.latency_ms(ops, [profile.latency_ms(op) for op in ops])
    assert LatencyCost(graph, profile).at() == pytest.approx(expected)


def test_each_distinct_kernel_is_predicted_once() -> None:
    profile = StepProfile()
    cost = LatencyCost(residual_net(), profile)
    first, asked = cost.at(), profile.asked
    assert cost.at() == first
    assert profile.asked == asked
    cost.at([32, 47])
    assert profile.asked == asked + 3  # b, the depthwise conv, c


def test_fused_kernels_have_the_channels_of_their_main_op() -> None:
    graph = residual_net()
    cost = LatencyCost(graph, StepProfile(fusions=frozenset({"conv2d+batch_norm", "conv2d+relu"})))
    assert cost.ops[:2] == ("a + bn + relu", "b")
    values = dict(zip(cost.ops, cost.per_op([16.0, 48.0])[0], strict=True))
    assert values["a + bn + relu"] == pytest.approx(64 * 3 * 16 * 1e-6)


def test_estimate_lists_what_is_not_covered() -> None:
    cost = LatencyCost(residual_net(), StepProfile(CORRECTION, unmeasured=frozenset({"add"})))
    estimate = cost.estimate()
    assert estimate.coverage["measured"] == 8
    assert estimate.coverage["bounded"] == 1
    assert estimate.coverage["uncovered"] == ["add (add): not measured, bounded by the roofline"]
    low, high = estimate.interval_ms
    assert (low, high) == pytest.approx((0.95 * estimate.latency_ms, 1.05 * estimate.latency_ms))
    assert str(estimate).splitlines() == [
        f"{estimate.latency_ms:.4f} ms [{low:.4f}, {high:.4f}]; 8 of 9 kernels measured, 1 bounded",
        "  not covered: add (add): not measured, bounded by the roofline",
    ]
    data = json.loads(json.dumps(estimate.to_json()))
    assert data["ops"][0] == {
        "name": "a",
        "kind": "conv2d",
        "latency_ms": pytest.approx(0.006144),
        "source": "measured",
    }
    assert set(data) == {"latency_ms", "interval_ms", "interval_kind", "coverage", "ops", "profile"}


def test_layers_without_an_op_are_bounded_listed_and_counted() -> None:
    graph = residual_net()
    before, params = LatencyCost(graph, StepProfile(CORRECTION)).at(), ParamsCost(graph).at()
    graph.unknown, graph.unknown_parameters = (Unknown("attention", "MultiHeadAttention", 6_000_000, 4_000_000),), 77
    cost = LatencyCost(graph, StepProfile(CORRECTION))
    assert cost.at() == pytest.approx(before + 1.0)
    assert cost.value(None) == pytest.approx(before + 1.0)
    estimate = cost.estimate()
    assert estimate.coverage["ops"] == 10
    assert estimate.coverage["bounded"] == 1
    assert estimate.uncovered == ("attention (MultiHeadAttention): not measured, bounded by the roofline",)
    assert ParamsCost(graph).at() == params + 77


def test_a_layer_without_an_op_is_out_of_bounds() -> None:
    graph = residual_net()
    graph.unknown = (Unknown("attention", "MultiHeadAttention", 8_000, 2_000, 77),)
    with pytest.raises(OutOfBoundsError, match=r"attention \(MultiHeadAttention\)"):
        LatencyCost(graph, StepProfile(), out_of_bounds="raise")


def test_out_of_bounds_can_be_refused() -> None:
    with pytest.raises(OutOfBoundsError, match=r"add \(add 8x8 n2 float32 32->32\).*'steps'.*bounded"):
        LatencyCost(residual_net(), StepProfile(unmeasured=frozenset({"add"})), out_of_bounds="raise")
    with pytest.raises(UsageError, match="out_of_bounds"):
        LatencyCost(residual_net(), StepProfile(), out_of_bounds="ignore")  # type: ignore[arg-type]


def test_estimate_of_an_analytic_profile() -> None:
    estimate = LatencyCost(net_a(), DeviceProfile.analytic("P100", peak_gflops=9300, bandwidth_gb_s=732)).estimate()
    assert sum(op.latency_ms for op in estimate.ops) == pytest.approx(estimate.latency_ms)
    assert estimate.coverage["analytic"] == len(estimate.ops) == 13
