import itertools

import pytest

from latency_lab import runtimes
from latency_lab.errors import MissingRuntimeError, UsageError
from latency_lab.profiling import doctor
from latency_lab.profiling.doctor import standing_warnings, timing_warnings
from latency_lab.profiling.environment import samples

QUIET = {"load": 0.1}
GOOD = {"cores": 4, "governor": "performance", "quota_cores": None}


class FakeClock:
    """Each sample takes one second of wall time and, in turn, these seconds of CPU time."""

    def __init__(self, *cpu_seconds):
        self.samples = itertools.cycle(cpu_seconds)
        self.now = self.cpu_now = 0.0
        self.inside = False

    def wall(self):
        self.now += 1.0
        return self.now

    def cpu(self):
        self.cpu_now += next(self.samples) if self.inside else 0.0
        self.inside = not self.inside
        return self.cpu_now


def test_a_quiet_machine_has_no_warnings():
    assert standing_warnings(GOOD, QUIET) == []
    assert timing_warnings(FakeClock(1.0)) == []


def test_each_reason_is_named_with_numbers_and_what_to_do():
    (load,) = standing_warnings(GOOD, {"load": 3.0})
    assert "3.00 on 4 cores" in load
    (governor,) = standing_warnings({**GOOD, "governor": "powersave"}, QUIET)
    assert "'powersave'" in governor and "cpupower" in governor
    (quota,) = standing_warnings({**GOOD, "quota_cores": 1.5}, QUIET)
    assert "1.5 of 4 cores" in quota
    (single,) = standing_warnings({**GOOD, "cores": 1}, {"load": None})
    assert "one core" in single


def test_lost_time_and_spread_are_seen():
    (lost,) = timing_warnings(FakeClock(0.5))
    assert "taken away for 50%" in lost


def test_slow_moments_are_seen_and_slow_samples_are_not():
    moments = [1.0] * 12 + [0.5] * 3  # five of warm-up, then three in a row at a time
    (spread,) = timing_warnings(FakeClock(*[1.0] * 5, *moments * 10))
    assert "2.00 times" in spread
    assert timing_warnings(FakeClock(*[1.0] * 5, *[1.0, 1.3, 1.0] * 50)) == []


def test_samples_are_taken_a_few_in_a_row_between_rests():
    clock, order = FakeClock(1.0), []
    wall_s, cpu_s = samples(lambda: order.append("s") or clock.wall(), clock.cpu, 6, lambda: order.append("rest"))
    assert (len(wall_s), len(cpu_s)) == (6, 6)
    assert "".join(order) == "s" * 10 + "rest" + "s" * 6 + "rest" + "s" * 6


def test_a_runtime_that_does_not_start_is_reported_with_what_to_do():
    def absent(name):
        raise MissingRuntimeError(f"The runtime {name!r} is not installed. Run: pip install ...")

    found = doctor(clock=FakeClock(1.0), start_worker=absent)
    assert not any(check.works for check in found.runtimes)
    assert {check.name for check in found.runtimes} == set(runtimes.NAMES)
    assert "pip install" in str(found)


def test_an_edge_tpu_is_not_tried_with_an_operation_that_it_does_not_run():
    class Worker:
        hello = {"package": "ai-edge-litert", "version": "2", "device": "libedgetpu.so.1"}

        def block(self, path, settings):
            return {"status": "failed", "reason": "not all of it runs on libedgetpu.so.1; elsewhere: CONV_2D"}

        def close(self):
            pass

    found = doctor(clock=FakeClock(1.0), start_worker=lambda name: Worker(), names=["litert:edgetpu"])
    (check,) = found.runtimes
    assert check.works
    assert check.detail.startswith("ai-edge-litert 2, libedgetpu.so.1; nothing was run: Coral's Edge TPU runs what")
    assert "can be measured and compared" in check.detail


def test_runtimes_are_tried_by_name_and_say_where_they_run():
    class Worker:
        hello = {"package": "onnxruntime-openvino", "version": "1", "device": "OpenVINOExecutionProvider"}

        def block(self, path, settings):
            return {"status": "ok"}

        def close(self):
            pass

    found = doctor(clock=FakeClock(1.0), start_worker=lambda name: Worker(), names=["onnxruntime:openvino"])
    (check,) = found.runtimes
    assert (check.works, check.name) == (True, "onnxruntime:OpenVINOExecutionProvider")
    assert check.detail == "onnxruntime-openvino 1, OpenVINOExecutionProvider"
    with pytest.raises(UsageError, match="Did you mean 'litert'"):
        doctor(clock=FakeClock(1.0), names=["litrt"])
