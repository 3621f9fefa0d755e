"""time two models interleaved: how much faster is B than A

Exits 1 when B is not faster, or when timing was too unsteady to say.
"""

from __future__ import annotations

import argparse

from latency_lab.cli.inputs import add_runtime, model_file, quiet, starter
from latency_lab.cli.output import emit, note
from latency_lab.cli.progress import ProgressLine


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """A, B, --runtime, --threads, --on, --python, --benchmark-model."""
    parser.add_argument("a", metavar="A", help="a .keras, .tflite, .onnx or .pb file")
    parser.add_argument("b", metavar="B", help="the same, to be compared with A")
    add_runtime(parser)


def run(args: argparse.Namespace) -> int:
    """Compare, and print the ratio with its interval."""
    import latency_lab

    quiet()
    with model_file(args.a) as a, model_file(args.b) as b, ProgressLine("measuring") as line:
        comparison = latency_lab.compare(a, b, args.runtime, args.threads, on_progress=line, start_worker=starter(args))
    emit(comparison, as_json=args.json)
    if comparison.unstable:
        note("unstable: an interval is wider than 10 % of its latency. What to do: latency-lab doctor")
    return 0 if comparison.faster and not comparison.unstable else 1
