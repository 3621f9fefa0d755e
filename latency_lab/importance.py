"""How much each channel matters, told from a model's weights alone: norms, made comparable between layers.

    r_mc    = norm of the weights of member m that make channel c
    n_mc    = r_mc / mean over c of r_mc                                  layers become comparable
    I_c     = mean over the members that make c of n_mc                   one number for all that close together
    score_c = members * I_c^2 / sum over c' with I_c' >= I_c of I_c'^2    of the group's own channels

A score says what share of what would be left, were every less important channel gone, goes with this channel: it grows
as a group empties, so that no layer is closed for the cheapness of its weights. Members are the layers with weights
that a channel goes through, and each counts: a channel that ten layers make is ten layers' loss.

Sources: one norm over all layers that close together, divided by its mean: DepGraph (arXiv 2301.12900); the score:
LAMP (arXiv 2010.07611), for channels in place of single weights; the sum over coupled layers: HALP (arXiv 2110.10811).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from latency_lab.errors import UnsupportedModelError, UsageError
from latency_lab.graph import ChannelGraph
from latency_lab.graph.keras_walk import wiring

Floats = npt.NDArray[np.float64]
How = Literal["l2", "l1", "gamma"]
Importance = How | Mapping[str, Any] | npt.ArrayLike
"""A norm; or numbers of one's own, [slots] or [size] by group name: the larger, the more a channel matters."""

NORMS = ("l2", "l1", "gamma")
_KERNELS = ("kernel", "depthwise_kernel", "pointwise_kernel")


def scores(model: Any, graph: ChannelGraph, how: str = "l2") -> Floats:
    """The score of each channel, as in the equations above.

    Args:
        model: the Keras model of the graph, plain or gated.
        graph: its channel graph.
        how: "l2" or "l1", norms of the kernels that make a channel (depthwise ones too); "gamma", the size of the batch
            norm scales that it goes through.

    Returns:
        [slots], at least 0; infinite in a group that no such weight speaks for.

    Raises:
        UnsupportedModelError: no channel has such a weight.
        UsageError: there is no such norm.

    Example:
        >>> import keras
        >>> from latency_lab.graph import ChannelGraph
        >>> from latency_lab.importance import scores
        >>> x = keras.Input((4, 4, 1))
        >>> conv = keras.layers.Conv2D(2, 1, use_bias=False, name="conv")
        >>> y = keras.layers.Dense(1)(keras.layers.GlobalAveragePooling2D()(conv(x)))
        >>> _ = conv.kernel.assign([[[[1.0, 3.0]]]])
        >>> model = keras.Model(x, y)
        >>> scores(model, ChannelGraph.from_model(model)).tolist()
        [0.1, 1.0]
    """
    if how not in NORMS:
        raise UsageError(
            f"Invalid value for argument `importance`. Expected one of {', '.join(map(repr, NORMS))}, or numbers: an "
            f"array of one a slot, or one array for each group's name. Received: {how!r}"
        )
    total, members = _norms(model, graph, how)
    if graph.slots and not members.any():
        needed = "batch norm with a scale" if how == "gamma" else "kernel"
        raise UnsupportedModelError(
            f"No channel of model {graph.model_name!r} that can close goes through a {needed}: importance={how!r} has "
            "nothing to read. Take another norm, or give numbers of your own."
        )
    found = np.full(graph.slots, np.inf)
    for start, end in zip(graph.offsets[:-1], graph.offsets[1:], strict=True):
        count = members[start:end]
        if count.all():
            found[start:end] = count.mean() * _lamp(total[start:end] / count)
    return found


def given(values: Mapping[str, Any] | npt.ArrayLike, graph: ChannelGraph) -> Floats:
    """Numbers of one's own as [slots], taken as they are.

    Raises:
        UsageError: a group or a number is missing, or one is below 0 or not a number.
    """
    if isinstance(values, Mapping):
        found = np.concatenate([np.zeros(0), *(_of_group(values, group.name) for group in graph.groups)])
        sizes = {name: np.size(array) for name, array in values.items()}
        wrong = [g for g in graph.groups if sizes[g.name] != g.size]
        if wrong:
            raise UsageError(
                f"`importance` of group {wrong[0].name!r}: expected {wrong[0].size} numbers, one a channel. "
                f"Received: {sizes[wrong[0].name]}"
            )
    else:
        found = np.asarray(values, float)
    if found.shape != (graph.slots,):
        raise UsageError(
            f"`importance`: expected {graph.slots} numbers, one a slot. Received: an array of shape {found.shape}"
        )
    if not np.all(found >= 0):
        bad = int(np.flatnonzero(~(found >= 0))[0])
        raise UsageError(
            f"`importance` has to be 0 or more: what is left is chosen to sum up to most. Received: {found[bad]} for "
            f"slot {bad}"
        )
    return found


def _of_group(values: Mapping[str, Any], name: str) -> Floats:
    if name not in values:
        raise UsageError(
            f"`importance` has no numbers for group {name!r}. Give them for every group: zeros for one that may close."
        )
    return np.asarray(values[name], float).ravel()


def _norms(model: Any, graph: ChannelGraph, how: str) -> tuple[Floats, Floats]:
    """Of each slot: the sum over its members of norms divided by their layer's mean, and how many members that are."""
    total, members = np.zeros(graph.slots), np.zeros(graph.slots)
    for call in wiring(model).calls:
        channels = graph.layer_channels.get(call.name)
        sizes = None if channels is None else _sizes(call.layer, how)
        if channels is None or sizes is None or len(sizes) != len(channels.out_ids):
            continue
        mean = float(sizes.mean())
        open_ids = channels.out_ids >= 0
        np.add.at(total, channels.out_ids[open_ids], sizes[open_ids] / (mean or 1.0))
        np.add.at(members, channels.out_ids[open_ids], 1.0)
    return total, members


def _sizes(layer: Any, how: str) -> Floats | None:
    """[out_channels] how large the weights are that make each channel of a layer; None where it has none."""
    if how == "gamma":
        found = getattr(layer, "gamma", None) if type(layer).__name__ == "BatchNormalization" else None
        return None if found is None else np.abs(np.asarray(found, float))
    kernel = _kernel(layer)
    if kernel is None:
        return None
    rest = tuple(range(kernel.ndim - 1))
    return np.asarray(np.abs(kernel).sum(rest) if how == "l1" else np.sqrt(np.square(kernel).sum(rest)), float)


def _kernel(layer: Any) -> Floats | None:
    """The kernel that makes a layer's channels, those on the last axis."""
    found = {v.name: np.asarray(v, float) for v in getattr(layer, "weights", ()) if v.name in _KERNELS}
    kind = type(layer).__name__
    if "pointwise_kernel" in found:
        return found["pointwise_kernel"]
    kernel = found.get("depthwise_kernel", found.get("kernel"))
    if kernel is None:
        return None
    if kind.startswith("DepthwiseConv"):
        return kernel.reshape(*kernel.shape[:-2], -1)
    return np.moveaxis(kernel, -2, -1) if kind.endswith("Transpose") else kernel


def _lamp(importance: Floats) -> Floats:
    """[channels] I^2 over the sum of I^2 of all channels that are no less important; of equals, the first counts as
    the more important one."""
    order = np.argsort(-importance, kind="stable")
    square = np.square(importance[order])
    found = np.zeros(len(square))
    found[order] = square / np.maximum(np.cumsum(square), np.finfo(float).tiny)
    return found
