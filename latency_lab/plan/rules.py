"""Which merges a runtime does before or on loading a model."""

from __future__ import annotations

from latency_lab import runtimes


def merges(runtime: str, precision: str) -> frozenset[str]:
    """Rules of the converter and those that the runtime is known to follow (`profiles.fusions`)."""
    conversion, expected = runtimes.get(runtime).fusions(precision)
    return conversion | expected


def converted(runtime: str, precision: str) -> frozenset[str]:
    """Rules of the converter alone."""
    return runtimes.get(runtime).fusions(precision)[0]
