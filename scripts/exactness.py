"""Whether a model is rebuilt exactly: random weights under which every channel matters, and what must then be equal.

Of one model and one structure, over `EXAMPLES` random images,

    difference = max |masked(x) - slim(x)| / std,    control = max |masked(x) - slim'(x)| / std

where slim' keeps another channel in place of one, and std is the standard deviation of an output over the images,
averaged over the outputs.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import keras
import numpy as np
import numpy.typing as npt

from latency_lab.cost import FlopsCost, ParamsCost
from latency_lab.gates import masked
from latency_lab.graph import ChannelGraph
from latency_lab.shrink import shrink
from latency_lab.structure import Structure

EXAMPLES = 8
SETTLING = 16
"""Images that the statistics of batch norms are taken from; others than those that outputs are compared on."""
SQUARE = 16
"""Pixels a side of the squares that random images are made of."""
LOW, HIGH = 0.3, 0.9
"""Least and largest share of a group's channels that stays."""
LARGEST_DIFFERENCE, LEAST_CONTROL = 1e-4, 1e-2
LEAST_SPREAD = 1e-2
"""Of the outputs over inputs, relative to their size: below it the network has collapsed, and nothing is compared."""

SWAPS = 5
"""Exchanged channels that are tried for the control: a unit that is off for all images changes nothing."""
VANISHING = 0.25
"""Chance of a branch to be removed, in the second structure."""

Array = npt.NDArray[Any]
T = TypeVar("T")


def random_structure(graph: ChannelGraph, random: np.random.Generator) -> Structure:
    """A structure that keeps a random share of each group, LOW to HIGH and at least one channel, and random ones."""
    kept = {}
    for group in graph.groups:
        width = max(round(random.uniform(LOW, HIGH) * group.size), 1)
        kept[group.name] = tuple(sorted(random.choice(group.size, width, replace=False).tolist()))
    return Structure(kept, {group.name: group.size for group in graph.groups}, graph.digest)


def swapped(structure: Structure, random: np.random.Generator) -> Structure:
    """One kept channel of one group exchanged for a closed one."""
    names = [name for name, kept in structure.kept.items() if len(kept) < structure.sizes[name]]
    name = names[random.integers(len(names))]
    closed = sorted(set(range(structure.sizes[name])) - set(structure.kept[name]))
    kept = list(structure.kept[name])
    kept[random.integers(len(kept))] = closed[random.integers(len(closed))]
    return replace(structure, kept={**structure.kept, name: tuple(sorted(kept))})


def without_branches(graph: ChannelGraph, structure: Structure, random: np.random.Generator) -> Structure:
    """The structure with some of the branches removed that can vanish, VANISHING of them and at least one."""
    mask = structure.mask(graph)
    chosen = random.random(len(graph.branches)) < VANISHING
    chosen[random.integers(len(chosen))] = True
    for b in np.flatnonzero(chosen):
        for g in graph.branches[b].groups:
            mask[graph.offsets[g] : graph.offsets[g + 1]] = 0.0
    return Structure.from_mask(graph, mask)


# ---- weights ----------------------------------------------------------------------------------------------------


def randomise(model: Any, graph: ChannelGraph, structure: Structure, random: np.random.Generator) -> None:
    """Random weights for a model, under which no layer of the narrowed network collapses or blows up.

    Kernels are normal, with the scale that keeps what goes through the open channels; gammas are +-[0.5, 1.5]; betas of
    batch norms are [0.5, 1.5], so that a deep network amplifies rounding less than with shifts near 0 (EfficientNetB0:
    24 times, not 5e5 times). Moving statistics are those of random images in the masked network, moved at random.
    """
    mask = np.append(structure.mask(graph), 1.0)
    for layer in model.layers:
        if not layer.weights or isinstance(layer, keras.layers.Normalization):
            continue
        channels = graph.layer_channels.get(layer.name)
        share = 1.0 if channels is None else float(mask[channels.in_ids].mean())
        layer.set_weights([_values(layer, variable, share, random) for variable in layer.weights])
    _settle(model, structure, random)


def _values(layer: Any, variable: Any, share: float, random: np.random.Generator) -> Array:
    """Random numbers for one weight. `share`: how many of the layer's input channels are open."""
    shape, name = tuple(variable.shape), variable.name
    if "kernel" in name:
        apart = name == "depthwise_kernel" or type(layer).__name__.startswith("Depthwise")
        fan_in = np.prod(shape[:-2]) if apart else np.prod(shape[:-1]) * share
        return random.normal(0, np.sqrt(2 / fan_in), shape)
    if name in {"gamma", "scale"} or type(layer).__name__ == "LayerScale":
        return random.choice([-1, 1], shape) * random.uniform(0.5, 1.5, shape)
    if name == "moving_variance":
        return random.uniform(0.5, 1.5, shape)
    if name == "beta" and isinstance(layer, keras.layers.BatchNormalization):
        return random.uniform(0.5, 1.5, shape)
    if name in {"bias", "beta", "moving_mean"}:
        return random.uniform(-0.5, 0.5, shape)
    raise ValueError(f"Layer {layer.name!r} has a weight {name!r} that is not known.")


def _settle(model: Any, structure: Structure, random: np.random.Generator) -> None:
    """Sets moving statistics near to those of random images in the masked model: each mean off by up to half a
    standard deviation, each variance by up to half."""
    norms = {layer.name: layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)}
    if not norms:
        return
    with_mask = masked(model, structure)
    for name in norms:
        with_mask.get_layer(name).momentum = 0.0
    with_mask(images_for(model, SETTLING, random), training=True)
    for name, layer in norms.items():
        seen = with_mask.get_layer(name)
        mean, variance = np.asarray(seen.moving_mean), np.maximum(np.asarray(seen.moving_variance), 1e-3)
        layer.moving_mean.assign(mean + random.uniform(-0.5, 0.5, mean.shape) * np.sqrt(variance))
        layer.moving_variance.assign(variance * random.uniform(0.5, 1.5, variance.shape))


def images_for(model: Any, count: int, random: np.random.Generator) -> Array:
    """Random images for the one input of a model, in 0..255: squares of random colours, since single pixels would
    average out to one grey. [count, height, width, channels]"""
    height, width, channels = model.input_shape[1:]
    coarse = random.uniform(0, 255, (count, -(-height // SQUARE), -(-width // SQUARE), channels))
    fine = coarse.repeat(SQUARE, axis=1).repeat(SQUARE, axis=2)
    return fine[:, :height, :width].astype(model.inputs[0].dtype)


# ---- what must be equal ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Comparison:
    """A masked model beside its slim one.

    Attributes:
        difference: as in the equation above; `spread`: std relative to the size of the outputs.
        parameters, flops: (of the slim model itself, of the costs at its widths).
    """

    difference: float
    spread: float
    parameters: tuple[int, int]
    flops: tuple[int, int]

    def faults(self) -> list[str]:
        """What is wrong; empty: equal."""
        found = []
        if not self.spread >= LEAST_SPREAD:
            found.append(f"collapsed: outputs vary over inputs by {self.spread:.1e} of their size")
        if not self.difference <= LARGEST_DIFFERENCE:
            found.append(f"masked and slim differ by {self.difference:.1e}")
        for name, (own, priced) in (("parameters", self.parameters), ("FLOPs", self.flops)):
            if own != priced:
                found.append(f"{own} {name} in the slim model, {priced} by the cost")
        return found


@dataclass(frozen=True)
class Outcome:
    """What was found of one model.

    Attributes:
        narrowed: a random share of each group is left.
        control: difference to a slim model with another channel, as in the equation above; `swaps`: how many were tried
            until one made a difference.
        vanished: the same with some branches removed whole as well; None: the model has none that can be.
        branches: (removed, of how many that can be).
        parameters: of the whole model.
        groups: how many; `channels`: that layers make, the model's inputs and outputs aside; `shrinkable`: those of
            them that are in a group.
        cpu_seconds: of one `ChannelGraph.from_model` ("read"), one `explain` and one `shrink`.
    """

    narrowed: Comparison
    control: float
    swaps: int
    vanished: Comparison | None
    branches: tuple[int, int]
    parameters: int
    groups: int
    channels: int
    shrinkable: int
    cpu_seconds: dict[str, float]

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Outcome:
        """From the JSON values of `dataclasses.asdict`."""
        vanished = data["vanished"]
        comparisons = {
            "narrowed": Comparison(**data["narrowed"]),
            "vanished": None if vanished is None else Comparison(**vanished),
        }
        return cls(**{**data, **comparisons})

    def faults(self) -> list[str]:
        """What is wrong; empty: the model was rebuilt exactly."""
        found = self.narrowed.faults()
        if not self.control >= LEAST_CONTROL:
            found.append(f"of {self.swaps} swaps of channels none changes outputs by more than {self.control:.1e}")
        if self.vanished is not None:
            found += [f"{fault}, branches removed" for fault in self.vanished.faults()]
        return found

    def rounding_alone(self) -> bool:
        """Whether all that is wrong is a difference, which float64 can tell from rounding."""
        compared = [self.narrowed, *([self.vanished] if self.vanished else [])]
        return 0 < len(self.faults()) == sum(not c.difference <= LARGEST_DIFFERENCE for c in compared)


def check(model: Any, seed: int) -> tuple[Outcome, Any, Array]:
    """Gives a model random weights, narrows it at random, and compares masked with slim.

    Args:
        model: a Keras model of one input and one output, linear at the end; its weights are overwritten.
        seed: of the weights, the structures and the images.

    Returns:
        what was found; the slim model, branches kept; the images [EXAMPLES, height, width, channels].
    """
    random = np.random.default_rng(seed)
    seconds: dict[str, float] = {}
    graph = _timed(seconds, "read", lambda: ChannelGraph.from_model(model))
    _timed(seconds, "explain", lambda: str(graph.explain()))
    structure = random_structure(graph, random)
    randomise(model, graph, structure, random)
    images = images_for(model, EXAMPLES, random)
    expected = outputs_of(masked(model, structure), images)
    gc.collect()  # a model refers to itself: of a large one no more copies than are needed
    slim = _timed(seconds, "shrink", lambda: shrink(model, structure))
    control, swaps = _control(expected, model, images, structure, random)
    narrowed = compare(expected, slim, images, graph, structure)
    vanished, removed = None, 0
    if graph.branches:
        cut = without_branches(graph, structure, random)
        removed = len(graph.vanished(cut.widths(graph)))
        expected = outputs_of(masked(model, cut), images)
        gc.collect()
        vanished = compare(expected, shrink(model, cut), images, graph, cut)
    own = [p for p in graph.pinned if not p.reason.startswith(("it is an input", "it is an output"))]
    shrinkable = sum(group.size * len(group.members) for group in graph.groups)
    outcome = Outcome(
        narrowed=narrowed,
        control=control,
        swaps=swaps,
        vanished=vanished,
        branches=(removed, len(graph.branches)),
        parameters=model.count_params(),
        groups=len(graph.groups),
        channels=shrinkable + sum(pinned.size * len(pinned.members) for pinned in own),
        shrinkable=shrinkable,
        cpu_seconds=seconds,
    )
    return outcome, slim, images


def _control(
    expected: Array, model: Any, images: Array, structure: Structure, random: np.random.Generator
) -> tuple[float, int]:
    """The difference that another channel makes, and how many swaps were tried until one did."""
    largest, swaps = 0.0, 0
    while largest < LEAST_CONTROL and swaps < SWAPS:
        other = outputs_of(shrink(model, swapped(structure, random)), images)
        gc.collect()
        largest = max(largest, float(np.abs(other - expected).max() / _deviation(expected)))
        swaps += 1
    return largest, swaps


def compare(expected: Array, slim: Any, images: Array, graph: ChannelGraph, structure: Structure) -> Comparison:
    """The outputs of a masked model [images, outputs] beside those of the slim model of the same structure."""
    widths = structure.widths(graph)
    return Comparison(
        difference=float(np.abs(outputs_of(slim, images) - expected).max() / _deviation(expected)),
        spread=float(_deviation(expected) / np.sqrt(np.mean(np.square(expected)))),
        parameters=(slim.count_params(), round(ParamsCost(graph).at(widths))),
        flops=(round(FlopsCost(ChannelGraph.from_model(slim)).at()), round(FlopsCost(graph).at(widths))),
    )


def outputs_of(model: Any, images: Array) -> Array:
    """[images, outputs] in inference, as float64."""
    return np.asarray(model(images, training=False)).astype(np.float64)


def _deviation(outputs: Array) -> float:
    """Standard deviation over the images, averaged over the outputs."""
    return float(np.std(outputs, axis=0).mean())


def _timed(seconds: dict[str, float], name: str, function: Callable[[], T]) -> T:
    """Processor time: others use the machine too."""
    began = time.process_time()
    result = function()
    seconds[name] = round(time.process_time() - began, 3)
    return result
