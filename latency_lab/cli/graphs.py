"""Models on the command line as graphs, with the shapes that were asked for."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from latency_lab.cli.inputs import KERAS, ONNX, TFLITE, load_keras
from latency_lab.errors import UsageError

if TYPE_CHECKING:
    from latency_lab.graph import ChannelGraph

READABLE = (KERAS, TFLITE, ONNX)
"""Kinds of model files that a graph can be read from."""


def add_input_shape(parser: argparse.ArgumentParser) -> None:
    """Add --input-shape."""
    parser.add_argument(
        "--input-shape",
        metavar="[NAME=]N,...",
        action="append",
        default=[],
        help="sizes of an input that a .tflite or .onnx file leaves open, the batch first: 1,224,224,3 (NAME= where "
        "there are several inputs; may be given more than once)",
    )


def load_graph(path: Path, shapes: list[str]) -> ChannelGraph:
    """The graph of a model file.

    Args:
        path: a .keras, .tflite or .onnx file.
        shapes: what --input-shape was given.

    Raises:
        UsageError: a shape is not written as expected.
        UnsupportedModelError, FileFormatError: the model cannot be read.
    """
    import latency_lab

    if path.suffix == KERAS:
        if shapes:
            raise UsageError("--input-shape is for .tflite and .onnx files: a .keras model has its sizes in it.")
        return latency_lab.ChannelGraph.from_model(load_keras(path))
    return latency_lab.ChannelGraph.from_model(path, _shapes(shapes))


def _shapes(texts: list[str]) -> dict[str, list[int]] | list[int] | None:
    if not texts:
        return None
    parsed = [_shape(text) for text in texts]
    if len(parsed) == 1 and not parsed[0][0]:
        return parsed[0][1]
    if any(not name for name, _ in parsed):
        raise UsageError(f"--input-shape: with several inputs each needs its name. Received: {' '.join(texts)}")
    return dict(parsed)


def _shape(text: str) -> tuple[str, list[int]]:
    name, _, sizes = text.rpartition("=")
    try:
        found = [int(size) for size in sizes.split(",")]
    except ValueError:
        found = []
    if not found or min(found) < 1:
        raise UsageError(f"--input-shape: expected sizes such as 1,224,224,3 or image=1,224,224,3. Received: {text}")
    return name, found
