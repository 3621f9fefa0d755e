"""say which runtimes work on a device, and what makes timing unsteady, with what to do

Exits 1 when a measurement there would not be trusted: timing is unsteady, or no runtime works.
"""

from __future__ import annotations

import argparse

from latency_lab.cli.inputs import add_device, device_of
from latency_lab.cli.output import emit


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The device, --runtime."""
    add_device(parser)
    parser.add_argument(
        "--runtime",
        metavar="R",
        dest="runtimes",
        action="append",
        default=[],
        help="try this one alone, as profile and measure name it: onnxruntime:openvino, litert:gpu, vela (may be given "
        "more than once; default: litert, onnxruntime, tensorflow and tensorflow-xla)",
    )


def run(args: argparse.Namespace) -> int:
    """Look, and print what was seen."""
    import latency_lab

    report = latency_lab.doctor(on=device_of(args), names=args.runtimes)
    emit(report, as_json=args.json)
    return 0 if report.trusted else 1
