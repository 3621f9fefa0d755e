"""Reads .tflite files: the operations that they hold, as the runtime executes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from latency_lab.errors import UnsupportedModelError
from latency_lab.graph.channel_graph import ChannelGraph


def read_tflite(path: str | Path, input_shapes: Any = None) -> ChannelGraph:
    """The graph of a .tflite file."""
    raise UnsupportedModelError(f"Cannot read {path} yet.")
