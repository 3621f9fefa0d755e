"""Staircases of a device profile: latency over channels, measured points on the predicted curve, as a picture."""

from __future__ import annotations

import io
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from latency_lab import files
from latency_lab.errors import UsageError
from latency_lab.extras import missing
from latency_lab.ops import OpConfig
from latency_lab.profiles import DeviceProfile

Floats = npt.NDArray[np.float64]

MAX_PANELS = 12
MIN_POINTS = 4
MAX_SAMPLES = 512
"""Channel counts that a curve is drawn through."""
FORMATS = (".png", ".svg", ".pdf")
_COLUMNS = 3
_MEASURED, _PREDICTED, _EDGES = "#c2410c", "#1d4ed8", "#94a3b8"


@dataclass(frozen=True)
class Panel:
    """One line through a table: one channel count varies, the other stays.

    Attributes:
        op: the operation, at the most channels of the line.
        axis: what varies: "out", "in", or "both" where input and output have the same channels or keep their ratio.
        channels: measured, [n], increasing.
        latency_ms: measured, as it counts in a network, [n].
        low_ms, high_ms: its interval, [n].
        curve_channels, curve_ms: predicted, [m].
        quantum: channels of one step; 1 where none was found.
    """

    op: OpConfig
    axis: str
    channels: Floats
    latency_ms: Floats
    low_ms: Floats
    high_ms: Floats
    curve_channels: Floats
    curve_ms: Floats
    quantum: int

    @property
    def title(self) -> str:
        """What the operation is, in two short lines."""
        words = self.op.static_key.removesuffix(f" {self.op.dtype}").split()
        return f"{self.op.family}\n{' '.join(w for w in words if w not in self.op.family.split())}"

    @property
    def label(self) -> str:
        """What varies and what stays."""
        if self.axis == "both":
            return "channels"
        fixed = ("in", self.op.in_channels) if self.axis == "out" else ("out", self.op.out_channels)
        return f"{self.axis}_channels ({fixed[0]}_channels = {fixed[1]})"


def panels(profile: DeviceProfile) -> list[Panel]:
    """What to draw: of each family and axis its longest line, those with steps first, at most `MAX_PANELS`.

    Raises:
        UsageError: the profile has no line of `MIN_POINTS` points.
    """
    best: dict[tuple[str, str], tuple[OpConfig, str, list[OpConfig]]] = {}
    for table in profile.tables.values():
        for axis, line in _lines([table.op.with_channels(*channels) for channels in table.points]):
            key = (table.op.family, axis)
            if len(line) >= MIN_POINTS and (key not in best or len(line) > len(best[key][2])):
                best[key] = (line[-1], axis, line)
    if not best:
        measured = "It is analytic: nothing was measured." if profile.kind == "analytic" else ""
        raise UsageError(
            f"The profile {profile.name!r} has no table of {MIN_POINTS} or more points along one channel count: there "
            f"is nothing to plot. {measured}".rstrip()
        )
    steps = {(str(step["family"]), str(step["axis"])) for step in profile.steps if step["quantum"] > 1}
    stepped = {key for key in best if (key[0], _step_axis(key[1])) in steps}
    order = sorted(best, key=lambda key: (key not in stepped, -len(best[key][2]), key))
    kept = sorted(order[:MAX_PANELS], key=lambda key: (key not in stepped, key[0], key[1] == "in"))
    return [_panel(profile, *best[key]) for key in kept]


def plot(profile: DeviceProfile, path: str | Path) -> None:
    """Draws the staircases of a profile into a picture, written whole or not at all.

    Args:
        profile: with measured tables.
        path: of the picture; it ends in one of `FORMATS`.

    Raises:
        UsageError: the path ends in something else, or the profile has nothing to draw.
        MissingRuntimeError: matplotlib is not installed.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in FORMATS:
        raise UsageError(f"{path}: expected a name that ends in {', '.join(FORMATS)}. Received: {suffix!r}")
    found = panels(profile)
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise missing(error, "A plot") or error from error
    rows = math.ceil(len(found) / _COLUMNS)
    columns = min(len(found), _COLUMNS)
    with rc_context({"svg.hashsalt": profile.name}):
        # Without pyplot there is no state and no window: the figure draws by Agg, or by the writer of its format.
        figure = Figure(figsize=(4.6 * columns, 3.1 * rows + 0.7), layout="constrained")
        axes = np.ravel(figure.subplots(rows, columns, squeeze=False))
        for axis, panel in zip(axes, found, strict=False):
            _draw(axis, panel)
        for axis in axes[len(found) :]:
            axis.set_axis_off()
        figure.suptitle(f"{profile.name}: {profile.runtime}, {profile.precision}", fontsize=12)
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize=9, frameon=False)
        buffer = io.BytesIO()
        figure.savefig(buffer, format=suffix[1:], dpi=130)
    files.write_bytes(path, buffer.getvalue())


# ---- lines --------------------------------------------------------------------------------------------------------


def _lines(ops: Sequence[OpConfig]) -> list[tuple[str, list[OpConfig]]]:
    """(axis, operations by increasing channels) of each line through the points of one table."""
    by_in: Mapping[int, list[OpConfig]] = _grouped(ops, lambda op: op.in_channels)
    by_out: Mapping[int, list[OpConfig]] = _grouped(ops, lambda op: op.out_channels)
    if all(len(group) == 1 for group in (*by_in.values(), *by_out.values())):
        return [("both", sorted(ops, key=lambda op: op.in_channels))]
    lines = [("out", sorted(group, key=lambda op: op.out_channels)) for group in by_in.values()]
    return lines + [("in", sorted(group, key=lambda op: op.in_channels)) for group in by_out.values()]


def _grouped(ops: Sequence[OpConfig], key: Any) -> dict[int, list[OpConfig]]:
    groups: dict[int, list[OpConfig]] = defaultdict(list)
    for op in ops:
        groups[key(op)].append(op)
    return groups


def _panel(profile: DeviceProfile, top: OpConfig, axis: str, line: Sequence[OpConfig]) -> Panel:
    channels = np.array([op.out_channels if axis == "out" else op.in_channels for op in line], np.float64)
    samples = np.arange(channels[0], channels[-1] + 1)
    if len(samples) > MAX_SAMPLES:
        spread = np.linspace(channels[0], channels[-1], MAX_SAMPLES).round()
        samples = np.unique(np.concatenate([spread, channels]))
    curve = profile.predict([_at(top, axis, int(count)) for count in samples])
    measured = profile.predict(line)
    return Panel(
        op=top,
        axis=axis,
        channels=channels,
        latency_ms=np.array([p.latency_ms for p in measured]),
        low_ms=np.array([p.low_ms for p in measured]),
        high_ms=np.array([p.high_ms for p in measured]),
        curve_channels=samples,
        curve_ms=np.array([p.latency_ms for p in curve]),
        quantum=_quantum(profile, top, axis),
    )


def _at(top: OpConfig, axis: str, count: int) -> OpConfig:
    if axis == "out":
        return top.with_channels(top.in_channels, count)
    if axis == "in":
        return top.with_channels(count, top.out_channels)
    return top.with_channels(count, max(1, round(count * top.out_channels / top.in_channels)))


def _quantum(profile: DeviceProfile, op: OpConfig, axis: str) -> int:
    """Of a step that was found for this family; what the predictor of a kind assumes is no finding."""
    for step in profile.steps:
        if step["family"] == op.family and step["axis"] == _step_axis(axis):
            return int(step["quantum"])
    return 1


def _step_axis(axis: str) -> str:
    """How steps name a line's axis: of a kind of one width, both counts at once are "out"."""
    return "in" if axis == "in" else "out"


# ---- drawing ------------------------------------------------------------------------------------------------------


def _draw(axis: Any, panel: Panel) -> None:
    scale, unit = (1e3, "us") if panel.latency_ms.max() < 1 else (1.0, "ms")
    if panel.quantum > 1:
        first, last = panel.channels[0], panel.channels[-1]
        edges = np.arange(math.ceil(first / panel.quantum) * panel.quantum, last + 1, panel.quantum)
        stride = max(1, math.ceil(len(edges) / 40))
        for edge in edges[::stride]:
            axis.axvline(edge, color=_EDGES, linewidth=0.5, alpha=0.6, zorder=0)
        axis.text(
            0.03, 0.95, f"steps of {panel.quantum}", transform=axis.transAxes, fontsize=8, va="top", color="#475569"
        )
    axis.plot(panel.curve_channels, panel.curve_ms * scale, color=_PREDICTED, linewidth=1.1, label="predicted")
    below = np.maximum(panel.latency_ms - panel.low_ms, 0) * scale
    above = np.maximum(panel.high_ms - panel.latency_ms, 0) * scale
    axis.errorbar(
        panel.channels, panel.latency_ms * scale, yerr=[below, above], fmt="o", markersize=3.2, color=_MEASURED,
        elinewidth=0.8, label="measured", zorder=3,
    )  # fmt: skip
    axis.set_title(panel.title, fontsize=8.5)
    axis.set_xlabel(panel.label, fontsize=8.5)
    axis.set_ylabel(f"latency, {unit}", fontsize=8.5)
    axis.tick_params(labelsize=8)
    axis.set_ylim(bottom=0)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
