"""The TFLite builder writes what TensorFlow's converter writes; the converter's int8."""

import dataclasses

import keras
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter
from keras import layers

from latency_lab import runtimes
from latency_lab.convert import to_tflite
from latency_lab.errors import UnsupportedModelError, UsageError
from latency_lab.ops import Network, OpConfig

CODES = {value: name for name, value in vars(schema.BuiltinOperator).items()}
TYPES = {value: name for name, value in vars(schema.TensorType).items()}
IGNORED = {"newShape", "potScaleInt16", "beginMask", "endMask"}
"""Options that no kernel reads, or that say the same in another way."""


def op(kind, size, in_channels, out_channels=None, **more):
    rows, columns = (size, size) if isinstance(size, int) else size
    return OpConfig(
        kind, height=rows, width=columns, in_channels=in_channels, out_channels=out_channels or in_channels, **more
    )


# ---- the same operators ---------------------------------------------------------------------------------------------


def operators(file):
    """Each operator: name, version, options, and of each tensor type, shape, and along which axis it is quantised."""
    model = schema.ModelT.InitFromPackedBuf(file, 0)
    graph = model.subgraphs[0]

    def tensor(index):
        if index < 0:
            return "left out"
        found = graph.tensors[index]
        words = ["constant"] if model.buffers[found.buffer].data is not None else []
        words += [TYPES[found.type], str([] if found.shape is None else [int(n) for n in found.shape])]
        scales = getattr(found.quantization, "scale", None)
        if scales is not None:
            words.append(
                f"{len(scales)} scales" + f" of axis {found.quantization.quantizedDimension}" * (len(scales) > 1)
            )
        return " ".join(words)

    lines = []
    for each in graph.operators:
        code = model.operatorCodes[each.opcodeIndex]
        options = vars(each.builtinOptions) if each.builtinOptions else {}
        shown = {k: round(v, 6) if isinstance(v, float) else v for k, v in options.items() if k not in IGNORED}
        tensors = [tensor(index) for index in (*each.inputs, *each.outputs)]
        lines.append((CODES[code.builtinCode], code.version, shown, tensors))
    return lines


def random_weights(model):
    """A converter leaves out what is 0 or 1."""
    generator = np.random.default_rng(0)
    for weight in model.weights:
        weight.assign(generator.uniform(0.5, 1.5, weight.shape))
    return model


def sequential(shape, *found):
    return random_weights(keras.Sequential([keras.Input(shape), *found]))


K3, S2 = {"kernel_size": (3, 3)}, {"strides": (2, 2)}
KERNELS = (
    lambda: sequential(
        (8, 8, 4),
        layers.Conv2D(6, 3, padding="same", activation="relu"),
        layers.Conv2D(6, 3, padding="same", groups=2),
        layers.DepthwiseConv2D(3, padding="same", dilation_rate=2),
        layers.Conv2DTranspose(6, 3, strides=2, padding="same", activation="relu"),
        layers.Conv2DTranspose(6, 2, strides=2, use_bias=False, activation="relu"),
        layers.Dense(8, activation="relu"),
        layers.MaxPooling2D(2),
        layers.GlobalAveragePooling2D(),
        layers.Dense(6),
        layers.Softmax(),
    ),
    [
        op("conv2d", 8, 4, 6, **K3, activation="relu"),
        op("conv2d", 8, 6, **K3, groups=2),
        op("depthwise_conv2d", 8, 6, **K3, dilation=(2, 2)),
        op("conv2d_transpose", 8, 6, **K3, **S2, activation="relu"),
        op("conv2d_transpose", 16, 6, kernel_size=(2, 2), **S2, padding="valid", use_bias=False, activation="relu"),
        op("dense", 32, 6, 8, activation="relu"),
        op("max_pool", 32, 8, kernel_size=(2, 2), **S2, padding="valid"),
        op("global_avg_pool", 16, 8),
        op("dense", 1, 8, 6),
        op("softmax", 1, 6),
    ],
)
NORMS_AND_MOVES = (
    lambda: sequential(
        (4, 4, 8),
        layers.LayerNormalization(),
        layers.ReLU(),
        layers.GroupNormalization(2),
        layers.PReLU(shared_axes=[1, 2]),
        layers.UpSampling2D(2),
        layers.Resizing(6, 6, interpolation="nearest"),
        layers.UpSampling2D(2, interpolation="bilinear"),
        layers.Cropping2D(((0, 4), (0, 2))),
        layers.Reshape((8, 10, 2, 4)),
        layers.Permute((1, 2, 4, 3)),
        layers.Reshape((8, 10, 8)),
        layers.ELU(),
        layers.Reshape((10, 8, 8)),
        layers.Activation("gelu"),
        layers.Activation("silu"),
        layers.Activation("hard_sigmoid"),
    ),
    [
        op("layer_norm", 4, 8, activation="relu"),
        op("group_norm", 4, 8, groups=2),
        op("activation", 4, 8, activation="prelu"),
        op("resize_nearest", 4, 8, output_size=(8, 8)),
        op("resize_nearest", 8, 8, output_size=(6, 6)),
        op("resize_bilinear", 6, 8, output_size=(12, 12)),
        op("slice", 12, 8, output_size=(8, 10)),
        op("channel_shuffle", (8, 10), 8, groups=2),
        op("activation", (8, 10), 8, activation="elu"),
        op("reshape", (8, 10), 8, output_size=(10, 8)),
        op("activation", (10, 8), 8, activation="gelu"),
        op("activation", (10, 8), 8, activation="silu"),
        op("activation", (10, 8), 8, activation="hard_sigmoid"),
    ],
)


def branches():
    x = keras.Input((4, 4, 8))
    y = keras.ops.relu(keras.ops.subtract(x, keras.ops.sigmoid(x)))
    y = keras.ops.maximum(y, keras.ops.square(y - x)) / np.arange(1, 9, dtype=np.float32)
    z = layers.Multiply()([y, keras.ops.mean(y, -1, keepdims=True)])
    return keras.Model(x, layers.Concatenate()([layers.ReLU()(z), y - np.arange(8, dtype=np.float32)]))


BRANCHES = (
    branches,
    [
        (op("activation", 4, 8, activation="sigmoid"), (-1,)),
        (op("subtract", 4, 8, operands=2, activation="relu"), (-1, 0)),
        (op("squared_difference", 4, 8, operands=2), (1, -1)),
        (op("maximum", 4, 8, operands=2), (1, 2)),
        (op("divide", 4, 8, broadcast="channels"), (3,)),
        (op("channel_mean", 4, 8, 1), (4,)),
        (op("multiply", 4, 8, operands=2, broadcast="positions", activation="relu"), (4, 5)),
        (op("subtract", 4, 8, broadcast="channels"), (4,)),
        (op("concatenate", 4, 16, operands=2), (6, 7)),
    ],
)
VOLUME = (
    lambda: sequential((4, 8, 8, 4), layers.Conv3D(6, 3, padding="same", activation="relu")),
    [op("conv3d", 8, 4, 6, **K3, depth=4, kernel_depth=3, activation="relu")],
)


@pytest.mark.parametrize("precision", ["float32", "int8"])
@pytest.mark.parametrize("case", [KERNELS, NORMS_AND_MOVES, BRANCHES, VOLUME], ids=["kernels", "moves", "two", "3d"])
def test_the_builder_writes_what_the_converter_writes(case, precision):
    make, nodes = case
    wired = [node if isinstance(node, tuple) else (node, (i - 1,)) for i, node in enumerate(nodes)]
    network = Network(tuple((dataclasses.replace(each, dtype=precision), sources) for each, sources in wired))
    built = operators(runtimes.get("litert").build(network))
    converted = operators(to_tflite(make(), precision))
    assert [line[0] for line in built] == [line[0] for line in converted]
    for ours, theirs in zip(built, converted, strict=True):
        assert ours == theirs


# ---- int8 -----------------------------------------------------------------------------------------------------------


def two_inputs():
    first, second = keras.Input((6, 6, 3)), keras.Input((6, 6, 5))
    y = layers.Concatenate()([layers.Conv2D(4, 3, padding="same")(first), second])
    return keras.Model([first, second], [layers.Dense(3)(y), layers.GlobalAveragePooling2D()(y)])


def run_int8(file, inputs):
    running = Interpreter(model_content=file, num_threads=1)
    running.allocate_tensors()
    for detail, values in zip(running.get_input_details(), inputs, strict=True):
        assert detail["dtype"] is np.int8
        scale, zero = detail["quantization"]
        running.set_tensor(detail["index"], np.clip(np.rint(values / scale) + zero, -128, 127).astype(np.int8))
    running.invoke()
    outputs = []
    for detail in running.get_output_details():
        assert detail["dtype"] is np.int8
        scale, zero = detail["quantization"]
        outputs.append((running.get_tensor(detail["index"]).astype(np.float32) - zero) * scale)
    return outputs


def test_int8_answers_near_the_model_with_inputs_and_outputs_in_order():
    keras.utils.set_random_seed(0)  # of some weights an output is beyond what the calibration saw
    model, generator = two_inputs(), np.random.default_rng(1)
    inputs = [generator.normal(size=(1, *tensor.shape[1:])).astype(np.float32) for tensor in model.inputs]
    file = to_tflite(model, "int8")
    for output, expected in zip(run_int8(file, inputs), model(inputs), strict=True):
        assert output.shape == expected.shape
        np.testing.assert_allclose(output, expected, atol=0.15)


def test_representative_inputs_set_the_range():
    model = keras.Sequential([keras.Input((4, 4, 3)), layers.Conv2D(2, 1)])
    images = (np.full((1, 4, 4, 3), value) for value in (-100.0, 100.0))
    running = Interpreter(model_content=to_tflite(model, "int8", representative=images))
    assert running.get_input_details()[0]["quantization"][0] == pytest.approx(200 / 255)


def test_what_cannot_be_quantised_is_said():
    model = keras.Sequential([keras.Input((4, 4, 3)), layers.Conv2D(2, 1)])
    with pytest.raises(UsageError, match=r"'float32', 'float16', 'int8'\]. Received: precision='int4'"):
        to_tflite(model, "int4")
    with pytest.raises(UnsupportedModelError, match="cannot be converted to TFLite"):
        to_tflite(model, "int8", representative=[[np.zeros((1, 4, 4, 3))] * 2])
