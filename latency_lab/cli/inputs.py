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
    from latency_lab.profiling import Device, Worker

KERAS, TFLITE, ONNX, GRAPH = ".keras", ".tflite", ".onnx", ".pb"


def add_runtime(parser: argparse.ArgumentParser) -> None:
    """Add --runtime, --threads and the device."""
    parser.add_argument(
        "--runtime",
        metavar="R",
        default="litert",
        help="litert (default), onnxruntime, tensorflow, tensorflow-xla or vela; behind a colon, what it runs on where "
        "that is not the CPU: onnxruntime:cuda, litert:gpu, litert:./libdelegate.so, tensorflow:GPU:0, "
        "vela:ethos-u55-128",
    )
    parser.add_argument("--threads", metavar="N", type=_positive, default=1, help="threads of the runtime (default 1)")
    add_device(parser)


def add_device(parser: argparse.ArgumentParser) -> None:
    """Add --on, --python and --benchmark-model."""
    parser.add_argument(
        "--on",
        metavar="D",
        default="local",
        help="the device: local (default), ssh://user@host:port (through your ssh: its configuration, agent and known "
        "hosts; LATENCY_LAB_SSH='ssh -F file' gives it options) or adb://serial (through your adb, or the one in ADB); "
        "for profile also fleet://host:port, a dask scheduler's, whose workers are many boards that are alike",
    )
    parser.add_argument(
        "--python",
        metavar="PATH",
        help="the Python there that has the runtime and numpy, 3.9 or newer (default: this one on local, python3 "
        "elsewhere)",
    )
    parser.add_argument(
        "--benchmark-model",
        metavar="PATH",
        help="on adb: TFLite's benchmark_model in Python's place, a file here or a path there",
    )


def device_of(args: argparse.Namespace) -> Device:
    """The device that `add_device` was told of.

    Raises:
        UsageError: there is no such address, or no such program.
    """
    from latency_lab.profiling import device

    return device(args.on, args.python, args.benchmark_model, getattr(args, "resource", None))


def starter(args: argparse.Namespace) -> Callable[[], Worker]:
    """What starts workers of the runtime, on the device, that `add_runtime` was told of."""
    device = device_of(args)
    return lambda: device.start(args.runtime, args.threads)


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
    """The Keras model in a .keras file, without what the frameworks have to say (`keras_files.load_keras`)."""
    quiet()
    from latency_lab.keras_files import load_keras

    return load_keras(path)


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
