"""LogisticSigmoid: a learned gate a channel, that pays for the widths to expect."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from keras import ops

from latency_lab.cost import Cost
from latency_lab.gates import insert_masks
from latency_lab.graph import ChannelGraph
from regularizers.base import Regularizer
from regularizers.openness import PricedGates


class LogisticSigmoid(Regularizer):
    """One logit a channel; the mask is drawn once a step; the loss is the cost of the expected widths.

        gate    = sigmoid((logit + logistic noise) / temperature), straight-through 0/1
        width_g = sum_c sigmoid(logit_gc)
        loss    = strength * cost(width) / initial cost

    A channel is open where its logit is above 0. Works on every architecture, with or without batch norm.

    Args:
        cost: what is paid for, bound to the graph of the model.
        strength, target, target_ms: exactly one; see `Regularizer`.
        temperature: of the gates.
        scale: how much faster logits move than weights: logit = 2.5 + scale * weight.
        seed: of the noise.
        **options: `control`, `every`, `depth` of `Regularizer`.

    Example:
        >>> from regularizers import LogisticSigmoid
        >>> def learn(model, cost, data):
        ...     regularizer = LogisticSigmoid(cost, target=0.5)
        ...     gated = regularizer.attach(model)
        ...     gated.compile("adam", "sparse_categorical_crossentropy")
        ...     gated.fit(data, callbacks=regularizer.callbacks())
        ...     return regularizer.structure()

    Source: FiGS, arXiv 2006.09581.
    """

    threshold = 0.0
    _source = "gates"

    def __init__(
        self,
        cost: Cost,
        *,
        strength: float | None = None,
        target: float | None = None,
        target_ms: float | None = None,
        temperature: float = 0.66,
        scale: float = 30.0,
        seed: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__(cost, strength=strength, target=target, target_ms=target_ms, **options)
        self.temperature = temperature
        self.scale = scale
        self.seed = seed

    @property
    def _price_threshold(self) -> None:
        return None

    def openness(self) -> npt.NDArray[np.float64]:
        """The logit of each channel, [slots]."""
        return np.array(ops.convert_to_numpy(self._attached().get_layer(self._source).open_logits()), float)

    def _with_openness(self, model: Any, graph: ChannelGraph, penalty: Any) -> Any:
        sizes = [group.size for group in graph.groups]
        gates = PricedGates(
            sizes,
            scale=self.scale,
            temperature=self.temperature,
            seed=self.seed,
            vanishing=self.vanishing,
            name=self._source,
        )
        made: list[Any] = []

        def mask(anchor: Any) -> Any:
            made.extend(gates(anchor))
            return made[0]

        def pay(tensor: Any) -> Any:
            return penalty([tensor, made[1]])

        return insert_masks(model, graph, mask, vanishing=bool(self.vanishing), last=pay)
