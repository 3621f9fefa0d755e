#!/usr/bin/env python3
"""Writes the analytic profiles of device_profiles/ from the datasheet numbers below.

A peak is that of the number format that it names, and the roofline counts 4 bytes a number all the same. The six
devices of MorphNet's latency regularizer have its numbers, so that its costs are reproduced; where they differ from
the datasheet, `note` says so.
"""

from __future__ import annotations

import argparse
import dataclasses
from dataclasses import dataclass
from pathlib import Path

from latency_lab.profiles import DeviceProfile

FOLDER = Path(__file__).parents[1] / "device_profiles"
NVIDIA = "https://www.nvidia.com/content/dam/en-zz/Solutions/Data-Center"
IMAGES = "https://images.nvidia.com/content"
TPU = "https://cloud.google.com/tpu/docs"


@dataclass(frozen=True)
class Datasheet:
    """What a vendor states of a device.

    Attributes:
        device: its name.
        peak_gflops: 1e9 operations a second, a multiply-add counted as two, without sparsity.
        precision_of_peak: number format, and what computes it.
        bandwidth_gb_s: 1e9 bytes a second of its memory.
        source: title and address of the document.
        note: what is to be known of the numbers.
    """

    device: str
    peak_gflops: float
    precision_of_peak: str
    bandwidth_gb_s: float
    source: str
    note: str = ""


DATASHEETS = {
    "k80": Datasheet(
        "NVIDIA Tesla K80", 8740, "float32, GPU Boost", 480,
        f"NVIDIA Tesla K80 overview, {NVIDIA}/tesla-product-literature/nvidia-tesla-k80-overview.pdf",
        "both GPUs of the card together",
    ),
    "p4": Datasheet(
        "NVIDIA Tesla P4", 5500, "float32", 192,
        f"NVIDIA Tesla P4 datasheet, {IMAGES}/pdf/tesla/184457-Tesla-P4-Datasheet-NV-Final-Letter-Web.pdf",
    ),
    "t4": Datasheet(
        "NVIDIA T4", 8100, "float32", 300,
        f"NVIDIA T4 datasheet, {NVIDIA}/t4-tensor-core-datasheet.pdf",
        "bandwidth as MorphNet has it; NVIDIA also states 320 GB/s",
    ),
    "p100": Datasheet(
        "NVIDIA Tesla P100 PCIe", 9300, "float32", 732,
        f"NVIDIA Tesla P100 PCIe datasheet, {IMAGES}/tesla/pdf/nvidia-tesla-p100-PCIe-datasheet.pdf",
    ),
    "v100": Datasheet(
        "NVIDIA Tesla V100 SXM2", 125000, "float16 products, float32 sums, tensor cores", 900,
        f"NVIDIA V100 datasheet, {IMAGES}/technologies/volta/pdf/tesla-volta-v100-datasheet-letter-fnl-web.pdf",
        "float32 without tensor cores: 15700 GFLOP/s",
    ),
    "a100": Datasheet(
        "NVIDIA A100 40GB SXM4", 312000, "bfloat16 products, float32 sums, tensor cores", 1555,
        f"NVIDIA A100 datasheet, {NVIDIA}/a100/pdf/nvidia-a100-datasheet-us-nvidia-1758950-r4-web.pdf",
        "TF32: 156000 GFLOP/s; float32 without tensor cores: 19500",
    ),
    "h100": Datasheet(
        "NVIDIA H100 SXM5", 989500, "bfloat16 products, float32 sums, tensor cores", 3350,
        "NVIDIA H100 Tensor Core GPU datasheet, https://www.nvidia.com/en-us/data-center/h100/",
        "half of the 1979 TFLOP/s that NVIDIA states with sparsity; float32 without tensor cores: 67000 GFLOP/s",
    ),
    "tpu-v2": Datasheet(
        "Google TPU v2, one core", 22500, "bfloat16 products, float32 sums", 300,
        "J. Dean, Machine Learning for Systems and Systems for Machine Learning, "
        "http://learningsys.org/nips17/assets/slides/dean-nips17.pdf",
        "half a chip: a chip has two cores, 45 TFLOP/s and 600 GB/s",
    ),
    "tpu-v3": Datasheet(
        "Google TPU v3, one chip", 123000, "bfloat16", 900, f"TPU v3, Google Cloud documentation, {TPU}/v3"
    ),
    "tpu-v4": Datasheet(
        "Google TPU v4, one chip", 275000, "bfloat16 or int8", 1200, f"TPU v4, Google Cloud documentation, {TPU}/v4"
    ),
    "tpu-v5e": Datasheet(
        "Google TPU v5e, one chip", 197000, "bfloat16", 819, f"TPU v5e, Google Cloud documentation, {TPU}/v5e",
        "int8: 393000 GOP/s",
    ),
    "edge-tpu": Datasheet(
        "Google Coral USB Accelerator (Edge TPU)", 4000, "int8", 0.5,
        "Coral USB Accelerator datasheet, https://coral.ai/static/files/Coral-USB-Accelerator-datasheet.pdf",
        "the bandwidth is that of USB 3.1 Gen 1 (5 Gb/s, 8b/10b coded), which the device has in place of memory: right "
        "for an operation that takes from the host and gives back, far too slow for a network whose tensors stay in "
        "its 8 MB on the chip",
    ),
}  # fmt: skip
"""Name of the profile -> datasheet."""


def profile(name: str) -> DeviceProfile:
    """The analytic profile of a datasheet."""
    sheet = DATASHEETS[name]
    bare = DeviceProfile.analytic(name, peak_gflops=sheet.peak_gflops, bandwidth_gb_s=sheet.bandwidth_gb_s)
    stated = {
        "device": sheet.device,
        "provenance": "datasheet",
        "source": sheet.source,
        "precision_of_peak": sheet.precision_of_peak,
        "note": sheet.note,
    }
    return dataclasses.replace(bare, environment={key: text for key, text in stated.items() if text})


def main() -> None:
    """Write every profile."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder to write to (default device_profiles/)")
    out = parser.parse_args().out
    for name in DATASHEETS:
        profile(name).save(out / f"{name}.json")
        print(out / f"{name}.json")


if __name__ == "__main__":
    main()
