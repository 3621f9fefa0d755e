"""From a journal to a device profile."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from latency_lab import runtimes
from latency_lab.errors import MissingRuntimeError, UnmeasuredError
from latency_lab.fitting.fusions import find_fusions
from latency_lab.fitting.network import conformal_quantile, fit_network
from latency_lab.fitting.points import Measured, measured_ops, tables_of
from latency_lab.fitting.predictors import fit_predictor
from latency_lab.fitting.steps import block_of_kind, find_steps, quanta_of_kind
from latency_lab.profiles import DeviceProfile, NetworkCorrection, Predictor, Roofline
from latency_lab.profiling import Journal

FOLDS = 3
DEFAULT_CACHE_BYTES = 1 << 20


def fit_profile(journal: Journal | str | Path, *, name: str | None = None) -> DeviceProfile:
    """Fits what a journal measured.

    Args:
        journal: or its path.
        name: of the profile; by default the journal's file name.

    Returns:
        The profile: tables, predictors with held-out errors, steps, fusions, whole-network correction.

    Raises:
        UnmeasuredError: the journal holds no measured operation.
        MissingRuntimeError: scikit-learn is not installed.
    """
    try:
        import sklearn  # noqa: F401
    except ModuleNotFoundError as error:
        raise MissingRuntimeError("Fitting needs scikit-learn. Run: pip install 'latency-lab[fit]'") from error
    book = journal if isinstance(journal, Journal) else Journal.load(journal)
    measured = measured_ops(book)
    if not measured:
        reasons = "; ".join(sorted(set(book.failures.values()))[:3]) or "it holds no blocks"
        raise UnmeasuredError(f"The journal {book.path} has no measured operation to fit: {reasons}.")
    runtime = runtimes.get(book.identity["runtime"])
    fusions = find_fusions(measured, runtime.conversion_fusions, runtime.expected_fusions)
    bare = DeviceProfile(
        name=name or book.path.name.removesuffix(".jsonl").removesuffix(".journal"),
        runtime=runtime.name,
        kind="measured",
        roofline=_roofline(measured),
        threads=int(book.identity["threads"]),
        precision=str(book.identity["precision"]),
        fusions=fusions,
        network=NetworkCorrection(cache_bytes=_cache_bytes(book)),
        environment={**book.identity, "taken": book.notes[0].get("time") if book.notes else None},
        protocol=book.protocol,
        journal={"file": book.path.name, "sha256": book.digest, "failed": dict(sorted(book.failures.items()))},
    )
    errors = _held_out(bare, measured)
    fitted = _with_ops(bare, measured)
    predictors = {k: dataclasses.replace(p, half_width=_half_widths(k, errors)) for k, p in fitted.predictors.items()}
    fitted = dataclasses.replace(fitted, predictors=predictors, holdout=_holdout(errors))
    return dataclasses.replace(fitted, network=fit_network(fitted, book))


def _with_ops(profile: DeviceProfile, measured: Sequence[Measured]) -> DeviceProfile:
    """The profile with tables, steps and predictors of these points."""
    steps = find_steps(measured)
    predictors: dict[str, Predictor] = {}
    for kind in sorted({m.op.kind for m in measured}):
        chosen = [m for m in measured if m.op.kind == kind]
        predictors[kind] = fit_predictor(kind, chosen, quanta_of_kind(kind, steps), block_of_kind(kind, steps))
    return dataclasses.replace(profile, tables=tables_of(measured), predictors=predictors, steps=steps)


def _held_out(bare: DeviceProfile, measured: Sequence[Measured]) -> dict[str, list[float]]:
    """Family -> log(predicted / measured) of each point, by a profile fitted without its fold."""
    folds = np.random.default_rng(0).permutation(len(measured)) % FOLDS
    errors: dict[str, list[float]] = {}
    for fold in range(FOLDS):
        rest = [m for m, f in zip(measured, folds, strict=True) if f != fold]
        unseen = [m for m, f in zip(measured, folds, strict=True) if f == fold]
        if not rest or not unseen:
            continue
        profile = _with_ops(bare, rest)
        for m, prediction in zip(unseen, profile.predict([m.op for m in unseen]), strict=True):
            if prediction.source != "bounded":
                errors.setdefault(m.op.family, []).append(float(np.log(prediction.latency_ms / m.point.latency_ms)))
    return dict(sorted(errors.items()))


def _holdout(errors: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """Family -> number of points, median and 90th percentile of the relative error, share within 10 %."""
    found = {}
    for family, logs in errors.items():
        relative = np.abs(np.expm1(logs))
        found[family] = {
            "points": len(logs),
            "median": round(float(np.median(relative)), 5),
            "p90": round(float(np.percentile(relative, 90)), 5),
            "within_10_percent": round(float(np.mean(relative <= 0.1)), 5),
        }
    return found


def _half_widths(kind: str, errors: dict[str, list[float]]) -> dict[str, float]:
    """Family -> conformal half-width of log t; "" is for families without held-out points."""
    own = {family: logs for family, logs in errors.items() if family.split()[0] == kind}
    widths = {family: conformal_quantile(np.abs(logs), 0.9) for family, logs in own.items() if len(logs) >= 5}
    pooled = [abs(log) for logs in own.values() for log in logs]
    return {**widths, "": 2 * conformal_quantile(pooled, 0.9) if pooled else 0.7}


def _roofline(measured: Sequence[Measured]) -> Roofline:
    """Peak of the fastest conv or dense operation, bandwidth of the fastest elementwise one (of any, without one)."""
    peak = max((2e-6 * m.op.macs / m.point.latency_ms for m in measured if m.op.macs), default=1.0)
    light = [m for m in measured if m.op.kind == "add"] or [m for m in measured if not m.op.macs] or list(measured)
    bandwidth = max(1e-6 * m.op.traffic_bytes / m.point.latency_ms for m in light)
    return Roofline(peak_gflops=float(peak), bandwidth_gb_s=float(bandwidth))


def _cache_bytes(journal: Journal) -> int:
    caches = journal.identity.get("cache_bytes") or {}
    return int(caches.get("L2", DEFAULT_CACHE_BYTES))
