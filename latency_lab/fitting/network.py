"""Fits the whole-network correction on networks that were measured beside the operations.

    argmin over (a, d, b, c) of sum (features . (a, d, b, c) / measured - 1)^2 within bounds that physics allows

and states how far each network is from a fit that has not seen it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from latency_lab.ops import Network, OpConfig
from latency_lab.profiles import DeviceProfile, Kernel, NetworkCorrection, fuse
from latency_lab.profiles.layout import with_reorders
from latency_lab.profiling import Journal

Floats = npt.NDArray[np.float64]

LOWER = np.array([0.5, 0.0, -0.01, 0.0])
UPPER = np.array([1.6, 1.5, 0.02, 1e-6])
PRIOR = np.array([1.0, 0.3, 0.0, 0.0])
PRIOR_WEIGHT = 0.02


def fit_network(profile: DeviceProfile, journal: Journal) -> NetworkCorrection:
    """The correction for a profile whose tables and predictors are fitted.

    Args:
        profile: its `network.cache_bytes` is kept.
        journal: networks are its tasks of that role.

    Returns:
        The correction; with fewer than 4 networks, a sum of lone operations that claims +-50 %.
    """
    keys = [key for key, task in journal.tasks.items() if task.role == "network" and key in journal.blocks]
    if len(keys) < 4:
        return dataclasses.replace(profile.network, half_width=0.5)
    hot = dataclasses.replace(profile, network=dataclasses.replace(profile.network, cold_share=0.0))
    cold = dataclasses.replace(profile, network=dataclasses.replace(profile.network, cold_share=1.0))
    rows, measured = [], []
    for key in keys:
        ops = [kernel.op for kernel in kernels_of(journal.tasks[key].network, profile)]
        rows.append(_features(ops, hot, cold))
        measured.append(journal.statistic(key).latency_ms)
    terms, latency = np.array(rows), np.array(measured)
    a, d, b, c = _solve(terms, latency)
    chosen = np.arange(len(keys))
    residuals = [float(terms[i] @ _solve(terms[chosen != i], latency[chosen != i]) / latency[i] - 1) for i in chosen]
    return NetworkCorrection(
        a=float(a),
        b_ms=float(b),
        c_ms_per_byte=float(c),
        cold_share=float(d / a),
        cache_bytes=profile.network.cache_bytes,
        residuals=tuple(round(r, 5) for r in residuals),
        half_width=conformal_quantile(np.abs(residuals), 0.9),
    )


def kernels_of(network: Network, profile: DeviceProfile) -> tuple[Kernel, ...]:
    """What the runtime executes for a network that its builder wrote, reorders of its layout among them."""
    return with_reorders(fuse(network, profile.fusions), profile.layout_block)


def conformal_quantile(errors: npt.ArrayLike, level: float) -> float:
    """The ceil((n + 1) * level)-th smallest error; the largest where there are too few.

    Source: V. Vovk, A. Gammerman, G. Shafer, "Algorithmic Learning in a Random World", 2005.
    """
    ordered = np.sort(np.asarray(errors, np.float64))
    return float(ordered[min(len(ordered), int(np.ceil((len(ordered) + 1) * level))) - 1])


def _features(ops: Sequence[OpConfig], hot: DeviceProfile, cold: DeviceProfile) -> list[float]:
    """[sum of hot, sum of cold - hot, number of kernels, bytes beyond the cache]."""
    warm = sum(p.latency_ms for p in hot.predict(ops))
    chilled = sum(p.latency_ms for p in cold.predict(ops))
    beyond = sum(max(0, op.traffic_bytes - hot.network.cache_bytes) for op in ops)
    return [warm, chilled - warm, float(len(ops)), float(beyond)]


def _solve(terms: Floats, latency_ms: Floats) -> Floats:
    """Bounded least squares of relative errors, with a light pull towards a plain sum."""
    from scipy.optimize import lsq_linear

    scale = np.maximum(np.abs(terms).mean(axis=0), 1e-12)
    design = terms / latency_ms[:, None]
    pull = np.diag(PRIOR_WEIGHT * np.sqrt(len(terms)) * scale / scale[0])
    stacked = np.vstack([design, pull])
    wanted = np.concatenate([np.ones(len(terms)), pull @ PRIOR])
    return np.asarray(lsq_linear(stacked, wanted, bounds=(LOWER, UPPER)).x, np.float64)
