"""Holding a budget while the network trains: a controller of the strength, and the callback that feeds it."""

from __future__ import annotations

import dataclasses
import logging
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from latency_lab.budget import Floats
from regularizers.penalty import Penalty

if TYPE_CHECKING:
    from regularizers.base import Regularizer

LOGGER = logging.getLogger(__name__)

WARM_UP = 10
"""Steps, at most, over which `strength="auto"` reads the loss."""

UNKNOWN_LENGTH = (
    "%s: nobody knows how many batches an epoch has, and the budget is not steered before the first epoch has ended. "
    "Give `fit` steps_per_epoch, or the dataset its length: "
    "dataset.apply(tf.data.experimental.assert_cardinality(batches))."
)
UNSTEERED = " This training has no other epoch: the budget will be met by cutting open channels."


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

    def resumed(self, origin: float, progress: float, integral: float) -> BudgetControl:
        """This control, as it stood in the middle of a training."""
        found = dataclasses.replace(self, origin=origin)
        found.progress, found.integral = progress, integral
        return found


@keras.saving.register_keras_serializable(package="latency_lab")
class SteeredPenalty(Penalty):
    """`Penalty` that keeps what steers it, so that a training that was cut off goes on from the saved model.

    `control`, a weight that no optimizer changes: (unit of the strength, 0 while unknown; origin, progress and integral
    of the `BudgetControl`).
    """

    def build(self, input_shape: Any) -> None:
        """Makes the weights."""
        super().build(input_shape)
        self.control = self.add_weight(
            shape=(4,), initializer="zeros", trainable=False, name="control", dtype="float32"
        )


class BudgetCallback(keras.callbacks.Callback):
    """Reads the widths that training has reached, puts them into the logs, and steers the strength.

    Logs at the end of each epoch: the cost of the thresholded structure (`latency_ms`, or the cost's unit for other
    costs), `share` of the initial cost, `channels`, `strength`, and `collapsed`, the number of groups that are down to
    their last channel.

    Args:
        regularizer: attached to the model that is trained.
        control: of the strength; None: the strength stays.
        every: batches between two readings; None: a hundredth of the training, 1 to 10.

    Attributes:
        step: batches that the training has seen; those of earlier epochs too where it goes on from a saved model.
        epoch: that is running.
        resumed: whether it goes on from a saved model, with the control's state of then: `fit` starts at an epoch after
            the first (its own `initial_epoch`, or Keras' BackupAndRestore), and the model has been steered before.

    The reading looks ahead: at where the openness of each channel will be in `regularizer.horizon` steps if it goes on
    as between the last two readings. Channels that start alike would else all have closed before the first was seen to.
    """

    def __init__(self, regularizer: Regularizer, control: BudgetControl | None, every: int | None = None) -> None:
        super().__init__()
        self.regularizer = regularizer
        self.control = control
        self.every = every
        self.step = self.epoch = 0
        self.resumed = False
        self._begun = False

    def on_train_begin(self, logs: Any = None) -> None:
        """Weight decay, where the optimizer has one, leaves alone what says how open a channel is."""
        self._begun = False
        spare_from_decay(self.model.optimizer, self.regularizer.undecayed())

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Before the first: control starts from where the model is, or goes on from where it was cut off."""
        self.epoch, self._batches = epoch, 0
        if not self._begun:
            self._begin(epoch)
        self._before = self.step

    def _begin(self, epoch: int) -> None:
        """All callbacks have begun, and what they restored is there."""
        regularizer, self._begun = self.regularizer, True
        self._epochs, self._steps = self.params.get("epochs") or 1, self.params.get("steps")
        self._every = self.every or min(max(self._total // 100, 1), 10)
        self.step = epoch * (self._steps or 0)
        self._read_at, self._last = self.step, regularizer.openness()
        self._unit, origin, progress, integral = regularizer.control_state()
        self.resumed = epoch > 0 and self._unit > 0
        self._from, self._reached = epoch, min(progress, epoch / self._epochs) if self.resumed else 0.0
        self._own_unit = regularizer.unit() if self.control is not None else 1.0
        if not regularizer.auto and not self.resumed:
            self._unit = self._own_unit
        if not self.resumed:
            regularizer.forget_history()
            origin, progress, integral = self._share(self._last), 0.0, regularizer.strength / (self._unit or 1.0)
        if self.control is not None:
            self.control = dataclasses.replace(self.control, start=integral).resumed(origin, progress, integral)
        if not self._unit:
            self._unknown_from = self.step
            regularizer.set_strength(0.0)  # so that the loss that is read is the task's
        self._keep()
        if self.control is not None and not self._steps:
            LOGGER.warning(UNKNOWN_LENGTH + UNSTEERED * (self._epochs - epoch < 2), type(regularizer).__name__)
        regularizer.begin(max(1, self._total - self.step) if self._steps else None)

    @property
    def _total(self) -> int:
        """Steps of the training; 10 an epoch as long as nobody knows."""
        return max(1, self._epochs * (self._steps or 10))

    @property
    def _progress(self) -> float:
        """Share of the training that is done: of a new one from its first epoch, of one that goes on from what it had
        reached. While the steps of an epoch are unknown, in the first, it stands, and the others share what is left."""
        within = self._batches / self._steps if self._steps else 0.0
        done = (self.epoch + within - self._from) / max(1, self._epochs - self._from)
        return min(1.0, self._reached + (1 - self._reached) * done)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Every `every` batches: a reading, and a new strength."""
        self._batches = batch + 1
        self.step = self._before + self._batches
        if not self._unit:
            self._measure_unit(logs or {})
        elif self.step - self._read_at >= self._every:
            self._read()

    def _measure_unit(self, logs: Any) -> None:
        """The loss of the first steps, the unit of strength="auto"."""
        if self.step - self._unknown_from < min(WARM_UP, max(1, self._total // 20)):
            return
        loss = abs(float(logs.get("loss", math.nan)))
        if not (math.isfinite(loss) and loss > 0):
            LOGGER.warning("strength='auto' needs a finite loss other than 0, and read %s: taken as 1.", loss)
            loss = 1.0
        self._unit = loss * self._own_unit
        self.regularizer.set_strength(self._unit * (self.control.start if self.control else 1.0))
        self._keep()

    def _read(self) -> None:
        openness = self.regularizer.latest_openness()
        if self.control is not None:
            share = self._share(self._ahead(openness))
            self.regularizer.set_strength(self._unit * self.control.update(self._progress, share))
            self._keep()
        self._read_at, self._last = self.step, openness
        self.regularizer.record(self.step, self.epoch, openness)

    def _keep(self) -> None:
        """State of the control into the model."""
        control = self.control
        steered = (control.origin, control.progress, control.integral) if control else (0.0, 0.0, 0.0)
        self.regularizer.set_control_state((self._unit, *steered))

    def _share(self, openness: Floats) -> float:
        """Of the initial cost, that the channels cost that are open."""
        return self.regularizer.cost.at(self.regularizer.widths(openness)) / self.regularizer.initial

    def _ahead(self, openness: Floats) -> Floats:
        """The openness some steps from now; a channel that has closed is taken to stay so, whatever noise it has."""
        steps = min(self.regularizer.horizon, max(0, self._total - self.step) if self._steps else math.inf)
        with np.errstate(invalid="ignore"):  # channels that have to stay are open without end
            moved = np.nan_to_num(openness - self._last)
        ahead = openness + moved * (steps / (self.step - self._read_at))
        return np.where(openness > self.regularizer.threshold, ahead, openness)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Puts cost, channels and strength into the logs."""
        if not self._steps:  # the ramp starts here
            self._steps, self._from = self._batches, epoch + 1
        found = self.regularizer.record(self.step, epoch)
        if logs is not None:
            logs[self.regularizer.log_name] = found["cost"]
            logs["share"] = found["share"]
            logs["channels"] = sum(found["channels"].values())
            logs["strength"] = found["strength"]
            logs["collapsed"] = len(found["collapsed"])


def spare_from_decay(optimizer: Any, variables: list[Any]) -> None:
    """Has weight decay of an optimizer leave some variables alone, next to those that the user excluded.

    Keras' own `exclude_from_weight_decay` replaces what was excluded before, and refuses an optimizer that is built, as
    one of a loaded model is; the exclusion is read when a training step is traced, which is later.
    """
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    if getattr(optimizer, "weight_decay", None) is None:
        return
    excluded: set[str] = getattr(optimizer, "_exclude_from_weight_decay", set())
    optimizer._exclude_from_weight_decay = excluded | {optimizer._var_key(variable) for variable in variables}
    optimizer._exclude_from_weight_decay_cache = {}
