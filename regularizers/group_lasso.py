"""GroupLasso: the size of the weights that make a channel says how open it is."""

from __future__ import annotations

from typing import Any

import numpy as np
from keras import ops

from latency_lab.cost import Cost
from latency_lab.errors import UnsupportedModelError
from latency_lab.graph import ChannelGraph
from latency_lab.graph.keras_walk import wiring
from regularizers.base import copied
from regularizers.openness import Combine, WeightOpenness, kernel_of, weight_size
from regularizers.weights import WeightRegularizer

_MAKERS = frozenset(
    {
        *(f"Conv{n}D" for n in (1, 2, 3)),
        *(f"{kind}Conv{n}D" for kind in ("Depthwise", "Separable") for n in (1, 2)),
        *("Conv1DTranspose", "Conv2DTranspose", "Dense"),
    }
)


class GroupLasso(WeightRegularizer):
    """Channels pay by the size of the weights that make them; for networks without batch norm.

        s    = (1 - f) * RMS(w) + f * mean |w|     over the weights of a channel, f = l1_fraction
        r    = s / median of s in its layer when attached     (relative=False: r = s)
        loss = strength * sum_g p_g * sum_c max over members r_c / initial cost

    A kernel with many inputs has small weights: by their size alone its channels would pay less of their price than
    others, and be the first to go under one threshold for all. Against what is typical of the layer, an open channel
    pays all of it anywhere.

    p_g is d cost / d width_g at the channels that are open now, with no gradient through it. The members of a group
    are the convs and dense layers that make its channels, depthwise ones too. A group with a frozen one
    (trainable=False) pays nothing and stays whole: it is in `unregularized` (and in a log message).

    Args:
        cost: what is paid for, bound to the graph of the model.
        strength, target, target_ms: exactly one; see `Regularizer`.
        threshold: a channel is open where r is larger; None: 0.05, or 0.01 of sizes that are not relative.
        l1_fraction: f, from 0 to 1.
        group: how members combine: "max" or "l2".
        relative: whether sizes are read against those of their layer.
        **options: `control`, `every`, `depth` of `Regularizer`.

    Raises:
        UnsupportedModelError: on attaching: no channel can close, or all of the layers are frozen.

    Example:
        >>> from regularizers import GroupLasso
        >>> def attach(model, cost):
        ...     return GroupLasso(cost, strength=1.0).attach(model)

    Source: A. Gordon et al., "MorphNet", arXiv 1711.06798; M. Yuan, Y. Lin, 2006.
    """

    _reads = "convolution or dense layer"

    def __init__(
        self,
        cost: Cost,
        *,
        strength: float | None = None,
        target: float | None = None,
        target_ms: float | None = None,
        threshold: float | None = None,
        l1_fraction: float = 0.0,
        group: Combine = "max",
        relative: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(cost, strength=strength, target=target, target_ms=target_ms, **options)
        self.relative = relative
        self.threshold = (5e-2 if relative else 1e-2) if threshold is None else threshold
        self.l1_fraction = l1_fraction
        self.group: Combine = group

    def _with_openness(self, model: Any, graph: ChannelGraph, penalty: Any) -> Any:
        layers = {call.name: call.layer for call in wiring(model).calls}
        makers = {name: layer for name, layer in layers.items() if type(layer).__name__ in _MAKERS}
        members = self._members(graph, makers)
        if not members:
            raise UnsupportedModelError(
                f"No channel of model {model.name!r} can close. `ChannelGraph.from_model(model).explain()` says why."
            )
        typical = {name: typical_size(layers[name], self.l1_fraction) for name in members} if self.relative else None
        source = WeightOpenness(
            members, graph.slots, "weights", self.l1_fraction, self.group, typical, name=self._source
        )
        return copied(model, lambda tensor: penalty([tensor, source(tensor)]))


def typical_size(layer: Any, l1_fraction: float) -> float:
    """The median of `weight_size` over the channels of a layer that are not all zeros; 1 where all are."""
    kernel, axes = kernel_of(layer)
    sizes = weight_size(ops.convert_to_numpy(ops.cast(kernel, "float32")), axes, l1_fraction)
    return float(np.median(sizes[sizes > 0])) if np.any(sizes > 0) else 1.0
