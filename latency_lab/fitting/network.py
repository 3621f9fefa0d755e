"""Fits the whole-network correction on networks that were measured beside the operations.

    argmin over a of each group, once, cold_share, b, c of
    sum rho((sum_g a_g * (hot_g + cold_share * (cold_g - hot_g)) + b * kernels + c * beyond) / measured - 1)

    beyond = max(0, bytes at many positions, hot at most of each kernel + once * bytes at one - cached)

within bounds that physics allows (b takes off no more than a call of the cheapest kernels can have cost), rho the soft
absolute value: a network that was measured in a bad moment pulls little. How many bytes of weights a lone kernel finds
close by, and how many of all a cache keeps, are those of a few sizes that leave the networks closest to fits that have
not seen them; of the latter the fewest that do, but for what may be chance. It states how far each network is from a
fit that has not seen it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from latency_lab.ops import Network, OpConfig
from latency_lab.profiles import DeviceProfile, Kernel, NetworkCorrection, fuse
from latency_lab.profiles.correction import GROUPS, LEAST, group_of
from latency_lab.profiles.layout import with_reorders
from latency_lab.profiling import Journal

Floats = npt.NDArray[np.float64]

PRIOR = np.array([*[1.0] * len(GROUPS), 1.0, 0.3, 0.0, 0.0])
LOWER = np.array([*[0.6] * len(GROUPS), 0.0, 0.0, -np.inf, 0.0])
UPPER = np.array([*[1.6] * len(GROUPS), 2.0, 1.5, 0.02, 1e-6])
FACTOR_WEIGHT, OTHERS_WEIGHT = 0.05, 0.02
"""Of the prior against one network's relative error: for each factor, however little of the time its kinds take, and
for the other terms by their share of the time (once: of the weights). Some kinds take little of the generated networks'
time and more of real ones; a factor of 0.86 that such kinds were given in one run did not hold for the networks of
another."""
CHEAP = 0.05
"""The quantile of the networks' kernels that b leaves at `LEAST` of their own time, at most."""
CLOSE = 0.02
"""Relative errors beyond this count less than their square."""
CACHED_BYTES = (0.0, 2e6, 4e6, 6e6, 8e6, 12e6, 16e6, 24e6, 32e6, 48e6, 64e6, 96e6)
HOT_BYTES = (None, 4e6, 2e6, 1e6, 0.5e6)
"""All, or about what second-level caches hold."""
LEAST_NETWORKS = 4


def fit_network(profile: DeviceProfile, journal: Journal) -> NetworkCorrection:
    """The correction for a profile whose tables and predictors are fitted.

    Args:
        profile: with the fusions and the layout of the runtime.
        journal: networks are its tasks of that role.

    Returns:
        The correction; with fewer than 4 networks, a sum of lone operations that claims +-50 %.
    """
    keys = [key for key, task in journal.tasks.items() if task.role == "network" and key in journal.blocks]
    if len(keys) < LEAST_NETWORKS:
        return dataclasses.replace(profile.network, half_width=0.5)
    bare = dataclasses.replace(profile, network=dataclasses.replace(profile.network, cold_share=0.0))
    cold = dataclasses.replace(profile, network=dataclasses.replace(profile.network, cold_share=1.0))
    networks = [[kernel.op for kernel in kernels_of(journal.tasks[key].network, profile)] for key in keys]
    latency = np.array([journal.statistic(key).latency_ms for key in keys])
    hot_ms, cold_ms = ([_times(ops, lone) for ops in networks] for lone in (bare, cold))
    least_b = -(1 - LEAST) * float(np.quantile(np.concatenate(hot_ms), CHEAP))
    known = list(zip(networks, hot_ms, cold_ms, strict=True))
    choices = {hot: np.array([_features(*each, hot) for each in known]) for hot in HOT_BYTES}
    hot = closest(choices, latency, least_b)
    terms = choices[hot]
    sizes = told_apart(terms[:, -2:].sum(axis=1))
    tried = {kept: leave_one_out(terms, latency, least_b, kept) for kept in sizes}
    kept = fewest(tried)
    found, residuals = _solve(terms, latency, least_b, kept), tried[kept]
    *a, once, share, b, c = found.tolist()
    return NetworkCorrection(
        a={group: round(factor, 6) for group, factor in zip(GROUPS, a, strict=True)},
        b_ms=b,
        c_ms_per_byte=c,
        cold_share=share if terms[:, len(GROUPS) : 2 * len(GROUPS)].any() else 0.0,
        residuals=tuple(round(float(r), 5) for r in residuals),
        half_width=conformal_quantile(np.abs(residuals), 0.9),
        cached_bytes=kept,
        once=round(once, 6),
        hot_bytes=hot,
    )


def closest(choices: Mapping[float | None, Floats], latency_ms: Floats, least_b: float) -> float | None:
    """The size that leaves networks closest to fits that have not seen them, no weights being kept for the next run.

    Args:
        choices: size -> terms of each network, as of `leave_one_out`, [n, 2 * groups + 3].
        latency_ms, least_b: as of `leave_one_out`.
    """
    far = {size: np.abs(leave_one_out(terms, latency_ms, least_b, 0.0)).mean() for size, terms in choices.items()}
    return min(far, key=lambda size: far[size])


def told_apart(warm_bytes: Floats) -> list[float]:
    """Sizes of `CACHED_BYTES` that the networks can tell: a quarter of all weights is beyond.

    Where little is, what a byte costs would be anything, and a network of many weights be charged with it.

    Args:
        warm_bytes: of each network, [n].
    """
    return [size for size in CACHED_BYTES if np.maximum(warm_bytes - size, 0.0).sum() >= warm_bytes.sum() / 4]


def fewest(errors: Mapping[float, Floats]) -> float:
    """The smallest size that leaves an error within one standard error of the least.

    The rule of L. Breiman et al., "Classification and Regression Trees", 1984: what differs by less is chance. A cache
    that keeps much frees small networks from what their weights cost, and few of the generated ones are small.

    Args:
        errors: size -> predicted / measured - 1 of each network, [n].
    """
    mean = {size: float(np.abs(found).mean()) for size, found in errors.items()}
    best = min(mean, key=lambda size: mean[size])
    most = mean[best] + float(np.abs(errors[best]).std()) / np.sqrt(len(errors[best]))
    return min(size for size in mean if mean[size] <= most)


def kernels_of(network: Network, profile: DeviceProfile) -> tuple[Kernel, ...]:
    """What the runtime executes for a network that its builder wrote, reorders of its layout among them."""
    return with_reorders(fuse(network, profile.fusions), profile.layout_block)


def conformal_quantile(errors: npt.ArrayLike, level: float) -> float:
    """The ceil((n + 1) * level)-th smallest error; the largest where there are too few.

    Source: V. Vovk, A. Gammerman, G. Shafer, "Algorithmic Learning in a Random World", 2005.
    """
    ordered = np.sort(np.asarray(errors, np.float64))
    return float(ordered[min(len(ordered), int(np.ceil((len(ordered) + 1) * level))) - 1])


def _features(ops: Sequence[OpConfig], hot_ms: Floats, cold_ms: Floats, hot_bytes: float | None) -> list[float]:
    """[hot times of each group, cold - hot of each group, number of kernels, bytes at many positions and at one].

    Those at many positions are `hot_bytes` at most, of each kernel.
    """
    most = np.inf if hot_bytes is None else hot_bytes
    groups = np.array([group_of(op) for op in ops])
    sums = [float(ms[groups == g].sum()) for ms in (hot_ms, cold_ms - hot_ms) for g in GROUPS]
    many = sum(min(op.weight_bytes, most) for op in ops if op.output_positions > 1)
    once = sum(op.weight_bytes for op in ops if op.output_positions == 1)
    return [*sums, float(len(ops)), float(many), float(once)]


def _times(ops: Sequence[OpConfig], profile: DeviceProfile) -> Floats:
    return np.array([prediction.latency_ms for prediction in profile.predict(ops)])


def leave_one_out(terms: Floats, latency_ms: Floats, least_b: float, cached: float) -> Floats:
    """predicted / measured - 1 of each network by a fit that has not seen it, [n].

    Args:
        terms: hot and cold - hot of each group, ms, kernels, and bytes of those at many positions and of those at one,
            of each network, [n, 2 * groups + 3].
        latency_ms: measured, [n].
        least_b: the lower bound of b, ms.
        cached: bytes of weights that cost nothing.
    """
    chosen = np.arange(len(latency_ms))
    fits = [_solve(terms[chosen != i], latency_ms[chosen != i], least_b, cached) for i in chosen]
    return np.array([float(_latency_ms(terms[i], fits[i], cached) / latency_ms[i] - 1) for i in chosen])


def _latency_ms(terms: Floats, x: Floats, cached: float) -> Floats:
    """Of networks, [...], by x = (a of each group, once, cold_share, b, c); terms [..., 2 * groups + 3]."""
    a, (once, share, b, c) = x[: len(GROUPS)], x[len(GROUPS) :]
    beyond = np.maximum(terms[..., -2:] @ np.array([1.0, once]) - cached, 0.0)
    return np.asarray(terms[..., :-2] @ np.array([*a, *(share * a), b]) + c * beyond)


def _solve(terms: Floats, latency_ms: Floats, least_b: float, cached: float) -> Floats:
    """Bounded robust least squares of relative errors, with a pull of each number towards its prior."""
    from scipy.optimize import least_squares

    lower = LOWER.copy()
    lower[-2] = least_b
    sizes, groups = np.abs(terms).mean(axis=0), len(GROUPS)
    beyond = float(np.maximum(terms[:, -2:].sum(axis=1) - cached, 0.0).mean())
    others = [sizes[groups : 2 * groups].sum(), sizes[2 * groups], beyond]
    scale = np.maximum([*sizes[:groups], 1.0, *others], 1e-12)
    pull = OTHERS_WEIGHT * scale / sizes[:groups].sum()
    pull[:groups] = FACTOR_WEIGHT
    pull[groups] = OTHERS_WEIGHT * sizes[-1] / max(sizes[-2:].sum(), 1e-12)
    start = np.clip(PRIOR, lower + 1e-9, UPPER - 1e-9) * scale

    def residuals(x: Floats) -> Floats:
        found = x / scale
        relative = _latency_ms(terms, found, cached) / latency_ms - 1.0
        return np.concatenate([relative, np.sqrt(len(terms)) * pull * (found - PRIOR)])

    bounds = (lower * scale, UPPER * scale)
    found = least_squares(residuals, start, bounds=bounds, x_scale="jac", loss="soft_l1", f_scale=CLOSE)
    return np.asarray(found.x / scale, np.float64)
