"""Which channels must stay or go together: connected components of channel ids."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

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
        can_vanish: whether all of its channels may close, and a whole branch with them.
    """

    name: str
    size: int
    members: tuple[str, ...]
    can_vanish: bool = False


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
        (Group(name='conv_a', size=4, members=('conv_a', 'conv_b'), can_vanish=False),)
    """

    def __init__(self) -> None:
        self._count = 0
        self._producers: list[tuple[str, int]] = []
        self._joined: list[tuple[Ids, Ids]] = []
        self._pins: list[tuple[Ids, str, bool]] = []

    def fresh(self, count: int, producer: str) -> Ids:
        """New ids, [count], of the output channels of layer `producer`."""
        first, self._count = self._count, self._count + count
        self._producers.append((producer, count))
        return np.arange(first, self._count, dtype=np.int64)

    def join(self, left: Ids, right: Ids) -> None:
        """left[i] and right[i] stay or go together, for all i."""
        if left.shape != right.shape:
            raise ValueError(f"Expected as many channels left as right. Received: {left.shape} and {right.shape}")
        self._joined.append((left, right))

    def pin(self, ids: Ids, reason: str, override: bool = False) -> None:
        """These ids stay. The first reason given for an id is kept, unless a later one overrides it."""
        self._pins.append((ids, reason, override))

    def resolve(self) -> Resolved:
        """Joined ids are a channel; channels made by the same layers, equally often, are a group."""
        _, channel_of = np.unique(_smallest_joined(self._count, self._joined), return_inverse=True)
        makers, maker_of = self._makers()
        group_of, makers_of = _groups(channel_of, maker_of)
        sizes = np.bincount(group_of, minlength=len(makers_of)).tolist()
        reasons = self._reasons(group_of[channel_of])

        groups: list[Group] = []
        pinned: list[Pinned] = []
        named: Counter[str] = Counter()
        for i, (size, made_by) in enumerate(zip(sizes, makers_of, strict=True)):
            layers = tuple(makers[m] for m in made_by)
            named[layers[0]] += 1
            name = layers[0] if named[layers[0]] == 1 else f"{layers[0]}.{named[layers[0]]}"
            if i in reasons:
                pinned.append(Pinned(name, size, layers, reasons[i]))
            else:
                groups.append(Group(name, size, layers))

        by_group = np.argsort(group_of, kind="stable")
        free = by_group[~np.isin(group_of[by_group], list(reasons))]
        slots = np.full(len(group_of), -1, dtype=np.int64)
        slots[free] = np.arange(len(free))
        return Resolved(tuple(groups), tuple(pinned), slots[channel_of])

    def _makers(self) -> tuple[list[str], Ids]:
        """Names of the layers that make channels, in the order of their first, and [ids] which of them makes each."""
        made = [(producer, count) for producer, count in self._producers if count]
        names = list(dict.fromkeys(producer for producer, _ in made))
        place = {name: i for i, name in enumerate(names)}
        each = np.array([place[producer] for producer, _ in made], dtype=np.int64)
        return names, np.repeat(each, [count for _, count in made])

    def _reasons(self, group_of: Ids) -> dict[int, str]:
        """Why a group is pinned: the reason of its first pinned id. `group_of`: [ids]."""
        pin_of = np.full(self._count, -1)
        for i, (ids, _, override) in enumerate(self._pins):
            pin_of[ids if override else ids[pin_of[ids] < 0]] = i
        ids = np.flatnonzero(pin_of >= 0)
        groups, first = np.unique(group_of[ids], return_index=True)
        return {g: self._pins[i][1] for g, i in zip(groups.tolist(), pin_of[ids[first]].tolist(), strict=True)}


def _smallest_joined(count: int, joined: Sequence[tuple[Ids, Ids]]) -> Ids:
    """[count] the smallest of the ids that each is joined to.

    Each round hangs every root under the smallest root that it is joined to. Of joined roots at least half go in two
    rounds: one that goes in neither is the smallest neighbour of all its neighbours, and those went.
    """
    root = np.arange(count)
    left = np.concatenate([root[:0], *(ids for ids, _ in joined)])
    right = np.concatenate([root[:0], *(ids for _, ids in joined)])
    while True:
        left, right = root[left], root[right]
        apart = left != right
        if not apart.any():
            return root
        left, right = left[apart], right[apart]
        np.minimum.at(root, np.maximum(left, right), np.minimum(left, right))
        while np.any(root != root[root]):
            root = root[root]


def _groups(channel_of: Ids, maker_of: Ids) -> tuple[Ids, list[list[int]]]:
    """Channels that the same layers make, equally often.

    Args:
        channel_of, maker_of: [ids] the channel of each id, and the layer that makes it.

    Returns:
        [channels] the group of each channel, numbered in the order of their first channels; [groups] the layers.
    """
    layers = 1 + int(maker_of.max(initial=0))
    pairs, times = np.unique(channel_of * layers + maker_of, return_counts=True)
    makers = np.stack([pairs % layers, times], axis=1)
    ends = np.cumsum(np.bincount(pairs // layers)).tolist()
    content, width = makers.tobytes(), makers.itemsize * 2
    found: dict[bytes, int] = {}
    group_of = [found.setdefault(content[width * a : width * b], len(found)) for a, b in pairwise([0, *ends])]
    made_by = [np.frombuffer(key, makers.dtype)[::2].tolist() for key in found]
    return np.array(group_of, dtype=np.int64), made_by
