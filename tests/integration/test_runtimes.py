import json
import math
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter

from latency_lab import runtimes
from latency_lab.ops import ACTIVATIONS, Network, OpConfig
from latency_lab.runtimes import base, worker

# ---- running ------------------------------------------------------------------------------------------------------


def run_litert(model, inputs):
    interpreter = Interpreter(model_content=model, num_threads=1)
    interpreter.allocate_tensors()
    for detail, values in zip(interpreter.get_input_details(), inputs, strict=True):
        interpreter.set_tensor(detail["index"], values)
    interpreter.invoke()
    return [interpreter.get_tensor(detail["index"]) for detail in interpreter.get_output_details()]


def session(model, **settings):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    for name, value in settings.items():
        setattr(options, name, value)
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def run_onnx(model, inputs):
    running = session(model)
    return running.run(None, {node.name: values for node, values in zip(running.get_inputs(), inputs, strict=True)})


def run_lone_onnx(op, inputs):
    """A lone operation is built channels first, and the channels of a tensor from the context are equal."""
    model = runtimes.get("onnxruntime").build(Network.of(op))
    running = session(model)
    fed = {}
    for node, values in zip(running.get_inputs(), inputs, strict=True):
        if values.ndim == 4 and op.kind != "transpose":
            values = values.transpose(0, 3, 1, 2)[:, : node.shape[1]]
        fed[node.name] = np.ascontiguousarray(values)
    (output,) = running.run(None, fed)
    return output.transpose(0, 2, 3, 1) if output.ndim == 4 and op.kind != "transpose" else output


def made_up(shape, seed, same_channels=False):
    values = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    return np.abs(np.repeat(values[..., :1], shape[-1], axis=-1)) if same_channels else values


def inputs_of(op):
    shapes = base.tensor_shapes(Network.of(op)).inputs
    whole = op.kind in {"batch_norm", "flatten"}
    if op.activation in {"log", "sqrt", "rsqrt"}:
        return [np.abs(made_up(s, k)) + np.float32(0.1) for k, s in enumerate(shapes)]
    return [
        made_up(s, k, len(s) == 4 and (whole or (op.residual and k == len(shapes) - 1))) for k, s in enumerate(shapes)
    ]


# ---- what each operation means ------------------------------------------------------------------------------------


def activate(x, op):
    name = op.activation
    return {
        None: lambda: x,
        "relu": lambda: np.maximum(x, 0),
        "relu6": lambda: np.clip(x, 0, 6),
        "sigmoid": lambda: 1 / (1 + np.exp(-x)),
        "hard_sigmoid": lambda: np.clip(x + 3, 0, 6) / 6,
        "tanh": lambda: np.tanh(x),
        "hard_swish": lambda: x * np.clip(x + 3, 0, 6) / 6,
        "silu": lambda: x / (1 + np.exp(-x)),
        "gelu": lambda: x / 2 * (1 + np.vectorize(math.erf)(x / math.sqrt(2))),
        "elu": lambda: np.where(x > 0, x, np.exp(np.minimum(x, 0)) - 1),
        "leaky_relu": lambda: np.where(x > 0, x, 0.2 * x),
        "exponential": lambda: np.exp(x),
        "prelu": lambda: np.where(x > 0, x, base.slopes(op, 0) * x),
        "selu": lambda: 1.0507009873554805 * np.where(x > 0, x, 1.6732632423543772 * np.expm1(np.minimum(x, 0))),
        "softplus": lambda: np.log1p(np.exp(x)),
        "log": lambda: np.log(x),
        "sqrt": lambda: np.sqrt(x),
        "rsqrt": lambda: 1 / np.sqrt(x),
        "square": lambda: np.square(x),
        "abs": lambda: np.abs(x),
        "negative": lambda: -x,
        "erf": lambda: np.vectorize(math.erf)(x),
    }[name]()


def windows(x, op, fill):
    """(rows, columns, batch, output height, output width, channels): what each place of the window sees."""
    x = np.pad(x, ((0, 0), *op.pads, (0, 0)), constant_values=fill)
    ends = [n * s for n, s in zip((op.output_height, op.output_width), op.strides, strict=True)]
    starts = [range(0, n * d, d) for n, d in zip(op.kernel_size, op.dilation, strict=True)]
    return np.array(
        [[x[:, i : i + ends[0] : op.strides[0], j : j + ends[1] : op.strides[1]] for j in starts[1]] for i in starts[0]]
    )


def conv2d(op, x):
    seen, kernel = windows(x, op, 0), base.kernel(op, 0)
    parts = zip(np.split(seen, op.groups, -1), np.split(kernel, op.groups), strict=True)
    return np.concatenate([np.einsum("ijbhwc,oijc->bhwo", s, k) for s, k in parts], -1) + base.bias(op, 0)


def depthwise_conv2d(op, x):
    seen = np.repeat(windows(x, op, 0), op.out_channels // op.in_channels, axis=-1)
    return np.einsum("ijbhwc,ijc->bhwc", seen, base.kernel(op, 0)) + base.bias(op, 0)


MEANING = {
    "conv2d": conv2d,
    "depthwise_conv2d": depthwise_conv2d,
    "dense": lambda op, x: x @ base.kernel(op, 0).T + base.bias(op, 0),
    "add": lambda op, *xs: sum(xs),
    "multiply": lambda op, *xs: math.prod(xs),
    "concatenate": lambda op, *xs: np.concatenate(xs, -1),
    "batch_norm": lambda op, x: x * base.scale(op, 0) + base.bias(op, 0),
    "max_pool": lambda op, x: np.nanmax(windows(x, op, np.nan), axis=(0, 1)),
    "avg_pool": lambda op, x: np.nanmean(windows(x, op, 0 if isinstance(op.padding, tuple) else np.nan), axis=(0, 1)),
    "global_avg_pool": lambda op, x: x.mean((1, 2)),
    "global_max_pool": lambda op, x: x.max((1, 2)),
    "activation": lambda op, x: x,
    "softmax": lambda op, x: np.exp(x) / np.exp(x).sum(-1, keepdims=True),
    "pad": lambda op, x: np.pad(x, ((0, 0), *op.pads, (0, 0))),
    "flatten": lambda op, x: x.reshape(op.batch, -1),
    "transpose": lambda op, x: x.transpose(0, 3, 1, 2),
}


def meaning(op, inputs):
    inputs = [x.astype(np.float64) for x in inputs]
    residual = inputs.pop() if op.residual else 0
    return activate(MEANING[op.kind](op, *inputs) + residual, op)


# ---- operations -------------------------------------------------------------------------------------------------


def op(kind, height=7, width=5, in_channels=8, out_channels=None, **more):
    return OpConfig(
        kind, height=height, width=width, in_channels=in_channels, out_channels=out_channels or in_channels, **more
    )


def dense(in_channels, out_channels, **more):
    return op("dense", 1, 1, in_channels, out_channels, **more)


K3, S2 = {"kernel_size": (3, 3)}, {"strides": (2, 2)}
OPS = [
    op("conv2d", out_channels=12),
    op("conv2d", out_channels=12, use_bias=False, batch=2),
    op("conv2d", 1, 1, 16, 4, activation="relu"),
    op("conv2d", 9, 8, 16, 16, **K3, **S2, activation="relu6"),
    op("conv2d", 7, 7, 3, 17, kernel_size=(5, 3), strides=(2, 1), padding="valid"),
    op("conv2d", 9, 8, 16, 16, **K3, **S2, padding=((0, 1), (2, 1)), activation="relu"),
    op("conv2d", 9, 8, 16, 16, **K3, padding=((0, 0), (0, 0))),
    op("conv2d", 9, 8, 16, 16, **K3, **S2, padding=((1, 1), (0, 1))),
    op("conv2d", 9, 8, 8, 16, **K3, dilation=(2, 2)),
    op("conv2d", 9, 8, 8, 12, **K3, groups=4, activation="relu"),
    op("conv2d", 7, 5, 15, 16, **K3, activation="silu"),
    op("conv2d", 7, 5, 16, 16, **K3, residual=True, activation="relu"),
    op("conv2d", 7, 5, 16, 33, residual=True),
    op("conv2d", 7, 5, 16, 16, residual=True, activation="relu6"),
    op("conv2d", 7, 5, 16, 16, residual=True, activation="hard_swish"),
    op("depthwise_conv2d", 9, 8, 16, **K3, activation="relu6"),
    op("depthwise_conv2d", 9, 8, 17, **K3, **S2),
    op("depthwise_conv2d", 9, 8, 8, 16, **K3, **S2, activation="hard_sigmoid"),
    op("depthwise_conv2d", 9, 8, 16, kernel_size=(5, 5), **S2, padding=((2, 2), (1, 2)), use_bias=False),
    op("depthwise_conv2d", 9, 8, 16, **K3, residual=True),
    dense(40, 10, activation="relu"),
    dense(40, 10, use_bias=False, batch=3, activation="sigmoid"),
    op("add", operands=2, activation="relu"),
    op("add", 1, 1, 12, operands=3, activation="relu6"),
    op("multiply", operands=2),
    op("multiply", operands=2, broadcast="channels", batch=2),
    op("concatenate", in_channels=11, operands=2, activation="relu"),
    op("batch_norm", activation="relu"),
    op("batch_norm", 1, 1, 12),
    op("max_pool", **K3, **S2),
    op("max_pool", 8, 8, 16, kernel_size=(2, 2), **S2, padding="valid"),
    op("avg_pool", **K3, **S2, activation="relu"),
    op("avg_pool", 8, 8, 16, kernel_size=(2, 2), **S2, padding="valid"),
    op("global_avg_pool", in_channels=16),
    op("global_max_pool", batch=2),
    op("softmax"),
    op("softmax", 1, 1, 12),
    op("pad", padding=((0, 1), (2, 3))),
    op("flatten", out_channels=7 * 5 * 8),
    op("flatten", 1, 1, 16),
    op("transpose", batch=2),
    *(op("activation", activation=name) for name in sorted(ACTIVATIONS)),
]
ONNX_ALONE = [
    op("max_pool", **K3, padding=((0, 1), (1, 2)), **S2),
    op("avg_pool", **K3, padding=((0, 1), (1, 2)), **S2),
    op("max_pool", 9, 8, 16, **K3, dilation=(2, 2)),
    op("max_pool", 9, 8, **K3, dilation=(3, 2), padding="valid"),
]


def key(value):
    return value.key.replace(" ", "_")


@pytest.mark.parametrize("found", [found for found in OPS if found.activation != "erf"], ids=key)
def test_litert_computes_what_the_operation_says(found):
    inputs = inputs_of(found)
    (output,) = run_litert(runtimes.get("litert").build(Network.of(found)), inputs)
    np.testing.assert_allclose(output, meaning(found, inputs), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("found", OPS + ONNX_ALONE, ids=key)
def test_onnxruntime_computes_what_the_operation_says(found):
    inputs = inputs_of(found)
    np.testing.assert_allclose(run_lone_onnx(found, inputs), meaning(found, inputs), rtol=1e-4, atol=1e-5)


# ---- form ---------------------------------------------------------------------------------------------------------


def litert_codes(file):
    model = schema.ModelT.InitFromPackedBuf(file, 0)
    names = {value: name for name, value in vars(schema.BuiltinOperator).items()}
    return [names[model.operatorCodes[operator.opcodeIndex].builtinCode] for operator in model.subgraphs[0].operators]


@pytest.mark.parametrize(
    ("found", "codes"),
    [
        (op("conv2d", activation="relu6"), ["CONV_2D"]),
        (op("conv2d", activation="tanh"), ["CONV_2D", "TANH"]),
        (op("conv2d", activation="relu", residual=True), ["CONV_2D", "ADD"]),
        (op("conv2d", **K3, padding=((0, 1), (0, 1))), ["PAD", "CONV_2D"]),
        (op("conv2d", **K3, padding=((0, 0), (0, 0))), ["CONV_2D"]),
        (op("conv2d", **K3, padding=((1, 1), (1, 1))), ["CONV_2D"]),
        (op("depthwise_conv2d", 8, 8, **K3, **S2, padding=((0, 1), (0, 1))), ["DEPTHWISE_CONV_2D"]),
        (op("batch_norm", activation="relu"), ["MUL", "ADD"]),
        (op("concatenate", operands=2, activation="relu"), ["CONCATENATION", "RELU"]),
        (dense(4, 4, activation="relu"), ["FULLY_CONNECTED"]),
        (op("activation", activation="silu"), ["LOGISTIC", "MUL"]),
    ],
    ids=lambda value: value.key if isinstance(value, OpConfig) else "",
)
def test_litert_fuses_what_the_converter_fuses(found, codes):
    assert litert_codes(runtimes.get("litert").build(Network.of(found))) == codes


def kernel_events(file, folder):
    running = session(file, enable_profiling=True, profile_file_prefix=str(folder / "profile"))
    running.run(None, {node.name: np.ones(node.shape, np.float32) for node in running.get_inputs()})
    events = json.loads(Path(running.end_profiling()).read_text())
    return [event for event in events if event["name"].endswith("_kernel_time")]


def test_every_onnx_node_is_named_after_its_operation_or_the_context():
    for found in OPS:
        nodes = onnx.load_from_string(runtimes.get("onnxruntime").build(Network.of(found))).graph.node
        assert all(node.name.startswith(("op0", "context")) for node in nodes), found.key
        assert any(node.name.startswith("op0") for node in nodes), found.key


@pytest.mark.parametrize(
    ("found", "kernels"),
    [
        (op("conv2d", 14, 14, 32, 32, activation="relu"), 1),
        (op("conv2d", 14, 14, 32, 32, residual=True, activation="relu"), 1),
        (op("conv2d", 14, 14, 32, 32, residual=True), 1),
        (op("depthwise_conv2d", 14, 14, 32, **K3, activation="relu6"), 1),
        (op("conv2d", 14, 14, 32, 32, activation="elu"), 2),
        (op("flatten", 14, 14, 32, 14 * 14 * 32), None),
        (op("batch_norm", 14, 14, 32), 2),
        (op("max_pool", 14, 14, 32, **K3), 1),
    ],
    ids=lambda value: value.key if isinstance(value, OpConfig) else "",
)
def test_the_profile_of_a_lone_operation_tells_its_kernels_from_the_rest(found, kernels, tmp_path):
    events = kernel_events(runtimes.get("onnxruntime").build(Network.of(found)), tmp_path)
    own = [e for e in events if "Reorder" not in e["args"]["op_name"] and "context" not in e["name"]]
    assert own
    assert all("op0" in event["name"] for event in own)
    if kernels is not None:
        assert len(own) == kernels


# ---- networks -----------------------------------------------------------------------------------------------------


def conv(in_channels, out_channels, height=7, width=5, **more):
    return op("conv2d", height, width, in_channels, out_channels, **more)


SQUEEZE_EXCITE = [
    (op("global_avg_pool", 7, 5, 16), (3,)),
    (conv(16, 4, 1, 1, activation="relu"), (4,)),
    (conv(4, 16, 1, 1, activation="hard_sigmoid"), (5,)),
]
DENSE_EXCITE = [
    (op("global_avg_pool", 7, 5, 16), (3,)),
    (dense(16, 4, activation="relu"), (4,)),
    (dense(4, 16, activation="sigmoid"), (5,)),
]


def small_network(excite):
    return Network(
        (
            (conv(3, 16, 14, 10, **K3, **S2, activation="relu6"), (-1,)),
            (op("depthwise_conv2d", 7, 5, 16, **K3), (0,)),
            (op("batch_norm", 7, 5, 16, activation="relu"), (1,)),
            (op("add", 7, 5, 16, operands=2, activation="relu"), (2, 0)),
            *excite,
            (op("multiply", 7, 5, 16, operands=2, broadcast="channels"), (3, 6)),
            (conv(16, 9, residual=True, activation="relu"), (7, -2)),
            (op("concatenate", 7, 5, 25, operands=2), (8, 7)),
            (op("max_pool", 7, 5, 25, **K3, **S2), (9,)),
            (op("flatten", 4, 3, 25, 300), (10,)),
            (dense(300, 10), (11,)),
            (op("softmax", 1, 1, 10), (12,)),
            (op("activation", 4, 3, 25, activation="tanh"), (10,)),
        ),
        "small",
    )


@pytest.mark.parametrize("excite", [SQUEEZE_EXCITE, DENSE_EXCITE], ids=["conv", "dense"])
def test_both_runtimes_answer_alike_on_a_network(excite):
    network = small_network(excite)
    shapes = base.tensor_shapes(network)
    inputs = [made_up(shape, seed) for seed, shape in enumerate(shapes.inputs)]
    litert = run_litert(runtimes.get("litert").build(network), inputs)
    onnx_ = run_onnx(runtimes.get("onnxruntime").build(network), inputs)
    assert [output.shape for output in litert] == [(1, 10), (1, 4, 3, 25)]
    for one, other in zip(litert, onnx_, strict=True):
        assert one.std() > 1e-3
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_both_runtimes_answer_alike_on_a_network_of_three_axes():
    size = {"height": 6, "width": 5, "depth": 4}
    network = Network(
        (
            (op("conv3d", **size, in_channels=3, out_channels=8, kernel_depth=3, **K3, activation="relu"), (-1,)),
            (op("global_avg_pool", **size), (0,)),
            (dense(8, 8, activation="sigmoid"), (1,)),
            (op("multiply", **size, operands=2, broadcast="channels"), (0, 2)),
            (op("flatten", **size, out_channels=4 * 6 * 5 * 8), (3,)),
            (dense(4 * 6 * 5 * 8, 10), (4,)),
        ),
        "volume",
    )
    x = made_up((1, 4, 6, 5, 3), 0)
    (one,), (other,) = (
        run_litert(runtimes.get("litert").build(network), [x]),
        run_onnx(runtimes.get("onnxruntime").build(network), [x]),
    )
    assert one.std() > 1e-3
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_failed_blocks_leave_no_profile_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(worker.tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(worker.KernelOverhead, "measured", lambda threads: worker.KernelOverhead())
    (tmp_path / "good.onnx").write_bytes(runtimes.get("onnxruntime").build(Network.of(op("conv2d"))))
    (tmp_path / "bad.onnx").write_bytes(b"no model")
    with pytest.raises(Exception, match="bad.onnx"):
        worker.OnnxRuntimeModel(str(tmp_path / "bad.onnx"), 1, True)
    model = worker.OnnxRuntimeModel(str(tmp_path / "good.onnx"), 1, True)
    model.run()
    assert len(list(tmp_path.glob("latency-lab-*"))) == 1
    model.close()  # as after a run that failed: nothing read the profile
    monkeypatch.setattr(worker, "onnx_run", lambda *_: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        worker.OnnxRuntimeModel(str(tmp_path / "good.onnx"), 1, True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.onnx", "good.onnx"]


def test_the_transpose_of_an_input_can_be_a_node():
    network = Network(((op("transpose"), (-1,)), (conv(8, 4), (-1,)), (op("transpose", in_channels=4), (1,))))
    x = made_up((1, 7, 5, 8), 0)
    litert = run_litert(runtimes.get("litert").build(network), [x])
    onnx_ = run_onnx(runtimes.get("onnxruntime").build(network), [x])
    np.testing.assert_array_equal(litert[0], x.transpose(0, 3, 1, 2))
    for one, other in zip(litert, onnx_, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_the_values_of_a_deep_network_stay_usable():
    deep = [(conv(16, 16, activation="relu"), (i - 1,)) for i in range(60)]
    (output,) = run_litert(runtimes.get("litert").build(Network(tuple(deep))), [made_up((1, 7, 5, 16), 0)])
    assert 1e-3 < output.max() < 1e3
