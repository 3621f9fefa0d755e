"""Keras models as files that runtimes run, with a batch of one and fixed shapes.

to_tflite: model -> SavedModel -> TensorFlow's converter
to_onnx:   model -> `keras.Model.export` (tf2onnx)
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from latency_lab.errors import FileFormatError, UnsupportedModelError
from latency_lab.extras import missing

_log = logging.getLogger(__name__)


def to_tflite(model_or_path: Any) -> bytes:
    """A Keras model as the bytes of a .tflite file, float32.

    Args:
        model_or_path: a built Keras model, or the path of a .keras file.

    Returns:
        the file; inputs and outputs as the model's, batch 1.

    Raises:
        UnsupportedModelError: the model has no fixed input shape, or the converter cannot express a layer.
        FileFormatError: the path is no .keras file.
        MissingRuntimeError: Keras or TensorFlow is not installed.

    Example:
        >>> import keras
        >>> from latency_lab.convert import to_tflite
        >>> model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(4, 3)])
        >>> to_tflite(model)[4:8]
        b'TFL3'
    """
    model, signature = _fixed(_model(model_or_path))
    try:
        import tensorflow as tf
    except ModuleNotFoundError as error:
        raise missing(error, "A TFLite file") or error from error
    with tempfile.TemporaryDirectory() as folder, _quiet(), _named_failure(model, "TFLite"):
        model.export(folder, format="tf_saved_model", input_signature=signature, verbose=False)
        # from_concrete_functions would lose the weights of a Keras 3 model.
        return _in_order(tf.lite.TFLiteConverter.from_saved_model(folder).convert())


def to_onnx(model_or_path: Any) -> bytes:
    """A Keras model as the bytes of an .onnx file, float32.

    Args:
        model_or_path: a built Keras model, or the path of a .keras file.

    Returns:
        the file; inputs and outputs as the model's, batch 1.

    Raises:
        UnsupportedModelError: the model has no fixed input shape, or ONNX export cannot express a layer.
        FileFormatError: the path is no .keras file.
        MissingRuntimeError: Keras, onnx or tf2onnx is not installed.

    Example:
        >>> import keras
        >>> from latency_lab.convert import to_onnx
        >>> model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(4, 3)])
        >>> b"Conv" in to_onnx(model)
        True
    """
    model, signature = _fixed(_model(model_or_path))
    try:
        import onnx
        import tf2onnx  # noqa: F401
    except ModuleNotFoundError as error:
        raise missing(error, "An ONNX file") or error from error
    with tempfile.TemporaryDirectory() as folder, _quiet(), _named_failure(model, "ONNX"):
        path = Path(folder) / "model.onnx"
        _teach_erfc()
        model.export(path, format="onnx", input_signature=signature, verbose=False)
        found = onnx.load(path)
    foreign = [node for node in found.graph.node if not onnx.defs.has(node.op_type, node.domain)]
    if foreign:
        raise UnsupportedModelError(
            f"ONNX export cannot express {foreign[0].op_type} of {foreign[0].name!r} in the model {model.name!r}. "
            "(A grouped convolution on TensorFlow is known for this.) Convert to TFLite, or replace the layer."
        )
    return bytes(found.SerializeToString())


def _model(model_or_path: Any) -> Any:
    """The model, loaded where it is a path."""
    try:
        import keras
    except ModuleNotFoundError as error:
        raise missing(error, "Converting a model") or error from error
    if isinstance(model_or_path, (str, os.PathLike)):
        path = Path(model_or_path)
        if not path.is_file():
            raise FileFormatError(f"There is no file {str(path)!r}.")
        try:
            return keras.saving.load_model(path, compile=False)
        except (ValueError, TypeError, OSError) as error:
            raise FileFormatError(f"Cannot load {str(path)!r} as a .keras file: {error}") from error
    if not isinstance(model_or_path, keras.Model):
        raise UnsupportedModelError(
            f"Expected a Keras model or the path of a .keras file. Received: {type(model_or_path)!r}"
        )
    return model_or_path


def _fixed(model: Any) -> tuple[Any, list[Any]]:
    """The model over flat lists of tensors, and what export takes as its inputs at batch 1."""
    import keras

    inputs = getattr(model, "inputs", None)
    if not inputs:
        raise UnsupportedModelError(
            f"The model {model.name!r} has no inputs of known shape. "
            "Build it as a functional or Sequential model with keras.Input."
        )
    for tensor in inputs:
        if None in tensor.shape[1:]:
            raise UnsupportedModelError(
                f"Input {tensor.name!r} of the model {model.name!r} has shape {tuple(tensor.shape)}. Expected fixed "
                "sizes after the batch. Build the model with the input size that will be served."
            )
    specs = [keras.InputSpec(shape=(1, *tensor.shape[1:]), dtype=tensor.dtype) for tensor in inputs]
    if len(specs) == 1:
        return keras.Model(inputs[0], list(model.outputs), name=model.name), specs
    return keras.Model(list(inputs), list(model.outputs), name=model.name), [specs]


def _in_order(file: bytes) -> bytes:
    """The TFLite file with inputs and outputs in the model's order; the converter leaves them in any."""
    from tensorflow.lite.python import schema_py_generated as schema

    data = bytearray(file)
    model = schema.Model.GetRootAs(data, 0)
    graph, signature = model.Subgraphs(0), model.SignatureDefs(0)
    inputs = [signature.Inputs(k) for k in range(signature.InputsLength())]
    outputs = [signature.Outputs(k) for k in range(signature.OutputsLength())]
    for tensors, found in ((graph.InputsAsNumpy(), inputs), (graph.OutputsAsNumpy(), outputs)):
        tensors[:] = [item.TensorIndex() for item in sorted(found, key=lambda item: _number(item.Name()))]
    return bytes(data)


def _number(name: bytes) -> int:
    """What Keras' name of an input or output ends in: args_0, args_0_1, ..., output_0, output_1, ..."""
    return int(name.rsplit(b"_", 1)[1]) if name.count(b"_") > 1 or name.startswith(b"output") else 0


@contextlib.contextmanager
def _named_failure(model: Any, format_name: str) -> Iterator[None]:
    """Whatever a converter raises, as UnsupportedModelError."""
    try:
        yield
    except Exception as error:
        raise UnsupportedModelError(
            f"The model {model.name!r} cannot be converted to {format_name}: {error}"
        ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps what converters print, C++ included, out of stdout and stderr; it is logged for debugging."""
    with tempfile.TemporaryFile("w+", errors="replace") as sink, contextlib.ExitStack() as stack:
        sys.stdout.flush()
        sys.stderr.flush()
        for descriptor in (1, 2):
            kept = os.dup(descriptor)
            stack.callback(os.close, kept)
            stack.callback(os.dup2, kept, descriptor)
            os.dup2(sink.fileno(), descriptor)
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            # sys.stdout and sys.stderr themselves stay: a converter may give its log handlers a hold of them.
            sys.stdout.flush()
            sys.stderr.flush()
            sink.seek(0)
            _log.debug("%s", sink.read())


@functools.cache
def _teach_erfc() -> None:
    """Let tf2onnx write erfc(x), which is in TensorFlow's exact GELU, as 1 - erf(x)."""
    import numpy as np
    from tf2onnx import utils
    from tf2onnx.handler import tf_op

    @tf_op("Erfc")
    class _Erfc:
        @classmethod
        def version_9(cls, ctx: Any, node: Any, **_: Any) -> None:
            node.type = "Erf"
            one = ctx.make_const(utils.make_name("one"), np.ones((), np.float32)).output[0]
            ctx.insert_new_node_on_output("Sub", node.output[0], utils.make_name("erfc"), inputs=[one, node.output[0]])
