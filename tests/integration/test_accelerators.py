"""Runtimes on other devices than the CPU: delegates, and GPUs through Vulkan (also a GPU made of software).

A Vulkan driver without a GPU is SwiftShader, which Debian's chromium brings with a loader: apt-get install chromium.
"""

import ctypes.util
import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import latency_lab
from latency_lab import runtimes
from latency_lab.errors import UnmeasuredError, UsageError
from latency_lab.ops import Network, OpConfig
from latency_lab.profiling import LocalWorker, Protocol, worker_command
from latency_lab.runtimes import worker

SWIFTSHADER = Path("/usr/lib/chromium/vk_swiftshader_icd.json")
SETTINGS = {"block_ms": 1.0}


def image(kind, channels=16, **more):
    return OpConfig(kind, height=14, width=14, in_channels=channels, **{"out_channels": channels, **more})


CONV = image("conv2d", 8, out_channels=16, kernel_size=(3, 3), activation="relu")
DENSE = OpConfig("dense", in_channels=16, out_channels=10)
SOFTMAX = OpConfig("softmax", in_channels=10, out_channels=10)
NETWORK = Network(((CONV, (-1,)), (image("global_avg_pool"), (0,)), (DENSE, (1,)), (SOFTMAX, (2,))))
PARTLY = Network(((CONV, (-1,)), (image("local_response_norm"), (0,)), (image("global_avg_pool"), (1,))))
"""No GPU of these runtimes has a local response norm."""


def write(folder, runtime, **networks):
    """Paths of model files by name."""
    built = runtimes.get(runtime)
    paths = {name: folder / f"{name}{built.suffix}" for name in networks}
    for name, network in networks.items():
        paths[name].write_bytes(built.build(network))
    return paths


def blocks(runtime, paths, python=sys.executable):
    """What the worker says of itself, and of each model."""
    running = LocalWorker(runtime, 1, worker_command(python))
    try:
        return running.hello, {name: running.block(str(path), SETTINGS) for name, path in paths.items()}
    finally:
        running.close()


OUTPUTS = """
import importlib.util, json, sys
spec = importlib.util.spec_from_file_location("worker", sys.argv[1])
worker = sys.modules["worker"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(worker)
kind, _, device = sys.argv[2].partition(":")
loader = worker.LOADERS[kind].on(device) if device else worker.LOADERS[kind]
loader.version()
model = loader(sys.argv[3], 1, False)
outputs = model.run()
if kind == "onnxruntime":
    names = [node.name for node in model._session.get_inputs()]
    outputs = model._session.run(None, dict(zip(names, worker.onnx_inputs(model._session))))
elif not device:
    outputs = [model._interpreter.get_tensor(d["index"]) for d in model._interpreter.get_output_details()]
print("\\noutputs", json.dumps([output.ravel().tolist() for output in outputs]), flush=True)
model.close()
"""


def outputs_of(runtime, path, python=sys.executable):
    """What a model makes of the worker's inputs, by the worker's own classes."""
    command = [str(python), "-c", OUTPUTS, worker.__file__, runtime, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    lines = [line for line in done.stdout.splitlines() if line.startswith("outputs ")]
    assert lines, done.stderr[-2000:]
    return [np.array(output) for output in json.loads(lines[0].removeprefix("outputs "))]


def same_outputs(runtime, path, python=sys.executable, rtol=1e-4):
    """See that a device computes what the CPU does."""
    found, expected = outputs_of(runtime, path, python), outputs_of(runtime.partition(":")[0], path)
    for one, other in zip(found, expected, strict=True):
        assert other.std() > 1e-3
        np.testing.assert_allclose(one, other, rtol=rtol, atol=rtol * np.abs(other).max())


def environment_with(folder, packages):
    """The Python of an environment with numpy and these packages; skips where pip cannot make it."""
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True, capture_output=True)
    python = folder / "bin" / "python"
    command = [python, "-m", "pip", "install", "-q", "--no-input", "numpy", *packages]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    if done.returncode:
        pytest.skip(f"pip cannot install {' '.join(packages)}: {done.stderr.strip().splitlines()[-1:]}")
    return python


# ---- delegates ------------------------------------------------------------------------------------------------------

DELEGATE = r"""
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
/* A delegate that takes every operator but the one whose code is in its option "leave", and computes nothing. These
   are the beginnings of TFLite's structures (tensorflow/lite/core/c/common.h). */
typedef struct { int size; int data[]; } Ints;
typedef struct Context Context;
typedef struct Delegate Delegate;
typedef struct {
  void *init, *free; int (*prepare)(Context*, void*); int (*invoke)(Context*, void*); void *profiling;
  int32_t code; const char *name; int version; void *more[4];
} Registration;
struct Context {
  size_t tensors_size; int (*plan)(Context*, Ints**); void *tensors, *impl, *resize, *report, *add;
  int (*node)(Context*, int, void**, Registration**);
  int (*replace)(Context*, Registration, const Ints*, Delegate*);
};
struct Delegate { void *data; int (*prepare)(Context*, Delegate*); void *calls[3]; int64_t flags; void *opaque; };
static int leave;
static int done(Context *context, void *node) { return 0; }
static int prepare(Context *context, Delegate *delegate) {
  Ints *plan; context->plan(context, &plan);
  Ints *mine = malloc(sizeof(int) * (plan->size + 1)); mine->size = 0;
  for (int i = 0; i < plan->size; i++) {
    void *node; Registration *found; context->node(context, plan->data[i], &node, &found);
    if (found->code != leave) mine->data[mine->size++] = plan->data[i];
  }
  Registration own; memset(&own, 0, sizeof own);
  own.prepare = done; own.invoke = done; own.code = 51; own.name = "Test"; own.version = 1;
  int status = context->replace(context, own, mine, delegate);
  free(mine);
  return status;
}
Delegate *tflite_plugin_create_delegate(char **names, char **values, size_t count, void (*report)(const char*)) {
  leave = -1;
  for (size_t i = 0; i < count; i++) if (!strcmp(names[i], "leave")) leave = atoi(values[i]);
  Delegate *made = calloc(1, sizeof *made);
  made->prepare = prepare;
  return made;
}
void tflite_plugin_destroy_delegate(Delegate *delegate) { free(delegate); }
"""
FULLY_CONNECTED = 9


@pytest.fixture(scope="module")
def delegate(tmp_path_factory):
    """The library of a delegate."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler to make a delegate with")
    folder = tmp_path_factory.mktemp("delegate")
    (folder / "delegate.c").write_text(DELEGATE)
    command = [compiler, "-shared", "-fPIC", "-w", "-o", "libdelegate.so", "delegate.c"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return folder / "libdelegate.so"


def test_a_delegate_by_its_library(delegate, tmp_path):
    hello, found = blocks(f"litert:{delegate}", write(tmp_path, "litert", network=NETWORK))
    assert hello["device"] == str(delegate)
    assert found["network"]["status"] == "ok"
    assert found["network"]["cpu_ms"] is None


def test_operators_that_a_delegate_leaves_fail_the_block_by_name(delegate, tmp_path):
    runtime = f"litert:{delegate},leave={FULLY_CONNECTED}"
    hello, found = blocks(runtime, write(tmp_path, "litert", conv=Network.of(CONV), network=NETWORK))
    assert hello["device"] == runtime.removeprefix("litert:")
    assert found["conv"]["status"] == "ok"
    assert found["network"]["status"] == "failed"
    assert found["network"]["reason"].endswith(f"not all of it runs on {delegate}; elsewhere: FULLY_CONNECTED")


def test_a_profile_lists_what_ran_elsewhere_as_failed(delegate, tmp_path):
    runtime = f"litert:{delegate},leave={FULLY_CONNECTED}"
    protocol = Protocol(rounds=1, processes=1, block_ms=1.0)
    journal = latency_lab.profile([CONV, DENSE], runtime=runtime, journal=tmp_path / "j.jsonl", protocol=protocol)
    assert list(journal.failures) == [DENSE.key]
    assert journal.identity["device"] == runtime.removeprefix("litert:")


def test_a_library_that_is_not_there_or_no_delegate_is_named(tmp_path):
    with pytest.raises(UsageError, match=r"cannot load the delegate, which the device's maker.*none.so: cannot open"):
        LocalWorker(f"litert:{tmp_path / 'none.so'}", 1)
    if ctypes.util.find_library("edgetpu") is None:
        with pytest.raises(UsageError, match=r"which Coral's package libedgetpu1-std provides: libedgetpu.so.1"):
            LocalWorker("litert:edgetpu", 1)
    other = ctypes.util.find_library("m")
    with pytest.raises(UsageError, match=r"undefined symbol: tflite_plugin_create_delegate"):
        LocalWorker(f"litert:{other}", 1)


# ---- GPUs -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def vulkan(monkeypatch, tmp_path):
    """A Vulkan driver: the one that is configured, or SwiftShader."""
    if ctypes.util.find_library("vulkan") is None:
        loader = SWIFTSHADER.with_name("libvulkan.so.1")
        if not loader.is_file():
            pytest.skip("there is no libvulkan.so.1: apt-get install libvulkan1")
        (tmp_path / "loader").mkdir()
        (tmp_path / "loader" / loader.name).symlink_to(loader)
        monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path / "loader"))
    if "VK_ICD_FILENAMES" not in os.environ:
        if not SWIFTSHADER.is_file():
            pytest.skip(f"there is no {SWIFTSHADER}: apt-get install chromium; or set VK_ICD_FILENAMES")
        monkeypatch.setenv("VK_ICD_FILENAMES", str(SWIFTSHADER))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))


def test_litert_runs_on_a_gpu_and_computes_what_the_cpu_does(vulkan, tmp_path):
    paths = write(tmp_path, "litert", conv=Network.of(CONV), network=NETWORK, partly=PARTLY)
    hello, found = blocks("litert:gpu", paths)
    assert "gpu by libLiteRt" in hello["device"]
    for name in ("conv", "network"):
        assert found[name]["status"] == "ok", found[name]
        assert found[name]["cpu_ms"] is None
        same_outputs("litert:gpu,enforce_f32=1", paths[name])
    assert found["partly"]["status"] == "failed"
    assert "on the gpu alone: Some ops are not accelerated" in found["partly"]["reason"]
    with pytest.raises(UnmeasuredError, match="on the gpu alone: Some ops are not accelerated"):
        latency_lab.measure(paths["partly"], "litert:gpu", protocol=Protocol(rounds=1))


def test_a_gpu_that_falls_back_from_float16_to_float32_is_found_out(vulkan, tmp_path):
    op = dataclasses.replace(CONV, dtype="float16")
    protocol = Protocol(rounds=1, processes=1, block_ms=1.0)
    journal = latency_lab.profile([op], runtime="litert:gpu", journal=tmp_path / "j.jsonl", protocol=protocol)
    assert journal.identity["precision"] == "float16"
    if os.environ["VK_ICD_FILENAMES"] == str(SWIFTSHADER):
        assert "computes in float32, not in float16: ask for precision float32" in journal.failures[op.key]


def test_without_a_driver_a_gpu_fails_with_what_it_needs(tmp_path, monkeypatch):
    monkeypatch.setenv("VK_ICD_FILENAMES", str(tmp_path / "none.json"))
    monkeypatch.setenv("VK_DRIVER_FILES", str(tmp_path / "none.json"))
    _, found = blocks("litert:gpu", write(tmp_path, "litert", conv=Network.of(CONV)))
    assert found["conv"]["status"] == "failed"
    assert found["conv"]["reason"].endswith("it needs a GPU with a Vulkan driver, and libvulkan.so.1.")


def test_options_that_litert_s_gpu_has_not_are_refused():
    with pytest.raises(UsageError, match="options of LiteRT's GpuOptions, as in enforce_f32=1: .*'fast'"):
        LocalWorker("litert:gpu,fast=1", 1)
    with pytest.raises(UsageError, match="litert:npu takes no options"):
        LocalWorker("litert:npu,fast=1", 1)


@pytest.fixture(scope="session")
def webgpu_python(tmp_path_factory):
    """The Python of an environment with onnxruntime-webgpu."""
    return environment_with(tmp_path_factory.mktemp("webgpu") / "venv", ["onnxruntime-webgpu"])


@pytest.mark.full
def test_onnxruntime_runs_on_webgpu_and_computes_what_the_cpu_does(vulkan, webgpu_python, tmp_path):
    runtime = "onnxruntime:webgpu"
    halves = Network.of(CONV).of_type("float16")
    paths = write(tmp_path, runtime, conv=Network.of(CONV), partly=PARTLY, network=NETWORK, halves=halves)
    hello, found = blocks(runtime, paths, webgpu_python)
    if os.environ["VK_ICD_FILENAMES"] == str(SWIFTSHADER):
        assert "requires f16 but the device does not support it" in found["halves"]["reason"]
    assert (hello["package"], hello["device"]) == ("onnxruntime-webgpu", "WebGpuExecutionProvider")
    for name in ("conv", "network"):
        assert found[name]["status"] == "ok", found[name]
        same_outputs(runtime, paths[name], webgpu_python)
    assert found["partly"]["status"] == "failed"
    assert found["partly"]["reason"].endswith("WebGpuExecutionProvider; elsewhere: LRN (CPUExecutionProvider)")


def test_a_provider_that_is_not_there_is_named_with_those_that_are_and_its_package():
    expected = r"no CANNExecutionProvider here.* It has: .*CPUExecutionProvider. The package onnxruntime-cann brings it"
    with pytest.raises(UsageError, match=expected):
        LocalWorker("onnxruntime:cann", 1)
    with pytest.raises(UsageError, match=r"no OwnExecutionProvider here.* It has: .*CPUExecutionProvider"):
        LocalWorker("onnxruntime:OwnExecutionProvider", 1)
