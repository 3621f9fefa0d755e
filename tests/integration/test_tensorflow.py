import builtins
import json
from collections import Counter

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from tensorflow.python.eager import context
from tensorflow.python.util import _pywrap_util_port

import latency_lab
from latency_lab import runtimes
from latency_lab.convert import to_graphdef
from latency_lab.errors import FileFormatError, MissingRuntimeError, UnsupportedModelError, UsageError
from latency_lab.graph import ChannelGraph
from latency_lab.ops import BINARY, Network, OpConfig
from latency_lab.profiles.fusions import fused_network
from latency_lab.profiling import LocalWorker, Protocol
from latency_lab.runtimes import base, worker
from latency_lab.runtimes.worker import TensorFlowModel, TensorFlowXlaModel
from tests.integration import test_runtimes as reference

TENSORFLOW, LITERT = runtimes.get("tensorflow"), runtimes.get("litert")
CONV = OpConfig("conv2d", height=16, width=16, in_channels=16, out_channels=16, kernel_size=(3, 3), activation="relu")


def function_of(model):
    return TensorFlowModel._function(tf.compat.v1.GraphDef.FromString(model))


def run(model, inputs):
    pruned = function_of(model)
    call = tf.function(lambda *xs: pruned(*xs)).get_concrete_function(*map(tf.constant, inputs))
    return [output.numpy() for output in call(*map(tf.constant, inputs))]


def optimised(model):
    """Operators that TensorFlow runs, with what it merged into them."""
    pruned = function_of(model)
    inputs = [tf.ones(tensor.shape) for tensor in pruned.inputs]
    call = tf.function(lambda *xs: pruned(*xs)).get_concrete_function(*inputs)
    context.enable_run_metadata()
    try:
        call(*inputs)
        graphs = context.export_run_metadata().function_graphs
    finally:
        context.disable_run_metadata()
    whole = max((graph.post_optimization_graph for graph in graphs), key=lambda graph: len(graph.node))
    found = []
    for node in whole.node:
        if node.op not in {"Const", "_Arg", "_Retval", "Identity", "NoOp"}:
            fused = [name.decode() for name in node.attr["fused_ops"].list.s] if "fused_ops" in node.attr else []
            found.append("+".join([node.op.removeprefix("Stateful"), *fused]))
    return sorted(found)


def key(value):
    return value.key.replace(" ", "_")


# ---- what each operation computes -----------------------------------------------------------------------------------

KNOWN = [op for op in reference.OPS if op.dtype == "float32" and op.kind in reference.MEANING]
op = reference.op
K3, S2 = {"kernel_size": (3, 3)}, {"strides": (2, 2)}
AGAINST_LITERT = [
    op("conv2d_transpose", out_channels=6, **K3, **S2),
    op("conv2d_transpose", out_channels=6, kernel_size=(2, 2), **S2, padding="valid"),
    op("conv2d_transpose", out_channels=6, kernel_size=(4, 4), **S2, padding=((1, 1), (1, 1)), activation="relu"),
    op("conv3d", depth=5, kernel_depth=3, **K3, out_channels=4),
    op("conv3d", depth=5, kernel_depth=2, stride_depth=2, **K3, padding="valid", activation="relu"),
    op("layer_norm"),
    op("group_norm", groups=4),
    op("local_response_norm"),
    op("resize_nearest", output_size=(14, 10)),
    op("resize_nearest", output_size=(9, 12)),
    op("resize_bilinear", output_size=(14, 10)),
    op("slice", output_size=(5, 4), out_channels=3),
    op("reshape", output_size=(1, 1), out_channels=280),
    op("dense", out_channels=6, activation="relu"),
    op("channel_shuffle", groups=2),
    op("channel_mean", out_channels=1),
    *[op(kind, operands=n, broadcast=b) for kind in sorted(BINARY) for n, b in ((1, "channels"), (2, "positions"))],
    op("divide", broadcast="scalar"),
    op("global_avg_pool", depth=3),
]


def test_every_known_operation_computes_what_it_says():
    for found in KNOWN:
        if TENSORFLOW.reason_unsupported(found) is None:
            inputs = reference.inputs_of(found)
            (output,) = run(TENSORFLOW.build(Network.of(found)), inputs)
            expected = reference.meaning(found, inputs)
            np.testing.assert_allclose(output, expected, rtol=1e-4, atol=1e-5, err_msg=found.key)


def test_most_known_operations_can_be_built():
    refused = [found.key for found in KNOWN if TENSORFLOW.reason_unsupported(found)]
    assert len(KNOWN) > 50
    assert len(refused) <= 2, refused


@pytest.mark.parametrize("found", AGAINST_LITERT, ids=key)
def test_other_operations_compute_what_litert_computes(found):
    shapes = base.tensor_shapes(Network.of(found)).inputs
    inputs = [np.abs(reference.made_up(shape, k)) + np.float32(0.5) for k, shape in enumerate(shapes)]
    (output,) = run(TENSORFLOW.build(Network.of(found)), inputs)
    (expected,) = reference.run_litert(LITERT.build(Network.of(found)), inputs)
    np.testing.assert_allclose(output, expected, rtol=1e-3, atol=1e-4)


def test_a_network_answers_as_litert_does():
    network = reference.small_network(reference.SQUEEZE_EXCITE)
    inputs = [reference.made_up(shape, k) for k, shape in enumerate(base.tensor_shapes(network).inputs)]
    found, expected = run(TENSORFLOW.build(network), inputs), reference.run_litert(LITERT.build(network), inputs)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


# ---- what becomes one kernel ----------------------------------------------------------------------------------------


def randomised(model):
    generator = np.random.default_rng(0)
    for weight in model.weights:
        values = generator.uniform(0.5, 1.5, weight.shape)
        weight.assign(values if "variance" in weight.path else values * generator.choice([1, -1], weight.shape[-1:]))
    return model


@pytest.fixture(scope="module")
def blocks():
    """Blocks of common networks."""
    image = keras.Input((32, 32, 3))
    x = layers.Conv2D(16, 3, strides=2, padding="same", use_bias=False)(image)
    x = layers.ReLU(6.0)(layers.BatchNormalization()(x))
    y = layers.Conv2D(32, 1, activation="relu")(x)
    y = layers.DepthwiseConv2D(3, padding="same", use_bias=False)(y)
    y = layers.Activation("hard_swish")(layers.BatchNormalization()(y))
    scale = layers.GlobalAveragePooling2D(keepdims=True)(y)
    scale = layers.Conv2D(32, 1, activation="hard_sigmoid")(layers.Conv2D(8, 1, activation="silu")(scale))
    y = layers.Conv2D(16, 1)(layers.Multiply()([y, scale]))  # with a bias, and then a batch norm
    x = layers.ReLU()(layers.Add()([x, layers.BatchNormalization()(y)]))
    x = layers.Concatenate()([layers.MaxPooling2D(2)(x), layers.Conv2D(16, 3, strides=2, padding="same")(x)])
    x = layers.Conv2D(32, 3, groups=4, padding="same", use_bias=False)(x)
    x = layers.Activation("gelu")(layers.BatchNormalization()(x))
    x = layers.Dense(16, use_bias=False)(layers.GlobalAveragePooling2D()(x))
    x = layers.Activation("tanh")(layers.BatchNormalization()(x))
    return randomised(keras.Model(image, layers.Dense(10, activation="softmax")(x), name="blocks"))


def test_a_frozen_model_answers_as_keras_does(blocks):
    image = np.random.default_rng(1).normal(size=(1, 32, 32, 3)).astype(np.float32)
    (found,) = run(to_graphdef(blocks), [image])
    np.testing.assert_allclose(found, blocks(image), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (lambda x: layers.Conv2D(6, 3, dilation_rate=2, padding="same")(x), []),
        (lambda x: layers.Conv2DTranspose(6, 3, strides=2)(x), []),
        (lambda x: layers.Dense(6)(x), []),
        (lambda x: layers.Conv2D(6, 3, groups=2)(x), []),
        (lambda x: layers.DepthwiseConv2D(3, depth_multiplier=2)(x), []),
        (lambda x: layers.Conv2D(6, 1, activation="relu")(x), ["Mul", "AddV2"]),
        (lambda x: layers.MaxPooling2D()(x), ["Mul", "AddV2"]),
    ],
    ids=["dilated", "transposed", "dense", "grouped", "depthwise", "relu", "pool"],
)
def test_a_batch_norm_is_folded_into_the_kernel_before_it_and_into_no_other(before, after):
    image = keras.Input((8, 8, 4))
    model = randomised(keras.Model(image, layers.BatchNormalization()(before(image))))
    x = np.random.default_rng(1).normal(size=(1, 8, 8, 4)).astype(np.float32)
    file = to_graphdef(model)
    np.testing.assert_allclose(run(file, [x])[0], model(x), rtol=1e-3, atol=1e-3)
    assert [name for name in ("Mul", "AddV2") if name in optimised(file)] == after


def test_a_kernel_that_two_batch_norms_follow_is_left_alone():
    image = keras.Input((8, 8, 4))
    shared = layers.Conv2D(6, 1)
    outputs = [layers.BatchNormalization()(shared(image)), layers.BatchNormalization()(shared(layers.ReLU()(image)))]
    once = layers.Conv2D(6, 1)(image)
    outputs += [layers.BatchNormalization()(once), layers.BatchNormalization()(once)]
    model = randomised(keras.Model(image, outputs))
    x = np.random.default_rng(1).normal(size=(1, 8, 8, 4)).astype(np.float32)
    for found, expected in zip(run(to_graphdef(model), [x]), model(x), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)


def test_a_frozen_model_has_its_weights_and_no_batch_norm(blocks):
    graph = tf.compat.v1.GraphDef.FromString(to_graphdef(blocks))
    assert not [node.op for node in graph.node if "Variable" in node.op]
    assert [node.name for node in graph.node if node.op == "Placeholder"] == ["input0"]
    assert not [node.name for node in graph.node if "batchnorm/mul_1" in node.name]
    assert graph.ByteSize() > 4 * blocks.count_params() * 0.9


def test_a_network_of_a_model_s_operations_has_the_kernels_of_the_frozen_model(blocks):
    network = ChannelGraph.from_model(blocks).network()
    rebuilt = TENSORFLOW.build(fused_network(network, TENSORFLOW.conversion_fusions))
    assert Counter(optimised(rebuilt)) == Counter(optimised(to_graphdef(blocks)))


@pytest.mark.skipif(
    not _pywrap_util_port.IsMklEnabled(), reason="TensorFlow merges less on a CPU for which it leaves oneDNN off"
)
def test_what_is_said_to_be_merged_is_one_operator():
    def merged(rule):
        kind, _, second = rule.partition("+")
        size = {"height": 1, "width": 1} if kind == "dense" else {}
        more = {"depth": 4, "kernel_depth": 3} if kind == "conv3d" else {}
        more |= {"residual": True} if second == "add" else {"activation": second}
        return op(kind, **size, **more, **({} if kind == "dense" else K3))

    for rule in sorted(TENSORFLOW.expected_fusions):
        assert len(optimised(TENSORFLOW.build(Network.of(merged(rule))))) == 1, rule
    assert len(optimised(TENSORFLOW.build(Network.of(merged("conv2d+sigmoid"))))) == 2  # the test can fail


# ---- timing ---------------------------------------------------------------------------------------------------------


def test_the_worker_times_a_graph(tmp_path):
    name, path = "tensorflow:/CPU:0", tmp_path / "model.pb"
    path.write_bytes(runtimes.get(name).build(Network.of(CONV)))
    running = LocalWorker(name, 1)
    try:
        assert (running.hello["package"], running.hello["runtime"]) == ("tensorflow", name)
        block = running.block(str(path), {"block_ms": 2.0})
        (tmp_path / "broken.pb").write_bytes(b"not a graph")
        broken = running.block(str(tmp_path / "broken.pb"), {})
    finally:
        running.close()
    assert block["status"] == "ok"
    assert block["wall_ms"]["min"] > 0
    assert block["cpu_ms"] is None  # operations run in a thread of TensorFlow's own
    assert broken["status"] == "failed"


def test_a_device_that_is_not_there_is_named_with_those_that_are():
    with pytest.raises(UsageError, match=r"TensorFlow has no device GPU:7 here. It has: CPU:0"):
        LocalWorker("tensorflow:GPU:7", 1)


@pytest.mark.parametrize("loader", [TensorFlowModel, TensorFlowXlaModel])
def test_each_run_computes(loader, tmp_path, monkeypatch):
    monkeypatch.setattr(tf.config.threading, "set_intra_op_parallelism_threads", lambda n: None)
    monkeypatch.setattr(tf.config.threading, "set_inter_op_parallelism_threads", lambda n: None)
    path = tmp_path / "model.pb"
    path.write_bytes(TENSORFLOW.build(Network.of(CONV)))
    model = loader(str(path), 1, False)
    (output,) = model.run()
    (again,) = model.run()
    assert output.shape == (1, 16, 16, 16)
    assert float(tf.reduce_max(output)) > 0
    assert output.numpy() is not again.numpy()
    elsewhere = type("Fetching", (loader,), {"device": "CPU:0"})(str(path), 1, False)
    assert elsewhere._fetch(elsewhere.run) is None  # what another device than the CPU waits with


@pytest.mark.skipif(bool(tf.config.list_physical_devices("GPU")), reason="there is a GPU here")
def test_what_a_device_does_not_run_fails_and_does_not_run_on_the_cpu(tmp_path, monkeypatch):
    monkeypatch.setattr(tf.config.threading, "set_intra_op_parallelism_threads", lambda n: None)
    monkeypatch.setattr(tf.config.threading, "set_inter_op_parallelism_threads", lambda n: None)
    monkeypatch.setattr(TensorFlowModel, "_connect", classmethod(lambda cls: None))
    loader, path = TensorFlowModel.on("GPU:0"), tmp_path / "model.pb"
    path.write_bytes(TENSORFLOW.build(Network.of(CONV)))
    image = tf.ones((1, 16, 16, 16))
    pruned = loader._function(tf.compat.v1.GraphDef.FromString(path.read_bytes()))
    try:
        with pytest.raises(Exception, match="GPU:0"):  # the inputs are not made on the CPU
            loader(str(path), 1, False)
        assert not tf.config.get_soft_device_placement()
        with pytest.raises(tf.errors.InvalidArgumentError, match="GPU:0"):
            tf.function(lambda x: pruned(x))(image)
    finally:
        tf.config.set_soft_device_placement(True)
    tf.function(lambda x: pruned(x))(image)  # where that is allowed, what names a device that is not there moves
    assert {node.device for node in function_of(path.read_bytes()).graph.as_graph_def().node} == {""}


def test_a_keras_model_is_measured_on_tensorflow(blocks):
    measured = latency_lab.measure(blocks, "tensorflow-xla", protocol=Protocol(rounds=1, block_ms=2.0))
    assert measured.latency_ms > 0
    assert measured.environment["package"] == "tensorflow"
    json.dumps(measured.to_json())


def test_operations_are_profiled_and_fitted(tmp_path):
    ops = [CONV.with_channels(i, o) for i in (8, 16) for o in (8, 16, 24)]
    protocol = Protocol(rounds=2, extra_rounds=0, processes=1, block_ms=1.0)
    journal = latency_lab.profile(ops, runtime="tensorflow", journal=tmp_path / "tf.jsonl", protocol=protocol)
    assert not journal.failures
    profile = latency_lab.fit_profile(journal)
    assert profile.runtime == "tensorflow"
    assert "conv2d+batch_norm" in profile.fusions


# ---- what is refused ------------------------------------------------------------------------------------------------


def test_sizes_that_are_not_fixed_and_what_is_no_model_are_refused(tmp_path):
    model = keras.Sequential([keras.Input((None, None, 3)), layers.Conv2D(2, 1)])
    with pytest.raises(UnsupportedModelError, match="Expected fixed sizes"):
        to_graphdef(model)
    with pytest.raises(FileFormatError, match="There is no file"):
        to_graphdef(tmp_path / "missing.keras")


def test_nothing_is_printed(blocks, capfd):
    to_graphdef(blocks)
    assert capfd.readouterr() == ("", "")


def test_a_missing_package_comes_with_the_command_that_installs_it(blocks, monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "tensorflow":
            raise ModuleNotFoundError("No module named 'tensorflow'", name="tensorflow")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    for build in (lambda: to_graphdef(blocks), lambda: TENSORFLOW.build(Network.of(CONV))):
        with pytest.raises(MissingRuntimeError, match=r'needs tensorflow.*pip install "latency-lab\[keras\]"'):
            build()


def test_inputs_and_outputs_keep_the_model_s_order():
    inputs = [keras.Input((3 + k,), name=name) for k, name in enumerate("zamq")]
    joined = layers.Concatenate()(inputs)
    model = keras.Model(inputs, [layers.Dense(2 + k)(joined) for k in range(11)])
    given = [np.full((1, 3 + k), k + 1, np.float32) for k in range(4)]
    found = run(to_graphdef(model), given)
    for one, other in zip(found, model(given), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


def test_the_worker_knows_the_runtimes_that_build_graphs():
    assert set(runtimes.NAMES) == set(worker.LOADERS)
