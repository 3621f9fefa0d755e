"""Which channels of a model stay: kept indices for each group, as a value and as a JSON file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from latency_lab.errors import FileFormatError, StructureError
from latency_lab.files import check, read_json, write_bytes
from latency_lab.graph import ChannelGraph

FORMAT = "latency-lab structure"
VERSION = 1

_GROUP = {
    "type": "object",
    "required": ["size", "kept"],
    "properties": {
        "size": {"type": "integer", "minimum": 1},
        "kept": {"type": "array", "items": {"type": "integer"}},
    },
}
_SCHEMA = {
    "type": "object",
    "required": ["format", "version", "model", "groups"],
    "properties": {
        "format": {"enum": [FORMAT]},
        "version": {"enum": [VERSION]},
        "model": {"type": "string"},
        "groups": {"type": "object", "additionalProperties": _GROUP},
        "provenance": {"type": "object"},
    },
}


@dataclass(frozen=True)
class Structure:
    """Kept channels of each group of one architecture.

    Attributes:
        kept: group name -> sorted indices of the channels that stay. None: a branch of the network goes with the group.
        sizes: group name -> channels of the full group.
        model: digest of the `ChannelGraph` that it belongs to.
        provenance: how it came about (JSON values): profile, target, predicted cost before and after.

    Raises:
        StructureError: an index is out of range, repeated or out of order.

    Example:
        >>> from latency_lab.structure import Structure
        >>> structure = Structure({"conv": (0, 2, 5)}, {"conv": 8}, "12ab")
        >>> Structure.from_json(structure.to_json()) == structure
        True
    """

    kept: Mapping[str, tuple[int, ...]]
    sizes: Mapping[str, int]
    model: str
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in set(self.kept) ^ set(self.sizes):
            raise StructureError(f"Group {name!r} has kept channels or a size, but not both.")
        for name, kept in self.kept.items():
            if list(kept) != sorted(set(kept)) or kept and not 0 <= kept[0] <= kept[-1] < self.sizes[name]:
                raise StructureError(
                    f"Kept channels of group {name!r} must be ascending, each once, in 0..{self.sizes[name] - 1}. "
                    f"Received: {kept}"
                )

    @classmethod
    def full(cls, graph: ChannelGraph) -> Structure:
        """All channels stay."""
        return cls.from_mask(graph, np.ones(graph.slots))

    @classmethod
    def from_mask(
        cls, graph: ChannelGraph, mask: npt.ArrayLike, provenance: Mapping[str, Any] | None = None
    ) -> Structure:
        """The structure that keeps the slots where `mask` [slots] is not 0.

        Where a branch vanishes, all groups that go with it are closed.

        Raises:
            StructureError: the mask has another length, or closes a whole group that cannot vanish.
        """
        values = np.asarray(mask)
        if values.shape != (graph.slots,):
            raise StructureError(
                f"Expected a mask of shape ({graph.slots},), one value a slot. Received: shape {values.shape}"
            )
        spans = zip(graph.groups, graph.offsets.tolist(), strict=False)
        kept = [tuple(np.flatnonzero(values[start : start + group.size]).tolist()) for group, start in spans]
        for b in graph.vanished([len(channels) for channels in kept]):
            for g in graph.branches[b].groups:
                kept[g] = ()
        names = [group.name for group in graph.groups]
        found = cls(
            dict(zip(names, kept, strict=True)),
            {group.name: group.size for group in graph.groups},
            graph.digest,
            dict(provenance or {}),
        )
        found.check(graph)
        return found

    # ---- on a graph -------------------------------------------------------------------------------------------

    def check(self, graph: ChannelGraph) -> None:
        """Raises StructureError if the structure was made for another architecture, naming what differs."""
        sizes = {group.name: group.size for group in graph.groups}
        for name in self.sizes:
            if name not in sizes:
                raise StructureError(f"The model has no group {name!r}; the structure was made for another model.")
            if self.sizes[name] != sizes[name]:
                raise StructureError(
                    f"Group {name!r} has {sizes[name]} channels in the model and {self.sizes[name]} in the structure. "
                    "Apply a structure to the model that it was made from, not to the shrunk one."
                )
        for name in sizes:
            if name not in self.sizes:
                raise StructureError(
                    f"Group {name!r} of the model is not in the structure; it was made for another model."
                )
        widths = [len(self.kept[group.name]) for group in graph.groups]
        gone = {g for b in graph.vanished(widths) for g in graph.branches[b].groups}
        for g, group in enumerate(graph.groups):
            if not widths[g] and g not in gone:
                raise StructureError(
                    f"Group {group.name!r} keeps no channel. At least one of its {group.size} has to stay: "
                    "no branch of the network vanishes with it."
                )
            if widths[g] and g in gone:
                raise StructureError(
                    f"Group {group.name!r} keeps {widths[g]} channels of a branch that vanishes. "
                    "Keep none of them, or some of each group of the branch."
                )
        if self.model != graph.digest:
            raise StructureError(
                f"Groups agree, but the operations differ: digest {graph.digest}, the structure's is {self.model}. "
                "Input size, kernel, stride or layer names were changed."
            )

    def widths(self, graph: ChannelGraph) -> npt.NDArray[np.int64]:
        """[groups] kept channels of each group, in the graph's order; 0 where a branch vanishes."""
        self.check(graph)
        return np.array([len(self.kept[group.name]) for group in graph.groups], dtype=np.int64)

    def mask(self, graph: ChannelGraph) -> npt.NDArray[np.float64]:
        """[slots] 1 where a channel stays, 0 where it goes."""
        self.check(graph)
        mask = np.zeros(graph.slots)
        for group, start in zip(graph.groups, graph.offsets.tolist(), strict=False):
            mask[start + np.array(self.kept[group.name], dtype=np.int64)] = 1.0
        return mask

    # ---- as a file --------------------------------------------------------------------------------------------

    def to_json(self) -> dict[str, Any]:
        """JSON values, readable by `from_json`."""
        groups = {name: {"size": self.sizes[name], "kept": list(kept)} for name, kept in self.kept.items()}
        return {
            "format": FORMAT,
            "version": VERSION,
            "model": self.model,
            "groups": groups,
            "provenance": dict(self.provenance),
        }

    @classmethod
    def from_json(cls, data: Any) -> Structure:
        """The structure that `to_json` wrote.

        Raises:
            FileFormatError: something is missing or wrong; the message ends in the path into the document.
        """
        check(data, _SCHEMA)
        kept: dict[str, tuple[int, ...]] = {}
        for name, group in data["groups"].items():
            previous = -1
            for i, index in enumerate(group["kept"]):
                if not previous < index < group["size"]:
                    raise FileFormatError(
                        f"Expected an index above {previous} and below {group['size']}, got {index} "
                        f"- at $.groups.{name}.kept[{i}]"
                    )
                previous = index
            kept[name] = tuple(group["kept"])
        sizes = {name: group["size"] for name, group in data["groups"].items()}
        return cls(kept, sizes, data["model"], data.get("provenance", {}))

    def save(self, path: str | Path) -> None:
        """Writes the JSON file; a file that is there is replaced whole or not at all."""
        document = self.to_json()
        lines = [f"  {json.dumps(name)}: {json.dumps(group)}" for name, group in document["groups"].items()]
        groups = "{\n" + ",\n".join(lines) + "\n }"
        parts = [f" {json.dumps(k)}: {groups if k == 'groups' else json.dumps(v)}" for k, v in document.items()]
        write_bytes(path, ("{\n" + ",\n".join(parts) + "\n}\n").encode())

    @classmethod
    def load(cls, path: str | Path) -> Structure:
        """The structure in a file that `save` wrote.

        Raises:
            FileFormatError: the file is no structure.
        """
        try:
            return cls.from_json(read_json(path, "a structure"))
        except FileFormatError as error:
            raise FileFormatError(f"{path}: {error}") from error
