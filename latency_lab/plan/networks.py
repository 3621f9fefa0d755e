"""Networks for the whole-network correction: generated ones, and beginnings of a model at random widths."""

from __future__ import annotations

import numpy as np

from latency_lab.graph import ChannelGraph
from latency_lab.graph.generate import random_network
from latency_lab.ops import Network, OpConfig
from latency_lab.plan.rules import converted
from latency_lab.profiles import fused_network
from latency_lab.profiles.fusions import as_run

MODEL_NETWORKS = 28
MODEL_MACS = 600_000_000
GENERAL_NETWORKS = 92
GENERAL_MACS = (40e6, 3e9)
GENERAL_PARAMETERS = (1.5e6, 40e6)
"""What most networks for images have that are published. Those with fewer weights say nothing of what reading weights
costs, which can be a quarter of a network's time."""
LIGHT_SHARE = 0.25
LIGHT_MACS = (5e6, 400e6)
LIGHT_PARAMETERS = (0.1e6, 1.5e6)
"""What networks have that are made to answer in a few ms. They tell how much of the weights a cache keeps, and what the
call of a kernel costs: of the others' time it is next to nothing."""
GENERAL_RESOLUTIONS = (96, 128, 160, 192, 224, 224, 256)
"""What images networks are mostly made for. Of smaller ones the tensors stay in the cache, and a correction fitted on
those was seen to promise 4 % too little for networks of larger images."""


SMALL_MACS = (2e6, 1e9)
SMALL_RESOLUTIONS = (24, 32, 48, 64, 96, 128, 160, 192, 224)
"""What networks for microcontrollers are made for. A correction fitted on the others was seen to add 9 % to the kernels
of a network of 28 x 28, whose sum was 6 % too much already."""


def generated_networks(rng: np.random.Generator, count: int = GENERAL_NETWORKS, small: bool = False) -> list[Network]:
    """Random stacks of common blocks, as a model states them: nothing merged.

    Args:
        rng: the same state gives the same networks.
        count: how many.
        small: for microcontrollers.
    """
    if small:
        return [random_network(rng, SMALL_MACS, SMALL_RESOLUTIONS) for _ in range(count)]
    light = round(LIGHT_SHARE * count)
    bounds = [(GENERAL_MACS, GENERAL_PARAMETERS)] * (count - light) + [(LIGHT_MACS, LIGHT_PARAMETERS)] * light
    return [random_network(rng, macs, GENERAL_RESOLUTIONS, parameters) for macs, parameters in bounds]


def model_networks(
    graph: ChannelGraph, runtime: str, count: int, rng: np.random.Generator, precision: str = "float32"
) -> list[Network]:
    """The model's beginning, up to a random place (often all of it), at random widths, a global pooling behind."""
    found, rules, exported = [], converted(runtime, precision), graph.source == "keras"
    for _ in range(count):
        low, high = np.sort(rng.uniform(0.2, 1.0, 2))
        widths = np.maximum(1, np.ceil(graph.full_widths * rng.uniform(low, high, len(graph.groups)) / 8) * 8)
        stated = graph.network(np.minimum(widths, graph.full_widths).astype(int))
        whole = as_run(stated, rules, precision, exported)
        network = fused_network(whole if exported else without_transposes(whole), rules)
        macs = np.cumsum([op.macs for op, _ in network.nodes])
        most = min(int(macs[-1]), MODEL_MACS)
        cut = int(np.searchsorted(macs, min(rng.uniform(0.3, 1.3), 1.0) * most))
        found.append(beginning(network, min(ends(network), key=lambda end: abs(end - cut))))
    return found


def without_transposes(network: Network) -> Network:
    """The network of a file without its transposes: the builder of a network puts its own where they are needed.

    Example:
        >>> from latency_lab.ops import Network, OpConfig
        >>> moved = OpConfig("transpose", height=8, width=8, in_channels=3, out_channels=3)
        >>> conv = OpConfig("conv2d", height=8, width=8, in_channels=3, out_channels=8)
        >>> [inputs for _, inputs in without_transposes(Network(((moved, (-1,)), (conv, (0,))))).nodes]
        [(-1,)]
    """
    nodes: list[tuple[OpConfig, tuple[int, ...]]] = []
    new: dict[int, int] = {}
    for i, (op, inputs) in enumerate(network.nodes):
        sources = tuple(new.get(source, source) for source in inputs)
        if op.kind == "transpose":
            new[i] = sources[0]
            continue
        new[i] = len(nodes)
        nodes.append((op, sources))
    return Network(tuple(nodes), network.name)


def ends(network: Network) -> list[int]:
    """Nodes behind which nothing but their own output is still to be read."""
    last = [0] * len(network.nodes)
    for i, (_, inputs) in enumerate(network.nodes):
        for source in inputs:
            if source >= 0:
                last[source] = i
    latest, found = 0, []
    for i in range(len(network.nodes)):
        if latest <= i and i >= min(4, len(network.nodes) - 1):
            found.append(i)
        latest = max(latest, last[i])
    return found or [len(network.nodes) - 1]


def beginning(network: Network, end: int) -> Network:
    """The network up to a node, a global pooling behind an image."""
    nodes = list(network.nodes[: end + 1])
    op = nodes[-1][0]
    if op.output_depth * op.output_height * op.output_width > 1:
        shape = (op.batch, op.output_height, op.output_width, op.out_channels, op.out_channels)
        nodes.append((OpConfig("global_avg_pool", *shape, dtype=op.dtype, depth=op.output_depth), (end,)))
    return Network(tuple(nodes), f"{network.name} to {end}")
