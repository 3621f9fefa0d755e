import pytest

from latency_lab.ops import Network, OpConfig
from latency_lab.profiles import fuse, fused_network
from latency_lab.profiles.fusions import as_stored

IMAGE = {"height": 8, "width": 8}
CONV = OpConfig("conv2d", **IMAGE, in_channels=4, out_channels=4, kernel_size=(3, 3), use_bias=False)
BN = OpConfig("batch_norm", **IMAGE, in_channels=4, out_channels=4)
RELU = OpConfig("activation", **IMAGE, in_channels=4, out_channels=4, activation="relu")
ADD = OpConfig("add", **IMAGE, in_channels=4, out_channels=4, operands=2)
RULES = {"conv2d+batch_norm", "conv2d+relu", "add+relu"}
RESIDUAL = Network(
    ((CONV, (-1,)), (BN, (0,)), (RELU, (1,)), (CONV, (2,)), (BN, (3,)), (ADD, (4, 2)), (RELU, (5,))), "residual"
)


def test_a_residual_block_without_fused_add():
    kernels = fuse(RESIDUAL, RULES)
    assert [k.op.kind for k in kernels] == ["conv2d", "conv2d", "add"]
    assert [k.op.activation for k in kernels] == ["relu", None, "relu"]
    assert [k.nodes for k in kernels] == [(0, 1, 2), (3, 4), (5, 6)]
    assert [k.inputs for k in kernels] == [(-1,), (0,), (1, 0)]
    assert kernels[0].op.use_bias


def test_a_residual_block_with_fused_add():
    kernels = fuse(RESIDUAL, RULES | {"conv2d+add"})
    assert [k.op.kind for k in kernels] == ["conv2d", "conv2d"]
    assert kernels[1].op.residual
    assert kernels[1].op.activation == "relu"
    assert kernels[1].nodes == (3, 4, 5, 6)
    assert kernels[1].inputs == (0, 0)


@pytest.mark.parametrize("broadcast", ["channels", "positions"])
def test_a_sum_over_more_positions_than_its_conv_has_is_not_swallowed(broadcast):
    size = {"height": 56, "width": 56, "in_channels": 8, "out_channels": 8}
    network = Network(
        (
            (OpConfig("conv2d", **size), (-1,)),
            (OpConfig("global_avg_pool", **size), (0,)),
            (OpConfig("conv2d", in_channels=8, out_channels=8), (1,)),
            (OpConfig("add", **size, operands=2, broadcast=broadcast), (0, 2)),
        )
    )
    found = [kernel.op for kernel in fuse(network, {"conv2d+add"})]
    assert [op.kind for op in found] == ["conv2d", "global_avg_pool", "conv2d", "add"]
    assert not any(op.residual for op in found)


def test_what_two_nodes_read_is_not_swallowed():
    network = Network(((CONV, (-1,)), (RELU, (0,)), (ADD, (0, 1))))
    assert [k.op.kind for k in fuse(network, RULES)] == ["conv2d", "activation", "add"]


def test_no_rules_no_merges_and_every_node_is_in_one_kernel():
    assert [k.nodes for k in fuse(RESIDUAL, ())] == [(i,) for i in range(7)]
    for rules in (RULES, RULES | {"conv2d+add"}):
        assert sorted(i for k in fuse(RESIDUAL, rules) for i in k.nodes) == list(range(7))


def test_a_pad_becomes_the_convs_own_padding():
    pad = OpConfig("pad", **IMAGE, in_channels=4, out_channels=4, padding=((0, 1), (0, 1)))
    conv = OpConfig(
        "conv2d", height=9, width=9, in_channels=4, out_channels=4, kernel_size=(3, 3), strides=(2, 2), padding="valid"
    )
    network = Network(((pad, (-1,)), (conv, (0,))))
    (kernel,) = fuse(network, {"pad+conv2d"})
    assert (kernel.op.height, kernel.op.pads) == (8, ((0, 1), (0, 1)))
    assert kernel.op.output_height == conv.output_height
    assert (kernel.main, kernel.nodes) == (1, (0, 1))


def test_a_transpose_is_another_name_of_the_bytes_where_a_rule_says_so():
    moved = OpConfig("transpose", **IMAGE, in_channels=4, out_channels=4)
    network = Network(((moved, (-1,)), (CONV, (0,)), (RELU, (1,)), (moved, (2,)), (ADD, (-2, 3))))
    kernels = fuse(network, {*RULES, "transpose+conv2d", "transpose+add"})
    assert [(k.op.kind, k.nodes, k.main) for k in kernels] == [("conv2d", (0, 1, 2), 1), ("add", (3, 4), 4)]
    assert [k.inputs for k in kernels] == [(-1,), (-2, 0)]
    assert len(fuse(network, RULES)) == 4
    flat = OpConfig("flatten", **IMAGE, in_channels=4, out_channels=256)
    (kernel,) = fuse(Network(((CONV, (-1,)), (flat, (0,)))), {"conv2d+flatten"})
    assert (kernel.op, kernel.main, kernel.nodes) == (CONV, 0, (0, 1))
    shared = Network(((moved, (-1,)), (CONV, (0,)), (ADD, (0, 1))))
    assert [k.op.kind for k in fuse(shared, {"transpose+conv2d", "transpose+add"})] == ["transpose", "conv2d", "add"]


def test_a_scale_and_a_shift_of_channels_are_a_batch_norm_where_a_rule_says_so():
    by = {**IMAGE, "in_channels": 4, "out_channels": 4, "broadcast": "channels"}
    scale, shift = OpConfig("multiply", **by), OpConfig("add", **by)
    network = Network(((scale, (-1,)), (shift, (0,)), (RELU, (1,)), (CONV, (2,))))
    kernels = fuse(network, {"scale+shift", "batch_norm+relu"})
    assert [(k.op.kind, k.op.activation, k.nodes) for k in kernels] == [
        ("batch_norm", "relu", (0, 1, 2)),
        ("conv2d", None, (3,)),
    ]
    assert len(fuse(network, {"batch_norm+relu"})) == 4
    assert [k.op.kind for k in fuse(Network(((scale, (-1,)), (ADD, (0, -1)))), {"scale+shift"})] == ["multiply", "add"]


def test_a_runtime_that_works_channels_first_transposes_each_image_once():
    kernels = fuse(RESIDUAL, RULES | {"input+transpose"})
    assert [k.op.kind for k in kernels] == ["transpose", "conv2d", "conv2d", "add"]
    assert (kernels[0].nodes, kernels[0].main, kernels[0].op.in_channels) == ((), 0, 4)
    assert [k.inputs for k in kernels] == [(-1,), (0,), (1,), (2, 1)]
    dense = Network(((OpConfig("dense", in_channels=4, out_channels=2), (-1,)),))
    assert [k.op.kind for k in fuse(dense, {"input+transpose"})] == ["dense"]


def test_fused_network_is_a_network_of_the_kernels():
    network = fused_network(RESIDUAL, RULES | {"input+transpose"})
    assert [op.kind for op, _ in network.nodes] == ["conv2d", "conv2d", "add"]
    assert network.outputs == (2,)


def test_constants_of_the_image_are_innermost_before_an_export_transposes_it():
    image = {**IMAGE, "in_channels": 3, "out_channels": 3}
    scale, shift = OpConfig("multiply", **image, broadcast="scalar"), OpConfig("add", **image, broadcast="channels")
    conv = OpConfig("conv2d", **IMAGE, in_channels=3, out_channels=4)
    later = OpConfig("multiply", **IMAGE, in_channels=4, out_channels=4, broadcast="channels")
    network = Network(((scale, (-1,)), (shift, (0,)), (conv, (1,)), (later, (2,))))

    def spread(network, **how):
        return [op.broadcast for op, _ in as_stored(network, **how).nodes]

    first = as_stored(network, channels_first=True, exported=True)
    assert [op.broadcast for op, _ in first.nodes] == ["scalar", "innermost", "", "channels"]
    assert spread(first, channels_first=False, exported=False) == ["scalar", "channels", "", "channels"]
    assert spread(network, channels_first=True, exported=False) == ["scalar", "channels", "", "channels"]
    assert spread(network, channels_first=False, exported=True) == ["scalar", "channels", "", "channels"]


def concatenated(*nodes):
    """Kernels of nodes (kind, channels out, inputs) under the rule of copies: (kind, channels, inputs) each."""
    made, channels = [], {-1: 4}
    for k, (kind, out, inputs) in enumerate(nodes):
        total = sum(channels[i] for i in inputs) if kind == "concatenate" else channels[inputs[0]]
        operands = len(inputs) if kind in {"concatenate", "add"} else 1
        size = {"height": 8, "width": 8, "in_channels": total, "operands": operands, "dtype": "int8"}
        made.append((OpConfig(kind, **size, out_channels=out), inputs))
        channels[k] = out
    found = fuse(Network(tuple(made)), {"concatenate+copy", "pad+copy", "conv2d+relu"})
    return [(kernel.op.kind, kernel.op.out_channels, kernel.inputs) for kernel in found]


def test_an_operand_of_a_concatenation_alone_is_made_in_its_place():
    nodes = [("conv2d", 8, (-1,)), ("conv2d", 6, (-1,)), ("concatenate", 14, (0, 1))]
    assert concatenated(*nodes) == nodes


def test_an_operand_that_something_else_reads_is_copied():
    found = concatenated(("conv2d", 8, (-1,)), ("conv2d", 6, (0,)), ("concatenate", 14, (0, 1)), ("conv2d", 3, (2,)))
    assert found == [
        ("conv2d", 8, (-1,)),
        ("conv2d", 6, (0,)),
        ("avg_pool", 8, (0,)),
        ("concatenate", 14, (2, 1)),
        ("conv2d", 3, (3,)),
    ]


def test_a_concatenation_in_a_concatenation_and_an_operand_twice_are_copied():
    found = concatenated(("conv2d", 8, (-1,)), ("concatenate", 16, (0, 0)), ("concatenate", 20, (1, -1)))
    assert [(kind, channels) for kind, channels, _ in found] == [
        ("conv2d", 8),
        ("avg_pool", 8),
        ("avg_pool", 8),
        ("concatenate", 16),
        ("avg_pool", 16),
        ("concatenate", 20),
    ]
    assert found[-1][2] == (4, -1)


def test_an_operand_of_a_pad_is_copied_if_something_else_reads_it():
    alone = [("conv2d", 8, (-1,)), ("pad", 8, (0,))]
    assert concatenated(*alone) == alone
    found = concatenated(*alone, ("conv2d", 8, (0,)))
    assert found == [("conv2d", 8, (-1,)), ("avg_pool", 8, (0,)), ("pad", 8, (1,)), ("conv2d", 8, (0,))]


def test_a_rule_of_copies_is_of_its_kind_alone():
    size = {"height": 8, "width": 8, "in_channels": 8, "out_channels": 8, "dtype": "int8"}
    pad = OpConfig("pad", **size, padding=((0, 1), (0, 1)))
    network = Network(((OpConfig("conv2d", **size), (-1,)), (pad, (0,)), (OpConfig("conv2d", **size), (0,))))
    counts = [len(fuse(network, rules)) for rules in ((), ("concatenate+copy",), ("pad+copy",))]
    assert counts == [3, 3, 4]


def test_a_concatenation_of_parts_that_are_not_of_whole_bricks_is_read_position_by_position():
    size = {"height": 8, "width": 8, "dtype": "int8"}
    for part, linear in ((32, ""), (24, "input")):
        conv = OpConfig("conv2d", **size, in_channels=4, out_channels=part)
        joined = OpConfig("concatenate", **size, in_channels=2 * part, out_channels=2 * part, operands=2)
        relu = OpConfig("activation", **size, in_channels=2 * part, out_channels=2 * part, activation="relu")
        network = Network(((conv, (-1,)), (conv, (-1,)), (joined, (0, 1)), (relu, (2,))))
        found = fuse(network, {"concatenate+linear"})
        assert [kernel.op.linear for kernel in found] == ["", "", "", linear]
        assert [kernel.op.linear for kernel in fuse(network, ())] == [""] * 4
    assert found[-1].op.key == "activation 8x8 linear input relu int8 48->48"


def test_a_slice_is_read_position_by_position_and_the_pad_that_it_is_of_is_copied_so():
    size = {"in_channels": 16, "out_channels": 16, "dtype": "int8"}
    conv = OpConfig("conv2d", height=8, width=8, **size)
    pad = OpConfig("pad", height=8, width=8, **size, padding=((0, 1), (0, 1)))
    cut = OpConfig("slice", height=9, width=9, **size, output_size=(8, 8))
    nodes = ((conv, (-1,)), (conv, (0,)), (pad, (0,)), (cut, (2,)), (conv, (3,)))
    found = fuse(Network(nodes), {"pad+copy", "slice+linear"})
    assert [(kernel.op.kind, kernel.op.linear) for kernel in found] == [
        ("conv2d", ""),
        ("conv2d", ""),
        ("avg_pool", "output"),
        ("pad", ""),
        ("slice", ""),
        ("conv2d", "input"),
    ]


def test_a_conv_takes_in_the_arithmetic_that_scales_a_networks_own_input():
    size = {"height": 8, "width": 8, "in_channels": 3, "dtype": "int8"}
    scale = OpConfig("multiply", **size, out_channels=3, broadcast="scalar")
    shift = OpConfig("add", **size, out_channels=3, broadcast="channels")
    conv, inner = OpConfig("conv2d", **size, out_channels=3), OpConfig("conv2d", **size, out_channels=5)
    first = (scale, (-1,)), (shift, (0,)), (conv, (1,))
    network = Network((*first, (shift, (2,)), (inner, (3,))))
    found = [(k.op.kind, k.op.broadcast, k.main, k.nodes, k.inputs) for k in fuse(network, {"image+conv2d"})]
    assert found == [
        ("conv2d", "channels", 2, (0, 1, 2), (-1,)),
        ("add", "channels", 3, (3,), (0,)),
        ("conv2d", "", 4, (4,), (1,)),
    ]
    assert [kernel.op for kernel in fuse(network, ())] == [op for op, _ in network.nodes]


def test_a_scaled_image_that_something_else_reads_is_no_part_of_a_conv():
    size = {"height": 8, "width": 8, "in_channels": 3, "dtype": "int8"}
    scale, conv = OpConfig("multiply", **size, out_channels=3), OpConfig("conv2d", **size, out_channels=5)
    network = Network(((scale, (-1,)), (conv, (0,)), (conv, (0,))))
    assert [kernel.op for kernel in fuse(network, {"image+conv2d"})] == [scale, conv, conv]
