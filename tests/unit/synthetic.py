"""A device that follows a formula, and the journal that measuring it would leave."""

import numpy as np

from latency_lab import runtimes
from latency_lab.ops import Network, OpConfig
from latency_lab.profiles import fuse
from latency_lab.profiling import Journal, Protocol, Task

IDENTITY = {
    "cpu": "formula",
    "cache_bytes": {"L2": 1 << 20},
    "package": "none",
    "version": "0",
    "worker": 1,
    "runtime": "litert",
    "threads": 1,
    "precision": "float32",
}
QUANTUM = 16
A, B_MS = 1.1, -0.0005


def op_ms(op):
    """1 us a call, 50 GFLOP/s in whole steps of 16 output channels, 20 GB/s."""
    stepped = op.macs * (-(-op.out_channels // QUANTUM) * QUANTUM / op.out_channels)
    return 1e-3 + 2e-6 * stepped / 50 + 1e-6 * (op.input_bytes + op.output_bytes) / 20


def lone_ms(op, runtime):
    """With what the runtime has around the operation."""
    return op_ms(op) + sum(map(op_ms, runtimes.get(runtime).contexts_of(op)))


def network_ms(network, fusions):
    ops = [kernel.op for kernel in fuse(network, fusions)]
    return A * sum(map(op_ms, ops)) + B_MS * len(ops)


def write_journal(path, tasks, fusions=frozenset(), failures=(), call_ms=0.0, runtime="litert"):
    """Five rounds of every task, the lower quartile as the formula says; lone ones cost a call more.

    What differs between rounds differs from task to task, so that no moment is slower than another."""
    journal = Journal.resume(path, {**IDENTITY, "runtime": runtime}, Protocol())
    for round_ in range(5):
        for i, task in enumerate(tasks):
            if task.key in failures:
                if round_ == 0:
                    journal.append({"key": task.key, "round": 0, "status": "failed", "reason": "it cannot"}, task)
                continue
            alone = task.role == "op"
            ms = lone_ms(task.network.nodes[0][0], runtime) + call_ms if alone else network_ms(task.network, fusions)
            ms *= 1 + 0.002 * ((round_ + i) % 5 - 1)
            summary = {"min": ms, "deciles": [ms] * 9, "median": ms}
            line = {"key": task.key, "round": round_, "status": "ok", "count": 5, "repeats": 1}
            journal.append({**line, "wall_ms": summary, "cpu_ms": None, "cold_ms": None}, task)
    journal.close()
    return Journal.load(path)


def conv_tasks():
    """3x3 convs around step edges, and dense layers."""
    counts = (4, 8, 12, 15, 16, 17, 20, 24, 31, 32, 33, 36, 48, 63, 64)
    conv = OpConfig("conv2d", height=14, width=14, kernel_size=(3, 3), activation="relu")
    ops = [conv.with_channels(32, c) for c in counts] + [conv.with_channels(c, 32) for c in counts]
    rng = np.random.default_rng(0)
    ops += [conv.with_channels(int(a), int(b)) for a, b in rng.integers(4, 64, (40, 2))]
    ops += [OpConfig("dense", in_channels=c, out_channels=10) for c in counts]
    return [Task(Network.of(op)) for op in ops]


def chain(widths):
    """3x3 convs behind one another."""
    nodes, inside = [], 16
    for i, width in enumerate(widths):
        op = OpConfig("conv2d", height=14, width=14, kernel_size=(3, 3), activation="relu")
        nodes.append((op.with_channels(inside, int(width)), (i - 1,)))
        inside = int(width)
    return Network(tuple(nodes), f"chain {widths}")
