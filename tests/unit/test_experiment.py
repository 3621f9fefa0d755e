"""The experiment's list of cells, what a run that was stopped does next, and latency at equal accuracy."""

import sys
from collections import Counter
from pathlib import Path

import pytest

from latency_lab.errors import BudgetError

SCRIPTS = Path(__file__).parents[2] / "scripts"
MADE_WITH = {"settings": {"images": 10}, "profiles": {"cpu": "abc"}}


@pytest.fixture
def scripts(monkeypatch):
    """Imports a script by its name."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    before = set(sys.modules)
    yield __import__
    for name in set(sys.modules) - before:
        if name.startswith("experiment"):
            del sys.modules[name]


@pytest.fixture
def cells(scripts):
    return scripts("experiment_cells")


@pytest.fixture
def tables(scripts):
    return scripts("experiment_tables")


@pytest.fixture
def store(cells, tmp_path):
    return cells.Store(tmp_path, MADE_WITH)


# ---- cells ----------------------------------------------------------------------------------------------------------


def test_every_net_and_seed_has_all_methods_at_all_targets(cells):
    found = [cell for cell in cells.cells() if cell.device == "cpu"]
    per_training = Counter((cell.net, cell.seed) for cell in found)
    assert per_training == {(net, seed): 13 for net, seeds in cells.SEEDS.items() for seed in range(seeds)}
    assert {(cell.method, cell.target) for cell in found} == {
        ("seed", 1.0),
        *((method, target) for method in cells.METHODS for target in (0.5, 0.3)),
    }


def test_no_two_cells_share_a_key(cells):
    keys = [cell.key for cell in cells.cells()]
    assert len(keys) == len(set(keys))


def test_the_second_device_is_tried_on_one_net(cells):
    found = [cell for cell in cells.cells() if cell.device == "v100"]
    assert {cell.net for cell in found} == {cells.ROOFLINE_NET}
    assert len(found) == len(cells.TARGETS) * len(cells.ROOFLINE_METHODS)


def test_a_run_that_is_cut_short_has_every_net_once_before_more_seeds(cells):
    seeds = [cell.seed for cell in cells.cells()]
    assert seeds == sorted(seeds)


def test_only_some_nets(cells):
    assert {cell.net for cell in cells.cells(["plain"])} == {"plain"}


# ---- resuming -------------------------------------------------------------------------------------------------------


def test_a_finished_cell_is_not_made_again(cells, store):
    wanted = cells.cells(["plain"])[:3]
    store.write(wanted[1], {"accuracy": 0.9})
    made = []
    missing = cells.run_missing(wanted, store, lambda cell: made.append(cell) or {"accuracy": 0.8}, 1)
    assert made == [wanted[0], wanted[2]]
    assert missing == []
    assert [store.read(cell)["accuracy"] for cell in wanted] == [0.8, 0.9, 0.8]


def test_each_cell_is_kept_when_a_later_one_fails(cells, store):
    wanted = cells.cells(["plain"])[:3]

    def run(cell):
        if cell is wanted[2]:
            raise KeyboardInterrupt
        return {"accuracy": 0.8}

    with pytest.raises(KeyboardInterrupt):
        cells.run_missing(wanted, store, run, 1)
    assert [store.read(cell) is not None for cell in wanted] == [True, True, False]


def test_a_cell_of_other_settings_is_missing(cells, store, tmp_path):
    cell = cells.cells()[0]
    store.write(cell, {"accuracy": 0.9})
    assert cells.Store(tmp_path, {**MADE_WITH, "profiles": {"cpu": "other"}}).read(cell) is None


def test_no_cell_is_begun_that_would_end_too_late(cells, store):
    wanted, now = cells.cells(["plain"])[:5], [0.0]

    def run(cell):
        now[0] += 50
        return {}

    missing = cells.run_missing(wanted, store, run, minutes=3, clock=lambda: now[0])
    assert missing == wanted[3:]


def test_a_cell_that_cannot_be_made_is_missing_and_the_rest_goes_on(cells, store, capsys):
    wanted = cells.cells(["plain"])[:3]

    def run(cell):
        if cell is wanted[1]:
            raise BudgetError("cannot be reached")
        return {}

    assert cells.run_missing(wanted, store, run, 1) == [wanted[1]]
    assert f"{wanted[1].key}: cannot be reached" in capsys.readouterr().out


def test_a_measurement_of_a_cell_that_was_made_anew_does_not_count(cells, store):
    cell = cells.cells()[0]
    store.write(cell, {})
    finished = store.read(cell)["finished"]
    write_json = cells.files.write_json
    model = {"finished": finished, "measured": {"litert": {"ms": 1.0}}}
    write_json(store.measured_path(cell.net), {"models": {cell.key: model}})
    assert store.with_measured(cell)["measured"] == {"litert": {"ms": 1.0}}
    write_json(store.measured_path(cell.net), {"models": {cell.key: {**model, "finished": "before"}}})
    assert "measured" not in store.with_measured(cell)


# ---- equal accuracy -------------------------------------------------------------------------------------------------


def test_ms_lies_on_the_line_between_the_points_around_an_accuracy(tables):
    points = [(1.0, 0.90), (0.5, 0.88), (0.3, 0.80)]
    assert tables.ms_at(points, 0.89) == pytest.approx(0.75)
    assert tables.ms_at(points, 0.82) == pytest.approx(0.35)
    assert tables.ms_at(points, 0.88) == pytest.approx(0.5)


def test_nothing_is_extrapolated(tables):
    points = [(1.0, 0.90), (0.5, 0.88)]
    assert tables.ms_at(points, 0.87) is None
    assert tables.ms_at(points, 0.91) is None
    assert tables.ms_at([], 0.9) is None


def test_a_point_that_another_one_beats_counts_for_nothing(tables):
    points = [(1.0, 0.90), (0.7, 0.85), (0.5, 0.88), (0.3, 0.80)]
    assert tables.front(points) == [(0.3, 0.80), (0.5, 0.88), (1.0, 0.90)]
    assert tables.ms_at(points, 0.85) == pytest.approx(0.3 + 0.2 * 5 / 8)


def test_two_methods_at_the_accuracies_of_both(tables):
    ours, theirs, seed = {0.5: (0.5, 0.89), 0.3: (0.3, 0.87)}, {0.5: (0.6, 0.87)}, (1.0, 0.91)
    found = {(who, target): (a, b) for who, target, _, a, b in tables.at_equal_accuracy(ours, theirs, seed)}
    assert found["ours", 0.5] == (pytest.approx(0.5), pytest.approx(0.8))
    assert found["theirs", 0.5] == (pytest.approx(0.3), pytest.approx(0.6))


def test_methods_that_do_not_overlap_are_reported(tables):
    def entry(method, target, ms, accuracy):
        named = {"net": "plain", "seed": 0, "method": method, "target": target, "device": "cpu"}
        return {**named, "accuracy": accuracy, "measured": {"litert": {"ms": ms}}}

    cells = [
        entry("seed", 1.0, 1.0, 0.9),
        entry("latency", 0.5, 0.5, 0.92),  # beats the seed: its front has one point
        entry("flops", 0.5, 0.6, 0.85),
    ]
    row = tables.equal_table(tables.Results({"cells": cells}), "plain")
    assert row.count("no overlap (1 of 1)") == 2
    assert "geometric mean" not in row


def test_the_tables_of_unfinished_results_say_what_is_missing(tables):
    profile = {"name": "p", "digest": "d"}
    found = {"cells": [], "missing": ["plain-0-seed-1-cpu"], "settings": {}, "profiles": {"cpu": profile}}
    assert "missing: plain-0-seed-1-cpu" in tables.text(found)
