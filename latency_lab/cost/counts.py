"""Costs that are counts: FLOPs, parameters, activation memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy

from latency_lab.cost.base import OpCost
from latency_lab.cost.formula import OpSum, Presence
from latency_lab.cost.roofline import flops, kernel_weights
from latency_lab.cost.terms import Polynomial
from latency_lab.errors import UsageError
from latency_lab.ops import KERNELED

if TYPE_CHECKING:
    from latency_lab.graph import ChannelGraph


class FlopsCost(OpCost):
    """2 FLOPs a multiply-add of convs and dense ops.

        FLOPs = sum_i 2 * positions_i * kernel_i * in_i * out_i        (depthwise: without in_i)

    Args:
        graph: of the model.

    Example:
        >>> from latency_lab.cost import FlopsCost
        >>> def megaflops(graph):
        ...     return FlopsCost(graph).at() / 1e6
    """

    def __init__(self, graph: ChannelGraph) -> None:
        nodes = [i for i, node in enumerate(graph.nodes) if node.op.macs]
        terms = Polynomial.of([graph.nodes[i].op for i in nodes], flops)
        super().__init__(graph, "FLOPs", over_nodes(graph, nodes, terms), _names(graph, nodes))

    def _of(self, graph: ChannelGraph) -> FlopsCost:
        return FlopsCost(graph)


class ParamsCost(OpCost):
    """Parameters, as `model.count_params()` counts them: every weight, bias and batch norm included.

        parameters = sum_i c0_i + c_in_i*in_i + c_out_i*out_i + c_inout_i*in_i*out_i

    A layer that is called more than once is counted once; layers that the graph has no op for are counted as they are.

    Args:
        graph: of the model.
        weights_only: count the kernels of convs and dense ops alone.

    Example:
        >>> from latency_lab.cost import ParamsCost
        >>> def kilobytes(graph):
        ...     return ParamsCost(graph).at() * 4 / 1e3
    """

    def __init__(self, graph: ChannelGraph, weights_only: bool = False) -> None:
        first = {(node.layer, node.op.kind): i for i, node in reversed(list(enumerate(graph.nodes)))}
        nodes = sorted(first.values())
        if weights_only:
            nodes = [i for i in nodes if kernel_weights(graph.nodes[i].op)]
            terms = Polynomial.of([graph.nodes[i].op for i in nodes], kernel_weights)
        else:
            nodes = [i for i in nodes if any(graph.nodes[i].weights)]
            terms = Polynomial(numpy.array([graph.nodes[i].weights for i in nodes], float).reshape(-1, 4))
        constant = 0.0 if weights_only else float(graph.unknown_parameters)
        self.weights_only = weights_only
        super().__init__(graph, "parameters", over_nodes(graph, nodes, terms, constant), _names(graph, nodes))

    def _of(self, graph: ChannelGraph) -> ParamsCost:
        return ParamsCost(graph, self.weights_only)


class ActivationMemoryCost(OpCost):
    """Outputs of convs and dense ops, each counted once.

        bytes = sum_i bytes a number * positions_i * out_i

    Args:
        graph: of the model.
        unit: "bytes", or "channels" to count output channels alone.

    Example:
        >>> from latency_lab.cost import ActivationMemoryCost
        >>> def channels(graph):
        ...     return ActivationMemoryCost(graph, unit="channels").at()
    """

    def __init__(self, graph: ChannelGraph, unit: Literal["bytes", "channels"] = "bytes") -> None:
        if unit not in {"bytes", "channels"}:
            raise UsageError(
                f"Invalid value for argument `unit`. Expected 'bytes' or 'channels'. Received: unit={unit!r}"
            )
        nodes = [i for i, node in enumerate(graph.nodes) if node.op.kind in KERNELED]
        ops = [graph.nodes[i].op for i in nodes]
        terms = Polynomial.of(ops, lambda op: op.output_bytes if unit == "bytes" else op.out_channels)
        super().__init__(graph, unit, over_nodes(graph, nodes, terms), _names(graph, nodes))

    def _of(self, graph: ChannelGraph) -> ActivationMemoryCost:
        return ActivationMemoryCost(graph, "bytes" if self.unit == "bytes" else "channels")


def over_nodes(graph: ChannelGraph, nodes: list[int], terms: Polynomial, constant: float = 0.0) -> OpSum:
    """The sum of one term for each of some nodes of a graph."""
    maps = (graph.in_map[nodes], graph.in_const[nodes], graph.out_map[nodes], graph.out_const[nodes])
    return OpSum(terms, *maps, constant, presence_of(graph, nodes))


def presence_of(graph: ChannelGraph, nodes: Sequence[int]) -> Presence | None:
    """When some nodes of a graph are there: until a branch of theirs vanishes, or one that they add to another."""
    rows = []
    for node in (graph.nodes[i] for i in nodes):
        merged = [b for b, branch in enumerate(graph.branches) if node.layer == branch.merge and len(node.inputs) < 3]
        rows.append([b for b, branch in enumerate(graph.branches) if node.layer in branch.layers] + merged)
    return Presence.of([branch.gates for branch in graph.branches], rows, len(graph.groups))


def _names(graph: ChannelGraph, nodes: list[int]) -> tuple[str, ...]:
    return tuple(graph.nodes[i].name for i in nodes)
