from pathlib import Path
from types import SimpleNamespace

import pytest

from latency_lab import validation
from latency_lab.errors import UnmeasuredError, UsageError
from latency_lab.profiles import DeviceProfile, Roofline
from latency_lab.profiling import Protocol, WorkerDiedError, devices
from latency_lab.validation import Validation, compare, measure, measure_all, validate


class FakeWorker:
    """A model's time is the number in its file; every third block is five times as slow."""

    started = 0
    asked: list[str] = []

    def __init__(self, runtime, threads):
        type(self).started += 1
        self.hello = {"package": "fake", "version": "1"}
        self.blocks = 0

    def block(self, path, settings):
        text = Path(path).read_text()
        type(self).asked.append(Path(path).stem)
        if text == "dead":
            raise WorkerDiedError("the worker died: signal SIGSEGV")
        if text == "bad":
            return {"id": 0, "status": "failed", "reason": "ValueError: no model"}
        self.blocks += 1
        ms = float(text) * (5 if self.blocks % 3 == 0 else 1)
        summary = {"min": ms, "deciles": [ms] * 9, "median": ms}
        return {"id": 0, "status": "ok", "count": 4, "wall_ms": summary, "cpu_ms": None, "cold_ms": None}

    def close(self):
        pass


@pytest.fixture(autouse=True)
def _fake(monkeypatch):
    monkeypatch.setattr(devices, "LocalWorker", FakeWorker)
    FakeWorker.started, FakeWorker.asked = 0, []


def model(folder, name, text):
    path = folder / f"{name}.tflite"
    path.write_text(text)
    return str(path)


def test_measure_reports_the_protocols_statistic(tmp_path):
    found = measure(model(tmp_path, "m", "2.5"), "litert").to_json()
    assert found["latency_ms"] == 2.5
    assert (found["rounds"], found["samples"]) == (5, 20)
    assert found["interval_ms"][0] == 2.5
    assert found["environment"]["package"] == "fake"
    assert FakeWorker.started == 2
    assert isinstance(found["unstable"], bool)


def test_compare_interleaves_and_says_which_is_faster(tmp_path):
    slow, fast = model(tmp_path, "slow", "2.0"), model(tmp_path, "fast", "1.0")
    found = compare(slow, fast, "litert")
    assert found.ratio == 0.5
    assert len(FakeWorker.asked) == 24
    pairs = [set(FakeWorker.asked[i : i + 2]) for i in range(0, 24, 2)]
    assert all(pair == {"slow", "fast"} for pair in pairs)
    assert "b takes 0.500" in str(found)
    assert set(found.to_json()) == {"a", "b", "ratio", "interval", "faster", "unstable"}


def test_a_model_that_does_not_run_is_named_with_the_reason(tmp_path):
    with pytest.raises(UnmeasuredError, match=r"bad\.tflite cannot be measured: ValueError: no model"):
        measure(model(tmp_path, "bad", "bad"), "litert")
    with pytest.raises(UnmeasuredError, match="SIGSEGV"):
        measure(model(tmp_path, "dead", "dead"), "litert")
    with pytest.raises(UsageError, match="There is no model file"):
        measure(str(tmp_path / "none.tflite"), "litert")
    with pytest.raises(UsageError, match=r"litert runs \.tflite and \.keras files"):
        measure(_onnx(tmp_path), "litert")
    with pytest.raises(UsageError, match="argument `runtime`"):
        measure(model(tmp_path, "m", "1"), "litrt")


def _onnx(folder):
    path = folder / "m.onnx"
    path.write_text("1")
    return str(path)


def test_an_analytic_profile_cannot_be_validated():
    with pytest.raises(UsageError, match="names no runtime"):
        validate(DeviceProfile.analytic("v100", peak_gflops=1, bandwidth_gb_s=1), [])


def test_models_of_one_name_are_all_validated(monkeypatch):
    """A slim model has its seed's name."""
    seen = {}

    def measure_all(named, *args, **settings):
        seen.update(named)
        return [SimpleNamespace(model=name, latency_ms=1.0) for name in named], []

    monkeypatch.setattr(validation, "measure_all", measure_all)
    graph = SimpleNamespace(from_model=lambda model: model)
    monkeypatch.setattr(validation, "ChannelGraph", graph)
    monkeypatch.setattr(validation, "LatencyCost", lambda model, profile: SimpleNamespace(estimate=lambda: model))
    models = [SimpleNamespace(name="net", latency_ms=ms) for ms in (4.0, 2.0, 1.0)]
    profile = DeviceProfile("pi4", "litert", "measured", Roofline(10.0, 5.0))
    found = validate(profile, models)
    assert [row["model"] for row in found.to_json()["models"]] == ["net", "net (2)", "net (3)"]
    assert list(seen.values()) == models


def test_validation_counts_shares_and_errors():
    found = Validation("p", (("a", 1.04, 1.0), ("b", 0.92, 1.0), ("c", 1.3, 1.0), ("d", 1.0, 1.0))).to_json()
    assert found["within_5_percent"] == 0.5
    assert found["within_10_percent"] == 0.75
    assert found["median_error"] == pytest.approx(0.06)
    assert [round(m["error"], 2) for m in found["models"]] == [0.04, -0.08, 0.3, 0.0]


def test_rounds_are_those_of_the_protocol(tmp_path):
    assert measure(model(tmp_path, "m", "1"), "litert", protocol=Protocol(rounds=7)).statistic.rounds == 7


def test_all_models_have_extra_rounds_while_one_is_unstable(tmp_path):
    named = {name: model(tmp_path, name, "1") for name in ("m", "n", "o")}
    measured, blocks = measure_all(named, "litert", 1, start_worker=Stepping)
    assert not any(found.statistic.unstable for found in measured)
    assert len({len(found) for found in blocks}) == 1
    assert 5 < len(blocks[0]) < 15
    Stepping.count = 0
    few, _ = measure_all(named, "litert", 1, start_worker=Stepping, protocol=Protocol(extra_rounds=1))
    assert [found.statistic.rounds for found in few] == [6, 6, 6]
    assert few[1].statistic.unstable


class Stepping:
    """Steady, but for the second model, which is slow in its first three blocks."""

    hello = {"package": "fake", "version": "1"}
    count = 0

    def block(self, path, settings):
        ms = 1.0
        if Path(path).stem == "n":
            Stepping.count += 1
            ms += 0.3 * Stepping.count if Stepping.count <= 3 else 0.0
        summary = {"min": ms, "deciles": [ms] * 9, "median": ms}
        return {"status": "ok", "count": 4, "wall_ms": summary, "cpu_ms": None, "cold_ms": None}

    def close(self):
        pass
