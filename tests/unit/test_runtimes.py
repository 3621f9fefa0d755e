from dataclasses import replace

import numpy as np
import onnx
import pytest
from ai_edge_litert import schema_py_generated as schema

from latency_lab import runtimes
from latency_lab.errors import UnsupportedOpError, UsageError
from latency_lab.ops import Network, OpConfig
from latency_lab.runtimes import base

CONV = OpConfig("conv2d", height=8, width=8, in_channels=4, out_channels=6, kernel_size=(3, 3))
POOL = OpConfig("global_avg_pool", height=8, width=8, in_channels=6, out_channels=6)
DENSE = OpConfig("dense", in_channels=6, out_channels=3)
SCALE = OpConfig("multiply", height=8, width=8, in_channels=6, out_channels=6, operands=2, broadcast="channels")


def test_each_runtime_is_found_by_name():
    for name in runtimes.NAMES:
        assert runtimes.get(name).name == name


def test_an_unknown_runtime_is_refused_with_the_near_name():
    with pytest.raises(UsageError, match="Expected one of .* Received: runtime='litter'. Did you mean 'litert'?"):
        runtimes.get("litter")


def test_a_pool_before_a_dense_gives_no_image():
    shapes = base.tensor_shapes(Network(((CONV, (-1,)), (POOL, (0,)), (DENSE, (1,)))))
    assert shapes.inputs == ((1, 8, 8, 4),)
    assert shapes.outputs == ((1, 8, 8, 6), (1, 6), (1, 3))


def test_a_pool_before_a_convolution_gives_an_image_through_activations():
    conv = OpConfig("conv2d", in_channels=6, out_channels=6)
    sigmoid = OpConfig("activation", in_channels=6, out_channels=6, activation="sigmoid")
    network = Network(((CONV, (-1,)), (POOL, (0,)), (sigmoid, (1,)), (conv, (2,)), (SCALE, (0, 3))))
    assert base.tensor_shapes(network).outputs[1:4] == ((1, 1, 1, 6),) * 3


def test_a_multiply_takes_channels_without_positions():
    network = Network(
        ((CONV, (-1,)), (POOL, (0,)), (OpConfig("dense", in_channels=6, out_channels=6), (1,)), (SCALE, (0, 2)))
    )
    assert base.tensor_shapes(network).outputs == ((1, 8, 8, 6), (1, 6), (1, 6), (1, 8, 8, 6))


def test_a_concatenation_shares_out_the_channels_that_nothing_makes():
    lone = OpConfig("concatenate", height=4, width=4, in_channels=11, out_channels=11, operands=3)
    assert [shape[-1] for shape in base.tensor_shapes(Network.of(lone)).inputs] == [4, 4, 3]
    joined = OpConfig("concatenate", height=8, width=8, in_channels=10, out_channels=10, operands=2)
    assert base.tensor_shapes(Network(((CONV, (-1,)), (joined, (0, -2))))).inputs[1] == (1, 8, 8, 4)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (Network(((CONV, (-1, -2)),)), "takes 1 tensors. Received: 2"),
        (Network(((CONV, (0,)),)), "not in topological order"),
        (Network(((CONV, (-1,)), (CONV, (0,)))), r"reads a tensor of shape \(1, 8, 8, 4\). Received: \(1, 8, 8, 6\)"),
        (Network(((CONV, (-1,)), (DENSE, (0,)))), r"reads a tensor of shape \(1, 6\)"),
        (Network(((CONV, (-2,)),)), r"without a gap. Received: \[-2\]"),
    ],
)
def test_nodes_that_do_not_fit_are_refused(network, message):
    with pytest.raises(UsageError, match=message):
        base.tensor_shapes(network)


def test_kernels_are_the_same_again_and_differ_between_nodes():
    assert np.array_equal(base.kernel(CONV, 3), base.kernel(CONV, 3))
    assert not np.array_equal(base.kernel(CONV, 3), base.kernel(CONV, 4))


@pytest.mark.parametrize(
    ("op", "shape", "fan_in"),
    [
        (OpConfig("conv2d", 1, 8, 8, 64, 96, (3, 3), groups=2), (96, 3, 3, 32), 288),
        (OpConfig("depthwise_conv2d", 1, 8, 8, 512, 1024, (3, 3), use_bias=False), (3, 3, 1024), 9),
        (OpConfig("dense", in_channels=500, out_channels=300), (300, 500), 500),
    ],
)
def test_kernels_keep_the_scale_of_what_they_read(op, shape, fan_in):
    kernel = base.kernel(op, 1)
    assert kernel.shape == shape
    assert kernel.dtype == np.float32
    assert kernel.std() == pytest.approx(fan_in**-0.5, rel=0.05)
    assert np.abs(kernel).min() > 1e-6


def test_a_bias_that_is_not_there_is_zero():
    assert base.bias(CONV, 0).std() > 0
    assert not base.bias(OpConfig("dense", in_channels=2, out_channels=2, use_bias=False), 0).any()


@pytest.mark.parametrize("name", runtimes.NAMES)
def test_other_types_are_refused_by_name(name):
    op = OpConfig("dense", in_channels=4, out_channels=4, dtype="bfloat16")
    assert "bfloat16" in runtimes.get(name).reason_unsupported(op)
    with pytest.raises(UnsupportedOpError, match=f"{name} cannot build 'dense 1x1 bias bfloat16 4->4': "):
        runtimes.get(name).build(Network.of(op))


def image(kind, **more):
    return OpConfig(kind, 1, 8, 8, 6, **{"out_channels": 6, **more})


@pytest.mark.parametrize(
    ("op", "reason"),
    [
        (image("conv2d", dtype="float16"), "computes float16 weights in float32"),
        (image("quantize"), "is of dtype 'int8', this is float32"),
        (image("reorder_input"), "no operator that reorders"),
        (image("reorder_output"), "no operator that reorders"),
        (image("activation", activation="erf"), "no operator for erf"),
        (image("conv2d", activation="erf"), "no operator for erf"),
        (image("max_pool", depth=4), "not written over three axes"),
        (image("max_pool", kernel_size=(2, 2), dilation=(2, 2)), "no max_pool that is dilated"),
        (image("avg_pool", kernel_size=(2, 2), dilation=(1, 2)), "no avg_pool that is dilated"),
        (image("conv3d", padding=((1, 1), (0, 0))), "not by given counts"),
        (image("conv2d_transpose", dilation=(2, 2)), "no transposed convolution that is dilated"),
        (image("conv2d_transpose", groups=2), "no conv2d_transpose of groups"),
        (image("conv3d", groups=2), "no conv3d of groups"),
        (image("channel_shuffle", groups=4), "6 -> 6 channels cannot be shared out to 4 groups"),
        (image("conv2d", groups=4), "6 -> 6 channels cannot be shared out to 4 groups"),
        (image("conv2d", groups=3, out_channels=5), "6 -> 5 channels cannot be shared out to 3 groups"),
        (image("divide", operands=2, dtype="int8"), "refuses to run where the divisor has a 0"),
    ],
)
def test_what_tflite_has_no_operator_for_is_refused_with_the_reason(op, reason):
    assert reason in runtimes.get("litert").reason_unsupported(op)
    with pytest.raises(UnsupportedOpError, match="litert cannot build "):
        runtimes.get("litert").build(Network.of(op))


@pytest.mark.parametrize(
    ("op", "inputs", "output"),
    [
        (image("conv2d_transpose", out_channels=3, strides=(2, 2)), [(1, 8, 8, 6)], (1, 16, 16, 3)),
        (
            image("conv3d", out_channels=3, depth=5, kernel_depth=2, stride_depth=2, padding="valid"),
            [(1, 5, 8, 8, 6)],
            (1, 2, 8, 8, 3),
        ),
        (image("activation", activation="relu", depth=5), [(1, 5, 8, 8, 6)], (1, 5, 8, 8, 6)),
        (image("global_avg_pool", depth=5), [(1, 5, 8, 8, 6)], (1, 6)),
        (image("dense", out_channels=3), [(1, 8, 8, 6)], (1, 8, 8, 3)),
        (image("channel_mean", out_channels=1), [(1, 8, 8, 6)], (1, 8, 8, 1)),
        (image("resize_nearest", output_size=(9, 12)), [(1, 8, 8, 6)], (1, 9, 12, 6)),
        (image("slice", output_size=(5, 8), out_channels=2), [(1, 8, 8, 6)], (1, 5, 8, 2)),
        (image("reshape", output_size=(4, 16)), [(1, 8, 8, 6)], (1, 4, 16, 6)),
        (image("reshape", output_size=(1, 1), out_channels=384), [(1, 8, 8, 6)], (1, 384)),
        (image("subtract"), [(1, 8, 8, 6)], (1, 8, 8, 6)),
        (image("subtract", operands=2, broadcast="channels"), [(1, 8, 8, 6), (1, 1, 1, 6)], (1, 8, 8, 6)),
        (image("subtract", operands=2, broadcast="positions"), [(1, 8, 8, 6), (1, 8, 8, 1)], (1, 8, 8, 6)),
        (image("subtract", operands=2, broadcast="scalar"), [(1, 8, 8, 6), (1, 1, 1, 1)], (1, 8, 8, 6)),
        (OpConfig("multiply", in_channels=6, out_channels=6, broadcast="channels"), [(1, 6)], (1, 6)),
    ],
)
def test_shapes_of_lone_operations(op, inputs, output):
    shapes = base.tensor_shapes(Network.of(op))
    assert shapes.inputs == tuple(inputs)
    assert shapes.outputs == (output,)


def test_a_reshape_before_a_convolution_makes_the_image():
    reshape, conv = (OpConfig(kind, in_channels=6, out_channels=6) for kind in ("reshape", "conv2d"))
    network = Network(((CONV, (-1,)), (POOL, (0,)), (reshape, (1,)), (conv, (2,)), (SCALE, (0, 3))))
    assert base.tensor_shapes(network).outputs[1:4] == ((1, 6), (1, 1, 1, 6), (1, 1, 1, 6))


@pytest.mark.parametrize(
    ("broadcast", "shape"), [("", (8, 8, 6)), ("channels", (6,)), ("positions", (8, 8, 1)), ("scalar", ())]
)
def test_a_constant_operand_has_the_shape_of_its_broadcast(broadcast, shape):
    values = base.operand(image("divide", broadcast=broadcast), 0)
    assert values.shape == shape
    assert values.min() > 0


def test_only_binary_operations_have_a_constant_operand():
    with pytest.raises(UsageError, match="have a second operand. Received: 'conv2d"):
        base.operand(CONV, 0)


@pytest.mark.parametrize("kind", ["conv2d", "conv2d_transpose", "conv3d", "depthwise_conv2d", "dense"])
def test_the_kernel_in_8_bits_is_that_in_floats(kind):
    op = image(kind, kernel_size=(3, 3) if kind != "dense" else (1, 1), kernel_depth=2 if kind == "conv3d" else 1)
    integers, step = base.int8_kernel(op, 3)
    assert integers.dtype == np.int8
    np.testing.assert_allclose(integers * step, base.kernel(op, 3), atol=0.51 * step)


def test_litert_has_no_pools_with_given_pads():
    op = OpConfig("max_pool", 1, 8, 8, 4, 4, (3, 3), padding=((0, 1), (0, 1)))
    assert "not by given counts" in runtimes.get("litert").reason_unsupported(op)
    assert runtimes.get("onnxruntime").reason_unsupported(op) is None


@pytest.mark.parametrize(
    ("op", "reason"),
    [
        (OpConfig("dense", dtype="float16"), "computes float16 models in float32, between casts."),
        (OpConfig("quantize"), "a quantize has the dtype of its 8-bit side, int8; this is float32."),
        (OpConfig("reorder_input", in_channels=6, out_channels=6), "only at multiples of 4 channels."),
        (OpConfig("reorder_input", dtype="int8"), "8-bit operators have no blocked layout"),
        (image("max_pool", depth=4), "not written over three axes"),
        (image("avg_pool", kernel_size=(2, 2), dilation=(2, 2)), "no average pooling that is dilated"),
        (OpConfig("group_norm", in_channels=6, out_channels=6, groups=4), "cannot be shared out to 4 groups."),
    ],
    ids=lambda value: value.key if isinstance(value, OpConfig) else "",
)
def test_onnxruntime_says_what_it_cannot_build(op, reason):
    assert reason in runtimes.get("onnxruntime").reason_unsupported(op)


def test_onnxruntime_merges_other_operations_in_8_bit():
    runtime = runtimes.get("onnxruntime")
    assert runtime.fusions("float32") == (runtime.conversion_fusions, runtime.expected_fusions)
    before, on_loading = runtime.fusions("int8")
    assert {"add+relu", "conv2d+relu6", "pad+conv2d"} <= before
    assert "conv2d+add" not in before | on_loading


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("onnxruntime:cuda", "onnxruntime:CUDAExecutionProvider"),
        ("onnxruntime:WebGpuExecutionProvider", "onnxruntime:WebGpuExecutionProvider"),
        ("onnxruntime:openvino,device_type=GPU", "onnxruntime:OpenVINOExecutionProvider,device_type=GPU"),
        ("onnxruntime:OwnExecutionProvider", "onnxruntime:OwnExecutionProvider"),
        ("onnxruntime:cpu", "onnxruntime"),
        ("litert:GPU,enforce_f32=1", "litert:gpu,enforce_f32=1"),
        ("litert:npu", "litert:npu"),
        ("litert:edgetpu", "litert:edgetpu"),
        ("litert:/opt/Delegate.so", "litert:/opt/Delegate.so"),
        ("litert:cpu", "litert"),
    ],
)
def test_a_runtime_s_device_is_part_of_its_name(given, name):
    runtime = runtimes.get(given)
    assert runtime.name == name
    assert runtimes.get(name) == runtime


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("onnxruntime:cudaa", r"Expected cpu, .*openvino.* Received: 'cudaa'. Did you mean 'onnxruntime:cuda'\?"),
        ("onnxruntime:cuda,fast", "runtime=onnxruntime:cuda,fast. Invalid option .*name=value. Received: 'fast'"),
        ("litert:gpus", r"cpu, gpu, npu, edgetpu or .*Received: runtime='litert:gpus'. Did you mean 'litert:gpu'"),
        ("litert:gpu,", "Invalid option"),
        ("litert:tpu9", "Received: runtime='litert:tpu9'"),
    ],
)
def test_what_is_no_device_of_a_runtime_is_refused(given, message):
    with pytest.raises(UsageError, match=message):
        runtimes.get(given)


def test_other_providers_time_the_call_and_take_no_8_bit_operations():
    cpu, cuda = runtimes.get("onnxruntime"), runtimes.get("onnxruntime:cuda")
    assert (cpu.times_kernels, cuda.times_kernels) == (True, False)
    assert cuda.reason_unsupported(CONV) is None
    assert "built for the CPU" in cuda.reason_unsupported(image("conv2d", dtype="int8"))
    reorder = OpConfig("reorder_input", height=8, width=8, in_channels=8, out_channels=8)
    assert cpu.reason_unsupported(reorder) is None
    assert "only the CPU" in cuda.reason_unsupported(reorder)


def shapes_of_file(data):
    """Shapes of the inputs and outputs of an .onnx file, and the types of its nodes."""
    graph = onnx.load_from_string(data).graph
    inputs, outputs = (
        [tuple(d.dim_value for d in value.type.tensor_type.shape.dim) for value in values]
        for values in (graph.input, graph.output)
    )
    return inputs, outputs, [node.op_type for node in graph.node]


def test_a_lone_operation_on_openvino_comes_and_goes_channels_last_as_in_a_network():
    openvino, cuda = runtimes.get("onnxruntime:openvino"), runtimes.get("onnxruntime:cuda")
    residual = image("conv2d", kernel_size=(1, 1), residual=True)
    inputs, outputs, kinds = shapes_of_file(openvino.build(Network.of(residual)))
    assert (inputs, outputs) == ([(1, 8, 8, 6)] * 2, [(1, 8, 8, 6)])
    assert kinds.count("Transpose") == 3
    inputs, outputs, kinds = shapes_of_file(cuda.build(Network.of(residual)))
    assert (inputs, outputs) == ([(1, 6, 8, 8)] * 2, [(1, 6, 8, 8)])
    assert "Transpose" not in kinds
    inputs, _, kinds = shapes_of_file(openvino.build(Network.of(image("add", operands=2))))
    assert (inputs, kinds) == ([(1, 8, 8, 6)] * 2, ["Add"])
    two = Network(((residual, (-1, -2)), (residual, (0, -2))))
    assert openvino.build(two) == cuda.build(two)


@pytest.mark.parametrize("op", [POOL, image("max_pool"), image("pad", padding=((1, 1), (1, 1)))])
def test_what_takes_the_layout_of_its_input_stands_behind_a_convolution_on_openvino(op):
    openvino, cuda = runtimes.get("onnxruntime:openvino"), runtimes.get("onnxruntime:cuda")
    (context,) = openvino.contexts_of(op)
    assert (context.kind, context.in_channels, context.out_channels) == ("conv2d", 1, op.in_channels)
    inputs, _, kinds = shapes_of_file(openvino.build(Network.of(op)))
    assert inputs == [(1, 8, 8, 1)]
    assert kinds.count("Conv") == 1
    assert cuda.contexts_of(op) == ()
    assert openvino.contexts_of(CONV) == ()


def test_openvino_merges_by_rules_of_its_own():
    plain, cuda = runtimes.get("onnxruntime"), runtimes.get("onnxruntime:cuda")
    on_gpu = runtimes.get("onnxruntime:openvino,device_type=GPU")
    before, on_loading = runtimes.get("onnxruntime:openvino").fusions("float32")
    assert {"conv2d+hard_swish", "depthwise_conv2d+silu", "multiply+relu", "transpose+conv2d"} <= on_loading
    assert base.INPUT_TRANSPOSE not in before
    assert "conv2d+add" not in on_loading
    assert runtimes.get("onnxruntime:openvino,device_type=CPU").fusions("float32") == (before, on_loading)
    assert on_gpu.fusions("float32") == cuda.fusions("float32")
    assert on_gpu.contexts_of(POOL) == ()
    assert cuda.fusions("float32") == plain.fusions("float32")
    assert "conv2d+hard_swish" not in plain.fusions("float32")[1]
    assert [runtime.pays_for_calls for runtime in (plain, cuda, on_gpu)] == [False, True, True]


@pytest.mark.parametrize(("channels", "kinds"), [(3, ["MUL", "SUB", "MUL"]), (8, ["SUB"])])
def test_litert_normalises_images_in_place_as_inside_of_a_network(channels, kinds):
    litert = runtimes.get("litert")
    op = OpConfig("subtract", height=8, width=8, in_channels=channels, out_channels=channels, broadcast="channels")
    scale = OpConfig("multiply", height=8, width=8, in_channels=channels, out_channels=channels, broadcast="scalar")
    assert litert.contexts_of(op) == ((scale, scale) if len(kinds) > 1 else ())
    assert runtimes.get("litert:gpu").contexts_of(op) == ()
    assert litert.contexts_of(scale) == litert.contexts_of(replace(op, height=1, width=1)) == ()
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(litert.build(Network.of(op)), 0))
    codes = [model.operatorCodes[operator.opcodeIndex].builtinCode for operator in model.subgraphs[0].operators]
    assert codes == [getattr(schema.BuiltinOperator, kind) for kind in kinds]


@pytest.mark.parametrize(("broadcast", "kinds"), [("", []), ("scalar", ["MUL", "ADD"]), ("channels", ["MUL", "ADD"])])
def test_litert_scales_and_shifts_the_image_of_a_conv_that_says_so(broadcast, kinds):
    op = OpConfig("conv2d", height=8, width=8, in_channels=3, out_channels=8, broadcast=broadcast, dtype="int8")
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(runtimes.get("litert").build(Network.of(op)), 0))
    codes = [model.operatorCodes[operator.opcodeIndex].builtinCode for operator in model.subgraphs[0].operators]
    assert codes == [getattr(schema.BuiltinOperator, kind) for kind in [*kinds, "CONV_2D"]]
