"""Keras models from files that may come from anyone."""

from __future__ import annotations

from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from latency_lab.errors import FileFormatError
from latency_lab.extras import missing


def load_keras(path: str | Path) -> Any:
    """The Keras model in a .keras file, a gated one too: packages that bring layers name themselves as entry points.

    Args:
        path: of the file.

    Raises:
        FileFormatError: there is no such file, or it is no Keras model that can be loaded here.
        MissingRuntimeError: Keras, or what it runs on, is not installed.
    """
    try:
        import keras
    except ModuleNotFoundError as error:
        raise missing(error, "Loading a Keras model") or error from error
    if not Path(path).is_file():
        raise FileFormatError(f"There is no file {str(path)!r}.")
    for package in entry_points(group="latency_lab.keras_layers"):
        package.load()  # registers its layers
    try:
        return keras.saving.load_model(path, compile=False)
    except Exception as error:  # of a file that is none of its own, Keras raises whatever it stumbles over
        raise FileFormatError(f"{path}: not a Keras model that can be loaded: {error!s:.500}") from error
