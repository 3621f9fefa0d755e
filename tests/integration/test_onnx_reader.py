"""Whole networks: what is read of them, laid out, beside the model that ONNX Runtime makes of the file."""

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

from latency_lab import runtimes
from latency_lab.graph.onnx_reader import read_onnx
from latency_lab.profiles import fuse
from latency_lab.profiles.layout import with_reorders
from tests.unit.onnx_nets import OnnxNet

LIGHT = Path(onnx.__file__).parent / "backend/test/data/light"
CONV_KINDS = {"conv2d", "depthwise_conv2d"}
COUNTED = ("Conv", "ReorderInput", "ReorderOutput", "Concat", "Mul", "MaxPool", "AveragePool")


def optimised(path, folder):
    """The graph that ONNX Runtime executes, and its block of channels."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return onnx.load(folder / "optimised.onnx").graph


def block_of(folder):
    """Channels that lie side by side on this machine: what a conv of one channel is padded to."""
    net = OnnxNet()
    path = net.save(folder, net.conv(net.input("x", [1, 1, 8, 8]), 1, 1))
    graph = optimised(path, folder)
    return max((tensor.dims[0] for tensor in graph.initializer), default=1)


def executed(graph):
    return Counter({"FusedConv": "Conv"}.get(node.op_type, node.op_type) for node in graph.node)


def predicted(path, block):
    runtime = runtimes.get("onnxruntime")
    rules = (runtime.expected_fusions | runtime.conversion_fusions) - {"input+transpose"}
    names = {
        "reorder_input": "ReorderInput",
        "reorder_output": "ReorderOutput",
        "concatenate": "Concat",
        "multiply": "Mul",
        "max_pool": "MaxPool",
        "avg_pool": "AveragePool",
    } | dict.fromkeys(CONV_KINDS, "Conv")
    kernels = with_reorders(fuse(read_onnx(path).network(), rules), block, exported=False)
    return Counter(names.get(kernel.op.kind, kernel.op.kind) for kernel in kernels)


def with_weights(source, target):
    """The file with weights that differ, where it makes them all alike: ONNX Runtime merges what is alike."""
    model = onnx.load(source)
    shapes = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    random, kept = np.random.default_rng(0), []
    for node in model.graph.node:
        if node.op_type == "ConstantOfShape":
            weights = random.uniform(0.1, 1, shapes[node.input[0]]).astype(np.float32)
            model.graph.initializer.append(numpy_helper.from_array(weights, node.output[0]))
        else:
            kept.append(node)
    del model.graph.node[:]
    model.graph.node.extend(kept)
    onnx.save(model, target)


@pytest.mark.parametrize(
    "name",
    [
        "bvlc_alexnet",
        "densenet121",
        "inception_v1",
        "inception_v2",
        "resnet50",
        "shufflenet",
        "squeezenet",
        "vgg19",
        "zfnet512",
    ],
)
def test_published_networks_of_old_files_are_read_whole(name):
    graph = read_onnx(LIGHT / f"light_{name}.onnx")
    assert not graph.unknown
    assert graph.input_shapes == ((224, 224, 3),)
    known_gmacs = {"resnet50": 4.09, "densenet121": 2.83, "squeezenet": 0.35, "vgg19": 19.63}
    if name in known_gmacs:
        assert sum(op.macs for op in graph.op_configs()) / 1e9 == pytest.approx(known_gmacs[name], abs=0.01)


@pytest.mark.parametrize("name", ["inception_v2", "squeezenet"])
def test_reorders_are_those_of_the_runtime(name, tmp_path):
    block = block_of(tmp_path)
    path = tmp_path / "model.onnx"
    with_weights(LIGHT / f"light_{name}.onnx", path)
    found, expected = executed(optimised(path, tmp_path)), predicted(path, block)
    assert {kind: expected[kind] for kind in COUNTED} == {kind: found[kind] for kind in COUNTED}


def blocks(net, x):
    """Squeeze and excite, a residual, a norm that stands alone, parallel branches, odd channels, a way out."""
    y = net.op("Relu", net.conv(x, 3, 32, bias=True))
    gate = net.op("Sigmoid", net.conv(net.op("GlobalAveragePool", y), 32, 32, kernel=1, bias=True))
    y = net.conv(net.op("Mul", y, gate), 32, 32, bias=True)
    y = net.op("Relu", net.op("Add", net.conv(net.op("Relu", y), 32, 32, bias=True), y))
    vectors = [net.constant(np.linspace(0.5 + k, 1 + k, 32)) for k in range(4)]
    y = net.op("Relu", net.op("BatchNormalization", net.op("MaxPool", y, kernel_shape=[2, 2]), *vectors))
    silu = net.conv(y, 32, 32, kernel=1, bias=True)
    silu = net.op("Mul", silu, net.op("Sigmoid", silu))
    odd = net.op("Elu", net.conv(y, 32, 24, bias=True))
    y = net.op("Concat", silu, odd, net.conv(odd, 24, 8, kernel=1), axis=1)
    return net.op("Transpose", net.conv(y, 64, 12, bias=True), perm=[0, 2, 3, 1])


def test_blocks_are_laid_out_as_the_runtime_does(tmp_path):
    block = block_of(tmp_path)
    net = OnnxNet()
    path = net.save(tmp_path, blocks(net, net.input("x", [1, 3, 16, 16])))
    found, expected = executed(optimised(path, tmp_path)), predicted(path, block)
    assert {kind: expected[kind] for kind in COUNTED} == {kind: found[kind] for kind in COUNTED}
    assert found["ReorderOutput"] > 3  # the layout is in use on this machine


def test_a_keras_export_reads_as_what_it_was(tmp_path):
    keras = pytest.importorskip("keras")
    from latency_lab.convert import to_onnx
    from latency_lab.graph import ChannelGraph

    layers = keras.layers
    x = inputs = keras.Input((16, 16, 3))
    x = layers.Conv2D(16, 3, strides=2, padding="same", use_bias=False)(x)
    x = y = layers.ReLU(6.0)(layers.BatchNormalization()(x))
    for activation in ("silu", "hard_swish", "gelu", "leaky_relu"):
        x = layers.Conv2D(16, 1, padding="same", activation=activation)(x)
    x = layers.DepthwiseConv2D(3, strides=2)(layers.ZeroPadding2D(((0, 1), (0, 1)))(layers.Add()([x, y])))
    x = layers.Dense(10, activation="softmax")(layers.Flatten()(x))
    model = keras.Model(inputs, x)
    path = tmp_path / "net.onnx"
    path.write_bytes(to_onnx(model))
    file, original = read_onnx(path), ChannelGraph.from_model(model)
    assert not file.unknown
    rules = runtimes.get("onnxruntime").conversion_fusions
    expected = [kernel.op.key for kernel in fuse(original.network(), rules)]
    rules -= {"input+transpose"}
    assert [_with_bias(kernel.op.key) for kernel in fuse(file.network(), rules)] == [_with_bias(k) for k in expected]


def _with_bias(key):
    """Exports leave out a bias of zeros."""
    return key.replace("nobias", "bias")
