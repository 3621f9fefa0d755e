"""What is written down while a network learns its widths, beside what Keras logs of any metric."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from latency_lab.errors import MissingRuntimeError

if TYPE_CHECKING:
    from regularizers.base import Regularizer
    from regularizers.control import BudgetCallback


class StructureLog(keras.callbacks.Callback):
    """Appends the structure that training would give now to a file of JSON Lines.

        {"step": 40, "epoch": 1, "structure": {...}}       `Structure.from_json` reads the last

    A training that starts anew starts the file anew; one that goes on from a saved model appends.

    Args:
        regularizer: attached to the model that is trained.
        clock: the callback that counts its steps; it stands before this one.
        path: of the file.
        every: steps between two lines; None: lines at the ends of epochs.
        epochs: between two lines, with `every` None.
    """

    def __init__(
        self,
        regularizer: Regularizer,
        clock: BudgetCallback,
        path: str | Path,
        every: int | None = None,
        epochs: int = 1,
    ) -> None:
        super().__init__()
        self.regularizer = regularizer
        self.clock = clock
        self.path = Path(path)
        self.every = every
        self.epochs = epochs
        self._begun = False

    def on_train_begin(self, logs: Any = None) -> None:
        """The file is opened with the first epoch, when it is known whether the training goes on."""
        self._begun = False

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Empties the file of a training that starts anew."""
        if not self._begun and not self.clock.resumed:
            self.path.write_text("", encoding="utf-8")
        if not self._begun:
            self._begun, self._written = True, self.clock.step

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """A line every `every` steps."""
        if self.every is not None and self.clock.step - self._written >= self.every:
            self._written = self.clock.step
            self._write()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """A line every `epochs` epochs."""
        if self.every is None and (epoch + 1) % self.epochs == 0:
            self._write()

    def _write(self) -> None:
        line = {
            "step": self.clock.step,
            "epoch": self.clock.epoch,
            "structure": self.regularizer.structure().to_json(),
        }
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


class OpennessHistograms(keras.callbacks.Callback):
    """Writes histograms of how open each group's channels are, for TensorBoard, at the end of each epoch.

    Tags are "openness/<group>": logits of `LogisticSigmoid`, |gamma|, sizes of weights.

    Args:
        regularizer: attached to the model that is trained.
        clock: the callback that counts its steps; it stands before this one.
        directory: of the event files; that of Keras' TensorBoard callback or another.

    Raises:
        MissingRuntimeError: TensorFlow, which writes event files, is not installed.
    """

    def __init__(self, regularizer: Regularizer, clock: BudgetCallback, directory: str | Path) -> None:
        super().__init__()
        try:
            from tensorflow import summary
        except ImportError as error:
            raise MissingRuntimeError(
                'Histograms for TensorBoard are written by TensorFlow: pip install "latency-lab[keras,tensorboard]"'
            ) from error
        self.regularizer = regularizer
        self.clock = clock
        self._summary = summary
        self._writer = summary.create_file_writer(str(directory))

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """One histogram a group, over finite values."""
        graph, openness = self.regularizer.cost.graph, self.regularizer.openness()
        with self._writer.as_default():
            for group, start in zip(graph.groups, graph.offsets.tolist(), strict=False):
                values = openness[start : start + group.size]
                self._summary.histogram(f"openness/{group.name}", values[np.isfinite(values)], step=self.clock.step)
        self._writer.flush()
