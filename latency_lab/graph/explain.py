"""What a channel graph found, for people: every group, shrinkable or why not, and every layer without a cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from latency_lab.graph.channels import Group, Pinned

_SHOWN_MEMBERS = 4


@dataclass(frozen=True)
class Explanation:
    """A value with `str` (a table in plain text) and `to_json`.

    Attributes:
        model: name of the model; `digest`: of its architecture; `operations`: how many.
        groups: those that can shrink.
        pinned: those that cannot, with the reason.
        unknown: (layer name, class) of layers that are no operation we have a cost for.

    Example:
        >>> from latency_lab.graph.channels import Group, Pinned
        >>> from latency_lab.graph.explain import Explanation
        >>> pinned = Pinned("image", 3, ("image",), "it is an input of the model")
        >>> print(Explanation("net", "12ab", 2, (Group("conv", 16, ("conv",)),), (pinned,), ()))
        net: 2 operations, 1 group of 16 channels can shrink
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

    def __str__(self) -> str:
        rows = [("group", "width", "layers", "shrinks")]
        rows += [(g.name, str(g.size), _members(g.members), "yes") for g in self.groups]
        rows += [(p.name, str(p.size), _members(p.members), f"no: {p.reason}") for p in self.pinned]
        wide = [max(len(row[i]) for row in rows) for i in range(3)]
        channels = sum(g.size for g in self.groups)
        lines = [
            f"{self.model or 'model'}: {self.operations} operations, "
            f"{len(self.groups)} group{'s' * (len(self.groups) != 1)} of {channels} channels can shrink"
        ]
        lines += [f"{r[0]:<{wide[0]}}  {r[1]:>{wide[1]}}  {r[2]:<{wide[2]}}  {r[3]}" for r in rows]
        if self.unknown:
            lines.append("layers without a cost of their own:")
            lines += [f"  {name} ({layer_class})" for name, layer_class in self.unknown]
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """The same as JSON values."""
        return {
            "model": self.model,
            "digest": self.digest,
            "operations": self.operations,
            "groups": [{"name": g.name, "width": g.size, "members": list(g.members)} for g in self.groups],
            "pinned": [
                {"name": p.name, "width": p.size, "members": list(p.members), "reason": p.reason} for p in self.pinned
            ],
            "unknown": [{"name": name, "class": layer_class} for name, layer_class in self.unknown],
        }


def _members(names: tuple[str, ...]) -> str:
    more = len(names) - _SHOWN_MEMBERS
    return ", ".join(names[:_SHOWN_MEMBERS]) + (f" and {more} more" if more > 0 else "")
