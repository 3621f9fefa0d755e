import io
import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from latency_lab.runtimes import worker
from latency_lab.runtimes.worker import Settings


class FakeClock:
    """Stands still but for what runs on it."""

    def __init__(self):
        self.now = 0.0
        self.cpu_now = 0.0

    def wall(self):
        return self.now

    def cpu(self):
        return self.cpu_now

    def resolution(self):
        return 1e-6


class FakeModel:
    """Takes 1 ms of CPU and, every third run, 5 ms more of wall time."""

    clock = FakeClock()
    seconds = 1e-3

    def __init__(self, path, threads, kernels):
        if "broken" in path:
            raise ValueError("cannot load this")
        self.runs = 0

    def run(self):
        self.runs += 1
        self.clock.now += self.seconds + (5e-3 if self.runs % 3 == 0 else 0.0)
        self.clock.cpu_now += self.seconds

    def kernel_times_ms(self):
        return [0.25] * self.runs

    def close(self):
        pass

    @staticmethod
    def version():
        return {"package": "fake", "version": "1"}


def test_a_block_repeats_to_its_length_and_keeps_wall_and_cpu_apart():
    model, clock = FakeModel("m", 1, False), FakeModel.clock
    found = worker.time_block(model, Settings(block_ms=20.0, warm_up=2), clock, 1e-6, True)
    assert found["count"] == 20
    assert model.runs == 22
    assert found["wall_ms"]["min"] == pytest.approx(1.0)
    assert found["wall_ms"]["deciles"][8] == pytest.approx(6.0)
    assert found["cpu_ms"]["median"] == pytest.approx(1.0)
    assert len(found["wall_ms"]["deciles"]) == 9
    assert found["cold_ms"] is None


def test_short_runs_are_batched_to_twenty_times_the_resolution():
    class Short(FakeModel):
        seconds = 2e-6

        def run(self):
            self.clock.now += self.seconds

    found = worker.time_block(Short("m", 1, False), Settings(), FakeModel.clock, 1e-6, True)
    assert found["repeats"] == 10
    assert found["wall_ms"]["min"] == pytest.approx(2e-3)


def test_a_long_run_has_at_least_three_repeats():
    class Long(FakeModel):
        seconds = 0.5

    assert worker.time_block(Long("m", 1, False), Settings(), FakeModel.clock, 1e-6, True)["count"] == 3


def test_several_threads_have_no_cpu_time():
    found = worker.time_block(FakeModel("m", 2, False), Settings(), FakeModel.clock, 1e-6, False)
    assert found["cpu_ms"] is None


def test_kernel_times_leave_out_warm_up_and_cold_runs():
    class Kernels(FakeModel):
        def kernel_times_ms(self):
            return [9.0, 9.0] + [0.5] * (self.runs - 4) + [2.0, 2.0]

    settings = Settings(kernels=True, cold=2, flush_bytes=80)
    found = worker.time_block(Kernels("m", 1, True), settings, FakeModel.clock, 1e-6, True)
    assert found["wall_ms"]["min"] == found["wall_ms"]["deciles"][8] == pytest.approx(0.5)
    assert found["cold_ms"]["median"] == pytest.approx(2.0)
    assert found["cpu_ms"] is None


def test_onnxruntime_profile_counts_neither_reorders_nor_context():
    def event(name, op, duration):
        return (
            f'{{"cat" : "Node","pid" :1,"tid" :1,"dur" :{duration},"ts" :1,"ph" : "X","name" :"{name}_kernel_time",'
            f'"args" : {{"provider" : "CPUExecutionProvider","op_name" : "{op}"}}}},'
        )

    run = [
        event("op0_nchwc", "Conv", 30),
        event("context_residual_nchwc", "Conv", 500),
        event("reorder", "ReorderOutput", 700),
        event("op0_relu", "Relu", 12),
        '{"cat" : "Session","pid" :1,"tid" :1,"dur" :999,"ts" :1,"ph" : "X","name" :"model_run","args" : {}},',
    ]
    assert worker.OnnxRuntimeModel.parse("\n".join(["[", *run, *run, "]"])) == pytest.approx([0.042, 0.042])


def kernel_event(name, op, begin, duration, inputs):
    shapes = ",".join(['{"float":[1,16,2,2]}'] * inputs)
    return (
        f'{{"cat" : "Node","dur" :{duration},"ts" :{begin},"ph" : "X","name" :"{name}_kernel_time",'
        f'"args" : {{"input_type_shape" : [{shapes}],"op_name" : "{op}","output_type_shape" : [{{"float":[1,16]}}]}}}},'
    )


def run_event(name, begin, duration):
    return f'{{"cat" : "Session","dur" :{duration},"ts" :{begin},"ph" : "X","name" :"{name}","args" : {{}}}},'


RUN = [run_event("SequentialExecutor::Execute", 100, 90), run_event("model_run", 95, 120)]


def test_a_kernels_time_is_that_to_the_next_ones_begin_less_the_profilers_share():
    overhead = worker.KernelOverhead(fixed_us=1.5, input_us=0.25, last_us=3.0)
    first = [kernel_event("op0", "Conv", 110, 9, 2), kernel_event("r", "ReorderOutput", 125, 9, 1), *RUN]
    second = [kernel_event("op0", "Relu", 110, 1, 1), kernel_event("op0_add", "Add", 150, 4, 2), *RUN]
    found = worker.OnnxRuntimeModel.parse("\n".join(first + second), "", overhead)
    assert found == pytest.approx([15e-3 - 2e-3, (40 - 1.75 + 40 - 5.0) * 1e-3])


def test_the_profilers_share_follows_the_reference_kernels_of_the_run():
    overhead = worker.KernelOverhead(fixed_us=4.0, input_us=0.0, span_us=5.0)
    events = [
        kernel_event("context_reference0", "Abs", 100, 2, 1),
        kernel_event("context_reference1", "Abs", 110, 2, 1),
        kernel_event("op0", "Relu", 120, 6, 1),
        kernel_event("context_end", "PRelu", 138, 3, 2),
        *RUN,
    ]
    assert worker.OnnxRuntimeModel.parse("\n".join(events), "", overhead) == pytest.approx([18e-3 - 8e-3])


def test_a_model_that_names_its_kernel_is_timed_by_that_alone():
    events = [kernel_event("r", "ReorderInput", 101, 7, 1), kernel_event("context_conv", "Conv", 110, 30, 2), *RUN]
    assert worker.OnnxRuntimeModel.parse("\n".join(events), "ReorderInput") == pytest.approx([0.007])


def test_what_is_left_of_an_empty_kernel_is_above_zero():
    class Empty(FakeModel):
        def kernel_times_ms(self):
            return [-1e-4] * self.runs

    found = worker.time_block(Empty("m", 1, True), Settings(kernels=True), FakeModel.clock, 1e-6, True)
    assert found["wall_ms"]["min"] == worker.SHORTEST_MS


def test_worker_answers_every_line_and_a_broken_model_is_one_failed_block():
    requests = [
        {"id": 1, "path": "good"},
        {"id": 2, "path": "broken"},
        {"id": 3, "model": "AAAA", "settings": {"min_repeats": 4}},
    ]
    sink = io.StringIO()
    worker.serve(io.StringIO("\n".join(map(json.dumps, requests)) + "\n"), sink, FakeModel, "fake", 1, FakeModel.clock)
    hello, first, second, third = map(json.loads, sink.getvalue().splitlines())
    assert (hello["runtime"], hello["package"], hello["threads"], hello["worker"]) == (
        "fake",
        "fake",
        1,
        worker.VERSION,
    )
    assert (first["id"], first["status"]) == (1, "ok")
    assert second == {"id": 2, "status": "failed", "reason": "ValueError: cannot load this"}
    assert third["status"] == "ok"
    assert third["count"] >= 4


def test_summary():
    found = worker.summary(list(np.arange(1.0, 12.0)))
    assert found["min"] == 1.0
    assert found["median"] == 6.0
    assert found["deciles"] == [2, 3, 4, 5, 6, 7, 8, 9, 10]


def test_worker_file_is_python_3_9_and_needs_nothing_but_numpy_and_a_runtime():
    import ast
    from pathlib import Path

    tree = ast.parse(Path(worker.__file__).read_text(), feature_version=(3, 9))
    imported = {
        name.split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for name in ([alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""])
    }
    import sys

    assert imported - set(sys.stdlib_module_names) == {
        "numpy",
        "ai_edge_litert",
        "tflite_runtime",
        "onnxruntime",
        "tensorflow",
    }


# ---- devices --------------------------------------------------------------------------------------------------------


def kernel(index, name, inputs, outputs):
    return {"index": index, "op_name": name, "inputs": np.array(inputs), "outputs": np.array(outputs)}


CHAIN = [
    kernel(0, "CONV_2D", [0, 1, -1], [2]),
    kernel(1, "SPLIT", [2], [3, 4]),
    kernel(2, "SOFTMAX", [3], [5]),
    kernel(3, "ADD", [5, 4], [6]),
]


@pytest.mark.parametrize(
    ("delegates", "left"),
    [
        ([], ["CONV_2D", "SPLIT", "SOFTMAX", "ADD"]),
        ([kernel(4, "DELEGATE", [0, 1], [6])], []),
        ([kernel(4, "DELEGATE", [0, 1], [3, 4]), kernel(5, "DELEGATE", [5, 4], [6])], ["SOFTMAX"]),
        ([kernel(4, "TfLiteXNNPackDelegate", [0, 1], [2])], ["SPLIT", "SOFTMAX", "ADD"]),
    ],
)
def test_what_no_delegate_took_is_found_from_the_outputs_back(delegates, left):
    assert worker.undelegated([*CHAIN, *delegates], [6]) == left


def test_what_no_output_needs_is_not_run():
    assert worker.undelegated(CHAIN, [5]) == ["CONV_2D", "SPLIT", "SOFTMAX"]


def test_kernels_of_another_provider_are_named_with_it():
    def event(name, op, provider):
        return {"name": name, "args": {"op_name": op, "provider": provider}}

    events = [
        event("a_kernel_time", "Conv", "CUDAExecutionProvider"),
        event("b_kernel_time", "LRN", "CPUExecutionProvider"),
        {"name": "model_run", "args": {}},
    ]
    assert worker.kernels_elsewhere(json.dumps(events), "CUDAExecutionProvider") == ["LRN (CPUExecutionProvider)"]
    with pytest.raises(RuntimeError, match=r"not all of it runs on CUDA; elsewhere: LRN, Slice$"):
        worker.none_elsewhere("CUDA", ["Slice", "LRN", "LRN"])
    worker.none_elsewhere("CUDA", [])


def test_a_device_settles_until_a_run_is_no_faster(monkeypatch):
    clock, runs = FakeClock(), []
    monkeypatch.setattr(worker.time, "perf_counter", clock.wall)

    def run(seconds):
        runs.append(seconds)
        clock.now += seconds

    times = iter([9.0, 2.0, 1.0, 1.0, 1.0])
    worker.settle(lambda: run(next(times)))
    assert runs == [9.0, 2.0, 1.0, 1.0]
    times = iter(range(30, 0, -1))
    worker.settle(lambda: run(float(next(times))))
    assert runs[4:] == list(range(30, 20, -1))


def test_a_device_s_name_and_options_are_told_apart_and_put_together_again():
    text = "gpu,enforce_f32=1,path=a=b"
    name, options = worker.device_and_options(text)
    assert (name, options) == ("gpu", {"enforce_f32": "1", "path": "a=b"})
    assert worker.device_name(name, options) == text
    with pytest.raises(ValueError, match="Expected name=value. Received: 'fast'"):
        worker.device_and_options("gpu,fast")


@pytest.mark.parametrize(
    ("given", "provider"),
    [
        ("cuda", "CUDAExecutionProvider"),
        ("WebGPUExecutionProvider", "WebGpuExecutionProvider"),
        ("OpenVINO", "OpenVINOExecutionProvider"),
        ("cpu", "CPUExecutionProvider"),
        ("OwnExecutionProvider", "OwnExecutionProvider"),
    ],
)
def test_providers_have_short_names(given, provider):
    assert worker.provider_of(given) == provider


def test_loaders_on_devices():
    on = worker.LOADERS["litert"].on
    assert on("CPU") is worker.LiteRtModel
    assert (on("edgetpu").delegate, on("edgetpu").one_thread) == (worker.EDGE_TPU, False)
    assert on("/opt/own.so,a=1").options == {"a": "1"}
    assert (on("GPU").device, on("npu").device) == ("gpu", "npu")
    assert worker.LOADERS["onnxruntime"].on("cpu") is worker.OnnxRuntimeModel
    assert worker.LOADERS["onnxruntime"].on("cuda,device_id=1").options == {"device_id": "1"}


class FakeSession:
    """An ONNX Runtime session of one input and one output, on whatever provider; and what is bound where."""

    def __init__(self, model, options, providers, enable_fallback):
        self.options, self.bound = options, []

    def get_session_options(self):
        return self.options

    def get_inputs(self):
        return [SimpleNamespace(name="x", type="tensor(float)", shape=[1, 4])]

    def get_outputs(self):
        return [SimpleNamespace(name="y")]

    def io_binding(self):
        return SimpleNamespace(
            bind_ortvalue_input=lambda name, where: self.bound.append((name, *where)),
            bind_output=lambda *where: self.bound.append(where),
            synchronize_outputs=lambda: None,
        )

    def run_with_iobinding(self, binding):
        pass

    def end_profiling(self):
        path = self.options.profile_file_prefix + "_now.json"
        with open(path, "w") as file:
            file.write("[]")
        return path


def test_inputs_and_outputs_are_in_the_memory_of_the_provider_s_device(tmp_path, monkeypatch):
    fake = SimpleNamespace(
        InferenceSession=FakeSession,
        SessionOptions=lambda: SimpleNamespace(add_session_config_entry=lambda name, value: None),
        OrtValue=SimpleNamespace(ortvalue_from_numpy=lambda array, memory, number: (memory, number)),
    )
    monkeypatch.setitem(sys.modules, "onnxruntime", fake)
    monkeypatch.setattr(worker.tempfile, "gettempdir", lambda: str(tmp_path))
    for device, where in (
        ("cuda,device_id=1", ("cuda", 1)),
        ("cuda", ("cuda", 0)),
        ("openvino,device_id=GPU.1", ("cpu", 0)),
    ):
        model = worker.OnnxRuntimeModel.on(device)("m.onnx", 1, False)
        assert model._session.bound == [("x", *where), ("y", *where)]
        model.close()


def test_openvino_is_told_to_compute_float32_models_in_float32_on_a_cpu_and_one_thread_is_not_pinned():
    def told(name, threads=2):
        return worker.OnnxRuntimeModel.on(name).provider_options(threads)

    assert json.loads(told("openvino", 1)["load_config"]) == {"CPU": {"ENABLE_CPU_PINNING": "NO"}}
    assert told("openvino,load_config=mine.json", 1)["load_config"] == "mine.json"

    assert told("openvino") == {"num_of_threads": "2", "precision": "FP32"}
    assert told("openvino,precision=ACCURACY") == {"num_of_threads": "2", "precision": "ACCURACY"}
    assert told("openvino,device_type=NPU") == {"num_of_threads": "2", "device_type": "NPU"}
    assert told("cuda,device_id=1") == {"device_id": "1"}


class Neighbour:
    """A core on which everything takes half as long again from one moment to another, and a second one beside it."""

    def __init__(self, monkeypatch, slow):
        self.clock, self.slow, self.core, self.moves = FakeClock(), slow, 0, []
        monkeypatch.setattr(worker.os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
        monkeypatch.setattr(worker.os, "sched_setaffinity", self._set, raising=False)

    def _set(self, _, cores):
        self.moves.append(set(cores))
        self.core = min(cores)

    def work(self, seconds):
        self.clock.now += seconds * (1.5 if self.slow(self.core, self.clock.now) else 1.0)

    def model(self, seconds):
        class Model(FakeModel):
            runs = 0

            def run(model):  # noqa: N805 the machine is `self`
                model.runs += 1
                self.work(seconds)

            def kernel_times_ms(model):  # noqa: N805
                return [7.0] * model.runs

        return Model("m", 1, False)

    def pace(self):
        return worker.Pace(self.clock, lambda: self.work(1e-5))


def test_repeats_wait_for_the_core_to_run_at_full_speed(monkeypatch):
    machine = Neighbour(monkeypatch, lambda core, now: now % 0.06 > 0.02)  # for 40 ms of 60, on both
    pace = machine.pace()
    machine.clock.now = 0.06 * 100 + 0.045
    found = worker.time_block(machine.model(5e-4), Settings(), machine.clock, 1e-6, True, pace)
    assert found["wall_ms"]["deciles"][8] == pytest.approx(0.5)
    assert 0.01 < pace.waited < 0.02
    patient = Settings(patience_ms=2.0, block_ms=2.0)
    machine.clock.now = 0.06 * 200 + 0.021
    found = worker.time_block(machine.model(5e-4), patient, machine.clock, 1e-6, True, pace)
    assert found["wall_ms"]["min"] == pytest.approx(0.75)
    assert machine.clock.now < 0.06 * 200 + 0.035
    before = pace.waited
    worker.time_block(machine.model(5e-4), Settings(patience_ms=0), machine.clock, 1e-6, True, pace)
    assert pace.waited == before


def test_a_moment_that_is_faster_than_all_others_is_not_full_speed(monkeypatch):
    """A clock that is boosted for 1 ms of 50: blocks that waited for that would wait all of their patience."""
    machine = Neighbour(monkeypatch, lambda core, now: now % 0.05 > 0.001)
    pace = machine.pace()
    machine.clock.now = 10.02
    worker.time_block(machine.model(5e-4), Settings(), machine.clock, 1e-6, True, pace)
    before = pace.waited
    for _ in range(20):
        machine.clock.now += 0.0313
        worker.time_block(machine.model(5e-4), Settings(), machine.clock, 1e-6, True, pace)
    assert pace.waited - before < 20 * 1e-3


def test_a_core_that_stays_slow_is_left_for_another_and_given_back(monkeypatch):
    machine = Neighbour(monkeypatch, lambda core, now: core == 0 and now > 1)
    pace = machine.pace()
    assert machine.moves[-1] == {0, 1}
    machine.clock.now, machine.core = 2.0, 0
    model = machine.model(5e-4)
    found = worker.time_block(model, Settings(warm_up=1), machine.clock, 1e-6, True, pace)
    assert machine.core == 1
    assert found["wall_ms"]["min"] == pytest.approx(0.5)
    assert model.runs == 1 + found["count"] + 1  # one more after the move, not counted
    pace.release()
    assert machine.moves[-1] == {0, 1}


def test_what_stays_slow_is_full_speed_after_a_while(monkeypatch):
    machine = Neighbour(monkeypatch, lambda core, now: now > 1)
    pace = machine.pace()
    machine.clock.now = 2.0
    pace.wait(0.05)
    assert pace.waited > 0.05
    machine.clock.now = 33.0
    before = pace.waited
    assert pace.wait(0.05) is False
    assert pace.waited - before < 1e-4


def test_kernel_times_leave_out_runs_that_warm_a_core_up(monkeypatch):
    machine = Neighbour(monkeypatch, lambda core, now: core == 0 and now > 1)
    pace = machine.pace()
    machine.clock.now, machine.core = 2.0, 0
    model = machine.model(5e-4)
    model.kernel_times_ms = lambda: [9.0, 9.0] + [1.0] * (model.runs - 2)
    found = worker.time_block(model, Settings(warm_up=1, kernels=True), machine.clock, 1e-6, True, pace)
    assert found["wall_ms"]["deciles"][8] == pytest.approx(1.0)
    assert found["count"] == model.runs - 2
