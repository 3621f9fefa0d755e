"""rebuild a Keras model without the channels that a structure leaves out"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from latency_lab import files
from latency_lab.cli.inputs import KERAS, load_keras, model_file
from latency_lab.cli.output import emit
from latency_lab.errors import FileFormatError, UsageError

TARGETS = {"litert": ".tflite", "onnx": ".onnx"}


class Shrunk:
    """What was written."""

    def __init__(self, files: list[str], parameters: tuple[int, int], predicted: Any) -> None:
        self.files = files
        self.parameters = parameters
        self.predicted = predicted

    def __str__(self) -> str:
        before, after = self.parameters
        lines = [f"{before:,} parameters -> {after:,}", *(f"wrote {name}" for name in self.files)]
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        parameters = dict(zip(("before", "after"), self.parameters, strict=True))
        return {"files": self.files, "parameters": parameters, "provenance": self.predicted}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """MODEL, STRUCTURE, -o, --to."""
    parser.add_argument("model", metavar="MODEL", help="a .keras file, gated or plain")
    parser.add_argument("structure", metavar="STRUCTURE", help="a structure file, or -")
    parser.add_argument("-o", "--output", metavar="OUT", required=True, help="the .keras file to write")
    parser.add_argument(
        "--to", metavar="KIND", type=_kinds, default=[], help=f"write beside OUT as well: {','.join(TARGETS)}"
    )


def run(args: argparse.Namespace) -> int:
    """Shrink, write, and say what was written."""
    import latency_lab

    output = Path(args.output)
    if output.suffix != KERAS:
        raise UsageError(
            f"-o {output}: expected a name that ends in {KERAS}. For .tflite and .onnx add --to litert,onnx"
        )
    if args.model == args.structure == "-":
        raise UsageError("MODEL and STRUCTURE cannot both come from stdin")
    structure = _read_structure(args.structure)
    with model_file(args.model, (KERAS,)) as path:
        model = load_keras(path)
    slim = latency_lab.shrink(model, structure)
    _save(slim, output)
    written = [str(output), *(_export(slim, output, kind) for kind in args.to)]
    emit(Shrunk(written, (model.count_params(), slim.count_params()), dict(structure.provenance)), as_json=args.json)
    return 0


def _read_structure(argument: str) -> Any:
    import latency_lab

    if argument != "-":
        return latency_lab.Structure.load(argument)
    try:
        return latency_lab.Structure.from_json(json.load(sys.stdin))
    except ValueError as error:
        raise FileFormatError(f"-: what came on stdin is not JSON: {error}") from error


def _save(model: Any, output: Path) -> None:
    """The .keras file, whole or not at all."""
    with tempfile.TemporaryDirectory(prefix="latency-lab-") as folder:
        path = Path(folder) / output.name
        model.save(path)
        files.write_bytes(output, path.read_bytes())


def _export(model: Any, output: Path, kind: str) -> str:
    from latency_lab import convert

    target = output.with_suffix(TARGETS[kind])
    files.write_bytes(target, convert.to_tflite(model) if kind == "litert" else convert.to_onnx(model))
    return str(target)


def _kinds(text: str) -> list[str]:
    kinds = text.split(",")
    for kind in kinds:
        if kind not in TARGETS:
            raise argparse.ArgumentTypeError(f"expected one or more of {','.join(TARGETS)}, received {kind!r}")
    return kinds
