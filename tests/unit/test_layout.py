import dataclasses

import pytest

from latency_lab.cost import LatencyCost
from latency_lab.errors import FileFormatError
from latency_lab.graph import ChannelGraph
from latency_lab.graph.channel_graph import Node
from latency_lab.ops import Network, OpConfig
from latency_lab.profiles import DeviceProfile, Roofline, fuse
from latency_lab.profiles.layout import with_reorders

RULES = {"conv2d+relu", "conv2d+relu6", "conv2d+add", "conv2d+batch_norm", "pad+conv2d"}


def conv(ins, outs, size=8, kernel=3, **fields):
    fields = {"height": size, "width": size, "kernel_size": (kernel, kernel)} | fields
    return OpConfig("conv2d", in_channels=ins, out_channels=outs, **fields)


def op(kind, channels, size=8, **fields):
    return OpConfig(kind, height=size, width=size, in_channels=channels, out_channels=channels, **fields)


def act(name, channels, size=8):
    return op("activation", channels, size, activation=name)


def chain(*ops):
    return Network(tuple((o, (i - 1,)) for i, o in enumerate(ops)))


def laid(network, block=16, rules=RULES, **options):
    return with_reorders(fuse(network, rules), block, **options)


def kinds(network, **options):
    return [k.op.activation if k.op.kind == "activation" else k.op.kind for k in laid(network, **options)]


IN, OUT = "reorder_input", "reorder_output"


def test_a_runtime_without_blocks_reorders_nothing():
    kernels = fuse(chain(conv(3, 16), conv(16, 16)), RULES)
    assert with_reorders(kernels, 1) == kernels


def test_convs_hand_on_blocked_tensors_and_the_first_reads_the_image_as_it_is():
    kernels = laid(chain(conv(3, 16), conv(16, 32), conv(32, 8)))
    assert [k.op.kind for k in kernels] == ["conv2d", "conv2d", "conv2d", OUT]
    assert kernels[-1].op == op(OUT, 8)
    assert (kernels[-1].main, kernels[-1].nodes, kernels[-1].inputs) == (2, (), (2,))


def test_an_input_of_many_channels_is_reordered_for_all_who_read_it():
    network = Network(((conv(32, 16), (-1,)), (conv(32, 16), (-1,)), (op("concatenate", 32, operands=2), (0, 1))))
    kernels = laid(network)
    assert [k.op.kind for k in kernels] == [IN, "conv2d", "conv2d", "concatenate", OUT]
    assert [k.inputs for k in kernels] == [(-1,), (0,), (0,), (1, 2), (3,)]
    assert kernels[0].op == op(IN, 32)


@pytest.mark.parametrize(
    ("middle", "blocked"),
    [
        (conv(16, 20), True),
        (conv(16, 32, groups=2), False),
        (op("depthwise_conv2d", 16, kernel_size=(3, 3)), True),
        (op("max_pool", 16, kernel_size=(2, 2)), True),
        (op("avg_pool", 16, kernel_size=(2, 2)), True),
        (op("global_avg_pool", 16), True),
        (act("sigmoid", 16), True),
        (act("silu", 16), True),
        (act("elu", 16), False),
        (act("hard_swish", 16), False),
        (op("resize_bilinear", 16, output_size=(16, 16)), True),
        (op("resize_bilinear", 16, output_size=(12, 12)), False),
        (op("add", 16, broadcast="channels"), False),
        (op("softmax", 16), False),
        (op("local_response_norm", 16), False),
        (op("pad", 16, padding=((1, 1), (1, 1))), False),
        (dataclasses.replace(conv(16, 16), dtype="int8"), False),
    ],
)
def test_what_stays_in_the_layout(middle, blocked):
    found = kinds(chain(conv(3, 16), middle))
    last = middle.activation if middle.kind == "activation" else middle.kind
    assert found == (["conv2d", last, OUT] if blocked else ["conv2d", OUT, last])


@pytest.mark.parametrize(("channels", "expected"), [(24, [IN, "conv2d", OUT]), (18, ["conv2d"])])
def test_a_conv_needs_multiples_of_four(channels, expected):
    assert kinds(chain(conv(channels, 32))) == expected


def test_a_pool_and_a_concatenation_need_whole_blocks():
    assert kinds(chain(conv(3, 24), op("max_pool", 24, kernel_size=(2, 2)))) == ["conv2d", OUT, "max_pool"]
    network = Network(((conv(3, 24), (-1,)), (conv(3, 8), (-1,)), (op("concatenate", 32, operands=2), (0, 1))))
    assert kinds(network) == ["conv2d", "conv2d", OUT, OUT, "concatenate"]
    assert kinds(network, block=8) == ["conv2d", "conv2d", "concatenate", OUT]


def test_a_pool_has_its_input_reordered_but_a_pool_over_all_positions_has_not():
    assert kinds(chain(op("max_pool", 16, kernel_size=(2, 2)))) == [IN, "max_pool", OUT]
    assert kinds(chain(op("global_avg_pool", 16))) == ["global_avg_pool"]


def test_a_tensor_is_reordered_back_once():
    network = Network(((conv(3, 16), (-1,)), (act("elu", 16), (0,)), (act("selu", 16), (0,)), (conv(16, 16), (0,))))
    assert kinds(network) == ["conv2d", OUT, "elu", "selu", "conv2d", OUT]


def test_a_residual_stays_inside_where_it_is_blocked():
    add = op("add", 16, operands=2)
    network = Network(((conv(3, 16), (-1,)), (conv(16, 16), (0,)), (add, (1, 0)), (act("relu", 16), (2,))))
    kernels = laid(network)
    assert [k.op.kind for k in kernels] == ["conv2d", "conv2d", OUT]
    assert (kernels[1].op.residual, kernels[1].op.activation, kernels[1].inputs) == (True, "relu", (0, 0))


def test_a_residual_that_is_not_blocked_is_added_outside():
    add = op("add", 16, operands=2)
    network = Network(((act("elu", 16), (-1,)), (conv(16, 16), (0,)), (add, (0, 1)), (act("relu", 16), (2,))))
    kernels = laid(network)
    assert [k.op.kind for k in kernels] == ["activation", IN, "conv2d", OUT, "add", "activation"]
    assert not kernels[2].op.residual
    assert kernels[2].op.activation is None
    assert [k.nodes for k in kernels] == [(0,), (), (1,), (), (2,), (3,)]
    assert kernels[4].inputs == (3, 0)


def test_an_activation_after_a_sum_that_convs_do_not_take_is_apart():
    add = op("add", 16, operands=2)
    network = Network(((conv(3, 16), (-1,)), (conv(16, 16), (0,)), (add, (1, 0)), (act("relu6", 16), (2,))))
    kernels = laid(network)
    assert [k.op.kind for k in kernels] == ["conv2d", "conv2d", OUT, "activation"]
    assert (kernels[1].op.residual, kernels[1].op.activation, kernels[3].nodes) == (True, None, (3,))


def test_a_scale_of_channels_becomes_a_convolution_with_its_activation():
    scale = op("multiply", 16, broadcast="channels")
    network = chain(op("max_pool", 16, kernel_size=(1, 1)), scale, act("relu", 16), conv(16, 16))
    kernels = laid(network)
    assert [k.op.kind for k in kernels] == [IN, "max_pool", "depthwise_conv2d", "conv2d", OUT]
    assert kernels[2].op == op("depthwise_conv2d", 16, activation="relu", use_bias=False)
    assert kernels[2].nodes == (1, 2)
    assert kinds(chain(scale)) == ["multiply"]


def test_a_batch_norm_is_a_scale_and_a_sum_as_keras_exports_it_and_one_operator_in_a_file():
    network = chain(op("max_pool", 16, kernel_size=(1, 1)), op("batch_norm", 16), act("relu", 16), conv(16, 16))
    assert kinds(network) == [IN, "max_pool", OUT, "batch_norm", "relu", IN, "conv2d", OUT]
    kernels = laid(network, exported=False)
    assert [k.op.kind for k in kernels] == [IN, "max_pool", "depthwise_conv2d", "conv2d", OUT]
    assert kernels[2].op.use_bias


def test_a_conv_of_one_position_reads_through_a_reshape_as_keras_exports_it():
    network = chain(conv(3, 16), op("global_avg_pool", 16), conv(16, 16, size=1, kernel=1))
    assert kinds(network) == ["conv2d", "global_avg_pool", OUT, IN, "conv2d", OUT]
    assert kinds(network, exported=False) == ["conv2d", "global_avg_pool", "conv2d", OUT]


def test_a_squeeze_and_excite_leaves_the_layout():
    gate = conv(16, 16, size=1, kernel=1, activation="sigmoid")
    multiply = op("multiply", 16, operands=2, broadcast="channels")
    network = Network(
        ((conv(3, 16), (-1,)), (op("global_avg_pool", 16), (0,)), (gate, (1,)), (multiply, (0, 2)), (conv(16, 8), (3,)))
    )
    expected = ["conv2d", "global_avg_pool", "conv2d", OUT, OUT, "multiply", IN, "conv2d", OUT]
    assert kinds(network, exported=False) == expected


def test_reorders_do_the_transposes_that_stand_beside_them():
    transpose = op("transpose", 32)
    kernels = laid(chain(transpose, conv(32, 16), op("transpose", 16)), exported=False)
    assert [k.op.kind for k in kernels] == [IN, "conv2d", OUT]
    assert [k.nodes for k in kernels] == [(0,), (1,), (2,)]
    assert [k.inputs for k in kernels] == [(-1,), (0,), (1,)]
    assert kinds(chain(op("transpose", 3), conv(3, 16))) == ["transpose", "conv2d", OUT]


def test_a_conv_over_a_sequence_is_not_blocked():
    assert kinds(chain(conv(16, 16, height=1, width=20, kernel_size=(1, 3)))) == ["conv2d"]


# ---- in a profile and in the cost -----------------------------------------------------------------------------------


def test_the_block_is_in_the_profiles_file_and_older_files_have_none(tmp_path):
    profile = dataclasses.replace(DeviceProfile.analytic("d", peak_gflops=1, bandwidth_gb_s=1), layout_block=8)
    profile.save(tmp_path / "d.json")
    assert DeviceProfile.load(tmp_path / "d.json").layout_block == 8
    data = profile.to_json()
    assert DeviceProfile.from_json({k: v for k, v in data.items() if k != "layout_block"}).layout_block == 1
    with pytest.raises(FileFormatError, match="layout_block"):
        DeviceProfile.from_json(data | {"layout_block": 0})


def test_the_cost_counts_reorders_by_the_tensors_that_they_move():
    ops = (conv(32, 64, kernel=1), op("softmax", 64))
    nodes = [Node(f"n{i}", o, (i - 1,), f"n{i}") for i, o in enumerate(ops)]
    graph = ChannelGraph.fixed(nodes, [(8, 8, 32)], (), "net", "onnx")
    rules = frozenset({"input+transpose"})
    profile = DeviceProfile("d", "onnxruntime", "measured", Roofline(1e9, 1.0), fusions=rules, layout_block=16)
    estimate = LatencyCost(graph, profile).estimate()
    assert [o.kind for o in estimate.ops] == [IN, "conv2d", OUT, "softmax"]
    assert [o.name for o in estimate.ops] == ["reorder_input at n0", "n0", "reorder_output at n0", "n1"]
    by_kind = {o.kind: o.latency_ms for o in estimate.ops}
    assert by_kind[OUT] == pytest.approx(2 * by_kind[IN])
    assert by_kind[IN] == pytest.approx(2 * 4 * 64 * 32 * 1e-6)


def test_a_reorder_of_an_input_that_two_convs_read_moves_the_input_s_channels():
    nodes = [Node(f"n{i}", conv(64, 256, kernel=1), (-1,), f"n{i}") for i in range(2)]
    graph = ChannelGraph.fixed(nodes, [(8, 8, 64)], (), "net", "keras")
    rules = frozenset({"input+transpose"})
    profile = DeviceProfile("d", "onnxruntime", "measured", Roofline(1e9, 1.0), fusions=rules, layout_block=16)
    (reorder,) = [o for o in LatencyCost(graph, profile).estimate().ops if o.kind == IN]
    assert reorder.latency_ms == pytest.approx(2 * 4 * 64 * 64 * 1e-6)
