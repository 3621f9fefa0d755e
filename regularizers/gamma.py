"""Gamma: the scale of a batch norm says how open its channel is."""

from __future__ import annotations

from typing import Any

import keras

from latency_lab.cost import Cost
from latency_lab.errors import UnsupportedModelError
from latency_lab.graph import ChannelGraph
from latency_lab.graph.keras_walk import wiring
from regularizers.base import copied
from regularizers.openness import Combine, WeightOpenness
from regularizers.weights import WeightRegularizer


class Gamma(WeightRegularizer):
    """Channels pay by the size of their batch norm scale.

        loss = strength * sum_g p_g * sum_c max over members |gamma_c| / initial cost

    p_g is d cost / d width_g at the channels that are open now, with no gradient through it. The members of a group
    are the batch norms that its channels pass through. A group without one, or with a frozen one (trainable=False),
    pays nothing and stays whole: it is in `unregularized` (and in a log message).

    Args:
        cost: what is paid for, bound to the graph of the model.
        strength, target, target_ms: exactly one; see `Regularizer`.
        threshold: a channel is open where |gamma| is larger.
        group: how members combine: "max" or "l2".
        **options: `control`, `every`, `depth` of `Regularizer`.

    With Adam a scale moves by at most a learning rate a step, so closing it from 1 takes 1 / learning rate steps: train
    for 2000 steps at 1e-3, or 400 at 5e-3.

    Raises:
        UnsupportedModelError: on attaching: a batch norm has scale=False, no group has a batch norm, or all are frozen.

    Example:
        >>> from regularizers import Gamma
        >>> def attach(model, cost):
        ...     return Gamma(cost, target_ms=5.0).attach(model)

    Source: A. Gordon et al., "MorphNet", arXiv 1711.06798.
    """

    _reads = "batch norm"

    def __init__(
        self,
        cost: Cost,
        *,
        strength: float | None = None,
        target: float | None = None,
        target_ms: float | None = None,
        threshold: float = 1e-2,
        group: Combine = "max",
        **options: Any,
    ) -> None:
        super().__init__(cost, strength=strength, target=target, target_ms=target_ms, **options)
        self.threshold = threshold
        self.group: Combine = group

    def _with_openness(self, model: Any, graph: ChannelGraph, penalty: Any) -> Any:
        layers = {call.name: call.layer for call in wiring(model).calls}
        norms = {name: layer for name, layer in layers.items() if isinstance(layer, keras.layers.BatchNormalization)}
        members = self._members(graph, norms)
        flat = [name for name in members if norms[name].gamma is None]
        if flat:
            raise UnsupportedModelError(
                f"Gamma reads the scale of batch norms, and {', '.join(flat)} of model {model.name!r} has scale=False. "
                "Build the model with scale=True, or use LogisticSigmoid or GroupLasso."
            )
        if not members:
            raise UnsupportedModelError(
                f"Gamma reads the scale of batch norms, and no channel group of model {model.name!r} passes through "
                "one. Use LogisticSigmoid or GroupLasso."
            )
        source = WeightOpenness(members, graph.slots, "gamma", combine=self.group, name=self._source)
        return copied(model, lambda tensor: penalty([tensor, source(tensor)]))
