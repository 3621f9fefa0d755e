"""time a model on a runtime of a device"""

from __future__ import annotations

import argparse

from latency_lab.cli.inputs import add_runtime, model_file, quiet, starter
from latency_lab.cli.output import emit, note
from latency_lab.cli.progress import ProgressLine


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """MODEL, --runtime, --threads, --on, --python, --benchmark-model."""
    parser.add_argument("model", metavar="MODEL", help="a .keras, .tflite, .onnx or .pb file")
    add_runtime(parser)


def run(args: argparse.Namespace) -> int:
    """Measure, and print latency with its interval."""
    import latency_lab

    quiet()
    with model_file(args.model) as path, ProgressLine("measuring") as line:
        measured = latency_lab.measure(path, args.runtime, args.threads, on_progress=line, start_worker=starter(args))
    emit(measured, as_json=args.json)
    if measured.statistic.unstable:
        note("unstable: the interval is wider than 10 % of the latency. What to do: latency-lab doctor")
    return 0
