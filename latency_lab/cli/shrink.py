"""rebuild a Keras model without the channels that a structure leaves out, or that a budget has no room for

Exits 1 when the result is over its target, or when no channel was left out.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latency_lab import files
from latency_lab.cli.inputs import KERAS, load_keras, model_file
from latency_lab.cli.output import emit, note
from latency_lab.errors import FileFormatError, UsageError

if TYPE_CHECKING:
    from latency_lab.cost import Cost
    from latency_lab.fold import Folded
    from latency_lab.graph import ChannelGraph
    from latency_lab.profiles import DeviceProfile
    from latency_lab.structure import Structure

TARGETS = {"litert": ".tflite", "onnx": ".onnx"}
COSTS = ("latency", "flops", "params", "memory")
PLANNING = ("importance", "keep", "minimum", "save_structure")
"""Options that say how channels are chosen: for a target alone."""

_UNITS = {"parameters": "parameters", "flops": "FLOPs", "predicted_ms": "predicted ms", "file_bytes": "file bytes"}


@dataclass(frozen=True)
class Target:
    """What the result was to keep within.

    Attributes:
        unit: of both.
        limit: at most this.
        reached: what the structure costs.
    """

    unit: str
    limit: float
    reached: float

    @property
    def met(self) -> bool:
        """Whether it is within the target."""
        return self.reached <= self.limit * (1 + 1e-9)

    def __str__(self) -> str:
        return f"target {self.limit:.4g} {self.unit}: {'met' if self.met else 'MISSED'} with {self.reached:.4g}"

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return {"unit": self.unit, "limit": self.limit, "reached": self.reached, "met": self.met}


@dataclass(frozen=True)
class Shrunk:
    """What was made.

    Attributes:
        figures: name of `_UNITS` -> before and after.
        groups: (name, channels before, channels after, layers that make them).
        target: None where there is none.
        files: that were written.
        dry_run: whether nothing was to be written.
        provenance: of the structure.
        folded: what became of the constants of closed channels; None where folding was not asked for.
    """

    figures: Mapping[str, tuple[float, float]]
    groups: tuple[tuple[str, int, int, int], ...]
    target: Target | None
    files: tuple[str, ...]
    dry_run: bool
    provenance: Mapping[str, Any]
    folded: tuple[Folded, ...] | None = None

    @property
    def channels(self) -> tuple[int, int]:
        """Of all groups, before and after."""
        return sum(row[1] for row in self.groups), sum(row[2] for row in self.groups)

    @property
    def nothing(self) -> bool:
        """Whether no channel was left out."""
        return self.channels[0] == self.channels[1]

    def __str__(self) -> str:
        wide = max([len("group"), *(len(row[0]) for row in self.groups)])
        lines = [f"{'group':<{wide}}  {'before':>6} -> {'after':>6}  layers"]
        lines += [f"{name:<{wide}}  {old:>6} -> {new:>6}  {layers}" for name, old, new, layers in self.groups]
        narrower = sum(new < old for _, old, new, _ in self.groups)
        old, new = self.channels
        lines += [f"{'total':<{wide}}  {old:>6} -> {new:>6}  {narrower} of {len(self.groups)} groups narrower", ""]
        lines += [
            f"{_UNITS[name]:<12}  {_number(before):>15} -> {_number(after):>15}  {after / before:.3f}"
            for name, (before, after) in self.figures.items()
        ]
        if self.target is not None:
            lines.append(str(self.target))
        if self.folded is not None:
            lines += [f"fold: {entry}" for entry in self.folded or ("no closed channel is known to say a constant",)]
        lines += [f"wrote {name}" for name in self.files]
        return "\n".join([*lines, "dry run: nothing was written"] if self.dry_run else lines)

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        pairs = {**self.figures, "channels": self.channels}
        return {
            "files": list(self.files),
            "dry_run": self.dry_run,
            **{name: {"before": before, "after": after} for name, (before, after) in pairs.items()},
            "groups": [dict(zip(("name", "before", "after", "layers"), row, strict=True)) for row in self.groups],
            "target": None if self.target is None else self.target.to_json(),
            "folded": None if self.folded is None else [entry.to_json() for entry in self.folded],
            "provenance": dict(self.provenance),
        }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """MODEL, STRUCTURE or a target, -o, --to, what a target is of, and --fold."""
    parser.add_argument("model", metavar="MODEL", help="a .keras file, gated or plain")
    parser.add_argument(
        "structure", metavar="STRUCTURE", nargs="?", help="a structure file, or -; without it, give a target"
    )
    parser.add_argument("-o", "--output", metavar="OUT", help="the .keras file to write")
    parser.add_argument(
        "--to", metavar="KIND", type=_kinds, default=[], help=f"write beside OUT as well: {','.join(TARGETS)}"
    )
    parser.add_argument(
        "--target", metavar="SHARE", type=float, help="of the cost now, such as 0.5: not to be exceeded"
    )
    parser.add_argument("--target-ms", metavar="MS", type=float, help="the same in ms, of --cost latency")
    parser.add_argument("--cost", choices=COSTS, default="latency", help="what the target is of (default latency)")
    parser.add_argument(
        "--profile", metavar="P", help="a profile file, or the name of a shipped one: of --cost latency, and to predict"
    )
    parser.add_argument(
        "--importance", choices=("l2", "l1", "gamma"), help="by which weights channels are kept (default l2)"
    )
    parser.add_argument("--keep", metavar="NAME,...", type=_names, help="layers or groups whose channels all stay")
    parser.add_argument("--minimum", metavar="N", type=int, help="channels that every group keeps at least (default 1)")
    parser.add_argument("--save-structure", metavar="S", help="write what was chosen for the target: a structure file")
    parser.add_argument(
        "--fold",
        action="store_true",
        help="add what closed channels still say (batch norms of scale 0) to the biases behind them, where that is "
        "exact, and list where it is not",
    )
    parser.add_argument("--dry-run", action="store_true", help="say what would be made, and write nothing")


def run(args: argparse.Namespace) -> int:
    """Find which channels stay, shrink, write, and say what was made."""
    import latency_lab

    output = _output(args)
    _check_target(args)
    for path in (args.output, args.save_structure):
        if path and not args.dry_run and not Path(path).parent.is_dir():
            raise UsageError(f"{path}: there is no folder {Path(path).parent}. Create it first.")
    profile = latency_lab.load_profile(args.profile) if args.profile else None
    given = _read_structure(args.structure) if args.structure else None
    with model_file(args.model, (KERAS,)) as path:
        model, bytes_before = load_keras(path), path.stat().st_size
    graph = latency_lab.ChannelGraph.from_model(model)
    structure = given or _planned(args, model, _cost(args.cost, graph, profile))
    slim = latency_lab.shrink(model, structure)
    folded = _folded(model, structure, slim) if args.fold else None
    data = _keras_bytes(slim)
    after = latency_lab.ChannelGraph.from_model(slim)
    shrunk = Shrunk(
        figures=_figures((graph, after), (bytes_before, len(data)), profile),
        groups=tuple((g.name, g.size, len(structure.kept[g.name]), len(g.members)) for g in graph.groups),
        target=_target(args, structure, graph, profile),
        files=() if args.dry_run else tuple(_write(args, output, slim, data, structure)),
        dry_run=args.dry_run,
        provenance=structure.provenance,
        folded=folded,
    )
    emit(shrunk, as_json=args.json)
    return _verdict(shrunk)


# ---- what was asked for -------------------------------------------------------------------------------------------


def _output(args: argparse.Namespace) -> Path | None:
    if args.output is None:
        if not args.dry_run:
            raise UsageError("-o OUT: name the .keras file to write, or take --dry-run")
        return None
    output = Path(args.output)
    if output.suffix != KERAS:
        raise UsageError(
            f"-o {output}: expected a name that ends in {KERAS}. For .tflite and .onnx add --to litert,onnx"
        )
    return output


def _check_target(args: argparse.Namespace) -> None:
    targets = [option for option in ("target", "target_ms") if getattr(args, option) is not None]
    if args.model == args.structure == "-":
        raise UsageError("MODEL and STRUCTURE cannot both come from stdin")
    if not args.structure and len(targets) != 1:
        raise UsageError("which channels stay? Name a STRUCTURE, or give one of --target 0.5 and --target-ms 5")
    if len(targets) > 1:
        raise UsageError("give one of --target and --target-ms, not both")
    if args.structure:
        for option in PLANNING:
            if getattr(args, option) is not None:
                raise UsageError(
                    f"--{option.replace('_', '-')} says how channels are chosen for a target, and STRUCTURE has chosen "
                    "already. Leave out one of the two"
                )
    if targets and args.cost == "latency" and not args.profile:
        raise UsageError(
            f"--{targets[0].replace('_', '-')} of --cost latency needs --profile P: `latency-lab profiles` lists those "
            f"that ship. Without a device: --cost {' or '.join(COSTS[1:])}"
        )
    if args.target_ms is not None and args.cost != "latency":
        raise UsageError(f"--target-ms is of --cost latency. Received: --cost {args.cost}. Give --target, a share")
    if args.target is not None and not 0 < args.target <= 1:
        raise UsageError(f"--target: expected a share above 0 and at most 1. Received: {args.target}")
    if args.target_ms is not None and not 0 < args.target_ms < math.inf:
        raise UsageError(f"--target-ms: expected milliseconds above 0. Received: {args.target_ms}")


def _read_structure(argument: str) -> Structure:
    import latency_lab

    if argument != "-":
        return latency_lab.Structure.load(argument)
    try:
        return latency_lab.Structure.from_json(json.load(sys.stdin))
    except ValueError as error:
        raise FileFormatError(f"-: what came on stdin is not JSON: {error}") from error


def _planned(args: argparse.Namespace, model: Any, cost: Cost) -> Structure:
    import latency_lab

    options = {name: getattr(args, name) for name in PLANNING[:3] if getattr(args, name) is not None}
    return latency_lab.plan_structure(model, cost, args.target, target_ms=args.target_ms, **options)


def _folded(model: Any, structure: Structure, slim: Any) -> tuple[Folded, ...]:
    from latency_lab import fold

    return fold.fold_constants(model, structure, slim)


def _cost(name: str, graph: ChannelGraph, profile: DeviceProfile | None) -> Cost:
    from latency_lab import cost

    if name == "latency":
        if profile is None:
            raise UsageError("--cost latency needs --profile P")
        return cost.LatencyCost(graph, profile)
    counts: dict[str, Callable[[ChannelGraph], Cost]] = {
        "flops": cost.FlopsCost,
        "params": cost.ParamsCost,
        "memory": cost.ActivationMemoryCost,
    }
    return counts[name](graph)


# ---- what came of it ----------------------------------------------------------------------------------------------


def _figures(
    graphs: tuple[ChannelGraph, ChannelGraph], file_bytes: tuple[int, int], profile: DeviceProfile | None
) -> dict[str, tuple[float, float]]:
    """Both networks by all that is known of them; the slim one is read from the model that was made."""

    def both(name: str) -> tuple[float, float]:
        before, after = (_cost(name, graph, profile).at() for graph in graphs)
        return before, after

    (old, new), (flops_before, flops_after) = both("params"), both("flops")
    found: dict[str, tuple[float, float]] = {
        "parameters": (round(old), round(new)),
        "flops": (round(flops_before), round(flops_after)),
    }
    if profile is not None:
        found["predicted_ms"] = both("latency")
    return {**found, "file_bytes": file_bytes}


def _target(
    args: argparse.Namespace, structure: Structure, graph: ChannelGraph, profile: DeviceProfile | None
) -> Target | None:
    """The target of the command line, else the budget of the structure where it can be checked; as the cost that the
    structure was chosen by reads it."""
    if args.cost == "latency" and profile is None:
        return None
    cost = _cost(args.cost, graph, profile)
    limit = args.target_ms if args.target is None else args.target * cost.at()
    if limit is None and structure.provenance.get("unit") == cost.unit:
        limit = structure.provenance.get("budget")
    return None if limit is None else Target(cost.unit, float(limit), cost.at(structure.widths(graph)))


def _verdict(shrunk: Shrunk) -> int:
    """The exit code, with what is wrong on stderr."""
    if shrunk.nothing:
        note(
            "NOTHING WAS PRUNED: all channels of all groups stay, and the model is as large as before. Lower the "
            "target, or look at what cannot shrink: ChannelGraph.from_model(MODEL).explain()"
        )
    if shrunk.target is not None and not shrunk.target.met:
        note(f"OVER THE TARGET: {shrunk.target}")
    return int(shrunk.nothing or (shrunk.target is not None and not shrunk.target.met))


def _write(args: argparse.Namespace, output: Path | None, slim: Any, data: bytes, structure: Structure) -> list[str]:
    """Makes the content of all files, then writes each whole or not at all; their names."""
    made = {}
    if output is not None:
        made = {output: data, **{output.with_suffix(TARGETS[kind]): _exported(slim, kind) for kind in args.to}}
    for path, content in made.items():
        files.write_bytes(path, content)
    if args.save_structure:
        structure.save(args.save_structure)
    return [*map(str, made), *([args.save_structure] if args.save_structure else [])]


def _keras_bytes(model: Any) -> bytes:
    with tempfile.TemporaryDirectory(prefix="latency-lab-") as folder:
        path = Path(folder) / f"model{KERAS}"
        model.save(path)
        return path.read_bytes()


def _exported(model: Any, kind: str) -> bytes:
    from latency_lab import convert

    return convert.to_tflite(model) if kind == "litert" else convert.to_onnx(model)


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _kinds(text: str) -> list[str]:
    kinds = text.split(",")
    for kind in kinds:
        if kind not in TARGETS:
            raise argparse.ArgumentTypeError(f"expected one or more of {','.join(TARGETS)}, received {kind!r}")
    return kinds


def _names(text: str) -> list[str]:
    return [name for name in text.split(",") if name]
