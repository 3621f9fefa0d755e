"""Trees and features: evaluated by numpy as scikit-learn fitted them, to the bit after a file, quick and small."""

import json

import numpy as np
import pytest

from latency_lab.errors import FileFormatError
from latency_lab.fitting import boosting
from latency_lab.fitting.operations import fit_ops, half_widths, out_of_fold
from latency_lab.fitting.points import Measured
from latency_lab.fitting.predictors import fit_predictor
from latency_lab.ops import OpConfig
from latency_lab.profiles import DeviceProfile, Point, Predictor, Roofline, Trees
from latency_lab.profiles.features import FEATURES, features, work


def convs(count, seed=0):
    rng = np.random.default_rng(seed)
    rows = zip(rng.integers(1, 9, count), rng.integers(4, 33, count), rng.integers(2, 200, (count, 2)), strict=True)
    return [OpConfig("conv2d", int(n), int(s), int(s), int(i), int(o), (3, 3)) for n, s, (i, o) in rows]


def tiled_ms(op):
    """A GPU of tiles of 32 positions x 32 channels, 2 us a call."""
    tiles = -(-op.output_positions // 32) * -(-op.out_channels // 32)
    return 2e-3 + 1e-7 * tiles * 9 * op.in_channels


def measured(ops, ms):
    return [Measured(op, Point(op.in_channels, op.out_channels, t, t, t)) for op, t in zip(ops, ms, strict=True)]


@pytest.fixture(scope="module")
def fitted():
    ops = convs(500)
    return fit_predictor("conv2d", measured(ops, map(tiled_ms, ops)), (1, 1), 1)


def test_tiles_of_positions_and_channels_are_learned(fitted):
    unseen = convs(300, seed=1)
    errors = np.abs(fitted.latency_ms(unseen) / [tiled_ms(op) for op in unseen] - 1)
    assert np.mean(errors < 0.1) > 0.85
    bare = Predictor("conv2d", (1, 1), fitted.coefficients, None, None, {})
    assert np.median(errors) < 0.6 * np.median(np.abs(bare.latency_ms(unseen) / [tiled_ms(op) for op in unseen] - 1))


def test_a_family_of_few_without_a_fast_kernel_is_told_from_the_others():
    def depthwise(size, channels, kernel, stride):
        fields = {"kernel_size": (kernel, kernel), "strides": (stride, stride)}
        return OpConfig("depthwise_conv2d", 1, size, size, channels, channels, **fields)

    rng = np.random.default_rng(0)
    many = [
        depthwise(int(s), int(c), k, 1)
        for s, c, k in zip(rng.integers(7, 112, 300), rng.integers(8, 200, 300), [3, 5, 7] * 100, strict=True)
    ]
    few = [depthwise(size, channels, 7, 2) for size, channels in ((7, 110), (12, 120), (32, 120), (56, 16), (80, 40))]
    times = [1e-3 + op.macs * 7e-8 for op in many] + [1e-3 + op.macs * 7e-7 for op in few]
    found = fit_predictor("depthwise_conv2d", measured([*many, *few], times), (1, 1), 1)
    unseen = [depthwise(111, 32, 7, 2), depthwise(28, 88, 7, 2)]
    assert found.latency_ms(unseen) == pytest.approx([1e-3 + op.macs * 7e-7 for op in unseen], rel=0.25)


def depthwise_rows_ms(op):
    """Channels in whole fours are fast; others are read a row at a time, each for 4 ns."""
    rows = op.kernel_size[0] * op.kernel_size[1] * op.in_channels * op.output_height
    return 1e-3 + (4e-6 * rows + 2e-7 * op.macs if op.in_channels % 4 else 1e-8 * op.macs)


def test_windows_that_are_read_row_by_row_are_told_from_numbers_and_from_whole_blocks():
    def depthwise(size, channels, kernel, stride=1):
        fields = {"kernel_size": (kernel, kernel), "strides": (stride, stride)}
        return OpConfig("depthwise_conv2d", 1, size, size, channels, channels, **fields)

    rng = np.random.default_rng(0)
    ops = [
        depthwise(int(s), int(c), k)
        for s, c, k in zip(rng.integers(14, 112, 300), rng.integers(8, 200, 300), [3, 5] * 150, strict=True)
    ]
    ops += [depthwise(size, channels, 7, 2) for size, channels in ((7, 108), (14, 120), (28, 120), (56, 16), (80, 40))]
    found = fit_predictor("depthwise_conv2d", measured(ops, map(depthwise_rows_ms, ops)), (1, 1), 4)
    smaller = [depthwise(7, 937, 5), depthwise(7, 533, 3)]  # than any that was measured: rows weigh more
    of_few = [depthwise(56, 41, 7, 2)]  # all that were measured of this family fill whole blocks
    bare = Predictor("depthwise_conv2d", (1, 1), found.coefficients, None, None, {}, block=4)
    for unseen in (smaller, of_few):
        times = [depthwise_rows_ms(op) for op in unseen]
        assert bare.latency_ms(unseen) == pytest.approx(times, rel=0.05)
        assert found.latency_ms(unseen) == pytest.approx(times, rel=0.2)


def test_weights_from_beyond_the_cache_take_longer_at_one_position():
    def dense_ms(op):
        size = op.weight_bytes
        return 1e-3 + size / 80e6 + max(0, size - 2e6) / 40e6

    rng = np.random.default_rng(0)
    ops = [
        OpConfig("dense", in_channels=int(i), out_channels=int(o))
        for i, o in zip(2 ** rng.uniform(6, 11, 300), 2 ** rng.uniform(4, 11, 300), strict=True)
    ]
    found = fit_predictor("dense", measured(ops, map(dense_ms, ops)), (1, 1), 1, cached=2e6)
    unseen = [OpConfig("dense", in_channels=i, out_channels=1000) for i in (250, 480, 1024, 4096)]
    times = [dense_ms(op) for op in unseen]
    assert found.latency_ms(unseen) == pytest.approx(times, rel=0.05)
    loaded = Predictor.from_json("dense", json.loads(json.dumps(found.to_json())))
    assert np.array_equal(loaded.latency_ms(unseen), found.latency_ms(unseen))
    many = [OpConfig("dense", height=8, width=8, in_channels=4096, out_channels=1000)]
    assert work(many, (1, 1), 2e6)[0, -1] == 0.0 < work(unseen, (1, 1), 2e6)[-1, -1]


def test_a_profile_of_before_has_fewer_coefficients_and_they_count_the_same():
    before = Predictor("conv2d", (1, 1), {"": (1e-3, 2e-2, 0.0, 0.0, 1e-2)}, None, (0.0, 0.0, 1e-2, 0.0, 0.0), {})
    data = before.to_json()
    del data["cached"]
    loaded, ops = Predictor.from_json("conv2d", data), convs(5)
    first = work(ops, (1, 1))
    assert loaded.latency_ms(ops) == pytest.approx(1e-3 + 2e-2 * first[:, 1] + 1e-2 * first[:, 4])
    assert loaded.cold_extra_ms(ops) == pytest.approx(1e-2 * first[:, 2])


def test_positions_of_a_dense_layer_are_examples_however_a_file_shapes_them():
    shapes = [(1, 40, 40), (1600, 1, 1), (4, 20, 20)]
    ops = [OpConfig("dense", n, h, w, 96, 384) for n, h, w in shapes]
    assert (np.ptp(features(ops), axis=0) == 0).all()
    assert (np.ptp(features([OpConfig("conv2d", n, h, w, 96, 384) for n, h, w in shapes]), axis=0) > 0).any()


def test_loaded_is_fitted_to_the_bit_and_alone_is_together(fitted):
    text = json.dumps(fitted.to_json())
    loaded = Predictor.from_json("conv2d", json.loads(text))
    ops = convs(50, seed=2)
    together = fitted.latency_ms(ops)
    assert np.array_equal(loaded.latency_ms(ops), together)
    assert [float(fitted.latency_ms([op])[0]) for op in ops] == list(together)


def test_what_is_stored_is_rounded_and_small(fitted):
    trees = fitted.trees
    assert all(float(f"{v:.7g}") == v for v in trees.number[:500])
    assert len(trees.number) < 20 * 500
    assert len(json.dumps(trees.to_json())) < 30 * len(trees.number)


def test_trees_follow_scikit_learn():
    from sklearn.tree import DecisionTreeRegressor

    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 5)).astype(np.float32)
    model = DecisionTreeRegressor(max_leaf_nodes=12, random_state=0).fit(x, rng.normal(size=200))
    tree = boosting._preorder(model.tree_)
    unseen = rng.normal(size=(500, 5)).astype(np.float32)
    assert tree(unseen) == pytest.approx(boosting.LEARNING_RATE * model.predict(unseen), rel=1e-5)


def test_trees_by_hand():
    trees = Trees(
        roots=np.array([0, 3], np.int32),
        feature=np.array([1, -1, -1, -1], np.int32),
        number=np.array([0.5, 10.0, 20.0, 1.0]),
        right=np.array([2, 0, 0, 0], np.int32),
        depth=1,
    )
    assert list(trees(np.array([[9, 0.5], [0, 0.6]], np.float32))) == [11.0, 21.0]
    for name, place, value in (("feature", 0, 2), ("right", 0, 9), ("roots", 1, 4), ("feature", 3, 0)):
        data = trees.to_json()
        data[name][place] = value
        with pytest.raises(FileFormatError, match=f"trees.{name}"):
            Trees.from_json(data, features=2)


def test_outliers_pull_little():
    x = np.linspace(0, 1, 400, dtype=np.float32)[:, None]
    y = np.where(x[:, 0] > 0.5, 1.0, 0.0)
    spoiled = y.copy()
    spoiled[::20] += 5.0
    assert np.abs(boosting.fit_trees(x, spoiled)(x) - y).mean() < 0.05


def test_features_know_the_batch_and_are_finite_for_every_shape():
    one = OpConfig("conv2d", height=7, width=7, in_channels=8, out_channels=8)
    eight = OpConfig("conv2d", 8, 7, 7, 8, 8)
    grouped = OpConfig("conv2d", height=7, width=7, in_channels=8, out_channels=8, groups=4)
    lone = OpConfig("softmax", in_channels=1, out_channels=1)
    pool = OpConfig("global_avg_pool", height=7, width=7, in_channels=3, out_channels=3)
    found = features([one, eight, grouped, lone, pool])
    assert found.shape == (5, FEATURES)
    assert np.isfinite(found).all()
    assert (found[0] != found[1]).any()
    assert work([eight], (1, 1))[0, 1] == pytest.approx(8 * work([one], (1, 1))[0, 1])
    assert features([]).shape == (0, FEATURES)


def test_intervals_hold_nine_in_ten_of_unseen_operations():
    rng = np.random.default_rng(0)
    ops = convs(700, seed=3)
    noisy = measured(ops, [tiled_ms(op) * float(np.exp(0.1 * rng.normal())) for op in ops])
    profile = fit_ops(DeviceProfile("x", "", "measured", Roofline(1, 1)), noisy[:300])
    predictions = profile.predict([m.op for m in noisy[300:]])
    inside = [p.low_ms <= m.point.latency_ms <= p.high_ms for p, m in zip(predictions, noisy[300:], strict=True)]
    assert 0.85 <= np.mean(inside) <= 0.95


def test_small_families_share_an_interval():
    errors = {"conv2d a": [0.01] * 30, "conv2d b": [0.02] * 3, "dense": [0.2] * 30}
    found = half_widths("conv2d", errors)
    assert found["conv2d a"] == 0.01
    assert found["conv2d b"] == 0.02
    assert found[""] == 0.04
    assert half_widths("add", errors) == {"": 0.7}


def test_every_point_is_predicted_by_a_fit_that_did_not_see_it():
    points = measured(convs(20), np.arange(1.0, 21.0))
    seen = []

    def fit(rest):
        seen.append({m.point.latency_ms for m in rest})
        return lambda unseen: np.array([m.point.latency_ms * (m.point.latency_ms not in seen[-1]) for m in unseen])

    assert list(out_of_fold(points, fit)) == [0.0] * 20
