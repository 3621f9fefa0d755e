"""What open channels pay: one layer in the model that is fed the openness and adds a loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from latency_lab.cost.formula import Formula, formula_from_json
from latency_lab.cost.linearised import linearised


@keras.saving.register_keras_serializable(package="latency_lab")
class Penalty(keras.layers.Layer):
    """Hands on its first input (and its mask), and in training adds to the loss what the openness costs.

        threshold None:  strength * cost(widths) / initial,       widths_g = sum of the openness of group g, >= lowest_g
        else:            strength * sum_g p_g * widths_g / initial, p_g = d cost / d width_g where openness > threshold

    No gradient goes through p_g. The strength is a weight of the layer that no optimizer changes.

    Args:
        formula: of the cost, as `Formula.to_json` gives it.
        sizes: channels of each group.
        initial: the cost of all channels, in the formula's unit.
        strength: at the start, in units of 1/initial.
        threshold: of an open channel.
        lowest: channels of each group that stay, whatever their openness; None: 1 each.
    """

    latency_lab_passthrough = True

    def __init__(
        self,
        formula: Mapping[str, Any],
        sizes: Sequence[int],
        initial: float,
        strength: float = 1.0,
        threshold: float | None = None,
        lowest: Sequence[int] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**{"dtype": "float32", "autocast": False, **kwargs})
        self.formula: Formula = formula_from_json(formula)
        self.sizes = [int(size) for size in sizes]
        self.initial = float(initial)
        self.start = float(strength)
        self.threshold = threshold
        self.lowest = [int(count) for count in lowest or [1] * len(self.sizes)]
        self._group_of = np.repeat(np.arange(len(self.sizes), dtype=np.int32), self.sizes)

    def build(self, input_shape: Any) -> None:
        """Makes the weight that holds the strength."""
        start = keras.initializers.Constant(self.start)
        self.strength = self.add_weight(shape=(), initializer=start, trainable=False, name="strength", dtype="float32")
        self.built = True

    def loss_of(self, openness: Any) -> Any:
        """What an openness [slots] costs at strength 1: a scalar."""
        widths = self._widths(openness)
        if self.threshold is None:
            return self.formula.value(ops.maximum(widths, self._lowest), ops) / self.initial
        alive = ops.maximum(self._widths(ops.cast(openness > self.threshold, "float32")), self._lowest)
        return linearised(self.formula, ops.stop_gradient(alive), widths, ops) / self.initial

    @property
    def _lowest(self) -> Any:
        return np.array(self.lowest, np.float32)

    def _widths(self, openness: Any) -> Any:
        return ops.segment_sum(openness, self._group_of, num_segments=len(self.sizes))

    def call(self, inputs: Any, training: bool = False) -> Any:
        """inputs: [any tensor of the model, openness (slots,)]. Returns the tensor."""
        tensor, openness = inputs
        if training:
            self.add_loss(self.strength * self.loss_of(ops.cast(openness, "float32")))
        return tensor

    def compute_output_spec(self, inputs: Any, training: bool = False) -> Any:
        """That of the tensor."""
        return keras.KerasTensor(inputs[0].shape, dtype=inputs[0].dtype)

    def compute_mask(self, inputs: Any, previous_mask: Any) -> Any:
        """That of the tensor."""
        return None if previous_mask is None else previous_mask[0]

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments."""
        own = {name: getattr(self, name) for name in ("sizes", "initial", "threshold", "lowest")}
        return {**super().get_config(), "formula": self.formula.to_json(), "strength": self.start, **own}
