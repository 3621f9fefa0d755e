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

__all__ = ["NAMES", "Runtime", "get"]

_RUNTIMES: dict[str, Runtime] = {
    runtime.name: runtime for runtime in (LiteRT(), OnnxRuntime(), TensorFlow(), TensorFlow(xla=True))
}

NAMES: tuple[str, ...] = tuple(sorted(_RUNTIMES))
"""Names of the runtimes that there are."""


def get(name: str) -> Runtime:
    """The runtime of this name. Takes no framework: that is imported when a model is built.

    Args:
        name: one of `NAMES`; TensorFlow's with ":" and a device, where it is not to be the CPU: "tensorflow:GPU:0".

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
    if device and isinstance(found, TensorFlow):
        return found.on(device)
    near = difflib.get_close_matches(kind, NAMES, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    expected = f"Expected one of {list(NAMES)}. Received: runtime={name!r}"
    raise UsageError(f"Invalid value for argument `runtime`. {expected}.{hint}")
