"""Moving statistics of batch norms, taken again under the masks that will be used."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterable
from typing import Any

import keras
import numpy as np
from keras import ops

from latency_lab.graph.keras_walk import readings

LOGGER = logging.getLogger(__name__)


def recalibrate_batch_norm(model: Any, data: Iterable[Any], batches: int = 20) -> None:
    """Replaces the moving statistics of all batch norms by those of some batches, in place.

    While gates are drawn at random, moving statistics belong to networks that will not be used. Here gates (and
    dropout) are as at inference: mean and variance are averages over the batches, and over all calls of a norm that is
    shared, taken in one pass through the layers, each after those before it were set. Norms in nested models are set
    too; those in a layer or a subclassed model within, where they cannot be reached, are named (logging).

    Args:
        model: functional or built Sequential Keras model; gated, masked or slim.
        data: batches of inputs, or of (inputs, targets): a tf.data.Dataset, a torch DataLoader, a list, or one array,
            which is a batch.
        batches: to read at most.

    Raises:
        UnsupportedModelError: the model is subclassed or not built.

    Example:
        >>> from regularizers import recalibrate_batch_norm
        >>> def finish(gated, images):
        ...     recalibrate_batch_norm(gated, [images[:256]])
    """
    calls: dict[Any, list[Callable[[Any], Any]]] = {}
    for norm, read in readings(model, _is_norm):
        calls.setdefault(norm, []).append(read)
    found = _inputs(data, batches, alone=len(model.inputs) == 1)
    for norm, reads in calls.items():
        means, variances = [], []
        for read, inputs in itertools.product(reads, found):
            x = ops.cast(read(inputs), "float32")
            axes = tuple(axis for axis in range(len(x.shape)) if axis != norm.axis % len(x.shape))
            mean, variance = ops.moments(x, axes=axes)
            means.append(ops.convert_to_numpy(mean))
            variances.append(ops.convert_to_numpy(variance))
        mean = np.mean(means, axis=0)
        norm.moving_mean.assign(mean)
        norm.moving_variance.assign(np.mean(variances, axis=0) + np.mean((np.array(means) - mean) ** 2, axis=0))
    if missed := [layer.name for layer in model._flatten_layers() if _is_norm(layer) and layer not in calls]:
        LOGGER.warning(
            "Not recalibrated, as they are in layers whose call() is Python code: %s. Their statistics stay.",
            ", ".join(dict.fromkeys(missed)),
        )


def _is_norm(layer: Any) -> bool:
    return isinstance(layer, keras.layers.BatchNormalization)


def _inputs(data: Iterable[Any], batches: int, alone: bool) -> list[Any]:
    """What the model takes of each batch.

    Args:
        data: as of `recalibrate_batch_norm`.
        batches: at most.
        alone: whether the model has one input. A list is then (inputs, targets), as PyTorch's loaders give them, and of
            several inputs it is all of them.
    """
    if hasattr(data, "shape"):
        return [data]
    pairs = (tuple, list) if alone else tuple
    return [batch[0] if isinstance(batch, pairs) else batch for batch in itertools.islice(data, batches)]
