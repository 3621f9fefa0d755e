"""What the three regularizers share: weights in, widths out, paid for in the unit of any cost."""

from __future__ import annotations

import dataclasses
import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
from keras import ops

from latency_lab import budget
from latency_lab.cost import Cost
from latency_lab.errors import StructureError, UsageError
from latency_lab.graph import ChannelGraph
from latency_lab.graph.keras_walk import copy_layer, copy_weights, fresh_inputs, rebuild, wiring
from latency_lab.structure import Structure
from regularizers.control import BudgetCallback, BudgetControl
from regularizers.penalty import Penalty

LOGGER = logging.getLogger(__name__)


class Regularizer(ABC):
    """Learns widths by making channels pay for what they cost.

    Args:
        cost: what is paid for, bound to the graph of the model.
        strength: constant, in units of 1/initial cost: 1.0 charges a network of all channels a loss of 1.
        target: a budget, as a share of the initial cost, in (0, 1].
        target_ms: a budget in ms, of a cost in ms.
        control: of the strength under a budget, with any target: the budget's takes its place. None: the class's own.
        every: batches between two readings of the budget; None: a hundredth of the training, 1 to 10.
        depth: whether a branch may close whole, residual or parallel, and leave the network; else a channel of each
            group always stays.

    Raises:
        UsageError: not exactly one of strength, target and target_ms.
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
        strength: float | None = None,
        target: float | None = None,
        target_ms: float | None = None,
        control: BudgetControl | None = None,
        every: int | None = None,
        depth: bool = False,
    ) -> None:
        given = {"strength": strength, "target": target, "target_ms": target_ms}
        if sum(value is not None for value in given.values()) != 1:
            raise UsageError(f"Expected exactly one of `strength`, `target` and `target_ms`. Received: {given}")
        self.cost = cost
        self.initial = cost.at()
        self.every = every
        self.vanishing = [g for g, group in enumerate(cost.graph.groups) if depth and group.can_vanish]
        self.lowest = np.ones(len(cost.graph.groups), np.int64)
        self.lowest[self.vanishing] = 0
        self.budget: float | None = None
        if strength is None:
            self.budget = budget.limit(cost, target, target_ms)
            budget.check_reachable(cost, self.budget, self.lowest)
        self.control = self._control(control) if self.budget is not None else None
        self._start = self.control.start if self.control else float(strength or 0.0)
        self._model: Any = None

    # ---- attaching --------------------------------------------------------------------------------------------

    def attach(self, model: Any) -> Any:
        """A copy of a model that pays for its channels while it trains.

        Args:
            model: functional or built Sequential Keras model, the one of the cost's graph. It is not changed.

        Returns:
            A functional Keras model with the same weights and layer names, not compiled. Compile and fit it as ever,
            with `callbacks()`.

        Raises:
            StructureError: the cost was made for another model.
        """
        graph = ChannelGraph.from_model(model)
        if graph.digest != self.cost.graph.digest:
            raise StructureError(
                f"The cost was made for another model: it has the graph {self.cost.graph.digest}, and model "
                f"{getattr(model, 'name', model)!r} has {graph.digest}. Make the cost from "
                "ChannelGraph.from_model(model)."
            )
        inner, openness = self._with_openness(model, graph)
        penalty = Penalty(
            self.cost.formula.to_json(),
            [group.size for group in graph.groups],
            float(self.cost.value(None)),
            self._start,
            self._price_threshold,
            self.lowest.tolist(),
            name="penalty",
        )
        outputs = inner.output
        first = keras.tree.flatten(outputs)[0]
        paid = penalty([first, openness])
        outputs = keras.tree.map_structure(lambda tensor: paid if tensor is first else tensor, outputs)
        self.bind(keras.Model(inner.input, outputs, name=inner.name))
        return self._model

    def bind(self, model: Any) -> None:
        """Takes up a model that `attach` made: one that was saved and loaded goes on training after this.

        Raises:
            UsageError: the model has no penalty of this regularizer.
        """
        missing = [name for name in ("penalty", self._source) if name not in {layer.name for layer in model.layers}]
        if missing:
            raise UsageError(
                f"Model {model.name!r} has no layer {missing[0]!r}: it was not made by {type(self).__name__}.attach()."
            )
        source = model.get_layer(self._source)
        if hasattr(source, "bind"):
            source.bind(model)
        self._model = model

    def callbacks(self) -> list[Any]:
        """For `fit`: logs of cost, channels and strength, and the control of a budget."""
        return [BudgetCallback(self, self.control, self.every)]

    def begin(self, steps: int) -> None:
        """Called by the callback before training, with the number of steps ahead."""
        LOGGER.debug("%s: %d steps ahead", type(self).__name__, steps)

    # ---- reading ----------------------------------------------------------------------------------------------

    def openness(self) -> npt.NDArray[np.float64]:
        """How open each channel is now, [slots]."""
        return np.array(ops.convert_to_numpy(self._attached().get_layer(self._source).openness()), float)

    def alive(self) -> dict[str, npt.NDArray[np.bool_]]:
        """Which channels of each group are open now: [size] a group; the most open one is, but of one that vanishes."""
        graph = self.cost.graph
        mask = budget.mask_of(self.cost, self.openness(), self.widths()).astype(bool)
        spans = zip(graph.groups, graph.offsets, strict=False)
        return {group.name: mask[start : start + group.size] for group, start in spans}

    def widths(self) -> npt.NDArray[np.int64]:
        """Open channels of each group now, [groups], at least 1 (0 where a branch vanishes, with `depth`)."""
        return budget.widths_above(self.cost, self.openness(), self.threshold, self.lowest)

    def structure(self) -> Structure:
        """What training found, snapped to the device's steps.

        Under a budget: the lowest threshold on openness, one for all groups, with which the structure meets it. At a
        constant strength: the open channels.

        Raises:
            BudgetError: the budget cannot be reached.
        """
        openness = self.openness()
        if self.budget is not None:
            widths = budget.fit(self.cost, openness, self.budget, self.lowest)
        else:
            lowest = budget.widths_above(self.cost, openness, np.finfo(float).max, self.lowest)
            widths = budget.snap(self.cost, self.widths(), lowest)
        mask = budget.mask_of(self.cost, openness, widths)
        return Structure.from_mask(self.cost.graph, mask, self._provenance(widths))

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
    def _with_openness(self, model: Any, graph: ChannelGraph) -> tuple[Any, Any]:
        """A copy of the model, and its openness as a tensor in it."""

    def _control(self, given: BudgetControl | None) -> BudgetControl:
        target = (self.budget or self.initial) / self.initial
        return dataclasses.replace(given or self._default_control, target=target)

    def _attached(self) -> Any:
        if self._model is None:
            raise UsageError(f"{type(self).__name__} is attached to no model. Call attach(model) or bind(model) first.")
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
        }
        return found if profile is None else {**found, "profile": profile.name, "profile_digest": profile.digest}


class WeightRegularizer(Regularizer):
    """A regularizer of weights that are there anyway: they close no faster than the optimizer moves them."""

    _source = "openness"

    def begin(self, steps: int) -> None:
        """Warns (logging) when Adam cannot close a typical channel in the steps ahead: it moves a weight by at most
        about a learning rate a step."""
        optimizer = self._attached().optimizer
        if self.budget is None or optimizer is None or "adam" not in optimizer.name:
            return
        rate, openness = float(ops.convert_to_numpy(optimizer.learning_rate)), self.openness()
        size = float(np.median(openness[np.isfinite(openness)]))
        if rate * steps < 2 * size:
            LOGGER.warning(
                "%s: the median channel is open by %.2g, and %d steps at a learning rate of %.2g close %.2g at most. "
                "The budget will be met by cutting open channels. Train for %d steps or more, or at a higher rate.",
                *(type(self).__name__, size, steps, rate, rate * steps, math.ceil(round(2 * size / rate, 3))),
            )


def copied(model: Any) -> Any:
    """A functional copy of a model: the same layer names and weights, nested models opened, gates left out."""
    wired = wiring(model)
    result = rebuild(wired, fresh_inputs(wired), copy_layer)
    copy_weights(wired, result)
    return result
