"""Whole models on a device: measured, measured beside predicted, and two of them interleaved."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from latency_lab import convert, runtimes
from latency_lab.cost import LatencyCost
from latency_lab.errors import UnmeasuredError, UsageError
from latency_lab.graph import ChannelGraph
from latency_lab.profiles import DeviceProfile
from latency_lab.profiling import (
    Device,
    Protocol,
    Statistic,
    Worker,
    WorkerDiedError,
    device,
    environment_of,
    ratio_interval,
    statistic,
)

SUFFIXES: Mapping[str, str] = {name: runtimes.get(name).suffix for name in runtimes.NAMES}
"""Runtime -> what its model files end in."""
_CONVERTERS: Mapping[str, Callable[[Any, str], bytes]] = {
    ".tflite": convert.to_tflite,
    ".onnx": convert.to_onnx,
    ".pb": convert.to_graphdef,
}
COMPARE_ROUNDS = 12


@dataclass(frozen=True, slots=True)
class Measured:
    """A model that was measured.

    Attributes:
        model: as it was named.
        statistic: of its blocks.
        environment: identity, conditions, runtime and threads.
    """

    model: str
    statistic: Statistic
    environment: Mapping[str, Any]

    @property
    def latency_ms(self) -> float:
        """The protocol's statistic."""
        return self.statistic.latency_ms

    def to_json(self) -> dict[str, Any]:
        """latency_ms, median_ms, interval_ms, unstable, rounds, samples, environment."""
        s = self.statistic
        return {
            "model": self.model,
            "latency_ms": s.latency_ms,
            "median_ms": s.median_ms,
            "interval_ms": [s.low_ms, s.high_ms],
            "unstable": s.unstable,
            "rounds": s.rounds,
            "samples": s.samples,
            "environment": dict(self.environment),
        }

    def __str__(self) -> str:
        s = self.statistic
        note = "; unstable: the interval is wider than 10 % of the latency" if s.unstable else ""
        return (
            f"{self.model}: {s.latency_ms:.4g} ms [{s.low_ms:.4g}, {s.high_ms:.4g}], median {s.median_ms:.4g} ms, "
            f"{s.rounds} rounds, {s.samples} samples{note}"
        )


@dataclass(frozen=True, slots=True)
class Validation:
    """Predicted beside measured, a row a model.

    Attributes:
        profile: its name.
        rows: (model, predicted ms, measured ms).
    """

    profile: str
    rows: tuple[tuple[str, float, float], ...]

    @property
    def errors(self) -> tuple[float, ...]:
        """predicted / measured - 1 of each model."""
        return tuple(predicted / measured - 1 for _, predicted, measured in self.rows)

    def within(self, share: float) -> float:
        """Share of the models whose error is at most this, from 0 to 1."""
        return float(np.mean([abs(error) <= share for error in self.errors]))

    def to_json(self) -> dict[str, Any]:
        """models, median_error, within_5_percent, within_10_percent."""
        models = [
            {"model": model, "predicted_ms": predicted, "measured_ms": measured, "error": error}
            for (model, predicted, measured), error in zip(self.rows, self.errors, strict=True)
        ]
        return {
            "profile": self.profile,
            "models": models,
            "median_error": float(np.median(np.abs(self.errors))),
            "within_5_percent": self.within(0.05),
            "within_10_percent": self.within(0.10),
        }

    def __str__(self) -> str:
        lines = [
            f"{model}: predicted {predicted:.4g} ms, measured {measured:.4g} ms, error {error:+.1%}"
            for (model, predicted, measured), error in zip(self.rows, self.errors, strict=True)
        ]
        median = float(np.median(np.abs(self.errors)))
        lines.append(
            f"median error {median:.1%}; within 5 %: {self.within(0.05):.0%}; within 10 %: {self.within(0.1):.0%}"
        )
        return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two models, interleaved.

    Attributes:
        a, b: measured.
        ratio: latency of b over latency of a.
        low, high: 95 % interval of the ratio over rounds.
    """

    a: Measured
    b: Measured
    ratio: float
    low: float
    high: float

    @property
    def unstable(self) -> bool:
        """Whether either model's interval is wider than 10 % of its latency."""
        return self.a.statistic.unstable or self.b.statistic.unstable

    @property
    def faster(self) -> bool:
        """Whether b is faster than a: the whole interval is below 1."""
        return self.high < 1

    def to_json(self) -> dict[str, Any]:
        """a, b, ratio, interval, faster, unstable."""
        return {
            "a": self.a.to_json(),
            "b": self.b.to_json(),
            "ratio": self.ratio,
            "interval": [self.low, self.high],
            "faster": self.faster,
            "unstable": self.unstable,
        }

    def __str__(self) -> str:
        verdict = (
            "faster" if self.faster else "slower" if self.low > 1 else "no difference that this measurement can show"
        )
        return f"{self.a}\n{self.b}\nb takes {self.ratio:.3f} [{self.low:.3f}, {self.high:.3f}] of a: {verdict}"


def measure(
    model: Any,
    runtime: str,
    threads: int = 1,
    *,
    protocol: Protocol | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    on: str | Device = "local",
    start_worker: Callable[[], Worker] | None = None,
) -> Measured:
    """Measures one model by the protocol.

    Args:
        model: a Keras model, or a .keras, .tflite or .onnx path.
        runtime: one of `runtimes.NAMES`; TensorFlow's may name a device: "tensorflow:GPU:0".
        threads: of the runtime.
        protocol: rounds and repeats.
        on_progress: called with (blocks done, blocks in all).
        on: the device: "local", "ssh://user@host:port", "adb://serial", or what `profiling.device` gives.
        start_worker: starts a worker of this runtime and threads, in place of the device.
    """
    start = start_worker or _starter(on, runtime, threads)
    measured, _ = measure_all(
        {_name(model): model}, runtime, threads, protocol=protocol, on_progress=on_progress, start_worker=start
    )
    return measured[0]


def validate(
    profile: DeviceProfile,
    models: Sequence[Any],
    *,
    protocol: Protocol | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    on: str | Device = "local",
) -> Validation:
    """Measures each model on the profile's runtime and threads, interleaved, and sets the prediction beside it.

    Args:
        profile: of this device.
        models: Keras models, or .keras paths or such of the profile's runtime (.tflite, .onnx).
        protocol: by default as many rounds as the profile was measured in.
        on_progress: called with (blocks done, blocks in all).
        on: as of `measure`: the device that the profile is of.
    """
    if profile.kind != "measured":
        raise UsageError(f"The profile {profile.name!r} is {profile.kind}: it names no runtime to measure on.")
    if profile.environment.get("provenance") == "imported":
        raise UsageError(
            f"The profile {profile.name!r} was imported from timings of {profile.runtime!r}: there is no way to "
            f"measure on that from here. Validate with a profile of {' or '.join(SUFFIXES)} that was taken on this "
            "device."
        )
    named = _by_name(models)
    predicted = [LatencyCost(ChannelGraph.from_model(model), profile).estimate().latency_ms for model in named.values()]
    protocol = protocol or Protocol(rounds=int(profile.protocol.get("rounds", Protocol().rounds)))
    measured, _ = measure_all(
        named,
        profile.runtime,
        profile.threads,
        protocol=protocol,
        on_progress=on_progress,
        start_worker=_starter(on, profile.runtime, profile.threads),
        precision=profile.precision,
    )
    return Validation(profile.name, tuple((m.model, p, m.latency_ms) for m, p in zip(measured, predicted, strict=True)))


def compare(
    a: Any,
    b: Any,
    runtime: str,
    threads: int = 1,
    *,
    protocol: Protocol | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    on: str | Device = "local",
    start_worker: Callable[[], Worker] | None = None,
) -> Comparison:
    """Measures two models round by round beside one another: how b's latency relates to a's.

    Args:
        a, b: Keras models, or .keras, .tflite or .onnx paths.
        runtime: one of `runtimes.NAMES`; TensorFlow's may name a device: "tensorflow:GPU:0".
        threads: of the runtime.
        protocol: 12 rounds by default.
        on_progress: called with (blocks done, blocks in all).
        on, start_worker: as of `measure`.
    """
    protocol = protocol or Protocol(rounds=COMPARE_ROUNDS)
    names = {f"a: {_name(a)}": a, f"b: {_name(b)}": b}
    start = start_worker or _starter(on, runtime, threads)
    (first, second), blocks = measure_all(
        names, runtime, threads, protocol=protocol, on_progress=on_progress, start_worker=start
    )
    return Comparison(first, second, *ratio_interval(blocks[1], blocks[0]))


def measure_all(
    models: Mapping[str, Any],
    runtime: str,
    threads: int,
    *,
    protocol: Protocol | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    start_worker: Callable[[], Worker] | None = None,
    precision: str = "float32",
) -> tuple[list[Measured], list[list[dict[str, Any]]]]:
    """Measures models interleaved: each round takes all of them in a new random order.

    There are extra rounds, of all models, as long as one of them is unstable.

    Args:
        models: name -> Keras model or path.
        runtime, threads, protocol, on_progress, start_worker: as of `measure`.
        precision: that Keras models are converted to.

    Returns:
        A `Measured` and the blocks of each model, in the order of `models`.

    Raises:
        UnmeasuredError: a model does not run.
        DeviceLostError: the device cannot be reached, or not any more.
    """
    protocol = protocol or Protocol()
    start = start_worker or _starter("local", runtime, threads)
    blocks: dict[str, list[dict[str, Any]]] = {name: [] for name in models}
    settings = protocol.settings(whole=True)
    done, environment = 0, {"runtime": runtime, "threads": threads}
    with tempfile.TemporaryDirectory(prefix="latency-lab-") as folder:
        paths = {
            name: _file(model, runtime, precision, Path(folder) / str(i))
            for i, (name, model) in enumerate(models.items())
        }
        worker: Worker | None = None
        try:
            for round_ in range(protocol.rounds + protocol.extra_rounds):
                if round_ >= protocol.rounds and not any(statistic(found).unstable for found in blocks.values()):
                    break
                if worker is None or round_ == (protocol.rounds + 1) // 2:
                    if worker is not None:
                        worker.close()
                    worker = start()
                    who, now = environment_of(worker)
                    environment = {**who, **now, **environment}
                    environment |= {k: worker.hello.get(k) for k in ("package", "version")}
                order = list(models)
                Random(f"{protocol.seed}:{round_}").shuffle(order)
                for name in order:
                    blocks[name].append(_block(worker, name, paths[name], settings, round_))
                    done += 1
                    if on_progress:
                        on_progress(done, max(protocol.rounds, round_ + 1) * len(order))
        finally:
            if worker is not None:
                worker.close()
    measured = [Measured(name, statistic(found), environment) for name, found in blocks.items()]
    return measured, list(blocks.values())


def _starter(on: str | Device, runtime: str, threads: int) -> Callable[[], Worker]:
    where = device(on)
    return lambda: where.start(runtime, threads)


def _block(worker: Worker, name: str, path: Path, settings: dict[str, Any], round_: int) -> dict[str, Any]:
    try:
        found = worker.block(str(path), settings)
    except WorkerDiedError as error:
        raise UnmeasuredError(f"{name} cannot be measured: {error}") from error
    if found["status"] != "ok":
        raise UnmeasuredError(f"{name} cannot be measured: {found['reason']}")
    return {**found, "round": round_}


def _file(model: Any, runtime: str, precision: str, target: Path) -> Path:
    """The file that the runtime runs: the model's own, or what a Keras model converts to."""
    suffix = runtimes.get(runtime).suffix
    if isinstance(model, (str, Path)):
        path = Path(model)
        if not path.is_file():
            raise UsageError(f"There is no model file {path}.")
        if path.suffix == suffix:
            return path
        if path.suffix != ".keras":
            raise UsageError(f"{runtime} runs {suffix} and .keras files. Received: {path}")
    target = target.with_suffix(suffix)
    target.write_bytes(_CONVERTERS[suffix](model, precision))
    return target


def _by_name(models: Sequence[Any]) -> dict[str, Any]:
    """Name -> model; of several that share a name (a slim model has its seed's), the others are numbered."""
    found: dict[str, Any] = {}
    for model in models:
        name, number = _name(model), 2
        while name in found:
            name, number = f"{_name(model)} ({number})", number + 1
        found[name] = model
    return found


def _name(model: Any) -> str:
    return str(model) if isinstance(model, (str, Path)) else str(getattr(model, "name", model))
