"""Tables and profiles as text."""

from latency_lab.ops import OpConfig
from latency_lab.profiles import DeviceProfile, LookupTable, NetworkCorrection, Point, Roofline
from latency_lab.report import describe, table


def test_table_sets_numbers_to_the_right():
    text = table(["network", "ms"], [["seed", "10.25"], ["slim", "4"]])
    assert text.splitlines() == ["network     ms", "-------  -----", "seed     10.25", "slim         4"]


def test_table_without_rows_is_its_headers():
    assert table(["a", "b"], []) == "a  b\n-  -"


def test_describe_says_what_was_measured():
    op = OpConfig("dense", in_channels=8, out_channels=8)
    points = {(8, 8): Point(8, 8, 0.01, 0.009, 0.011)}
    profile = DeviceProfile(
        "pi4",
        "litert",
        "measured",
        Roofline(10.0, 5.0),
        threads=2,
        fusions=frozenset({"conv2d+relu"}),
        tables={op.static_key: LookupTable(op, points)},
        network=NetworkCorrection(a={"window": 1.07, "depthwise": 1.2}, b_ms=-0.00062, c_ms_per_byte=2e-8),
        steps=[{"family": "dense", "axis": "out", "quantum": 16, "slow_remainders": []}],
        holdout={"dense": {"median": 0.0123}},
        protocol={"rounds": 5},
    )
    text = describe(profile)
    assert text.splitlines()[0] == f"pi4: measured, litert, 2 threads, float32, digest {profile.digest}"
    for part in (
        "1 points in 1 tables",
        "rounds 5",
        "conv2d+relu",
        "1.070 * window, 1.200 * depthwise, -0.62 us a kernel, +20 us a MB of weights",
        "dense   0.0123",
        "16",
    ):
        assert part in text
