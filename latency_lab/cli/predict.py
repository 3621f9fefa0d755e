"""predict what a model costs on a device, op by op, with an interval"""

from __future__ import annotations

import argparse

from latency_lab.cli.inputs import KERAS, add_profile, load_keras, model_file
from latency_lab.cli.output import emit


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """MODEL and --profile."""
    parser.add_argument("model", metavar="MODEL", help="a .keras file")
    add_profile(parser)


def run(args: argparse.Namespace) -> int:
    """Predict, and print the estimate."""
    import latency_lab

    profile = latency_lab.load_profile(args.profile)
    with model_file(args.model, (KERAS,)) as path:
        graph = latency_lab.ChannelGraph.from_model(load_keras(path))
    emit(latency_lab.LatencyCost(graph, profile).estimate(), as_json=args.json)
    return 0
