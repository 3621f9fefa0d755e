"""Real images for the demo: scikit-learn's digits, which it carries, or Fashion-MNIST where the machine has it."""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from latency_lab.errors import UsageError

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
FASHION_TRAIN = 12_000
KERAS_CACHE = Path.home() / ".keras" / "datasets" / "fashion-mnist"


@dataclass(frozen=True)
class Images:
    """A data set, split once and for all.

    Attributes:
        name: of the data set.
        train_x, test_x: [examples, rows, columns, 1], from 0 to 1.
        train_y, test_y: classes 0 to 9, [examples].
    """

    name: str
    train_x: Floats
    train_y: Ints
    test_x: Floats
    test_y: Ints

    @property
    def shape(self) -> tuple[int, ...]:
        """(rows, columns, channels) of an image."""
        return self.train_x.shape[1:]


def load(name: str) -> Images:
    """The data set "digits" or "fashion-mnist".

    Raises:
        UsageError: Fashion-MNIST is not on this machine.
    """
    return {"digits": _digits, "fashion-mnist": fashion_mnist}[name]()


def _digits() -> Images:
    """1,797 images of 8x8: every fourth is a test image."""
    from sklearn.datasets import load_digits

    data = load_digits()
    x = (data.images[..., None] / 16).astype(np.float32)
    y = data.target.astype(np.int64)
    test = np.random.default_rng(0).permutation(len(x)) % 4 == 0
    return Images("digits", x[~test], y[~test], x[test], y[test])


def fashion_mnist(train: int = FASHION_TRAIN, folder: Path | None = None) -> Images:
    """28x28: the first images of the published training set, and the published test set.

    Args:
        train: training images, at most 60,000.
        folder: with the four files of the data set; None: where Debian's package or Keras leaves them.

    Raises:
        UsageError: Fashion-MNIST is not there.
    """
    searched = [DEBIAN_FOLDER, KERAS_CACHE] if folder is None else [folder]
    found = next((place for place in searched if (place / "train-images-idx3-ubyte.gz").exists()), None)
    if found is None:
        raise UsageError(
            f"Fashion-MNIST is not on this machine (searched {' and '.join(map(str, searched))}). Install it: apt-get "
            "install dataset-fashion-mnist, or load it once with keras.datasets.fashion_mnist.load_data()"
        )
    parts = [
        _idx(found / f"{split}-{what}-ubyte.gz")
        for split in ("train", "t10k")
        for what in ("images-idx3", "labels-idx1")
    ]
    train_x, train_y, test_x, test_y = parts
    scaled = [(x[..., None] / 255).astype(np.float32) for x in (train_x, test_x)]
    return Images(
        "fashion-mnist",
        scaled[0][:train],
        train_y[:train].astype(np.int64),
        scaled[1],
        test_y.astype(np.int64),
    )


def _idx(path: Path) -> npt.NDArray[np.uint8]:
    """An array in the IDX format: two zeros, type, number of axes, their sizes (big endian), the bytes."""
    data = gzip.decompress(path.read_bytes())
    axes = data[3]
    shape = np.frombuffer(data, ">u4", count=axes, offset=4)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * axes).reshape(tuple(int(n) for n in shape))
