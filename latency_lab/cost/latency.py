"""Milliseconds on a device: the chord for gradients, the staircase for budgets, and an estimate that says what it
knows and what it does not."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy

from latency_lab.cost.base import OpCost
from latency_lab.cost.counts import presence_of
from latency_lab.cost.estimate import Estimate, OpEstimate
from latency_lab.cost.formula import Excess, OpSum
from latency_lab.cost.grid import Grids
from latency_lab.cost.roofline import roofline_terms
from latency_lab.cost.terms import Polynomial, Terms, Values
from latency_lab.errors import OutOfBoundsError, UsageError
from latency_lab.ops import OpConfig
from latency_lab.profiles.fusions import INPUT_TRANSPOSE, Kernel, as_run, fuse
from latency_lab.profiles.layout import with_reorders

if TYPE_CHECKING:
    from latency_lab.graph import ChannelGraph, Unknown
    from latency_lab.profiles import DeviceProfile, OpPrediction

UNKNOWN = frozenset({"extrapolated", "bounded"})


class _Part(NamedTuple):
    """A kernel at some channels: alone, where that is known from, and with its share of the network's correction."""

    latency_ms: float
    source: str
    in_network_ms: float
    warm_bytes: float = 0.0


class LatencyCost(OpCost):
    """Latency of a network on the device of a profile, in ms.

        latency(w) = sum_k (a_g(k) * grid_k(in_k(w), out_k(w)) + b) + c * max(0, sum_k warm_bytes_k(w) - cached)

    over the kernels that the runtime makes of the network's ops. `value` and `gradient` read the chord of each
    kernel's grid; `at` and `estimate` read the staircase, the profile's own prediction at whole channels. An analytic
    profile is evaluated in closed form: sum_i max(FLOPs/peak, bytes/bandwidth), nothing fused. A layer that the graph
    has no op for is bounded by its tensors at the device's bandwidth. The kernels are those of the network with all
    channels: where the runtime has a blocked layout (`profile.layout_block`), widths that cannot be blocked get
    reorders that `at` does not know, and `LatencyCost(ChannelGraph.from_model(slim), profile)` does.

    Args:
        graph: of the model.
        profile: of the device.
        out_of_bounds: "bound" takes what the profile extrapolates or bounds by a roofline, and lists it; "raise"
            refuses it.

    Raises:
        OutOfBoundsError: with "raise", an op lies outside of what was measured, or a layer has no op.

    Example:
        >>> from latency_lab.cost import LatencyCost
        >>> def milliseconds(graph, profile):
        ...     return LatencyCost(graph, profile).estimate().latency_ms
    """

    def __init__(
        self, graph: ChannelGraph, profile: DeviceProfile, out_of_bounds: Literal["bound", "raise"] = "bound"
    ) -> None:
        if out_of_bounds not in {"bound", "raise"}:
            raise UsageError(
                f"Invalid value for argument `out_of_bounds`. Expected 'bound' or 'raise'. Received: {out_of_bounds!r}"
            )
        self.profile = profile
        self.out_of_bounds = out_of_bounds
        self._kernels = kernels_of_graph(graph, profile)
        self._known: dict[tuple[int, int, int], _Part] = {}
        self._unknown_ms = {u.name: _bound_ms(u, profile) for u in graph.unknown}
        names = [_name(graph, kernel) for kernel in self._kernels]
        terms = _terms([kernel.op for kernel in self._kernels], profile)
        there = presence_of(graph, [kernel.main for kernel in self._kernels])
        unknown_ms, memory = sum(self._unknown_ms.values()), _memory([kernel.op for kernel in self._kernels], profile)
        formula = OpSum(terms, *_maps(graph, self._kernels), unknown_ms, there, memory)
        super().__init__(graph, "ms", formula, tuple(names), None if profile.kind == "analytic" else self._staircase)
        if out_of_bounds == "raise":
            self._refuse_unknown()
            self.at()

    def estimate(self, widths: Any = None) -> Estimate:
        """Latency with an interval, and what each kernel adds.

        Args:
            widths: whole channels of each group, [groups] or by name; None: all.
        """
        found = numpy.asarray(self.as_widths(widths, numpy), float)
        if vanished := self.graph.vanished(found):
            return self._without(vanished).estimate(found)
        if self.profile.kind == "analytic":
            parts = [_Part(float(latency_ms), "analytic", 0.0) for latency_ms in self.per_op(found)[0]]
        else:
            parts = self._parts(found)
        rows = zip(self.ops, self._kernels, parts, strict=True)
        ops = [OpEstimate(name, kernel.op.kind, part.latency_ms, part.source) for name, kernel, part in rows]
        ops += [OpEstimate(u.name, u.layer_class, self._unknown_ms[u.name], "bounded") for u in self.graph.unknown]
        latency_ms = self.at(found)
        return Estimate(latency_ms, *self._interval(latency_ms), tuple(ops), _uncovered(ops), self.profile.name)

    def _of(self, graph: ChannelGraph) -> LatencyCost:
        return LatencyCost(graph, self.profile, self.out_of_bounds)

    def _without(self, vanished: frozenset[int]) -> LatencyCost:
        found = super()._without(vanished)
        assert isinstance(found, LatencyCost)
        return found

    def _staircase(self, widths: numpy.ndarray) -> float:
        parts = self._parts(widths)
        warm_bytes = [part.warm_bytes for part in parts]
        kernels_ms = sum(part.in_network_ms for part in parts)
        return kernels_ms + self.profile.network.memory_ms(warm_bytes) + self.formula.constant

    def _parts(self, widths: numpy.ndarray) -> list[_Part]:
        """Each kernel at whole widths; the profile is asked once for each kernel and its channels."""
        formula = self.formula
        ins = numpy.rint(formula.in_map @ widths + formula.in_const).astype(int)
        outs = numpy.rint(formula.out_map @ widths + formula.out_const).astype(int)
        keys = list(zip(range(len(ins)), ins.tolist(), outs.tolist(), strict=True))
        fresh = [key for key in keys if key not in self._known]
        if fresh:
            ops = [self._kernels[k].op.with_channels(max(i, 1), max(o, 1)) for k, i, o in fresh]
            predictions = self.profile.predict(ops)
            if self.out_of_bounds == "raise":
                self._refuse([self.ops[k] for k, _, _ in fresh], ops, predictions)
            for key, op, found in zip(fresh, ops, predictions, strict=True):
                in_network_ms = float(self.profile.network.per_kernel_ms(op, found.latency_ms))
                warm_bytes = self.profile.network.warm_bytes(op)
                self._known[key] = _Part(found.latency_ms, found.source, in_network_ms, warm_bytes)
        return [self._known[key] for key in keys]

    def _refuse_unknown(self) -> None:
        for layer in self.graph.unknown:
            raise OutOfBoundsError(
                f"{layer.name} ({layer.layer_class}) is no operation that a profile knows: its latency can be bounded "
                'alone, with out_of_bounds="bound".'
            )

    def _refuse(self, names: Sequence[str], ops: Sequence[OpConfig], predictions: Sequence[OpPrediction]) -> None:
        for name, op, prediction in zip(names, ops, predictions, strict=True):
            if prediction.source in UNKNOWN:
                raise OutOfBoundsError(
                    f"{name} ({op.key}) lies outside of what profile {self.profile.name!r} measured "
                    f"({prediction.source}). Profile the model itself (latency-lab profile --model), "
                    'or take the bound with out_of_bounds="bound".'
                )

    def _interval(self, latency_ms: float) -> tuple[tuple[float, float], str]:
        if self.profile.kind == "analytic":
            return (latency_ms, latency_ms), "none: analytic"
        half = self.profile.network.half_width
        return (latency_ms * (1 - half), latency_ms * (1 + half)), "conformal over whole networks, 90 %"


def kernels_of_graph(graph: ChannelGraph, profile: DeviceProfile) -> tuple[Kernel, ...]:
    """What the device's runtime executes: merged operations, and the reorders between them."""
    exported = graph.source == "keras"  # a file has the transposes of its inputs among its operations
    rules = profile.fusions if exported else profile.fusions - {INPUT_TRANSPOSE}
    network = as_run(graph.network(), profile.fusions, profile.precision, exported)
    return with_reorders(fuse(network, rules), profile.layout_block, exported=exported)


def _maps(
    graph: ChannelGraph, kernels: Sequence[Kernel]
) -> tuple[numpy.ndarray, numpy.ndarray, numpy.ndarray, numpy.ndarray]:
    """`in_map`, `in_const`, `out_map`, `out_const` of kernels, [kernels, groups] and [kernels]."""
    main = [kernel.main for kernel in kernels]
    ins, outs = (graph.in_map[main], graph.in_const[main]), (graph.out_map[main], graph.out_const[main])
    for k, kernel in enumerate(kernels):
        if not kernel.nodes:  # it moves one tensor: what its node reads from outside, or what its node makes
            source = kernel.inputs[0]
            while source >= 0 and not kernels[source].nodes:
                source = kernels[source].inputs[0]
            moved = ins if source < 0 else outs
            for target in (ins, outs):
                target[0][k], target[1][k] = moved[0][k], moved[1][k]
    return (*ins, *outs)


def _name(graph: ChannelGraph, kernel: Kernel) -> str:
    names = " + ".join(graph.nodes[i].name for i in kernel.nodes)
    return names or f"{kernel.op.kind} at {graph.nodes[kernel.main].name}"


def _bound_ms(unknown: Unknown, profile: DeviceProfile) -> float:
    """A layer without an op: its tensors at the bandwidth."""
    return (unknown.input_bytes + unknown.output_bytes) / profile.roofline.bandwidth_gb_s * 1e-6


def _uncovered(ops: Sequence[OpEstimate]) -> tuple[str, ...]:
    return tuple(f"{op.name} ({op.kind}): {_REASONS[op.source]}" for op in ops if op.source in _REASONS)


_REASONS = {
    "bounded": "not measured, bounded by the roofline",
    "extrapolated": "outside of what was measured",
}


class _Chord:
    """The grids of kernels as they count inside of a network, made when they are first asked for: most estimates read
    the staircase alone."""

    def __init__(self, ops: Sequence[OpConfig], profile: DeviceProfile) -> None:
        self._ops, self._profile = ops, profile

    @cached_property
    def grids(self) -> Grids:
        tables = {op: self._profile.grid(op) for op in dict.fromkeys(self._ops)}
        network = self._profile.network
        found = [(op, tables[op]) for op in self._ops]
        return Grids.of(
            [(grid.in_knots, grid.out_knots, network.per_kernel_ms(op, grid.values_ms)) for op, grid in found]
        )

    def __call__(self, x_in: Any, x_out: Any, xp: Any) -> Values:
        """Value and slopes of each op."""
        return self.grids(x_in, x_out, xp)

    def to_json(self) -> dict[str, Any]:
        """JSON values that `terms_from_json` reads."""
        return self.grids.to_json()


def _terms(ops: Sequence[OpConfig], profile: DeviceProfile) -> Terms:
    if profile.kind == "analytic":
        return roofline_terms(ops, profile.roofline.peak_gflops, profile.roofline.bandwidth_gb_s)
    return _Chord(ops, profile)


def _memory(ops: Sequence[OpConfig], profile: DeviceProfile) -> Excess | None:
    """Weights that lone kernels found in a cache, beyond what a cache keeps of the whole network's."""
    network = profile.network
    if profile.kind == "analytic" or not network.c_ms_per_byte:
        return None
    weights = Polynomial.of(ops, lambda op: network.price(op) * op.weight_bytes)
    bounds = [network.most_warm(op) for op in ops]
    most = [b if numpy.isinf(b) else network.price(op) * b for op, b in zip(ops, bounds, strict=True)]  # no 0 * inf
    return Excess(weights, network.c_ms_per_byte, network.cached_bytes, numpy.array(most))
