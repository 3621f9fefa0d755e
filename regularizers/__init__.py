"""Regularizers that learn widths against the cost of any `latency_lab` cost.

Importing this registers the layers of gated models with Keras, so that a saved one loads.
"""

from __future__ import annotations

from regularizers.base import Regularizer
from regularizers.batch_norm import recalibrate_batch_norm
from regularizers.control import BudgetCallback, BudgetControl, SteeredPenalty
from regularizers.gamma import Gamma
from regularizers.group_lasso import GroupLasso
from regularizers.logistic_sigmoid import LogisticSigmoid
from regularizers.monitor import OpennessHistograms, StructureLog
from regularizers.penalty import Penalty

__all__ = [
    "BudgetCallback",
    "BudgetControl",
    "Gamma",
    "GroupLasso",
    "LogisticSigmoid",
    "OpennessHistograms",
    "Penalty",
    "Regularizer",
    "SteeredPenalty",
    "StructureLog",
    "recalibrate_batch_norm",
]
