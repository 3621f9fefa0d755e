"""What a worker says, as data: bounded, finite, of the types that are expected, and never run.

Each line is JSON (see `runtimes/worker.py`). What is not known here passes as it is, so that a worker can say more.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

TEXT_LIMIT = 2000
MOST_SAMPLES = 10_000_000
MOST_MS = 1e9
MOST_LAYOUT_BLOCK = 1024


def values_of(line: str) -> dict[str, Any]:
    """A line as a JSON object in which every number is finite.

    Raises:
        ValueError: it is none.
    """
    try:
        found = json.loads(line, parse_float=_finite, parse_constant=_finite)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(found, dict):
        raise ValueError(f"expected a JSON object. Received: {plain(line, 80)}")
    return found


def hello_of(line: str) -> dict[str, Any]:
    """A worker's first line.

    Raises:
        ValueError: it is none.
    """
    return checked_hello(values_of(line))


def checked_hello(found: dict[str, Any]) -> dict[str, Any]:
    """The same values, with a package, a version and a device that can be printed.

    Raises:
        ValueError: it names no package or version, or its device or layout is none.
    """
    for name in ("package", "version"):
        if not isinstance(found.get(name), str) or len(found[name]) > TEXT_LIMIT:
            raise ValueError(f"expected a worker that names its {name}. Received: {plain(json.dumps(found), 200)}")
        found[name] = plain(found[name])
    if "device" in found:
        if not isinstance(found["device"], str):
            raise ValueError("its device is no name")
        found["device"] = plain(found["device"])
    block = found.get("layout_block", 1)
    if type(block) is not int or not 1 <= block <= MOST_LAYOUT_BLOCK:
        raise ValueError(f"its layout_block is {plain(repr(block), 40)}, expected a whole number of channels")
    return found


def block_of(line: str) -> dict[str, Any]:
    """A worker's answer to a request: a block that was measured, or failed with its reason.

    Raises:
        ValueError: it is neither.
    """
    return checked_block(values_of(line))


def checked_block(found: dict[str, Any]) -> dict[str, Any]:
    """The same values: counts at least 1, times above zero (those of the CPU may be zero, where its clock is coarse).

    Raises:
        ValueError: they are not.
    """
    if found.get("status") == "failed":
        return {**found, "reason": plain(str(found.get("reason")))}
    if found.get("status") != "ok":
        raise ValueError("its status is neither 'ok' nor 'failed'")
    for name in ("count", "repeats"):
        value = found.get(name)
        if type(value) is not int or not 1 <= value <= MOST_SAMPLES:
            raise ValueError(f"{name} is {plain(repr(value), 40)}, expected a whole number above zero")
    _check_summary("wall_ms", found.get("wall_ms"))
    for name in ("cpu_ms", "cold_ms"):
        if found.get(name) is not None:
            _check_summary(name, found[name], zero=name == "cpu_ms")
    return found


def plain(text: str, limit: int = TEXT_LIMIT) -> str:
    """Text for a terminal or a journal: what cannot be printed is a space, and no longer than the limit."""
    return "".join(c if c.isprintable() else " " for c in text[:limit])


def _check_summary(name: str, found: Any, zero: bool = False) -> None:
    if not isinstance(found, Mapping):
        raise ValueError(f"{name} is no summary of samples")
    deciles = found.get("deciles", [] if name == "wall_ms" else None)
    if not isinstance(deciles, list) or len(deciles) not in ({0, 9} if name == "wall_ms" else {9}):
        raise ValueError(f"{name} has no nine deciles")
    for value in (found.get("min"), found.get("median"), *deciles):
        if type(value) not in (int, float) or not 0 <= value <= MOST_MS or (value == 0 and not zero):
            raise ValueError(f"{name} holds {plain(str(value), 40)}, expected milliseconds above zero")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:40]} is no finite number")
    return value
