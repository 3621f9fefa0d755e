"""Runtimes: each builds the model bytes of a network, and says what it can run.

A runtime is two halves. The half here runs on the host and turns an `ops.Network` into the bytes of a model file. The
other half, a worker, runs on the device and times such a model.
"""

from __future__ import annotations

import difflib

from latency_lab.errors import UsageError
from latency_lab.runtimes.base import Runtime
from latency_lab.runtimes.litert import LiteRT
from latency_lab.runtimes.onnxruntime import OnnxRuntime
from latency_lab.runtimes.tensorflow_ import TensorFlow
from latency_lab.runtimes.vela import Vela

__all__ = ["NAMES", "Runtime", "get"]

_RUNTIMES: dict[str, LiteRT | OnnxRuntime | TensorFlow] = {
    runtime.name: runtime for runtime in (LiteRT(), OnnxRuntime(), TensorFlow(), TensorFlow(xla=True))
}

NAMES: tuple[str, ...] = tuple(sorted(_RUNTIMES))
"""Names of the runtimes that time models on a device; beside them there is "vela", which estimates."""
_VELA = Vela()


def get(name: str) -> Runtime:
    """The runtime of this name. Takes no framework: that is imported when a model is built.

    Args:
        name: one of `NAMES`, with ":" and a device where it is not to be the CPU: "tensorflow:GPU:0", "litert:gpu",
            "onnxruntime:cuda". Or "vela" with ":" and the NPU, where it is not to be ethos-u55-256:
            "vela:ethos-u55-128".

    Raises:
        UsageError: there is no such runtime.

    Example:
        >>> from latency_lab import runtimes
        >>> runtimes.get("litert").suffix
        '.tflite'
    """
    if name in _RUNTIMES:
        return _RUNTIMES[name]
    kind, _, device = name.partition(":")
    found = _RUNTIMES.get(kind)
    if kind == _VELA.name:
        return _VELA.on(device)
    if device and found:
        return found.on(device)
    near = difflib.get_close_matches(kind, [*NAMES, _VELA.name], n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    expected = f"Expected one of {[*NAMES, _VELA.name]}. Received: runtime={name!r}"
    raise UsageError(f"Invalid value for argument `runtime`. {expected}.{hint}")
