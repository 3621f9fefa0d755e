"""A device profile on one screen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from latency_lab.profiles import DeviceProfile
from latency_lab.report.text import table


def describe(profile: DeviceProfile) -> str:
    """What a profile holds: where it was taken, how much was measured, how far off it is on what it did not see.

    Args:
        profile: any profile, measured or analytic.

    Returns:
        Lines without a newline at the end.

    Example:
        >>> from latency_lab.profiles import DeviceProfile
        >>> from latency_lab.report import describe
        >>> print(describe(DeviceProfile.analytic("v100", peak_gflops=125000, bandwidth_gb_s=900)))
        v100: analytic, float32, digest ...
          roofline  125000 GFLOP/s, 900 GB/s
    """
    threads = f", {profile.threads} thread{'s' if profile.threads > 1 else ''}" if profile.threads else ""
    runtime = f", {profile.runtime}" if profile.runtime else ""
    lines = [f"{profile.name}: {profile.kind}{runtime}{threads}, {profile.precision}, digest {profile.digest}"]
    facts = {
        "roofline": f"{profile.roofline.peak_gflops:.6g} GFLOP/s, {profile.roofline.bandwidth_gb_s:.6g} GB/s",
        "measured": _measured(profile),
        "protocol": ", ".join(f"{k} {v}" for k, v in profile.protocol.items()),
        "fusions": ", ".join(sorted(profile.fusions)),
        "network": _network(profile),
        **_origin(profile),
        "boards": boards_line(profile.environment.get("boards", {})).removeprefix("boards: "),
    }
    lines += [f"  {name.ljust(8)}  {text}" for name, text in facts.items() if text]
    for title, part in (
        ("Errors on operations that the fit did not see", _holdout(profile)),
        ("Steps", _steps(profile)),
    ):
        if part:
            lines += ["", f"{title}:", *(f"  {line}" for line in part.splitlines())]
    return "\n".join(lines)


def boards_line(boards: Mapping[str, Mapping[str, Any]]) -> str:
    """The boards of a fleet, what each measured, and what it takes of the fleet's median; "" of none.

    Args:
        boards: name -> blocks, ratio, off.

    Example:
        >>> from latency_lab.report import boards_line
        >>> boards_line({"a": {"blocks": 7, "ratio": 1.0, "off": False}, "b": {"blocks": 6, "ratio": 1.2, "off": True}})
        'boards: a 7 blocks at 1.00, b 6 blocks at 1.20 (off)'
    """
    said = [
        f"{name} {board['blocks']} blocks"
        + (f" at {board['ratio']:.2f}" if "ratio" in board else "")
        + (" (off)" if board.get("off") else "")
        for name, board in boards.items()
    ]
    return "boards: " + ", ".join(said) if said else ""


def _origin(profile: DeviceProfile) -> dict[str, str]:
    """Where the numbers are from: a datasheet's facts line by line, a machine's in one."""
    known = {k: str(v) for k, v in profile.environment.items() if isinstance(v, str | int | float)}
    if profile.kind != "analytic":
        return {"taken on": ", ".join(f"{k} {v}" for k, v in known.items())}
    titles = {"device": "device", "precision_of_peak": "peak is", "source": "source", "note": "note"}
    return {title: known.get(key, "") for key, title in titles.items()}


def _measured(profile: DeviceProfile) -> str:
    points = sum(len(t.points) for t in profile.tables.values())
    return f"{points} points in {len(profile.tables)} tables" if points else ""


def _network(profile: DeviceProfile) -> str:
    n = profile.network
    if profile.kind == "analytic":
        return ""
    factors = ", ".join(f"{a:.3f} * {group}" for group, a in n.a.items())
    each = f"{factors}, {n.b_ms * 1e3:+.2f} us a kernel, {n.c_ms_per_byte * 1e9:+.3g} us a MB of weights "
    each += f"beyond {n.cached_bytes / 1e6:g}"
    each += "" if n.alone_bytes is None else f" ({n.alone_bytes / 1e6:g} at most of a kernel at one position)"
    each += "" if n.hot_bytes is None else f" ({n.hot_bytes / 1e6:g} at most of a kernel at many)"
    each += "" if n.once == 1 else f" ({n.once:.3g} of that at one position)"
    return f"{each}, from {len(n.residuals)} networks"


def _holdout(profile: DeviceProfile) -> str:
    names = sorted({name for errors in profile.holdout.values() for name in errors})
    rows = [
        [family, *(f"{errors[n]:.4g}" if n in errors else "-" for n in names)]
        for family, errors in profile.holdout.items()
    ]
    return table(["family", *names], rows) if rows else ""


def _steps(profile: DeviceProfile) -> str:
    rows = [[s["family"], s["axis"], s["quantum"], s.get("slow_remainders") or "-"] for s in profile.steps]
    return table(["family", "axis", "quantum", "slow remainders"], rows) if rows else ""
