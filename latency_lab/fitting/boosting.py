"""Boosted regression trees under a loss that forgives outliers, taken apart into the arrays of `profiles.trees`.

Each tree is fitted to what a step along the Cauchy loss asks for, on a random part of the rows:

    g_i = r_i / (1 + (r_i / d)^2),   r = y - trees so far,   d = 4 median |r|

A point whose residual is far beyond the others (a kernel that was chosen otherwise, a stall) pulls less the further
off it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from latency_lab.profiles import Trees

Floats = npt.NDArray[np.float64]

TREES = 200
LEARNING_RATE = 0.08
MOST_LEAVES = 32
LEAST_LEAVES = 6
ROWS_A_LEAF = 60
MAX_DEPTH = 10
SHARE_OF_ROWS = 0.7
SHARE_OF_FEATURES = 0.5
LEAST_ROWS = 3
SCALE = 4.0
LEAST_SCALE = 0.005
DIGITS = 7


def fit_trees(x: npt.NDArray[np.float32], y: Floats) -> Trees:
    """Trees whose sum follows y.

    A tree has a leaf for each `ROWS_A_LEAF` rows, from `LEAST_LEAVES` to `MOST_LEAVES`: what is stored stays in
    proportion to what was measured. Thresholds and values are rounded to `DIGITS` digits before they are used.

    Args:
        x: features, [n, k].
        y: wanted sums, [n].

    Source: J. H. Friedman, "Greedy function approximation: a gradient boosting machine", 2001, and "Stochastic
    gradient boosting", 2002.
    """
    from sklearn.tree import DecisionTreeRegressor

    rng = np.random.default_rng(0)
    leaves = int(np.clip(len(y) // ROWS_A_LEAF, LEAST_LEAVES, MOST_LEAVES))
    grown = [_constant(float(np.median(y)))]
    left = y - grown[0].number[0]
    for _ in range(TREES):
        scale = max(SCALE * float(np.median(np.abs(left))), LEAST_SCALE)
        step = left / (1 + (left / scale) ** 2)
        rows = rng.permutation(len(y))[: max(2, round(SHARE_OF_ROWS * len(y)))]
        model = DecisionTreeRegressor(
            max_leaf_nodes=leaves,
            max_depth=MAX_DEPTH,
            max_features=SHARE_OF_FEATURES,
            min_samples_leaf=LEAST_ROWS,
            random_state=int(rng.integers(1 << 31)),
        )
        tree = _preorder(model.fit(x[rows], step[rows]).tree_)
        left = left - tree(x)
        grown.append(tree)
    return _joined(grown)


def _constant(value: float) -> Trees:
    """One leaf."""
    none = np.zeros(1, np.int32)
    return Trees(none, none - 1, _rounded(np.array([value])), none, depth=0)


def _preorder(tree: Any) -> Trees:
    """One fitted tree with its nodes in preorder and its values shrunk by the learning rate."""
    order = np.array(list(_walk(tree)), np.int64)
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    right = tree.children_right[order]
    leaf = right < 0
    number = np.where(leaf, LEARNING_RATE * tree.value[order, 0, 0], tree.threshold[order])
    offset = np.where(leaf, 0, place[right] - np.arange(len(order)))
    feature = np.where(leaf, -1, tree.feature[order])
    roots = np.zeros(1, np.int32)
    return Trees(roots, feature.astype(np.int32), _rounded(number), offset.astype(np.int32), int(tree.max_depth))


def _walk(tree: Any) -> Iterator[int]:
    """Nodes in preorder."""
    waiting = [0]
    while waiting:
        node = waiting.pop()
        yield node
        if tree.children_left[node] >= 0:
            waiting += [int(tree.children_right[node]), int(tree.children_left[node])]


def _joined(trees: list[Trees]) -> Trees:
    sizes = np.cumsum([0, *(len(tree.number) for tree in trees[:-1])])
    return Trees(
        roots=sizes.astype(np.int32),
        feature=np.concatenate([tree.feature for tree in trees]),
        number=np.concatenate([tree.number for tree in trees]),
        right=np.concatenate([tree.right for tree in trees]),
        depth=max(tree.depth for tree in trees),
    )


def _rounded(values: Floats) -> Floats:
    """To `DIGITS` significant digits."""
    return np.array([float(f"{value:.{DIGITS}g}") for value in values], np.float64)
