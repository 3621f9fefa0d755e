"""Channel steps: how many channels a runtime processes at a time, and which remainders it is slow at.

Latency over one channel axis is a staircase. The quantum q is the one for which t = alpha + beta * ceil(c / q) * q
fits best over all measured series of a family in which only that axis varies.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from latency_lab.fitting.points import Measured
from latency_lab.ops import MIXING

Floats = npt.NDArray[np.float64]

QUANTA = (1, 2, 4, 8, 16, 32, 64)
MIN_POINTS = 8
CLEARLY_BETTER = 0.85
CLEAR_ERROR = 0.01
AS_GOOD = 1.15
SLOW_FROM = 1.15


def find_steps(measured: Sequence[Measured]) -> list[dict[str, Any]]:
    """{family, axis, quantum, slow_remainders} of every family and axis that has a series of points."""
    series: dict[tuple[str, str], list[tuple[Floats, Floats]]] = {}
    for (family, axis, _), points in _series(measured).items():
        if len(points) >= MIN_POINTS:
            ordered = np.array(sorted(points), np.float64)
            series.setdefault((family, axis), []).append((ordered[:, 0], ordered[:, 1]))
    return [
        {
            "family": family,
            "axis": axis,
            "quantum": _quantum(found),
            "slow_remainders": _slow_remainders(found),
        }
        for (family, axis), found in sorted(series.items())
    ]


def quanta_of_kind(kind: str, steps: Sequence[dict[str, Any]]) -> tuple[int, int]:
    """(in, out) quantum that most families of a kind have; 1 where no series was measured."""
    found = []
    for axis in ("in", "out"):
        votes = Counter(s["quantum"] for s in steps if s["family"].split()[0] == kind and s["axis"] == axis)
        found.append(votes.most_common(1)[0][0] if votes else 1)
    return (found[0], found[1]) if kind in MIXING else (found[1], found[1])


def block_of_kind(kind: str, steps: Sequence[dict[str, Any]]) -> int:
    """The smallest modulus at which remainders of a kind were seen to be slow; 1 where none were."""
    moduli = [int(m) for s in steps if s["family"].split()[0] == kind for m in s["slow_remainders"]]
    return min(moduli, default=1)


def _series(measured: Sequence[Measured]) -> dict[tuple[str, str, str], list[tuple[int, float]]]:
    """Points along which only one axis varies, by family, axis and what stays the same."""
    found: dict[tuple[str, str, str], list[tuple[int, float]]] = {}
    for m in measured:
        op = m.op
        if op.kind not in MIXING:
            found.setdefault((op.family, "out", op.static_key), []).append((op.out_channels, m.point.latency_ms))
            continue
        found.setdefault((op.family, "out", f"{op.static_key} in={op.in_channels}"), []).append(
            (op.out_channels, m.point.latency_ms)
        )
        found.setdefault((op.family, "in", f"{op.static_key} out={op.out_channels}"), []).append(
            (op.in_channels, m.point.latency_ms)
        )
    return found


def _quantum(series: Sequence[tuple[Floats, Floats]]) -> int:
    """The smallest quantum that fits as good as any; 1 unless that is clearly better."""
    widest = max(float(channels.max()) for channels, _ in series)
    errors = {
        q: float(np.mean([_staircase_error(np.ceil(channels / q) * q, latency_ms) for channels, latency_ms in series]))
        for q in QUANTA
        if q == 1 or q <= widest / 2
    }
    least = min(errors.values())
    if least > CLEARLY_BETTER * errors[1] or least > errors[1] - CLEAR_ERROR:
        return 1
    return min(q for q, error in errors.items() if q > 1 and error <= AS_GOOD * least)


def _staircase_error(stepped: Floats, latency_ms: Floats) -> float:
    """Median relative error of the best line through (stepped, latency)."""
    design = np.stack([np.ones_like(stepped), stepped], axis=1) / latency_ms[:, None]
    line = np.linalg.lstsq(design, np.ones_like(latency_ms), rcond=None)[0]
    return float(np.median(np.abs(design @ line - 1.0)))


def _slow_remainders(series: Sequence[tuple[Floats, Floats]]) -> dict[str, float]:
    """Modulus -> how many times slower a count that it does not divide is than the next measured multiple."""
    found = {}
    for modulus in (4, 8):
        ratios = []
        for channels, latency_ms in series:
            for c, t in zip(channels, latency_ms, strict=True):
                above = (channels > c) & (channels <= c + modulus) & (channels % modulus == 0)
                if c % modulus and above.any():
                    ratios.append(t / latency_ms[above][0])
        if len(ratios) >= 3 and np.median(ratios) > SLOW_FROM:
            found[str(modulus)] = round(float(np.median(ratios)), 3)
    return found
