"""Reads .onnx files: the operations that they hold, as the runtime executes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from latency_lab.errors import UnsupportedModelError
from latency_lab.graph.channel_graph import ChannelGraph


def read_onnx(path: str | Path, input_shapes: Any = None) -> ChannelGraph:
    """The graph of a .onnx file."""
    raise UnsupportedModelError(f"Cannot read {path} yet.")
