"""Boosted regression trees as plain arrays, evaluated by numpy alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from latency_lab.errors import FileFormatError

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int32]

MAX_DEPTH = 64
CHUNK = 1 << 20
"""Pairs of a row and a tree that are walked at a time: keeps the walk's arrays in some tens of MB."""


@dataclass(frozen=True, slots=True)
class Trees:
    """Nodes of all trees behind one another, each tree in preorder: a node's left child is the node behind it.

    Attributes:
        roots: index of each tree's root, [trees].
        feature: what a node compares, [nodes]; -1 at a leaf.
        number: a node sends x to the left where x[feature] <= number; what a leaf adds, [nodes].
        right: how many nodes further the right child stands, [nodes]; 0 at a leaf.
        depth: steps that lead from any root to a leaf.
    """

    roots: Integers
    feature: Integers
    number: Floats
    right: Integers
    depth: int

    def __call__(self, x: npt.NDArray[np.float32]) -> Floats:
        """Sum over trees, [n], of features [n, k]."""
        found = np.zeros(len(x))
        step = max(1, CHUNK // max(1, len(self.roots)))
        for start in range(0, len(x), step):
            found[start : start + step] = self._walk(x[start : start + step])
        return found

    def _walk(self, x: npt.NDArray[np.float32]) -> Floats:
        flat, starts = x.ravel(), (np.arange(len(x)) * x.shape[1])[:, None]
        at = np.broadcast_to(self.roots.astype(np.intp), (len(x), len(self.roots)))
        for _ in range(self.depth):
            feature = self.feature[at]
            goes_left = flat[starts + np.maximum(feature, 0)] <= self.number[at]
            at = at + np.where(feature < 0, 0, np.where(goes_left, 1, self.right[at]))
        return np.asarray(self.number[at].sum(axis=1), np.float64)

    def to_json(self) -> dict[str, Any]:
        """Arrays as lists."""
        names = ("roots", "feature", "number", "right")
        return {**{name: getattr(self, name).tolist() for name in names}, "depth": self.depth}

    @classmethod
    def from_json(cls, data: Mapping[str, Any], features: int) -> Trees:
        """The trees that `to_json` wrote.

        Args:
            data: JSON values.
            features: how many there are to compare.

        Raises:
            FileFormatError: arrays differ in length, or an index leads out of them.
        """
        arrays: dict[str, Any] = {name: np.array(data[name], np.int64) for name in ("roots", "feature", "right")}
        number = np.array(data["number"], np.float64)
        size = len(number)
        if any(len(arrays[name]) != size for name in ("feature", "right")):
            raise FileFormatError("Expected arrays of one length - at $.predictors.*.trees")
        leaf = arrays["feature"] < 0
        targets = np.arange(size) + arrays["right"]
        limits = (
            ("roots", arrays["roots"], 0, size),
            ("feature", arrays["feature"], -1, features),
            ("right", targets, 0, size),
        )
        for name, values, low, end in limits:
            if len(values) and not low <= values.min() <= values.max() < end:
                raise FileFormatError(f"Expected indices from {low} to {end - 1} - at $.predictors.*.trees.{name}")
        if size and not leaf[-1]:
            raise FileFormatError("Expected a leaf as the last node - at $.predictors.*.trees.feature")
        arrays = {name: values.astype(np.int32) for name, values in arrays.items()}
        return cls(**arrays, number=number, depth=min(int(data["depth"]), MAX_DEPTH))
