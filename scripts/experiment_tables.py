"""What the experiment's results say: tables, latency at equal accuracy, a plot. Reads the JSON that it wrote."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from experiment_cells import METHODS, ROOFLINE_METHODS, ROOFLINE_NET, TARGETS
from experiment_networks import NAMES, SEEDS

from latency_lab.report import table

Entry = Mapping[str, Any]
Point = tuple[float, float]
"""(ms, accuracy) of a network."""
OTHERS = tuple(method for method in METHODS if method != "latency")


# ---- equal accuracy -----------------------------------------------------------------------------------------------


def front(points: Sequence[Point]) -> list[Point]:
    """The points that no other one beats, the fastest first: accuracy rises with ms.

    Args:
        points: in any order.
    """
    found: list[Point] = []
    for ms, accuracy in sorted(points, key=lambda point: (point[0], -point[1])):
        if not found or accuracy > found[-1][1]:
            found.append((ms, accuracy))
    return found


def ms_at(points: Sequence[Point], accuracy: float) -> float | None:
    """The ms at which a method reaches an accuracy: on straight lines between the points of its front.

        ms = ms_i + (ms_j - ms_i) * (accuracy - accuracy_i) / (accuracy_j - accuracy_i)

    Returns:
        None where the accuracy is outside of the points' own: nothing is extrapolated.
    """
    chosen = front(points)
    ms, reached = [point[0] for point in chosen], [point[1] for point in chosen]
    if not chosen or not reached[0] <= accuracy <= reached[-1]:
        return None
    return float(np.interp(accuracy, reached, ms))


def at_equal_accuracy(
    ours: Mapping[float, Point], theirs: Mapping[float, Point], seed: Point
) -> Iterator[tuple[str, float, float, float | None, float | None]]:
    """Both methods' ms at the accuracy of each network of either.

    Args:
        ours, theirs: target -> the network that a method has there.
        seed: the network that both come from, a point of both.

    Yields:
        ("ours" or "theirs", target, accuracy, our ms, their ms), ms None where a method has no networks on both sides.
    """
    curves = [[*ours.values(), seed], [*theirs.values(), seed]]
    for who, networks in (("ours", ours), ("theirs", theirs)):
        for target, (_, accuracy) in networks.items():
            yield who, target, accuracy, ms_at(curves[0], accuracy), ms_at(curves[1], accuracy)


# ---- reading ------------------------------------------------------------------------------------------------------


def measured_ms(runtime: str) -> Callable[[Entry], float | None]:
    """Reads the measured ms of a network in a runtime; None where it was not measured."""
    return lambda entry: entry.get("measured", {}).get(runtime, {}).get("ms")


def roofline_ms(entry: Entry) -> float:
    """The V100's ms by its datasheet."""
    return float(entry["predicted_ms"]["v100"])


class Results:
    """The cells of a results file.

    Args:
        found: its JSON.
    """

    def __init__(self, found: Mapping[str, Any]) -> None:
        self.cells = {self._name(entry): entry for entry in found["cells"]}

    @staticmethod
    def _name(entry: Entry) -> tuple[str, int, str, float, str]:
        return entry["net"], entry["seed"], entry["method"], entry["target"], entry["device"]

    def get(self, net: str, seed: int, method: str, target: float = 1.0, device: str = "cpu") -> Entry | None:
        """A cell; None: missing."""
        return self.cells.get((net, seed, method, target, device))

    def of_seeds(self, net: str, method: str, target: float = 1.0) -> list[Entry]:
        """A cell of each seed that has it."""
        found = [self.get(net, seed, method, target) for seed in range(SEEDS[net])]
        return [entry for entry in found if entry is not None]

    def points(
        self, net: str, seed: int, method: str, ms_of: Callable[[Entry], float | None], device: str = "cpu"
    ) -> dict[float, Point]:
        """Target -> (ms, accuracy) of a method's networks that have ms."""
        entries = {target: self.get(net, seed, method, target, device) for target in TARGETS}
        return {t: (ms, e["accuracy"]) for t, e in entries.items() if e is not None and (ms := ms_of(e)) is not None}


def spread(values: Sequence[float], form: str) -> str:
    """One number, or the mean of some and their least and largest."""
    if not values:
        return "missing"
    mean = format(float(np.mean(values)), form)
    return mean if len(values) == 1 else f"{mean} [{format(min(values), form)}, {format(max(values), form)}]"


# ---- tables -------------------------------------------------------------------------------------------------------


def networks_table(results: Results, net: str) -> str:
    """Every method and target of a net: mean [least, largest] over seeds."""
    head = ["target", "method", "accuracy", "LiteRT ms", "of target", "predicted", "ORT ms", "parameters", "MFLOPs"]
    rows = [["1", "seed", *_figures(results, net, "seed", 1.0)]]
    for target in TARGETS:
        rows += [[f"{target:g}", method, *_figures(results, net, method, target)] for method in METHODS]
    return str(table(head, rows))


def _figures(results: Results, net: str, method: str, target: float) -> list[str]:
    entries = results.of_seeds(net, method, target)
    litert, onnx = (
        {entry["seed"]: ms for entry in entries if (ms := measured_ms(runtime)(entry)) is not None}
        for runtime in ("litert", "onnxruntime")
    )
    whole = {entry["seed"]: measured_ms("litert")(entry) for entry in results.of_seeds(net, "seed")}
    missed = [ms / (target * of) - 1 for seed, ms in litert.items() if (of := whole.get(seed)) is not None]
    return [
        spread([entry["accuracy"] for entry in entries], ".4f"),
        spread(list(litert.values()), ".4f"),
        spread(missed, "+.1%"),
        spread([entry["predicted_of_seed"]["cpu"] / target - 1 for entry in entries], "+.1%"),
        spread(list(onnx.values()), ".4f"),
        spread([entry["parameters"] for entry in entries], ",.0f"),
        spread([entry["flops"] / 1e6 for entry in entries], ".2f"),
    ]


def equal_table(results: Results, net: str, runtime: str = "litert") -> str:
    """Latency-targeted against each other method at equal accuracy, at each network of either."""
    head = ["against", "at the accuracy of", "accuracy", "latency's ms", "its ms", "ratio"]
    rows, means = [], []
    for other in OTHERS:
        found: dict[tuple[str, float], list[tuple[float, float | None, float | None]]] = {}
        for seed in range(SEEDS[net]):
            for who, target, *values in _compared(results, net, seed, other, measured_ms(runtime)):
                found.setdefault((who, target), []).append((values[0], values[1], values[2]))
        rows += [_equal_row(other, who, target, values) for (who, target), values in found.items()]
        ratios = [a / b for values in found.values() for _, a, b in values if a is not None and b is not None]
        if ratios:
            mean = float(np.exp(np.mean(np.log(ratios))))
            means.append(f"latency / {other}: {mean:.3f}, geometric mean of {len(ratios)} comparisons")
    return "\n".join([str(table(head, rows)), "", *means]) if rows else "nothing measured"


def _compared(
    results: Results, net: str, seed: int, other: str, ms_of: Callable[[Entry], float | None]
) -> Iterator[tuple[str, float, float, float | None, float | None]]:
    whole = results.get(net, seed, "seed")
    ms = None if whole is None else ms_of(whole)
    ours, theirs = (results.points(net, seed, method, ms_of) for method in ("latency", other))
    if whole is not None and ms is not None and ours and theirs:
        yield from at_equal_accuracy(ours, theirs, (ms, whole["accuracy"]))


def _equal_row(
    other: str, who: str, target: float, values: Sequence[tuple[float, float | None, float | None]]
) -> list[str]:
    both = [(a, b) for _, a, b in values if a is not None and b is not None]
    none = f"no overlap ({len(values) - len(both)} of {len(values)})" if len(both) < len(values) else ""
    figures = [spread([a for a, _ in both], ".4f"), spread([b for _, b in both], ".4f")] if both else ["", ""]
    ratio = spread([a / b for a, b in both], ".3f") if both else ""
    at = f"{'latency' if who == 'ours' else other} {target:g}"
    return [other, at, spread([a for a, _, _ in values], ".4f"), *figures, f"{ratio} {none}".strip()]


def roofline_table(results: Results) -> str:
    """The V100 by its datasheet, predicted only: networks for its ms beside those for FLOPs."""
    head = ["target", "method", "accuracy", "V100 us", "of target", "of the seed's FLOPs"]
    rows = []
    seed = results.get(ROOFLINE_NET, 0, "seed")
    for target in TARGETS:
        for method, device in (*((name, "v100") for name in ROOFLINE_METHODS), ("flops", "cpu"), ("latency", "cpu")):
            entry, name = results.get(ROOFLINE_NET, 0, method, target, device), f"{method} ({device})"
            rows.append([f"{target:g}", name, *(_roofline(entry, target) if entry else ["missing"] * 4)])
    whole = _roofline(seed, 1.0) if seed else ["missing"] * 4
    return str(table(head, [["1", "seed", *whole], *rows]))


def _roofline(entry: Entry, target: float) -> list[str]:
    return [
        f"{entry['accuracy']:.4f}",
        f"{1e3 * roofline_ms(entry):.3f}",
        f"{entry['predicted_of_seed']['v100'] / target - 1:+.1%}",
        f"{entry['flops_of_seed']:.3f}",
    ]


def text(found: Mapping[str, Any]) -> str:
    """All tables, and what is missing."""
    results = Results(found)
    profile, settings = found["profiles"]["cpu"], found["settings"]
    parts = [f"settings {settings}; LiteRT profile {profile['name']} ({profile['digest']})"]
    for net in (net for net in NAMES if any(entry["net"] == net for entry in found["cells"])):
        parts += [_headline(net, len(results.of_seeds(net, "seed")))]
        parts += [networks_table(results, net), f"{net}, LiteRT at equal accuracy", equal_table(results, net)]
    if results.of_seeds(ROOFLINE_NET, "seed"):
        parts += [f"{ROOFLINE_NET} on a V100 by its datasheet, predicted only", roofline_table(results)]
    if found["missing"]:
        parts.append(f"missing: {', '.join(found['missing'])}")
    unmeasured = [e["key"] for e in found["cells"] if e["device"] == "cpu" and "measured" not in e]
    if unmeasured:
        parts.append(f"not measured: {', '.join(unmeasured)}")
    return "\n\n".join(parts)


def _headline(net: str, seeds: int) -> str:
    if SEEDS[net] == 1:
        return net
    return f"{net}: mean [least, largest] of {seeds} seeds" if seeds > 1 else f"{net}: one seed of {SEEDS[net]}"


def plot(found: Mapping[str, Any], path: Path) -> None:
    """Accuracy against measured LiteRT ms, a panel a net; seeds of a method in one colour."""
    from latency_lab.extras import missing

    try:
        import matplotlib
    except ModuleNotFoundError as error:
        raise missing(error, "--plot") or error from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    results = Results(found)
    nets = [net for net in NAMES if results.of_seeds(net, "seed")]
    figure, panels = pyplot.subplots(1, len(nets), figsize=(5 * len(nets), 4), layout="constrained", squeeze=False)
    for panel, net in zip(panels[0], nets, strict=True):
        for number, method in enumerate(METHODS):
            for seed in range(SEEDS[net]):
                whole = results.get(net, seed, "seed")
                ms = None if whole is None else measured_ms("litert")(whole)
                points = sorted(results.points(net, seed, method, measured_ms("litert")).values())
                if whole is not None and ms is not None:
                    points.append((ms, whole["accuracy"]))
                if points:
                    label = method if seed == 0 else None
                    panel.plot(*zip(*points, strict=True), "o-", color=f"C{number}", label=label, alpha=0.7)
        panel.set(title=net, xlabel="LiteRT, 1 thread, ms", ylabel="accuracy")
    panels[0, 0].legend()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
