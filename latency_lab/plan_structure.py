"""A structure for a budget without training: which channels stay, by how much they matter and what they cost."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from latency_lab import budget
from latency_lab.cost import Cost
from latency_lab.errors import StructureError, UsageError
from latency_lab.graph import ChannelGraph
from latency_lab.importance import Importance, given, scores
from latency_lab.knapsack import best_widths
from latency_lab.structure import Structure

LOGGER = logging.getLogger(__name__)

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Minimum = int | Mapping[str, int]
"""The fewest channels of every group, or of each that is named."""


def plan_structure(
    model: Any,
    cost: Cost,
    target: float | None = None,
    *,
    target_ms: float | None = None,
    importance: Importance = "l2",
    keep: Iterable[str] = (),
    minimum: Minimum = 1,
) -> Structure:
    """The channels that matter most within a budget, chosen without training.

        maximise  sum of the importance of the channels that stay   subject to  cost <= target

    A knapsack over the widths of all groups, on the staircase of the cost (`latency_lab.knapsack`). Within a group the
    most important channels stay. Fine-tune what `ll.shrink(model, structure)` makes of it.

    Args:
        model: the Keras model of the cost's graph, plain or gated; its weights are read.
        cost: any, bound to the graph of the model.
        target: a budget, as a share of the cost of all channels, in (0, 1].
        target_ms: a budget in ms, of a cost in ms.
        importance: "l2" or "l1", norms of the weights that make a channel; "gamma", batch norm scales (a group without
            one stays whole); each made comparable between layers as `latency_lab.importance` says. Or numbers of your
            own, [slots] or [size] by group: the sum of those that stay is what is made largest; infinite for a channel
            that has to stay.
        keep: names of layers or groups whose groups stay whole.
        minimum: the fewest channels of a group: one number for all (or all of a smaller group), or by the name of a
            group or layer, 1 elsewhere.

    Returns:
        A structure whose cost, `cost.at`, is within the budget; its provenance says how it came about.

    Raises:
        UsageError: not exactly one of target and target_ms; a name that the model does not have; a minimum that a group
            cannot have; importance of another form.
        StructureError: the cost was made for another model.
        BudgetError: the budget cannot be reached; the message has the lowest that can.

    Example:
        >>> import latency_lab as ll
        >>> def half_the_latency(model, profile):
        ...     cost = ll.LatencyCost(ll.ChannelGraph.from_model(model), profile)
        ...     return ll.plan_structure(model, cost, 0.5, keep=["stem"])

    Source: HALP, arXiv 2110.10811.
    """
    graph = cost.graph
    _check_model(model, graph)
    limit = budget.limit(cost, target, target_ms)
    kept = [keep] if isinstance(keep, str) else list(keep)
    values = _values(model, graph, importance)
    whole = np.isinf(values)
    bounds = zip(graph.offsets[:-1], graph.offsets[1:], strict=True)
    have_to_stay = np.array([np.count_nonzero(whole[a:b]) for a, b in bounds], np.int64)
    lowest = np.maximum(lowest_widths(graph, kept, minimum), have_to_stay)
    budget.check_reachable(cost, limit, lowest)
    worth = np.where(whole, values[~whole].max(initial=1.0), values)
    widths = best_widths(cost, worth, limit, lowest)
    how = {
        "importance": importance if isinstance(importance, str) else "given",
        "keep": kept,
        "minimum": dict(minimum) if isinstance(minimum, Mapping) else minimum,
    }
    return Structure.from_mask(graph, budget.mask_of(cost, values, widths), _provenance(cost, limit, widths, how))


def lowest_widths(graph: ChannelGraph, keep: Iterable[str] = (), minimum: Minimum = 1) -> Ints:
    """The fewest channels of each group, [groups], from what has to stay.

    Args:
        graph: whose groups.
        keep: names of layers or groups.
        minimum: as of `plan_structure`.

    Raises:
        UsageError: a name that the model does not have, or a minimum below 1 or above the group's size.
    """
    sizes = graph.full_widths.astype(np.int64)
    if not isinstance(minimum, Mapping):
        if int(minimum) != minimum or minimum < 1:
            raise UsageError(f"`minimum`: expected a whole number of channels, 1 or more. Received: {minimum}")
        lowest = np.minimum(sizes, int(minimum))
    else:
        lowest = np.ones_like(sizes)
    places = _places(graph)
    for name, width in minimum.items() if isinstance(minimum, Mapping) else ():
        for group in _find(places, name, "minimum"):
            if int(width) != width or not 1 <= width <= sizes[group]:
                raise UsageError(
                    f"`minimum` of {name!r}: expected a whole number in 1..{sizes[group]}, the channels of group "
                    f"{graph.groups[group].name!r}. Received: {width}"
                )
            lowest[group] = max(int(lowest[group]), int(width))
    for name in keep:
        for group in _find(places, name, "keep"):
            lowest[group] = sizes[group]
    return np.asarray(lowest, np.int64)


def _places(graph: ChannelGraph) -> dict[str, set[int]]:
    """Name of each layer and group -> the groups of its channels; none for a layer whose channels cannot close."""
    group_of = np.repeat(np.arange(len(graph.groups)), np.diff(graph.offsets))
    found: dict[str, set[int]] = {name: set() for pinned in graph.pinned for name in (pinned.name, *pinned.members)}
    for node, outs in zip(graph.nodes, graph.out_map, strict=True):
        found.setdefault(node.layer, set()).update(np.flatnonzero(outs).tolist())
    for name, channels in graph.layer_channels.items():
        slots = channels.out_ids[channels.out_ids >= 0]
        found.setdefault(name, set()).update(np.unique(group_of[slots]).tolist())
    for index, group in enumerate(graph.groups):
        for name in group.members:
            found.setdefault(name, set()).add(index)
    # A second group of the same makers has a name of its own; a first one's name is that of a layer, and means both.
    for index, group in enumerate(graph.groups):
        found.setdefault(group.name, {index})
    return found


def _find(places: Mapping[str, set[int]], name: str, argument: str) -> set[int]:
    if name in places:
        return places[name]
    near = difflib.get_close_matches(name, places, n=3, cutoff=0.5)
    hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
    raise UsageError(
        f"`{argument}`: the model has no layer or group {name!r}.{hint} `graph.explain()` lists the groups."
    )


def _check_model(model: Any, graph: ChannelGraph) -> None:
    digest = ChannelGraph.from_model(model).digest
    if digest != graph.digest:
        raise StructureError(
            f"The cost was made for another model: it has the graph {graph.digest}, and model "
            f"{getattr(model, 'name', model)!r} has {digest}. Make the cost from ChannelGraph.from_model(model)."
        )


def _values(model: Any, graph: ChannelGraph, importance: Importance) -> Floats:
    """[slots] what each channel is worth; infinite for one that has to stay."""
    if not isinstance(importance, str):
        return given(importance, graph)
    found = scores(model, graph, importance)
    mute = [group.name for group, at in zip(graph.groups, graph.offsets, strict=False) if np.isinf(found[at])]
    if mute:
        LOGGER.warning("plan_structure: no weight for importance=%r, left whole: %s", importance, ", ".join(mute))
    return found


def _provenance(cost: Cost, limit: float, widths: Ints, how: Mapping[str, Any]) -> dict[str, Any]:
    profile = getattr(cost, "profile", None)
    found = {
        "method": "knapsack",
        **how,
        "unit": cost.unit,
        "cost_before": cost.at(),
        "cost_after": cost.at(widths),
        "budget": limit,
    }
    return found if profile is None else {**found, "profile": profile.name, "profile_digest": profile.digest}
