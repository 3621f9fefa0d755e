"""Costs in a training graph: the same numbers as numpy's, in a few ops."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latency_lab.cost import FlopsCost, LatencyCost, ParamsCost, linearised_loss, worst_of
from latency_lab.graph import ChannelGraph
from latency_lab.profiles import DeviceProfile, load_profile
from latency_lab.profiles.correction import NetworkCorrection
from tests.unit.cost_nets import StepProfile, residual_net

keras = pytest.importorskip("keras")
tf = pytest.importorskip("tensorflow")

GRAPH = residual_net()
CORRECTION = NetworkCorrection(
    a={"window": 1.1, "pointwise": 1.2}, b_ms=-0.001, c_ms_per_byte=1e-7, cached_bytes=2e3, alone_bytes=520.0, once=0.5
)
"""The dense layer has 40 bytes of weights a channel and 40 more: from 12 channels on, a knot, 520 of them count."""
LATENCY = LatencyCost(GRAPH, StepProfile(CORRECTION))
COSTS = {
    "flops": FlopsCost(GRAPH),
    "latency": LATENCY,
    "analytic": LatencyCost(GRAPH, DeviceProfile.analytic("toy", peak_gflops=10, bandwidth_gb_s=4)),
    "worst": worst_of(LATENCY, 0.9 * LATENCY) + 1e-6 * ParamsCost(GRAPH),
}
OFF_KNOTS = st.floats(0.6, 31.9).filter(lambda w: min(abs(w % 1), 1 - w % 1) > 1e-3)


@pytest.mark.parametrize("name", COSTS)
@settings(max_examples=25, deadline=None)
@given(widths=st.tuples(OFF_KNOTS, OFF_KNOTS))
def test_values_and_slopes_are_numpys(name: str, widths: tuple[float, float]) -> None:
    cost = COSTS[name]
    exact = np.array(widths, np.float32).astype(float)
    tensor = tf.constant(exact, tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(tensor)
        value = cost.value(tensor, keras.ops)
    assert float(value) == pytest.approx(cost.value(exact), rel=1e-5)
    slopes = pytest.approx(cost.gradient(exact), rel=1e-5, abs=1e-9)  # float32 differences of much larger prices
    assert tape.gradient(value, tensor).numpy() == slopes
    assert cost.gradient(tensor, keras.ops).numpy() == slopes


@pytest.mark.parametrize("widths", [None, {}, np.array([8.0, 48.0]), [8.0, 48.0]])
def test_widths_in_any_form_are_keras_own_type(widths) -> None:
    assert float(LATENCY.value(widths, keras.ops)) == pytest.approx(LATENCY.value(widths), rel=1e-5)
    assert LATENCY.gradient(widths, keras.ops).numpy() == pytest.approx(LATENCY.gradient(widths), rel=1e-5)


@pytest.mark.parametrize("name", COSTS)
def test_slopes_at_knots_are_numpys(name: str) -> None:
    for widths in ([16.0, 32.0], [32.0, 48.0], [4.0, 16.0]):
        found = COSTS[name].gradient(tf.constant(widths), keras.ops).numpy()
        assert found == pytest.approx(COSTS[name].gradient(widths), rel=1e-5)


def test_linearised_loss_has_no_gradient_through_the_price() -> None:
    r, alive = tf.constant([3.0, 4.0]), tf.constant([5.5, 6.5])
    with tf.GradientTape() as tape:
        tape.watch([r, alive])
        loss = linearised_loss(LATENCY, alive, r, keras.ops)
    by_r, by_alive = tape.gradient(loss, [r, alive])
    assert by_alive is None
    assert by_r.numpy() == pytest.approx(LATENCY.gradient([5.5, 6.5]), rel=1e-5)
    assert float(loss) == pytest.approx(linearised_loss(LATENCY, [5.5, 6.5], np.array([3.0, 4.0])), rel=1e-5)


def test_a_latency_is_a_few_graph_ops_whatever_the_network() -> None:
    function = tf.function(lambda w: LATENCY.value(w, keras.ops)).get_concrete_function(tf.TensorSpec([2], tf.float32))
    ops = [op.type for op in function.graph.get_operations() if op.type not in {"Const", "Placeholder", "Identity"}]
    assert len(ops) < 70, ops


def test_a_copy_for_a_concatenation_has_the_channels_of_its_operand_at_all_widths():
    inputs = keras.Input((8, 8, 3))
    first = keras.layers.Conv2D(8, 3, padding="same")(inputs)
    second = keras.layers.Conv2D(6, 3, padding="same")(first)
    outputs = keras.layers.Conv2D(4, 1)(keras.layers.Concatenate()([first, second]))
    graph = ChannelGraph.from_model(keras.Model(inputs, outputs))
    profile = dataclasses.replace(load_profile("ethos-u55-128"), fusions=frozenset({"concatenate+copy"}))
    cost = LatencyCost(graph, profile)
    (copy,) = (k for k, name in enumerate(cost.ops) if name.startswith("avg_pool at "))
    moved = [matrix @ (graph.full_widths // 2) for matrix in (cost.formula.in_map, cost.formula.out_map)]
    assert [widths[copy] for widths in moved] == [4, 4]
