import dataclasses
import json

import numpy as np
import pytest

from latency_lab import runtimes
from latency_lab.errors import FileFormatError, UnmeasuredError
from latency_lab.fitting import fit_profile
from latency_lab.fitting.fusions import find_fusions, split
from latency_lab.fitting.network import (
    CACHED_BYTES,
    HOT_BYTES,
    closest,
    conformal_quantile,
    fewest,
    leave_one_out,
    told_apart,
)
from latency_lab.fitting.operations import closest_cache
from latency_lab.fitting.points import LEAST_SHARE, Measured, measured_ops
from latency_lab.ops import Network, OpConfig
from latency_lab.plan.general import CALL
from latency_lab.profiles import DeviceProfile, NetworkCorrection, Point, load_profile
from latency_lab.profiles.table import LookupTable
from latency_lab.profiling import Task
from tests.unit.synthetic import B_MS, A, chain, conv_tasks, network_ms, op_ms, write_journal


@pytest.fixture(scope="module")
def profile(tmp_path_factory):
    rng = np.random.default_rng(1)
    networks = [chain(rng.integers(4, 64, rng.integers(2, 9))) for _ in range(24)]
    tasks = [*conv_tasks(), *(Task(network, "network") for network in networks)]
    return fit_profile(write_journal(tmp_path_factory.mktemp("fit") / "pi.journal.jsonl", tasks))


CONV = OpConfig("conv2d", height=14, width=14, kernel_size=(3, 3), activation="relu")


def test_measured_points_are_exact_and_say_so(profile):
    op = CONV.with_channels(32, 17)
    (prediction,) = profile.predict([op])
    assert prediction.source == "measured"
    assert prediction.latency_ms == pytest.approx(op_ms(op))


def test_unmeasured_channels_are_predicted_and_held_out_errors_are_small(profile):
    ops = [CONV.with_channels(i, o) for i, o in ((23, 41), (50, 29), (9, 60))]
    for op, prediction in zip(ops, profile.predict(ops), strict=True):
        assert prediction.source == "predicted"
        assert prediction.latency_ms == pytest.approx(op_ms(op), rel=0.06)
        assert prediction.low_ms < prediction.latency_ms < prediction.high_ms
    assert profile.holdout["conv2d k3x3 s1x1"]["median"] < 0.05


def test_other_shapes_of_a_family_and_unknown_kinds(profile):
    near = dataclasses.replace(CONV, height=14, width=13).with_channels(32, 32)
    far = dataclasses.replace(CONV, height=112, width=112).with_channels(32, 32)
    unknown = OpConfig("add", height=14, width=14, in_channels=8, out_channels=8, operands=2)
    sources = [p.source for p in profile.predict([near, far, unknown])]
    assert sources == ["predicted", "extrapolated", "bounded"]
    assert profile.predict([unknown])[0].high_ms == float("inf")


def test_another_element_type_is_outside_of_what_was_measured(profile):
    ops = [CONV.with_channels(32, 17), CONV.with_channels(23, 41)]
    found = profile.predict([dataclasses.replace(op, dtype="int8") for op in ops])
    assert [prediction.source for prediction in found] == ["extrapolated"] * 2


def test_a_kind_whose_only_point_is_held_out_is_still_measured(profile):
    only = OpConfig("add", height=14, width=14, in_channels=8, out_channels=8, operands=2)
    table = LookupTable(only, {(8, 8): Point(8, 8, 0.25, 0.2, 0.3)})
    more = dataclasses.replace(profile, tables={**profile.tables, only.static_key: table})
    (found,) = more.predict([only])
    assert (found.latency_ms, found.source) == (0.25, "measured")


def test_a_mean_over_channels_has_no_steps(tmp_path):
    ops = [OpConfig("channel_mean", height=14, width=14, in_channels=c, out_channels=1) for c in range(8, 96, 8)]
    found = fit_profile(write_journal(tmp_path / "j.jsonl", [Task(Network.of(op)) for op in ops]))
    assert {step["quantum"] for step in found.steps} <= {1}


def test_the_cold_part_of_a_kernel_has_its_group_s_factor():
    rng = np.random.default_rng(0)
    hot, cold = rng.uniform(0.5, 3.0, (40, 4)), rng.uniform(0.2, 1.0, (40, 4))
    a, share = np.array([1.1, 0.9, 1.3, 1.0]), 0.4
    latency = (hot + share * cold) @ a
    terms = np.column_stack([hot, cold, np.full(40, 12.0), np.zeros((40, 2))])
    assert np.abs(leave_one_out(terms, latency, -1.0, 0.0)).max() < 0.01


def test_the_step_is_found(profile):
    steps = {(s["family"], s["axis"]): s["quantum"] for s in profile.steps}
    assert steps["conv2d k3x3 s1x1", "out"] == 16
    assert steps["conv2d k3x3 s1x1", "in"] == 1


def test_the_network_correction_is_found(profile):
    assert profile.network.a["window"] == pytest.approx(A, rel=0.03)
    assert profile.network.b_ms == pytest.approx(B_MS, abs=1e-3)
    assert profile.network.half_width < 0.05
    assert len(profile.network.residuals) == 24
    unseen = chain([30, 40, 50])
    assert profile.latency_ms([op for op, _ in unseen.nodes]) == pytest.approx(network_ms(unseen, ()), rel=0.05)


def test_what_a_call_costs_is_taken_off_the_kernels_of_a_network(tmp_path):
    rng = np.random.default_rng(1)
    networks = [chain(rng.integers(4, 64, rng.integers(2, 9))) for _ in range(24)]
    tasks = [*conv_tasks(), *(Task(network, "network") for network in networks)]
    found = fit_profile(write_journal(tmp_path / "npu.jsonl", tasks, call_ms=0.02)).network
    assert found.b_ms == pytest.approx(-0.02, abs=0.003)
    assert found.half_width < 0.05


def test_where_calls_cost_more_than_the_work_the_cheapest_operation_says_how_much(tmp_path):
    rng = np.random.default_rng(1)
    networks = [chain(rng.integers(4, 64, rng.integers(2, 9))) for _ in range(24)]
    tasks = [*conv_tasks(), *(Task(network, "network") for network in networks)]
    runtime, call_ms, cheap = "onnxruntime:OpenVINOExecutionProvider", 0.5, Task(Network.of(CALL))
    profile = fit_profile(write_journal(tmp_path / "npu.jsonl", [*tasks, cheap], call_ms=call_ms, runtime=runtime))
    conv = CONV.with_channels(32, 17)
    assert profile.predict([conv])[0].latency_ms == pytest.approx(op_ms(conv) - op_ms(CALL))
    unseen = chain([30, 40, 50])
    assert profile.latency_ms([op for op, _ in unseen.nodes]) == pytest.approx(network_ms(unseen, ()), rel=0.05)
    plain = fit_profile(write_journal(tmp_path / "cpu.jsonl", [*tasks, cheap], call_ms=call_ms))
    assert plain.predict([conv])[0].latency_ms == pytest.approx(op_ms(conv) + call_ms)


def test_what_stands_before_a_lone_operation_is_taken_off(tmp_path):
    runtime = "onnxruntime:OpenVINOExecutionProvider"
    pools = [OpConfig("max_pool", height=14, width=14).with_channels(c, c) for c in (16, 32, 48)]
    contexts = [context for pool in pools for context in runtimes.get(runtime).contexts_of(pool)]
    ops = [CALL, *pools, *contexts[:2]]
    journal = write_journal(tmp_path / "j.jsonl", [Task(Network.of(op)) for op in ops], call_ms=0.01, runtime=runtime)
    found = {m.op: m.point.latency_ms for m in measured_ops(journal)}
    assert set(found) == {*ops} - {pools[2]}, "nothing says what its context takes"
    assert found[contexts[0]] == pytest.approx(op_ms(contexts[0]) - op_ms(CALL))
    for pool in pools[:2]:
        assert found[pool] == pytest.approx(op_ms(pool))


def test_a_call_never_takes_all_of_an_operation(tmp_path):
    runtime, conv = "onnxruntime:CUDAExecutionProvider", CONV.with_channels(32, 17)
    journal = write_journal(
        tmp_path / "j.jsonl", [Task(Network.of(op)) for op in (CALL, conv)], call_ms=1.0, runtime=runtime
    )
    cheap = next(m.point for m in measured_ops(journal) if m.op == CALL)
    assert cheap.latency_ms == pytest.approx(LEAST_SHARE * (1.0 + op_ms(CALL)))
    assert cheap.low_ms <= cheap.latency_ms <= cheap.high_ms


def test_weights_that_a_lone_kernel_read_from_beyond_the_cache_are_not_charged_again():
    plain, cached = (NetworkCorrection(c_ms_per_byte=1e-6, cached_bytes=size) for size in (0.0, 2e6))
    assert [plain.memory_ms([1e6]), plain.memory_ms([1e6, 3e6])] == pytest.approx([1.0, 4.0])
    assert [cached.memory_ms([1e6]), cached.memory_ms([1e6, 3e6])] == pytest.approx([0.0, 2.0])
    alone = NetworkCorrection(c_ms_per_byte=1e-6, cached_bytes=2e6, alone_bytes=5e6)
    cheap = NetworkCorrection(c_ms_per_byte=1e-6, once=0.5)
    small, large = (OpConfig("dense", in_channels=1000, out_channels=n, use_bias=False) for n in (1000, 2250))
    many = OpConfig("conv2d", height=7, width=7, in_channels=1000, out_channels=2250, use_bias=False)
    assert [alone.warm_bytes(op) for op in (small, large, many)] == [4e6, 5e6, 9e6]
    assert [plain.warm_bytes(op) for op in (small, large, many)] == [4e6, 9e6, 9e6]
    assert [cheap.warm_bytes(op) for op in (small, large, many)] == [2e6, 4.5e6, 9e6]
    assert alone.latency_ms([large, many], [1.0, 2.0]) == pytest.approx(1.0 + 2.0 + 5.0 + 9.0 - 2.0)
    hot = NetworkCorrection(c_ms_per_byte=1e-6, hot_bytes=3e6)
    assert [hot.warm_bytes(op) for op in (small, large, many)] == [4e6, 9e6, 3e6]
    assert list(NetworkCorrection(b_ms=-1.0).per_kernel_ms(CONV, [10.0, 0.5])) == pytest.approx([9.0, 0.05])


def test_a_fit_that_knows_the_cache_is_closest_to_networks_it_has_not_seen():
    rng = np.random.default_rng(0)
    hot = rng.uniform(0.5, 3.0, (40, 4))
    weights = np.exp(rng.uniform(np.log(1e6), np.log(200e6), 40))
    terms = np.column_stack([hot, np.zeros((40, 4)), np.full(40, 12.0), weights, np.zeros(40)])
    for true in CACHED_BYTES[::4]:
        latency = hot.sum(axis=1) + 5e-8 * np.maximum(weights - true, 0.0)
        errors = {size: float(np.abs(leave_one_out(terms, latency, -1.0, size)).mean()) for size in CACHED_BYTES}
        assert min(errors, key=errors.get) == true


@pytest.mark.parametrize("once", [0.4, 1.5])
def test_a_fit_finds_what_weights_cost_that_are_used_once_a_run(once):
    rng = np.random.default_rng(0)
    hot, weights = rng.uniform(0.5, 3.0, (40, 4)), np.exp(rng.uniform(np.log(1e6), np.log(30e6), (40, 2)))
    latency = hot.sum(axis=1) + 5e-8 * np.maximum(weights @ [1.0, once] - 2e6, 0.0)
    terms = np.column_stack([hot, np.zeros((40, 4)), np.full(40, 12.0), weights])
    assert np.abs(leave_one_out(terms, latency, -1.0, 2e6)).max() < 0.01
    assert (
        np.abs(
            leave_one_out(np.column_stack([terms[:, :-2], weights.sum(axis=1), 0 * weights[:, 0]]), latency, -1.0, 2e6)
        ).max()
        > 0.02
    )


@pytest.mark.parametrize("true", [None, 2e6, 0.5e6])
def test_a_fit_finds_what_a_lone_kernel_finds_close_by(true):
    rng = np.random.default_rng(0)
    hot, kernels = rng.uniform(0.5, 3.0, (40, 4)), np.exp(rng.uniform(np.log(1e4), np.log(20e6), (40, 12)))
    choices = {}
    for size in HOT_BYTES:
        many = np.minimum(kernels, np.inf if size is None else size).sum(axis=1)
        choices[size] = np.column_stack([hot, np.zeros((40, 4)), np.full(40, 12.0), many, np.zeros(40)])
    latency = hot.sum(axis=1) + 5e-8 * choices[true][:, -2]
    assert closest(choices, latency, -1.0) == true


def test_no_size_of_cache_is_tried_that_few_weights_are_beyond():
    assert told_apart(np.array([0.4e6, 1e6, 1.9e6, 2.1e6])) == [0.0]
    assert told_apart(np.array([0.4e6, 5e6, 9e6])) == [0.0, 2e6, 4e6]
    assert told_apart(np.zeros(3)) == list(CACHED_BYTES)
    assert told_apart(np.full(5, 1e9)) == list(CACHED_BYTES)


def test_of_sizes_that_explain_as_much_the_smallest_is_taken():
    close, far = np.array([0.03, -0.05, 0.04, 0.02]), np.array([0.2, -0.3, 0.1, 0.2])
    assert fewest({0.0: far, 2e6: close + 0.001, 64e6: close}) == 2e6
    assert fewest({0.0: far, 2e6: far / 2, 64e6: close}) == 64e6
    assert fewest({0.0: close}) == 0.0


def test_chord_stands_on_step_edges_from_zero(profile):
    grid = profile.grid(CONV.with_channels(32, 50))
    assert list(grid.out_knots) == [0, 16, 32, 48, 50]
    assert grid.in_knots[0] == 0
    assert (grid.values_ms[0] == 0).all()
    assert (grid.values_ms[:, 0] == 0).all()
    assert grid.values_ms[-1, 2] == pytest.approx(op_ms(CONV.with_channels(32, 32)))
    assert grid.sources[-1][2] == "measured"
    assert (np.diff(grid.in_knots) > 0).all()


def test_a_kind_with_one_width_has_one_out_knot(profile):
    dense = profile.grid(OpConfig("dense", in_channels=40, out_channels=10))
    assert dense.values_ms.shape == (len(dense.in_knots), len(dense.out_knots))
    add = profile.grid(OpConfig("add", height=4, width=4, in_channels=40, out_channels=40, operands=2))
    assert list(add.out_knots) == [1.0]


def test_profile_survives_its_file_to_the_bit(profile, tmp_path):
    path = tmp_path / "pi.json"
    profile.save(path)
    again = load_profile(path)
    assert again.digest == profile.digest
    assert again.to_json() == profile.to_json()
    ops = [CONV.with_channels(23, 41), dataclasses.replace(CONV, height=112).with_channels(8, 9)]
    assert again.predict(ops) == profile.predict(ops)


def test_the_schema_is_json_schema_and_agrees_with_our_check(profile):
    jsonschema = pytest.importorskip("jsonschema")
    from importlib import resources

    schema = json.loads(resources.files("latency_lab.profiles").joinpath("schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(profile.to_json(), schema)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda d: d["network"].update(a="1"), r"Expected object, got string - at \$\.network\.a"),
        (lambda d: d.pop("tables"), r"Expected a value 'tables', found none - at \$"),
        (
            lambda d: d["tables"][0]["points"][0].pop(),
            r"Expected 7 to 7 items, got 6 - at \$\.tables\[0\]\.points\[0\]",
        ),
        (lambda d: d.update(version=9), r"Expected one of \[2\], got 9 - at \$\.version"),
        (lambda d: d.update(extra=1), r"Unexpected value 'extra' - at \$"),
        (lambda d: d["tables"][0]["op"].update(kind="nonsense"), "Not an operation"),
        (lambda d: d["predictors"]["conv2d"]["trees"]["right"].__setitem__(0, 10**6), "Expected indices from 0"),
    ],
)
def test_a_wrong_file_says_where_and_why(profile, tmp_path, spoil, message):
    data = json.loads(json.dumps(profile.to_json()))
    spoil(data)
    path = tmp_path / "bad.json"
    path.write_text(json.dumps(data))
    with pytest.raises(FileFormatError, match=message):
        load_profile(path)


def test_a_missing_profile_names_what_there_is(tmp_path):
    with pytest.raises(FileFormatError, match="no shipped profile 'nothing-like-it'"):
        load_profile("nothing-like-it")
    with pytest.raises(FileFormatError, match="Cannot read a device profile"):
        load_profile(tmp_path / "none.json")


def test_failed_operations_are_named_in_the_profile(tmp_path):
    tasks = conv_tasks()
    journal = write_journal(tmp_path / "j.jsonl", tasks, failures={tasks[0].key})
    found = fit_profile(journal, name="x")
    assert found.journal["failed"] == {tasks[0].key: "it cannot"}
    assert found.predict([tasks[0].network.nodes[0][0]])[0].source == "predicted"
    with pytest.raises(UnmeasuredError, match="it cannot"):
        fit_profile(write_journal(tmp_path / "k.jsonl", tasks[:1], failures={tasks[0].key}))


def _timed(op, ms, noise=0.0):
    return Measured(op, Point(op.in_channels, op.out_channels, ms, ms, ms + noise))


def test_fusions_are_seen_refused_or_left_open():
    conv = OpConfig("conv2d", height=8, width=8, in_channels=8, out_channels=8)
    merged = dataclasses.replace(conv, activation="gelu")
    ((rule, first, second),) = split(merged)
    assert (rule, first) == ("conv2d+gelu", conv)
    assert second.kind == "activation"
    nothing = OpConfig("softmax", in_channels=1, out_channels=1)
    parts = [_timed(conv, 1.0), _timed(second, 0.5), _timed(nothing, 0.01)]
    assert find_fusions([*parts, _timed(merged, 1.05)], (), ()) == {"conv2d+gelu"}
    assert find_fusions([*parts, _timed(merged, 1.5)], (), ()) == frozenset()
    calls = [_timed(conv, 1.0), _timed(second, 0.5), _timed(nothing, 0.4), _timed(merged, 1.1)]
    assert find_fusions(calls, (), ()) == frozenset()
    noisy = [_timed(conv, 1.0, noise=0.3), _timed(second, 0.5), _timed(merged, 1.05), _timed(nothing, 0.01)]
    assert find_fusions(noisy, (), ()) == frozenset()
    assert find_fusions(noisy, {"a+b"}, {"conv2d+gelu"}) == {"a+b", "conv2d+gelu"}


def test_split_of_pads_and_residuals():
    pad = OpConfig(
        "conv2d",
        height=8,
        width=8,
        in_channels=4,
        out_channels=8,
        kernel_size=(3, 3),
        padding=((1, 1), (1, 1)),
        residual=True,
    )
    found = {rule: (first, second) for rule, first, second in split(pad)}
    assert set(found) == {"conv2d+add", "pad+conv2d"}
    first, second = found["pad+conv2d"]
    assert (second.kind, second.output_height, first.height, first.padding) == ("pad", 10, 10, "valid")
    assert first.output_height == pad.output_height
    assert found["conv2d+add"][1].operands == 2


def test_conformal_quantile():
    assert conformal_quantile(np.arange(1, 10) / 10, 0.9) == 0.9
    assert conformal_quantile(np.arange(1, 20) / 20, 0.9) == 0.9
    assert conformal_quantile([0.3, 0.1], 0.9) == 0.3


def test_unknown_runtime_of_networks_is_no_surprise(tmp_path):
    few = fit_profile(write_journal(tmp_path / "few.jsonl", conv_tasks()))
    assert few.network.half_width == 0.5
    assert isinstance(few, DeviceProfile)
    assert few.network.latency_ms([CONV], [2.0]) == 2.0
    assert Network.of(CONV).outputs == (0,)


@pytest.mark.parametrize(
    ("sizes", "found"),
    [({"L1": 1 << 15, "L2": 1 << 20, "L3": 1 << 25}, 1 << 20), ({"L1": 1 << 15}, 1 << 15), ({}, None)],
)
def test_lone_weights_are_kept_by_the_closest_cache_but_the_first(sizes, found):
    assert closest_cache({"cache_bytes": sizes}) == found
