"""Measuring for a general profile in two passes: all of the plan in a few rounds, then more where those are least sure.

The rounds that are left measure everything together, so that a slow minute of the machine hits a few blocks of many
operations, those of the second pass among them.

Where the first rounds are least sure is read from those blocks alone, so that a run that goes on from its journal, or
is made again, has the same second pass.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path

from latency_lab.fitting import fit_profile
from latency_lab.plan.general import general_plan, refinement
from latency_lab.profiling import Device, Journal, Progress, Protocol, Worker, profile

FIRST_ROUNDS = 2


def measure_in_general(  # noqa: PLR0913 what `profile` is told
    runtime: str,
    *,
    precision: str = "float32",
    threads: int = 1,
    journal: str | Path,
    protocol: Protocol | None = None,
    force: bool = False,
    on_progress: Callable[[Progress], None] | None = None,
    on: str | Device = "local",
    start_worker: Callable[[], Worker] | None = None,
) -> Journal:
    """Measures the general plan and its refinement: what `fit_profile` makes a general profile of.

    Args:
        runtime, threads, journal, force, on_progress, on, start_worker: as of `profiling.profile`.
        precision: of the operations: "float32" or "int8".
        protocol: of all rounds.

    Returns:
        The journal, with every task measured in every round or failed with its reason.

    Raises:
        MissingRuntimeError: the runtime or scikit-learn is not installed.
        EnvironmentMismatchError: the journal is of another environment.
    """

    whole = protocol or Protocol()
    measure = partial(
        profile,
        runtime=runtime,
        threads=threads,
        journal=journal,
        force=force,
        on_progress=on_progress,
        on=on,
        start_worker=start_worker,
    )
    tasks = general_plan(runtime, precision)
    few = dataclasses.replace(whole, rounds=min(FIRST_ROUNDS, whole.rounds), extra_rounds=0)
    first = fit_profile(measure(tasks, protocol=few).first_rounds(tasks, few.rounds))
    return measure((*tasks, *refinement(first)), protocol=whole)
