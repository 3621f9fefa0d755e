"""say which runtimes work here, and what makes timing unsteady, with what to do

Exits 1 when timing is unsteady.
"""

from __future__ import annotations

import argparse

from latency_lab.cli.output import emit


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """doctor takes nothing but --json."""


def run(args: argparse.Namespace) -> int:
    """Look, and print what was seen."""
    import latency_lab

    report = latency_lab.doctor()
    emit(report, as_json=args.json)
    return 0 if report.steady else 1
