"""predict what a model costs on a device, op by op, with an interval"""

from __future__ import annotations

import argparse

from latency_lab.cli.graphs import READABLE, add_input_shape, load_graph
from latency_lab.cli.inputs import add_profile, model_file
from latency_lab.cli.output import emit


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """MODEL, --profile, --input-shape."""
    parser.add_argument("model", metavar="MODEL", help="a .keras, .tflite or .onnx file")
    add_profile(parser)
    add_input_shape(parser)


def run(args: argparse.Namespace) -> int:
    """Predict, and print the estimate."""
    import latency_lab

    profile = latency_lab.load_profile(args.profile)
    with model_file(args.model, READABLE) as path:
        graph = load_graph(path, args.input_shape)
    emit(latency_lab.LatencyCost(graph, profile).estimate(), as_json=args.json)
    return 0
