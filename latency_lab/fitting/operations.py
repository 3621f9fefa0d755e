"""Fits lone operations: tables, steps, predictors, and how far off they are on what they did not see."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from latency_lab.errors import MissingRuntimeError
from latency_lab.fitting.network import conformal_quantile
from latency_lab.fitting.points import Measured, tables_of
from latency_lab.fitting.predictors import fit_predictor
from latency_lab.fitting.steps import block_of_kind, find_steps, quanta_of_kind
from latency_lab.ops import OpConfig
from latency_lab.profiles import DeviceProfile, Predictor, Roofline

Floats = npt.NDArray[np.float64]
Fit = Callable[[Sequence[Measured]], Callable[[Sequence[Measured]], Floats]]

HELD_OUT = 0.1
LEAST_HELD_OUT = 200
"""Held-out operations from which a fit states its errors on them; with fewer, each is predicted by a fit without it."""
FOLDS = 3
LEVEL = 0.9
MIN_CALIBRATION = 20
"""Held-out points from which a family has an interval of its own: below, one or two of them decide its width."""


def check_sklearn() -> None:
    """Raises MissingRuntimeError, with the command that installs it, where scikit-learn is not installed."""
    try:
        import sklearn  # noqa: F401
    except ModuleNotFoundError as error:
        raise MissingRuntimeError("Fitting needs scikit-learn. Run: pip install 'latency-lab[fit]'") from error


def fit_ops(bare: DeviceProfile, measured: Sequence[Measured]) -> DeviceProfile:
    """The profile with tables, steps and predictors of these points, their intervals and held-out errors.

    Args:
        bare: what else is known of the device.
        measured: lone operations, at least one.
    """

    unseen = [m for m in measured if is_held_out(m.op)]
    if len(unseen) >= LEAST_HELD_OUT:
        learned = _with_ops(bare, [m for m in measured if not is_held_out(m.op)])
        errors = _by_family(unseen, _logs(_times(learned), unseen))
        fitted = dataclasses.replace(learned, tables=tables_of(measured))
    else:
        errors = _by_family(measured, out_of_fold(measured, lambda rest: _times(_with_ops(bare, rest))))
        fitted = _with_ops(bare, measured)
    predictors = {k: dataclasses.replace(p, half_width=half_widths(k, errors)) for k, p in fitted.predictors.items()}
    return dataclasses.replace(
        fitted, predictors=predictors, holdout={family: summary(logs) for family, logs in errors.items()}
    )


def is_held_out(op: OpConfig) -> bool:
    """Whether predictors never learn from this operation: a tenth of all, fixed, by a digest of what it is."""
    return int.from_bytes(hashlib.sha256(op.key.encode()).digest()[:4], "big") < HELD_OUT * 2**32


def fit_alone(name: str, measured: Sequence[Measured]) -> tuple[Predictor, dict[str, float]]:
    """A predictor of one thing (a block, say) with its interval, and its held-out errors.

    Args:
        name: of the predictor.
        measured: its points, at least one.
    """

    def fit(rest: Sequence[Measured]) -> Callable[[Sequence[Measured]], Floats]:
        predictor = fit_predictor(name, rest, (1, 1), 1)
        return lambda unseen: predictor.latency_ms([m.op for m in unseen])

    logs = [log for logs in _by_family(measured, out_of_fold(measured, fit)).values() for log in logs]
    width = conformal_quantile(np.abs(logs), LEVEL) if logs else 0.7
    return dataclasses.replace(fit_predictor(name, measured, (1, 1), 1), half_width={"": width}), summary(logs)


def out_of_fold(measured: Sequence[Measured], fit: Fit) -> Floats:
    """log(predicted / measured) of each point by a fit that did not see its fold, [n]; NaN where there is none.

    Args:
        measured: points, [n].
        fit: points to a function that predicts others, ms.
    """
    folds = np.random.default_rng(0).permutation(len(measured)) % FOLDS
    logs = np.full(len(measured), np.nan)
    for fold in range(FOLDS):
        rest = [m for m, f in zip(measured, folds, strict=True) if f != fold]
        unseen = [m for m, f in zip(measured, folds, strict=True) if f == fold]
        if rest and unseen:
            logs[folds == fold] = _logs(fit(rest), unseen)
    return logs


def summary(logs: Sequence[float]) -> dict[str, float]:
    """Number of points, median and 90th percentile of the relative error, share within 10 %; {} of no points."""
    if not logs:
        return {}
    relative = np.abs(np.expm1(logs))
    return {
        "points": len(logs),
        "median": round(float(np.median(relative)), 5),
        "p90": round(float(np.percentile(relative, 90)), 5),
        "within_10_percent": round(float(np.mean(relative <= 0.1)), 5),
    }


def half_widths(kind: str, errors: dict[str, list[float]]) -> dict[str, float]:
    """Family -> conformal half-width of log t; "" is for families without held-out points.

    A family of fewer than `MIN_CALIBRATION` points has the width of all families of its kind together.
    """
    own = {family: logs for family, logs in errors.items() if family.split()[0] == kind}
    pooled = [abs(log) for logs in own.values() for log in logs]
    if not pooled:
        return {"": 0.7}
    shared = conformal_quantile(pooled, LEVEL)
    widths = {
        family: conformal_quantile(np.abs(logs), LEVEL) if len(logs) >= MIN_CALIBRATION else shared
        for family, logs in own.items()
    }
    return {**widths, "": 2 * shared}


def roofline_of(measured: Sequence[Measured]) -> Roofline:
    """Peak of the fastest conv or dense operation, bandwidth of the fastest elementwise one (of any, without one)."""
    peak = max((2e-6 * m.op.macs / m.point.latency_ms for m in measured if m.op.macs), default=1.0)
    light = [m for m in measured if m.op.kind == "add"] or [m for m in measured if not m.op.macs] or list(measured)
    bandwidth = max(1e-6 * m.op.traffic_bytes / m.point.latency_ms for m in light)
    return Roofline(peak_gflops=float(peak), bandwidth_gb_s=float(bandwidth))


def closest_cache(identity: Mapping[str, Any]) -> float | None:
    """Size of the cache closest to the core that may keep a lone kernel's weights, bytes: not the first level's.

    Args:
        identity: what a device says of itself.

    Returns:
        None where it does not say.
    """
    sizes = identity.get("cache_bytes") or {}
    beyond_first = [float(size) for level, size in sizes.items() if level != "L1"]
    return min(beyond_first or map(float, sizes.values()), default=None)


def _with_ops(profile: DeviceProfile, measured: Sequence[Measured]) -> DeviceProfile:
    """The profile with tables, steps and predictors of these points."""
    steps, cached = find_steps(measured), closest_cache(profile.environment) or np.inf
    predictors: dict[str, Predictor] = {}
    for kind in sorted({m.op.kind for m in measured}):
        chosen = [m for m in measured if m.op.kind == kind]
        quanta, block = quanta_of_kind(kind, steps), block_of_kind(kind, steps)
        predictors[kind] = fit_predictor(kind, chosen, quanta, block, cached)
    return dataclasses.replace(profile, tables=tables_of(measured), predictors=predictors, steps=steps)


def _times(profile: DeviceProfile) -> Callable[[Sequence[Measured]], Floats]:
    """What a profile predicts of points, ms, [n]; NaN where it knows nothing."""
    return lambda points: np.array(
        [p.latency_ms if p.source != "bounded" else np.nan for p in profile.predict([m.op for m in points])]
    )


def _logs(predict: Callable[[Sequence[Measured]], Floats], points: Sequence[Measured]) -> Floats:
    """log(predicted / measured), [n]."""
    found: Floats = np.log(predict(points) / np.array([m.point.latency_ms for m in points]))
    return found


def _by_family(measured: Sequence[Measured], logs: Floats) -> dict[str, list[float]]:
    """Family -> its held-out errors."""
    errors: dict[str, list[float]] = {}
    for m, log in zip(measured, logs, strict=True):
        if np.isfinite(log):
            errors.setdefault(m.op.family, []).append(float(log))
    return dict(sorted(errors.items()))
