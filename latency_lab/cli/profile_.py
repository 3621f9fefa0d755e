"""time operations on a runtime of a device and fit a device profile

A run that was stopped goes on from its journal when it is started again.
"""

from __future__ import annotations

import argparse
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latency_lab.cli.graphs import READABLE, add_input_shape, load_graph
from latency_lab.cli.inputs import add_runtime, device_of, model_file, quiet
from latency_lab.cli.output import emit, note, write_json
from latency_lab.cli.progress import ProgressLine
from latency_lab.errors import UsageError
from latency_lab.profiles.store import name_of
from latency_lab.report import boards_line

if TYPE_CHECKING:
    from latency_lab.profiling import Journal


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The device and its runtime, --resource, --precision, --model and how to read it, and where and how to keep it."""
    add_runtime(parser)
    parser.add_argument(
        "--resource",
        metavar="R",
        help="on a fleet: the resource that the dask workers of its boards have, one each (default board)",
    )
    parser.add_argument(
        "--model",
        metavar="M",
        dest="models",
        action="append",
        default=[],
        help="a .keras file: measure its operations over the widths that it can take; a .tflite or .onnx file: as they "
        "are (may be given more than once). Without it, operations of networks in general, in two passes: the second "
        "where the first was least sure",
    )
    add_input_shape(parser)
    parser.add_argument(
        "--precision",
        choices=("float32", "float16", "int8"),
        default="float32",
        help="of a .keras model's operations, or of those in general (default float32); float16: for "
        "tensorflow, litert:gpu and providers of onnxruntime other than the CPU's",
    )
    parser.add_argument("-o", "--output", metavar="F", required=True, help="the profile to write, JSON; - is stdout")
    parser.add_argument("--journal", metavar="J", help="keeps each block (default: F's name with .journal.jsonl)")
    parser.add_argument("--name", help="of the profile (default: F's name)")
    parser.add_argument("--force", action="store_true", help="take a journal that another environment began")
    parser.add_argument(
        "--rounds",
        metavar="N",
        type=_rounds,
        help="rounds of the protocol (default 5, at least 5; what is unstable then has up to 10 more)",
    )


SLOW = 1.1
"""From what slowdown on it is said."""


@dataclass(frozen=True)
class Profiled:
    """What was done.

    Attributes:
        profile, journal: the files.
        points: operations and networks that were measured.
        failed: those that were not, name -> reason.
        unstable: names of those whose interval is wider than 10 % of their latency.
        rounds: blocks each.
        samples: in all blocks of the journal.
        slowdown: how many times as long the slowest tenth of the blocks took, at least, as at the machine's good speed.
        boards: of a fleet, name -> blocks, ratio to the fleet's median on common operations, and whether that is off.
        seconds: that this run took, with reading, planning and fitting.
    """

    profile: str
    journal: str
    points: int
    failed: dict[str, str]
    unstable: list[str]
    rounds: int
    samples: int
    slowdown: float
    boards: dict[str, dict[str, Any]]
    seconds: float

    def __str__(self) -> str:
        lines = [f"{self.points} points, {self.rounds} rounds, {self.samples} samples, {self.seconds:.1f} seconds"]
        if self.slowdown > SLOW:
            lines.append(f"a tenth of the time the machine was {self.slowdown:.2f} times slower or more: divided out")
        lines += [boards_line(self.boards)] if self.boards else []
        if self.unstable:
            lines.append(f"{len(self.unstable)} points are unstable (interval wider than 10 %): see latency-lab doctor")
        lines += [f"failed: {name}: {reason}" for name, reason in self.failed.items()]
        return "\n".join([*lines, f"wrote {self.profile} (blocks: {self.journal})"])

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return dict(vars(self))


def run(args: argparse.Namespace) -> int:
    """Plan, measure, fit, write."""
    import numpy as np

    import latency_lab
    from latency_lab.profiling.boards import boards_of

    journal_path, name = _journal_path(args), args.name or name_of(args.output)
    began = time.monotonic()
    quiet()
    note(f"blocks go to {journal_path}")
    journal = (_of_models if args.models else _in_general)(args, journal_path)
    note("fitting ...")
    profile = latency_lab.fit_profile(journal, name=name)
    if args.output == "-":
        write_json("-", profile.to_json())
    else:
        profile.save(args.output)
    done = Profiled(
        profile=args.output,
        journal=str(journal_path),
        points=len(journal.blocks),
        failed=dict(journal.failures),
        unstable=[key for key in journal.blocks if journal.statistic(key).unstable],
        rounds=int(journal.protocol["rounds"]),
        samples=journal.samples,
        slowdown=round(float(np.percentile(journal.slowdowns, 90)), 3),
        boards=boards_of(journal),
        seconds=round(time.monotonic() - began, 1),
    )
    if args.output == "-":
        note(str(done))
    else:
        emit(done, as_json=args.json)
    return 0


def _in_general(args: argparse.Namespace, journal: Path) -> Journal:
    from latency_lab.plan import measure_in_general

    with ProgressLine(f"profiling {args.runtime}") as line:
        return measure_in_general(args.runtime, precision=args.precision, journal=journal, **_settings(args, line))


def _of_models(args: argparse.Namespace, journal: Path) -> Journal:
    import latency_lab
    from latency_lab.plan import plan

    with ExitStack() as stack:
        paths = [stack.enter_context(model_file(m, READABLE)) for m in args.models]
        graphs = [load_graph(path, args.input_shape) for path in paths]
    tasks = plan(graphs, args.runtime, args.precision)
    note(f"{len(tasks)} points to measure on {args.runtime}, {args.threads} thread(s)")
    with ProgressLine(f"profiling {args.runtime}") as line:
        return latency_lab.profile(tasks, runtime=args.runtime, journal=journal, **_settings(args, line))


def _settings(args: argparse.Namespace, line: ProgressLine) -> dict[str, Any]:
    from latency_lab.profiling import Protocol

    return {
        "threads": args.threads,
        "protocol": Protocol(rounds=args.rounds) if args.rounds else None,
        "force": args.force,
        "on_progress": lambda progress: line(progress.done, progress.total),
        "on": device_of(args),
    }


def _journal_path(args: argparse.Namespace) -> Path:
    if args.journal:
        return Path(args.journal)
    if args.output == "-":
        raise UsageError("-o - writes the profile to stdout: name the journal's file with --journal J")
    return Path(args.output).with_name(f"{name_of(args.output)}.journal.jsonl")


def _rounds(text: str) -> int:
    value = int(text)
    if value < 5:
        raise argparse.ArgumentTypeError(f"the protocol has at least 5 rounds, received {text}")
    return value
