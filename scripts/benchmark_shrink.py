"""Narrows networks to half of their predicted latency without training, and measures what that comes to.

    scripts/benchmark_shrink --prepare                       # plans and converts: no timing, takes long
    scripts/benchmark_shrink --measure -o docs/shrink.json   # on a quiet machine

Each network with random weights is narrowed on a shipped profile of this CPU twice: as `ll.plan_structure` does it, on
the device's staircase (snapped); and by the same importance and the chord of the same cost alone, blind to steps
(unsnapped). Seed, snapped and unsnapped are measured interleaved: round by round, in a random order. Reported are what
was predicted of the snapped network beside what was measured, and that as a share of the seed and of the unsnapped one.

Both phases go on where they stopped, network by network. A network is prepared in a process of its own. A plan that
failed is kept with its reason, and is tried again with --retry alone.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import latency_lab as ll
from latency_lab import files
from latency_lab.profiling import Protocol, ratio_interval
from latency_lab.profiling.environment import conditions, identity
from latency_lab.validation import COMPARE_ROUNDS, measure_all

NETWORKS = (
    ("MobileNet", 224),
    ("MobileNetV2", 224),
    ("MobileNetV3Small", 224),
    ("MobileNetV3Large", 224),
    ("EfficientNetB0", 224),
    ("EfficientNetV2B0", 224),
    ("NASNetMobile", 224),
    ("DenseNet121", 160),
    ("ResNet50", 160),
    ("ResNet50V2", 160),
    ("InceptionV3", 160),
    ("Xception", 160),
    ("ConvNeXtTiny", 160),
)
"""Classes of keras.applications of under 30 million parameters, and pixels a side."""
PROFILES = {"litert": "amd-epyc-zen4-litert-1t", "onnxruntime": "amd-epyc-zen4-onnxruntime-1t"}
"""Runtime -> the shipped profile of it, one thread, float32."""
TARGET = 0.5
"""Of the predicted latency of the seed."""
VARIANTS = ("seed", "snapped", "unsnapped")
SUFFIXES = {"litert": ".tflite", "onnxruntime": ".onnx"}
CACHE = Path.home() / ".cache" / "latency-lab" / "shrink"


def main() -> int:
    """Prepares or measures; 1 if a network could not be prepared."""
    args = _arguments()
    known = {f"{name}-{size}": (name, size) for name, size in NETWORKS}
    chosen = {label: known.get(label) or _label(label) for label in args.only or known}
    if args.here:
        ((name, size),) = chosen.values()
        prepare(name, size, args.runtime[0], args.cache)
        return 0
    if args.prepare:
        return prepare_all(chosen, args)
    return measure(chosen, args)


def place(label: str, runtime: str, cache: Path) -> Path:
    """Where the plan of a network is kept; its files are beside it."""
    return cache / runtime / f"{label}.json"


def file_of(plan: Path, variant: str, runtime: str) -> Path:
    """The file of one variant of a network, beside its plan."""
    return plan.with_name(f"{plan.stem}-{variant}{SUFFIXES[runtime]}")


# ---- prepare ------------------------------------------------------------------------------------------------------


def prepare_all(chosen: Mapping[str, tuple[str, int]], args: argparse.Namespace) -> int:
    """Prepares what is missing, each network in a process of its own."""
    failed = 0
    for runtime in args.runtime:
        for label in chosen:
            plan = place(label, runtime, args.cache)
            if not stale(plan, runtime, args.retry):
                continue
            plan.unlink(missing_ok=True)
            began = time.monotonic()
            command = [sys.executable, __file__, "--prepare", "--here", "--only", label, "--runtime", runtime]
            done = subprocess.run([*command, "--cache", str(args.cache)], stderr=subprocess.PIPE, text=True)
            if not plan.exists():  # killed, or crashed in a converter's C++: no Python was left to say so
                reason = f"exit code {done.returncode}: {done.stderr[-500:]}"
                files.write_json(plan, {"network": label, "runtime": runtime, "failed": reason})
            found = json.loads(plan.read_text())
            failed += "failed" in found
            said = found.get("failed") or f"{found['groups']} groups, planned in {found['plan_seconds']} s"
            print(f"{runtime} {label}: {time.monotonic() - began:.0f} s, {said}", flush=True)
    return int(failed > 0)


def stale(plan: Path, runtime: str, retry: bool) -> bool:
    """Whether a network is to be prepared: it was not yet, or on another profile, or it failed and is to be retried."""
    if not plan.exists():
        return True
    found = json.loads(plan.read_text())
    return retry if "failed" in found else found["profile_digest"] != ll.load_profile(PROFILES[runtime]).digest


def prepare(name: str, size: int, runtime: str, cache: Path) -> None:
    """Plans and converts one network, and writes what is predicted; a failure with its reason."""
    label = f"{name}-{size}"
    plan = place(label, runtime, cache)
    plan.parent.mkdir(parents=True, exist_ok=True)
    try:
        found = planned(name, size, runtime, plan)
    except Exception as error:  # whatever it is, the other networks go on
        traceback.print_exc()
        found = {"failed": f"{type(error).__name__}: {error}"}
    files.write_json(plan, {"network": label, "runtime": runtime, **found})


def planned(name: str, size: int, runtime: str, plan: Path) -> dict[str, Any]:
    """Both structures, the three files, and what is predicted of each."""
    import accuracy_build

    from latency_lab import convert

    profile = ll.load_profile(PROFILES[runtime])
    model = accuracy_build.build({"name": f"{name}-{size}", "class": name, "size": size})
    graph = ll.ChannelGraph.from_model(model)
    cost = ll.LatencyCost(graph, profile)
    began = time.monotonic()
    snapped = ll.plan_structure(model, cost, TARGET)
    seconds = time.monotonic() - began
    structures = {"snapped": snapped, "unsnapped": unsnapped(model, cost)}
    models = {"seed": model, **{variant: ll.shrink(model, found) for variant, found in structures.items()}}
    to_file = {"litert": convert.to_tflite, "onnxruntime": convert.to_onnx}[runtime]
    rows = {}
    for variant in VARIANTS:
        path = file_of(plan, variant, runtime)
        files.write_bytes(path, to_file(models[variant]))
        rows[variant] = predicted(models[variant], path, profile)
    return {
        "profile": profile.name,
        "profile_digest": profile.digest,
        "target": TARGET,
        "groups": len(graph.groups),
        "plan_seconds": round(seconds, 1),
        "channels": {"seed": graph.slots, **{v: int(s.widths(graph).sum()) for v, s in structures.items()}},
        "widths": {variant: found.widths(graph).tolist() for variant, found in structures.items()},
        **rows,
    }


def unsnapped(model: Any, cost: ll.LatencyCost) -> ll.Structure:
    """The structure of the same importance by the chord alone: no look at steps."""
    from latency_lab.budget import mask_of
    from latency_lab.importance import scores
    from latency_lab.knapsack import plain_widths

    values = scores(model, cost.graph)
    whole = np.isinf(values)
    spans = zip(cost.graph.offsets[:-1], cost.graph.offsets[1:], strict=True)
    lowest = np.array([max(1, np.count_nonzero(whole[a:b])) for a, b in spans], np.int64)
    worth = np.where(whole, values[~whole].max(initial=1.0), values)
    widths = plain_widths(cost, worth, TARGET * float(cost.value(None)), lowest)
    return ll.Structure.from_mask(cost.graph, mask_of(cost, values, widths))


def predicted(model: Any, path: Path, profile: ll.DeviceProfile) -> dict[str, Any]:
    """What is known of a network before it is measured."""
    graph = ll.ChannelGraph.from_model(model)
    return {
        "parameters": int(model.count_params()),
        "flops": int(ll.FlopsCost(graph).at()),
        "file_bytes": path.stat().st_size,
        "predicted_ms": round(ll.LatencyCost(graph, profile).at(), 5),
        "predicted_file_ms": round(ll.LatencyCost(ll.ChannelGraph.from_model(path), profile).at(), 5),
    }


# ---- measure ------------------------------------------------------------------------------------------------------


def measure(chosen: Mapping[str, tuple[str, int]], args: argparse.Namespace) -> int:
    """Measures every prepared network that the output does not hold, and writes after each; prints a line of all."""
    done: dict[str, Any] = {"environment": identity(), "target": TARGET, "rows": []}
    if args.output.exists() and not args.fresh:
        done = json.loads(args.output.read_text())
    failed = 0
    for runtime in args.runtime:
        for label in chosen:
            kept = [row for row in done["rows"] if (row["runtime"], row["network"]) == (runtime, label)]
            if kept:
                print(line(kept[0]), flush=True)
                continue
            plan = place(label, runtime, args.cache)
            found = json.loads(plan.read_text()) if plan.exists() else {"failed": "not prepared: --prepare first"}
            if "failed" not in found and stale(plan, runtime, retry=False):
                found = {"failed": "the profile has changed since it was prepared: --prepare again"}
            if "failed" in found:
                failed += 1
                print(f"{runtime} {label}: {found['failed']}", flush=True)
                continue
            row = measured(found, plan, runtime, args.rounds)
            done["rows"].append(row)
            done["summary"] = {r: summary(done["rows"], r) for r in PROFILES}
            files.write_json(args.output, done)
            print(line(row), flush=True)
    print(json.dumps(done.get("summary", {}), indent=1))
    return int(failed > 0)


def measured(found: dict[str, Any], plan: Path, runtime: str, rounds: int) -> dict[str, Any]:
    """One network: its three variants interleaved."""
    before = conditions()
    paths = {variant: file_of(plan, variant, runtime) for variant in VARIANTS}
    results, blocks = measure_all(paths, runtime, 1, protocol=Protocol(rounds=rounds))
    row = {key: value for key, value in found.items() if key != "widths"}
    for variant, result in zip(VARIANTS, results, strict=True):
        s = result.statistic
        row[variant] = {
            **found[variant],
            "measured_ms": round(s.latency_ms, 5),
            "interval_ms": [round(s.low_ms, 5), round(s.high_ms, 5)],
            "unstable": s.unstable,
            "error": round(found[variant]["predicted_ms"] / s.latency_ms - 1, 4),
            "file_error": round(found[variant]["predicted_file_ms"] / s.latency_ms - 1, 4),
        }
    seed, snapped, plain = blocks
    return {
        **row,
        "snapped_of_seed": _ratio(snapped, seed),
        "unsnapped_of_seed": _ratio(plain, seed),
        "snapped_of_unsnapped": _ratio(snapped, plain),
        "rounds": rounds,
        "conditions": before,
    }


def _ratio(ours: Sequence[Mapping[str, Any]], theirs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    ratio, low, high = ratio_interval(ours, theirs)
    return {"ratio": round(ratio, 4), "interval": [round(low, 4), round(high, 4)]}


def line(row: Mapping[str, Any]) -> str:
    """One network for a person."""
    snapped, ratio = row["snapped"], row["snapped_of_unsnapped"]
    low, high = ratio["interval"]
    return (
        f"{row['runtime']} {row['network']}: seed {row['seed']['measured_ms']:.4g} ms, snapped predicted "
        f"{snapped['predicted_ms']:.4g}, measured {snapped['measured_ms']:.4g} ms ({snapped['error']:+.1%}), "
        f"{row['snapped_of_seed']['ratio']:.3f} of the seed, {ratio['ratio']:.3f} [{low:.3f}, {high:.3f}] of unsnapped"
    )


def summary(rows: Sequence[Mapping[str, Any]], runtime: str) -> dict[str, Any]:
    """Over all networks of one runtime."""
    own = [row for row in rows if row["runtime"] == runtime]
    if not own:
        return {"networks": 0}
    errors = np.abs([row["snapped"]["error"] for row in own])
    ratios = [row["snapped_of_unsnapped"] for row in own]
    return {
        "networks": len(own),
        "snapped_error": {
            "median": round(float(np.median(errors)), 4),
            "within_5_percent": round(float(np.mean(errors <= 0.05)), 4),
            "within_10_percent": round(float(np.mean(errors <= 0.10)), 4),
            "worst": round(float(errors.max()), 4),
        },
        "snapped_of_seed": round(float(np.median([row["snapped_of_seed"]["ratio"] for row in own])), 4),
        "snapped_of_unsnapped": {
            "median": round(float(np.median([r["ratio"] for r in ratios])), 4),
            "best": min(r["ratio"] for r in ratios),
            "worst": max(r["ratio"] for r in ratios),
            "faster": sum(r["interval"][1] < 1 for r in ratios),
            "slower": sum(r["interval"][0] > 1 for r in ratios),
        },
    }


# ---- the command --------------------------------------------------------------------------------------------------


def _label(text: str) -> tuple[str, int]:
    name, _, size = text.rpartition("-")
    if not name or not size.isdigit():
        raise SystemExit(f"--only {text}: expected a class of keras.applications and pixels, such as MobileNet-224")
    return name, int(size)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    phase = parser.add_mutually_exclusive_group(required=True)
    phase.add_argument("--prepare", action="store_true", help="plan and convert what the cache does not hold")
    phase.add_argument("--measure", action="store_true", help="measure what the output does not hold")
    parser.add_argument("--runtime", choices=PROFILES, nargs="+", default=list(PROFILES))
    parser.add_argument("--only", nargs="+", metavar="NETWORK", help="such as MobileNet-224, listed or not")
    parser.add_argument("--cache", type=Path, default=CACHE, metavar="DIR")
    parser.add_argument("--retry", action="store_true", help="prepare again what failed before")
    parser.add_argument("--rounds", type=int, default=COMPARE_ROUNDS)
    parser.add_argument("-o", "--output", type=Path, default=Path("shrink.json"))
    parser.add_argument("--fresh", action="store_true", help="measure all anew")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
