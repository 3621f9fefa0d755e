"""What a channel graph found, for people: every group, shrinkable or why not, and every layer without a cost."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from latency_lab.graph.channels import Group, Pinned

if TYPE_CHECKING:
    from latency_lab.graph.channel_graph import ChannelGraph

_MEMBERS_WIDTH = 48


@dataclass(frozen=True)
class Explanation:
    """A value with `str` (a table in plain text) and `to_json`.

    Attributes:
        model: name of the model; `digest`: of its architecture; `operations`: how many.
        groups: those that can shrink.
        pinned: those that cannot, with the reason.
        unknown: (layer name, class) of layers that are no operation we have a cost for.
        parameters: numbers of weights of the model; `shrinkable_parameters`: those that read or make a channel of
            `groups`.
        source: what was read: "keras", or "tflite" or "onnx".

    Example:
        >>> from latency_lab.graph.channels import Group, Pinned
        >>> from latency_lab.graph.explain import Explanation
        >>> pinned = Pinned("image", 3, ("image",), "it is an input of the model")
        >>> print(Explanation("net", "12ab", 2, (Group("conv", 16, ("conv",)),), (pinned,), (), 600, 450))
        net: 2 operations, 1 group of 16 channels can shrink: 75.0 % of 600 parameters lie in it
        1 group of 3 channels is pinned
            1 because it is an input of the model
        group   width  layers  shrinks
        conv       16  conv    yes
        image       3  image   no: it is an input of the model
    """

    model: str
    digest: str
    operations: int
    groups: tuple[Group, ...]
    pinned: tuple[Pinned, ...]
    unknown: tuple[tuple[str, str], ...]
    parameters: int = 0
    shrinkable_parameters: int = 0
    source: str = "keras"

    @classmethod
    def of(cls, graph: ChannelGraph) -> Explanation:
        """The explanation of a graph."""
        full, none = _parameters(graph, graph.full_widths), _parameters(graph, 0 * graph.full_widths)
        return cls(
            graph.model_name,
            graph.digest,
            len(graph.nodes),
            graph.groups,
            graph.pinned,
            tuple((u.name, u.layer_class) for u in graph.unknown),
            full,
            full - none,
            graph.source,
        )

    def __str__(self) -> str:
        if self.source != "keras":
            fixed = f"the channels of a .{self.source} file are fixed: narrow the Keras model, and convert it again"
            return "\n".join([self._summary(), fixed, *self._unknown()])
        rows = [("group", "width", "layers", "shrinks")]
        rows += [(g.name, str(g.size), _members(g.members), _shrinks(g)) for g in self.groups]
        rows += [(p.name, str(p.size), _members(p.members), f"no: {p.reason}") for p in self.pinned]
        wide = [max(len(row[i]) for row in rows) for i in range(3)]
        lines = [self._summary(), *self._why_pinned()]
        lines += [f"{r[0]:<{wide[0]}}  {r[1]:>{wide[1]}}  {r[2]:<{wide[2]}}  {r[3]}" for r in rows]
        return "\n".join(lines + self._unknown())

    def to_json(self) -> dict[str, Any]:
        """The same as JSON values, with all members."""
        return {
            "model": self.model,
            "digest": self.digest,
            "source": self.source,
            "operations": self.operations,
            "parameters": self.parameters,
            "shrinkable_parameters": self.shrinkable_parameters,
            "groups": [
                {"name": g.name, "width": g.size, "members": list(g.members), "can_vanish": g.can_vanish}
                for g in self.groups
            ],
            "pinned": [
                {"name": p.name, "width": p.size, "members": list(p.members), "reason": p.reason} for p in self.pinned
            ],
            "unknown": [{"name": name, "class": layer_class} for name, layer_class in self.unknown],
        }

    def _summary(self) -> str:
        text = f"{self.model or 'model'}: {self.operations} operations, {_count(self.groups)} can shrink"
        if self.groups and self.parameters:
            share, them = 100 * self.shrinkable_parameters / self.parameters, "it" if len(self.groups) == 1 else "them"
            text += f": {share:.1f} % of {self.parameters:,} parameters lie in {them}"
        vanishing = sum(g.can_vanish for g in self.groups)
        return f"{text}; {vanishing} can vanish" if vanishing else text

    def _why_pinned(self) -> list[str]:
        """How many groups are pinned, and for which kinds of reasons, the most frequent first."""
        if not self.pinned:
            return []
        kinds = Counter(re.sub(r"\blayer '[^']*'", "a layer", p.reason) for p in self.pinned)
        lines = [f"{_count(self.pinned)} {'is' if len(self.pinned) == 1 else 'are'} pinned"]
        return lines + [f"{count:>5} because {kind}" for kind, count in kinds.most_common()]

    def _unknown(self) -> list[str]:
        lines = [f"  {name} ({layer_class})" for name, layer_class in self.unknown]
        return ["layers without a cost of their own:", *lines] if lines else []


def _parameters(graph: ChannelGraph, widths: Any) -> int:
    """Numbers of weights at these widths, [groups]: those left at 0 neither read nor make a channel that can close."""
    const, per_in, per_out, per_in_out = np.array([node.weights for node in graph.nodes]).reshape(-1, 4).T
    ins = graph.in_map @ widths + graph.in_const
    outs = graph.out_map @ widths + graph.out_const
    of_nodes = const + per_in * ins + per_out * outs + per_in_out * ins * outs
    return graph.unknown_parameters + round(float(of_nodes.sum()))


def _count(groups: Sequence[Group | Pinned]) -> str:
    """ "2 groups of 48 channels"."""
    return f"{len(groups)} group{'s' * (len(groups) != 1)} of {sum(g.size for g in groups):,} channels"


def _shrinks(group: Group) -> str:
    return "yes, and can vanish" if group.can_vanish else "yes"


def _members(names: tuple[str, ...]) -> str:
    """As many names as fit, at least one, and how many more there are."""
    shown = 1
    while shown < len(names) and len(", ".join(names[: shown + 1])) <= _MEMBERS_WIDTH:
        shown += 1
    more = len(names) - shown
    return ", ".join(names[:shown]) + (f" ... and {more} more" if more else "")
