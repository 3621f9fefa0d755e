"""Narrows every network of keras.applications at random, and checks that it is rebuilt exactly.

    scripts/architectures [--only NAME ...] [--again] [-o docs/architectures.json]
    scripts/architectures --table                # prints the table of docs/architectures.md

Of each network: what `exactness.check` compares; that the slim model, saved, is loaded by Keras alone and gives the
same outputs; and, of those with less than 30 M parameters, that its .tflite and .onnx give them too. Each step runs in
a process of its own and is kept as soon as it is done; a step is done again when the code that it checks has changed.
Where float32 rounds too much to tell (deep networks of random weights amplify rounding), the comparison is made in
float64, and both are kept.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from latency_lab import files

ROOT = Path(__file__).resolve().parents[1]
OUTPUT = ROOT / "docs" / "architectures.json"
NETWORKS = (
    "MobileNetV3Small", "MobileNetV2", "MobileNet", "NASNetMobile", "EfficientNetB0", "MobileNetV3Large",
    "EfficientNetV2B0", "EfficientNetB1", "DenseNet121", "EfficientNetV2B1", "EfficientNetB2", "EfficientNetV2B2",
    "EfficientNetB3", "DenseNet169", "EfficientNetV2B3", "EfficientNetB4", "DenseNet201", "EfficientNetV2S", "Xception",
    "InceptionV3", "ResNet50", "ResNet50V2", "ConvNeXtTiny", "EfficientNetB5", "EfficientNetB6", "ResNet101",
    "ResNet101V2", "ConvNeXtSmall", "EfficientNetV2M", "InceptionResNetV2", "ResNet152", "ResNet152V2",
    "EfficientNetB7", "ConvNeXtBase", "NASNetLarge", "EfficientNetV2L", "VGG16", "VGG19", "ConvNeXtLarge",
    "ConvNeXtXLarge",
)  # fmt: skip
"""Small ones first."""
SIZE, LARGER = 64, {"InceptionResNetV2": 75, "InceptionV3": 75, "Xception": 75}
"""Pixels a side: small, for speed; those that need more take their least."""
EXPORTED_BELOW = 30e6
LARGEST_SAVED, LARGEST_EXPORTED = 1e-5, 1e-4
"""Differences of outputs relative to the largest output."""
RUNTIMES = ("litert", "onnxruntime")
CHECKED = {
    "exact": (
        "latency_lab/graph/branches.py", "latency_lab/graph/channel*.py", "latency_lab/graph/keras_*.py",
        "latency_lab/gates.py", "latency_lab/shrink.py", "latency_lab/structure.py",
        "latency_lab/cost/base.py", "latency_lab/cost/counts.py", "latency_lab/cost/formula.py",
        "latency_lab/cost/terms.py", "latency_lab/ops.py", "scripts/exactness.py",
    ),
    "exports": ("latency_lab/convert.py",),
}  # fmt: skip
"""Step -> files whose change makes it be done again; exports depend on both."""

Entry = dict[str, Any]


def main() -> None:
    """Runs what is not done yet and prints a line for each network; exit code 1 if one of them has a fault."""
    args = _arguments()
    if args.step:
        _STEPS[args.step[0]](*args.step[1:])
    elif args.table:
        print(table(json.loads(args.output.read_text())))
    else:
        wrong = 0
        for name in args.only or NETWORKS:
            entry = rebuilt(name, args.output, again=args.again)
            wrong += bool(faults(entry))
            print(_line(name, entry), flush=True)
        sys.exit(bool(wrong))


# ---- one network ------------------------------------------------------------------------------------------------


def rebuilt(name: str, output: Path = OUTPUT, again: bool = False) -> Entry:
    """The results of one network: those that are kept where they are of today's code, else made and kept.

    Args:
        name: one of `NETWORKS`.
        output: the JSON file of all networks.
        again: make them anew.
    """
    entry = {} if again else _kept(output).get(name, {})
    exact, exports = _digest("exact"), _digest("exact", "exports")
    if entry.get("code") != exact:
        entry = {"size": LARGER.get(name, SIZE), "code": exact, "versions": _versions()}
    with tempfile.TemporaryDirectory() as folder:
        if "saved" not in entry and "failed" not in entry:
            _compare(name, entry, folder)
            _keep(output, name, entry)
        if _is_exported(entry) and entry.get("exports", {}).get("code") != exports:
            if not Path(folder, "slim.keras").exists():
                _step("compare", name, "float32", folder)
            entry["exports"] = {"code": exports, **_step("export", folder)}
            _keep(output, name, entry)
    return entry


def _compare(name: str, entry: Entry, folder: str) -> None:
    """Masked beside slim, then the saved slim model beside itself."""
    entry["float32"] = _step("compare", name, "float32", folder)
    if "failed" in entry["float32"]:
        entry.update(entry.pop("float32"))
        return
    if _outcome(entry["float32"]).rounding_alone():
        entry["float64"] = _step("compare", name, "float64", folder)
    entry["saved"] = _run([sys.executable, "-c", _ALONE, folder], folder)


def _is_exported(entry: Entry) -> bool:
    return "saved" in entry and entry["float32"]["parameters"] < EXPORTED_BELOW


def faults(entry: Mapping[str, Any]) -> list[str]:
    """What is wrong with a network's results; empty: rebuilt exactly. That an exporter refuses is not: it is listed."""
    if "failed" in entry:
        return [entry["failed"]]
    compared = _compared(entry)
    if "failed" in compared:
        return [compared["failed"]]
    found: list[str] = _outcome(compared).faults()
    saved = entry["saved"]
    if "failed" in saved:
        found.append(f"the saved model is not loaded: {saved['failed']}")
    elif not saved["difference"] <= LARGEST_SAVED or saved["imported"]:
        found.append(f"the saved model differs by {saved['difference']:.1e}; it imported {saved['imported']}")
    for runtime in RUNTIMES:
        difference = entry.get("exports", {}).get(runtime, {}).get("difference")
        if difference is not None and not difference <= LARGEST_EXPORTED:
            found.append(f"{runtime} differs by {difference:.1e}")
    return found


# ---- steps, each in a process of its own --------------------------------------------------------------------------


def _step(*arguments: str) -> Entry:
    """What a step wrote, or {"failed": why}."""
    return _run([sys.executable, str(Path(__file__).resolve()), "--step", *arguments], arguments[-1])


def _run(command: list[str], folder: str) -> Entry:
    result = Path(folder, "result.json")
    result.unlink(missing_ok=True)
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if result.exists():
        found: Entry = json.loads(result.read_text())
        return found
    said = [line for line in done.stderr.splitlines() if line.strip()]
    return {"failed": f"exit code {done.returncode}: {said[-1] if said else 'no message'}"}


def _compare_step(name: str, dtype: str, folder: str) -> None:
    """One network, narrowed and compared; leaves slim.keras, images.npy and outputs.npy of float32."""
    import keras
    import numpy as np

    exactness = _exactness()
    keras.config.set_floatx(dtype)
    result: Entry
    try:
        outcome, slim, images = exactness.check(build(name), seed=zlib.crc32(name.encode()))
        result = asdict(outcome)
        if dtype == "float32":
            slim.save(Path(folder, "slim.keras"))
            np.save(Path(folder, "images.npy"), images)
            np.save(Path(folder, "outputs.npy"), exactness.outputs_of(slim, images))
    except Exception as error:  # of any kind: it is the network's result
        result = {"failed": _message(error)}
    Path(folder, "result.json").write_text(json.dumps(result))


def build(name: str) -> Any:
    """A network of keras.applications at its small size, fresh, linear at the end."""
    import keras

    size = LARGER.get(name, SIZE)
    network = getattr(keras.applications, name)
    return network(weights=None, input_shape=(size, size, 3), classifier_activation=None)


_ALONE = """
import json, sys
import keras, numpy as np
folder = sys.argv[1]
model = keras.saving.load_model(folder + "/slim.keras", compile=False)
expected = np.load(folder + "/outputs.npy")
found = np.asarray(model(np.load(folder + "/images.npy"), training=False))
imported = sorted({"latency_lab", "regularizers"} & {name.split(".")[0] for name in sys.modules})
result = {"difference": float(np.abs(found - expected).max() / np.abs(expected).max()), "imported": imported}
open(folder + "/result.json", "w").write(json.dumps(result))
"""
"""Loads the slim model with nothing but Keras."""


def _export_step(folder: str) -> None:
    """The slim model as the file of each runtime, run there. What is found so far is kept if a converter crashes."""
    import numpy as np

    images, expected = np.load(Path(folder, "images.npy")), np.load(Path(folder, "outputs.npy"))
    results: Entry = dict.fromkeys(RUNTIMES, {"failed": "the process that converts and runs it died"})
    result = Path(folder, "result.json")
    for runtime in RUNTIMES:
        result.write_text(json.dumps(results))
        try:
            found = np.concatenate([answer.reshape(1, -1) for answer in _answers(runtime, Path(folder), images)])
            results[runtime] = {"difference": float(np.abs(found - expected).max() / np.abs(expected).max())}
        except Exception as error:  # the exporter's or the runtime's own: it is listed
            results[runtime] = {"failed": _message(error)}
    result.write_text(json.dumps(results))


def _answers(runtime: str, folder: Path, images: Any) -> list[Any]:
    """The outputs of the exported slim model, [1, outputs] of each image."""
    from latency_lab import convert

    if runtime == "litert":
        from ai_edge_litert.interpreter import Interpreter

        interpreter = Interpreter(model_content=convert.to_tflite(folder / "slim.keras"), num_threads=1)
        interpreter.allocate_tensors()
        (source,), (target,) = interpreter.get_input_details(), interpreter.get_output_details()

        def answer(image: Any) -> Any:
            interpreter.set_tensor(source["index"], image)
            interpreter.invoke()
            return interpreter.get_tensor(target["index"])

        return [answer(images[i : i + 1]) for i in range(len(images))]
    import onnxruntime

    session = onnxruntime.InferenceSession(convert.to_onnx(folder / "slim.keras"), providers=["CPUExecutionProvider"])
    (source,) = session.get_inputs()
    return [session.run(None, {source.name: images[i : i + 1]})[0] for i in range(len(images))]


_STEPS: dict[str, Callable[..., None]] = {"compare": _compare_step, "export": _export_step}


def _message(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"


def _compared(entry: Mapping[str, Any]) -> Entry:
    """The comparison that counts: in float64 where it was made."""
    found: Entry = entry["float64" if "float64" in entry else "float32"]
    return found


def _outcome(data: Mapping[str, Any]) -> Any:
    return _exactness().Outcome.from_json(data)


def _exactness() -> Any:
    """The module beside this one, which brings Keras: imported where it is used."""
    import exactness

    return exactness


# ---- what is kept -------------------------------------------------------------------------------------------------


def _kept(output: Path) -> dict[str, Entry]:
    return json.loads(output.read_text())["networks"] if output.exists() else {}


def _keep(output: Path, name: str, entry: Entry) -> None:
    networks = {**_kept(output), name: entry}
    ordered = {known: networks[known] for known in NETWORKS if known in networks}
    files.write_json(output, {"networks": ordered})


def _digest(*steps: str) -> str:
    """Of the code of some steps, comments, docstrings and layout aside."""
    paths = [path for step in steps for pattern in CHECKED[step] for path in sorted(ROOT.glob(pattern))]
    trees = [ast.dump(_WithoutText().visit(ast.parse(path.read_text()))) for path in paths]
    return hashlib.sha256("\n".join(trees).encode()).hexdigest()[:16]


class _WithoutText(ast.NodeTransformer):
    def visit_Expr(self, node: ast.Expr) -> ast.Expr | None:
        return None if isinstance(node.value, ast.Constant) else node


def _versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError

    found = {}
    for package in ("keras", "tensorflow", "tensorflow-cpu", "ai-edge-litert", "onnxruntime", "numpy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


# ---- for people ---------------------------------------------------------------------------------------------------


def _line(name: str, entry: Entry) -> str:
    wrong = faults(entry)
    return f"{name}: " + ("; ".join(wrong) if wrong else "rebuilt exactly")


def table(results: Mapping[str, Any]) -> str:
    """The summary and the tables of docs/architectures.md, of the networks that have results."""
    networks = results["networks"]
    narrowed = [
        ("network", "size", "parameters", "slim", "groups", "can shrink", "differs by", "without branches", "removed",
         "control", "saved", "LiteRT", "ONNX Runtime"),
        *(_row(name, entry) for name, entry in networks.items() if not _failure(entry)),
    ]  # fmt: skip
    seconds = [
        ("network", "read", "explain", "shrink"),
        *((name, *(f"{entry['float32']['cpu_seconds'][step]:.2f}" for step in ("read", "explain", "shrink")))
          for name, entry in networks.items() if not _failure(entry)),
    ]  # fmt: skip
    notes = [f"* {name}: {fault}" for name, entry in networks.items() for fault in faults(entry)]
    notes += [f"* {name}: {note}" for name, entry in networks.items() for note in _notes(entry)]
    caption = "CPU seconds to read the channel graph, to explain it, and to rebuild the network:"
    parts = [_summary(networks), _markdown(narrowed), "\n".join(notes), caption, _markdown(seconds)]
    return "\n\n".join(part for part in parts if part)


def _summary(networks: Mapping[str, Entry]) -> str:
    exact = [name for name, entry in networks.items() if not faults(entry)]
    lines = [f"{len(exact)} of {len(NETWORKS)} networks are rebuilt exactly."]
    if len(networks) < len(NETWORKS):
        lines.append(f"{len(NETWORKS) - len(networks)} have no results yet.")
    tried = [entry["exports"] for entry in networks.values() if "exports" in entry]
    for runtime, title in zip(RUNTIMES, ("LiteRT", "ONNX Runtime"), strict=True):
        good = [found[runtime].get("difference", 1.0) <= LARGEST_EXPORTED for found in tried]
        lines.append(f"{title}: {sum(good)} of {len(good)} exported files give the same outputs.")
    return " ".join(lines)


def _row(name: str, entry: Entry) -> tuple[str, ...]:
    compared = _compared(entry)
    vanished, (removed, branches) = compared["vanished"], compared["branches"]
    exports = [entry.get("exports", {}).get(runtime, {"failed": ""}) for runtime in RUNTIMES]
    return (
        name,
        str(entry["size"]),
        f"{compared['parameters']:,}",
        f"{compared['narrowed']['parameters'][0]:,}",
        str(compared["groups"]),
        f"{compared['shrinkable'] / compared['channels']:.1%}",
        f"{compared['narrowed']['difference']:.0e}" + " (float64)" * ("float64" in entry),
        f"{vanished['difference']:.0e}" if vanished else "-",
        f"{removed} of {branches}",
        f"{compared['control']:.2g}",
        f"{entry['saved']['difference']:.0e}" if entry["saved"].get("difference") else "0",
        *(f"{found['difference']:.0e}" if "difference" in found else "-" for found in exports),
    )


def _failure(entry: Entry) -> bool:
    return "failed" in entry or "failed" in entry.get("float64", {})


def _notes(entry: Entry) -> list[str]:
    """What is no fault but has to be said."""
    found = []
    if "float64" in entry and not _failure(entry):
        found.append(f"compared in float64, since float32 rounds: {'; '.join(_outcome(entry['float32']).faults())}")
    if not _failure(entry) and (swaps := _compared(entry)["swaps"]) > 1:
        found.append(f"another channel made a difference at swap {swaps}; those before were of units that are off")
    for runtime in RUNTIMES:
        if reason := entry.get("exports", {}).get(runtime, {}).get("failed"):
            found.append(f"{runtime}: {reason}")
    return found


def _markdown(rows: list[tuple[str, ...]]) -> str:
    head, *body = rows
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ("---",) * len(head), *body))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--only", nargs="+", choices=NETWORKS, metavar="NAME", help="these networks alone")
    parser.add_argument("--again", action="store_true", help="make results anew that are there")
    parser.add_argument("--table", action="store_true", help="print the tables of docs/architectures.md")
    parser.add_argument("-o", "--output", type=Path, default=OUTPUT, help="JSON file of results, added to")
    parser.add_argument("--step", nargs="+", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
