"""Which operations and networks to measure for a profile.

A model's sweep: every kernel that the runtime makes of the model, over the channel counts that it can take; probes of
the channel steps; the parts of merged operations, so that the merge is seen and not assumed; and networks of the
model's own beginning at random widths, for the whole-network correction.

The general plan, for no model in particular: kernels of random networks of common blocks, the same probes, and those
networks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from latency_lab import runtimes
from latency_lab.fitting.fusions import split
from latency_lab.graph import ChannelGraph
from latency_lab.graph.generate import random_network
from latency_lab.ops import ACTIVATIONS, MIXING, Network, OpConfig
from latency_lab.profiles import fuse, fused_network
from latency_lab.profiling import Task, tasks_of

PROBES = (4, 8, 12, 15, 16, 17, 20, 24, 31, 32, 33, 36, 48, 63, 64, 65, 68, 80, 96, 97, 100, 112, 127, 128)
AXIS_SHARES = (0.25, 0.5, 0.75)
LINE_SHARES = (0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875)
RANDOM_POINTS = 5
NETWORKS = 28
NETWORK_MACS = 600_000_000
COLD_EVERY = 4
GENERAL_NETWORKS = 40
GENERAL_POINTS = 4
CANDIDATES = frozenset(
    f"{kind}+{what}"
    for kind in ("conv2d", "depthwise_conv2d", "dense", "add", "multiply", "batch_norm")
    for what in ACTIVATIONS
) | {"pad+conv2d", "pad+depthwise_conv2d", "conv2d+add", "depthwise_conv2d+add"}
"""Merges that a runtime may do: each that a model could show is timed against its parts once."""


def sweep(graph: ChannelGraph, runtime: str = "litert") -> tuple[Task, ...]:
    """What to measure for one model on one runtime."""
    return plan([graph], runtime)


def plan(graphs: Sequence[ChannelGraph], runtime: str) -> tuple[Task, ...]:
    """What to measure for these models on one runtime; the general plan where there are none.

    Args:
        graphs: of the models.
        runtime: "litert" or "onnxruntime".
    """
    if not graphs:
        return general_plan(runtime)
    rng = np.random.default_rng(0)
    sites = [site for graph in graphs for site in _sites(graph, runtime)]
    merged = [kernel.op for graph in graphs for kernel in fuse(graph.network(), _fusions(runtime) | CANDIDATES)]
    ops = [op for site in sites for op in _points(site, rng)]
    networks = [network for graph in graphs for network in _networks(graph, runtime, NETWORKS // len(graphs), rng)]
    return _tasks(ops, [site.op for site in sites], merged, networks, runtime)


def general_plan(runtime: str = "litert") -> tuple[Task, ...]:
    """What to measure for networks that are not known yet."""
    rng = np.random.default_rng(0)
    made = [random_network(rng) for _ in range(GENERAL_NETWORKS)]
    kernels = [kernel.op for network in made for kernel in fuse(network, _fusions(runtime))]
    sites = [_Site(op, True, op.kind in MIXING) for op in dict.fromkeys(kernels)]
    ops = [op for site in sites for op in (site.op, *_random_points(site, GENERAL_POINTS, rng))]
    networks = [fused_network(network, _conversion(runtime)) for network in made]
    merged = [kernel.op for network in made for kernel in fuse(network, _fusions(runtime) | CANDIDATES)]
    return _tasks(ops, [site.op for site in sites], merged, networks, runtime)


@dataclasses.dataclass(frozen=True)
class _Site:
    """A kernel at the most channels that it can have, and which of its axes can be narrowed."""

    op: OpConfig
    narrows_in: bool
    narrows_out: bool


def _conversion(runtime: str) -> frozenset[str]:
    return runtimes.get(runtime).conversion_fusions


def _fusions(runtime: str) -> frozenset[str]:
    return _conversion(runtime) | runtimes.get(runtime).expected_fusions


def _sites(graph: ChannelGraph, runtime: str) -> list[_Site]:
    found: dict[_Site, None] = {}
    for kernel in fuse(graph.network(), _fusions(runtime)):
        narrows_in, narrows_out = bool(graph.in_map[kernel.main].any()), bool(graph.out_map[kernel.main].any())
        found[_Site(kernel.op, narrows_in, narrows_out)] = None
    return list(found)


def _points(site: _Site, rng: np.random.Generator) -> Iterator[OpConfig]:
    """The site at full width, along its axes, along its diagonal, and at a few random counts that fit no step."""
    op = site.op
    yield op
    if not (site.narrows_in or site.narrows_out):
        return
    if site.narrows_in and site.narrows_out and op.kind in MIXING:
        for share in AXIS_SHARES:
            yield op.with_channels(_aligned(share, op.in_channels), op.out_channels)
            yield op.with_channels(op.in_channels, _aligned(share, op.out_channels))
            yield op.with_channels(_aligned(share, op.in_channels), _aligned(share, op.out_channels))
    else:
        for share in LINE_SHARES:
            yield _scaled(site, _aligned(share, op.in_channels), _aligned(share, op.out_channels))
    yield from _random_points(site, RANDOM_POINTS, rng)


def _random_points(site: _Site, count: int, rng: np.random.Generator) -> Iterator[OpConfig]:
    for _ in range(count):
        ins, outs = (
            int(np.ceil(full * rng.uniform(0.125, 1.0))) for full in (site.op.in_channels, site.op.out_channels)
        )
        yield _scaled(site, ins, outs)


def _scaled(site: _Site, ins: int, outs: int) -> OpConfig:
    """The site at these counts, where its axes allow it; a kind with one width keeps its ratio of out to in."""
    op = site.op
    if op.kind not in MIXING:
        return op.with_channels(ins, max(1, ins * op.out_channels // op.in_channels))
    return op.with_channels(ins if site.narrows_in else op.in_channels, outs if site.narrows_out else op.out_channels)


def _aligned(share: float, channels: int) -> int:
    """A share of the channels, in whole eights from 32 channels on."""
    unit = 8 if channels >= 32 else 1
    return min(channels, max(1, round(share * channels / unit)) * unit)


def _probes(ops: Iterable[OpConfig]) -> Iterator[OpConfig]:
    """Around the edges of likely steps, on the smallest operation of each family that is large enough to time."""
    families: dict[str, list[OpConfig]] = {}
    for op in ops:
        if (op.macs or op.kind in {"add", "batch_norm"}) and not op.residual:
            families.setdefault(op.family, []).append(op)
    for family in families.values():
        op = min(family, key=lambda op: abs(np.log(max(op.traffic_bytes, 1) / 200_000)))
        ratio = max(1, op.out_channels // op.in_channels)
        for count in PROBES:
            if op.kind not in MIXING:
                yield op.with_channels(count, count * ratio)
                continue
            yield op.with_channels(op.in_channels, count)
            if op.in_channels > 4:
                yield op.with_channels(count, op.out_channels)


def _parts(ops: Iterable[OpConfig]) -> Iterator[OpConfig]:
    """For each rule that an operation may show, both parts of the operation whose second part weighs most."""
    best: dict[str, tuple[float, OpConfig, OpConfig, OpConfig]] = {}
    for op in ops:
        for rule, first, second in split(op):
            weight = second.traffic_bytes / (first.macs + first.traffic_bytes)
            if rule not in best or weight > best[rule][0]:
                best[rule] = (weight, op, first, second)
    for _, op, first, second in best.values():
        yield from (op, first, second)


def _networks(graph: ChannelGraph, runtime: str, count: int, rng: np.random.Generator) -> list[Network]:
    """The model's beginning, up to a random place (often all of it), at random widths, a global pooling behind."""
    found = []
    for _ in range(count):
        low, high = np.sort(rng.uniform(0.2, 1.0, 2))
        widths = np.maximum(1, np.ceil(graph.full_widths * rng.uniform(low, high, len(graph.groups)) / 8) * 8)
        network = fused_network(graph.network(np.minimum(widths, graph.full_widths).astype(int)), _conversion(runtime))
        macs = np.cumsum([op.macs for op, _ in network.nodes])
        most = min(int(macs[-1]), NETWORK_MACS)
        ends = _ends(network)
        cut = int(np.searchsorted(macs, min(rng.uniform(0.3, 1.3), 1.0) * most))
        end = min(ends, key=lambda e: abs(e - cut))
        found.append(_beginning(network, end))
    return found


def _ends(network: Network) -> list[int]:
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


def _beginning(network: Network, end: int) -> Network:
    nodes = list(network.nodes[: end + 1])
    op = nodes[-1][0]
    if op.output_height * op.output_width > 1:
        pool = OpConfig(
            "global_avg_pool", op.batch, op.output_height, op.output_width, op.out_channels, op.out_channels
        )
        nodes.append((pool, (end,)))
    return Network(tuple(nodes), f"{network.name} to {end}")


def _tasks(
    ops: Sequence[OpConfig],
    sites: Sequence[OpConfig],
    merged: Sequence[OpConfig],
    networks: Sequence[Network],
    runtime: str,
) -> tuple[Task, ...]:
    """All of it, each thing once; every few operations with a cold cache where the runtime asks for it."""
    inputs = [kernel.op for network in networks for kernel in fuse(network, _fusions(runtime)) if not kernel.nodes]
    tails = [network.nodes[-1][0] for network in networks]
    everything = dict.fromkeys([*ops, *_parts([*sites, *merged]), *_probes(sites), *inputs, *tails])
    chill = runtimes.get(runtime).times_kernels
    lone = [Task(Network.of(op), "op", chill and i % COLD_EVERY == 0) for i, op in enumerate(everything)]
    return tasks_of([*lone, *(Task(network, "network") for network in dict.fromkeys(networks))])
