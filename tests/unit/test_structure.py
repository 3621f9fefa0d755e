"""Structures: what they check, and the file."""

from __future__ import annotations

import copy
import json
from typing import Any

import numpy as np
import pytest

from latency_lab.errors import FileFormatError, StructureError
from latency_lab.graph import ChannelGraph, Group
from latency_lab.structure import Structure


def graph_of(*groups: Group) -> ChannelGraph:
    none = np.zeros((0, len(groups)))
    return ChannelGraph((), groups, (), none, none, np.zeros(0), np.zeros(0), (), {})


GRAPH = graph_of(Group("a", 3, ("a",)), Group("b", 2, ("b", "c")))
STRUCTURE = Structure.from_mask(GRAPH, [1, 0, 1, 0, 1], {"target_ms": 5.0})


def test_mask_and_widths_go_both_ways() -> None:
    assert STRUCTURE.kept == {"a": (0, 2), "b": (1,)}
    assert STRUCTURE.widths(GRAPH).tolist() == [2, 1]
    assert STRUCTURE.mask(GRAPH).tolist() == [1, 0, 1, 0, 1]
    assert Structure.full(GRAPH).widths(GRAPH).tolist() == [3, 2]


def test_a_group_keeps_at_least_one_channel() -> None:
    with pytest.raises(StructureError, match="Group 'b' keeps no channel. At least one of its 2 has to stay"):
        Structure.from_mask(GRAPH, [1, 1, 1, 0, 0])


@pytest.mark.parametrize("kept", [(1, 0), (0, 0), (0, 3), (-1, 0)])
def test_indices_are_ascending_and_in_range(kept: tuple[int, ...]) -> None:
    with pytest.raises(StructureError, match=r"group 'a' must be ascending, each once, in 0\.\.2"):
        Structure({"a": kept}, {"a": 3}, "x")


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (graph_of(Group("a", 3, ("a",))), "has no group 'b'"),
        (graph_of(Group("a", 4, ("a",)), Group("b", 2, ("b",))), "Group 'a' has 4 channels in the model and 3"),
        (graph_of(*GRAPH.groups, Group("c", 2, ("c",))), "Group 'c' of the model is not in the structure"),
        (graph_of(Group("a", 3, ("a",)), Group("b", 2, ("b",))), "operations differ"),
    ],
)
def test_another_graph_is_refused_with_what_differs(other: ChannelGraph, message: str) -> None:
    with pytest.raises(StructureError, match=message):
        STRUCTURE.mask(other)


def test_a_mask_of_another_length_is_refused() -> None:
    with pytest.raises(StructureError, match=r"Expected a mask of shape \(5,\)"):
        Structure.from_mask(GRAPH, [1, 1])


def test_the_file_goes_round_and_is_readable(tmp_path: Any) -> None:
    path = tmp_path / "structure.json"
    STRUCTURE.save(path)
    assert Structure.load(path) == STRUCTURE
    assert '  "a": {"size": 3, "kept": [0, 2]},' in path.read_text().splitlines()
    assert [file.name for file in tmp_path.iterdir()] == ["structure.json"]


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["format"], "x", r"\$.format"),
        (["version"], 2, r"\$.version"),
        (["groups"], [], r"Expected object, got array - at \$.groups"),
        (["groups", "a", "size"], "3", r"Expected integer, got string - at \$.groups.a.size"),
        (["groups", "a", "kept", 1], 7, r"below 3, got 7 - at \$.groups.a.kept\[1\]"),
        (["groups", "a", "kept", 1], 0, r"above 0 .* got 0 - at \$.groups.a.kept\[1\]"),
        (["groups", "a", "kept", 0], True, r"\$.groups.a.kept\[0\]"),
        (["model"], None, r"\$.model"),
    ],
)
def test_a_wrong_file_is_refused_with_the_path(path: list[Any], value: Any, message: str) -> None:
    document = copy.deepcopy(STRUCTURE.to_json())
    inner = document
    for step in path[:-1]:
        inner = inner[step]
    inner[path[-1]] = value
    with pytest.raises(FileFormatError, match=message):
        Structure.from_json(document)


def test_a_file_that_is_no_json_is_refused_by_name(tmp_path: Any) -> None:
    path = tmp_path / "structure.json"
    path.write_text(json.dumps({"format": "other"}))
    with pytest.raises(FileFormatError, match="structure.json"):
        Structure.load(path)
    with pytest.raises(FileFormatError, match=r"missing\.json"):
        Structure.load(tmp_path / "missing.json")
