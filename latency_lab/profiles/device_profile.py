"""What one device, runtime, precision and thread count needs for each operation, and for a network of them.

Format of the file (schema.json has it in full):
    version 1: the first.
    version 2: predictors read more features, batch and tiles of positions among them; their trees are in preorder.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from latency_lab import files
from latency_lab.errors import FileFormatError
from latency_lab.ops import MIXING, OpConfig
from latency_lab.profiles.correction import NetworkCorrection
from latency_lab.profiles.predictor import Predictor
from latency_lab.profiles.roofline import Roofline
from latency_lab.profiles.table import LookupTable

Floats = npt.NDArray[np.float64]

VERSION = 2
MAX_KNOTS = 12


@dataclass(frozen=True, slots=True)
class OpPrediction:
    """What a profile says about one operation.

    Attributes:
        latency_ms: as it counts inside of a network (`NetworkCorrection.latency_ms` sums these).
        low_ms, high_ms: interval that holds 90 % of such operations; infinite above a bound.
        source: "measured" at exactly this shape, "predicted" among measured ones, "extrapolated" away from them,
            "bounded" by the roofline alone, "analytic" in a profile that measured nothing.
    """

    latency_ms: float
    low_ms: float
    high_ms: float
    source: str


@dataclass(frozen=True, slots=True)
class Grid:
    """The chord of one kernel's latency over its channels: joined at the edges of the runtime's steps.

    Attributes:
        in_knots: [n_in], increasing from 0.
        out_knots: [n_out], increasing from 0; [1.0] for a kind with one width.
        values_ms: [n_in, n_out], the least of this and all wider knots (a width can always be padded up to a cheaper
            wider one, so no price is negative); 0 where a knot is 0.
        sources: as of `OpPrediction`, by knot, [n_in][n_out]; "zero" at a knot 0.
    """

    in_knots: Floats
    out_knots: Floats
    values_ms: Floats
    sources: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class DeviceProfile:
    """One device, runtime, precision and thread count.

    Attributes:
        name: of the profile.
        runtime: "litert", "onnxruntime"; "" for an analytic profile.
        kind: "measured" or "analytic".
        threads: of the runtime.
        precision: "float32".
        fusions: rules of `profiles.fusions`.
        layout_block: channels side by side in the runtime's own layout (`profiles.layout`); 1 where it has none.
        tables: static key -> measured points.
        predictors: kind of operation -> what was fitted.
        network: the whole-network correction.
        roofline: what bounds an operation that nothing else is known of.
        steps: what channel steps were found: {family, axis, quantum, slow_remainders}.
        holdout: family -> errors on operations that the fit did not see.
        environment, protocol, journal: where and how it was measured, and the digest of the journal.

    Example:
        >>> from latency_lab.profiles import DeviceProfile
        >>> v100 = DeviceProfile.analytic("v100", peak_gflops=125000, bandwidth_gb_s=900)
        >>> v100.kind
        'analytic'
    """

    name: str
    runtime: str
    kind: str
    roofline: Roofline
    threads: int = 1
    precision: str = "float32"
    fusions: frozenset[str] = frozenset()
    layout_block: int = 1
    tables: Mapping[str, LookupTable] = field(default_factory=dict)
    predictors: Mapping[str, Predictor] = field(default_factory=dict)
    network: NetworkCorrection = field(default_factory=NetworkCorrection)
    steps: Sequence[Mapping[str, Any]] = ()
    holdout: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    protocol: Mapping[str, Any] = field(default_factory=dict)
    journal: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def analytic(cls, name: str, *, peak_gflops: float, bandwidth_gb_s: float) -> DeviceProfile:
        """A profile of datasheet numbers: the roofline in closed form, nothing measured, nothing fused."""
        return cls(name, "", "analytic", Roofline(peak_gflops, bandwidth_gb_s), threads=0)

    # ---- predictions ------------------------------------------------------------------------------------------

    def predict(self, ops: Sequence[OpConfig]) -> list[OpPrediction]:
        """The staircase: what each kernel takes at exactly its channel counts.

        Args:
            ops: kernels, as `fuse` with this profile's `fusions` gives them, [n].

        Returns:
            A prediction each, [n].
        """
        found: dict[int, OpPrediction] = {}
        for kind in {op.kind for op in ops}:
            chosen = [i for i, op in enumerate(ops) if op.kind == kind]
            predictions = self._predict_kind(kind, [ops[i] for i in chosen])
            found.update(zip(chosen, predictions, strict=True))
        return [found[i] for i in range(len(ops))]

    def latency_ms(self, ops: Sequence[OpConfig]) -> float:
        """Latency of a network of these kernels, ms: their predictions under the whole-network correction."""
        return self.network.latency_ms(ops, [p.latency_ms for p in self.predict(ops)])

    def grid(self, op: OpConfig) -> Grid:
        """The chord of a kernel from nothing to its own channel counts.

        Args:
            op: a kernel at the most channels that it can have.
        """
        ins = self._edges(op, 0)
        outs = self._edges(op, 1) if op.kind in MIXING else np.array([1.0])
        ratio = op.out_channels / op.in_channels
        pairs = [(i, o) for i in range(len(ins)) for o in range(len(outs)) if ins[i] and outs[o]]
        shapes = [
            op.with_channels(int(ins[i]), int(outs[o]) if op.kind in MIXING else max(1, round(ratio * ins[i])))
            for i, o in pairs
        ]
        values = np.zeros((len(ins), len(outs)))
        sources = [["zero"] * len(outs) for _ in ins]
        for (i, o), prediction in zip(pairs, self.predict(shapes), strict=True):
            values[i, o], sources[i][o] = prediction.latency_ms, prediction.source
        for axis in (0, 1):
            values = np.flip(np.minimum.accumulate(np.flip(values, axis), axis), axis)
        return Grid(ins, outs, values, tuple(tuple(row) for row in sources))

    def quantum(self, op: OpConfig, axis: int) -> int:
        """Channels of one step of an operation's latency; axis 0 is in, 1 is out, and that of one width."""
        name = "in" if axis == 0 and op.kind in MIXING else "out"
        for step in self.steps:
            if step["family"] == op.family and step["axis"] == name:
                return int(step["quantum"])
        predictor = self.predictors.get(op.kind)
        return predictor.quanta[axis] if predictor else 1

    def _edges(self, op: OpConfig, axis: int) -> Floats:
        """0, edges of steps, and the operation's own channel count; at most `MAX_KNOTS`. Groups step at once."""
        channels = (op.in_channels, op.out_channels)[axis] // op.groups
        quantum = max(self.quantum(op, axis), 1 if channels < 32 else 4)
        edges = np.arange(quantum, channels, quantum)
        if len(edges) > MAX_KNOTS - 2:
            edges = edges[np.unique(np.round(np.linspace(0, len(edges) - 1, MAX_KNOTS - 2)).astype(int))]
        return op.groups * np.array([0, *edges, channels], np.float64)

    def _predict_kind(self, kind: str, ops: list[OpConfig]) -> list[OpPrediction]:
        predictor = self.predictors.get(kind)
        if predictor is None:
            return [self._measured(op) or self._bound(op) for op in ops]
        hot = predictor.latency_ms(ops)
        cold_extra = predictor.cold_extra_ms(ops)
        at = np.array([[op.in_channels, op.out_channels] for op in ops], np.float64)
        keys = [op.static_key for op in ops]
        self._find_residuals({key for key in keys if key in self.tables} - set(self._residuals), predictor)
        for key in set(keys) & set(self.tables):
            rows = [i for i, k in enumerate(keys) if k == key]
            hot[rows] *= np.exp(self.tables[key].correction(at[rows], self._residuals[key], predictor.block))
        return [
            self._prediction(op, float(h), float(extra), predictor)
            for op, h, extra in zip(ops, hot, cold_extra, strict=True)
        ]

    def _prediction(self, op: OpConfig, hot_ms: float, cold_extra_ms: float, predictor: Predictor) -> OpPrediction:
        if measured := self._measured(op, cold_extra_ms):
            return measured
        latency = hot_ms + self.network.cold_share * cold_extra_ms
        width = predictor.interval_ratio(op)
        inside = op.static_key in self.tables or (
            op.dtype in self._dtypes.get(op.kind, {self.precision}) and predictor.inside(op)
        )
        return OpPrediction(latency, latency / width, latency * width, "predicted" if inside else "extrapolated")

    def _measured(self, op: OpConfig, cold_extra_ms: float = 0.0) -> OpPrediction | None:
        """The operation's own point of the table; None where there is none."""
        table = self.tables.get(op.static_key)
        point = table.points.get((op.in_channels, op.out_channels)) if table else None
        if point is None:
            return None
        extra = self.network.cold_share * (cold_extra_ms if point.cold_ms is None else point.cold_ms - point.latency_ms)
        low, high = max(0.0, point.low_ms + extra), point.high_ms + extra
        return OpPrediction(max(point.latency_ms + extra, 0.0), low, high, "measured")

    def _bound(self, op: OpConfig) -> OpPrediction:
        latency = self.roofline.latency_ms(op)
        if self.kind == "analytic":
            return OpPrediction(latency, latency, latency, "analytic")
        return OpPrediction(latency, latency, float("inf"), "bounded")

    @cached_property
    def _dtypes(self) -> dict[str, set[str]]:
        """Kind -> element types that it was measured in."""
        found: dict[str, set[str]] = {}
        for table in self.tables.values():
            found.setdefault(table.op.kind, set()).add(table.op.dtype)
        return found

    @cached_property
    def _residuals(self) -> dict[str, Floats]:
        """log(measured / predictor) of each table's points, of the tables that were asked for so far."""
        return {}

    def _find_residuals(self, keys: set[str], predictor: Predictor) -> None:
        """Fill `_residuals` for these tables of one predictor, in one evaluation of it."""
        if not keys:
            return
        tables = [self.tables[key] for key in sorted(keys)]
        predicted = predictor.latency_ms([t.op.with_channels(*channels) for t in tables for channels in t.points])
        measured = np.array([point.latency_ms for table in tables for point in table.points.values()])
        ends = np.cumsum([len(table.points) for table in tables])[:-1]
        self._residuals.update(zip(sorted(keys), np.split(np.log(measured / predicted), ends), strict=True))

    # ---- file -------------------------------------------------------------------------------------------------

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the profile's JSON, 16 digits: names it in what is derived from it."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()[:16]

    def to_json(self) -> dict[str, Any]:
        """JSON values, as schema.json describes them."""
        same = ("name", "runtime", "kind", "threads", "precision")
        return {
            "format": "latency-lab device profile",
            "version": VERSION,
            **{name: getattr(self, name) for name in same},
            "environment": dict(self.environment),
            "protocol": dict(self.protocol),
            "journal": dict(self.journal),
            "roofline": dataclasses.asdict(self.roofline),
            "fusions": sorted(self.fusions),
            "layout_block": self.layout_block,
            "network": {**dataclasses.asdict(self.network), "residuals": list(self.network.residuals)},
            "steps": [dict(step) for step in self.steps],
            "holdout": {family: dict(errors) for family, errors in self.holdout.items()},
            "tables": [table.to_json() for table in self.tables.values()],
            "predictors": {kind: predictor.to_json() for kind, predictor in self.predictors.items()},
        }

    @classmethod
    def from_json(cls, data: Any) -> DeviceProfile:
        """The profile that `to_json` wrote.

        Raises:
            FileFormatError: a value is missing or wrong; the message has the path to it.
        """
        files.check(data, json.loads(resources.files("latency_lab.profiles").joinpath("schema.json").read_text()))
        tables = [LookupTable.from_json(table) for table in data["tables"]]
        same = (
            "name",
            "runtime",
            "kind",
            "threads",
            "precision",
            "steps",
            "holdout",
            "environment",
            "protocol",
            "journal",
        )
        return cls(
            **{name: data[name] for name in same},
            roofline=Roofline(**data["roofline"]),
            fusions=frozenset(data["fusions"]),
            layout_block=data.get("layout_block", 1),
            tables={table.op.static_key: table for table in tables},
            predictors={kind: Predictor.from_json(kind, fitted) for kind, fitted in data["predictors"].items()},
            network=NetworkCorrection(**{**data["network"], "residuals": tuple(data["network"]["residuals"])}),
        )

    def save(self, path: str | Path) -> None:
        """Writes the profile as JSON, whole or not at all; packed where the name ends in ".gz"."""
        files.write_json(path, self.to_json(), indent=None)

    @classmethod
    def load(cls, path: str | Path) -> DeviceProfile:
        """Reads a profile from a file, packed or not.

        Raises:
            FileFormatError: it is missing, not JSON, or no profile; the message says where in it and why.
        """
        data = files.read_json(path, "a device profile")
        try:
            return cls.from_json(data)
        except FileFormatError as error:
            raise FileFormatError(f"{path} is not a device profile: {error}") from error
