"""measure models and set what was predicted beside it"""

from __future__ import annotations

import argparse
from contextlib import ExitStack

from latency_lab.cli.graphs import READABLE
from latency_lab.cli.inputs import add_device, add_profile, device_of, model_file, quiet
from latency_lab.cli.output import emit
from latency_lab.cli.progress import ProgressLine


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """MODEL..., --profile, --on, --python, --benchmark-model."""
    files = ".keras files, or files of the profile's runtime (.tflite, .onnx)"
    parser.add_argument("models", metavar="MODEL", nargs="+", help=files)
    add_profile(parser)
    add_device(parser)


def run(args: argparse.Namespace) -> int:
    """Validate, and print errors model by model and over all."""
    import latency_lab

    quiet()
    device = device_of(args)
    profile = latency_lab.load_profile(args.profile)
    with ExitStack() as stack:
        paths = [stack.enter_context(model_file(name, READABLE)) for name in args.models]
        with ProgressLine("measuring") as line:
            validation = latency_lab.validate(profile, paths, on_progress=line, on=device)
        emit(validation, as_json=args.json)
    return 0
