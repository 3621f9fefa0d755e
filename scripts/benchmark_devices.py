"""Sets predictions beside measured times of ten networks on devices that are no plain process of this environment.

    scripts/benchmark_devices ssh-litert openvino -o docs/devices.json
    scripts/benchmark_devices --table -o docs/devices.json          # the tables of docs/devices.md

    ssh-litert  LiteRT by ssh: an sshd on the loopback address with keys of its own, and as the board's Python an
                environment of ai-edge-litert and numpy, and what these need, alone
    openvino    ONNX Runtime's OpenVINO provider, in an environment of onnxruntime-openvino and numpy (--python)

What `latency-lab profile --model` measures for the files of all ten together: their operations, each once, and
beginnings of the networks for the whole-network correction. The networks were chosen before any was measured. They are
measured between the operations, as benchmark_accuracy.py does, and so is the file converted by accuracy_models.py.

How steady the machine was is "slowest_round", the slowest round's minimum over the fastest one's, of each network, and
"slowest_rounds" of the lone operations: the median and the 90th percentile of the same.

Two errors of each: "error" is of the profile as it is; "error_held_out" with a correction that was fitted without the
beginnings of this network. All goes on where it stopped, network by network; --runs names the folder that keeps it.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import _sshd
import accuracy_models
import numpy as np
from benchmark_accuracy import Networks, Stopwatch, measured

import latency_lab as ll
from latency_lab import files
from latency_lab.fitting.network import fit_network
from latency_lab.plan import plan
from latency_lab.profiles import DeviceProfile, NetworkCorrection
from latency_lab.profiling import Device, Journal, Protocol, device

NETWORKS = (
    "MobileNet-224",
    "MobileNetV2-224",
    "MobileNetV3Small-224",
    "MobileNetV3Large-224",
    "EfficientNetB0-224",
    "EfficientNetB1-224",
    "NASNetMobile-224",
    "DenseNet121-224",
    "ResNet50-224",
    "InceptionV3-224",
)
"""Of accuracy_networks.json."""
THREADS = 1
FIGURES = ("error", "error_held_out")


@dataclass(frozen=True)
class Case:
    """A kind of device.

    Attributes:
        title: for the tables.
        runtime: that profiles name.
        converted_for: the runtime that accuracy_models.py converts for.
        packages: of the environment that is made for it.
        by_ssh: whether it is reached by ssh.
    """

    title: str
    runtime: str
    converted_for: str
    packages: tuple[str, ...]
    by_ssh: bool = False


CASES: Mapping[str, Case] = {
    "ssh-litert": Case(
        "LiteRT over ssh, float32, 1 thread", "litert", "litert", ("ai-edge-litert>=2.0", "numpy"), by_ssh=True
    ),
    "openvino": Case(
        "ONNX Runtime, OpenVINOExecutionProvider, float32, 1 thread",
        "onnxruntime:OpenVINOExecutionProvider",
        "onnxruntime",
        ("onnxruntime-openvino>=1.24", "numpy"),
    ),
}


def main() -> None:
    """Runs the cases that are named, and writes after each."""
    args = _arguments()
    if args.table:
        print(tables(json.loads(args.output.read_text())))
        return
    for name in args.cases:
        found = run(name, args)
        done = json.loads(args.output.read_text()) if args.output.exists() else {"cases": {}}
        done["cases"][name] = found
        files.write_json(args.output, done)
        print(table(found))


def run(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Convert, profile with the networks in between, fit, compare."""
    case, folder, protocol = CASES[name], args.runs / "-".join([name, *args.only]), Protocol(rounds=args.rounds)
    folder.mkdir(parents=True, exist_ok=True)
    entries = [entry for entry in accuracy_models.networks() if entry["name"] in (args.only or NETWORKS)]
    paths = {entry["name"]: converted(entry, case.converted_for, args.cache) for entry in entries}
    graphs = {n: replace(ll.ChannelGraph.from_model(path), model_name=n) for n, path in paths.items()}
    tasks = plan(list(graphs.values()), case.runtime)
    print(f"{name}: {len(tasks)} points", flush=True)
    python = environment(args.runs / f"{name}-python", case.packages)
    with reached(case, python) as where:
        found = [(entry, paths[entry["name"]]) for entry in entries]
        networks = Networks(
            found, lambda: where.start(case.runtime, THREADS), folder / "networks.jsonl", (1.0,), protocol
        )
        spent = Stopwatch(folder / "seconds.json", networks)
        with spent:
            journal = ll.profile(
                tasks,
                runtime=case.runtime,
                threads=THREADS,
                journal=folder / "profile.journal.jsonl",
                protocol=protocol,
                start_worker=networks.start_worker,
                on_progress=networks.between,
            )
        networks.finish()
    profile = ll.fit_profile(journal, name=name)
    rows = [row(n, graph, profile, journal, networks.blocks[n]) for n, graph in graphs.items()]
    return {
        "title": case.title,
        "environment": dict(journal.identity),
        "conditions": [{name: note.get(name) for name in ("round", "time", "load")} for note in journal.notes],
        "packages": installed(python),
        "points": len(journal.blocks),
        "failed": dict(journal.failures),
        "rounds": args.rounds,
        "seconds": round(spent.seconds, 1),
        "slowest_rounds": slowest_rounds(journal),
        "half_width": profile.network.half_width,
        **summary(rows),
        "networks": rows,
    }


def row(
    name: str, graph: ll.ChannelGraph, profile: DeviceProfile, journal: Journal, blocks: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """One network: predicted beside measured."""
    good = [block for block in blocks if block["status"] == "ok"]
    if not good:
        return {"name": name, "failed": next((block["reason"] for block in blocks), "not measured")}
    found = measured(good, journal)
    estimate = ll.LatencyCost(graph, profile).estimate()
    apart = ll.LatencyCost(graph, held_out(name, profile, journal)).estimate().latency_ms
    return {
        "name": name,
        "measured_ms": round(found.latency_ms, 4),
        "unstable": found.unstable,
        "rounds": found.rounds,
        "slowest_round": round(max(b["wall_ms"]["min"] for b in good) / min(b["wall_ms"]["min"] for b in good), 3),
        "predicted_ms": round(estimate.latency_ms, 4),
        "error": round(estimate.latency_ms / found.latency_ms - 1, 4),
        "predicted_held_out_ms": round(apart, 4),
        "error_held_out": round(apart / found.latency_ms - 1, 4),
        "kernels": estimate.coverage["ops"],
        "kernels_measured": estimate.coverage["measured"],
    }


def slowest_rounds(journal: Journal) -> dict[str, float]:
    """How much longer a lone operation's slowest round took than its fastest: median and 90th percentile."""
    lone = (blocks for key, blocks in journal.blocks.items() if journal.tasks[key].role == "op")
    times = ([block["wall_ms"]["min"] for block in blocks] for blocks in lone)
    ratios = [max(each) / min(each) for each in times]
    return {"median": round(float(np.median(ratios)), 3), "p90": round(float(np.percentile(ratios, 90)), 3)}


def held_out(name: str, profile: DeviceProfile, journal: Journal) -> DeviceProfile:
    """The profile with a correction that was fitted without the beginnings of this network."""
    rest = copy.copy(journal)
    rest.tasks = {key: task for key, task in journal.tasks.items() if not task.network.name.startswith(f"{name} to ")}
    return replace(profile, network=fit_network(replace(profile, network=NetworkCorrection()), rest))


def summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Over the networks that were predicted and measured: how many are within 10 %, the median and the worst error."""
    good = [r for r in rows if "error" in r]
    found: dict[str, Any] = {
        "measured": len(good),
        "not_measured": {r["name"]: r["failed"] for r in rows if r not in good},
    }
    for figure in FIGURES if good else ():
        errors = np.abs([r[figure] for r in good])
        found[figure] = {
            "within_10_percent": int((errors <= 0.10).sum()),
            "median": round(float(np.median(errors)), 4),
            "worst": round(float(errors.max()), 4),
        }
    return found


# ---- what it is measured on -------------------------------------------------------------------------------------


def converted(entry: Mapping[str, Any], runtime: str, cache: Path) -> Path:
    """The network's file, made by accuracy_models.py in a process of its own where the cache has none.

    Raises:
        SystemExit: it cannot be converted.
    """
    path = accuracy_models.place(entry, runtime, "float32", cache)
    if not path.is_file():
        command = [sys.executable, accuracy_models.__file__, "--runtime", runtime, "--cache", str(cache), "--retry"]
        subprocess.run([*command, "--only", entry["name"]], check=False)
    if not path.is_file():
        raise SystemExit(f"{entry['name']} cannot be converted: see {accuracy_models.failure_of(path)}")
    return path


def environment(folder: Path, packages: Sequence[str]) -> Path:
    """The Python of an environment that has these packages and what they need; made where it is not there."""
    python, stamp, wanted = folder / "bin" / "python", folder / "packages.txt", "\n".join(packages)
    if not stamp.exists() or stamp.read_text() != wanted:
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "-q", "--no-input", *packages], check=True)
        stamp.write_text(wanted)
    return python


def installed(python: Path) -> list[str]:
    """What an environment holds, name==version each; pip apart."""
    command = [str(python), "-m", "pip", "list", "--format", "freeze", "--disable-pip-version-check"]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    return [line for line in lines if line.partition("==")[0] not in {"pip", "setuptools"}]


@contextmanager
def reached(case: Case, python: Path) -> Iterator[Device]:
    """The case's device, for as long as its server runs."""
    if not case.by_ssh:
        yield device("local", str(python))
        return
    with tempfile.TemporaryDirectory(prefix="latency-lab-sshd-") as folder:
        board = Path(folder) / "board"
        board.mkdir()
        server = _sshd.Server(Path(folder) / "ssh", board)
        os.environ["LATENCY_LAB_SSH"] = server.client
        try:
            yield device(f"ssh://{_sshd.HOST}", str(python))
        finally:
            server.stop()


# ---- tables -----------------------------------------------------------------------------------------------------


def tables(done: Mapping[str, Any]) -> str:
    """All cases."""
    return "\n\n".join(table(found) for found in done["cases"].values())


def table(found: Mapping[str, Any]) -> str:
    """One case: how it was taken, a line a network, and what they come to."""
    who = found["environment"]
    device = f"{who['package']} {who['version']}; {who['cpu']}, {who['cores']} cores"
    lines = [
        f"{found['title']} ({device}): {found['points']:,} points, {found['rounds']} rounds, {found['seconds']:.0f} s.",
        "",
        "| network | measured ms | predicted ms | error | error, correction fitted without it |",
        "|---|---|---|---|---|",
    ]
    for r in found["networks"]:
        if "error" in r:
            cells = [r["name"], f"{r['measured_ms']:.2f}", f"{r['predicted_ms']:.2f}", _signed(r["error"])]
            lines.append("| " + " | ".join([*cells, _signed(r["error_held_out"])]) + " |")
        else:
            lines.append(f"| {r['name']} | - | - | {r['failed']} | - |")
    ends = [
        f"{found[figure]['within_10_percent']} of {found['measured']} within 10 %, median {found[figure]['median']:.1%}"
        for figure in FIGURES
        if figure in found
    ]
    return "\n".join([*lines, "| all | | | " + " | ".join(ends) + " |"])


def _signed(error: float) -> str:
    return f"{error:+.1%}"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of {', '.join(CASES)}; all by default")
    parser.add_argument("--table", action="store_true", help="print the tables of what the output holds")
    parser.add_argument("--only", nargs="+", default=[], metavar="NETWORK", help="these networks alone")
    parser.add_argument("--cache", type=Path, default=accuracy_models.CACHE, help="of converted networks")
    parser.add_argument("--runs", type=Path, default=accuracy_models.CACHE.parent / "devices", help="journals")
    parser.add_argument("--rounds", type=int, default=Protocol().rounds, help="blocks of each operation and network")
    parser.add_argument("-o", "--output", type=Path, default=Path("devices.json"))
    args = parser.parse_args()
    args.cases = args.cases or list(CASES)
    known = {"case": (args.cases, CASES), "network": (args.only, {e["name"] for e in accuracy_models.networks()})}
    for kind, (given, there) in known.items():
        if unknown := [name for name in given if name not in there]:
            parser.error(f"there is no {kind} {', '.join(unknown)}")
    return args


if __name__ == "__main__":
    main()
