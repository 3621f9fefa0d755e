import numpy as np
import pytest

from latency_lab.profiling import Protocol, ratio_interval, statistic
from latency_lab.profiling.drift import slowdowns
from latency_lab.profiling.protocol import block_latency_ms, quantile


def block(wall, cpu=None, round_=0, cold=None):
    found = {
        "round": round_,
        "count": 3,
        "wall_ms": {"min": wall, "deciles": [wall] * 9, "median": wall * 2},
        "cpu_ms": None,
    }
    if cpu is not None:
        found["cpu_ms"] = {"min": cpu, "deciles": [cpu] * 9, "median": cpu}
    found["cold_ms"] = None if cold is None else {"min": cold, "deciles": [cold] * 9, "median": cold}
    return found


def test_long_runs_take_cpu_time_and_short_ones_wall_time():
    assert block_latency_ms(block(5.0, 4.0)) == 4.0
    assert block_latency_ms(block(0.5, 0.1)) == 0.5
    assert block_latency_ms(block(5.0)) == 5.0


def test_latency_is_the_lower_quartile_over_rounds_and_the_median_is_of_medians():
    found = statistic([block(t) for t in (2.0, 1.5, 9.0, 1.6, 3.0)])
    assert found.latency_ms == 1.6
    assert found.median_ms == 4.0
    assert (found.rounds, found.samples) == (5, 15)
    assert found.low_ms < 1.6 < found.high_ms
    assert statistic([block(2.0)]).latency_ms == 2.0


def test_a_round_of_a_slow_moment_counts_little():
    corrected_too_far = statistic([block(t) for t in (1.3, 1.04, 1.05, 1.06, 1.07)], [1.4, 1.0, 1.0, 1.0, 1.0])
    assert corrected_too_far.latency_ms == 1.04  # and not 1.3 / 1.4
    assert not corrected_too_far.unstable
    all_slow = statistic([block(t) for t in (1.4, 1.41, 1.42, 1.43, 1.44)], [1.4] * 5)
    assert all_slow.latency_ms == pytest.approx(1.41 / 1.4)


def test_quantile_is_numpy_s_inverse_of_the_weighted_distribution():
    rng = np.random.default_rng(0)
    values, weights = rng.random((50, 7)), rng.random((50, 7)) + 0.01
    for share in (0.0, 0.25, 0.5, 1.0):
        expected = np.quantile(values, share, axis=1, weights=weights, method="inverted_cdf")
        np.testing.assert_array_equal(quantile(values, weights, share), expected)


def test_a_wide_interval_is_unstable_and_a_narrow_one_is_not():
    assert statistic([block(t) for t in (1.0, 1.5, 2.0, 3.0, 4.0)]).unstable
    assert not statistic([block(t) for t in (1.0, 1.01, 1.02, 1.03, 1.2)]).unstable


def test_cold_time_is_the_median_over_rounds():
    assert statistic([block(1, cold=c) for c in (3.0, 2.0, 9.0)]).cold_ms == 3.0
    assert statistic([block(1)]).cold_ms is None


def test_ratio_of_equal_models_includes_one_and_of_different_ones_does_not():
    rng = np.random.default_rng(0)
    noise = [block(1 + 0.05 * rng.random()) for _ in range(12)]
    other = [block(1 + 0.05 * rng.random()) for _ in range(12)]
    ratio, low, high = ratio_interval(noise, other)
    assert low <= 1 <= high
    halves = [block(0.5 + 0.02 * rng.random()) for _ in range(12)]
    ratio, low, high = ratio_interval(halves, other)
    assert ratio == pytest.approx(0.5, abs=0.02)
    assert low < ratio < high < 1


def test_a_round_that_is_next_to_nothing_is_left_out():
    assert statistic([block(t) for t in (2.0, 2.2, 0.01, 2.2, 3.0)]).latency_ms == 2.0
    assert statistic([block(t) for t in (2.0, 2.2, 0.6, 2.4, 3.0)]).latency_ms == 2.0


def test_a_whole_network_takes_more_runs_a_block():
    protocol = Protocol(min_repeats=3, network_repeats=9)
    assert [protocol.settings(whole)["min_repeats"] for whole in (False, True)] == [3, 9]


def test_what_all_operations_of_a_moment_have_in_common_is_the_machine_s():
    rng = np.random.default_rng(0)
    true, moments = rng.uniform(0.01, 5.0, 120), [1.0, 1.4, 1.1, 2.0, 1.0, 1.0]
    names, times, slow = [], [], []
    for moment in moments:
        order = rng.permutation(120)
        noise = np.exp(0.02 * np.abs(rng.standard_normal(120)))
        noise[rng.permutation(120)[:10]] *= 3.0  # disturbed, each on its own
        names += [f"op {i}" for i in order]
        times += list(true[order] * moment * noise)
        slow += [moment] * 120
    found = slowdowns(names, [""] * 720, times)
    assert found == pytest.approx(np.array(slow), rel=0.02)


def test_times_of_nothing_disturb_no_other():
    names = [f"op {i}" for i in range(60)] * 4
    times = np.where(np.arange(240) % 60 < 5, 0.0, 2.0) * np.repeat([1.0, 1.0, 1.5, 1.0], 60)
    assert slowdowns(names, [""] * 240, times).tolist() == pytest.approx([1.0] * 120 + [1.5] * 60 + [1.0] * 60)


def test_each_board_has_moments_of_its_own():
    names = [f"op {i}" for i in range(60) for _ in "ab"] * 4
    found = slowdowns(names, ["a", "b"] * 240, [1.0, 1.3] * 240)
    assert found.tolist() == pytest.approx([1.0, 1.3] * 240)


@pytest.mark.parametrize("count", [0, 1, 39])
def test_too_few_blocks_tell_nothing_of_the_machine(count):
    assert slowdowns(["a"] * count, [""] * count, np.linspace(1.0, 2.0, count)).tolist() == [1.0] * count


def test_a_statistic_is_at_the_good_speed():
    found = statistic([block(1.0, cold=2.0), block(1.5, cold=3.0)], [1.0, 1.5])
    assert (found.latency_ms, found.low_ms, found.high_ms, found.cold_ms) == (1.0, 1.0, 1.0, 2.0)
