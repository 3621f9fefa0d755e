"""Networks in float16: the files, who runs them, and who says that it does not."""

import keras
import numpy as np
import onnx
import onnxruntime
import pytest
import tensorflow as tf
from keras import layers

import latency_lab
from latency_lab import runtimes
from latency_lab.cli.main import main
from latency_lab.convert import to_graphdef, to_onnx, to_tflite
from latency_lab.errors import UsageError
from latency_lab.graph import ChannelGraph
from latency_lab.ops import Network, OpConfig
from latency_lab.profiling import Protocol
from latency_lab.runtimes.worker import FLOAT16_MARK, TensorFlowModel

SIZE = {"height": 8, "width": 8, "in_channels": 8, "out_channels": 8}
OPS = [
    OpConfig("conv2d", **SIZE, kernel_size=(3, 3), strides=(2, 2), activation="relu6"),
    OpConfig("conv2d", **SIZE, kernel_size=(3, 3), groups=2),
    OpConfig("depthwise_conv2d", **SIZE, kernel_size=(3, 3), activation="hard_swish"),
    OpConfig("conv2d_transpose", **SIZE, kernel_size=(3, 3), strides=(2, 2)),
    OpConfig("dense", in_channels=32, out_channels=10),
    OpConfig("add", **SIZE, operands=2, activation="relu"),
    OpConfig("multiply", **SIZE, operands=2, broadcast="channels"),
    OpConfig("add", **SIZE, broadcast="channels"),
    OpConfig("concatenate", **SIZE, operands=2),
    OpConfig("max_pool", **SIZE, kernel_size=(2, 2), strides=(2, 2)),
    OpConfig("avg_pool", **SIZE, kernel_size=(3, 3)),
    OpConfig("global_avg_pool", **SIZE),
    OpConfig("batch_norm", **SIZE),
    OpConfig("layer_norm", **SIZE),
    OpConfig("group_norm", **SIZE, groups=2),
    OpConfig("softmax", in_channels=16, out_channels=16),
    OpConfig("pad", **SIZE, padding=((1, 1), (1, 1))),
    OpConfig("resize_nearest", **SIZE, output_size=(16, 16)),
    OpConfig("resize_bilinear", **SIZE, output_size=(16, 16)),
    *(OpConfig("activation", **SIZE, activation=name) for name in ("silu", "gelu", "elu", "prelu", "leaky_relu")),
]
CONV = OPS[0]
POOL, DENSE = OpConfig("global_avg_pool", 1, 4, 4, 8, 8), OpConfig("dense", in_channels=8)
NET = Network(((CONV, (-1,)), (POOL, (0,)), (DENSE, (1,))))


def half(network):
    return network.of_type("float16")


def onnx_outputs(file, dtype):
    """The outputs for random inputs of a type, which the CPU's provider computes between casts."""
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    feeds = {i.name: rng.uniform(-1, 1, i.shape).astype(np.float16).astype(dtype) for i in session.get_inputs()}
    return session.run(None, feeds)


def graph_outputs(file, dtype):
    """The outputs for random inputs of a type, under TensorFlow."""
    graph = tf.compat.v1.GraphDef()
    graph.ParseFromString(file)
    function = TensorFlowModel._function(graph)
    rng = np.random.default_rng(0)
    given = [tf.constant(rng.uniform(-1, 1, x.shape).astype(np.float16).astype(dtype)) for x in function.inputs]
    return [output.numpy() for output in function(*given)]


def same_but_for_rounding(halves, wholes):
    for a, b in zip(halves, wholes, strict=True):
        assert a.dtype == np.float16
        np.testing.assert_allclose(a.astype(np.float32), b, atol=0.02, rtol=0.02)


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.key)
def test_an_onnx_file_computes_the_same_in_float16(op):
    engine = runtimes.get("onnxruntime:cuda")
    file = engine.build(half(Network.of(op)))
    model = onnx.load_from_string(file)
    onnx.checker.check_model(model, full_check=True)
    kept = {name for node in model.graph.node if node.op_type == "Resize" for name in node.input[1:]}
    assert not [t.name for t in model.graph.initializer if t.data_type == onnx.TensorProto.FLOAT and t.name not in kept]
    same_but_for_rounding(onnx_outputs(file, np.float16), onnx_outputs(engine.build(Network.of(op)), np.float32))


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.key)
def test_a_tensorflow_graph_computes_the_same_in_float16(op):
    engine = runtimes.get("tensorflow")
    halves = graph_outputs(engine.build(half(Network.of(op))), np.float16)
    same_but_for_rounding(halves, graph_outputs(engine.build(Network.of(op)), np.float32))


def test_a_network_is_float16_as_a_whole():
    mixed = Network(((half(Network.of(CONV)).nodes[0][0], (-1,)), *NET.nodes[1:]))
    for name in ("tensorflow", "onnxruntime:cuda"):
        with pytest.raises(UsageError, match="float16 as a whole. Received: operations of float16, float32"):
            runtimes.get(name).build(mixed)


def test_a_gpu_of_litert_is_given_floats():
    """What it computes in is an option of its own, and the worker looks whether it does."""
    file = runtimes.get("litert:gpu").build(half(NET))
    assert file == runtimes.get("litert").build(NET) + FLOAT16_MARK


@pytest.mark.parametrize(
    ("runtime", "precision", "message"),
    [
        ("onnxruntime", "float16", "in float32, between casts. Ask for precision float32, or name another provider"),
        ("litert", "float16", "computes float16 weights in float32. Ask for precision float32, or name litert:gpu"),
        ("litert:gpu,enforce_f32=1", "float16", "Ask for precision float32, or leave the option out"),
        ("litert:gpu", "float32", "Ask for precision float16, or name litert:gpu,enforce_f32=1"),
        ("litert:edgetpu", "float16", "computes float16 weights in float32"),
        ("tensorflow", "int8", "runs float32 and float16 networks"),
        ("vela", "float16", "ask for precision int8"),
    ],
)
def test_what_a_runtime_does_not_compute_in_is_said_before_anything_is_measured(
    runtime, precision, message, tmp_path, capsys
):
    words = ["profile", "--runtime", runtime, "--precision", precision, "-o", str(tmp_path / "p.json")]
    assert main(words) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 3))
    x = layers.BatchNormalization()(layers.Conv2D(8, 3, use_bias=False)(inputs))
    x = layers.UpSampling2D(interpolation="bilinear")(layers.ReLU(max_value=6)(x))
    return keras.Model(inputs, layers.Dense(4)(layers.GlobalAveragePooling2D()(x)))


def test_a_model_is_converted_to_float16(model):
    same_but_for_rounding(onnx_outputs(to_onnx(model, "float16"), np.float16), onnx_outputs(to_onnx(model), np.float32))
    same_but_for_rounding(
        graph_outputs(to_graphdef(model, "float16"), np.float16), graph_outputs(to_graphdef(model), np.float32)
    )
    with pytest.raises(UsageError, match=r"Expected one of \['float32', 'float16'\]. Received: precision='int8'"):
        to_graphdef(model, "int8")


def test_files_of_float16_are_read_as_the_model(model, tmp_path):
    """Weights in float16 behind a DEQUANTIZE are weights; an ONNX file computes in float16."""
    expected = [(op.kind, op.in_channels, op.out_channels) for op in read(tmp_path / "a.tflite", to_tflite(model))]
    found = read(tmp_path / "b.tflite", to_tflite(model, "float16"))
    assert [(op.kind, op.in_channels, op.out_channels) for op in found] == expected
    assert {op.dtype for op in read(tmp_path / "c.onnx", to_onnx(model, "float16"))} == {"float16"}


def read(path, file):
    path.write_bytes(file)
    graph = ChannelGraph.from_model(path)
    assert not graph.unknown
    return [op for op, _ in graph.network().nodes]


def test_tensorflow_is_profiled_and_validated_in_float16(tmp_path):
    protocol = Protocol(rounds=1, processes=1, block_ms=1.0)
    ops = [half(Network.of(op)).nodes[0][0] for op in OPS[:2]]
    journal = latency_lab.profile(ops, runtime="tensorflow", journal=tmp_path / "j.jsonl", protocol=protocol)
    assert not journal.failures
    profile = latency_lab.fit_profile(journal)
    assert profile.precision == "float16"
    assert {prediction.source for prediction in profile.predict(ops)} == {"measured"}
