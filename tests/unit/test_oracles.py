"""Numbers that our maths must reproduce: MorphNet's, by literals of its tests or read from running it."""

from __future__ import annotations

import numpy as np
import pytest

from latency_lab.cost import (
    ActivationMemoryCost,
    FlopsCost,
    LatencyCost,
    ParamsCost,
    linearised_loss,
    linearised_per_op,
)
from latency_lab.cost.roofline import charged_bytes, flops, kernel_weights, roofline_terms
from latency_lab.cost.terms import Polynomial
from latency_lab.ops import OpConfig
from latency_lab.profiles import DeviceProfile
from tests.unit.cost_nets import GAMMA_A, net_a

THRESHOLD = 0.45
ALIVE = np.array([7.0, 11, 10, 17])
R = np.array([np.abs(gamma).sum() for gamma in GAMMA_A])
CONVS = ("conv1", "conv2", "conv3", "conv4")

DEVICES = {
    "K80": (8740, 480),
    "P4": (5500, 192),
    "T4": (8100, 300),
    "P100": (9300, 732),
    "V100": (125000, 900),
    "TPU v2": (22500, 300),
}


def device(name: str) -> DeviceProfile:
    peak, bandwidth = DEVICES[name]
    return DeviceProfile.analytic(name, peak_gflops=peak, bandwidth_gb_s=bandwidth)


def of_convs(cost, values) -> list[float]:
    return [float(values[cost.ops.index(name)]) for name in CONVS]


# ---- Net A --------------------------------------------------------------------------------------------------------


def test_gammas_leave_the_alive_counts_of_the_table() -> None:
    assert [int((np.abs(gamma) > THRESHOLD).sum()) for gamma in GAMMA_A] == ALIVE.tolist()


@pytest.mark.parametrize(
    ("make", "costs", "losses", "cost_total", "loss_total"),
    [
        (FlopsCost, [474810, 21318, 291600, 197676], [461244, 17248.2, 595511.94, 336372.16], 985404, 1410376.375),
        (lambda g: ParamsCost(g, weights_only=True), [735, 33, 1620, 306], [714, 26.7, 3308.4, 520.7], 2694, 4569.8),
        (lambda g: ActivationMemoryCost(g, unit="channels"), [7, 11, 10, 17], [6.8, 8.9, 11.7, 14.1], 45, 41.5),
    ],
    ids=["flops", "size", "activations"],
)
def test_net_a_counts(make, costs, losses, cost_total, loss_total) -> None:
    cost = make(net_a())
    assert of_convs(cost, cost.per_op(ALIVE)[0]) == pytest.approx(costs, rel=1e-5)
    assert of_convs(cost, linearised_per_op(cost, ALIVE, R)) == pytest.approx(losses, rel=1e-5)
    assert cost.value(ALIVE) == pytest.approx(cost_total, rel=1e-5)
    assert linearised_loss(cost, ALIVE, R) == pytest.approx(loss_total, rel=1e-5)


@pytest.mark.parametrize(
    ("name", "costs", "losses", "cost_total", "loss_total"),
    [
        (
            "P100",
            [51.0548400879, 24.8907108307, 45.5409851074, 63.4480857849],
            [49.59613, 15.85464, 51.54371, 55.44316],
            515.251526,
            461.267181,
        ),
        (
            "V100",
            [17.6222229, 20.2444458, 37.0400009, 51.6044464],
            [12.935112, 12.895112, 41.922222, 45.093777],
            395.168915,
            347.760895,
        ),
    ],
)
def test_net_a_roofline(name, costs, losses, cost_total, loss_total) -> None:
    cost = LatencyCost(net_a(), device(name))
    assert of_convs(cost, cost.per_op(ALIVE)[0] * 1e6) == pytest.approx(costs, rel=1e-5)
    assert of_convs(cost, linearised_per_op(cost, ALIVE, R) * 1e6) == pytest.approx(losses, rel=1e-5)
    assert cost.at(ALIVE) * 1e6 == pytest.approx(cost_total, rel=1e-5)
    assert linearised_loss(cost, ALIVE, R) * 1e6 == pytest.approx(loss_total, rel=1e-5)


@pytest.mark.parametrize(
    ("name", "total"), [("K80", 762.226135), ("P4", 1856.07898), ("T4", 1191.25854), ("TPU v2", 1185.50671)]
)
def test_net_a_roofline_totals(name: str, total: float) -> None:
    assert LatencyCost(net_a(), device(name)).value(ALIVE) * 1e6 == pytest.approx(total, rel=1e-5)


def test_net_a_at_batch_32() -> None:
    cost = LatencyCost(net_a(batch=32), device("V100"))
    assert cost.value(ALIVE) * 1e6 == pytest.approx(12274.2314, rel=1e-5)
    assert linearised_loss(cost, ALIVE, R) * 1e6 == pytest.approx(10498.7314, rel=1e-5)


def test_net_a_bytes() -> None:
    graph = net_a()
    bytes_of = Polynomial.of([node.op for node in graph.nodes], charged_bytes)
    values, slope_in, slope_out = bytes_of(
        graph.in_map @ ALIVE + graph.in_const, graph.out_map @ ALIVE + graph.out_const, np
    )
    names = [node.name for node in graph.nodes]
    assert [values[names.index(name)] for name in CONVS] == [15860, 18220, 33336, 46444]
    assert values.sum() == 355652
    loss = slope_in * (graph.in_map @ R) + slope_out * (graph.out_map @ R)
    assert loss.sum() == pytest.approx(312984.78, rel=1e-6)


def test_net_a_all_alive() -> None:
    assert FlopsCost(net_a()).value(None) == 3338580


@pytest.mark.parametrize(
    ("make", "slopes"),
    [
        (FlopsCost, [(95012, 95012), (-29120, 29120), (29160, -29160), (-11628, -11628)]),
        (lambda g: ParamsCost(g, weights_only=True), [(212, 212), (-110, 110), (162, -162), (-18, -18)]),
    ],
    ids=["flops", "size"],
)
def test_net_a_slope_over_gamma_at_the_first_and_last_channel(make, slopes) -> None:
    price = make(net_a()).gradient(ALIVE)
    found = [(p * np.sign(gamma[0]), p * np.sign(gamma[-1])) for p, gamma in zip(price, GAMMA_A, strict=True)]
    assert np.array(found) == pytest.approx(np.array(slopes), rel=1e-5)


def test_net_a_slope_over_gamma_of_latency() -> None:
    price = LatencyCost(net_a(), device("P100")).gradient(ALIVE) * 1e6
    found = [p * np.sign(gamma[0]) for p, gamma in zip(price, GAMMA_A, strict=True)]
    assert found == pytest.approx([21.998466, -16.486338, 3.344262, -8.923496], rel=1e-5)


def sigmoid(logit: float) -> float:
    return 1 / (1 + np.exp(-logit))


@pytest.mark.parametrize(
    ("open_logit", "closed_logit", "flops_loss", "size_loss"),
    [(10, -10, 1474687.38, 4620.05859), (1.5, -2.5, 1329790.75, 4226.42578)],
)
def test_net_a_with_logits(open_logit, closed_logit, flops_loss, size_loss) -> None:
    graph = net_a(with_norm=False)
    closed = graph.full_widths - ALIVE
    r = ALIVE * sigmoid(open_logit) + closed * sigmoid(closed_logit)
    assert FlopsCost(graph).value(ALIVE) == 985404
    assert linearised_loss(FlopsCost(graph), ALIVE, r) == pytest.approx(flops_loss, rel=1e-5)
    assert linearised_loss(ParamsCost(graph, weights_only=True), ALIVE, r) == pytest.approx(size_loss, rel=1e-5)


def test_net_a_slope_over_logits() -> None:
    price = FlopsCost(net_a(with_norm=False)).gradient(ALIVE)
    slope = [sigmoid(z) * (1 - sigmoid(z)) for z in (1.5, -2.5)]
    expected = [(14170.705, 6660.694), (4343.1455, 2041.42), (4349.1113, 2044.2242), (1734.2753, 815.16595)]
    assert np.outer(price, slope) == pytest.approx(np.array(expected), rel=1e-5)


# ---- single ops ---------------------------------------------------------------------------------------------------


def conv(batch: int) -> OpConfig:
    op = OpConfig("conv2d", batch, 11, 13, 17, 19, (7, 5), (2, 2), "same")
    assert (op.output_height, op.output_width) == (6, 7)
    return op


def loss(count, op: OpConfig, alive: tuple[int, int], r: tuple[float, float]) -> float:
    _, slope_in, slope_out = Polynomial.of([op], count)(np.array([alive[0]]), np.array([alive[1]]), np)
    return float(slope_in[0] * r[0] + slope_out[0] * r[1])


def cost_of(count, op: OpConfig, alive: tuple[int, int]) -> float:
    return float(Polynomial.of([op], count)(np.array([alive[0]]), np.array([alive[1]]), np)[0][0])


def test_conv() -> None:
    assert cost_of(flops, conv(1), (17, 19)) == 949620
    assert cost_of(flops, conv(32), (4, 9)) == 3386880
    assert loss(flops, conv(1), (17, 19), (17, 19)) == 1899240
    assert loss(flops, conv(32), (4, 9), (3, 7)) == 5174400
    assert cost_of(charged_bytes, conv(1), (17, 19)) == 58136
    assert cost_of(charged_bytes, conv(32), (4, 9)) == 126640
    assert loss(charged_bytes, conv(32), (4, 9), (3, 7)) == 100244


@pytest.mark.parametrize(("bandwidth", "nanoseconds"), [(2000, 3386.88), (20, 6332.0)])
def test_roofline_takes_the_slower_side(bandwidth: float, nanoseconds: float) -> None:
    value, _, _ = roofline_terms([conv(32)], 1000, bandwidth)(np.array([4.0]), np.array([9.0]), np)
    assert value[0] * 1e6 == pytest.approx(nanoseconds, rel=1e-6)


def test_roofline_tie_goes_to_the_arithmetic() -> None:
    op = OpConfig("dense", in_channels=1, out_channels=1)
    balance = flops(op) / charged_bytes(op)
    terms = roofline_terms([op], balance, 1.0)
    value, slope_in, _ = terms(np.array([1.0]), np.array([1.0]), np)
    assert slope_in[0] == pytest.approx(value[0])  # 2*out/peak; the bytes' slope would be 8/12 of it


def test_transposed_conv() -> None:
    op = OpConfig("conv2d_transpose", 1, 11, 13, 17, 29, (7, 5), (2, 2), "same")
    assert (op.output_height, op.output_width) == (22, 26)
    assert cost_of(flops, op, (17, 29)) == 4934930  # at each input position
    assert cost_of(charged_bytes, op, (17, 29)) == 145096
    assert kernel_weights(op) == 7 * 5 * 17 * 29


def test_grouped_and_3d_convs_are_counted_as_they_are() -> None:
    # no rows: MorphNet counts a grouped conv dense, and the bytes of a 3-d one in two dimensions
    grouped = OpConfig("conv2d", 1, 8, 8, 16, 32, (3, 3), padding="same", groups=4)
    assert flops(grouped) == 2 * 64 * 9 * (16 // 4) * 32
    assert charged_bytes(grouped) == 4 * (64 * 16 + 9 * (16 // 4) * 32 + 64 * 32)
    solid = OpConfig("conv3d", 1, 4, 5, 3, 7, (3, 3), padding="same", depth=6, kernel_depth=3)
    assert flops(solid) == 2 * 120 * 27 * 3 * 7
    assert charged_bytes(solid) == 4 * (120 * 3 + 27 * 3 * 7 + 120 * 7)


def test_dense() -> None:
    op, batched = OpConfig("dense", in_channels=17, out_channels=19), OpConfig("dense", batch=32)
    assert cost_of(flops, op, (17, 19)) == 646
    assert loss(flops, batched, (4, 9), (3, 7)) == 3520
    assert cost_of(charged_bytes, op, (17, 19)) == 1436


def test_depthwise() -> None:
    one, many = (OpConfig("depthwise_conv2d", b, 6, 7, 10, 10, (3, 2), padding="same") for b in (1, 32))
    assert cost_of(flops, one, (10, 10)) == 5040
    assert cost_of(flops, many, (9, 9)) == 145152
    # charged once: 32 * 2 * 6 * 7 * 6 * R; MorphNet's 161280 adds the same for the in slot's R of 3
    assert loss(flops, many, (4, 9), (3, 7)) == 161280 * 7 / (3 + 7)
    assert cost_of(kernel_weights, one, (10, 10)) == 60
    assert cost_of(kernel_weights, many, (9, 9)) == 54


def test_concatenation() -> None:
    for batch in (1, 32):
        op = OpConfig("concatenate", batch, 6, 7, 30, 30, operands=2)
        assert cost_of(flops, op, (30, 30)) == 0
        assert cost_of(charged_bytes, op, (30, 30)) == 4 * batch * 42 * 2 * 30
    assert cost_of(charged_bytes, OpConfig("concatenate", 1, 6, 7, 30, 30, operands=2), (30, 30)) == 10080
