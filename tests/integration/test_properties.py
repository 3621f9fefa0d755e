"""What holds for every model that can be drawn: masked equals slim (law 6), counts, a rebuild of a rebuild, files."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, currently_in_test_context, event, given, settings
from hypothesis import strategies as st

from latency_lab.cost import FlopsCost, ParamsCost
from latency_lab.gates import masked
from latency_lab.graph import ChannelGraph
from latency_lab.shrink import shrink
from latency_lab.structure import Structure
from tests.integration.random_models import KINDS, Description, Step, build, descriptions

CI = settings(
    max_examples=20,
    derandomize=True,
    deadline=None,
    database=None,
    phases=[Phase.generate],  # shrinking takes minutes: that is for the full run
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
FULL = settings(CI, max_examples=400, derandomize=False, phases=[Phase.generate, Phase.shrink], print_blob=True)

EXAMPLES = 4
EXACT = 1e-4
"""Largest difference, in standard deviations over the inputs."""
ROUNDING = {"float32": 1e-5, "mixed_float16": 3e-2}
"""Of the largest value: what sums in another order may differ by."""


@dataclass(frozen=True)
class Cut:
    """What is closed: each channel but one of a group with this chance, groups that can vanish with that chance."""

    closed: float
    vanish: float
    seed: int

    def structure(self, graph: ChannelGraph) -> Structure:
        rng = np.random.default_rng(self.seed)
        mask = rng.random(graph.slots) >= self.closed
        for group, start in zip(graph.groups, graph.offsets.tolist(), strict=False):
            mask[start + rng.integers(group.size)] = True
            if group.can_vanish and rng.random() < self.vanish:
                mask[start : start + group.size] = False
        return Structure.from_mask(graph, mask)


CUTS = st.builds(
    Cut, closed=st.sampled_from([0.4, 0.8, 1.0]), vanish=st.sampled_from([0.0, 0.3, 1.0]), seed=st.integers(0, 99)
)


def leaves(model: Any) -> list[Any]:
    """All layers of a model, those of nested models in their place."""
    return [leaf for layer in model.layers for leaf in (leaves(layer) if isinstance(layer, keras.Model) else [layer])]


def randomise(model: Any, seed: int) -> None:
    """Weights under which every channel matters and no layer collapses or blows up."""
    rng = np.random.default_rng(seed)
    for layer in leaves(model):
        if not isinstance(layer, keras.layers.Normalization):
            layer.set_weights([_values(v.name, tuple(v.shape), layer, rng) for v in layer.weights])


def _values(name: str, shape: tuple[int, ...], layer: Any, rng: np.random.Generator) -> Any:
    if name == "gamma":
        return rng.choice([-1, 1], shape) * rng.uniform(0.5, 1.5, shape)
    if name == "moving_variance":
        return rng.uniform(0.5, 1.5, shape)
    if "kernel" in name:
        deep = "depthwise" in f"{name} {type(layer).__name__}".lower()
        return rng.normal(0, np.sqrt(1.5 / np.prod(shape[: -2 if deep else -1])), shape)
    return rng.uniform(-0.5, 1.0, shape)


def images(model: Any, seed: int) -> Any:
    rng = np.random.default_rng(seed)
    return keras.tree.map_structure(lambda t: rng.normal(size=(EXAMPLES, *t.shape[1:])).astype("float32"), model.input)


def outputs(model: Any, inputs: Any) -> list[Any]:
    found = keras.tree.flatten(model(inputs, training=False))
    return [np.asarray(keras.ops.convert_to_numpy(value), "float64") for value in found]


def assert_same(left: Any, right: Any, inputs: Any, policy: str) -> None:
    """Two models give the same on these inputs."""
    for a, b in zip(outputs(left, inputs), outputs(right, inputs), strict=True):
        assert np.isfinite(a).all(), "the drawn model gives no numbers: nothing is compared"
        allowed = EXACT * np.std(a, axis=0).mean() + ROUNDING[policy] * np.abs(a).max()
        assert np.abs(a - b).max() <= allowed


def drawn(description: Description, cut: Cut) -> tuple[Any, ChannelGraph, Structure]:
    model = build(description)
    randomise(model, cut.seed)
    graph = ChannelGraph.from_model(model)
    structure = cut.structure(graph)
    if currently_in_test_context():
        vanishes = "a branch vanishes" if _vanishes(graph, structure) else "channels close"
        event(vanishes if graph.groups else "nothing shrinks")
    return model, graph, structure


def _vanishes(graph: ChannelGraph, structure: Structure) -> bool:
    return bool(graph.vanished(structure.widths(graph)))


# ---- the properties ---------------------------------------------------------------------------------------------


def masked_equals_slim(description: Description, cut: Cut) -> None:
    model, graph, structure = drawn(description, cut)
    with_mask, slim = masked(model, structure), shrink(model, structure)
    assert_same(with_mask, slim, images(model, cut.seed), description.policy)
    assert_same(shrink(with_mask, structure), slim, images(model, cut.seed), description.policy)
    assert all(layer.__module__.startswith("keras.") or type(layer).__name__ == "Own" for layer in slim.layers)


def counts_are_those_of_the_slim_model(description: Description, cut: Cut) -> None:
    model, graph, structure = drawn(description, cut)
    widths, slim = structure.widths(graph), shrink(model, structure)
    found = ChannelGraph.from_model(slim)
    assert ParamsCost(graph).at() == shrink(model, Structure.full(graph)).count_params()
    assert ParamsCost(graph).at(widths) == slim.count_params() == ParamsCost(found).at()
    assert FlopsCost(graph).at(widths) == FlopsCost(found).at()
    assert ChannelGraph.from_model(masked(model, structure)).digest == graph.digest
    if _turns_depthwise(model, slim):
        return
    if _vanishes(graph, structure):  # others are walked first, and what joined channels may be gone
        assert Counter(found.op_configs()) == Counter(graph.op_configs(widths))
        return
    assert found.op_configs() == graph.op_configs(widths)
    pairs = zip(graph.groups, widths.tolist(), strict=True)
    assert {g.name: (g.members, g.size) for g in found.groups} == {g.name: (g.members, n) for g, n in pairs}
    assert found.pinned == graph.pinned


def _turns_depthwise(model: Any, slim: Any) -> bool:
    """Whether a grouped convolution has become a depthwise one, or a plain one, by the channels that it lost."""
    before, after = ({layer.name: layer for layer in leaves(m) if isinstance(layer, _CONVS)} for m in (model, slim))
    return any(_depthwise(before[name]) != _depthwise(layer) for name, layer in after.items())


_CONVS = (keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D)


def _depthwise(layer: Any) -> tuple[bool, bool]:
    return layer.groups > 1, layer.groups > 1 and layer.kernel.shape[-2] == 1


def all_that_is_open_stays(description: Description, cut: Cut) -> None:
    model, graph, structure = drawn(description, cut)
    inputs = images(model, cut.seed)
    assert_same(model, shrink(model, Structure.full(graph)), inputs, description.policy)
    assert_same(model, masked(model, Structure.full(graph)), inputs, description.policy)
    slim = shrink(model, structure)
    again = shrink(slim, Structure.full(ChannelGraph.from_model(slim)))
    assert [w.path for w in again.weights] == [w.path for w in slim.weights]
    assert all(np.array_equal(a, b) for a, b in zip(again.get_weights(), slim.get_weights(), strict=True))
    assert_same(slim, again, inputs, description.policy)


def the_slim_model_is_a_plain_file(description: Description, cut: Cut) -> None:
    model, graph, structure = drawn(description, cut)
    slim = shrink(model, structure)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "slim.keras")
        slim.save(path)
        loaded = keras.saving.load_model(path)
    assert_same(slim, loaded, images(model, cut.seed), description.policy)
    assert ChannelGraph.from_model(loaded).digest == ChannelGraph.from_model(slim).digest
    before = {layer.name: layer for layer in leaves(model)}
    for layer in slim.layers:
        if layer.name in before and isinstance(layer, keras.layers.Layer):
            assert _settings(layer) == _settings(before[layer.name])


_WIDTHS = {"filters", "units", "target_shape", "groups", "projection_dim"}


def _settings(layer: Any) -> dict[str, Any]:
    """All of a layer's config that has no number of channels in it."""
    return {key: value for key, value in layer.get_config().items() if key not in _WIDTHS}


CLASSES = {
    "Conv1D", "Conv2D", "DepthwiseConv2D", "SeparableConv2D", "Conv2DTranspose", "Dense",
    "BatchNormalization", "LayerNormalization", "GroupNormalization", "Normalization", "PReLU", "Add", "Multiply",
    "Concatenate", "Reshape", "Flatten", "MaxPooling2D", "AveragePooling2D", "GlobalAveragePooling2D",
    "GlobalMaxPooling2D", "ZeroPadding2D", "Cropping2D", "UpSampling2D", "Dropout", "Rescaling",
}  # fmt: skip
"""Layers that have to be among those that are checked."""

PROPERTIES = [
    masked_equals_slim, counts_are_those_of_the_slim_model, all_that_is_open_stays, the_slim_model_is_a_plain_file
]  # fmt: skip


def check(holds: Callable[[Description, Cut], None], profile: settings) -> None:
    profile(given(descriptions(), CUTS)(holds))()


FORMS = (0, 1, 2, 3)
"""Variants of each kind that every run checks; the full run checks all 12."""


def of_kind(kind: str, variant: int) -> Description:
    """A model with one block of a kind in it."""
    steps = (
        Step("block", 6, 3),
        Step(kind, 4, 3, same=False, variant=variant, body=(Step("conv", 5),)),
        Step("conv", 5),
    )
    return Description(steps=steps, channels=3, top="flatten", tail=(Step("dense", 4, activation="relu"),))


@pytest.mark.parametrize("holds", PROPERTIES)
def test_of_drawn_models(holds: Callable[[Description, Cut], None]) -> None:
    check(holds, CI)


def test_what_is_drawn_is_worth_checking() -> None:
    many: list[Description] = []

    @settings(CI, max_examples=300)
    @given(descriptions())
    def collect(description: Description) -> None:
        many.append(description)

    collect()
    steps = [step for description in many for step in (*description.steps, *description.tail)]
    assert len({step.kind for step in steps}) >= 0.9 * len(KINDS)
    assert {description.rank for description in many} == {0, 1, 2, 3}
    models = [build(description) for description in many[::5]]
    fixed = [build(of_kind(kind, variant)) for kind in KINDS for variant in FORMS]
    classes = {type(layer).__name__ for model in (*models, *fixed) for layer in leaves(model)}
    assert classes >= CLASSES, f"never checked: {CLASSES - classes}"
    found = [ChannelGraph.from_model(model) for model in models]
    assert sum(bool(graph.groups) for graph in found) >= 0.6 * len(found)
    assert sum(bool(graph.branches) for graph in found) >= 0.1 * len(found)


def test_a_channel_that_is_exchanged_is_seen() -> None:
    """The comparison sees one kept channel exchanged for a closed one."""
    description = Description(steps=(Step("block", 6, 3), Step("residual", body=(Step(),))))
    model, _, structure = drawn(description, Cut(closed=0.4, vanish=0.0, seed=1))
    name, kept = next((name, kept) for name, kept in structure.kept.items() if len(kept) < structure.sizes[name])
    closed = min(set(range(structure.sizes[name])) - set(kept))
    other = Structure({**structure.kept, name: tuple(sorted({*kept[1:], closed}))}, structure.sizes, structure.model)
    with pytest.raises(AssertionError):
        assert_same(masked(model, structure), shrink(model, other), images(model, 1), "float32")


@pytest.mark.parametrize("kind", KINDS)
def test_of_each_kind_of_block(kind: str) -> None:
    for variant in FORMS:
        masked_equals_slim(of_kind(kind, variant), Cut(closed=0.4, vanish=0.0, seed=variant))


@pytest.mark.full
@pytest.mark.parametrize("holds", PROPERTIES)
@pytest.mark.parametrize("kind", KINDS)
def test_of_each_form_of_each_kind(kind: str, holds: Callable[[Description, Cut], None]) -> None:
    for variant in range(12):
        holds(of_kind(kind, variant), Cut(closed=0.5, vanish=0.5, seed=variant))


@pytest.mark.full
@pytest.mark.parametrize("holds", PROPERTIES)
def test_of_hundreds_of_drawn_models(holds: Callable[[Description, Cut], None]) -> None:
    check(holds, FULL)
