"""Times models on a device. One file: the standard library, numpy and the runtime; Python 3.9 syntax.

Reads one JSON object a line from stdin and answers each with one on stdout. The first line out says who answers:

    {"worker": 1, "runtime": "litert", "version": "2.3.0", "threads": 1, ...}

A request is a block: {"id": 7, "model": base64} or {"id": 7, "path": file}, with the settings of `Settings`. The answer
is {"id": 7, "status": "ok", "count": 41, "repeats": 1, "wall_ms": {...}, "cpu_ms": {...} or null, "cold_ms": ...}, or
{"id": 7, "status": "failed", "reason": text}. Summaries are {"min", "deciles": [nine], "median"} in ms a run.

A runtime may name where it runs, with options behind a comma: "onnxruntime:openvino,device_type=GPU", "litert:gpu",
"tensorflow:GPU:0". A run there ends when its outputs are complete, it has no CPU time, and a block of which any part
ran elsewhere has failed.
"""

from __future__ import annotations

import argparse
import base64
import collections
import contextlib
import ctypes
import dataclasses
import functools
import glob
import importlib
import importlib.metadata
import itertools
import json
import os
import pkgutil
import re
import sys
import tempfile
import time
from dataclasses import dataclass
from typing import Any, Callable, TextIO

import numpy as np

VERSION = 5
MAX_SAMPLES = 250
SHORTEST_MS = 1e-5
RANDOM_COUNT = 8191


@dataclass(frozen=True)
class Settings:
    """How one block is timed.

    Attributes:
        kernels: sum the runtime's own kernel times of the operation alone, instead of the time of the whole call.
        cold: runs with a flushed cache, after the others.
        block_ms: repeats go on to about this long, ...
        min_repeats: ... and are at least this many.
        warm_up: runs before them that are not counted.
        patience_ms: a block waits for its core to run at full speed, for no longer than this or than its repeats take;
            0: it does not.
        resolution_factor: a sample is at least this many times the timer's resolution; short runs are batched.
        flush_bytes: what is read and written between cold runs.
    """

    kernels: bool = False
    cold: int = 0
    block_ms: float = 5.0
    min_repeats: int = 3
    warm_up: int = 2
    patience_ms: float = 20.0
    resolution_factor: int = 20
    flush_bytes: int = 48 << 20


class Clock:
    """Wall and thread-CPU time in seconds. A test puts its own in its place."""

    wall: Callable[[], float] = staticmethod(time.perf_counter)
    cpu: Callable[[], float] = staticmethod(time.thread_time)

    def resolution(self) -> float:
        """Seconds between two different readings of the wall clock, at best."""
        best = 1.0
        for _ in range(20):
            start = end = self.wall()
            while end == start:
                end = self.wall()
            best = min(best, end - start)
        return best


class Pace:
    """Holds the process to one core, waits for moments in which that runs at full speed, and looks for one that does.

    The whole process, as a runtime's only thread may be another than the one that waits for it.

    A neighbour on the same physical core, as other users of a host are, or a clock that steps down, makes everything
    a third to a half slower for milliseconds or seconds: often for all of a block. A fixed loop tells, whose time is
    held against what it takes in the best `SHARE` of the last `MEMORY_S`: what stays slow for longer is what full speed
    is from then on, and so is what is faster for a moment now and then.

    Args:
        clock: has `wall()`, seconds.
        loop: the fixed piece of work; some microseconds.

    Attributes:
        waited: seconds, in all.
    """

    TOLERANCE = 1.15
    SHARE, MEMORY_S = 0.1, 30
    FRESH_S, STAY_S = 1e-3, 2e-3
    """A reading holds for this long; a core that is slow for this long is left."""
    FEW, JUDGED_S = 100, 1.0
    """Readings that say what full speed is each time anew; of more, so often."""

    def __init__(self, clock: Any, loop: Any = lambda: sum(range(1000))) -> None:
        self._clock, self._loop = clock, loop
        self._all = os.sched_getaffinity(0) if hasattr(os, "sched_setaffinity") else set()
        self._cores = sorted(self._all)
        self._kept: Any = collections.deque()
        self._read = self._judged = -1.0
        self._best = 0.0
        self.waited = 0.0
        for _ in self._cores:
            self._move()
            for _ in range(100):
                self._full()
        self.release()

    def wait(self, most: float) -> bool:
        """Waits until the core runs at full speed, at most so many seconds: whether it is another core than before."""
        start, moved = self._clock.wall(), False
        if start - self._read < self.FRESH_S:
            return False
        arrived = start
        while not self._full() and (now := self._clock.wall()) - start < most:
            if now - arrived > self.STAY_S and len(self._cores) > 1:
                self._move()
                moved, arrived = True, now
        self.waited += self._clock.wall() - start
        return moved

    def hold(self) -> None:
        """Lets the process run on one core alone, that of last time."""
        if self._all:
            _hold(self._cores[:1])

    def release(self) -> None:
        """Lets the process run on any core again."""
        if self._all:
            _hold(self._all)

    def _move(self) -> None:
        self._cores.append(self._cores.pop(0))
        self.hold()

    def _full(self) -> bool:
        """Whether the median of three loops is about as short as in the best moments of late."""
        times = []
        for _ in range(3):
            start = self._clock.wall()
            self._loop()
            self._read = self._clock.wall()
            times.append(self._read - start)
        found = sorted(times)[1]
        self._keep(found)
        return bool(found <= self.TOLERANCE * self._best)

    def _keep(self, found: float) -> None:
        """Keeps a reading a moment at most: slow moments are read more often, and shall not count for more."""
        kept = self._kept
        if kept and self._read - kept[-1][0] < self.FRESH_S:
            return
        kept.append((self._read, found))
        while self._read - kept[0][0] > self.MEMORY_S:
            kept.popleft()
        if len(kept) < self.FEW or self._read - self._judged > self.JUDGED_S:
            self._best, self._judged = float(np.quantile([time for _, time in kept], self.SHARE)), self._read


def _hold(cores: Any) -> None:
    """Lets all threads of the process run on these cores alone."""
    for thread in os.listdir("/proc/self/task") if os.path.isdir("/proc/self/task") else ["0"]:
        with contextlib.suppress(OSError):  # it may have ended
            os.sched_setaffinity(int(thread), cores)


class CalledModel:
    """What is shared by models whose time is that of the call.

    Attributes:
        options: of the device, by name.
        one_thread: whether the thread that calls does the work where it may have but one.
        one_core: whether that may be held to one core then: its only thread, or one that it waits for.
    """

    options: dict[str, str] = {}
    one_thread = True

    @property
    def one_core(self) -> bool:  # noqa: D102
        return self.one_thread

    def kernel_times_ms(self) -> list[float] | None:
        """Not offered."""
        return None


class LiteRtModel(CalledModel):
    """A TFLite model under ai-edge-litert, or tflite-runtime where that is not installed.

    With a delegate's library, every operator has to be the delegate's.
    """

    delegate = ""

    def __init__(self, path: str, threads: int, kernels: bool) -> None:
        tflite, more = _tflite(), {}
        if self.delegate:
            more["experimental_delegates"] = [tflite.load_delegate(self.delegate, self.options)]
            more["experimental_op_resolver_type"] = tflite.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
        self._interpreter = tflite.Interpreter(model_path=path, num_threads=threads, **more)
        self._interpreter.allocate_tensors()
        generator = np.random.default_rng(0)
        for detail in self._interpreter.get_input_details():
            self._interpreter.set_tensor(detail["index"], _random(generator, detail["shape"], detail["dtype"]))
        self.run = self._interpreter.invoke
        if self.delegate:
            outputs = [int(detail["index"]) for detail in self._interpreter.get_output_details()]
            none_elsewhere(self.delegate, undelegated(self._interpreter._get_ops_details(), outputs))
            settle(self.run)

    @classmethod
    def on(cls, device: str) -> Any:
        """The same on LiteRT's "gpu" or "npu", on "edgetpu", or on what a delegate's library runs on, by its path."""
        name, options = device_and_options(device)
        if name.lower() == "cpu":
            return cls
        if name.lower() in LiteRtAcceleratedModel.LIBRARIES:
            return type("LiteRtOn", (LiteRtAcceleratedModel,), {"device": name.lower(), "options": options})
        library = EDGE_TPU if name.lower() == "edgetpu" else name
        return type("LiteRtOn", (cls,), {"delegate": library, "options": options, "one_thread": False})

    def close(self) -> None:
        """Frees the model."""
        del self.run, self._interpreter

    @classmethod
    def version(cls) -> dict[str, str]:
        """Package and version, and the delegate where there is one."""
        package = _tflite().__name__.partition(".")[0]
        found = {"package": package.replace("_", "-"), "version": str(importlib.import_module(package).__version__)}
        if not cls.delegate:
            return found
        try:
            _ = ctypes.CDLL(cls.delegate).tflite_plugin_create_delegate
        except (OSError, AttributeError) as error:
            source = "Coral's package libedgetpu1-std" if cls.delegate == EDGE_TPU else "the device's maker"
            raise SystemExit(f"LiteRT cannot load the delegate, which {source} provides: {error}") from None
        return dict(found, device=device_name(cls.delegate, cls.options))


EDGE_TPU = "libedgetpu.so.1"


FLOAT16_MARK = b"latency-lab float16"
"""What ends a .tflite file that has to be computed in float16."""


def forces_float32(options: dict[str, str]) -> bool:
    """Whether LiteRT's GPU accelerator is told to compute in float32."""
    return options.get("enforce_f32", "").lower() in ("1", "true")


class LiteRtAcceleratedModel(CalledModel):
    """A TFLite model on an accelerator of LiteRT's own. A run ends when its outputs are back.

    The GPU computes in float16 unless it is told not to or has none: of a model with `FLOAT16_MARK`, the outputs have
    to differ from those in float32.
    """

    LIBRARIES = {"gpu": "libLiteRt*Accelerator.so", "npu": "vendors/*/dispatch/libLiteRtDispatch_*.so"}
    NEEDS = {
        "gpu": "On Linux it needs a GPU with a Vulkan driver, and libvulkan.so.1.",
        "npu": "It needs the NPU and its maker's package, as ai-edge-litert-sdk-qualcomm.",
    }
    device = "gpu"
    one_thread = False
    rounds = False

    def __init__(self, path: str, threads: int, kernels: bool) -> None:
        from ai_edge_litert.compiled_model import CompiledModel

        try:
            self._model = CompiledModel.from_file(path, options=self._options())
        except RuntimeError as error:
            why = str(error).splitlines()[-1].strip(" └").partition(". Add kLiteRt")[0]
            needs = self.NEEDS[self.device]
            raise RuntimeError(f"LiteRT cannot run this model on the {self.device} alone: {why}. {needs}") from None
        none_elsewhere(self.device, [] if self._model.is_fully_accelerated() else ["some operators"])
        signature = next(iter(self._model.get_signature_list()))
        self._inputs, self._outputs = self._model.create_input_buffers(0), self._model.create_output_buffers(0)
        generator = np.random.default_rng(0)
        for buffer, detail in zip(self._inputs, self._model.get_input_tensor_details(signature).values()):
            buffer.write(_random(generator, detail["shape"], detail["dtype"]))
        details = self._model.get_output_tensor_details(signature).values()
        self._reads = [(int(np.prod(detail["shape"])), np.dtype(detail["dtype"]).type) for detail in details]
        with open(path, "rb") as file:
            marked = file.read().endswith(FLOAT16_MARK)
        if marked and not forces_float32(self.options):
            self._see_that_it_rounds(path)
        settle(self.run)

    def _see_that_it_rounds(self, path: str) -> None:
        """Compare with float32, until one model of this worker's has differed."""
        if not self.rounds:
            exact = type("Exact", (LiteRtAcceleratedModel,), {"options": dict(self.options, enforce_f32="1")})
            other = exact(path, 1, False)
            type(self).rounds = any(np.any(a != b) for a, b in zip(self.run(), other.run()))
            other.close()
        if not self.rounds:
            raise RuntimeError(
                "this GPU computes in float32, not in float16: ask for precision float32 on litert:gpu,enforce_f32=1"
            )

    @classmethod
    def _options(cls) -> Any:
        from ai_edge_litert import compiled_model as litert

        accelerator = getattr(litert.HardwareAccelerator, cls.device.upper())
        flags = {name: value.lower() in ("1", "true") for name, value in cls.options.items()}
        if flags and cls.device != "gpu":
            raise SystemExit(f"litert:{cls.device} takes no options. Received: {cls.options}")
        try:
            return litert.Options(hardware_accelerators=accelerator, gpu_options=litert.GpuOptions(**flags))
        except TypeError as error:
            raise SystemExit(f"litert:gpu takes options of LiteRT's GpuOptions, as in enforce_f32=1: {error}") from None

    def run(self) -> list[Any]:
        """The outputs of one run."""
        self._model.run_by_index(0, self._inputs, self._outputs)
        return [buffer.read(*count_and_type) for buffer, count_and_type in zip(self._outputs, self._reads)]

    def close(self) -> None:
        """Frees the model."""
        del self._inputs, self._outputs, self._model

    @classmethod
    def version(cls) -> dict[str, str]:
        """Package and version, and the accelerator with its library."""
        import ai_edge_litert

        found = sorted(glob.glob(os.path.join(os.path.dirname(ai_edge_litert.__file__), cls.LIBRARIES[cls.device])))
        if not found:
            raise SystemExit(
                f"ai-edge-litert {ai_edge_litert.__version__} has no accelerator {cls.device} on this system. "
                f"Expected a file {cls.LIBRARIES[cls.device]} in the package."
            )
        cls._options()
        library = os.path.basename(found[-1])
        name = device_name(f"{cls.device} by {library}", cls.options)
        return {"package": "ai-edge-litert", "version": str(ai_edge_litert.__version__), "device": name}


def _tflite() -> Any:
    """The module that has the interpreter."""
    try:
        from ai_edge_litert import interpreter
    except ImportError:
        from tflite_runtime import interpreter
    return interpreter


def undelegated(details: list[dict[str, Any]], outputs: list[int]) -> list[str]:
    """The operators that an interpreter runs itself, followed back from the model's output tensors.

    Args:
        details: all operators of the model, then the kernels of delegates, which make some of the same tensors.
        outputs: of the model.
    """
    makers = {int(tensor): detail for detail in details for tensor in detail["outputs"]}
    wanted, found = list(outputs), {}
    while wanted:
        maker = makers.pop(wanted.pop(), None)
        if maker:
            found[maker["index"]] = str(maker["op_name"])
            wanted.extend(int(tensor) for tensor in maker["inputs"])
    return [name for _, name in sorted(found.items()) if "delegate" not in name.lower()]


def none_elsewhere(device: str, names: list[str]) -> None:
    """See that no operator runs elsewhere than on the device."""
    if names:
        raise RuntimeError(f"not all of it runs on {device}; elsewhere: {', '.join(sorted(set(names)))}")


def settle(run: Callable[[], Any]) -> None:
    """Runs until one is no faster than the one before, ten at most: what is compiled or chosen in the first is done."""
    last = float("inf")
    for _ in range(10):
        start = time.perf_counter()
        run()
        took = time.perf_counter() - start
        if took >= last:
            return
        last = took


def device_and_options(text: str) -> tuple[str, dict[str, str]]:
    """ "gpu,enforce_f32=1" -> ("gpu", {"enforce_f32": "1"}).

    Raises:
        ValueError: an option has no value.
    """
    name, *pairs = text.split(",")
    for pair in pairs:
        if "=" not in pair:
            raise ValueError(f"Invalid option of a runtime's device. Expected name=value. Received: {pair!r}")
    return name, {key: value for key, _, value in (pair.partition("=") for pair in pairs)}


def device_name(name: str, options: dict[str, str]) -> str:
    """The text that `device_and_options` reads."""
    return ",".join([name, *(f"{key}={value}" for key, value in options.items())])


class OnnxRuntimeModel:
    """An ONNX model under ONNX Runtime's CPU provider.

    A convolution that stands alone has layout reorders around it that a network does not run, and a test of a fused
    operation needs other operations before it. With `kernels`, the time of a run is the sum over its kernels in ONNX
    Runtime's own profile that are neither a reorder nor named "context"; or, where the model's metadata has
    "latency_lab.kernels", over those of that type. What the profiler itself adds to each (`KernelOverhead`) is taken
    off.
    """

    run: Any = None

    def __init__(self, path: str, threads: int, kernels: bool) -> None:
        self._session = onnx_session(path, threads, kernels)
        try:
            self._overhead = KernelOverhead.measured(threads) if kernels else None
            self._wanted = self._session.get_modelmeta().custom_metadata_map.get("latency_lab.kernels", "")
            self.run = onnx_run(self._session, onnx_inputs(self._session))
        except BaseException:
            self.close()
            raise

    @classmethod
    def on(cls, device: str) -> Any:
        """The same on an execution provider: "cuda", "OpenVINOExecutionProvider,device_type=GPU", ..."""
        name, options = device_and_options(device)
        if provider_of(name) == "CPUExecutionProvider":
            return cls
        return type("OnnxRuntimeOn", (OnnxRuntimeProviderModel,), {"provider": provider_of(name), "options": options})

    def kernel_times_ms(self) -> list[float] | None:
        """Ends profiling: the kernels' time of each run so far, ms."""
        text = onnx_profile(self._session)
        if self._wanted and f'"{self._wanted}"' not in text:
            raise RuntimeError(f"ONNX Runtime runs no {self._wanted} for a tensor of this shape")
        return self.parse(text, self._wanted, self._overhead)

    @classmethod
    def parse(cls, text: str, wanted: str = "", overhead: KernelOverhead | None = None) -> list[float]:
        """Sum of the kernels' times, ms, of each run in a profile's text.

        Args:
            text: of the profile, an event a line.
            wanted: the type of kernel that counts; "" for all but reorders and context.
            overhead: of the profiler. With it, a kernel's time is what passes until the next one begins, less the
                overhead; without, what the profile says. The profile cuts each duration down to whole microseconds,
                which bends the times of kernels of a few; beginnings are cut at random, so that the mean of many runs
                is right, though a short one can come out below zero.
        """
        found, runs = [], profiled_runs(text)
        share = overhead.beside(runs) if overhead else None
        for kernels in runs:
            ours = [kernel for kernel in kernels if (kernel.kind == wanted if wanted else kernel.is_operation)]
            times = (k.span_us - share.us(k.inputs, k.last) if share else float(k.duration_us) for k in ours)
            found.append(sum(times) * 1e-3)
        return found

    def close(self) -> None:
        """Frees the model, and what it profiled where nothing read that."""
        prefix = onnx_profile_prefix(self._session)
        self.run = self._session = None
        onnx_forget(prefix)

    @staticmethod
    def version() -> dict[str, Any]:
        """Package and version, and how many channels a block of the blocked layout has (1: there is none)."""
        import onnxruntime

        return {
            "package": "onnxruntime",
            "version": str(onnxruntime.__version__),
            "layout_block": onnx_layout_block(),
        }


class OnnxRuntimeProviderModel(CalledModel):
    """An ONNX model under an execution provider other than the CPU's.

    Inputs stay in the provider's memory where it has its own and ONNX Runtime can bind it (`_MEMORY`), outputs too, and
    a run ends when the provider has finished. Elsewhere both are the host's: the outputs' arrival ends the run.
    """

    _MEMORY = {
        "CUDAExecutionProvider": "cuda",
        "TensorrtExecutionProvider": "cuda",
        "NvTensorRTRTXExecutionProvider": "cuda",
        "CANNExecutionProvider": "cann",
        "DmlExecutionProvider": "dml",
    }
    provider = ""
    one_thread = False
    run: Any = None

    def __init__(self, path: str, threads: int, kernels: bool) -> None:
        self._session = onnx_session(path, threads, True, (self.provider, self.provider_options(threads)))
        try:
            memory = self._MEMORY.get(self.provider, "cpu")
            number = 0 if memory == "cpu" else int(self.options.get("device_id", 0))
            self.run = onnx_run(self._session, onnx_inputs(self._session), memory, number)
            self.run()
            none_elsewhere(self.provider, kernels_elsewhere(onnx_profile(self._session), self.provider))
            settle(self.run)
        except BaseException:
            self.close()  # in order: a binding that outlives its session is a crash
            raise

    @classmethod
    def provider_options(cls, threads: int) -> dict[str, str]:
        """What OpenVINO is told: its threads; on a CPU to compute a float32 model in float32, and to leave it to
        `Pace` which core a single thread runs on: it moves the thread that calls to one of its choice in each run.
        """
        if cls.provider != "OpenVINOExecutionProvider":
            return cls.options
        told = {"num_of_threads": str(threads)}
        if cls._computes_on_cpu():
            told["precision"] = "FP32"
            if threads == 1:
                told["load_config"] = json.dumps({"CPU": {"ENABLE_CPU_PINNING": "NO"}})
        return {**told, **cls.options}

    @property
    def one_core(self) -> bool:
        """OpenVINO's, on a CPU."""
        return self.provider == "OpenVINOExecutionProvider" and self._computes_on_cpu()

    @classmethod
    def _computes_on_cpu(cls) -> bool:
        return cls.options.get("device_type", "CPU").startswith("CPU")

    def close(self) -> None:
        """Frees the model, and what it profiled where nothing read that."""
        prefix = onnx_profile_prefix(self._session)
        self.run = self._session = None
        onnx_forget(prefix)

    @classmethod
    def version(cls) -> dict[str, str]:
        """Package and version, and the provider."""
        import onnxruntime

        there = onnx_providers(cls.provider)
        brings = PROVIDER_PACKAGES.get(cls.provider, "onnxruntime")
        if cls.provider not in there:
            raise SystemExit(
                f"ONNX Runtime has no {cls.provider} here, or no device for it. It has: {', '.join(there)}. "
                f"The package {brings} brings it; give it an environment of its own and name that with --python."
            )
        found = {"package": "onnxruntime", "version": str(onnxruntime.__version__)}
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found = {"package": brings, "version": importlib.metadata.version(brings)}
        return dict(found, device=device_name(cls.provider, cls.options))


PROVIDER_PACKAGES = {
    "CANNExecutionProvider": "onnxruntime-cann",
    "CUDAExecutionProvider": "onnxruntime-gpu",
    "CoreMLExecutionProvider": "onnxruntime",
    "DmlExecutionProvider": "onnxruntime-directml",
    "MIGraphXExecutionProvider": "onnxruntime-migraphx",
    "NvTensorRTRTXExecutionProvider": "onnxruntime-ep-nv-tensorrt-rtx",
    "OpenVINOExecutionProvider": "onnxruntime-openvino",
    "QNNExecutionProvider": "onnxruntime-qnn",
    "ROCMExecutionProvider": "onnxruntime-rocm",
    "TensorrtExecutionProvider": "onnxruntime-gpu",
    "WebGpuExecutionProvider": "onnxruntime-webgpu",
    "XnnpackExecutionProvider": "onnxruntime",
}
"""Provider -> the package that brings it. Others are taken by their full names."""


def provider_of(name: str) -> str:
    """ "cuda" -> "CUDAExecutionProvider"."""
    known = {"cpu": "CPUExecutionProvider", **{p[: -len("ExecutionProvider")].lower(): p for p in PROVIDER_PACKAGES}}
    return known.get(name.lower().replace("executionprovider", ""), name)


def onnx_providers(wanted: str) -> list[str]:
    """Providers that ONNX Runtime has, once the one that is wanted was registered where a plug-in package brings it."""
    import onnxruntime

    names = [module.name for module in pkgutil.iter_modules() if wanted not in onnxruntime.get_available_providers()]
    for name in names:
        if name.startswith("onnxruntime_ep_") or name == "onnxruntime_qnn":
            plugin = importlib.import_module(name)
            if wanted in plugin.get_ep_names():
                onnxruntime.register_execution_provider_library(wanted, plugin.get_library_path())
    return list(onnxruntime.get_available_providers())


def kernels_elsewhere(text: str, provider: str) -> list[str]:
    """Types of the kernels in a profile's text that another provider ran."""
    arguments = [event["args"] for event in json.loads(text) if event["name"].endswith("_kernel_time")]
    return [f"{found['op_name']} ({found['provider']})" for found in arguments if found["provider"] != provider]


@dataclass(frozen=True)
class ProfiledKernel:
    """One kernel of one run in ONNX Runtime's profile.

    Attributes:
        name: of its node.
        kind: type of the operator.
        inputs: tensors that it reads.
        duration_us: what the profile says.
        span_us: from its beginning to that of the next kernel, or to the end of the run.
        last: whether it is the run's last.
    """

    name: str
    kind: str
    inputs: int
    duration_us: int
    span_us: int
    last: bool

    @property
    def is_operation(self) -> bool:
        """Whether it belongs to the operation, not to its surroundings."""
        return "Reorder" not in self.kind and "context" not in self.name


_KERNEL = re.compile(r'"dur" :(\d+),"ts" :(\d+),.*?"name" :"([^"]*)_kernel_time".*?"op_name" : ?"(\w+)"')
_INPUTS = re.compile(r'"input_type_shape" : ?\[((?:\{[^}]*\},?)*)\]')
_RUN = re.compile(r'"dur" :(\d+),"ts" :(\d+),.*"name" :"(SequentialExecutor::Execute|model_run)"')


def profiled_runs(text: str) -> list[list[ProfiledKernel]]:
    """The kernels of each run in a profile's text, in order; an event stands on a line."""
    runs, events, end = [], [], 0
    for line in text.splitlines():
        found = _KERNEL.search(line) if "_kernel_time" in line else None
        if found:
            inputs = _INPUTS.search(line)
            count = inputs.group(1).count("{") if inputs else 1
            events.append((int(found.group(2)), int(found.group(1)), found.group(3), found.group(4), count))
            end = 0
            continue
        run = _RUN.search(line)
        if run:
            end = end or int(run.group(1)) + int(run.group(2))
        if run and run.group(3) == "model_run":
            begins = [event[0] for event in events[1:]] + [end]
            kernels = [
                ProfiledKernel(name, kind, count, duration, following - begin, k == len(events) - 1)
                for k, ((begin, duration, name, kind, count), following) in enumerate(zip(events, begins))
            ]
            runs.append(kernels)
            events, end = [], 0
    return runs


_PROFILES = itertools.count()


def onnx_session(model: Any, threads: int, profiling: bool, provider: Any = "CPUExecutionProvider") -> Any:
    """A session on a model's path or bytes; the provider is a name or (name, options)."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if threads > 1 else "0")
    if profiling:
        options.enable_profiling = True
        name = f"latency-lab-{os.getpid()}-{next(_PROFILES)}"  # older releases add the second alone
        options.profile_file_prefix = os.path.join(tempfile.gettempdir(), name)
    try:
        return onnxruntime.InferenceSession(model, options, providers=[provider], enable_fallback=0)
    except BaseException:
        onnx_forget(options.profile_file_prefix if profiling else "")
        raise


def onnx_profile_prefix(session: Any) -> str:
    """How the path of a session's profile begins; "" where it writes none."""
    options = session.get_session_options()
    return str(options.profile_file_prefix) if options.enable_profiling else ""


def onnx_forget(prefix: str) -> None:
    """Removes a profile that was not read: a session leaves it behind when it ends."""
    for path in glob.glob(glob.escape(prefix) + "_*.json") if prefix else []:
        with contextlib.suppress(OSError):
            os.unlink(path)


def onnx_inputs(session: Any) -> list[Any]:
    """Made-up inputs of a session."""
    generator, numpy = np.random.default_rng(0), {"float": "float32", "double": "float64"}
    kinds = [node.type[len("tensor(") : -1] for node in session.get_inputs()]
    return [_random(generator, node.shape, numpy.get(kind, kind)) for node, kind in zip(session.get_inputs(), kinds)]


def onnx_run(session: Any, arrays: Any, memory: str = "cpu", number: int = 0) -> Callable[[], Any]:
    """Runs a session on these inputs in this memory, without a copy of them or of the outputs.

    Args:
        session: to run.
        arrays: an input each.
        memory: kind of device that has it.
        number: of that device; 0 of the host.
    """
    import onnxruntime

    binding = session.io_binding()
    values = [onnxruntime.OrtValue.ortvalue_from_numpy(array, memory, number) for array in arrays]
    for node, value in zip(session.get_inputs(), values):
        binding.bind_ortvalue_input(node.name, value)
    for node in session.get_outputs():
        binding.bind_output(node.name, memory, number)
    if memory == "cpu":
        return lambda: (session.run_with_iobinding(binding), values)[0]
    return lambda: (session.run_with_iobinding(binding), binding.synchronize_outputs(), values)[0]


def onnx_profile(session: Any) -> str:
    """Ends profiling: the profile's text."""
    path = session.end_profiling()
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    finally:
        os.unlink(path)


def onnx_layout_block() -> int:
    """Channels of a block in the layout that convolutions use: what 4 channels are filled up to.

    16 with AVX-512, 8 with AVX or SSE; 1 where there is no such layout.
    """
    node = _onnx_node("Conv", ["x", "w"], "y")
    session = onnx_session(_onnx_model([node], [1, 4, 1, 1], {"w": np.ones((4, 4, 1, 1), np.float32)}), 1, True)
    session.run(None, {"x": np.zeros((1, 4, 1, 1), np.float32)})
    events = [line for line in onnx_profile(session).splitlines() if '"ReorderOutput"' in line]
    found = [re.search(r'"input_type_shape" : ?\[\{"float":\[1,(\d+)', line) for line in events]
    return max((int(match.group(1)) for match in found if match), default=1)


@dataclass(frozen=True)
class KernelOverhead:
    """What ONNX Runtime's profiler adds to the span of each kernel, which grows with the kernel's inputs.

    It writes down the shapes of inputs and outputs: about 5 us for a kernel of one or two inputs, 6 for the nine of
    an 8-bit convolution, on a server of 2023. It is measured as the span of a kernel in a profile, less the time by
    which a run without profiling grows for one more kernel. Models of lone operations have kernels named
    "context_reference", which show it again while the model runs.

    Attributes:
        fixed_us: of a kernel, microseconds.
        input_us: of each of its inputs.
        last_us: of a run's last kernel, added to these; it may be negative.
        span_us: of the small kernel that it was measured with.
    """

    fixed_us: float = 0.0
    input_us: float = 0.0
    last_us: float = 0.0
    span_us: float = 0.0

    def us(self, inputs: int, last: bool = False) -> float:
        """Of a kernel of so many inputs."""
        return self.fixed_us + self.input_us * inputs + (self.last_us if last else 0.0)

    @classmethod
    def measured(cls, threads: int) -> KernelOverhead:
        """Of this machine, once a process."""
        return _kernel_overhead(threads)

    def beside(self, runs: list[list[ProfiledKernel]]) -> KernelOverhead:
        """In these runs: it grows when the processor slows down, and their reference kernels tell how far."""
        spans = [[kernel.span_us for kernel in kernels if "context_reference" in kernel.name] for kernels in runs]
        means = [sum(found) / len(found) for found in spans if found]
        if not means or not self.span_us:
            return self
        factor = float(np.median(means)) / self.span_us
        return KernelOverhead(*(value * factor for value in dataclasses.astuple(self)))


@functools.cache
def _kernel_overhead(threads: int) -> KernelOverhead:
    """From chains of small kernels of one input and of eight, in turns, so that all see the same machine."""
    chains = [_Chain(lambda x, y: _onnx_node("Abs", [x], y), np.float32, threads)]
    sources, domain = ["scale", "zero", "x", "scale", "zero", "scale", "zero"], _bytes(7, b"com.microsoft")
    with contextlib.suppress(Exception):  # not in a build of ONNX Runtime without its own operators
        chains.append(_Chain(lambda x, y: _onnx_node("QLinearAdd", [x, *sources], y, domain), np.uint8, threads))
    for _ in range(_Chain.turns):
        for chain in chains:
            chain.take_turn()
    found = [chain.overhead_us() for chain in chains]
    slope = max((found[-1][0] - found[0][0]) / 7, 0.0)
    return KernelOverhead(found[0][0] - slope, slope, *found[0][1:])


class _Chain:
    """A row of equal kernels in two lengths, the shorter one with profiling as well."""

    short, long, turns, runs = 32, 96, 15, 20

    def __init__(self, node: Callable[[str, str], bytes], kind: Any, threads: int) -> None:
        data = [np.ones((1, 4, 2, 2), kind)]
        constants = {"scale": np.array(1.0, np.float32), "zero": np.array(0, kind)}
        models = {}
        for length in (self.short, self.long):
            names = ["x", *(f"t{k}" for k in range(1, length)), "y"]
            nodes = [node(x, y) for x, y in zip(names, names[1:])]
            models[length] = _onnx_model(nodes, [1, 4, 2, 2], constants)
        self._plain = {n: onnx_run(onnx_session(model, threads, False), data) for n, model in models.items()}
        self._session = onnx_session(models[self.short], threads, True)
        self._profiled = onnx_run(self._session, data)
        self._walls: dict[int, list[float]] = {self.short: [], self.long: []}

    def take_turn(self) -> None:
        """Some runs of each."""
        for length, run in self._plain.items():
            for _ in range(self.runs):
                start = time.perf_counter()
                run()
                self._walls[length].append((time.perf_counter() - start) * 1e6)
        for _ in range(self.runs):
            self._profiled()

    def overhead_us(self) -> tuple[float, float, float]:
        """What the profile's spans have too much: of each kernel, and of the last one of a run besides; a span."""
        kernel = (_typical(self._walls[self.long], self.runs) - _typical(self._walls[self.short], self.runs)) / (
            self.long - self.short
        )
        profiled = profiled_runs(onnx_profile(self._session))
        means = [float(np.mean([kernel.span_us for kernel in kernels[:-1]])) for kernels in profiled]
        span = _typical(means, self.runs)
        last = _typical([float(kernels[-1].span_us) for kernels in profiled], self.runs, np.mean)
        return span - kernel, last - span, span


def _typical(values: list[float], runs: int, middle: Any = np.median) -> float:
    """The middle of a turn's runs, of the turns in which the machine did little else."""
    return float(np.percentile(middle(np.reshape(values, (-1, runs)), axis=1), 20))


# ONNX models of a few nodes, written by hand: the onnx package is not on the device. Field numbers are onnx.proto's.


_ONNX_TYPES = {"float32": 1, "uint8": 2}


def _onnx_model(nodes: list[bytes], shape: list[int], constants: dict[str, Any]) -> bytes:
    """A model from "x" to "y", both of this shape and of the type of the last constant."""
    graph = b"".join(_bytes(1, node) for node in nodes) + _bytes(2, b"main")
    for name, array in constants.items():
        kind = _ONNX_TYPES[str(array.dtype)]
        sizes = b"".join(_int(1, size) for size in array.shape)
        graph += _bytes(5, sizes + _int(2, kind) + _bytes(8, name.encode()) + _bytes(9, array.tobytes()))
    dims = b"".join(_bytes(1, _int(1, size)) for size in shape)
    value = _bytes(2, _bytes(1, _int(1, kind) + _bytes(2, dims)))
    graph += _bytes(11, _bytes(1, b"x") + value) + _bytes(12, _bytes(1, b"y") + value)
    opsets = _bytes(8, _bytes(1, b"") + _int(2, 15)) + _bytes(8, _bytes(1, b"com.microsoft") + _int(2, 1))
    return _int(1, 8) + _bytes(7, graph) + opsets


def _onnx_node(kind: str, inputs: list[str], output: str, more: bytes = b"") -> bytes:
    parts = [_bytes(1, name.encode()) for name in inputs]
    return b"".join(parts) + _bytes(2, output.encode()) + _bytes(4, kind.encode()) + more


def _bytes(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(value)) + value


def _int(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    return bytes([*found, value])


class TensorFlowModel(CalledModel):
    """A frozen TensorFlow graph (.pb) on one device: its placeholders are fed, and what nothing reads is its output.

    The inputs stay on the device. A call on the CPU returns when it is done; elsewhere one number of each output is
    fetched, which waits for it.
    """

    device = "CPU:0"
    xla = False
    one_thread = False  # a pool of TensorFlow's own runs the operations, not the thread that calls

    def __init__(self, path: str, threads: int, kernels: bool) -> None:
        import tensorflow as tf

        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(1)
        self._connect()
        if not self.device.startswith("CPU"):
            tf.config.set_soft_device_placement(False)  # what the device has no kernel for fails, and runs nowhere else
        graph = tf.compat.v1.GraphDef()
        with open(path, "rb") as file:
            graph.ParseFromString(file.read())
        with tf.device("/" + self.device):
            wrapped = self._function(graph)
            generator = np.random.default_rng(0)
            inputs = [tf.constant(_random(generator, x.shape, x.dtype.as_numpy_dtype)) for x in wrapped.inputs]
            # A concrete function of a new function: one that was pruned takes milliseconds to sort its arguments.
            function = tf.function(lambda *xs: wrapped(*xs), jit_compile=self._compiled() or None)
            call = functools.partial(function.get_concrete_function(*inputs), *inputs)
        self.run = call if self.device.startswith("CPU") else functools.partial(self._fetch, call)

    def _fetch(self, call: Callable[[], Any]) -> None:
        """Runs and waits for one number of each output, which is there when the output is."""
        import tensorflow as tf

        with tf.device("/" + self.device):
            firsts = [tf.reshape(output, [-1])[0] for output in call()]
        for first in firsts:
            first.numpy()

    @classmethod
    def _function(cls, graph: Any) -> Any:
        """The graph, each operation on the device by name where XLA does not compile all of them for it: one that
        names none may run on any."""
        import tensorflow as tf

        def imported() -> None:
            with tf.device(None if cls.device.startswith("CPU") or cls._compiled() else "/" + cls.device):
                tf.graph_util.import_graph_def(graph, name="")

        read = {name.lstrip("^").partition(":")[0] for node in graph.node for name in node.input}
        inputs = [node.name + ":0" for node in graph.node if node.op == "Placeholder"]
        last = [node for node in graph.node if node.name not in read and node.op not in ("Const", "NoOp")]
        outputs = [node.name + ":0" for node in last if node.op != "Placeholder"]
        return tf.compat.v1.wrap_function(imported, []).prune(inputs, outputs)

    @classmethod
    def _compiled(cls) -> bool:
        """Whether XLA compiles the graph: where that was asked for, and always on a TPU."""
        return cls.xla or cls.device.startswith("TPU")

    @classmethod
    def _connect(cls) -> None:
        """See that the device is there; a TPU shows only once it was connected to."""
        import tensorflow as tf

        if cls.device.startswith("TPU") and not tf.config.list_physical_devices("TPU"):
            nodes = [path for path in ("/dev/accel0", "/dev/vfio/0") if os.path.exists(path)]
            if nodes or os.environ.get("TPU_NAME"):
                tf.distribute.cluster_resolver.TPUClusterResolver.connect(os.environ.get("TPU_NAME", "local"))
        there = [found.name.replace("/physical_device:", "") for found in tf.config.list_physical_devices()]
        if cls.device not in there:
            raise SystemExit(f"TensorFlow has no device {cls.device} here. It has: {', '.join(there)}.")

    @classmethod
    def on(cls, device: str) -> Any:
        """The same on a device: "GPU:0", "/TPU:0", "CPU", ..."""
        name = device.upper().replace("DEVICE:", "").lstrip("/")
        return type(cls.__name__, (cls,), {"device": name if ":" in name else name + ":0"})

    def close(self) -> None:
        """Frees the model."""
        del self.run

    @classmethod
    def version(cls) -> dict[str, str]:
        """Package, version, and the device's name where it has one."""
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # its notes would bury the reason why a worker ended
        import tensorflow as tf

        cls._connect()
        kind, _, number = cls.device.partition(":")
        found = tf.config.list_physical_devices(kind)[int(number)]
        name = tf.config.experimental.get_device_details(found).get("device_name") if kind == "GPU" else None
        return {"package": "tensorflow", "version": str(tf.__version__), **({"device": str(name)} if name else {})}


class TensorFlowXlaModel(TensorFlowModel):
    """The same compiled by XLA."""

    xla = True


LOADERS: dict[str, Any] = {
    "litert": LiteRtModel,
    "onnxruntime": OnnxRuntimeModel,
    "tensorflow": TensorFlowModel,
    "tensorflow-xla": TensorFlowXlaModel,
}


def time_block(
    model: Any, settings: Settings, clock: Any, resolution: float, cpu_time: bool, pace: Pace | None = None
) -> dict[str, Any]:
    """Samples of one model: warm-up, then repeats, then cold runs.

    Args:
        model: has `run()` and `kernel_times_ms()`.
        settings: of the block.
        clock: has `wall()` and `cpu()`, seconds.
        resolution: of the wall clock, seconds.
        cpu_time: whether the thread that calls does all of the work, so that its CPU time counts.
        pace: of the core, where one does all; repeats are taken while that runs at full speed, as far as patience goes.

    Returns:
        The answer's fields, less id and status.
    """
    if settings.patience_ms == 0:
        pace = None
    if pace is not None:
        pace.hold()
    for _ in range(max(settings.warm_up - 1, 0)):
        model.run()
    start = clock.wall()
    model.run()
    once = max(clock.wall() - start, 1e-9)
    shortest = max(settings.resolution_factor * resolution, settings.block_ms * 1e-3 / MAX_SAMPLES)
    batch = max(1, int(np.ceil(shortest / once)))
    count = int(np.clip(np.ceil(settings.block_ms * 1e-3 / (once * batch)), settings.min_repeats, MAX_SAMPLES))
    most = max(settings.patience_ms * 1e-3, count * batch * once) + (pace.waited if pace is not None else 0.0)
    wall, cpu, runs = [], [], max(settings.warm_up, 1)
    timed: list[int] = []
    for _ in range(count):
        if pace is not None and pace.wait(most - pace.waited):
            model.run()  # nothing is in the caches of the core that it runs on now
            runs += 1
        cpu_start, start = clock.cpu(), clock.wall()
        for _ in range(batch):
            model.run()
        wall.append((clock.wall() - start) * 1e3 / batch)
        cpu.append((clock.cpu() - cpu_start) * 1e3 / batch)
        timed += range(runs, runs + batch)
        runs += batch
    cold = _cold_samples(model, settings, clock)
    if settings.kernels:
        per_run = model.kernel_times_ms()
        cold = per_run[len(per_run) - len(cold) :]
        wall, cpu_time = _batched([per_run[run] for run in timed], settings), False
    return {
        "count": len(wall),
        "repeats": batch,
        "wall_ms": summary(wall),
        "cpu_ms": summary(cpu) if cpu_time else None,
        "cold_ms": summary(cold) if cold else None,
    }


def summary(samples: list[float]) -> dict[str, Any]:
    """Minimum, nine deciles and median of samples."""
    deciles = np.percentile(samples, range(10, 100, 10))
    return {"min": min(samples), "deciles": [round(float(d), 9) for d in deciles], "median": float(np.median(samples))}


def _cold_samples(model: Any, settings: Settings, clock: Any) -> list[float]:
    samples = []
    if settings.cold:
        flush = _flush_buffer(settings.flush_bytes // 8)
        for _ in range(settings.cold):
            np.add(flush, 1.0, out=flush)
            start = clock.wall()
            model.run()
            samples.append((clock.wall() - start) * 1e3)
    return samples


@functools.lru_cache(maxsize=1)
def _flush_buffer(count: int) -> Any:
    """Kept from block to block: making it takes longer than flushing with it."""
    return np.ones(count)


def _batched(runs: list[float], settings: Settings) -> list[float]:
    """Means over consecutive runs, each long enough for a clock that counts whole microseconds.

    A mean is at least `SHORTEST_MS`: what is left of an empty kernel when the profiler's share is taken off.
    """
    typical = max(float(np.median(runs)), 1e-4)
    size = max(
        1, min(int(np.ceil(settings.resolution_factor * 1e-3 / typical)), len(runs) // max(settings.min_repeats, 1))
    )
    means = (float(np.mean(runs[i : i + size])) for i in range(0, len(runs) - size + 1, size))
    return [max(mean, SHORTEST_MS) for mean in means]


def _random(generator: Any, shape: Any, dtype: Any) -> Any:
    """Numbers between -1 and 1: a short random run, repeated; or over the range of an integer type, all of them random.

    Some integer kernels branch on their data, LiteRT's int8 relu among them, and a processor learns the branches of a
    run that repeats: they were faster alone than they are inside of a network.
    """
    sizes = [int(size) if isinstance(size, (int, np.integer)) and size > 0 else 1 for size in shape]
    kind = np.dtype(dtype)
    if kind.kind in "iu":
        limits = np.iinfo(kind)
        return generator.integers(limits.min, limits.max, sizes, dtype=kind, endpoint=True)
    run = generator.uniform(-1.0, 1.0, RANDOM_COUNT)
    return np.resize(run.astype(kind), sizes)


def answer(
    request: dict[str, Any], loader: Any, threads: int, clock: Any, resolution: float, pace: Pace | None = None
) -> dict[str, Any]:
    """The answer to one request; a model that cannot be loaded or run is a failed block, not an end of the worker."""
    path = request.get("path")
    own = None
    try:
        if path is None:
            handle, own = tempfile.mkstemp(prefix="latency-lab-")
            with os.fdopen(handle, "wb") as file:
                file.write(base64.b64decode(request["model"]))
            path = own
        settings = Settings(**request.get("settings", {}))
        model = loader(path, threads, settings.kernels)
        try:
            one_thread = threads == 1 and getattr(model, "one_thread", True)
            held = pace if getattr(model, "one_core", one_thread) else None
            found = time_block(model, settings, clock, resolution, one_thread, held)
        finally:
            if pace is not None:
                pace.release()
            model.close()
        return dict(found, id=request["id"], status="ok")
    except Exception as error:  # whatever a runtime raises is this block's failure alone
        return {"id": request.get("id"), "status": "failed", "reason": f"{type(error).__name__}: {error}"}
    finally:
        if own is not None:
            os.unlink(own)


def serve(source: TextIO, sink: TextIO, loader: Any, runtime: str, threads: int, clock: Any) -> None:
    """Answers requests until `source` ends."""
    resolution = clock.resolution()
    pace = Pace(clock) if threads == 1 else None
    hello = dict(loader.version(), worker=VERSION, runtime=runtime, threads=threads, resolution_s=resolution)
    requests = (json.loads(line) for line in source if line.strip())
    answers = (answer(request, loader, threads, clock, resolution, pace) for request in requests)
    for found in itertools.chain([hello], answers):
        sink.write(json.dumps(found) + "\n")
        sink.flush()


def main(loaders: dict[str, Any] | None = None) -> None:
    """Serves the runtime that the command line names, with stdout kept for answers alone."""
    parser = argparse.ArgumentParser(description="Times models for latency-lab: JSON lines in, JSON lines out.")
    parser.add_argument("--runtime", required=True)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    own = os.path.dirname(os.path.abspath(__file__))  # holds modules that are named like the runtimes
    sys.path[:] = [path for path in sys.path if os.path.abspath(path or ".") != own]
    name, _, device = arguments.runtime.partition(":")
    loader = (loaders or LOADERS)[name]
    if device:
        loader = loader.on(device)
    sink = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a runtime prints goes to stderr
    serve(sys.stdin, sink, loader, arguments.runtime, arguments.threads, Clock())


if __name__ == "__main__":
    main()
