"""A model's sweep: every kernel that the runtime makes of the model, over the channel counts that it can take.

With it go probes of the channel steps, the parts of merged operations, so that the merge is seen and not assumed, and
networks of the model's own beginning at random widths, for the whole-network correction.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence

import numpy as np

from latency_lab import runtimes
from latency_lab.graph import ChannelGraph
from latency_lab.ops import MIXING, Network, OpConfig
from latency_lab.plan.general import lone_and_whole
from latency_lab.plan.networks import MODEL_NETWORKS, model_networks
from latency_lab.plan.probes import CANDIDATES, merge_probes, step_probes
from latency_lab.plan.rules import merges
from latency_lab.profiles import fuse
from latency_lab.profiles.fusions import as_run
from latency_lab.profiling import Task

AXIS_SHARES = (0.25, 0.5, 0.75)
LINE_SHARES = (0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875)
RANDOM_POINTS = 5


def sweep(graph: ChannelGraph, runtime: str = "litert", precision: str = "float32") -> tuple[Task, ...]:
    """What to measure for one model on one runtime."""
    return model_plan([graph], runtime, precision)


def model_plan(graphs: Sequence[ChannelGraph], runtime: str, precision: str = "float32") -> tuple[Task, ...]:
    """What to measure for these models, at least one, on one runtime.

    Args:
        graphs: of the models.
        runtime: one of `runtimes.NAMES`.
        precision: of a Keras model's operations; those of a file are of the types that it states.
    """
    rng = np.random.default_rng(0)
    rules, supported = merges(runtime, precision), runtimes.get(runtime)
    sites = [site for graph in graphs for site in _sites(graph, rules, precision)]
    merged = [kernel.op for graph in graphs for kernel in fuse(_network(graph, rules, precision), rules | CANDIDATES)]
    ops = [op for site in sites for op in _points(site, rng)]
    networks = [
        network
        for graph in graphs
        for network in model_networks(graph, runtime, MODEL_NETWORKS // len(graphs), rng, precision)
    ]
    inputs = [kernel.op for network in networks for kernel in fuse(network, rules) if not kernel.nodes]
    tails = [network.nodes[-1][0] for network in networks]
    full = [site.op for site in sites]
    everything = [*ops, *merge_probes([*full, *merged]), *step_probes(full), *inputs, *tails]
    known = [op for op in dict.fromkeys(everything) if supported.reason_unsupported(op) is None]
    whole = [n for n in networks if all(supported.reason_unsupported(op) is None for op, _ in n.nodes)]
    return lone_and_whole(known, whole, runtime)


@dataclasses.dataclass(frozen=True)
class _Site:
    """A kernel at the most channels that it can have, and which of its axes can be narrowed."""

    op: OpConfig
    narrows_in: bool
    narrows_out: bool


def _network(graph: ChannelGraph, rules: frozenset[str], precision: str) -> Network:
    return as_run(graph.network(), rules, precision, graph.source == "keras")


def _sites(graph: ChannelGraph, rules: frozenset[str], precision: str) -> list[_Site]:
    found: dict[_Site, None] = {}
    for kernel in fuse(_network(graph, rules, precision), rules):
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
            ins, outs = (_aligned(share, full, op.groups) for full in (op.in_channels, op.out_channels))
            yield op.with_channels(ins, op.out_channels)
            yield op.with_channels(op.in_channels, outs)
            yield op.with_channels(ins, outs)
    else:
        for share in LINE_SHARES:
            yield _scaled(site, *(_aligned(share, full, op.groups) for full in (op.in_channels, op.out_channels)))
    yield from _random_points(site, RANDOM_POINTS, rng)


def _random_points(site: _Site, count: int, rng: np.random.Generator) -> Iterator[OpConfig]:
    groups = site.op.groups
    for _ in range(count):
        ins, outs = (
            groups * int(np.ceil(full // groups * rng.uniform(0.125, 1.0)))
            for full in (site.op.in_channels, site.op.out_channels)
        )
        yield _scaled(site, ins, outs)


def _scaled(site: _Site, ins: int, outs: int) -> OpConfig:
    """The site at these counts, where its axes allow it; a kind with one width keeps its ratio of out to in."""
    op = site.op
    if op.kind not in MIXING:
        return op.with_channels(ins, max(1, ins * op.out_channels // op.in_channels))
    return op.with_channels(ins if site.narrows_in else op.in_channels, outs if site.narrows_out else op.out_channels)


def _aligned(share: float, channels: int, groups: int) -> int:
    """A share of the channels, a multiple of the groups; in whole eights as well, where four such units fit in."""
    eights = math.lcm(8, groups)
    unit = eights if channels >= 4 * eights else groups
    return min(channels, max(1, round(share * channels / unit)) * unit)
