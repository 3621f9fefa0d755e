"""Which networks the accuracy benchmark has: the rules, and the file that they gave.

    .venv/bin/python scripts/accuracy_list.py          writes accuracy_networks.json

The file was written before anything was predicted, and is not written again for a result. Rules:

* every class of keras.applications with fewer than 30 million parameters (1000 classes, head included), at 224 and at
  160 pixels a side; none of them has a smallest size above 160;
* 25 of those that have channel groups, narrowed: classes in a random order (again from the start when all are used),
  a random size, each channel group to a random fraction of its channels between 0.3 and 1; every second one rounded
  to multiples of 8 as a careful designer would, the others left as they fall ("odd");
* the light models that the onnx package brings.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from latency_lab import files

LIST = Path(__file__).with_name("accuracy_networks.json")
SIZES = (224, 160)
LARGEST = 30_000_000
NARROWED = 25
SEED = 20
LIGHT = ("bvlc_alexnet", "densenet121", "inception_v1", "inception_v2", "resnet50", "shufflenet", "squeezenet",
         "vgg19", "zfnet512")  # fmt: skip
_FAMILIES = ("ConvNeXt", "DenseNet", "EfficientNetV2", "EfficientNet", "Inception", "MobileNetV3", "MobileNetV2",
             "MobileNet", "NASNet", "ResNet", "Xception")  # fmt: skip
"""The first that a class begins with is its family; ResNetV2 is told by its end."""


def family(class_name: str) -> str:
    """The family of a class of keras.applications: what is left out together when a predictor is tested."""
    if class_name.startswith("ResNet") and class_name.endswith("V2"):
        return "ResNetV2"
    return next(name for name in _FAMILIES if class_name.startswith(name))


def whole(parameters: Mapping[str, int]) -> list[dict[str, Any]]:
    """The classes (name -> parameters) that are small enough, at each size."""
    return [
        {"name": f"{name}-{size}", "family": family(name), "class": name, "size": size, "parameters": count}
        for name, count in sorted(parameters.items())
        if count < LARGEST
        for size in SIZES
    ]


def narrowed(classes: Sequence[str]) -> list[dict[str, Any]]:
    """The narrowed variants of these classes, parameters not counted yet."""
    draw = random.Random(SEED)
    order = [name for _ in range(-(-NARROWED // len(classes))) for name in draw.sample(sorted(classes), len(classes))]
    return [
        {"name": f"{name}-{size}-narrow{seed}", "family": family(name), "class": name, "size": size,
         "narrow_seed": seed, "odd": seed % 2 == 1}
        for seed, name in enumerate(order[:NARROWED])
        for size in [draw.choice(SIZES)]
    ]  # fmt: skip


def light() -> list[dict[str, Any]]:
    """The light models of the onnx package."""
    return [{"name": f"light-{name}", "family": f"light:{name}", "light": f"light_{name}.onnx"} for name in LIGHT]


def document(entries: Sequence[Mapping[str, Any]]) -> bytes:
    """The file, a network a line."""
    lines = ",\n".join("  " + json.dumps(entry) for entry in entries)
    return f'{{\n "rules": "scripts/accuracy_list.py",\n "seed": {SEED},\n "networks": [\n{lines}\n ]\n}}\n'.encode()


def main() -> None:
    """Builds what has to be counted, and writes the list."""
    import accuracy_build

    counted = accuracy_build.parameters_of_all()
    entries = whole(counted)
    can = [name for name, count in counted.items() if count < LARGEST and accuracy_build.can_narrow(name)]
    for entry in narrowed(can):
        entries.append({**entry, "parameters": accuracy_build.architecture(entry).count_params()})
    files.write_bytes(LIST, document([*entries, *light()]))


if __name__ == "__main__":
    main()
