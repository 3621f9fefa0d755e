"""`latency-lab shrink`: by a structure and by a target, what it says, what it writes, and when it exits 1."""

from __future__ import annotations

import json

import keras
import pytest
from keras import layers

import latency_lab as ll
from latency_lab.cli.main import main
from latency_lab.errors import UnsupportedModelError
from latency_lab.profiles import DeviceProfile


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model, a profile, and structures of half of it and of all of it."""
    where = tmp_path_factory.mktemp("shrink")
    keras.utils.set_random_seed(0)
    x = keras.Input((16, 16, 3))
    y = layers.ReLU()(layers.Conv2D(32, 3, padding="same", name="stem")(x))
    z = layers.ReLU()(layers.Conv2D(48, 3, padding="same", name="inner")(y))
    y = layers.Add(name="sum")([y, layers.Conv2D(32, 1, name="outer")(z)])
    model = keras.Model(x, layers.Dense(4, name="head")(layers.GlobalAveragePooling2D()(y)))
    model.save(where / "seed.keras")
    DeviceProfile.analytic("chip", peak_gflops=10, bandwidth_gb_s=5).save(where / "chip.json")
    graph = ll.ChannelGraph.from_model(model)
    ll.Structure.full(graph).save(where / "full.json")
    ll.plan_structure(model, ll.FlopsCost(graph), 0.5).save(where / "half.json")
    return where


@pytest.fixture
def here(folder, tmp_path, monkeypatch):
    """An empty working folder beside them."""
    for name in ("seed.keras", "chip.json", "full.json", "half.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def loaded(path: str):
    return keras.saving.load_model(path, compile=False)


def test_a_target_share_of_flops(here, capsys):
    assert main(["shrink", "seed.keras", "--target", "0.5", "--cost", "flops", "-o", "slim.keras"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    before, after = (ll.FlopsCost(ll.ChannelGraph.from_model(loaded(f))).at() for f in ("seed.keras", "slim.keras"))
    assert after <= 0.5 * before
    assert f"{before:,.0f} -> " in out
    assert f"{after:,.0f}  {after / before:.3f}" in out
    assert "met with" in out
    assert out.endswith("wrote slim.keras\n")
    width = loaded("slim.keras").get_layer("inner").filters
    row = next(line.split() for line in out.splitlines() if line.startswith("inner"))
    assert row == ["inner", "48", "->", str(width), "1"]
    assert next(line.split() for line in out.splitlines() if line.startswith("stem"))[-1] == "2"


def test_a_target_in_ms_as_json(here, capsys):
    graph, profile = ll.ChannelGraph.from_model(loaded("seed.keras")), ll.load_profile("chip.json")
    limit = 0.6 * ll.LatencyCost(graph, profile).at()
    words = ["shrink", "seed.keras", "--target-ms", str(limit), "--profile", "chip.json", "-o", "slim.keras", "--json"]
    assert main(words) == 0
    said = json.loads(capsys.readouterr().out)
    slim = loaded("slim.keras")
    reached = ll.LatencyCost(ll.ChannelGraph.from_model(slim), profile).at()
    assert said["target"] == {"unit": "ms", "limit": limit, "reached": pytest.approx(reached), "met": True}
    assert said["predicted_ms"] == {"before": pytest.approx(limit / 0.6), "after": reached}
    assert said["parameters"] == {"before": loaded("seed.keras").count_params(), "after": slim.count_params()}
    assert said["file_bytes"]["before"] == (here / "seed.keras").stat().st_size
    assert said["file_bytes"]["after"] == (here / "slim.keras").stat().st_size
    assert said["files"] == ["slim.keras"]
    assert said["provenance"]["profile"] == "chip"
    assert said["channels"]["after"] == sum(group["after"] for group in said["groups"]) < said["channels"]["before"]


def test_the_structure_that_was_chosen_can_be_saved_and_gives_the_same(here, capsys):
    words = ["--target", "0.4", "--cost", "params", "--keep", "stem", "--minimum", "3", "--importance", "l1"]
    assert main(["shrink", "seed.keras", *words, "--save-structure", "s.json", "-o", "a.keras"]) == 0
    structure = ll.Structure.load("s.json")
    assert len(structure.kept["stem"]) == 32
    assert (structure.provenance["importance"], structure.provenance["minimum"]) == ("l1", 3)
    assert "wrote s.json" in capsys.readouterr().out
    assert main(["shrink", "seed.keras", "s.json", "-o", "b.keras", "--cost", "params"]) == 0
    assert "met with" in capsys.readouterr().out  # the budget that the structure was made for
    for a, b in zip(loaded("a.keras").get_weights(), loaded("b.keras").get_weights(), strict=True):
        assert (a == b).all()


def test_a_structure_with_a_profile_says_what_is_predicted(here, capsys):
    assert main(["shrink", "seed.keras", "half.json", "-o", "slim.keras"]) == 0
    assert "predicted ms" not in capsys.readouterr().out
    assert main(["shrink", "seed.keras", "half.json", "--profile", "chip.json", "-o", "slim.keras"]) == 0
    out = capsys.readouterr().out
    assert "predicted ms" in out
    assert "target" not in out  # the structure's budget is in FLOPs


def test_a_dry_run_writes_nothing_and_says_so(here, capsys):
    before = sorted(path.name for path in here.iterdir())
    words = ["shrink", "seed.keras", "--target", "0.5", "--cost", "flops", "--dry-run"]
    assert main([*words, "-o", "slim.keras", "--save-structure", "s.json", "--to", "litert"]) == 0
    assert capsys.readouterr().out.endswith("\ndry run: nothing was written\n")
    assert main([*words, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["dry_run"], said["files"]) == (True, [])
    assert sorted(path.name for path in here.iterdir()) == before


def test_nothing_pruned_is_said_loudly_and_exits_1(here, capsys):
    assert main(["shrink", "seed.keras", "full.json", "-o", "slim.keras"]) == 1
    assert capsys.readouterr().err.startswith("NOTHING WAS PRUNED: ")
    assert main(["shrink", "seed.keras", "--target", "1", "--cost", "flops", "--dry-run"]) == 1
    assert "NOTHING WAS PRUNED" in capsys.readouterr().err


def test_a_structure_over_the_target_exits_1(here, capsys):
    words = ["shrink", "seed.keras", "half.json", "--dry-run", "--cost", "flops", "--target"]
    assert main([*words, "0.3"]) == 1
    out, err = capsys.readouterr()
    assert "MISSED" in out
    assert err.startswith("OVER THE TARGET: target ")
    assert main([*words, "0.5"]) == 0


@pytest.fixture
def silent(here):
    """A model of two convolutions behind batch norms, "near" of which could be made up for, "far" not; two channels of
    each are closed and say a constant."""
    keras.utils.set_random_seed(0)
    x = y = keras.Input((8, 8, 3))
    for name, reader, size in (("first", "near", 1), ("second", "far", 3)):
        y = layers.BatchNormalization(name=f"{name}_norm")(layers.Conv2D(6, 3, name=name)(y))
        y = layers.Conv2D(4, size, padding="same", name=reader)(layers.ReLU()(y))
    model = keras.Model(x, layers.Dense(4, name="head")(layers.Flatten()(y)))
    for name in ("first_norm", "second_norm"):
        model.get_layer(name).gamma.assign([0, 0, 1, 1, 1, 1])
        model.get_layer(name).beta.assign([1, 2, 1, 1, 1, 1])
    model.save("silent.keras")
    graph = ll.ChannelGraph.from_model(model)
    kept = {group.name: range(2 if group.name in {"first", "second"} else 0, group.size) for group in graph.groups}
    ll.Structure(
        {name: tuple(channels) for name, channels in kept.items()},
        {group.name: group.size for group in graph.groups},
        graph.digest,
    ).save("silent.json")
    return model


def test_constants_of_closed_channels_are_folded_and_those_that_are_not_are_said(silent, capsys):
    assert main(["shrink", "silent.keras", "silent.json", "-o", "plain.keras"]) == 0
    assert "fold: " not in capsys.readouterr().out
    assert main(["shrink", "silent.keras", "silent.json", "-o", "folded.keras", "--fold"]) == 0
    near, far = (line for line in capsys.readouterr().out.splitlines() if line.startswith("fold: "))
    kernel = silent.get_layer("near").kernel.numpy()[0, 0]
    moved = kernel[0] + 2 * kernel[1]
    assert near == f"fold: near: constants of 2 channels folded, biases moved by up to {abs(moved).max():.3g}"
    assert far == "fold: far: constants of 2 channels NOT folded, up to 2: its window reaches over the border"
    before, after = (loaded(name).get_layer("near").bias.numpy() for name in ("plain.keras", "folded.keras"))
    assert after - before == pytest.approx(moved, rel=1e-5)


def test_what_was_folded_as_json(silent, capsys):
    words = ["shrink", "silent.keras", "silent.json", "--dry-run", "--json"]
    assert main(words) == 0
    assert json.loads(capsys.readouterr().out)["folded"] is None
    assert main([*words, "--fold"]) == 0
    near, far = json.loads(capsys.readouterr().out)["folded"]
    assert (near["layer"], near["channels"], near["folded"], near["left"]) == ("near", 2, True, None)
    assert near["largest"] > 0
    assert far == {
        "layer": "far", "channels": 2, "folded": False, "left": "its window reaches over the border", "largest": 2.0
    }  # fmt: skip


def test_nothing_to_fold_is_said(here, capsys):
    assert main(["shrink", "seed.keras", "half.json", "--dry-run", "--fold"]) == 0
    assert "fold: no closed channel is known to say a constant\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["-o", "s.keras"], "which channels stay? Name a STRUCTURE, or give one of --target 0.5 and --target-ms 5"),
        (["--target", "0.5", "--target-ms", "5", "-o", "s.keras"], "which channels stay?"),
        (["half.json", "--target", "0.5", "--target-ms", "5", "-o", "s.keras"], "not both"),
        (["half.json"], "-o OUT: name the .keras file to write, or take --dry-run"),
        (["half.json", "--keep", "stem", "--dry-run"], "--keep says how channels are chosen for a target"),
        (["half.json", "--save-structure", "s", "--dry-run"], "--save-structure says how channels are chosen"),
        (["--target", "0.5", "--dry-run"], "--target of --cost latency needs --profile P"),
        (
            ["--target-ms", "5", "--cost", "flops", "--dry-run"],
            "--target-ms is of --cost latency. Received: --cost flops",
        ),
        (["--target", "50", "--cost", "flops", "--dry-run"], "expected a share above 0 and at most 1. Received: 50.0"),
        (["--target", "0.5", "--cost", "flops", "--keep", "inber", "--dry-run"], "Did you mean 'inner'"),
        (["--target", "0.0001", "--cost", "flops", "--dry-run"], "cannot be reached"),
        (["half.json", "--target-ms", "nan", "--profile", "chip.json", "--dry-run"], "expected milliseconds above 0"),
        (["half.json", "-o", "nowhere/s.keras"], "nowhere/s.keras: there is no folder nowhere"),
        (["--target", "0.5", "--cost", "flops", "--save-structure", "no/s", "-o", "s.keras"], "there is no folder no"),
    ],
)
def test_what_cannot_be_is_a_message_and_2(here, capsys, words, message):
    assert main(["shrink", "seed.keras", *words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err


def test_what_cannot_be_converted_leaves_nothing_half_done(here, capsys, monkeypatch):
    def fails(model):
        raise UnsupportedModelError("no ONNX of this")

    monkeypatch.setattr("latency_lab.convert.to_onnx", fails)
    before = sorted(path.name for path in here.iterdir())
    words = ["--target", "0.5", "--cost", "flops", "--to", "onnx", "--save-structure", "s.json", "-o", "slim.keras"]
    assert main(["shrink", "seed.keras", *words]) == 2
    assert "no ONNX of this" in capsys.readouterr().err
    assert sorted(path.name for path in here.iterdir()) == before
