"""Fits the family predictors: physics by non-negative least squares, what is left by boosted trees."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from latency_lab.fitting.boosting import fit_trees
from latency_lab.fitting.points import Measured
from latency_lab.ops import has_short_rows
from latency_lab.profiles.features import features, work
from latency_lab.profiles.predictor import Predictor, hull_point, regimes

Floats = npt.NDArray[np.float64]

MIN_FAMILY = 12
MIN_SCALED = 4
MIN_REGIME = 10
MIN_TREES = 40


def fit_predictor(
    kind: str, measured: Sequence[Measured], quanta: tuple[int, int], block: int, cached: float = np.inf
) -> Predictor:
    """The predictor of one kind from its measured points, at least one.

    Families of `MIN_FAMILY` points or more get coefficients of their own, those of `MIN_SCALED` or more the kind's
    times one number: a runtime may have no fast kernel for a family of few, and to the trees these would be outliers.
    What else `regimes` names likewise, from the slowest of what comes next there; rows of few channels, which take many
    times as long, count in their own alone. Trees need `MIN_TREES` points.
    """
    ops = [m.op for m in measured]
    latency_ms = np.array([m.point.latency_ms for m in measured])
    terms = work(ops, quanta, cached)
    usual = ~np.array([has_short_rows(op) for op in ops])
    usual = usual if usual.any() else ~usual
    coefficients = {"": _relative_nnls(terms[usual], latency_ms[usual])}
    levels = [regimes(op, block) for op in ops]
    odd = np.array(["odd" in found[-2] for found in levels])
    narrowest, families = np.array([found[0][0] for found in levels]), np.array([found[-2][-1] for found in levels])
    for names, least, among in (
        (families, MIN_FAMILY, usual),
        (np.full(len(ops), "odd"), MIN_FAMILY, odd),
        (narrowest, MIN_REGIME, np.full(len(ops), True)),
    ):
        for name in map(str, sorted(set(names[among]))):
            rows = among & (names == name)
            if rows.sum() >= least:
                coefficients[name] = _relative_nnls(terms[rows], latency_ms[rows])
            elif rows.sum() >= MIN_SCALED:
                shared = _slowest_wider(name, levels[int(np.flatnonzero(rows)[0])], coefficients, terms[rows])
                factor = float(np.median(latency_ms[rows] / (terms[rows] @ shared)))
                coefficients[name] = tuple((factor * shared).tolist())
    cold, hull = _fit_cold(measured, terms), _hull(measured)
    base = Predictor(kind, quanta, coefficients, None, cold, hull, block=block, cached=cached)
    if len(ops) < MIN_TREES:
        return base
    trees = fit_trees(features(ops), np.log(latency_ms / base.latency_ms(ops)))
    return dataclasses.replace(base, trees=trees)


def _slowest_wider(
    name: str, levels: Sequence[Sequence[str]], coefficients: Mapping[str, tuple[float, ...]], terms: Floats
) -> Floats:
    """Of what is one wider than a regime and has coefficients, those by which these terms take longest."""
    place = next(k for k, level in enumerate(levels) if name in level)
    found = next(level for level in levels[place + 1 :] if any(other in coefficients for other in level))
    known = [np.array(coefficients[other]) for other in found if other in coefficients]
    return max(known, key=lambda shared: float(np.sum(terms @ shared)))


def _relative_nnls(terms: Floats, latency_ms: Floats) -> tuple[float, ...]:
    """argmin over x >= 0 of sum (terms @ x / t - 1)^2, columns scaled so that all count alike."""
    from scipy.optimize import nnls

    scale = np.maximum(np.abs(terms).max(axis=0), 1e-12)
    found, _ = nnls(terms / scale / latency_ms[:, None], np.ones(len(latency_ms)))
    if not found.any():
        found[0] = latency_ms.mean() * scale[0]
    return tuple(float(v) for v in found / scale)


def _fit_cold(measured: Sequence[Measured], terms: Floats) -> tuple[float, ...] | None:
    """Coefficients of cold - hot, for the points that have a cold time."""
    from scipy.optimize import nnls

    rows = [i for i, m in enumerate(measured) if m.point.cold_ms is not None]
    if not rows:
        return None
    extra = np.array([max(0.0, (measured[i].point.cold_ms or 0.0) - measured[i].point.latency_ms) for i in rows])
    weight = 1.0 / np.array([measured[i].point.latency_ms for i in rows])
    chosen = terms[rows].copy()
    chosen[:, 1] = 0.0  # a cold cache costs bytes, not multiply-adds
    found, _ = nnls(chosen * weight[:, None], extra * weight)
    return tuple(float(v) for v in found)


def _hull(measured: Sequence[Measured]) -> dict[str, tuple[tuple[float, float], ...]]:
    found: dict[str, list[tuple[float, float, float]]] = {}
    for m in measured:
        found.setdefault(m.op.family, []).append(hull_point(m.op))
    return {
        family: tuple((min(axis), max(axis)) for axis in zip(*points, strict=True))
        for family, points in sorted(found.items())
    }
