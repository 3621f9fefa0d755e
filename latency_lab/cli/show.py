"""show what a profile holds, or which channels of a model can shrink"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from latency_lab import report
from latency_lab.cli.graphs import READABLE, add_input_shape, load_graph
from latency_lab.cli.inputs import model_file
from latency_lab.cli.output import emit, note
from latency_lab.errors import FileFormatError, UsageError
from latency_lab.profiles import DeviceProfile, load_profile
from latency_lab.report.plot import plot


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """P or MODEL, --plot, --input-shape."""
    parser.add_argument(
        "profile",
        metavar="P",
        help="a profile file, the name of a shipped one, or -; or a .keras, .tflite, .onnx model",
    )
    parser.add_argument(
        "--plot", metavar="F", help="draw latency over channels, measured and predicted, into F (.png, .svg, .pdf)"
    )
    add_input_shape(parser)


def run(args: argparse.Namespace) -> int:
    """Print the profile: a summary, or with --json all of it; with --plot, draw it too. Of a model, its channels."""
    if Path(args.profile).suffix in READABLE:
        if args.plot:
            raise UsageError("--plot is of a profile, not of a model")
        with model_file(args.profile, READABLE) as path:
            emit(load_graph(path, args.input_shape).explain(), as_json=args.json)
        return 0
    profile = _from_stdin() if args.profile == "-" else load_profile(args.profile)
    if args.plot:
        plot(profile, args.plot)
        note(f"wrote {args.plot}")
    print(json.dumps(profile.to_json(), indent=2) if args.json else report.describe(profile))
    return 0


def _from_stdin() -> DeviceProfile:
    try:
        return DeviceProfile.from_json(json.load(sys.stdin))
    except ValueError as error:
        raise FileFormatError(f"-: what came on stdin is not JSON: {error}") from error
