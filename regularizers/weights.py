"""What `Gamma` and `GroupLasso` share: they read weights that are there anyway."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
from keras import ops

from latency_lab import budget
from latency_lab.errors import UnsupportedModelError
from latency_lab.graph import ChannelGraph
from regularizers.base import Regularizer

LOGGER = logging.getLogger(__name__)


class WeightRegularizer(Regularizer):
    """A regularizer of weights that are there anyway: they close no faster than the optimizer moves them."""

    unregularized: tuple[str, ...] = ()
    """Groups without such weights, or with frozen ones, which stay whole."""

    _source = "openness"
    _reads: str
    """What it reads the weights of."""

    def _take_up(self, model: Any) -> None:
        super()._take_up(model)
        self.unregularized = groups_without(self.cost.graph, model.get_layer(self._source).slots.values())

    def _members(self, graph: ChannelGraph, layers: Mapping[str, Any]) -> dict[str, list[int]]:
        """Which of some layers say how open channels are, and of which: slots by name, -1 where it says nothing.

        A frozen layer keeps its channels open as they are: groups that it has part in stay whole, as groups do that
        have none of the layers. Both are named (logging).

        Raises:
            UnsupportedModelError: all of the layers are frozen.
            BudgetError: the groups that are left cannot reach the budget.
        """
        known = graph.layer_channels
        found = {name: known[name].out_ids for name in layers if name in known}
        found = {name: slots for name, slots in found.items() if np.any(slots >= 0)}
        bare = groups_without(graph, found.values())
        group_of = np.append(np.repeat(np.arange(len(graph.groups)), [group.size for group in graph.groups]), -1)
        fixed = [group_of[slots] for name, slots in found.items() if not layers[name].trainable]
        frozen = np.setdiff1d(np.concatenate(fixed), [-1]) if fixed else np.zeros(0, int)
        open_ids = {name: np.where(np.isin(group_of[slots], frozen), -1, slots) for name, slots in found.items()}
        left = {name: slots.tolist() for name, slots in open_ids.items() if np.any(slots >= 0)}
        if found and not left:
            raise UnsupportedModelError(
                f"{type(self).__name__} has nothing to train: each channel group with a {self._reads} has one that is "
                f"frozen (trainable=False), such as {next(n for n in found if not layers[n].trainable)}. Unfreeze the "
                "layers whose channels may close before attach(), or use LogisticSigmoid, whose gates are weights of "
                "their own."
            )
        names = [group.name for group in graph.groups]
        self._leave_whole(f"no {self._reads}", bare)
        self._leave_whole(f"{self._reads} frozen (trainable=False)", [names[g] for g in frozen.tolist()])
        if self.budget is not None and left:
            without = groups_without(graph, left.values())
            whole = [group.size if group.name in without else 0 for group in graph.groups]
            budget.check_reachable(self.cost, self.budget, np.maximum(self.lowest, whole))
        return left

    def _leave_whole(self, why: str, names: Sequence[str]) -> None:
        if names:
            LOGGER.warning("%s: %s, left whole: %s", type(self).__name__, why, ", ".join(names))

    def latest_openness(self) -> npt.NDArray[np.float64]:
        """What the last training step began with, [slots]: what is read in passing goes through no kernels."""
        return self._with_pinned(ops.convert_to_numpy(self._attached().get_layer(self._source).latest))

    def openness(self) -> npt.NDArray[np.float64]:
        """Size of the weights of each channel now, [slots]; infinite in groups that have none and stay whole."""
        return self._with_pinned(super().openness())

    def _with_pinned(self, openness: Any) -> npt.NDArray[np.float64]:
        found = np.array(openness, float)
        for group, start in zip(self.cost.graph.groups, self.cost.graph.offsets.tolist(), strict=False):
            if group.name in self.unregularized:
                found[start : start + group.size] = np.inf
        return found

    def unit(self) -> float:
        """One over the median openness: where that is a kernel's size, it is a few hundredths, and a channel would pay
        as little of its price."""
        return 1.0 / max(self._median_openness(), self.threshold)

    def _median_openness(self) -> float:
        openness = self.openness()
        return float(np.median(openness[np.isfinite(openness)]))

    def _median_size(self) -> float:
        """Of the weights of a channel that is as open as the median."""
        typical = self._attached().get_layer(self._source).typical
        return self._median_openness() * float(np.median(list(typical.values())))

    def begin(self, steps: int | None) -> None:
        """Warns (logging) of layers that were frozen since `attach`, and when Adam cannot close a typical channel in
        the steps ahead: it moves a weight by at most about a learning rate a step."""
        model = self._attached()
        if frozen := [n for n in model.get_layer(self._source).slots if not model.get_layer(n).trainable]:
            LOGGER.warning(
                "%s: frozen (trainable=False) after attach(), so that their channels pay and cannot close: %s. Freeze "
                "layers before attach(), and their groups stay whole.",
                *(type(self).__name__, ", ".join(frozen)),
            )
        optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)  # of a LossScaleOptimizer
        if self.budget is None or steps is None or optimizer is None or "adam" not in optimizer.name:
            return
        rate, size = largest_rate(optimizer, steps), self._median_size()
        if rate * steps < 2 * size:
            enough = f"for {math.ceil(round(2 * size / rate, 3))} steps or more, or " if rate else ""
            LOGGER.warning(
                "%s: the weights of the median channel are %.2g large, and %d steps at a learning rate of up to %.2g "
                "close %.2g at most. The budget will be met by cutting open channels. Train %sat a higher rate.",
                *(type(self).__name__, size, steps, rate, rate * steps, enough),
            )


def groups_without(graph: ChannelGraph, members: Iterable[npt.ArrayLike]) -> tuple[str, ...]:
    """Names of the groups some channel of which is none of the members'.

    Args:
        graph: of the groups.
        members: for each, the slots of its channels; -1: in no group.
    """
    found = np.zeros(graph.slots + 1, bool)
    for slots in members:
        found[np.asarray(slots, int)] = True
    spans = zip(graph.groups, graph.offsets[:-1], graph.offsets[1:], strict=True)
    return tuple(group.name for group, start, end in spans if not found[start:end].all())


def largest_rate(optimizer: Any, steps: int) -> float:
    """The largest learning rate in the steps ahead: of a schedule, in a hundred of them; else that of now."""
    schedule = optimizer._learning_rate
    if not isinstance(schedule, keras.optimizers.schedules.LearningRateSchedule):
        return float(ops.convert_to_numpy(optimizer.learning_rate))
    first = int(ops.convert_to_numpy(optimizer.iterations))
    looked_at = np.unique(np.linspace(first, first + steps, 101).astype(int)).tolist()
    return max(float(ops.convert_to_numpy(schedule(step))) for step in looked_at)
