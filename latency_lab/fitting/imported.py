"""From timings that others measured to a device profile."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from latency_lab.errors import UnmeasuredError
from latency_lab.fitting.operations import check_sklearn, fit_alone, fit_ops, roofline_of
from latency_lab.fitting.timings import Timings, read_timings
from latency_lab.profiles import DeviceProfile, NetworkCorrection

UNKNOWN_NETWORK_HALF_WIDTH = 0.5
"""No network was timed: a network's latency is the plain sum of its operations, and as unsure as that."""


def fit_csv(
    path: str | Path,
    *,
    name: str | None = None,
    device: str | None = None,
    dtype: str | None = None,
    source: str | None = None,
    licence: str | None = None,
) -> DeviceProfile:
    """Fits a CSV file of timings.

    Args:
        path: with the columns of `fitting.timings`.
        name: of the profile; by default the file's.
        device, dtype: which rows, as of `read_timings`.
        source, licence: whose timings these are; by default what the file says.

    Returns:
        The profile. Its runtime is the file's: it predicts, and nothing can be measured on it from here. A family of
        blocks has a predictor under its own name, for `profiles.predict_block`.

    Raises:
        FileFormatError, UsageError: as of `read_timings`.
        UnmeasuredError: no row is an operation.
        MissingRuntimeError: scikit-learn is not installed.
    """
    check_sklearn()
    timings = read_timings(path, device=device, dtype=dtype)
    timings = dataclasses.replace(
        timings,
        source=timings.source if source is None else source,
        licence=timings.licence if licence is None else licence,
    )
    return fit_timings(timings, name or Path(path).name.removesuffix(".gz").removesuffix(".csv"))


def fit_timings(timings: Timings, name: str) -> DeviceProfile:
    """Fits what `read_timings` read.

    Args:
        timings: of one device and precision.
        name: of the profile.

    Raises:
        UnmeasuredError: no row is an operation.
    """
    blocks = [m for items in timings.blocks.values() for m in items]
    if not timings.ops and not blocks:
        reasons = "; ".join(f"{line}: {reason}" for line, reason in list(timings.failed.items())[:3])
        raise UnmeasuredError(f"{timings.file} has no row that is an operation: {reasons}.")
    profile = DeviceProfile(
        name=name,
        runtime=timings.runtime,
        kind="measured",
        roofline=roofline_of(timings.ops or blocks),
        threads=0,
        precision=timings.dtype,
        network=NetworkCorrection(half_width=UNKNOWN_NETWORK_HALF_WIDTH),
        environment={
            "provenance": "imported",
            "device": timings.device,
            "source": timings.source,
            "licence": timings.licence,
        },
        journal={"file": timings.file, "sha256": timings.sha256, "failed": dict(timings.failed)},
    )
    if timings.ops:
        profile = fit_ops(profile, timings.ops)
    alone = {family: fit_alone(family, items) for family, items in timings.blocks.items()}
    return dataclasses.replace(
        profile,
        predictors={**profile.predictors, **{family: predictor for family, (predictor, _) in alone.items()}},
        holdout={**profile.holdout, **{family: errors for family, (_, errors) in alone.items() if errors}},
    )
