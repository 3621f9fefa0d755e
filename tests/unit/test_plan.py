import dataclasses
from collections import Counter
from functools import partial

import keras
import numpy as np
import pytest

from latency_lab import runtimes
from latency_lab.errors import UsageError
from latency_lab.fitting import fit_profile
from latency_lab.graph import ChannelGraph
from latency_lab.graph.generate import random_network
from latency_lab.ops import Network, OpConfig
from latency_lab.plan import general_plan, model_plan, passes, refinement
from latency_lab.plan.distributions import COMPUTING, MOST_BYTES, draw_ops
from latency_lab.plan.general import CALL
from latency_lab.plan.networks import beginning, ends, generated_networks
from latency_lab.plan.rules import merges
from latency_lab.profiling import Protocol, Task
from latency_lab.profiling.tasks import precision_of
from tests.unit.onnx_nets import OnnxNet
from tests.unit.synthetic import write_journal

IMAGE = {"height": 8, "width": 8}


@pytest.fixture(scope="module", params=["litert", "onnxruntime"])
def general(request):
    return request.param, general_plan(request.param)


def test_the_general_plan_has_every_kind_and_enough_networks(general):
    runtime, tasks = general
    kinds = Counter(task.network.nodes[0][0].kind for task in tasks if task.role == "op")
    for kind in (
        "conv2d",
        "depthwise_conv2d",
        "dense",
        "add",
        "multiply",
        "concatenate",
        "max_pool",
        "global_avg_pool",
    ):
        assert kinds[kind] >= 1, kind
    assert sum(task.role == "network" for task in tasks) >= 24
    assert len({task.key for task in tasks}) == len(tasks)


def test_cold_times_are_asked_for_where_kernels_are_timed(general):
    runtime, tasks = general
    cold = sum(task.cold for task in tasks)
    assert cold == 0 if runtime == "litert" else cold > len(tasks) / 8


def test_the_plan_is_the_same_each_time(general):
    runtime, tasks = general
    assert general_plan(runtime) == tasks


def test_probes_stand_around_edges(general):
    _, tasks = general
    by_rest = {}
    for task in tasks:
        op = task.network.nodes[0][0]
        if task.role == "op" and op.family == "conv2d k3x3 s1x1":
            by_rest.setdefault((op.static_key, op.in_channels), set()).add(op.out_channels)
    assert any({15, 16, 17, 20, 31, 32, 33, 63, 64, 65} <= counts for counts in by_rest.values())


def test_networks_end_where_nothing_else_is_waited_for():
    conv = OpConfig("conv2d", **IMAGE, in_channels=4, out_channels=4)
    add = OpConfig("add", **IMAGE, in_channels=4, out_channels=4, operands=2)
    nodes = [(conv, (-1,))] + [(conv, (i,)) for i in range(4)] + [(add, (5 - 1, 1)), (conv, (5,))]
    network = Network(tuple(nodes), "n")
    assert ends(network) == [5, 6]
    short = beginning(network, 5)
    assert short.nodes[-1][0].kind == "global_avg_pool"
    assert short.outputs == (6,)


@pytest.mark.parametrize("runtime", ["litert", "onnxruntime", "tensorflow"])
def test_networks_of_a_model_of_three_axes_can_be_built(runtime):
    image = keras.Input((4, 8, 8, 3))
    x = image
    for channels in (8, 12, 16):
        x = keras.layers.Conv3D(channels, 3, strides=(1, 2, 2), padding="same", activation="relu")(x)
        x = keras.layers.BatchNormalization()(x)
    x = keras.layers.Dense(5)(keras.layers.Flatten()(x))
    graph = ChannelGraph.from_model(keras.Model(image, x))
    assert [(node.op.kind, node.op.depth, node.op.output_depth) for node in graph.nodes[-2:]] == [
        ("flatten", 4, 1),
        ("dense", 1, 1),
    ]
    networks = [task.network for task in model_plan([graph], runtime) if task.role == "network"]
    kinds = {op.kind for network in networks for op, _ in network.nodes}
    assert kinds >= {"conv3d", "global_avg_pool", "flatten", "dense"}
    for network in networks:
        assert runtimes.get(runtime).build(network)


def test_random_networks_end_in_one_output():
    network = random_network(np.random.default_rng(3))
    for end in ends(network):
        assert len(beginning(network, end).outputs) == 1


# ---- distributions and the second pass ----------------------------------------------------------------------------


def everything(op):
    return True


def test_drawn_operations_keep_their_bounds_and_are_the_same_each_time():
    drawn = list(draw_ops(np.random.default_rng(0), merges("litert", "float32"), everything, share=0.2))
    assert drawn == list(draw_ops(np.random.default_rng(0), merges("litert", "float32"), everything, share=0.2))
    assert max(op.macs for op in drawn) <= 1.5 * max(row.high for row in COMPUTING.values())
    assert max(op.traffic_bytes for op in drawn) <= MOST_BYTES
    kinds = {"conv2d", "depthwise_conv2d", "dense", "layer_norm", "resize_bilinear", "slice"}
    assert {op.kind for op in drawn} >= kinds
    assert any(op.batch > 1 for op in drawn)
    assert any(op.in_channels % 4 for op in drawn)
    assert any(op.groups > 1 for op in drawn)


def test_first_convolutions_are_drawn_as_networks_have_them():
    rows = {"stem": COMPUTING["stem"]}
    drawn = list(draw_ops(np.random.default_rng(0), {"pad+conv2d"}, everything, rows=rows))
    assert len(drawn) == rows["stem"].points
    assert {op.in_channels for op in drawn} == {3}
    assert min(op.out_channels for op in drawn) >= 8
    assert max(op.out_channels for op in drawn) <= 96
    assert {(op.kernel_size[0], op.strides[0]) for op in drawn} >= {(3, 2), (7, 2), (4, 4)}
    assert any(op.pads == ((3, 3), (3, 3)) for op in drawn)


def test_generated_networks_have_weights_as_published_ones_do():
    made = generated_networks(np.random.default_rng(1), 40)
    megabytes = np.array([sum(op.weight_bytes for op, _ in network.nodes) for network in made]) / 1e6
    assert megabytes[:30].min() > 5.9
    assert megabytes[30:].max() < 6.1  # a quarter is made to answer in a few ms
    million_macs = np.array([sum(op.macs for op, _ in network.nodes) for network in made[:30]]) / 1e6
    megabytes = megabytes[:30]
    assert 10 < np.median(megabytes) < 40  # MobileNetV2 has 14, ResNet-50 has 102
    assert 0.02 < np.median(megabytes / million_macs) < 0.06  # 0.047 and 0.025


def test_activations_are_drawn_as_the_runtime_merges_them():
    drawn = draw_ops(np.random.default_rng(0), {"conv2d+tanh"}, everything, share=0.1)
    assert {op.activation for op in drawn if op.kind == "conv2d"} == {None, "tanh"}


def test_where_calls_cost_much_an_operation_that_costs_no_more_is_measured():
    def lone(runtime):
        graph = ChannelGraph.from_model(keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(8, 3)]))
        return [task.network.nodes[0][0] for task in model_plan([graph], runtime) if task.role == "op"]

    assert CALL in lone("onnxruntime:cuda")
    assert CALL not in lone("onnxruntime")
    assert CALL not in lone("litert")


@pytest.mark.parametrize(
    ("runtime", "precision"), [("litert", "float32"), ("onnxruntime", "float32"), ("vela", "int8")]
)
def test_a_sweep_of_grouped_convolutions_keeps_their_groups(runtime, precision):
    image = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(32, 1)(image)
    x = keras.layers.Conv2D(64, 3, groups=4, padding="same", activation="relu")(x)
    x = keras.layers.Conv2D(30, 3, groups=2, padding="same")(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    graph = ChannelGraph.from_model(keras.Model(image, keras.layers.Dense(4)(x)))
    ops = [task.network.nodes[0][0] for task in model_plan([graph], runtime, precision) if task.role == "op"]
    for groups in (2, 4):
        found = [op for op in ops if op.groups == groups]
        assert len(found) >= 10
        assert all(op.in_channels % groups == op.out_channels % groups == 0 for op in found)
        assert len({op.in_channels for op in found}) >= 4


@pytest.mark.parametrize("runtime", ["onnxruntime:cuda", "litert:gpu"])
def test_a_plan_is_of_one_type(runtime):
    tasks = general_plan(runtime, "float16", share=0.02, networks=2)
    assert precision_of(tasks) == "float16"


@pytest.mark.parametrize(
    ("types", "precision"),
    [
        (["float32"], "float32"),
        (["float32", "int8", "float16"], "int8"),
        (["float32", "bfloat16", "float16"], "float16"),
        (["float32", "bfloat16"], "bfloat16"),
    ],
)
def test_a_mix_of_types_is_of_the_narrowest(types, precision):
    assert precision_of([Task(Network.of(OpConfig("dense", dtype=dtype))) for dtype in types]) == precision


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_an_edge_tpu_has_no_plan_and_what_works_instead_is_said(precision):
    graph = ChannelGraph.from_model(keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(8, 3)]))
    for plan in (partial(general_plan, precision=precision), lambda r: model_plan([graph], r, precision)):
        with pytest.raises(UsageError, match="edgetpu: .*has no profile.* can be measured and compared"):
            plan("litert:edgetpu")
    with pytest.raises(UsageError, match="has no profile"):
        general_plan("litert:/usr/lib/libedgetpu.so.1")


def test_contexts_of_operations_are_measured():
    graph = ChannelGraph.from_model(
        keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(8, 3), keras.layers.MaxPooling2D()])
    )
    lone = {t.network.nodes[0][0] for t in model_plan([graph], "onnxruntime:openvino") if t.role == "op"}
    pools = [op for op in lone if op.kind == "max_pool"]
    assert pools
    assert {c for op in pools for c in runtimes.get("onnxruntime:openvino").contexts_of(op)} <= lone


def test_a_plan_for_openvino_measures_what_it_merges_as_one():
    image = keras.Input((32, 32, 3))
    x = keras.layers.Conv2D(8, 3, use_bias=False)(image)
    x = keras.layers.Activation("hard_swish")(keras.layers.BatchNormalization()(x))
    graph = ChannelGraph.from_model(keras.Model(image, x))
    tasks = model_plan([graph], "onnxruntime:openvino")
    lone = [task.network.nodes[0][0] for task in tasks if task.role == "op"]
    assert any(op.kind == "conv2d" and op.activation == "hard_swish" and op.out_channels == 8 for op in lone)
    assert "transpose" not in {op.kind for op in lone}


def test_kinds_that_a_runtime_does_not_build_are_left_out():
    drawn = draw_ops(np.random.default_rng(0), (), lambda op: op.kind != "conv3d", share=0.05)
    assert "conv3d" not in {op.kind for op in drawn}


def test_an_int8_plan_is_of_int8_operations():
    tasks = general_plan("litert", "int8")
    assert {op.dtype for task in tasks for op, _ in task.network.nodes} == {"int8"}


def test_the_second_pass_goes_where_the_first_was_least_sure(tmp_path):
    tasks = [t for t in general_plan("litert") if t.role == "op" and t.network.nodes[0][0].kind in {"conv2d", "add"}]
    profile = fit_profile(write_journal(tmp_path / "j.jsonl", tasks[:600]))
    unsure = dataclasses.replace(profile.predictors["conv2d"], half_width={"conv2d k3x3 s1x1": 1.0, "": 0.001})
    profile = dataclasses.replace(profile, tables={}, predictors={**profile.predictors, "conv2d": unsure})
    more = Counter(task.network.nodes[0][0].family for task in refinement(profile, 60))
    assert more.most_common(1)[0][0] == "conv2d k3x3 s1x1"


class EqualWorker:
    """Answers every block with the same times."""

    hello = {"package": "fake", "version": "1", "worker": 1}

    def block(self, path, settings):
        times = {"min": 0.5, "deciles": [0.5] * 9, "median": 0.5}
        counts = {"status": "ok", "count": 3, "repeats": 1}
        return {"id": 0, **counts, "wall_ms": times, "cpu_ms": None, "cold_ms": None}

    def close(self):
        pass


def test_both_passes_go_through_all_rounds(tmp_path, monkeypatch):
    tasks = [t for t in general_plan("litert") if t.role == "op" and t.network.nodes[0][0].kind == "add"][:30]
    more = [t for t in general_plan("litert") if t.role == "op" and t.network.nodes[0][0].kind == "pad"][:3]
    monkeypatch.setattr(passes, "general_plan", lambda runtime, precision: tuple(tasks))
    monkeypatch.setattr(passes, "refinement", lambda profile: tuple(more))
    journal = passes.measure_in_general("litert", journal=tmp_path / "j.jsonl", start_worker=EqualWorker)
    assert {key: len(blocks) for key, blocks in journal.blocks.items()} == {t.key: 5 for t in [*tasks, *more]}
    assert journal.protocol["rounds"] == 5


class NoisyWorker(EqualWorker):
    """Answers with times by no rule, the same in each run of the test; is killed after so many blocks."""

    rng = np.random.default_rng(0)
    blocks, most = 0, 10**6

    def block(self, path, settings):
        if NoisyWorker.blocks == NoisyWorker.most:
            raise KeyboardInterrupt
        NoisyWorker.blocks += 1
        ms = float(self.rng.uniform(0.4, 0.9))
        return {**super().block(path, settings), "wall_ms": {"min": ms, "deciles": [ms] * 9, "median": ms}}


def test_the_second_pass_is_the_same_when_a_run_goes_on_or_is_made_again(tmp_path, monkeypatch):
    kinds = {"add", "multiply", "global_avg_pool"}
    tasks = [t for t in general_plan("litert") if t.role == "op" and t.network.nodes[0][0].kind in kinds][:240:4]
    monkeypatch.setattr(passes, "general_plan", lambda runtime, precision: tuple(tasks))
    refined = []

    def refine(profile):
        widths = [profile.predict([t.network.nodes[0][0] for t in tasks])[i].high_ms for i in range(len(tasks))]
        least_sure = np.argsort(widths)[-8:]
        ops = [tasks[i].network.nodes[0][0] for i in least_sure]
        refined.append([Task(Network.of(dataclasses.replace(op, batch=7))) for op in ops])
        return tuple(refined[-1])

    monkeypatch.setattr(passes, "refinement", refine)
    run = partial(
        passes.measure_in_general, "litert", journal=tmp_path / "j.jsonl", start_worker=NoisyWorker,
        protocol=Protocol(extra_rounds=1),
    )  # fmt: skip
    NoisyWorker.blocks, NoisyWorker.most = 0, 2 * len(tasks) + 30
    with pytest.raises(KeyboardInterrupt):
        run()
    NoisyWorker.most = 10**6
    journal = run()
    assert set(journal.blocks) == {task.key for task in [*tasks, *refined[0]]}
    assert min(len(blocks) for blocks in journal.blocks.values()) >= 5
    done = NoisyWorker.blocks
    run()
    assert NoisyWorker.blocks == done
    assert refined[0] == refined[1] == refined[2]


def test_first_rounds_are_a_journal_of_their_own(tmp_path):
    tasks = [t for t in general_plan("litert") if t.role == "op"][:3]
    journal = write_journal(tmp_path / "j.jsonl", tasks, failures={tasks[0].key})
    found = journal.first_rounds(tasks[:2], 2)
    assert (set(found.blocks), set(found.failures)) == ({tasks[1].key}, {tasks[0].key})
    assert [block["round"] for block in found.measured] == [0, 1]
    assert len(found.slowdowns) == 2
    assert found.statistic(tasks[1].key).rounds == 2


@pytest.mark.parametrize("runtime", ["onnxruntime", "onnxruntime:openvino"])
def test_networks_of_a_file_with_transposes_in_it_can_be_built(runtime, tmp_path):
    net = OnnxNet()
    x = net.op("Mul", net.input("x", (1, 8, 8, 3)), net.constant(np.full(1, 0.5)))
    x = net.conv(net.op("Transpose", x, perm=[0, 3, 1, 2]), 3, 8)
    for _ in range(4):
        x = net.op("Add", net.op("Relu", net.conv(x, 8, 8)), x)
    path = net.save(tmp_path, net.op("Transpose", x, perm=[0, 2, 3, 1]))
    graph = ChannelGraph.from_model(path)
    assert "transpose" in [node.op.kind for node in graph.nodes]
    networks = [task.network for task in model_plan([graph], runtime) if task.role == "network"]
    assert networks
    for network in networks:
        assert runtimes.get(runtime).build(network)
