import numpy as np
import pytest

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
def test_other_types_than_float32_are_refused_by_name(name):
    op = OpConfig("dense", in_channels=4, out_channels=4, dtype="int8")
    assert runtimes.get(name).reason_unsupported(op) == "only float32 models are built, this is int8."
    with pytest.raises(UnsupportedOpError, match=f"{name} cannot build 'dense 1x1 bias int8 4->4': only float32"):
        runtimes.get(name).build(Network.of(op))


def test_litert_has_no_pools_with_given_pads():
    op = OpConfig("max_pool", 1, 8, 8, 4, 4, (3, 3), padding=((0, 1), (0, 1)))
    assert "not by given counts" in runtimes.get("litert").reason_unsupported(op)
    assert runtimes.get("onnxruntime").reason_unsupported(op) is None
