"""What the TFLite builder writes for each kind: it runs, it means what the operation says, in floats and in int8."""

import dataclasses
import time

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter

from latency_lab import runtimes
from latency_lab.errors import UsageError
from latency_lab.ops import ACTIVATIONS, BINARY, CASTS, KINDS, REORDERS, Network, OpConfig
from latency_lab.runtimes import base

LITERT = runtimes.get("litert")
POSITIVE_READERS = {"log", "sqrt", "rsqrt"}


def op(kind, height=7, width=5, in_channels=8, out_channels=None, **more):
    return OpConfig(
        kind, height=height, width=width, in_channels=in_channels, out_channels=out_channels or in_channels, **more
    )


# ---- running ------------------------------------------------------------------------------------------------------


def interpreter(network):
    found = Interpreter(model_content=LITERT.build(network), num_threads=1)
    found.allocate_tensors()
    return found


def run(network, inputs):
    """Outputs in floats, and for each the lowest and highest number that its type can hold."""
    running = interpreter(network)
    for detail, values in zip(running.get_input_details(), inputs, strict=True):
        scale, zero = detail["quantization"]
        if detail["dtype"] is np.int8:
            values = np.clip(np.rint(values / scale) + zero, -128, 127).astype(np.int8)
        running.set_tensor(detail["index"], values)
    running.invoke()
    results = []
    for detail in running.get_output_details():
        scale, zero = detail["quantization"]
        found, limits = running.get_tensor(detail["index"]), (-np.inf, np.inf)
        if detail["dtype"] is np.int8:
            found, limits = (found.astype(np.float32) - zero) * scale, ((-128 - zero) * scale, (127 - zero) * scale)
        results.append((found, *limits))
    return results


def inputs_of(network):
    generator = np.random.default_rng(0)
    made = [generator.normal(size=shape).astype(np.float32) for shape in base.tensor_shapes(network).inputs]
    (first, _), *_ = network.nodes
    if first.activation in POSITIVE_READERS or first.kind == "divide":
        made = [np.abs(values) + np.float32(0.5) for values in made]
    return made


# ---- what each operation means ------------------------------------------------------------------------------------


def windows(x, kernel, strides, same):
    """(*kernel, batch, *positions, channels): what each place of a window over the positions sees."""
    sizes = x.shape[1:-1]
    counts = [-(-n // s) if same else (n - k) // s + 1 for n, k, s in zip(sizes, kernel, strides, strict=True)]
    if same:
        totals = [max((c - 1) * s + k - n, 0) for c, s, k, n in zip(counts, strides, kernel, sizes, strict=True)]
        x = np.pad(x, ((0, 0), *((total // 2, total - total // 2) for total in totals), (0, 0)))
    seen = np.empty((*kernel, x.shape[0], *counts, x.shape[-1]))
    for place in np.ndindex(*kernel):
        parts = [slice(p, p + c * s, s) for p, c, s in zip(place, counts, strides, strict=True)]
        seen[place] = x[(slice(None), *parts)]
    return seen


def conv3d(op, x):
    kernel = (op.kernel_depth, *op.kernel_size)
    seen = windows(x, kernel, (op.stride_depth, *op.strides), op.padding == "same")
    return np.einsum("dijbzhwc,odijc->bzhwo", seen, base.kernel(op, 0)) + base.bias(op, 0)


def conv2d_transpose(op, x):
    (rows, columns), (down, right) = op.kernel_size, op.strides
    whole = np.zeros((op.batch, op.height * down + rows, op.width * right + columns, op.out_channels))
    for i, j in np.ndindex(op.height, op.width):
        part = np.einsum("bc,oklc->bklo", x[:, i, j], base.kernel(op, 0))
        whole[:, i * down : i * down + rows, j * right : j * right + columns] += part
    if op.padding == "same":
        top, left = (max(k - s, 0) // 2 for k, s in zip(op.kernel_size, op.strides, strict=True))
    else:
        (top, _), (left, _) = op.pads
    return whole[:, top : top + op.output_height, left : left + op.output_width] + base.bias(op, 0)


def normalised(x, axes):
    return (x - x.mean(axes, keepdims=True)) / np.sqrt(x.var(axes, keepdims=True) + base.NORM_EPSILON)


def group_norm(op, x):
    grouped = x.reshape(*x.shape[:-1], op.groups, -1)
    axes = (*range(1, x.ndim - 1), x.ndim)
    return normalised(grouped, axes).reshape(x.shape) * base.scale(op, 0) + base.bias(op, 0)


def response_norm(op, x):
    half = base.RESPONSE_SIZE // 2
    squares = np.pad(x**2, ((0, 0),) * 3 + ((half, half),))
    sums = sum(squares[..., k : k + op.in_channels] for k in range(base.RESPONSE_SIZE))
    return x / (base.RESPONSE_BIAS + base.RESPONSE_ALPHA / base.RESPONSE_SIZE * sums) ** base.RESPONSE_BETA


def nearest(op, x):
    rows = ((np.arange(op.output_height) + 0.5) * op.height / op.output_height).astype(int)
    columns = ((np.arange(op.output_width) + 0.5) * op.width / op.output_width).astype(int)
    return x[:, rows][:, :, columns]


def line(size, new):
    """Weights (new, size) of linear interpolation between the middles of pixels."""
    places = np.clip((np.arange(new) + 0.5) * size / new - 0.5, 0, size - 1)
    return np.maximum(1 - np.abs(places[:, None] - np.arange(size)), 0)


def bilinear(op, x):
    return np.einsum("ph,qw,bhwc->bpqc", line(op.height, op.output_height), line(op.width, op.output_width), x)


def shuffled(op, x):
    return x.reshape(*x.shape[:-1], op.groups, -1).swapaxes(-1, -2).reshape(x.shape)


OF_TWO = {
    "add": np.add,
    "subtract": np.subtract,
    "multiply": np.multiply,
    "divide": np.divide,
    "maximum": np.maximum,
    "minimum": np.minimum,
    "squared_difference": lambda x, y: (x - y) ** 2,
}
MEANING = {
    "conv3d": conv3d,
    "conv2d_transpose": conv2d_transpose,
    "dense": lambda op, x: x @ base.kernel(op, 0).T + base.bias(op, 0),
    "batch_norm": lambda op, x: x * base.scale(op, 0) + base.bias(op, 0),
    "layer_norm": lambda op, x: normalised(x, -1) * base.scale(op, 0) + base.bias(op, 0),
    "group_norm": group_norm,
    "local_response_norm": response_norm,
    "channel_mean": lambda op, x: x.mean(-1, keepdims=True),
    "global_avg_pool": lambda op, x: x.mean(tuple(range(1, x.ndim - 1))),
    "resize_nearest": nearest,
    "resize_bilinear": bilinear,
    "slice": lambda op, x: (
        x[..., : op.out_channels] if x.ndim == 2 else x[:, : op.output_height, : op.output_width, : op.out_channels]
    ),
    "reshape": lambda op, x: x.reshape(base.tensor_shapes(Network.of(op)).outputs[0]),
    "channel_shuffle": shuffled,
    "activation": lambda op, x: x,
}


def meaning(op, inputs):
    first, *others = (values.astype(np.float64) for values in inputs)
    if op.kind not in BINARY:
        output = MEANING[op.kind](op, first)
    else:
        output = first
        for other in others or [base.operand(op, 0)]:
            output = OF_TWO[op.kind](output, other)
    return np.maximum(output, 0) if op.activation == "relu" else output


# ---- operations -----------------------------------------------------------------------------------------------------

K3, S2 = {"kernel_size": (3, 3)}, {"strides": (2, 2)}
NEW = [
    op("conv2d_transpose", out_channels=6, **K3, **S2, activation="relu"),
    op("conv2d_transpose", out_channels=6, **K3, **S2, use_bias=False, activation="relu"),
    op("conv2d_transpose", out_channels=6, kernel_size=(2, 3), strides=(2, 1), padding="valid"),
    op("conv2d_transpose", out_channels=6, kernel_size=(4, 4), **S2, padding=((1, 1), (1, 1))),
    op("conv2d_transpose", out_channels=6, **K3, **S2, padding=((1, 0), (1, 0))),
    op("conv3d", out_channels=6, depth=4, kernel_depth=3, **K3, activation="relu"),
    op("conv3d", out_channels=6, depth=5, kernel_depth=3, stride_depth=2, **K3, **S2, padding="valid", use_bias=False),
    op("batch_norm", depth=3),
    op("activation", depth=3, activation="relu"),
    op("global_avg_pool", depth=3),
    op("dense", out_channels=6, activation="relu"),
    op("dense", out_channels=6, use_bias=False),
    op("layer_norm", in_channels=24, activation="relu"),
    op("layer_norm", 1, 1, 24),
    op("group_norm", groups=2, activation="relu"),
    op("group_norm", 1, 1, 24, groups=2),
    op("local_response_norm"),
    op("channel_mean", out_channels=1),
    op("resize_nearest", output_size=(14, 15)),
    op("resize_nearest", output_size=(9, 8)),
    op("resize_bilinear", output_size=(14, 9)),
    op("slice", output_size=(5, 4)),
    op("slice", output_size=(7, 5), out_channels=3),
    op("slice", 1, 1, output_size=(1, 1), out_channels=3),
    op("reshape", output_size=(5, 14), out_channels=4),
    op("reshape", output_size=(1, 1), out_channels=280),
    op("reshape", 1, 1, 280, output_size=(7, 5), out_channels=8),
    op("channel_shuffle", groups=4),
    *(
        op(kind, operands=operands, broadcast=broadcast, activation="relu" if operands == 2 else None)
        for kind in sorted(BINARY)
        for operands in (1, 2)
        for broadcast in ("", "channels", "positions", "scalar")
    ),
    op("multiply", 1, 1, broadcast="channels"),
    op("add", operands=2, depth=3),
    op("maximum", operands=3),
]
KNOWN = [
    op("conv2d", out_channels=12, **K3, activation="relu"),
    op("conv2d", out_channels=12, **K3, **S2, padding=((1, 0), (2, 2)), use_bias=False),
    op("conv2d", out_channels=12, **K3, groups=4, residual=True, activation="relu6"),
    op("depthwise_conv2d", **K3, activation="relu6"),
    op("depthwise_conv2d", **K3, dilation=(2, 2)),
    op("dense", 1, 1, 40, 10, activation="relu"),
    op("concatenate", operands=3),
    op("batch_norm", activation="relu"),
    op("max_pool", **K3, **S2, activation="relu"),
    op("avg_pool", **K3, **S2),
    op("global_avg_pool"),
    op("global_max_pool"),
    op("softmax"),
    op("pad", padding=((0, 1), (2, 3))),
    op("flatten", out_channels=280),
    op("transpose"),
    *(op("activation", activation=name) for name in sorted(ACTIVATIONS - {"erf"})),
]


def key(value):
    return value.key.replace(" ", "_")


def batches(found):
    return [found, dataclasses.replace(found, batch=3)]


@pytest.mark.parametrize("found", NEW, ids=key)
def test_floats_are_what_the_operation_says(found):
    for each in batches(found):
        network = Network.of(each)
        inputs = inputs_of(network)
        ((output, *_),) = run(network, inputs)
        assert output.shape == base.tensor_shapes(network).outputs[0]
        np.testing.assert_allclose(output, meaning(each, inputs), rtol=1e-4, atol=2e-5)


def buildable(found):
    return LITERT.reason_unsupported(dataclasses.replace(found, dtype="int8")) is None


@pytest.mark.parametrize("found", [found for found in NEW + KNOWN if buildable(found)], ids=key)
def test_int8_is_near_floats(found):
    """To a few steps of 0.05: more where a rounded input is multiplied, less where it is only moved."""
    for each in batches(found):
        inputs = inputs_of(Network.of(each))
        ((expected, *_),) = run(Network.of(each), inputs)
        ((output, low, high),) = run(Network.of(dataclasses.replace(each, dtype="int8")), inputs)
        error = np.abs(output - np.clip(expected, low, high))
        assert output.std() > 0 or expected.std() < 1e-6
        assert np.median(error) < 0.1
        assert np.all(error < (0.7 if "norm" in each.kind else 0.3) + 0.05 * np.abs(expected))


def test_each_kind_is_tried_or_refused():
    tried = {found.kind for found in NEW + KNOWN}
    assert tried | CASTS | REORDERS == KINDS
    refused = [found for found in NEW + KNOWN if not buildable(found)]
    assert {found.kind for found in refused} == {"divide"}


def test_tensors_go_from_floats_to_int8_and_back():
    conv, softmax = op("conv2d", out_channels=6, **K3, activation="relu"), op("softmax", in_channels=6)
    into, out_of = op("quantize", dtype="int8"), op("dequantize", in_channels=6, dtype="int8")
    whole = dataclasses.replace(conv, dtype="int8")
    mixed = Network(((into, (-1,)), (whole, (0,)), (out_of, (1,)), (softmax, (2,))))
    floats = Network(((op("activation", activation="relu"), (-1,)), (conv, (0,)), (softmax, (1,))))
    inputs = [np.abs(values) for values in inputs_of(floats)]
    ((output, low, _),) = run(mixed, inputs)
    assert low == -np.inf
    ((expected, *_),) = run(floats, inputs)
    np.testing.assert_allclose(output, expected, atol=0.05)


def test_types_that_do_not_fit_are_refused():
    network = Network(((op("conv2d", **K3), (-1,)), (op("conv2d", dtype="int8"), (0,))))
    with pytest.raises(UsageError, match=r"Node 1 .* reads int8, its operand is of the other type. Put a quantize"):
        LITERT.build(network)


def deep(dtype):
    """A residual block with squeeze and excite, a branch that is concatenated, a norm, and a head."""
    nodes = [
        (op("conv2d", 14, 10, 3, 16, **K3, **S2, activation="relu6"), (-1,)),
        (op("depthwise_conv2d", 7, 5, 16, **K3, activation="hard_swish"), (0,)),
        (op("global_avg_pool", 7, 5, 16), (1,)),
        (op("dense", 1, 1, 16, 4, activation="relu"), (2,)),
        (op("dense", 1, 1, 4, 16, activation="sigmoid"), (3,)),
        (op("multiply", 7, 5, 16, operands=2, broadcast="channels"), (1, 4)),
        (op("add", 7, 5, 16, operands=2), (5, 0)),
        (op("activation", 7, 5, 16, activation="sigmoid"), (6,)),
        (op("concatenate", 7, 5, 32, operands=2), (6, 7)),
        (op("conv2d", 7, 5, 32, 32, activation="silu"), (8,)),
        (op("layer_norm", 7, 5, 32), (9,)),
        (op("max_pool", 7, 5, 32, **K3, **S2), (10,)),
        (op("flatten", 4, 3, 32, 384), (11,)),
        (op("dense", 1, 1, 384, 10), (12,)),
        (op("softmax", 1, 1, 10), (13,)),
    ]
    return Network(tuple((dataclasses.replace(each, dtype=dtype), sources) for each, sources in nodes))


def test_a_network_in_int8_answers_as_in_floats():
    inputs = inputs_of(deep("float32"))
    ((expected, *_),) = run(deep("float32"), inputs)
    ((output, *_),) = run(deep("int8"), inputs)
    assert expected.std() > 0.03
    np.testing.assert_allclose(output, expected, atol=0.05)


# ---- where it runs, and how soon it is built ------------------------------------------------------------------------


def delegated(network):
    """Whether XNNPACK takes the whole network."""
    found = interpreter(network)._get_ops_details()
    return [each["op_name"] for each in found].count("DELEGATE") == 1


POINTWISE = op("conv2d", 28, 28, 256, 256)


@pytest.mark.parametrize("dtype", ["float32", "int8"])
@pytest.mark.parametrize(
    "found",
    [
        POINTWISE,
        op("conv2d", **K3, groups=4),
        op("depthwise_conv2d", **K3),
        op("conv2d_transpose", **K3, **S2),
        op("dense"),
        op("add", operands=2),
        op("multiply", operands=2, broadcast="channels"),
        op("global_avg_pool"),
        op("concatenate", operands=2),
        op("activation", activation="sigmoid"),
    ],
    ids=key,
)
def test_the_kinds_that_matter_run_in_xnnpack(found, dtype):
    assert delegated(Network.of(dataclasses.replace(found, dtype=dtype)))


def test_an_int8_convolution_is_no_slower_than_a_float_one():
    best = {"float32": np.inf, "int8": np.inf}
    running = {dtype: interpreter(Network.of(dataclasses.replace(POINTWISE, dtype=dtype))) for dtype in best}
    for _ in range(20):
        for dtype, each in running.items():
            start = time.perf_counter()
            each.invoke()
            best[dtype] = min(best[dtype], time.perf_counter() - start)
    assert best["int8"] < 1.1 * best["float32"]


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_a_lone_operation_is_built_in_milliseconds(dtype):
    network = Network.of(dataclasses.replace(POINTWISE, dtype=dtype))
    took = []
    for _ in range(5):
        start = time.perf_counter()
        LITERT.build(network)
        took.append(time.perf_counter() - start)
    assert min(took) < 0.02
