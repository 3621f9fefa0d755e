"""Holding a budget while the network trains: a controller of the strength, and the callback that feeds it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import keras

if TYPE_CHECKING:
    from regularizers.base import Regularizer


@dataclass
class BudgetControl:
    """Proportional and integral control of the strength, against a target that ramps down.

        reference = 1 + (target - 1) * min(1, progress / ramp)
        error     = share - reference                 (share: of the initial cost that the thresholded structure has)
        strength  = clip(integral + proportional * error, 0, cap),   integral += integral_gain * error * d progress

    The integral does not grow while the strength is at the cap, and not below 0.

    Args:
        target: share of the initial cost.
        start: strength at progress 0.
        proportional, integral_gain: in strength for an error of 1; the second over a whole training.
        ramp: share of the training in which the reference comes down.
        cap: largest strength.

    Example:
        >>> from regularizers.control import BudgetControl
        >>> control = BudgetControl(target=0.5, start=1.0)
        >>> control.update(progress=0.5, share=1.0) > 1.0
        True
    """

    target: float
    start: float = 1.0
    proportional: float = 10.0
    integral_gain: float = 20.0
    ramp: float = 0.6
    cap: float = 30.0
    progress: float = field(default=0.0, init=False)
    integral: float = field(init=False)

    def __post_init__(self) -> None:
        self.integral = self.start

    def reference(self, progress: float) -> float:
        """Where the cost should be by now, as a share of the initial cost."""
        return 1 + (self.target - 1) * min(1.0, progress / self.ramp)

    def update(self, progress: float, share: float) -> float:
        """The strength from now on.

        Args:
            progress: share of the training that is done.
            share: cost of the thresholded structure over the initial cost.
        """
        error = share - self.reference(progress)
        elapsed, self.progress = max(0.0, progress - self.progress), progress
        wanted = self.integral + self.proportional * error
        if wanted < self.cap or error < 0:
            self.integral = max(0.0, self.integral + self.integral_gain * error * elapsed)
        return min(max(self.integral + self.proportional * error, 0.0), self.cap)


class BudgetCallback(keras.callbacks.Callback):  # type: ignore[misc]
    """Reads the widths that training has reached, puts them into the logs, and steers the strength.

    Logs at the end of each epoch: the cost of the thresholded structure (`latency_ms`, or the cost's unit for other
    costs), `channels`, `strength`.

    Args:
        regularizer: attached to the model that is trained.
        control: of the strength; None: the strength stays.
        every: batches between two readings.
    """

    def __init__(self, regularizer: Regularizer, control: BudgetControl | None, every: int = 10) -> None:
        super().__init__()
        self.regularizer = regularizer
        self.control = control
        self.every = every
        self._step = 0

    def on_train_begin(self, logs: Any = None) -> None:
        """Counts the steps of the training."""
        self._step = 0
        self._total = max(1, (self.params.get("epochs") or 1) * (self.params.get("steps") or 1))

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Every `every` batches: a new strength."""
        self._step += 1
        if self.control is None or self._step % self.every:
            return
        share = self.regularizer.cost.at(self.regularizer.widths()) / self.regularizer.initial
        self.regularizer.set_strength(self.control.update(min(1.0, self._step / self._total), share))

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Puts cost, channels and strength into the logs."""
        if logs is not None:
            widths = self.regularizer.widths()
            logs[self.regularizer.log_name] = self.regularizer.cost.at(widths)
            logs["channels"] = int(widths.sum())
            logs["strength"] = self.regularizer.strength
