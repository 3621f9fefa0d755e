"""`scripts/inside_litert.py`: what each kernel takes inside of a network, by LiteRT's own profiler."""

import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path

import pytest

from latency_lab import runtimes
from latency_lab.ops import Network, OpConfig
from latency_lab.profiles import DeviceProfile

SCRIPT = Path(__file__).parents[2] / "scripts" / "inside_litert.py"
IMAGE = {"height": 28, "width": 28}


@pytest.mark.skipif(
    not importlib.metadata.version("ai-edge-litert").startswith("2.3"), reason="the C library is that of 2.3"
)
def test_each_kernel_has_its_time_and_all_others_a_sum(tmp_path):
    ops = [
        OpConfig("conv2d", **IMAGE, in_channels=16, out_channels=64, kernel_size=(3, 3), activation="relu"),
        OpConfig("depthwise_conv2d", **IMAGE, in_channels=64, out_channels=64, kernel_size=(3, 3)),
        OpConfig("activation", **IMAGE, in_channels=64, out_channels=64, activation="hard_swish"),
        OpConfig("conv2d", **IMAGE, in_channels=64, out_channels=128),
        OpConfig("global_avg_pool", **IMAGE, in_channels=128, out_channels=128),
        OpConfig("dense", in_channels=128, out_channels=10),
    ]
    network = Network(tuple((op, (i - 1,)) for i, op in enumerate(ops)))
    (tmp_path / "net.tflite").write_bytes(runtimes.get("litert").build(network))
    DeviceProfile.analytic("chip", peak_gflops=10, bandwidth_gb_s=5).save(tmp_path / "chip.json")
    words = [
        "--profile",
        str(tmp_path / "chip.json"),
        "-o",
        str(tmp_path / "inside.json"),
        str(tmp_path / "net.tflite"),
    ]
    subprocess.run([sys.executable, str(SCRIPT), *words], check=True, capture_output=True, timeout=120)
    found = json.loads((tmp_path / "inside.json").read_text())
    first = "in the first 1.5 ms"
    expected = {"other", *(f"{group}, {first}" for group in ("window", "depthwise", "pointwise"))}
    assert expected <= set(found["classes"])
    assert sum(row["share"] for row in found["classes"].values()) == pytest.approx(1.0, abs=0.01)
    assert all(row["inside_over_alone"] > 0 for row in found["classes"].values())
    assert found["networks"] == ["net"]
