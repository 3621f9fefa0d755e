"""Branches that can vanish whole: operands of an add or concatenate that nothing is left of once a group closes.

A branch is what is computed for one operand of an add (a residual branch) or a concatenate (a parallel branch) and for
nothing else. When all channels of one of its gate groups close, no path leads through it any more, and it is removed
with all of its layers.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Mapping, Sequence

import keras
import numpy as np

from latency_lab.graph.channel_graph import Branch
from latency_lab.graph.channels import Group, Ids
from latency_lab.graph.keras_walk import Call, Value, Wiring


def find_branches(
    wired: Wiring, slots: Mapping[int, Ids], groups: Sequence[Group], merges: Mapping[str, bool]
) -> tuple[Branch, ...]:
    """All branches of a model that can vanish, in graph order; an operand of each merge is always left.

    Args:
        wired: the model.
        slots: id(value) -> slot of each of its channels, -1 where pinned.
        groups: shrinkable groups; slots are numbered group after group.
        merges: name of a merging call -> whether it adds (else it concatenates).
    """
    search = _Search(wired, slots, groups)
    found: list[Branch] = []
    for merge in wired.calls:
        if merge.name in merges:
            here = [search.branch(merge, operand, merges[merge.name]) for operand in range(len(merge.inputs))]
            can_vanish = [branch for branch in here if branch is not None]
            found += can_vanish[len(can_vanish) == len(here) :]
    return tuple(found)


class _Search:
    """What is asked about one model again and again."""

    def __init__(self, wired: Wiring, slots: Mapping[int, Ids], groups: Sequence[Group]) -> None:
        self._calls = wired.calls
        self._slots, self._groups = slots, groups
        self._group_of = np.repeat(np.arange(len(groups)), [group.size for group in groups])
        self._maker = {id(value): k for k, call in enumerate(wired.calls) for value in call.outputs}
        self._readers: dict[int, list[int]] = {}
        for k, call in enumerate(wired.calls):
            for value in call.inputs:
                self._readers.setdefault(id(value), []).append(k)
        self._leaving = {id(value) for value in keras.tree.flatten(wired.outputs)}
        self._times = Counter(call.name for call in wired.calls)
        self._groups_of_layer: dict[str, list[int]] = {}
        for g, group in enumerate(groups):
            for name in group.members:
                self._groups_of_layer.setdefault(name, []).append(g)

    def branch(self, merge: Call, operand: int, adds: bool) -> Branch | None:
        """The branch that makes an operand, or None where it cannot vanish."""
        value = merge.inputs[operand]
        body = self._body(merge, value)
        layers = frozenset(self._calls[k].name for k in body)
        candidates = sorted({g for name in layers for g in self._groups_of_layer.get(name, ())})
        inside = [g for g in candidates if layers.issuperset(self._groups[g].members)]
        slots = self._slots[id(value)]
        if not adds and not (np.all(slots >= 0) and set(self._group_of[slots].tolist()) <= set(inside)):
            return None
        gates = tuple(g for g in inside if self._closes(value, body, g))
        return Branch(merge.name, operand, adds, layers, tuple(inside), gates) if gates else None

    def _body(self, merge: Call, value: Value) -> set[int]:
        """The calls that compute this operand and nothing else. Later calls are looked at first, so that all readers of
        a call's outputs are known when it is."""
        if id(value) in self._leaving or [self._calls[k] for k in self._readers[id(value)]] != [merge]:
            return set()
        body: set[int] = set()
        waiting: list[int] = []
        seen: set[int] = set()
        operands = [value]
        while True:
            for tensor in operands:
                maker = self._maker.get(id(tensor))
                if maker is not None and maker not in seen:
                    seen.add(maker)
                    heapq.heappush(waiting, -maker)
            if not waiting:
                return body
            k = -heapq.heappop(waiting)
            call = self._calls[k]
            elsewhere = [
                output
                for output in call.outputs
                if output is not value
                and (id(output) in self._leaving or not body.issuperset(self._readers.get(id(output), [])))
            ]
            operands = []
            if not elsewhere and self._times[call.name] == 1:
                body.add(k)
                operands = list(call.inputs)

    def _closes(self, value: Value, body: set[int], group: int) -> bool:
        """Whether every path that leads to a value through a branch passes a tensor of this group alone."""
        waiting, seen = [value], set[int]()
        while waiting:
            tensor = waiting.pop()
            if id(tensor) in seen or self._is_of(tensor, group):
                continue
            seen.add(id(tensor))
            maker = self._maker.get(id(tensor))
            if maker is None or maker not in body:
                return False
            waiting.extend(self._calls[maker].inputs)
        return True

    def _is_of(self, value: Value, group: int) -> bool:
        slots = self._slots[id(value)]
        return bool(len(slots)) and bool(np.all(slots >= 0)) and set(self._group_of[slots].tolist()) == {group}
