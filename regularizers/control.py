"""Holding a budget while the network trains: a controller of the strength, and the callback that feeds it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from latency_lab.budget import widths_above

if TYPE_CHECKING:
    from regularizers.base import Regularizer


@dataclass
class BudgetControl:
    """Proportional and integral control of the strength, against a target that ramps down.

        reference = origin + (target - origin) * min(1, progress / ramp)
        error     = share - reference                 (share: of the initial cost that the thresholded structure has)
        strength  = clip(integral + proportional * error, 0, cap),   integral += integral_gain * error * d progress

    The integral does not grow while the strength is at the cap, and not below 0.

    Args:
        target: share of the initial cost.
        start: strength at progress 0.
        proportional, integral_gain: in strength for an error of 1; the second over a whole training.
        release: how many times faster the integral falls than it grows: a channel that has closed hardly reopens.
        ramp: share of the training in which the reference comes down.
        cap: largest strength.
        origin: share at progress 0.

    Example:
        >>> from regularizers.control import BudgetControl
        >>> control = BudgetControl(target=0.5, start=1.0)
        >>> control.update(progress=0.5, share=1.0) > 1.0
        True
    """

    target: float
    start: float = 1.0
    proportional: float = 20.0
    integral_gain: float = 20.0
    release: float = 5.0
    ramp: float = 0.6
    cap: float = 30.0
    origin: float = 1.0
    progress: float = field(default=0.0, init=False)
    integral: float = field(init=False)

    def __post_init__(self) -> None:
        self.integral = self.start

    def reference(self, progress: float) -> float:
        """Where the cost should be by now, as a share of the initial cost."""
        return self.origin + (self.target - self.origin) * min(1.0, progress / self.ramp)

    def update(self, progress: float, share: float) -> float:
        """The strength from now on.

        Args:
            progress: share of the training that is done.
            share: cost of the thresholded structure over the initial cost.
        """
        error = share - self.reference(progress)
        elapsed, self.progress = max(0.0, progress - self.progress), progress
        wanted = self.integral + self.proportional * error
        gain = self.integral_gain if error > 0 else self.release * self.integral_gain
        if wanted < self.cap or error < 0:
            self.integral = max(0.0, self.integral + gain * error * elapsed)
        return min(max(self.integral + self.proportional * error, 0.0), self.cap)


class BudgetCallback(keras.callbacks.Callback):
    """Reads the widths that training has reached, puts them into the logs, and steers the strength.

    Logs at the end of each epoch: the cost of the thresholded structure (`latency_ms`, or the cost's unit for other
    costs), `channels`, `strength`.

    Args:
        regularizer: attached to the model that is trained.
        control: of the strength; None: the strength stays.
        every: batches between two readings; None: a hundredth of the training, 1 to 10.

    The reading looks ahead: at where the openness of each channel will be in `regularizer.horizon` steps if it goes on
    as between the last two readings. Channels that start alike would else all have closed before the first was seen to.
    """

    def __init__(self, regularizer: Regularizer, control: BudgetControl | None, every: int | None = None) -> None:
        super().__init__()
        self.regularizer = regularizer
        self.control = control
        self.every = every
        self._step = 0
        self._last: Any = None

    def on_train_begin(self, logs: Any = None) -> None:
        """Counts the steps of the training; control starts from where the model is."""
        regularizer = self.regularizer
        self._step, self._last = 0, regularizer.openness()
        if self.control is not None:
            share = regularizer.cost.at(regularizer.widths()) / regularizer.initial
            self.control = dataclasses.replace(self.control, origin=share, start=regularizer.strength)
        self._total = max(1, (self.params.get("epochs") or 1) * (self.params.get("steps") or 1))
        self._every = self.every or min(max(self._total // 100, 1), 10)
        regularizer.begin(self._total)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Every `every` batches: a new strength."""
        self._step += 1
        if self.control is None or self._step % self._every:
            return
        progress = min(1.0, self._step / self._total)
        self.regularizer.set_strength(self.control.update(progress, self._share_ahead()))

    def _share_ahead(self) -> float:
        """Share of the initial cost that the open channels will have."""
        regularizer, openness = self.regularizer, self.regularizer.openness()
        steps = min(regularizer.horizon, max(0, self._total - self._step))
        with np.errstate(invalid="ignore"):
            ahead = openness + np.nan_to_num(openness - self._last) * (steps / self._every)
        self._last = openness
        widths = widths_above(regularizer.cost, ahead, regularizer.threshold)
        return regularizer.cost.at(widths) / regularizer.initial

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Puts cost, channels and strength into the logs."""
        if logs is not None:
            widths = self.regularizer.widths()
            logs[self.regularizer.log_name] = self.regularizer.cost.at(widths)
            logs["channels"] = int(widths.sum())
            logs["strength"] = self.regularizer.strength
