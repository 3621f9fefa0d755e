"""Whole blocks of a network that were timed as one: `block:ffn:e4` is a feed-forward block that expands four times.

A block has no operations of its own to look up. Its words but the expansion name a predictor (`block:ffn`), and its
columns stand in for an operation: a conv of its kernel and stride whose `kernel_depth` is the expansion, so that its
work and weights grow with it.
"""

from __future__ import annotations

import re
from typing import Any

from latency_lab.errors import OutOfBoundsError, UsageError
from latency_lab.ops import OpConfig
from latency_lab.profiles.device_profile import DeviceProfile, OpPrediction

PREFIX = "block:"
_EXPANSION = re.compile(r"e([1-9][0-9]*)")


def block_family(name: str) -> tuple[str, int]:
    """(name without its expansion, expansion) of a block's name.

    Raises:
        UsageError: the name does not begin with "block:".

    Example:
        >>> block_family("block:mbconv:e4:se")
        ('block:mbconv:se', 4)
    """
    if not name.startswith(PREFIX) or len(name) == len(PREFIX):
        raise UsageError(f"Invalid value for argument `name`. Expected block:WORDS. Received: name={name!r}")
    words = name.split(":")
    found = [match for word in words[1:] if (match := _EXPANSION.fullmatch(word))]
    kept = [word for word in words if not _EXPANSION.fullmatch(word)]
    return ":".join(kept), int(found[0].group(1)) if found else 1


def block_op(name: str, **columns: Any) -> OpConfig:
    """What a block's predictor reads: an operation of its columns.

    Args:
        name: of the block.
        columns: fields of `OpConfig`: height, width, in_channels, out_channels, kernel_size, strides, batch, dtype.
    """
    return OpConfig("conv2d", kernel_depth=block_family(name)[1], use_bias=False, **columns)


def predict_block(profile: DeviceProfile, name: str, **columns: Any) -> OpPrediction:
    """What a profile says about one block.

    Args:
        profile: imported from timings that have such blocks.
        name: "block:ffn:e4".
        columns: as of `block_op`.

    Returns:
        ms with its interval; the source is "predicted", or "extrapolated" away from what was timed.

    Raises:
        OutOfBoundsError: the profile knows no such block; the message lists those that it knows.
    """
    family, _ = block_family(name)
    predictor = profile.predictors.get(family)
    if predictor is None:
        known = ", ".join(sorted(key for key in profile.predictors if key.startswith(PREFIX))) or "none"
        raise OutOfBoundsError(f"The profile {profile.name!r} has no timings of {family}. Blocks that it has: {known}.")
    op = block_op(name, **columns)
    latency, ratio = float(predictor.latency_ms([op])[0]), predictor.interval_ratio(op)
    source = "predicted" if predictor.inside(op) else "extrapolated"
    return OpPrediction(latency, latency / ratio, latency * ratio, source)
