"""Which extra of latency-lab brings a framework, and the error that says so when it is not installed."""

from __future__ import annotations

from collections.abc import Mapping

from latency_lab.errors import MissingRuntimeError

EXTRA_OF: Mapping[str, str] = {
    "ai_edge_litert": "litert",
    "distributed": "fleet",
    "flatbuffers": "litert",
    "jax": "jax",
    "keras": "keras",
    "matplotlib": "plot",
    "onnx": "onnx",
    "onnxruntime": "onnx",
    "sklearn": "fit",
    "tensorboard": "tensorboard",
    "tensorflow": "keras",
    "tf2onnx": "onnx",
    "tflite_runtime": "tflite-runtime",
    "torch": "torch",
}
"""Top-level module -> the extra that installs it."""


def missing(error: ModuleNotFoundError, wanted: str) -> MissingRuntimeError | None:
    """The error for the user when `wanted` needs a module that is not installed.

    Args:
        error: what the import raised.
        wanted: what needed the module, for the message.

    Returns:
        The error with the command that installs the module, or None when no extra of latency-lab brings it (then the
        import failed for another reason).

    Example:
        >>> from latency_lab.extras import missing
        >>> print(missing(ModuleNotFoundError(name="keras"), "ChannelGraph"))
        ChannelGraph needs keras, which is not installed. Install it: pip install "latency-lab[keras]"
    """
    module = (error.name or "").partition(".")[0]
    extra = EXTRA_OF.get(module)
    if extra is None:
        return None
    return MissingRuntimeError(
        f'{wanted} needs {module}, which is not installed. Install it: pip install "latency-lab[{extra}]"'
    )
