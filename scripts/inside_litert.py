"""What kernels take inside of .tflite networks, by LiteRT's own profiler, beside what a profile says of them alone.

    .venv/bin/python scripts/inside_litert.py --profile P -o inside.json MODEL.tflite ...

For each class of kernels: its share of the networks' time, the ratio of the two times, and by how much they differ
for each MB of weights. One thread, float32, on the
CPU. XNNPACK tells the time of each of its operators to LiteRT's profiler, which no Python interface of ai-edge-litert
2.3 has: it is read through the C library that the package brings. Convolutions and dense layers are XNNPACK's in the
order of the file, one to one; of all else only the sum is known.
"""

from __future__ import annotations

import argparse
import ctypes
import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from ctypes import POINTER, Structure, byref, c_char, c_char_p, c_float, c_int, c_int64, c_size_t, c_uint64, c_void_p
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import latency_lab as ll
from latency_lab import files
from latency_lab.cost.latency import kernels_of_graph
from latency_lab.ops import OpConfig
from latency_lab.profiles import DeviceProfile
from latency_lab.profiles.correction import group_of
from latency_lab.profiling.environment import identity

RUNS, BETWEEN = 9, 2
"""Runs that are profiled, and runs before each that are not, so that the caches are as in a loop of runs."""
START_MS = 1.5
"""Of a run: what is read then was last used a whole run ago."""
SIZES = ((5e5, "weights below 0.5 MB"), (2e6, "0.5 to 2 MB"), (np.inf, "more than 2 MB"))
COMPUTES = ("Convolution", "Fully Connected", "Deconvolution")
OPERATOR = 8
"""Type of the events that are operators of a delegate (LiteRT, litert/c/litert_profiler_event.h)."""


class _Memory(Structure):
    _fields_ = [("numbers", c_int64 * 3)]


class _Event(Structure):
    """`ProfiledEventData` of the C++ library of ai-edge-litert 2.3."""

    _fields_ = [
        ("tag", c_char_p), ("type", c_int), ("start_us", c_uint64), ("elapsed_us", c_uint64), ("before", _Memory),
        ("after", _Memory), ("first", c_uint64), ("second", c_uint64), ("source", c_int),
    ]  # fmt: skip


class Network:
    """A .tflite file under LiteRT's CompiledModel, on random input, with its profiler.

    Args:
        path: of a model whose inputs are float32.
    """

    def __init__(self, path: Path) -> None:
        import ai_edge_litert

        self._library = ctypes.CDLL(str(Path(ai_edge_litert.__file__).parent / "libLiteRt.so"))
        environment, model, options = c_void_p(), c_void_p(), c_void_p()
        self._call("LiteRtCreateEnvironment", 0, None, byref(environment))
        self._call("LiteRtCreateModelFromFile", environment, str(path).encode(), byref(model))
        self._call("LiteRtCreateOptions", byref(options))
        self._call("LiteRtSetOptionsHardwareAccelerators", options, 1)
        self._add(options, b"runtime_options_string", b"enable_profiling = true\n")
        self._add(options, b"xnnpack", b"num_threads = 1\n")
        self._model, self._profiler = c_void_p(), c_void_p()
        self._call("LiteRtCreateCompiledModel", environment, model, options, byref(self._model))
        self._call("LiteRtCompiledModelGetProfiler", self._model, byref(self._profiler))
        graph = c_void_p()
        self._call("LiteRtGetModelSubgraph", model, c_size_t(0), byref(graph))
        self._inputs, self._outputs = (self._buffers(environment, graph, kind) for kind in ("Input", "Output"))
        for buffer in self._inputs:
            self._fill(c_void_p(buffer))

    def run(self) -> None:
        """One run."""
        sizes = [(c_size_t(len(buffers)), buffers) for buffers in (self._inputs, self._outputs)]
        self._call("LiteRtRunCompiledModel", self._model, c_size_t(0), *sizes[0], *sizes[1])

    def operators(self) -> list[tuple[str, float]]:
        """One run that is profiled: (name, ms) of each of XNNPACK's operators, in order."""
        for name in ("LiteRtResetProfiler", "LiteRtStartProfiler"):
            self._call(name, self._profiler)
        self.run()
        self._call("LiteRtStopProfiler", self._profiler)
        count = c_int()
        self._call("LiteRtGetNumProfilerEvents", self._profiler, byref(count))
        events = (_Event * count.value)()
        self._call("LiteRtGetProfilerEvents", self._profiler, count.value, events)
        return [(event.tag.decode(), event.elapsed_us * 1e-3) for event in events if event.type == OPERATOR]

    def _call(self, name: str, *arguments: Any) -> None:
        status = getattr(self._library, name)(*arguments)
        if status:
            raise RuntimeError(f"{name} failed with status {status}")

    def _add(self, options: Any, name: bytes, text: bytes) -> None:
        """Options under a name; LiteRT frees the text."""
        host, found = ctypes.CDLL(None), c_void_p()
        host.strdup.restype = c_void_p
        release = ctypes.cast(host.free, c_void_p)
        self._call("LiteRtCreateOpaqueOptions", name, c_void_p(host.strdup(text)), release, byref(found))
        self._call("LiteRtAddOpaqueOptions", options, found)

    def _buffers(self, environment: Any, graph: Any, kind: str) -> Any:
        count = c_size_t()
        self._call(f"LiteRtGetNumSubgraph{kind}s", graph, byref(count))
        buffers = (c_void_p * count.value)()
        for i in range(count.value):
            tensor, needs, buffer, type_ = c_void_p(), c_void_p(), c_void_p(), (c_char * 256)()
            self._call(f"LiteRtGetSubgraph{kind}", graph, c_size_t(i), byref(tensor))
            self._call("LiteRtGetRankedTensorType", tensor, type_)
            needed = (self._model, c_size_t(0), c_size_t(i), byref(needs))
            self._call(f"LiteRtGetCompiledModel{kind}BufferRequirements", *needed)
            made = (environment, type_, needs, byref(buffer))
            self._call("LiteRtCreateManagedTensorBufferFromRequirements", *made)
            buffers[i] = buffer
        return buffers

    def _fill(self, buffer: Any) -> None:
        address, size = c_void_p(), c_size_t()
        self._call("LiteRtGetTensorBufferPackedSize", buffer, byref(size))
        self._call("LiteRtLockTensorBuffer", buffer, byref(address), 1)
        numbers = np.ctypeslib.as_array(ctypes.cast(address, POINTER(c_float)), (size.value // 4,))
        numbers[:] = np.random.default_rng(0).uniform(-1, 1, len(numbers))
        self._call("LiteRtUnlockTensorBuffer", buffer)


class Part(NamedTuple):
    """A kernel, or all that do not compute: ms inside, and alone by the profile; its weights."""

    name: str
    inside_ms: float
    alone_ms: float
    weight_bytes: int = 0


def parts(path: Path, profile: DeviceProfile) -> list[Part]:
    """Of one network, in its order.

    Raises:
        RuntimeError: XNNPACK's operators cannot be told for the file's kernels.
    """
    network, runs = Network(path), []
    for _ in range(RUNS):
        for _ in range(BETWEEN):
            network.run()
        runs.append(network.operators())
    times = np.quantile([[ms for _, ms in run] for run in runs], 0.25, axis=0).tolist()
    ours = [kernel.op for kernel in kernels_of_graph(ll.ChannelGraph.from_model(path), profile)]
    alone = [found.latency_ms for found in profile.predict(ours)]
    computing = [(op, ms) for op, ms in zip(ours, alone, strict=True) if group_of(op) != "other"]
    computes = [name.startswith(COMPUTES) for name, _ in runs[0]]
    theirs = [ms for ms, found in zip(times, computes, strict=True) if found]
    if len(theirs) != len(computing):
        raise RuntimeError(f"{path}: {len(computing)} convolutions and dense layers, XNNPACK ran {len(theirs)}")
    began = np.cumsum(theirs) - theirs
    found = [
        Part(class_of(op, at), inside, ms, op.weight_bytes)
        for (op, ms), inside, at in zip(computing, theirs, began.tolist(), strict=True)
    ]
    others = sum(times) - sum(theirs)
    return [*found, Part("other", others, sum(alone) - sum(ms for _, ms in computing))]


def class_of(op: OpConfig, at_ms: float) -> str:
    """Which class a kernel is of that begins so long after its run did."""
    if at_ms < START_MS:
        return f"{group_of(op)}, in the first {START_MS:g} ms"
    if op.output_positions == 1:
        return "at one position"
    if group_of(op) == "depthwise":
        return "depthwise"
    return f"{group_of(op)}, {next(name for most, name in SIZES if op.weight_bytes < most)}"


def summary(found: Mapping[str, Sequence[Part]]) -> dict[str, dict[str, float]]:
    """Class -> its share of a network's time, inside over alone (each network counts alike), what a MB adds in us."""
    rows: dict[str, list[tuple[float, float, float, float]]] = {}
    for network in found.values():
        whole = sum(part.inside_ms for part in network)
        for part in network:
            more_us, megabytes = 1e3 * (part.inside_ms - part.alone_ms), part.weight_bytes / 1e6
            row = (part.inside_ms / whole, part.alone_ms / whole, more_us, megabytes)
            rows.setdefault(part.name, []).append(row)
    sums = {name: np.sum(row, axis=0).tolist() for name, row in sorted(rows.items())}
    return {
        name: {"share": round(inside / len(found), 4), "inside_over_alone": round(inside / alone, 3)}
        | ({"us_a_mb": round(more_us / megabytes, 1)} if megabytes else {})
        for name, (inside, alone, more_us, megabytes) in sums.items()
    }


def main() -> None:
    """Prints what it writes."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("models", nargs="+", type=Path, metavar="MODEL.tflite")
    parser.add_argument("--profile", required=True, metavar="P")
    parser.add_argument("--core", type=int, default=0, help="to run on (default 0)")
    parser.add_argument("-o", "--output", type=Path, default=Path("inside.json"))
    args = parser.parse_args()
    profile = ll.load_profile(args.profile)
    alone = dataclasses.replace(profile, network=dataclasses.replace(profile.network, cold_share=0.0))
    os.sched_setaffinity(0, {args.core})
    found = {path.stem: parts(path, alone) for path in args.models}
    result = {
        "environment": identity(),
        "profile": {"name": profile.name, "digest": profile.digest},
        "networks": sorted(found),
        "classes": summary(found),
    }
    files.write_json(args.output, result)
    print(json.dumps({**result, "networks": len(found)}, indent=1))


if __name__ == "__main__":
    main()
