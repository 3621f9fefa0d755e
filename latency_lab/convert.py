"""Keras models as files that runtimes run, with a batch of one and fixed shapes.

to_tflite:   model -> SavedModel -> TensorFlow's converter
to_onnx:     model -> `keras.Model.export` (tf2onnx)
to_graphdef: model -> frozen GraphDef, batch norms folded (`freeze`)
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from latency_lab import freeze
from latency_lab.errors import UnsupportedModelError, UsageError
from latency_lab.extras import missing
from latency_lab.half import half_graphdef, half_onnx
from latency_lab.keras_files import load_keras

_log = logging.getLogger(__name__)
_PRECISIONS = ("float32", "float16", "int8")
_FIRST_OPSET_WITH_CHANNEL_SCALES = 13
_REPRESENTATIVES = 4
"""Inputs that an int8 model's ranges are read from where none are given."""


def to_tflite(model_or_path: Any, precision: str = "float32", representative: Iterable[Any] | None = None) -> bytes:
    """A Keras model as the bytes of a .tflite file.

    Args:
        model_or_path: a built Keras model, or the path of a .keras file.
        precision: "float32"; "float16" for weights of float16 alone, which a GPU computes with as they are; "int8" for
            full-integer weights and activations, inputs and outputs int8 too.
        representative: what the ranges of int8 activations are read from: input arrays [1, ...] as the model takes
            them, each a list of arrays where the model has several inputs. By default 4 of standard normal numbers,
            the same each time: right for latency, while accuracy needs real data.

    Returns:
        the file; inputs and outputs in the model's order, batch 1.

    Raises:
        UnsupportedModelError: the model has no fixed input shape, or the converter cannot express a layer.
        FileFormatError: the path is no .keras file.
        UsageError: there is no such precision, or Keras runs another backend than TensorFlow.
        MissingRuntimeError: Keras or TensorFlow is not installed.

    Example:
        >>> import keras
        >>> from latency_lab.convert import to_tflite
        >>> model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(4, 3)])
        >>> to_tflite(model)[4:8]
        b'TFL3'
    """
    _check_precision(precision)
    model, _ = _fixed(_model(model_or_path))
    try:
        import tensorflow as tf
    except ModuleNotFoundError as error:
        raise missing(error, "A TFLite file") or error from error
    with _quiet(), _named_failure(model, "TFLite"):
        # The function alone would lose the weights of a Keras 3 model, and a SavedModel takes five times as long.
        converter = tf.lite.TFLiteConverter.from_concrete_functions([_with_constants(_traced(model))])
        if precision == "float16":
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
            converter.target_spec.supported_types = [tf.float16]
        if precision == "int8":
            _quantise(converter, model, representative)
        return bytes(converter.convert())


def _traced(model: Any) -> Any:
    """The model as a TensorFlow function of its inputs, in their order, at batch 1."""
    import tensorflow as tf

    specs = [tf.TensorSpec((1, *t.shape[1:]), t.dtype, f"input_{k}") for k, t in enumerate(model.inputs)]
    return tf.function(lambda *xs: model(list(xs) if len(xs) > 1 else xs[0], training=False)).get_concrete_function(
        *specs
    )


def _with_constants(function: Any) -> Any:
    """The function with the values of its variables in it."""
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    return convert_variables_to_constants_v2(function, lower_control_flow=False)


def _quantise(converter: Any, model: Any, representative: Iterable[Any] | None) -> None:
    """Set the converter to full integers, by the ranges that the representative inputs give."""
    import tensorflow as tf

    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    shapes, types = [(1, *t.shape[1:]) for t in model.inputs], [t.dtype for t in model.inputs]
    converter.representative_dataset = lambda: _representative_arrays(shapes, types, representative)
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    converter.inference_input_type = converter.inference_output_type = tf.int8


def to_onnx(model_or_path: Any, precision: str = "float32", representative: Iterable[Any] | None = None) -> bytes:
    """A Keras model as the bytes of an .onnx file.

    Args:
        model_or_path: a built Keras model, or the path of a .keras file.
        precision: "float32"; "float16" for all of it, inputs and outputs too; "int8" for int8 weights, a scale for
            each output channel, and 8-bit activations
            (unsigned, which ONNX Runtime on x86 has integer kernels for), inputs and outputs float32.
        representative: what the ranges of 8-bit activations are read from: input arrays [1, ...] as the model takes
            them, each a list of arrays where the model has several inputs. By default 4 of standard normal numbers,
            the same each time: right for latency, while accuracy needs real data.

    Returns:
        the file; inputs and outputs as the model's, batch 1.

    Raises:
        UnsupportedModelError: the model has no fixed input shape, or ONNX export cannot express a layer.
        FileFormatError: the path is no .keras file.
        UsageError: there is no such precision, or Keras runs another backend than TensorFlow.
        MissingRuntimeError: Keras, onnx or tf2onnx is not installed.

    Example:
        >>> import keras
        >>> from latency_lab.convert import to_onnx
        >>> model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(4, 3)])
        >>> b"Conv" in to_onnx(model)
        True
    """
    _check_precision(precision)
    model, signature = _fixed(_model(model_or_path))
    try:
        import onnx
        import tf2onnx  # noqa: F401
    except ModuleNotFoundError as error:
        raise missing(error, "An ONNX file") or error from error
    with tempfile.TemporaryDirectory() as folder, _quiet(), _named_failure(model, "ONNX"):
        path = Path(folder) / "model.onnx"
        _teach_erfc()
        with _functions_in_line():
            model.export(path, format="onnx", input_signature=signature, verbose=False)
        found = onnx.load(path)
        _without_false_inputs(found, model)
    foreign = [node for node in found.graph.node if not onnx.defs.has(node.op_type, node.domain)]
    if foreign:
        raise UnsupportedModelError(
            f"ONNX export cannot express {foreign[0].op_type} of {foreign[0].name!r} in the model {model.name!r}. "
            "Convert to TFLite, or replace the layer."
        )
    if precision == "int8":
        with _quiet(), _named_failure(model, "8-bit ONNX"):
            return _quantised_onnx(found, representative)
    file = bytes(found.SerializeToString())
    return half_onnx(file) if precision == "float16" else file


def _without_false_inputs(found: Any, model: Any) -> None:
    """Turns inputs of the ONNX model that are none of the Keras model's into the constants that they are.

    tf2onnx lists a tensor that a layer holds, such as the mean of a Normalization, as an input, last, in the order of
    tracing.
    """
    import tensorflow as tf
    from onnx import numpy_helper

    graph = found.graph
    extra = list(graph.input)[len(model.inputs) :]
    if not extra:
        return
    read = {name for node in graph.node for name in node.input}
    held = [value.numpy() for value, _ in _traced(model).graph.captures if value.dtype != tf.resource]
    for value, array in zip(extra, held, strict=True):
        if tuple(d.dim_value for d in value.type.tensor_type.shape.dim) != array.shape:
            raise ValueError(f"{value.name!r} is none of its inputs, and holds no constant that could be found.")
        graph.input.remove(value)
        if value.name in read:
            graph.initializer.append(numpy_helper.from_array(array, value.name))


@contextlib.contextmanager
def _functions_in_line() -> Iterator[None]:
    """What is traced holds the operators of inner functions: tf2onnx cannot read a compiled grouped convolution."""
    import tensorflow as tf

    before = tf.config.functions_run_eagerly()
    tf.config.run_functions_eagerly(True)
    try:
        yield
    finally:
        tf.config.run_functions_eagerly(before)


def quantise_onnx(file: bytes, representative: Iterable[Any] | None = None) -> bytes:
    """A float32 .onnx file as one of 8-bit operators, as `to_onnx(model, precision="int8")` gives.

    They are float operators between casts, which ONNX Runtime merges on loading.

    Args:
        file: with inputs of fixed shapes.
        representative: as of `to_onnx`.

    Raises:
        UnsupportedModelError: an operator cannot be read.
        MissingRuntimeError: onnx or onnxruntime is not installed.
    """
    try:
        import onnx
        import onnxruntime.quantization  # noqa: F401
    except ModuleNotFoundError as error:
        raise missing(error, "An 8-bit ONNX file") or error from error
    found = onnx.load_from_string(file)
    with _quiet(), _named_failure(found.graph, "8-bit ONNX"):
        return _quantised_onnx(found, representative)


def _quantised_onnx(found: Any, representative: Iterable[Any] | None) -> bytes:
    import onnx
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    if found.opset_import[0].version < _FIRST_OPSET_WITH_CHANNEL_SCALES:
        found = onnx.version_converter.convert_version(found, _FIRST_OPSET_WITH_CHANNEL_SCALES)
    types = [value.type.tensor_type for value in found.graph.input]
    shapes = [tuple(d.dim_value for d in each.shape.dim) for each in types]
    arrays = _representative_arrays(
        shapes, [onnx.helper.tensor_dtype_to_np_dtype(each.elem_type) for each in types], representative
    )
    rows = [dict(zip([value.name for value in found.graph.input], each, strict=True)) for each in arrays]

    class Reader(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self._rows = iter(rows)

        def get_next(self) -> dict[str, Any] | None:
            return next(self._rows, None)

    with tempfile.TemporaryDirectory() as folder:
        whole, simple, coded = (str(Path(folder) / f"{name}.onnx") for name in ("whole", "simple", "coded"))
        onnx.save(found, whole)
        quant_pre_process(whole, simple, skip_symbolic_shape=True)  # merges pads and batch norms, while they are float
        quantization.quantize_static(
            simple,
            coded,
            Reader(),
            quant_format=quantization.QuantFormat.QDQ,
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
        )
        return Path(coded).read_bytes()


def to_graphdef(model_or_path: Any, precision: str = "float32") -> bytes:
    """A Keras model as the bytes of a frozen TensorFlow GraphDef (.pb), batch norms folded.

    Args:
        model_or_path: a built Keras model, or the path of a .keras file.
        precision: "float32"; "float16" for all of it, inputs and outputs too.

    Returns:
        the file; placeholders "input0", ... and outputs "output0", ... in the model's order, batch 1.

    Raises:
        UnsupportedModelError: the model has no fixed input shape, or it cannot be traced.
        FileFormatError: the path is no .keras file.
        UsageError: there is no such precision, or Keras runs another backend than TensorFlow.
        MissingRuntimeError: Keras or TensorFlow is not installed.

    Example:
        >>> import keras
        >>> from latency_lab.convert import to_graphdef
        >>> model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(4, 3)])
        >>> b"Conv2D" in to_graphdef(model)
        True
    """
    _check_precision(precision, ("float32", "float16"))
    model, _ = _fixed(_model(model_or_path))
    try:
        import tensorflow  # noqa: F401
    except ModuleNotFoundError as error:
        raise missing(error, "A TensorFlow graph") or error from error
    with _quiet(), _named_failure(model, "a TensorFlow graph"):
        file = freeze.frozen_graph(model)
        return half_graphdef(file) if precision == "float16" else file


def _check_precision(precision: str, known: Sequence[str] = _PRECISIONS) -> None:
    if precision not in known:
        raise UsageError(
            f"Invalid value for argument `precision`. Expected one of {list(known)}. Received: precision={precision!r}"
        )


def _representative_arrays(
    shapes: Sequence[tuple[int, ...]], types: Sequence[Any], representative: Iterable[Any] | None
) -> Iterator[list[Any]]:
    """What the ranges of 8-bit activations are read from: a list of the model's input arrays each."""
    import numpy as np

    if representative is None:
        random = np.random.default_rng(0)
        representative = [[random.normal(size=shape) for shape in shapes] for _ in range(_REPRESENTATIVES)]
    for arrays in representative:
        listed = arrays if isinstance(arrays, (list, tuple)) else [arrays]
        yield [np.asarray(array).astype(kind) for array, kind in zip(listed, types, strict=True)]


def _model(model_or_path: Any) -> Any:
    """The model, loaded where it is a path."""
    try:
        import keras
    except ModuleNotFoundError as error:
        raise missing(error, "Converting a model") or error from error
    if keras.backend.backend() != "tensorflow":
        raise UsageError(
            f"Models are converted under Keras's TensorFlow backend, and this process runs {keras.backend.backend()}. "
            "Save the model as .keras, and convert the file in a process with KERAS_BACKEND=tensorflow."
        )
    if isinstance(model_or_path, (str, os.PathLike)):
        return load_keras(Path(model_or_path))
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
