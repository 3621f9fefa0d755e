"""The host half of TensorFlow without TensorFlow: names, devices, and what is refused."""

import pytest

from latency_lab import runtimes
from latency_lab.errors import UnsupportedOpError, UsageError
from latency_lab.ops import Network, OpConfig
from latency_lab.profiles import fuse
from latency_lab.runtimes import worker


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("tensorflow", "tensorflow"),
        ("tensorflow:CPU", "tensorflow:CPU:0"),
        ("tensorflow:/GPU:1", "tensorflow:GPU:1"),
        ("tensorflow:/device:gpu:0", "tensorflow:GPU:0"),
        ("tensorflow-xla:TPU", "tensorflow-xla:TPU:0"),
    ],
)
def test_a_device_is_part_of_the_name_and_both_halves_read_it_alike(given, name):
    runtime = runtimes.get(given)
    assert runtime.name == name
    assert runtimes.get(runtime.name) == runtime
    kind, _, device = given.partition(":")
    loader = worker.LOADERS[kind]
    assert (loader.on(device) if device else loader).device == (name.partition(":")[2] or "CPU:0")


@pytest.mark.parametrize("given", ["tensorflow:NPU", "tensorflow:GPU:x", "tensorflow-xla:0"])
def test_what_is_no_device_is_refused(given):
    with pytest.raises(UsageError, match=f"Invalid device in runtime={given}. Expected CPU, GPU or TPU"):
        runtimes.get(given)


def test_other_runtimes_take_no_device():
    with pytest.raises(UsageError, match="Received: runtime='litert:GPU:0'. Did you mean 'litert'?"):
        runtimes.get("litert:GPU:0")


def image(kind, **more):
    return OpConfig(kind, 1, 8, 8, 6, **{"out_channels": 6, **more})


@pytest.mark.parametrize(
    ("op", "reason"),
    [
        (image("conv2d", dtype="int8"), "only float32 and float16 models are built, this is int8"),
        (image("quantize"), "has no quantize"),
        (image("reorder_input"), "has no reorder_input"),
        (image("max_pool", kernel_size=(3, 3), padding=((0, 1), (0, 1))), "not by given counts"),
        (image("conv3d", padding=((1, 1), (0, 0))), "leave out its third axis"),
        (image("depthwise_conv2d", strides=(2, 1)), "whose two strides differ"),
        (image("conv2d", strides=(2, 2), dilation=(2, 2)), "strided and dilated"),
        (image("conv2d_transpose", groups=2), "grouped or dilated"),
        (image("conv2d", groups=4), "6 -> 6 channels cannot be shared out to 4 groups"),
        (image("max_pool", depth=4), "not written over three axes"),
        (image("max_pool", kernel_size=(2, 2), dilation=(2, 2)), "that are dilated are not built"),
    ],
)
def test_what_tensorflow_cannot_do_is_refused_with_the_reason(op, reason):
    assert reason in runtimes.get("tensorflow").reason_unsupported(op)
    with pytest.raises(UnsupportedOpError, match="tensorflow cannot build "):
        runtimes.get("tensorflow").build(Network.of(op))


def test_freezing_folds_batch_norms_and_xla_merges_more():
    plain, xla = runtimes.get("tensorflow"), runtimes.get("tensorflow-xla")
    assert plain.conversion_fusions == xla.conversion_fusions
    block = Network(
        (
            (image("depthwise_conv2d", use_bias=False), (-1,)),
            (image("batch_norm"), (0,)),
            (image("activation", activation="silu"), (1,)),
        )
    )
    rules = {runtime: runtime.conversion_fusions | runtime.expected_fusions for runtime in (plain, xla)}
    assert [kernel.op.kind for kernel in fuse(block, rules[plain])] == ["depthwise_conv2d", "activation"]
    (kernel,) = fuse(block, rules[xla])
    assert (kernel.op.use_bias, kernel.op.activation) == (True, "silu")
