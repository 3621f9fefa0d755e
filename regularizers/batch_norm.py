"""Moving statistics of batch norms, taken again under the masks that will be used."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import keras
import numpy as np
from keras import ops


def recalibrate_batch_norm(model: Any, data: Iterable[Any], batches: int = 20) -> None:
    """Replaces the moving statistics of all batch norms by those of some batches, in place.

    While gates are drawn at random, moving statistics belong to networks that will not be used. Here gates (and
    dropout) are as at inference: mean and variance are averages over the batches, taken in one pass through the
    layers, each after those before it were set.

    Args:
        model: functional Keras model; gated, masked or slim.
        data: batches of inputs, or of (inputs, targets): a tf.data.Dataset, a list, or one array, which is a batch.
        batches: to read at most.

    Example:
        >>> from regularizers import recalibrate_batch_norm
        >>> def finish(gated, images):
        ...     recalibrate_batch_norm(gated, [images[:256]])
    """
    found = _inputs(data, batches)
    for norm in [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]:
        before = keras.Model(model.input, norm.input)
        means, variances = [], []
        for inputs in found:
            x = ops.cast(before(inputs, training=False), "float32")
            axes = tuple(axis for axis in range(len(x.shape)) if axis != norm.axis % len(x.shape))
            mean, variance = ops.moments(x, axes=axes)
            means.append(ops.convert_to_numpy(mean))
            variances.append(ops.convert_to_numpy(variance))
        mean = np.mean(means, axis=0)
        norm.moving_mean.assign(mean)
        norm.moving_variance.assign(np.mean(variances, axis=0) + np.mean((np.array(means) - mean) ** 2, axis=0))


def _inputs(data: Iterable[Any], batches: int) -> list[Any]:
    if hasattr(data, "shape"):
        return [data]
    found = []
    for batch in data:
        found.append(batch[0] if isinstance(batch, tuple) else batch)
        if len(found) == batches:
            break
    return found
