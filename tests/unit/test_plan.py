from collections import Counter

import pytest

from latency_lab.graph.generate import random_network
from latency_lab.ops import Network, OpConfig
from latency_lab.plan import general_plan
from latency_lab.plan.networks import beginning, ends

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


def test_random_networks_end_in_one_output():
    import numpy as np

    network = random_network(np.random.default_rng(3))
    for end in ends(network):
        assert len(beginning(network, end).outputs) == 1
