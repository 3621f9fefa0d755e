"""How far two profiles of one runtime agree: operations that both measured, operations of real networks, and ResNet-50.

    .venv/bin/python scripts/profile_agreement.py FIRST.json.gz SECOND.json.gz [-o docs/agreement.json]

Operations of real networks are those of MobileNetV2, ResNet50 and EfficientNetB0 at 224x224, as each profile predicts
them. A ratio is second over first.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

import latency_lab as ll
from latency_lab import files
from latency_lab.fitting.network import kernels_of
from latency_lab.profiles import DeviceProfile
from latency_lab.profiling.environment import identity

NETWORKS = ("MobileNetV2", "ResNet50", "EfficientNetB0")


def main() -> None:
    """Compares, and prints what it writes."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("first", type=Path)
    parser.add_argument("second", type=Path)
    parser.add_argument("-o", "--output", type=Path)
    args = parser.parse_args()
    first, second = ll.load_profile(args.first), ll.load_profile(args.second)
    found = {
        "environment": identity(),
        "runtime": [first.runtime, second.runtime],
        "measured_by_both": _measured_by_both(first, second),
        "networks": {name: _network(name, first, second) for name in NETWORKS},
    }
    if args.output:
        files.write_json(args.output, found)
    print(json.dumps(found, indent=1))


def _measured_by_both(first: DeviceProfile, second: DeviceProfile) -> dict[str, float]:
    """Ratios of what was measured, no predictor between."""
    ratios = [
        second.tables[key].points[channels].latency_ms / point.latency_ms
        for key, table in first.tables.items()
        if key in second.tables
        for channels, point in table.points.items()
        if channels in second.tables[key].points
    ]
    return _summary(np.array(ratios))


def _network(name: str, first: DeviceProfile, second: DeviceProfile) -> dict[str, Any]:
    """Ratios of the predictions of a network's kernels, and of the whole."""
    import keras

    graph = ll.ChannelGraph.from_model(getattr(keras.applications, name)(weights=None))
    kernels = [kernel.op for kernel in kernels_of(graph.network(), first)]
    times = [np.array([p.latency_ms for p in profile.predict(kernels)]) for profile in (first, second)]
    whole = [ll.LatencyCost(graph, profile).at() for profile in (first, second)]
    return {"whole": round(whole[1] / whole[0], 4), "kernels": _summary(times[1] / times[0])}


def _summary(ratios: np.ndarray) -> dict[str, float]:
    off = np.abs(ratios - 1)
    numbers = {"median_ratio": np.median(ratios), "median_off": np.median(off), "off_90_percent": np.quantile(off, 0.9)}
    return {"operations": len(ratios), **{name: round(float(value), 4) for name, value in numbers.items()}}


if __name__ == "__main__":
    main()
