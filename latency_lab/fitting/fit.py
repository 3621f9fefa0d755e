"""From a journal to a device profile."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from latency_lab import runtimes
from latency_lab.errors import UnmeasuredError
from latency_lab.fitting.fusions import find_fusions
from latency_lab.fitting.network import fit_network
from latency_lab.fitting.operations import check_sklearn, fit_ops, roofline_of
from latency_lab.fitting.points import measured_ops
from latency_lab.profiles import DeviceProfile
from latency_lab.profiling import Journal
from latency_lab.profiling.boards import boards_of


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
    check_sklearn()
    book = journal if isinstance(journal, Journal) else Journal.load(journal)
    measured = measured_ops(book)
    if not measured:
        reasons = "; ".join(sorted(set(book.failures.values()))[:3]) or "it holds no blocks"
        raise UnmeasuredError(f"The journal {book.path} has no measured operation to fit: {reasons}.")
    runtime, precision = runtimes.get(book.identity["runtime"]), str(book.identity["precision"])
    fusions = find_fusions(measured, *runtime.fusions(precision))
    bare = DeviceProfile(
        name=name or book.path.name.removesuffix(".jsonl").removesuffix(".journal"),
        runtime=runtime.name,
        kind="measured",
        roofline=roofline_of(measured),
        threads=int(book.identity["threads"]),
        precision=precision,
        fusions=fusions,
        layout_block=int(book.identity.get("layout_block") or 1) if precision == "float32" else 1,
        environment=_environment(book),
        protocol=book.protocol,
        journal={"file": book.path.name, "sha256": book.digest, "failed": dict(sorted(book.failures.items()))},
    )
    fitted = fit_ops(bare, measured)
    return dataclasses.replace(fitted, network=fit_network(fitted, book))


def _environment(book: Journal) -> dict[str, Any]:
    """Where a journal was taken, when, and by which boards of a fleet."""
    boards = boards_of(book)
    taken = book.notes[0].get("time") if book.notes else None
    return {**book.identity, "taken": taken, **({"boards": boards} if boards else {})}
