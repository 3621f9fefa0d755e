"""Estimates models for an Arm Ethos-U NPU by Vela, Arm's compiler: no board is needed, and nothing runs.

    ms = 1e3 * sum over operators of max(NPU cycles, cycles of each memory) / core clock

The lines are those of `worker.py`: a block is one sample, the compiler's own estimate, the same each time. One file:
the standard library and ethos-u-vela.

What Vela leaves to the CPU has no estimate, so a model with such an operator is a failed block whose reason lists them.
A file may end in a mark that so many of its first and last operators are context (`context_mark`): they do not count.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import re
import sys
import tempfile
from configparser import ConfigParser
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

VERSION = 1
CONFIG = "Arm/vela.ini"
DEFAULT = "ethos-u55-256"
ACCELERATORS = {
    "ethos-u55": ("32", "64", "128", "256"),
    "ethos-u65": ("256", "512"),
    "ethos-u85": ("128", "256", "512", "1024", "2048"),
}
"""NPU -> multiply-adds a cycle that it comes with."""
SYSTEMS = {
    "ethos-u55": ("Ethos_U55_High_End_Embedded", "Shared_Sram"),
    "ethos-u65": ("Ethos_U65_Client_Server", "Dedicated_Sram_384KB"),
    "ethos-u85": ("Ethos_U85_SYS_DRAM_Mid", "Dedicated_Sram_384KB"),
}
"""NPU -> what Vela 5.2 takes by default: system configuration (clock, bandwidths) and memory mode."""
CONTEXT = ("Conv2D", "FullyConnected")
"""What stands around a lone operation, as Vela names it."""
_CACHE = re.compile(r"Dedicated_Sram_(\d+)KB")
_MARK = re.compile(rb"latency-lab context (\d+) (\d+)$")


@dataclass(frozen=True)
class Target:
    """What to compile for.

    Attributes:
        accelerator: "ethos-u55-128".
        system: section of Vela's configuration file that has the clock and the bandwidths.
        memory: section that says which memory holds what.
    """

    accelerator: str
    system: str
    memory: str

    @classmethod
    def of(cls, text: str) -> Target:
        """The target that "ethos-u55-128", "ethos-u55-128:SYSTEM" or "ethos-u55-128:SYSTEM:MEMORY" names.

        Raises:
            ValueError: there is no such accelerator.
        """
        accelerator, *rest = text.split(":")
        npu, _, macs = accelerator.rpartition("-")
        if macs not in ACCELERATORS.get(npu, ()) or len(rest) > 2:
            known = [f"{name}-{count}" for name, counts in ACCELERATORS.items() for count in counts]
            raise ValueError(
                f"Expected ACCELERATOR[:SYSTEM_CONFIG[:MEMORY_MODE]], one of {', '.join(known)}. Received: {text!r}"
            )
        system, memory = (named or usual for named, usual in zip([*rest, "", ""], SYSTEMS[npu]))  # noqa: B905 Python 3.9 has no `strict`
        return cls(accelerator, system, memory)

    @property
    def cache_bytes(self) -> int | None:
        """Of the NPU's own memory, bytes, where tensors that do not fit into it lie in a slower one; else None."""
        found = _CACHE.fullmatch(self.memory)
        return 1024 * int(found[1]) if found else None


@dataclass(frozen=True)
class Layer:
    """One operator of the compiled model.

    Attributes:
        operator: as the model has it: "Conv2D".
        on_npu: whether the NPU runs it, not the CPU.
        cycles: the estimate; 0 on the CPU, and where it is part of another.
        name: of its output tensor.
        copies: whether it is a copy; one of an input, before the convolution that reads it, goes by the convolution's
            operator.
    """

    operator: str
    on_npu: bool
    cycles: int
    name: str
    copies: bool = False


@dataclass(frozen=True)
class Estimate:
    """What the compiler says of a model.

    Attributes:
        layers: operators in the order of execution.
        clock_hz: of the NPU.
        cycles: of the whole model, less what the CPU runs.
    """

    layers: tuple[Layer, ...]
    clock_hz: float
    cycles: int

    @property
    def latency_ms(self) -> float:
        """Of what the NPU runs."""
        return 1e3 * self.cycles / self.clock_hz

    @property
    def on_cpu(self) -> tuple[str, ...]:
        """Operators that are left to the CPU: no part of the estimate."""
        return tuple(layer.operator for layer in self.layers if not layer.on_npu)


def context_mark(before: int, after: int) -> bytes:
    """What ends a file of which the first and last operators do not count; a reader of TFLite does not get there."""
    return f"latency-lab context {before} {after}".encode()


def estimate(path: str, target: Target) -> Estimate:
    """What Vela says of a .tflite file.

    Raises:
        Exception: whatever Vela raises; RuntimeError where it ends without one.
    """
    from ethosu.vela import vela

    with tempfile.TemporaryDirectory(prefix="latency-lab-") as folder:
        code = vela.main(
            [path, "--output-dir", folder, "--config", CONFIG, "--verbose-performance"]
            + ["--accelerator-config", target.accelerator]
            + ["--system-config", target.system, "--memory-mode", target.memory]
        )
        if code:
            raise RuntimeError(f"Vela ended with exit code {code}")
        (summary,) = Path(folder).glob("*_summary_*.csv")
        with summary.open(newline="") as file:
            (row,) = csv.DictReader(file)
        layers = [found for table in Path(folder).glob("*_per-layer.csv") for found in layers_of(table.read_text())]
        return Estimate(tuple(layers), float(row["core_clock"]), int(float(row["cycles_total"])))


def layers_of(text: str) -> list[Layer]:
    """The operators in a per-layer table of Vela: CSV without quotes, the name last."""
    header, *rows = [line.split(",") for line in text.splitlines() if line]
    at = {column: k for k, column in enumerate(header)}
    return [
        Layer(
            operator=row[at["Original Operator"]],
            on_npu=row[at["Target"]] == "NPU",
            cycles=int(row[at["Op Cycles"]]),
            name=",".join(row[at["Name"] :]),
            copies=row[at["NNG Operator"]] == "MemoryCopy",
        )
        for row in rows
    ]


def without_context(found: Estimate, before: int, after: int) -> Estimate:
    """The estimate less that of 1x1 convolutions and dense layers before and after, each with copies of its inputs.

    What is chained onto the second of two alike has no cycles of its own: it takes what that one has more than the
    first.

    Raises:
        RuntimeError: the compiled model does not begin and end with them.
    """
    layers = found.layers
    starts = [0, *(k for k, row in enumerate(layers[:-1], 1) if not (row.copies and row.operator in CONTEXT))]
    bounds = [*starts, len(layers)]  # of each layer with the copies of its inputs
    last = len(starts) - after
    around = [layers[k - 1] for k in (*bounds[1 : before + 1], *bounds[last + 1 :])]
    if last < before or any(layer.operator not in CONTEXT for layer in around):
        names = ", ".join(layer.operator for layer in layers)
        raise RuntimeError(f"Vela does not keep what is around the operation apart: {names}")
    own = layers[bounds[before] : bounds[last]]
    cycles = sum(layer.cycles for layer in own)
    if own and not cycles and before == 2:
        cycles = max(around[1].cycles - around[0].cycles, 0)
    return Estimate(own, found.clock_hz, cycles)


def block(found: Estimate) -> dict[str, Any]:
    """The answer's fields for an estimate, less its id."""
    if found.on_cpu:
        names = ", ".join(dict.fromkeys(found.on_cpu))
        reason = f"Vela leaves {len(found.on_cpu)} of {len(found.layers)} operators to the CPU, not estimated: {names}"
        return {"status": "failed", "reason": reason}
    ms = 1e3 * max(found.cycles, 1) / found.clock_hz  # what is merged into its neighbours has no cycles of its own
    sample = {"min": ms, "deciles": [], "median": ms}
    fields = {"count": 1, "repeats": 1, "wall_ms": sample, "cpu_ms": None, "cold_ms": None}
    return {"status": "ok", **fields, "cycles": found.cycles}


def answer(request: dict[str, Any], target: Target) -> dict[str, Any]:
    """The answer to one request; a model that cannot be compiled is a failed block, not an end of the worker."""
    try:
        whole = estimate(request["path"], target)
        mark = _MARK.search(Path(request["path"]).read_bytes()[-100:])
        found = block(without_context(whole, int(mark[1]), int(mark[2])) if mark else whole)
    except Exception as error:  # whatever a compiler raises is this block's failure alone
        found = {"status": "failed", "reason": f"{type(error).__name__}: {error}"}
    return {"id": request.get("id"), **found}


def hello(runtime: str, target: Target) -> dict[str, Any]:
    """The first line: who estimates, and for what.

    Raises:
        SystemExit: Vela's configuration file does not have the target's sections.
    """
    import ethosu.vela

    sections = ConfigParser()
    sections.read(Path(ethosu.vela.__file__).parents[1] / "config_files" / CONFIG)
    for kind, name in (("System_Config", target.system), ("Memory_Mode", target.memory)):
        if f"{kind}.{name}" not in sections:
            there = [section.partition(".")[2] for section in sections if section.startswith(kind)]
            raise SystemExit(f"Vela has no {kind} {name}. It has: {', '.join(there)}.")
    megahertz = sections.getfloat(f"System_Config.{target.system}", "core_clock") / 1e6
    return {
        "worker": VERSION,
        "runtime": runtime,
        "package": "ethos-u-vela",
        "version": str(ethosu.vela.__version__),
        "provenance": "estimated",
        "device": f"Arm {target.accelerator} at {megahertz:g} MHz, {target.system}, {target.memory}",
    }


def serve(source: TextIO, sink: TextIO, runtime: str) -> None:
    """Answers requests until `source` ends."""
    target = Target.of(runtime.partition(":")[2] or DEFAULT)
    sink.write(json.dumps(hello(runtime, target)) + "\n")
    sink.flush()
    for line in source:
        if line.strip():
            sink.write(json.dumps(answer(json.loads(line), target)) + "\n")
            sink.flush()


def main() -> None:
    """Serves the target that the command line names, with stdout kept for answers alone."""
    parser = argparse.ArgumentParser(description="Estimates models for latency-lab: JSON lines in, JSON lines out.")
    parser.add_argument("--runtime", required=True)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    own = os.path.dirname(os.path.abspath(__file__))  # holds modules that are named like packages
    sys.path[:] = [path for path in sys.path if os.path.abspath(path or ".") != own]
    sink = os.fdopen(os.dup(1), "w")
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)  # its tables, from Python and from C++
    serve(sys.stdin, sink, arguments.runtime)


if __name__ == "__main__":
    main()
