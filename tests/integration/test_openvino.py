"""ONNX Runtime's OpenVINO provider, whose package takes onnxruntime's place: an environment of its own."""

import json

import keras
import pytest

from latency_lab import runtimes
from latency_lab.cli.main import main
from latency_lab.errors import UsageError
from latency_lab.ops import Network
from latency_lab.profiling import LocalWorker, worker_command
from tests.integration.test_accelerators import CONV, NETWORK, PARTLY, blocks, environment_with, same_outputs, write

RUNTIME = "onnxruntime:openvino"
pytestmark = pytest.mark.full


@pytest.fixture(scope="session")
def python(tmp_path_factory):
    """The Python of an environment with onnxruntime-openvino."""
    return environment_with(tmp_path_factory.mktemp("openvino") / "venv", ["onnxruntime-openvino"])


def test_it_computes_what_the_cpu_provider_does(python, tmp_path):
    paths = write(tmp_path, RUNTIME, conv=Network.of(CONV), network=NETWORK, partly=PARTLY)
    hello, found = blocks(RUNTIME, paths, python)
    assert (hello["package"], hello["device"]) == ("onnxruntime-openvino", "OpenVINOExecutionProvider")
    for name, block in found.items():
        assert block["status"] == "ok", block
        same_outputs(RUNTIME, paths[name], python)


def test_a_device_that_openvino_has_not_fails_with_what_ran_instead(python, tmp_path):
    paths = write(tmp_path, RUNTIME, network=NETWORK)
    hello, found = blocks(f"{RUNTIME},device_type=NPU", paths, python)
    assert hello["device"] == "OpenVINOExecutionProvider,device_type=NPU"
    assert found["network"]["status"] == "failed"


def test_a_model_is_profiled_and_validated_there(python, tmp_path, capsys):
    image = keras.Input((16, 16, 3))
    x = keras.layers.Conv2D(8, 3, activation="relu")(image)
    x = keras.layers.DepthwiseConv2D(3, activation="relu")(x)
    x = keras.layers.Dense(10)(keras.layers.GlobalAveragePooling2D()(x))
    model, profile = tmp_path / "model.keras", tmp_path / "openvino.json"
    keras.Model(image, x, name="small").save(model)
    where = ["--runtime", RUNTIME, "--python", str(python)]
    assert main(["profile", *where, "--model", str(model), "-o", str(profile), "--json"]) == 0
    fitted = json.loads(profile.read_text())
    assert fitted["runtime"] == "onnxruntime:OpenVINOExecutionProvider"
    assert fitted["environment"]["package"] == "onnxruntime-openvino"
    assert not fitted["journal"]["failed"]
    capsys.readouterr()
    assert main(["validate", str(model), "--profile", str(profile), "--python", str(python), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)


def test_other_providers_are_not_in_its_package(python):
    with pytest.raises(UsageError, match="no CUDAExecutionProvider here.* It has: OpenVINOExecutionProvider, CPU"):
        LocalWorker("onnxruntime:cuda", 1, worker_command(python))


def test_the_plain_runtime_runs_under_its_package(python, tmp_path):
    """The CPU's provider of another build, with its kernels timed."""
    path = tmp_path / "conv.onnx"
    path.write_bytes(runtimes.get("onnxruntime").build(Network.of(CONV)))
    running = LocalWorker("onnxruntime", 1, worker_command(python))
    try:
        assert running.block(str(path), {"kernels": True})["status"] == "ok"
    finally:
        running.close()
