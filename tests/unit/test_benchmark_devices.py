"""What benchmark_devices.py makes of journals: rows, summaries, tables; and networks between a profile's operations."""

import dataclasses
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import keras
import pytest

import latency_lab as ll
from latency_lab import runtimes
from latency_lab.profiling import Journal, Progress, Protocol, Task, WorkerDiedError
from tests.unit.synthetic import chain, conv_tasks, network_ms, write_journal

SCRIPTS = Path(__file__).parents[2] / "scripts"
WIDTHS = [[16 + 8 * (i % 5), 32, 16 + 16 * (i % 3)] for i in range(15)]


@pytest.fixture
def devices(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    before = set(sys.modules)
    yield __import__("benchmark_devices")
    for name in set(sys.modules) - before:
        if name.startswith(("benchmark_", "accuracy_", "_sshd")):
            del sys.modules[name]


def block(ms, **more):
    return {
        "status": "ok",
        "count": 5,
        "wall_ms": {"min": ms, "median": ms},
        "cpu_ms": None,
        "cold_ms": None,
        "time": 0.0,
        **more,
    }


def test_the_ten_are_of_the_list_and_every_case_is_converted_for(devices):
    models = sys.modules["accuracy_models"]
    assert len(set(devices.NETWORKS)) == 10
    assert set(devices.NETWORKS) <= {entry["name"] for entry in models.networks()}
    assert all("float32" in models.PRECISIONS[case.converted_for] for case in devices.CASES.values())


def test_a_held_out_correction_has_not_seen_the_network(devices, tmp_path):
    networks = [
        dataclasses.replace(chain(widths), name=f"{'one' if i < 5 else 'other'} to {i}")
        for i, widths in enumerate(WIDTHS)
    ]
    journal = write_journal(tmp_path / "j.jsonl", [*conv_tasks(), *(Task(n, "network") for n in networks)])
    profile = ll.fit_profile(journal)
    assert len(profile.network.residuals) == 15
    assert len(devices.held_out("one", profile, journal).network.residuals) == 10
    assert devices.held_out("none", profile, journal).network == profile.network
    assert sum(task.role == "network" for task in journal.tasks.values()) == 15  # the journal is as it was


def test_a_row_sets_both_predictions_beside_what_was_measured(devices, tmp_path):
    journal = write_journal(tmp_path / "j.jsonl", [*conv_tasks(), *(Task(chain(w), "network") for w in WIDTHS)])
    profile, network = ll.fit_profile(journal), chain([16, 32, 16])
    image = x = keras.Input((14, 14, 16))
    for width in (16, 32, 16):
        x = keras.layers.Conv2D(width, 3, padding="same", activation="relu")(x)
    ms = network_ms(network, frozenset())
    found = devices.row(
        "c", ll.ChannelGraph.from_model(keras.Model(image, x)), profile, journal, [block(2 * ms)] * 4 + [block(3 * ms)]
    )
    assert found["measured_ms"] == pytest.approx(2 * ms, abs=1e-4)
    assert found["error"] == pytest.approx(-0.5, abs=0.05)
    assert found["error_held_out"] == pytest.approx(found["error"], abs=0.01)
    assert found["kernels"] == 3
    assert found["slowest_round"] == 1.5
    assert devices.slowest_rounds(journal) == {"median": 1.008, "p90": 1.008}
    assert devices.row("c", None, profile, journal, [{"status": "failed", "reason": "no"}]) == {
        "name": "c",
        "failed": "no",
    }


def test_a_summary_counts_those_within_10_percent_and_names_the_failed(devices):
    rows = [{"name": n, "error": e, "error_held_out": 2 * e} for n, e in (("a", 0.04), ("b", -0.08), ("c", 0.2))]
    found = devices.summary([*rows, {"name": "d", "failed": "it has no file"}])
    assert (found["measured"], found["not_measured"]) == (3, {"d": "it has no file"})
    assert found["error"] == {"within_10_percent": 2, "median": 0.08, "worst": 0.2}
    assert found["error_held_out"] == {"within_10_percent": 1, "median": 0.16, "worst": 0.4}
    assert devices.summary([{"name": "d", "failed": "x"}]) == {"measured": 0, "not_measured": {"d": "x"}}


def test_a_table_has_a_line_a_network(devices):
    good = {"name": "a", "measured_ms": 6.914, "predicted_ms": 7.0, "error": 0.0124, "error_held_out": -0.15}
    rows = [good, {"name": "d", "failed": "it has no file"}]
    who = {"package": "ai-edge-litert", "version": "2.1", "cpu": "A board", "cores": 4}
    case = {
        "title": "LiteRT",
        "environment": who,
        "points": 1234,
        "rounds": 5,
        "seconds": 61.2,
        **devices.summary(rows),
    }
    lines = devices.tables({"cases": {"ssh-litert": {**case, "networks": rows}}}).splitlines()
    assert lines[0] == "LiteRT (ai-edge-litert 2.1; A board, 4 cores): 1,234 points, 5 rounds, 61 s."
    assert lines[4:] == [
        "| a | 6.91 | 7.00 | +1.2% | -15.0% |",
        "| d | - | - | it has no file | - |",
        "| all | | | 1 of 1 within 10 %, median 1.2% | 0 of 1 within 10 %, median 15.0% |",
    ]


class StandIn:
    """A worker that fails one file."""

    def __init__(self):
        self.asked = []

    def block(self, path, settings):
        self.asked.append(path)
        return {"status": "failed", "reason": "no"} if path == "b" else block(1.0)

    def close(self):
        pass


def test_networks_are_measured_evenly_between_the_operations_and_go_on_where_they_stopped(devices, tmp_path):
    benchmark = sys.modules["benchmark_accuracy"]
    found, worker = [({"name": n}, Path(n)) for n in "ab"], StandIn()
    networks = benchmark.Networks(found, lambda: worker, tmp_path / "n.jsonl", (1.0,))
    networks.start_worker()
    for done in range(1, 6):
        networks.between(Progress(done, 10, 0.0, 0.0))
    rounds = Protocol().rounds
    networks.close()
    assert len(worker.asked) == rounds
    again = benchmark.Networks(found, lambda: worker, tmp_path / "n.jsonl", (1.0,))
    again.finish()
    assert {name: [b["round"] for b in blocks] for name, blocks in again.blocks.items()} == {
        name: list(range(rounds)) for name in "ab"
    }
    assert len((tmp_path / "n.jsonl").read_text().splitlines()) == 2 * rounds
    assert json.loads((tmp_path / "n.jsonl").read_text().splitlines()[0])["round"] == 0


class Mortal(StandIn):
    """A worker that one file ends."""

    closed = False

    def block(self, path, settings):
        if self.closed:
            raise WorkerDiedError("it ended before")
        if path == "b":
            raise WorkerDiedError("out of memory")
        return super().block(path, settings)

    def close(self):
        self.closed = True


def test_the_profile_goes_on_with_its_worker_where_a_network_ended_the_process(devices, tmp_path):
    benchmark = sys.modules["benchmark_accuracy"]
    found, workers = [({"name": n}, Path(n)) for n in "ab"], []
    networks = benchmark.Networks(found, lambda: workers.append(Mortal()) or workers[-1], tmp_path / "n.jsonl", (1.0,))
    worker = networks.start_worker()
    for done in range(1, 11):
        assert worker.block(f"op {done}", {})["status"] == "ok"
        networks.between(Progress(done, 10, 0.0, 0.0))
    networks.close()
    assert {b["status"] for b in networks.blocks["a"]} == {"ok"}
    assert {b["reason"] for b in networks.blocks["b"]} == {"out of memory"}
    assert len(workers) == 1 + len(networks.blocks["b"])
    assert all(worker.closed for worker in workers)


def test_a_network_s_blocks_are_read_at_the_good_speed_of_the_machine(devices, tmp_path):
    benchmark = sys.modules["benchmark_accuracy"]
    journal = Journal(tmp_path / "j.jsonl")
    for round_ in range(5):
        for i in range(60):
            ms = (1.0 + i) * (1.5 if round_ == 4 else 1.0)
            journal._take({**block(ms), "key": f"op {i}", "round": round_, "time": 100.0 * round_ + i})
    found = benchmark.measured([block(2.0, time=50.0), block(3.0, time=430.0)], journal)
    assert found.latency_ms == pytest.approx(2.0)
    assert not found.unstable


def test_two_passes_have_a_share_each(devices, tmp_path):
    benchmark = sys.modules["benchmark_accuracy"]
    worker = StandIn()
    networks = benchmark.Networks([({"name": "a"}, Path("a"))], lambda: worker, tmp_path / "n.jsonl", (0.4, 0.6))
    networks.start_worker()
    networks.between(Progress(1, 1, 0.0, 0.0))
    assert len(worker.asked) == 2
    networks.between(Progress(1, 2, 0.0, 0.0))
    networks.between(Progress(2, 2, 0.0, 0.0))
    assert len(worker.asked) == 5
    networks.finish()


class Stepping(StandIn):
    """A worker whose runs of one file take longer and longer, up to a point, and of the others always the same."""

    def block(self, path, settings):
        self.asked.append(path)
        return block(min(1.0 + 0.2 * self.asked.count(path), 2.2) if path == "a" else 1.0)


def test_unstable_networks_have_a_round_more_beside_each_that_operations_have(devices, tmp_path):
    benchmark = sys.modules["benchmark_accuracy"]
    found, worker = [({"name": n}, Path(n)) for n in "abc"], Stepping()
    networks = benchmark.Networks(found, lambda: worker, tmp_path / "n.jsonl", (1.0,))
    networks.start_worker()
    rounds = Protocol().rounds
    for done in range(1, 11):
        networks.between(Progress(done, 10, 0.0, 0.0))
    assert worker.asked.count("a") == worker.asked.count("b") == rounds
    networks.between(Progress(11, 14, 0.0, 0.0))  # operations have a round more ...
    for done in range(12, 15):
        networks.between(Progress(done, 14, 0.0, 0.0))
    assert worker.asked.count("a") == rounds + 1
    networks.between(Progress(15, 15, 0.0, 0.0))  # ... and another
    assert (worker.asked.count("a"), worker.asked.count("b")) == (rounds + 2, rounds)
    networks.finish()
    assert [b["round"] for b in networks.blocks["a"]] == list(range(rounds + 2))


def test_own_kernels_are_added_to_what_the_general_profile_measured(devices, monkeypatch, tmp_path):
    benchmark = sys.modules["benchmark_accuracy"]
    network = chain([20, 40, 24])
    path = tmp_path / "chain.tflite"
    path.write_bytes(runtimes.get("litert").build(network))
    journal = tmp_path / "profile.journal.jsonl"
    general = write_journal(journal, [*conv_tasks(), *(Task(chain(w), "network") for w in WIDTHS)])
    ll.fit_profile(general).save(tmp_path / "profile.json.gz")
    asked = []

    def measured(tasks, journal, on_progress, **_):
        asked.extend(task for task in tasks if task.key not in general.tasks)
        return write_journal(journal, asked)

    monkeypatch.setattr(ll, "profile", measured)
    worker = StandIn()
    monkeypatch.setattr(benchmark, "LocalWorker", lambda *_: worker)
    args = SimpleNamespace(runtime="litert", threads=1, cache=tmp_path)
    found = benchmark.own(args, "litert float32 1 thread", tmp_path, [({"name": "c", "family": "chain"}, path)])
    assert [task.network.nodes[0][0].out_channels for task in asked] == [20, 40, 24]
    assert found["kernels"] == found["networks"][0]["exact"] == 3
    assert len(worker.asked) == Protocol().rounds
    assert list(Journal.load(journal).tasks) == list(general.tasks)  # the general profile's own journal is as it was
