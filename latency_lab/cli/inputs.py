"""Arguments that several verbs take, and the files that they name."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latency_lab.errors import FileFormatError, UsageError

if TYPE_CHECKING:
    from latency_lab.profiling import LocalWorker

KERAS, TFLITE, ONNX, GRAPH = ".keras", ".tflite", ".onnx", ".pb"


def add_runtime(parser: argparse.ArgumentParser) -> None:
    """Add --runtime, --threads and --python."""
    parser.add_argument(
        "--runtime",
        metavar="R",
        default="litert",
        help="litert (default), onnxruntime, tensorflow or tensorflow-xla; the last two may name a device: "
        "tensorflow:GPU:0",
    )
    parser.add_argument("--threads", metavar="N", type=_positive, default=1, help="threads of the runtime (default 1)")
    parser.add_argument(
        "--python",
        metavar="PATH",
        help="the Python that has the runtime, where that is not this one (tflite-runtime needs numpy<2)",
    )


def starter(args: argparse.Namespace) -> Callable[[], LocalWorker] | None:
    """What starts workers of the runtime that `add_runtime` was told of; None for those of this Python.

    Raises:
        UsageError: --python names no program.
    """
    if args.python is None:
        return None
    from latency_lab.profiling import LocalWorker, worker_command

    command = worker_command(args.python)
    return lambda: LocalWorker(args.runtime, args.threads, command)


def add_profile(parser: argparse.ArgumentParser) -> None:
    """Add --profile."""
    parser.add_argument("--profile", metavar="P", required=True, help="a profile file, or the name of a shipped one")


@contextmanager
def model_file(argument: str, suffixes: Sequence[str] = (KERAS, TFLITE, ONNX, GRAPH)) -> Iterator[Path]:
    """The path of a model that was named on the command line; stdin for "-" is kept in a file meanwhile.

    Args:
        argument: a path, or "-".
        suffixes: the kinds that the verb takes.

    Raises:
        UsageError: there is no such file, or it is of a kind that the verb does not take.
        FileFormatError: what came on stdin is no model.
    """
    with _stdin_model() if argument == "-" else nullcontext(Path(argument)) as path:
        if path.suffix not in suffixes:
            raise UsageError(
                f"{argument}: expected a model that ends in {' or '.join(suffixes)}. Received: {path.suffix!r}"
            )
        if not path.is_file():
            raise UsageError(f"{argument}: there is no such file")
        yield path


def load_keras(path: Path) -> Any:
    """The Keras model in a .keras file, a gated one too: packages that bring layers name themselves as entry points.

    Raises:
        FileFormatError: it is no Keras model.
    """
    quiet()
    from importlib.metadata import entry_points

    import keras

    for package in entry_points(group="latency_lab.keras_layers"):
        package.load()  # registers its layers
    try:
        return keras.saving.load_model(path, compile=False)
    except (ValueError, OSError, TypeError) as error:
        raise FileFormatError(f"{path}: not a Keras model that can be loaded: {error}") from error


def quiet() -> None:
    """Ask the frameworks to keep to errors, unless the user has asked otherwise. To be called before they load."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("ABSL_MIN_LOG_LEVEL", "2")


@contextmanager
def _stdin_model() -> Iterator[Path]:
    data = sys.stdin.buffer.read()
    if not data:
        raise FileFormatError("-: nothing came on stdin; expected the bytes of a model")
    kinds = {KERAS: data[:2] == b"PK", TFLITE: data[4:8] == b"TFL3", GRAPH: data[:1] == b"\n"}
    suffix = next((suffix for suffix, fits in kinds.items() if fits), ONNX)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / f"stdin{suffix}"
        path.write_bytes(data)
        yield path


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a positive number, received {text}")
    return value
