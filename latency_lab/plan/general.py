"""The general plan: what to measure for networks that are not known yet, and where to measure more."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from latency_lab import runtimes
from latency_lab.fitting.network import kernels_of
from latency_lab.ops import Network, OpConfig
from latency_lab.plan.distributions import COPIES, GENERATED, NORMALISING, OTHERS, SCALED, draw_ops, in_type
from latency_lab.plan.networks import GENERAL_NETWORKS, generated_networks
from latency_lab.plan.probes import CANDIDATES, merge_probes, step_probes
from latency_lab.plan.rules import converted, merges
from latency_lab.profiles import DeviceProfile, fuse, fused_network, fusions
from latency_lab.profiling import Task, tasks_of

COLD_EVERY = 4
MICROCONTROLLERS = frozenset({"vela"})
"""Runtimes that mostly small networks are made for."""
REFINED = 500
TAKEN_APART, DRAWN_SHARE = 50, 0.3
"""Generated networks whose kernels are measured alone as well, and what is left of the draws of such operations: what
the correction learns from these networks is their doing, and none of it the predictor's; and the shapes are such as
stand beside one another in networks."""
_IMAGE = {"height": 28, "width": 28, "in_channels": 48, "out_channels": 48}
PROBE_SITES = (
    OpConfig("conv2d", **_IMAGE),  # type: ignore[arg-type]
    OpConfig("conv2d", **_IMAGE, kernel_size=(3, 3)),  # type: ignore[arg-type]
    OpConfig("conv2d", **_IMAGE, kernel_size=(3, 3), strides=(2, 2)),  # type: ignore[arg-type]
    OpConfig("conv2d", **_IMAGE, kernel_size=(5, 5)),  # type: ignore[arg-type]
    OpConfig("depthwise_conv2d", **_IMAGE, kernel_size=(3, 3)),  # type: ignore[arg-type]
    OpConfig("depthwise_conv2d", **_IMAGE, kernel_size=(5, 5)),  # type: ignore[arg-type]
    OpConfig("depthwise_conv2d", **_IMAGE, kernel_size=(3, 3), strides=(2, 2)),  # type: ignore[arg-type]
    OpConfig("dense", in_channels=256, out_channels=256),
    OpConfig("add", **_IMAGE, operands=2),  # type: ignore[arg-type]
    OpConfig("batch_norm", **_IMAGE),  # type: ignore[arg-type]
)
"""Where channel steps are looked for."""
CALL = OpConfig("activation", in_channels=4, out_channels=4, activation="relu")
"""An operation that costs no more than its call."""


def general_plan(
    runtime: str = "litert", precision: str = "float32", share: float = 1.0, networks: int = GENERAL_NETWORKS
) -> tuple[Task, ...]:
    """What to measure for networks that are not known yet.

    Args:
        runtime: one of `runtimes.NAMES`.
        precision: of the operations: "float32" or "int8".
        share: of the operations that are drawn: more than 1 where one takes next to no time.
        networks: how many are generated.

    Returns:
        Lone operations drawn from `distributions`, kernels of some generated networks, probes of steps and merges, and
        the generated networks.
    """
    rng = np.random.default_rng(0)
    rules, supported = merges(runtime, precision), _supported(runtime)
    drawn = list(draw_ops(rng, rules, supported, share=DRAWN_SHARE * share, dtype=precision, rows=GENERATED))
    drawn += draw_ops(rng, rules, supported, share=share, dtype=precision, rows=OTHERS)
    small = runtime.partition(":")[0] in MICROCONTROLLERS
    made = [network.of_type(precision) for network in generated_networks(rng, networks, small)]
    kernels = [kernel.op for network in made for kernel in fuse(network, rules | CANDIDATES)]
    probed = [*step_probes(in_type(op, precision) for op in PROBE_SITES), *merge_probes([*drawn, *kernels])]
    images = draw_ops(np.random.default_rng(3), rules, supported, share=share, dtype=precision, rows=NORMALISING)
    ruled: list[OpConfig] = []
    if not rules.isdisjoint(fusions.COPIES):
        ruled += draw_ops(np.random.default_rng(4), rules, supported, share=share, dtype=precision, rows=COPIES)
    if fusions.IMAGE_CONV in rules:
        ruled += draw_ops(np.random.default_rng(5), rules, supported, share=share, dtype=precision, rows=SCALED)
    apart = [kernel.op for network in made[:TAKEN_APART] for kernel in fuse(network, rules)]
    ops = dict.fromkeys(op for op in [*drawn, *apart, *probed, *images, *ruled] if supported(op))
    whole = [fused_network(network, converted(runtime, precision)) for network in made]
    return lone_and_whole(list(ops), [n for n in whole if all(supported(op) for op, _ in n.nodes)], runtime)


def refinement(profile: DeviceProfile, count: int = REFINED) -> tuple[Task, ...]:
    """More operations for a general profile: of the families whose interval times share of latency is largest.

    Args:
        profile: fitted on what `general_plan` measured.
        count: how many operations.
    """
    rng = np.random.default_rng(1)
    candidates: dict[str, list[OpConfig]] = {}
    for op in draw_ops(
        rng, merges(profile.runtime, profile.precision), _supported(profile.runtime), dtype=profile.precision
    ):
        candidates.setdefault(op.family, []).append(op)
    weight = dict.fromkeys(candidates, 0.0)
    for network in generated_networks(np.random.default_rng(2), 24):
        ops = [kernel.op for kernel in kernels_of(network.of_type(profile.precision), profile)]
        predictions = profile.predict(ops)
        total = sum(p.latency_ms for p in predictions)
        for op, p in zip(ops, predictions, strict=True):
            if op.family in weight and p.latency_ms:
                spread = min(p.high_ms / p.latency_ms, 3.0) - 1.0
                weight[op.family] += spread * p.latency_ms / total
    whole = sum(weight.values()) or 1.0
    chosen = [op for family, ops in candidates.items() for op in ops[: int(np.ceil(count * weight[family] / whole))]]
    return lone_and_whole(chosen, [], profile.runtime)


def lone_and_whole(ops: Sequence[OpConfig], networks: Sequence[Network], runtime: str) -> tuple[Task, ...]:
    """Tasks of operations and networks; every few operations with a cold cache where the runtime asks for it.

    With them go the contexts of operations that have one, and where calls cost much an operation that costs no more.
    """
    engine = runtimes.get(runtime)
    contexts = [context for op in ops for context in engine.contexts_of(op)]
    calls = [in_type(CALL, ops[0].dtype)] if engine.pays_for_calls and ops else []
    every = dict.fromkeys([*ops, *contexts, *calls])
    lone = [Task(Network.of(op), "op", engine.times_kernels and i % COLD_EVERY == 0) for i, op in enumerate(every)]
    return tasks_of([*lone, *(Task(network, "network") for network in dict.fromkeys(networks))])


def _supported(runtime: str) -> Callable[[OpConfig], bool]:
    engine = runtimes.get(runtime)
    return lambda op: engine.reason_unsupported(op) is None
