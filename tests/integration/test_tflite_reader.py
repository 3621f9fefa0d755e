"""Files of TensorFlow's converter: the operations are those of the Keras model, the shapes those of the runtime."""

from collections import Counter

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter, OpResolverType

from latency_lab import runtimes
from latency_lab.convert import to_tflite
from latency_lab.graph import ChannelGraph
from latency_lab.graph.tflite_file import load
from latency_lab.graph.tflite_reader import read_tflite
from latency_lab.graph.tflite_shapes import sized
from latency_lab.ops import Network, OpConfig

keras = pytest.importorskip("keras")
layers = keras.layers
tf = pytest.importorskip("tensorflow")
KERNELS = {"conv2d", "depthwise_conv2d", "dense"}


def macs(graph):
    """How many operations of each kind and number of multiply-adds there are."""
    return Counter((node.op.kind, node.op.macs) for node in graph.nodes if node.op.kind in KERNELS)


def written(path, data):
    path.write_bytes(data)
    return path


def varied(shape):
    """A model of many kinds, some of which the converter has no builtin for where sizes are open."""
    image = keras.Input(shape)
    x = layers.Conv2D(16, 3, strides=2, padding="same", activation="relu")(image)
    y = layers.DepthwiseConv2D(3, padding="same", activation="silu")(x)
    scale = layers.Conv2D(16, 1, activation="sigmoid")(layers.GlobalAveragePooling2D(keepdims=True)(y))
    x = layers.Add()([x, layers.Multiply()([y, scale])])
    x = layers.Conv2DTranspose(8, 3, strides=2, padding="same")(layers.UpSampling2D(2)(x))
    x = layers.Conv2D(16, 3, groups=4, padding="same")(layers.Conv2D(16, 3, dilation_rate=2, padding="same")(x))
    x = layers.LayerNormalization()(layers.Concatenate()([x, layers.LeakyReLU()(x)]))
    x = layers.PReLU(shared_axes=[1, 2])(layers.MaxPooling2D(2)(layers.ZeroPadding2D(1)(x)))
    return keras.Model(image, layers.Dense(10, activation="softmax")(layers.GlobalAveragePooling2D()(x)))


def converted(model, folder, optimise=False):
    """The file of the converter with all sizes as open as the model's."""
    model.export(folder / "saved", format="tf_saved_model", verbose=False)
    converter = tf.lite.TFLiteConverter.from_saved_model(str(folder / "saved"))
    if optimise:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = lambda: ([np.ones((1, 32, 32, 3), np.float32) * k] for k in range(2))
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    return written(folder / "model.tflite", converter.convert())


@pytest.fixture(scope="module")
def open_file(tmp_path_factory):
    return converted(varied((None, None, 3)), tmp_path_factory.mktemp("open"))


def runtime_shapes(path, shape):
    """Shapes of all tensors that the runtime computes, by tensor."""
    interpreter = Interpreter(
        model_path=str(path),
        experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
        experimental_preserve_all_tensors=True,
    )
    (detail,) = interpreter.get_input_details()
    interpreter.resize_tensor_input(detail["index"], shape)
    interpreter.allocate_tensors()
    interpreter.set_tensor(detail["index"], np.zeros(shape, detail["dtype"]))
    interpreter.invoke()
    return {detail["index"]: tuple(detail["shape"].tolist()) for detail in interpreter.get_tensor_details()}


def test_the_operations_are_those_of_the_keras_model(tmp_path):
    model = varied((32, 32, 3))
    graph = read_tflite(written(tmp_path / "m.tflite", to_tflite(model)))
    assert macs(graph) == macs(ChannelGraph.from_model(model))
    assert graph.unknown == ()
    rest = Counter(node.op.activation or node.op.kind for node in graph.nodes if node.op.kind not in KERNELS)
    activations = {"silu": 1, "sigmoid": 1, "leaky_relu": 1, "prelu": 1, "softmax": 1}
    moves = {"resize_nearest": 1, "conv2d_transpose": 1, "concatenate": 1, "pad": 1, "max_pool": 1}
    assert rest == {**activations, **moves, "global_avg_pool": 2, "multiply": 1, "add": 1, "layer_norm": 1}


@pytest.mark.parametrize("shape", [(1, 64, 48, 3), (3, 32, 32, 3)])
def test_open_sizes_are_worked_out_as_the_runtime_does(open_file, shape):
    expected = runtime_shapes(open_file, shape)
    model = sized(load(open_file), shape)
    computed = [tensor.index for tensor in model.file.tensors if not tensor.constant]
    assert {i: model.shapes[i] for i in computed} == {i: expected[i] for i in computed}


def test_the_operations_of_an_open_file_are_those_at_the_size_asked_for(open_file):
    graph = ChannelGraph.from_model(open_file, (1, 64, 48, 3))
    assert graph.input_shapes[0] == (64, 48, 3)
    assert {u.layer_class for u in graph.unknown} <= {"SPACE_TO_BATCH_ND", "BATCH_TO_SPACE_ND"}
    first = next(node.op for node in graph.nodes if node.op.kind == "conv2d")
    assert first == OpConfig("conv2d", 1, 64, 48, 3, 16, (3, 3), (2, 2), activation="relu")


def test_integers_throughout(tmp_path):
    image = keras.Input((32, 32, 3))
    x = layers.Conv2D(16, 3, activation="relu6")(image)
    x = layers.Add()([x, layers.DepthwiseConv2D(3, padding="same")(x)])
    graph = read_tflite(converted(keras.Model(image, x), tmp_path, optimise=True))
    assert [node.op.kind for node in graph.nodes] == ["quantize", "conv2d", "depthwise_conv2d", "add", "dequantize"]
    assert {node.op.dtype for node in graph.nodes} == {"int8"}
    assert graph.unknown == ()


@pytest.mark.parametrize(
    "op",
    [
        OpConfig("conv2d", 1, 8, 6, 4, 8, (3, 3), (2, 2), "valid", activation="relu6"),
        OpConfig("depthwise_conv2d", 1, 8, 6, 4, 8, (3, 3)),
        OpConfig("dense", 1, 3, 3, 4, 8, use_bias=False),
        OpConfig("multiply", 1, 8, 6, 4, 4, operands=2, broadcast="channels"),
        OpConfig("activation", 1, 8, 6, 4, 4, activation="silu"),
        OpConfig("activation", 1, 8, 6, 4, 4, activation="hard_sigmoid"),
        OpConfig("global_avg_pool", 1, 8, 6, 4, 4),
        OpConfig("pad", 1, 8, 6, 4, 4, padding=((0, 1), (2, 3))),
        OpConfig("flatten", 1, 8, 6, 4, 192),
        OpConfig("activation", 1, 8, 6, 4, 4, activation="softplus"),
        OpConfig("layer_norm", 1, 8, 6, 4, 4),
        OpConfig("layer_norm", 1, 8, 6, 4, 4, dtype="int8"),
        OpConfig("conv3d", 1, 8, 6, 4, 5, (3, 3), depth=4, kernel_depth=3),
        OpConfig("channel_shuffle", 1, 8, 6, 4, 4, groups=2),
        OpConfig("resize_nearest", 1, 8, 6, 4, 4, output_size=(16, 12)),
    ],
    ids=lambda op: op.kind if op.activation is None else op.activation,
)
def test_what_is_built_for_a_profile_is_read_as_it_was(op, tmp_path):
    graph = read_tflite(written(tmp_path / "op.tflite", runtimes.get("litert").build(Network.of(op))))
    assert [node.op for node in graph.nodes] == [op]
    assert graph.unknown == ()
