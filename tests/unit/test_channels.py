"""Channel groups against a slow and obvious way to find them, and what is said of them."""

from __future__ import annotations

from collections import Counter

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from keras import layers

from latency_lab.graph import ChannelGraph, Explanation, Unknown
from latency_lab.graph.channels import Channels, Group, Pinned

LAYERS = "abcde"


class Plain:
    """What `Channels` does, one id at a time."""

    def __init__(self) -> None:
        self.producers: list[str] = []
        self.sets: list[set[int]] = []
        self.reasons: dict[int, str] = {}

    def fresh(self, count: int, producer: str) -> list[int]:
        ids = list(range(len(self.producers), len(self.producers) + count))
        self.producers += [producer] * count
        self.sets += [{i} for i in ids]
        return ids

    def join(self, left: list[int], right: list[int]) -> None:
        for a, b in zip(left, right, strict=True):
            both = self.sets[a] | self.sets[b]
            for i in both:
                self.sets[i] = both

    def pin(self, ids: list[int], reason: str, override: bool) -> None:
        for i in ids:
            if override or i not in self.reasons:
                self.reasons[i] = reason

    def resolve(self) -> tuple[list[Group], list[Pinned], list[int]]:
        kinds = [frozenset(Counter(self.producers[i] for i in ids).items()) for ids in self.sets]
        groups, pinned, slots, names = [], [], [-1] * len(kinds), Counter()
        for kind in dict.fromkeys(kinds):
            ids = [i for i in range(len(kinds)) if kinds[i] == kind]
            firsts = [i for i in ids if i == min(self.sets[i])]
            layers = tuple(sorted({name for name, _ in kind}, key=self.producers.index))
            names[layers[0]] += 1
            name = layers[0] + (f".{names[layers[0]]}" if names[layers[0]] > 1 else "")
            reasons = [self.reasons[i] for i in ids if i in self.reasons]
            if reasons:
                pinned.append(Pinned(name, len(firsts), layers, reasons[0]))
                continue
            start = sum(group.size for group in groups)
            groups.append(Group(name, len(firsts), layers))
            for i in ids:
                slots[i] = start + firsts.index(min(self.sets[i]))
        return groups, pinned, slots


@st.composite
def stories(draw: st.DrawFn) -> list[tuple]:
    """What is done, in order: ("fresh", count, layer), ("join", ids, ids) or ("pin", ids, reason, override)."""
    story: list[tuple] = []
    count = 0
    for _ in range(draw(st.integers(1, 12))):
        what = draw(st.sampled_from(["fresh", "join", "pin"])) if count else "fresh"
        if what == "fresh":
            story.append((what, draw(st.integers(0, 4)), draw(st.sampled_from(LAYERS))))
            count += story[-1][1]
            continue
        ids = st.integers(0, count - 1)
        if what == "pin":
            story.append((what, draw(st.lists(ids, max_size=4)), f"reason {len(story)}", draw(st.booleans())))
        else:
            pairs = draw(st.lists(st.tuples(ids, ids), max_size=5))
            story.append((what, [a for a, _ in pairs], [b for _, b in pairs]))
    return story


@given(stories())
def test_groups_are_those_of_the_slow_way(story) -> None:
    channels, plain = Channels(), Plain()
    for what, *arguments in story:
        made = getattr(plain, what)(*arguments)
        ids = [np.array(a, np.int64) if isinstance(a, list) else a for a in arguments]
        found = getattr(channels, what)(*ids)
        assert made is None or made == found.tolist()
    groups, pinned, slots = plain.resolve()
    found = channels.resolve()
    assert (list(found.groups), list(found.pinned), found.slots.tolist()) == (groups, pinned, slots)


@pytest.mark.parametrize("seed", range(3))
def test_a_long_chain_joined_in_any_order_is_one_channel(seed: int) -> None:
    channels, rng = Channels(), np.random.default_rng(seed)
    ids = rng.permutation(np.concatenate([channels.fresh(1, f"layer {i}") for i in range(3000)]))
    joins = rng.permutation(2999)
    channels.join(ids[joins], ids[joins + 1])
    (group,) = channels.resolve().groups
    assert group == Group("layer 0", 1, tuple(f"layer {i}" for i in range(3000)))


def test_no_channels_are_no_groups() -> None:
    found = Channels().resolve()
    assert (found.groups, found.pinned, found.slots.tolist()) == ((), (), [])


def test_channels_are_joined_one_to_one() -> None:
    channels = Channels()
    with pytest.raises(ValueError, match=r"as many channels left as right. Received: \(2,\) and \(3,\)"):
        channels.join(channels.fresh(2, "a"), channels.fresh(3, "b"))


# ---- the explanation --------------------------------------------------------------------------------------------


def pinned(name: str, reason: str, size: int = 2) -> Pinned:
    return Pinned(name, size, (name,), reason)


def test_an_explanation_sums_up_groups_and_reasons() -> None:
    norm = "layer {!r} (LayerNormalization) is of a kind that cannot be narrowed"
    groups = (Group("stem", 1024, ("stem", "last")), Group("inner", 4, ("inner",), can_vanish=True))
    kept = (pinned("image", "it is an input of the model"), *(pinned(n, norm.format(n)) for n in ("a", "b")))
    lines = str(Explanation("net", "12ab", 7, groups, kept, (("x", "Odd"),), 2000, 500)).splitlines()
    assert lines == [
        "net: 7 operations, 2 groups of 1,028 channels can shrink: 25.0 % of 2,000 parameters lie in them; "
        "1 can vanish",
        "3 groups of 6 channels are pinned",
        "    2 because a layer (LayerNormalization) is of a kind that cannot be narrowed",
        "    1 because it is an input of the model",
        "group  width  layers      shrinks",
        "stem    1024  stem, last  yes",
        "inner      4  inner       yes, and can vanish",
        "image      2  image       no: it is an input of the model",
        "a          2  a           no: layer 'a' (LayerNormalization) is of a kind that cannot be narrowed",
        "b          2  b           no: layer 'b' (LayerNormalization) is of a kind that cannot be narrowed",
        "layers without a cost of their own:",
        "  x (Odd)",
    ]


def test_long_lists_of_members_are_cut_in_text_and_whole_in_json() -> None:
    members = tuple(f"stage_{i}_expand_conv" for i in range(15))
    groups = (Group(members[0], 8, members), Group("a" * 60, 8, ("a" * 60, "b")))
    explanation = Explanation("net", "12ab", 20, groups, (), ())
    text = str(explanation)
    assert "stage_0_expand_conv, stage_1_expand_conv ... and 13 more" in text
    assert "a" * 60 + " ... and 1 more" in text
    data = explanation.to_json()
    assert data["groups"][0] == {
        "name": members[0], "width": 8, "members": list(members), "can_vanish": False,
    }  # fmt: skip


def test_two_hundred_groups_are_a_line_each_in_columns() -> None:
    groups = tuple(Group(f"layer_{i}", 2**i, tuple(f"member_{i}_{k}" for k in range(i))) for i in range(1, 12)) * 20
    rows = str(Explanation("net", "12ab", 1, groups, (), ())).splitlines()[1:]
    assert len(rows) == 1 + len(groups)
    assert {row.rindex("yes") for row in rows[1:]} == {rows[0].index("shrinks")}


def test_parameters_that_lie_in_groups_are_all_but_those_of_pinned_channels_alone() -> None:
    image = keras.Input((8, 8, 3))
    x = layers.BatchNormalization()(layers.Conv2D(4, 3, name="a")(image))
    x = layers.UnitNormalization(name="norm")(layers.Conv2D(5, 1, name="b")(x))
    model = keras.Model(image, layers.Conv2D(2, 1, name="head")(x), name="net")
    explanation = Explanation.of(ChannelGraph.from_model(model))
    assert [group.name for group in explanation.groups] == ["a"]
    assert explanation.parameters == model.count_params()
    bias_of_b, head = 5, 5 * 2 + 2
    assert explanation.shrinkable_parameters == model.count_params() - bias_of_b - head


def test_a_converted_file_says_where_to_narrow() -> None:
    graph = ChannelGraph.fixed((), (), (Unknown("x", "ODD", 4, 4),), "net", "tflite")
    assert str(Explanation.of(graph)).splitlines() == [
        "net: 0 operations, 0 groups of 0 channels can shrink",
        "the channels of a .tflite file are fixed: narrow the Keras model, and convert it again",
        "layers without a cost of their own:",
        "  x (ODD)",
    ]
