"""The worker for Vela and its host half, without Vela."""

import pytest

from latency_lab import runtimes
from latency_lab.errors import UnsupportedOpError, UsageError
from latency_lab.ops import Network, OpConfig
from latency_lab.profiling.answers import checked_block
from latency_lab.runtimes.vela import in_context
from latency_lab.runtimes.vela_worker import Estimate, Layer, Target, block, layers_of, without_context

TABLE = """Original Operator,NNG Operator,Target,Staging Usage,Op Cycles,NPU,Name
Conv2D,Conv2D,NPU,0,100,90,op0
Add,Add,NPU,0,40,40,op1;a,b
Conv2D,Conv2D,NPU,0,7,7,op2
"""
CONV = OpConfig("conv2d", height=8, width=8, in_channels=96, out_channels=6, dtype="int8")


def estimate_of(*layers):
    return Estimate(layers, 500e6, sum(layer.cycles for layer in layers))


def test_a_table_is_read_by_its_header_and_a_name_may_hold_commas():
    assert layers_of(TABLE)[1] == Layer("Add", True, 40, "op1;a,b")


def test_a_copy_in_a_table_is_known_by_what_the_compiler_makes_of_it():
    row = TABLE.splitlines()[1].replace("Conv2D,Conv2D", "Conv2D,MemoryCopy")
    assert layers_of("\n".join([TABLE.splitlines()[0], row])) == [Layer("Conv2D", True, 100, "op0", copies=True)]


def test_cycles_become_milliseconds_at_the_clock():
    found = block(estimate_of(*layers_of(TABLE)))
    assert found["cycles"] == 147
    assert found["wall_ms"]["min"] == 147 / 500e6 * 1e3
    assert checked_block(found) == found


def test_context_before_and_after_does_not_count():
    assert without_context(estimate_of(*layers_of(TABLE)), 1, 1).cycles == 40
    assert without_context(estimate_of(*layers_of(TABLE)), 0, 1).cycles == 140


def test_context_that_the_compiler_moved_is_refused():
    rows = layers_of(TABLE)
    with pytest.raises(RuntimeError, match="apart: Add, Conv2D"):
        without_context(estimate_of(*rows[1:]), 1, 1)
    with pytest.raises(RuntimeError, match="apart: Conv2D"):
        without_context(estimate_of(rows[0]), 1, 1)


def test_a_copy_of_an_input_belongs_to_the_convolution_that_reads_it():
    copy, conv, pad = Layer("Conv2D", True, 30, "", True), Layer("Conv2D", True, 7, ""), Layer("Pad", True, 5, "", True)
    assert without_context(estimate_of(copy, conv, pad, copy, conv), 1, 1).cycles == 5
    assert without_context(estimate_of(copy, conv, copy, conv, conv), 1, 1).cycles == 37
    assert without_context(estimate_of(copy, conv, conv), 0, 1).cycles == 37
    with pytest.raises(RuntimeError, match="apart: Conv2D, Conv2D"):
        without_context(estimate_of(copy, conv), 1, 1)


def test_what_is_chained_takes_what_its_convolution_has_more_than_the_twin():
    first, second, add = Layer("Conv2D", True, 30, ""), Layer("Conv2D", True, 37, ""), Layer("Add", True, 0, "")
    assert without_context(estimate_of(first, second, add, add, first), 2, 1).cycles == 7
    assert without_context(estimate_of(second, first, add, first), 2, 1).cycles == 0
    assert without_context(estimate_of(second, add, first), 1, 1).cycles == 0
    assert without_context(estimate_of(first, second, second), 2, 1).cycles == 0  # nothing is left of it at all
    own = Layer("Add", True, 5, "")
    assert without_context(estimate_of(first, second, own, first), 2, 1).cycles == 5


def test_an_operator_on_the_cpu_is_named_and_never_counted_as_nothing():
    found = block(estimate_of(Layer("Mean", False, 0, "op0"), Layer("Add", True, 40, "op1")))
    assert found == {
        "status": "failed",
        "reason": "Vela leaves 1 of 2 operators to the CPU, not estimated: Mean",
    }


def test_what_is_merged_away_takes_a_cycle():
    assert block(estimate_of(Layer("Add", True, 0, "op1")))["wall_ms"]["min"] == 1e3 / 500e6


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("ethos-u55-32", Target("ethos-u55-32", "Ethos_U55_High_End_Embedded", "Shared_Sram")),
        ("ethos-u65-512:X", Target("ethos-u65-512", "X", "Dedicated_Sram_384KB")),
        ("ethos-u85-2048::Y", Target("ethos-u85-2048", "Ethos_U85_SYS_DRAM_Mid", "Y")),
    ],
)
def test_a_target_names_what_is_not_the_default(text, target):
    assert Target.of(text) == target


@pytest.mark.parametrize(
    ("text", "cache_bytes"),
    [("ethos-u55-256", None), ("ethos-u65-512", 393216), ("ethos-u85-256::Dedicated_Sram_512KB", 524288)],
)
def test_a_target_has_a_cache_where_a_slower_memory_is_behind_it(text, cache_bytes):
    assert Target.of(text).cache_bytes == cache_bytes
    rules = {"concatenate+linear", "slice+linear"} & runtimes.get(f"vela:{text}").expected_fusions
    assert len(rules) == (2 if cache_bytes else 0)


def test_an_unknown_accelerator_is_refused_with_those_there_are():
    with pytest.raises(UsageError, match=r"one of ethos-u55-32, .*ethos-u85-2048. Received: 'ethos-u55-512'"):
        runtimes.get("vela:ethos-u55-512")
    with pytest.raises(UsageError, match="Did you mean 'vela'"):
        runtimes.get("vella")


def test_vela_alone_is_its_default_accelerator():
    assert runtimes.get("vela").name == "vela"
    assert runtimes.get("vela:ethos-u65-256").name == "vela:ethos-u65-256"


def test_int8_alone_is_built():
    engine = runtimes.get("vela:ethos-u55-128")
    with pytest.raises(UnsupportedOpError, match="int8 networks alone"):
        engine.build(Network.of(OpConfig("dense", in_channels=4, out_channels=4)))
    with pytest.raises(UsageError, match="ask for precision int8. Received: 'float32'"):
        engine.fusions("float32")


def test_the_tensor_that_is_scaled_by_a_gate_comes_from_a_concatenation_and_the_gate_does_not():
    op = OpConfig(
        "multiply", height=8, width=8, in_channels=64, out_channels=64, operands=2, broadcast="channels", dtype="int8"
    )
    network, before, after = in_context(op)
    kinds = [node.kind for node, _ in network.nodes]
    assert kinds == ["conv2d", "conv2d", "concatenate", "conv2d", "multiply", "conv2d"]
    assert network.nodes[4][1] == (2, 3)
    assert (network.nodes[3][0].height, before, after) == (1, 3, 1)


@pytest.mark.parametrize(
    ("linear", "cache_bytes", "around"),
    [
        ("", 8192, (1, 1)),
        ("input", None, (1, 1)),
        ("input", 8192, (1, 1)),
        ("input", 8191, (0, 1)),
        ("output", 8191, (1, 0)),
    ],
)
def test_a_linear_tensor_of_more_than_half_of_the_cache_is_a_networks_own(linear, cache_bytes, around):
    size = {"height": 8, "width": 8, "in_channels": 64, "out_channels": 64, "dtype": "int8"}
    op = OpConfig("activation", **size, activation="relu", linear=linear)
    network, *found = in_context(op, cache_bytes)
    assert tuple(found) == around
    assert len(network.nodes) == 1 + sum(around)


def test_context_has_a_fourth_of_the_channels():
    network, before, after = in_context(CONV)
    assert (before, after) == (1, 1)
    widths = [(op.in_channels, op.out_channels) for op, _ in network.nodes]
    assert widths == [(24, 96), (96, 6), (6, 8)]


@pytest.mark.parametrize(
    ("channels", "kinds", "parts"),
    [
        (64, ["conv2d", "conv2d", "concatenate", "multiply", "conv2d"], [32, 32]),
        (48, ["conv2d", "conv2d", "concatenate", "multiply", "conv2d"], [16, 32]),
        (24, ["conv2d", "multiply", "conv2d"], [24]),
    ],
)
def test_arithmetic_with_constants_stands_behind_a_concatenation_of_whole_bricks(channels, kinds, parts):
    op = OpConfig(
        "multiply", height=8, width=8, in_channels=channels, out_channels=channels, broadcast="channels", dtype="int8"
    )
    network, before, after = in_context(op)
    assert [node.kind for node, _ in network.nodes] == kinds
    assert [node.out_channels for node, _ in network.nodes[:before]] == parts
    assert (before, after) == (len(parts), 1)


@pytest.mark.parametrize(
    ("op", "around"),
    [
        (OpConfig("conv2d", height=64, width=64, in_channels=3, out_channels=16, dtype="int8"), (0, 1)),
        (OpConfig("dense", in_channels=64, out_channels=10, dtype="int8"), (1, 1)),
        (OpConfig("dense", in_channels=4, out_channels=2, dtype="int8"), (0, 0)),
        (OpConfig("global_avg_pool", height=7, width=7, in_channels=64, out_channels=64, dtype="int8"), (1, 1)),
        (OpConfig("quantize", height=8, width=8, in_channels=8, out_channels=8, dtype="int8"), (0, 1)),
        (OpConfig("dequantize", height=8, width=8, in_channels=8, out_channels=8, dtype="int8"), (1, 0)),
        (OpConfig("multiply", height=8, width=8, in_channels=8, out_channels=8, operands=2, broadcast="channels",
                  dtype="int8"), (2, 1)),
    ],
)  # fmt: skip
def test_images_and_vectors_have_a_context_but_for_a_networks_input(op, around):
    network, *found = in_context(op)
    assert tuple(found) == around
    assert network.nodes[around[0]][0] == op
