"""What the three regularizers share: weights in, widths out, paid for in the unit of any cost."""

from __future__ import annotations

import dataclasses
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import keras
import numpy as np
import numpy.typing as npt
from keras import ops

from latency_lab import budget
from latency_lab.cost import Cost
from latency_lab.cost.formula import Formula
from latency_lab.errors import StructureError, UsageError
from latency_lab.graph import ChannelGraph
from latency_lab.graph.keras_walk import before_last, copy_layer, copy_weights, fresh_inputs, rebuild, wiring
from latency_lab.knapsack import best_widths
from latency_lab.structure import Structure
from regularizers.control import BudgetCallback, BudgetControl, SteeredPenalty
from regularizers.monitor import OpennessHistograms, StructureLog

LOGGER = logging.getLogger(__name__)

FAR = 1.1
"""Times the budget. Training that ends further from it has not said which channels go; a threshold takes the least
open, whatever they cost: whole groups for next to nothing."""


class Regularizer(ABC):
    """Learns widths by making channels pay for what they cost.

    Args:
        cost: what budgets, logs and structures read, and what is paid for; bound to the graph of the model.
        strength: constant, in units of 1/initial cost: 1.0 charges a network of all channels a loss of 1. "auto": as
            much as the task's own loss over the first steps, which pay nothing; beside a budget, the unit in which the
            control steers, for losses that are far from 1.
        target: a budget, as a share of the initial cost, in (0, 1].
        target_ms: a budget in ms, of a cost in ms.
        control: of the strength under a budget, with any target: the budget's takes its place. None: the class's own.
        every: batches between two readings of the budget; None: a hundredth of the training, 1 to 10.
        depth: whether a branch may close whole, residual or parallel, and leave the network; else a channel of each
            group always stays.
        paid: what is paid for in training where that is not the cost: `LogisticSigmoid(latency, target_ms=5,
            paid=flops)`.

    Raises:
        UsageError: not exactly one of strength, target and target_ms ("auto" may stand beside a target); or the price
            is no finite number, of which one step would make all weights NaN.
        StructureError: `paid` is bound to another graph.
        BudgetError: the budget cannot be reached.
    """

    threshold: float
    """A channel is open where its openness is larger."""

    horizon: int = 20
    """Steps that readings of a budget look ahead: what Adam's averages carry on with by themselves."""

    def __init__(
        self,
        cost: Cost,
        *,
        strength: float | Literal["auto"] | None = None,
        target: float | None = None,
        target_ms: float | None = None,
        control: BudgetControl | None = None,
        every: int | None = None,
        depth: bool = False,
        paid: Cost | None = None,
    ) -> None:
        self.auto = strength == "auto"
        constant = _constant(strength, target, target_ms)
        self._constant = None if self.auto else constant
        self.cost = cost
        self.paid = cost if paid is None else paid
        if self.paid.graph.digest != cost.graph.digest:
            raise StructureError(
                f"`paid` was made for another model: it has the graph {self.paid.graph.digest}, and `cost` has "
                f"{cost.graph.digest}. Bind both to one ChannelGraph."
            )
        _check_finite(self.paid)
        self.initial = cost.at()
        self.every = every
        self.vanishing = [g for g, group in enumerate(cost.graph.groups) if depth and group.can_vanish]
        self.lowest = np.ones(len(cost.graph.groups), np.int64)
        self.lowest[self.vanishing] = 0
        self.budget: float | None = None
        if constant is None:
            self.budget = budget.limit(cost, target, target_ms)
            budget.check_reachable(cost, self.budget, self.lowest)
        self.control = self._control(control) if self.budget is not None else None
        self._start = self.control.start if self.control else float(constant or 0.0)
        self._model: Any = None
        self._history: list[dict[str, Any]] = []
        self._reported: set[str] = set()

    # ---- attaching --------------------------------------------------------------------------------------------

    def attach(self, model: Any) -> Any:
        """A copy of a model that pays for its channels while it trains.

        Args:
            model: functional or built Sequential Keras model, the one of the cost's graph. It is not changed.

        Returns:
            A functional Keras model with the same weights, layer names and output names, not compiled. Compile and fit
            it as ever, with `callbacks()`. Nested models are opened: an output that one of them makes goes by the name
            of the layer in it.

        Raises:
            StructureError: the cost was made for another model.
        """
        graph = self._graph_of(model)
        penalty = SteeredPenalty(
            self.paid.formula.to_json(),
            [group.size for group in graph.groups],
            float(self.paid.value(None)),
            self._start,
            self._price_threshold,
            self.lowest.tolist(),
            name="penalty",
        )
        self._take_up(self._with_openness(model, graph, penalty))
        return self._model

    def bind(self, model: Any) -> None:
        """Takes up a model that `attach` made: one that was saved and loaded goes on training after this.

        It pays this regularizer's constant `strength` from now on; under a budget, or with "auto", the model's own.

        Raises:
            UsageError: the model has no penalty of this regularizer, or one of another price or `depth`.
            StructureError: the cost was made for another model.
        """
        missing = [name for name in ("penalty", self._source) if name not in {layer.name for layer in model.layers}]
        if missing:
            raise UsageError(
                f"Model {model.name!r} has no layer {missing[0]!r}: it was not made by {type(self).__name__}.attach()."
            )
        self._graph_of(model)
        self._check(model.get_layer("penalty"))
        self._take_up(model)
        if self._constant is not None:
            self.set_strength(self._constant)

    def _graph_of(self, model: Any) -> ChannelGraph:
        graph = ChannelGraph.from_model(model)
        if graph.digest != self.cost.graph.digest:
            raise StructureError(
                f"The cost was made for another model: it has the graph {self.cost.graph.digest}, and model "
                f"{getattr(model, 'name', model)!r} has {graph.digest}. Make the cost from "
                "ChannelGraph.from_model(model)."
            )
        return graph

    def _check(self, penalty: Any) -> None:
        """Refuses a penalty that charges something else than this regularizer would."""
        if penalty.lowest != self.lowest.tolist():
            raise UsageError(
                f"The model was attached with depth={0 in penalty.lowest}. Received: a regularizer with "
                f"depth={bool(self.vanishing)}. Make the regularizer with the same `depth`."
            )
        if not same_price(penalty.formula, self.paid.formula, self.paid.graph.full_widths):
            raise UsageError(
                f"The model pays another price than this regularizer's in {self.paid.unit}: its penalty was made with "
                "another cost, or another profile. Give that cost, as `paid=` where budgets and structures are to read "
                "this one; or attach() anew."
            )

    def _take_up(self, model: Any) -> None:
        source = model.get_layer(self._source)
        if hasattr(source, "bind"):
            source.bind(model)
        self._model = model

    def callbacks(
        self,
        *,
        structures: str | Path | None = None,
        every: int | None = None,
        epochs: int = 1,
        histograms: str | Path | None = None,
    ) -> list[Any]:
        """For `fit`, before its other callbacks: logs of cost, channels and strength, and the control of a budget.

        Args:
            structures: a file of JSON Lines, to which `structure()` is written while the network trains.
            every: steps between two of its lines; None: they come at the ends of epochs.
            epochs: between two of its lines, with `every` None.
            histograms: a directory, to which histograms of openness are written for TensorBoard each epoch.
        """
        clock = BudgetCallback(self, self.control, self.every)
        found: list[Any] = [clock]
        if structures is not None:
            found.append(StructureLog(self, clock, structures, every, epochs))
        if histograms is not None:
            found.append(OpennessHistograms(self, clock, histograms))
        return found

    def begin(self, steps: int | None) -> None:
        """Called by the callback before training, with the number of steps ahead; None: nobody knows."""
        LOGGER.debug("%s: %s steps ahead", type(self).__name__, steps)

    # ---- reading ----------------------------------------------------------------------------------------------

    def openness(self) -> npt.NDArray[np.float64]:
        """How open each channel is now, [slots]."""
        return np.array(ops.convert_to_numpy(self._attached().get_layer(self._source).openness()), float)

    def latest_openness(self) -> npt.NDArray[np.float64]:
        """`openness()` for readings in the middle of a training, which may be a step old: [slots]."""
        return self.openness()

    def alive(self) -> dict[str, npt.NDArray[np.bool_]]:
        """Which channels of each group are open now: [size] a group; the most open one is, but of one that vanishes."""
        graph = self.cost.graph
        mask = budget.mask_of(self.cost, self.openness(), self.widths()).astype(bool)
        spans = zip(graph.groups, graph.offsets, strict=False)
        return {group.name: mask[start : start + group.size] for group, start in spans}

    def widths(self, openness: npt.ArrayLike | None = None) -> npt.NDArray[np.int64]:
        """Open channels of each group, [groups], at least 1 (0 where a branch vanishes, with `depth`).

        Args:
            openness: [slots]; None: that of now.
        """
        found = self.openness() if openness is None else openness
        return budget.widths_above(self.cost, found, self.threshold, self.lowest)

    def structure(self) -> Structure:
        """What training found, snapped to the device's steps.

        Under a budget: the lowest threshold on openness, one for all groups, with which the structure meets it; where
        the open channels cost far more than it (`FAR`), those that are worth most within it (`_within`). At a constant
        strength: the open channels.

        Raises:
            BudgetError: the budget cannot be reached.
            UsageError: training diverged: how open a channel is has become NaN.
        """
        openness = self.openness()
        if undefined := int(np.isnan(openness).sum()):
            raise UsageError(
                f"Training diverged: the openness of {undefined} of {len(openness)} channels is NaN in model "
                f"{self._model.name!r}, which has no structure to read. Train anew from the last good weights, at a "
                "lower learning rate, or with gradients clipped (clipnorm=)."
            )
        if self.budget is not None:
            widths = self._within(openness, self.budget)
        else:
            lowest = budget.widths_above(self.cost, openness, np.finfo(float).max, self.lowest)
            widths = budget.snap(self.cost, self.widths(), lowest)
        mask = budget.mask_of(self.cost, openness, widths)
        return Structure.from_mask(self.cost.graph, mask, self._provenance(widths))

    def _within(self, openness: npt.NDArray[np.float64], most: float) -> npt.NDArray[np.int64]:
        """Widths that cost at most this, [groups], by the openness of channels, [slots].

        Near it, by one threshold; far from it, by a knapsack of the channels that training left open:

            maximise  sum_g sum_{k <= width_g} openness_gk * size_g / k      openness_g1 >= openness_g2 >= ...

        The k-th most open channel of a group is worth 1/k: by openness alone a group whose channels cost much would be
        closed down to its last one.
        """
        graph = self.cost.graph
        if self.cost.at(self.widths(openness)) <= FAR * most:
            return budget.fit(self.cost, openness, most, self.lowest)
        lowest = budget.widths_above(self.cost, openness, np.finfo(float).max, self.lowest)
        budget.check_reachable(self.cost, most, lowest)
        open_ = np.isfinite(openness) & (openness > self.threshold)  # those without end are among the lowest
        worth = np.where(open_, openness, 0.0)
        for group, start in zip(graph.groups, graph.offsets, strict=False):
            order = start + np.argsort(-worth[start : start + group.size], kind="stable")
            worth[order] *= group.size / np.arange(1, group.size + 1)
        return budget.fill(self.cost, best_widths(self.cost, worth, most, lowest), most, lowest)

    def history(self) -> list[dict[str, Any]]:
        """What the last training went through, a dict a reading, as JSON values.

        Each has step, epoch, cost (of the open channels, `cost.at`), share (of the initial cost), strength (from then
        on), channels (of each group, by name) and collapsed (names of groups down to their last channel).
        """
        return [{**record, "channels": dict(record["channels"])} for record in self._history]

    def collapsed(self, widths: npt.ArrayLike | None = None) -> list[str]:
        """Names of the groups that are down to their last channel, and had more; None: at the widths of now."""
        found = np.asarray(self.widths() if widths is None else widths)
        return [
            group.name for group, width in zip(self.cost.graph.groups, found, strict=True) if width == 1 < group.size
        ]

    @property
    def strength(self) -> float:
        """Of the penalty now."""
        return float(ops.convert_to_numpy(self._attached().get_layer("penalty").strength))

    def set_strength(self, value: float) -> None:
        """Sets the strength of the penalty."""
        self._attached().get_layer("penalty").strength.assign(value)

    @property
    def log_name(self) -> str:
        """Name of the cost in the logs: "latency_ms", or the unit."""
        return "latency_ms" if self.cost.unit == "ms" else self.cost.unit.lower().replace(" ", "_")

    # ---- for the callback --------------------------------------------------------------------------------------

    def record(self, step: int, epoch: int, openness: npt.ArrayLike | None = None) -> dict[str, Any]:
        """A reading for the history, at an openness [slots] or that of now; a group that collapsed is warned of
        (logging), once."""
        widths = self.widths(openness)
        cost, collapsed = self.cost.at(widths), self.collapsed(widths)
        names = [group.name for group in self.cost.graph.groups]
        channels = dict(zip(names, widths.tolist(), strict=True))
        found = {
            "step": step,
            "epoch": epoch,
            "cost": cost,
            "share": cost / self.initial,
            "strength": self.strength,
            "channels": channels,
            "collapsed": collapsed,
        }
        if self._history and self._history[-1]["step"] == step:
            self._history.pop()
        self._history.append(found)
        if fresh := sorted(set(collapsed) - self._reported):
            self._reported.update(fresh)
            LOGGER.warning(
                "%s: down to the last channel at step %d: %s. The network may not get over it: aim higher, or lower "
                "the learning rate.",
                *(type(self).__name__, step, ", ".join(fresh)),
            )
        return found

    def forget_history(self) -> None:
        """A new training begins."""
        self._history.clear()
        self._reported.clear()

    def control_state(self) -> tuple[float, float, float, float]:
        """What the penalty keeps: unit of the strength; origin, progress and integral of the control."""
        unit, origin, progress, integral = ops.convert_to_numpy(self._attached().get_layer("penalty").control).tolist()
        return unit, origin, progress, integral

    def set_control_state(self, state: Sequence[float]) -> None:
        """Has the penalty keep it."""
        self._attached().get_layer("penalty").control.assign(np.array(state, np.float32))

    def unit(self) -> float:
        """The strength, beside that of its unit, at which a typical channel pays its whole price."""
        return 1.0

    def undecayed(self) -> list[Any]:
        """Variables that say how open channels are and nothing else: logits of gates, scales of batch norms."""
        model = self._attached()
        source = model.get_layer(self._source)
        scales = [model.get_layer(name).gamma for name in source.slots] if getattr(source, "of", "") == "gamma" else []
        return [*source.trainable_variables, *scales]

    # ---- for each regularizer ---------------------------------------------------------------------------------

    _default_control = BudgetControl(1.0)
    """Ended within 5 % of targets from 0.3 to 0.7 on small networks, at 190 to 1350 steps of Adam at 1e-3 to 2e-3."""

    _source: str
    """Name of the layer that has the openness."""

    @property
    def _price_threshold(self) -> float | None:
        """Threshold of the linearised loss; None: the cost of expected widths is paid."""
        return self.threshold

    @abstractmethod
    def _with_openness(self, model: Any, graph: ChannelGraph, penalty: Any) -> Any:
        """A copy of the model in which the penalty is fed the openness, before the last layer."""

    def _control(self, given: BudgetControl | None) -> BudgetControl:
        target = (self.budget or self.initial) / self.initial
        return dataclasses.replace(given or self._default_control, target=target)

    def _attached(self) -> Any:
        if self._model is None:
            raise UsageError(f"{type(self).__name__} is attached to no model. Call attach(model) or bind(model) first.")
        if keras.backend.backend() == "jax":
            self._model.jax_state_sync()  # within an epoch of `fit`, variables are empty until then
        return self._model

    def _provenance(self, widths: npt.NDArray[np.int64]) -> Mapping[str, Any]:
        profile = getattr(self.cost, "profile", None)
        found = {
            "regularizer": type(self).__name__,
            "unit": self.cost.unit,
            "cost_before": self.initial,
            "cost_after": self.cost.at(widths),
            "cost_thresholded": self.cost.at(self.widths()),
            "budget": self.budget,
            "strength": self.strength,
            "collapsed": self.collapsed(widths),
        }
        if self.paid is not self.cost:
            found["paid_unit"] = self.paid.unit
        return found if profile is None else {**found, "profile": profile.name, "profile_digest": profile.digest}


def _check_finite(paid: Cost) -> None:
    """Refuses a cost that has no finite value or slope at all channels or at half of them."""
    for share in (1.0, 0.5):
        widths = np.maximum(share * np.asarray(paid.graph.full_widths, float), 1.0)
        value, slopes = paid.formula.value_and_gradient(widths, np)
        if not (np.isfinite(value) and np.isfinite(slopes).all()):
            raise UsageError(
                f"The cost in {paid.unit} is {value} at {share:g} of all channels, and its slopes "
                f"{np.array2string(np.asarray(slopes), threshold=4)}. Expected finite numbers: look for a factor or a "
                "figure of the profile that is infinite or NaN."
            )


def same_price(one: Formula, other: Formula, full: npt.NDArray[np.float64]) -> bool:
    """Whether two costs are the same function of widths: values and slopes at some shares of all channels [groups]."""

    def numbers(formula: Formula, share: float) -> npt.NDArray[np.float64]:
        value, gradient = formula.value_and_gradient(share * full, np)
        return np.append(gradient * full, value)

    pairs = [(numbers(one, share), numbers(other, share)) for share in (1.0, 0.6, 0.3)]
    return all(np.allclose(left, right, rtol=1e-5, atol=1e-6 * abs(left[-1])) for left, right in pairs)


def _constant(strength: Any, target: float | None, target_ms: float | None) -> float | None:
    """The constant strength; None: there is a budget."""
    given = {"strength": strength, "target": target, "target_ms": target_ms}
    budgets = (target is not None) + (target_ms is not None)
    if budgets > 1 or budgets + (strength is not None) != 1 and strength != "auto":
        raise UsageError(
            "Expected exactly one of `strength`, `target` and `target_ms` "
            f"(strength='auto' may stand beside a target). Received: {given}"
        )
    if budgets:
        return None
    if isinstance(strength, str):
        if strength != "auto":
            raise UsageError(
                f"Invalid value for argument `strength`. Expected a number or 'auto'. Received: strength={strength!r}"
            )
        return 1.0
    return float(strength)


def copied(model: Any, last: Callable[[Any], Any] | None = None) -> Any:
    """A functional copy of a model: the same layer names and weights, nested models opened, gates left out.

    Args:
        model: a Keras model; it is not changed.
        last: what the last layer reads, given the tensor that it would read; None: that tensor.
    """
    wired = wiring(model)
    result = rebuild(wired, fresh_inputs(wired), copy_layer, before_last(wired, last) if last else None)
    copy_weights(wired, result)
    return result
