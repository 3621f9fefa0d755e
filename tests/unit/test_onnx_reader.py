import math

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from latency_lab.errors import FileFormatError, UnsupportedModelError, UsageError
from latency_lab.graph import ChannelGraph
from latency_lab.graph.onnx_reader import read_onnx
from tests.unit.onnx_nets import OnnxNet

IMAGE = [1, 8, 12, 10]


def graph_of(tmp_path, build, shape=IMAGE, opset=17):
    """The graph of what `build(net, x)` writes onto one input; its results are what it returns."""
    net = OnnxNet(opset)
    made = build(net, net.input("x", shape))
    return read_onnx(net.save(tmp_path, *([made] if isinstance(made, str) else made)))


def keys(graph):
    return [op.key for op in graph.op_configs()]


def only(graph):
    assert not graph.unknown
    (node,) = graph.nodes
    return node.op


# ---- one operator -------------------------------------------------------------------------------------------------


def test_conv_reads_channels_first_and_says_channels_last(tmp_path):
    graph = graph_of(tmp_path, lambda net, x: net.conv(x, 8, 16, bias=True, name="stem"))
    assert keys(graph) == ["conv2d 12x10 k3x3 s1x1 same bias float32 8->16"]
    assert (graph.nodes[0].name, graph.nodes[0].inputs, graph.nodes[0].weights.const) == ("stem", (-1,), 1168.0)
    assert (graph.input_shapes, graph.source, graph.groups) == (((12, 10, 8),), "onnx", ())


@pytest.mark.parametrize(
    ("attributes", "key"),
    [
        ({"pads": [0] * 4}, "conv2d 12x10 k3x3 s1x1 valid nobias float32 8->16"),
        ({"pads": [0, 0, 1, 1], "strides": [2, 2]}, "conv2d 12x10 k3x3 s2x2 same nobias float32 8->16"),
        ({"pads": [1] * 4, "strides": [2, 2]}, "conv2d 12x10 k3x3 s2x2 p1,1,1,1 nobias float32 8->16"),
        ({"pads": [2] * 4, "dilations": [2, 2]}, "conv2d 12x10 k3x3 s1x1 same d2x2 nobias float32 8->16"),
        ({"pads": [0] * 4, "auto_pad": "SAME_UPPER"}, "conv2d 12x10 k3x3 s1x1 same nobias float32 8->16"),
        (
            {"pads": [0] * 4, "auto_pad": "SAME_LOWER", "strides": [2, 2]},
            "conv2d 12x10 k3x3 s2x2 p1,0,1,0 nobias float32 8->16",
        ),
        ({"pads": [0] * 4, "auto_pad": "VALID"}, "conv2d 12x10 k3x3 s1x1 valid nobias float32 8->16"),
    ],
)
def test_padding(tmp_path, attributes, key):
    if "auto_pad" in attributes:
        attributes = {name: value for name, value in attributes.items() if name != "pads"}

    def build(net, x):
        kernel = net.constant(np.zeros((16, 8, 3, 3)))
        return net.op("Conv", x, kernel, **attributes)

    assert keys(graph_of(tmp_path, build)) == [key]


def test_grouped_depthwise_and_multiplied(tmp_path):
    assert keys(graph_of(tmp_path, lambda net, x: net.conv(x, 8, 16, groups=2))) == [
        "conv2d 12x10 k3x3 s1x1 same g2 nobias float32 8->16"
    ]
    op = only(graph_of(tmp_path, lambda net, x: net.conv(x, 8, 16, groups=8)))
    assert (op.kind, op.groups, op.in_channels, op.out_channels) == ("depthwise_conv2d", 1, 8, 16)


def test_conv_of_a_sequence_and_of_a_volume(tmp_path):
    def sequence(net, x):
        return net.op("Conv", x, net.constant(np.zeros((4, 8, 5))), pads=[2, 2], strides=[2])

    op = only(graph_of(tmp_path, sequence, [1, 8, 20]))
    assert (op.kind, op.height, op.width, op.kernel_size, op.strides, op.output_width) == (
        "conv2d",
        1,
        20,
        (1, 5),
        (1, 2),
        10,
    )

    def volume(net, x):
        return net.op("Conv", x, net.constant(np.zeros((4, 8, 3, 3, 3))), pads=[1] * 6, strides=[2, 1, 1])

    op = only(graph_of(tmp_path, volume, [1, 8, 6, 12, 10]))
    assert (op.kind, op.depth, op.kernel_depth, op.stride_depth, op.output_depth) == ("conv3d", 6, 3, 2, 3)
    assert op.macs == 4 * 8 * 27 * 3 * 12 * 10


@pytest.mark.parametrize(
    ("attributes", "size"),
    [
        ({"strides": [2, 2]}, (24, 20)),
        ({"strides": [2, 2], "kernel": 3}, (25, 21)),
        ({"strides": [2, 2], "kernel": 3, "pads": [1] * 4, "output_padding": [1, 1]}, (24, 20)),
        ({"strides": [2, 2], "kernel": 3, "pads": [1] * 4}, (23, 19)),
    ],
)
def test_transposed_conv_knows_its_output(tmp_path, attributes, size):
    kernel = attributes.pop("kernel", 2)

    def build(net, x):
        return net.op("ConvTranspose", x, net.constant(np.zeros((8, 4, kernel, kernel))), **attributes)

    op = only(graph_of(tmp_path, build))
    assert (op.kind, op.output_height, op.output_width, op.out_channels) == ("conv2d_transpose", *size, 4)


def test_dense_of_vectors_and_at_each_position(tmp_path):
    def gemm(net, x):
        return net.op("Gemm", x, net.constant(np.zeros((5, 8))), net.constant(np.zeros(5)), transB=1)

    assert keys(graph_of(tmp_path, gemm, [1, 8])) == ["dense 1x1 bias float32 8->5"]

    def matmul(net, x):
        return net.op("Add", net.op("MatMul", x, net.constant(np.zeros((8, 5)))), net.constant(np.zeros(5)))

    assert keys(graph_of(tmp_path, matmul, [1, 20, 8])) == ["dense 1x20 bias float32 8->5"]


@pytest.mark.parametrize(
    ("kind", "attributes", "activation"),
    [
        ("Relu", {}, "relu"),
        ("Sigmoid", {}, "sigmoid"),
        ("Tanh", {}, "tanh"),
        ("Elu", {}, "elu"),
        ("Selu", {}, "selu"),
        ("LeakyRelu", {}, "leaky_relu"),
        ("HardSigmoid", {}, "hard_sigmoid"),
        ("Softplus", {}, "softplus"),
        ("Erf", {}, "erf"),
        ("Exp", {}, "exponential"),
        ("Log", {}, "log"),
        ("Sqrt", {}, "sqrt"),
        ("Abs", {}, "abs"),
        ("Neg", {}, "negative"),
    ],
)
def test_activations(tmp_path, kind, attributes, activation):
    op = only(graph_of(tmp_path, lambda net, x: net.op(kind, x, **attributes)))
    assert (op.kind, op.activation, op.height, op.width, op.in_channels) == ("activation", activation, 12, 10, 8)


def test_activations_with_constants(tmp_path):
    def activation(build, **kwargs):
        return only(graph_of(tmp_path, build, **kwargs)).activation

    assert activation(lambda net, x: net.op("Clip", x, net.constant(0.0), net.constant(6.0))) == "relu6"
    assert activation(lambda net, x: net.op("Clip", x, net.constant(0.0))) == "relu"
    assert activation(lambda net, x: net.op("Clip", x, min=0.0, max=6.0), opset=6) == "relu6"
    assert activation(lambda net, x: net.op("PRelu", x, net.constant(np.ones((8, 1, 1))))) == "prelu"
    assert activation(lambda net, x: net.op("Pow", x, net.constant(2.0))) == "square"
    assert activation(lambda net, x: net.op("Mul", x, x)) == "square"


@pytest.mark.parametrize(
    ("kind", "constant", "expected"),
    [
        ("Add", 1.0, ("add", "scalar")),
        ("Sub", np.ones((1, 8, 1, 1)), ("subtract", "channels")),
        ("Mul", np.ones((8, 1, 1)), ("multiply", "channels")),
        ("Div", np.ones((1, 1, 12, 10)), ("divide", "positions")),
        ("Max", np.ones((1, 8, 12, 10)), ("maximum", "")),
        ("Min", np.ones((1, 1, 1, 1)), ("minimum", "scalar")),
    ],
)
def test_arithmetic_with_a_constant(tmp_path, kind, constant, expected):
    op = only(graph_of(tmp_path, lambda net, x: net.op(kind, x, net.constant(constant))))
    assert (op.kind, op.broadcast, op.operands) == (*expected, 1)


def test_a_constant_by_channels_that_are_last_is_innermost(tmp_path):
    def build(net, x):
        scaled = net.op("Mul", x, net.constant(np.ones(3)))
        moved = net.op("Transpose", net.op("Add", scaled, net.constant(1.0)), perm=[0, 3, 1, 2])
        return net.op("Sub", moved, net.constant(np.ones((3, 1, 1))))

    graph = graph_of(tmp_path, build, shape=[1, 12, 10, 3])
    found = [op.family for op in graph.op_configs()]
    assert sorted(found) == ["add by scalar", "multiply by innermost", "subtract by channels", "transpose"]


def test_arithmetic_of_tensors(tmp_path):
    def build(net, x):
        y, gate = net.op("Relu", x), net.op("GlobalAveragePool", x)
        return net.op("Mul", gate, net.op("Sum", x, y, net.op("Tanh", x)))

    graph = graph_of(tmp_path, build)
    add, multiply = graph.nodes[-2:]
    assert (add.op.kind, add.op.operands, add.op.broadcast, add.inputs) == ("add", 3, "", (-1, 0, 2))
    assert (multiply.op.kind, multiply.op.operands, multiply.op.broadcast) == ("multiply", 2, "channels")
    assert multiply.inputs == (3, 1)  # the wide one first


def test_a_tensor_added_to_itself(tmp_path):
    graph = graph_of(tmp_path, lambda net, x: net.op("Add", x, x))
    assert (only(graph).kind, graph.nodes[0].inputs) == ("add", (-1, -1))


def test_pooling(tmp_path):
    def pool(kind, **attributes):
        return only(graph_of(tmp_path, lambda net, x: net.op(kind, x, kernel_shape=[3, 3], **attributes)))

    assert pool("MaxPool", strides=[2, 2]).key == "max_pool 12x10 k3x3 s2x2 valid float32 8->8"
    assert pool("AveragePool", pads=[1] * 4).kind == "avg_pool"
    partial = pool("MaxPool", strides=[2, 2], ceil_mode=1)
    assert (partial.output_height, partial.output_width) == (6, 5)


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (lambda net, x: net.op("GlobalMaxPool", x), "global_max_pool"),
        (lambda net, x: net.op("ReduceMean", x, axes=[2, 3], keepdims=1), "global_avg_pool"),
        (lambda net, x: net.op("ReduceMean", x, axes=[-1, -2], keepdims=0), "global_avg_pool"),
        (lambda net, x: net.op("Flatten", net.op("GlobalAveragePool", x)), "global_avg_pool"),
        (lambda net, x: net.op("ReduceMean", x, axes=[1]), "channel_mean"),
    ],
)
def test_reductions(tmp_path, build, expected):
    op = only(graph_of(tmp_path, build))
    assert (op.kind, op.height, op.width, op.in_channels) == (expected, 12, 10, 8)
    assert op.out_channels == (1 if expected == "channel_mean" else 8)


def test_norms(tmp_path):
    def norm(kind, *shapes, **attributes):
        return only(
            graph_of(
                tmp_path, lambda net, x: net.op(kind, x, *(net.constant(np.ones(s)) for s in shapes), **attributes)
            )
        )

    assert norm("BatchNormalization", 8, 8, 8, 8).kind == "batch_norm"
    assert norm("InstanceNormalization", 8, 8).groups == 8
    assert norm("LRN", size=5).kind == "local_response_norm"
    op = only(graph_of(tmp_path, lambda net, x: net.op("LayerNormalization", x, net.constant(np.ones(8))), [1, 20, 8]))
    assert (op.kind, op.height, op.width, op.in_channels) == ("layer_norm", 1, 20, 8)


def test_moves(tmp_path):
    def move(build):
        return only(graph_of(tmp_path, build))

    op = move(lambda net, x: net.op("Concat", x, x, axis=1))
    assert (op.kind, op.operands, op.in_channels, op.height) == ("concatenate", 2, 16, 12)
    op = move(lambda net, x: net.op("Pad", x, net.constant([0, 0, 1, 2, 0, 0, 3, 4], np.int64)))
    assert (op.kind, op.pads) == ("pad", ((1, 3), (2, 4)))
    op = move(lambda net, x: net.op("Slice", x, *(net.constant([v], np.int64) for v in (2, 5, 1))))
    assert (op.kind, op.in_channels, op.out_channels, op.output_size) == ("slice", 8, 3, (12, 10))
    op = move(lambda net, x: net.op("Resize", x, "", net.constant([1, 1, 2, 3])))
    assert (op.kind, op.output_size) == ("resize_nearest", (24, 30))
    op = move(lambda net, x: net.op("Resize", x, "", "", net.constant([1, 8, 6, 5], np.int64), mode="linear"))
    assert (op.kind, op.output_size) == ("resize_bilinear", (6, 5))
    op = move(lambda net, x: net.op("Flatten", x))
    assert (op.kind, op.out_channels, op.output_size) == ("reshape", 960, (1, 1))
    assert graph_of(tmp_path, lambda net, x: net.op("Dropout", net.op("Identity", x))).nodes == ()


def test_split_is_a_slice_for_each_part_that_is_read(tmp_path):
    def build(net, x):
        first, _, third = net.op("Split", x, net.constant([2, 2, 4], np.int64), outputs=3, axis=1)
        return [net.op("Relu", first), net.op("Relu", third)]

    graph = graph_of(tmp_path, build)
    assert [n.op.kind for n in graph.nodes] == ["slice", "slice", "activation", "activation"]
    assert [n.op.out_channels for n in graph.nodes] == [2, 4, 2, 4]


# ---- patterns -----------------------------------------------------------------------------------------------------


def hard_sigmoid(net, x):
    clipped = net.op("Clip", net.op("Add", x, net.constant(3.0)), net.constant(0.0), net.constant(6.0))
    return net.op("Mul", clipped, net.constant(1 / 6))


def torch_gelu(net, x):
    erf = net.op("Erf", net.op("Div", x, net.constant(math.sqrt(2))))
    return net.op("Mul", net.op("Mul", x, net.op("Add", erf, net.constant(1.0))), net.constant(0.5))


def keras_gelu(net, x):
    erf = net.op("Erf", net.op("Mul", net.op("Neg", x), net.constant(math.sqrt(0.5))))
    return net.op("Mul", net.op("Mul", net.constant(0.5), x), net.op("Sub", net.constant(1.0), erf))


@pytest.mark.parametrize(
    ("build", "activation"),
    [
        (lambda net, x: net.op("Mul", x, net.op("Sigmoid", x)), "silu"),
        (lambda net, x: net.op("Mul", net.op("Sigmoid", x), x), "silu"),
        (hard_sigmoid, "hard_sigmoid"),
        (lambda net, x: net.op("Mul", x, hard_sigmoid(net, x)), "hard_swish"),
        (torch_gelu, "gelu"),
        (keras_gelu, "gelu"),
    ],
)
def test_activations_of_several_operators(tmp_path, build, activation):
    op = only(graph_of(tmp_path, build))
    assert (op.kind, op.activation) == ("activation", activation)


def test_what_others_read_is_no_part_of_a_pattern(tmp_path):
    def build(net, x):
        gate = net.op("Sigmoid", x)
        return [net.op("Mul", x, gate), net.op("Relu", gate)]

    assert [n.op.kind for n in graph_of(tmp_path, build).nodes] == ["activation", "multiply", "activation"]


def test_other_numbers_are_no_pattern(tmp_path):
    def build(net, x):
        clipped = net.op("Clip", net.op("Add", x, net.constant(2.0)), net.constant(0.0), net.constant(6.0))
        return net.op("Mul", clipped, net.constant(1 / 6))

    assert [n.op.kind for n in graph_of(tmp_path, build).nodes] == ["add", "activation", "multiply"]


def test_channel_shuffle(tmp_path):
    def build(net, x):
        split = net.op("Reshape", x, net.constant([1, 2, 4, 12, 10], np.int64))
        return net.op("Reshape", net.op("Transpose", split, perm=[0, 2, 1, 3, 4]), net.constant(IMAGE, np.int64))

    op = only(graph_of(tmp_path, build))
    assert (op.kind, op.groups, op.in_channels) == ("channel_shuffle", 2, 8)


def test_layer_norm_written_out(tmp_path):
    def build(net, x):
        centred = net.op("Sub", x, net.op("ReduceMean", x, axes=[-1]))
        variance = net.op("ReduceMean", net.op("Pow", centred, net.constant(2.0)), axes=[-1])
        scaled = net.op("Div", centred, net.op("Sqrt", net.op("Add", variance, net.constant(1e-5))))
        return net.op("Add", net.op("Mul", scaled, net.constant(np.ones(8))), net.constant(np.ones(8)))

    op = only(graph_of(tmp_path, build, [1, 20, 8]))
    assert (op.kind, op.width, op.in_channels) == ("layer_norm", 20, 8)


def test_a_scale_and_a_shift_right_after_a_conv_are_its_norm(tmp_path):
    def build(net, x):
        scaled = net.op("Mul", net.conv(x, 8, 16), net.constant(np.ones((1, 16, 1, 1))))
        return net.op("Add", scaled, net.constant(np.ones((1, 16, 1, 1))))

    assert [n.op.kind for n in graph_of(tmp_path, build).nodes] == ["conv2d", "batch_norm"]

    def shift(net, x):
        return net.op("Add", net.conv(x, 8, 16), net.constant(np.ones((1, 16, 1, 1))))

    assert keys(graph_of(tmp_path, shift)) == ["conv2d 12x10 k3x3 s1x1 same bias float32 8->16"]

    def apart(net, x):
        return net.op("Mul", net.op("MaxPool", x, kernel_shape=[1, 1]), net.constant(np.ones((1, 8, 1, 1))))

    assert [n.op.kind for n in graph_of(tmp_path, apart).nodes] == ["max_pool", "multiply"]


# ---- transposes ---------------------------------------------------------------------------------------------------


def test_the_transpose_at_the_entry_runs_and_pairs_inside_cancel(tmp_path):
    def build(net, x):
        y = net.op("Transpose", net.op("Mul", x, net.constant(0.5)), perm=[0, 3, 1, 2], name="entry")
        y = net.op("Transpose", net.conv(y, 3, 8), perm=[0, 2, 3, 1])
        y = net.op("Clip", net.op("Add", y, net.constant(np.ones(8))), net.constant(0.0), net.constant(6.0))
        return net.op("Relu", net.conv(net.op("Transpose", y, perm=[0, 3, 1, 2]), 8, 16))

    graph = graph_of(tmp_path, build, [1, 12, 10, 3])
    assert [n.op.kind for n in graph.nodes] == [
        "multiply",
        "transpose",
        "conv2d",
        "activation",
        "conv2d",
        "activation",
    ]
    assert graph.nodes[1].name == "entry"
    assert (graph.nodes[1].op.height, graph.nodes[1].op.width, graph.nodes[1].op.in_channels) == (12, 10, 3)
    assert graph.input_shapes == ((12, 10, 3),)


def test_a_result_that_is_transposed_and_a_flatten_through_a_transpose(tmp_path):
    graph = graph_of(tmp_path, lambda net, x: net.op("Transpose", net.conv(x, 8, 4), perm=[0, 2, 3, 1]))
    assert [n.op.kind for n in graph.nodes] == ["conv2d", "transpose"]

    def flatten(net, x):
        last = net.op("Transpose", net.conv(x, 8, 4), perm=[0, 2, 3, 1])
        return net.op("Reshape", last, net.constant([1, -1], np.int64))

    graph = graph_of(tmp_path, flatten)
    assert [(n.op.kind, n.op.out_channels) for n in graph.nodes] == [("conv2d", 4), ("flatten", 480)]


def test_a_transpose_of_one_position_is_nothing(tmp_path):
    def build(net, x):
        pooled = net.op("GlobalAveragePool", x)
        return net.op("Relu", net.op("Transpose", pooled, perm=[0, 2, 3, 1]))

    assert [n.op.kind for n in graph_of(tmp_path, build).nodes] == ["global_avg_pool", "activation"]


# ---- int8 ---------------------------------------------------------------------------------------------------------


def quantized(net, x):
    return net.op("QuantizeLinear", x, net.constant(0.1), net.constant(0, np.int8))


def dequantized(net, x):
    return net.op("DequantizeLinear", x, net.constant(0.1), net.constant(0, np.int8))


def test_an_operation_between_dequantize_and_quantize_is_one_in_int8(tmp_path):
    def build(net, x):
        y = dequantized(net, quantized(net, x))
        weights = dequantized(net, net.constant(np.ones((16, 8, 3, 3)), np.int8))
        y = net.op("Relu", net.op("Conv", y, weights, pads=[1] * 4))
        y = net.op("MaxPool", dequantized(net, quantized(net, y)), kernel_shape=[2, 2])
        return dequantized(net, quantized(net, y))

    graph = graph_of(tmp_path, build)
    assert keys(graph) == [
        "quantize 12x10 int8 8->8",
        "conv2d 12x10 k3x3 s1x1 same relu nobias int8 8->16",
        "max_pool 12x10 k2x2 s1x1 valid int8 16->16",
        "dequantize 11x9 int8 16->16",
    ]
    assert [n.inputs for n in graph.nodes] == [(-1,), (0,), (1,), (2,)]


def test_an_operation_whose_result_stays_float_has_its_input_dequantized(tmp_path):
    def build(net, x):
        return net.op("Softmax", dequantized(net, quantized(net, x)), axis=1)

    graph = graph_of(tmp_path, build, [1, 8])
    assert [(n.op.kind, n.op.dtype) for n in graph.nodes] == [
        ("quantize", "int8"),
        ("dequantize", "int8"),
        ("softmax", "float32"),
    ]


def test_half_precision(tmp_path):
    net = OnnxNet()
    x = net.input("x", IMAGE, TensorProto.FLOAT16)
    assert only(read_onnx(net.save(tmp_path, net.op("Relu", x)))).dtype == "float16"


def test_weights_of_half_precision_behind_casts_are_weights(tmp_path):
    def build(net, x):
        weights = net.constant(np.full((6, 8, 3, 3), 0.1), np.float16)
        bias = net.constant(np.ones(6), np.float16)
        cast = [net.op("Cast", each, to=TensorProto.FLOAT) for each in (weights, bias)]
        return net.op("Conv", x, *cast, kernel_shape=[3, 3])

    graph = graph_of(tmp_path, build)
    assert not graph.unknown
    assert [(n.op.kind, n.op.out_channels, n.op.use_bias, n.op.dtype) for n in graph.nodes] == [
        ("conv2d", 6, True, "float32")
    ]


# ---- shapes, constants, what is not known -------------------------------------------------------------------------


def test_arithmetic_on_shapes_folds(tmp_path):
    def build(net, x):
        pooled = net.op("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
        batch = net.op("Gather", net.op("Shape", pooled), net.constant([0], np.int64))
        return net.op("Reshape", pooled, net.op("Concat", batch, net.constant([-1], np.int64), axis=0))

    graph = graph_of(tmp_path, build)
    assert [(n.op.kind, n.op.out_channels) for n in graph.nodes] == [("max_pool", 8), ("reshape", 240)]


def test_weights_that_the_graph_makes(tmp_path):
    def build(net, x):
        kernel = net.op("ConstantOfShape", net.constant([512, 8, 3, 3], np.int64))
        return net.op("Conv", x, kernel, pads=[1] * 4)

    assert only(graph_of(tmp_path, build, opset=9)).out_channels == 512


def test_an_open_batch_is_one_and_open_sizes_are_asked_for(tmp_path):
    net = OnnxNet()
    path = net.save(tmp_path, net.op("Relu", net.input("image", ["batch", 3, 8, 8])))
    assert only(read_onnx(path)).batch == 1
    assert only(read_onnx(path, {"image": (4, 3, 8, 8)})).batch == 4

    net = OnnxNet()
    path = net.save(tmp_path, net.op("Relu", net.input("image", ["batch", 3, "height", 8])))
    with pytest.raises(UnsupportedModelError, match=r"'image'.*height.*--input-shape image="):
        read_onnx(path)
    assert only(read_onnx(path, (1, 3, 5, 8))).height == 5
    assert only(ChannelGraph.from_model(path, (1, 3, 5, 8))).height == 5
    with pytest.raises(UsageError, match="'image'"):
        read_onnx(path, {"image": (1, 4, 5, 8)})
    with pytest.raises(UsageError, match="no input 'other'"):
        read_onnx(path, {"other": (1, 3, 5, 8)})


def test_inputs_that_are_constants(tmp_path):
    net = OnnxNet()
    x = net.input("x", [1, 12, 10, 3])
    mean = net.input("mean", [1, 1, 1, 3])
    net.input("unread", [1, 1, 1, 3])
    scale = net.constant(np.ones(3))
    net.input(scale, [3])  # old files list initialisers among the inputs
    graph = read_onnx(net.save(tmp_path, net.op("Mul", net.op("Sub", x, mean), scale)))
    assert len(graph.input_shapes) == 1
    assert [(n.op.kind, n.op.operands) for n in graph.nodes] == [("subtract", 1), ("multiply", 1)]


def test_what_is_not_known_is_listed_and_the_rest_is_read(tmp_path):
    def build(net, x):
        own = net.op("Magic", net.op("Relu", x), domain="vendor", name="magic")
        return [net.op("Relu", net.op("CumSum", x, net.constant(1, np.int64))), own, net.op("Tanh", own)]

    graph = graph_of(tmp_path, build)
    assert [(u.name, u.layer_class) for u in graph.unknown][0] == ("magic", "Magic")
    assert [u.layer_class for u in graph.unknown] == ["Magic", "CumSum", "Tanh"]  # of Magic's output nothing is known
    assert [n.op.kind for n in graph.nodes] == ["activation", "activation"]
    assert [n.inputs for n in graph.nodes] == [(-1,), (-2,)]
    assert (graph.unknown[1].input_bytes, graph.unknown[1].output_bytes) == (3840, 3840)


def test_matmul_of_two_tensors_is_not_known(tmp_path):
    graph = graph_of(tmp_path, lambda net, x: net.op("MatMul", x, net.op("Relu", x)), [1, 8, 8])
    assert [u.layer_class for u in graph.unknown] == ["MatMul"]


def test_what_no_result_needs_is_left_out(tmp_path):
    def build(net, x):
        net.op("Tanh", x)
        return net.op("Relu", x)

    assert only(graph_of(tmp_path, build)).activation == "relu"


def test_nodes_of_one_name_get_names_of_their_own(tmp_path):
    def build(net, x):
        y = net.op("Relu", x)
        z = net.op("Tanh", y)
        net.nodes[0].name = net.nodes[1].name = "same"
        return z

    assert [n.name for n in graph_of(tmp_path, build).nodes] == ["same", "same.2"]


def test_weights_outside_of_the_file_are_not_read(tmp_path):
    net = OnnxNet()
    model = net.model(net.conv(net.input("x", IMAGE), 8, 512))
    onnx.save(model, tmp_path / "big.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    (tmp_path / "weights.bin").unlink()
    assert only(read_onnx(tmp_path / "big.onnx")).out_channels == 512


@pytest.mark.parametrize("data", [b"", b"no model at all", b"\x08\x07\x12\x04"])
def test_damaged_files_are_named(tmp_path, data):
    path = tmp_path / "broken.onnx"
    path.write_bytes(data)
    with pytest.raises(FileFormatError, match=r"broken\.onnx"):
        read_onnx(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileFormatError, match=r"none\.onnx"):
        read_onnx(tmp_path / "none.onnx")
