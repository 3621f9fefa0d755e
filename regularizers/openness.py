"""How open each channel is, as a tensor in the training graph: from gates, batch norm scales or weights.

Openness is one vector, [slots], slots numbered group after group as in `ChannelGraph`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import keras
import numpy as np
from keras import ops

from latency_lab.errors import UsageError
from latency_lab.gates import Gates

Combine = Literal["max", "l2", "probabilistic"]


def combined(vectors: Any, how: Combine, xp: Any = np) -> Any:
    """One regularization vector for a group from those of its members.

        max: max_m r_m      l2: sqrt(sum_m r_m^2)      probabilistic: 1 - prod_m (1 - r_m)

    Args:
        vectors: [members, channels]; 0 where a member does not have a channel.
        how: which of the three.
        xp: numpy or keras.ops.

    Returns:
        [channels].

    Example:
        >>> from regularizers.openness import combined
        >>> combined([[0.5, 0.2], [0.5, 0.4]], "probabilistic").round(2).tolist()
        [0.75, 0.52]

    Source: MorphNet, arXiv 1711.06798.
    """
    vectors = vectors if hasattr(vectors, "dtype") else xp.array(vectors)
    if how == "max":
        return xp.max(vectors, axis=0)
    if how == "l2":
        total = xp.sum(xp.square(vectors), axis=0)
        positive = total > 0  # the slope of a root is infinite at 0
        return xp.where(positive, xp.sqrt(xp.where(positive, total, xp.ones_like(total))), xp.zeros_like(total))
    if how == "probabilistic":
        return 1 - xp.prod(1 - vectors, axis=0)
    raise UsageError(
        f"Invalid value for argument `how`. Expected 'max', 'l2' or 'probabilistic'. Received: how={how!r}"
    )


def weight_size(weights: Any, axes: Sequence[int], l1_fraction: float, xp: Any = np) -> Any:
    """r = (1 - f)*RMS(w) + f*mean|w| over the weights that make a channel.

    Args:
        weights: a kernel.
        axes: all of its axes but the output channel's.
        l1_fraction: f, from 0 to 1.
        xp: numpy or keras.ops.

    Returns:
        The other axes of the kernel.

    Example:
        >>> import numpy as np
        >>> from regularizers.openness import weight_size
        >>> weight_size(np.array([[3.0, 0.0], [4.0, 1.0]]), (0,), l1_fraction=1.0).tolist()
        [3.5, 0.5]
    """
    axes = tuple(axes)
    found = np.sqrt(np.mean(np.square(weights), axis=axes)) if xp is np else root_mean_square(weights, axes)
    if not l1_fraction:
        return found
    magnitude = np.abs(weights) if xp is np else absolute(weights)
    return (1 - l1_fraction) * found + l1_fraction * xp.mean(magnitude, axis=axes)


def absolute(weights: Any) -> Any:
    """|w| with a slope of 0 at 0: JAX's own has 1 there, and channels that are closed would be moved."""
    return weights * ops.stop_gradient(ops.sign(weights))


def root_mean_square(weights: Any, axes: tuple[int, ...]) -> Any:
    """RMS(w), with its gradient in closed form: kernels are large, and passes over them are what a step pays for.

        r = sqrt(sum w^2 / n)      dr/dw = w / (n r), and 0 where r = 0

    Args:
        weights: a tensor of Keras's backend.
        axes: to take the mean over, in increasing order.

    Returns:
        The other axes.
    """
    count = math.prod(weights.shape[axis] for axis in axes)
    spread = [1 if axis in axes else size for axis, size in enumerate(weights.shape)]

    @ops.custom_gradient  # type: ignore[untyped-decorator]
    def size(weights: Any) -> tuple[Any, Any]:
        root = ops.sqrt(_sum_of_squares(weights, axes) / count)

        def gradient(*args: Any, upstream: Any = None) -> Any:
            upstream = args[0] if upstream is None else upstream
            return weights * ops.reshape(ops.divide_no_nan(upstream, count * root), spread)

        return root, gradient

    return size(weights)


def _sum_of_squares(weights: Any, axes: tuple[int, ...]) -> Any:
    """Over some axes. Over the first ones it is a product with a vector of ones: TensorFlow adds up rows that way in a
    third of the time that it takes for a sum over axes."""
    first = sum(axis == place for place, axis in enumerate(axes))
    rows = math.prod(weights.shape[:first])
    total = ops.matmul(ops.ones((1, rows)), ops.square(ops.reshape(weights, (rows, -1))))
    total = ops.reshape(total, weights.shape[first:])
    others = tuple(axis - first for axis in axes[first:])
    return ops.sum(total, axis=others) if others else total


@keras.saving.register_keras_serializable(package="latency_lab")
class PricedGates(Gates):
    """`Gates` that hand out their openness too: the probability that each channel is open, sigmoid(logit)."""

    def call(self, anchor: Any, training: bool = False) -> Any:
        """anchor: any tensor of the model, unread. Returns (mask, openness), each (slots,)."""
        return super().call(anchor, training=training), self.openness()

    def openness(self) -> Any:
        """sigmoid(logit), (slots,)."""
        return ops.sigmoid(self.open_logits())

    def compute_output_spec(self, anchor: Any, training: bool = False) -> Any:
        """Two of (slots,), float32."""
        return tuple(keras.KerasTensor((sum(self.sizes),), dtype="float32") for _ in range(2))


class _Bound:
    """Layers that are read and not owned: Keras tracks no weight through an object of this class."""

    def __init__(self, layers: Mapping[str, Any]) -> None:
        self.layers = dict(layers)


@keras.saving.register_keras_serializable(package="latency_lab")
class WeightOpenness(keras.layers.Layer):
    """The openness of channels by the weights of the layers that they pass through.

    It reads those layers, found by name, and tracks none of their weights; so it has to be bound to them, on attaching
    and after loading. `latest`, a weight that no optimizer changes, is the openness that the last training step began
    with: who follows the training reads it without going through all kernels.

    Args:
        slots: slot of each channel of each member layer, by the layer's name; -1: in no group.
        count: slots in all.
        of: "gamma" for |gamma| of batch norms, "weights" for `weight_size` of kernels.
        l1_fraction: of `weight_size`.
        combine: members of a group.
        typical: size that counts as an openness of 1, by the layer's name; None: 1 in all of them.
    """

    latency_lab_passthrough = True

    def __init__(
        self,
        slots: Mapping[str, Sequence[int]],
        count: int,
        of: Literal["gamma", "weights"],
        l1_fraction: float = 0.0,
        combine: Combine = "max",
        typical: Mapping[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**{"dtype": "float32", "autocast": False, **kwargs})
        self.slots = {name: [int(slot) for slot in found] for name, found in slots.items()}
        self.count = int(count)
        self.of = of
        self.l1_fraction = float(l1_fraction)
        self.combine: Combine = combine
        self.typical = {name: float((typical or {}).get(name, 1.0)) for name in self.slots}
        self._bound = _Bound({})
        self._places = _places(list(self.slots.values()), self.count)

    def build(self, input_shape: Any) -> None:
        """Makes the weight that holds the latest openness."""
        self.latest = self.add_weight(
            shape=(self.count,),
            initializer="zeros",
            dtype="float32",
            trainable=False,
            aggregation="only_first_replica",
            name="latest",
        )
        self.built = True

    def bind(self, model: Any) -> None:
        """Finds the member layers in the model that this layer is part of."""
        self._bound = _Bound({name: model.get_layer(name) for name in self.slots})

    def openness(self) -> Any:
        """The openness now, (slots,).

        Raises:
            UsageError: not bound to the member layers.
        """
        if not self._bound.layers:
            raise UsageError(
                f"Layer {self.name!r} reads weights of other layers and has not been told where they are: a loaded "
                "model has to be taken up by its regularizer before it trains on. Call regularizer.bind(model) first."
            )
        sizes = [self._size(self._bound.layers[name]) / self.typical[name] for name in self.slots]
        values = ops.concatenate([ops.convert_to_tensor([0.0, 1.0]), *sizes])
        return combined(ops.take(values, self._places, axis=0), self.combine, ops)

    def _size(self, layer: Any) -> Any:
        if self.of == "gamma":
            return absolute(ops.cast(layer.gamma, "float32"))
        kernel, axes = kernel_of(layer)
        return ops.reshape(weight_size(ops.cast(kernel, "float32"), axes, self.l1_fraction, ops), (-1,))

    def call(self, anchor: Any, training: bool = False) -> Any:
        """anchor: any tensor of the model, unread. Returns the openness, (slots,); zeros at inference when unbound."""
        if not training and not self._bound.layers:
            return ops.zeros((self.count,))
        found = self.openness()
        if training:
            self.latest.assign(ops.stop_gradient(found))
        return found

    def compute_mask(self, anchor: Any, previous_mask: Any) -> None:
        """None: the openness is that of channels, whatever the anchor."""

    def compute_output_spec(self, anchor: Any, training: bool = False) -> Any:
        """(slots,), float32."""
        return keras.KerasTensor((self.count,), dtype="float32")

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments."""
        own = {name: getattr(self, name) for name in ("slots", "count", "of", "l1_fraction", "combine", "typical")}
        return {**super().get_config(), **own}


def kernel_of(layer: Any) -> tuple[Any, tuple[int, ...]]:
    """The kernel that makes a layer's channels, and all of its axes but the channels'."""
    kind = type(layer).__name__
    kernel = layer.pointwise_kernel if kind.startswith("SeparableConv") else layer.kernel
    axes = range(len(kernel.shape))
    if kind.startswith("DepthwiseConv"):  # (..., channels, multiplier)
        return kernel, tuple(axes[:-2])
    if kind.endswith("Transpose"):  # (..., out_channels, in_channels)
        return kernel, (*axes[:-2], axes[-1])
    return kernel, tuple(axes[:-1])


def _places(slots: Sequence[Sequence[int]], count: int) -> Any:
    """[members of a slot at most, count] index of each slot's k-th channel among (0, 1, all channels of all members): 0
    where it has fewer, 1 where it has none."""
    rows: list[list[int]] = [[] for _ in range(count)]
    place = 2
    for found in slots:
        for slot in found:
            if slot >= 0:
                rows[slot].append(place)
            place += 1
    deep = max((len(row) for row in rows), default=0) or 1
    rows = [row or [1] for row in rows]
    return np.array([row + [0] * (deep - len(row)) for row in rows], np.int32).reshape(count, deep).T
