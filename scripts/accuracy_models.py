"""The networks of the accuracy benchmark as the files that runtimes read: built, converted and kept in a cache.

    .venv/bin/python scripts/accuracy_models.py --runtime litert --precision float32 [--only NAME ...] [--jobs N]

Which networks there are is in accuracy_networks.json beside this file, and does not depend on any result. A network
is converted in a process of its own, so that a crash or a leak costs one network. What could not be converted leaves
NAME.failed.txt with the reason, and is tried again with --retry alone.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from latency_lab import files
from latency_lab.errors import FileFormatError, UnsupportedModelError, UsageError

LIST = Path(__file__).with_name("accuracy_networks.json")
CACHE = Path.home() / ".cache" / "latency-lab" / "accuracy"
SUFFIXES = {"litert": ".tflite", "onnxruntime": ".onnx", "tensorflow": ".pb"}
PRECISIONS = {"litert": ("float32", "int8"), "onnxruntime": ("float32", "int8"), "tensorflow": ("float32",)}

Entry = Mapping[str, Any]


def networks(path: Path = LIST) -> list[dict[str, Any]]:
    """The entries of the list, in its order.

    An entry has a name and a family, and either the class, size (pixels a side) and parameters of a network of
    keras.applications, to which a narrowed one adds narrow_seed and odd; or light, the file of an ONNX model.
    """
    found: list[dict[str, Any]] = files.read_json(path, "the networks of the accuracy benchmark")["networks"]
    return found


def runs_on(entry: Entry, runtime: str) -> bool:
    """Whether there is a file of this network for the runtime at all: ONNX models are for onnxruntime alone."""
    return "light" not in entry or runtime == "onnxruntime"


def place(entry: Entry, runtime: str, precision: str, cache_dir: Path = CACHE) -> Path:
    """Where the network's file is kept, whether it is there yet or not.

    Raises:
        UsageError: no file of this network is made for this runtime and precision.
    """
    if precision not in PRECISIONS.get(runtime, ()) or not runs_on(entry, runtime):
        raise UsageError(f"There is no {precision} file of {entry['name']} for the runtime {runtime!r}.")
    return cache_dir / f"{runtime}-{precision}" / f"{entry['name']}{SUFFIXES[runtime]}"


def keras_place(entry: Entry, cache_dir: Path = CACHE) -> Path:
    """Where the Keras model of a network is kept, whether it is there yet or not."""
    return cache_dir / "keras" / f"{entry['name']}.keras"


def failure_of(path: Path) -> Path:
    """Where the reason is kept why the file `path` could not be made."""
    return path.with_suffix(".failed.txt")


def model_file(
    entry: Entry, runtime: str, precision: str = "float32", cache_dir: Path = CACHE, retry: bool = False
) -> Path:
    """The file of a network, built and converted where the cache has none.

    Args:
        entry: of `networks`.
        runtime: "litert" (.tflite), "onnxruntime" (.onnx) or "tensorflow" (.pb, a frozen graph).
        precision: "float32", or "int8" for litert and onnxruntime.
        cache_dir: folder of the cache, made where it is missing.
        retry: try again what failed before.

    Raises:
        UnsupportedModelError: it cannot be converted, now or at an earlier try.
        UsageError: no such file is made.
    """
    path = place(entry, runtime, precision, cache_dir)
    failure = failure_of(path)
    if path.is_file():
        return path
    if failure.is_file() and not retry:
        raise UnsupportedModelError(f"{entry['name']} failed before ({failure}): {failure.read_text()}")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        files.write_bytes(path, CONVERTERS[runtime](entry, precision, cache_dir))
    except Exception as error:
        files.write_bytes(failure, f"{type(error).__name__}: {error}\n".encode())
        raise UnsupportedModelError(f"{entry['name']} cannot be made for {runtime} {precision}: {error}") from error
    failure.unlink(missing_ok=True)
    return path


def keras_model(entry: Entry, cache_dir: Path = CACHE) -> Any:
    """The Keras model of a network: from its .keras file in the cache, where it is built and saved if there is none.

    Raises:
        FileFormatError: what was built has other parameters than the list says.
    """
    import accuracy_build
    import keras

    path = keras_place(entry, cache_dir)
    if path.is_file():
        return keras.saving.load_model(path, compile=False)
    model = accuracy_build.build(entry)
    if model.count_params() != entry["parameters"]:
        raise FileFormatError(
            f"{entry['name']} has {model.count_params()} parameters here and {entry['parameters']} in the list: "
            "keras.applications or the channel groups have changed."
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    accuracy_build.save(model, path)
    return model


def _tflite(entry: Entry, precision: str, cache_dir: Path) -> bytes:
    from latency_lab.convert import to_tflite

    return to_tflite(keras_model(entry, cache_dir), precision=precision)


def _onnx(entry: Entry, precision: str, cache_dir: Path) -> bytes:
    from latency_lab.convert import to_onnx

    if "light" in entry:
        import accuracy_light

        return accuracy_light.model_bytes(entry, precision)
    return to_onnx(keras_model(entry, cache_dir), precision=precision)


def _graphdef(entry: Entry, precision: str, cache_dir: Path) -> bytes:
    from latency_lab.convert import to_graphdef

    return bytes(to_graphdef(keras_model(entry, cache_dir)))


CONVERTERS: dict[str, Callable[[Entry, str, Path], bytes]] = {
    "litert": _tflite,
    "onnxruntime": _onnx,
    "tensorflow": _graphdef,
}


# ---- the command ------------------------------------------------------------------------------------------------


def missing(entries: Sequence[Entry], runtime: str, precision: str, cache_dir: Path, retry: bool) -> Iterator[Entry]:
    """The entries whose file is not in the cache and is to be tried."""
    for entry in entries:
        path = place(entry, runtime, precision, cache_dir)
        if not path.is_file() and (retry or not failure_of(path).is_file()):
            yield entry


def apart(entry: Entry, args: argparse.Namespace) -> str:
    """Makes the file of one network in a process of its own; a line that says how it went."""
    path = place(entry, args.runtime, args.precision, args.cache)
    command = [sys.executable, __file__, "--runtime", args.runtime, "--precision", args.precision, "--here"]
    command += ["--cache", str(args.cache), "--only", entry["name"], *(["--retry"] if args.retry else [])]
    began = time.monotonic()
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    seconds = time.monotonic() - began
    if done.returncode and not failure_of(path).is_file():
        # Killed, or crashed in a converter's C++: no Python was left to say so.
        files.write_bytes(failure_of(path), f"exit code {done.returncode}\n{done.stderr[-2000:]}\n".encode())
    if done.returncode:
        return f"{entry['name']:<32} {seconds:6.1f} s  failed: {failure_of(path).read_text()[:160]!r}"
    return f"{entry['name']:<32} {seconds:6.1f} s  {path.stat().st_size / 1e6:.1f} MB"


def main() -> int:
    """Makes all files that are missing; 1 if one could not be made."""
    args = _arguments()
    entries = [entry for entry in networks() if not args.only or entry["name"] in args.only]
    unknown = set(args.only) - {entry["name"] for entry in entries}
    if unknown:
        raise SystemExit(f"Not in {LIST.name}: {', '.join(sorted(unknown))}")
    entries = [entry for entry in entries if runs_on(entry, args.runtime)]
    failed = False
    if args.here:
        for entry in entries:
            model_file(entry, args.runtime, args.precision, args.cache, args.retry)
        return 0
    waiting = missing(entries, args.runtime, args.precision, args.cache, args.retry)
    with ThreadPoolExecutor(args.jobs) as pool:
        for line in pool.map(partial(apart, args=args), waiting):
            failed = failed or "  failed: " in line
            print(line, flush=True)
    return int(failed)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runtime", choices=SUFFIXES, required=True)
    parser.add_argument("--precision", choices=("float32", "int8"), default="float32")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="these networks alone")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="networks at a time (default 1)")
    parser.add_argument("--cache", type=Path, default=CACHE, metavar="DIR")
    parser.add_argument("--retry", action="store_true", help="try again what failed before")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.precision not in PRECISIONS[args.runtime]:
        parser.error(f"there is no {args.precision} for {args.runtime}")
    return args


if __name__ == "__main__":
    sys.exit(main())
