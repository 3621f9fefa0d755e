"""What each operator of a .tflite file is read as. The files are written here, through the schema."""

import flatbuffers
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

from latency_lab.errors import FileFormatError, UnsupportedModelError, UsageError
from latency_lab.graph import ChannelGraph
from latency_lab.graph.tflite_reader import read_tflite
from latency_lab.ops import OpConfig

RELU, RELU6, SIGN_BIT = 1, 3, 5
SAME, VALID = 0, 1
_TYPES = {"float32": 0, "float16": 1, "int32": 2, "int64": 4, "int16": 7, "int8": 9}


class Model:
    """A model while it is written. Tensors are numbers."""

    def __init__(self):
        self.tensors, self.operators, self.buffers, self.codes = [], [], [schema.BufferT()], []
        self.inputs = []

    def input(self, *shape, dtype="float32", name=None, signature=None):
        self.inputs.append(self.tensor(shape, dtype, name or f"input{len(self.inputs)}", signature=signature))
        return self.inputs[-1]

    def constant(self, values, dtype="float32"):
        values = np.asarray(values, dtype)
        self.buffers.append(schema.BufferT(data=np.frombuffer(values.tobytes(), np.uint8)))
        return self.tensor(values.shape, dtype, f"constant{len(self.tensors)}", len(self.buffers) - 1)

    def zeros(self, *shape, dtype="float32"):
        return self.constant(np.zeros(shape), dtype)

    def ints(self, *values):
        return self.constant(values, "int32")

    def tensor(self, shape, dtype, name, buffer=0, signature=None):
        fields = {"shapeSignature": list(signature)} if signature else {}
        tensor = schema.TensorT(shape=list(shape), type=_TYPES[dtype], buffer=buffer, name=name, **fields)
        self.tensors.append(tensor)
        return len(self.tensors) - 1

    def op(
        self, code, inputs, *shapes, options=None, dtype="float32", name=None, signature=None, custom=None, **fields
    ):
        """An operator; its output tensor, or list of them."""
        outputs = [self.tensor(s, dtype, name or f"{code.lower()}{len(self.tensors)}", 0, signature) for s in shapes]
        if (code, custom) not in self.codes:
            self.codes.append((code, custom))
        operator = schema.OperatorT(opcodeIndex=self.codes.index((code, custom)), inputs=inputs, outputs=outputs)
        if options:
            operator.builtinOptionsType = getattr(schema.BuiltinOptions, f"{options}Options")
            operator.builtinOptions = getattr(schema, f"{options}OptionsT")(**fields)
        self.operators.append(operator)
        return outputs[0] if len(outputs) == 1 else outputs

    def to_bytes(self, *outputs):
        graph = schema.SubGraphT(self.tensors, self.inputs, list(outputs), self.operators, "main")
        codes = []
        for name, custom in self.codes:
            number = getattr(schema.BuiltinOperator, name)
            codes.append(schema.OperatorCodeT(min(number, 127), custom, 1, number))
        model = schema.ModelT(3, codes, [graph], "test", self.buffers)
        builder = flatbuffers.Builder(1024)
        builder.Finish(model.Pack(builder), b"TFL3")
        return bytes(builder.Output())


@pytest.fixture
def read(tmp_path):
    def read(model, *outputs, input_shapes=None):
        path = tmp_path / "model.tflite"
        path.write_bytes(model if isinstance(model, bytes) else model.to_bytes(*outputs))
        return read_tflite(path, input_shapes)

    return read


def ops(graph):
    return [node.op for node in graph.nodes]


def conv(model, x, kernel, shape, **fields):
    """A convolution with a kernel of this shape."""
    bias = model.zeros(kernel[0])
    fields = {"padding": SAME, "strideH": 1, "strideW": 1, **fields}
    return model.op("CONV_2D", [x, model.zeros(*kernel), bias], shape, options="Conv2D", **fields)


# ---- kernels --------------------------------------------------------------------------------------------------------


def test_a_convolution_with_everything(read):
    m = Model()
    x = m.input(1, 10, 9, 6)
    fields = {"strideH": 2, "strideW": 1, "dilationHFactor": 1, "dilationWFactor": 2, "fusedActivationFunction": RELU6}
    y = conv(m, x, (8, 3, 2, 6), (1, 4, 7, 8), padding=VALID, **fields)
    graph = read(m, y)
    assert ops(graph) == [
        OpConfig("conv2d", 1, 10, 9, 6, 8, (3, 2), (2, 1), "valid", (1, 2), activation="relu6"),
    ]
    assert (graph.source, graph.model_name, graph.input_shapes) == ("tflite", "model", ((10, 9, 6),))
    assert graph.nodes[0].inputs == (-1,)
    assert graph.nodes[0].weights.const == 8 * 3 * 2 * 6 + 8
    assert graph.groups == ()
    assert graph.op_configs() == tuple(ops(graph))


@pytest.mark.parametrize(
    ("kernel", "kind", "groups"),
    [((8, 3, 3, 8), "conv2d", 1), ((8, 3, 3, 2), "conv2d", 4), ((16, 3, 3, 1), "depthwise_conv2d", 1)],
)
def test_groups_are_seen_by_the_kernel(read, kernel, kind, groups):
    m = Model()
    y = conv(m, m.input(1, 5, 5, 8), kernel, (1, 5, 5, kernel[0]))
    assert ops(read(m, y)) == [OpConfig(kind, 1, 5, 5, 8, kernel[0], (3, 3), groups=groups)]


def test_a_convolution_of_one_channel_is_not_depthwise(read):
    m = Model()
    y = conv(m, m.input(1, 5, 5, 1), (4, 3, 3, 1), (1, 5, 5, 4))
    assert ops(read(m, y)) == [OpConfig("conv2d", 1, 5, 5, 1, 4, (3, 3))]


def test_depthwise_with_a_multiplier_without_bias(read):
    m = Model()
    fields = {"padding": SAME, "strideH": 2, "strideW": 2, "depthMultiplier": 3}
    inputs = [m.input(2, 6, 6, 4), m.zeros(1, 5, 5, 12)]
    y = m.op("DEPTHWISE_CONV_2D", inputs, (2, 3, 3, 12), options="DepthwiseConv2D", **fields)
    assert ops(read(m, y)) == [OpConfig("depthwise_conv2d", 2, 6, 6, 4, 12, (5, 5), (2, 2), use_bias=False)]


@pytest.mark.parametrize(
    ("padding", "size", "output_size"), [(SAME, 10, None), (VALID, 11, None), (SAME, 9, (9, 9)), (VALID, 12, (12, 12))]
)
def test_transposed(read, padding, size, output_size):
    m = Model()
    inputs = [m.ints(1, size, size, 6), m.zeros(6, 3, 3, 4), m.input(1, 5, 5, 4)]
    fields = {"padding": padding, "strideH": 2, "strideW": 2}
    y = m.op("TRANSPOSE_CONV", inputs, (1, size, size, 6), options="TransposeConv", **fields)
    (op,) = ops(read(m, y))
    name = "same" if padding == SAME else "valid"
    assert op == OpConfig(
        "conv2d_transpose", 1, 5, 5, 4, 6, (3, 3), (2, 2), name, use_bias=False, output_size=output_size
    )
    assert (op.output_height, op.output_width) == (size, size)


def test_three_dimensions(read):
    m = Model()
    inputs = [m.input(1, 4, 8, 6, 3), m.zeros(3, 3, 1, 3, 5), m.zeros(5)]
    fields = {"padding": SAME, "strideD": 2, "strideH": 1, "strideW": 1}
    y = m.op("CONV_3D", inputs, (1, 2, 8, 6, 5), options="Conv3D", **fields)
    z = m.op("RELU", [y], (1, 2, 8, 6, 5))
    assert ops(read(m, z)) == [
        OpConfig("conv3d", 1, 8, 6, 3, 5, (3, 1), depth=4, kernel_depth=3, stride_depth=2),
        OpConfig("activation", 1, 16, 6, 5, 5, activation="relu"),
    ]


def test_dense_at_positions_after_a_flatten_and_without_bias(read):
    m = Model()
    x = m.input(1, 4, 5, 6)
    a = m.op("FULLY_CONNECTED", [x, m.zeros(7, 6), -1], (1, 4, 5, 7), options="FullyConnected", keepNumDims=True)
    b = m.op("FULLY_CONNECTED", [a, m.zeros(3, 140), m.zeros(3)], (1, 3), options="FullyConnected")
    rows = m.op("RESHAPE", [x, m.ints(20, 6)], (20, 6))
    c = m.op("FULLY_CONNECTED", [rows, m.zeros(8, 6), m.zeros(8)], (20, 8), options="FullyConnected")
    assert ops(read(m, b, c)) == [
        OpConfig("dense", 1, 4, 5, 6, 7, use_bias=False),
        OpConfig("dense", 1, 1, 1, 140, 3),
        OpConfig("reshape", 1, 4, 5, 6, 6, output_size=(1, 20)),
        OpConfig("dense", 1, 1, 20, 6, 8),
    ]


def test_a_matrix_product_with_a_constant_is_dense(read):
    m = Model()
    x = m.input(1, 9, 6)
    y = m.op("BATCH_MATMUL", [x, m.zeros(8, 6)], (1, 9, 8), options="BatchMatMul", adjY=True)
    z = m.op("BATCH_MATMUL", [y, y], (1, 9, 9), options="BatchMatMul", adjY=True)
    graph = read(m, z)
    assert ops(graph) == [OpConfig("dense", 1, 1, 9, 6, 8, use_bias=False)]
    assert [u.layer_class for u in graph.unknown] == ["BATCH_MATMUL"]


# ---- arithmetic -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "broadcast"),
    [
        ((1, 4, 3, 6), ""),
        ((1, 1, 1, 6), "channels"),
        ((6,), "channels"),
        ((1, 4, 3, 1), "positions"),
        ((1, 1, 1, 1), "scalar"),
        ((), "scalar"),
    ],
)
@pytest.mark.parametrize("constant", [False, True])
@pytest.mark.parametrize("swap", [False, True])
def test_broadcasts(read, shape, broadcast, constant, swap):
    m = Model()
    x = m.input(1, 4, 3, 6)
    other = m.zeros(*shape) if constant else m.input(*shape)
    y = m.op("SUB", [other, x] if swap else [x, other], (1, 4, 3, 6), options="Sub", fusedActivationFunction=RELU)
    graph = read(m, y)
    operands = 1 if constant else 2
    op = OpConfig("subtract", 1, 4, 3, 6, 6, activation="relu", broadcast=broadcast, operands=operands)
    assert ops(graph) == [op]
    if broadcast:
        assert graph.nodes[0].inputs == (-1, -2)[:operands]


@pytest.mark.parametrize("code", ["ADD", "MUL", "DIV", "MAXIMUM", "MINIMUM", "SQUARED_DIFFERENCE"])
def test_every_binary_kind(read, code):
    m = Model()
    x = m.input(1, 4, 3, 6)
    kinds = {"MUL": "multiply", "DIV": "divide"}
    (op,) = ops(read(m, m.op(code, [x, x], (1, 4, 3, 6))))
    assert op == OpConfig(kinds.get(code, code.lower()), 1, 4, 3, 6, 6, operands=2)


def test_a_constant_beside_a_smaller_tensor(read):
    """As in a layer norm: the scale of each channel times the deviation of each position."""
    m = Model()
    y = m.op("MUL", [m.input(1, 4, 3, 1), m.zeros(6)], (1, 4, 3, 6), options="Mul")
    assert ops(read(m, y)) == [OpConfig("multiply", 1, 4, 3, 6, 6, broadcast="positions")]


def test_an_outer_product_is_unknown(read):
    m = Model()
    y = m.op("MUL", [m.input(1, 4, 1, 6), m.input(1, 1, 3, 6)], (1, 4, 3, 6), options="Mul")
    graph = read(m, m.op("RELU", [y], (1, 4, 3, 6)))
    assert [(u.layer_class, u.input_bytes, u.output_bytes) for u in graph.unknown] == [("MUL", 4 * 42, 4 * 72)]
    assert graph.input_shapes == ((4, 3, 6),)


def test_a_constant_of_one_position_is_by_channels(read):
    m = Model()
    y = m.op("ADD", [m.input(1, 6), m.zeros(6)], (1, 6), options="Add")
    assert ops(read(m, y)) == [OpConfig("add", in_channels=6, out_channels=6, broadcast="channels")]


def test_a_sum_of_many(read):
    m = Model()
    tensors = [m.input(1, 2, 2, 3) for _ in range(3)]
    graph = read(m, m.op("ADD_N", tensors, (1, 2, 2, 3)))
    assert ops(graph) == [OpConfig("add", 1, 2, 2, 3, 3, operands=3)]
    assert graph.nodes[0].inputs == (-1, -2, -3)


@pytest.mark.parametrize(
    ("code", "activation"),
    [
        *[("RELU", "relu"), ("RELU6", "relu6"), ("RELU_N1_TO_1", "relu6"), ("LEAKY_RELU", "leaky_relu")],
        *[("ELU", "elu"), ("LOGISTIC", "sigmoid"), ("TANH", "tanh"), ("HARD_SWISH", "hard_swish"), ("GELU", "gelu")],
        *[("EXP", "exponential"), ("LOG", "log"), ("SQRT", "sqrt"), ("RSQRT", "rsqrt"), ("SQUARE", "square")],
        *[("ABS", "abs"), ("NEG", "negative")],
    ],
)
def test_activations(read, code, activation):
    m = Model()
    (op,) = ops(read(m, m.op(code, [m.input(1, 7, 5)], (1, 7, 5))))
    assert op == OpConfig("activation", 1, 1, 7, 5, 5, activation=activation)


def test_softmax_prelu_and_local_response_norm(read):
    m = Model()
    x = m.input(1, 2, 2, 3)
    y = m.op("PRELU", [x, m.zeros(1, 1, 3)], (1, 2, 2, 3))
    y = m.op("LOCAL_RESPONSE_NORMALIZATION", [y], (1, 2, 2, 3))
    graph = read(m, m.op("SOFTMAX", [y], (1, 2, 2, 3), options="Softmax"))
    assert [op.kind for op in ops(graph)] == ["activation", "local_response_norm", "softmax"]
    assert [node.inputs for node in graph.nodes] == [(-1,), (0,), (1,)]


# ---- pools and reductions -------------------------------------------------------------------------------------------


def test_pools(read):
    m = Model()
    x = m.input(1, 8, 6, 3)
    fields = {"padding": VALID, "strideH": 2, "strideW": 1, "filterHeight": 3, "filterWidth": 2}
    a = m.op("MAX_POOL_2D", [x], (1, 3, 5, 3), options="Pool2D", **fields)
    b = m.op("AVERAGE_POOL_2D", [x], (1, 3, 5, 3), options="Pool2D", **fields)
    window = {"kernel_size": (3, 2), "strides": (2, 1), "padding": "valid"}
    assert ops(read(m, a, b)) == [OpConfig(kind, 1, 8, 6, 3, 3, **window) for kind in ("max_pool", "avg_pool")]


@pytest.mark.parametrize(
    ("code", "shape", "axes", "kind"),
    [
        ("MEAN", (1, 4, 5, 6), (1, 2), "global_avg_pool"),
        ("SUM", (1, 4, 5, 6), (-3, -2), "global_avg_pool"),
        ("REDUCE_MAX", (1, 4, 5, 6), (2, 1), "global_max_pool"),
        ("MEAN", (1, 5, 6), (1,), "global_avg_pool"),
        ("MEAN", (1, 4, 5, 6), (3,), "channel_mean"),
        ("REDUCE_MAX", (1, 5, 6), (-1,), "channel_mean"),
        ("MEAN", (1, 4, 5, 6), (1,), None),
        ("MEAN", (1, 4, 5, 6), (1, 2, 3), None),
    ],
)
def test_reductions(read, code, shape, axes, kind):
    m = Model()
    kept = tuple(1 if axis in axes or axis - len(shape) in axes else size for axis, size in enumerate(shape))
    graph = read(m, m.op(code, [m.input(*shape), m.ints(*axes)], kept, options="Reducer", keepDims=True))
    height = 4 if len(shape) == 4 else 1
    expected = kind and OpConfig(kind, 1, height, 5, 6, 1 if kind == "channel_mean" else 6)
    assert ops(graph) == ([expected] if kind else [])
    assert [u.layer_class for u in graph.unknown] == ([] if kind else [code])


# ---- moves ----------------------------------------------------------------------------------------------------------


def test_concatenations(read):
    m = Model()
    a, b = m.input(1, 4, 4, 3), m.input(1, 4, 4, 5)
    y = m.op("CONCATENATION", [a, b, m.zeros(1, 4, 4, 2)], (1, 4, 4, 10), options="Concatenation", axis=-1)
    z = m.op("CONCATENATION", [y, y], (1, 8, 4, 10), options="Concatenation", axis=1)
    graph = read(m, z)
    assert ops(graph) == [
        OpConfig("concatenate", 1, 4, 4, 10, 10, operands=2),
        OpConfig("concatenate", 1, 8, 4, 10, 10, operands=2),
    ]
    assert [node.inputs for node in graph.nodes] == [(-1, -2), (0, 0)]


def test_pads(read):
    m = Model()
    y = m.op("PAD", [m.input(1, 4, 5, 3), m.constant([[0, 0], [1, 2], [3, 0], [0, 0]], "int32")], (1, 7, 8, 3))
    z = m.op("PADV2", [y, m.constant([[0, 0], [0, 0], [0, 0], [1, 2]], "int32"), m.zeros(1)], (1, 7, 8, 6))
    w = m.op("MIRROR_PAD", [m.input(1, 5, 3), m.constant([[0, 0], [1, 1], [0, 0]], "int32")], (1, 7, 3))
    u = m.op("PAD", [w, m.constant([[1, 0], [0, 0], [0, 0]], "int32")], (2, 7, 3))
    graph = read(m, z, u)
    assert ops(graph) == [
        OpConfig("pad", 1, 4, 5, 3, 3, padding=((1, 2), (3, 0))),
        OpConfig("pad", 1, 7, 8, 3, 6, padding=((0, 0), (0, 0))),
        OpConfig("pad", 1, 1, 5, 3, 3, padding=((0, 0), (1, 1))),
    ]
    assert [u.layer_class for u in graph.unknown] == ["PAD"]


def test_shapes_that_change(read):
    m = Model()
    x = m.input(1, 4, 5, 6)
    flat = m.op("RESHAPE", [x, m.ints(1, 120)], (1, 120))
    back = m.op("RESHAPE", [flat, m.ints(1, 2, 10, 6)], (1, 2, 10, 6))
    wide = m.op("EXPAND_DIMS", [back, m.ints(1)], (1, 1, 2, 10, 6))
    windows = m.op("RESHAPE", [m.op("SQUEEZE", [wide], (2, 10, 6)), m.ints(4, 5, 6)], (4, 5, 6))
    assert ops(read(m, windows)) == [
        OpConfig("flatten", 1, 4, 5, 6, 120),
        OpConfig("reshape", 1, 1, 1, 120, 6, output_size=(2, 10)),
        OpConfig("reshape", 1, 2, 10, 6, 6, output_size=(2, 10)),
        OpConfig("reshape", 1, 2, 10, 6, 6, output_size=(2, 10)),
        OpConfig("reshape", 2, 1, 10, 6, 6, output_size=(2, 5)),
    ]


def test_transposes(read):
    m = Model()
    x = m.input(1, 4, 5, 6)
    y = m.op("TRANSPOSE", [x, m.ints(0, 3, 1, 2)], (1, 6, 4, 5))
    z = m.op("TRANSPOSE", [x, m.ints(1, 0, 2, 3)], (4, 1, 5, 6))
    assert ops(read(m, y, z)) == [
        OpConfig("transpose", 1, 4, 5, 6, 6),
        OpConfig("reshape", 1, 4, 5, 6, 6, output_size=(4, 5)),
    ]


def test_slices(read):
    m = Model()
    x = m.input(1, 4, 5, 6)
    masks = {"beginMask": 9, "endMask": 9}
    bounds = [m.ints(0, 1, 0, 0), m.ints(0, 4, 5, 0), m.ints(1, 1, 2, 1)]
    a = m.op("STRIDED_SLICE", [x, *bounds], (1, 3, 3, 6), options="StridedSlice", **masks)
    b = m.op("SLICE", [x, m.ints(0, 0, 0, 2), m.ints(-1, -1, -1, 4)], (1, 4, 5, 4))
    c, d = m.op("SPLIT", [m.ints(3), x], (1, 4, 5, 3), (1, 4, 5, 3), options="Split", numSplits=2)
    e, f = m.op("SPLIT_V", [x, m.ints(1, 5), m.ints(3)], (1, 4, 5, 1), (1, 4, 5, 5), options="SplitV", numSplits=2)
    graph = read(m, a, b, c, d, e, f)
    assert ops(graph) == [
        OpConfig("slice", 1, 4, 5, 6, 6, output_size=(3, 3)),
        *[OpConfig("slice", 1, 4, 5, 6, out, output_size=(4, 5)) for out in (4, 3, 3, 1, 5)],
    ]
    assert {node.inputs for node in graph.nodes} == {(-1,)}


def test_resizes(read):
    m = Model()
    x = m.input(1, 4, 5, 6)
    a = m.op("RESIZE_BILINEAR", [x, m.ints(8, 10)], (1, 8, 10, 6))
    b = m.op("RESIZE_NEAREST_NEIGHBOR", [x, m.ints(8, 10)], (1, 8, 10, 6))
    kinds = ("resize_bilinear", "resize_nearest")
    assert ops(read(m, a, b)) == [OpConfig(kind, 1, 4, 5, 6, 6, output_size=(8, 10)) for kind in kinds]


def test_a_tile_is_a_concatenation_of_the_tensor_with_itself(read):
    m = Model()
    y = m.op("TILE", [m.input(1, 4, 1, 5, 6), m.ints(1, 1, 2, 1, 1)], (1, 4, 2, 5, 6))
    graph = read(m, y)
    assert ops(graph) == [OpConfig("concatenate", 1, 1, 4, 60, 60, operands=2)]
    assert graph.nodes[0].inputs == (-1, -1)


def test_a_damaged_count_of_tiles_takes_no_memory(read):
    m = Model()
    y = m.op("TILE", [m.input(1, 6), m.ints(1, 2**31 - 1)], (1, 12))
    assert [u.layer_class for u in read(m, y).unknown] == ["TILE"]


# ---- patterns -------------------------------------------------------------------------------------------------------


def silu(m, x, shape, swap=False):
    gate = m.op("LOGISTIC", [x], shape)
    return gate, m.op("MUL", [gate, x] if swap else [x, gate], shape, options="Mul", name="silu")


@pytest.mark.parametrize("swap", [False, True])
def test_silu(read, swap):
    m = Model()
    _, y = silu(m, m.input(1, 2, 2, 3), (1, 2, 2, 3), swap)
    graph = read(m, y)
    assert ops(graph) == [OpConfig("activation", 1, 2, 2, 3, 3, activation="silu")]
    assert [(node.name, node.inputs) for node in graph.nodes] == [("silu", (-1,))]


@pytest.mark.parametrize("reader", ["operator", "output"])
def test_a_logistic_that_something_else_reads_is_an_operation(read, reader):
    m = Model()
    gate, y = silu(m, m.input(1, 2, 2, 3), (1, 2, 2, 3))
    outputs = (y, gate) if reader == "output" else (y, m.op("ABS", [gate], (1, 2, 2, 3)))
    kinds = [op.activation or op.kind for op in ops(read(m, *outputs))]
    assert kinds[:2] == ["sigmoid", "multiply"]


@pytest.mark.parametrize("form", ["fused", "apart", "divided"])
def test_hard_sigmoid(read, form):
    m = Model()
    shape = (1, 2, 2, 3)
    fused = 0 if form == "apart" else RELU6
    y = m.op("ADD", [m.input(*shape), m.constant(3.0)], shape, options="Add", fusedActivationFunction=fused)
    if form == "apart":
        y = m.op("RELU6", [y], shape)
    code, number = ("DIV", 6.0) if form == "divided" else ("MUL", 1 / 6)
    y = m.op(code, [y, m.constant(number)], shape, options=code.title())
    graph = read(m, y)
    assert ops(graph) == [OpConfig("activation", *shape, 3, activation="hard_sigmoid")]
    assert graph.nodes[0].inputs == (-1,)


def test_other_numbers_are_no_hard_sigmoid(read):
    m = Model()
    shape = (1, 2, 2, 3)
    y = m.op("ADD", [m.input(*shape), m.constant(2.0)], shape, options="Add", fusedActivationFunction=RELU6)
    y = m.op("MUL", [y, m.constant(1 / 6)], shape, options="Mul")
    assert [op.kind for op in ops(read(m, y))] == ["add", "multiply"]


@pytest.mark.parametrize(
    ("apart", "order"), [((1, 4, 5, 2, 3), (0, 1, 2, 4, 3)), ((20, 2, 3), (0, 2, 1)), ((1, 20, 2, 3), (0, 1, 3, 2))]
)
def test_channel_shuffle(read, apart, order):
    m = Model()
    y = m.op("RESHAPE", [m.input(1, 4, 5, 6), m.ints(*apart)], apart)
    y = m.op("TRANSPOSE", [y, m.ints(*order)], tuple(apart[axis] for axis in order))
    y = m.op("RESHAPE", [y, m.ints(1, 4, 5, 6)], (1, 4, 5, 6))
    assert ops(read(m, y)) == [OpConfig("channel_shuffle", 1, 4, 5, 6, 6, groups=2)]


def layer_norm(m, x, shape, bias=True, weight=True, swap=False):
    """As Keras' LayerNormalization is converted; the mean, and the result."""
    one = (*shape[:-1], 1)
    axes, channels = m.ints(-1), m.zeros(shape[-1])

    def op(code, a, b, shape):
        return m.op(code, [b, a] if swap else [a, b], shape, options=code.title())

    mean = m.op("MEAN", [x, axes], one, options="Reducer", keepDims=True)
    negative = m.op("NEG", [mean], one)
    distance = m.op("SQUARED_DIFFERENCE", [x, mean], shape)
    variance = m.op("MEAN", [distance, axes], one, options="Reducer", keepDims=True)
    scale = m.op("RSQRT", [op("ADD", variance, m.constant(1e-6), one)], one)
    wide = shape if weight else one
    if weight:
        scale = op("MUL", scale, channels, wide)
    shift = op("MUL", negative, scale, wide)
    if bias:
        shift = op("ADD", shift, channels, shape)
    return mean, op("ADD", op("MUL", x, scale, shape), shift, shape)


@pytest.mark.parametrize(("bias", "weight"), [(True, True), (False, True), (True, False)])
@pytest.mark.parametrize("swap", [False, True])
def test_layer_norm(read, bias, weight, swap):
    m = Model()
    _, y = layer_norm(m, m.input(1, 4, 5, 6), (1, 4, 5, 6), bias, weight, swap)
    graph = read(m, m.op("RELU", [y], (1, 4, 5, 6)))
    assert ops(graph) == [
        OpConfig("layer_norm", 1, 4, 5, 6, 6),
        OpConfig("activation", 1, 4, 5, 6, 6, activation="relu"),
    ]
    assert [node.inputs for node in graph.nodes] == [(-1,), (0,)]


def test_a_layer_norm_whose_mean_is_read_elsewhere_is_its_operations(read):
    m = Model()
    mean, y = layer_norm(m, m.input(1, 4, 5, 6), (1, 4, 5, 6))
    kinds = [op.kind for op in ops(read(m, y, mean))]
    assert "layer_norm" not in kinds
    assert kinds.count("channel_mean") == 2


@pytest.mark.parametrize("factors", [(2, 3), (1, 2), (2, 1)])
def test_nearest_resize_of_tiles(read, factors):
    m = Model()
    rows, columns = factors
    y = m.op("RESHAPE", [m.input(1, 80), m.ints(1, 4, 5, 4)], (1, 4, 5, 4))
    if rows > 1:
        y = m.op("RESHAPE", [y, m.ints(1, 4, 1, 5, 4)], (1, 4, 1, 5, 4))
        y = m.op("TILE", [y, m.ints(1, 1, rows, 1, 1)], (1, 4, rows, 5, 4))
    if columns > 1:
        shape = (1, 4 * rows, 5, 1, 4)
        y = m.op("RESHAPE", [y, m.ints(*shape)], shape)
        y = m.op("TILE", [y, m.ints(1, 1, 1, columns, 1)], (1, 4 * rows, 5, columns, 4))
    size = (4 * rows, 5 * columns)
    y = m.op("RESHAPE", [y, m.ints(1, *size, 4)], (1, *size, 4))
    assert ops(read(m, y)) == [
        OpConfig("reshape", 1, 1, 1, 80, 4, output_size=(4, 5)),
        OpConfig("resize_nearest", 1, 4, 5, 4, 4, output_size=size),
    ]


def test_a_tile_of_the_whole_image_is_no_resize(read):
    m = Model()
    y = m.op("RESHAPE", [m.input(1, 4, 5, 6), m.ints(1, 1, 4, 5, 6)], (1, 1, 4, 5, 6))
    y = m.op("TILE", [y, m.ints(1, 2, 1, 1, 1)], (1, 2, 4, 5, 6))
    y = m.op("RESHAPE", [y, m.ints(1, 8, 5, 6)], (1, 8, 5, 6))
    assert [op.kind for op in ops(read(m, y))] == ["reshape", "concatenate", "reshape"]


def test_softplus(read):
    m = Model()
    y = m.op("ADD", [m.op("EXP", [m.input(1, 4)], (1, 4)), m.constant(1.0)], (1, 4), options="Add")
    assert ops(read(m, m.op("LOG", [y], (1, 4)))) == [
        OpConfig("activation", in_channels=4, out_channels=4, activation="softplus")
    ]


def test_the_bias_of_a_three_dimensional_convolution(read):
    m = Model()
    shape = (1, 4, 8, 6, 5)
    fields = {"padding": SAME, "strideD": 1, "strideH": 1, "strideW": 1}
    y = m.op("CONV_3D", [m.input(1, 4, 8, 6, 3), m.zeros(3, 3, 3, 3, 5)], shape, options="Conv3D", **fields)
    y = m.op("ADD", [y, m.zeros(5)], shape, options="Add", fusedActivationFunction=RELU)
    assert ops(read(m, y)) == [
        OpConfig("conv3d", 1, 8, 6, 3, 5, (3, 3), depth=4, kernel_depth=3, activation="relu"),
    ]


# ---- types ----------------------------------------------------------------------------------------------------------


def test_int8_throughout(read):
    m = Model()
    x = m.input(1, 4, 4, 3)
    y = m.op("QUANTIZE", [x], (1, 4, 4, 3), dtype="int8")
    inputs = [y, m.zeros(5, 1, 1, 3, dtype="int8"), m.zeros(5, dtype="int32")]
    fields = {"options": "Conv2D", "padding": SAME, "strideH": 1, "strideW": 1}
    y = m.op("CONV_2D", inputs, (1, 4, 4, 5), dtype="int8", **fields)
    y = m.op("QUANTIZE", [y], (1, 4, 4, 5), dtype="int8")
    y = m.op("DEQUANTIZE", [y], (1, 4, 4, 5))
    found = ops(read(m, y))
    assert [op.kind for op in found] == ["quantize", "conv2d", "quantize", "dequantize"]
    assert {op.dtype for op in found} == {"int8"}


def test_weights_in_integers_compute_in_integers(read):
    m = Model()
    x = m.input(1, 6)
    y = m.op("FULLY_CONNECTED", [x, m.zeros(7, 6, dtype="int8"), m.zeros(7)], (1, 7), options="FullyConnected")
    assert [op.dtype for op in ops(read(m, m.op("RELU", [y], (1, 7))))] == ["int8", "float32"]


@pytest.mark.parametrize("code", ["DEQUANTIZE", "DENSIFY"])
def test_weights_that_are_unpacked_on_loading(read, code):
    m = Model()
    x = m.input(1, 4, 4, 3)
    kernel = m.op(code, [m.zeros(5, 1, 1, 3, dtype="float16")], (5, 1, 1, 3))
    kernel = m.op("TRANSPOSE", [kernel, m.ints(0, 1, 2, 3)], (5, 1, 1, 3))
    y = m.op("CONV_2D", [x, kernel, m.zeros(5)], (1, 4, 4, 5), options="Conv2D", strideH=1, strideW=1)
    graph = read(m, y)
    assert ops(graph) == [OpConfig("conv2d", 1, 4, 4, 3, 5)]
    assert graph.unknown == ()


def test_types_that_operations_do_not_have_are_unknown(read):
    m = Model()
    y = m.op("ADD", [m.input(1, 4, dtype="int16"), m.input(1, 4, dtype="int16")], (1, 4), dtype="int16", options="Add")
    (unknown,) = read(m, y).unknown
    assert (unknown.layer_class, unknown.input_bytes, unknown.output_bytes) == ("ADD", 16, 8)


# ---- what is unknown ------------------------------------------------------------------------------------------------


def test_unknown_operators_are_listed_and_what_they_make_is_an_input(read):
    m = Model()
    x = m.input(1, 4, 4, 3)
    m.input(1, 9)
    y = m.op("RELU", [x], (1, 4, 4, 3), name="first")
    z = m.op("CUSTOM", [y], (1, 2, 2, 5), name="mine", custom="MyOp")
    z = m.op("RELU", [z], (1, 2, 2, 5), name="second")
    w = m.op("ADD", [z, z], (1, 2, 2, 5), options="Add", fusedActivationFunction=SIGN_BIT)
    graph = read(m, w)
    assert [(node.name, node.inputs) for node in graph.nodes] == [("first", (-1,)), ("second", (-2,))]
    assert [(u.name, u.layer_class) for u in graph.unknown][:1] == [("mine", "MyOp")]
    assert (graph.unknown[0].input_bytes, graph.unknown[0].output_bytes) == (4 * 48, 4 * 20)
    assert graph.unknown[1].layer_class == "ADD"
    assert graph.input_shapes == ((4, 4, 3), (2, 2, 5))


@pytest.mark.parametrize("code", ["WHILE", "IF", "GATHER", "SOFTMAX", "RESHAPE", "SPLIT", "MUL", "CONV_2D", "MEAN"])
def test_an_operator_without_what_it_needs_is_unknown(read, code):
    m = Model()
    m.input(1, 4)
    graph = read(m, m.op(code, [-1], (1, 4)))
    assert [u.layer_class for u in graph.unknown] == [code]


def test_a_model_of_no_examples_is_unknown(read):
    m = Model()
    y = m.op("RELU", [m.op("CUSTOM", [m.input(0, 4)], (3, 4), custom="MyOp")], (3, 4))
    graph = read(m, m.op("ABS", [m.inputs[0]], (0, 4)), y)
    assert [u.layer_class for u in graph.unknown] == ["MyOp", "ABS"]
    assert len(graph.nodes) == 1


def test_names_are_unique(read):
    m = Model()
    y = m.op("RELU", [m.input(1, 4)], (1, 4), name="same")
    graph = read(m, m.op("ABS", [y], (1, 4), name="same"))
    assert [node.name for node in graph.nodes] == ["same", "same#2"]


# ---- open sizes -----------------------------------------------------------------------------------------------------


def open_model():
    """Conv, then a flatten whose shape is worked out from the batch, as converters write it."""
    m = Model()
    x = m.input(1, 1, 1, 3, signature=(-1, -1, -1, 3), name="serving_default_image:0")
    y = m.op("CONV_2D", [x, m.zeros(4, 3, 3, 3), m.zeros(4)], (1, 1, 1, 4), signature=(-1, -1, -1, 4),
             options="Conv2D", padding=SAME, strideH=2, strideW=2)  # fmt: skip
    shape = m.op("SHAPE", [y], (4,), dtype="int32", options="Shape")
    part = {"options": "StridedSlice", "dtype": "int32", "shrinkAxisMask": 1}
    batch = m.op("STRIDED_SLICE", [shape, m.ints(0), m.ints(1), m.ints(1)], (), **part)
    pack = m.op("PACK", [batch, m.constant(-1, "int32")], (2,), dtype="int32", options="Pack", valuesCount=2)
    return m, m.op("RESHAPE", [y, pack], (1, 1), signature=(-1, -1))


@pytest.mark.parametrize(
    "input_shapes", [(2, 8, 6, 3), {"serving_default_image:0": [2, 8, 6, 3]}, {"image": (2, 8, 6, 3)}]
)
def test_sizes_that_are_asked_for(read, input_shapes):
    model, output = open_model()
    assert ops(read(model, output, input_shapes=input_shapes)) == [
        OpConfig("conv2d", 2, 8, 6, 3, 4, (3, 3), (2, 2)),
        OpConfig("flatten", 2, 4, 3, 4, 48),
    ]


def test_open_sizes_say_how_to_give_them(read):
    model, output = open_model()
    with pytest.raises(UnsupportedModelError, match=r"'serving_default_image:0'.*--input-shape .*=1,224,224,3"):
        read(model, output)


@pytest.mark.parametrize(
    ("input_shapes", "message"),
    [
        ((1, 8, 8), "has 4 sizes"),
        ((1, 0, 8, 3), "all positive"),
        ({"photo": (1, 8, 8, 3)}, "has no input 'photo'"),
    ],
)
def test_shapes_that_do_not_fit(read, input_shapes, message):
    model, output = open_model()
    with pytest.raises(UsageError, match=message):
        read(
            model,
            output,
            input_shapes={**input_shapes, "image": (1, 8, 8, 3)} if isinstance(input_shapes, dict) else input_shapes,
        )


def test_an_open_batch_is_one_example(read):
    m = Model()
    x = m.input(1, 4, 4, 3, signature=(-1, 4, 4, 3))
    y = m.op("RELU", [x], (1, 4, 4, 3), signature=(-1, 4, 4, 3))
    assert ops(read(m, y)) == [OpConfig("activation", 1, 4, 4, 3, 3, activation="relu")]


def test_a_resize_of_an_unknown_operator(read):
    def model():
        m = Model()
        return m, m.op("CUSTOM", [m.input(1, 4, 4, 3)], (1, 9), custom="MyOp")

    assert read(*model(), input_shapes=(2, 4, 4, 3)).unknown[0].output_bytes == 2 * 9 * 4
    with pytest.raises(UnsupportedModelError, match="MyOp"):
        read(*model(), input_shapes=(1, 8, 4, 3))


# ---- files ----------------------------------------------------------------------------------------------------------


def test_a_file_that_is_missing(tmp_path):
    with pytest.raises(FileFormatError, match=r"none\.tflite"):
        read_tflite(tmp_path / "none.tflite")


def test_a_file_of_another_kind(read):
    with pytest.raises(FileFormatError, match=r"model\.tflite is no \.tflite file"):
        read(b"PK\x03\x04 and so on, long enough")


def test_files_cut_short_anywhere(read):
    m = Model()
    data = m.to_bytes(conv(m, m.input(1, 5, 5, 8), (8, 3, 3, 8), (1, 5, 5, 8)))
    for size in range(8, len(data) - 4, 29):
        with pytest.raises(FileFormatError, match=r"model\.tflite"):
            read(data[:size])


def test_files_with_bytes_changed_give_an_error_or_a_graph(read):
    model, output = open_model()
    data = model.to_bytes(output)
    rng = np.random.default_rng(0)
    for _ in range(300):
        bad = bytearray(data)
        for at in rng.integers(8, len(data), 4):
            bad[at] = rng.integers(256)
        try:
            read(bytes(bad), input_shapes=(1, 8, 8, 3))
        except (FileFormatError, UnsupportedModelError, UsageError) as error:
            assert "model.tflite" in str(error)


def test_a_tensor_that_nothing_makes(read):
    m = Model()
    m.input(1, 4)
    loose = m.tensor((1, 4), "float32", "loose")
    with pytest.raises(FileFormatError, match="RELU reads 'loose'"):
        read(m, m.op("RELU", [loose], (1, 4)))


def test_the_graph_class_reads_the_file(tmp_path):
    m = Model()
    path = tmp_path / "small.tflite"
    path.write_bytes(m.to_bytes(m.op("RELU", [m.input(1, 4)], (1, 4))))
    assert ChannelGraph.from_model(path).nodes[0].op.activation == "relu"
    assert ChannelGraph.from_model(str(path), {"input0": (3, 4)}).nodes[0].op.batch == 3
