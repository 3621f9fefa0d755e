"""Makes a general profile of this CPU, and sets its predictions beside measured times of networks it never saw.

    scripts/benchmark_accuracy --runtime litert --precision float32 --threads 1 -o docs/accuracy.json

One runtime, precision and thread count a call; their results stand beside one another in the output. All goes on where
it stopped: the profile from its journal, each network from the blocks that were measured. Networks are measured between
the profile's operations: a shared machine is faster in some minutes than in others, and both should see the same. They
come from accuracy_networks.json, converted beforehand by accuracy_models.py (which see); those without a file are
listed with the reason. The prediction is of the very file that is measured, that of the .keras file stands beside it;
frozen graphs of TensorFlow are not read, and both are that of the .keras file.

With --own, after that, every kernel that the networks are made of is measured too, as `profile --model` does for one
network at its full widths, and the networks once more between them: what is then left of an error is not of the fit to
other shapes, but of the step from lone kernels to a network.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import accuracy_models
import numpy as np

import latency_lab as ll
from latency_lab import files, runtimes
from latency_lab.cost.latency import kernels_of_graph
from latency_lab.errors import LatencyLabError
from latency_lab.plan import measure_in_general
from latency_lab.plan.general import lone_and_whole
from latency_lab.profiles import DeviceProfile
from latency_lab.profiling import (
    Journal,
    LocalWorker,
    Progress,
    Protocol,
    Statistic,
    Worker,
    WorkerDiedError,
    statistic,
)
from latency_lab.profiling.environment import conditions, identity
from latency_lab.profiling.protocol import block_latency_ms

PASS_SHARES = (0.4, 0.6)
"""Rounds of the networks that go with the first and the second pass of the profile."""
FIGURES = ("error", "keras_error", "error_without_exact")


def main() -> None:
    """Profile, predict, measure, summarise; prints what it writes."""
    args = _arguments()
    key = f"{args.runtime} {args.precision} {args.threads} thread{'s' * (args.threads > 1)}"
    folder = args.cache / "runs" / key.replace(" ", "-").replace("/", "_")
    folder.mkdir(parents=True, exist_ok=True)
    entries = [e for e in accuracy_models.networks() if accuracy_models.runs_on(e, args.runtime)]
    found, missing = _files(entries, args.runtime, args.precision, args.cache)
    if args.own:
        write(args.output, key, {"own": own(args, key, folder, found)})
        return
    networks = Networks(found, lambda: LocalWorker(args.runtime, args.threads), folder / "networks.jsonl")
    profile, made = general_profile(args, key, folder, networks)
    if not args.refit:
        networks.finish()
    book = Journal.load(folder / "profile.journal.jsonl")
    blocks = {entry["name"]: networks.blocks.get(entry["name"], []) for entry, _ in found}
    rows = [
        row(entry, readable(entry, path, args.cache), profile, book, blocks[entry["name"]], args.cache)
        for entry, path in found
    ]
    write(args.output, key, {"profile": made, **summary(rows), "networks": rows, "not_measured": missing})


def write(output: Path, key: str, found: Mapping[str, Any]) -> None:
    """Puts what was found into the output, beside the other runs, and prints it without the single networks."""
    done: dict[str, Any] = {"environment": identity(), "runs": {}}
    if output.exists():
        done = json.loads(output.read_text())
    done["runs"][key] = done["runs"].get(key, {}) | found
    files.write_json(output, done)
    print(json.dumps(_without_networks(found), indent=1))


def _without_networks(found: Mapping[str, Any]) -> dict[str, Any]:
    return {k: _without_networks(v) if isinstance(v, dict) else v for k, v in found.items() if k != "networks"}


def own(
    args: argparse.Namespace, key: str, folder: Path, found: Sequence[tuple[dict[str, Any], Path]]
) -> dict[str, Any]:
    """The networks from a profile that holds all of their own kernels, beside what the general one measured."""
    journal = folder / "own.journal.jsonl"
    general = ll.load_profile(folder / "profile.json.gz")
    if not journal.exists():
        shutil.copyfile(folder / "profile.journal.jsonl", journal)
    graphs = [ll.ChannelGraph.from_model(readable(entry, path, args.cache)) for entry, path in found]
    kernels = dict.fromkeys(kernel.op for graph in graphs for kernel in kernels_of_graph(graph, general))
    ops = [op for op in kernels if runtimes.get(args.runtime).reason_unsupported(op) is None]
    tasks = (*Journal.load(journal).tasks.values(), *lone_and_whole(ops, [], args.runtime))
    networks = Networks(
        found, lambda: LocalWorker(args.runtime, args.threads), folder / "own-networks.jsonl", shares=(1.0,)
    )
    spent = Stopwatch(folder / "own-seconds.json", networks)
    with spent:
        book = ll.profile(
            tasks,
            runtime=args.runtime,
            threads=args.threads,
            journal=journal,
            on_progress=networks.between,
            start_worker=networks.start_worker,
        )
    networks.finish()
    profile = ll.fit_profile(book, name=f"{key}, own kernels")
    rows = [
        row(entry, readable(entry, path, args.cache), profile, book, networks.blocks.get(entry["name"], []))
        for entry, path in found
    ]
    made = {"kernels": len(ops), "seconds": round(spent.seconds, 1), "half_width": profile.network.half_width}
    return {**made, **summary(rows), "networks": rows}


def general_profile(
    args: argparse.Namespace, key: str, folder: Path, networks: Networks
) -> tuple[DeviceProfile, dict[str, Any]]:
    """The general profile, made or found, and how long it took over all calls that made it."""
    path, report = folder / "profile.json.gz", folder / "profile-made.json"
    if path.exists() and report.exists() and not args.refit:
        return ll.load_profile(path), json.loads(report.read_text())
    spent = Stopwatch(folder / "seconds.json", networks, args.refit)
    journal = folder / "profile.journal.jsonl"
    with spent:
        if args.refit:
            book = Journal.load(journal)
        else:
            book = measure_in_general(
                args.runtime,
                precision=args.precision,
                threads=args.threads,
                journal=journal,
                on_progress=networks.between,
                start_worker=networks.start_worker,
            )
        profile = ll.fit_profile(book, name=args.name or key)
    profile.save(path)
    made = {
        "seconds": round(spent.seconds, 1),
        "points": len(book.blocks),
        "failed": len(book.failures),
        "rounds": Protocol().rounds,
        "slowdown": {f"p{q}": round(float(np.percentile(book.slowdowns, q)), 3) for q in (10, 50, 90)},
        "scatter": {"as_measured": scatter(book, 0.0), "at_good_speed": scatter(book, 1.0)},
        "bytes_of_json": len(json.dumps(profile.to_json())),
        "holdout": _pooled(profile.holdout),
        "networks": len(profile.network.residuals),
        "half_width": profile.network.half_width,
        "conditions": json.loads(report.read_text())["conditions"] if args.refit and report.exists() else conditions(),
    }
    files.write_json(report, made)
    return ll.load_profile(path), made


def scatter(book: Journal, power: float) -> float:
    """How far a block is from the median of its operation's blocks, at the median.

    Args:
        book: of the measurement.
        power: 1 to divide by slowdowns, 0 not to.
    """
    of_task: dict[str, list[float]] = {}
    for line, slow in zip(book.measured, book.slowdowns**power, strict=True):
        of_task.setdefault(line["key"], []).append(block_latency_ms(line) / slow)
    found = [np.array(times) / np.median(times) - 1 for times in of_task.values()]
    return round(float(np.median(np.abs(np.concatenate(found)))), 4)


class Stopwatch:
    """Seconds over several runs, kept in a file, less those that went to whole networks."""

    def __init__(self, path: Path, networks: Networks, refit: bool = False) -> None:
        self._path, self._networks, self._refit = path, networks, refit
        self.seconds: float = json.loads(path.read_text()) if path.exists() else 0.0

    def __enter__(self) -> None:
        self._began, self._before = time.monotonic(), self._networks.seconds

    def __exit__(self, *_: object) -> None:
        if self._refit:
            return
        self.seconds += time.monotonic() - self._began - (self._networks.seconds - self._before)
        files.write_json(self._path, self.seconds)


def _pooled(holdout: Any) -> dict[str, float]:
    """Median over all held-out operations' families, weighted by points."""
    rows = [e for e in holdout.values() if e.get("points")]
    points = np.array([e["points"] for e in rows], float)
    return {
        "points": int(points.sum()),
        **{
            n: round(float(np.average([e[n] for e in rows], weights=points)), 4)
            for n in ("median", "within_10_percent")
        },
    }


def _files(
    entries: Sequence[dict[str, Any]], runtime: str, precision: str, cache: Path
) -> tuple[list[tuple[dict[str, Any], Path]], dict[str, str]]:
    """(entry, file) of the networks that were converted, and name -> reason of the others."""
    found, missing = [], {}
    for entry in entries:
        path = accuracy_models.place(entry, runtime, precision, cache)
        failure = accuracy_models.failure_of(path)
        if path.is_file():
            found.append((entry, path))
        else:
            missing[entry["name"]] = failure.read_text().strip() if failure.is_file() else "not converted"
    return found, missing


class Shared:
    """A worker that two use: what ends its process costs one block, and the next starts another.

    Args:
        start: starts one.
    """

    def __init__(self, start: Callable[[], Worker]) -> None:
        self._start = start
        self._worker = start()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._worker, name)

    def block(self, path: str, settings: Mapping[str, Any]) -> dict[str, Any]:
        """As of `Worker`."""
        try:
            return self._worker.block(path, settings)
        except WorkerDiedError:
            self._worker.close()
            self._worker = self._start()
            raise


class Networks:
    """Whole networks, measured between the blocks of the profile and by the same worker (`start_worker`), so that both
    see the machine in the same states.

    By a process of their own, which stands still in between, they take longer than those that the profile is fitted on,
    and the more so the shorter they are: eight of 3 to 55 ms 1 to 3 % at the median when it was tried side by side.

    As operations are, those that are unstable after the rounds that all have are measured in more: one round beside
    each that the operations have more.

    Args:
        found: (entry, file) of each.
        start: starts a worker.
        journal: file that keeps their blocks; a run that was stopped goes on from it.
        shares: of the networks' rounds that go with each pass of the profile.
        protocol: of their blocks.

    Attributes:
        blocks: name -> blocks so far.
        seconds: spent on them.
    """

    def __init__(
        self,
        found: Sequence[tuple[dict[str, Any], Path]],
        start: Callable[[], Worker],
        journal: Path,
        shares: Sequence[float] = PASS_SHARES,
        protocol: Protocol | None = None,
    ) -> None:
        self._protocol = protocol or Protocol()
        self.blocks: dict[str, list[dict[str, Any]]] = {}
        self.seconds = 0.0
        self._shares = list(shares)
        self._start = start
        self._worker: Shared | None = None
        self._paths = {entry["name"]: path for entry, path in found}
        for line in journal.read_text().splitlines() if journal.exists() else []:
            block = json.loads(line)
            self.blocks.setdefault(block["name"], []).append(block)
        self._file = journal.open("a")
        self._waiting: list[tuple[str, int]] = []
        for round_ in range(self._protocol.rounds):
            self._add(round_, [n for n in self._paths if all(b["round"] != round_ for b in self.blocks.get(n, []))])
        self._total = self._begun = 0
        self._left, self._due = len(self._waiting), 0.0

    def start_worker(self) -> Shared:
        """Starts the worker that the profile is measured by, and the networks with it."""
        self._worker = Shared(self._start)
        return self._worker

    def between(self, progress: Progress) -> None:
        """Called after each block of the profile: measures the networks that are due."""
        if progress.done == 1 or progress.total != self._total:
            self._begin(progress)
        share = (progress.done - self._begun) / (progress.total - self._begun)
        while self._waiting and self._left - len(self._waiting) < share * self._due:
            self._one()

    def finish(self) -> None:
        """Measures what is left, once the profile has ended its worker, and ends."""
        if self._waiting:
            self.start_worker()
        while self._waiting:
            self._one()
        self.close()

    def close(self) -> None:
        """Ends the worker, and what was measured is kept."""
        if self._worker is not None:
            self._worker.close()
        self._file.close()

    def _begin(self, progress: Progress) -> None:
        """Rounds of the profile begin: a pass, with its share of what waits, or one more of what is unstable."""
        self._total, self._begun = progress.total, progress.done - 1
        share = 1.0
        if self._shares:
            share = self._shares[0] / sum(self._shares)
            del self._shares[0]
        elif not self._waiting:
            unstable = [name for name in self._paths if self._unstable(name)]
            for round_ in sorted({len(self.blocks[name]) for name in unstable}):
                self._add(round_, [name for name in unstable if len(self.blocks[name]) == round_])
        self._left = len(self._waiting)
        self._due = share * self._left

    def _unstable(self, name: str) -> bool:
        """Whether a network may have a round more, and needs it for all that its own times say."""
        blocks, most = self.blocks.get(name, []), self._protocol.rounds + self._protocol.extra_rounds
        good = len(blocks) < most and all(block["status"] == "ok" for block in blocks)
        return good and statistic(blocks).unstable

    def _add(self, round_: int, names: list[str]) -> None:
        """Lets these networks wait for this round, in an order of its own."""
        random.Random(round_).shuffle(names)
        self._waiting += [(name, round_) for name in names]

    def _one(self) -> None:
        began = time.monotonic()
        name, round_ = self._waiting.pop(0)
        assert self._worker is not None
        try:
            block = self._worker.block(str(self._paths[name]), self._protocol.settings(whole=True))
        except WorkerDiedError as error:
            block = {"status": "failed", "reason": str(error)}
        line = {**block, "name": name, "round": round_, "time": round(time.time(), 2)}
        self.blocks.setdefault(name, []).append(line)
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        self.seconds += time.monotonic() - began


def measured(blocks: Sequence[dict[str, Any]], book: Journal) -> Statistic:
    """The statistic of a network's blocks at the machine's good speed, by the operations measured around them."""
    return statistic(blocks, [book.slowdown_at(block["time"]) for block in blocks])


def row(
    entry: dict[str, Any],
    path: Path,
    profile: DeviceProfile,
    book: Journal,
    blocks: Sequence[dict[str, Any]],
    cache: Path | None = None,
) -> dict[str, Any]:
    """One network: predicted beside measured; of its .keras file too, where a cache has that."""
    base = {"name": entry["name"], "family": entry["family"]}
    good = [block for block in blocks if block["status"] == "ok"]
    if not good:
        return {**base, "failed": next((b["reason"] for b in blocks), "not measured")}
    s = measured(good, book)
    base |= {"measured_ms": round(s.latency_ms, 4), "unstable": s.unstable, "rounds": s.rounds}
    try:
        graph = ll.ChannelGraph.from_model(path)
        estimate = ll.LatencyCost(graph, profile).estimate()
    except LatencyLabError as error:
        return {**base, "failed": f"cannot be predicted: {error}"}
    coverage = estimate.coverage
    bare = ll.LatencyCost(graph, replace(profile, tables={})).estimate().latency_ms
    low, high = estimate.interval_ms
    found = {
        "predicted_ms": round(estimate.latency_ms, 4),
        "interval_ms": [round(low, 4), round(high, 4)],
        "error": round(estimate.latency_ms / s.latency_ms - 1, 4),
        "error_without_exact": round(bare / s.latency_ms - 1, 4),
        "kernels": coverage["ops"],
        "exact": coverage["measured"],
        "extrapolated": coverage["extrapolated"],
        "bounded": coverage["bounded"],
    }
    keras_file = accuracy_models.keras_place(entry, cache) if cache else None
    if keras_file and keras_file.exists():
        of_keras = ll.LatencyCost(ll.ChannelGraph.from_model(keras_file), profile).estimate().latency_ms
        found["keras_error"] = round(of_keras / s.latency_ms - 1, 4)
    return {**base, **found}


def readable(entry: Mapping[str, Any], path: Path, cache: Path) -> Path:
    """The file that the prediction reads: the one that is measured, or for a frozen graph the .keras file of it."""
    frozen = path.suffix == accuracy_models.SUFFIXES["tensorflow"]
    return accuracy_models.keras_place(entry, cache) if frozen else path


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Over all networks that were predicted and measured."""
    good = [r for r in rows if "error" in r]
    found: dict[str, Any] = {"measured": len(good), "failed": [r["name"] for r in rows if "error" not in r]}
    for name in FIGURES:
        errors = np.abs([r[name] for r in good if name in r])
        if len(errors):
            found[name] = {
                "networks": len(errors),
                "median": round(float(np.median(errors)), 4),
                "within_5_percent": round(float(np.mean(errors <= 0.05)), 4),
                "within_10_percent": round(float(np.mean(errors <= 0.10)), 4),
                "worst": round(float(errors.max()), 4),
            }
    if good:
        inside = [r["interval_ms"][0] <= r["measured_ms"] <= r["interval_ms"][1] for r in good]
        halves = [(r["interval_ms"][1] - r["interval_ms"][0]) / 2 / r["predicted_ms"] for r in good]
        found["interval"] = {
            "coverage": round(float(np.mean(inside)), 4),
            "mean_half_width": round(float(np.mean(halves)), 4),
        }
        kernels = sum(r["kernels"] for r in good)
        found["exact_share"] = round(sum(r["exact"] for r in good) / kernels, 4)
        found["bounded_share"] = round(sum(r["bounded"] for r in good) / kernels, 4)
    return found


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runtime", default="litert")
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--name", help="of the profile")
    parser.add_argument("--own", action="store_true", help="measure the networks' own kernels too, after a run without")
    parser.add_argument("--refit", action="store_true", help="fit what was measured again, and measure nothing")
    parser.add_argument("--cache", type=Path, default=accuracy_models.CACHE)
    parser.add_argument("-o", "--output", type=Path, default=Path("accuracy.json"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
