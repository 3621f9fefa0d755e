"""Which channels must stay or go together: union-find over channel ids."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Group:
    """Channels of several layers that close together, one width for all of them.

    Attributes:
        name: the first layer that produces them.
        size: channels when all are open.
        members: names of all producing layers, in graph order.
    """

    name: str
    size: int
    members: tuple[str, ...]


@dataclass(frozen=True)
class Pinned:
    """Channels that cannot close, and why.

    Attributes:
        name, size, members: as of a `Group`.
        reason: what pins them, as the end of the sentence "cannot shrink: ...".
    """

    name: str
    size: int
    members: tuple[str, ...]
    reason: str


@dataclass(frozen=True)
class Resolved:
    """What `Channels.resolve` found.

    Attributes:
        groups: shrinkable groups, in graph order.
        pinned: groups that are not, in graph order.
        slots: [ids] the flat slot of each id: offset of its group + index in the group; -1 where pinned.
    """

    groups: tuple[Group, ...]
    pinned: tuple[Pinned, ...]
    slots: Ids


class Channels:
    """Channel ids of one network while it is read.

    Example:
        >>> from latency_lab.graph.channels import Channels
        >>> channels = Channels()
        >>> a, b = channels.fresh(4, "conv_a"), channels.fresh(4, "conv_b")
        >>> channels.join(a, b)
        >>> channels.resolve().groups
        (Group(name='conv_a', size=4, members=('conv_a', 'conv_b')),)
    """

    def __init__(self) -> None:
        self._parent: list[int] = []
        self._producer: list[str] = []
        self._reasons: dict[int, str] = {}

    def fresh(self, count: int, producer: str) -> Ids:
        """New ids, [count], of the output channels of layer `producer`."""
        first = len(self._parent)
        self._parent.extend(range(first, first + count))
        self._producer.extend([producer] * count)
        return np.arange(first, first + count, dtype=np.int64)

    def join(self, left: Ids, right: Ids) -> None:
        """left[i] and right[i] stay or go together, for all i."""
        for a, b in zip(left.tolist(), right.tolist(), strict=True):
            first, second = sorted((self._root(a), self._root(b)))
            self._parent[second] = first

    def pin(self, ids: Ids, reason: str, override: bool = False) -> None:
        """These ids stay. The first reason given for an id is kept, unless a later one overrides it."""
        for i in ids.tolist():
            if override or i not in self._reasons:
                self._reasons[i] = reason

    def resolve(self) -> Resolved:
        """Joined ids are a channel; channels made by the same layers, equally often, are a group."""
        roots = [self._root(i) for i in range(len(self._parent))]
        makers: dict[int, Counter[str]] = {}
        for i, root in enumerate(roots):
            makers.setdefault(root, Counter())[self._producer[i]] += 1
        signature = {root: tuple(sorted(made.items())) for root, made in makers.items()}
        channels: dict[tuple[tuple[str, int], ...], list[int]] = {}
        for root in makers:
            channels.setdefault(signature[root], []).append(root)
        reasons: dict[tuple[tuple[str, int], ...], str] = {}
        for i in sorted(self._reasons):
            reasons.setdefault(signature[roots[i]], self._reasons[i])

        order = {name: i for i, name in reversed(list(enumerate(self._producer)))}
        groups: list[Group] = []
        pinned: list[Pinned] = []
        slot_of: dict[int, int] = {}
        names: Counter[str] = Counter()
        for key, members in channels.items():
            layers = tuple(sorted((name for name, _ in key), key=order.__getitem__))
            names[layers[0]] += 1
            name = layers[0] if names[layers[0]] == 1 else f"{layers[0]}.{names[layers[0]]}"
            if key in reasons:
                pinned.append(Pinned(name, len(members), layers, reasons[key]))
            else:
                slot_of.update({root: len(slot_of) + k for k, root in enumerate(members)})
                groups.append(Group(name, len(members), layers))
        slots = np.array([slot_of.get(root, -1) for root in roots], dtype=np.int64)
        return Resolved(tuple(groups), tuple(pinned), slots)

    def _root(self, i: int) -> int:
        parent = self._parent
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i
