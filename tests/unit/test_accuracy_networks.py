"""The list of the accuracy benchmark's networks follows its rules, and a file in the cache is whole or not there."""

import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from latency_lab.errors import UnsupportedModelError, UsageError

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture
def scripts(monkeypatch):
    """Imports a script by its name."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    before = set(sys.modules)
    yield __import__
    for name in set(sys.modules) - before:
        if name.startswith(("accuracy_", "benchmark_", "_narrow")):
            del sys.modules[name]


@pytest.fixture
def models(scripts):
    return scripts("accuracy_models")


def parted(entries):
    """Whole, narrowed and light entries."""
    return (
        [entry for entry in entries if "class" in entry and "narrow_seed" not in entry],
        [entry for entry in entries if "narrow_seed" in entry],
        [entry for entry in entries if "light" in entry],
    )


def test_the_list_is_what_the_rules_give(scripts, models):
    rules = scripts("accuracy_list")
    entries = models.networks()
    whole, narrowed, light = parted(entries)
    counted = {entry["class"]: entry["parameters"] for entry in whole}
    assert whole == rules.whole({**counted, "VGG16": 138_357_544})
    assert light == rules.light()
    can_narrow = sorted(set(counted) - {"ConvNeXtTiny"})  # its channels are pinned by layer norms
    counts = [{"parameters": entry["parameters"]} for entry in narrowed]
    assert [{**entry, **count} for entry, count in zip(rules.narrowed(can_narrow), counts, strict=True)] == narrowed
    assert models.LIST.read_bytes() == rules.document(entries)


def test_the_list_covers_what_it_should(models):
    entries = models.networks()
    whole, narrowed, light = parted(entries)
    assert [len(whole), len(narrowed), len(light)] == [46, 25, 9]
    assert max(Counter(entry["name"] for entry in entries).values()) == 1
    assert {entry["family"] for entry in whole} == {
        "MobileNet", "MobileNetV2", "MobileNetV3", "EfficientNet", "EfficientNetV2", "DenseNet", "ResNet", "ResNetV2",
        "Inception", "Xception", "NASNet", "ConvNeXt",
    }  # fmt: skip
    assert {entry["family"] for entry in narrowed} == {entry["family"] for entry in whole} - {"ConvNeXt"}
    assert Counter(entry["size"] for entry in whole) == {224: 23, 160: 23}
    assert sum(entry["odd"] for entry in narrowed) == 12
    of_class = {entry["class"]: entry["parameters"] for entry in whole}
    assert all(entry["parameters"] < 0.8 * of_class[entry["class"]] for entry in narrowed)


class Graph:
    """What narrowing reads of a ChannelGraph."""

    digest = "1234"

    def __init__(self, **sizes):
        self.groups = [type("Group", (), {"name": name, "size": size}) for name, size in sizes.items()]


@pytest.mark.parametrize("odd", [False, True])
def test_narrowing_draws_the_same_widths_each_time(scripts, odd):
    narrow = scripts("_narrow").narrow
    graph = Graph(**{f"g{k}": size for k, size in enumerate([3, 8, 20, 64, 96, 257, 512] * 4)})
    first, again, other = (narrow(graph, np.random.default_rng(seed), odd) for seed in (1, 1, 2))
    assert first == again != other
    for name, kept in first.kept.items():
        size, width = first.sizes[name], len(kept)
        if odd:
            assert max(1, 0.3 * size - 0.5) <= width <= size
        else:
            assert width == size or (width % 8 == 0 and 0.3 * size - 4 <= width < size)
    widths = [len(kept) for kept in first.kept.values()]
    assert any(width % 8 for width in widths if width > 20) == odd


def entry_of(models, **what):
    return next(entry for entry in models.networks() if all(entry.get(key) == value for key, value in what.items()))


def test_a_file_is_made_once(models, monkeypatch, tmp_path):
    made = []
    monkeypatch.setitem(models.CONVERTERS, "litert", lambda entry, *_: made.append(entry["name"]) or b"file")
    entry = entry_of(models, size=160)
    path = models.model_file(entry, "litert", "int8", tmp_path)
    assert path == tmp_path / "litert-int8" / f"{entry['name']}.tflite"
    assert models.model_file(entry, "litert", "int8", tmp_path).read_bytes() == b"file"
    assert made == [entry["name"]]
    assert list(models.missing([entry], "litert", "int8", tmp_path, retry=True)) == []


def test_a_failure_is_kept_and_tried_again_on_request(models, monkeypatch, tmp_path):
    def fails(*_):
        raise ValueError("no such layer")

    entry = entry_of(models, size=224)
    monkeypatch.setitem(models.CONVERTERS, "onnxruntime", fails)
    with pytest.raises(UnsupportedModelError, match="no such layer"):
        models.model_file(entry, "onnxruntime", "float32", tmp_path)
    monkeypatch.setitem(models.CONVERTERS, "onnxruntime", lambda *_: b"file")
    with pytest.raises(UnsupportedModelError, match="failed before .*no such layer"):
        models.model_file(entry, "onnxruntime", "float32", tmp_path)
    assert list(models.missing([entry], "onnxruntime", "float32", tmp_path, retry=False)) == []
    assert list(models.missing([entry], "onnxruntime", "float32", tmp_path, retry=True)) == [entry]
    path = models.model_file(entry, "onnxruntime", "float32", tmp_path, retry=True)
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_what_no_runtime_reads_is_refused(models, tmp_path):
    light = entry_of(models, family="light:vgg19")
    assert not models.runs_on(light, "litert")
    for entry, runtime, precision in ((light, "litert", "float32"), (models.networks()[0], "tensorflow", "int8")):
        with pytest.raises(UsageError, match=f"no {precision} file of {entry['name']}"):
            models.model_file(entry, runtime, precision, tmp_path)


def test_light_models_get_random_initialisers_and_keep_their_graph(scripts):
    onnx = pytest.importorskip("onnx")
    light = scripts("accuracy_light")
    before = light.source("light_squeezenet.onnx")
    operators = [node.op_type for node in before.graph.node if node.op_type != "ConstantOfShape"]
    after = light.with_random_weights(before, seed=3)
    assert [node.op_type for node in after.graph.node] == operators
    assert [value.name for value in after.graph.input] == ["data_0"]
    weights = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in after.graph.initializer}
    kernel = weights["fire2/expand3x3_w_0"]
    assert kernel.shape == (64, 16, 3, 3)
    assert kernel.std() == pytest.approx((2 / (16 * 9)) ** 0.5, rel=0.05)
    assert all(value.std() > 0 for value in weights.values() if value.dtype == np.float32)
    again = light.with_random_weights(light.source("light_squeezenet.onnx"), seed=3)
    assert again.SerializeToString() == after.SerializeToString()


def test_a_frozen_graph_is_predicted_from_its_keras_file(scripts, models, tmp_path):
    readable = scripts("benchmark_accuracy").readable
    entry = models.networks()[0]
    frozen, lite = (models.place(entry, runtime, "float32", tmp_path) for runtime in ("tensorflow", "litert"))
    assert readable(entry, frozen, tmp_path) == tmp_path / "keras" / f"{entry['name']}.keras"
    assert readable(entry, lite, tmp_path) == lite
