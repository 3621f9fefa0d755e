"""tflite-runtime 2.14, which boards with older systems have: it needs numpy<2, and so an environment of its own."""

import subprocess
import sys

import pytest

import latency_lab
from latency_lab import runtimes
from latency_lab.cli.main import main
from latency_lab.errors import MissingRuntimeError, UsageError
from latency_lab.ops import Network, OpConfig
from latency_lab.profiling import LocalWorker, Protocol, worker_command

CONV = OpConfig("conv2d", height=14, width=14, in_channels=16, out_channels=24, kernel_size=(3, 3), activation="relu")
PACKAGES = ("tflite-runtime==2.14.0", "numpy<2")


@pytest.fixture(scope="session")
def environment(tmp_path_factory):
    """The Python of an environment with nothing but tflite-runtime and numpy."""
    if sys.version_info[:2] not in {(3, 9), (3, 10), (3, 11)}:
        pytest.skip("tflite-runtime 2.14 has wheels for Python 3.9 to 3.11")
    folder = tmp_path_factory.mktemp("tflite") / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True, capture_output=True)
    python = folder / "bin" / "python"
    done = subprocess.run(
        [python, "-m", "pip", "install", "-q", "--no-input", *PACKAGES], capture_output=True, text=True, timeout=300
    )
    if done.returncode:
        pytest.skip(f"pip cannot install {' '.join(PACKAGES)}: {done.stderr.strip().splitlines()[-1:]}")
    return python


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "conv.tflite"
    path.write_bytes(runtimes.get("litert").build(Network.of(CONV)))
    return path


@pytest.mark.full
def test_the_worker_times_a_model_of_ours(environment, model):
    worker = LocalWorker("litert", 1, worker_command(environment))
    try:
        assert (worker.hello["package"], worker.hello["version"]) == ("tflite-runtime", "2.14.0")
        block = worker.block(str(model), {"cold": 1})
    finally:
        worker.close()
    assert block["status"] == "ok"
    assert 0 < block["wall_ms"]["min"] <= block["wall_ms"]["median"]
    assert block["cold_ms"]["min"] > 0


@pytest.mark.full
def test_operations_are_profiled_and_models_measured_there(environment, model, tmp_path, capsys):
    journal = latency_lab.profile(
        [CONV],
        runtime="litert",
        journal=tmp_path / "old.jsonl",
        protocol=Protocol(rounds=1, processes=1),
        start_worker=lambda: LocalWorker("litert", 1, worker_command(environment)),
    )
    assert not journal.failures
    assert journal.identity["package"] == "tflite-runtime"
    assert main(["measure", str(model), "--python", str(environment), "--json"]) == 0
    assert '"tflite-runtime"' in capsys.readouterr().out


def test_a_python_that_is_not_there_or_has_no_runtime_is_named(model, tmp_path, capsys):
    assert main(["measure", str(model), "--python", str(tmp_path / "python")]) == 2
    assert "There is no Python" in capsys.readouterr().err
    bare = tmp_path / "python"
    bare.write_text("#!/bin/sh\necho \"ModuleNotFoundError: No module named 'numpy'\" >&2\nexit 1\n")
    bare.chmod(0o755)
    with pytest.raises(MissingRuntimeError, match=r"'litert' is not installed for .*python"):
        LocalWorker("litert", 1, worker_command(bare))
    bare.write_text("#!/bin/sh\necho out of memory >&2\nexit 1\n")
    with pytest.raises(UsageError, match="does not start: .*out of memory"):
        LocalWorker("litert", 1, worker_command(bare))
