"""The closed-form roofline: an op takes as long as its arithmetic at the peak or its bytes at the bandwidth.

    latency = max(FLOPs / peak, bytes / bandwidth)

A tie goes to the arithmetic. Convs, transposed ones too, and dense are charged 2 FLOPs a multiply-add and the bytes of
input, kernel and output; batch norm, activations, softmax, add, multiply and concatenation the bytes of inputs and
output; pooling, padding, flatten and biases nothing. That is MorphNet's convention.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from latency_lab.cost.terms import Larger, Polynomial
from latency_lab.ops import KERNELED, OpConfig

CHARGED = KERNELED | {"batch_norm", "activation", "softmax", "add", "multiply", "concatenate"}


def flops(op: OpConfig) -> float:
    """2 a multiply-add of a conv or dense op; 0 for other kinds.

    Example:
        >>> from latency_lab.cost.roofline import flops
        >>> from latency_lab.ops import OpConfig
        >>> flops(OpConfig("dense", in_channels=17, out_channels=19))
        646
    """
    return 2 * op.macs


def kernel_weights(op: OpConfig) -> float:
    """Weights of the kernel alone, without bias; 0 for kinds that have no kernel."""
    return dataclasses.replace(op, use_bias=False).weight_count if op.kind in KERNELED else 0


def charged_bytes(op: OpConfig) -> float:
    """Bytes that the roofline charges: inputs, kernel, output, each once.

    Example:
        >>> from latency_lab.cost.roofline import charged_bytes
        >>> from latency_lab.ops import OpConfig
        >>> charged_bytes(OpConfig("dense", in_channels=17, out_channels=19))
        1436
    """
    if op.kind not in CHARGED:
        return 0
    bare = dataclasses.replace(op, use_bias=False)
    return bare.traffic_bytes - (bare.weight_bytes if op.kind == "batch_norm" else 0)


def roofline_terms(ops: Sequence[OpConfig], peak_gflops: float, bandwidth_gb_s: float) -> Larger:
    """Milliseconds of each op.

    Args:
        ops: whose channel counts are the variables.
        peak_gflops: 1e9 FLOPs a second.
        bandwidth_gb_s: 1e9 bytes a second.
    """
    arithmetic = Polynomial.of(ops, lambda op: flops(op))
    traffic = Polynomial.of(ops, lambda op: charged_bytes(op))
    return Larger(
        Polynomial(arithmetic.coefficients / (peak_gflops * 1e6)),
        Polynomial(traffic.coefficients / (bandwidth_gb_s * 1e6)),
    )
