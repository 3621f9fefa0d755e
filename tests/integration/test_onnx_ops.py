import collections
import json
import math
from pathlib import Path

import keras
import numpy as np
import onnx
import onnxruntime
import pytest
from keras import layers

from latency_lab import runtimes
from latency_lab.convert import to_onnx
from latency_lab.graph import ChannelGraph
from latency_lab.ops import ACTIVATIONS, KINDS, Network, OpConfig
from latency_lab.plan import model_plan
from latency_lab.runtimes import base, worker
from latency_lab.runtimes._onnx_graph import is_channels_last

RUNTIME = runtimes.get("onnxruntime")


def op(kind, height=7, width=5, in_channels=8, out_channels=None, **more):
    channels = {"in_channels": in_channels, "out_channels": out_channels or in_channels}
    return OpConfig(kind, height=height, width=width, **channels, **more)


# ---- running ------------------------------------------------------------------------------------------------------


def session(model, **settings):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    for name, value in settings.items():
        setattr(options, name, value)
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def to_first(values):
    return np.ascontiguousarray(np.moveaxis(values, -1, 1))


def run_lone(found, inputs):
    """A lone operation takes and gives images channels first, unless its kind works channels last."""
    first = not is_channels_last(found) and found.kind != "transpose"
    running = session(RUNTIME.build(Network.of(found)))
    fed = [to_first(x) if first and x.ndim > 2 else x for x in inputs]
    names = [node.name for node in running.get_inputs()]
    (output,) = running.run(None, dict(zip(names, fed, strict=True)))
    return np.moveaxis(output, 1, -1) if first and output.ndim > 2 else output


def kernels(model, folder, seed=0):
    """(name, type) of each kernel that a run of the model takes, and its outputs."""
    running = session(model, enable_profiling=True, profile_file_prefix=str(folder / "profile"))
    random = np.random.default_rng(seed)
    fed = {}
    for node in running.get_inputs():
        byte = node.type == "tensor(uint8)"
        fed[node.name] = random.integers(0, 256, node.shape).astype(np.uint8) if byte else uniform(random, node.shape)
    outputs = running.run(None, fed)
    events = json.loads(Path(running.end_profiling()).read_text())
    found = [event for event in events if event["name"].endswith("_kernel_time")]
    return [(event["name"][: -len("_kernel_time")], event["args"]["op_name"]) for event in found], outputs


def uniform(random, shape):
    return random.uniform(0.1, 1.0, shape).astype(np.float32)


def own(found):
    """Types of the kernels that count as the operation's."""
    return [kind for name, kind in found if "context" not in name and "Reorder" not in kind]


# ---- float32: what each new kind means ------------------------------------------------------------------------------


def transposed(found, x):
    """Each input position adds its kernel to the output; what padding cuts off is cut off."""
    kernel, (rows, columns) = base.kernel(found, 0), found.kernel_size
    (s0, s1), (d0, d1) = found.strides, found.dilation
    full = np.zeros((found.batch, found.height * s0 + rows * d0, found.width * s1 + columns * d1, found.out_channels))
    for i in range(rows):
        for j in range(columns):
            added = np.einsum("bhwi,oi->bhwo", x, kernel[:, i, j])
            full[:, i * d0 : i * d0 + found.height * s0 : s0, j * d1 : j * d1 + found.width * s1 : s1] += added
    tops = [0, 0]
    if found.padding == "same":
        windows = zip(found.kernel_size, found.dilation, found.strides, strict=True)
        tops = [max((k - 1) * d + 1 - s, 0) // 2 for k, d, s in windows]
    elif found.padding != "valid":
        tops = [pair[0] for pair in found.padding]
    rows, columns = found.output_height, found.output_width
    return full[:, tops[0] : tops[0] + rows, tops[1] : tops[1] + columns] + base.bias(found, 0)


def conv3d(found, x):
    import tensorflow as tf

    kernel = base.kernel(found, 0).transpose(1, 2, 3, 4, 0).astype(np.float64)
    strides = [1, found.stride_depth, *found.strides, 1]
    return tf.nn.conv3d(x, kernel, strides, found.padding.upper()).numpy() + base.bias(found, 0)


def resized(found, x, method):
    import tensorflow as tf

    return tf.image.resize(x, found.output_size, method).numpy()


def normalised(found, x, axes):
    mean, variance = x.mean(axes, keepdims=True), x.var(axes, keepdims=True)
    return (x - mean) / np.sqrt(variance + base.NORM_EPSILON)


def group_norm(found, x):
    parted = x.reshape(*x.shape[:-1], found.groups, -1)
    axes = (*range(1, x.ndim - 1), x.ndim)
    return normalised(found, parted, axes).reshape(x.shape) * base.scale(found, 0) + base.bias(found, 0)


def local_response_norm(found, x):
    squares = np.pad(x**2, ((0, 0),) * (x.ndim - 1) + ((base.RESPONSE_SIZE // 2,) * 2,))
    sums = sum(squares[..., k : k + x.shape[-1]] for k in range(base.RESPONSE_SIZE))
    return x / (base.RESPONSE_BIAS + base.RESPONSE_ALPHA / base.RESPONSE_SIZE * sums) ** base.RESPONSE_BETA


def shuffled(found, x):
    return x.reshape(*x.shape[:-1], found.groups, -1).swapaxes(-1, -2).reshape(x.shape)


BINARY_MEANING = {
    "add": np.add,
    "subtract": np.subtract,
    "multiply": np.multiply,
    "divide": np.divide,
    "maximum": np.maximum,
    "minimum": np.minimum,
    "squared_difference": lambda x, y: (x - y) ** 2,
}
ACTIVATION_MEANING = {
    "prelu": lambda x: np.where(x > 0, x, base.slopes(op("activation", activation="prelu"), 0) * x),
    "selu": lambda x: 1.0507009873554805 * np.where(x > 0, x, 1.6732632423543772 * np.expm1(np.minimum(x, 0))),
    "softplus": lambda x: np.log1p(np.exp(x)),
    "log": np.log,
    "sqrt": np.sqrt,
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "square": np.square,
    "abs": np.abs,
    "negative": np.negative,
    "erf": np.vectorize(math.erf),
}
POSITIVE = {"log", "sqrt", "rsqrt"}
MEANING = {
    "conv2d_transpose": transposed,
    "conv3d": conv3d,
    "dense": lambda found, x: x @ base.kernel(found, 0).T + base.bias(found, 0),
    "layer_norm": lambda found, x: normalised(found, x, -1) * base.scale(found, 0) + base.bias(found, 0),
    "group_norm": group_norm,
    "local_response_norm": local_response_norm,
    "channel_mean": lambda found, x: x.mean(-1, keepdims=True),
    "resize_nearest": lambda found, x: resized(found, x, "nearest"),
    "resize_bilinear": lambda found, x: resized(found, x, "bilinear"),
    "slice": lambda found, x: x[:, : found.output_height, : found.output_width, : found.out_channels],
    "reshape": lambda found, x: x.reshape(found.batch, found.output_height, found.output_width, found.out_channels),
    "channel_shuffle": shuffled,
    "activation": lambda found, x: ACTIVATION_MEANING[found.activation](x),
}


def meaning(found, inputs):
    inputs = [x.astype(np.float64) for x in inputs]
    if found.kind in BINARY_MEANING:
        second = inputs[1] if found.operands > 1 else base.operand(found, 0)
        return BINARY_MEANING[found.kind](inputs[0], second)
    return MEANING[found.kind](found, *inputs)


def inputs_of(found):
    shapes = base.tensor_shapes(Network.of(found)).inputs
    positive = found.kind in BINARY_MEANING or found.activation in POSITIVE
    arrays = [np.random.default_rng(k).normal(size=shape).astype(np.float32) for k, shape in enumerate(shapes)]
    return [np.abs(x) + np.float32(0.2) if positive else x for x in arrays]


K3, K2, S2 = {"kernel_size": (3, 3)}, {"kernel_size": (2, 2)}, {"strides": (2, 2)}
VOLUME = {"depth": 6, "kernel_depth": 3, "kernel_size": (3, 3)}
BROADCASTS = [{}, {"broadcast": "channels"}, {"broadcast": "positions"}, {"broadcast": "scalar"}]
NEW_KINDS = [
    op("conv2d_transpose", out_channels=6, **K3, **S2),
    op("conv2d_transpose", out_channels=6, **K3, **S2, padding="valid"),
    op("conv2d_transpose", out_channels=6, **K2, strides=(3, 3), padding="valid"),
    op("conv2d_transpose", out_channels=6, kernel_size=(4, 4), **S2, padding=((1, 1), (0, 2)), use_bias=False),
    op("conv2d_transpose", out_channels=6, kernel_size=(1, 1), **S2),
    op("conv3d", out_channels=6, **VOLUME),
    op("conv3d", out_channels=6, **VOLUME, stride_depth=2, **S2),
    op("conv3d", out_channels=6, **VOLUME, padding="valid"),
    op("dense", out_channels=6),
    op("dense", 1, 10, out_channels=6, use_bias=False, batch=2),
    *(op(kind, operands=n, **how) for kind in sorted(BINARY_MEANING) for n in (1, 2) for how in BROADCASTS),
    *(op("add", 1, 1, 12, operands=n, batch=2) for n in (1, 2)),
    *(op(kind, broadcast="innermost") for kind in ("add", "multiply", "subtract")),
    op("layer_norm"),
    op("layer_norm", 1, 1, 12),
    op("group_norm", groups=4),
    op("local_response_norm"),
    op("channel_mean", out_channels=1),
    op("resize_nearest", output_size=(14, 10)),
    op("resize_nearest", output_size=(13, 8)),
    op("resize_bilinear", output_size=(14, 10)),
    op("resize_bilinear", output_size=(13, 9)),
    op("slice", output_size=(6, 4), out_channels=5),
    op("reshape", output_size=(5, 14), out_channels=4),
    op("channel_shuffle", groups=4),
    *(op("activation", activation=name) for name in sorted(ACTIVATION_MEANING)),
]


def key(value):
    return value.key.replace(" ", "_")


@pytest.mark.parametrize("found", NEW_KINDS, ids=key)
def test_a_float_operation_computes_what_it_says(found):
    inputs = inputs_of(found)
    output = run_lone(found, inputs)
    np.testing.assert_allclose(output, meaning(found, inputs), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("found", NEW_KINDS, ids=key)
def test_every_node_is_named_after_its_operation(found):
    nodes = onnx.load_model_from_string(RUNTIME.build(Network.of(found))).graph.node
    assert all(node.name.startswith(("op0", "context_")) for node in nodes)


# ---- 8-bit ----------------------------------------------------------------------------------------------------------


def coded(kind, height=14, width=14, in_channels=32, out_channels=None, **more):
    return op(kind, height, width, in_channels, out_channels, dtype="int8", **more)


CODED = [
    (coded("conv2d", out_channels=64), ["QLinearConv"]),
    (coded("conv2d", **K3, activation="relu"), ["QLinearConv"]),
    (coded("conv2d", **K3, groups=4, activation="relu6"), ["QLinearConv"]),
    (coded("conv2d", activation="silu"), ["QLinearConv", "QLinearSigmoid", "QLinearMul"]),
    (coded("conv2d", residual=True, activation="relu"), ["QLinearConv", "QLinearAdd"]),
    (coded("depthwise_conv2d", **K3, **S2, activation="relu6"), ["QLinearConv"]),
    (coded("conv2d_transpose", **K3, **S2), None),
    (coded("conv3d", 8, 8, 8, **VOLUME), ["QLinearConv"]),
    (coded("dense", 1, 1, activation="relu"), ["QGemm"]),
    (coded("dense", 1, 1, use_bias=False), ["QLinearMatMul"]),
    (coded("dense"), ["Reshape", "QLinearMatMul", "Reshape", "QLinearAdd"]),
    (coded("add", operands=2, activation="relu"), ["QLinearAdd"]),
    (coded("add"), ["QLinearAdd"]),
    (coded("multiply", operands=2, broadcast="channels"), ["QLinearMul"]),
    (coded("multiply", operands=2, broadcast="positions"), ["QLinearMul"]),
    (coded("multiply", broadcast="scalar"), ["QLinearMul"]),
    (coded("subtract", operands=2), ["DequantizeLinear", "DequantizeLinear", "Sub", "QuantizeLinear"]),
    (coded("divide", operands=2), None),
    (coded("maximum", operands=2), None),
    (coded("minimum"), None),
    (coded("squared_difference", operands=2), None),
    (coded("concatenate", operands=2), ["QLinearConcat"]),
    (coded("batch_norm"), ["QLinearMul", "QLinearAdd"]),
    (coded("max_pool", **K3, **S2), ["NhwcMaxPool"]),
    (coded("avg_pool", **K3, **S2), ["QLinearAveragePool"]),
    (coded("global_avg_pool"), ["QLinearGlobalAveragePool", "Transpose", "Squeeze"]),
    (coded("global_max_pool"), None),
    (coded("softmax"), ["QLinearSoftmax"]),
    (coded("pad", padding=((0, 1), (0, 1))), ["DequantizeLinear", "Pad", "QuantizeLinear"]),
    (coded("flatten", out_channels=14 * 14 * 32), ["Reshape"]),
    (coded("transpose"), ["Transpose"]),
    (coded("layer_norm"), None),
    (coded("group_norm", groups=4), None),
    (coded("local_response_norm"), None),
    (coded("channel_mean", out_channels=1), ["DequantizeLinear", "ReduceMean", "QuantizeLinear"]),
    (coded("resize_nearest", output_size=(28, 28)), ["Resize"]),
    (coded("resize_bilinear", output_size=(28, 28)), ["DequantizeLinear", "Resize", "QuantizeLinear"]),
    (coded("slice", output_size=(12, 12), out_channels=16), ["Slice"]),
    (coded("reshape", output_size=(7, 28)), ["Reshape"]),
    (coded("channel_shuffle", groups=4), ["Reshape", "Transpose", "Reshape"]),
    (coded("quantize"), ["QuantizeLinear"]),
    (coded("dequantize"), ["DequantizeLinear"]),
    *((coded("activation", activation=name), None) for name in sorted(ACTIVATIONS)),
]


SAME_CHANNELS = {"global_avg_pool", "global_max_pool", "softmax"}
"""Kinds that answer one number where all channels of their input are equal, as the context makes them."""


@pytest.mark.parametrize(("found", "expected"), CODED, ids=[key(found) for found, _ in CODED])
def test_an_8_bit_operation_runs_the_kernels_that_onnxruntime_merges(found, expected, tmp_path):
    model = RUNTIME.build(Network.of(found))
    onnx.checker.check_model(onnx.load_model_from_string(model), full_check=True)
    ran, (output,) = kernels(model, tmp_path)
    assert found.kind in SAME_CHANNELS or len(np.unique(output)) > 1
    assert own(ran)
    if expected is not None:
        assert own(ran) == expected


def test_every_kind_is_run_in_8_bit_but_reorders():
    assert {found.kind for found, _ in CODED} == KINDS - {"reorder_input", "reorder_output"}


def test_an_8_bit_convolution_answers_nearly_as_a_float_one():
    conv = op("conv2d", 9, 8, 16, 24, **K3)
    quantise, dequantise = (op(kind, 9, 8, n, dtype="int8") for kind, n in (("quantize", 16), ("dequantize", 24)))
    eight = op("conv2d", 9, 8, 16, 24, **K3, dtype="int8")
    x = np.random.default_rng(0).normal(size=(1, 9, 8, 16)).astype(np.float32)
    # Both have one node of index 1, so that their weights are the same.
    network = Network(((op("activation", 9, 8, 16, activation="abs"), (-1,)), (conv, (0,))))
    coded_network = Network(((quantise, (-1,)), (eight, (0,)), (dequantise, (1,))))
    answers = []
    for found, data in ((network, np.abs(x)), (coded_network, np.abs(x))):
        running = session(RUNTIME.build(found))
        answers.append(running.run(None, {running.get_inputs()[0].name: data})[0])
    flags = Path("/proc/cpuinfo").read_text()
    if "avx2" in flags and "vnni" not in flags:  # there ONNX Runtime saturates sums of two products at 16 bits
        assert np.corrcoef(answers[0].ravel(), answers[1].ravel())[0, 1] > 0.95
        return
    assert np.abs(answers[0] - answers[1]).max() < 0.1 * np.abs(answers[0]).max()
    assert np.corrcoef(answers[0].ravel(), answers[1].ravel())[0, 1] > 0.999


# ---- an 8-bit network ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def block():
    """An inverted residual, as MobileNetV2 has them."""
    keras.utils.set_random_seed(0)
    image = keras.Input((16, 16, 3))
    x = layers.Conv2D(16, 3, strides=2, padding="same", use_bias=False)(image)
    x = layers.ReLU(6.0)(layers.BatchNormalization()(x))
    y = layers.ReLU(6.0)(layers.BatchNormalization()(layers.Conv2D(48, 1, use_bias=False)(x)))
    y = layers.DepthwiseConv2D(3, padding="same", use_bias=False)(y)
    y = layers.ReLU(6.0)(layers.BatchNormalization()(y))
    y = layers.BatchNormalization()(layers.Conv2D(16, 1, use_bias=False)(y))
    x = layers.GlobalAveragePooling2D()(layers.Add()([x, y]))
    return keras.Model(image, layers.Dense(10, activation="softmax")(x))


def block_network():
    def conv(kind, size, in_channels, out_channels, activation=None, **more):
        return coded(kind, size, size, in_channels, out_channels, activation=activation, **more)

    return Network(
        (
            (coded("quantize", 16, 16, 3), (-1,)),
            (conv("conv2d", 16, 3, 16, "relu6", **K3, **S2), (0,)),
            (conv("conv2d", 8, 16, 48, "relu6"), (1,)),
            (conv("depthwise_conv2d", 8, 48, 48, "relu6", **K3), (2,)),
            (conv("conv2d", 8, 48, 16), (3,)),
            (coded("add", 8, 8, 16, operands=2), (1, 4)),
            (coded("global_avg_pool", 8, 8, 16), (5,)),
            (coded("dense", 1, 1, 16, 10), (6,)),
            (coded("softmax", 1, 1, 10), (7,)),
            (coded("dequantize", 1, 1, 10), (8,)),
        )
    )


def test_an_8_bit_network_runs_the_kernels_of_a_quantised_keras_model(block, tmp_path):
    model = to_onnx(block, precision="int8")
    ran, (output,) = kernels(model, tmp_path)
    built, _ = kernels(RUNTIME.build(block_network()), tmp_path)
    counts = collections.Counter(kind for _, kind in ran)
    assert counts["QLinearConv"] == 4
    assert counts["QLinearAdd"] == 1
    assert "Conv" not in counts
    dense = {"QGemm", "QLinearMatMul", "QLinearAdd"}
    assert {*counts} - dense == {kind for _, kind in built} - dense
    x = uniform(np.random.default_rng(0), (1, 16, 16, 3))
    np.testing.assert_allclose(output, block(x).numpy(), atol=0.02)


def test_ranges_are_read_from_representative_inputs(block):
    wide = [np.full((1, 16, 16, 3), 100.0), np.full((1, 16, 16, 3), -100.0)]
    scales = []
    for data in (None, wide):
        graph = onnx.load_model_from_string(to_onnx(block, precision="int8", representative=data)).graph
        constants = {item.name: onnx.numpy_helper.to_array(item) for item in graph.initializer}
        first = next(node for node in graph.node if node.op_type == "QuantizeLinear")
        scales.append(float(constants[first.input[1]]))
    assert scales[1] > 10 * scales[0]


# ---- reorders -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["reorder_input", "reorder_output"])
def test_a_reorder_is_the_kernel_that_its_model_names(kind, tmp_path):
    block = worker.onnx_layout_block()
    if block == 1:
        pytest.skip("this processor has no blocked layout")
    model = RUNTIME.build(Network.of(op(kind, 14, 14, 2 * block)))
    wanted = {item.key: item.value for item in onnx.load_model_from_string(model).metadata_props}["latency_lab.kernels"]
    ran, _ = kernels(model, tmp_path)
    assert [kind for _, kind in ran].count(wanted) == 1
    path = tmp_path / "reorder.onnx"
    path.write_bytes(model)
    request = {"id": 1, "path": str(path), "settings": {"kernels": True, "block_ms": 1.0}}
    answer = worker.answer(request, worker.OnnxRuntimeModel, 1, worker.Clock(), 1e-6)
    assert answer["status"] == "ok"
    assert answer["wall_ms"]["median"] > 0


def test_a_reorder_that_onnxruntime_does_not_run_is_a_failed_block(tmp_path):
    path = tmp_path / "reorder.onnx"
    path.write_bytes(RUNTIME.build(Network.of(op("reorder_input", 14, 14, 4))))
    request = {"id": 1, "path": str(path), "settings": {"kernels": True}}
    answer = worker.answer(request, worker.OnnxRuntimeModel, 1, worker.Clock(), 1e-6)
    assert (answer["status"], "runs no ReorderInput" in answer["reason"]) == ("failed", True)


# ---- timing -------------------------------------------------------------------------------------------------------


def test_the_profiler_overhead_is_small_and_grows_with_inputs():
    found = worker.KernelOverhead.measured(1)
    assert 0 < found.us(1) <= found.us(9) < 100


def test_the_worker_times_an_8_bit_operation(tmp_path):
    path = tmp_path / "conv.onnx"
    path.write_bytes(RUNTIME.build(Network.of(coded("conv2d", **K3))))
    request = {"id": 1, "path": str(path), "settings": {"kernels": True, "block_ms": 1.0}}
    answer = worker.answer(request, worker.OnnxRuntimeModel, 1, worker.Clock(), 1e-6)
    assert answer["status"] == "ok"
    assert 1e-4 < answer["wall_ms"]["median"] < 10


def test_a_model_that_normalises_its_images_is_planned_as_it_is_exported() -> None:
    image = x = keras.Input((16, 16, 3))
    for layer in (layers.Rescaling(1 / 255), layers.Normalization(mean=[0.4] * 3, variance=[0.1] * 3)):
        x = layer(x)
    graph = ChannelGraph.from_model(keras.Model(image, layers.Conv2D(8, 3)(x)))
    tasks = model_plan([graph], "onnxruntime")
    lone = {task.network.nodes[0][0].family for task in tasks if task.role == "op"}
    assert {"multiply by scalar", "subtract by innermost", "multiply by innermost"} <= lone
    assert "subtract by channels" not in lone
    whole = next(task.network for task in tasks if task.role == "network")
    kinds = [node.op_type for node in onnx.load_model_from_string(RUNTIME.build(whole)).graph.node]
    assert kinds[:5] == ["Mul", "Sub", "Mul", "Transpose", "Conv"]
    litert = model_plan([graph], "litert")
    assert "subtract by channels" in {task.network.nodes[0][0].family for task in litert if task.role == "op"}
